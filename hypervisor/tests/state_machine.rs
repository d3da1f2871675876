//! Histories of a VM over the whole of its interface, held to a plain model of sets and bytes: files, memslots of every
//! kind, faults and accesses of two processors with TLBs, conversions, holes, pins, memory failures, user memory, dirty
//! logging, aging, splitting, and every policy of guest_memfd. After each call every invariant is looked at, and at the
//! end every byte. What fails is made short.
//!
//! One call ends before the next begins; `interleaved.rs` and `bifold explore` let them overlap. A long run:
//!
//! ```text
//! HISTORIES=1000000 SEED=1 cargo test --release -p hypervisor --test state_machine many -- --nocapture
//! ```

mod reader;
mod states;

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use states::model::{Answer, Model, Op};
use states::ops;
use states::system::System;

/// The plain model, for the generator.
struct Plain;

impl ReferenceStateMachine for Plain {
    type State = Model;
    type Transition = Op;

    fn init_state() -> BoxedStrategy<Model> {
        ops::shape().prop_map(Model::new).boxed()
    }

    fn transitions(_: &Model) -> BoxedStrategy<Op> {
        thread_local!(static OP: BoxedStrategy<Op> = ops::op());
        OP.with(Clone::clone)
    }

    fn apply(mut state: Model, op: &Op) -> Model {
        state.apply(op);
        state
    }

    fn preconditions(state: &Model, op: &Op) -> bool {
        state.can(op)
    }
}

struct Real;

impl StateMachineTest for Real {
    type SystemUnderTest = System;
    type Reference = Plain;

    fn init_test(model: &Model) -> System {
        System::new(&model.shape)
    }

    fn apply(mut system: System, after: &Model, op: Op) -> System {
        let answer = system.perform(&op, after);
        match (&answer, &after.answer) {
            // Pages may be told that nobody wrote; none that somebody did may be missing.
            (Answer::Written(told), Answer::Written(must)) => {
                assert!(told.is_superset(must), "{op:?} told {told:?} and lost some of {must:?}");
            }
            (answer, expected) => assert_eq!(answer, expected, "{op:?}"),
        }
        system.check(after);
        system
    }

    fn teardown(system: System, model: Model) {
        system.finish(&model);
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 20_000, ..ProptestConfig::default() })]
    #[test]
    fn the_vm_does_what_the_model_says(sequential 1..60 => Real);
}

fn asked(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// As many histories as `HISTORIES` says, from `SEED` on: the same ones every time.
#[test]
fn many_histories() {
    let (wanted, seed) = (asked("HISTORIES", 200), asked("SEED", 0));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    // Calls that cannot be made are drawn again: how often says nothing.
    let rejects = u32::MAX;
    let config = ProptestConfig {
        cases: wanted as u32,
        max_shrink_iters: 20_000,
        max_local_rejects: rejects,
        max_global_rejects: rejects,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new_with_rng(config.clone(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let histories = core::cell::Cell::new(0_u64);
    let calls = core::cell::Cell::new(0_u64);
    let outcome = runner.run(&Plain::sequential_strategy(1..60), |(model, ops, seen)| {
        calls.set(calls.get() + ops.len() as u64);
        Real::test_sequential(config.clone(), model, ops, seen);
        histories.set(histories.get() + 1);
        if histories.get().is_multiple_of(5_000) {
            eprintln!("{} histories, {} calls", histories.get(), calls.get());
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("seed {seed}: {error}");
    }
    eprintln!("{} histories, {} calls, nothing broke", histories.get(), calls.get());
}
