//! Cases as text, one a line, so that a mismatch becomes a committed case.
//!
//! ```text
//! 48 01 d8 | rax=ffffffffffffffff rbx=1 => rip+3 rax=0 rflags=257
//! 48 89 01 | pages=rw,ro,none rcx=w+1000 => fault=e code=7 cr2=w+1000 rip+0
//! ```
//!
//! Before the bar the code; up to the arrow what differs from the default state ([`CpuState::default`], background
//! memory, all pages writable); behind it how it ended and what differs from the state before. Numbers are
//! hexadecimal, `w+N` is N bytes from the window's first, the bytes of `mem+OFFSET` are in the order of memory. Words before the arrow: registers, `rflags`,
//! `ymm0`.., `mxcsr`, `fcw`, `fsw`, `ftw`, `st0`.., `mem+OFFSET`, `pages=rw,ro,none`, `end=N` for
//! [`Placement::PageEnd`], `scope=memory` or `scope=full` when more is compared than the code asks for. Behind it
//! also `rip+N` or `rip-N`, `fault=VECTOR code=N cr2=N`, `crashed=hang`, `crashed=signal:N`, `crashed=exit:N`,
//! `truncated`. Lines that start with `#` are comments.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, fs, io};

use thiserror::Error;

use crate::admit::Refused;
use crate::case::{Case, CaseResult, Code, Crash, Fault, Outcome, Placement, Scope};
use crate::reach::astray;
use crate::state::CpuState;
use crate::window::{LINE, Line, PageProtection, Patch, Window, Writes};

const GPR: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
const PROTECTION: [(&str, PageProtection); 3] =
    [("rw", PageProtection::ReadWrite), ("ro", PageProtection::ReadOnly), ("none", PageProtection::None)];

/// A case and what came of it on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The case.
    pub case: Case,
    /// What must come of it.
    pub expected: CaseResult,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// It has no bar between code and state.
    #[error("no `|` behind the code")]
    NoBar,
    /// It has no arrow between before and after.
    #[error("no `=>` between the states")]
    NoArrow,
    /// A word that means nothing here.
    #[error("`{0}` means nothing here")]
    Word(String),
    /// A value that is not a number of the right size.
    #[error("`{0}` has no value that fits")]
    Value(String),
    /// More patches than a case can have.
    #[error("`{0}` is one patch too many")]
    Patches(String),
    /// It does not say how the code ended.
    #[error("no outcome behind `=>`")]
    NoOutcome,
    /// The memory operand lies where the judge keeps its own things.
    #[error("the memory operand lies in the judge's range, but not in the case's window")]
    Astray,
    /// The code may not run.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// Reads a file of cases; an error comes with the number of its line, from 1.
pub fn parse_file(text: &str) -> Result<Vec<Record>, (usize, ParseError)> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .map(|(n, line)| line.parse().map_err(|error| (n + 1, error)))
        .collect()
}

/// Why the committed cases cannot be had.
#[derive(Debug, Error)]
pub enum CommittedError {
    /// A file cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A line is wrong.
    #[error("{path}, line {line}: {error}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        error: ParseError,
    },
}

/// All cases under this crate's `cases/`, file by file in the order of their names.
pub fn committed() -> Result<Vec<(PathBuf, Vec<Record>)>, CommittedError> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let read = |path: &Path, error| CommittedError::Read { path: path.into(), error };
    let entries = fs::read_dir(&directory).map_err(|error| read(&directory, error))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| read(&directory, error))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "ins"));
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).map_err(|error| read(&path, error))?;
            match parse_file(&text) {
                Ok(records) => Ok((path, records)),
                Err((line, error)) => Err(CommittedError::Line { path, line, error }),
            }
        })
        .collect()
}

impl FromStr for Record {
    type Err = ParseError;

    fn from_str(line: &str) -> Result<Record, ParseError> {
        let (before, after) = line.split_once("=>").ok_or(ParseError::NoArrow)?;
        let case = parse_case(before)?;
        let expected = parse_result(&case, after)?;
        Ok(Record { case, expected })
    }
}

/// Reads the part of a line before the arrow.
pub fn parse_case(text: &str) -> Result<Case, ParseError> {
    let (code, state) = text.split_once('|').ok_or(ParseError::NoBar)?;
    let digits: String = code.split_whitespace().collect();
    let mut case = Case::new(Code::admit(&bytes(code.trim(), &digits)?)?);
    // First, because addresses in the window depend on them.
    if let Some((word, value)) = state.split_whitespace().find_map(|word| Some((word, word.strip_prefix("pages=")?))) {
        case.window.protections = protections(word, value)?;
    }
    for word in state.split_whitespace() {
        let (key, value) = word.split_once('=').ok_or_else(|| ParseError::Word(word.into()))?;
        match key {
            "pages" => {}
            "end" => case.placement = Placement::PageEnd(number(word, value, 8)? as u8),
            "scope" => {
                case.scope = match value {
                    "registers" => Scope::Registers,
                    "memory" => Scope::Memory,
                    "full" => Scope::Full,
                    _ => return Err(ParseError::Value(word.into())),
                }
            }
            _ if key.starts_with("mem+") => {
                let offset = number(word, &key[4..], 16)? as u16;
                let bytes = bytes(word, value)?;
                let patch = Patch::new(offset, &bytes);
                if patch.bytes().len() != bytes.len() {
                    return Err(ParseError::Value(word.into()));
                }
                if !case.window.patch(patch) {
                    return Err(ParseError::Patches(word.into()));
                }
            }
            _ => register(&mut case.state, &case.window, word, key, value)?,
        }
    }
    case.state = case.state.normalised();
    if astray(&case) {
        return Err(ParseError::Astray);
    }
    Ok(case)
}

fn parse_result(case: &Case, text: &str) -> Result<CaseResult, ParseError> {
    let mut state = case.state;
    let mut writes = Writes::default();
    let (mut rip, mut crash, mut fault) = (None, None, None);
    let (mut error_code, mut cr2) = (0, None);
    for word in text.split_whitespace() {
        if let Some(distance) = word.strip_prefix("rip+") {
            rip = Some(number(word, distance, 63)? as i64);
            continue;
        }
        if let Some(distance) = word.strip_prefix("rip-") {
            rip = Some(-(number(word, distance, 63)? as i64));
            continue;
        }
        if word == "truncated" {
            writes.truncated = true;
            continue;
        }
        let (key, value) = word.split_once('=').ok_or_else(|| ParseError::Word(word.into()))?;
        match key {
            "fault" => fault = Some(number(word, value, 8)? as u8),
            "code" => error_code = number(word, value, 32)? as u32,
            "cr2" => cr2 = Some(address(&case.window, word, value)?),
            "crashed" => crash = Some(parse_crash(word, value)?),
            _ if key.starts_with("mem+") => {
                let offset = number(word, &key[4..], 16)? as u16;
                let bytes: [u8; LINE] = bytes(word, value)?.try_into().map_err(|_| ParseError::Value(word.into()))?;
                writes.lines.push(Line { offset, bytes });
            }
            _ => register(&mut state, &case.window, word, key, value)?,
        }
    }
    let outcome = match (crash, fault, rip) {
        (Some(crash), _, _) => Outcome::Crashed(crash),
        (_, Some(vector), Some(rip_delta)) => Outcome::Fault(Fault { vector, error_code, cr2, rip_delta }),
        (_, None, Some(rip_delta)) => Outcome::Completed { rip_delta },
        _ => return Err(ParseError::NoOutcome),
    };
    Ok(CaseResult { outcome, state, writes })
}

fn parse_crash(word: &str, value: &str) -> Result<Crash, ParseError> {
    match value.split_once(':') {
        None if value == "hang" => Ok(Crash::Hang),
        Some(("signal", n)) => Ok(Crash::Signal(number(word, n, 31)? as i32)),
        Some(("exit", n)) => Ok(Crash::Exit(number(word, n, 31)? as i32)),
        _ => Err(ParseError::Value(word.into())),
    }
}

fn register(state: &mut CpuState, window: &Window, word: &str, key: &str, value: &str) -> Result<(), ParseError> {
    let indexed = |prefix: &str, limit: usize| {
        key.strip_prefix(prefix).and_then(|n| n.parse().ok()).filter(|&n: &usize| n < limit)
    };
    if let Some(n) = GPR.iter().position(|&name| name == key) {
        state.gpr[n] = address(window, word, value)?;
    } else if let Some(n) = indexed("ymm", 16) {
        let padded = padded(word, value, 64)?;
        for (lane, digits) in state.vec[n].iter_mut().rev().zip(padded.as_bytes().chunks(16)) {
            *lane = number(word, std::str::from_utf8(digits).unwrap_or_default(), 64)?;
        }
    } else if let Some(n) = indexed("st", 8) {
        let mut bytes = bytes(word, &padded(word, value, 20)?)?;
        bytes.reverse();
        state.x87.st[n] = bytes.try_into().map_err(|_| ParseError::Value(word.into()))?;
    } else {
        match key {
            "rflags" => state.rflags = number(word, value, 64)?,
            "mxcsr" => state.mxcsr = number(word, value, 32)? as u32,
            "fcw" => state.x87.fcw = number(word, value, 16)? as u16,
            "fsw" => state.x87.fsw = number(word, value, 16)? as u16,
            "ftw" => state.x87.ftw = number(word, value, 8)? as u8,
            _ => return Err(ParseError::Word(word.into())),
        }
    }
    Ok(())
}

fn protections(word: &str, value: &str) -> Result<[PageProtection; 3], ParseError> {
    let find = |name: &str| PROTECTION.iter().find(|(known, _)| *known == name).map(|&(_, protection)| protection);
    let found: Option<Vec<_>> = value.split(',').map(find).collect();
    found.and_then(|list| list.try_into().ok()).ok_or_else(|| ParseError::Value(word.into()))
}

fn number(word: &str, digits: &str, bits: u32) -> Result<u64, ParseError> {
    let wrong = || ParseError::Value(word.into());
    let value = u64::from_str_radix(digits, 16).map_err(|_| wrong())?;
    if bits < 64 && value >> bits != 0 { Err(wrong()) } else { Ok(value) }
}

/// A number, or `w+N`.
fn address(window: &Window, word: &str, value: &str) -> Result<u64, ParseError> {
    match value.strip_prefix("w+") {
        Some(offset) => Ok(window.base().wrapping_add(number(word, offset, 64)?)),
        None => number(word, value, 64),
    }
}

fn write_address(f: &mut fmt::Formatter<'_>, window: &Window, value: u64) -> fmt::Result {
    match value.wrapping_sub(window.base()) {
        // One page more: an access that runs off the end.
        offset @ 0..0x4000 => write!(f, "w+{offset:x}"),
        _ => write!(f, "{value:x}"),
    }
}

fn padded(word: &str, digits: &str, len: usize) -> Result<String, ParseError> {
    if digits.is_empty() || digits.len() > len || !digits.is_ascii() {
        return Err(ParseError::Value(word.into()));
    }
    Ok(format!("{digits:0>len$}"))
}

fn bytes(word: &str, digits: &str) -> Result<Vec<u8>, ParseError> {
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return Err(ParseError::Value(word.into()));
    }
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| number(word, std::str::from_utf8(pair).unwrap_or_default(), 8).map(|byte| byte as u8))
        .collect()
}

/// What of `new` differs from `old`, each with a space before it.
fn write_state(f: &mut fmt::Formatter<'_>, window: &Window, old: &CpuState, new: &CpuState) -> fmt::Result {
    for (n, name) in GPR.iter().enumerate() {
        if old.gpr[n] != new.gpr[n] {
            write!(f, " {name}=")?;
            write_address(f, window, new.gpr[n])?;
        }
    }
    for n in 0..16 {
        if old.vec[n] != new.vec[n] {
            let [a, b, c, d] = new.vec[n];
            write!(f, " ymm{n}={d:016x}{c:016x}{b:016x}{a:016x}")?;
        }
    }
    let words = [
        ("rflags", old.rflags, new.rflags),
        ("mxcsr", old.mxcsr as u64, new.mxcsr as u64),
        ("fcw", old.x87.fcw as u64, new.x87.fcw as u64),
        ("fsw", old.x87.fsw as u64, new.x87.fsw as u64),
        ("ftw", old.x87.ftw as u64, new.x87.ftw as u64),
    ];
    for (name, _, new) in words.into_iter().filter(|(_, old, new)| old != new) {
        write!(f, " {name}={new:x}")?;
    }
    for n in 0..8 {
        if old.x87.st[n] != new.x87.st[n] {
            let mut bytes = new.x87.st[n];
            bytes.reverse();
            write!(f, " st{n}=")?;
            write_bytes(f, &bytes)?;
        }
    }
    Ok(())
}

fn write_bytes(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for Case {
    /// The part of a line before the arrow.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.code.bytes() {
            write!(f, "{byte:02x} ")?;
        }
        write!(f, "|")?;
        if let Placement::PageEnd(n) = self.placement {
            write!(f, " end={n:x}")?;
        }
        if self.scope > self.code.scope() {
            write!(f, " scope={}", if self.scope == Scope::Full { "full" } else { "memory" })?;
        }
        if self.window.protections != Window::default().protections {
            let name =
                |protection| PROTECTION.iter().find(|(_, known)| *known == protection).map_or("", |&(name, _)| name);
            let [a, b, c] = self.window.protections.map(name);
            write!(f, " pages={a},{b},{c}")?;
        }
        write_state(f, &self.window, &CpuState::default(), &self.state.normalised())?;
        for patch in self.window.patches().iter().filter(|patch| !patch.bytes().is_empty()) {
            write!(f, " mem+{:x}=", patch.offset())?;
            write_bytes(f, patch.bytes())?;
        }
        Ok(())
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} =>", self.case)?;
        let rip = |f: &mut fmt::Formatter<'_>, delta: i64| {
            let sign = if delta < 0 { '-' } else { '+' };
            write!(f, " rip{sign}{:x}", delta.unsigned_abs())
        };
        match self.expected.outcome {
            Outcome::Completed { rip_delta } => rip(f, rip_delta)?,
            Outcome::Fault(fault) => {
                write!(f, " fault={:x}", fault.vector)?;
                if fault.error_code != 0 {
                    write!(f, " code={:x}", fault.error_code)?;
                }
                if let Some(cr2) = fault.cr2 {
                    write!(f, " cr2=")?;
                    write_address(f, &self.case.window, cr2)?;
                }
                rip(f, fault.rip_delta)?;
            }
            Outcome::Crashed(Crash::Hang) => write!(f, " crashed=hang")?,
            Outcome::Crashed(Crash::Signal(n)) => write!(f, " crashed=signal:{n:x}")?,
            Outcome::Crashed(Crash::Exit(n)) => write!(f, " crashed=exit:{n:x}")?,
        }
        write_state(f, &self.case.window, &self.case.state.normalised(), &self.expected.state)?;
        for line in &self.expected.writes.lines {
            write!(f, " mem+{:x}=", line.offset)?;
            write_bytes(f, &line.bytes)?;
        }
        if self.expected.writes.truncated {
            write!(f, " truncated")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_were() {
        let lines = [
            "48 01 d8 | rax=ffffffffffffffff rbx=1 => rip+3 rax=0 rflags=257",
            "48 89 01 | pages=rw,ro,none rcx=w+1000 => fault=e code=7 cr2=w+1000 rip+0",
            "90 | end=1 scope=full mxcsr=1fa0 st3=3fff8000000000000000 mem+1f8=0011 => crashed=signal:1f",
        ];
        for line in lines {
            assert_eq!(line.parse::<Record>().unwrap().to_string(), line);
        }
        let record: Record = "90 | ymm1=1 => rip-80 ymm2=20000000000000000".parse().unwrap();
        assert_eq!((record.case.state.vec[1], record.expected.state.vec[2]), ([1, 0, 0, 0], [0, 2, 0, 0]));
        assert_eq!(record.expected.outcome, Outcome::Completed { rip_delta: -0x80 });
    }

    #[test]
    fn errors_name_the_word() {
        let error = |line: &str| line.parse::<Record>().unwrap_err();
        assert_eq!(error("90 => rip+1"), ParseError::NoBar);
        assert_eq!(error("90 | rax=1"), ParseError::NoArrow);
        assert_eq!(error("90 | rax=g => rip+1"), ParseError::Value("rax=g".into()));
        assert_eq!(error("90 | rax => rip+1"), ParseError::Word("rax".into()));
        assert_eq!(error("90 | ymm16=1 => rip+1"), ParseError::Word("ymm16=1".into()));
        assert_eq!(error("90 | => rax=1"), ParseError::NoOutcome);
        assert_eq!(error("48 89 01 | pages=ro,ro,ro rcx=1c058000 => rip+3"), ParseError::Astray);
        assert!(matches!(error("0f 05 | => rip+1"), ParseError::Refused(_)));
        assert_eq!(error("9 | => rip+1"), ParseError::Value("9".into()));
        assert!(matches!(parse_file("# x\n\n90 |"), Err((3, ParseError::NoArrow))));
    }
}
