//! What do many memslots cost? Finding one among 8, 512 and as many as there may be, and deleting and adding one.

mod support;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use emu_core::memory::SystemMemory;
use emu_core::{Gfn, Gpa, PageSize};
use hypervisor::memslot::MAX_SLOTS;
use hypervisor::{GmemFlags, MemSlotSpec, PagePolicy, SlotFlags, SlotId, SystemMemoryPlan, Vm, VmConfig};
use support::{HIGH, QUIET};

/// Length of each slot; a gap of as much follows.
const LEN: u64 = 16 << 12;
const LOOKUPS: u64 = 1024;

fn spec(gmem: hypervisor::GmemId, n: u64) -> MemSlotSpec {
    MemSlotSpec {
        id: SlotId(n as u16),
        gpa: Gpa::new(HIGH + n * 2 * LEN),
        len_bytes: LEN,
        flags: SlotFlags::GUEST_MEMFD,
        gmem,
        offset_bytes: n * LEN,
    }
}

fn vm(nr: u64) -> (Vm, hypervisor::GmemId) {
    let pages = PagePolicy::of(PageSize::Size4K);
    let plan = SystemMemoryPlan::for_guest(nr * LEN, pages);
    let memory = SystemMemory::flat(plan.arena_bytes).expect("address space");
    let vm = Vm::new(memory, &VmConfig::new(pages, plan.host)).expect("a sound plan");
    let gmem = vm.create_guest_memfd(nr * LEN, GmemFlags::all().bits(), QUIET).expect("room");
    for n in 0..nr {
        vm.add_memslot(&spec(gmem, n), QUIET).expect("slots apart from each other");
    }
    (vm, gmem)
}

fn slots(c: &mut Criterion) {
    for nr in [8, 512, MAX_SLOTS as u64] {
        let (vm, gmem) = vm(nr);
        let mut group = c.benchmark_group(format!("memslots/{nr}"));
        group.throughput(Throughput::Elements(LOOKUPS));
        // Far from each other, so that no lookup leans on the one before.
        let gfn = |n: u64| Gfn::new((HIGH + (n * 7919 % nr) * 2 * LEN) >> 12);
        group.bench_function("lookup", |b| {
            let slots = vm.memslots(QUIET);
            b.iter(|| (0..LOOKUPS).filter(|&n| slots.lookup(black_box(gfn(n))).is_some()).count());
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function("delete_and_add", |b| {
            let spec = spec(gmem, nr / 2);
            b.iter(|| {
                vm.remove_memslot(spec.id, QUIET).expect("it is there");
                vm.add_memslot(&spec, QUIET).expect("its place is free");
            });
        });
        group.finish();
    }
}

criterion_group!(benches, slots);
criterion_main!(benches);
