//! guest_memfd: the inode that is a piece of guest memory (`virt/kvm/guest_memfd.c`).
//!
//! [`GuestMemfd`] is the door. It maps page indices to folios, knows which memslots look at which of its ranges, and
//! which indices the host may use. Every operation names the lock it needs by being a method of [`Shared`] or
//! [`Exclusive`], the two ways to hold the inode's `invalidate_lock`.
//!
//! Locks, outer to inner: `invalidate_lock` (which also guards the bindings), then the attributes, a folio's lock, the
//! provider, the page cache, the host's memory. Attributes are stored under the exclusive `invalidate_lock` and may be
//! read without it, as the kernel reads its tree under RCU: the answer is old by the time it is used, and the
//! invalidation protocol is what makes that harmless.
//!
//! Always true: size and flags never change; a folio lies at an index and a frame that are multiples of its size; every
//! folio in the cache carries one reference for each of its pages; bindings are disjoint and lie inside the inode; an
//! index that was removed reads as zero when it is next used, and bytes outside a removal are never touched.
//!
//! Left out: an inode has one view (one VM). The user's mmap is [`crate::mm`]'s.

mod batch;
mod bindings;
mod cache;
mod convert;
mod create;
mod direct;
mod fallocate;
mod file;
mod generations;
mod hole;
mod lock;
mod poison;
mod populate;
mod reshape;
mod speculate;
mod tree;
mod view;

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use bitflags::bitflags;
use emu_core::defect::Defect;
use emu_core::event::{Event, Ino};
use emu_core::page::PAGE_SIZE;
use emu_core::sync::{Mutex, Point, ReadGuard, Sharded, ShardedLock, Task};
use emu_core::{Errno, PageSize, Sfn};
use thiserror::Error;

use crate::host::{Host, Stocked};
use crate::mm::UserMappings;
use crate::numa::MemPolicy;
use crate::policy::{GmemPolicy, SlotSpan};
use crate::pool::HugeSize;
use crate::provider::{FolioPolicy, FolioProvider, ProviderError};
use crate::runs::RunMap;
use crate::shareability::{Shareability, ShareabilityMap};
use batch::Batches;
use bindings::Bindings;
use file::FileState;
use reshape::Outlook;
use tree::{PageCache, Run};

pub use bindings::{BindError, Bound};
pub use cache::{Backed, GetError};
pub use convert::{Conversion, ConvertError};
pub use create::CreateArgs;
pub use fallocate::{FallocMode, Fallocate, FallocateError};
pub use file::FilePut;
pub use hole::HoleError;
pub use lock::{Exclusive, Shared};
pub use poison::Failure;
pub use view::{FolioRun, InodeView};

const PAGE: u64 = PAGE_SIZE as u64;

/// Number of a 4 KiB page inside an inode (`pgoff`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PageIndex(pub u64);

/// Pages of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// The first.
    pub first: PageIndex,
    /// How many.
    pub nr_pages: u64,
}

impl PageRange {
    /// The first index behind the range.
    pub const fn end(self) -> PageIndex {
        PageIndex(self.first.0.saturating_add(self.nr_pages))
    }

    /// Whether all of it lies in an inode of `nr_pages`.
    pub(crate) fn lies_in(self, nr_pages: u64) -> bool {
        self.first.0.checked_add(self.nr_pages).is_some_and(|end| end <= nr_pages)
    }

    /// The part of it that lies in an inode of `nr_pages`.
    pub fn clipped(self, nr_pages: u64) -> PageRange {
        let first = self.first.0.min(nr_pages);
        PageRange { first: PageIndex(first), nr_pages: self.end().0.min(nr_pages) - first }
    }
}

/// A memslot's number, whose meaning is the hypervisor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u16);

bitflags! {
    /// Flags of creation, with the values of `GUEST_MEMFD_FLAG_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct GmemFlags: u64 {
        /// `GUEST_MEMFD_FLAG_MMAP`: the host may map what is shared.
        const MMAP = 1 << 0;
        /// `GUEST_MEMFD_FLAG_INIT_SHARED`: every index starts shared, otherwise private.
        const INIT_SHARED = 1 << 1;
    }
}

/// Why an inode could not be created; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CreateError {
    /// `EINVAL`.
    #[error("guest_memfd flags {unknown:#x} are unknown")]
    UnknownFlags {
        /// The bits nobody defined.
        unknown: u64,
    },
    /// `EINVAL`.
    #[error("guest_memfd size {size_bytes:#x} is not a positive multiple of 4 KiB below 2^63")]
    Size {
        /// The size asked for.
        size_bytes: u64,
    },
    /// `EINVAL`.
    #[error("guest_memfd size {size_bytes:#x} is not a multiple of the pool's {page} pages")]
    NotHugeMultiple {
        /// The size asked for.
        size_bytes: u64,
        /// The pool's page size.
        page: PageSize,
    },
    /// `EINVAL`.
    #[error("guest_memfd flags {flags:#x} exclude each other or the page order")]
    FlagsExclude {
        /// The flags.
        flags: u64,
    },
    /// `EINVAL`.
    #[error("there is no pool of pages of order {order}")]
    NoSuchPool {
        /// The order.
        order: u32,
    },
    /// `ENOMEM`.
    #[error("guest_memfd cannot reserve its folios: {0}")]
    Reserve(#[from] ProviderError),
}

impl CreateError {
    /// What the ioctl returns.
    pub const fn errno(&self) -> Errno {
        match self {
            CreateError::Reserve(_) => Errno::NoMem,
            CreateError::UnknownFlags { .. }
            | CreateError::Size { .. }
            | CreateError::NotHugeMultiple { .. }
            | CreateError::FlagsExclude { .. }
            | CreateError::NoSuchPool { .. } => Errno::Inval,
        }
    }
}

/// What an inode is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateInfo {
    /// Size in bytes.
    pub size_bytes: u64,
    /// `GUEST_MEMFD_FLAG_*` as the caller gave them.
    pub flags: u64,
    /// Size and source of its folios.
    pub policy: FolioPolicy,
    /// How it behaves.
    pub gmem: GmemPolicy,
}

/// A state of all pages, or none; written with the attributes' lock held, when the map has what it says.
struct Uniform(AtomicU8);

impl Uniform {
    const MIXED: u8 = u8::MAX;

    fn new(initial: Shareability) -> Uniform {
        Uniform(AtomicU8::new(initial.is_private().into()))
    }

    fn set(&self, state: Option<Shareability>) {
        self.0.store(state.map_or(Uniform::MIXED, |state| state.is_private().into()), Ordering::Release);
    }

    fn get(&self) -> Option<Shareability> {
        match self.0.load(Ordering::Acquire) {
            Uniform::MIXED => None,
            0 => Some(Shareability::SHARED),
            _ => Some(Shareability::PRIVATE),
        }
    }
}

/// See the module.
pub struct GuestMemfd {
    ino: Ino,
    nr_pages: u64,
    flags: GmemFlags,
    /// `invalidate_lock`, with what only it guards.
    bindings: ShardedLock<Bindings>,
    attributes: ShardedLock<ShareabilityMap>,
    /// What the attribute of every index is, as long as it is the same: to be read without the lock.
    uniform: Uniform,
    /// Index to folio.
    cache: ShardedLock<PageCache>,
    /// The largest folio there can be.
    unit: PageSize,
    policy: GmemPolicy,
    /// Serialises allocation and clearing of what one folio may cover (`hugetlb_fault_mutex_table`, the folio lock). A
    /// lane serves many. Pages of 4K from a lane's stock do without.
    folio_locks: Sharded<Mutex<()>>,
    provider: Mutex<Box<dyn FolioProvider>>,
    /// What a fault may be served from instead.
    stock: Option<Stocked>,
    /// NUMA policy by index (`mbind` on a mapping of the file).
    mem_policies: ShardedLock<RunMap<MemPolicy>>,
    /// Whether any was ever set, to be read without the lock.
    has_mem_policies: AtomicBool,
    /// Memory failures so far.
    nr_poisoned: AtomicU64,
    /// Who maps it.
    users: UserMappings,
    /// Who keeps it open.
    file: FileState,
    /// References that are nobody's.
    pub(crate) batches: Batches,
}

impl GuestMemfd {
    /// `KVM_CREATE_GUEST_MEMFD`. Reserves when the policy reserves; allocates nothing.
    pub fn create(host: &Host, info: CreateInfo, task: &Task<'_>) -> Result<GuestMemfd, CreateError> {
        let CreateInfo { size_bytes, flags, policy, gmem } = info;
        let unknown = flags & !GmemFlags::all().bits();
        if unknown != 0 {
            return Err(CreateError::UnknownFlags { unknown });
        }
        if size_bytes == 0 || size_bytes > i64::MAX as u64 || !size_bytes.is_multiple_of(PAGE) {
            return Err(CreateError::Size { size_bytes });
        }
        if let FolioPolicy::Pool { size } | FolioPolicy::Cma { size } = policy
            && !size_bytes.is_multiple_of(size.page_size().bytes())
        {
            return Err(CreateError::NotHugeMultiple { size_bytes, page: size.page_size() });
        }
        let nr_pages = size_bytes / PAGE;
        let flags = GmemFlags::from_bits_truncate(flags);
        let mut provider = policy.provider();
        let ino = {
            let mut host = host.lock(task);
            provider.reserve(&mut host, nr_pages)?;
            host.report_pool(policy.folio_size(), task);
            host.next_ino()
        };
        let initial = if flags.contains(GmemFlags::INIT_SHARED) { Shareability::SHARED } else { Shareability::PRIVATE };
        task.report(Event::GmemCreated { ino, nr_pages, initial: initial.into() });
        Ok(GuestMemfd {
            ino,
            nr_pages,
            flags,
            bindings: ShardedLock::default(),
            attributes: ShardedLock::new(ShareabilityMap::new(nr_pages, initial)),
            uniform: Uniform::new(initial),
            cache: ShardedLock::default(),
            unit: policy.folio_size(),
            policy: gmem,
            folio_locks: Sharded::default(),
            stock: provider.stock(),
            provider: Mutex::new(provider),
            mem_policies: ShardedLock::new(RunMap::new(nr_pages, MemPolicy::Any)),
            has_mem_policies: AtomicBool::new(false),
            nr_poisoned: AtomicU64::new(0),
            users: UserMappings::default(),
            file: FileState::open(),
            batches: Batches::new(gmem.batches),
        })
    }

    /// Ends the inode: all folios and the reservation go back to where they came from. Nothing may use it afterwards.
    ///
    /// # Panics
    /// While a memslot is bound: the hypervisor unbinds first.
    pub fn destroy(&self, host: &Host, task: &Task<'_>) {
        let exclusive = self.exclusive(task);
        assert!(!exclusive.is_bound(), "an inode outlives its bindings");
        self.batches.drain(host, task);
        self.remove_range(host, PageRange { first: PageIndex(0), nr_pages: self.nr_pages }, task);
        let mut provider = self.provider.lock(task);
        let mut host = host.lock(task);
        provider.unreserve(&mut host);
        if task.has(Defect::EndSubpoolWithInode)
            && let Some(Stocked::Pool(subpool)) = self.stock
        {
            host.pool_mut(HugeSize::Size2M).0.forget_subpool(subpool);
        }
        host.report_pool(self.unit, task);
    }

    /// Its number on this host.
    pub const fn ino(&self) -> Ino {
        self.ino
    }

    /// Size in 4 KiB pages.
    pub const fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// Which address spaces map it.
    pub const fn users(&self) -> &UserMappings {
        &self.users
    }

    /// Flags of creation.
    pub const fn flags(&self) -> GmemFlags {
        self.flags
    }

    /// How it behaves.
    pub const fn policy(&self) -> &GmemPolicy {
        &self.policy
    }

    /// The largest leaf that a fault may put over `index` in `slot` when its folio is of size `folio`: by the order rule,
    /// and with one attribute throughout. Exact as long as no conversion is between its begin and its end there.
    pub fn mapping_size(&self, slot: &SlotSpan, index: PageIndex, folio: PageSize, task: &Task<'_>) -> PageSize {
        let most = self.policy.order.largest(slot, index, folio);
        if most == PageSize::Size4K {
            return most;
        }
        let granule = self.granule();
        // A folio whose split is put off is mapped as if it were split.
        let is_whole =
            |outlook: &Outlook<'_>, base, size| granule.is_eager() || !granule.needs_split(outlook, base, size);
        let base = |size: PageSize| index.0 & !(size.frames() - 1);
        let sizes = PageSize::ALL[..=most.index()].iter().copied();
        let found = match self.uniform.get() {
            Some(state) => {
                let outlook = Outlook::throughout(state);
                sizes.rev().find(|&size| is_whole(&outlook, base(size), size))
            }
            None => {
                let attributes = self.attributes(task);
                let outlook = Outlook::now(&attributes);
                let is_usable = |size: PageSize| {
                    attributes.is_uniform(base(size), size.frames()) && is_whole(&outlook, base(size), size)
                };
                sizes.rev().find(|&size| is_usable(size))
            }
        };
        found.unwrap_or(PageSize::Size4K)
    }

    /// Who may use `index`, at this moment.
    #[inline]
    pub fn attribute(&self, index: PageIndex, task: &Task<'_>) -> Shareability {
        if task.has(Defect::ReadFreedNode) {
            return self.attribute_unguarded(index, task);
        }
        self.uniform.get().unwrap_or_else(|| self.attributes.read(task).get(index.0))
    }

    /// The same by a reader that no store waits for (a maple tree without `MT_FLAGS_USE_RCU`): between finding the node
    /// and reading it, the node may be freed.
    ///
    /// # Panics
    /// When it was.
    #[cold]
    fn attribute_unguarded(&self, index: PageIndex, task: &Task<'_>) -> Shareability {
        let node = self.attributes.read(task).node_at(index.0);
        task.at(Point::M1);
        match node.and_then(|node| self.attributes.read(task).read(node)) {
            Some(state) => state,
            None => panic!("C16: the attribute of page {:#x} is read from a node that was freed", index.0),
        }
    }

    /// Stores who may use `range`.
    fn set_attributes(&self, range: PageRange, to: Shareability, task: &Task<'_>) {
        let mut attributes = self.attributes.write(task);
        attributes.set(range.first.0, range.nr_pages, to);
        self.uniform.set(attributes.uniform());
    }

    /// Who may use which index, held still.
    pub fn attributes<'a>(&'a self, task: &Task<'a>) -> ReadGuard<'a, ShareabilityMap> {
        self.attributes.read(task)
    }

    /// Folios in the page cache, by [`PageSize::index`].
    pub fn folios(&self, task: &Task<'_>) -> [u64; 3] {
        let cache = self.cache.read(task);
        PageSize::ALL.map(|size| cache.count(size))
    }

    /// Sets from which nodes pages of `range` are allocated from now on (`mbind`).
    pub fn set_mem_policy(&self, range: PageRange, policy: MemPolicy, task: &Task<'_>) {
        let mut policies = self.mem_policies.write(task);
        policies.set(range.first.0, range.nr_pages, policy);
        self.has_mem_policies.store(true, Ordering::Release);
    }

    fn mem_policy(&self, index: PageIndex, task: &Task<'_>) -> MemPolicy {
        match self.has_mem_policies.load(Ordering::Acquire) {
            true => self.mem_policies.read(task).get(index.0),
            false => MemPolicy::Any,
        }
    }

    /// Bytes of real memory that the page cache takes.
    pub fn metadata_bytes(&self, task: &Task<'_>) -> usize {
        self.cache.read(task).metadata_bytes()
    }

    /// Every folio of the page cache: first index, first frame, size; ascending.
    pub fn list(&self, task: &Task<'_>) -> Vec<(PageIndex, Sfn, PageSize)> {
        let cache = self.cache.read(task);
        let mut found = Vec::new();
        cache.each_run(0, self.nr_pages, |Run { first, nr_pages, sfn, size }| {
            let each = (0..nr_pages).step_by(size.frames() as usize);
            found.extend(each.map(|n| (PageIndex(first + n), Sfn::new(sfn.raw() + n), size)));
        });
        found
    }
}
