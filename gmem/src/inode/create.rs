//! The arguments of `KVM_CREATE_GUEST_MEMFD`, as each generation of the interface has them.
//!
//! [`CreateArgs::decode`] makes a [`CreateInfo`] of them: the one form that [`GuestMemfd::create`] takes.
//!
//! [`GuestMemfd::create`]: super::GuestMemfd::create

use emu_core::PageSize;

use super::{CreateError, CreateInfo, GmemFlags};
use crate::policy::{Generation, GmemPolicy};
use crate::pool::HugeSize;
use crate::provider::FolioPolicy;

/// `struct kvm_create_guest_memfd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CreateArgs {
    /// Size in bytes.
    pub size_bytes: u64,
    /// The flags, with the generation's meaning.
    pub flags: u64,
    /// Order of the huge pages, for [`Generation::Wip`]; zero for 4K. The other generations do not look at it.
    pub page_order: u8,
}

/// Where flags have the logarithm of the page size in bytes (`GUEST_MEMFD_HUGE_SHIFT`), and how wide it is.
const HUGE_SHIFT: u32 = 26;
const HUGE_MASK: u64 = 0x3f << HUGE_SHIFT;

/// Bits of one generation.
struct FlagBits {
    /// The host may map and use what is shared.
    shareable: u64,
    /// Every page starts shared.
    init_shared: u64,
    /// Every page starts private although it can be shared.
    init_private: u64,
    /// Pages of a pool.
    hugetlb: u64,
    /// Where the pool's page size is.
    size: u64,
}

const fn bits(generation: Generation) -> FlagBits {
    let none = FlagBits { shareable: 0, init_shared: 0, init_private: 0, hugetlb: 0, size: 0 };
    match generation {
        Generation::V7_3 | Generation::Next => FlagBits { shareable: 1 << 0, init_shared: 1 << 1, ..none },
        Generation::V1 => FlagBits { hugetlb: 1 << 1, size: HUGE_MASK, ..none },
        Generation::V2 => {
            FlagBits { shareable: 1 << 0, init_private: 1 << 1, hugetlb: 1 << 2, size: HUGE_MASK, ..none }
        }
        Generation::Wip => FlagBits { shareable: 1 << 0, init_shared: 1 << 1, hugetlb: 1 << 2, ..none },
    }
}

impl CreateArgs {
    /// What is asked for, with folios as `otherwise` says unless the flags name a pool.
    pub fn decode(self, policy: GmemPolicy, otherwise: FolioPolicy) -> Result<CreateInfo, CreateError> {
        let CreateArgs { size_bytes, flags, page_order } = self;
        let FlagBits { shareable, init_shared, init_private, hugetlb, size } = bits(policy.generation);
        let has = |bit: u64| bit != 0 && flags & bit == bit;
        let unknown = flags & !(shareable | init_shared | init_private | hugetlb | size);
        if unknown != 0 {
            return Err(CreateError::UnknownFlags { unknown });
        }
        let huge = has(hugetlb);
        let excluded = match policy.generation {
            // Sizes without pool pages, a start that cannot differ, and pool pages that start shared.
            Generation::V1 => !huge && flags & size != 0,
            Generation::V2 => !huge && flags & size != 0 || has(init_private) && !has(shareable),
            Generation::Wip => !huge && page_order != 0 || huge && has(init_shared),
            Generation::V7_3 | Generation::Next => false,
        };
        if excluded {
            return Err(CreateError::FlagsExclude { flags });
        }
        let order = match policy.generation {
            Generation::Wip => u32::from(page_order),
            // Zero is the default size.
            _ => match ((flags & size) >> HUGE_SHIFT) as u32 {
                0 => PageSize::Size2M.shift() - PageSize::Size4K.shift(),
                shift => shift.saturating_sub(PageSize::Size4K.shift()),
            },
        };
        let pool = HugeSize::ALL.into_iter().find(|pool| pool.page_size().frames().trailing_zeros() == order);
        let folios = match (huge, pool) {
            (false, _) => otherwise,
            (true, Some(size)) => FolioPolicy::Pool { size },
            (true, None) => return Err(CreateError::NoSuchPool { order }),
        };
        let mut known = GmemFlags::empty();
        known.set(GmemFlags::MMAP, has(shareable));
        known.set(
            GmemFlags::INIT_SHARED,
            has(init_shared) || policy.generation == Generation::V2 && has(shareable) && !has(init_private),
        );
        Ok(CreateInfo { size_bytes, flags: known.bits(), policy: folios, gmem: policy })
    }
}
