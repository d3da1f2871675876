//! The launch image: private memory of the guest is filled before the guest runs (`kvm_gmem_populate`).
//!
//! Page by page a source page of the VMM is pinned, the inode locked, the folio found, and whoever launches the guest
//! copies, measures or encrypts the page. The order of the first two matters: a user fault takes `mmap_lock` and then the
//! inode's lock, so nothing of the VMM may be faulted in with the inode locked. That the inode stays locked from the lookup
//! to the end matters too: a hole or a conversion takes the folio away otherwise.
//!
//! [`Vm::populate`] copies, which is all that a software-protected guest needs; [`Vm::populate_with`] leaves the page to
//! its caller. Source and destination may be the same memory where the caller says so by naming no source.
//!
//! Left out: what firmware does to a page; a page that was populated before is populated again.

use emu_core::defect::Defect;
use emu_core::memory::BusError;
use emu_core::page::PAGE_SIZE;
use emu_core::sync::{Point, Task};
use emu_core::{Errno, Gfn, Hva, PageSize, Sfn};
use gmem::GetError;
use gmem::mm::{Foll, GupError, Hold, PageRef, UserAccess, Wait};
use thiserror::Error;

use crate::memslot::Slot;
use crate::vm::Vm;

/// What the source page is for besides being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceUse {
    /// Nothing.
    Read,
    /// It may be written back, as a CPUID page is that firmware corrects (`may_writeback_src`).
    WriteBack,
}

/// What is to be populated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Populate {
    /// First guest frame.
    pub first: Gfn,
    /// Where the VMM has the image; `None` when the pages hold it already.
    pub source: Option<Hva>,
    /// How many pages; those behind the end of the memslot are left alone.
    pub nr_pages: u64,
    /// See [`SourceUse`].
    pub source_use: SourceUse,
}

/// A page on its way into the guest. Its folio cannot leave the inode, nor become shared, while somebody holds this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchPage {
    /// The guest frame.
    pub gfn: Gfn,
    /// The frame behind it.
    pub page: Sfn,
    /// The frame of the source page.
    pub source: Option<Sfn>,
}

/// Why nothing was populated. After some progress a call succeeds instead, and says how far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PopulateError {
    /// `EINVAL`.
    #[error("{nr_pages} pages from {source_at:?}: at least one page and a page-aligned source are wanted")]
    Invalid {
        /// How many were asked for.
        nr_pages: u64,
        /// From where.
        source_at: Option<Hva>,
    },
    /// `EINVAL`.
    #[error("no memslot on guest_memfd holds {gfn:?}")]
    NoGmem {
        /// The guest frame.
        gfn: Gfn,
    },
    /// `EINVAL`.
    #[error("{gfn:?} is shared memory, which the VMM fills by itself")]
    Shared {
        /// The guest frame.
        gfn: Gfn,
    },
    /// The source page cannot be had.
    #[error("the source page at {at}: {cause}")]
    Source {
        /// Where it should be.
        at: Hva,
        /// What get_user_pages said.
        cause: GupError,
    },
    /// The page cannot be had.
    #[error(transparent)]
    Backing(#[from] GetError),
    /// `EINTR`: the caller was asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Whoever launches the guest refused the page.
    #[error("the page for {gfn:?} was refused: {errno}")]
    Refused {
        /// The guest frame.
        gfn: Gfn,
        /// Why.
        errno: Errno,
    },
    /// A page lies outside system memory.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl PopulateError {
    /// What the call returns.
    pub const fn errno(&self) -> Errno {
        match self {
            PopulateError::Invalid { .. } | PopulateError::NoGmem { .. } | PopulateError::Shared { .. } => Errno::Inval,
            PopulateError::Source { cause, .. } => cause.errno(),
            PopulateError::Backing(cause) => cause.errno(),
            PopulateError::Interrupted => Errno::Intr,
            PopulateError::Refused { errno, .. } => *errno,
            PopulateError::Bus(_) => Errno::Io,
        }
    }
}

/// What becomes of a page whose memory is found (`kvm_gmem_populate_cb`).
pub type PostPopulate<'a> = dyn FnMut(&LaunchPage) -> Result<(), PopulateError> + 'a;

impl Vm {
    /// Copies an image into private memory, until `keep_going`, asked before each page, says no. How many pages were
    /// populated.
    pub fn populate(
        &self,
        image: &Populate,
        keep_going: &mut dyn FnMut() -> bool,
        task: &Task<'_>,
    ) -> Result<u64, PopulateError> {
        let mut bytes = [0; PAGE_SIZE];
        let copy = &mut |page: &LaunchPage| {
            // What the firmware has launched is not the host's to write.
            if !self.may_host_write(page.page.base(), PAGE_SIZE) {
                return Err(PopulateError::Refused { gfn: page.gfn, errno: Errno::Exist });
            }
            if let Some(source) = page.source {
                self.memory().read(source.base(), &mut bytes)?;
                self.memory().write(page.page.base(), &bytes)?;
            }
            Ok(())
        };
        self.populate_with(image, copy, keep_going, task)
    }

    /// The same with `each` in place of a copy.
    pub fn populate_with(
        &self,
        image: &Populate,
        each: &mut PostPopulate<'_>,
        keep_going: &mut dyn FnMut() -> bool,
        task: &Task<'_>,
    ) -> Result<u64, PopulateError> {
        let &Populate { first, source, nr_pages, .. } = image;
        if nr_pages == 0 || source.is_some_and(|at| !at.is_aligned(PageSize::Size4K)) {
            return Err(PopulateError::Invalid { nr_pages, source_at: source });
        }
        // Memslots and VM-wide attributes stay as they are; a change to the inode itself is kept out page by page.
        let _changes = self.slots_lock.lock(task);
        let slots = self.slots.read(task);
        let slot = slots.lookup(first).filter(|slot| slot.inode().is_some());
        let slot = slot.ok_or(PopulateError::NoGmem { gfn: first })?;
        let nr_pages = nr_pages.min(slot.info().end().raw() - first.raw());
        for done in 0..nr_pages {
            let populated = match keep_going() {
                true => self.populate_page(slot, image, done, each, task),
                false => Err(PopulateError::Interrupted),
            };
            match populated {
                Ok(()) => {}
                Err(_) if done > 0 => return Ok(done),
                Err(error) => return Err(error),
            }
        }
        Ok(nr_pages)
    }

    fn populate_page(
        &self,
        slot: &Slot,
        image: &Populate,
        n: u64,
        each: &mut PostPopulate<'_>,
        task: &Task<'_>,
    ) -> Result<(), PopulateError> {
        let gfn = Gfn::new(image.first.raw() + n);
        let (inode, index) = slot.gmem_page(gfn).ok_or(PopulateError::NoGmem { gfn })?;
        let early = match task.has(Defect::PopulateUnderLock) {
            true => None,
            false => Some(self.pin_source(image, n, task)?),
        };
        task.at(Point::P1);
        let exclusive = inode.exclusive(task);
        let source = match early {
            Some(source) => source,
            None => self.pin_source(image, n, task)?,
        };
        let populated = match self.slot_attribute(slot, gfn, task).is_private() {
            false => Err(PopulateError::Shared { gfn }),
            true => exclusive.get_folio(&self.host, index, task).map_err(PopulateError::from).and_then(|backed| {
                let held = (!task.has(Defect::PopulateUnlocked)).then_some(exclusive);
                task.at(Point::P2);
                let page = LaunchPage { gfn, page: backed.sfn, source: source.as_ref().map(PageRef::sfn) };
                let done = each(&page);
                if done.is_ok() {
                    self.mark_dirty(slot, gfn, None, task);
                }
                drop(held);
                done
            }),
        };
        if let Some(source) = source {
            source.release(&self.host, task);
        }
        task.at(Point::P3);
        populated
    }

    /// Takes a pin on the source page, if there is one.
    fn pin_source(&self, image: &Populate, n: u64, task: &Task<'_>) -> Result<Option<PageRef>, PopulateError> {
        let Some(start) = image.source else { return Ok(None) };
        let invalid = PopulateError::Invalid { nr_pages: image.nr_pages, source_at: image.source };
        let at = start.checked_add(n * PAGE_SIZE as u64).ok_or(invalid)?;
        let access = match image.source_use {
            SourceUse::Read => UserAccess::Read,
            SourceUse::WriteBack => UserAccess::Write,
        };
        let foll = Foll { access, hold: Hold::Pin, wait: Wait::Block };
        let pinned = self.mm.gup(at, foll, self.kernel(task));
        pinned.map(Some).map_err(|cause| PopulateError::Source { at, cause })
    }
}
