//! The one list of invariants.
//!
//! Groups: A inodes and bindings, B folios and contents, C attributes and conversion, D levels and alignment, E
//! invalidation and TLBs, F allocators and pools, H the reverse map of SNP, I dirty state, NX and MMIO, J shadow paging, K
//! what a VMM sees. TDX has a list of its own.

use super::scene::Scene;
use super::{entries, folios, inodes, leaves, logs, pools, protocol, records, rmp, shadowed};

/// When a rule holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Between any two steps.
    Always,
    /// Whenever nobody has `mmu_lock` for writing.
    MmuLockFree,
    /// When no operation is under way.
    Quiescent,
    /// Of one call: what it returns and leaves behind.
    Call,
}

/// How a rule is looked at.
#[derive(Clone, Copy)]
pub enum Checked {
    /// By [`crate::Vm::check`].
    #[doc(hidden)]
    Scan(Scan),
    /// By the check of another rule, which would see it broken.
    Within(Invariant),
    /// By an assertion at the place that could break it.
    Asserted(&'static str),
    /// By a test, whose file this is, seen from the repository.
    Test(&'static str),
    /// Not yet: what it speaks of is not modelled, or nothing looks.
    Open(&'static str),
}

/// A check: what it saw if the rule is broken.
pub(super) type ScanFn = fn(&Scene<'_>) -> Result<(), String>;

/// A scan of the table, which only this crate can run.
#[derive(Clone, Copy)]
pub struct Scan(ScanFn);

impl Scan {
    pub(super) fn run(self, scene: &Scene<'_>) -> Result<(), String> {
        (self.0)(scene)
    }
}

impl core::fmt::Debug for Checked {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Checked::Scan(_) => f.write_str("scanned"),
            Checked::Within(other) => write!(f, "seen by {other}"),
            Checked::Asserted(place) => write!(f, "asserted in `{place}`"),
            Checked::Test(file) => write!(f, "tested in `{file}`"),
            Checked::Open(why) => write!(f, "open: {why}"),
        }
    }
}

macro_rules! invariants {
    ($($id:ident $when:ident $how:ident($what:expr) $meaning:literal;)*) => {
        /// A rule that the memory pipeline is held to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Invariant {
            $(#[doc = $meaning] $id,)*
        }

        impl Invariant {
            /// Every one, in the order in which they are looked at.
            pub const ALL: &'static [Invariant] = &[$(Invariant::$id),*];

            /// Its name: the letter of its group and a number.
            pub const fn id(self) -> &'static str {
                match self { $(Invariant::$id => stringify!($id),)* }
            }

            /// What it says.
            pub const fn meaning(self) -> &'static str {
                match self { $(Invariant::$id => $meaning,)* }
            }

            /// When it holds.
            pub const fn when(self) -> When {
                match self { $(Invariant::$id => When::$when,)* }
            }

            /// How it is looked at.
            pub const fn checked(self) -> Checked {
                match self { $(Invariant::$id => invariants!(@ $how $what),)* }
            }
        }
    };
    (@ Scan $check:expr) => { Checked::Scan(Scan($check)) };
    (@ Within $other:expr) => { Checked::Within($other) };
    (@ Asserted $place:expr) => { Checked::Asserted($place) };
    (@ Test $file:expr) => { Checked::Test($file) };
    (@ Open $why:expr) => { Checked::Open($why) };
}

const ATTRIBUTES: &str = "hypervisor/tests/attributes.rs";
const HISTORY: &str = "hypervisor/tests/history.rs";
const INODE: &str = "gmem/tests/history.rs";
const UNITS: &str = "gmem/src/provider/tests.rs";
const POOLS: &str = "gmem/src/pool/tests.rs";
const STATES: &str = "hypervisor/tests/state_machine.rs";
const SNP: &str = "hypervisor/tests/snp_memory.rs";
const RMP: &str = "mmu/src/rmp/tests.rs";

invariants! {
    A1 Always Scan(inodes::bindings_are_disjoint) "bindings of one inode are disjoint";
    A2 Always Scan(inodes::bindings_are_the_slots) "an index is bound to a slot exactly where the slot shows it";
    A3 Always Scan(inodes::slots_lie_inside) "a bound slot lies inside its inode";
    A4 Always Scan(inodes::slots_have_live_inodes) "a slot's file is open, or was released and taken from it";
    A5 Always Scan(inodes::inodes_stay_what_they_are) "size and flags of an inode never change";
    A6 Always Scan(inodes::live_inodes_have_a_live_vm) "a live inode implies a live VM";
    A7 Call Test("hypervisor/tests/memslots.rs") "slots keep no inode open for ever: closing after the last slot always succeeds";
    A8 MmuLockFree Scan(leaves::closed_files_are_not_shown) "after a file is released no leaf shows its frames";
    A9 Call Test(HISTORY) "bytes of an index depend on the inode's history, not on slots";
    A10 Call Test(HISTORY) "a refused memslot call leaves nothing behind";
    A11 Always Scan(inodes::slots_change_with_their_generation) "a slot is what it was until it is deleted";
    A12 Call Test(INODE) "a refused creation leaves nothing behind";
    B1 Always Scan(folios::folios_are_aligned_and_disjoint) "an index is in one folio at most, and folios are aligned by index and frame";
    B2 Always Scan(folios::frames_belong_to_one_page) "a frame backs one page of one inode";
    B3 Always Scan(folios::pieces_keep_their_places) "pieces of a split unit stand where they stood in it";
    B4 MmuLockFree Scan(leaves::leaves_show_the_inodes_pages) "a leaf shows the pages that its inode holds there, unless an invalidation covers it";
    B5 Always Scan(folios::references_are_accounted_for) "a folio has a reference for each of its pages and for each holder";
    B6 Always Within(Invariant::B5) "leaves hold no references";
    B7 Call Asserted("gmem/src/host.rs") "what is freed has no reference, no mapping, no leaf and no translation";
    B8 MmuLockFree Scan(leaves::mapped_frames_are_in_use) "what is mapped is in use, and nothing is freed twice";
    B9 Call Test("gmem/tests/generations.rs") "every byte that a guest or the host reads was cleared or written since allocation";
    B10 MmuLockFree Scan(leaves::mapped_folios_are_uptodate) "a folio whose contents are not defined is not mapped";
    B11 Call Test(UNITS) "a split copies the uptodate flag, a merge needs it everywhere or clears the rest";
    B12 Call Test(HISTORY) "a hole reads as zero, and no byte outside it changes";
    B13 Call Test(HISTORY) "a page that was punched out cannot be reached when the call returns";
    B14 Call Test(INODE) "who holds a reference to a removed page reads its old bytes";
    B15 Call Test(HISTORY) "populating changes no byte";
    B16 Call Test("gmem/tests/generations.rs") "populating a range gives every index of it a folio";
    B17 MmuLockFree Within(Invariant::B4) "a page changes its frame only by removal and allocation";
    B18 MmuLockFree Scan(leaves::poisoned_frames_are_not_mapped) "a frame whose memory failed is not mapped";
    B19 Call Test(INODE) "references block conversion to private and merging, and nothing else";
    C1 Always Scan(inodes::attributes_cover_every_page) "every index has one attribute, in maximal runs";
    C2 Call Test(HISTORY) "a hole changes no attribute";
    C3 Always Scan(folios::private_folios_are_not_mapped) "no user PTE maps a private page";
    C4 Always Scan(folios::private_folios_are_not_pinned) "a page that became private is held by the page cache alone";
    C5 Call Test(INODE) "making private fails exactly when somebody holds a folio of the range, and says which";
    C6 Call Test(INODE) "a refused conversion changes no attribute";
    C7 Call Test(HISTORY) "a conversion to what is there zaps, flushes and invalidates nothing";
    C8 MmuLockFree Scan(leaves::leaves_are_what_the_guest_meant) "a leaf installed for private memory is gone before the page is shared, and the other way round";
    C9 Call Test(HISTORY) "the host reaches a page exactly when it is shared and inside the inode";
    C10 Call Test(HISTORY) "an access that means what the page is not leaves to the VMM and installs nothing";
    C11 Call Test(STATES) "what becomes of the bytes by conversion is the policy's";
    C12 Call Test(HISTORY) "guest and host see the same bytes of shared memory";
    C13 Call Test(ATTRIBUTES) "VM-wide attributes outlive slots";
    C14 Always Test(ATTRIBUTES) "VM-wide and per-inode attributes are never both in force";
    C15 Call Test(HISTORY) "a conversion allocates no folio";
    C16 Always Asserted("gmem/src/inode.rs") "who reads attributes without the inode's lock sees an old or a new value";
    D1 MmuLockFree Scan(leaves::leaves_cover_one_attribute) "a leaf covers pages of one attribute";
    D2 MmuLockFree Scan(leaves::leaves_fit_their_folios) "a leaf is no larger than its folio";
    D3 MmuLockFree Scan(leaves::leaves_lie_in_one_slot) "a leaf lies in one slot";
    D4 MmuLockFree Scan(leaves::leaves_are_congruent) "guest and system frames of a leaf are multiples of its size";
    D5 Call Test("gmem/src/policy/order.rs") "a folio's order is told only where it lies in the slot and is congruent";
    D6 Call Test("gmem/src/policy/order.rs") "the rule of containment allows whatever the rule of all or nothing does";
    D7 Always Scan(records::mixed_pages_are_marked) "a block is marked mixed exactly when its attributes differ";
    D8 Always Test(ATTRIBUTES) "the count of what forbids large pages is right and never negative";
    D9 Always Asserted("hypervisor/src/attributes/lpage.rs") "records of large pages are looked up inside the slot only";
    D10 MmuLockFree Scan(leaves::logged_leaves_are_small) "while a slot is logged no leaf above 4K is writable, unless all of its pages count as written";
    D11 MmuLockFree Scan(entries::huge_leaves_are_not_executable) "with the NX workaround no leaf above 4K is executable";
    D12 MmuLockFree Scan(rmp::private_leaves_fit_their_entries) "a private leaf is no larger than the reverse map allows";
    D13 Call Test("gmem/tests/conversions.rs") "after a merge the level is what it was before the split";
    D14 Quiescent Scan(leaves::leaves_are_counted) "the counters of leaves are the leaves";
    D15 Call Test("hypervisor/tests/dirty.rs") "splitting a leaf preserves what each page of it allows and remembers";
    E1 Always Scan(protocol::begins_and_ends_balance) "begins and ends balance";
    E2 Always Scan(protocol::the_range_in_progress_never_shrinks) "the range in progress contains every range added";
    E3 Always Scan(protocol::the_sequence_never_falls) "the sequence grows by one with each end and never otherwise";
    E4 MmuLockFree Within(Invariant::B4) "an entry is written only if nothing it was decided on was invalidated";
    E5 MmuLockFree Scan(protocol::translations_stand_in_the_tables) "after zap and flush no processor uses the translation";
    E6 Always Scan(protocol::translations_show_the_inodes_pages) "no translation outlives the page it shows";
    E7 MmuLockFree Scan(shadowed::followed_tables_are_not_cached_writable) "write access withdrawn for write-tracking is flushed under mmu_lock";
    E8 MmuLockFree Scan(logs::who_can_write_is_in_the_log) "write access withdrawn for logging is flushed before the call returns";
    E9 Always Scan(protocol::owed_flushes_are_announced) "a processor enters the guest after serving the flushes it owes";
    E10 Call Test(HISTORY) "after a slot is deleted nothing shows it";
    E11 MmuLockFree Scan(leaves::given_up_leaves_show_the_inodes_pages) "roots that are invalid and in use are zapped too";
    E12 MmuLockFree Scan(protocol::walkable_tables_are_in_use) "a table that can be walked is not freed";
    E13 MmuLockFree Within(Invariant::E5) "mmu_lock is not dropped with a flush owed";
    E14 Always Asserted("interleave/src/explore.rs") "a fault does not retry for ever while nothing changes";
    E15 Quiescent Scan(protocol::nothing_is_frozen) "no entry stays frozen";
    E16 MmuLockFree Scan(protocol::leaves_keep_their_frames) "a present leaf never changes its frame";
    F1 Always Scan(pools::nodes_add_up) "a pool's nodes add up to its counters";
    F2 Always Scan(pools::promises_are_covered) "promises are the subpools' and covered by free pages";
    F3 Always Scan(pools::subpools_keep_their_limits) "a subpool keeps its limits";
    F4 Quiescent Scan(pools::pools_are_conserved) "pages of a pool are free, out or split";
    F5 Call Test(INODE) "a creation fails for want of pages exactly when they are wanting";
    F6 Call Test(INODE) "an allocation within the reservation does not fail";
    F7 Call Test(POOLS) "a reservation goes back when the last page of it does";
    F8 Always Within(Invariant::F9) "a unit goes back when all of it is back";
    F9 Always Scan(pools::split_units_are_out) "a split unit is not free in its pool";
    F10 Always Scan(pools::small_pieces_are_described) "a page whose descriptions were given away is not split";
    F11 Call Test("gmem/src/vmemmap.rs") "frames of the vmemmap add up";
    F12 Call Test(UNITS) "a split that cannot restore its descriptions changes nothing";
    F13 Call Test(UNITS) "a split and a merge cancel out";
    F14 Call Test(UNITS) "pieces of a split are contiguous, each with the page cache's references";
    F15 Call Test(UNITS) "a merge needs every piece, held by the page cache alone";
    F16 Call Test(UNITS) "a split goes no further than it must";
    F17 Call Test("gmem/tests/conversions.rs") "split policies cannot be told apart by a guest";
    F18 Call Test("gmem/src/numa.rs") "a strict policy is obeyed or the allocation fails";
    F19 Call Open("no cgroups") "charges and uncharges balance";
    H1 Quiescent Scan(rmp::what_is_assigned_is_private) "a frame that is assigned to a guest is a private page of it, or a processor's save area";
    H2 MmuLockFree Scan(rmp::private_leaves_are_the_guests) "a private leaf shows a frame that is assigned to this guest at this place";
    H3 Quiescent Within(Invariant::H1) "a frame that is freed is the hypervisor's";
    H4 Always Scan(rmp::large_entries_are_aligned) "an entry of 2M starts on a boundary of 2M on both sides";
    H5 Call Test(RMP) "PSMASH changes an entry's size and nothing else";
    H6 Call Test(SNP) "the guest reaches a private page exactly when leaf and entry agree and it has accepted the page";
    H7 Call Test(SNP) "a page that the host took and gave back must be accepted anew";
    H8 MmuLockFree Within(Invariant::H2) "a frame that is assigned stands behind one guest frame";
    H9 Call Test(SNP) "a write of the host succeeds exactly when nothing under its mapping is assigned";
    H10 Call Test(SNP) "a conversion to shared leaves nothing of its range assigned, and its neighbours as they were";
    H11 MmuLockFree Scan(rmp::save_areas_stay) "a save area in use stays where it is, or its processor is asked to look it up again";
    H12 MmuLockFree Scan(rmp::leaked_frames_are_used_by_nobody) "a frame that did not come back is never used again";
    H13 MmuLockFree Scan(rmp::shared_leaves_show_nothing_assigned) "a shared leaf shows no frame that is assigned";
    I1 Call Test("hypervisor/tests/dirty.rs") "a write to a logged page is in the next harvest";
    I2 MmuLockFree Scan(logs::writable_leaves_are_in_the_log) "a writable leaf of a logged slot is in the log already";
    I3 Always Asserted("hypervisor/src/tdp/tables.rs") "no dirty flag is lost by a racing change";
    I4 Always Scan(logs::rings_keep_their_order) "the dirty ring loses and doubles nothing";
    I5 Always Asserted("src/explore/world.rs") "an MMIO entry is used only in its generation";
    I6 MmuLockFree Scan(entries::writability_is_a_legal_row) "an entry's writability is one of the four legal states";
    I7 Always Test("hypervisor/src/tdp/leaf.rs") "a prefetch marks nothing accessed";
    I8 MmuLockFree Scan(entries::listed_tables_stand_for_huge_leaves) "the list of NX tables is the tables that stand for huge pages";
    J1 MmuLockFree Scan(shadowed::the_reverse_map_is_the_leaves) "the reverse map is the leaves";
    J2 MmuLockFree Scan(shadowed::synced_pages_follow) "a synced shadow page says what its guest table says";
    J3 Call Test("hypervisor/tests/shadow.rs") "an unsynced page is right after the guest flushes it";
    J4 MmuLockFree Scan(shadowed::upper_tables_are_never_writable) "an upper guest table is never writable";
    J5 MmuLockFree Scan(shadowed::unsync_marks_lead_to_unsync_pages) "counts of unsynced children are right";
    J6 MmuLockFree Scan(shadowed::guest_tables_are_counted) "the count of indirect pages is right";
    J7 MmuLockFree Scan(shadowed::a_key_has_one_page) "a guest table has one valid shadow page a role";
    J8 MmuLockFree Scan(shadowed::obsolete_pages_are_unreachable) "obsolete pages cannot be reached after a reload";
    J9 MmuLockFree Scan(shadowed::huge_leaves_cover_no_guest_table) "no huge leaf covers a shadowed table";
    J10 MmuLockFree Scan(shadowed::leaves_allow_what_both_allow) "a shadow translation allows what guest and host both allow";
    K1 Call Test("gmem/tests/generations.rs") "calls are refused with the kernel's errno";
    K2 Call Test("hypervisor/tests/pipeline.rs") "a memory-fault exit says so";
    K3 Call Test(HISTORY) "a fault that the VMM did not resolve comes again";
    K4 Call Test("hypervisor/tests/leaves.rs") "a prefault's progress is what it returns";
    K5 Call Test("hypervisor/tests/memslots.rs") "native and emulated accesses agree";
    K6 Call Test("src/vmm/hypercall.rs") "a conversion exit is well formed";
    K7 Always Open("the emulator is the processor") "private faults never reach the emulator";
    K8 Call Test("tests/races.rs") "one seed makes one run";
}

impl core::fmt::Display for Invariant {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.id())
    }
}

/// The list as a table, as `docs/invariants.md` has it.
pub fn document() -> String {
    let mut text = String::from("| invariant | what | when | how |\n|---|---|---|---|\n");
    for invariant in Invariant::ALL {
        let when = match invariant.when() {
            When::Always => "always",
            When::MmuLockFree => "mmu_lock free",
            When::Quiescent => "nobody at work",
            When::Call => "of a call",
        };
        text.push_str(&format!("| {invariant} | {} | {when} | {:?} |\n", invariant.meaning(), invariant.checked()));
    }
    text
}
