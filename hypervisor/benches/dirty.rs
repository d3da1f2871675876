//! What does dirty logging cost a page? One round: the guest writes every page, the VMM learns of it and arms the pages
//! again; by write protection, by the processor's log, and by a ring.

mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use emu_core::{AccessKind, Gpa, PageSize, Spa};
use hypervisor::dirty::{DirtyLogging, RingSize, RingWithBitmap};
use hypervisor::tdp::AdType;
use hypervisor::{
    Action, DirtyRingConfig, EntryState, FaultInput, MmuParams, PML_ENTRIES, Pml, SlotId, TdpFormat, VcpuId, Vm,
};
use support::{HIGH, QUIET, Setup, touch};

const PAGES: u64 = 8192;
const CPU: VcpuId = VcpuId(0);
/// RAM from [`HIGH`] on.
const SLOT: SlotId = SlotId(1);
/// EPT: accessed and dirty.
const EPT_DIRTY: u64 = 1 << 9;

fn gpa(n: u64) -> Gpa {
    Gpa::new(HIGH + (n << 12))
}

/// A guest whose first pages are there, mapped and logged.
fn logged(format: TdpFormat, params: MmuParams) -> Vm {
    let vm = Setup { memory_bytes: 8 << 30, format, params, ..Setup::of(PageSize::Size4K) }.build().0;
    touch(&vm, 0, HIGH, PageSize::Size4K, PAGES);
    vm.set_dirty_logging(SLOT, DirtyLogging::On, QUIET).expect("the slot is there");
    black_box(vm.take_flush(CPU, QUIET));
    vm
}

/// Writes to every page, each of which faults.
fn write_all(vm: &Vm) {
    for n in 0..PAGES {
        let input = FaultInput { entry: EntryState::Denied, ..FaultInput::new(gpa(n), AccessKind::Write) };
        let action = vm.handle_fault(CPU, input, QUIET).expect("it is there");
        assert!(matches!(action, Action::Resume(_)), "{action:?} at {}", gpa(n));
    }
}

/// Reads the log, which arms the pages again; pages that were in it.
fn read_log(vm: &Vm) -> u64 {
    let mut pages = 0;
    vm.get_dirty_log(SLOT, &mut |_, bits| pages += u64::from(bits.count_ones()), QUIET).expect("it is logged");
    black_box(vm.take_flush(CPU, QUIET));
    pages
}

/// Where the leaf of a page stands.
fn leaf(vm: &Vm, gpa: Gpa) -> Spa {
    let mut table = vm.root();
    for shift in [39, 30, 21] {
        let entry: u64 = vm.memory().load(table.wrapping_add(8 * (gpa.raw() >> shift & 511))).expect("a table");
        table = Spa::new(entry & 0x000f_ffff_ffff_f000);
    }
    table.wrapping_add(8 * (gpa.raw() >> 12 & 511))
}

/// As a processor does it: writes through leaves whose dirty flag is clear, which sets it and logs the page. What the
/// hypervisor does with full buffers and the VMM with the log is timed, the processor's part is not.
fn pml_round(vm: &Vm, buffer: Spa, leaves: &[Spa]) -> Duration {
    let mut spent = Duration::ZERO;
    let per_buffer = usize::from(PML_ENTRIES);
    for (at, leaves) in leaves.chunks(per_buffer).enumerate() {
        for (n, &leaf) in leaves.iter().enumerate() {
            let entry: u64 = vm.memory().load(leaf).expect("a table");
            vm.memory().store(leaf, entry | EPT_DIRTY).expect("a table");
            let slot = (per_buffer - 1 - n) as u64;
            vm.memory().store(buffer.wrapping_add(8 * slot), gpa((at * per_buffer + n) as u64).raw()).expect("a page");
        }
        let index = (PML_ENTRIES - 1).wrapping_sub(leaves.len() as u16);
        let start = Instant::now();
        vm.flush_pml_buffer(CPU, buffer, index, QUIET).expect("the buffer is there");
        spent += start.elapsed();
    }
    let start = Instant::now();
    assert_eq!(read_log(vm), PAGES, "every page was logged");
    spent + start.elapsed()
}

fn rounds(c: &mut Criterion) {
    let mut group = c.benchmark_group("dirty_round");
    group.throughput(Throughput::Elements(PAGES));
    group.sample_size(20);
    for (name, format) in [("write_protection/npt", TdpFormat::Npt), ("write_protection/ept", TdpFormat::Ept)] {
        let vm = logged(format, MmuParams { ad: AdType::Enabled, ..MmuParams::default() });
        group.bench_function(name, |b| {
            b.iter(|| {
                write_all(&vm);
                assert_eq!(read_log(&vm), PAGES, "every page was written");
            });
        });
    }
    let vm = logged(TdpFormat::Ept, MmuParams { ad: AdType::Enabled, pml: Pml::On, ..MmuParams::default() });
    let buffer = vm.host().lock(QUIET).alloc_table().expect("memory");
    let leaves: Vec<Spa> = (0..PAGES).map(|n| leaf(&vm, gpa(n))).collect();
    black_box(read_log(&vm));
    group.bench_function("processor_log/ept", |b| {
        b.iter_custom(|rounds| (0..rounds).map(|_| pml_round(&vm, buffer, &leaves)).sum());
    });
    let size = RingSize::of_bytes(1 << 18).expect("a sound size");
    let ring = DirtyRingConfig { size, bitmap: RingWithBitmap::No };
    let vm = logged(TdpFormat::Npt, MmuParams { dirty_ring: Some(ring), ..MmuParams::default() });
    let mut read = Vec::new();
    group.bench_function("ring/npt", |b| {
        b.iter(|| {
            write_all(&vm);
            read.clear();
            vm.collect_dirty_ring(CPU, usize::MAX, &mut read, QUIET).expect("it has a ring");
            assert_eq!(vm.reset_dirty_rings(QUIET), Ok(PAGES), "every page was written");
            black_box(vm.take_flush(CPU, QUIET));
        });
    });
    group.finish();
}

criterion_group!(benches, rounds);
criterion_main!(benches);
