//! RDMSR and WRMSR, and the instructions that read the clock.
//!
//! APM vol. 3, "RDMSR", "WRMSR", "RDTSC", "RDTSCP", "RDPMC", "RDPID". Which registers exist, and what a write accepts, is in
//! [`emu_core::msr`]; here are the fields they live in and what a write sets off.

use emu_core::msr::{Msr, MsrClass, MsrRefused, validate_write};
use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::sev::ExitCode;
use emu_core::time::Instant;
use mmu::PagingChange;

use crate::cpu::Cpu;
use crate::dispatch::{Act, Ender, Flow};
use crate::event::Asked;
use crate::exit::{Completion, Exit, MsrAccess, Trap};
use crate::latch::Question;
use crate::op::Op;
use crate::segment::SegReg;
use crate::sev::intercept::MsrUse;
use crate::system::control::set_whole;
use crate::system::descriptor::gp0;
use crate::system::load::privileged;
use crate::system::set_edx_eax;

/// IA32_APIC_BASE.EN
const APIC_BASE_EN: u64 = 1 << 11;

impl Cpu {
    /// The time-stamp counter at `now`.
    pub fn tsc(&self, now: Instant) -> u64 {
        now.ticks(self.model.tsc_hz()).wrapping_add(self.msr.tsc_adjust)
    }

    /// The stored value of `msr`, wherever it lives; 0 if the board or nobody stores it.
    pub fn stored_msr(&mut self, msr: Msr) -> u64 {
        match msr {
            Msr::EFER => self.control.efer.bits(),
            Msr::FS_BASE => self.segments.get(SegReg::Fs).base,
            Msr::GS_BASE => self.segments.get(SegReg::Gs).base,
            Msr::TSC_ADJUST => self.msr.tsc_adjust,
            _ => match self.msr.field(msr) {
                Some(field) => *field,
                None => self.msr.file.get(msr),
            },
        }
    }

    /// What the processor itself answers to RDMSR; `None` if the board does.
    pub fn own_msr(&mut self, msr: Msr, now: Instant) -> Result<Option<u64>, MsrRefused> {
        let entry = self.model.readable_msr(msr)?;
        self.check_guest_only(msr)?;
        self.check_owner_only(msr)?;
        if let Some(value) = self.rmp_msr(msr) {
            return Ok(Some(value));
        }
        Ok(match entry.class {
            MsrClass::Register(_) => Some(self.stored_msr(msr)),
            MsrClass::Constant(constant) => Some(constant.value(&self.model)),
            MsrClass::Time if msr == Msr::TSC => Some(self.tsc(now)),
            MsrClass::Time => Some(self.msr.tsc_adjust),
            MsrClass::Apic => None,
        })
    }

    fn read_msr(&mut self, msr: Msr, now: Instant) -> Result<u64, Trap> {
        match self.own_msr(msr, now).map_err(|_| gp0())? {
            Some(value) => Ok(value),
            None => self.ask_apic(msr, None),
        }
    }

    fn ask_apic(&mut self, msr: Msr, write: Option<u64>) -> Result<u64, Trap> {
        match self.latch.ask(Question::Msr { msr: msr.0, write: write.is_some() }) {
            Some(Completion::Done(bytes)) => {
                let (words, _) = bytes.as_chunks::<8>();
                Ok(u64::from_le_bytes(words[0]))
            }
            Some(Completion::Refused | Completion::PageFault(_)) => Err(gp0()),
            None => Err(Exit::Msr(MsrAccess { msr: msr.0, write }).into()),
        }
    }

    fn write_msr(&mut self, msr: Msr, value: u64, now: Instant) -> Result<(), Trap> {
        if self.set_own_msr(msr, value, now).map_err(|_| gp0())?.is_none() {
            self.ask_apic(msr, Some(value))?;
            self.note_board_msr(msr, value);
        }
        Ok(())
    }

    /// The board has taken `value` for `msr`.
    pub fn note_board_msr(&mut self, msr: Msr, value: u64) {
        if msr == Msr::APIC_BASE {
            self.apic_enabled = value & APIC_BASE_EN != 0;
        }
    }

    /// WRMSR of a register that the processor itself has; `None`, and nothing has happened, if the board has it.
    pub fn set_own_msr(&mut self, msr: Msr, value: u64, now: Instant) -> Result<Option<()>, MsrRefused> {
        let entry = self.model.msr(msr)?;
        self.check_guest_only(msr)?;
        self.check_owner_only(msr)?;
        if let Some(()) = self.set_rmp_msr(msr, value)? {
            return Ok(Some(()));
        }
        match entry.class {
            MsrClass::Apic => return Ok(None),
            MsrClass::Time if msr == Msr::TSC => {
                let step = value.wrapping_sub(self.tsc(now));
                self.msr.tsc_adjust = self.msr.tsc_adjust.wrapping_add(step);
                self.pending.asked = Some(Asked::TscMoved);
            }
            MsrClass::Time => {
                self.msr.tsc_adjust = value;
                self.pending.asked = Some(Asked::TscMoved);
            }
            MsrClass::Constant(_) | MsrClass::Register(_) => {
                let old = self.stored_msr(msr);
                let fixed = self.fixed_bits(msr);
                let value = validate_write(&self.model, msr, old & !fixed, value & !fixed)?;
                self.store_msr(msr, old, value | old & fixed)?;
            }
        }
        Ok(Some(()))
    }

    /// Stores a value that passed its rule, with all that follows from it.
    fn store_msr(&mut self, msr: Msr, old: u64, value: u64) -> Result<(), MsrRefused> {
        match msr {
            Msr::EFER => {
                let lme_changes = (old ^ value) & Efer::LME.bits() != 0;
                if lme_changes && self.control.cr0.contains(Cr0::PG) {
                    return Err(MsrRefused::Transition { msr, old, new: value });
                }
                self.control.efer = Efer::from_bits_retain(value);
                self.update_paging(PagingChange::WriteEfer);
                self.refresh_mode();
            }
            Msr::FS_BASE => self.set_base(SegReg::Fs, value),
            Msr::GS_BASE => self.set_base(SegReg::Gs, value),
            // A command: nothing is predicted, so there is nothing to forget.
            Msr::PRED_CMD => {}
            _ => match self.msr.field(msr) {
                Some(field) => *field = value,
                None => self.msr.file.set(msr, value),
            },
        }
        if msr == Msr::PKRS {
            self.update_paging(PagingChange::ProtectionKeys);
        }
        Ok(())
    }

    /// Replaces the base of FS or GS alone.
    pub fn set_base(&mut self, reg: SegReg, base: u64) {
        self.segments.regs[reg as usize].base = base;
        self.seg_base[reg as usize] = base;
    }
}

/// RDMSR
pub(crate) struct Rdmsr;
impl Act for Rdmsr {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        privileged(cpu)?;
        let msr = Msr(cpu.reg::<u32>(1));
        cpu.intercept_msr(msr, MsrUse::Read)?;
        let value = cpu.read_msr(msr, cpu.now_at(op))?;
        set_edx_eax(cpu, value);
        Ok(())
    }
}

/// WRMSR
pub(crate) struct Wrmsr;
impl Ender for Wrmsr {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        privileged(cpu)?;
        let msr = Msr(cpu.reg::<u32>(1));
        cpu.intercept_msr(msr, MsrUse::Write)?;
        cpu.write_msr(msr, super::edx_eax(cpu), cpu.now_at(op))?;
        Ok(Flow::Next)
    }
}

fn check_tsd(cpu: &Cpu) -> Result<(), Trap> {
    if cpu.cpl != 0 && cpu.control.cr4.contains(Cr4::TSD) { Err(gp0()) } else { Ok(()) }
}

/// RDTSC
pub(crate) struct Rdtsc;
impl Act for Rdtsc {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        check_tsd(cpu)?;
        cpu.meet_others(cpu.now_at(op));
        set_edx_eax(cpu, cpu.tsc(cpu.now_at(op)));
        Ok(())
    }
}

/// RDTSCP
pub(crate) struct Rdtscp;
impl Act for Rdtscp {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        Rdtsc::exec(cpu, op)?;
        cpu.set_reg(1, cpu.msr.tsc_aux as u32);
        Ok(())
    }
}

/// RDPID (register in `dst`)
pub(crate) struct Rdpid;
impl Act for Rdpid {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        set_whole(cpu, op.dst, cpu.msr.tsc_aux & 0xffff_ffff);
        Ok(())
    }
}

/// RDPMC: there are no counters.
pub(crate) struct Rdpmc;
impl Act for Rdpmc {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        if cpu.cpl == 0 || cpu.control.cr4.contains(Cr4::PCE) {
            cpu.intercept(ExitCode::RDPMC)?;
        }
        Err(gp0())
    }
}
