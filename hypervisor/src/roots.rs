//! Zapping everything at once, without keeping anybody waiting (`kvm_mmu_zap_all_fast`).

use std::sync::atomic::Ordering;

use emu_core::Gfn;
use emu_core::event::Event;
use emu_core::sync::{Point, Task};

use crate::config::VmError;
use crate::flush::Owed;
use crate::tdp::ZapRoot;
use crate::vcpu::VcpuId;
use crate::vm::Vm;

impl Vm {
    /// Gives the root of the nested tables up. Every processor is asked to load the new one before it enters the guest
    /// ([`Vm::take_root`]), which is waited for, and to forget all it has cached; faults of one that has not are told to
    /// try again. Then the old tables are removed, letting others in between.
    pub fn zap_all_fast(&self, task: &Task<'_>) -> Result<(), VmError> {
        if self.is_shadowing() {
            // Shadow pages go by generation, and their roots with them.
            return self.zap_all(task);
        }
        let old = {
            let fresh = self.host.lock(task).alloc_table()?;
            let tables = self.mmu.write(task);
            let old = tables.invalidate_root(fresh, task);
            let generation = self.mmu_valid_gen.fetch_xor(1, Ordering::Relaxed) ^ 1;
            task.report_with(|| Event::ZapAllFast { generation, used_pages: tables.stats().tables.iter().sum() });
            let mut owed = Owed::default();
            owed.all();
            for vcpu in &self.vcpus {
                vcpu.obsolete.store(true, Ordering::Release);
                vcpu.flush(&owed, task);
            }
            old
        };
        task.at(Point::Z1);
        let mut from = Gfn::new(0);
        // Let go in between: a fault, or somebody who takes a page away, waits for a part of the tables at most.
        while let ZapRoot::From(next) = self.mmu.read(task).zap_invalid_root(old, from, task)? {
            from = next;
            task.at(Point::Z1);
        }
        self.mmu.write(task).bury(&self.host, task);
        Ok(())
    }

    /// What `vcpu` must load into nCR3 or its EPT pointer before it enters the guest, if that changed
    /// (`KVM_REQ_MMU_FREE_OBSOLETE_ROOTS`).
    pub fn take_root(&self, vcpu: VcpuId) -> Result<Option<u64>, VmError> {
        let obsolete = &self.vcpu(vcpu)?.obsolete;
        // Most often it did not, and a machine asks at every entry.
        let changed = obsolete.load(Ordering::Acquire) && obsolete.swap(false, Ordering::AcqRel);
        Ok(changed.then(|| self.root_register()))
    }
}
