//! The interpreter against the host processor, over generated single instructions:
//! `cargo run --release -p cpu --example differential -- [--count N] [--seed S] [--group FILTER] [--stop K] [--all]`.
//!
//! FILTER is `integer`, `x87`, `media`, or part of an encoding's name (`Adc_`, `Cmpxchg`). Mismatches are printed in
//! the form of the committed cases; after K of them (default 20) no more are printed. `--all` includes encodings whose
//! results are approximations. At the end: totals, and the encodings that differ with how often they do.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[path = "../tests/judged/mod.rs"]
mod judged;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use judged::{Interpreter, advertised, known_difference};
    use native::Comparison;
    use native::admit::decode;
    use native::case::CODE_ADDRESS;
    use native::generator::catalogue::approximate;
    use native::generator::{Catalogue, Generator};

    let (mut count, mut seed, mut filter, mut stop, mut all) = (1_000_000_u64, 1_u64, String::new(), 20_u64, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{name} needs a value"));
        match name.as_str() {
            "--count" => count = value()?.parse()?,
            "--seed" => seed = value()?.parse()?,
            "--group" => filter = value()?,
            "--stop" => stop = value()?.parse()?,
            "--all" => all = true,
            _ => return Err(format!("unknown argument {name}; known are --count --seed --group --stop --all").into()),
        }
    }
    let x87 = |code: iced_x86::Code| {
        use iced_x86::CpuidFeature::{FPU, FPU287, FPU387};
        code.cpuid_features().iter().any(|f| matches!(f, FPU | FPU287 | FPU387))
    };
    // Vector and MMX operands, MXCSR and EMMS.
    let media = |code: iced_x86::Code| {
        let op_code = code.op_code();
        let vector = (0..op_code.op_count()).any(|n| format!("{:?}", op_code.op_kind(n)).contains("mm"));
        let name = format!("{:?}", code.mnemonic());
        !x87(code) && (vector && !name.starts_with("Movnti") || name.contains("mxcsr") || name == "Emms")
    };
    let wanted = |code: iced_x86::Code| {
        let by_group = match filter.as_str() {
            "" => true,
            "integer" => !x87(code) && !media(code),
            "x87" => x87(code),
            "media" => media(code),
            part => format!("{code:?}").contains(part),
        };
        by_group && advertised(code) && (all || !approximate(code))
    };
    let catalogue = Catalogue::filtered(wanted);
    println!("{} encodings", catalogue.codes().len());
    let generator = Generator::new(catalogue, seed);
    let mut interpreter = Interpreter::for_this_host();
    let mut wrong: BTreeMap<String, u64> = BTreeMap::new();
    let mut printed = 0;
    let started = Instant::now();
    let summary = native::driver::run(
        &generator,
        0..count,
        Comparison::Architectural(&[]),
        |case| interpreter.execute(case),
        |mismatch| {
            if known_difference(&mismatch) {
                return;
            }
            let code = decode(mismatch.case.code.bytes(), CODE_ADDRESS).code();
            *wrong.entry(format!("{code:?}")).or_default() += 1;
            if printed < stop {
                printed += 1;
                println!("{mismatch}");
            }
        },
    )?;
    let seconds = started.elapsed().as_secs_f64();
    for (code, times) in &wrong {
        println!("{times:8} {code}");
    }
    println!("{} differ. {summary:?}, {:.0} cases/s", wrong.values().sum::<u64>(), count as f64 / seconds);
    Ok(())
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn main() {
    eprintln!("there is no judge on this host");
}
