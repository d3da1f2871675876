//! The dirty ring of a virtual processor (`virt/kvm/dirty_ring.c`).
//!
//! The hypervisor pushes entries behind each other and sets DIRTY, the VMM reads them in order and sets RESET, and a reset
//! takes back what is marked so. A processor whose ring holds as many entries as the soft limit does not enter the guest
//! until some were reset; what one exit can still push fits behind the limit.
//!
//! Always true: entries from the first that is not reset up to the newest are DIRTY or RESET, there are never more than
//! the ring's size, and none is lost or handed out twice.

use std::collections::VecDeque;

use emu_core::event::Event;
use gmem::SlotId;
use thiserror::Error;

use crate::pml::PML_ENTRIES;
use crate::vcpu::VcpuId;

/// `sizeof(struct kvm_dirty_gfn)`.
pub const ENTRY_BYTES: u64 = 16;
/// `KVM_DIRTY_RING_MAX_ENTRIES`.
pub const MAX_ENTRIES: u64 = 65536;
/// Room behind the soft limit: what one exit can push (`kvm_dirty_ring_get_rsvd_entries`).
pub const RESERVED_ENTRIES: u64 = 64 + PML_ENTRIES as u64;

/// Why a ring of some size cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RingSizeError {
    /// `EINVAL`.
    #[error("a dirty ring of {bytes:#x} bytes: the size must be a power of two, at least {least:#x}")]
    Shape {
        /// What was asked for.
        bytes: u64,
        /// The least there can be.
        least: u64,
    },
    /// `E2BIG`.
    #[error("a dirty ring of {bytes:#x} bytes has more than {MAX_ENTRIES} entries")]
    TooBig {
        /// What was asked for.
        bytes: u64,
    },
}

/// Size of a ring, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RingSize(u32);

impl RingSize {
    /// A ring of `bytes`, as `KVM_CAP_DIRTY_LOG_RING` takes it.
    pub fn of_bytes(bytes: u64) -> Result<RingSize, RingSizeError> {
        let least = (RESERVED_ENTRIES * ENTRY_BYTES).max(4096).next_power_of_two();
        if !bytes.is_power_of_two() || bytes < least {
            return Err(RingSizeError::Shape { bytes, least });
        }
        if bytes / ENTRY_BYTES > MAX_ENTRIES {
            return Err(RingSizeError::TooBig { bytes });
        }
        Ok(RingSize((bytes / ENTRY_BYTES) as u32))
    }
    /// Entries.
    pub const fn entries(self) -> u32 {
        self.0
    }
    /// Entries from which on the processor must not enter the guest.
    pub const fn soft_limit(self) -> u32 {
        self.0 - RESERVED_ENTRIES as u32
    }
}

/// A page in a ring (`struct kvm_dirty_gfn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DirtyGfn {
    /// The memslot.
    pub slot: SlotId,
    /// The page's number in it.
    pub page: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flag {
    Dirty,
    Reset,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct DirtyRing {
    /// Whose it is.
    vcpu: VcpuId,
    size: RingSize,
    /// Entries pushed and taken back so far, as wrapping counts.
    dirty_index: u32,
    reset_index: u32,
    /// From the reset index to the dirty index.
    entries: VecDeque<(DirtyGfn, Flag)>,
    /// How many of them the VMM has read.
    fetched: usize,
}

/// A push found the ring full: somebody entered the guest above the soft limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overrun;

impl DirtyRing {
    pub(crate) fn new(vcpu: VcpuId, size: RingSize) -> DirtyRing {
        DirtyRing { vcpu, size, dirty_index: 0, reset_index: 0, entries: VecDeque::new(), fetched: 0 }
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.entries.len()
    }

    /// What is told when `page` has been pushed.
    pub(crate) fn pushed(&self, page: DirtyGfn) -> Event {
        let &DirtyRing { vcpu, dirty_index, reset_index, .. } = self;
        Event::DirtyRingPush { ring: vcpu.0, dirty_index, reset_index, slot: page.slot.0.into(), offset: page.page }
    }

    /// What is told when entries have been taken back.
    pub(crate) fn was_reset(&self) -> Event {
        let &DirtyRing { vcpu, dirty_index, reset_index, .. } = self;
        Event::DirtyRingReset { ring: vcpu.0, dirty_index, reset_index }
    }

    /// Whether the processor must leave to the VMM before it enters the guest again (`kvm_dirty_ring_soft_full`).
    pub(crate) fn is_soft_full(&self) -> bool {
        self.entries.len() >= self.size.soft_limit() as usize
    }

    /// Whether an entry for the page has not been taken back yet.
    pub(crate) fn holds(&self, slot: SlotId, page: u64) -> bool {
        self.entries.iter().any(|(entry, _)| *entry == DirtyGfn { slot, page })
    }

    /// Whether what the VMM has read lies before what it has not, and there is room for all.
    pub(crate) fn is_in_order(&self) -> bool {
        let read = self.entries.iter().take_while(|(_, flag)| *flag == Flag::Reset).count();
        let rest = self.entries.iter().skip(read).all(|(_, flag)| *flag == Flag::Dirty);
        rest && read == self.fetched && self.entries.len() <= self.size.entries() as usize
    }

    /// Whether the next push makes it so.
    pub(crate) fn is_one_below_soft_full(&self) -> bool {
        self.entries.len() + 1 == self.size.soft_limit() as usize
    }

    /// Entries that can still be pushed.
    pub(crate) fn room(&self) -> usize {
        (self.size.entries() as usize).saturating_sub(self.entries.len())
    }

    /// Appends an entry.
    pub(crate) fn push(&mut self, page: DirtyGfn) -> Result<(), Overrun> {
        if self.entries.len() >= self.size.entries() as usize {
            return Err(Overrun);
        }
        self.entries.push_back((page, Flag::Dirty));
        self.dirty_index = self.dirty_index.wrapping_add(1);
        Ok(())
    }

    /// What the VMM does with a ring: reads up to `most` entries that are DIRTY and marks them RESET.
    pub(crate) fn collect(&mut self, most: usize, into: &mut Vec<DirtyGfn>) {
        let most = most.min(self.entries.len() - self.fetched);
        for (page, flag) in self.entries.range_mut(self.fetched..self.fetched + most) {
            into.push(*page);
            *flag = Flag::Reset;
        }
        self.fetched += most;
    }

    /// Takes back the entries at the front that are marked RESET.
    pub(crate) fn reset(&mut self) -> impl Iterator<Item = DirtyGfn> {
        let marked = self.entries.iter().take_while(|(_, flag)| *flag == Flag::Reset).count();
        self.fetched -= marked;
        self.reset_index = self.reset_index.wrapping_add(marked as u32);
        self.entries.drain(..marked).map(|(page, _)| page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_follow_the_rules_of_the_capability() {
        let least = 16384;
        for bytes in [0, 1, 4096, 8192, least - 1, least + 16] {
            assert_eq!(RingSize::of_bytes(bytes), Err(RingSizeError::Shape { bytes, least }));
        }
        assert_eq!(RingSize::of_bytes(2 << 20), Err(RingSizeError::TooBig { bytes: 2 << 20 }));
        let size = RingSize::of_bytes(least).unwrap();
        assert_eq!((size.entries(), size.soft_limit()), (1024, 1024 - 576));
        assert_eq!(RingSize::of_bytes(1 << 20).unwrap().entries(), 65536);
    }

    proptest! {
        #[test]
        fn entries_come_out_once_and_in_order_and_never_more_than_the_size(
            steps in prop::collection::vec((0_u8..4, 0_usize..600), 1..80),
        ) {
            let mut ring = DirtyRing::new(VcpuId(0), RingSize::of_bytes(16384).unwrap());
            let (mut pushed, mut collected, mut taken_back) = (0_u64, Vec::new(), 0_u64);
            for (what, many) in steps {
                match what {
                    0 | 1 => for _ in 0..many {
                        let full = ring.used() == 1024;
                        let page = DirtyGfn { slot: SlotId(1), page: pushed };
                        prop_assert_eq!(ring.push(page), if full { Err(Overrun) } else { Ok(()) });
                        pushed += u64::from(!full);
                    },
                    2 => ring.collect(many, &mut collected),
                    _ => for page in ring.reset() {
                        prop_assert_eq!(page.page, taken_back, "in order, none twice");
                        taken_back += 1;
                    },
                }
                prop_assert!(ring.used() <= 1024 && taken_back <= collected.len() as u64);
                prop_assert_eq!(ring.used() as u64, pushed - taken_back, "none is lost");
                prop_assert_eq!(ring.is_soft_full(), ring.used() >= 448);
            }
            prop_assert!(collected.iter().enumerate().all(|(n, page)| page.page == n as u64));
        }
    }
}
