//! The words of AMD's encrypted virtualisation that the processor, the hypervisor and the machine share: privilege levels,
//! the C-bit of an access, exit codes, feature masks.
//!
//! Source: AMD APM vol. 2, "Secure Encrypted Virtualization", "Encrypted State (SEV-ES)" and "Secure Nested Paging
//! (SEV-SNP)"; the GHCB specification for software exit codes.

use bitflags::bitflags;

/// Virtual machine privilege level; 0 is the highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum Vmpl {
    /// The highest.
    #[default]
    Vmpl0,
    /// Below 0.
    Vmpl1,
    /// Below 1.
    Vmpl2,
    /// The lowest.
    Vmpl3,
}

impl Vmpl {
    /// All, from the highest.
    pub const ALL: [Vmpl; 4] = [Vmpl::Vmpl0, Vmpl::Vmpl1, Vmpl::Vmpl2, Vmpl::Vmpl3];

    /// 0 to 3.
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The level with this number, if there is one.
    pub const fn new(number: u64) -> Option<Vmpl> {
        if number < 4 { Some(Vmpl::ALL[number as usize]) } else { None }
    }
}

/// The effective C-bit of an access: which side of its memory an encrypted guest means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum CBit {
    /// A shared access, and every access of a guest without encryption.
    #[default]
    Clear,
    /// A private access.
    Set,
}

impl CBit {
    /// Whether the access is private.
    #[inline]
    pub const fn is_set(self) -> bool {
        matches!(self, CBit::Set)
    }
}

/// Code of a #VMEXIT, and the error code of #VC (APM vol. 2, appendix "SVM Intercept Exit Codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExitCode(pub u64);

macro_rules! exit_codes {
    ($($(#[$meta:meta])* $NAME:ident = $value:literal;)*) => {
        impl ExitCode {
            $($(#[$meta])* pub const $NAME: ExitCode = ExitCode($value);)*

            /// Its name in the manual or in the GHCB specification, if it is one of those that occur here.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($NAME)),)*
                    _ => None,
                }
            }
        }
    };
}

exit_codes! {
    /// Read of DR7.
    DR7_READ = 0x27;
    /// Write of DR7.
    DR7_WRITE = 0x37;
    /// A physical interrupt.
    INTR = 0x60;
    /// RDTSC.
    RDTSC = 0x6e;
    /// RDPMC.
    RDPMC = 0x6f;
    /// CPUID.
    CPUID = 0x72;
    /// INVD.
    INVD = 0x76;
    /// HLT.
    HLT = 0x78;
    /// IN, OUT, INS, OUTS.
    IOIO = 0x7b;
    /// RDMSR, WRMSR.
    MSR = 0x7c;
    /// A triple fault.
    SHUTDOWN = 0x7f;
    /// VMMCALL.
    VMMCALL = 0x81;
    /// RDTSCP.
    RDTSCP = 0x87;
    /// WBINVD and WBNOINVD.
    WBINVD = 0x89;
    /// MONITOR.
    MONITOR = 0x8a;
    /// MWAIT.
    MWAIT = 0x8b;
    /// A nested page fault.
    NPF = 0x400;
    /// VMGEXIT.
    VMGEXIT = 0x403;
    /// #VC alone: a page that the guest has not validated.
    PAGE_NOT_VALIDATED = 0x404;
    /// The guest asks for a read of device memory.
    MMIO_READ = 0x8000_0001;
    /// The guest asks for a write of device memory.
    MMIO_WRITE = 0x8000_0002;
    /// The guest's NMI handler has finished.
    NMI_COMPLETE = 0x8000_0003;
    /// A processor waits to be started again.
    AP_RESET_HOLD = 0x8000_0004;
    /// The jump table of waiting processors is set or asked for.
    AP_JUMP_TABLE = 0x8000_0005;
    /// Pages are to become private or shared.
    PAGE_STATE_CHANGE = 0x8000_0010;
    /// A message to the firmware.
    GUEST_REQUEST = 0x8000_0011;
    /// The same, and certificates.
    EXTENDED_GUEST_REQUEST = 0x8000_0012;
    /// A processor is to be created or destroyed.
    AP_CREATION = 0x8000_0013;
    /// The list of APIC IDs.
    APIC_ID_LIST = 0x8000_0017;
    /// Another privilege level is to run.
    RUN_VMPL = 0x8000_0018;
    /// What the hypervisor can do.
    HV_FEATURES = 0x8000_fffd;
    /// The guest gives up.
    TERMINATE = 0x8000_fffe;
    /// The guest has no handler for an event.
    UNSUPPORTED_EVENT = 0x8000_ffff;
}

bitflags! {
    /// SEV_FEATURES of a VMSA (APM vol. 2, "SEV_FEATURES").
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct SevFeatures: u64 {
        /// The guest is SNP-active.
        const SNP_ACTIVE = 1 << 0;
        /// Virtual top of memory.
        const VTOM = 1 << 1;
        /// #VC is delivered to another privilege level.
        const REFLECT_VC = 1 << 2;
        /// Only #HV can be injected.
        const RESTRICTED_INJECTION = 1 << 3;
        /// Injection by a privilege level of the guest.
        const ALTERNATE_INJECTION = 1 << 4;
        /// Debug registers are swapped.
        const DEBUG_SWAP = 1 << 5;
        /// No instruction-based sampling by the host.
        const PREVENT_HOST_IBS = 1 << 6;
        /// Isolation of the branch target buffer.
        const BTB_ISOLATION = 1 << 7;
        /// Supervisor shadow stacks by privilege level.
        const VMPL_SSS = 1 << 8;
        /// The TSC is the guest's own.
        const SECURE_TSC = 1 << 9;
        /// VMGEXIT with parameters.
        const VMGEXIT_PARAMETER = 1 << 10;
        /// Virtual performance counters.
        const PMC_VIRTUALIZATION = 1 << 11;
        /// Virtual instruction-based sampling.
        const IBS_VIRTUALIZATION = 1 << 12;
        /// Intercepts by the guest.
        const GUEST_INTERCEPT_CONTROL = 1 << 13;
        /// Register protection of the VMSA.
        const VMSA_REG_PROT = 1 << 14;
        /// Protection of the other thread.
        const SMT_PROTECTION = 1 << 15;
        /// The local APIC is the guest's own.
        const SECURE_AVIC = 1 << 16;
        /// A barrier of indirect branches at entry.
        const IBPB_ON_ENTRY = 1 << 21;
    }
}

impl SevFeatures {
    /// SEV_STATUS of an SEV-ES guest with these features: SEV, SEV-ES, and the features from bit 2 on.
    pub const fn sev_status(self) -> u64 {
        0b11 | self.bits() << 2
    }
}

/// GHCB MSR after RESET: the answer to a request for SEV information, as the GHCB specification, "GHCB MSR Protocol",
/// wants it: versions `max` and `min`, the place of the C-bit.
pub const fn ghcb_sev_info(max: u16, min: u16, c_bit: u8) -> u64 {
    (max as u64) << 48 | (min as u64) << 32 | (c_bit as u64) << 24 | 1
}
