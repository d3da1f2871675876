//! The NX huge page workaround from the VM's side (`nx_huge_pages`, `kvm_nx_huge_page_recovery_worker`).

use std::sync::atomic::Ordering;

use emu_core::sync::Task;

use crate::config::VmError;
use crate::flush::Owed;
use crate::params::NxHugePages;
use crate::vm::Vm;

impl Vm {
    /// Whether leaves above 4K may be executed.
    pub fn nx_huge_pages(&self) -> NxHugePages {
        match self.nx.load(Ordering::Acquire) {
            true => NxHugePages::On,
            false => NxHugePages::Off,
        }
    }

    /// Writes the parameter. Whichever way it changes, everything is zapped: what is mapped was made under the other rule.
    pub fn set_nx_huge_pages(&self, to: NxHugePages, task: &Task<'_>) -> Result<(), VmError> {
        let _changes = self.slots_lock.lock(task);
        if self.nx_huge_pages() == to {
            return Ok(());
        }
        self.nx.store(to == NxHugePages::On, Ordering::Release);
        self.zap_all(task)
    }

    /// One period of the recovery worker: gives up one in `ratio` of the tables that the workaround made, rounded up, but
    /// none in slots that are logged, where a huge leaf could not come back. How many went; a ratio of 0 gives up none.
    pub fn recover_nx_huge_pages(&self, ratio: u32, task: &Task<'_>) -> Result<usize, VmError> {
        if ratio == 0 {
            return Ok(0);
        }
        let slots = self.slots.read(task);
        let may_go = |gfn, _frames| slots.lookup(gfn).is_none_or(|slot| slot.log().is_none());
        let mut owed = Owed::default();
        let gone = {
            let tables = self.mmu.read(task);
            let _zapping = tables.shared_zap();
            let nr = tables.nx_tables(task).len().div_ceil(ratio as usize);
            let gone = tables.recover_nx(nr, &may_go, &mut owed, task);
            self.flush(&owed, task);
            gone
        };
        if !owed.is_empty() {
            self.mmu.write(task).bury(&self.host, task);
        }
        Ok(gone?)
    }
}
