//! What a VMGEXIT means for the machine, and what the machine answers.
//!
//! Source: GHCB specification, "NAE Event List"; Linux `arch/x86/kvm/svm/sev.c:sev_handle_vmgexit`.

use core::fmt;

use bitflags::bitflags;
use emu_core::cpuid::CpuidResult;
use emu_core::sev::{SevFeatures, Vmpl};
use emu_core::{Exception, Gfn, Gpa, Msr, PageSize};
use gmem::Shareability;
use thiserror::Error;

use crate::snp::memory::PageStateChange;

bitflags! {
    /// What a hypervisor offers to an SNP guest (GHCB specification, "Hypervisor Features").
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct HvFeatures: u64 {
        /// SNP itself: page state changes and guest requests.
        const SNP = 1 << 0;
        /// Processors are created from the guest's own VMSAs.
        const AP_CREATION = 1 << 1;
    }
}

/// What the machine must do. Everything but [`SnpAction::Resume`], [`SnpAction::Terminate`] and [`SnpAction::Fatal`] wants
/// one [`GhcbReply`] by [`super::GhcbVcpu::reply`], which gives the next action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnpAction {
    /// The event is answered: run the guest.
    Resume {
        /// What the guest finds in the GHCB MSR, if not what it put there.
        ghcb_msr: Option<u64>,
    },
    /// IN, OUT, INS, OUTS.
    Io(IoRequest),
    /// A read of device memory. Reply: [`GhcbReply::Bytes`], as many as asked for.
    MmioRead {
        /// Where.
        gpa: Gpa,
        /// 1 to 8.
        len_bytes: u8,
    },
    /// A write of device memory. Reply: [`GhcbReply::Done`].
    MmioWrite {
        /// Where.
        gpa: Gpa,
        /// 1 to 8.
        len_bytes: u8,
        /// The bytes; the low `len_bytes` count.
        data: [u8; 8],
    },
    /// RDMSR. Reply: [`GhcbReply::Value`], or the exception.
    MsrRead(Msr),
    /// WRMSR. Reply: [`GhcbReply::Done`], or the exception.
    MsrWrite(Msr, u64),
    /// CPUID. Reply: [`GhcbReply::Cpuid`].
    Cpuid(CpuidRequest),
    /// RDTSC or RDTSCP. Reply: [`GhcbReply::Tsc`].
    Tsc,
    /// RDPMC. Reply: [`GhcbReply::Value`], or the exception.
    Rdpmc {
        /// ECX.
        counter: u32,
    },
    /// VMMCALL. Reply: [`GhcbReply::Value`], RAX.
    Hypercall(Hypercall),
    /// A run of pages is to change its state. Reply: [`GhcbReply::Done`] or [`GhcbReply::Refused`]; the action after that may
    /// be the next run.
    PageState(PageStateRun),
    /// The guest's NMI handler has finished: NMIs can be injected again. Reply: [`GhcbReply::Done`].
    NmiComplete,
    /// The processor waits for a start (INIT, then SIPI). Reply, when it comes: [`GhcbReply::Done`]; when something else
    /// wakes the processor: [`GhcbReply::Refused`], and the guest sees that it was not started.
    ApResetHold,
    /// A processor gets a VMSA of the guest's. Reply: [`GhcbReply::Done`], or [`GhcbReply::Refused`] if there is no such
    /// processor.
    ApCreate(ApCreate),
    /// A processor is no longer to run. Reply: as for creation.
    ApDestroy {
        /// Which.
        apic_id: u32,
    },
    /// A message to the firmware. Reply: [`GhcbReply::GuestRequest`].
    GuestRequest(GuestRequest),
    /// The guest gives up.
    Terminate(Termination),
    /// The virtual machine cannot go on.
    Fatal(VmgexitFatal),
}

/// The width of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoWidth {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
}

impl IoWidth {
    /// 1, 2 or 4.
    pub const fn bytes(self) -> usize {
        match self {
            IoWidth::Byte => 1,
            IoWidth::Word => 2,
            IoWidth::Dword => 4,
        }
    }

    /// A value of this width with every bit set.
    pub const fn mask(self) -> u32 {
        match self {
            IoWidth::Byte => 0xff,
            IoWidth::Word => 0xffff,
            IoWidth::Dword => u32::MAX,
        }
    }
}

/// A port access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoRequest {
    /// The port.
    pub port: u16,
    /// Of one element.
    pub width: IoWidth,
    /// What is transferred.
    pub transfer: IoTransfer,
}

/// What a port access transfers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IoTransfer {
    /// IN. Reply: [`GhcbReply::Value`], of which the low bits count.
    In,
    /// OUT of this. Reply: [`GhcbReply::Done`].
    Out(u32),
    /// INS of so many elements, at least one. Reply: [`GhcbReply::Bytes`], all of them.
    StringIn {
        /// How many.
        count: usize,
    },
    /// OUTS of these bytes, a whole number of elements, at least one. Reply: [`GhcbReply::Done`].
    StringOut {
        /// One after the other.
        bytes: Vec<u8>,
    },
}

/// What CPUID is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidRequest {
    /// EAX.
    pub leaf: u32,
    /// ECX.
    pub subleaf: u32,
    /// The guest's XCR0, if it says so: leaf 0xD depends on it.
    pub xcr0: Option<u64>,
    /// The guest's IA32_XSS, if it says so.
    pub xss: Option<u64>,
}

/// The registers of a hypercall; those the guest does not show are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hypercall {
    /// RAX.
    pub number: u64,
    /// RBX, RCX, RDX, RSI.
    pub arguments: [u64; 4],
    /// The level it was made at.
    pub cpl: u8,
}

/// Whose a page is, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// The guest's own: it will validate the page and use it with C=1.
    Private,
    /// The hypervisor's and the guest's: used with C=0.
    Shared,
}

/// Consecutive pages that are to change their state together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageStateRun {
    /// The first.
    pub start: Gfn,
    /// How many of 4 KiB, at least one; a multiple of 512 if `size` is 2 MiB.
    pub frames: u64,
    /// What they become.
    pub to: PageState,
    /// What the guest will validate them as: 4 KiB or 2 MiB. `start` is aligned to it.
    pub size: PageSize,
}

impl From<PageStateRun> for PageStateChange {
    fn from(run: PageStateRun) -> PageStateChange {
        let to = match run.to {
            PageState::Private => Shareability::PRIVATE,
            PageState::Shared => Shareability::SHARED,
        };
        PageStateChange { first: run.start, nr_pages: run.frames, to, size: run.size }
    }
}

/// A processor to be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApCreate {
    /// Which.
    pub apic_id: u32,
    /// Where its VMSA lies; never aligned to 2 MiB.
    pub vmsa: Gpa,
    /// What the guest says SEV_FEATURES in it is.
    pub features: SevFeatures,
    /// The level it runs at.
    pub vmpl: Vmpl,
    /// When it starts.
    pub start: ApStart,
}

/// When a processor that was created starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApStart {
    /// Now.
    Now,
    /// At its next INIT.
    OnInit,
}

/// A message to the firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRequest {
    /// The shared page with the request.
    pub request: Gpa,
    /// The shared page for the response.
    pub response: Gpa,
    /// Where certificates go that belong to a report, if the request is an extended one.
    pub certificates: Option<CertificateArea>,
}

/// Shared pages for certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateArea {
    /// The first, as the guest gives it: not yet known to be aligned (RAX).
    pub gpa: Gpa,
    /// How many (RBX).
    pub pages: u64,
}

/// Answer to an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GhcbReply<'a> {
    /// It is done, and gives nothing back.
    Done,
    /// It is done and gives this back.
    Value(u64),
    /// It is done and gives these back.
    Bytes(&'a [u8]),
    /// The leaf.
    Cpuid(CpuidResult),
    /// The time stamp, and TSC_AUX for RDTSCP.
    Tsc {
        /// EDX:EAX.
        tsc: u64,
        /// ECX of RDTSCP.
        aux: u32,
    },
    /// The instruction raises this.
    Exception(Exception),
    /// The machine does not do it.
    Refused,
    /// The firmware answered, or the hypervisor in its place.
    GuestRequest(GuestRequestStatus),
}

/// How a guest request ended (GHCB specification, "SNP Guest Request").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRequestStatus {
    /// The firmware says this; 0 is success.
    Firmware(u32),
    /// The area for certificates is too small.
    CertificatesNeed {
        /// How many pages would do.
        pages: u64,
    },
    /// The area for certificates is not aligned: a malformed request.
    CertificatesMisaligned,
}

/// What is wrong with an event, as SW_EXITINFO2 says when SW_EXITINFO1 is 2 (GHCB specification, "Invalid GHCB").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Malformed {
    /// The page is used as something else.
    InvalidUsage = 2,
    /// The scratch area is not within the shared buffer.
    InvalidScratchArea = 3,
    /// A field that the event needs is not valid.
    MissingInput = 4,
    /// A field has a value that it cannot have.
    InvalidInput = 5,
    /// No such event.
    InvalidEvent = 6,
}

/// Why a guest gives up: a set of reasons and a code in it (GHCB specification, "Termination Request").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminationReason {
    /// 0 is the specification's, 1 is Linux's.
    pub set: u8,
    /// Which of them.
    pub code: u8,
}

/// A guest that gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Termination {
    /// Why.
    pub reason: TerminationReason,
    /// What it adds, if it did so through its page: of set 0, code 2 the features it cannot do without.
    pub info: Option<u64>,
}

/// The reasons that are known, of the specification and of Linux `arch/x86/include/asm/sev-common.h`.
const TERMINATION_REASONS: &[(u8, u8, &str)] = &[
    (0, 0, "it cannot go on (no particular reason)"),
    (0, 1, "it does not speak the hypervisor's versions of the GHCB protocol"),
    (0, 2, "SNP or a feature of SNP is on that it does not support, or not on that it needs"),
    (1, 0, "the hypervisor did not register its GHCB"),
    (1, 1, "a page state change failed"),
    (1, 2, "PVALIDATE failed, or changed nothing where it had to"),
    (1, 3, "it does not run at VMPL0"),
    (1, 4, "its CPUID page is missing or not valid"),
    (1, 5, "the hypervisor did not answer for CPUID"),
    (1, 6, "its secrets page cannot be used"),
    (1, 7, "it is not at VMPL0 and no SVSM is announced"),
    (1, 8, "an SVSM says that the guest is at VMPL0"),
    (1, 9, "the calling area of the SVSM is not aligned"),
    (1, 10, "Secure TSC could not be set up"),
    (1, 11, "the calling area of the SVSM could not be moved"),
    (1, 12, "Secure AVIC could not be set up"),
];

impl TerminationReason {
    /// The reason in words, if it is a known one.
    pub fn words(self) -> Option<&'static str> {
        let same = |&&(set, code, _): &&(u8, u8, &str)| (set, code) == (self.set, self.code);
        TERMINATION_REASONS.iter().find(same).map(|&(_, _, words)| words)
    }
}

impl fmt::Display for Termination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TerminationReason { set, code } = self.reason;
        let words = self.reason.words().unwrap_or("it does not say why");
        write!(f, "the guest gave up: {words} (reason set {set}, code {code:#x}")?;
        match self.info {
            Some(info) => write!(f, ", {info:#x})"),
            None => write!(f, ")"),
        }
    }
}

/// Why a virtual machine cannot go on after a VMGEXIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum VmgexitFatal {
    /// Under SNP a page must be registered before it is used.
    #[error("VMGEXIT with the GHCB at {page}, which is not registered (registered: {registered:?})")]
    NotRegistered {
        /// The page.
        page: Gpa,
        /// The one that is.
        registered: Option<Gpa>,
    },
    /// The guest has met a #VC that it does not handle.
    #[error("the guest does not handle #VC {code:#x} (information {info:#x})")]
    UnsupportedEvent {
        /// Its error code.
        code: u64,
        /// What the guest adds.
        info: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_reason_is_listed_once_and_the_others_have_no_words() {
        let mut known = 0;
        for (set, code) in (0..=255).flat_map(|set| (0..=255).map(move |code| (set, code))) {
            let times = TERMINATION_REASONS.iter().filter(|row| (row.0, row.1) == (set, code)).count();
            assert!(times <= 1);
            assert_eq!(TerminationReason { set, code }.words().is_some(), times == 1);
            known += times;
        }
        assert_eq!(known, TERMINATION_REASONS.len());
    }

    #[test]
    fn a_termination_tells_its_reason_and_its_numbers() {
        let reason = TerminationReason { set: 1, code: 2 };
        let text = Termination { reason, info: None }.to_string();
        assert_eq!(
            text,
            "the guest gave up: PVALIDATE failed, or changed nothing where it had to (reason set 1, code 0x2)"
        );
        let reason = TerminationReason { set: 0, code: 2 };
        assert!(Termination { reason, info: Some(0x40) }.to_string().ends_with("(reason set 0, code 0x2, 0x40)"));
    }
}
