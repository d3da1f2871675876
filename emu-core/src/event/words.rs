//! The words that fields of events choose from.

use bitflags::bitflags;

use super::declare::words;
use super::value::{Field, Value};

words! {
    /// Where the name of an event is from.
    Origin {
        /// A tracepoint of the Linux kernel, with the fields that have a meaning here.
        Linux = "linux",
        /// Ours: Linux has no tracepoint there.
        Bifold = "bifold",
    }

    /// What an event is about, to choose events by.
    Group {
        /// A processor enters and leaves the guest, and why.
        Vcpu = "vcpu",
        /// A nested fault on its way through the pipeline.
        Fault = "fault",
        /// An entry of the second-stage or shadow tables changes.
        Mmu = "mmu",
        /// Invalidations, the host's own mappings, TLB flushes.
        Invalidate = "invalidate",
        /// Dirty logging.
        Dirty = "dirty",
        /// guest_memfd: inodes, folios, who may use them.
        Gmem = "gmem",
        /// Where folios come from.
        Pool = "pool",
        /// SEV-SNP: the reverse map and the GHCB protocol.
        Snp = "snp",
    }

    /// Who may use a page.
    Sharing {
        /// The guest alone.
        Private = "private",
        /// Guest and host.
        Shared = "shared",
    }

    /// A part of the fault path. Each begins where the one before it ends; a fault may leave after any of them.
    Stage {
        /// An entry that only lacks a bit is repaired without `mmu_lock` (`fast_page_fault`).
        Fast = "fast",
        /// The memslot is looked up and the invalidation sequence sampled.
        Resolve = "resolve",
        /// What the guest meant is compared with the page's attribute.
        Admit = "admit",
        /// Frames for page tables are put at hand (`mmu_topup_memory_caches`).
        TopUp = "top_up",
        /// The folio is found, or allocated and cleared (`kvm_mmu_faultin_pfn`).
        FaultIn = "fault_in",
        /// `mmu_lock` is taken and the fault is checked for being stale.
        Lock = "lock",
        /// The level is chosen (`kvm_mmu_hugepage_adjust`).
        Level = "level",
        /// The entry is written (`kvm_tdp_mmu_map`, or the shadow tables' `fetch`).
        Install = "install",
        /// Flushes, and what a replaced table leaves behind.
        Finish = "finish",
    }

    /// How a fault ended (`enum` of `RET_PF_*`, and what leaves to the VMM).
    FaultOutcome {
        /// An entry was installed or widened (`RET_PF_FIXED`).
        Fixed = "fixed",
        /// The entry allowed the access already (`RET_PF_SPURIOUS`).
        Spurious = "spurious",
        /// It raced with a change and comes again (`RET_PF_RETRY`).
        Retry = "retry",
        /// No memory there: the instruction is emulated on a device (`RET_PF_EMULATE`).
        Emulate = "emulate",
        /// A write to what is write-protected (`RET_PF_WRITE_PROTECTED`).
        WriteProtected = "write_protected",
        /// The path declined (`RET_PF_INVALID`).
        Invalid = "invalid",
        /// Leaves to the VMM (`KVM_EXIT_MEMORY_FAULT`).
        MemoryFault = "memory_fault",
        /// The host could not go on.
        Error = "error",
    }

    /// Why a leaf is smaller than its folio.
    ClipReason {
        /// It would reach out of the memslot.
        Slot = "slot",
        /// Guest frames and system frames are not congruent.
        Alignment = "alignment",
        /// Part of it is private and part shared.
        Attributes = "attributes",
        /// The policy or the processor's largest level.
        Limit = "limit",
        /// The slot's dirty pages are logged one by one.
        DirtyLogging = "dirty_logging",
        /// Executable huge pages are forbidden (the iTLB multihit workaround).
        NxHugePage = "nx_huge_page",
        /// The guest's own tables are shadowed there.
        WriteTracking = "write_tracking",
        /// The entry of the reverse map is smaller.
        Rmp = "rmp",
    }

    /// Why a processor left the guest.
    ExitReason {
        /// The end of its turn.
        TimeUp = "time_up",
        /// It can take an interrupt now.
        InterruptWindow = "interrupt_window",
        /// HLT.
        Halt = "hlt",
        /// A nested page fault (NPF, EPT violation or misconfiguration).
        NestedPageFault = "npf",
        /// The page-modification log is full.
        ModificationLogFull = "pml_full",
        /// Memory that a device answers.
        Mmio = "mmio",
        /// A port.
        Io = "io",
        /// RDMSR or WRMSR.
        Msr = "msr",
        /// CR8.
        TaskPriority = "cr8",
        /// VMMCALL or VMCALL.
        Hypercall = "hypercall",
        /// VMGEXIT.
        VmgExit = "vmgexit",
        /// An exception the hypervisor asked for: a page fault over shadow tables.
        Exception = "exception",
        /// An instruction the hypervisor asked for: MOV to CR, INVLPG, INVPCID.
        Intercept = "intercept",
        /// The time-stamp counter was moved.
        TscMoved = "tsc",
        /// A triple fault.
        Shutdown = "shutdown",
        /// The state to be entered with is invalid.
        Invalid = "invalid",
    }

    /// Why `KVM_RUN` returns to the VMM (`KVM_EXIT_*`).
    UserExitReason {
        /// `KVM_EXIT_IO`.
        Io = "io",
        /// `KVM_EXIT_MMIO`.
        Mmio = "mmio",
        /// `KVM_EXIT_HYPERCALL`: the guest asks for a conversion.
        Hypercall = "hypercall",
        /// `KVM_EXIT_MEMORY_FAULT`.
        MemoryFault = "memory_fault",
        /// `KVM_EXIT_DIRTY_RING_FULL`.
        DirtyRingFull = "dirty_ring_full",
        /// `KVM_EXIT_SHUTDOWN`.
        Shutdown = "shutdown",
        /// `KVM_EXIT_INTERNAL_ERROR`.
        InternalError = "internal_error",
        /// `KVM_EXIT_SYSTEM_EVENT`: the guest asks for its own end.
        SystemEvent = "system_event",
    }

    /// The way of a datum between guest and device.
    Direction {
        /// To the guest.
        Read = "read",
        /// From the guest.
        Write = "write",
    }

    /// Whether a shadow page was there.
    TableOrigin {
        /// It was made.
        New = "new",
        /// It was found by its role.
        Existing = "existing",
    }

    /// Whose a page is by the reverse map.
    RmpOwner {
        /// The hypervisor's.
        Hypervisor = "hypervisor",
        /// A guest's.
        Guest = "guest",
        /// A guest's to be: immutable until the firmware launches it.
        PreGuest = "pre_guest",
        /// The firmware's.
        Firmware = "firmware",
    }

    /// What PVALIDATE makes of a page.
    Validity {
        /// The guest accepts it.
        Validated = "validated",
        /// The guest gives it up.
        Rescinded = "rescinded",
    }

    /// What happened to a memslot (`enum kvm_mr_change`).
    SlotChange {
        /// `KVM_MR_CREATE`.
        Create = "create",
        /// `KVM_MR_DELETE`.
        Delete = "delete",
        /// `KVM_MR_MOVE`.
        Move = "move",
        /// `KVM_MR_FLAGS_ONLY`.
        Flags = "flags",
    }

    /// How a memory failure ended (`enum mf_result`).
    FailureResult {
        /// `MF_RECOVERED`: nobody can touch the page any more.
        Recovered = "recovered",
        /// `MF_DELAYED`: whoever touches it is told.
        Delayed = "delayed",
        /// `MF_IGNORED`.
        Ignored = "ignored",
        /// `MF_FAILED`.
        Failed = "failed",
    }
}

/// Number of a guest_memfd inode, unique on its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ino(pub u64);

impl Field for Ino {
    fn put(&self) -> Value<'static> {
        Value::Dec(self.0)
    }
    fn take(value: Value<'_>) -> Option<Ino> {
        u64::take(value).map(Ino)
    }
}

bitflags! {
    /// Error code of a nested page fault (AMD APM vol. 2, "Nested versus Guest Page Faults, Fault Ordering"; `PFERR_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct NpfCode: u64 {
        /// P: a present entry denied the access.
        const PRESENT = 1 << 0;
        /// W.
        const WRITE = 1 << 1;
        /// U.
        const USER = 1 << 2;
        /// RSVD: reserved bits, as MMIO entries have on purpose.
        const RSVD = 1 << 3;
        /// F: an instruction fetch.
        const FETCH = 1 << 4;
        /// PK: a protection key.
        const PK = 1 << 5;
        /// SS: a shadow-stack access.
        const SS = 1 << 6;
        /// RMP: a check of the reverse map failed.
        const GUEST_RMP = 1 << 31;
        /// The address that the instruction wanted.
        const GUEST_FINAL = 1 << 32;
        /// The address of an entry of the guest's own tables.
        const GUEST_PAGE = 1 << 33;
        /// The guest used the C-bit: it meant private memory.
        const GUEST_ENC = 1 << 34;
        /// SIZEM: PVALIDATE or RMPADJUST of another size than the entry of the reverse map.
        const GUEST_SIZEM = 1 << 35;
        /// VMPL: the permissions of the privilege level denied the access.
        const GUEST_VMPL = 1 << 36;
        /// KVM's own: the access is to private memory.
        const PRIVATE_ACCESS = 1 << 49;
    }
}

impl Field for NpfCode {
    fn put(&self) -> Value<'static> {
        Value::Hex(self.bits())
    }
    fn take(value: Value<'_>) -> Option<NpfCode> {
        match value {
            Value::Hex(raw) | Value::Dec(raw) => Some(NpfCode::from_bits_retain(raw)),
            Value::Int(_) | Value::Word(_) => None,
        }
    }
}
