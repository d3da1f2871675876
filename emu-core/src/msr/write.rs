//! What WRMSR accepts: pure rules, one per kind of register.

use super::{Msr, MsrRefused};
use crate::cpu_model::{CpuModel, Vendor};
use crate::cpuid::{Feature, Guard};
use crate::page::MemoryType;
use crate::regs;

/// Which values a register accepts, and what becomes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteRule {
    /// #GP.
    ReadOnly,
    /// Every value is accepted and nothing changes.
    Discarded,
    /// Every value is stored. Registers of the board are judged by the board.
    Any,
    /// Bits outside of the mask raise #GP.
    Bits(u64),
    /// As [`WriteRule::Bits`], with the bits that [`Guard::MsrBits`] of the model's features add to the mask.
    Guarded(u64),
    /// Bits outside of the mask keep their value, without complaint.
    Keep(u64),
    /// Write-only; bits outside of the mask raise #GP, and nothing is stored.
    Command(u64),
    /// A canonical address for the processor's full linear width.
    Canonical,
    /// Intel: canonical. AMD, whose SYSENTER exists in legacy mode alone: the lower half is stored.
    SysenterAddress,
    /// 32 bits. Intel: others raise #GP. AMD: others are dropped.
    Low32,
    /// EFER: known bits, LMA as it was, LME fixed in long mode.
    Efer,
    /// Eight memory types, UC- among them.
    Pat,
    /// Memory type and the two enables.
    MtrrDefType,
    /// Base and type, or mask and valid bit, within MAXPHYADDR.
    MtrrPhys,
    /// Eight memory types.
    MtrrFixed,
    /// A physical address in steps of 8 MiB; other bits are dropped.
    TopMem,
    /// CTL takes zero and all ones, STATUS takes zero, ADDR and MISC take any value.
    McBank,
    /// Base within MAXPHYADDR, BSP as it was, and the permitted changes of EN and EXTD.
    ApicBase,
}

/// IA32_APIC_BASE.BSP.
const APIC_BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE.EXTD.
const APIC_BASE_EXTD: u64 = 1 << 10;
/// IA32_APIC_BASE.EN.
const APIC_BASE_EN: u64 = 1 << 11;

/// The value that `msr` holds after WRMSR of `new` over `old`, or why the write is refused.
///
/// For a [`WriteRule::Command`] register the result is the command, to be executed and not stored.
pub fn validate_write(model: &CpuModel, msr: Msr, old: u64, new: u64) -> Result<u64, MsrRefused> {
    let entry = model.msr(msr)?;
    match entry.write {
        WriteRule::ReadOnly => Err(MsrRefused::ReadOnly(msr)),
        WriteRule::Discarded => Ok(old),
        WriteRule::Any => Ok(new),
        WriteRule::Bits(mask) | WriteRule::Command(mask) => only_bits(msr, new, mask),
        WriteRule::Guarded(mask) => only_bits(msr, new, mask | guarded_bits(model, msr)),
        WriteRule::Keep(mask) => Ok(old & !mask | new & mask),
        WriteRule::Canonical => canonical(model, msr, new),
        WriteRule::SysenterAddress => match model.vendor() {
            Vendor::Intel => canonical(model, msr, new),
            Vendor::Amd => Ok(new & 0xffff_ffff),
        },
        WriteRule::Low32 => match model.vendor() {
            Vendor::Intel => only_bits(msr, new, 0xffff_ffff),
            Vendor::Amd => Ok(new & 0xffff_ffff),
        },
        WriteRule::Efer => efer(model, msr, old, new),
        WriteRule::Pat => memory_types(msr, new, |_| true),
        WriteRule::MtrrFixed => memory_types(msr, new, |kind| kind != MemoryType::UncacheableMinus),
        WriteRule::MtrrDefType => {
            only_bits(msr, new, 0xff | 1 << 10 | 1 << 11)?;
            mtrr_type(msr, new)?;
            Ok(new)
        }
        WriteRule::MtrrPhys => {
            let is_base = (msr.0 - entry.first.0).is_multiple_of(2);
            only_bits(msr, new, page_frame_mask(model) | if is_base { 0xff } else { 1 << 11 })?;
            if is_base {
                mtrr_type(msr, new)?;
            }
            Ok(new)
        }
        WriteRule::TopMem => Ok(new & model.physical_mask() & !0x7f_ffff),
        WriteRule::McBank => match (msr.0 - entry.first.0) % 4 {
            0 if new == u64::MAX => Ok(new),
            0 | 1 => only_bits(msr, new, 0),
            _ => Ok(new),
        },
        WriteRule::ApicBase => apic_base(model, msr, old, new),
    }
}

fn guarded_bits(model: &CpuModel, msr: Msr) -> u64 {
    model.features().iter().flat_map(Feature::guards).fold(0, |mask, guard| match guard {
        Guard::MsrBits(of, bits) if *of == msr => mask | bits,
        _ => mask,
    })
}

fn only_bits(msr: Msr, value: u64, mask: u64) -> Result<u64, MsrRefused> {
    match value & !mask {
        0 => Ok(value),
        bits => Err(MsrRefused::Reserved { msr, bits }),
    }
}

fn canonical(model: &CpuModel, msr: Msr, value: u64) -> Result<u64, MsrRefused> {
    if model.is_canonical_in_msr(value) { Ok(value) } else { Err(MsrRefused::NotCanonical { msr, value }) }
}

/// Bits of a page-aligned physical address, the C-bit not among them.
fn page_frame_mask(model: &CpuModel) -> u64 {
    model.physical_mask() & !0xfff
}

/// The processor sets LMA; software may write it but changes nothing by it.
fn efer(model: &CpuModel, msr: Msr, old: u64, new: u64) -> Result<u64, MsrRefused> {
    only_bits(msr, new, model.efer_allowed().bits())?;
    let (lme, lma) = (regs::Efer::LME.bits(), regs::Efer::LMA.bits());
    if old & lma != 0 && (old ^ new) & lme != 0 {
        return Err(MsrRefused::Transition { msr, old, new });
    }
    Ok(new & !lma | old & lma)
}

fn memory_types(msr: Msr, value: u64, accepts: fn(MemoryType) -> bool) -> Result<u64, MsrRefused> {
    for (byte, encoding) in value.to_le_bytes().into_iter().enumerate() {
        if !MemoryType::from_encoding(encoding).is_some_and(accepts) {
            return Err(MsrRefused::MemoryType { msr, byte: byte as u8, encoding });
        }
    }
    Ok(value)
}

/// The type in bits 7:0 of an MTRR, where UC- has no meaning.
fn mtrr_type(msr: Msr, value: u64) -> Result<(), MsrRefused> {
    let encoding = value as u8;
    match MemoryType::from_encoding(encoding) {
        Some(kind) if kind != MemoryType::UncacheableMinus => Ok(()),
        _ => Err(MsrRefused::MemoryType { msr, byte: 0, encoding }),
    }
}

/// Intel SDM vol. 3, "x2APIC State Transitions": EXTD only with EN; from x2APIC the way leads through disabled; from
/// disabled to x2APIC through xAPIC.
fn apic_base(model: &CpuModel, msr: Msr, old: u64, new: u64) -> Result<u64, MsrRefused> {
    let extd = if model.has(Feature::X2apic) { APIC_BASE_EXTD } else { 0 };
    only_bits(msr, new, page_frame_mask(model) | APIC_BASE_BSP | APIC_BASE_EN | extd)?;
    let mode = |value: u64| (value & APIC_BASE_EN != 0, value & APIC_BASE_EXTD != 0);
    let permitted = match (mode(old), mode(new)) {
        (_, (false, true)) => false,
        ((true, true), (true, false)) => false,
        ((false, _), (true, true)) => false,
        (_, _) => true,
    };
    if !permitted {
        return Err(MsrRefused::Transition { msr, old, new });
    }
    Ok(new & !APIC_BASE_BSP | old & APIC_BASE_BSP)
}
