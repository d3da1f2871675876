//! The driver on the host against itself: two judges agree on every bit of every case, and a side that is wrong is
//! told so.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use native::driver::run;
use native::generator::{Catalogue, Generator};
use native::judge::Judge;
use native::state::{RAX, ZF};
use native::{Comparison, run_differential};

#[test]
fn the_host_agrees_with_itself() {
    let mut other = Judge::start().unwrap();
    let generator = Generator::new(Catalogue::all(), 1);
    let mut first = None;
    let summary = run(
        &generator,
        0..60_000,
        Comparison::Everything,
        |case| other.run_one(case).unwrap(),
        |mismatch| {
            first.get_or_insert(mismatch.to_string());
        },
    )
    .unwrap();
    assert_eq!((summary.mismatches, summary.crashed), (0, 0), "{}", first.unwrap_or_default());
    assert_eq!(summary.compared, 60_000);
    // The generator's aim: most cases complete, and faults are common enough to be tested.
    assert!((3_000..24_000).contains(&summary.faults), "{summary:?}");
}

#[test]
fn a_wrong_side_is_reported() {
    let mut other = Judge::start().unwrap();
    let mut reported = 0;
    let summary = run_differential(
        2,
        2_000,
        |case| {
            let mut result = other.run_one(case).unwrap();
            result.state.gpr[RAX] ^= 1;
            result
        },
        |_| reported += 1,
    )
    .unwrap();
    assert!(summary.mismatches >= summary.compared * 95 / 100, "{summary:?}");
    assert_eq!(reported, summary.mismatches);

    let mut flags = 0;
    run_differential(
        2,
        2_000,
        |case| {
            let mut result = other.run_one(case).unwrap();
            result.state.rflags ^= ZF;
            result
        },
        |_| flags += 1,
    )
    .unwrap();
    assert!(flags > 1_500, "{flags}");
}
