//! The vocabulary: every event, declared once.
//!
//! Names of [`Origin::Linux`] are those of `arch/x86/kvm/trace.h`, `arch/x86/kvm/mmu/mmutrace.h` and
//! `include/trace/events/kvm.h`; fields that Linux prints and a sink knows anyway (vCPU, instruction pointer) are not
//! repeated. Those of SEV-SNP are in `snp`. Levels count as the kernel's: 1 holds 4 KiB leaves.

use super::declare::events;
use super::snp::with_snp_events;
use super::value::{Bits, Field, ReadError, Value};
use super::words::{
    ClipReason, Direction, ExitReason, FailureResult, FaultOutcome, Group, Ino, NpfCode, Origin, RmpOwner, Sharing,
    SlotChange, Stage, TableOrigin, UserExitReason, Validity,
};
use crate::access::AccessKind;
use crate::addr::{Gfn, Gpa, Gva, Sfn};
use crate::page::PageSize;

with_snp_events! {
events! {
    /// A VM begins, with nothing in it: what was told before belongs to another.
    VmCreated: Bifold "kvm_create_vm" in Vcpu {
        /// Its processors.
        nr_vcpus: u16,
    }

    /// A processor enters the guest.
    Entry: Linux "kvm_entry" in Vcpu {}

    /// A processor left the guest.
    Exit: Linux "kvm_exit" in Vcpu {
        /// Why.
        reason: ExitReason,
    }

    /// `KVM_RUN` returns to the VMM.
    UserspaceExit: Linux "kvm_userspace_exit" in Vcpu {
        /// Why.
        reason: UserExitReason,
        /// What `KVM_RUN` returns: zero or a negative errno.
        errno: i32,
    }

    /// The guest calls the hypervisor.
    Hypercall: Linux "kvm_hypercall" in Vcpu {
        /// Its number.
        nr: u64,
        /// First argument.
        a0: Bits,
        /// Second argument.
        a1: Bits,
        /// Third argument.
        a2: Bits,
        /// Fourth argument.
        a3: Bits,
    }

    /// A device answers a memory access.
    Mmio: Linux "kvm_mmio" in Vcpu {
        /// Which way.
        direction: Direction,
        /// Width in bytes.
        len: u8,
        /// Where.
        gpa: Gpa,
        /// What was read or written.
        value: Bits,
    }

    /// A device answers a port access.
    Pio: Linux "kvm_pio" in Vcpu {
        /// Which way.
        direction: Direction,
        /// Width in bytes.
        len: u8,
        /// The port.
        port: u16,
        /// What was read or written.
        value: Bits,
    }

    /// A device was refused guest memory: private, or none.
    DmaRefused: Bifold "kvm_dma_refused" in Vcpu {
        /// What the device wanted to do.
        direction: Direction,
        /// First byte.
        gpa: Gpa,
        /// How many bytes.
        len: u64,
    }

    /// RDMSR or WRMSR left the guest.
    Msr: Linux "kvm_msr" in Vcpu {
        /// Which way.
        direction: Direction,
        /// The register.
        ecx: u32,
        /// What was read or written.
        data: Bits,
    }

    /// A nested fault entered the pipeline.
    PageFault: Linux "kvm_page_fault" in Fault {
        /// Where.
        gpa: Gpa,
        /// What for.
        access: AccessKind,
        /// The error code.
        error_code: NpfCode,
    }

    /// A part of the fault path begins.
    FaultStage: Bifold "kvm_page_fault_stage" in Fault {
        /// Which.
        stage: Stage,
    }

    /// The fault has its answer.
    FaultDone: Bifold "kvm_page_fault_done" in Fault {
        /// Where.
        gpa: Gpa,
        /// What it was.
        outcome: FaultOutcome,
    }

    /// The fast path looked at an entry, and repaired it or not.
    FastPageFault: Linux "fast_page_fault" in Fault {
        /// Where.
        gpa: Gpa,
        /// The error code.
        error_code: NpfCode,
        /// The entry before.
        old_spte: Bits,
        /// The entry after.
        new_spte: Bits,
        /// What came of it.
        outcome: FaultOutcome,
    }

    /// A fault knows the leaf it wants.
    SpteRequested: Linux "kvm_mmu_spte_requested" in Fault {
        /// The faulting guest frame.
        gfn: Gfn,
        /// The frame behind it.
        sfn: Sfn,
        /// Level of the leaf.
        size: PageSize,
    }

    /// The leaf is smaller than the folio behind it.
    OrderClipped: Bifold "kvm_mmu_level_clipped" in Fault {
        /// The faulting guest frame.
        gfn: Gfn,
        /// Size of the folio.
        folio: PageSize,
        /// Level of the leaf.
        size: PageSize,
        /// What kept it from being larger; the strictest bound.
        reason: ClipReason,
    }

    /// A leaf was installed.
    Mapped: Linux "kvm_mmu_set_spte" in Mmu {
        /// First guest frame.
        gfn: Gfn,
        /// First system frame.
        sfn: Sfn,
        /// Level of the leaf.
        size: PageSize,
    }

    /// A leaf was removed.
    Zapped: Bifold "kvm_mmu_zap_spte" in Mmu {
        /// First guest frame.
        gfn: Gfn,
        /// Level of the leaf.
        size: PageSize,
    }

    /// An entry of the second-stage tables changed: leaf, table, or only its bits.
    SpteChanged: Linux "kvm_tdp_mmu_spte_changed" in Mmu {
        /// First guest frame under the entry.
        gfn: Gfn,
        /// Its level.
        level: u8,
        /// Before.
        old_spte: Bits,
        /// After.
        new_spte: Bits,
    }

    /// A huge leaf became a table of smaller ones.
    SplitHugePage: Linux "kvm_mmu_split_huge_page" in Mmu {
        /// First guest frame.
        gfn: Gfn,
        /// The leaf.
        spte: Bits,
        /// Its level.
        level: u8,
        /// Zero, or why not.
        errno: i32,
    }

    /// An entry was written that says "no memory here, ask a device".
    MarkMmioSpte: Linux "mark_mmio_spte" in Mmu {
        /// The guest frame.
        gfn: Gfn,
        /// What it was asked for.
        access: Bits,
        /// The memslots' generation that it belongs to.
        generation: u32,
    }

    /// A fault met such an entry.
    HandleMmioPageFault: Linux "handle_mmio_page_fault" in Fault {
        /// Where.
        addr: Gpa,
        /// The guest frame that the entry names.
        gfn: Gfn,
        /// What it may be asked for.
        access: Bits,
    }

    /// Whether such an entry is of the memslots as they are.
    CheckMmioSpte: Linux "check_mmio_spte" in Fault {
        /// The entry.
        spte: Bits,
        /// The memslots' generation.
        kvm_generation: u32,
        /// The entry's.
        spte_generation: u32,
    }

    /// Shadow paging looked for a shadow page.
    GetPage: Linux "kvm_mmu_get_page" in Mmu {
        /// What it shadows.
        gfn: Gfn,
        /// Its role word.
        role: Bits,
        /// Whether it was there.
        origin: TableOrigin,
    }

    /// A shadow page is made to agree with the guest's table again.
    SyncPage: Linux "kvm_mmu_sync_page" in Mmu {
        /// What it shadows.
        gfn: Gfn,
        /// Its role word.
        role: Bits,
    }

    /// The guest may write the table from now on without the shadow page following.
    UnsyncPage: Linux "kvm_mmu_unsync_page" in Mmu {
        /// What it shadows.
        gfn: Gfn,
        /// Its role word.
        role: Bits,
    }

    /// A shadow page goes.
    PrepareZapPage: Linux "kvm_mmu_prepare_zap_page" in Mmu {
        /// What it shadows.
        gfn: Gfn,
        /// Its role word.
        role: Bits,
    }

    /// Every root becomes obsolete at once.
    ZapAllFast: Linux "kvm_mmu_zap_all_fast" in Mmu {
        /// The generation from now on.
        generation: u8,
        /// Tables in use.
        used_pages: u64,
    }

    /// The hypervisor walks the guest's own tables.
    PagetableWalk: Linux "kvm_mmu_pagetable_walk" in Mmu {
        /// The address it translates.
        addr: Bits,
        /// What for.
        error_code: NpfCode,
    }

    /// The walk read an entry.
    PagingElement: Linux "kvm_mmu_paging_element" in Mmu {
        /// The entry.
        pte: Bits,
        /// Its level.
        level: u8,
    }

    /// The walk set the accessed flag of an entry.
    SetAccessedBit: Linux "kvm_mmu_set_accessed_bit" in Mmu {
        /// Where the entry stands.
        gpa: Gpa,
    }

    /// The walk set the dirty flag of an entry.
    SetDirtyBit: Linux "kvm_mmu_set_dirty_bit" in Mmu {
        /// Where the entry stands.
        gpa: Gpa,
    }

    /// The walk ends with a fault for the guest.
    WalkerError: Linux "kvm_mmu_walker_error" in Mmu {
        /// Its error code.
        error_code: NpfCode,
    }

    /// A table whose huge pages were forbidden for execution was given up, so that it can be huge again.
    NxRecovered: Bifold "kvm_nx_huge_page_recovered" in Mmu {
        /// First guest frame.
        gfn: Gfn,
        /// What it can become.
        size: PageSize,
    }

    /// A change of backing begins: faults on its range retry until it ends (`kvm_mmu_invalidate_begin`).
    InvalidateBegin: Bifold "kvm_mmu_invalidate_begin" in Invalidate {
        /// First guest frame.
        first: Gfn,
        /// How many.
        nr_pages: u64,
    }

    /// It ends (`kvm_mmu_invalidate_end`).
    InvalidateEnd: Bifold "kvm_mmu_invalidate_end" in Invalidate {
        /// The sequence number from now on.
        seq: u64,
    }

    /// Every processor is asked to forget translations (`kvm_flush_remote_tlbs`).
    RemoteTlbFlush: Bifold "kvm_flush_remote_tlbs" in Invalidate {
        /// First guest frame.
        first: Gfn,
        /// How many; `u64::MAX` with frame 0 is everything.
        nr_pages: u64,
    }

    /// The host takes a range of user memory away.
    UnmapHvaRange: Linux "kvm_unmap_hva_range" in Invalidate {
        /// From this host virtual address.
        start: Bits,
        /// Up to, without this one.
        end: Bits,
    }

    /// The host asks whether a range was used, and marks it unused.
    AgeHva: Linux "kvm_age_hva" in Invalidate {
        /// From this host virtual address.
        start: Bits,
        /// Up to, without this one.
        end: Bits,
    }

    /// The host asks whether a page was used.
    TestAgeHva: Linux "kvm_test_age_hva" in Invalidate {
        /// The host virtual address.
        hva: Bits,
    }

    /// A memslot came, went or changed (`KVM_SET_USER_MEMORY_REGION2`).
    SetMemoryRegion: Bifold "kvm_set_memory_region" in Invalidate {
        /// Its number.
        slot: u16,
        /// Its first guest frame; before the change when it goes.
        first: Gfn,
        /// Its length.
        nr_pages: u64,
        /// What happened.
        change: SlotChange,
        /// Its flags afterwards, `KVM_MEM_*`.
        flags: Bits,
    }

    /// VM-wide attributes were set (`KVM_SET_MEMORY_ATTRIBUTES`).
    SetMemAttributes: Linux "kvm_vm_set_mem_attributes" in Gmem {
        /// First guest frame.
        start: Gfn,
        /// Up to, without this one.
        end: Gfn,
        /// `KVM_MEMORY_ATTRIBUTE_*`.
        attributes: Bits,
    }

    /// A dirty page went into a ring.
    DirtyRingPush: Linux "kvm_dirty_ring_push" in Dirty {
        /// The vCPU whose ring it is.
        ring: u16,
        /// Entries pushed so far.
        dirty_index: u32,
        /// Entries reset so far.
        reset_index: u32,
        /// Memslot of the page.
        slot: u32,
        /// Page inside the memslot.
        offset: u64,
    }

    /// Entries that the VMM has read are free again.
    DirtyRingReset: Linux "kvm_dirty_ring_reset" in Dirty {
        /// The vCPU whose ring it is.
        ring: u16,
        /// Entries pushed so far.
        dirty_index: u32,
        /// Entries reset so far.
        reset_index: u32,
    }

    /// A ring is full enough that its processor leaves to the VMM.
    DirtyRingExit: Linux "kvm_dirty_ring_exit" in Dirty {
        /// The vCPU whose ring it is.
        ring: u16,
    }

    /// A processor has left the guest because its page-modification log has no room.
    PmlFull: Linux "kvm_pml_full" in Dirty {}

    /// The VMM fetched a memslot's dirty bitmap: one round of a migration.
    GetDirtyLog: Bifold "kvm_get_dirty_log" in Dirty {
        /// The memslot.
        slot: u16,
        /// Pages found dirty.
        nr_dirty: u64,
    }

    /// A guest_memfd inode was created.
    GmemCreated: Bifold "gmem_create" in Gmem {
        /// The inode.
        ino: Ino,
        /// Its size.
        nr_pages: u64,
        /// Who may use its pages at first.
        initial: Sharing,
    }

    /// A memslot shows a part of an inode from now on.
    GmemBound: Bifold "gmem_bind" in Gmem {
        /// The inode.
        ino: Ino,
        /// The memslot.
        slot: u16,
        /// First page of the inode.
        index: u64,
        /// How many.
        nr_pages: u64,
        /// The guest frame that shows the first.
        gfn: Gfn,
    }

    /// A memslot shows a part of an inode no more.
    GmemUnbound: Bifold "gmem_unbind" in Gmem {
        /// The inode.
        ino: Ino,
        /// First page of the inode.
        index: u64,
    }

    /// A folio came into an inode's page cache.
    FolioAllocated: Bifold "gmem_folio_allocated" in Gmem {
        /// The inode.
        ino: Ino,
        /// First page of the inode.
        index: u64,
        /// First frame.
        sfn: Sfn,
        /// Size of the folio.
        size: PageSize,
    }

    /// Frames were cleared for their next user.
    FolioZeroed: Bifold "gmem_folio_zeroed" in Gmem {
        /// First frame.
        sfn: Sfn,
        /// How many.
        nr_pages: u64,
    }

    /// A folio became folios of a smaller size.
    FolioSplit: Bifold "gmem_folio_split" in Gmem {
        /// The inode.
        ino: Ino,
        /// First page of the inode.
        index: u64,
        /// First frame.
        sfn: Sfn,
        /// Its size until now.
        from: PageSize,
        /// The size of its pieces.
        to: PageSize,
    }

    /// Folios became one again.
    FolioMerged: Bifold "gmem_folio_merged" in Gmem {
        /// The inode.
        ino: Ino,
        /// First page of the inode.
        index: u64,
        /// First frame.
        sfn: Sfn,
        /// The size from now on.
        size: PageSize,
    }

    /// A folio left an inode's page cache.
    FolioRemoved: Bifold "gmem_folio_removed" in Gmem {
        /// The inode.
        ino: Ino,
        /// First page of the inode.
        index: u64,
        /// First frame.
        sfn: Sfn,
        /// Size of the folio.
        size: PageSize,
    }

    /// Pages of an inode have other users from now on.
    Converted: Bifold "gmem_convert" in Gmem {
        /// The inode.
        ino: Ino,
        /// First page of the inode.
        index: u64,
        /// How many.
        nr_pages: u64,
        /// Who may use them.
        to: Sharing,
    }

    /// A conversion was refused.
    ConvertRefused: Bifold "gmem_convert_refused" in Gmem {
        /// The inode.
        ino: Ino,
        /// First page that stands against it.
        index: u64,
        /// Why.
        errno: i32,
    }

    /// A hole was punched into an inode.
    Punched: Bifold "gmem_punch_hole" in Gmem {
        /// The inode.
        ino: Ino,
        /// First page.
        index: u64,
        /// How many.
        nr_pages: u64,
    }

    /// A frame failed.
    MemoryFailure: Linux "memory_failure_event" in Pool {
        /// The frame.
        sfn: Sfn,
        /// How it ended.
        result: FailureResult,
    }

    /// Counters of a pool of huge pages changed.
    PoolChanged: Bifold "hugetlb_pool" in Pool {
        /// Size of its pages.
        size: PageSize,
        /// `nr_hugepages`.
        nr: u64,
        /// `free_hugepages`.
        free: u64,
        /// `resv_hugepages`.
        resv: u64,
        /// `surplus_hugepages`.
        surplus: u64,
    }
}
}
