//! Whatever is wrong with an image, a flag or a guest: a clear sentence, the right exit code, no panic, no hang.
#![forbid(unsafe_code)]

mod guests;

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guests::images::{self, Segment};
use guests::{Ended, bifold, guest, scratch};

const LIMIT: Duration = Duration::from_secs(60);

const USAGE: i32 = 2;
const GUEST_DIED: i32 = 4;
const LIMIT_REACHED: i32 = 8;
const HOST_REFUSED: i32 = 10;

/// The run ends with `code`, with an error that says `what`, and with help.
fn refused<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>, code: i32, what: &str) {
    let ended = bifold(words, LIMIT);
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert!(ended.stderr.starts_with("error: ") && ended.stderr.contains(what), "not {what:?}: {}", ended.stderr);
    assert!(ended.stderr.lines().any(|line| line.starts_with("help: ")), "no help: {}", ended.stderr);
    assert_eq!(ended.stdout, "", "standard output belongs to the guest");
}

fn run(image: &Path) -> [&OsStr; 2] {
    [OsStr::new("run"), image.as_os_str()]
}

/// An image in a directory that goes when it does.
struct Image(PathBuf);

impl Image {
    fn new(bytes: &[u8]) -> Image {
        Image(images::write(&scratch(), "image", bytes))
    }
    fn refused(bytes: &[u8], what: &str) {
        let image = Image::new(bytes);
        refused(run(&image.0), USAGE, what);
        // `check` comes to the same verdict without a machine.
        let check = bifold([OsStr::new("check"), image.0.as_os_str()], LIMIT);
        assert_eq!(check.code, Some(USAGE), "{check:?}");
        assert!(check.stderr.contains(what), "{check:?}");
    }
    /// Runs it as a guest with `words`.
    fn guest(bytes: &[u8], words: &[&str]) -> Ended {
        let image = Image::new(bytes);
        guest([image.0.as_os_str()].into_iter().chain(words.iter().map(OsStr::new)), LIMIT)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.parent().expect("a file has a directory"));
    }
}

#[test]
fn images_that_are_cut_off_or_empty() {
    Image::refused(b"", "the image is empty");
    Image::refused(&images::cut_bzimage(), "bzImage is cut off");
    let whole = images::elf(0x10_0000, &[Segment { address: 0x10_0000, file_bytes: 4096, memory_bytes: 4096 }]);
    assert_eq!(bifold(["check".as_ref(), Image::new(&whole).0.as_os_str()], LIMIT).code, Some(0));
    for len in [5, 16, 63, 64, 100, 119] {
        Image::refused(&whole[..len], "header is cut off");
    }
    Image::refused(&whole[..whole.len() - 1], "segment 0 takes 0x1000 bytes at 0x78 from a file of 0x1077");
}

#[test]
fn a_verdict_for_programs() {
    let whole = images::elf(0x10_0000, &[Segment { address: 0x10_0000, file_bytes: 4096, memory_bytes: 4096 }]);
    let image = Image::new(&whole);
    let verdict = bifold(["check".as_ref(), "--json".as_ref(), image.0.as_os_str()], LIMIT).json();
    assert_eq!((&verdict["entry"]["mode"], &verdict["entry"]["address"]), (&"64-bit".into(), &0x10_0000.into()));
    assert_eq!((&verdict["file"], &verdict["memory_bytes"]), (&"image".into(), &(2_u64 << 30).into()));
    // A refusal says the same as without the flag, and prints no half an object.
    let cut = Image::new(&whole[..100]);
    refused(["check".as_ref(), "--json".as_ref(), cut.0.as_os_str()], USAGE, "header is cut off");
}

#[test]
fn a_debian_kernel_cut_off() {
    let Some(kernel) = guests::debian::fetched("vmlinuz-6.1") else { return };
    let bytes = std::fs::read(kernel).expect("a fetched kernel can be read");
    for len in [0x280, 0x5000, bytes.len() / 2] {
        Image::refused(&bytes[..len], "cut off");
    }
}

#[test]
fn segments_that_overlap_or_fit_nowhere() {
    let segment = |address, memory_bytes| Segment { address, file_bytes: 4096, memory_bytes };
    let two = [segment(0x10_0000, 8192), segment(0x10_1000, 4096)];
    Image::refused(&images::elf(0x10_0000, &two), "overlap");
    for (address, memory_bytes) in
        [(0x10_0000, 1 << 60), (0x10_0000, u64::MAX), (u64::MAX - 0xfff, 4096), (0xc000_0000, 4096), (1 << 50, 4096)]
    {
        Image::refused(&images::elf(address, &[segment(address, memory_bytes)]), "not RAM");
    }
    let claims = Segment { address: 0x10_0000, file_bytes: 1 << 40, memory_bytes: 1 << 40 };
    Image::refused(&images::elf(0x10_0000, &[claims]), "bytes at");
    Image::refused(&images::elf(0x50_0000, &[segment(0x10_0000, 4096)]), "entry point");
    Image::refused(&images::elf(0x10_0000, &[]), "no loadable segment");
}

#[test]
fn an_initrd_larger_than_memory() {
    let image =
        Image::new(&images::elf(0x10_0000, &[Segment { address: 0x10_0000, file_bytes: 4096, memory_bytes: 4096 }]));
    let initrd = image.0.with_file_name("initrd");
    File::create(&initrd).and_then(|file| file.set_len(65 << 20)).expect("a sparse file");
    let words = ["run".as_ref(), image.0.as_os_str(), "--initrd".as_ref(), initrd.as_os_str()];
    refused(words.into_iter().chain(["--memory", "64M"].map(OsStr::new)), USAGE, "no room for");
}

#[test]
fn files_that_are_not_there() {
    refused(["run", "/nowhere/at/all"], HOST_REFUSED, "cannot read /nowhere/at/all");
    refused(["run", "--initrd", "/nowhere/at/all"], HOST_REFUSED, "cannot read /nowhere/at/all");
    refused(["check", "/nowhere/at/all"], HOST_REFUSED, "cannot read /nowhere/at/all");
    refused(["run", "--serial", "/nowhere/at/all"], HOST_REFUSED, "console");
    refused(["run", "/"], HOST_REFUSED, "cannot read /");
}

#[test]
fn flags_that_make_no_sense() {
    for (words, what) in [
        (["--memory", "2X"], "\"2X\" is not a size"),
        (["--memory", "0"], "memory of 0 bytes"),
        (["--memory", "17T"], "is not between 1M and 16T"),
        (["--memory", "99999999999999999999"], "is not a size"),
        (["--memory", "1G,pages=3m"], "\"3m\" is not a page size"),
        (["--cpus", "0"], "\"0\" is not a number of vCPUs"),
        (["--cpus", "65"], "\"65\" is not a number of vCPUs"),
        (["--cpus", "-1"], ""),
        (["--pages", "4m"], "\"4m\" is not a page size"),
        (["--mmu", "soft"], "\"soft\" is not a kind of"),
        (["--seed", "0xx"], "\"0xx\" is not a seed"),
        (["--max-instructions", "many"], ""),
        (["--no-such-flag", "1"], ""),
    ] {
        let ended = bifold(["run"].into_iter().chain(words), LIMIT);
        assert_eq!(ended.code, Some(USAGE), "{words:?}: {ended:?}");
        assert!(ended.stderr.starts_with("error: ") && ended.stderr.contains(what), "{words:?}: {}", ended.stderr);
    }
    assert_eq!(bifold(["walk"], LIMIT).code, Some(USAGE));
    assert_eq!(bifold::<&str>([], LIMIT).code, Some(USAGE));
}

/// The guest runs and dies: `outcome` in the summary, exit code 4.
fn dies(code: &[u8], outcome: &str) {
    let ended = Image::guest(code, &[]);
    assert_eq!((ended.code, &ended.json()["outcome"]), (Some(GUEST_DIED), &outcome.into()), "{ended:?}");
}

#[test]
fn a_guest_that_faults_without_handlers() {
    // ud2
    dies(&[0x0f, 0x0b], "triple-fault");
    // xor edx, edx; div edx
    dies(&[0x31, 0xd2, 0xf7, 0xf2], "triple-fault");
    // mov cr3, rax with rax = 0: no page is mapped any more.
    dies(&[0x31, 0xc0, 0x0f, 0x22, 0xd8], "triple-fault");
}

#[test]
fn a_guest_that_jumps_to_nowhere() {
    // mov rax, 0x7fff_0000_0000; jmp rax: nothing is mapped there.
    dies(&[0x48, 0xb8, 0, 0, 0, 0, 0xff, 0x7f, 0, 0, 0xff, 0xe0], "triple-fault");
    // The same to an address that is not canonical.
    dies(&[0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x70, 0xff, 0xe0], "triple-fault");
    // mov eax, 0xd000_0000; jmp rax: mapped, but there is no memory.
    dies(&[0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0], "no-memory");
}

#[test]
fn a_guest_with_page_tables_where_no_memory_is() {
    // mov eax, 0xd000_0000; mov cr3, rax
    dies(&[0xb8, 0, 0, 0, 0xd0, 0x0f, 0x22, 0xd8], "no-memory");
}

#[test]
fn a_guest_that_sleeps_for_ever() {
    // cli; hlt
    dies(&[0xfa, 0xf4], "asleep");
}

/// mov ebx, address; mov dword [rbx], 0x12345678; mov eax, [rbx]; and eax, 0x7f; out 0xf4, eax
fn writes_and_reads(address: u32) -> Ended {
    let mut code = vec![0xbb];
    code.extend(address.to_le_bytes());
    code.extend([0xc7, 0x03, 0x78, 0x56, 0x34, 0x12, 0x8b, 0x03, 0x83, 0xe0, 0x7f, 0xe7, 0xf4]);
    Image::guest(&code, &[])
}

/// Where no memory is, a write goes nowhere, a read gives ones, and the guest goes on.
#[test]
fn a_guest_that_writes_to_a_hole() {
    let ended = writes_and_reads(0xd000_0000);
    assert_eq!(ended.code, Some(0xff), "{ended:?}");
    assert_eq!(ended.json()["faults"]["rom_write"], 0);
}

/// A ROM keeps its bytes, here those of the reset vector's short jump and of the erased flash below.
#[test]
fn a_guest_that_writes_to_rom() {
    for (address, byte) in [(0xffff_fff0_u32, 0xeb), (0xffff_0000, 0xff), (0xffff_ff80, 0xfa)] {
        let ended = writes_and_reads(address);
        assert_eq!(ended.code, Some((byte & 0x7f) << 1 | 1), "{address:#x}: {ended:?}");
        assert_eq!(ended.json()["faults"]["rom_write"], 1, "{ended:?}");
    }
    // Every kind of instruction that writes: xchg, lock inc, push, stos, movaps; each leaves the ROM as it was.
    for (name, write) in [
        ("xchg [rbx], eax", &[0x87, 0x03][..]),
        ("lock inc dword [rbx]", &[0xf0, 0xff, 0x03]),
        ("lea rsp, [rbx+8]; push rax", &[0x48, 0x8d, 0x63, 0x08, 0x50]),
        ("mov rdi, rbx; mov ecx, 8; rep stosb", &[0x48, 0x89, 0xdf, 0xb9, 8, 0, 0, 0, 0xf3, 0xaa]),
        ("movaps [rbx], xmm0", &[0x0f, 0x29, 0x03]),
        ("cmpxchg [rbx], ecx", &[0x0f, 0xb1, 0x0b]),
        ("bts dword [rbx], 0", &[0x0f, 0xba, 0x2b, 0]),
    ] {
        // mov eax, cr4; or ah, 2; mov cr4, eax; mov ebx, ROM; xor eax, eax; the write; mov eax, [rbx]; out 0xf4, eax
        let mut code = vec![0x0f, 0x20, 0xe0, 0x80, 0xcc, 0x02, 0x0f, 0x22, 0xe0, 0xbb];
        code.extend(0xffff_8000_u32.to_le_bytes());
        code.extend([0x31, 0xc0]);
        code.extend(write);
        code.extend([0x8b, 0x03, 0x83, 0xe0, 0x7f, 0xe7, 0xf4]);
        let ended = Image::guest(&code, &[]);
        assert_eq!(ended.code, Some(0xff), "{name}: {ended:?}");
    }
}

/// The bootstrap processor that is sent INIT comes back through the ROM to where the guest told the CMOS.
#[test]
fn a_guest_that_initialises_itself() {
    let mut code = Vec::new();
    // mov dword [abs], imm: real-mode code at 0x7000 (mov al, 0x2a; out 0xf4, al; hlt) and the far pointer to it.
    for (address, value) in [(0x7000_u32, 0xf4e6_2ab0_u32), (0x7004, 0xf4), (0x467, 0x0000_7000)] {
        code.extend([0xc7, 0x04, 0x25]);
        code.extend(address.to_le_bytes());
        code.extend(value.to_le_bytes());
    }
    // mov al, 0x0f; out 0x70, al; mov al, 0x0a; out 0x71, al
    code.extend([0xb0, 0x0f, 0xe6, 0x70, 0xb0, 0x0a, 0xe6, 0x71]);
    // mov ebx, 0xfee00300; mov dword [rbx], 0x4500 (INIT, assert, to APIC 0); hlt
    code.extend([0xbb, 0x00, 0x03, 0xe0, 0xfe, 0xc7, 0x03, 0x00, 0x45, 0x00, 0x00, 0xf4]);
    let ended = Image::guest(&code, &[]);
    assert_eq!(ended.code, Some(0x2a << 1 | 1), "{ended:?}");
    // Without a word in the CMOS it ends in a reset.
    let silent: Vec<u8> = code.iter().copied().map(|byte| if byte == 0x0a { 0 } else { byte }).collect();
    let ended = Image::guest(&silent, &["--no-reboot"]);
    assert_eq!((ended.code, &ended.json()["outcome"]), (Some(0), &"reset".into()), "{ended:?}");
}

#[test]
fn the_guest_chooses_the_odd_exit_codes() {
    for value in [0, 1, 0x2a, 0x7f] {
        let ended = Image::guest(&images::debug_exit(value), &[]);
        assert_eq!(ended.code, Some(i32::from(value) << 1 | 1), "{ended:?}");
        assert_eq!(ended.json()["outcome"], "debug-exit");
    }
}

#[test]
fn a_guest_that_never_ends_meets_its_limit() {
    // jmp $
    let ended = Image::guest(&[0xeb, 0xfe], &["--max-instructions", "1000000"]);
    assert_eq!((ended.code, &ended.json()["outcome"]), (Some(LIMIT_REACHED), &"limit".into()), "{ended:?}");
    assert_eq!(ended.json()["instructions"], 1_000_000);
    let ended = Image::guest(&[0xeb, 0xfe], &["--timeout", "1"]);
    assert_eq!(ended.code, Some(LIMIT_REACHED), "{ended:?}");
}
