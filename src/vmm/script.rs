//! The language of scripts: what the VMM is to do, and when. docs/vmm-script.md is its manual.
//!
//! A script is TOML. [`Script::parse`] is the door; a mistake is answered with the place in the text, what is there and
//! what would have been right. Numbers of instructions are plain integers; ranges are text, `START+LENGTH`, in guest
//! physical addresses, or in an inode as `gmemN:START+LENGTH`.

use core::fmt;
use core::str::FromStr;

use emu_core::{Gpa, PageSize};
use hypervisor::{GmemId, Shareability, SlotId};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use thiserror::Error;

use super::hypercall::GpaRange;
use super::random::RandomConfig;

/// A whole script.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// What is to be done when; at one moment in this order.
    #[serde(default, rename = "action")]
    pub actions: Vec<Entry>,
    /// What is to be done at random.
    pub random: Option<RandomConfig>,
}

/// A text that is no script.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ScriptError(String);

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// [`ScriptError`], in several lines: where, what is there, what would have been right.
    pub fn parse(text: &str) -> Result<Script, ScriptError> {
        toml::from_str(text).map_err(|error| ScriptError(error.to_string().trim_end().to_owned()))
    }
}

/// One `[[action]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// When.
    pub when: When,
    /// What.
    pub what: What,
}

/// When something is done. Instructions are those of all processors together; an action comes between two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WrittenWhen")]
pub enum When {
    /// Before the machine executes this instruction.
    Instructions(u64),
    /// Again and again.
    Every {
        /// The distance, at least 1.
        every: u64,
        /// The first time.
        first: u64,
        /// How often; `None` is for ever.
        times: Option<u64>,
    },
    /// When something has happened for the `count`-th time.
    Event {
        /// What.
        event: Happening,
        /// How often, at least 1.
        count: u64,
    },
}

/// `when` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenWhen {
    instructions: Option<u64>,
    every: Option<u64>,
    from: Option<u64>,
    times: Option<u64>,
    event: Option<Happening>,
    count: Option<u64>,
}

impl TryFrom<WrittenWhen> for When {
    type Error = &'static str;
    fn try_from(written: WrittenWhen) -> Result<When, &'static str> {
        match written {
            WrittenWhen { every: Some(0), .. }
            | WrittenWhen { count: Some(0), .. }
            | WrittenWhen { times: Some(0), .. } => Err("`every`, `times` and `count` are at least 1"),
            WrittenWhen { instructions: Some(at), every: None, from: None, times: None, event: None, count: None } => {
                Ok(When::Instructions(at))
            }
            WrittenWhen { instructions: None, every: Some(every), from, times, event: None, count: None } => {
                Ok(When::Every { every, first: from.unwrap_or(every), times })
            }
            WrittenWhen { instructions: None, every: None, from: None, times: None, event: Some(event), count } => {
                Ok(When::Event { event, count: count.unwrap_or(1) })
            }
            _ => Err(
                "`when` is { instructions = N }, { every = N, from = N, times = N } or { event = \"NAME\", count = N }",
            ),
        }
    }
}

/// What happens to the machine that a script can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Happening {
    /// A nested fault was answered.
    PageFault,
    /// A memory fault reached the VMM.
    MemoryFault,
    /// The guest asked for a hypercall.
    Hypercall,
    /// The guest converted memory.
    Conversion,
    /// A processor halted.
    Halt,
}

impl Happening {
    /// Every one of them.
    pub const ALL: [Happening; 5] =
        [Happening::PageFault, Happening::MemoryFault, Happening::Hypercall, Happening::Conversion, Happening::Halt];
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A hole: the guest reads zeroes there.
    Punch(Range),
    /// Memory is allocated ahead of use.
    Allocate(Range),
    /// Memory becomes private or shared.
    Convert(Convert),
    /// The memory fails: whoever uses it next is told so.
    Poison(Range),
    /// A balloon: contents are saved, the range is punched, and filled as it was before the guest can look.
    Balloon(Range),
    /// The range becomes private, then shared, then what it was.
    Toggle(Range),
    /// Nested-table entries go; they come back by faults.
    Zap(GpaText),
    /// Every nested-table entry goes.
    ZapAll(Nothing),
    /// The same by giving the root up: processors load a new one.
    ZapAllFast(Nothing),
    /// Accessed flags are read and cleared.
    Age(GpaText),
    /// The host takes a reference to each page, as for DMA: they cannot become private.
    Pin(Range),
    /// The references of `pin` go back.
    Unpin(Range),
    /// A memslot is deleted.
    Unbind(SlotText),
    /// A memslot that was deleted by `unbind` comes back as it was.
    Bind(SlotText),
    /// A memslot is deleted and comes back at once.
    Replug(SlotText),
    /// A migration begins: writes to RAM are logged, and an image is taken.
    LogStart(Nothing),
    /// What was written since the last round is copied.
    LogRound(Nothing),
    /// The last round; the image is compared with RAM.
    LogStop(Nothing),
    /// A memslot moves to another guest physical address.
    MoveSlot(MoveSlot),
}

/// `{}`: an action that needs no more words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// `convert`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Convert {
    /// Which pages.
    pub range: Range,
    /// To what.
    #[serde(deserialize_with = "shareability")]
    pub to: Shareability,
}

fn shareability<'de, D: Deserializer<'de>>(from: D) -> Result<Shareability, D::Error> {
    match String::deserialize(from)?.as_str() {
        "private" => Ok(Shareability::PRIVATE),
        "shared" => Ok(Shareability::SHARED),
        other => Err(D::Error::custom(format!("memory is \"private\" or \"shared\", not \"{other}\""))),
    }
}

/// `move-slot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveSlot {
    /// Which.
    pub slot: SlotText,
    /// Its new first address.
    pub to: Address,
}

/// The number of a memslot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SlotText(u16);

impl From<SlotId> for SlotText {
    fn from(id: SlotId) -> SlotText {
        SlotText(id.0)
    }
}

impl SlotText {
    /// The slot.
    pub const fn id(self) -> SlotId {
        SlotId(self.0)
    }
}

/// What is wrong with a number or a range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TextError {
    /// Not an amount.
    #[error("\"{0}\" is not an amount of bytes: amounts are like 4096, 0x1000, 4K, 2M or 1G")]
    Amount(String),
    /// Not a range.
    #[error("\"{0}\" is not a range: ranges are like 64M+2M, or gmem0:64M+2M in an inode")]
    Range(String),
    /// Not whole pages.
    #[error("\"{0}\" is not a positive number of whole 4 KiB pages")]
    Pages(String),
    /// A range in an inode where only guest physical addresses make sense.
    #[error("\"{0}\" is in an inode, but nested tables are by guest physical address, like 64M+2M")]
    NotGpa(String),
}

/// Bytes: decimal or with 0x, or with a binary suffix.
pub fn parse_amount(text: &str) -> Result<u64, TextError> {
    let refused = || TextError::Amount(text.to_owned());
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).map_err(|_| refused());
    }
    let (number, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        Some(b'T' | b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let value = if digits { number.parse::<u64>().ok() } else { None };
    value.and_then(|n| n.checked_mul(1 << shift)).ok_or_else(refused)
}

/// Where something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// In guest physical memory.
    Gpa(GpaRange),
    /// In an inode.
    Inode {
        /// Which.
        gmem: GmemId,
        /// First byte, a multiple of 4 KiB.
        offset_bytes: u64,
        /// Length, a positive multiple of 4 KiB.
        len_bytes: u64,
    },
}

impl FromStr for Range {
    type Err = TextError;
    fn from_str(text: &str) -> Result<Range, TextError> {
        let not_a_range = || TextError::Range(text.to_owned());
        let (gmem, place) = match text.strip_prefix("gmem").map(|rest| rest.split_once(':').ok_or_else(not_a_range)) {
            None => (None, text),
            Some(split) => {
                let (number, place) = split?;
                (Some(GmemId(number.parse().map_err(|_| not_a_range())?)), place)
            }
        };
        let (start, len) = place.split_once('+').ok_or_else(not_a_range)?;
        let (start, len_bytes) = (parse_amount(start)?, parse_amount(len)?);
        let range = GpaRange::new(Gpa::new(start), len_bytes).ok_or_else(|| TextError::Pages(text.to_owned()))?;
        Ok(match gmem {
            None => Range::Gpa(range),
            Some(gmem) => Range::Inode { gmem, offset_bytes: start, len_bytes },
        })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Range::Gpa(range) => write!(f, "{:#x}+{:#x}", range.gpa.raw(), range.len_bytes),
            Range::Inode { gmem, offset_bytes, len_bytes } => {
                write!(f, "gmem{}:{offset_bytes:#x}+{len_bytes:#x}", gmem.0)
            }
        }
    }
}

/// A range that must be in guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpaText(pub GpaRange);

impl FromStr for GpaText {
    type Err = TextError;
    fn from_str(text: &str) -> Result<GpaText, TextError> {
        match text.parse()? {
            Range::Gpa(range) => Ok(GpaText(range)),
            Range::Inode { .. } => Err(TextError::NotGpa(text.to_owned())),
        }
    }
}

/// A guest physical address at the beginning of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub Gpa);

impl FromStr for Address {
    type Err = TextError;
    fn from_str(text: &str) -> Result<Address, TextError> {
        let gpa = Gpa::new(parse_amount(text)?);
        if gpa.is_aligned(PageSize::Size4K) { Ok(Address(gpa)) } else { Err(TextError::Pages(text.to_owned())) }
    }
}

/// A length in whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length(pub u64);

impl FromStr for Length {
    type Err = TextError;
    fn from_str(text: &str) -> Result<Length, TextError> {
        let bytes = parse_amount(text)?;
        let whole = bytes != 0 && bytes.is_multiple_of(PageSize::Size4K.bytes());
        if whole { Ok(Length(bytes)) } else { Err(TextError::Pages(text.to_owned())) }
    }
}

macro_rules! read_from_text {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(D::Error::custom)
            }
        }
    )*};
}
read_from_text!(Range, GpaText, Address, Length);

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gpa = |range: &GpaText| Range::Gpa(range.0);
        match self {
            What::Punch(range) => write!(f, "punch {range}"),
            What::Allocate(range) => write!(f, "allocate {range}"),
            What::Convert(Convert { range, to }) => {
                write!(f, "convert {range} to {}", if to.is_private() { "private" } else { "shared" })
            }
            What::Poison(range) => write!(f, "poison {range}"),
            What::Balloon(range) => write!(f, "balloon {range}"),
            What::Toggle(range) => write!(f, "toggle {range}"),
            What::Zap(range) => write!(f, "zap {}", gpa(range)),
            What::ZapAll(Nothing {}) => write!(f, "zap-all"),
            What::ZapAllFast(Nothing {}) => write!(f, "zap-all-fast"),
            What::Age(range) => write!(f, "age {}", gpa(range)),
            What::Pin(range) => write!(f, "pin {range}"),
            What::Unpin(range) => write!(f, "unpin {range}"),
            What::Unbind(slot) => write!(f, "unbind {}", slot.0),
            What::Bind(slot) => write!(f, "bind {}", slot.0),
            What::Replug(slot) => write!(f, "replug {}", slot.0),
            What::LogStart(Nothing {}) => write!(f, "log-start"),
            What::LogRound(Nothing {}) => write!(f, "log-round"),
            What::LogStop(Nothing {}) => write!(f, "log-stop"),
            What::MoveSlot(MoveSlot { slot, to }) => write!(f, "move-slot {} to {:#x}", slot.0, to.0.raw()),
        }
    }
}

#[cfg(test)]
mod tests;
