//! Debug registers.
//!
//! APM vol. 2, "Software-Debug Resources"; Intel SDM vol. 3, "Debug Registers".

use emu_core::Exception;
use emu_core::regs::{BreakpointKind, Cr4, Dr6, Dr7};
use emu_core::sev::ExitCode;

use crate::cpu::Cpu;
use crate::dispatch::{Act, Ender, Flow};
use crate::exit::Trap;
use crate::op::Op;
use crate::system::control::{set_whole, whole};
use crate::system::descriptor::{gp0, ud};
use crate::system::load::privileged;

/// Bits of DR6 that software can change.
const DR6_WRITABLE: u64 = 0xe00f;
/// Bits of DR7 that software can change: enables, LE, GE, GD, kinds and lengths.
const DR7_WRITABLE: u64 = 0xffff_23ff;

/// DR6 after a write of `value`.
pub(crate) const fn dr6_of(value: u64) -> Dr6 {
    Dr6::from_bits_retain(value & DR6_WRITABLE).union(Dr6::FIXED)
}

/// DR7 after a write of `value`.
pub(crate) const fn dr7_of(value: u64) -> Dr7 {
    Dr7(value & DR7_WRITABLE | Dr7::RESET.0)
}

/// The register that number `n` names: 4 and 5 are 6 and 7 unless CR4.DE.
fn resolve(cpu: &Cpu, n: u16) -> Result<u16, Trap> {
    let n = match n {
        4 | 5 if cpu.control.cr4.contains(Cr4::DE) => return Err(ud()),
        4 | 5 => n + 2,
        8.. => return Err(ud()),
        _ => n,
    };
    privileged(cpu)?;
    if cpu.control.dr7.0 & Dr7::GD != 0 {
        return Err(Exception::Debug { dr6: Dr6::BD }.into());
    }
    Ok(n)
}

/// MOV DRn, r (debug register in `aux`)
pub(crate) struct MovToDr;
impl Ender for MovToDr {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let n = resolve(cpu, op.aux)?;
        let value = whole(cpu, op.src);
        if matches!(n, 6 | 7) && value >> 32 != 0 {
            return Err(gp0());
        }
        if n == 7 {
            cpu.intercept(ExitCode::DR7_WRITE)?;
        }
        match n {
            6 => cpu.control.dr6 = dr6_of(value),
            7 => cpu.control.dr7 = dr7_of(value),
            n => cpu.control.dr[n as usize % 4] = value,
        }
        cpu.refresh_privilege();
        Ok(Flow::Next)
    }
}

/// MOV r, DRn
pub(crate) struct MovFromDr;
impl Act for MovFromDr {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let n = resolve(cpu, op.aux)?;
        if n == 7 {
            cpu.intercept(ExitCode::DR7_READ)?;
        }
        let value = match n {
            6 => cpu.control.dr6.bits(),
            7 => cpu.control.dr7.0,
            n => cpu.control.dr[n as usize % 4],
        };
        set_whole(cpu, op.src, value);
        Ok(())
    }
}

impl Cpu {
    /// Remembers which I/O breakpoints an access to `len` ports from `port` on matches.
    pub fn note_port_access(&mut self, port: u16, len: u8) {
        let dr7 = self.control.dr7;
        if !dr7.any_enabled() || !self.control.cr4.contains(Cr4::DE) {
            return;
        }
        let (first, last) = (port as u64, port as u64 + len as u64);
        for n in 0..4 {
            let size = dr7.len_bytes(n);
            let base = self.control.dr[n] & !(size - 1);
            if dr7.enabled(n) && dr7.kind(n) == BreakpointKind::Io && first < base.saturating_add(size) && base < last {
                self.debug_hits |= Dr6::from_bits_retain(1 << n);
                self.attention = true;
            }
        }
    }
}
