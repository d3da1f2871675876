//! Fills in what the host answers: reads lines `BYTES | STATE` (what stands behind `=>` is replaced), writes whole
//! cases: `cargo run -p native --example record < draft.ins > tests/native/cases/subject.ins`.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use native::casefile::{Record, parse_case};
    use native::judge::Judge;

    let mut judge = Judge::start()?;
    for (n, line) in std::io::stdin().lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            println!("{line}");
            continue;
        }
        let before = line.split_once("=>").map_or(line.as_str(), |(before, _)| before);
        let case = parse_case(before).map_err(|error| format!("line {}: {error}", n + 1))?;
        let expected = judge.run_one(&case)?;
        println!("{}", Record { case, expected });
    }
    Ok(())
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn main() {
    eprintln!("there is no judge on this host");
}
