//! A set of 256 vectors, as IRR, ISR and TMR hold them.

/// Which of the 256 vectors are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VectorSet([u64; 4]);

impl VectorSet {
    /// No vector.
    pub const EMPTY: VectorSet = VectorSet([0; 4]);

    /// Adds `vector`; whether it was new.
    #[inline]
    pub const fn insert(&mut self, vector: u8) -> bool {
        let word = &mut self.0[(vector >> 6) as usize];
        let bit = 1 << (vector & 63);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
    /// Removes `vector`.
    #[inline]
    pub const fn remove(&mut self, vector: u8) {
        self.0[(vector >> 6) as usize] &= !(1 << (vector & 63));
    }
    /// Adds or removes `vector`.
    #[inline]
    pub const fn set(&mut self, vector: u8, present: bool) {
        if present {
            self.insert(vector);
        } else {
            self.remove(vector);
        }
    }
    /// Whether `vector` is in the set.
    #[inline]
    pub const fn contains(&self, vector: u8) -> bool {
        self.0[(vector >> 6) as usize] >> (vector & 63) & 1 != 0
    }
    /// The highest vector: the one of highest priority.
    #[inline]
    pub const fn highest(&self) -> Option<u8> {
        let mut word = 4;
        while word > 0 {
            word -= 1;
            if self.0[word] != 0 {
                return Some(word as u8 * 64 + 63 - self.0[word].leading_zeros() as u8);
            }
        }
        None
    }
    /// The `n`-th 32-bit register (0 to 7) that shows the set.
    pub const fn register(&self, n: u8) -> u32 {
        (self.0[(n >> 1 & 3) as usize] >> ((n & 1) as u32 * 32)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vector_alone_is_the_highest_and_shows_in_its_register() {
        for vector in 0..=255 {
            let mut set = VectorSet::EMPTY;
            assert!(set.insert(vector));
            assert!(!set.insert(vector));
            assert_eq!(set.highest(), Some(vector));
            for n in 0..8 {
                let expected = if n == vector >> 5 { 1 << (vector & 31) } else { 0 };
                assert_eq!(set.register(n), expected);
            }
            set.remove(vector);
            assert_eq!(set, VectorSet::EMPTY);
        }
    }
}
