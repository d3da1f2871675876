//! What does an SNP guest's memory cost its hypervisor? The first touch of a private page with its assignment, conversions
//! to shared and back, PSMASH with the rebuilding of the nested tables, page state changes from the GHCB's buffer on, and the
//! first private access to a page that the host used, with its change of key.
//!
//! Pages are not validated by the guest where that is not what is measured: PVALIDATE by itself is in `mmu`'s `rmp`.

mod support;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use emu_core::memory::{Key, SystemMemory};
use emu_core::sev::{ExitCode, SevFeatures};
use emu_core::{AccessKind, Gfn, Gpa, PageSize, Sfn};
use hypervisor::snp::ghcb::{
    Field, GhcbConfig, GhcbGuest, GhcbMemory, GhcbReply, GhcbUnreachable, GhcbVcpu, HvFeatures, PAGE_STATE_ENTRIES_MAX,
    SHARED_BUFFER, SnpAction, VALID_BITMAP,
};
use hypervisor::{
    Action, Assign, EntryState, FaultInput, GmemId, PagePolicy, PageStateChange, RamLayout, RmpSizes, Shareability,
    SlotId, SnpConfig, SystemMemoryPlan, VcpuId, Vm, VmConfig, VmKind,
};
use mmu::rmp::Rmp;
use mmu::{Asid, RmpCause};
use support::QUIET;

const ASID: Asid = Asid(1);
const CPU: VcpuId = VcpuId(0);
const BYTES: u64 = 256 << 20;
const M2: u64 = PageSize::Size2M.frames();
/// Guest frames that are worked on: 128 MiB from 64 MiB on.
const FIRST: u64 = 64 << 8;
const FRAMES: u64 = 128 << 8;

struct Guest {
    vm: Vm,
    gmem: GmemId,
}

impl Guest {
    /// A guest over folios of `page`, under `assign`.
    fn new(page: PageSize, assign: Assign) -> Guest {
        let pages = PagePolicy::of(page);
        let layout = RamLayout::pc(BYTES, page).expect("a sound size");
        let (plan, place) = SystemMemoryPlan::for_guest(layout.inode_bytes, pages).with_rmp();
        let memory = SystemMemory::flat(plan.arena_bytes).expect("address space");
        let rmp = Arc::new(Rmp::new(Arc::clone(&memory), place).expect("the plan has a place"));
        rmp.protect_own_pages();
        let snp = Some(SnpConfig { rmp, asid: ASID, assign, sizes: RmpSizes::UpTo2M });
        let config = VmConfig { kind: VmKind::Snp, snp, ..VmConfig::new(pages, plan.host) };
        let vm = Vm::new(memory, &config).expect("a sound plan");
        let gmem = vm.add_ram(&layout, SlotId(0), QUIET).expect("the plan has room");
        Guest { vm, gmem }
    }

    fn fault(&self, gfn: u64, privacy: Shareability, entry: EntryState) {
        let input = FaultInput { privacy, entry, ..FaultInput::new(Gfn::new(gfn).base(), AccessKind::Write) };
        let action = self.vm.handle_fault(CPU, input, QUIET).expect("memory is enough");
        assert!(matches!(action, Action::Resume(_)), "{action:?} at {gfn:#x}");
    }

    /// The guest uses one page of each `page` from `gfn` on for the first time.
    fn touch(&self, gfn: u64, frames: u64, page: PageSize) {
        for at in (gfn..gfn + frames).step_by(page.frames() as usize) {
            self.fault(at, Shareability::PRIVATE, EntryState::NotPresent);
        }
    }

    fn change(&self, gfn: u64, nr_pages: u64, to: Shareability, size: PageSize) {
        let change = PageStateChange { first: Gfn::new(gfn), nr_pages, to, size };
        self.vm.page_state_change(change, QUIET).expect("nobody holds a page");
        black_box(self.vm.take_flush(CPU, QUIET));
    }

    fn drop_pages(&self) {
        self.vm.punch_hole(self.gmem, FIRST << 12, FRAMES << 12, QUIET).expect("inside");
        black_box(self.vm.take_flush(CPU, QUIET));
    }
}

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(format!("snp/{name}"));
    group.sample_size(20);
    group
}

/// Private pages one after another: folio, RMPUPDATE, leaf.
fn first_touch(c: &mut Criterion) {
    let mut group = group(c, "first_touch");
    for page in [PageSize::Size4K, PageSize::Size2M] {
        let guest = Guest::new(page, Assign::Lazy);
        group.throughput(Throughput::Elements(FRAMES / page.frames()));
        group.bench_function(page.to_string(), |b| {
            b.iter_batched(|| guest.drop_pages(), |()| guest.touch(FIRST, FRAMES, page), BatchSize::PerIteration);
        });
    }
    group.finish();
}

/// To shared and back, each with the fault that follows.
fn conversions(c: &mut Criterion) {
    let mut group = group(c, "to_shared_and_back");
    for (name, page, assign) in [
        ("4K", PageSize::Size4K, Assign::Lazy),
        ("2M", PageSize::Size2M, Assign::Lazy),
        ("2M_assigned_at_once", PageSize::Size2M, Assign::Eager),
    ] {
        let guest = Guest::new(page, assign);
        guest.touch(FIRST, M2, page);
        group.bench_function(name, |b| {
            b.iter(|| {
                guest.change(FIRST, page.frames(), Shareability::SHARED, page);
                guest.fault(FIRST, Shareability::SHARED, EntryState::NotPresent);
                guest.change(FIRST, page.frames(), Shareability::PRIVATE, page);
                guest.fault(FIRST, Shareability::PRIVATE, EntryState::NotPresent);
            });
        });
    }
    group.finish();
}

/// PVALIDATE of 4 KiB met an entry of 2 MiB: split, and the region is mapped anew when it is used.
fn psmash(c: &mut Criterion) {
    let mut group = group(c, "psmash");
    let guest = Guest::new(PageSize::Size2M, Assign::Lazy);
    let whole = || {
        guest.drop_pages();
        guest.touch(FIRST, M2, PageSize::Size2M);
    };
    group.bench_function("by_a_fault", |b| {
        let split = |()| guest.fault(FIRST + 3, Shareability::PRIVATE, EntryState::Rmp(RmpCause::SizeMismatch));
        b.iter_batched(whole, split, BatchSize::PerIteration);
    });
    group.throughput(Throughput::Elements(M2));
    group.bench_function("and_512_leaves_anew", |b| {
        let split = |()| {
            guest.fault(FIRST + 3, Shareability::PRIVATE, EntryState::Rmp(RmpCause::SizeMismatch));
            guest.touch(FIRST, M2, PageSize::Size4K);
        };
        b.iter_batched(whole, split, BatchSize::PerIteration);
    });
    group.finish();
}

/// The page of the protocol, in plain memory.
struct Page(Vec<u8>);

const PAGE: u64 = 0x7000;

impl GhcbMemory for Page {
    fn read(&mut self, gpa: Gpa, into: &mut [u8]) -> Result<(), GhcbUnreachable> {
        let at = (gpa.raw() - PAGE) as usize;
        into.copy_from_slice(&self.0[at..at + into.len()]);
        Ok(())
    }
    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), GhcbUnreachable> {
        let at = (gpa.raw() - PAGE) as usize;
        self.0[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }
}

/// A request to make every page of the buffer private (1) or shared (2), 4 KiB each.
fn request(page: &mut Page, operation: u64) {
    let mut put = |at: usize, value: u64| page.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    let fields = [
        (Field::SW_EXITCODE, ExitCode::PAGE_STATE_CHANGE.0),
        (Field::SW_EXITINFO1, 0),
        (Field::SW_EXITINFO2, 0),
        (Field::SW_SCRATCH, PAGE + SHARED_BUFFER as u64),
    ];
    let mut valid = 0_u128;
    for (field, value) in fields {
        put(field.offset(), value);
        valid |= 1 << field.valid_bit();
    }
    put(SHARED_BUFFER, (PAGE_STATE_ENTRIES_MAX as u64 - 1) << 16);
    for n in 0..PAGE_STATE_ENTRIES_MAX {
        put(SHARED_BUFFER + 8 + 8 * n, (FIRST + n as u64) << 12 | operation << 52);
    }
    page.0[VALID_BITMAP..VALID_BITMAP + 16].copy_from_slice(&valid.to_le_bytes());
}

/// A full buffer of pages that follow each other, from VMGEXIT to the answer: the protocol alone, and with the conversion.
fn page_state(c: &mut Criterion) {
    let mut group = group(c, "page_state_change");
    group.throughput(Throughput::Elements(PAGE_STATE_ENTRIES_MAX as u64));
    let features = HvFeatures::SNP | HvFeatures::AP_CREATION;
    let host = GhcbGuest::new(GhcbConfig { c_bit: 51, features, sev_features: SevFeatures::SNP_ACTIVE });
    let guest = Guest::new(PageSize::Size4K, Assign::Lazy);
    guest.touch(FIRST, M2, PageSize::Size4K);
    for (name, converts) in [("protocol", false), ("and_conversion", true)] {
        let (mut vcpu, mut page, mut operation) = (GhcbVcpu::new(), Page(vec![0; 4096]), 2);
        vcpu.vmgexit(&host, PAGE | 0x012, &mut page);
        group.bench_function(name, |b| {
            b.iter(|| {
                request(&mut page, operation);
                operation = 3 - operation;
                let mut action = vcpu.vmgexit(&host, PAGE, &mut page);
                while let SnpAction::PageState(run) = action {
                    if converts {
                        black_box(guest.vm.page_state_change(run.into(), QUIET)).expect("nobody holds a page");
                        black_box(guest.vm.take_flush(CPU, QUIET));
                    }
                    action = vcpu.reply(&mut page, GhcbReply::Done).expect("the reply to a page state change");
                }
                assert_eq!(action, SnpAction::Resume { ghcb_msr: None });
            });
        });
    }
    group.finish();
}

/// The host wrote a page, the guest reads it with C=1, and the other way round; and a page that nobody has written.
fn first_private_access(c: &mut Criterion) {
    let mut group = group(c, "rekey");
    let memory = SystemMemory::flat(1 << 20).expect("address space");
    let guest = Key::of_asid(ASID.0).expect("an ASID");
    let sfn = Sfn::new(5);
    memory.write(sfn.base(), &[0x5a; 4096]).expect("inside");
    group.bench_function("written", |b| {
        b.iter(|| black_box([memory.rekey(sfn, guest), memory.rekey(sfn, Key::HOST)]));
    });
    group.finish();
}

criterion_group!(benches, first_touch, conversions, psmash, page_state, first_private_access);
criterion_main!(benches);
