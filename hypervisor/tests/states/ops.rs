//! How histories come about.

use emu_core::{AccessKind, PageSize};
use gmem::policy::{Content, Generation, OrderRule, PunchPolicy, Quirks, SharedFolios, SplitPolicy};
use gmem::{FolioPolicy, GmemPolicy, Shareability};
use hypervisor::tdp::AdType;
use hypervisor::{
    Aging, EagerPageSplit, ManualProtect, MmioCaching, MmuParams, NxHugePages, PagePolicy, Pml, TdpFormat, VmKind,
};
use proptest::prelude::*;

use super::model::{GUEST_PAGES, HANDLES, INODE_PAGES, M2, Op, Shape, USER_PAGES};

fn kind() -> impl Strategy<Value = AccessKind> {
    prop_oneof![3 => Just(AccessKind::Write), 2 => Just(AccessKind::Read), 1 => Just(AccessKind::Execute)]
}

fn privacy() -> impl Strategy<Value = Shareability> {
    prop_oneof![2 => Just(Shareability::SHARED), 1 => Just(Shareability::PRIVATE)]
}

/// Page numbers around the edges of 2M pages, where levels change.
fn page(of: u64) -> impl Strategy<Value = u64> {
    let near = prop_oneof![Just(0_u64), Just(1), Just(2), Just(M2 / 2), Just(M2 - 1)];
    (0..of / M2, near).prop_map(|(block, near)| block * M2 + near)
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        5 => Just(1_u64),
        4 => Just(3),
        1 => Just(M2 / 2),
        2 => Just(M2),
        1 => Just(M2 + 2),
        1 => Just(2 * M2)
    ]
}

/// A range that stays below `of`.
fn range(of: u64) -> impl Strategy<Value = (u64, u64)> {
    (page(of), length()).prop_map(move |(first, nr_pages)| (first, nr_pages.min(of - first)))
}

fn handle() -> impl Strategy<Value = usize> {
    0..HANDLES
}

fn vcpu() -> impl Strategy<Value = u16> {
    0_u16..2
}

fn id() -> impl Strategy<Value = u16> {
    0_u16..4
}

fn slots() -> impl Strategy<Value = Op> {
    let gmem = (id(), page(GUEST_PAGES), length(), handle(), page(INODE_PAGES), prop::bool::weighted(0.1));
    // Where frames and pages agree, leaves can be large.
    let aligned = (id(), 0..GUEST_PAGES / M2, handle()).prop_map(|(id, block, handle)| {
        let (first, nr_pages, offset, readonly) = (block * M2, INODE_PAGES, 0, false);
        Op::AddSlot { id, first, nr_pages, handle, offset, readonly }
    });
    prop_oneof![
        3 => aligned,
        3 => gmem.prop_map(|(id, first, nr_pages, handle, offset, readonly)| {
            Op::AddSlot { id, first, nr_pages, handle, offset, readonly }
        }),
        2 => (id(), page(GUEST_PAGES), range(USER_PAGES), prop::bool::weighted(0.1)).prop_map(
            |(id, first, (page, nr_pages), readonly)| Op::AddUserSlot { id, first, nr_pages, page, readonly }
        ),
        1 => id().prop_map(|id| Op::RemoveSlot { id }),
        1 => (id(), page(GUEST_PAGES)).prop_map(|(id, first)| Op::MoveSlot { id, first }),
    ]
}

fn guest() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (vcpu(), page(GUEST_PAGES), kind(), any::<u8>())
            .prop_map(|(vcpu, gfn, kind, value)| Op::Access { vcpu, gfn, kind, value }),
        1 => (vcpu(), page(GUEST_PAGES), kind(), privacy())
            .prop_map(|(vcpu, gfn, kind, privacy)| Op::Fault { vcpu, gfn, kind, privacy }),
        1 => (vcpu(), page(GUEST_PAGES), 1_u64..3)
            .prop_map(|(vcpu, gfn, nr_pages)| Op::PreFault { vcpu, gfn, nr_pages: nr_pages.min(GUEST_PAGES - gfn) }),
    ]
}

fn files() -> impl Strategy<Value = Op> {
    let any_range = || (page(INODE_PAGES), length());
    prop_oneof![
        1 => handle().prop_map(|handle| Op::Create { handle }),
        1 => handle().prop_map(|handle| Op::Close { handle }),
        8 => (handle(), any_range(), privacy())
            .prop_map(|(handle, (first, nr_pages), to)| Op::Convert { handle, first, nr_pages, to }),
        4 => (range(GUEST_PAGES), privacy())
            .prop_map(|((first, nr_pages), to)| Op::SetAttributes { first, nr_pages, to }),
        6 => (handle(), any_range()).prop_map(|(handle, (first, nr_pages))| Op::Punch { handle, first, nr_pages }),
        3 => (handle(), any_range()).prop_map(|(handle, (first, nr_pages))| Op::Populate { handle, first, nr_pages }),
        3 => (handle(), page(INODE_PAGES)).prop_map(|(handle, index)| Op::Pin { handle, index }),
        2 => (0_usize..3).prop_map(|nth| Op::Unpin { nth }),
        1 => (handle(), page(INODE_PAGES)).prop_map(|(handle, index)| Op::Fail { handle, index }),
    ]
}

fn vmm() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => page(GUEST_PAGES).prop_map(|gfn| Op::HostRead { gfn }),
        2 => (page(GUEST_PAGES), any::<u8>()).prop_map(|(gfn, value)| Op::HostWrite { gfn, value }),
        1 => (page(GUEST_PAGES), any::<u8>()).prop_map(|(gfn, value)| Op::HostMap { gfn, value }),
        1 => page(USER_PAGES).prop_map(|page| Op::UserRead { page }),
        1 => (page(USER_PAGES), any::<u8>()).prop_map(|(page, value)| Op::UserWrite { page, value }),
        1 => range(USER_PAGES).prop_map(|(page, nr_pages)| Op::DontNeed { page, nr_pages }),
        1 => range(USER_PAGES).prop_map(|(page, nr_pages)| Op::PageOut { page, nr_pages }),
        1 => range(USER_PAGES).prop_map(|(page, nr_pages)| Op::Remap { page, nr_pages }),
    ]
}

fn mmu() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (id(), prop::bool::weighted(0.7)).prop_map(|(id, on)| Op::Log { id, on }),
        4 => id().prop_map(|id| Op::Harvest { id }),
        2 => range(GUEST_PAGES).prop_map(|(first, nr_pages)| Op::Zap { first, nr_pages }),
        1 => Just(Op::ZapAll),
        1 => Just(Op::ZapAllFast),
        2 => range(GUEST_PAGES).prop_map(|(first, nr_pages)| Op::SplitAtEnds { first, nr_pages }),
        2 => (range(GUEST_PAGES), prop_oneof![Just(Aging::Clear), Just(Aging::Test)])
            .prop_map(|((first, nr_pages), aging)| Op::Age { first, nr_pages, aging }),
        1 => prop_oneof![Just(NxHugePages::On), Just(NxHugePages::Off)].prop_map(|to| Op::Nx { to }),
        1 => (0_u32..3).prop_map(|ratio| Op::RecoverNx { ratio }),
    ]
}

/// One call.
pub fn op() -> BoxedStrategy<Op> {
    // Boxed one by one: a choice is as large as all of its parts.
    prop_oneof![3 => slots().boxed(), 8 => guest().boxed(), 5 => files().boxed(), 3 => vmm().boxed(), 3 => mmu().boxed()]
        .boxed()
}

fn pages() -> impl Strategy<Value = PagePolicy> {
    prop_oneof![
        1 => Just(PagePolicy::of(PageSize::Size4K)),
        3 => Just(PagePolicy::of(PageSize::Size2M)),
        1 => Just(PagePolicy {
            folios: FolioPolicy::Buddy { largest: PageSize::Size2M },
            max_level: PageSize::Size1G
        }),
        1 => Just(PagePolicy { max_level: PageSize::Size4K, ..PagePolicy::of(PageSize::Size2M) }),
    ]
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![2 => Just(Content::Preserve), 1 => Just(Content::Zero)]
}

/// Every decision, without any generation's mistakes.
fn gmem() -> impl Strategy<Value = GmemPolicy> {
    let generation = prop_oneof![
        3 => Just(Generation::Next),
        2 => Just(Generation::V7_3),
        1 => Just(Generation::V1),
        1 => Just(Generation::V2),
        1 => Just(Generation::Wip),
    ];
    let split = prop_oneof![
        Just(SplitPolicy::EagerIntermediate),
        Just(SplitPolicy::Eager4K),
        Just(SplitPolicy::Lazy),
        Just(SplitPolicy::Always4K)
    ];
    let shared = prop_oneof![2 => Just(SharedFolios::Split), 1 => Just(SharedFolios::WholeIfInitShared), 1 => Just(SharedFolios::Whole)];
    let punch = prop_oneof![
        2 => Just(PunchPolicy::ZeroPartial),
        1 => Just(PunchPolicy::Refuse),
        2 => Just(PunchPolicy::SplitAndFree)
    ];
    let order = prop_oneof![
        4 => Just(OrderRule::Contained),
        1 => Just(OrderRule::AllOrNothing),
        1 => Just(OrderRule::ContainedOrZero),
        1 => Just(OrderRule::AlwaysZero)
    ];
    (generation, split, shared, punch, order, content(), content()).prop_map(
        |(generation, split, shared, punch, order, to_shared, to_private)| GmemPolicy {
            generation,
            quirks: Quirks::empty(),
            split,
            shared,
            punch,
            order,
            to_shared,
            to_private,
            ..GmemPolicy::DEFAULT
        },
    )
}

fn params() -> impl Strategy<Value = MmuParams> {
    let ad = prop_oneof![2 => Just(AdType::Enabled), 1 => Just(AdType::Disabled)];
    let eager = prop_oneof![Just(EagerPageSplit::On), Just(EagerPageSplit::Off)];
    let manual = prop_oneof![Just(ManualProtect::Off), Just(ManualProtect::On), Just(ManualProtect::InitiallySet)];
    let mmio = prop_oneof![Just(MmioCaching::On), Just(MmioCaching::Off)];
    let nx = prop_oneof![3 => Just(NxHugePages::Off), 1 => Just(NxHugePages::On)];
    (ad, eager, manual, mmio, nx, any::<bool>()).prop_map(
        |(ad, eager_page_split, manual_protect, mmio_caching, nx_huge_pages, pml)| {
            let pml = if pml && ad == AdType::Enabled { Pml::On } else { Pml::Off };
            MmuParams { ad, eager_page_split, manual_protect, mmio_caching, nx_huge_pages, pml, ..MmuParams::default() }
        },
    )
}

/// What VMs are made of.
pub fn shape() -> impl Strategy<Value = Shape> {
    let format = prop_oneof![Just(TdpFormat::Npt), Just(TdpFormat::Ept)];
    (format, pages(), gmem(), params(), privacy(), any::<bool>()).prop_map(
        |(format, pages, gmem, mut params, initial, default)| {
            if format == TdpFormat::Npt {
                params.ad = AdType::Enabled;
            }
            let by_vm = !gmem.generation.has_inode_attributes();
            let kind = if default && !by_vm { VmKind::Default } else { VmKind::SwProtected };
            let initial = if by_vm { Shareability::SHARED } else { initial };
            Shape { format, pages, gmem, kind, params, initial }
        },
    )
}
