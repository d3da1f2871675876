//! The string and text instructions (Intel SDM volume 2, "Imm8 Control Byte Operation for PCMPESTRI / PCMPESTRM /
//! PCMPISTRI / PCMPISTRM"; volume 1 has the table of what an invalid element compares to).
//!
//! The door is [`StringMode::from_imm`] and the four functions with the names of the instructions. `a` is the first
//! operand (the set, the ranges or the needle), `b` the second, register or memory (the text that is searched).
//! Elements from a string's length on are invalid.

use super::compare::{pcmpeqb, pcmpeqw};
use super::mask::pmovmskb;
use super::pack::packsswb;
use super::{Lane, V128};

/// Element type, `imm8[1:0]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// 16 unsigned bytes.
    UnsignedBytes,
    /// 8 unsigned words.
    UnsignedWords,
    /// 16 signed bytes.
    SignedBytes,
    /// 8 signed words.
    SignedWords,
}

/// How elements are compared and the comparisons combined, `imm8[3:2]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aggregation {
    /// Which elements of `b` occur in `a`.
    EqualAny,
    /// Which elements of `b` lie in one of the ranges in `a`: pairs of first and last element.
    Ranges,
    /// At which positions both are equal, or both have ended.
    EqualEach,
    /// At which positions of `b` the string `a` begins; it may be cut off by the end of the register.
    EqualOrdered,
}

/// Which bits of the combined comparison are inverted, `imm8[5:4]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Polarity {
    /// None; both encodings with bit 4 clear.
    Positive,
    /// All.
    Negative,
    /// Those of valid elements of `b`.
    MaskedNegative,
}

/// The meaning of the immediate. Bit 7 is ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StringMode {
    /// Bits 1:0.
    pub format: Format,
    /// Bits 3:2.
    pub aggregation: Aggregation,
    /// Bits 5:4.
    pub polarity: Polarity,
    /// Bit 6: the index of the most significant set bit, or a mask of whole elements.
    pub select: bool,
}

impl StringMode {
    /// Decodes `imm8`. Every value is valid.
    #[inline]
    pub const fn from_imm(imm: u8) -> StringMode {
        StringMode {
            format: match imm & 3 {
                0 => Format::UnsignedBytes,
                1 => Format::UnsignedWords,
                2 => Format::SignedBytes,
                _ => Format::SignedWords,
            },
            aggregation: match imm >> 2 & 3 {
                0 => Aggregation::EqualAny,
                1 => Aggregation::Ranges,
                2 => Aggregation::EqualEach,
                _ => Aggregation::EqualOrdered,
            },
            polarity: match imm >> 4 & 3 {
                1 => Polarity::Negative,
                3 => Polarity::MaskedNegative,
                _ => Polarity::Positive,
            },
            select: imm & 0x40 != 0,
        }
    }
}

impl Format {
    const fn is_words(self) -> bool {
        matches!(self, Format::UnsignedWords | Format::SignedWords)
    }

    /// The number of elements.
    const fn elements(self) -> u32 {
        if self.is_words() { 8 } else { 16 }
    }

    /// One bit for each element.
    const fn all(self) -> u32 {
        (1 << self.elements()) - 1
    }

    /// One bit for each element of a vector whose elements are all ones or all zeros.
    // Kept apart, as the loops over lanes below, so that each is compiled for one width of lanes: inlined where
    // several widths meet, the vectors would be taken apart into single elements.
    #[inline(never)]
    fn bits_of(self, filled: V128) -> u32 {
        if self.is_words() { u32::from(pmovmskb(packsswb(filled, V128::ZERO))) } else { u32::from(pmovmskb(filled)) }
    }

    /// One bit for each element that is equal in both vectors.
    #[inline]
    fn equal_bits(self, v: V128, other: V128) -> u32 {
        self.bits_of(if self.is_words() { pcmpeqw(v, other) } else { pcmpeqb(v, other) })
    }

    /// The number of elements before the first that is zero.
    #[inline]
    fn implicit_length(self, v: V128) -> u32 {
        self.equal_bits(v, V128::ZERO).trailing_zeros().min(self.elements())
    }

    /// The absolute value of a length register, saturated to the number of elements.
    #[inline]
    fn explicit_length(self, register: i64) -> u32 {
        register.unsigned_abs().min(self.elements().into()) as u32
    }
}

/// What the string instructions write to RFLAGS; AF and PF they clear.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StringFlags {
    /// Some bit of the result is set.
    pub cf: bool,
    /// `b` ends within the register.
    pub zf: bool,
    /// `a` ends within the register.
    pub sf: bool,
    /// Bit 0 of the result is set.
    pub of: bool,
}

/// A string with its length in elements.
#[derive(Clone, Copy)]
struct Text {
    v: V128,
    length: u32,
}

impl Text {
    /// One bit for each valid element.
    const fn valid(self) -> u32 {
        (1 << self.length) - 1
    }
}

/// PCMPESTRI: the index for ECX, and the flags. The lengths are EAX and EDX sign-extended, or RAX and RDX with
/// REX.W; their sign is ignored.
#[inline]
pub fn pcmpestri(a: V128, a_length: i64, b: V128, b_length: i64, mode: StringMode) -> (u32, StringFlags) {
    let (result, flags) = compare(explicit(a, a_length, mode), explicit(b, b_length, mode), mode);
    (index(result, mode), flags)
}

/// PCMPESTRM: the mask for XMM0, and the flags. The lengths are as for [`pcmpestri`].
#[inline]
pub fn pcmpestrm(a: V128, a_length: i64, b: V128, b_length: i64, mode: StringMode) -> (V128, StringFlags) {
    let (result, flags) = compare(explicit(a, a_length, mode), explicit(b, b_length, mode), mode);
    (element_mask(result, mode), flags)
}

/// PCMPISTRI: the index for ECX, and the flags. The strings end before their first zero element.
#[inline]
pub fn pcmpistri(a: V128, b: V128, mode: StringMode) -> (u32, StringFlags) {
    let (result, flags) = compare(implicit(a, mode), implicit(b, mode), mode);
    (index(result, mode), flags)
}

/// PCMPISTRM: the mask for XMM0, and the flags. The strings end before their first zero element.
#[inline]
pub fn pcmpistrm(a: V128, b: V128, mode: StringMode) -> (V128, StringFlags) {
    let (result, flags) = compare(implicit(a, mode), implicit(b, mode), mode);
    (element_mask(result, mode), flags)
}

#[inline]
fn explicit(v: V128, register: i64, mode: StringMode) -> Text {
    Text { v, length: mode.format.explicit_length(register) }
}

#[inline]
fn implicit(v: V128, mode: StringMode) -> Text {
    Text { v, length: mode.format.implicit_length(v) }
}

/// IntRes2 of the manual, and the flags that follow from it.
fn compare(a: Text, b: Text, mode: StringMode) -> (u32, StringFlags) {
    let format = mode.format;
    let aggregated = match mode.aggregation {
        Aggregation::EqualAny => equal_any(a, b, format),
        Aggregation::Ranges => ranges(a, b, format),
        Aggregation::EqualEach => equal_each(a, b, format),
        Aggregation::EqualOrdered => equal_ordered(a, b, format),
    };
    let result = match mode.polarity {
        Polarity::Positive => aggregated,
        Polarity::Negative => aggregated ^ format.all(),
        Polarity::MaskedNegative => aggregated ^ b.valid(),
    };
    let flags = StringFlags {
        cf: result != 0,
        zf: b.length < format.elements(),
        sf: a.length < format.elements(),
        of: result & 1 != 0,
    };
    (result, flags)
}

fn equal_any(a: Text, b: Text, format: Format) -> u32 {
    let found = if format.is_words() { any_equal::<u16>(a, b.v) } else { any_equal::<u8>(a, b.v) };
    format.bits_of(found) & b.valid()
}

/// All ones in the elements of `text` that are one of the valid elements of `set`.
#[inline(never)]
fn any_equal<T: Lane + PartialEq + Ones>(set: Text, text: V128) -> V128 {
    T::split(set.v)
        .as_ref()
        .iter()
        .take(set.length as usize)
        .fold(V128::ZERO, |found, wanted| T::zip(found, text, |found, x| if x == *wanted { T::ONES } else { found }))
}

fn ranges(a: Text, b: Text, format: Format) -> u32 {
    let found = match format {
        Format::UnsignedBytes => any_within::<u8>(a, b.v),
        Format::UnsignedWords => any_within::<u16>(a, b.v),
        Format::SignedBytes => any_within::<i8>(a, b.v),
        Format::SignedWords => any_within::<i16>(a, b.v),
    };
    format.bits_of(found) & b.valid()
}

/// All ones in the elements of `text` that lie in one of the valid ranges. A range whose last element is invalid
/// matches nothing.
#[inline(never)]
fn any_within<T: Lane + Ord + Ones>(ranges: Text, text: V128) -> V128 {
    let (lanes, mut found) = (T::split(ranges.v), V128::ZERO);
    for range in lanes.as_ref().chunks_exact(2).take(ranges.length as usize / 2) {
        found = T::zip(found, text, |found, x| if range[0] <= x && x <= range[1] { T::ONES } else { found });
    }
    found
}

fn equal_each(a: Text, b: Text, format: Format) -> u32 {
    let equal = format.equal_bits(a.v, b.v);
    (equal & a.valid() & b.valid()) | (!a.valid() & !b.valid() & format.all())
}

fn equal_ordered(a: Text, b: Text, format: Format) -> u32 {
    (0..a.length as usize).fold(format.all(), |found, i| {
        let equal = if format.is_words() {
            equal_to::<u16>(b.v, <u16 as Lane>::split(a.v)[i & 7])
        } else {
            equal_to::<u8>(b.v, a.v.as_bytes()[i & 15])
        };
        // What lies beyond the register is not compared, and so does not refute a match.
        let equal = (format.bits_of(equal) & b.valid()) | !format.all();
        found & (equal >> i)
    })
}

/// All ones in the elements of `text` that are `wanted`.
#[inline(never)]
fn equal_to<T: Lane + PartialEq + Ones>(text: V128, wanted: T) -> V128 {
    T::map(text, |x| if x == wanted { T::ONES } else { T::ZERO })
}

/// The two values of an element of a mask.
trait Ones {
    const ZERO: Self;
    const ONES: Self;
}

macro_rules! ones {
    ($($t:ty),*) => {$(
        impl Ones for $t {
            const ZERO: $t = 0;
            const ONES: $t = !0;
        }
    )*};
}

ones!(u8, i8, u16, i16);

fn index(result: u32, mode: StringMode) -> u32 {
    match (result, mode.select) {
        (0, _) => mode.format.elements(),
        (_, false) => result.trailing_zeros(),
        (_, true) => 31 - result.leading_zeros(),
    }
}

fn element_mask(result: u32, mode: StringMode) -> V128 {
    if !mode.select {
        return V128::from_low(result.into());
    }
    if mode.format.is_words() {
        <u16 as Lane>::build(|i| if result >> i & 1 != 0 { !0 } else { 0 })
    } else {
        <u8 as Lane>::build(|i| if result >> i & 1 != 0 { !0 } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: &str) -> V128 {
        let mut bytes = [0; 16];
        bytes[..s.len()].copy_from_slice(s.as_bytes());
        V128::from_bytes(bytes)
    }

    fn mode(imm: u8) -> StringMode {
        StringMode::from_imm(imm)
    }

    #[test]
    fn equal_any_is_strpbrk() {
        let (index, flags) = pcmpistri(text("aeiou"), text("xyz hello"), mode(0));
        assert_eq!(index, 5);
        assert_eq!(flags, StringFlags { cf: true, zf: true, sf: true, of: false });
        assert_eq!(pcmpistri(text("aeiou"), text("xyz hello"), mode(0x40)).0, 8);
        assert_eq!(pcmpistrm(text("aeiou"), text("xyz hello"), mode(0)).0, V128::from_low(0b1_0010_0000));
        assert_eq!(pcmpistri(text("q"), text("xyz"), mode(0)).0, 16);
    }

    #[test]
    fn ranges_compare_by_sign() {
        assert_eq!(pcmpistri(text("azAZ"), text("0123xY9"), mode(0b0100)).0, 4);
        // The odd element out is no range.
        assert_eq!(pcmpistri(text("azA"), text("B1c"), mode(0b0100)).0, 2);
        let (range, value) = (V128::from_low(0x7f_80), V128::from_low(0xff));
        assert_eq!(pcmpestri(range, 2, value, 1, mode(0b0100)).0, 16);
        assert_eq!(pcmpestri(range, 2, value, 1, mode(0b0110)).0, 0);
        let (range, value) = (V128::from_low(0x7fff_8000), V128::from_low(0xffff));
        assert_eq!(pcmpestri(range, 2, value, 1, mode(0b0101)).0, 8);
        assert_eq!(pcmpestri(range, 2, value, 1, mode(0b0111)).0, 0);
    }

    #[test]
    fn equal_each_is_strcmp() {
        // Negative masked: the first difference within `b`.
        let (index, flags) = pcmpistri(text("hello"), text("help"), mode(0b0011_1000));
        assert_eq!((index, flags.cf), (3, true));
        let (index, flags) = pcmpistri(text("same"), text("same"), mode(0b0001_1000));
        assert_eq!((index, flags.cf), (16, false));
        assert_eq!(pcmpistrm(text("ab"), text("ax"), mode(0b1000)).0, V128::from_low(0xfffd));
    }

    #[test]
    fn equal_ordered_is_strstr() {
        assert_eq!(pcmpistri(text("lo"), text("yellow loft"), mode(0b1100)).0, 3);
        assert_eq!(pcmpistri(text("lo"), text("yellow loft"), mode(0b100_1100)).0, 7);
        // At the end of the register a needle may be cut off; at the end of the text it may not.
        assert_eq!(pcmpistri(text("long"), text("012345678901234l"), mode(0b1100)).0, 15);
        assert_eq!(pcmpistri(text("long"), text("01234567890123l"), mode(0b1100)).0, 16);
        // An empty needle is everywhere.
        assert_eq!(pcmpistrm(V128::ZERO, text("ab"), mode(0b1100)).0, V128::from_low(0xffff));
    }

    #[test]
    fn lengths_saturate_and_lose_their_sign() {
        let a = text("abcdefghijklmnop");
        let flags = pcmpestri(a, i64::MIN, a, -3, mode(0b1000)).1;
        assert_eq!(flags, StringFlags { cf: true, zf: true, sf: false, of: true });
        assert!(pcmpestri(a, -3, a, 3, mode(0b1001)).1.sf);
        let (mask, flags) = pcmpestrm(a, 8, a, 2, mode(0b1001));
        assert_eq!((mask, flags.sf, flags.zf), (V128::from_low(0b11), false, true));
    }

    #[test]
    fn polarities() {
        let (a, b) = (text("a"), text("aba"));
        let result = |imm| pcmpistrm(a, b, mode(imm)).0;
        assert_eq!(result(0x00), V128::from_low(0b101));
        assert_eq!(result(0x20), V128::from_low(0b101));
        assert_eq!(result(0x10), V128::from_low(0xfffa));
        assert_eq!(result(0x30), V128::from_low(0b010));
    }

    #[test]
    fn expanded_masks() {
        assert_eq!(pcmpistrm(text("a"), text("ba"), mode(0x40)).0, V128::from_low(0xff00));
        let words = V128::from_low(0x0062_0061);
        assert_eq!(pcmpistrm(V128::from_low(0x62), words, mode(0x41)).0, V128::from_low(0xffff_0000));
        assert_eq!(pcmpistri(V128::from_low(0x63), words, mode(0x01)).0, 8);
    }
}
