//! Bit permutations and CRC of general registers (Intel SDM volume 2, PDEP, PEXT, CRC32).

/// PDEP: the low bits of `source` in order to the set bits of `mask`. The 32-bit form is this on zero-extended operands.
#[inline]
pub fn pdep(source: u64, mask: u64) -> u64 {
    let (mut rest, mut source, mut result) = (mask, source, 0);
    while rest != 0 {
        let lowest = rest & rest.wrapping_neg();
        // All ones when the bit is to be deposited.
        result |= lowest & (source & 1).wrapping_neg();
        source >>= 1;
        rest ^= lowest;
    }
    result
}

/// PEXT: the bits of `source` under `mask` to the low bits in order. The 32-bit form is this on zero-extended operands.
#[inline]
pub fn pext(source: u64, mask: u64) -> u64 {
    let (mut rest, mut place, mut result) = (mask, 0, 0);
    while rest != 0 {
        let bit = rest.trailing_zeros();
        result |= (source >> bit & 1) << place;
        place += 1;
        rest &= rest - 1;
    }
    result
}

/// The polynomial 11EDC6F41h of CRC32, bit-reflected as the instruction works.
const CASTAGNOLI: u32 = 0x82f6_3b78;

/// `TABLES[n][byte]` is the remainder of `byte` followed by `n` zero bytes.
static TABLES: [[u32; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            remainder = (remainder >> 1) ^ if remainder & 1 != 0 { CASTAGNOLI } else { 0 };
            bit += 1;
        }
        tables[0][byte] = remainder;
        byte += 1;
    }
    let mut n = 1;
    while n < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[n - 1][byte];
            tables[n][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        n += 1;
    }
    tables
};

/// Accumulates the `N` bytes of an operand, lowest first. They do not depend on each other, so the lookups overlap.
#[inline]
fn accumulate<const N: usize>(crc: u32, bytes: [u8; N]) -> u32 {
    let crc_bytes = crc.to_le_bytes();
    // What of the old value is not combined with the operand stays, shifted down.
    let mut result = if N < 4 { crc >> (8 * N) } else { 0 };
    for i in 0..N {
        let byte = bytes[i] ^ if i < 4 { crc_bytes[i] } else { 0 };
        result ^= TABLES[N - 1 - i][usize::from(byte)];
    }
    result
}

/// CRC32 of a byte: the accumulator after it. No inversion before or after.
#[inline]
pub fn crc32_u8(crc: u32, value: u8) -> u32 {
    accumulate(crc, value.to_le_bytes())
}

/// CRC32 of a word.
#[inline]
pub fn crc32_u16(crc: u32, value: u16) -> u32 {
    accumulate(crc, value.to_le_bytes())
}

/// CRC32 of a doubleword.
#[inline]
pub fn crc32_u32(crc: u32, value: u32) -> u32 {
    accumulate(crc, value.to_le_bytes())
}

/// CRC32 of a quadword. The destination is 64 bits wide; its upper half becomes 0.
#[inline]
pub fn crc32_u64(crc: u32, value: u64) -> u32 {
    accumulate(crc, value.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deposit_and_extract() {
        assert_eq!(pdep(0b1011, 0xf0f0_0000_0000_0001), 0x0050_0000_0000_0001);
        assert_eq!(pext(0x0050_0000_0000_0001, 0xf0f0_0000_0000_0001), 0b1011);
        assert_eq!(pdep(u64::MAX, 0x8000_0000_0000_0001), 0x8000_0000_0000_0001);
        assert_eq!((pdep(u64::MAX, 0), pext(u64::MAX, 0)), (0, 0));
        assert_eq!((pdep(0x1234, u64::MAX), pext(0x1234, u64::MAX)), (0x1234, 0x1234));
    }

    #[test]
    fn the_check_value_of_crc32c() {
        let crc = b"123456789".iter().fold(!0, |crc, byte| crc32_u8(crc, *byte));
        assert_eq!(!crc, 0xe306_9283);
    }

    #[test]
    fn iscsi_vectors() {
        // RFC 3720, appendix B.4: 32 bytes of zeros, of ones, and ascending.
        assert_eq!(!(0..4).fold(!0, |crc, _| crc32_u64(crc, 0)), 0x8a91_36aa);
        assert_eq!(!(0..8).fold(!0, |crc, _| crc32_u32(crc, u32::MAX)), 0x62a8_ab43);
        let ascending = (0..16_u8).map(|i| u16::from_le_bytes([2 * i, 2 * i + 1]));
        assert_eq!(!ascending.fold(!0, crc32_u16), 0x46dd_794e);
    }

    #[test]
    fn wider_operands_are_several_bytes() {
        let bytes = 0x0123_4567_89ab_cdef_u64;
        let by_byte = bytes.to_le_bytes().iter().fold(0x1357_9bdf, |crc, byte| crc32_u8(crc, *byte));
        assert_eq!(crc32_u64(0x1357_9bdf, bytes), by_byte);
        assert_eq!(crc32_u32(crc32_u32(0x1357_9bdf, bytes as u32), (bytes >> 32) as u32), by_byte);
    }
}
