//! AES-NI (Intel SDM volume 2, AESENC to AESKEYGENASSIST; FIPS 197 for the transformations).
//!
//! The state is the 128-bit value with byte `4c + r` in row `r`, column `c`. The tables follow from the arithmetic of
//! the field at compile time. AVX2 has only the 128-bit forms.

use super::{Lane, V128};

/// The product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
const fn multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut product) = (a, b, 0);
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = (a << 1) ^ if a & 0x80 != 0 { 0x1b } else { 0 };
        b >>= 1;
    }
    product
}

/// SubBytes of one byte: the affine map of the inverse.
const fn substitute(byte: u8) -> u8 {
    // The multiplicative group has 255 elements, so the inverse is the 254th power; that of 0 is 0.
    let (mut inverse, mut power, mut exponent) = (1, byte, 254);
    while exponent != 0 {
        if exponent & 1 != 0 {
            inverse = multiply(inverse, power);
        }
        power = multiply(power, power);
        exponent >>= 1;
    }
    inverse ^ inverse.rotate_left(1) ^ inverse.rotate_left(2) ^ inverse.rotate_left(3) ^ inverse.rotate_left(4) ^ 0x63
}

const SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = substitute(i as u8);
        i += 1;
    }
    table
};

const INVERSE_SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[SBOX[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// For each byte, what it adds to its column in row 0 after `sbox` and a mixing with this first column of the
/// matrix. For another row the entry is rotated.
const fn mixing_table(sbox: &[u8; 256], first_column: [u8; 4]) -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let byte = sbox[i];
        table[i] = u32::from_le_bytes([
            multiply(byte, first_column[0]),
            multiply(byte, first_column[1]),
            multiply(byte, first_column[2]),
            multiply(byte, first_column[3]),
        ]);
        i += 1;
    }
    table
}

/// SubBytes and MixColumns.
static ENCRYPT: [u32; 256] = mixing_table(&SBOX, [2, 1, 1, 3]);
/// InvSubBytes and InvMixColumns.
static DECRYPT: [u32; 256] = mixing_table(&INVERSE_SBOX, [14, 9, 13, 11]);
static SUBSTITUTE: [u8; 256] = SBOX;
static INVERSE_SUBSTITUTE: [u8; 256] = INVERSE_SBOX;

/// The column that results of the bytes of its four rows.
#[inline]
fn mix(table: &[u32; 256], rows: [u8; 4]) -> u32 {
    table[usize::from(rows[0])]
        ^ table[usize::from(rows[1])].rotate_left(8)
        ^ table[usize::from(rows[2])].rotate_left(16)
        ^ table[usize::from(rows[3])].rotate_left(24)
}

/// The four bytes that ShiftRows moves to column `c`.
#[inline]
fn shifted(state: [u8; 16], c: usize) -> [u8; 4] {
    [state[4 * c], state[(4 * c + 5) % 16], state[(4 * c + 10) % 16], state[(4 * c + 15) % 16]]
}

/// The four bytes that InvShiftRows moves to column `c`.
#[inline]
fn unshifted(state: [u8; 16], c: usize) -> [u8; 4] {
    [state[4 * c], state[(4 * c + 13) % 16], state[(4 * c + 10) % 16], state[(4 * c + 7) % 16]]
}

/// AESENC: one round of the cipher with round key `b`.
#[inline]
pub fn aesenc(a: V128, b: V128) -> V128 {
    let state = a.to_bytes();
    <u32 as Lane>::build(|c| mix(&ENCRYPT, shifted(state, c))) ^ b
}

/// AESENCLAST: the last round of the cipher, without MixColumns.
#[inline]
pub fn aesenclast(a: V128, b: V128) -> V128 {
    let state = a.to_bytes();
    let column = |c| shifted(state, c).map(|byte| SUBSTITUTE[usize::from(byte)]);
    <u32 as Lane>::build(|c| u32::from_le_bytes(column(c))) ^ b
}

/// AESDEC: one round of the equivalent inverse cipher with round key `b`.
#[inline]
pub fn aesdec(a: V128, b: V128) -> V128 {
    let state = a.to_bytes();
    <u32 as Lane>::build(|c| mix(&DECRYPT, unshifted(state, c))) ^ b
}

/// AESDECLAST: the last round of the equivalent inverse cipher, without InvMixColumns.
#[inline]
pub fn aesdeclast(a: V128, b: V128) -> V128 {
    let state = a.to_bytes();
    let column = |c| unshifted(state, c).map(|byte| INVERSE_SUBSTITUTE[usize::from(byte)]);
    <u32 as Lane>::build(|c| u32::from_le_bytes(column(c))) ^ b
}

/// AESIMC: InvMixColumns of a round key.
#[inline]
pub fn aesimc(a: V128) -> V128 {
    // The table substitutes inversely first; substituting before undoes that.
    <u32 as Lane>::map(a, |column| mix(&DECRYPT, column.to_le_bytes().map(|byte| SUBSTITUTE[usize::from(byte)])))
}

/// AESKEYGENASSIST: SubWord, and RotWord xor `round_constant` of it, of doublewords 1 and 3.
#[inline]
pub fn aeskeygenassist(a: V128, round_constant: u8) -> V128 {
    let words = <u32 as Lane>::split(a);
    let substitute_word = |word: u32| u32::from_le_bytes(word.to_le_bytes().map(|byte| SUBSTITUTE[usize::from(byte)]));
    let (x1, x3) = (substitute_word(words[1]), substitute_word(words[3]));
    let constant = u32::from(round_constant);
    <u32 as Lane>::join([x1, x1.rotate_right(8) ^ constant, x3, x3.rotate_right(8) ^ constant])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: u128) -> V128 {
        V128::from_bytes(bytes.to_be_bytes())
    }

    /// The AES-128 key schedule as software does it with AESKEYGENASSIST.
    fn round_keys(key: V128) -> [V128; 11] {
        let mut keys = [key; 11];
        let mut constant = 1;
        for round in 1..11 {
            let previous = <u32 as Lane>::split(keys[round - 1]);
            let assist = <u32 as Lane>::split(aeskeygenassist(keys[round - 1], constant))[3];
            let mut words = [0; 4];
            let mut left = assist;
            for (word, before) in words.iter_mut().zip(previous) {
                left ^= before;
                *word = left;
            }
            keys[round] = <u32 as Lane>::join(words);
            constant = multiply(constant, 2);
        }
        keys
    }

    #[test]
    fn sbox_of_fips_197() {
        assert_eq!((SBOX[0x00], SBOX[0x53], SBOX[0xff]), (0x63, 0xed, 0x16));
        assert!((0..=255_u8).all(|byte| INVERSE_SBOX[usize::from(SBOX[usize::from(byte)])] == byte));
    }

    #[test]
    fn key_expansion_of_fips_197_appendix_a_1() {
        let keys = round_keys(hex(0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c));
        assert_eq!(keys[1], hex(0xa0fa_fe17_8854_2cb1_23a3_3939_2a6c_7605));
        assert_eq!(keys[10], hex(0xd014_f9a8_c9ee_2589_e13f_0cc8_b663_0ca6));
    }

    #[test]
    fn cipher_of_fips_197_appendix_b() {
        let keys = round_keys(hex(0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c));
        let plain = hex(0x3243_f6a8_885a_308d_3131_98a2_e037_0734);
        let state = aesenc(plain ^ keys[0], keys[1]);
        assert_eq!(state, hex(0xa49c_7ff2_689f_352b_6b5b_ea43_026a_5049));
        let state = keys[2..10].iter().fold(state, |state, key| aesenc(state, *key));
        assert_eq!(aesenclast(state, keys[10]), hex(0x3925_841d_02dc_09fb_dc11_8597_196a_0b32));
    }

    #[test]
    fn the_equivalent_inverse_cipher_undoes_it() {
        let keys = round_keys(hex(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f));
        let cipher = hex(0x69c4_e0d8_6a7b_0430_d8cd_b780_70b4_c55a);
        let state = keys[1..10].iter().rev().fold(cipher ^ keys[10], |state, key| aesdec(state, aesimc(*key)));
        assert_eq!(aesdeclast(state, keys[0]), hex(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff));
    }
}
