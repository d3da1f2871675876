//! The run loop: finds blocks, runs them, and looks at events between them.
//!
//! A run is granted time; it ends exactly at that unit, at an exit, or not at all. Inside, handlers chain from block to
//! block without coming back here; they come back when a link is missing, when time is short, and after every
//! instruction that may have changed what comes next.
//!
//! Results never depend on how code was cut into blocks: when less time is left than the next block needs, when TF or
//! a breakpoint is set, during an interrupt shadow, and while a device's answer is being consumed, a *precise* decoding
//! of the block runs instead (no fusion, no flag left out), as many instructions of it as needed.

use emu_core::memory::code::{Backlog, CodeEvent, LineMask};
use emu_core::regs::{BreakpointKind, Dr6, Rflags};
use emu_core::time::Instant;
use emu_core::{Access, AccessKind, Exception, Gva};
use mmu::MmuFault;
use mmu::fast::CodePage;

use crate::code::{Block, CodeCache, Found, Place, Tail};
use crate::cpu::Cpu;
use crate::decode;
use crate::event::{Event, InterruptShadow, SoftwareKind};
use crate::exit::{Exit, Trap};
use crate::mode::ModeKey;
use crate::op::{Next, Op, OpenLink, RIP};
use crate::segment::SegReg;

/// Longest instruction (APM vol. 3, "Instruction Encoding").
pub(crate) const MAX_INSTRUCTION: usize = 15;

/// Units that may run without coming back to the run loop, when hand-overs are jumps. Few enough that even a handler
/// in which the compiler kept a call could not exhaust the stack of a test's thread.
const SLICE: u64 = 1 << 14;
/// The same when the compiler made calls of them all.
const SLICE_WITHOUT_TAIL_CALLS: u64 = 1 << 10;

/// Enters `block` at `rip`, if there is time for all of it.
#[inline(always)]
pub(crate) fn enter(cpu: &mut Cpu, code: &CodeCache, block: &Block, rip: u64) -> Next {
    cpu.gpr[RIP as usize] = rip;
    let budget = cpu.budget - block.units as i64;
    if budget < 0 {
        return Next::Boundary;
    }
    let mut rest = block.ops.iter();
    match rest.next() {
        Some(first) => {
            cpu.budget = budget;
            (block.run)(cpu, code, first, rest)
        }
        None => Next::Boundary,
    }
}

/// Follows the direct branch `op` to `rip`, through its link if it has one. Links lead to blocks of the running block's
/// mode: whether they live and whether there is time for them is one question.
#[inline(always)]
pub(crate) fn follow(cpu: &mut Cpu, code: &CodeCache, op: &Op, rip: u64) -> Next {
    if let Some(block) = code.block(op.link()) {
        let budget = cpu.budget - block.units as i64;
        let mut rest = block.ops.iter();
        if budget >= 0
            && let Some(first) = rest.next()
        {
            debug_assert!(block.key == cpu.key, "a change of mode ends a block without a link");
            cpu.gpr[RIP as usize] = rip;
            cpu.budget = budget;
            return (block.run)(cpu, code, first, rest);
        }
    }
    open_link(cpu, code, op, rip)
}

#[inline(never)]
fn open_link(cpu: &mut Cpu, code: &CodeCache, op: &Op, rip: u64) -> Next {
    // Another page may be mapped differently next time: links never lead out of their page.
    if (rip ^ cpu.gpr[RIP as usize]) >> 12 != 0 {
        return jump_in_any_mode(cpu, code, rip);
    }
    cpu.gpr[RIP as usize] = rip;
    let block = op.own_block();
    let position = code.block(block).and_then(|b| b.ops.iter().position(|one| core::ptr::eq(one, op)));
    cpu.unlinked = position.map(|op| OpenLink { block, op });
    Next::Unlinked
}

/// Jumps to `rip` of 64-bit mode wherever it is: through the jump table if its guess is right.
#[inline(always)]
pub(crate) fn jump(cpu: &mut Cpu, code: &CodeCache, rip: u64) -> Next {
    jump_to(cpu, code, rip, rip)
}

/// Jumps to `rip` of any mode.
#[inline(never)]
pub(crate) fn jump_in_any_mode(cpu: &mut Cpu, code: &CodeCache, rip: u64) -> Next {
    jump_to(cpu, code, rip, cpu.code_linear(rip))
}

#[inline(always)]
fn jump_to(cpu: &mut Cpu, code: &CodeCache, rip: u64, linear: u64) -> Next {
    if let Some(block) = code.block(cpu.jumps.guess(rip))
        && block.key == cpu.key
        && block.offset == (linear & 0xfff) as u16
        && cpu.mmu.fast.code_page(linear) == Some(block.page)
        && block.tail.is_none()
    {
        return enter(cpu, code, block, rip);
    }
    cpu.gpr[RIP as usize] = rip;
    Next::Boundary
}

/// The slice ended without a branch: it was a shortened run, and the rest of the block was charged but not executed.
#[cold]
#[inline(never)]
pub(crate) fn end_of_slice(cpu: &mut Cpu, op: &Op) -> Next {
    cpu.budget += op.left as i64 - 1;
    cpu.gpr[RIP as usize] = cpu.rip_after(op);
    Next::Boundary
}

/// The instruction of `op` retired and something wants attention before the next one.
#[cold]
#[inline(never)]
pub(crate) fn leave_after(cpu: &mut Cpu, op: &Op) -> Next {
    end_of_slice(cpu, op)
}

/// The instruction of `op` stopped; nothing of it has happened.
#[cold]
#[inline(never)]
pub(crate) fn stop(cpu: &mut Cpu, op: &Op, trap: Trap) -> Next {
    cpu.budget += op.left as i64;
    cpu.gpr[RIP as usize] = cpu.rip_of(op);
    cpu.trap = Some(trap);
    Next::Trap
}

/// How far the run loop may go before it must come back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Whole blocks.
    Blocks,
    /// One instruction, decoded precisely.
    Step,
}

/// The processor and its decoded code.
pub(crate) struct Engine {
    pub cpu: Cpu,
    pub code: CodeCache,
    slice: u64,
}

impl Engine {
    pub fn new(cpu: Cpu) -> Engine {
        let slice = if crate::tail::calls_are_jumps() { SLICE } else { SLICE_WITHOUT_TAIL_CALLS };
        Engine { cpu, code: CodeCache::new(), slice }
    }

    /// Runs until `until`, or an exit.
    pub fn run(&mut self, until: Instant) -> Exit {
        self.cpu.latch.rewind();
        loop {
            let now = self.cpu.now();
            if now >= until {
                return Exit::TimeUp;
            }
            let grant = until.units().min(now.units().saturating_add(self.slice));
            self.cpu.until = Instant::new(grant);
            self.cpu.budget = (grant - now.units()) as i64;
            if let Err(exit) = self.turn() {
                return exit;
            }
        }
    }

    /// Runs until the slice is used up.
    fn turn(&mut self) -> Result<(), Exit> {
        loop {
            self.catch_up_with_code();
            if let Some(exit) = self.cpu.take_asked() {
                return Err(exit);
            }
            if self.cpu.event.is_some() {
                self.deliver()?;
                continue;
            }
            if self.cpu.budget <= 0 {
                return Ok(());
            }
            if let Some(exit) = self.cpu.take_pending() {
                return Err(exit);
            }
            if self.cpu.event.is_some() {
                continue;
            }
            self.cpu.pending.between_iterations = false;
            let next = match self.pace() {
                Pace::Blocks => self.run_blocks(),
                Pace::Step => self.step(),
            };
            if next == Next::Trap {
                self.handle_trap()?;
            }
        }
    }

    fn pace(&self) -> Pace {
        let cpu = &self.cpu;
        let step = cpu.shadow != InterruptShadow::None
            || !cpu.latch.is_empty()
            || cpu.flags.other.intersects(Rflags::TF | Rflags::RF)
            || cpu.control.dr7.any_enabled();
        if step { Pace::Step } else { Pace::Blocks }
    }

    fn run_blocks(&mut self) -> Next {
        let cpu = &mut self.cpu;
        let rip = cpu.rip();
        let unlinked = cpu.unlinked.take();
        let id = match find(cpu, &mut self.code, cpu.key) {
            Ok(id) => id,
            Err(trap) => {
                cpu.trap = Some(trap);
                return Next::Trap;
            }
        };
        let Some(block) = self.code.block(id) else { return Next::Boundary };
        if block.tail.is_none() {
            // Something else may have come in between: then the block is not the branch's target.
            if let Some(from) = unlinked
                && let Some(branch) = self.code.block(from.block).filter(|b| b.key == cpu.key && b.page == block.page)
                && let Some(op) = branch.ops.get(from.op)
                && branch.offset.wrapping_add(op.disp as u16) & 0xfff == block.offset
            {
                op.set_link(id);
            } else {
                cpu.jumps.remember(rip, id);
            }
        }
        if block.units as i64 <= cpu.budget {
            return enter(cpu, &self.code, block, rip);
        }
        self.run_precisely(u32::MAX)
    }

    /// Runs at most `most` instructions, and no more than there is time for, from a precise decoding.
    pub fn run_precisely(&mut self, most: u32) -> Next {
        let cpu = &mut self.cpu;
        let id = match find(cpu, &mut self.code, cpu.key.precise()) {
            Ok(id) => id,
            Err(trap) => {
                cpu.trap = Some(trap);
                return Next::Trap;
            }
        };
        let Some(block) = self.code.block(id) else { return Next::Boundary };
        // In a precise block every op but a closing hand-over is one instruction.
        let count = (most as usize).min(cpu.budget.max(1) as usize).min(block.units as usize);
        let whole = count == block.units as usize;
        let ops = if whole { &block.ops[..] } else { &block.ops[..count] };
        let mut rest = ops.iter();
        let Some(first) = rest.next() else { return Next::Boundary };
        cpu.budget -= block.units as i64;
        (first.run)(cpu, &self.code, first, rest)
    }

    /// Executes exactly one instruction with everything that watches single instructions: TF, breakpoints, shadows.
    fn step(&mut self) -> Next {
        let cpu = &mut self.cpu;
        // Behind MOV SS an instruction breakpoint is passed over.
        if !cpu.flags.other.contains(Rflags::RF)
            && cpu.shadow != InterruptShadow::MovSs
            && let Some(hits) = cpu.instruction_breakpoints()
        {
            cpu.event = Some(Event::Exception(Exception::Debug { dr6: hits }));
            return Next::Boundary;
        }
        let traced = cpu.flags.other.contains(Rflags::TF);
        let resumed = cpu.flags.other.contains(Rflags::RF);
        let shadow = core::mem::take(&mut cpu.shadow);
        cpu.pending.traced_by_new_flags = false;
        cpu.latch.rewind();
        // Time for one unit: nothing chains on.
        let rest = cpu.budget - 1;
        cpu.until = cpu.now() + emu_core::time::Duration::new(1);
        cpu.budget = 1;
        let next = self.run_precisely(1);
        let cpu = &mut self.cpu;
        cpu.until = cpu.until + emu_core::time::Duration::new(rest as u64);
        cpu.budget += rest;
        if next == Next::Trap {
            match cpu.trap {
                // The instruction restarts: what held for it holds still.
                Some(Trap::Exit(_)) | None => cpu.shadow = shadow,
                // What it had accessed before the fault is accessed again after it.
                Some(Trap::Exception(_)) => cpu.debug_hits = Dr6::empty(),
                // One iteration of a string instruction is traced and watched like an instruction.
                Some(Trap::Paused) => {
                    let mut hits = core::mem::take(&mut cpu.debug_hits);
                    hits.set(Dr6::BS, traced);
                    if !hits.is_empty() {
                        cpu.event = Some(Event::Exception(Exception::Debug { dr6: hits }));
                    }
                }
            }
            return next;
        }
        cpu.latch.clear();
        if resumed {
            cpu.flags.other.remove(Rflags::RF);
        }
        // Of loads of SS in a row only the first holds anything back.
        if shadow == InterruptShadow::MovSs && cpu.shadow == shadow {
            cpu.shadow = InterruptShadow::None;
        }
        let mut hits = core::mem::take(&mut cpu.debug_hits);
        let by_new_flags = core::mem::take(&mut cpu.pending.traced_by_new_flags);
        if traced && (!by_new_flags || cpu.flags.other.contains(Rflags::TF)) {
            hits |= Dr6::BS;
        }
        // MOV SS and POP SS hold debug traps back until the next instruction has retired.
        if !hits.is_empty() {
            if cpu.shadow == InterruptShadow::MovSs {
                cpu.debug_hits = hits - Dr6::BS;
            } else {
                cpu.raise_debug_trap(hits);
            }
        }
        next
    }

    fn handle_trap(&mut self) -> Result<(), Exit> {
        let cpu = &mut self.cpu;
        match cpu.trap.take() {
            Some(Trap::Exception(exception)) => {
                cpu.latch.clear();
                cpu.event = Some(Event::Exception(exception));
                Ok(())
            }
            Some(Trap::Exit(exit)) => {
                cpu.budget -= 1;
                Err(*exit)
            }
            Some(Trap::Paused) => {
                cpu.pending.between_iterations = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Delivers the pending event; on success one unit has passed.
    fn deliver(&mut self) -> Result<(), Exit> {
        let cpu = &mut self.cpu;
        let Some(event) = cpu.event else { return Ok(()) };
        cpu.latch.rewind();
        match cpu.deliver_event(event) {
            Ok(()) => {
                cpu.latch.clear();
                cpu.event = None;
                cpu.budget -= 1;
                if matches!(event, Event::Software { .. }) && !cpu.debug_hits.is_empty() {
                    let held = core::mem::take(&mut cpu.debug_hits);
                    cpu.event = Some(Event::Exception(Exception::Debug { dr6: held }));
                }
                Ok(())
            }
            Err(Trap::Exit(exit)) => {
                cpu.budget -= 1;
                Err(*exit)
            }
            Err(Trap::Exception(exception)) => {
                cpu.latch.clear();
                cpu.budget -= 1;
                match cpu.combine(event, exception) {
                    Some(next) => {
                        cpu.event = Some(next);
                        Ok(())
                    }
                    None => {
                        cpu.event = None;
                        Err(Exit::Shutdown)
                    }
                }
            }
            Err(Trap::Paused) => Ok(()),
        }
    }

    pub fn catch_up_with_code(&mut self) {
        let cpu = &mut self.cpu;
        cpu.attention = false;
        // Asked at every boundary; the count of references moves only when there is news.
        if cpu.mmu.memory().code().is_behind(cpu.code_cursor) {
            let memory = cpu.mmu.memory().clone();
            match memory.code().catch_up(&mut cpu.code_cursor) {
                Backlog::Events(events) => {
                    for event in events {
                        if let CodeEvent::Written { sfn, lines } = event {
                            self.code.invalidate(sfn, lines);
                            self.cpu.unlinked = None;
                        }
                    }
                }
                Backlog::Lost => self.drop_code(),
            }
            self.cpu.mmu.catch_up();
        } else if cpu.mmu.is_behind_rmp() {
            cpu.mmu.catch_up();
        }
        if self.code.is_full() {
            self.drop_code();
        }
    }

    pub fn drop_code(&mut self) {
        self.code.flush();
        self.cpu.jumps.clear();
        self.cpu.unlinked = None;
    }
}

/// The block at RIP in mode `key`: from the cache, or decoded now.
fn find(cpu: &mut Cpu, code: &mut CodeCache, key: ModeKey) -> Result<u32, Trap> {
    let rip = cpu.rip();
    let linear = cpu.code_linear(rip);
    if key.is_64() {
        if !cpu.is_canonical(rip) {
            return Err(Exception::GP0.into());
        }
    } else if !cpu.segments.get(SegReg::Cs).contains(rip, 1) {
        return Err(Exception::GP0.into());
    }
    let (page, sfn) = code_at(cpu, linear)?;
    let place = Place { page, sfn, offset: (linear & 0xfff) as u16, key };
    if let Some(id) = code.find(place)
        && let Some(block) = code.block(id)
    {
        match block.tail.as_deref().copied() {
            None => return Ok(id),
            // A straddling instruction is the one it was only if its second page is still that page.
            Some(tail) => {
                let (page, _) = code_at(cpu, next_page(linear))?;
                if page == tail.page {
                    return Ok(id);
                }
                code.invalidate(tail.sfn, tail.lines);
                cpu.unlinked = None;
            }
        }
    }
    let built = build(cpu, code, place, linear);
    // The block may write to its own page, through a write entry from before the page held code: that goes first.
    cpu.mmu.catch_up();
    built
}

fn next_page(linear: u64) -> u64 {
    (linear | 0xfff).wrapping_add(1)
}

/// The page of code at `linear`, through the execute right of the current privilege.
fn code_at(cpu: &mut Cpu, linear: u64) -> Result<(CodePage, emu_core::Sfn), Trap> {
    for _ in 0..2 {
        if let (Some(page), Some(sfn)) = (cpu.mmu.fast.code_page(linear), cpu.mmu.fast.code_frame(linear)) {
            return Ok((page, sfn));
        }
        let access = Access::new(AccessKind::Execute, cpu.privilege());
        match cpu.mmu.translate(Gva::new(linear), access) {
            Ok(found) if cpu.mmu.memory().page(found.spa.frame()).is_none() => {
                return Err(not_memory(found.spa, found.gpa));
            }
            Ok(_) => {}
            Err(MmuFault::NonCanonical { .. }) => return Err(Exception::GP0.into()),
            Err(fault) => return Err(cpu.mmu_trap(fault, SegReg::Cs as u8)),
        }
    }
    unreachable!("a translated page of memory is in the fast TLB")
}

/// Code where only a device could answer: no machine executes there.
fn not_memory(spa: emu_core::Spa, gpa: emu_core::Gpa) -> Trap {
    let access = crate::exit::MmioAccess { gpa, len_bytes: 1, data: crate::exit::MmioData::Read };
    Exit::Mmio { spa, access }.into()
}

/// Decodes a block at `place`.
fn build(cpu: &mut Cpu, code: &mut CodeCache, place: Place, linear: u64) -> Result<u32, Trap> {
    let mut page = [0; decode::MAX_BLOCK];
    let in_page = match cpu.mmu.fast.code_bytes(linear, &mut page) {
        Some((_, bytes)) => bytes,
        None => unreachable!("found a moment ago"),
    };
    let limit = match cpu.key.is_64() {
        true => u64::MAX,
        false => cpu.segments.get(SegReg::Cs).limit as u64,
    };
    let rip = cpu.rip();
    // Bytes beyond the code segment's limit do not exist.
    let room = limit.saturating_sub(rip).saturating_add(1).min(in_page.len() as u64) as usize;
    let id = code.id_for(place);
    let request = decode::Request { key: place.key, rip, id, model: &cpu.model };
    let watch_of = |len: usize| LineMask::covering(place.offset as usize, len);
    let memory = cpu.mmu.memory().clone();
    match decode::block(&request, &in_page[..room]) {
        decode::Decoded::Block { ops, units, len_bytes } => {
            code.insert(id, place, Found { ops, units, lines: watch_of(len_bytes), tail: None }, memory.code());
            Ok(id)
        }
        decode::Decoded::Straddles if room < in_page.len() => Err(Exception::GP0.into()),
        decode::Decoded::Straddles => {
            let mut bytes = [0; MAX_INSTRUCTION];
            let first = in_page.len();
            bytes[..first].copy_from_slice(in_page);
            let second = next_page(linear);
            let (tail_page, tail_sfn) = code_at(cpu, second)?;
            if cpu.mmu.fast.code_bytes(second, &mut bytes[first..]).is_none() {
                unreachable!("found a moment ago")
            }
            let available = limit.saturating_sub(rip).saturating_add(1).min(MAX_INSTRUCTION as u64) as usize;
            // The second page's fill may have evicted the first one's entry: the block keeps what it saw.
            let id = code.next_id();
            let request = decode::Request { key: place.key, rip, id, model: &cpu.model };
            match decode::one(&request, &bytes[..available]) {
                Some((ops, units, len_bytes)) => {
                    let tail = Tail {
                        page: tail_page,
                        sfn: tail_sfn,
                        lines: LineMask::covering(0, len_bytes.saturating_sub(first)),
                    };
                    code.insert(
                        id,
                        place,
                        Found { ops, units, lines: watch_of(first), tail: Some(tail) },
                        memory.code(),
                    );
                    Ok(id)
                }
                None => Err(Exception::GP0.into()),
            }
        }
    }
}

impl Cpu {
    /// Raises the debug trap of the instruction that has just retired. Behind MOV SS that instruction may be one that
    /// delivers an event by itself: then INT1 takes the breakpoints with it, and any other leaves them for the first
    /// instruction of its handler, where TF is clear.
    fn raise_debug_trap(&mut self, hits: Dr6) {
        match self.event {
            None => self.event = Some(Event::Exception(Exception::Debug { dr6: hits })),
            Some(Event::Software { kind: SoftwareKind::Icebp, .. }) => self.control.dr6 |= hits - Dr6::BS,
            Some(Event::Software { .. }) => self.debug_hits = hits - Dr6::BS,
            Some(_) => {}
        }
    }

    /// DR6 bits of the execution breakpoints at RIP.
    fn instruction_breakpoints(&self) -> Option<Dr6> {
        let dr7 = self.control.dr7;
        if !dr7.any_enabled() {
            return None;
        }
        let linear = self.code_linear(self.rip());
        let hits = (0..4)
            .filter(|&n| dr7.enabled(n) && dr7.kind(n) == BreakpointKind::Execute && self.control.dr[n] == linear)
            .fold(Dr6::empty(), |hits, n| hits | Dr6::from_bits_retain(1 << n));
        (!hits.is_empty()).then_some(hits)
    }
}
