//! Dropping the page cache's references on many folios at once (`release_pages`): frames that follow one another are
//! cleared by one call of the real host and go back to the page allocator as one run.

use emu_core::{PageSize, Sfn};

use super::HostMemory;
use crate::folio::{FolioFlags, Source};

/// Frames that follow one another.
#[derive(Clone, Copy, Default)]
struct Span {
    first: u64,
    end: u64,
}

impl Span {
    /// Adds `nr` frames from `head`; what was there before, if they do not follow on it.
    fn extend(&mut self, head: Sfn, nr: u64) -> Option<Span> {
        let follows = self.end == head.raw();
        let before = *self;
        *self = Span { first: if follows { self.first } else { head.raw() }, end: head.raw() + nr };
        (!follows).then_some(before)
    }

    const fn len(self) -> u64 {
        self.end - self.first
    }
}

impl HostMemory {
    /// Drops the page cache's references on the folios of `size` from `first` on, which `nr_frames` make up. Those that
    /// nobody else holds are freed.
    ///
    /// # Panics
    /// When one has fewer references.
    pub(crate) fn put_run(&mut self, first: Sfn, nr_frames: u64, size: PageSize) {
        let step = size.frames();
        let (mut dirty, mut free) = (Span::default(), Span::default());
        for head in (first.raw()..first.raw() + nr_frames).step_by(step as usize).map(Sfn::new) {
            if self.folios.put(head, step as u32) > 0 {
                continue;
            }
            let folio = self.take_out(head);
            if !folio.meta.flags.contains(FolioFlags::KNOWN_ZERO)
                && let Some(before) = dirty.extend(head, step)
            {
                self.clear_span(before);
            }
            // A single page of the page allocator: neither a piece of something nor in part unusable.
            let single = size == PageSize::Size4K && folio.source == Source::Pages && self.poisoned.is_empty();
            if !single || self.units.unit_of(head).is_some() {
                self.give_back(folio);
            } else if let Some(before) = free.extend(head, step) {
                self.free_span(before);
            }
        }
        self.clear_span(dirty);
        self.free_span(free);
    }

    fn clear_span(&self, span: Span) {
        if span.len() > 0 {
            self.clear(Sfn::new(span.first), span.len());
        }
    }

    fn free_span(&mut self, span: Span) {
        // Nodes may follow one another too, but a frame goes back to its own.
        let mut at = span.first;
        while at < span.end {
            let nr = self.frames.pages.nr_from(Sfn::new(at)).min(span.end - at);
            self.frames.pages.free_frames_from(Sfn::new(at), nr);
            at += nr;
        }
    }
}
