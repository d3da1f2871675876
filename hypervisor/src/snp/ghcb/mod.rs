//! What a guest says by VMGEXIT, and the answers.
//!
//! Modelled: the guest-hypervisor communication block (GHCB), version 2 of its protocol, as KVM speaks it with SNP guests:
//! GHCB specification; Linux `arch/x86/kvm/svm/sev.c:sev_handle_vmgexit`. A VMGEXIT with a page's address in the GHCB MSR
//! is an event described in that page; one with other bits there is a request of the MSR protocol.
//!
//! [`GhcbVcpu::vmgexit`] is the door. It reads what the guest left, checks it, and either answers itself or says what the
//! machine must do ([`SnpAction`]); the machine does it and hands the outcome to [`GhcbVcpu::reply`], which writes it where
//! the guest looks for it and gives the next action, at last [`SnpAction::Resume`].
//!
//! - `layout` is where fields lie, `event` which of them an event needs, `msr` the protocol over the MSR, `page_state` the
//!   buffer of page state changes, `action` and `reply` what goes to and comes from the machine.
//!
//! Always true: whatever a guest writes gives one answer, a resumption, or the end of its virtual machine, and never a panic
//! or work without a bound. What an event is decided on was read once. Processors, devices and the RMP are not known here.
//!
//! Left out: version 1's scratch areas outside the page; #HV doorbells, several VMPLs, lists of APIC IDs, none of which the
//! hypervisor announces.

mod action;
mod event;
pub mod fuzz;
mod layout;
mod msr;
mod page_state;
mod reply;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};

use emu_core::cpuid::Reg;
use emu_core::sev::SevFeatures;
use emu_core::{Gfn, Gpa, PageSize};
use thiserror::Error;

pub use action::{
    ApCreate, ApStart, CertificateArea, CpuidRequest, GhcbReply, GuestRequest, GuestRequestStatus, HvFeatures,
    Hypercall, IoRequest, IoTransfer, IoWidth, Malformed, PageState, PageStateRun, SnpAction, Termination,
    TerminationReason, VmgexitFatal,
};
pub use layout::{Field, GHCB_USAGE, PROTOCOL_VERSION, SHARED_BUFFER, SHARED_BUFFER_BYTES, VALID_BITMAP};
pub use page_state::PAGE_STATE_ENTRIES_MAX;
pub use reply::ReplyError;

use event::{Event, IoEvent, Scratch};
use layout::Snapshot;
use msr::MsrRequest;
use page_state::Cursor;

/// The newest version of the protocol that is spoken.
pub const VERSION_MAX: u16 = 2;
/// The oldest.
pub const VERSION_MIN: u16 = 1;

/// Memory that the guest shares with the hypervisor.
pub trait GhcbMemory {
    /// Reads from `gpa` on; on an error nothing of `into` counts.
    fn read(&mut self, gpa: Gpa, into: &mut [u8]) -> Result<(), GhcbUnreachable>;
    /// Writes from `gpa` on.
    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), GhcbUnreachable>;
}

/// There is no shared memory at some address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the guest shares no memory there")]
pub struct GhcbUnreachable;

/// What the hypervisor offers to one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GhcbConfig {
    /// The bit of the guest's page-table entries that is the C-bit.
    pub c_bit: u8,
    /// What is announced.
    pub features: HvFeatures,
    /// SEV_FEATURES of the first processor's VMSA: those of others inject interrupts the same way.
    pub sev_features: SevFeatures,
}

impl GhcbConfig {
    /// The GHCB MSR of a processor before it runs.
    pub fn initial_msr(&self) -> u64 {
        msr::sev_info(self)
    }
}

/// What all processors of a guest share.
#[derive(Debug)]
pub struct GhcbGuest {
    config: GhcbConfig,
    /// The jump table of waiting processors, as the guest left it; 0 if it did not.
    ap_jump_table: AtomicU64,
}

impl GhcbGuest {
    /// A guest that has said nothing yet.
    pub const fn new(config: GhcbConfig) -> GhcbGuest {
        GhcbGuest { config, ap_jump_table: AtomicU64::new(0) }
    }

    /// What it is offered.
    pub const fn config(&self) -> &GhcbConfig {
        &self.config
    }
}

/// Where an outcome goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pending {
    /// Nothing is under way.
    Nothing,
    /// An event of the page.
    Event { page: Gpa, registers: Registers, expects: Expects },
    /// CPUID through the MSR.
    MsrCpuid(Reg),
    /// A page state change through the MSR.
    MsrPageState,
    /// The wait for a start, through the MSR.
    MsrResetHold,
}

/// The registers that are given back with every answer, as KVM does; those the guest did not show are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registers {
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
}

impl Registers {
    fn of(area: &Snapshot) -> Registers {
        let [rax, rbx, rcx, rdx] = [Field::RAX, Field::RBX, Field::RCX, Field::RDX].map(|field| area.or_zero(field));
        Registers { rax, rbx, rcx, rdx }
    }
}

/// What the machine's reply to an event has to be, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expects {
    /// Done.
    Done,
    /// Done, or not.
    DoneOrRefused,
    /// A value of this width, which replaces that part of RAX.
    Input(IoWidth),
    /// Bytes for this place.
    Bytes(Scratch),
    /// EDX:EAX.
    Wide,
    /// RAX.
    Rax,
    Cpuid,
    Rdtsc,
    Rdtscp,
    /// A start.
    Start,
    GuestRequest,
    PageState(Cursor),
}

/// The words of a page that say what happened (of an answer: how it went).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitWords {
    /// SW_EXITCODE.
    pub code: u64,
    /// SW_EXITINFO1.
    pub info1: u64,
    /// SW_EXITINFO2.
    pub info2: u64,
}

/// One processor's side of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GhcbVcpu {
    registered: Option<Gfn>,
    dr7: u64,
    pending: Pending,
    /// The page that the last VMGEXIT was about, and what it asked.
    asked: Option<(Gpa, ExitWords)>,
}

impl Default for GhcbVcpu {
    fn default() -> Self {
        GhcbVcpu::new()
    }
}

impl GhcbVcpu {
    /// A processor that has no page yet.
    pub const fn new() -> GhcbVcpu {
        GhcbVcpu { registered: None, dr7: 0x400, pending: Pending::Nothing, asked: None }
    }

    /// The page that the guest has registered.
    pub fn registered(&self) -> Option<Gpa> {
        self.registered.map(Gfn::base)
    }

    /// What the last VMGEXIT asked by its page; nothing if it came through the MSR, or the page could not be read. For a
    /// trace: the words are the guest's, whether the event could be made of them or not.
    pub fn asked(&self) -> Option<ExitWords> {
        self.asked.map(|(_, words)| words)
    }

    /// The words of that page as they are now.
    pub fn answered(&self, memory: &mut dyn GhcbMemory) -> Option<ExitWords> {
        let (page, ExitWords { code, .. }) = self.asked?;
        let mut word = |field: Field| {
            let mut bytes = [0; 8];
            memory.read(page.wrapping_add(field.offset() as u64), &mut bytes).ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        Some(ExitWords { code, info1: word(Field::SW_EXITINFO1)?, info2: word(Field::SW_EXITINFO2)? })
    }

    /// Forgets an event under way: the processor gets another state in place of the one that waits for an answer.
    pub fn abandon(&mut self) {
        self.pending = Pending::Nothing;
    }

    /// Takes a VMGEXIT with this value in the GHCB MSR. An event that was under way is forgotten.
    pub fn vmgexit(&mut self, guest: &GhcbGuest, ghcb_msr: u64, memory: &mut dyn GhcbMemory) -> SnpAction {
        self.pending = Pending::Nothing;
        self.asked = None;
        let resume = |ghcb_msr| SnpAction::Resume { ghcb_msr: Some(ghcb_msr) };
        match MsrRequest::decode(ghcb_msr) {
            MsrRequest::Page => self.page_event(guest, Gpa::new(ghcb_msr), memory),
            MsrRequest::SevInfo => resume(msr::sev_info(&guest.config)),
            MsrRequest::Features => resume(msr::features(&guest.config)),
            MsrRequest::PreferredGpa => resume(msr::preferred_gpa()),
            MsrRequest::RegisterGpa(gfn) => {
                self.registered = Some(gfn);
                resume(msr::registered(gfn))
            }
            MsrRequest::Cpuid { leaf, register } => {
                self.pending = Pending::MsrCpuid(register);
                SnpAction::Cpuid(CpuidRequest { leaf, subleaf: 0, xcr0: None, xss: None })
            }
            MsrRequest::ApResetHold => {
                self.pending = Pending::MsrResetHold;
                SnpAction::ApResetHold
            }
            MsrRequest::PageState { gfn, operation } => match page_state::page_state(u64::from(operation)) {
                Some(to) => {
                    self.pending = Pending::MsrPageState;
                    SnpAction::PageState(PageStateRun { start: gfn, frames: 1, to, size: PageSize::Size4K })
                }
                None => resume(msr::PAGE_STATE_FAILED),
            },
            MsrRequest::RunVmpl => resume(msr::RUN_VMPL_FAILED),
            MsrRequest::Terminate(reason) => SnpAction::Terminate(Termination { reason, info: None }),
            MsrRequest::Unknown => SnpAction::Resume { ghcb_msr: None },
        }
    }

    fn page_event(&mut self, guest: &GhcbGuest, page: Gpa, memory: &mut dyn GhcbMemory) -> SnpAction {
        const RESUME: SnpAction = SnpAction::Resume { ghcb_msr: None };
        // Without a page that can be read there is nowhere to say so.
        if page.raw() == 0 {
            return RESUME;
        }
        let Ok(area) = Snapshot::take(page, memory) else { return RESUME };
        let [code, info1, info2] =
            [Field::SW_EXITCODE, Field::SW_EXITINFO1, Field::SW_EXITINFO2].map(|field| area.raw(field));
        self.asked = Some((page, ExitWords { code, info1, info2 }));
        if self.registered != Some(page.frame()) {
            return SnpAction::Fatal(VmgexitFatal::NotRegistered { page, registered: self.registered() });
        }
        let registers = Registers::of(&area);
        let taken = match event::decode(&area, &guest.config) {
            Ok(event) => self.take(guest, event, page, registers, memory),
            Err(malformed) => reply::malformed(page, registers, malformed, memory),
        };
        // The guest took its page away in the middle: the answer is lost, and its own doing.
        taken.unwrap_or(RESUME)
    }

    fn take(
        &mut self,
        guest: &GhcbGuest,
        event: Event,
        page: Gpa,
        registers: Registers,
        memory: &mut dyn GhcbMemory,
    ) -> Result<SnpAction, GhcbUnreachable> {
        let (action, expects) = match event {
            Event::Nothing => return reply::success(page, registers, 0, memory),
            Event::Features => return reply::success(page, registers, guest.config.features.bits(), memory),
            Event::Dr7Read => return reply::success(page, Registers { rax: self.dr7, ..registers }, 0, memory),
            Event::Dr7Write(value) => {
                self.dr7 = value;
                return reply::success(page, registers, 0, memory);
            }
            Event::SetJumpTable(gpa) => {
                guest.ap_jump_table.store(gpa, Ordering::SeqCst);
                return reply::success(page, registers, 0, memory);
            }
            Event::GetJumpTable => {
                return reply::success(page, registers, guest.ap_jump_table.load(Ordering::SeqCst), memory);
            }
            Event::Terminate(termination) => return Ok(SnpAction::Terminate(termination)),
            Event::Unsupported { code, info } => {
                return Ok(SnpAction::Fatal(VmgexitFatal::UnsupportedEvent { code, info }));
            }
            Event::PageState(place) => {
                return match Cursor::read(place.gpa, place.len_bytes, memory)? {
                    Ok(cursor) => self.next_run(page, registers, cursor, memory),
                    Err(status) => reply::success(page, registers, status, memory),
                };
            }
            Event::Io { port, width, transfer } => {
                let (transfer, expects) = match transfer {
                    IoEvent::In => (IoTransfer::In, Expects::Input(width)),
                    IoEvent::Out(value) => (IoTransfer::Out(value), Expects::Done),
                    IoEvent::StringIn(into) => {
                        (IoTransfer::StringIn { count: into.len_bytes / width.bytes() }, Expects::Bytes(into))
                    }
                    IoEvent::StringOut(from) => {
                        let mut bytes = vec![0; from.len_bytes];
                        memory.read(from.gpa, &mut bytes)?;
                        (IoTransfer::StringOut { bytes }, Expects::Done)
                    }
                };
                (SnpAction::Io(IoRequest { port, width, transfer }), expects)
            }
            Event::MmioRead { gpa, into } => {
                (SnpAction::MmioRead { gpa, len_bytes: into.len_bytes as u8 }, Expects::Bytes(into))
            }
            Event::MmioWrite { gpa, from } => {
                let mut data = [0; 8];
                memory.read(from.gpa, &mut data[..from.len_bytes])?;
                (SnpAction::MmioWrite { gpa, len_bytes: from.len_bytes as u8, data }, Expects::Done)
            }
            Event::MsrRead(msr) => (SnpAction::MsrRead(msr), Expects::Wide),
            Event::MsrWrite(msr, value) => (SnpAction::MsrWrite(msr, value), Expects::Done),
            Event::Cpuid(request) => (SnpAction::Cpuid(request), Expects::Cpuid),
            Event::Rdtsc => (SnpAction::Tsc, Expects::Rdtsc),
            Event::Rdtscp => (SnpAction::Tsc, Expects::Rdtscp),
            Event::Rdpmc { counter } => (SnpAction::Rdpmc { counter }, Expects::Wide),
            Event::Hypercall(call) => (SnpAction::Hypercall(call), Expects::Rax),
            Event::NmiComplete => (SnpAction::NmiComplete, Expects::Done),
            Event::ApResetHold => (SnpAction::ApResetHold, Expects::Start),
            Event::GuestRequest(request) => (SnpAction::GuestRequest(request), Expects::GuestRequest),
            Event::ApCreate(create) => (SnpAction::ApCreate(create), Expects::DoneOrRefused),
            Event::ApDestroy { apic_id } => (SnpAction::ApDestroy { apic_id }, Expects::DoneOrRefused),
        };
        self.pending = Pending::Event { page, registers, expects };
        Ok(action)
    }
}
