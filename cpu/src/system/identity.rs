//! What the processor says about itself and gives of itself: CPUID, RDRAND and RDSEED, segment bases, protection-key
//! rights.

use core::num::NonZeroU32;

use emu_core::cpuid::{ApicState, CpuidDynamic};
use emu_core::msr::Msr;
use emu_core::regs::{Cr4, Rflags, Xcr0};
use emu_core::sev::ExitCode;
use mmu::PagingChange;

use crate::cpu::Cpu;
use crate::dispatch::{Act, Ender, Flow};
use crate::exit::Trap;
use crate::op::Op;
use crate::system::descriptor::{gp0, ud};
use crate::system::load::seg_reg;

impl Cpu {
    /// The state that CPUID shows.
    pub fn cpuid_state(&self) -> CpuidDynamic {
        CpuidDynamic {
            cr4: self.control.cr4,
            xcr0: self.control.xcr0,
            xss: Xcr0::from_bits_retain(self.msr.file.get(Msr::XSS)),
            apic: if self.apic_enabled { ApicState::Enabled } else { ApicState::Disabled },
            apic_id: self.apic_id,
            cpu_count: NonZeroU32::new(self.cpu_count).unwrap_or(NonZeroU32::MIN),
        }
    }
}

/// CPUID
pub(crate) struct Cpuid;
impl Act for Cpuid {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        cpu.intercept(ExitCode::CPUID)?;
        let now = cpu.cpuid_state();
        let answer = cpu.model.cpuid(cpu.reg(0), cpu.reg(1), &now);
        cpu.set_reg(0, answer.eax);
        cpu.set_reg(3, answer.ebx);
        cpu.set_reg(1, answer.ecx);
        cpu.set_reg(2, answer.edx);
        Ok(())
    }
}

/// RDRAND and RDSEED (register in `dst`, width in `aux`): always ready.
pub(crate) struct RandomNumber;
impl Act for RandomNumber {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let value = cpu.random.next_u64();
        super::write_reg(cpu, op.dst, op.aux as u8, value);
        cpu.flags.set_status(Rflags::CF);
        Ok(())
    }
}

fn check_fsgsbase(cpu: &Cpu) -> Result<(), Trap> {
    if cpu.control.cr4.contains(Cr4::FSGSBASE) { Ok(()) } else { Err(ud()) }
}

/// RDFSBASE and RDGSBASE (segment in `src`, register in `dst`, width in `aux`)
pub(crate) struct ReadBase;
impl Act for ReadBase {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        check_fsgsbase(cpu)?;
        let base = cpu.segments.get(seg_reg(op.src)).base;
        super::write_reg(cpu, op.dst, op.aux as u8, base);
        Ok(())
    }
}

/// WRFSBASE and WRGSBASE
pub(crate) struct WriteBase;
impl Act for WriteBase {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        check_fsgsbase(cpu)?;
        let base = super::read_reg(cpu, op.dst, op.aux as u8);
        if !cpu.model.is_canonical_in_msr(base) {
            return Err(gp0());
        }
        cpu.set_base(seg_reg(op.src), base);
        Ok(())
    }
}

/// CR4.PKE and ECX = 0, as both instructions want them.
fn check_pkru(cpu: &Cpu) -> Result<(), Trap> {
    if !cpu.control.cr4.contains(Cr4::PKE) {
        return Err(ud());
    }
    if cpu.reg::<u32>(1) != 0 { Err(gp0()) } else { Ok(()) }
}

/// RDPKRU
pub(crate) struct Rdpkru;
impl Act for Rdpkru {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        check_pkru(cpu)?;
        super::set_edx_eax(cpu, cpu.control.pkru as u64);
        Ok(())
    }
}

/// WRPKRU
pub(crate) struct Wrpkru;
impl Ender for Wrpkru {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        check_pkru(cpu)?;
        if cpu.reg::<u32>(2) != 0 {
            return Err(gp0());
        }
        cpu.control.pkru = cpu.reg(0);
        cpu.update_paging(PagingChange::ProtectionKeys);
        Ok(Flow::Jump(cpu.rip_after(op)))
    }
}
