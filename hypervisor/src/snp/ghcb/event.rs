//! Non-automatic exits: what the fields of a GHCB page ask for, and which of them must be valid.
//!
//! Source: GHCB specification, "NAE Event List"; Linux `arch/x86/kvm/svm/sev.c:sev_es_validate_vmgexit`,
//! `setup_vmgexit_scratch`, `sev_snp_ap_creation`; APM vol. 2, "IOIO Intercept" for the bits of a port access.

use core::ops::Range;

use emu_core::sev::{ExitCode, SevFeatures, Vmpl};
use emu_core::{Gpa, Msr, PageSize};

use super::GhcbConfig;
use super::action::*;
use super::layout::{Field, SHARED_BUFFER, SHARED_BUFFER_BYTES, Snapshot};

/// A place within the shared buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scratch {
    pub(super) gpa: Gpa,
    pub(super) len_bytes: usize,
}

/// An event whose fields are there and make sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// There is nothing to do.
    Nothing,
    Dr7Read,
    Dr7Write(u64),
    Io {
        port: u16,
        width: IoWidth,
        transfer: IoEvent,
    },
    MmioRead {
        gpa: Gpa,
        into: Scratch,
    },
    MmioWrite {
        gpa: Gpa,
        from: Scratch,
    },
    MsrRead(Msr),
    MsrWrite(Msr, u64),
    Cpuid(CpuidRequest),
    Rdtsc,
    Rdtscp,
    Rdpmc {
        counter: u32,
    },
    Hypercall(Hypercall),
    NmiComplete,
    ApResetHold,
    SetJumpTable(u64),
    GetJumpTable,
    /// The buffer, up to the end of the shared buffer.
    PageState(Scratch),
    GuestRequest(GuestRequest),
    ApCreate(ApCreate),
    ApDestroy {
        apic_id: u32,
    },
    Features,
    Terminate(Termination),
    Unsupported {
        code: u64,
        info: u64,
    },
}

/// A port access before its data are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IoEvent {
    In,
    Out(u32),
    StringIn(Scratch),
    StringOut(Scratch),
}

/// What the guest asks for.
pub(super) fn decode(area: &Snapshot, config: &GhcbConfig) -> Result<Event, Malformed> {
    if area.usage != 0 {
        return Err(Malformed::InvalidUsage);
    }
    let always = [Field::SW_EXITCODE, Field::SW_EXITINFO1, Field::SW_EXITINFO2];
    let need = |fields: &[Field]| if area.are_valid(fields) { Ok(()) } else { Err(Malformed::MissingInput) };
    need(&always)?;
    // A guest that has not said which version it follows has 0 there.
    if area.version > super::VERSION_MAX {
        return Err(Malformed::InvalidInput);
    }
    let [code, info1, info2] = always.map(|field| area.raw(field));
    let low = |field| area.raw(field) as u32;
    Ok(match ExitCode(code) {
        ExitCode::DR7_READ => Event::Dr7Read,
        ExitCode::DR7_WRITE => {
            need(&[Field::RAX])?;
            Event::Dr7Write(area.raw(Field::RAX))
        }
        ExitCode::RDTSC => Event::Rdtsc,
        ExitCode::RDTSCP => Event::Rdtscp,
        ExitCode::RDPMC => {
            need(&[Field::RCX])?;
            Event::Rdpmc { counter: low(Field::RCX) }
        }
        ExitCode::CPUID => {
            need(&[Field::RAX, Field::RCX])?;
            if low(Field::RAX) == 0xd {
                need(&[Field::XCR0])?;
            }
            Event::Cpuid(CpuidRequest {
                leaf: low(Field::RAX),
                subleaf: low(Field::RCX),
                xcr0: area.get(Field::XCR0),
                xss: area.get(Field::XSS),
            })
        }
        // The caches of the model hold nothing that memory does not.
        ExitCode::INVD | ExitCode::WBINVD => Event::Nothing,
        ExitCode::IOIO => io(area, info1, info2)?,
        ExitCode::MSR => {
            need(&[Field::RCX])?;
            let msr = Msr(low(Field::RCX));
            if info1 == 0 {
                return Ok(Event::MsrRead(msr));
            }
            need(&[Field::RAX, Field::RDX])?;
            Event::MsrWrite(msr, u64::from(low(Field::RDX)) << 32 | u64::from(low(Field::RAX)))
        }
        ExitCode::VMMCALL => {
            need(&[Field::RAX, Field::CPL])?;
            let arguments = [Field::RBX, Field::RCX, Field::RDX, Field::RSI].map(|field| area.or_zero(field));
            Event::Hypercall(Hypercall { number: area.raw(Field::RAX), arguments, cpl: area.cpl() })
        }
        // As KVM does without the capability: no waiting.
        ExitCode::MONITOR => {
            need(&[Field::RAX, Field::RCX, Field::RDX])?;
            Event::Nothing
        }
        ExitCode::MWAIT => {
            need(&[Field::RAX, Field::RCX])?;
            Event::Nothing
        }
        ExitCode::MMIO_READ | ExitCode::MMIO_WRITE => {
            need(&[Field::SW_SCRATCH])?;
            let len_bytes = match info2 {
                0 => return Ok(Event::Nothing),
                1..=8 => info2 as usize,
                _ => return Err(Malformed::InvalidInput),
            };
            let (gpa, scratch) = (Gpa::new(info1), scratch(area, len_bytes)?);
            if code == ExitCode::MMIO_READ.0 {
                Event::MmioRead { gpa, into: scratch }
            } else {
                Event::MmioWrite { gpa, from: scratch }
            }
        }
        ExitCode::NMI_COMPLETE => Event::NmiComplete,
        ExitCode::AP_RESET_HOLD => Event::ApResetHold,
        ExitCode::AP_JUMP_TABLE => match info1 {
            0 => Event::SetJumpTable(info2),
            1 => Event::GetJumpTable,
            _ => return Err(Malformed::InvalidInput),
        },
        ExitCode::PAGE_STATE_CHANGE => {
            need(&[Field::SW_SCRATCH])?;
            let scratch = scratch(area, 0)?;
            let room = buffer(area).end - area.raw(Field::SW_SCRATCH);
            Event::PageState(Scratch { len_bytes: room as usize, ..scratch })
        }
        ExitCode::GUEST_REQUEST | ExitCode::EXTENDED_GUEST_REQUEST => {
            let [request, response] = [info1, info2].map(Gpa::new);
            let aligned = [request, response].iter().all(|page| page.is_aligned(PageSize::Size4K));
            // KVM's word for addresses that cannot be right.
            if !aligned || request == response {
                return Err(Malformed::MissingInput);
            }
            let extended = code == ExitCode::EXTENDED_GUEST_REQUEST.0;
            let area = || CertificateArea { gpa: Gpa::new(area.or_zero(Field::RAX)), pages: area.or_zero(Field::RBX) };
            Event::GuestRequest(GuestRequest { request, response, certificates: extended.then(area) })
        }
        ExitCode::AP_CREATION if config.features.contains(HvFeatures::AP_CREATION) => {
            ap_creation(area, info1, info2, config)?
        }
        ExitCode::HV_FEATURES => Event::Features,
        ExitCode::TERMINATE => {
            let reason = TerminationReason { set: info1 as u8 & 0xf, code: (info1 >> 4) as u8 };
            Event::Terminate(Termination { reason, info: Some(info2) })
        }
        ExitCode::UNSUPPORTED_EVENT => Event::Unsupported { code: info1, info: info2 },
        _ => return Err(Malformed::InvalidEvent),
    })
}

/// Bits of SW_EXITINFO1 of a port access.
mod ioio {
    pub(super) const IN: u64 = 1 << 0;
    pub(super) const STRING: u64 = 1 << 2;
}

fn io(area: &Snapshot, info1: u64, info2: u64) -> Result<Event, Malformed> {
    let width = match info1 >> 4 & 7 {
        1 => IoWidth::Byte,
        2 => IoWidth::Word,
        4 => IoWidth::Dword,
        _ => return Err(Malformed::InvalidInput),
    };
    let port = (info1 >> 16) as u16;
    let is_in = info1 & ioio::IN != 0;
    let transfer = if info1 & ioio::STRING != 0 {
        if !area.is_valid(Field::SW_SCRATCH) {
            return Err(Malformed::MissingInput);
        }
        if info2 == 0 {
            return Ok(Event::Nothing);
        }
        let len_bytes = usize::try_from(info2).ok().and_then(|count| count.checked_mul(width.bytes()));
        let scratch = scratch(area, len_bytes.ok_or(Malformed::InvalidScratchArea)?)?;
        if is_in { IoEvent::StringIn(scratch) } else { IoEvent::StringOut(scratch) }
    } else if is_in {
        IoEvent::In
    } else {
        let value = area.get(Field::RAX).ok_or(Malformed::MissingInput)?;
        IoEvent::Out(value as u32 & width.mask())
    };
    Ok(Event::Io { port, width, transfer })
}

/// Where the shared buffer lies. No sum overflows: a page ends at or below the end of the address space.
fn buffer(area: &Snapshot) -> Range<u64> {
    let start = area.page().raw() + SHARED_BUFFER as u64;
    start..start + SHARED_BUFFER_BYTES as u64
}

/// The scratch area, all of which lies within the shared buffer from version 2 of the protocol on.
fn scratch(area: &Snapshot, len_bytes: usize) -> Result<Scratch, Malformed> {
    let start = area.raw(Field::SW_SCRATCH);
    let buffer = buffer(area);
    let end = start.checked_add(len_bytes as u64).filter(|&end| end <= buffer.end);
    if start < buffer.start || end.is_none() {
        return Err(Malformed::InvalidScratchArea);
    }
    Ok(Scratch { gpa: Gpa::new(start), len_bytes })
}

/// Requests of SW_EXITINFO1 31:0. A level other than 0 in 19:16 makes another number: only VMPL0 is offered.
mod ap_request {
    pub(super) const CREATE_ON_INIT: u32 = 0;
    pub(super) const CREATE: u32 = 1;
    pub(super) const DESTROY: u32 = 2;
}

fn ap_creation(area: &Snapshot, info1: u64, info2: u64, config: &GhcbConfig) -> Result<Event, Malformed> {
    let (request, apic_id) = (info1 as u32, (info1 >> 32) as u32);
    if request == ap_request::DESTROY {
        return Ok(Event::ApDestroy { apic_id });
    }
    let features = SevFeatures::from_bits_retain(area.get(Field::RAX).ok_or(Malformed::MissingInput)?);
    let start = match request {
        ap_request::CREATE_ON_INIT => ApStart::OnInit,
        ap_request::CREATE => ApStart::Now,
        _ => return Err(Malformed::InvalidInput),
    };
    // How interrupts are injected is one thing for the whole guest.
    let modes = SevFeatures::RESTRICTED_INJECTION | SevFeatures::ALTERNATE_INJECTION;
    let vmsa = Gpa::new(info2);
    // A VMSA at the start of a 2 MiB page makes processors with an erratum fault on other pages: KVM refuses it.
    if (features ^ config.sev_features).intersects(modes)
        || !vmsa.is_aligned(PageSize::Size4K)
        || vmsa.is_aligned(PageSize::Size2M)
    {
        return Err(Malformed::InvalidInput);
    }
    Ok(Event::ApCreate(ApCreate { apic_id, vmsa, features, vmpl: Vmpl::Vmpl0, start }))
}
