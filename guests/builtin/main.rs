//! The built-in guest: a kernel that checks the paging it runs on.
//!
//! It starts by PVH, builds its own page tables over every page size, maps, unmaps and touches, takes its own page
//! faults and compares error codes, CR2 and accessed/dirty bits with what the manuals say (APM vol. 2, "Page Translation
//! and Protection"; Intel SDM vol. 3, "Paging"). COM1 shows a table of checks by page size; the debug-exit port receives 0
//! when all passed. It adapts to the RAM that PVH tells of; 64 MiB are enough.
#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn, unsafe_code)]

mod checks;
mod console;
mod cpu;
mod memory;
mod paging;
mod pressure;
mod rights;
mod traps;

use checks::{Bench, Done, Failure};
use console::{Verdict, exit};
use paging::Size;

const MEMORY_NEEDED: u64 = 48 << 20;

type Check = fn(&Bench, Size) -> Result<Done, Failure>;

/// The rows of the report.
const CHECKS: [(&str, Check); 12] = [
    ("patterns by two addresses", checks::patterns),
    ("accessed and dirty bits", checks::accessed_dirty),
    ("not present", checks::not_present),
    ("write protection, CR0.WP", rights::write_protect),
    ("no-execute", rights::no_execute),
    ("user and supervisor", rights::user),
    ("reserved bits", rights::reserved),
    ("SMEP and SMAP", rights::smep_smap),
    ("INVLPG", checks::invlpg),
    ("CR3 reload, global pages", checks::reload),
    ("split and collapse", checks::split),
    ("demand paging", checks::demand),
];

/// Called by `boot.s` with the physical address of `hvm_start_info`.
#[expect(unsafe_code, reason = "assembly calls it by this name")]
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) -> ! {
    console::init();
    traps::init();
    let features = cpu::Features::read();
    let map = memory::Map::read(start_info);
    println!("bifold built-in guest on {}", core::str::from_utf8(&features.vendor).unwrap_or("?"));
    for region in map.ram() {
        println!("  RAM {:#012x}..{:#012x}", region.base, region.end);
    }
    if map.ram_bytes() < MEMORY_NEEDED {
        println!("FAIL: {} MiB of RAM, needed are 64", map.ram_bytes() >> 20);
        exit(Verdict::TooLittleMemory);
    }
    memory::init(&map);
    if features.no_execute {
        cpu::enable_no_execute();
    }
    let space = paging::identity(features.pages_1g);
    space.activate();
    let bench = Bench::new(space, features);

    println!("{:28}{:>8}{:>8}{:>8}", "", "4K", "2M", "1G");
    let mut failed = 0;
    for (name, check) in CHECKS {
        print!("{name:28}");
        let outcomes = Size::ALL.map(|size| bench.run(check, size));
        for outcome in &outcomes {
            print!(
                "{:>8}",
                match outcome {
                    Ok(Done::Checked) => "ok",
                    Ok(Done::NotOffered) => "-",
                    Err(_) => "FAIL",
                }
            );
        }
        println!();
        for (failure, size) in outcomes.into_iter().zip(Size::ALL).filter_map(|(o, size)| Some((o.err()?, size))) {
            failed += 1;
            println!("  {}: {failure}", size.name());
        }
    }
    let whole: [(&str, fn(&Bench, &memory::Map) -> Result<u64, Failure>); 4] = [
        ("page crossings", pressure::crossings),
        ("shuffled mappings", pressure::shuffle),
        ("fill by 2M, sum by 4K", pressure::fill),
        ("all of RAM", pressure::sweep),
    ];
    for (name, check) in whole {
        match check(&bench, &map) {
            Ok(count) => println!("{name:28}{count:>8} accesses ok"),
            Err(failure) => {
                failed += 1;
                println!("{name:28}    FAIL: {failure}");
            }
        }
    }
    let (faults, answered) = traps::fault_counts();
    println!("{faults} page faults, {answered} of them answered with a page");
    if failed > 0 {
        println!("FAIL: {failed} checks");
        exit(Verdict::ChecksFailed);
    }
    println!("PASS");
    exit(Verdict::Passed)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("{info}");
    exit(Verdict::Panicked)
}
