//! The generator's own random numbers: SplitMix64, addressed by (seed, index) so that every case can be made alone.
//!
//! The emulator's streams are not used on purpose: a judge shares as little as it can with the judged.

/// A SplitMix64 sequence.
#[derive(Clone, Debug)]
pub struct SplitMix(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl SplitMix {
    /// The sequence that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        SplitMix(seed)
    }
    /// The sequence of item `index` under `seed`; sequences of different items do not overlap in practice.
    pub fn of_item(seed: u64, index: u64) -> Self {
        let mut outer = SplitMix(seed);
        let key = outer.next_u64();
        SplitMix(SplitMix(key ^ index.wrapping_mul(GOLDEN)).next_u64())
    }
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((self.next_u64() as u128 * bound as u128) >> 64) as u64
    }
    /// True in `percent` of a hundred draws.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    /// One of `items`, which must not be empty.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_repeat_and_differ() {
        let draw = |seed, index| SplitMix::of_item(seed, index).next_u64();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }

    #[test]
    fn bounded_draws_stay_below() {
        let mut rng = SplitMix::new(3);
        assert!((0..1000).all(|_| rng.below(7) < 7));
        assert_eq!(rng.below(0), 0);
    }
}
