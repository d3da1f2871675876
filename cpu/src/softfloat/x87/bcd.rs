//! Packed decimal: FBLD and FBSTP.
//!
//! Models Intel SDM vol. 1, 4.7 "BCD and Packed BCD Integers" and the tables of FBLD and FBSTP in vol. 2.

use super::super::convert;
use super::super::env::{Env, Flags};
use super::super::format::{F80, Format, Unpacked};

/// The packed BCD indefinite.
const INDEFINITE: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];

/// The least magnitude with more than 18 digits.
const LIMIT: u64 = 1_000_000_000_000_000_000;

/// FBLD: the value of 18 decimal digits, low byte first, and a sign in bit 79. Digits above nine, which the manual leaves
/// undefined, count with their value.
pub fn fbld(bytes: [u8; 10]) -> F80 {
    let [digits @ .., sign] = bytes;
    let magnitude = digits.iter().rev().fold(0u64, |value, byte| {
        // Eighteen digits of fifteen stay below 2^64.
        value * 100 + u64::from(byte >> 4) * 10 + u64::from(byte & 15)
    });
    let value = Unpacked::integer(sign >> 7 != 0, magnitude);
    if magnitude == 0 {
        return F80::zero(value.negative);
    }
    F80::pack(value.negative, value.exponent + F80::BIAS, value.significand)
}

/// FBSTP: rounds to an integer of at most 18 digits. Everything else gives the BCD indefinite and IE. Denormals raise no
/// DE.
pub fn fbstp(a: F80, env: &mut Env) -> [u8; 10] {
    let mut probe = *env;
    probe.flags = Flags::empty();
    let value = convert::to_signed::<F80>(a, convert::IntWidth::Bits64, env.rounding, &mut probe);
    if probe.flags.contains(Flags::IE) || value.unsigned_abs() >= LIMIT {
        env.raise(Flags::IE);
        return INDEFINITE;
    }
    env.raise(probe.flags);
    let mut rest = value.unsigned_abs();
    let mut bytes = [0; 10];
    for byte in &mut bytes[..9] {
        let pair = (rest % 100) as u8;
        *byte = ((pair / 10) << 4) | (pair % 10);
        rest /= 100;
    }
    bytes[9] = u8::from(a.is_negative()) << 7;
    bytes
}
