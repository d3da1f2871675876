//! The host against itself over many cases, forwards and backwards, with statistics of how they end:
//! `cargo run -p native --release --example soak -- [CASES] [SEED]`.
//!
//! A difference means that an answer depends on what ran before it, or that the host gives no fixed answer.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::collections::BTreeMap;

    use native::admit::decode;
    use native::generator::{Catalogue, Generator};
    use native::judge::Judge;
    use native::{Case, Comparison, Outcome};

    let mut arguments = std::env::args().skip(1);
    let count: u64 = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let seed: u64 = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let generator = Generator::new(Catalogue::all(), seed);
    let (mut one, mut two) = (Judge::start()?, Judge::start()?);
    let mut endings: BTreeMap<String, u64> = BTreeMap::new();
    let mut codes: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    for start in (0..count).step_by(4096) {
        let mut cases: Vec<Case> = (start..count.min(start + 4096)).map(|index| generator.case(index)).collect();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        one.run(&cases, |_, result| first.push(result))?;
        cases.reverse();
        two.run(&cases, |_, result| second.push(result))?;
        for ((case, theirs), ours) in cases.iter().zip(first.iter().rev()).zip(&second) {
            if let Err(mismatch) = Comparison::Everything.compare(case, theirs, ours) {
                println!("{mismatch}");
            }
            let (ending, fault) = match theirs.outcome {
                Outcome::Completed { rip_delta } if rip_delta == case.code.bytes().len() as i64 => ("end".into(), 0),
                Outcome::Completed { .. } => ("away".into(), 0),
                Outcome::Fault(fault) => (format!("vector {} code {:x}", fault.vector, fault.error_code), 1),
                Outcome::Crashed(crash) => (format!("{crash:?} {case}"), 1),
            };
            *endings.entry(ending).or_default() += 1;
            let code = decode(case.code.bytes(), case.rip()).code();
            let entry = codes.entry(format!("{code:?}")).or_default();
            entry[0] += 1;
            entry[1] += fault;
        }
    }
    for (ending, n) in &endings {
        println!("{n:9} {ending}");
    }
    println!("encodings that fault in more than half of their cases:");
    for (code, [n, faults]) in codes.iter().filter(|(_, [n, faults])| faults * 2 > *n) {
        println!("  {code}: {faults} of {n}");
    }
    Ok(())
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn main() {
    eprintln!("there is no judge on this host");
}
