//! The fast path, which takes no lock, and logs of what the guest writes.

use emu_core::AccessKind;
use emu_core::defect::{Defect, Defects};
use emu_core::sync::Task;
use hypervisor::dirty::{DirtyLogging, RingSize, RingWithBitmap};
use hypervisor::tdp::{AdType, TdpFormat};
use hypervisor::{Aging, DirtyRingConfig, MmuParams, PML_ENTRIES, Pml, Shareability, SlotId, VcpuId};
use interleave::Program;

use super::Scenario;
use super::migration::Log;
use super::processor::Access;
use super::world::{PAGE, QUIET, SECOND, Setup, TOUCHED, World};

/// The races.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "write-harvest",
        what: "a processor writes a page while the VMM asks which pages were written and copies them",
        shows: &[Defect::HarvestWithoutFlush, Defect::ClearAfterArming],
        start: write_and_harvest,
    },
    Scenario {
        name: "write-age-harvest",
        what: "the same where the processor has no accessed flags, while the host asks which pages were used",
        shows: &[Defect::FlushOnlyOwed],
        start: write_age_and_harvest,
    },
    Scenario {
        name: "write-age",
        what: "a processor writes a page while the host asks which pages were used; dirty flags say what was written",
        shows: &[Defect::PlainStore],
        start: write_and_age,
    },
    Scenario {
        name: "write-pml",
        what: "two processors log what they write themselves while the VMM asks and copies",
        shows: &[],
        start: write_by_pml,
    },
    Scenario {
        name: "full-ring",
        what: "two processors fill the dirty ring of one of them, which is taken back while they run",
        shows: &[Defect::RingForgetsLastEntry],
        start: fill_a_ring,
    },
    Scenario {
        name: "other-side",
        what: "one processor writes a page as shared memory and another writes it as private memory",
        shows: &[Defect::FastPathIgnoresPrivacy],
        start: both_sides,
    },
];

const SHARED: Shareability = Shareability::SHARED;
const PRIVATE: Shareability = Shareability::PRIVATE;

/// Writes to shared memory.
pub(super) fn writes(frames: &[u64]) -> Vec<Access> {
    frames.iter().map(|&gfn| Access { kind: AccessKind::Write, gfn, meaning: SHARED }).collect()
}

fn pass(world: &World, task: &Task<'_>) {
    world.pass(task);
}

fn age(world: &World, task: &Task<'_>) {
    let young = world.vm.age_range(emu_core::Gfn::new(0), TOUCHED, Aging::Clear, task);
    assert!(young.is_ok(), "tables lie in memory: {young:?}");
}

/// One page, written again and again, and one pass of the VMM.
fn write_and_harvest(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    world.migrate(Log::Bitmap);
    world.before(0, &writes(&[3]));
    let threads = vec![("vcpu", world.guest(1, writes(&[3, 3]))), ("vmm", world.host(pass))];
    world.program(threads)
}

/// EPT without accessed and dirty flags: aging takes rights from leaves and flushes nothing.
fn write_age_and_harvest(defects: Defects) -> Program {
    let params = MmuParams { ad: AdType::Disabled, ..MmuParams::default() };
    let world = Setup { params, adjust: |config| config.format = TdpFormat::Ept, ..Setup::of(defects) }.build();
    world.migrate(Log::Bitmap);
    world.before(0, &writes(&[3]));
    let threads =
        vec![("vcpu", world.guest(0, writes(&[3, 3]))), ("aging", world.host(age)), ("vmm", world.host(pass))];
    world.program(threads)
}

/// A page that was written and harvested is written again while it is aged.
fn write_and_age(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    world.before(0, &writes(&[3]));
    world.migrate(Log::Flags);
    let threads = vec![("vcpu", world.guest(0, writes(&[3]))), ("aging", world.host(age))];
    world.program(threads)
}

/// EPT with page-modification logging.
fn write_by_pml(defects: Defects) -> Program {
    let params = MmuParams { pml: Pml::On, ..MmuParams::default() };
    let world = Setup { params, adjust: |config| config.format = TdpFormat::Ept, ..Setup::of(defects) }.build();
    world.migrate(Log::Bitmap);
    world.before(0, &writes(&[3]));
    let threads = vec![
        ("vcpu 0", world.guest(0, writes(&[3, 4]))),
        ("vcpu 1", world.guest(1, writes(&[3]))),
        ("vmm", world.host(pass)),
    ];
    world.program(threads)
}

/// A ring with room for one more entry below its soft limit.
fn fill_a_ring(defects: Defects) -> Program {
    let size = RingSize::of_bytes(16384).expect("a size that KVM takes");
    let ring = DirtyRingConfig { size, bitmap: RingWithBitmap::No };
    let world = Setup { params: MmuParams { dirty_ring: Some(ring), ..MmuParams::default() }, ..Setup::of(defects) };
    let world = world.build();
    world.migrate(Log::Rings);
    let fill = || -> Result<(), Box<dyn std::error::Error>> {
        // Writes to the second memslot, as a processor's own log tells them.
        world.vm.set_dirty_logging(SlotId(1), DirtyLogging::On, QUIET)?;
        let buffer = world.vm.host().lock(QUIET).alloc_table()?;
        let entries = size.soft_limit() as u16 - 1;
        for entry in PML_ENTRIES - entries..PML_ENTRIES {
            world.vm.memory().store(buffer.wrapping_add(8 * u64::from(entry)), SECOND * PAGE)?;
        }
        Ok(world.vm.flush_pml_buffer(VcpuId(0), buffer, PML_ENTRIES - 1 - entries, QUIET)?)
    };
    fill().expect("the ring has room");
    let threads = vec![
        ("vcpu 0", world.guest(0, writes(&[3, 4, 3]))),
        ("vcpu 1", world.guest(1, writes(&[3]))),
        ("vmm", world.host(pass)),
    ];
    world.program(threads)
}

/// A shared page, and a guest that makes up its mind without telling anybody (an implicit conversion).
fn both_sides(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    let private = vec![Access { kind: AccessKind::Write, gfn: 3, meaning: PRIVATE }];
    let threads = vec![("vcpu 0", world.guest(0, writes(&[3]))), ("vcpu 1", world.guest(1, private))];
    world.program(threads)
}
