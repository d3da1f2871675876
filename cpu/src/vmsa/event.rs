//! An event that was on its way to the guest when it exited, in the form of EXITINTINFO (APM vol. 2, "Event Injection"):
//! vector in bits 7:0, type in 10:8, error code valid in 11, valid in 31, error code above.
//!
//! RIP is then that of the instruction at which the event is delivered. For one that an instruction asked for the saved
//! RIP is the instruction's, and the one after it lies in GUEST_NRIP; INT3 and INTO have the type of an exception there,
//! as in a VMCB, and are told from INT1 and real exceptions by their vector and by GUEST_NRIP.

use emu_core::exception::SelectorError;
use emu_core::regs::Dr6;
use emu_core::{Exception, Gva, PageFaultCode};

use crate::event::{Event, SoftwareKind};

const VALID: u64 = 1 << 31;
const ERROR_VALID: u64 = 1 << 11;
const INTERRUPT: u64 = 0 << 8;
const NMI: u64 = 2 << 8;
const EXCEPTION: u64 = 3 << 8;
const SOFTWARE: u64 = 4 << 8;
const KIND: u64 = 7 << 8;

/// The registers that belong to an exception beside its code.
#[derive(Clone, Copy)]
pub(super) struct Raised {
    pub cr2: u64,
    pub dr6: Dr6,
}

/// How `event` is saved, and RIP of the instruction that asked for it if one did.
pub(super) fn encode(event: Event) -> (u64, Option<u64>) {
    match event {
        Event::Interrupt { vector } => (VALID | INTERRUPT | vector as u64, None),
        Event::Nmi => (VALID | NMI | 2, None),
        Event::Exception(exception) => {
            let error = exception.error_code().map_or(0, |code| ERROR_VALID | (code as u64) << 32);
            (VALID | EXCEPTION | error | exception.vector() as u64, None)
        }
        Event::Software { vector, rip, kind } => {
            let kind = if kind == SoftwareKind::Int { SOFTWARE } else { EXCEPTION };
            (VALID | kind | vector as u64, Some(rip))
        }
    }
}

/// The event that was saved so; `software` is RIP of the instruction if GUEST_NRIP says that one asked. `None` for no event
/// and for what is none.
pub(super) fn decode(raw: u64, software: Option<u64>, raised: Raised) -> Option<Event> {
    if raw & VALID == 0 {
        return None;
    }
    let vector = raw as u8;
    match (raw & KIND, software) {
        (INTERRUPT, _) => Some(Event::Interrupt { vector }),
        (NMI, _) => Some(Event::Nmi),
        (SOFTWARE, Some(rip)) => Some(Event::Software { vector, rip, kind: SoftwareKind::Int }),
        (EXCEPTION, Some(rip)) => {
            let kind = if vector == 1 { SoftwareKind::Icebp } else { SoftwareKind::Breakpoint };
            Some(Event::Software { vector, rip, kind })
        }
        (EXCEPTION, None) => exception(vector, (raw >> 32) as u32, raised).map(Event::Exception),
        _ => None,
    }
}

fn exception(vector: u8, code: u32, raised: Raised) -> Option<Exception> {
    let selector = SelectorError::from_raw(code as u16);
    Some(match vector {
        0 => Exception::DivideError,
        1 => Exception::Debug { dr6: raised.dr6 - Dr6::FIXED },
        3 => Exception::Breakpoint,
        4 => Exception::Overflow,
        5 => Exception::BoundRange,
        6 => Exception::InvalidOpcode,
        7 => Exception::DeviceNotAvailable,
        8 => Exception::DoubleFault,
        10 => Exception::InvalidTss(selector),
        11 => Exception::SegmentNotPresent(selector),
        12 => Exception::StackFault(selector),
        13 => Exception::GeneralProtection(selector),
        14 => Exception::PageFault { gva: Gva::new(raised.cr2), code: PageFaultCode::from_bits_retain(code) },
        16 => Exception::X87FloatingPoint,
        17 => Exception::AlignmentCheck,
        18 => Exception::MachineCheck,
        19 => Exception::SimdFloatingPoint,
        29 => Exception::VmmCommunication { exit_code: code },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_comes_back() {
        let raised = Raised { cr2: 0x7000, dr6: Dr6::FIXED | Dr6::BS };
        let selector = SelectorError::idt(7).external();
        let exceptions = [
            Exception::DivideError,
            Exception::Debug { dr6: Dr6::BS },
            Exception::Breakpoint,
            Exception::Overflow,
            Exception::BoundRange,
            Exception::InvalidOpcode,
            Exception::DeviceNotAvailable,
            Exception::DoubleFault,
            Exception::InvalidTss(selector),
            Exception::SegmentNotPresent(selector),
            Exception::StackFault(selector),
            Exception::GeneralProtection(selector),
            Exception::PageFault { gva: Gva::new(0x7000), code: PageFaultCode::W | PageFaultCode::RMP },
            Exception::X87FloatingPoint,
            Exception::AlignmentCheck,
            Exception::MachineCheck,
            Exception::SimdFloatingPoint,
            Exception::VmmCommunication { exit_code: 0x404 },
        ];
        let software = [
            (SoftwareKind::Int, 0x80),
            (SoftwareKind::Int, 3),
            (SoftwareKind::Breakpoint, 3),
            (SoftwareKind::Breakpoint, 4),
            (SoftwareKind::Icebp, 1),
        ];
        let events = exceptions
            .map(Event::Exception)
            .into_iter()
            .chain(software.map(|(kind, vector)| Event::Software { vector, rip: 0x1000, kind }))
            .chain([Event::Nmi, Event::Interrupt { vector: 0xff }]);
        for event in events {
            let (raw, rip) = encode(event);
            assert_eq!(decode(raw, rip, raised), Some(event));
            assert_eq!(decode(raw & !VALID, rip, raised), None);
        }
        for nothing in [VALID | EXCEPTION | 2, VALID | EXCEPTION | 31, VALID | 7 << 8, VALID | SOFTWARE | 0x80] {
            assert_eq!(decode(nothing, None, raised), None, "{nothing:#x}");
        }
    }
}
