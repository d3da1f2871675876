//! The software beneath the guest, as KVM has it.
//!
//! Modelled: Linux `virt/kvm/kvm_main.c` (memslots, invalidation) and `arch/x86/kvm/mmu/` with its TDP MMU. A machine
//! hands nested faults to [`Vm::handle_fault`] and acts on the [`Action`] that comes back; which bytes stand behind
//! guest memory is the business of `gmem`, and reading the tables that are built here is the processor's.
//!
//! - [`Vm`] is the door. It owns the host's memory, the guest_memfd inodes, the memslots and the nested tables. Every
//!   operation takes `&self` and a [`emu_core::sync::Task`]: threads call it at the same time, and a controlled schedule
//!   can interleave them step by step.
//! - [`fault`] is the pipeline: resolve, admit, fault in, choose the level, install. Each stage consumes the type that the
//!   stage before it made, so none can be left out or reordered.
//! - [`memslot`] is which guest frames there are, [`follow`] how a fault or the hypervisor itself gets at user memory behind
//!   them, [`attributes`] who may use them where inodes do not say so. The VM is an MMU notifier of the VMM's memory.
//! - [`tdp`] is the tables, in NPT or EPT format, in system memory. Every entry changes through one function.
//! - [`shadow`] is what takes their place for a processor without nested paging.
//! - [`dirty`] finds what the guest writes; [`mmio`] remembers where no memory is. [`MmuParams`] says how all this works.
//! - [`Vm::populate`] fills private memory before the guest runs.
//! - [`snp`] is SEV-SNP: who owns a page by the reverse map, the launch, the GHCB protocol.
//! - [`plan`] lays out guest RAM and the system memory that a guest of some size needs.
//!
//! Always true: an entry holds no reference to its frame; what keeps it legal is that backing changes only between the
//! begin and the end of an invalidation, which zaps, and that a fault which raced retries. Removals owe a flush: it waits
//! in each vCPU's mailbox ([`Vm::take_flush`]), which the machine empties before the vCPU enters the guest again.
//!
//! Left out so far: faults in system management mode (its memslots are kept).
#![forbid(unsafe_code)]

mod age;
pub mod attributes;
mod change;
pub mod check;
mod config;
pub mod dirty;
pub mod fault;
mod flush;
pub mod follow;
mod handle;
mod io;
mod kind;
mod lifetime;
pub mod memslot;
pub mod mmio;
mod notifier;
mod nx;
mod params;
pub mod plan;
mod pml;
mod populate;
mod prefault;
mod ram;
mod region;
mod roots;
pub mod shadow;
pub mod snp;
mod stats;
pub mod tdp;
mod vcpu;
mod vm;

pub use age::Aging;
pub use attributes::{AttributeError, MEMORY_ATTRIBUTE_PRIVATE, MemoryAttributes};
pub use config::{PagePolicy, VmConfig, VmError};
pub use fault::{Action, EntryState, FaultCause, FaultInput, MemoryFault, MemoryFaultReason, Resumed};
pub use flush::FlushRequest;
pub use follow::{FollowPolicy, OwnAccess, PfnError, UnsafeMappings, UserSignal};
pub use io::GuestAccessError;
pub use kind::VmKind;
pub use memslot::{
    MemFd, MemSlot, MemSlotSpec, MemslotError, Slot, SlotChange, SlotFlags, SlotState, UserMemoryRegion2,
};
pub use params::{DirtyRingConfig, EagerPageSplit, ManualProtect, MmioCaching, MmuParams, NxHugePages, Pml, SlotZap};
pub use plan::{RamLayout, RamRange, SystemMemoryPlan};
pub use pml::PML_ENTRIES;
pub use populate::{LaunchPage, Populate, PopulateError, PostPopulate, SourceUse};
pub use prefault::{PreFault, PreFaultError};
pub use ram::RAM_HVA;
pub use snp::memory::{
    Assign, AssignError, LaunchContent, LaunchError, LaunchedPage, LieError, Measure, PageStateChange, PageStateError,
    Reloaded, RmpSizes, SizeHint, SnpConfig, SnpLaunchUpdate, SnpPageType, SnpSetupError, SnpStats,
};
pub use stats::{FaultStats, VmStats};
pub use tdp::TdpFormat;
pub use vcpu::{InGuest, VcpuId};
pub use vm::{GmemId, Vm};

pub use gmem::{FolioPolicy, GmemFlags, HostConfig, HugeSize, Shareability, SlotId};
