//! What a guest with encrypted state does without its hypervisor, written down for whoever traces the machine: PVALIDATE,
//! RMPADJUST, and #VC with the instruction that caused it.
//!
//! Nothing is written down until [`Vcpu::record_sev`], and writing down changes nothing else. The machine takes the records
//! ([`Vcpu::take_sev_records`]) whenever the processor has left the guest, so that there are never more than one turn has.

use emu_core::Gva;
use emu_core::time::Instant;
use mmu::rmp::{GuestPage, RmpPageSize, Validated};

use crate::cpu::Cpu;
use crate::op::Op;
use crate::vcpu::Vcpu;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SevAct {
    /// PVALIDATE came to its end.
    Pvalidate {
        /// rAX.
        gva: Gva,
        /// What it led to; nothing if the operands were refused before.
        page: Option<GuestPage>,
        /// The size asked for.
        size: RmpPageSize,
        /// What the page was to become.
        to: Validated,
        /// EAX afterwards.
        eax: u32,
        /// CF afterwards.
        carry: bool,
    },
    /// RMPADJUST came to its end.
    RmpAdjust {
        /// RAX.
        gva: Gva,
        /// What it led to; nothing if the operands were refused before.
        page: Option<GuestPage>,
        /// RCX.
        rcx: u64,
        /// RDX.
        rdx: u64,
        /// EAX afterwards.
        eax: u32,
    },
    /// #VC was delivered.
    VmmCommunication {
        /// Its error code.
        exit_code: u32,
    },
}

/// That, when, and by which instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SevRecord {
    /// The time at the instruction.
    pub at: Instant,
    /// Its address.
    pub rip: Gva,
    /// What it did.
    pub act: SevAct,
}

impl Cpu {
    /// Writes down what the instruction that is `op` did, if anybody wants to know.
    pub fn record_at(&mut self, op: &Op, act: impl FnOnce(&Cpu) -> SevAct) {
        if self.sev_records.is_some() {
            let record = SevRecord { at: self.now_at(op), rip: Gva::new(self.rip_of(op)), act: act(self) };
            self.sev_records.get_or_insert_default().push(record);
        }
    }

    /// Writes down that #VC was delivered at the instruction boundary `rip`.
    pub fn record_vc(&mut self, rip: u64, exit_code: u32) {
        let at = self.now();
        if let Some(records) = &mut self.sev_records {
            records.push(SevRecord { at, rip: Gva::new(rip), act: SevAct::VmmCommunication { exit_code } });
        }
    }
}

impl Vcpu {
    /// From now on acts are written down.
    pub fn record_sev(&mut self) {
        self.engine.cpu.sev_records.get_or_insert_default();
    }

    /// Takes what was written down since the last time.
    pub fn take_sev_records(&mut self) -> Vec<SevRecord> {
        self.engine.cpu.sev_records.as_mut().map(core::mem::take).unwrap_or_default()
    }
}
