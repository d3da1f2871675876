//! Prints instructions a second of a small loop: a quick look, not a benchmark.
#[path = "../tests/common/mod.rs"]
mod common;

fn main() {
    let code = [
        0xb9, 0xff, 0xff, 0xff, 0x7f, 0x31, 0xc0, 0x48, 0x01, 0xc8, 0x48, 0x89, 0x04, 0x24, 0x48, 0x03, 0x14, 0x24,
        0x48, 0x83, 0xe9, 0x01, 0x75, 0xef, 0xeb, 0xfe,
    ];
    let (mut vcpu, _) = common::long_mode(&code);
    let start = std::time::Instant::now();
    let units = 500_000_000;
    common::run(&mut vcpu, units);
    println!("{:.0} MIPS", units as f64 / start.elapsed().as_secs_f64() / 1e6);
}
