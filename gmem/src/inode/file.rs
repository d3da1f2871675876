//! The file of an inode: one VM's view of it, and who keeps it open (`struct gmem_file`, `get_file_active`).
//!
//! A file is open as long as somebody refers to it: its descriptor, and for a moment a call that binds a memslot.
//! Memslots know it weakly. The last reference makes it dying, and [`Exclusive::release`] then takes it from all of them;
//! in between it is bound, and nobody can open it again.
//!
//! Always true: a file whose last reference is gone gets no other; a released file is bound to nothing and nothing is
//! allocated in its inode.
//!
//! Left out: mappings of processes as references (the hypervisor refuses to close what a process maps), and inodes with
//! several files.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::GuestMemfd;
use super::lock::Exclusive;

/// See the module.
#[derive(Debug)]
pub(super) struct FileState {
    /// `f_count`.
    refs: AtomicU32,
    /// The descriptor is there.
    descriptor: AtomicBool,
    released: AtomicBool,
}

impl FileState {
    /// A file that its descriptor refers to.
    pub(super) const fn open() -> FileState {
        FileState { refs: AtomicU32::new(1), descriptor: AtomicBool::new(true), released: AtomicBool::new(false) }
    }
}

/// What a reference that went was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilePut {
    /// One of several.
    Open,
    /// The last: whoever dropped it must release the file.
    Last,
}

impl GuestMemfd {
    /// Takes a reference on the file, if it is open (`fget`, `get_file_active`).
    #[must_use = "a reference that is not put keeps the file for ever"]
    pub fn get_file(&self) -> bool {
        let refs = &self.file.refs;
        refs.fetch_update(Ordering::AcqRel, Ordering::Acquire, |refs| if refs == 0 { None } else { Some(refs + 1) })
            .is_ok()
    }

    /// Drops a reference (`fput`).
    ///
    /// # Panics
    /// When there is none.
    pub fn put_file(&self) -> FilePut {
        let before = self.file.refs.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "a file without references is put");
        if before == 1 { FilePut::Last } else { FilePut::Open }
    }

    /// Drops the descriptor's reference (`close`); `None` when it was closed before.
    pub fn close_descriptor(&self) -> Option<FilePut> {
        self.file.descriptor.swap(false, Ordering::AcqRel).then(|| self.put_file())
    }

    /// Whether the last reference on the file is gone.
    pub fn is_dying(&self) -> bool {
        self.file.refs.load(Ordering::Acquire) == 0
    }

    /// Whether the file was taken from its memslots. Exact with the inode's lock held.
    pub fn is_released(&self) -> bool {
        self.file.released.load(Ordering::Acquire)
    }
}

impl Exclusive<'_> {
    /// The file is no memslot's any more (the end of `kvm_gmem_release`). The caller has zapped what showed it.
    pub fn release(&mut self) {
        self.clear_bindings();
        self.inode.file.released.store(true, Ordering::Release);
    }
}
