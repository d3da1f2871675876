//! What each integer, shuffle, string and crypto vector instruction of x86-64-v3 computes, as pure functions
//! on values: Intel SDM volume 2 and AMD APM volumes 3 (BMI2, CRC32, SSE4A moves) and 4, "Operation".
//!
//! Floating-point arithmetic is not here; the floating-point *moves* (SHUFPS, BLENDVPD, ...) are, since they
//! only carry bits. Operand fetch, alignment checks, zeroing above a VEX destination and RFLAGS belong to the
//! instruction handlers.
//!
//! # Conventions
//!
//! - A function bears the legacy mnemonic in lower case. `a` is the destination of the legacy form and the first
//!   source of the VEX form, `b` the register or memory source: `psubb(a, b)` is `a - b`.
//! - Functions work on one [`V128`]. A register file should store `V128` (or [`V256`]) itself: its bytes are in
//!   memory order, and only in that form does the compiler turn the lane loops into host vector code. Arrays of
//!   `u64` or `u128` would be taken apart lane by lane, as are values that go through functions of different lane
//!   widths without reaching memory in between.
//! - AVX2 without lane crossing is one function per lane over the same function. Where the immediate has bits for the
//!   upper lane, the function says by how much to shift it for that lane. Lane-crossing forms take [`V256`] and
//!   bear their VEX name.
//! - MMX is the same function: the operands zero-extended, the low half of the result taken. That is exact for every
//!   function whose low 64 result bits depend only on the low 64 bits of its operands, which is all of them but
//!   those with a form of their own: [`horizontal`] (`phaddw_mmx`, `phaddd_mmx`, `phaddsw_mmx`, `phsubw_mmx`,
//!   `phsubd_mmx`, `phsubsw_mmx`), [`pack`] (`packsswb_mmx`, `packssdw_mmx`, `packuswb_mmx`, `punpckhbw_mmx`,
//!   `punpckhwd_mmx`, `punpckhdq_mmx`) and [`shuffle`] (`pshufb_mmx`, `pshufw`, `palignr_mmx`, `pinsrw_mmx`,
//!   `pextrw_mmx`). [`mask::pmovmskb`] needs none: zero extension leaves its upper bits clear. Shift counts of
//!   MMX are the whole 64-bit register, as those of SSE are the low 64 bits.
//!
//! | module | subject |
//! | --- | --- |
//! | [`arith`] | lane-wise addition, multiplication, minimum, maximum, absolute value, sign |
//! | [`horizontal`] | sums across lanes: PHADD, PSADBW, MPSADBW, PHMINPOSUW |
//! | [`compare`] | PCMPEQ, PCMPGT, PTEST, VTESTPS |
//! | [`logic`] | PAND and its kin |
//! | [`shift`] | shifts by one count, by bytes, by a count for each lane |
//! | [`shuffle`], [`permute`] | shuffles within a lane, insertion and extraction; lane-crossing permutes |
//! | [`pack`], [`extend`] | saturating packs, unpacks; PMOVSX and PMOVZX |
//! | [`blend`], [`mask`], [`gather`] | blends; sign masks and element masks; the progress of a gather |
//! | [`string`] | PCMPESTRI and its kin |
//! | [`aes`], [`sha`], [`clmul`] | AES-NI, SHA extensions, PCLMULQDQ |
//! | [`bits`] | CRC32, PDEP, PEXT |

pub mod aes;
pub mod arith;
pub mod bits;
pub mod blend;
pub mod clmul;
pub mod compare;
pub mod extend;
pub mod gather;
pub mod horizontal;
mod lanes;
pub mod logic;
pub mod mask;
pub mod pack;
pub mod permute;
pub mod sha;
pub mod shift;
pub mod shuffle;
pub mod string;

pub use lanes::{Lane, V128, V256};
#[cfg(test)]
use lanes::{per_lane, per_mmx};
