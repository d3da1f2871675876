//! Native result against ours: what must be equal, and a report of what is not.
//!
//! By the architecture some flags, and a few whole results, are undefined after an instruction; [`Comparison`] leaves
//! these out, or compares them as well when the host is the modelled processor, or those that a table says the model
//! defines. After a fault nothing is undefined but the progress of a gather: what the host shows must be shown, be it
//! nothing (the common case) or the finished part of a repeated string instruction.
//!
//! Source: the RFLAGS facts of iced; SDM vol. 2, the instruction pages of the shifts, for what depends on the count.

use std::fmt;

use iced_x86::{Decoder, Instruction, Mnemonic, OpKind, Register, RflagsBits};

use crate::admit::DECODER_OPTIONS;
use crate::case::{Case, CaseResult, Outcome};
use crate::casefile::Record;
use crate::state::{AF, CF, CpuState, OF, PF, RCX, SF, ZF};
use crate::window::{LINE, Line, WindowMemory};

/// Flags that the modelled processor defines although the architecture does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelledFlags {
    /// After this instruction,
    pub mnemonic: Mnemonic,
    /// these RFLAGS bits are compared in any case.
    pub flags: u64,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// What the architecture defines, and what the table adds to it.
    Architectural(&'static [ModelledFlags]),
    /// Everything: the host is the modelled processor.
    Everything,
}

/// What an instruction sequence leaves undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Undefined {
    flags: u64,
    status_word: u16,
    everything: bool,
}

/// One thing that is not equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// How the code ended.
    Outcome {
        /// On the host.
        native: Outcome,
        /// On our side.
        ours: Outcome,
    },
    /// A general register.
    Gpr {
        /// Its number.
        register: usize,
        /// On the host.
        native: u64,
        /// On our side.
        ours: u64,
    },
    /// Flags.
    Flags {
        /// On the host.
        native: u64,
        /// On our side.
        ours: u64,
        /// The bits that were compared.
        compared: u64,
    },
    /// A vector register.
    Vector {
        /// Its number.
        register: usize,
        /// On the host.
        native: [u64; 4],
        /// On our side.
        ours: [u64; 4],
    },
    /// A control or status register, by name.
    Control {
        /// MXCSR, FCW, FSW or FTW.
        name: &'static str,
        /// On the host.
        native: u32,
        /// On our side.
        ours: u32,
    },
    /// ST(n).
    St {
        /// `n`.
        register: usize,
        /// On the host.
        native: [u8; 10],
        /// On our side.
        ours: [u8; 10],
    },
    /// A line of memory.
    Memory {
        /// Its offset in the window.
        offset: u16,
        /// On the host.
        native: [u8; LINE],
        /// On our side.
        ours: [u8; LINE],
    },
    /// Only one side changed more lines than are reported.
    Truncated,
}

/// A case on which host and interpreter differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The case.
    pub case: Case,
    /// What the host did.
    pub native: CaseResult,
    /// What we did.
    pub ours: CaseResult,
    /// Where they differ; not empty.
    pub differences: Vec<Difference>,
}

/// Compares what the architecture defines.
pub fn compare(case: &Case, native: &CaseResult, ours: &CaseResult) -> Result<(), Box<Mismatch>> {
    Comparison::Architectural(&[]).compare(case, native, ours)
}

impl Comparison {
    /// Compares two results of `case`.
    pub fn compare(&self, case: &Case, native: &CaseResult, ours: &CaseResult) -> Result<(), Box<Mismatch>> {
        if native == ours {
            return Ok(());
        }
        let undefined = match native.outcome {
            Outcome::Completed { .. } => self.undefined(case),
            _ => self.undefined_at_fault(case),
        };
        let mut differences = Vec::new();
        if native.outcome != ours.outcome {
            differences.push(Difference::Outcome { native: native.outcome, ours: ours.outcome });
        }
        if !undefined.everything {
            registers(&native.state, &ours.state, undefined, &mut differences);
            memory(case, native, ours, &mut differences);
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(Box::new(Mismatch { case: case.clone(), native: native.clone(), ours: ours.clone(), differences }))
    }

    /// A gather that faults may have loaded any of the elements above the one it faults on (SDM vol. 2, "VGATHERDPS").
    fn undefined_at_fault(&self, case: &Case) -> Undefined {
        let mut decoder = Decoder::with_ip(64, case.code.bytes(), case.rip(), DECODER_OPTIONS).into_iter();
        let gathers = decoder.any(|instruction| instruction.is_vsib());
        Undefined { everything: gathers && *self != Comparison::Everything, ..Undefined::default() }
    }

    fn undefined(&self, case: &Case) -> Undefined {
        let table = match self {
            Comparison::Everything => return Undefined::default(),
            Comparison::Architectural(table) => table,
        };
        let mut undefined = Undefined::default();
        let decoder = Decoder::with_ip(64, case.code.bytes(), case.rip(), DECODER_OPTIONS);
        for instruction in decoder {
            let mut now = after(&instruction, &case.state);
            for entry in table.iter().filter(|entry| entry.mnemonic == instruction.mnemonic()) {
                now.flags &= !entry.flags;
            }
            undefined.flags = undefined.flags & !flags_of(instruction.rflags_modified()) | now.flags;
            undefined.status_word =
                undefined.status_word & !conditions(instruction.rflags_modified()) | now.status_word;
            undefined.everything |= now.everything;
        }
        undefined
    }
}

/// RFLAGS bits of iced's.
fn flags_of(bits: u32) -> u64 {
    let map = [
        (RflagsBits::OF, OF),
        (RflagsBits::SF, SF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::AF, AF),
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
    ];
    map.into_iter().filter(|(theirs, _)| bits & theirs != 0).fold(0, |all, (_, ours)| all | ours)
}

/// Condition bits of the x87 status word, of iced's.
fn conditions(bits: u32) -> u16 {
    let map =
        [(RflagsBits::C0, 1 << 8), (RflagsBits::C1, 1 << 9), (RflagsBits::C2, 1 << 10), (RflagsBits::C3, 1 << 14)];
    map.into_iter().filter(|(theirs, _)| bits & theirs != 0).fold(0, |all, (_, ours)| all | ours)
}

/// What is undefined after one instruction that starts from `state` (its own registers, for a sequence: an
/// approximation that only concerns shift counts).
fn after(instruction: &Instruction, state: &CpuState) -> Undefined {
    let mut undefined = Undefined {
        flags: flags_of(instruction.rflags_undefined()),
        status_word: conditions(instruction.rflags_undefined()),
        everything: false,
    };
    let shift = matches!(instruction.mnemonic(), Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar);
    let double = matches!(instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd);
    let rotate = matches!(instruction.mnemonic(), Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr);
    if shift || double || rotate {
        let last = instruction.op_count() - 1;
        let bits = 8 * match instruction.op0_kind() {
            OpKind::Register => instruction.op0_register().size() as u64,
            _ => instruction.memory_size().size() as u64,
        };
        let raw = match instruction.op_kind(last) {
            OpKind::Register => state.gpr[RCX],
            _ => instruction.immediate(last),
        };
        let count = raw & if bits == 64 { 63 } else { 31 };
        undefined.flags = match count {
            0 => 0,
            1 if rotate => 0,
            1 => AF,
            _ if rotate => OF,
            _ => AF | OF,
        };
        // The last bit shifted out of an operand that was shifted empty.
        if shift && instruction.mnemonic() != Mnemonic::Sar && count >= bits {
            undefined.flags |= CF;
        }
        undefined.everything = double && count > bits;
    }
    if instruction.mnemonic() == Mnemonic::Bswap && instruction.op0_register().size() == 2 {
        undefined.everything = true;
    }
    undefined
}

fn registers(native: &CpuState, ours: &CpuState, undefined: Undefined, differences: &mut Vec<Difference>) {
    for (register, (&native, &ours)) in native.gpr.iter().zip(&ours.gpr).enumerate() {
        if native != ours {
            differences.push(Difference::Gpr { register, native, ours });
        }
    }
    let compared = !undefined.flags;
    if (native.rflags ^ ours.rflags) & compared != 0 {
        differences.push(Difference::Flags { native: native.rflags, ours: ours.rflags, compared });
    }
    for (register, (&native, &ours)) in native.vec.iter().zip(&ours.vec).enumerate() {
        if native != ours {
            differences.push(Difference::Vector { register, native, ours });
        }
    }
    let fsw = |state: &CpuState| (state.x87.fsw & !undefined.status_word) as u32;
    let controls = [
        ("mxcsr", native.mxcsr, ours.mxcsr),
        ("fcw", native.x87.fcw as u32, ours.x87.fcw as u32),
        ("fsw", fsw(native), fsw(ours)),
        ("ftw", native.x87.ftw as u32, ours.x87.ftw as u32),
    ];
    for (name, native, ours) in controls.into_iter().filter(|(_, native, ours)| native != ours) {
        differences.push(Difference::Control { name, native, ours });
    }
    for (register, (&native, &ours)) in native.x87.st.iter().zip(&ours.x87.st).enumerate() {
        if native != ours {
            differences.push(Difference::St { register, native, ours });
        }
    }
}

fn memory(case: &Case, native: &CaseResult, ours: &CaseResult, differences: &mut Vec<Difference>) {
    if native.writes == ours.writes {
        return;
    }
    if native.writes.truncated != ours.writes.truncated {
        differences.push(Difference::Truncated);
    }
    let mut initial = WindowMemory::default();
    initial.load(&case.window);
    let at = |lines: &[Line], offset: u16| {
        let mut bytes = [0; LINE];
        match lines.iter().find(|line| line.offset == offset) {
            Some(line) => bytes = line.bytes,
            None => bytes.copy_from_slice(&initial.bytes()[offset as usize..][..LINE]),
        }
        bytes
    };
    let (theirs, own) = (&native.writes.lines, &ours.writes.lines);
    let mut offsets: Vec<u16> = theirs.iter().chain(own).map(|line| line.offset).collect();
    offsets.sort_unstable();
    offsets.dedup();
    for offset in offsets {
        let (native, ours) = (at(theirs, offset), at(own, offset));
        if native != ours {
            differences.push(Difference::Memory { offset, native, ours });
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Outcome { native, ours } => write!(f, "outcome: native {native:?}, ours {ours:?}"),
            Difference::Gpr { register, native, ours } => {
                write!(f, "{:?}: native {native:#x}, ours {ours:#x}", Register::RAX + *register as u32)
            }
            Difference::Flags { native, ours, compared } => {
                write!(f, "rflags: native {native:#x}, ours {ours:#x}, differ in {:#x}", (native ^ ours) & compared)
            }
            Difference::Vector { register, native, ours } => {
                write!(f, "ymm{register}: native {native:016x?}, ours {ours:016x?}")
            }
            Difference::Control { name, native, ours } => write!(f, "{name}: native {native:#x}, ours {ours:#x}"),
            Difference::St { register, native, ours } => {
                write!(f, "st{register}: native {native:02x?}, ours {ours:02x?}")
            }
            Difference::Memory { offset, native, ours } => {
                write!(f, "mem+{offset:x}: native {native:02x?}, ours {ours:02x?}")
            }
            Difference::Truncated => write!(f, "only one side changed more memory than is reported"),
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let codes: Vec<_> = Decoder::with_ip(64, self.case.code.bytes(), self.case.rip(), DECODER_OPTIONS)
            .into_iter()
            .map(|instruction| instruction.code())
            .collect();
        writeln!(f, "{codes:?}")?;
        for difference in &self.differences {
            writeln!(f, "  {difference}")?;
        }
        write!(f, "  {}", Record { case: self.case.clone(), expected: self.native.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Code, Fault};
    use crate::state::RAX;
    use crate::window::Writes;

    fn of(bytes: &[u8], rcx: u64) -> (Case, CaseResult) {
        let mut case = Case::new(Code::admit(bytes).unwrap());
        case.state.gpr[RCX] = rcx;
        let outcome = Outcome::Completed { rip_delta: bytes.len() as i64 };
        let result = CaseResult { outcome, state: case.state, writes: Writes::default() };
        (case, result)
    }

    fn flag_matters(bytes: &[u8], rcx: u64, flag: u64) -> bool {
        let (case, result) = of(bytes, rcx);
        let mut other = result.clone();
        other.state.rflags ^= flag;
        assert!(Comparison::Everything.compare(&case, &result, &other).is_err());
        compare(&case, &result, &other).is_err()
    }

    #[test]
    fn undefined_flags_are_left_out() {
        let and = [0x48, 0x21, 0xd8];
        assert!(!flag_matters(&and, 0, AF));
        assert!(flag_matters(&and, 0, CF));
        let shl = [0xd2, 0xe0]; // shl al, cl
        assert!(flag_matters(&shl, 32, OF | AF));
        assert!(flag_matters(&shl, 1, OF));
        assert!(!flag_matters(&shl, 2, OF));
        assert!(flag_matters(&shl, 7, CF));
        assert!(!flag_matters(&shl, 8, CF));
        // An ADD behind it defines everything again.
        assert!(flag_matters(&[0xd2, 0xe0, 0x48, 0x01, 0xd8], 8, CF));
    }

    #[test]
    fn after_a_fault_flags_count_but_a_gather_does_not() {
        let fault = Outcome::Fault(Fault { vector: 14, error_code: 4, cr2: Some(0), rip_delta: 0 });
        let differs = |bytes: &[u8], change: fn(&mut CpuState)| {
            let (case, mut result) = of(bytes, 0);
            result.outcome = fault;
            let mut other = result.clone();
            change(&mut other.state);
            assert!(Comparison::Everything.compare(&case, &result, &other).is_err());
            compare(&case, &result, &other).is_err()
        };
        assert!(differs(&[0x48, 0x23, 0x01], |state| state.rflags ^= AF));
        assert!(!differs(&[0xc4, 0xe2, 0x69, 0x90, 0x04, 0x09], |state| state.vec[0][1] ^= 1));
    }

    #[test]
    fn the_table_adds_flags() {
        const TABLE: &[ModelledFlags] = &[ModelledFlags { mnemonic: Mnemonic::And, flags: AF }];
        let (case, result) = of(&[0x48, 0x21, 0xd8], 0);
        let mut other = result.clone();
        other.state.rflags ^= AF;
        assert!(Comparison::Architectural(TABLE).compare(&case, &result, &other).is_err());
    }

    #[test]
    fn a_mismatch_tells_what_and_prints_a_case() {
        let (case, result) = of(&[0x48, 0x21, 0xd8], 0);
        let mut other = result.clone();
        other.state.gpr[RAX] = 5;
        other.writes.lines.push(Line { offset: 64, bytes: [1; LINE] });
        let mismatch = compare(&case, &result, &other).unwrap_err();
        assert_eq!(mismatch.differences.len(), 2);
        let text = mismatch.to_string();
        assert!(text.contains("RAX: native 0x0, ours 0x5") && text.contains("48 21 d8 |"), "{text}");
    }
}
