//! Which pages of a memslot were written (`memslot->dirty_bitmap`).
//!
//! Bits lie in chunks that come into being when one of their pages is first marked, so that a bitmap of a terabyte that
//! nobody writes costs a pointer per 128 MiB. Marking is atomic and waits for nobody.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages to a word.
pub const WORD_PAGES: u64 = 64;
const CHUNK_WORDS: usize = 512;
const CHUNK_PAGES: u64 = CHUNK_WORDS as u64 * WORD_PAGES;

type Chunk = Box<[AtomicU64]>;

/// What a bitmap starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initially {
    /// Nothing is dirty.
    Clean,
    /// Everything is (`KVM_DIRTY_LOG_INITIALLY_SET`).
    Dirty,
}

/// See the module.
#[derive(Debug)]
pub struct DirtyBitmap {
    nr_pages: u64,
    initially: Initially,
    chunks: Box<[OnceLock<Chunk>]>,
}

impl DirtyBitmap {
    /// The bitmap of a slot of `nr_pages`.
    pub fn new(nr_pages: u64, initially: Initially) -> DirtyBitmap {
        let chunks = (0..nr_pages.div_ceil(CHUNK_PAGES)).map(|_| OnceLock::new()).collect();
        DirtyBitmap { nr_pages, initially, chunks }
    }

    /// Words in all; bits of the last one behind the slot's end are clear.
    pub fn nr_words(&self) -> u64 {
        self.nr_pages.div_ceil(WORD_PAGES)
    }

    /// The bits of word `word` that are pages.
    fn pages_of(&self, word: u64) -> u64 {
        let left = self.nr_pages.saturating_sub(word * WORD_PAGES);
        if left >= WORD_PAGES { u64::MAX } else { (1 << left) - 1 }
    }

    fn chunk(&self, word: u64) -> Option<&Chunk> {
        let place = self.chunks.get(word as usize / CHUNK_WORDS)?;
        Some(place.get_or_init(|| {
            let first = word - word % CHUNK_WORDS as u64;
            let fresh = |n: u64| match self.initially {
                Initially::Clean => 0,
                Initially::Dirty => self.pages_of(first + n),
            };
            (0..CHUNK_WORDS as u64).map(|n| AtomicU64::new(fresh(n))).collect()
        }))
    }

    /// Marks page `page` of the slot. Pages behind its end are nobody's.
    pub fn mark(&self, page: u64) {
        if page >= self.nr_pages {
            return;
        }
        let word = page / WORD_PAGES;
        if let Some(chunk) = self.chunk(word) {
            let (word, bit) = (&chunk[word as usize % CHUNK_WORDS], 1 << (page % WORD_PAGES));
            // Most writes are to pages that are marked already: then the line is only read.
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::AcqRel);
            }
        }
    }

    /// The bits of a word.
    pub fn word(&self, word: u64) -> u64 {
        match self.chunks.get(word as usize / CHUNK_WORDS).map(OnceLock::get) {
            Some(Some(chunk)) => chunk[word as usize % CHUNK_WORDS].load(Ordering::Acquire),
            Some(None) if self.initially == Initially::Dirty => self.pages_of(word),
            _ => 0,
        }
    }

    /// Whether a page is marked.
    pub fn is_dirty(&self, page: u64) -> bool {
        page < self.nr_pages && self.word(page / WORD_PAGES) >> (page % WORD_PAGES) & 1 == 1
    }

    /// Clears those bits of a word that `mask` names; which of them were set.
    pub fn clear(&self, word: u64, mask: u64) -> u64 {
        if self.word(word) & mask == 0 {
            return 0;
        }
        match self.chunk(word) {
            Some(chunk) => chunk[word as usize % CHUNK_WORDS].fetch_and(!mask, Ordering::AcqRel) & mask,
            None => 0,
        }
    }

    /// Every word that is not zero, ascending, with its number. Costs nothing for what nobody marked.
    pub fn words(&self) -> impl Iterator<Item = (u64, u64)> {
        let in_use =
            move |chunk: &u64| self.initially == Initially::Dirty || self.chunks[*chunk as usize].get().is_some();
        (0..self.chunks.len() as u64)
            .filter(in_use)
            .flat_map(|chunk| chunk * CHUNK_WORDS as u64..(chunk + 1) * CHUNK_WORDS as u64)
            .map(|word| (word, self.word(word)))
            .filter(|(_, bits)| *bits != 0)
    }

    /// Bytes in use for bits.
    pub fn bytes(&self) -> usize {
        let used = self.chunks.iter().filter(|chunk| chunk.get().is_some()).count();
        used * CHUNK_WORDS * 8 + self.chunks.len() * size_of::<OnceLock<Chunk>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn memory_follows_what_is_marked() {
        let terabyte = DirtyBitmap::new(1 << 28, Initially::Clean);
        let empty = terabyte.bytes();
        assert!(empty < 256 << 10);
        terabyte.mark((1 << 28) - 1);
        terabyte.mark(1 << 28);
        assert_eq!(terabyte.bytes() - empty, CHUNK_WORDS * 8);
        assert_eq!(terabyte.words().collect::<Vec<_>>(), [((1 << 22) - 1, 1 << 63)]);
    }

    proptest! {
        #[test]
        fn a_bitmap_is_a_set_of_pages(
            nr_pages in 1_u64..70_000,
            initially_set: bool,
            steps in prop::collection::vec((any::<u64>(), any::<Option<u64>>()), 1..60),
        ) {
            let initially = if initially_set { Initially::Dirty } else { Initially::Clean };
            let bitmap = DirtyBitmap::new(nr_pages, initially);
            let mut set: BTreeSet<u64> = if initially_set { (0..nr_pages).collect() } else { BTreeSet::new() };
            for (at, mask) in steps {
                let at = at % nr_pages;
                match mask {
                    None => {
                        bitmap.mark(at);
                        set.insert(at);
                    }
                    Some(mask) => {
                        let word = at / WORD_PAGES;
                        let had = (0..64).filter(|n| set.contains(&(word * 64 + n))).fold(0, |m, n| m | 1_u64 << n);
                        prop_assert_eq!(bitmap.clear(word, mask), had & mask);
                        (0..64).filter(|n| mask >> n & 1 == 1).for_each(|n| { set.remove(&(word * 64 + n)); });
                    }
                }
            }
            let seen: BTreeSet<u64> = bitmap
                .words()
                .flat_map(|(word, bits)| (0..64).filter(move |n| bits >> n & 1 == 1).map(move |n| word * 64 + n))
                .collect();
            prop_assert_eq!(seen, set);
        }
    }
}
