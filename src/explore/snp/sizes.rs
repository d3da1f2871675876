//! Entries of the reverse map that are split and merged while processors use the 2M behind them.

use emu_core::Gfn;
use emu_core::defect::{Defect, Defects};
use emu_core::sync::Task;
use hypervisor::{RmpSizes, SizeHint};
use interleave::Program;
use mmu::rmp::{Changed, RmpPageSize, Validated};

use super::super::Scenario;
use super::super::world::{QUIET, Setup, World};
use super::SnpSetup;
use super::processor::{Act, Ended, Step, accept, keeps, private};

/// The races.
pub(in crate::explore) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "two-psmash",
        what: "two processors use PVALIDATE on 4K of one 2M entry",
        shows: &[Defect::SecondPsmashFails],
        start: two_psmash,
    },
    Scenario {
        name: "psmash-load",
        what: "an entry is split for one processor while another reads through its 2M leaf",
        shows: &[Defect::PsmashWithoutZap, Defect::PsmashAfterUnlock, Defect::ResizeWithoutFlush],
        start: psmash_and_load,
    },
    Scenario {
        name: "merge-pvalidate",
        what: "512 entries are merged while a processor uses PVALIDATE on one of them and another reads",
        shows: &[Defect::MergeAnew],
        start: merge_and_pvalidate,
    },
];

const BYTES: u64 = 0x5ec2e7;

const fn withdraw(gfn: u64) -> Step {
    private(gfn, Act::Pvalidate(RmpPageSize::Size4K, Validated::No))
}

/// A world whose first 2M the guest has accepted as one, with bytes in page 9 that both processors have seen.
fn accepted(setup: Setup) -> std::rc::Rc<World> {
    let world = setup.build();
    let stored = world.snp_takes(0, &[accept(0, RmpPageSize::Size2M), private(9, Act::Store(BYTES))]);
    assert_eq!(stored, Ended::Stored, "the guest has accepted the page");
    assert_eq!(world.snp_takes(1, &[private(9, Act::Load)]), Ended::Loaded(BYTES));
    world
}

/// PVALIDATE finds what it should, and no page is touched beside.
fn changes(world: &World, step: Step, ended: Ended) {
    match ended {
        Ended::Pvalidated(Ok(Changed::Yes)) => {}
        other => world.broken("H6", format_args!("PVALIDATE of guest frame {:#x} came to {other:?}", step.gfn)),
    }
}

fn two_psmash(defects: Defects) -> Program {
    let world = accepted(Setup::huge_snp(defects));
    let threads = vec![
        ("vcpu 0", world.snp_guest(0, vec![withdraw(3)], changes)),
        ("vcpu 1", world.snp_guest(1, vec![withdraw(8)], changes)),
    ];
    world.program_that_ends(threads, |world| {
        let (rmp, _) = world.vm.rmp().expect("it is an SNP guest");
        for gfn in [0, 3, 8, 9, 511] {
            let validated = rmp.entry(world.frame(gfn)).is_some_and(|entry| entry.validated());
            if validated == [3, 8].contains(&gfn) {
                world.broken("H5", format_args!("guest frame {gfn:#x} is accepted: {validated}"));
            }
        }
    })
}

fn psmash_and_load(defects: Defects) -> Program {
    let world = accepted(Setup::huge_snp(defects));
    let load = private(9, Act::Load);
    let threads = vec![
        ("vcpu 0", world.snp_guest(0, vec![withdraw(3)], changes)),
        ("vcpu 1", world.snp_guest(1, vec![load, load], keeps("H6", BYTES))),
    ];
    world.program(threads)
}

fn merge_and_pvalidate(defects: Defects) -> Program {
    let policy = SnpSetup { sizes: RmpSizes::MergeBack, ..SnpSetup::USUAL };
    let world = accepted(Setup { snp: Some(policy), ..Setup::huge_snp(defects) });
    world.vm.size_hint(Gfn::new(0), SizeHint::Psmash, QUIET).expect("tables lie in memory");
    let merge = |world: &World, task: &Task<'_>| {
        world.vm.size_hint(Gfn::new(0), SizeHint::Unsmash, task).expect("tables lie in memory");
    };
    let again = accept(8, RmpPageSize::Size4K);
    let threads = vec![
        ("merger", world.host(merge)),
        ("vcpu 0", world.snp_guest(0, vec![withdraw(8), again], changes)),
        ("vcpu 1", world.snp_guest(1, vec![private(9, Act::Load)], keeps("H6", BYTES))),
    ];
    world.program(threads)
}
