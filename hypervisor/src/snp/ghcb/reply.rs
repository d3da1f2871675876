//! Answers: what is written into the GHCB page or left in the GHCB MSR.
//!
//! Source: GHCB specification, "NAE Event Handling", "SW_EXITINFO1 and 2 on return"; Linux
//! `arch/x86/kvm/svm/sev.c:sev_es_sync_to_ghcb`, `svm_vmgexit_inject_exception`, `svm_vmgexit_bad_input`.

use emu_core::{Exception, Gpa};
use thiserror::Error;

use super::action::{GhcbReply, GuestRequestStatus, Malformed, SnpAction};
use super::layout::{Field, Outputs};
use super::page_state::{Cursor, Next, status};
use super::{Expects, GhcbMemory, GhcbUnreachable, GhcbVcpu, Pending, Registers, msr};

/// Why a reply cannot be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReplyError {
    /// There is no action that this reply belongs to: a mistake of the machine. The action is still under way.
    #[error("the action under way has no such reply")]
    Mismatch,
    /// The guest has taken its page away. The answer is lost; the guest can be run.
    #[error("the GHCB page is gone: {0}")]
    Lost(#[from] GhcbUnreachable),
}

/// SW_EXITINFO1 31:0 of an answer.
mod outcome {
    pub(super) const NO_ACTION: u64 = 0;
    pub(super) const EXCEPTION: u64 = 1;
    pub(super) const MALFORMED: u64 = 2;
}

/// High half of SW_EXITINFO2 of a guest request: the certificates do not fit.
const VMM_INVALID_LENGTH: u64 = 1 << 32;

/// Writes a whole answer.
fn answer(
    page: Gpa,
    registers: Registers,
    info: [u64; 2],
    memory: &mut dyn GhcbMemory,
) -> Result<SnpAction, GhcbUnreachable> {
    let mut outputs = Outputs::default();
    for (field, value) in [
        (Field::RAX, registers.rax),
        (Field::RBX, registers.rbx),
        (Field::RCX, registers.rcx),
        (Field::RDX, registers.rdx),
        (Field::SW_EXITINFO1, info[0]),
        (Field::SW_EXITINFO2, info[1]),
    ] {
        outputs.put(page, field, value, memory)?;
    }
    outputs.finish(page, memory)?;
    Ok(SnpAction::Resume { ghcb_msr: None })
}

/// The event is done; `info` goes with it.
pub(super) fn success(
    page: Gpa,
    registers: Registers,
    info: u64,
    memory: &mut dyn GhcbMemory,
) -> Result<SnpAction, GhcbUnreachable> {
    answer(page, registers, [outcome::NO_ACTION, info], memory)
}

/// The event makes no sense.
pub(super) fn malformed(
    page: Gpa,
    registers: Registers,
    malformed: Malformed,
    memory: &mut dyn GhcbMemory,
) -> Result<SnpAction, GhcbUnreachable> {
    answer(page, registers, [outcome::MALFORMED, malformed as u64], memory)
}

/// An exception in the form of EVENTINJ. An error code of 0 is not given, as KVM does not.
fn event_injection(exception: Exception) -> u64 {
    const TYPE_EXCEPTION: u64 = 3 << 8;
    const ERROR_VALID: u64 = 1 << 11;
    const VALID: u64 = 1 << 31;
    let event = u64::from(exception.vector()) | TYPE_EXCEPTION | VALID;
    match exception.error_code() {
        None | Some(0) => event,
        Some(code) => event | ERROR_VALID | u64::from(code) << 32,
    }
}

/// `value` with its low 32 bits in EAX and its high ones in EDX, zero-extended.
fn edx_eax(value: u64, registers: Registers) -> Registers {
    Registers { rax: value & 0xffff_ffff, rdx: value >> 32, ..registers }
}

impl GhcbVcpu {
    /// Delivers the outcome of the action under way, and says what comes next.
    pub fn reply(&mut self, memory: &mut dyn GhcbMemory, reply: GhcbReply<'_>) -> Result<SnpAction, ReplyError> {
        if !self.pending.takes(&reply) {
            return Err(ReplyError::Mismatch);
        }
        let resume = |ghcb_msr| Ok(SnpAction::Resume { ghcb_msr: Some(ghcb_msr) });
        match core::mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Nothing => Err(ReplyError::Mismatch),
            Pending::MsrCpuid(register) => match reply {
                GhcbReply::Cpuid(result) => resume(msr::cpuid(register, result.get(register))),
                _ => Err(ReplyError::Mismatch),
            },
            Pending::MsrPageState if reply == GhcbReply::Done => resume(msr::PAGE_STATE_DONE),
            Pending::MsrPageState => resume(msr::PAGE_STATE_FAILED),
            Pending::MsrResetHold => resume(msr::reset_hold_over(reply == GhcbReply::Done)),
            Pending::Event { page, registers, expects } => {
                Ok(self.reply_event(page, registers, expects, reply, memory)?)
            }
        }
    }

    fn reply_event(
        &mut self,
        page: Gpa,
        registers: Registers,
        expects: Expects,
        reply: GhcbReply<'_>,
        memory: &mut dyn GhcbMemory,
    ) -> Result<SnpAction, GhcbUnreachable> {
        let registers = match (expects, reply) {
            (Expects::PageState(mut cursor), GhcbReply::Done) => {
                cursor.done(memory)?;
                return self.next_run(page, registers, cursor, memory);
            }
            (Expects::PageState(_), _) => return success(page, registers, status::FAILED, memory),
            (Expects::Start, reply) => {
                return success(page, registers, u64::from(reply == GhcbReply::Done), memory);
            }
            (_, GhcbReply::Exception(exception)) => {
                return answer(page, registers, [outcome::EXCEPTION, event_injection(exception)], memory);
            }
            (_, GhcbReply::Refused) => return malformed(page, registers, Malformed::InvalidInput, memory),
            (_, GhcbReply::GuestRequest(outcome)) => return guest_request(page, registers, outcome, memory),
            (Expects::Bytes(place), GhcbReply::Bytes(bytes)) => {
                memory.write(place.gpa, bytes)?;
                registers
            }
            (Expects::Input(width), GhcbReply::Value(value)) => {
                let mask = u64::from(width.mask());
                // An input of 32 bits clears what is above, narrower ones keep it.
                let kept = if mask == 0xffff_ffff { 0 } else { registers.rax & !mask };
                Registers { rax: kept | value & mask, ..registers }
            }
            (Expects::Rax, GhcbReply::Value(value)) => Registers { rax: value, ..registers },
            (_, GhcbReply::Value(value)) => edx_eax(value, registers),
            (_, GhcbReply::Cpuid(result)) => {
                let [rax, rbx, rcx, rdx] = [result.eax, result.ebx, result.ecx, result.edx].map(u64::from);
                Registers { rax, rbx, rcx, rdx }
            }
            (Expects::Rdtscp, GhcbReply::Tsc { tsc, aux }) => {
                Registers { rcx: u64::from(aux), ..edx_eax(tsc, registers) }
            }
            (_, GhcbReply::Tsc { tsc, .. }) => edx_eax(tsc, registers),
            (_, GhcbReply::Done | GhcbReply::Bytes(_)) => registers,
        };
        success(page, registers, 0, memory)
    }

    /// The next run of a page state change, or its end.
    pub(super) fn next_run(
        &mut self,
        page: Gpa,
        registers: Registers,
        mut cursor: Cursor,
        memory: &mut dyn GhcbMemory,
    ) -> Result<SnpAction, GhcbUnreachable> {
        match cursor.next(memory)? {
            Next::Run(run) => {
                self.pending = Pending::Event { page, registers, expects: Expects::PageState(cursor) };
                Ok(SnpAction::PageState(run))
            }
            Next::End(status) => success(page, registers, status, memory),
        }
    }
}

fn guest_request(
    page: Gpa,
    registers: Registers,
    status: GuestRequestStatus,
    memory: &mut dyn GhcbMemory,
) -> Result<SnpAction, GhcbUnreachable> {
    match status {
        GuestRequestStatus::Firmware(code) => success(page, registers, u64::from(code), memory),
        GuestRequestStatus::CertificatesNeed { pages } => {
            success(page, Registers { rbx: pages, ..registers }, VMM_INVALID_LENGTH, memory)
        }
        GuestRequestStatus::CertificatesMisaligned => malformed(page, registers, Malformed::InvalidInput, memory),
    }
}

impl Pending {
    /// Whether this is a reply to what is under way.
    fn takes(&self, reply: &GhcbReply<'_>) -> bool {
        match self {
            Pending::Nothing => false,
            Pending::MsrCpuid(_) => matches!(reply, GhcbReply::Cpuid(_)),
            Pending::MsrPageState | Pending::MsrResetHold => matches!(reply, GhcbReply::Done | GhcbReply::Refused),
            Pending::Event { expects, .. } => expects.takes(reply),
        }
    }
}

impl Expects {
    fn takes(&self, reply: &GhcbReply<'_>) -> bool {
        match (self, reply) {
            (Expects::PageState(_) | Expects::DoneOrRefused | Expects::Start, reply) => {
                matches!(reply, GhcbReply::Done | GhcbReply::Refused)
            }
            (Expects::GuestRequest, reply) => matches!(reply, GhcbReply::GuestRequest(_)),
            // Whatever an instruction does, it can also raise an exception.
            (_, GhcbReply::Exception(_)) => true,
            (Expects::Done, reply) => matches!(reply, GhcbReply::Done),
            (Expects::Input(_) | Expects::Wide | Expects::Rax, reply) => matches!(reply, GhcbReply::Value(_)),
            (Expects::Bytes(place), GhcbReply::Bytes(bytes)) => bytes.len() == place.len_bytes,
            (Expects::Bytes(_), _) => false,
            (Expects::Cpuid, reply) => matches!(reply, GhcbReply::Cpuid(_)),
            (Expects::Rdtsc | Expects::Rdtscp, reply) => matches!(reply, GhcbReply::Tsc { .. }),
        }
    }
}
