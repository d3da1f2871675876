//! What the reverse map costs: one check when a TLB is filled, validating memory page by page, dividing a large page, and
//! changing the key of a page.
//!
//! The table covers 1 GiB, which belongs to one guest: validated, or in turn validated and not. Checks visit 4096 pages in a
//! scattered order.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use emu_core::memory::{Key, SystemMemory};
use emu_core::sev::{CBit, Vmpl};
use emu_core::{Access, AccessKind, Gpa, Gva, PageSize, Privilege, Sfn, Spa};
use mmu::rmp::{FirmwareCommand, GuestAccess, GuestPage, Pvalidate, RmpPageSize, RmpPlace, RmpUpdate, Validated};
use mmu::{Asid, Rmp};

const COVERED: u64 = 1 << 30;
const PAGES: u64 = 4096;
const GUEST: Asid = Asid(1);

/// All of the first GiB is the guest's, where it is in the machine.
fn assigned(size: RmpPageSize) -> Rmp {
    let bytes = Rmp::bytes_for(COVERED);
    let memory = SystemMemory::flat(bytes).expect("the host gives address space");
    let place = RmpPlace::Contiguous { base: Spa::new(0), last: Spa::new(bytes - 1) };
    let rmp = Rmp::new(memory, place).expect("a sound place");
    for at in (0..COVERED).step_by(size.page_size().bytes() as usize) {
        rmp.rmpupdate(Spa::new(at), RmpUpdate::guest(GUEST, Gpa::new(at), size)).expect("free");
    }
    rmp
}

fn page(at: u64, size: RmpPageSize) -> GuestPage {
    let (gva, gpa, spa) = (Gva::new(at), Gpa::new(at), Spa::new(at));
    GuestPage { gva, gpa, spa, mapped: size.page_size(), asid: GUEST, vmpl: Vmpl::Vmpl0 }
}

fn validate_all(rmp: &Rmp, size: RmpPageSize, validated: Validated) {
    for at in (0..COVERED).step_by(size.page_size().bytes() as usize) {
        black_box(rmp.pvalidate(&page(at, size), &Pvalidate { size, validated }))
            .expect("the guest's")
            .expect("its size");
    }
}

fn check(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rmp_check");
    for (name, size) in [("private read of 4 KiB", RmpPageSize::Size4K), ("private read of 2 MiB", RmpPageSize::Size2M)]
    {
        let rmp = assigned(size);
        validate_all(&rmp, size, Validated::Yes);
        let mut n = 0_u64;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                n = n.wrapping_mul(5).wrapping_add(1) % PAGES;
                let at = n * 4096;
                let access = GuestAccess {
                    spa: Spa::new(at),
                    gpa: Gpa::new(at),
                    mapped: size.page_size(),
                    asid: GUEST,
                    vmpl: Vmpl::Vmpl0,
                    c_bit: CBit::Set,
                    access: Access::new(AccessKind::Read, Privilege::Supervisor),
                };
                black_box(rmp.check_guest(&access))
            });
        });
    }
    let rmp = assigned(RmpPageSize::Size4K);
    for (name, mapped) in [("host write of 4 KiB", PageSize::Size4K), ("host write of 2 MiB", PageSize::Size2M)] {
        let mut n = 0_u64;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                n = n.wrapping_mul(5).wrapping_add(1) % PAGES;
                black_box(rmp.check_host_write(Spa::new(n * 4096), mapped))
            });
        });
    }
    group.finish();
}

fn change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rmp_change");
    group.sample_size(20);
    for (name, size) in
        [("PVALIDATE of 1 GiB by 4 KiB", RmpPageSize::Size4K), ("PVALIDATE of 1 GiB by 2 MiB", RmpPageSize::Size2M)]
    {
        let rmp = assigned(size);
        let mut next = Validated::Yes;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                validate_all(&rmp, size, next);
                next = if next == Validated::Yes { Validated::No } else { Validated::Yes };
            });
        });
    }
    let rmp = assigned(RmpPageSize::Size2M);
    let at = Spa::new(0);
    rmp.psmash(at).expect("of 2 MiB");
    group.bench_function("PSMASH", |bencher| {
        let whole = || rmp.firmware(at, FirmwareCommand::Unsmash).expect("as it was");
        bencher.iter_batched(whole, |()| black_box(rmp.psmash(at)), BatchSize::PerIteration);
    });
    group.finish();
}

fn encrypt(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("memory_key");
    let memory: Arc<SystemMemory> = SystemMemory::flat(1 << 20).expect("the host gives address space");
    let keys = [Key::HOST, Key::of_asid(1).expect("a guest"), Key::of_asid(2).expect("a guest")];
    for (name, [one, other]) in
        [("host to guest and back", [keys[0], keys[1]]), ("guest to guest and back", [keys[1], keys[2]])]
    {
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box([memory.rekey(Sfn::new(1), other), memory.rekey(Sfn::new(1), one)]));
        });
    }
    group.finish();
}

criterion_group!(benches, check, change, encrypt);
criterion_main!(benches);
