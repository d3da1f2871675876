//! The folio table's representation: a radix of 512 GiB chunks, 1G slots, 2M slots and 4K slots.
//!
//! Always true: a node exists only while something lies below it (chunks stay); `used` is the number of slots that are
//! not free; [`Block::Uniform`] stands for 512 equal 4K entries.

use emu_core::{PageSize, Sfn};

use super::{Folio, FolioMeta, Source};

const FANOUT: usize = 512;
const M2: u64 = PageSize::Size2M.frames();
const G1: u64 = PageSize::Size1G.frames();

/// The entry of a 2M or 1G folio; of a 4K one only `meta` is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Large {
    pub(crate) meta: FolioMeta,
    pub(crate) pins: u32,
    pub(crate) source: Source,
}

pub(super) struct SmallNode {
    pub(super) used: u16,
    pub(super) pages: [Option<FolioMeta>; FANOUT],
}

pub(super) enum Block {
    Free,
    Whole(Large),
    Uniform(FolioMeta),
    Small(Box<SmallNode>),
}

pub(super) struct GibNode {
    pub(super) used: u16,
    pub(super) blocks: [Block; FANOUT],
}

pub(super) enum Gib {
    Free,
    Whole(Large),
    Cut(Box<GibNode>),
}

pub(super) struct Chunk([Gib; FANOUT]);

pub(super) type Chunks = Vec<Option<Box<Chunk>>>;

/// Nodes there are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    chunks: usize,
    pub(super) gibs: usize,
    pub(super) smalls: usize,
}

impl Count {
    pub(super) fn bytes(self) -> usize {
        self.chunks * size_of::<Chunk>() + self.gibs * size_of::<GibNode>() + self.smalls * size_of::<SmallNode>()
    }
}

pub(super) enum EntryMut<'a> {
    Small(&'a mut FolioMeta),
    Large(&'a mut Large),
}

impl GibNode {
    pub(super) fn empty() -> Box<GibNode> {
        Box::new(GibNode { used: 0, blocks: [const { Block::Free }; FANOUT] })
    }
}

impl SmallNode {
    fn filled(meta: Option<FolioMeta>) -> Box<SmallNode> {
        Box::new(SmallNode { used: if meta.is_some() { FANOUT as u16 } else { 0 }, pages: [meta; FANOUT] })
    }
}

fn place(sfn: u64) -> (usize, usize, usize, usize) {
    let at = |shift: u32| (sfn >> shift) as usize % FANOUT;
    ((sfn >> 27) as usize, at(18), at(9), at(0))
}

fn large(head: u64, size: PageSize, entry: &Large) -> Folio {
    Folio { head: Sfn::new(head), size, meta: entry.meta, pins: entry.pins, source: entry.source }
}

fn small(head: u64, meta: FolioMeta) -> Folio {
    Folio { head: Sfn::new(head), size: PageSize::Size4K, meta, pins: 0, source: Source::Pages }
}

pub(super) fn gib(chunks: &Chunks, sfn: u64) -> Option<&Gib> {
    let (chunk, gib, ..) = place(sfn);
    Some(&chunks.get(chunk)?.as_ref()?.0[gib])
}

pub(super) fn gib_mut(chunks: &mut Chunks, sfn: u64) -> Option<&mut Gib> {
    let (chunk, gib, ..) = place(sfn);
    Some(&mut chunks.get_mut(chunk)?.as_mut()?.0[gib])
}

pub(super) fn find(chunks: &Chunks, sfn: u64) -> Option<Folio> {
    let (.., block, page) = place(sfn);
    match gib(chunks, sfn)? {
        Gib::Free => None,
        Gib::Whole(entry) => Some(large(sfn & !(G1 - 1), PageSize::Size1G, entry)),
        Gib::Cut(node) => match &node.blocks[block] {
            Block::Free => None,
            Block::Whole(entry) => Some(large(sfn & !(M2 - 1), PageSize::Size2M, entry)),
            Block::Uniform(meta) => Some(small(sfn, *meta)),
            Block::Small(node) => node.pages[page].map(|meta| small(sfn, meta)),
        },
    }
}

/// Makes 512 equal entries 512 entries, so that one may change.
fn materialise<'a>(block: &'a mut Block, count: &mut Count) -> &'a mut Block {
    if let Block::Uniform(meta) = *block {
        *block = Block::Small(SmallNode::filled(Some(meta)));
        count.smalls += 1;
    }
    block
}

pub(super) fn find_mut<'a>(chunks: &'a mut Chunks, count: &mut Count, sfn: u64) -> Option<EntryMut<'a>> {
    let (.., block, page) = place(sfn);
    match gib_mut(chunks, sfn)? {
        Gib::Free => None,
        Gib::Whole(entry) => Some(EntryMut::Large(entry)),
        Gib::Cut(node) => match materialise(&mut node.blocks[block], count) {
            Block::Whole(entry) => Some(EntryMut::Large(entry)),
            Block::Small(node) => node.pages[page].as_mut().map(EntryMut::Small),
            Block::Free | Block::Uniform(_) => None,
        },
    }
}

/// Whether the entry was entered; not where something is in use or `head` is no multiple of `size`.
pub(super) fn insert(chunks: &mut Chunks, count: &mut Count, head: u64, size: PageSize, entry: Large) -> bool {
    if !head.is_multiple_of(size.frames()) {
        return false;
    }
    let (chunk, at, block, page) = place(head);
    if chunks.len() <= chunk {
        chunks.resize_with(chunk + 1, || None);
    }
    let chunk = chunks[chunk].get_or_insert_with(|| {
        count.chunks += 1;
        Box::new(Chunk([const { Gib::Free }; FANOUT]))
    });
    // A node holds something, or it would not exist: so where one is, nothing larger fits.
    let slot = &mut chunk.0[at];
    if let (Gib::Free, PageSize::Size1G) = (&*slot, size) {
        *slot = Gib::Whole(entry);
        return true;
    }
    if let (Gib::Free, PageSize::Size4K | PageSize::Size2M) = (&*slot, size) {
        *slot = Gib::Cut(GibNode::empty());
        count.gibs += 1;
    }
    let (Gib::Cut(node), PageSize::Size4K | PageSize::Size2M) = (slot, size) else { return false };
    match (&mut node.blocks[block], size) {
        (slot @ Block::Free, PageSize::Size4K) => {
            let mut small = SmallNode::filled(None);
            small.pages[page] = Some(entry.meta);
            small.used = 1;
            *slot = Block::Small(small);
            count.smalls += 1;
            node.used += 1;
        }
        (slot @ Block::Free, _) => {
            *slot = Block::Whole(entry);
            node.used += 1;
        }
        (Block::Small(small), PageSize::Size4K) if small.pages[page].is_none() => {
            small.pages[page] = Some(entry.meta);
            small.used += 1;
        }
        _ => return false,
    }
    true
}

/// The same for `nr` 4K pages from `first` on; what was entered before one that could not be stays.
pub(super) fn insert_pages(chunks: &mut Chunks, count: &mut Count, first: u64, nr: u64, meta: FolioMeta) -> bool {
    let entry = Large { meta, pins: 0, source: Source::Pages };
    let end = first + nr;
    let mut at = first;
    while at < end {
        if !insert(chunks, count, at, PageSize::Size4K, entry) {
            return false;
        }
        let (.., block, page) = place(at);
        let rest = (end - at - 1).min((FANOUT - 1 - page) as u64) as usize;
        let Some(Gib::Cut(node)) = gib_mut(chunks, at) else { return false };
        let Block::Small(small) = &mut node.blocks[block] else { return false };
        let pages = &mut small.pages[page + 1..page + 1 + rest];
        if pages.iter().any(Option::is_some) {
            return false;
        }
        pages.fill(Some(meta));
        small.used += rest as u16;
        at += 1 + rest as u64;
    }
    true
}

/// Takes the entry that covers `sfn` out.
pub(super) fn remove(chunks: &mut Chunks, count: &mut Count, sfn: u64) {
    let (.., block, page) = place(sfn);
    let Some(slot) = gib_mut(chunks, sfn) else { return };
    let Gib::Cut(node) = slot else {
        *slot = Gib::Free;
        return;
    };
    let at = &mut node.blocks[block];
    if let Block::Small(small) = materialise(at, count) {
        small.used -= u16::from(small.pages[page].take().is_some());
        if small.used > 0 {
            return;
        }
        count.smalls -= 1;
    }
    *at = Block::Free;
    node.used -= 1;
    if node.used == 0 {
        *slot = Gib::Free;
        count.gibs -= 1;
    }
}

/// The first entry that covers `sfn` or lies above it.
pub(super) fn next_from(chunks: &Chunks, sfn: u64) -> Option<Folio> {
    let mut at = sfn;
    loop {
        let (chunk, ..) = place(at);
        let Some(slot) = chunks.get(chunk)? else {
            at = (chunk as u64 + 1) << 27;
            continue;
        };
        let (_, gib, block, page) = place(at);
        at = match &slot.0[gib] {
            Gib::Free => (at | (G1 - 1)) + 1,
            Gib::Whole(entry) => return Some(large(at & !(G1 - 1), PageSize::Size1G, entry)),
            Gib::Cut(node) => match &node.blocks[block] {
                Block::Free => (at | (M2 - 1)) + 1,
                Block::Whole(entry) => return Some(large(at & !(M2 - 1), PageSize::Size2M, entry)),
                Block::Uniform(meta) => return Some(small(at, *meta)),
                Block::Small(node) => match node.pages[page..].iter().position(Option::is_some) {
                    Some(ahead) => {
                        at += ahead as u64;
                        return find(chunks, at);
                    }
                    None => (at | (M2 - 1)) + 1,
                },
            },
        };
    }
}

/// The nodes there are, counted one by one: directories of a GiB, and of 2M.
#[cfg(test)]
pub(super) fn recount(chunks: &Chunks) -> (usize, usize) {
    let mut seen = (0, 0);
    for gib in chunks.iter().flatten().flat_map(|chunk| &chunk.0) {
        if let Gib::Cut(node) = gib {
            seen.0 += 1;
            seen.1 += node.blocks.iter().filter(|block| matches!(block, Block::Small(_))).count();
        }
    }
    seen
}
