//! The cache of decoded blocks.
//!
//! A block is a run of instructions within one 4 KiB page that ends at a branch, at an instruction after which the
//! world may differ, at the page's end or at a length limit; a few conditional branches may lie within, which leave it
//! when they are taken. Its identity is the system-physical address of its first
//! byte and the [`ModeKey`]; virtual addresses do not enter it, so that nothing has to be dropped when page tables
//! change: whoever jumps checks that the target's page is the block's page.
//!
//! Direct branches within a page remember the block they lead to as a number, the link. Between two flushes a number
//! belongs to one place (page, offset, mode) for good, and a dead block has [`ModeKey::DEAD`], so links need no
//! unlinking; when a dead block's place is decoded again, they lead there.
//!
//! Always true: every line a live block was decoded from is marked in the memory's code watch.

use emu_core::Sfn;
use emu_core::memory::code::{CodeWatch, LineMask};
use hashbrown::HashMap;
use mmu::fast::CodePage;
use rustc_hash::FxBuildHasher;

use crate::cpu::Cpu;
use crate::mode::ModeKey;
use crate::op::{Handler, Next, Op, Rest};

/// Ops kept before everything is dropped and decoded anew: 64 MiB of ops.
const MAX_OPS: usize = 2 << 20;
/// Numbers given away, to live and dead blocks, before everything is dropped: 64 MiB of block heads.
const MAX_BLOCKS: usize = 1 << 20;

/// More units than are ever left.
pub(crate) const NEVER: u16 = u16::MAX;

/// A decoded run of instructions. One cache line: its number becomes its address by a shift, and one miss finds all.
#[repr(align(64))]
pub(crate) struct Block {
    pub ops: Box<[Op]>,
    /// The handler of the first op, here so that the jump to it need not wait until the op is found.
    pub run: Handler,
    pub page: CodePage,
    pub key: ModeKey,
    /// Instructions in it: what entering it costs. [`NEVER`] if it is dead, so that whoever follows a link need ask
    /// nothing else.
    pub units: u16,
    /// Offset of its first byte in the page.
    pub offset: u16,
    /// The frame and the lines it was decoded from.
    sfn: Sfn,
    lines: LineMask,
    /// For an instruction that reaches into the next page: that page, and what was decoded from it.
    pub tail: Option<Box<Tail>>,
}

const _: () = assert!(size_of::<Block>() == 64);

/// The second page of a straddling instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    pub page: CodePage,
    pub sfn: Sfn,
    pub lines: LineMask,
}

/// What decoding found at a place.
pub(crate) struct Found {
    pub ops: Vec<Op>,
    pub units: u16,
    pub lines: LineMask,
    pub tail: Option<Tail>,
}

/// The handler of a block without ops, which nothing enters.
fn nowhere(_cpu: &mut Cpu, _code: &CodeCache, _op: &Op, _rest: Rest<'_>) -> Next {
    Next::Boundary
}

/// Where a block was found and what it is to be entered as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub page: CodePage,
    pub sfn: Sfn,
    pub offset: u16,
    pub key: ModeKey,
}

/// All blocks of one processor.
pub(crate) struct CodeCache {
    blocks: Vec<Block>,
    /// By (physical address of the first byte, mode).
    map: HashMap<(u64, u32), u32, FxBuildHasher>,
    /// Blocks with bytes in a frame.
    frames: HashMap<u64, Vec<u32>, FxBuildHasher>,
    ops: usize,
    /// Blocks decoded since the machine started.
    pub decoded: u64,
}

impl CodeCache {
    pub fn new() -> CodeCache {
        let mut cache = CodeCache {
            blocks: Vec::new(),
            map: HashMap::with_hasher(FxBuildHasher),
            frames: HashMap::with_hasher(FxBuildHasher),
            ops: 0,
            decoded: 0,
        };
        cache.flush();
        cache
    }

    /// Drops every block. Numbers start anew: whoever remembers some must forget them.
    pub fn flush(&mut self) {
        self.blocks.clear();
        self.map.clear();
        self.frames.clear();
        self.ops = 0;
        // Number 0 is no block: links and jump tables start as 0.
        self.blocks.push(Block {
            ops: Box::new([]),
            run: nowhere,
            page: CodePage::NONE,
            key: ModeKey::DEAD,
            units: NEVER,
            offset: 0,
            sfn: Sfn::new(0),
            lines: LineMask(0),
            tail: None,
        });
    }

    pub fn is_full(&self) -> bool {
        self.ops >= MAX_OPS || self.blocks.len() >= MAX_BLOCKS
    }

    /// The block with this number; number 0 and numbers from before a flush lead to a dead or a different block, which
    /// the caller's checks of key and place sort out.
    #[inline(always)]
    pub fn block(&self, id: u32) -> Option<&Block> {
        self.blocks.get(id as usize)
    }

    /// The live block at `place`.
    pub fn find(&self, place: Place) -> Option<u32> {
        self.known(place).filter(|&id| self.blocks[id as usize].key != ModeKey::DEAD)
    }

    fn known(&self, place: Place) -> Option<u32> {
        self.map.get(&(place.sfn.base().raw() | place.offset as u64, place.key.raw())).copied()
    }

    /// The number that a block decoded at `place` shall have, if it lies in one page: that of its dead predecessor.
    pub fn id_for(&self, place: Place) -> u32 {
        let again = |&id: &u32| self.blocks[id as usize].page == place.page;
        self.known(place).filter(again).unwrap_or(self.next_id())
    }

    /// The number that a block shall have whose place has none.
    pub fn next_id(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Enters what was decoded at `place` under the number `id` that was given out for it.
    pub fn insert(&mut self, id: u32, place: Place, found: Found, watch: &CodeWatch) {
        let Found { ops, units, lines, tail } = found;
        self.ops += ops.len();
        self.decoded += 1;
        let block = Block {
            run: ops.first().map_or(nowhere, |op| op.run),
            ops: ops.into_boxed_slice(),
            page: place.page,
            key: place.key,
            units,
            offset: place.offset,
            sfn: place.sfn,
            lines,
            tail: tail.map(Box::new),
        };
        match self.blocks.get_mut(id as usize) {
            Some(dead) => {
                debug_assert!(dead.key == ModeKey::DEAD, "a number has one live block");
                *dead = block;
            }
            None => self.blocks.push(block),
        }
        self.map.insert((place.sfn.base().raw() | place.offset as u64, place.key.raw()), id);
        self.frames.entry(place.sfn.raw()).or_default().push(id);
        watch.watch(place.sfn, lines);
        if let Some(tail) = tail {
            self.frames.entry(tail.sfn.raw()).or_default().push(id);
            watch.watch(tail.sfn, tail.lines);
        }
    }

    /// Drops the blocks that have bytes in these lines. Whoever remembers an open link must forget it.
    pub fn invalidate(&mut self, sfn: Sfn, lines: LineMask) {
        let Some(ids) = self.frames.get_mut(&sfn.raw()) else { return };
        let (blocks, map, ops) = (&mut self.blocks, &mut self.map, &mut self.ops);
        ids.retain(|&id| {
            let block = &mut blocks[id as usize];
            if block.key == ModeKey::DEAD {
                return false;
            }
            let first = block.sfn == sfn && block.lines.intersects(lines);
            let second = block.tail.as_ref().is_some_and(|t| t.sfn == sfn && t.lines.intersects(lines));
            if first || second {
                // What straddles has no number for good: nothing may come to it by a link.
                if block.tail.is_some() {
                    map.remove(&(block.sfn.base().raw() | block.offset as u64, block.key.raw()));
                }
                block.key = ModeKey::DEAD;
                block.units = NEVER;
                *ops -= block.ops.len();
                block.ops = Box::new([]);
                return false;
            }
            true
        });
        if ids.is_empty() {
            self.frames.remove(&sfn.raw());
        }
    }
}

/// Guesses for indirect and cross-page jumps: block numbers by a hash of the target address. A guess may be anything;
/// whoever follows it checks page, offset and mode.
pub(crate) struct JumpTable(Box<[u32; JUMPS]>);

const JUMPS: usize = 1 << 14;

impl JumpTable {
    pub fn new() -> JumpTable {
        let Ok(table) = vec![0; JUMPS].into_boxed_slice().try_into() else { unreachable!("made with this length") };
        JumpTable(table)
    }

    /// Functions start at multiples of 16, so the low bits alone would leave most of the table unused.
    #[inline(always)]
    const fn slot(target: u64) -> usize {
        (target ^ target >> 5) as usize % JUMPS
    }

    #[inline(always)]
    pub fn guess(&self, target: u64) -> u32 {
        self.0[Self::slot(target)]
    }

    pub fn remember(&mut self, target: u64, id: u32) {
        self.0[Self::slot(target)] = id;
    }

    pub fn clear(&mut self) {
        self.0.fill(0);
    }
}
