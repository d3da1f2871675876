//! Model-specific registers that are plain storage of the processor.

/// Registers that instructions use by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct MsrFile {
    /// SYSCALL and SYSRET selectors, and EIP of legacy SYSCALL.
    pub star: u64,
    /// RIP of SYSCALL from 64-bit mode.
    pub lstar: u64,
    /// RIP of SYSCALL from compatibility mode.
    pub cstar: u64,
    /// RFLAGS bits SYSCALL clears.
    pub sfmask: u64,
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
    /// Added to the virtual clock's ticks to give the TSC.
    pub tsc_offset: u64,
}
