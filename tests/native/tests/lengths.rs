//! Lengths and invalid opcodes: the decoder and the host agree on random byte strings.
//!
//! With its last bytes in a page that is not present, an instruction is a page fault on fetch until all of it is
//! there.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use native::admit::decode;
use native::generator::ByteGenerator;
use native::judge::Judge;
use native::window::PAGE;
use native::{Case, Fault, Outcome};

/// Whether the instruction ran into the page behind the code.
fn too_short(case: &Case, outcome: Outcome) -> bool {
    let end = case.rip() / PAGE * PAGE + PAGE;
    matches!(outcome, Outcome::Fault(Fault { vector: 14, cr2: Some(cr2), .. }) if cr2 == end)
}

#[test]
fn the_host_fetches_as_many_bytes_as_are_decoded() {
    let generator = ByteGenerator::new(1);
    let mut cases = Vec::new();
    for index in 0..60_000 {
        let instruction = decode(&generator.bytes(index), 0);
        if !instruction.is_invalid() {
            let len = instruction.len() as u8;
            cases.extend([len - 1, len].into_iter().filter_map(|n| generator.length_case(index, n)));
        }
    }
    let mut wrong = Vec::new();
    Judge::start()
        .unwrap()
        .run(&cases, |case, result| {
            let whole = case.present_len() == case.code.bytes().len();
            if too_short(case, result.outcome) == whole && case.present_len() > 0 {
                wrong.push(format!("{:?} {case} {:?}", decode(case.code.bytes(), 0).code(), result.outcome));
            }
        })
        .unwrap();
    assert!(cases.len() > 10_000);
    assert!(wrong.is_empty(), "{} of {}: {:#?}", wrong.len(), cases.len(), &wrong[..wrong.len().min(40)]);
}

#[test]
fn what_does_not_decode_is_an_invalid_opcode() {
    let generator = ByteGenerator::new(2);
    let cases: Vec<Case> = (0..200_000)
        .filter(|&index| decode(&generator.bytes(index), 0).is_invalid())
        .filter_map(|index| generator.length_case(index, 15))
        .collect();
    let mut wrong = Vec::new();
    Judge::start()
        .unwrap()
        .run(&cases, |case, result| {
            // LOCK before SLDT to VERW: Zen 4 reads the operand before it refuses the prefix.
            let system_read = case.code.bytes().windows(2).any(|pair| pair == [0x0f, 0x00]);
            let locked = case.code.bytes().contains(&0xf0);
            let refused = matches!(result.outcome, Outcome::Fault(Fault { vector: 6 | 13, .. }));
            if !(refused || locked && system_read) {
                wrong.push(format!("{case} {:?}", result.outcome));
            }
        })
        .unwrap();
    assert!(cases.len() > 2_000, "{}", cases.len());
    assert!(wrong.is_empty(), "{} of {}: {:#?}", wrong.len(), cases.len(), &wrong[..wrong.len().min(60)]);
}
