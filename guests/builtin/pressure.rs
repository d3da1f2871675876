//! Checks of the whole: accesses over page borders, many mappings in turn, much memory.

use crate::checks::{Bench, Failure, LARGE_FRAMES, SMALL_FRAMES, equal, faults, hash, works};
use crate::cpu;
use crate::memory::{self, Map, load, store};
use crate::paging::{Size, W};
use crate::traps::{Op, probe};

/// An access over a page border whose second page is missing faults there, and leaves the first page as it was.
pub fn crossings(bench: &Bench, _: &Map) -> Result<u64, Failure> {
    let mut count = 0;
    for size in [Size::K4, Size::M2] {
        let window = Bench::window(size);
        let border = window + size.bytes();
        let (first, second) = (bench.backing(size, 0).base, bench.backing(size, 1).base);
        bench.space.map(window, first, size, W);
        bench.space.unmap(border, size);
        let end = first + size.bytes() - 8;
        for before in 1..8 {
            let at = border - before;
            store(end, u64::MAX);
            store(second, u64::MAX);
            faults("read over the border", probe(at, Op::Read, 0), 0, border)?;
            faults("write over the border", probe(at, Op::Write, 0), 2, border)?;
            equal("the first page after the fault", u64::MAX, load(end))?;
            bench.space.map(border, second, size, W);
            works("write over the border", probe(at, Op::Write, 0))?;
            equal("the first page", u64::MAX >> (8 * before), load(end))?;
            equal("the second page", u64::MAX << (64 - 8 * before), load(second))?;
            equal("read over the border", 0, works("read over the border", probe(at, Op::Read, 0))?)?;
            bench.space.unmap(border, size);
            count += 4;
        }
        bench.space.unmap(window, size);
    }
    Ok(count)
}

/// The same pages over ever other frames: what a TLB must not remember.
pub fn shuffle(bench: &Bench, _: &Map) -> Result<u64, Failure> {
    const ROUNDS: u64 = 200;
    let window = Bench::window(Size::K4);
    let mut frames = bench.small;
    frames.iter().for_each(|&frame| store(frame, hash(frame)));
    let mut draw = 1;
    for round in 0..ROUNDS {
        for n in (1..SMALL_FRAMES).rev() {
            draw = hash(draw + round);
            frames.swap(n, (draw % (n as u64 + 1)) as usize);
        }
        for (page, frame) in (0_u64..).zip(frames) {
            bench.space.map(window + page * 0x1000, frame, Size::K4, W);
            // Every other round flushes all at once.
            if round % 2 == 0 {
                cpu::invlpg(window + page * 0x1000);
            }
        }
        if round % 2 != 0 {
            cpu::reload_cr3();
        }
        for (page, frame) in (0_u64..).zip(frames) {
            let at = window + page * 0x1000;
            equal("the frame behind the page", hash(frame) + round, load(at))?;
            store(at, hash(frame) + round + 1);
        }
    }
    Ok(ROUNDS * SMALL_FRAMES as u64 * 2)
}

/// 8 MiB written through large pages and summed through small ones.
pub fn fill(bench: &Bench, _: &Map) -> Result<u64, Failure> {
    const WORDS: u64 = LARGE_FRAMES as u64 * 0x20_0000 / 8;
    let (large, small) = (Bench::window(Size::M2), Bench::window(Size::K4) + (1 << 30));
    for (n, frame) in (0_u64..).zip(bench.large) {
        bench.space.map(large + (n << 21), frame, Size::M2, W);
        for page in (0..0x20_0000).step_by(0x1000) {
            bench.space.map(small + (n << 21) + page, frame + page, Size::K4, 0);
        }
    }
    cpu::reload_cr3();
    (0..WORDS).for_each(|n| store(large + 8 * n, n ^ n << 40));
    let mut sum: u64 = 0;
    let mut expected: u64 = 0;
    for n in 0..WORDS {
        sum = sum.wrapping_add(load::<u64>(small + 8 * n));
        expected = expected.wrapping_add(n ^ n << 40);
    }
    equal("sum", expected, sum)?;
    Ok(2 * WORDS)
}

/// Places all over the RAM that nothing uses, above 4 GiB too, each through a mapping of its own.
pub fn sweep(bench: &Bench, map: &Map) -> Result<u64, Failure> {
    const PLACES: u64 = 1500;
    let stride = (map.ram_bytes() / PLACES).next_multiple_of(0x1000) + 0x1040;
    // Page tables may still grow by the few that the windows below need.
    let unused = memory::used_end() + 0x4_0000;
    let places = || {
        let regions = map.ram().iter().filter(move |r| r.end > unused);
        regions.flat_map(move |r| (r.base.max(unused).next_multiple_of(64)..r.end - 64).step_by(stride as usize))
    };
    let at = |n: usize, physical: u64| {
        let size = match n % 3 {
            2 if bench.features.pages_1g => Size::G1,
            1 => Size::M2,
            _ => Size::K4,
        };
        let window = Bench::window(size);
        let inside = physical & (size.bytes() - 1);
        bench.space.map(window, physical - inside, size, W);
        cpu::invlpg(window);
        window + inside
    };
    let mut count = 0;
    for (n, physical) in places().enumerate() {
        store(at(n, physical), hash(physical));
        count += 2;
    }
    for (n, physical) in places().enumerate() {
        equal("what was written there", hash(physical), load(at(n + 1, physical)))?;
    }
    Ok(count)
}
