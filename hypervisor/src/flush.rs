//! Which translations vCPUs must forget.

use emu_core::Gfn;

/// What every TLB of the VM must drop before its vCPU enters the guest again: combined and nested translations of these
/// guest frames, and cached parts of walks through them. A processor over shadow tables knows no guest frames: there they
/// are system frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushRequest {
    /// Everything.
    All,
    /// Guest frames `[first, first + nr_pages)`.
    Range {
        /// The first.
        first: Gfn,
        /// How many.
        nr_pages: u64,
    },
}

/// Flushes that an operation owes, or that a vCPU has not obeyed yet, as one hull: too much is allowed, too little is
/// not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Owed {
    hull: Option<(u64, u64)>,
}

impl Owed {
    pub(crate) fn range(&mut self, first: Gfn, nr_pages: u64) {
        self.hull(first.raw(), first.raw().saturating_add(nr_pages));
    }

    pub(crate) fn all(&mut self) {
        self.hull = Some((0, u64::MAX));
    }

    pub(crate) fn merge(&mut self, other: &Owed) {
        if let Some((from, to)) = other.hull {
            self.hull(from, to);
        }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.hull.is_none()
    }

    /// Whether it reaches any of these guest frames.
    pub(crate) fn covers(&self, first: Gfn, nr_pages: u64) -> bool {
        self.hull.is_some_and(|(from, to)| from < first.raw().saturating_add(nr_pages) && first.raw() < to)
    }

    /// First guest frame and length of what is owed; `u64::MAX` pages from frame 0 are everything.
    pub(crate) fn span(&self) -> (Gfn, u64) {
        let (from, to) = self.hull.unwrap_or((0, 0));
        (Gfn::new(from), to - from)
    }

    fn hull(&mut self, from: u64, to: u64) {
        self.hull = Some(self.hull.map_or((from, to), |(a, b)| (a.min(from), b.max(to))));
    }

    pub(crate) fn take(&mut self) -> Option<FlushRequest> {
        let (from, to) = self.hull.take()?;
        Some(match (from, to) {
            (0, u64::MAX) => FlushRequest::All,
            _ => FlushRequest::Range { first: Gfn::new(from), nr_pages: to - from },
        })
    }
}
