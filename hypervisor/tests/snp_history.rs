//! Random histories of an SNP guest's memory against a plain model: page states, holes, PVALIDATE at both sizes, hints,
//! launched pages and accesses to both sides, under every policy of assignment and of guest_memfd. After each step every
//! invariant is looked at, those of the reverse map among them.

mod reader;
mod snp_processor;

use emu_core::sev::CBit;
use emu_core::{AccessKind, Gfn, Gpa, PageSize};
use gmem::GmemPolicy;
use gmem::policy::{Content, OrderRule, PunchPolicy, SharedFolios, SplitPolicy};
use hypervisor::check::CheckHistory;
use hypervisor::*;
use mmu::rmp::{Changed, RmpError, RmpPageSize, Validated};
use proptest::prelude::*;
use snp_processor::{M2, PAGE, QUIET, Seen, SnpMachine};

const PAGES: u64 = 4 * M2;

#[derive(Clone, Debug)]
enum Op {
    Change { first: u64, nr_pages: u64, to: Shareability },
    Punch { first: u64, nr_pages: u64 },
    Pvalidate { gfn: u64, size: RmpPageSize, validated: Validated },
    Hint { gfn: u64, hint: SizeHint },
    Write { gfn: u64, value: u8, c_bit: CBit },
    Read { gfn: u64 },
    HostWrite { gfn: u64, value: u8 },
    Launch { gfn: u64, value: Option<u8> },
    Zap { first: u64, nr_pages: u64 },
}

/// What the guest knows of a page.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Page {
    private: bool,
    accepted: bool,
    /// What its first byte is on the side that it is on; `None` after it changed sides.
    byte: Option<u8>,
}

fn page() -> impl Strategy<Value = u64> {
    (0..PAGES / M2, prop_oneof![Just(0), Just(1), Just(2), Just(M2 / 2), Just(M2 - 1)])
        .prop_map(|(block, near)| block * M2 + near)
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    let aligned = (0..PAGES / M2).prop_map(|block| (block * M2, M2));
    let any = (page(), prop_oneof![Just(1), Just(3), Just(M2 / 2), Just(M2), Just(M2 + 2)]);
    prop_oneof![2 => aligned, 3 => any.prop_map(|(first, nr_pages)| (first, nr_pages.min(PAGES - first)))]
}

fn op() -> impl Strategy<Value = Op> {
    let to = prop_oneof![Just(Shareability::SHARED), Just(Shareability::PRIVATE)];
    let c_bit = prop_oneof![2 => Just(CBit::Set), 1 => Just(CBit::Clear)];
    let size = prop_oneof![Just(RmpPageSize::Size4K), Just(RmpPageSize::Size2M)];
    let validated = prop_oneof![3 => Just(Validated::Yes), 1 => Just(Validated::No)];
    let hint = prop_oneof![1 => Just(SizeHint::Psmash), 2 => Just(SizeHint::Unsmash)];
    prop_oneof![
        4 => (range(), to).prop_map(|((first, nr_pages), to)| Op::Change { first, nr_pages, to }),
        2 => range().prop_map(|(first, nr_pages)| Op::Punch { first, nr_pages }),
        6 => (page(), size, validated).prop_map(|(gfn, size, validated)| match size {
            RmpPageSize::Size4K => Op::Pvalidate { gfn, size, validated },
            RmpPageSize::Size2M => Op::Pvalidate { gfn: gfn & !(M2 - 1), size, validated },
        }),
        2 => (page(), hint).prop_map(|(gfn, hint)| Op::Hint { gfn, hint }),
        6 => (page(), any::<u8>(), c_bit).prop_map(|(gfn, value, c_bit)| Op::Write { gfn, value, c_bit }),
        4 => page().prop_map(|gfn| Op::Read { gfn }),
        2 => (page(), any::<u8>()).prop_map(|(gfn, value)| Op::HostWrite { gfn, value }),
        2 => (page(), any::<Option<u8>>()).prop_map(|(gfn, value)| Op::Launch { gfn, value }),
        1 => range().prop_map(|(first, nr_pages)| Op::Zap { first, nr_pages }),
    ]
}

fn policy() -> impl Strategy<Value = GmemPolicy> {
    let split = prop_oneof![
        2 => Just(SplitPolicy::EagerIntermediate),
        1 => Just(SplitPolicy::Eager4K),
        1 => Just(SplitPolicy::Lazy),
        1 => Just(SplitPolicy::Always4K)
    ];
    let shared = prop_oneof![Just(SharedFolios::WholeIfInitShared), Just(SharedFolios::Whole)];
    let punch = prop_oneof![Just(PunchPolicy::ZeroPartial), Just(PunchPolicy::SplitAndFree)];
    let order = prop_oneof![2 => Just(OrderRule::Contained), 1 => Just(OrderRule::AlwaysZero)];
    let content = || prop_oneof![2 => Just(Content::Preserve), 1 => Just(Content::Zero)];
    (split, shared, punch, order, content(), content()).prop_map(
        |(split, shared, punch, order, to_shared, to_private)| GmemPolicy {
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

struct World {
    machine: SnpMachine,
    pages: Vec<Page>,
    history: CheckHistory,
}

impl World {
    fn of(&mut self, first: u64, nr_pages: u64) -> &mut [Page] {
        &mut self.pages[first as usize..(first + nr_pages) as usize]
    }

    fn step(&mut self, op: &Op) {
        let machine = &self.machine;
        let at = |gfn: u64| self.pages[gfn as usize];
        match *op {
            Op::Change { first, nr_pages, to } => {
                machine.change(first, nr_pages, to);
                for page in self.of(first, nr_pages).iter_mut().filter(|page| page.private != to.is_private()) {
                    *page = Page { private: to.is_private(), accepted: false, byte: None };
                }
            }
            Op::Punch { first, nr_pages } => {
                machine.vm.punch_hole(machine.gmem, first * PAGE, nr_pages * PAGE, QUIET).unwrap();
                for page in self.of(first, nr_pages) {
                    *page = Page { accepted: false, byte: (!page.private).then_some(0), ..*page };
                }
            }
            Op::Pvalidate { gfn, size, validated } => {
                let nr_pages = size.frames();
                if !(gfn..gfn + nr_pages).all(|gfn| at(gfn).private) {
                    return;
                }
                let on = validated == Validated::Yes;
                let (done, _) = machine.pvalidate(gfn, size, validated);
                let pages = self.of(gfn, nr_pages);
                match done {
                    Ok(changed) => {
                        let was = (changed == Changed::Yes) != on;
                        assert!(pages.iter().all(|page| page.accepted == was), "{op:?} found {changed:?}");
                        pages.iter_mut().for_each(|page| page.accepted = on);
                    }
                    Err(error) => {
                        assert_eq!((error, size), (RmpError::FailSizeMismatch, RmpPageSize::Size2M), "{op:?}");
                    }
                }
            }
            Op::Hint { gfn, hint } => machine.vm.size_hint(Gfn::new(gfn), hint, QUIET).unwrap(),
            Op::Write { gfn, value, c_bit } => {
                let page = at(gfn);
                let seen = machine.access(gfn, AccessKind::Write, c_bit);
                match (c_bit.is_set() == page.private, !page.private || page.accepted) {
                    (false, _) => assert_eq!(seen, Seen::Exit(MemoryFaultReason::PrivacyMismatch), "{op:?}"),
                    (true, false) => assert_eq!(seen, Seen::NotValidated, "{op:?}"),
                    (true, true) => {
                        assert!(matches!(seen, Seen::Done(_)), "{op:?}: {seen:?}");
                        match page.private {
                            true => machine.write(gfn, &[value]),
                            false => machine.vm.memory().write(machine.sfn(gfn).unwrap().base(), &[value]).unwrap(),
                        }
                        self.of(gfn, 1)[0].byte = Some(value);
                    }
                }
            }
            Op::Read { gfn } => {
                let page = at(gfn);
                let c_bit = if page.private { CBit::Set } else { CBit::Clear };
                let seen = machine.access(gfn, AccessKind::Read, c_bit);
                if page.private && !page.accepted {
                    assert_eq!(seen, Seen::NotValidated, "{op:?}");
                    return;
                }
                assert!(matches!(seen, Seen::Done(_)), "{op:?}: {seen:?}");
                let bytes = if page.private { machine.read(gfn) } else { machine.raw(machine.sfn(gfn).unwrap()) };
                assert!(page.byte.is_none_or(|byte| byte == bytes[0]), "{op:?}: {bytes:x?}, not {page:?}");
            }
            Op::HostWrite { gfn, value } => {
                let done = machine.vm.guest_write(Gpa::new(gfn * PAGE), &[value], QUIET);
                assert_eq!(done.is_ok(), !at(gfn).private, "{op:?}");
                if done.is_ok() {
                    self.of(gfn, 1)[0].byte = Some(value);
                }
            }
            Op::Launch { gfn, value } => {
                let bytes = vec![value.unwrap_or(0); PAGE as usize];
                let (content, page_type) = match value {
                    Some(_) => (LaunchContent::Bytes(&bytes), SnpPageType::Normal),
                    None => (LaunchContent::Zero { nr_pages: 1 }, SnpPageType::Zero),
                };
                let page = at(gfn);
                match machine.launch(gfn, content, page_type) {
                    Ok(_) => {
                        assert!(page.private && !page.accepted, "{op:?}");
                        self.of(gfn, 1)[0] = Page { private: true, accepted: true, byte: Some(value.unwrap_or(0)) };
                    }
                    Err(LaunchError::Shared { .. }) => assert!(!page.private, "{op:?}"),
                    Err(error) => {
                        assert!(page.private && matches!(error, LaunchError::Assigned { .. }), "{op:?}: {error}")
                    }
                }
            }
            Op::Zap { first, nr_pages } => machine.vm.zap_range(Gfn::new(first), nr_pages, QUIET).unwrap(),
        }
    }

    fn check(&mut self, op: &Op) {
        let checked = self.machine.vm.check_quiescent(&mut self.history);
        assert_eq!(checked, Ok(()), "after {op:?}");
    }

    fn finish(self) {
        let SnpMachine { vm, rmp, gmem } = self.machine;
        vm.close_descriptor(gmem, QUIET).unwrap();
        assert_eq!(rmp.pages_of(snp_processor::ASID), 0, "the guest's pages came back");
        let host = vm.host().lock(QUIET).stats();
        assert_eq!((host.leaked_frames, host.folios[1], host.folios[2]), (0, 0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn a_guest_finds_its_memory_as_it_left_it_whatever_the_hypervisor_did(
        large in any::<bool>(),
        assign in prop_oneof![Just(Assign::Lazy), Just(Assign::Eager)],
        sizes in prop_oneof![1 => Just(RmpSizes::Only4K), 2 => Just(RmpSizes::UpTo2M), 2 => Just(RmpSizes::MergeBack)],
        policy in policy(),
        ops in prop::collection::vec(op(), 1..40),
    ) {
        let folio = if large { PageSize::Size2M } else { PageSize::Size4K };
        let machine = SnpMachine::with(folio, PAGES * PAGE, assign, sizes, policy);
        let fresh = Page { private: true, accepted: false, byte: None };
        let mut world = World { machine, pages: vec![fresh; PAGES as usize], history: CheckHistory::new() };
        for op in &ops {
            world.step(op);
            world.check(op);
        }
        world.finish();
    }
}
