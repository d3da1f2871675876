//! How many cases a second the judge executes: `cargo run -p native --release --example throughput`.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use native::generator::{Catalogue, Generator};
    use native::judge::Judge;
    use native::{Case, Code, Scope};
    use std::time::Instant;

    let mut judge = Judge::start()?;
    let mut measure = |name: &str, bytes: &[&[u8]], scope: Scope| -> Result<(), Box<dyn std::error::Error>> {
        let mut cases = Vec::new();
        for n in 0..4096 {
            let mut case = Case::new(Code::admit(bytes[n % bytes.len()])?);
            case.scope = case.scope.max(scope);
            let base = case.window.base();
            case.state.gpr.fill(base + 0x800 + n as u64 % 64 * 8);
            cases.push(case);
        }
        let mut best = f64::MAX;
        for _ in 0..20 {
            let start = Instant::now();
            judge.run(&cases, |_, result| assert_eq!(result.state.x87.fcw, 0x37f))?;
            best = best.min(start.elapsed().as_secs_f64() / cases.len() as f64);
        }
        println!("{name:28} {:7.0} ns  {:5.2} M/s", best * 1e9, 1e-6 / best);
        Ok(())
    };
    measure("registers", &[&[0x48, 0x01, 0xd8], &[0x0f, 0xaf, 0xc3], &[0x48, 0xd3, 0xe0]], Scope::Registers)?;
    measure("load", &[&[0x48, 0x8b, 0x01], &[0x03, 0x41, 0x08]], Scope::Memory)?;
    measure("store", &[&[0x48, 0x89, 0x01], &[0x01, 0x41, 0x08], &[0x50]], Scope::Memory)?;
    measure("vector and x87", &[&[0xc5, 0xfd, 0xd4, 0xc1], &[0xd9, 0xe8], &[0x0f, 0x58, 0x01]], Scope::Full)?;
    measure("faulting", &[&[0x0f, 0x0b]], Scope::Registers)?;

    let generator = Generator::new(Catalogue::exact(), 1);
    let start = Instant::now();
    let cases: Vec<Case> = (0..65_536).map(|index| generator.case(index)).collect();
    let made = start.elapsed().as_secs_f64() / cases.len() as f64;
    let start = Instant::now();
    judge.run(&cases, |_, _| ())?;
    let run = start.elapsed().as_secs_f64() / cases.len() as f64;
    println!("{:28} {:7.0} ns  {:5.2} M/s", "generating, all encodings", made * 1e9, 1e-6 / made);
    println!("{:28} {:7.0} ns  {:5.2} M/s", "executing them", run * 1e9, 1e-6 / run);
    Ok(())
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn main() {
    eprintln!("there is no judge on this host");
}
