//! The model-specific registers of one processor: the hot ones as fields, the rest in the shared table's file.

use emu_core::msr::Msr;

/// See the module. FS.base, GS.base and EFER live with the segments and control registers.
#[derive(Clone, Debug)]
pub(crate) struct MsrFile {
    /// SYSCALL and SYSRET selectors, and EIP of legacy SYSCALL.
    pub star: u64,
    /// RIP of SYSCALL from 64-bit mode.
    pub lstar: u64,
    /// RIP of SYSCALL from compatibility mode.
    pub cstar: u64,
    /// RFLAGS bits SYSCALL clears.
    pub fmask: u64,
    /// What SWAPGS exchanges GS.base with.
    pub kernel_gs_base: u64,
    /// CS selector of SYSENTER.
    pub sysenter_cs: u64,
    /// RSP of SYSENTER.
    pub sysenter_esp: u64,
    /// RIP of SYSENTER.
    pub sysenter_eip: u64,
    /// What RDTSCP and RDPID give.
    pub tsc_aux: u64,
    /// IA32_TSC_ADJUST: what software has added to the virtual clock's ticks, by itself or by writing the TSC.
    pub tsc_adjust: u64,
    /// Rights of supervisor protection keys.
    pub pkrs: u64,
    /// Everything else that is stored.
    pub file: emu_core::msr::MsrFile,
}

impl MsrFile {
    /// The state after RESET.
    pub fn reset() -> MsrFile {
        MsrFile {
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_aux: 0,
            tsc_adjust: 0,
            pkrs: 0,
            file: emu_core::msr::MsrFile::reset(),
        }
    }

    /// The field that holds `msr`, if it is one of the hot ones.
    pub fn field(&mut self, msr: Msr) -> Option<&mut u64> {
        Some(match msr {
            Msr::STAR => &mut self.star,
            Msr::LSTAR => &mut self.lstar,
            Msr::CSTAR => &mut self.cstar,
            Msr::FMASK => &mut self.fmask,
            Msr::KERNEL_GS_BASE => &mut self.kernel_gs_base,
            Msr::SYSENTER_CS => &mut self.sysenter_cs,
            Msr::SYSENTER_ESP => &mut self.sysenter_esp,
            Msr::SYSENTER_EIP => &mut self.sysenter_eip,
            Msr::TSC_AUX => &mut self.tsc_aux,
            Msr::PKRS => &mut self.pkrs,
            _ => return None,
        })
    }
}
