//! INIT and start-up.
//!
//! APM vol. 2, "Processor Initialization" and "Initial State"; Intel SDM vol. 3, "Processor State After Reset".

use emu_core::regs::{Cr0, Cr4, Dr6, Dr7, Efer, Rflags};
use mmu::PagingChange;

use crate::cpu::Cpu;
use crate::event::{InterruptShadow, Pending};
use crate::op::RIP;
use crate::segment::{SegReg, Segment, Segments};

impl Cpu {
    /// See [`crate::Vcpu::init`].
    pub fn init(&mut self) {
        self.gpr = [0; crate::op::GPR_SLOTS];
        self.gpr[2] = self.model.signature().eax() as u64;
        self.gpr[RIP as usize] = 0xfff0;
        self.flags.set_rflags(Rflags::empty());
        self.cpl = 0;
        self.segments = Segments::reset();
        let c = &mut self.control;
        c.cr0 = c.cr0 & (Cr0::CD | Cr0::NW) | Cr0::ET;
        (c.cr2, c.cr3, c.pdptes) = (0, 0, None);
        c.cr4 = Cr4::empty();
        // Encrypted state keeps what its VMSA must have.
        c.efer = if self.sev.is_some() { Efer::SVME } else { Efer::empty() };
        c.dr = [0; 4];
        c.dr6 = Dr6::FIXED;
        c.dr7 = Dr7::RESET;
        self.trap = None;
        self.event = None;
        self.shadow = InterruptShadow::None;
        self.pending = Pending::default();
        self.debug_hits = Dr6::empty();
        self.unlinked = None;
        self.latch.clear();
        self.update_paging(PagingChange::Reset);
        self.refresh_mode();
    }

    /// See [`crate::Vcpu::start_at`].
    pub fn start_at(&mut self, vector: u8) {
        let base = (vector as u64) << 12;
        let old = *self.segments.get(SegReg::Cs);
        self.segments.regs[SegReg::Cs as usize] = Segment { selector: (vector as u16) << 8, base, ..old };
        self.set_rip(0);
        self.refresh_mode();
    }
}
