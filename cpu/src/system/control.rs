//! Control registers: MOV CRn, LMSW, SMSW, CLTS, XGETBV and XSETBV, and the checks of each.
//!
//! APM vol. 2, "System-Control Registers", "Enabling and Activating Long Mode"; Intel SDM vol. 3, "Control Registers",
//! "PDPTE Registers". Which bits exist is the CPU model's to say.

use emu_core::cpuid::Feature;
use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::{AccessKind, Gpa};
use mmu::{PagingChange, Stage2};

use crate::cpu::Cpu;
use crate::dispatch::{Act, Ender, Flow};
use crate::exit::{Completion, Exit, Trap};
use crate::latch::Question;
use crate::mode::Mode;
use crate::op::Op;
use crate::segment::SegReg;
use crate::system::descriptor::{gp0, ud};
use crate::system::load::privileged;

/// No-flush bit of MOV to CR3 under CR4.PCIDE.
const NO_FLUSH: u64 = 1 << 63;

impl Cpu {
    /// Whether PAE paging of legacy mode is in force.
    pub fn pae_is_on(&self) -> bool {
        let c = &self.control;
        uses_pdptes(c.cr0, c.cr4, c.efer)
    }

    /// Loads the PDPTE registers for the current CR3.
    pub fn load_pdptes(&mut self) -> Result<(), Trap> {
        self.control.pdptes = self.pdptes_at(self.control.cr3)?;
        self.update_paging(PagingChange::MovCr3);
        Ok(())
    }

    /// The four entries CR3 points at, checked. `None` under nested paging of AMD, where each walk reads them.
    fn pdptes_at(&mut self, cr3: u64) -> Result<Option<[u64; 4]>, Trap> {
        if matches!(self.mmu.stage2(), Stage2::Npt(_)) {
            return Ok(None);
        }
        let gpa = Gpa::new(cr3 & 0xffff_ffe0);
        if self.is_shadowed() {
            let raw = self.ask_pdptes(gpa)?;
            return self.checked_pdptes(&raw).map(Some);
        }
        let found = match self.mmu.translate_gpa(gpa, AccessKind::Read) {
            Ok(found) => found,
            Err(fault) => return Err(self.mmu_trap(fault, crate::segment::FLAT)),
        };
        let mut raw = [0; 32];
        if let Err(error) = self.mmu.memory().read(found.spa, &mut raw) {
            return Err(self.mmu_trap(mmu::MmuFault::Bus(error), crate::segment::FLAT));
        }
        self.checked_pdptes(&raw).map(Some)
    }

    /// The PDPTEs in `raw`, if none has a reserved bit.
    fn checked_pdptes(&self, raw: &[u8; 32]) -> Result<[u64; 4], Trap> {
        let (words, _) = raw.as_chunks::<8>();
        let entries: [u64; 4] = core::array::from_fn(|n| u64::from_le_bytes(words[n]));
        let reserved = !0 << self.model.maxphyaddr() | 0x1e6;
        if entries.iter().any(|entry| entry & 1 != 0 && entry & reserved != 0) {
            return Err(gp0());
        }
        Ok(entries)
    }

    fn write_cr0(&mut self, value: u64) -> Result<(), Trap> {
        let allowed = self.model.cr0_allowed();
        if value >> 32 != 0 {
            return Err(gp0());
        }
        let old = self.control.cr0;
        let new = Cr0::from_bits_retain(value) & allowed | Cr0::ET;
        let has = |bit| new.contains(bit);
        if has(Cr0::PG) && !has(Cr0::PE) || has(Cr0::NW) && !has(Cr0::CD) {
            return Err(gp0());
        }
        let mut efer = self.control.efer;
        let mut pdptes = self.control.pdptes;
        let cr4 = self.control.cr4;
        let in_64 = self.segments.get(SegReg::Cs).attributes.l();
        match (old.contains(Cr0::PG), has(Cr0::PG)) {
            (false, true) if efer.contains(Efer::LME) => {
                if !cr4.contains(Cr4::PAE) || in_64 {
                    return Err(gp0());
                }
                efer |= Efer::LMA;
            }
            (true, false) => {
                if self.mode == Mode::Long64 || cr4.contains(Cr4::PCIDE) {
                    return Err(gp0());
                }
                efer -= Efer::LMA;
            }
            _ => {}
        }
        if uses_pdptes(new, cr4, efer) && (old ^ new).intersects(Cr0::PG | Cr0::CD | Cr0::NW) {
            pdptes = self.pdptes_at(self.control.cr3)?;
        }
        let c = &mut self.control;
        (c.cr0, c.efer, c.pdptes) = (new, efer, pdptes);
        self.update_paging(PagingChange::MovCr0);
        self.refresh_mode();
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Result<(), Trap> {
        let c = &self.control;
        let pcide = c.cr4.contains(Cr4::PCIDE);
        let no_flush = pcide && value & NO_FLUSH != 0;
        let value = if pcide { value & !NO_FLUSH } else { value };
        if value & !self.model.cr3_allowed() != 0 {
            return Err(gp0());
        }
        let pdptes = if self.pae_is_on() { self.pdptes_at(value)? } else { None };
        self.control.cr3 = value;
        self.control.pdptes = pdptes;
        self.update_paging(if no_flush { PagingChange::MovCr3NoFlush } else { PagingChange::MovCr3 });
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Result<(), Trap> {
        let old = self.control.cr4;
        let new = Cr4::from_bits(value).ok_or_else(gp0)?;
        if !self.model.cr4_allowed().contains(new) {
            return Err(gp0());
        }
        let changed = old ^ new;
        if self.is_long() && (!new.contains(Cr4::PAE) || changed.contains(Cr4::LA57)) {
            return Err(gp0());
        }
        if changed.contains(Cr4::PCIDE)
            && new.contains(Cr4::PCIDE)
            && (!self.is_long() || self.control.cr3 & 0xfff != 0)
        {
            return Err(gp0());
        }
        let c = &self.control;
        let mut pdptes = c.pdptes;
        if uses_pdptes(c.cr0, new, c.efer) && changed.intersects(Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP) {
            pdptes = self.pdptes_at(self.control.cr3)?;
        }
        self.control.cr4 = new;
        self.control.pdptes = pdptes;
        self.update_paging(PagingChange::MovCr4);
        self.refresh_mode();
        Ok(())
    }

    /// Reads or writes the task priority, which the local APIC holds.
    fn task_priority(&mut self, write: Option<u8>) -> Result<u64, Trap> {
        match self.latch.ask(Question::TaskPriority { write: write.is_some() }) {
            Some(Completion::Done(bytes)) => Ok((bytes[0] & 0xf) as u64),
            Some(Completion::Refused | Completion::PageFault(_)) => Err(gp0()),
            None => Err(Exit::TaskPriority { write }.into()),
        }
    }
}

const fn uses_pdptes(cr0: Cr0, cr4: Cr4, efer: Efer) -> bool {
    cr0.contains(Cr0::PG) && cr4.contains(Cr4::PAE) && !efer.contains(Efer::LMA)
}

/// Registers move whole in 64-bit mode, by halves elsewhere.
pub(crate) fn whole(cpu: &Cpu, n: u8) -> u64 {
    if cpu.key.is_64() { cpu.reg::<u64>(n) } else { cpu.reg::<u32>(n) as u64 }
}

/// Writes what [`whole`] reads.
pub(crate) fn set_whole(cpu: &mut Cpu, n: u8, value: u64) {
    if cpu.key.is_64() { cpu.set_reg(n, value) } else { cpu.set_reg(n, value as u32) }
}

/// MOV CRn, r (control register in `aux`)
pub(crate) struct MovToCr;
impl Ender for MovToCr {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        privileged(cpu)?;
        let value = whole(cpu, op.src);
        match op.aux {
            0 => cpu.write_cr0(value)?,
            2 => cpu.control.cr2 = value,
            3 => cpu.write_cr3(value)?,
            4 => cpu.write_cr4(value)?,
            8 if value >> 4 != 0 => return Err(gp0()),
            8 => drop(cpu.task_priority(Some(value as u8))?),
            _ => return Err(ud()),
        }
        Ok(Flow::Next)
    }
}

/// MOV r, CRn
pub(crate) struct MovFromCr;
impl Act for MovFromCr {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        privileged(cpu)?;
        let value = match op.aux {
            0 => cpu.control.cr0.bits(),
            2 => cpu.control.cr2,
            3 => cpu.control.cr3,
            4 => cpu.control.cr4.bits(),
            8 => cpu.task_priority(None)?,
            _ => return Err(ud()),
        };
        set_whole(cpu, op.src, value);
        Ok(())
    }
}

/// CLTS
pub(crate) struct Clts;
impl Ender for Clts {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
        privileged(cpu)?;
        cpu.control.cr0 -= Cr0::TS;
        cpu.refresh_mode();
        Ok(Flow::Next)
    }
}

/// LMSW: PE, MP, EM and TS; PE can only be set.
pub(crate) struct Lmsw;
impl Ender for Lmsw {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        privileged(cpu)?;
        let value = super::operand(cpu, op, 2)?;
        let old = cpu.control.cr0.bits();
        cpu.write_cr0(old & !0xe | value & 0xf)?;
        Ok(Flow::Next)
    }
}

/// #GP(0) under CR4.UMIP for the instructions that tell programs about the system.
pub(crate) fn check_umip(cpu: &Cpu) -> Result<(), Trap> {
    if cpu.cpl != 0 && cpu.control.cr4.contains(Cr4::UMIP) { Err(gp0()) } else { Ok(()) }
}

/// SMSW
pub(crate) struct Smsw;
impl Act for Smsw {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        check_umip(cpu)?;
        super::store_operand(cpu, op, cpu.control.cr0.bits())
    }
}

/// XGETBV. Every enabled state counts as in use.
pub(crate) struct Xgetbv;
impl Act for Xgetbv {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        if !cpu.control.cr4.contains(Cr4::OSXSAVE) {
            return Err(ud());
        }
        let index = cpu.reg::<u32>(1);
        if !(index == 0 || index == 1 && cpu.model.has(Feature::Xgetbv1)) {
            return Err(gp0());
        }
        // Index 1: what an XSAVE that skips initial components would write.
        let states = if index == 0 { cpu.control.xcr0 } else { cpu.control.xcr0 & cpu.xinuse() };
        super::set_edx_eax(cpu, states.bits());
        Ok(())
    }
}

/// XSETBV
pub(crate) struct Xsetbv;
impl Ender for Xsetbv {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
        if !cpu.control.cr4.contains(Cr4::OSXSAVE) {
            return Err(ud());
        }
        privileged(cpu)?;
        if cpu.reg::<u32>(1) != 0 {
            return Err(gp0());
        }
        let value = super::edx_eax(cpu);
        cpu.control.xcr0 = cpu.model.xcr0_valid(value).ok_or_else(gp0)?;
        cpu.refresh_mode();
        Ok(Flow::Next)
    }
}
