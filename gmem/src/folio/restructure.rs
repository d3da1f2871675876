//! Splitting and merging entries: the table's part of `__split_folio_to_order` and its reverse.
//!
//! The caller has checked who holds references and restored the vmemmap; here is only the shape. A split writes at most
//! 512 slots, whatever its target, because equal 4K pieces share one.

use emu_core::{PageSize, Sfn};

use super::nodes::{self, Block, Gib, GibNode};
use super::{Folio, FolioFlags, FolioKind, FolioMeta, FolioTable, Large, Source};

const M2: u64 = PageSize::Size2M.frames();
const M2S_OF_1G: u64 = PageSize::Size1G.frames() / M2;

/// What stands against a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// A frame without a folio.
    Hole(Sfn),
    /// A folio that is not a page of an inode.
    Foreign(Sfn),
    /// A piece with references beside the page cache's.
    Busy(Folio),
    /// A piece whose memory failed.
    Poisoned(Sfn),
}

/// What pieces that can be merged have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Survey {
    /// 4K folios among them.
    pub(crate) small: u64,
    /// 2M folios among them.
    pub(crate) large: u64,
    /// Whether any has defined contents.
    pub(crate) any_uptodate: bool,
    /// Whether all are known to be zero.
    pub(crate) all_known_zero: bool,
    /// Pieces without defined contents that may hold old bytes.
    pub(crate) stale: Vec<(Sfn, u64)>,
}

impl Survey {
    fn note(&mut self, head: u64, frames: u64, meta: &FolioMeta) -> Result<(), Obstacle> {
        let sfn = Sfn::new(head);
        if meta.kind != FolioKind::Gmem {
            return Err(Obstacle::Foreign(sfn));
        }
        if meta.flags.intersects(FolioFlags::HWPOISON | FolioFlags::HAS_HWPOISONED) {
            return Err(Obstacle::Poisoned(sfn));
        }
        let (uptodate, zero) = (meta.flags.contains(FolioFlags::UPTODATE), meta.flags.contains(FolioFlags::KNOWN_ZERO));
        self.any_uptodate |= uptodate;
        self.all_known_zero &= zero;
        if !uptodate && !zero {
            match self.stale.last_mut() {
                Some((first, nr)) if first.raw() + *nr == head => *nr += frames,
                _ => self.stale.push((sfn, frames)),
            }
        }
        Ok(())
    }

    fn block(&mut self, block: &Block, base: u64) -> Result<(), Obstacle> {
        match block {
            Block::Free => return Err(Obstacle::Hole(Sfn::new(base))),
            Block::Whole(entry) => {
                let folio = Folio {
                    head: Sfn::new(base),
                    size: PageSize::Size2M,
                    meta: entry.meta,
                    pins: entry.pins,
                    source: entry.source,
                };
                self.note(base, M2, &entry.meta)?;
                if !folio.is_cache_only() {
                    return Err(Obstacle::Busy(folio));
                }
                self.large += 1;
            }
            Block::Uniform(meta) => {
                self.note(base, M2, meta)?;
                piece(base, *meta)?;
                self.small += M2;
            }
            Block::Small(node) => {
                for (page, meta) in (base..).zip(&node.pages) {
                    let Some(meta) = meta else { return Err(Obstacle::Hole(Sfn::new(page))) };
                    self.note(page, 1, meta)?;
                    piece(page, *meta)?;
                }
                self.small += M2;
            }
        }
        Ok(())
    }
}

fn piece(page: u64, meta: FolioMeta) -> Result<(), Obstacle> {
    let head = Sfn::new(page);
    let folio = Folio { head, size: PageSize::Size4K, meta, pins: 0, source: Source::Pages };
    if folio.is_cache_only() { Ok(()) } else { Err(Obstacle::Busy(folio)) }
}

impl FolioTable {
    /// Whether the frames of the block of `size` at `head` could become one folio, and what it would be like.
    pub(crate) fn survey(&self, head: Sfn, size: PageSize) -> Result<Survey, Obstacle> {
        let mut survey = Survey { small: 0, large: 0, any_uptodate: false, all_known_zero: true, stale: Vec::new() };
        let blocks = match nodes::gib(&self.chunks, head.raw()) {
            Some(Gib::Cut(node)) => &node.blocks,
            _ => return Err(Obstacle::Hole(head)),
        };
        let first = (head.raw() / M2 % M2S_OF_1G) as usize;
        let nr = (size.frames() / M2) as usize;
        for (block, base) in blocks[first..first + nr].iter().zip((head.raw()..).step_by(M2 as usize)) {
            survey.block(block, base)?;
        }
        Ok(survey)
    }

    /// The first folio reaching into the `nr` frames from `first` that somebody beside the page cache holds: its head, or
    /// `first` if that is later. Frames that are not in use are held by nobody.
    pub(crate) fn first_held(&self, first: Sfn, nr: u64) -> Option<Sfn> {
        let end = first.raw() + nr;
        let mut at = first.raw();
        let held = |head: u64| Sfn::new(head.max(first.raw()));
        while at < end {
            let block_end = (at | (M2 - 1)) + 1;
            match nodes::gib(&self.chunks, at) {
                Some(Gib::Cut(node)) => match &node.blocks[(at / M2 % M2S_OF_1G) as usize] {
                    Block::Uniform(meta) if piece(at, *meta).is_err() => return Some(held(at)),
                    Block::Small(node) => {
                        let pages = &node.pages[(at % M2) as usize..];
                        for (page, meta) in (at..end.min(block_end)).zip(pages) {
                            if meta.is_some_and(|meta| piece(page, meta).is_err()) {
                                return Some(held(page));
                            }
                        }
                    }
                    Block::Whole(_) => match self.get(Sfn::new(at)) {
                        Some(folio) if !folio.is_cache_only() => return Some(held(folio.head.raw())),
                        _ => {}
                    },
                    Block::Free | Block::Uniform(_) => {}
                },
                Some(Gib::Whole(_)) => match self.get(Sfn::new(at)) {
                    Some(folio) if !folio.is_cache_only() => return Some(held(folio.head.raw())),
                    folio => {
                        at = folio.map_or(block_end, |folio| folio.end().raw());
                        continue;
                    }
                },
                Some(Gib::Free) | None => {}
            }
            at = block_end;
        }
        None
    }

    /// Makes the large folio at `head` folios of size `to`, each with the page cache's references, with `flags`.
    ///
    /// # Panics
    /// When there is no folio larger than `to` at `head`.
    pub(crate) fn split(&mut self, head: Sfn, to: PageSize, flags: FolioFlags) {
        let folio = match self.get(head) {
            Some(folio) if folio.head == head && folio.size > to => folio,
            other => panic!("{head:?} cannot be split to {to}: {other:?}"),
        };
        let meta = FolioMeta { kind: folio.meta.kind, flags, refs: to.frames() as u32, maps: 0 };
        let part = || match to {
            PageSize::Size4K => Block::Uniform(meta),
            _ => Block::Whole(Large { meta, pins: 0, source: folio.source }),
        };
        let Some(slot) = nodes::gib_mut(&mut self.chunks, head.raw()) else { return };
        match slot {
            Gib::Cut(node) => node.blocks[(head.raw() / M2 % M2S_OF_1G) as usize] = part(),
            _ => {
                let mut node = GibNode::empty();
                node.used = M2S_OF_1G as u16;
                node.blocks.fill_with(part);
                *slot = Gib::Cut(node);
                self.nodes.gibs += 1;
            }
        }
        self.by_size[folio.size.index()] -= 1;
        self.by_size[to.index()] += folio.size.frames() / to.frames();
    }

    /// Makes the pieces that `survey` looked at one folio.
    pub(crate) fn merge(&mut self, head: Sfn, size: PageSize, survey: &Survey, flags: FolioFlags, source: Source) {
        let meta = FolioMeta { kind: FolioKind::Gmem, flags, refs: size.frames() as u32, maps: 0 };
        let entry = Large { meta, pins: 0, source };
        let Some(slot) = nodes::gib_mut(&mut self.chunks, head.raw()) else { return };
        let Gib::Cut(node) = slot else { return };
        let is_node = |block: &&Block| matches!(block, Block::Small(_));
        if size == PageSize::Size1G {
            self.nodes.smalls -= node.blocks.iter().filter(is_node).count();
            self.nodes.gibs -= 1;
            *slot = Gib::Whole(entry);
        } else {
            let block = &mut node.blocks[(head.raw() / M2 % M2S_OF_1G) as usize];
            self.nodes.smalls -= usize::from(is_node(&&*block));
            *block = Block::Whole(entry);
        }
        self.by_size[PageSize::Size4K.index()] -= survey.small;
        self.by_size[PageSize::Size2M.index()] -= survey.large;
        self.by_size[size.index()] += 1;
    }
}
