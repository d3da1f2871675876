//! How large a leaf a memslot may have over a folio (`max_order` of `kvm_gmem_get_pfn`, as it was discussed over time).
//!
//! [`OrderRule::largest`] is asked when a fault has its folio, [`OrderRule::binds`] when a memslot is bound. A leaf
//! needs more than a large folio: the memslot must contain all of it, and guest frames and indices must be congruent.
//! Rules that do not see to that lean on others who do.

use emu_core::{Gfn, PageSize};

use crate::inode::{PageIndex, PageRange};

/// A memslot's view of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotSpan {
    /// The guest frame that shows the first page.
    pub first: Gfn,
    /// The pages.
    pub range: PageRange,
}

impl SlotSpan {
    /// Whether the pages of `size` around `index` all belong to the memslot.
    fn contains(&self, index: PageIndex, size: PageSize) -> bool {
        let base = index.0 & !(size.frames() - 1);
        base >= self.range.first.0 && base + size.frames() <= self.range.end().0
    }

    /// Whether guest frames and indices agree in what a leaf of `size` does not translate.
    fn is_congruent(&self, size: PageSize) -> bool {
        (self.first.raw() ^ self.range.first.0).is_multiple_of(size.frames())
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OrderRule {
    /// The folio's order. Offset and size of a memslot, and the inode's size, must be multiples of the largest page, or
    /// binding fails (`EINVAL`): the rule before September 2023.
    Strict,
    /// The folio's order where offset and size of the memslot are both multiples of it, otherwise 4K throughout.
    AllOrNothing,
    /// The largest size, up to the folio's, whose pages around the index lie in the memslot and are congruent.
    Contained,
    /// As [`Contained`](OrderRule::Contained), but the folio's size or 4K and nothing between.
    ContainedOrZero,
    /// 4K.
    AlwaysZero,
    /// The folio's order, whatever the memslot: who sets the leaf must see to containment and congruence.
    Unclipped,
}

impl OrderRule {
    /// Every one.
    pub const ALL: [OrderRule; 6] = [
        OrderRule::Strict,
        OrderRule::AllOrNothing,
        OrderRule::Contained,
        OrderRule::ContainedOrZero,
        OrderRule::AlwaysZero,
        OrderRule::Unclipped,
    ];

    /// The largest leaf that `slot` may have over the folio of size `folio` around `index`.
    pub fn largest(self, slot: &SlotSpan, index: PageIndex, folio: PageSize) -> PageSize {
        let usable = |size: &PageSize| slot.contains(index, *size) && slot.is_congruent(*size);
        let whole_or_4k = |whole: bool| if whole { folio } else { PageSize::Size4K };
        match self {
            OrderRule::Strict | OrderRule::Unclipped => folio,
            OrderRule::AlwaysZero => PageSize::Size4K,
            OrderRule::AllOrNothing => {
                let multiple = |pages: u64| pages.is_multiple_of(folio.frames());
                whole_or_4k(multiple(slot.range.first.0) && multiple(slot.range.nr_pages))
            }
            OrderRule::ContainedOrZero => whole_or_4k(usable(&folio)),
            OrderRule::Contained => {
                PageSize::ALL[..=folio.index()].iter().copied().rfind(usable).unwrap_or(PageSize::Size4K)
            }
        }
    }

    /// Whether a memslot may show `range` of an inode of `nr_pages` whose largest folio is `unit`.
    pub fn binds(self, range: PageRange, nr_pages: u64, unit: PageSize) -> bool {
        let multiple = |pages: u64| pages.is_multiple_of(unit.frames());
        match self {
            OrderRule::Strict => multiple(range.first.0) && multiple(range.nr_pages) && multiple(nr_pages),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M2: u64 = PageSize::Size2M.frames();
    const G1: u64 = PageSize::Size1G.frames();

    fn span(gfn: u64, first: u64, nr_pages: u64) -> SlotSpan {
        SlotSpan { first: Gfn::new(gfn), range: PageRange { first: PageIndex(first), nr_pages } }
    }

    /// Every offset, size and congruence of a memslot around two huge pages, at the granule where they can differ.
    #[test]
    fn contained_gives_all_that_all_or_nothing_gives_and_only_what_fits() {
        let edges = [0, 1, M2 - 1, M2, M2 + 1, 2 * M2];
        for first in edges {
            for nr_pages in edges.into_iter().filter(|&nr| nr > 0) {
                for gfn in [first, first + 1, first + M2] {
                    let slot = span(gfn, first, nr_pages);
                    for index in [first, first + nr_pages / 2, first + nr_pages - 1] {
                        let size = |rule: OrderRule| rule.largest(&slot, PageIndex(index), PageSize::Size2M);
                        let base = index & !(M2 - 1);
                        let contained = base >= first && base + M2 <= first + nr_pages;
                        let congruent = gfn % M2 == first % M2;
                        let huge = |yes: bool| if yes { PageSize::Size2M } else { PageSize::Size4K };
                        assert_eq!(size(OrderRule::Contained), huge(contained && congruent));
                        assert_eq!(size(OrderRule::ContainedOrZero), huge(contained && congruent));
                        if congruent {
                            assert!(size(OrderRule::AllOrNothing) <= size(OrderRule::Contained));
                        }
                        assert_eq!(size(OrderRule::AlwaysZero), PageSize::Size4K);
                        assert_eq!(size(OrderRule::Unclipped), PageSize::Size2M);
                    }
                }
            }
        }
    }

    #[test]
    fn partial_levels_are_what_the_two_contained_rules_differ_in() {
        let slot = span(M2, M2, G1);
        let size = |rule: OrderRule| rule.largest(&slot, PageIndex(M2 + 5), PageSize::Size1G);
        assert_eq!(size(OrderRule::Contained), PageSize::Size2M);
        assert_eq!(size(OrderRule::ContainedOrZero), PageSize::Size4K);
    }

    #[test]
    fn a_slot_above_the_legacy_hole_is_huge_but_for_its_first_block() {
        let slot = span(0x100, 0x100, 8 * M2);
        let huge = |rule: OrderRule| {
            (0x100..0x100 + 8 * M2)
                .filter(|&at| rule.largest(&slot, PageIndex(at), PageSize::Size2M) == PageSize::Size2M)
                .count() as u64
        };
        assert_eq!(huge(OrderRule::Contained), 7 * M2);
        assert_eq!(huge(OrderRule::AllOrNothing), 0);
    }

    #[test]
    fn only_the_strict_rule_refuses_to_bind() {
        let range = PageRange { first: PageIndex(1), nr_pages: M2 };
        for rule in OrderRule::ALL {
            assert_eq!(rule.binds(range, 4 * M2, PageSize::Size2M), rule != OrderRule::Strict);
            let aligned = PageRange { first: PageIndex(M2), nr_pages: M2 };
            assert!(rule.binds(aligned, 4 * M2, PageSize::Size2M));
            assert_eq!(rule.binds(aligned, 4 * M2 + 1, PageSize::Size2M), rule != OrderRule::Strict);
            assert!(rule.binds(range, 4 * M2 + 1, PageSize::Size4K));
        }
    }
}
