//! Launch images through the crate's door.

use emu_core::errno::Errno;
use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, Gpa, Hva, PageSize, Sfn};
use gmem::PageIndex;
use gmem::mm::{MapRequest, Prot, Sharing, ThpChoice, What};
use hypervisor::*;

const QUIET: &Task<'static> = &Task::QUIET;
const PAGE: u64 = 0x1000;
const PAGES: u64 = 16;
const IMAGE: Hva = Hva::new(0x7000_0000_0000);
/// Pages of the image, of which the last cannot be written.
const IMAGE_PAGES: u64 = 8;

/// A software-protected VM, all private, and an image whose every byte is the number of its page and one.
fn vm() -> (Vm, GmemId) {
    let memory = SystemMemory::flat(256 * PAGE).unwrap();
    let host = HostConfig { first: Sfn::new(1), nr_frames: 255, pools: vec![] };
    let pages = PagePolicy::of(PageSize::Size4K);
    let config = VmConfig { maxphyaddr: 36, kind: VmKind::SwProtected, ..VmConfig::new(pages, host) };
    let vm = Vm::new(memory, &config).unwrap();
    let gmem = vm.create_guest_memfd(PAGES * PAGE, 0, QUIET).unwrap();
    let (id, flags, len_bytes) = (SlotId(0), SlotFlags::empty(), PAGES * PAGE);
    vm.add_memslot(&MemSlotSpec { id, gpa: Gpa::new(0), len_bytes, flags, gmem, offset_bytes: 0 }, QUIET).unwrap();
    let what = What::Anonymous { thp: ThpChoice::Never };
    let prot = Prot::READ | Prot::WRITE;
    let request = MapRequest { at: IMAGE, len_bytes: IMAGE_PAGES * PAGE, prot, sharing: Sharing::Private, what };
    vm.mm().map(request, QUIET).unwrap();
    for page in 0..IMAGE_PAGES {
        let at = Hva::new(IMAGE.raw() + page * PAGE);
        vm.mm().write(at, &[page as u8 + 1; PAGE as usize], vm.kernel(QUIET)).unwrap();
    }
    let last = Hva::new(IMAGE.raw() + (IMAGE_PAGES - 1) * PAGE);
    vm.mm().mprotect(last, PAGE, Prot::READ, vm.kernel(QUIET)).unwrap();
    (vm, gmem)
}

fn image(first: u64, from: u64, nr_pages: u64) -> Populate {
    let source = Some(Hva::new(IMAGE.raw() + from * PAGE));
    Populate { first: Gfn::new(first), source, nr_pages, source_use: SourceUse::Read }
}

fn populate(vm: &Vm, image: &Populate) -> Result<u64, PopulateError> {
    vm.populate(image, &mut || true, QUIET)
}

/// What the guest reads at the start and at the end of a page, and that it can.
fn guest_reads(vm: &Vm, gmem: GmemId, gfn: u64) -> [u8; 2] {
    let input = FaultInput::new(Gpa::new(gfn * PAGE), AccessKind::Read);
    let answer = vm.handle_fault(VcpuId(0), input, QUIET).unwrap();
    assert!(matches!(answer, Action::Resume(_)), "{answer:?}");
    let page = vm.gmem(gmem, QUIET).unwrap().peek(PageIndex(gfn), QUIET).unwrap().sfn.base();
    [0, PAGE - 1].map(|offset| vm.memory().load(page.wrapping_add(offset)).unwrap())
}

#[test]
fn the_guest_finds_the_image_in_its_private_memory() {
    let (vm, gmem) = vm();
    assert_eq!(populate(&vm, &image(2, 0, 3)), Ok(3));
    assert_eq!([2, 3, 4, 5].map(|gfn| guest_reads(&vm, gmem, gfn)), [[1; 2], [2; 2], [3; 2], [0; 2]]);
    assert_eq!(populate(&vm, &image(2, 5, 1)), Ok(1), "what is there is written over");
    assert_eq!(guest_reads(&vm, gmem, 2), [6; 2]);
    assert_eq!(populate(&vm, &image(PAGES - 2, 0, 5)), Ok(2), "up to the end of the memslot");
    let mut seen = Vec::new();
    let mut note = |page: &LaunchPage| {
        seen.push((page.gfn.raw(), page.source));
        Ok(())
    };
    let in_place = Populate { source: None, ..image(3, 0, 2) };
    assert_eq!(vm.populate_with(&in_place, &mut note, &mut || true, QUIET), Ok(2));
    assert_eq!(seen, [(3, None), (4, None)], "memory that holds its image already");
    assert_eq!(guest_reads(&vm, gmem, 3), [2; 2]);
}

#[test]
fn the_source_is_held_while_it_is_used_and_no_longer() {
    let (vm, gmem) = vm();
    let before = vm.stats().host.free_frames;
    assert_eq!(populate(&vm, &image(0, 0, IMAGE_PAGES)), Ok(IMAGE_PAGES));
    vm.mm().munmap(IMAGE, IMAGE_PAGES * PAGE, vm.kernel(QUIET)).unwrap();
    assert_eq!(vm.stats().host.free_frames, before, "as many pages came as went");
    vm.punch_hole(gmem, 0, IMAGE_PAGES * PAGE, QUIET).unwrap();
    assert_eq!(vm.stats().host.free_frames, before + IMAGE_PAGES, "nobody holds a page of the guest");
}

#[test]
fn every_refusal_has_its_errno_and_counts_what_came_before() {
    let (vm, gmem) = vm();
    let errno = |image: &Populate| populate(&vm, image).map_err(|error| error.errno());
    assert_eq!(errno(&image(0, 0, 0)), Err(Errno::Inval));
    let askew = Populate { source: Some(Hva::new(IMAGE.raw() + 8)), ..image(0, 0, 1) };
    assert_eq!(errno(&askew), Err(Errno::Inval));
    assert_eq!(populate(&vm, &image(PAGES, 0, 1)), Err(PopulateError::NoGmem { gfn: Gfn::new(PAGES) }));
    assert_eq!(errno(&image(0, IMAGE_PAGES, 1)), Err(Errno::Fault), "nothing is mapped there");
    assert_eq!(errno(&image(0, IMAGE_PAGES - 2, 3)), Ok(2), "two pages before that");
    let back = Populate { source_use: SourceUse::WriteBack, ..image(0, IMAGE_PAGES - 1, 1) };
    assert_eq!(errno(&back), Err(Errno::Fault), "it may not be written");
    vm.convert(gmem, 4 * PAGE, PAGE, Shareability::SHARED, QUIET).unwrap();
    assert_eq!(populate(&vm, &image(4, 0, 1)), Err(PopulateError::Shared { gfn: Gfn::new(4) }));
    assert_eq!(populate(&vm, &image(2, 0, 4)), Ok(2), "up to the shared page");
    let mut left = 1;
    let mut once = || {
        left -= 1;
        left >= 0
    };
    assert_eq!(vm.populate(&image(6, 0, 4), &mut once, QUIET), Ok(1));
    assert_eq!(vm.populate(&image(6, 0, 4), &mut || false, QUIET), Err(PopulateError::Interrupted));
    let refused = PopulateError::Refused { gfn: Gfn::new(6), errno: Errno::Exist };
    let refuse = &mut |_: &LaunchPage| Err(refused);
    let told = vm.populate_with(&image(6, 0, 1), refuse, &mut || true, QUIET);
    assert_eq!(told.map_err(|error| error.errno()), Err(Errno::Exist), "as firmware says");
}
