//! Random events that follow each other, against the model.

use oracle::rmp::{Doing, Use};
use oracle::rmp::{Launch, Leaf, NewEntry, Operand, REGION, Who};
use proptest::prelude::*;

use crate::rig::{Event, MINE, OTHER, REGIONS, Rig};

/// Frames that meet each other often, and one that has no entry.
fn frame() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..REGIONS).prop_map(|region| region * REGION),
        4 => (0..REGIONS, 1..4_u64).prop_map(|(region, n)| region * REGION + n),
        1 => 0..REGIONS * REGION + 2,
    ]
}

fn asid() -> impl Strategy<Value = u32> {
    prop_oneof![8 => Just(MINE), 2 => Just(OTHER), 1 => Just(0)]
}

/// The guest has frame n at n, mostly.
fn gpa_of(frame: u64, elsewhere: bool) -> u64 {
    (frame + if elsewhere { REGION } else { 0 }) << 12
}

fn rare() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.1)
}

fn leaf() -> impl Strategy<Value = Leaf> {
    prop_oneof![3 => Just(Leaf::Small), 3 => Just(Leaf::Medium), 1 => Just(Leaf::Huge)]
}

fn operand() -> impl Strategy<Value = Operand> {
    (frame(), rare(), leaf(), asid(), prop_oneof![6 => Just(0), 1 => 1..4_usize]).prop_map(
        |(frame, elsewhere, leaf, asid, vmpl)| {
            let gpa = gpa_of(frame, elsewhere);
            Operand { gva: gpa, gpa, spa: frame << 12, leaf, asid, vmpl }
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let update = (frame(), any::<bool>(), any::<bool>(), rare(), asid(), rare());
    prop_oneof![
        6 => update.prop_map(|(frame, assigned, large, immutable, asid, elsewhere)| {
            let frame = if large { frame / REGION * REGION } else { frame };
            let (gpa, asid) = if assigned { (gpa_of(frame, elsewhere), asid) } else { (0, 0) };
            Event::Update(frame << 12, NewEntry { gpa, assigned, large, immutable: immutable && assigned, asid })
        }),
        2 => frame().prop_map(|frame| Event::Psmash(frame / REGION * REGION << 12)),
        6 => (operand(), any::<bool>(), prop::bool::weighted(0.7))
            .prop_map(|(operand, large, value)| Event::Pvalidate(operand, large, value)),
        3 => (operand(), 0..2_u64, 0..4_u64, 0..0x20_u64, any::<bool>())
            .prop_map(|(operand, rcx, target, mask, vmsa)| Event::Adjust(operand, rcx, target | mask << 8 | u64::from(vmsa) << 16)),
        1 => (frame(), asid(), any::<bool>(), any::<bool>())
            .prop_map(|(frame, asid, large, vmsa)| Event::Launch(frame << 12, Launch { asid, large, vmsa, masks: [1, 3, 0x1f] })),
        1 => (frame(), any::<bool>()).prop_map(|(frame, large)| Event::Reclaim(frame << 12, large)),
        1 => frame().prop_map(|frame| Event::CreateContext(frame << 12)),
        1 => frame().prop_map(|frame| Event::Decommission(frame << 12)),
        1 => frame().prop_map(|frame| Event::Unsmash(frame / REGION * REGION << 12)),
        1 => frame().prop_map(Event::Run),
        2 => frame().prop_map(Event::Stop),
    ]
}

proptest! {
    #[test]
    fn every_history_leaves_the_table_that_the_model_has(
        events in prop::collection::vec(event(), 1..120),
        probe in (frame(), leaf(), 0..4_usize, any::<bool>()),
    ) {
        let mut rig = Rig::new();
        for event in &events {
            rig.apply(event);
            rig.compare(event);
        }
        let (frame, leaf, vmpl, c_bit) = probe;
        for doing in [Doing::Read, Doing::Write, Doing::Fetch, Doing::TableWalk] {
            let spa = frame << 12;
            rig.compare_access(&Use { who: Who::HostOrPlainGuest, doing, user: false, leaf, spa });
            let who = Who::SnpGuest { asid: MINE, gpa: gpa_of(frame, false), c_bit, vmpl };
            rig.compare_access(&Use { who, doing, user: false, leaf, spa });
        }
        prop_assert_eq!(rig.rmp.pages_of(mmu::Asid(MINE)), rig.map.pages_of(MINE));
    }
}
