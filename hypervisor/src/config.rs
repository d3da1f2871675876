//! What a VM is to be, and what can go wrong on the host's side.

use emu_core::memory::BusError;
use emu_core::{Gpa, PageSize};
use gmem::host::HostSetupError;
use gmem::mm::MmError;
use gmem::provider::PoisonError;
use gmem::{
    ConvertError, CreateError, FallocateError, FolioPolicy, GetError, GmemPolicy, HoleError, HostConfig, HugeSize,
    OutOfMemory, PageIndex, SlotId,
};
use thiserror::Error;

use crate::dirty::DirtyLogError;
use crate::follow::{FollowPolicy, PfnError};
use crate::kind::VmKind;
use crate::memslot::MemslotError;
use crate::snp::memory::{AssignError, SnpConfig, SnpSetupError};
use crate::tdp::TdpFormat;
use crate::vcpu::VcpuId;
use crate::vm::GmemId;

/// Which pages stand behind guest memory and how large they are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePolicy {
    /// Size and source of folios.
    pub folios: FolioPolicy,
    /// The largest leaf to install.
    pub max_level: PageSize,
}

impl PagePolicy {
    /// The usual policy of `--pages`: 4K from the page allocator, 2M and 1G from a pool of their own.
    pub const fn of(size: PageSize) -> PagePolicy {
        let folios = match size {
            PageSize::Size4K => FolioPolicy::Buddy { largest: size },
            PageSize::Size2M => FolioPolicy::Pool { size: HugeSize::Size2M },
            PageSize::Size1G => FolioPolicy::Pool { size: HugeSize::Size1G },
        };
        PagePolicy { folios, max_level: size }
    }
}

/// What a VM is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// Format of the nested tables.
    pub format: TdpFormat,
    /// Folios and levels.
    pub pages: PagePolicy,
    /// Width of a guest physical address in bits: 32 to 48, what a 4-level table translates.
    pub maxphyaddr: u8,
    /// Virtual processors.
    pub nr_vcpus: u16,
    /// The host's share of system memory.
    pub host: HostConfig,
    /// Its kind.
    pub kind: VmKind,
    /// How guest_memfd behaves.
    pub gmem: GmemPolicy,
    /// How the hypervisor gets at user memory.
    pub follow: FollowPolicy,
    /// Exactly for a VM of [`VmKind::Snp`]: its reverse map, and who it is there.
    pub snp: Option<SnpConfig>,
}

impl VmConfig {
    /// One vCPU, NPT, 48 bits, and the proposed guest_memfd; change what differs.
    pub const fn new(pages: PagePolicy, host: HostConfig) -> VmConfig {
        VmConfig {
            format: TdpFormat::Npt,
            pages,
            maxphyaddr: 48,
            nr_vcpus: 1,
            host,
            kind: VmKind::Default,
            gmem: GmemPolicy::DEFAULT,
            follow: FollowPolicy::DEFAULT,
            snp: None,
        }
    }
}

/// The host could not do what was asked. Nothing here is the guest's doing alone; a guest can only run into it where
/// the host promised more memory than it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum VmError {
    /// The address width cannot be had.
    #[error("guest physical addresses of {maxphyaddr} bits were asked for, 4-level tables translate 32 to 48")]
    MaxPhyAddr {
        /// What was asked for.
        maxphyaddr: u8,
    },
    /// The host's memory could not be set up.
    #[error(transparent)]
    Host(#[from] HostSetupError),
    /// It cannot be an SNP guest.
    #[error(transparent)]
    Snp(#[from] SnpSetupError),
    /// A private page cannot be assigned to the guest.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// `EFAULT`: a private access met an entry for a device. The guest cannot be emulated there and ends.
    #[error("a private access at {gpa} met an entry for a device")]
    PrivateMmio {
        /// Where.
        gpa: Gpa,
    },
    /// No frame for a page table.
    #[error("no memory for a nested page table: {0}")]
    Table(#[from] OutOfMemory),
    /// No folio behind a guest page.
    #[error("guest memory cannot be populated: {0}")]
    Backing(#[from] GetError),
    /// A guest_memfd could not be created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A memslot call was refused.
    #[error(transparent)]
    Memslot(#[from] MemslotError),
    /// No such inode.
    #[error("there is no guest_memfd {}", id.0)]
    NoSuchGmem {
        /// The number asked for.
        id: GmemId,
    },
    /// Memslots look at the inode.
    #[error("guest_memfd {} is in use", id.0)]
    GmemInUse {
        /// The inode.
        id: GmemId,
    },
    /// A hole or a conversion must consist of whole pages.
    #[error("{len_bytes:#x} bytes at {offset_bytes:#x} are not a positive number of whole 4 KiB pages")]
    BadRange {
        /// Its start in the inode.
        offset_bytes: u64,
        /// Its length.
        len_bytes: u64,
    },
    /// A hole was refused.
    #[error(transparent)]
    Hole(#[from] HoleError),
    /// `fallocate` was refused.
    #[error(transparent)]
    Fallocate(#[from] FallocateError),
    /// A memory failure that cannot be contained.
    #[error(transparent)]
    MemoryFailure(#[from] PoisonError),
    /// A conversion was refused.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// No such processor.
    #[error("there is no vCPU {} among {nr_vcpus}", id.0)]
    NoSuchVcpu {
        /// The number asked for.
        id: VcpuId,
        /// How many there are.
        nr_vcpus: usize,
    },
    /// Writes to a memslot cannot be logged.
    #[error(transparent)]
    DirtyLog(#[from] DirtyLogError),
    /// User memory behind a guest page cannot be had.
    #[error(transparent)]
    Follow(#[from] PfnError),
    /// A memslot and its inode disagree about who shows a page (`EIO`).
    #[error("page {} of its guest_memfd is not bound to memslot {}", index.0, slot.0)]
    NotBound {
        /// The slot.
        slot: SlotId,
        /// The page.
        index: PageIndex,
    },
    /// `EBADF`: calls that want the VM's descriptor.
    #[error("the VM's descriptor is closed")]
    Closed,
    /// The VMM's own memory cannot be mapped.
    #[error(transparent)]
    UserMapping(#[from] MmError),
    /// Only a VM that shadows its guest's tables can do this.
    #[error("the VM has nested paging and shadows nothing")]
    NotShadowing,
    /// A processor ran on although its dirty ring was full: it must leave to the VMM at the soft limit.
    #[error("the dirty ring of a vCPU is full: it may not run before entries are reset")]
    DirtyRingFull,
    /// A table or a folio lies outside system memory.
    #[error(transparent)]
    Bus(#[from] BusError),
}
