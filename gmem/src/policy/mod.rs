//! Where implementations of guest_memfd differ, as one value.
//!
//! The kernel's guest_memfd exists in a released form, in a form with conversion in place that is on its way, and in
//! three posted series with huge folios. [`GmemPolicy`] names every decision in which they differ, and some more that
//! were only discussed; [`Generation::policy`] is what each of them decided. The inode asks the policy and never the
//! generation, but for the exact errors of its interface and for its [`Quirks`]: mistakes found by reading, which are
//! that generation's behaviour and nobody else's.
//!
//! - [`SplitPolicy`] and [`SharedFolios`]: when a huge folio is split, and to what.
//! - [`PunchPolicy`]: what a hole does to a folio that reaches out of it.
//! - [`OrderRule`]: how large a leaf a memslot may have over a folio.
//! - [`Content`]: what conversion does to the bytes.
//! - [`BusyPages`]: what a conversion does about pages that somebody holds.
//!
//! Always true: a policy changes what is fast, what is refused and what is known to be broken, never what a guest of a
//! policy without quirks can read.

mod order;

use bitflags::bitflags;

pub use order::{OrderRule, SlotSpan};

/// An implementation of guest_memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Generation {
    /// Linux 7.3: pages of 4K; attributes belong to the VM (`KVM_SET_MEMORY_ATTRIBUTES`), the inode has none.
    V7_3,
    /// Conversion in place as queued after 7.3 (`KVM_SET_MEMORY_ATTRIBUTES2` on the file), all or nothing.
    Next,
    /// "1G page support for guest_memfd", first posting of September 2024: faultability beside VM-wide attributes.
    V1,
    /// Its second posting of May 2025: `KVM_GMEM_CONVERT_SHARED` and `KVM_GMEM_CONVERT_PRIVATE`.
    V2,
    /// The reworked branch of late 2025, which converts one huge page at a time.
    Wip,
}

impl Generation {
    /// Every one.
    pub const ALL: [Generation; 5] =
        [Generation::V7_3, Generation::Next, Generation::V1, Generation::V2, Generation::Wip];

    /// Its name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Generation::V7_3 => "7.3",
            Generation::Next => "next",
            Generation::V1 => "v1",
            Generation::V2 => "v2",
            Generation::Wip => "wip",
        }
    }

    /// The generation of this name.
    pub fn named(name: &str) -> Option<Generation> {
        Generation::ALL.into_iter().find(|generation| generation.name() == name)
    }

    /// Whether an inode says who may use its pages, rather than the VM.
    pub const fn has_inode_attributes(self) -> bool {
        !matches!(self, Generation::V7_3)
    }

    /// What it decided.
    pub const fn policy(self) -> GmemPolicy {
        let base = GmemPolicy { generation: self, quirks: Quirks::of(self), ..GmemPolicy::DEFAULT };
        match self {
            Generation::V7_3 | Generation::Next => GmemPolicy { order: OrderRule::AlwaysZero, ..base },
            Generation::V1 | Generation::V2 => GmemPolicy {
                split: SplitPolicy::Eager4K,
                shared: SharedFolios::Split,
                order: OrderRule::Unclipped,
                ..base
            },
            Generation::Wip => GmemPolicy {
                split: SplitPolicy::Eager4K,
                shared: SharedFolios::Split,
                order: OrderRule::Unclipped,
                punch: PunchPolicy::Refuse,
                ..base
            },
        }
    }
}

bitflags! {
    /// Mistakes of a generation, found by reading its source. The number is that of its entry in the catalogue of races.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Quirks: u16 {
        /// a conversion to private that fails makes all of its range usable by the host, private pages too.
        const ROLLBACK_SHARES_ALL = 1 << 0;
        /// a conversion that runs out of memory in its bookkeeping says that it succeeded.
        const SILENT_PARTIAL = 1 << 1;
        /// a conversion ends its invalidation before it splits the folio and stores the attribute.
        const STORE_AFTER_END = 1 << 2;
        /// only the first 4K of a fresh huge folio is cleared.
        const CLEAR_FIRST_4K = 1 << 3;
        /// a hole inside one huge page clears all of it.
        const HOLE_CLEARS_HUGE_PAGE = 1 << 4;
        /// clearing the upper part of a huge folio that is whole starts at its first byte.
        const HOLE_CLEARS_FROM_HEAD = 1 << 5;
        /// the start and the end of an allocation are both rounded down to huge pages.
        const ALLOCATION_ROUNDS_DOWN = 1 << 6;
        /// only huge pages that lie in the converted range as a whole are merged.
        const MERGE_INSIDE_RANGE_ONLY = 1 << 7;
    }
}

impl Quirks {
    /// Those of a generation.
    pub const fn of(generation: Generation) -> Quirks {
        match generation {
            Generation::V7_3 | Generation::Next => Quirks::empty(),
            Generation::V1 => Quirks::ROLLBACK_SHARES_ALL
                .union(Quirks::HOLE_CLEARS_HUGE_PAGE)
                .union(Quirks::ALLOCATION_ROUNDS_DOWN)
                .union(Quirks::MERGE_INSIDE_RANGE_ONLY),
            Generation::V2 => {
                Quirks::SILENT_PARTIAL.union(Quirks::HOLE_CLEARS_FROM_HEAD).union(Quirks::ALLOCATION_ROUNDS_DOWN)
            }
            Generation::Wip => Quirks::STORE_AFTER_END.union(Quirks::CLEAR_FIRST_4K),
        }
    }
}

/// When and how far a huge folio is split whose pages must be handed out one by one. All are the same to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SplitPolicy {
    /// At conversion, a level at a time: 1G to 2M, then only the affected 2M to 4K.
    EagerIntermediate,
    /// At conversion, all of the folio to 4K.
    Eager4K,
    /// At the host's next use of a page, a level at a time; conversion changes attributes alone. A split that fails then
    /// fails that use, not the conversion.
    Lazy,
    /// At allocation, whatever the attributes; nothing is ever merged.
    Always4K,
}

/// Whether shared pages may stay in a huge folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SharedFolios {
    /// Never: a folio with any shared page is split, so that each has its own references when it is to become private.
    Split,
    /// In an inode that starts shared: who made it so wants huge pages for a VM without private memory. In any other as
    /// [`Split`](SharedFolios::Split).
    WholeIfInitShared,
    /// As long as all of the folio is shared. Converting a part of it needs all of it to be unused.
    Whole,
}

/// What a hole does to a huge page of which it covers only a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PunchPolicy {
    /// Clears the part and keeps the folio.
    ZeroPartial,
    /// Refuses holes that are not made of huge pages (`EINVAL`).
    Refuse,
    /// Splits the folio and frees the part's pages. Their memory waits for the rest of its unit.
    SplitAndFree,
}

/// What becomes of the bytes of pages that change hands. What a VM with encrypted memory sees is a matter of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// They stay, as in software-protected VMs.
    Preserve,
    /// They are cleared.
    Zero,
}

/// What a conversion to private does about a page that somebody beside the page cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BusyPages {
    /// Refuses (`EAGAIN`).
    Refuse,
    /// Lets others run and looks again, this often, before it refuses ("wait for safe refcount").
    Wait {
        /// How often.
        tries: u32,
    },
}

/// Whether processors collect folios that the host touched, with a reference on each, before they put them on a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum LruBatches {
    /// They do not: a folio has the references of those who use it.
    #[default]
    Off,
    /// They do, and a conversion that a reference is in the way of empties the batches once.
    On,
}

/// Whether private pages change the host's direct map, where one is modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostMapping {
    /// They do not: nothing but good manners protects a software-protected VM.
    Untouched,
    /// As the map's own policy has it ([`crate::DirectMapPolicy`]): hardware protects them.
    FollowsPrivacy,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GmemPolicy {
    /// Whose interface and errors.
    pub generation: Generation,
    /// What is wrong with it.
    pub quirks: Quirks,
    /// When and how far folios are split.
    pub split: SplitPolicy,
    /// Which folios have to be.
    pub shared: SharedFolios,
    /// What holes do to parts of folios.
    pub punch: PunchPolicy,
    /// How large leaves may be.
    pub order: OrderRule,
    /// Bytes of private pages that become shared.
    pub to_shared: Content,
    /// Bytes of shared pages that become private.
    pub to_private: Content,
    /// Pages that are held.
    pub busy: BusyPages,
    /// The host's own map.
    pub host_mapping: HostMapping,
    /// Batches of the host's processors.
    pub batches: LruBatches,
}

impl GmemPolicy {
    /// What this model proposes: the interface of [`Generation::Next`] over huge folios.
    pub const DEFAULT: GmemPolicy = GmemPolicy {
        generation: Generation::Next,
        quirks: Quirks::empty(),
        split: SplitPolicy::EagerIntermediate,
        shared: SharedFolios::WholeIfInitShared,
        punch: PunchPolicy::ZeroPartial,
        order: OrderRule::Contained,
        to_shared: Content::Preserve,
        to_private: Content::Preserve,
        busy: BusyPages::Refuse,
        host_mapping: HostMapping::Untouched,
        batches: LruBatches::Off,
    };

    /// Whether it has a mistake.
    pub const fn has(&self, quirk: Quirks) -> bool {
        self.quirks.contains(quirk)
    }
}

impl Default for GmemPolicy {
    fn default() -> GmemPolicy {
        GmemPolicy::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_posted_series_have_quirks_and_each_quirk_is_somebodys() {
        let mut all = Quirks::empty();
        for generation in Generation::ALL {
            assert_eq!(Generation::named(generation.name()), Some(generation));
            assert_eq!(generation.policy().generation, generation);
            all |= generation.policy().quirks;
        }
        assert_eq!(all, Quirks::all());
        assert!(Generation::Next.policy().quirks.is_empty() && Generation::V7_3.policy().quirks.is_empty());
        assert!(GmemPolicy::default().quirks.is_empty());
        assert!(!Generation::V7_3.has_inode_attributes());
    }
}
