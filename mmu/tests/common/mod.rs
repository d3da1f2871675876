//! Runs one translation through the `mmu` crate and through the oracle, and compares everything that can be seen.

use std::cell::RefCell;
use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::{Access, AccessKind, Gva, Privilege, Spa};
use mmu::rmp::{Rmp, RmpPlace};
use mmu::{
    Asid, Caches, Ept, EptExecute, Eptp, Mmu, MmuFault, NestedNx, Npt, PagingCapabilities, PagingChange,
    PagingFeatures, PagingState, Stage2, Stage2Levels, Vendor, Vpid,
};
use oracle::{Answer, Machine, Nested, Processor, Ram, Registers};

/// A table entry that the case is about.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub spa: u64,
    pub bytes: u32,
    pub value: u64,
}

pub const ACCESSES: [Access; 9] = {
    let mut all = [Access::new(AccessKind::Read, Privilege::User); 9];
    let kinds = [AccessKind::Read, AccessKind::Write, AccessKind::Execute];
    let mut n = 0;
    while n < 9 {
        all[n] = Access::new(kinds[n / 3], Privilege::ALL[n % 3]);
        n += 1;
    }
    all
};

pub struct Harness {
    pub processor: Processor,
    pub registers: Registers,
    nested: Nested,
    memory: Arc<SystemMemory>,
    mmu: Mmu,
    pub cases: u64,
}

pub fn features(p: &Processor) -> PagingFeatures {
    let mut capabilities = PagingCapabilities::empty();
    capabilities.set(PagingCapabilities::PAGE_1G, p.page_1g);
    capabilities.set(PagingCapabilities::PSE36, p.pse36);
    capabilities.set(PagingCapabilities::EPT_EXECUTE_ONLY, p.execute_only);
    PagingFeatures {
        physical_bits: p.physical_bits as u8,
        vendor: if p.amd { Vendor::Amd } else { Vendor::Intel },
        capabilities,
    }
}

pub fn registers(cr0: Cr0, cr4: Cr4, efer: Efer, cr3: u64) -> Registers {
    Registers { cr0: cr0 | Cr0::PE | Cr0::PG, cr3, cr4, efer, pkru: 0, pkrs: 0, pdptes: None }
}

fn stage2(nested: Nested) -> Stage2 {
    match nested {
        Nested::None => Stage2::None,
        Nested::Npt { ncr3, la57, nxe } => Stage2::Npt(Npt {
            root: Spa::new(ncr3),
            levels: if la57 { Stage2Levels::Five } else { Stage2Levels::Four },
            nx: if nxe { NestedNx::Enabled } else { NestedNx::Reserved },
            asid: Asid(1),
            snp: None,
        }),
        Nested::Ept { eptp, mode_based } => Stage2::Ept(Ept {
            eptp: Eptp(eptp),
            execute: if mode_based { EptExecute::ModeBased } else { EptExecute::Single },
            vpid: Vpid(1),
        }),
    }
}

impl Harness {
    pub fn new(processor: Processor, registers: Registers, nested: Nested) -> Harness {
        let memory = SystemMemory::flat(8 << 30).expect("address space");
        let mut mmu = Mmu::new(Arc::clone(&memory), features(&processor));
        mmu.set_caches(Caches::empty());
        mmu.set_stage2(stage2(nested));
        let mut harness = Harness { processor, registers, nested, memory, mmu, cases: 0 };
        harness.set_registers(registers);
        harness
    }

    /// Puts an RMP in force in which every page is the hypervisor's: no access of a guest without SNP may end differently.
    pub fn under_rmp(mut self) -> Harness {
        let base = Spa::new(0x1_0000_0000);
        let place = RmpPlace::Contiguous { base, last: base.wrapping_add(Rmp::bytes_for(base.raw()) - 1) };
        let rmp = Rmp::new(Arc::clone(&self.memory), place).expect("room for the table");
        self.mmu.set_rmp(Some(Arc::new(rmp)));
        self
    }

    pub fn set_registers(&mut self, r: Registers) {
        self.registers = r;
        let state = PagingState {
            cr0: r.cr0,
            cr3: r.cr3,
            cr4: r.cr4,
            efer: r.efer,
            pkru: r.pkru,
            pkrs: r.pkrs,
            pdptes: r.pdptes,
        };
        self.mmu.set_paging(state, PagingChange::Reset);
    }

    /// Puts `slots` in memory, translates both ways, compares.
    pub fn compare(&mut self, slots: &[Slot], gva: u64, access: Access) {
        self.cases += 1;
        for slot in slots {
            self.put(slot);
        }
        let model = RefCell::new([Slot { spa: 0, bytes: 0, value: 0 }; 16]);
        model.borrow_mut()[..slots.len()].copy_from_slice(slots);
        let machine = Machine {
            processor: self.processor,
            registers: self.registers,
            nested: self.nested,
            ram: Ram {
                read: &|spa, _| model.borrow()[..slots.len()].iter().find(|s| s.spa == spa).map_or(0, |s| s.value),
                write: &|spa, _, value| {
                    let mut model = model.borrow_mut();
                    let slot = model.iter_mut().find(|s| s.spa == spa).expect("only entries that were read");
                    slot.value = value;
                },
            },
        };
        let expected = oracle::translate(&machine, Gva::new(gva), access);
        let dry = self.mmu.probe(Gva::new(gva), access);
        for slot in slots {
            assert_eq!(self.get(slot), slot.value, "a probe changed memory");
        }
        let seen = self.mmu.translate(Gva::new(gva), access);
        let answer = self.answer(seen);
        let describe = || format!("{:?} {:?} {slots:x?} {gva:#x} {access:?}", self.registers, self.nested);
        assert_eq!(answer, expected, "{}", describe());
        for (slot, model) in slots.iter().zip(model.borrow().iter()) {
            assert_eq!(self.get(slot), model.value, "A or D at {:#x}: {}", slot.spa, describe());
        }
        let seen_dry = self.answer(dry);
        // What only setting A or D would refuse, a probe cannot see.
        let by_update = matches!(seen, Err(MmuFault::Nested(fault)) if matches!(fault.cause, mmu::Stage2Cause::GuestTableUpdate { .. }));
        assert!(by_update || seen_dry == expected, "probe: {}", describe());
    }

    fn put(&self, slot: &Slot) {
        let at = Spa::new(slot.spa);
        let done = match slot.bytes {
            4 => self.memory.store(at, slot.value as u32),
            _ => self.memory.store(at, slot.value),
        };
        done.expect("tables lie in memory");
    }

    fn get(&self, slot: &Slot) -> u64 {
        let at = Spa::new(slot.spa);
        match slot.bytes {
            4 => self.memory.load::<u32>(at).map(u64::from),
            _ => self.memory.load::<u64>(at),
        }
        .expect("tables lie in memory")
    }

    fn answer(&self, result: Result<mmu::Translation, MmuFault>) -> Answer {
        match result {
            Ok(t) => Answer::Reaches { gpa: t.gpa.raw(), spa: t.spa.raw() },
            Err(MmuFault::NonCanonical { .. }) => Answer::NonCanonical,
            Err(MmuFault::Guest { code, .. }) => Answer::PageFault { code: code.bits() },
            Err(MmuFault::Nested(fault)) => match self.nested {
                Nested::Ept { .. } if fault.is_misconfiguration() => {
                    Answer::EptMisconfiguration { gpa: fault.gpa.raw() }
                }
                Nested::Ept { .. } => {
                    Answer::EptViolation { gpa: fault.gpa.raw(), qualification: fault.qualification() }
                }
                _ => Answer::NestedPageFault { gpa: fault.gpa.raw(), exitinfo1: fault.exitinfo1() },
            },
            Err(fault @ (MmuFault::NotValidated { .. } | MmuFault::LogFull | MmuFault::Bus(_))) => panic!("{fault:?}"),
        }
    }
}
