//! Checks of one page size: translation, accessed and dirty bits, flushing.

use core::fmt;

use crate::cpu::{self, Features};
use crate::memory::{self, load, store};
use crate::paging::{A, D, G, NX, P, Size, Space, U, W};
use crate::traps::{self, Op, Trap, UserMode, probe};

/// How a check ended without a failure.
pub enum Done {
    Checked,
    /// The processor does not have it, or it does not exist for this page size.
    NotOffered,
}

/// What was not as it should be.
pub struct Failure {
    pub what: &'static str,
    pub expected: u64,
    pub seen: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {:#x}, saw {:#x}", self.what, self.expected, self.seen)
    }
}

pub fn equal(what: &'static str, expected: u64, seen: u64) -> Result<(), Failure> {
    if expected == seen { Ok(()) } else { Err(Failure { what, expected, seen }) }
}

/// The access works.
pub fn works(what: &'static str, outcome: Result<u64, Trap>) -> Result<u64, Failure> {
    outcome.map_err(|trap| Failure { what, expected: 0, seen: trap.vector << 32 | trap.error })
}

/// The access takes a page fault with this error code at this address. In a failure, the vector stands in the upper half.
pub fn faults(what: &'static str, outcome: Result<u64, Trap>, code: u64, address: u64) -> Result<(), Failure> {
    let expected = 14 << 32 | code;
    match outcome {
        Ok(_) => Err(Failure { what, expected, seen: 0 }),
        Err(trap) => {
            equal(what, expected, trap.vector << 32 | trap.error)?;
            equal("CR2", address, trap.address)
        }
    }
}

pub const SMALL_FRAMES: usize = 128;
pub const LARGE_FRAMES: usize = 4;
/// x86's RET.
const RET: u8 = 0xc3;
/// What a test page holds at its probe address: RET, so that it can be called, and a mark.
const MARK: u64 = 0xb1f0_1d00 | RET as u64;

/// What the checks work with.
pub struct Bench {
    pub space: Space,
    pub features: Features,
    pub user: UserMode,
    pub small: [u64; SMALL_FRAMES],
    pub large: [u64; LARGE_FRAMES],
}

/// A page to map, and the byte in it that is ours.
#[derive(Clone, Copy)]
pub struct Backing {
    pub base: u64,
    pub offset: u64,
}

impl Bench {
    pub fn new(space: Space, features: Features) -> Bench {
        let user = UserMode::new(space, 0x7000_0000_0000);
        let small = core::array::from_fn(|_| memory::take(Size::K4));
        let large = core::array::from_fn(|_| memory::take(Size::M2));
        Bench { space, features, user, small, large }
    }

    /// Runs a check on an empty window and leaves it empty.
    pub fn run(&self, check: fn(&Bench, Size) -> Result<Done, Failure>, size: Size) -> Result<Done, Failure> {
        if size == Size::G1 && !self.features.pages_1g {
            return Ok(Done::NotOffered);
        }
        let done = check(self, size);
        traps::demand(0, 0, size);
        for page in 0..SMALL_FRAMES as u64 {
            self.space.leaf(Self::window(size) + page * size.bytes(), size).set(0);
        }
        cpu::reload_cr3();
        done
    }

    /// Linear addresses that belong to the checks of a page size: two in the lower half, one in the upper.
    pub fn window(size: Size) -> u64 {
        match size {
            Size::K4 => 0x1000_0000_0000,
            Size::M2 => 0xffff_9000_0000_0000,
            Size::G1 => 0x3000_0000_0000,
        }
    }

    /// The `n`-th page of `size`, its probe byte marked. The only 1 GiB page that surely has RAM in it is the first.
    pub fn backing(&self, size: Size, n: usize) -> Backing {
        let backing = match size {
            Size::K4 => Backing { base: self.small[n], offset: 0x120 },
            Size::M2 => Backing { base: self.large[n], offset: 0x12_3450 },
            Size::G1 => Backing { base: 0, offset: self.small[n] },
        };
        store(backing.base + backing.offset, MARK + ((n as u64) << 32));
        backing
    }

    /// Maps the `n`-th page at the window with these flags; gives the address of its probe byte.
    pub fn mapped(&self, size: Size, n: usize, flags: u64) -> u64 {
        let backing = self.backing(size, n);
        let window = Self::window(size);
        self.space.map(window, backing.base, size, flags);
        cpu::invlpg(window);
        window + backing.offset
    }

    /// Changes the leaf of the window, and flushes.
    pub fn change(&self, size: Size, change: impl FnOnce(u64) -> u64) {
        self.change_at(size.level(), size, change);
    }

    /// Changes the entry of the window at some level, and flushes.
    pub fn change_at(&self, level: u32, size: Size, change: impl FnOnce(u64) -> u64) {
        let slot = self.space.slot(Self::window(size), level);
        slot.set(change(slot.get()));
        cpu::reload_cr3();
    }

    /// The error-code bit of instruction fetches, which exists with NX or SMEP only.
    pub fn fetch_bit(&self) -> u64 {
        if self.features.no_execute { 1 << 4 } else { 0 }
    }
}

/// A value that tells addresses apart.
pub fn hash(address: u64) -> u64 {
    let mixed = (address ^ address >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 32
}

/// What is written by one address is read by another, both ways.
pub fn patterns(bench: &Bench, size: Size) -> Result<Done, Failure> {
    let window = Bench::window(size);
    let mut pages = [(0, 0); SMALL_FRAMES];
    for (n, page) in pages.iter_mut().enumerate() {
        *page = match size {
            Size::K4 => (window + 0x1000 * n as u64, bench.small[n]),
            Size::M2 => {
                let (large, inside) = (n % LARGE_FRAMES, 0x8000 * (n / LARGE_FRAMES) as u64);
                (window + 0x20_0000 * large as u64 + inside, bench.large[large] + inside)
            }
            Size::G1 => (window + bench.small[n], bench.small[n]),
        };
        let mask = !(size.bytes() - 1);
        bench.space.map(page.0 & mask, page.1 & mask, size, W);
    }
    for (linear, physical) in pages {
        store(linear, hash(physical));
        store(linear + 0xff8, hash(linear));
    }
    for (linear, physical) in pages {
        equal("written by window, read by identity", hash(physical), load(physical))?;
        equal("the same at the end of the page", hash(linear), load(physical + 0xff8))?;
        store(physical, !hash(physical));
    }
    for (linear, physical) in pages {
        equal("written by identity, read by window", !hash(physical), load(linear))?;
    }
    Ok(Done::Checked)
}

/// A read sets A in every entry on its way, a write D in the leaf as well.
pub fn accessed_dirty(bench: &Bench, size: Size) -> Result<Done, Failure> {
    let at = bench.mapped(size, 0, W);
    let leaf = bench.space.leaf(at, size);
    let clear = || {
        for level in size.level()..=4 {
            bench.change_at(level, size, |entry| entry & !(A | D));
        }
    };
    let accesses =
        [("after a read", Op::Read, A), ("after a fetch", Op::Execute, A), ("after a write", Op::Write, A | D)];
    for (what, op, bits) in accesses {
        clear();
        works(what, probe(at, op, MARK))?;
        equal(what, bits, leaf.get() & (A | D))?;
        for level in size.level() + 1..=4 {
            equal("A in an upper entry", A, bench.space.slot(at, level).get() & A)?;
        }
    }
    clear();
    works("read first", probe(at, Op::Read, 0))?;
    works("then read-modify-write", probe(at, Op::Modify, 0))?;
    equal("D after a later write", D, leaf.get() & D)?;
    bench.change(size, |entry| entry & !(A | D | W));
    faults("write to a read-only page", probe(at, Op::Write, 0), 3, at)?;
    equal("D after a write that faulted", 0, leaf.get() & D)?;
    Ok(Done::Checked)
}

/// P=0 at any level: error code and CR2, whatever the other bits hold.
pub fn not_present(bench: &Bench, size: Size) -> Result<Done, Failure> {
    let at = bench.mapped(size, 0, W | U);
    let fetch = bench.fetch_bit();
    let accesses =
        [("read", Op::Read, 0), ("write", Op::Write, 2), ("fetch", Op::Execute, fetch), ("modify", Op::Modify, 2)];
    for level in size.level()..=4 {
        let slot = bench.space.slot(Bench::window(size), level);
        let entry = slot.get();
        for absent in [0, entry & !P, !P] {
            slot.set(absent);
            cpu::reload_cr3();
            for (what, op, code) in accesses {
                faults(what, probe(at, op, 0), code, at)?;
                faults(what, bench.user.probe(at, op, 0), code | 4, at)?;
            }
        }
        slot.set(entry);
        equal("present again", MARK, works("present again", probe(at, Op::Read, 0))?)?;
    }
    Ok(Done::Checked)
}

/// INVLPG on any byte of a page drops its translation.
pub fn invlpg(bench: &Bench, size: Size) -> Result<Done, Failure> {
    let window = Bench::window(size);
    for inside in [0, size.bytes() / 2, size.bytes() - 1] {
        let at = bench.mapped(size, 0, W);
        let leaf = bench.space.leaf(window, size);
        equal("the first page", MARK, works("the first page", probe(at, Op::Read, 0))?)?;
        leaf.set(0);
        cpu::invlpg(window + inside);
        faults("after unmapping", probe(at, Op::Read, 0), 0, at)?;
        if size == Size::G1 {
            continue;
        }
        let second = bench.backing(size, 1);
        bench.space.map(window, second.base, size, W);
        let there = MARK + (1 << 32);
        equal("the second page", there, works("the second page", probe(at, Op::Read, 0))?)?;
        bench.space.map(window, bench.backing(size, 0).base, size, W);
        cpu::invlpg(window + inside);
        equal("the first page again", MARK, works("the first page again", probe(at, Op::Read, 0))?)?;
    }
    Ok(Done::Checked)
}

/// Writing CR3 drops everything that is not global; toggling CR4.PGE drops that too.
pub fn reload(bench: &Bench, size: Size) -> Result<Done, Failure> {
    let window = Bench::window(size);
    let count = match size {
        Size::K4 => SMALL_FRAMES,
        Size::M2 => LARGE_FRAMES,
        Size::G1 => 1,
    };
    let cr4 = cpu::cr4() & !cpu::CR4_PGE;
    for (global, flags) in [(false, W), (true, W | G)] {
        for order in [0, count - 1] {
            // Ascending, then descending; the second time over translations that the first has left.
            let mark = |n: usize| MARK + ((n.abs_diff(order) as u64) << 32);
            for n in 0..count {
                let page = window + n as u64 * size.bytes();
                bench.space.map(page, bench.backing(size, n.abs_diff(order)).base, size, flags);
            }
            if global {
                cpu::set_cr4(cr4)
            } else {
                cpu::reload_cr3()
            }
            cpu::set_cr4(if global { cr4 | cpu::CR4_PGE } else { cr4 });
            for n in 0..count {
                let offset = bench.backing(size, n.abs_diff(order)).offset;
                equal("content after the flush", mark(n), load(window + n as u64 * size.bytes() + offset))?;
            }
        }
        cpu::set_cr4(cr4);
    }
    Ok(Done::Checked)
}

/// A large page is replaced by 512 smaller ones over the same frames, and back.
pub fn split(bench: &Bench, size: Size) -> Result<Done, Failure> {
    let smaller = match size {
        Size::K4 => return Ok(Done::NotOffered),
        Size::M2 => Size::K4,
        Size::G1 => Size::M2,
    };
    let window = Bench::window(size);
    let backing = bench.backing(size, 0);
    let leaf = bench.space.map(window, backing.base, size, W);
    // Offsets that are ours: 64 frames of the 2 MiB page, or the small frames in the first GiB.
    let ours = |n: usize| if size == Size::M2 { 0x8000 * n as u64 } else { bench.small[n] };
    let agree = |what| (0..64).try_for_each(|n| equal(what, hash(ours(n)), load(window + ours(n))));
    (0..64).for_each(|n| store(window + ours(n), hash(ours(n))));
    let whole = leaf.get();
    for _ in 0..2 {
        leaf.set(0);
        for n in 0..512 {
            let offset = n * smaller.bytes();
            bench.space.map(window + offset, backing.base + offset, smaller, W);
        }
        cpu::reload_cr3();
        agree("after the split")?;
        let hole = window + (ours(7) & !(smaller.bytes() - 1));
        let piece = bench.space.leaf(hole, smaller).get();
        bench.space.unmap(hole, smaller);
        faults("the piece that was unmapped", probe(window + ours(7), Op::Read, 0), 0, window + ours(7))?;
        bench.space.leaf(hole, smaller).set(piece);
        let parts = leaf.get();
        leaf.set(whole);
        cpu::reload_cr3();
        agree("after the collapse")?;
        equal("a table, not a page", 0, parts & NX)?;
    }
    Ok(Done::Checked)
}

/// The handler backs pages as they are touched: one fault a page, none after.
pub fn demand(bench: &Bench, size: Size) -> Result<Done, Failure> {
    let window = Bench::window(size);
    let (pages, touches) = match size {
        Size::K4 => (64, 4),
        Size::M2 => (2, 64),
        Size::G1 => (1, SMALL_FRAMES as u64),
    };
    let address = |page: u64, touch: u64| {
        let inside = if size == Size::G1 { bench.small[touch as usize] } else { touch * (size.bytes() / touches) };
        window + page * size.bytes() + inside
    };
    traps::demand(window, window + pages * size.bytes(), size);
    let (_, before) = traps::fault_counts();
    for page in 0..pages {
        for touch in 0..touches {
            works("first touch", probe(address(page, touch), Op::Write, hash(address(page, touch))))?;
        }
    }
    let (_, after) = traps::fault_counts();
    equal("faults answered", pages, u64::from(after - before))?;
    for page in 0..pages {
        for touch in 0..touches {
            let seen = works("second touch", probe(address(page, touch), Op::Read, 0))?;
            equal("what the first touch wrote", hash(address(page, touch)), seen)?;
        }
    }
    let (_, last) = traps::fault_counts();
    equal("faults after that", 0, u64::from(last - after))?;
    let beyond = window + pages * size.bytes();
    faults("past the range", probe(beyond, Op::Read, 0), 0, beyond)?;
    Ok(Done::Checked)
}
