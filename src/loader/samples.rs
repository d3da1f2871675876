//! Small images of every kind, made by hand from their specifications: what the tests load and the fuzz corpus starts
//! from. The code in them is `hlt`.

use super::bytes::Record;

pub(super) const HLT: u8 = 0xf4;

/// One ELF segment or note.
#[derive(Clone)]
pub(super) struct Part {
    pub kind: u32,
    pub vaddr: u64,
    pub paddr: u64,
    pub contents: Vec<u8>,
    pub memory_bytes: u64,
}

impl Part {
    pub(super) fn load(paddr: u64, contents: &[u8], memory_bytes: u64) -> Part {
        Part { kind: 1, vaddr: paddr, paddr, contents: contents.to_vec(), memory_bytes }
    }

    /// A note segment with one unrelated note before the PVH entry, whose description is `desc`.
    pub(super) fn pvh_note(desc: &[u8]) -> Part {
        let mut contents = Vec::new();
        for (name, kind, desc) in [(&b"GNU\0"[..], 3_u32, &[1_u8, 2, 3, 4, 5][..]), (b"Xen\0", 18, desc)] {
            for word in [name.len() as u32, desc.len() as u32, kind] {
                contents.extend_from_slice(&word.to_le_bytes());
            }
            contents.extend_from_slice(name);
            contents.extend_from_slice(desc);
            contents.resize(contents.len().next_multiple_of(4), 0);
        }
        let memory_bytes = contents.len() as u64;
        Part { kind: 4, vaddr: 0, paddr: 0, contents, memory_bytes }
    }
}

pub(super) fn elf64(entry: u64, parts: &[Part]) -> Vec<u8> {
    let mut header = Record::<64>::zeroed();
    header.put(0, b"\x7fELF\x02\x01\x01");
    header.put(16, &2_u16.to_le_bytes());
    header.put(18, &62_u16.to_le_bytes());
    header.put_u32(20, 1);
    header.put_u64(24, entry);
    header.put_u64(32, 64);
    header.put(52, &64_u16.to_le_bytes());
    header.put(54, &56_u16.to_le_bytes());
    header.put(56, &(parts.len() as u16).to_le_bytes());
    let mut file = header.as_bytes().to_vec();
    let mut offset = 64 + 56 * parts.len() as u64;
    for part in parts {
        let mut header = Record::<56>::zeroed();
        header.put_u32(0, part.kind);
        header.put_u64(8, offset);
        header.put_u64(16, part.vaddr);
        header.put_u64(24, part.paddr);
        header.put_u64(32, part.contents.len() as u64);
        header.put_u64(40, part.memory_bytes);
        header.put_u64(48, 4);
        file.extend_from_slice(header.as_bytes());
        offset += part.contents.len() as u64;
    }
    parts.iter().for_each(|part| file.extend_from_slice(&part.contents));
    file
}

pub(super) fn elf32(entry: u32, parts: &[Part]) -> Vec<u8> {
    let mut header = Record::<52>::zeroed();
    header.put(0, b"\x7fELF\x01\x01\x01");
    header.put(16, &2_u16.to_le_bytes());
    header.put(18, &3_u16.to_le_bytes());
    header.put_u32(20, 1);
    header.put_u32(24, entry);
    header.put_u32(28, 52);
    header.put(40, &52_u16.to_le_bytes());
    header.put(42, &32_u16.to_le_bytes());
    header.put(44, &(parts.len() as u16).to_le_bytes());
    let mut file = header.as_bytes().to_vec();
    let mut offset = 52 + 32 * parts.len() as u32;
    for part in parts {
        let mut header = Record::<32>::zeroed();
        let words = [
            part.kind,
            offset,
            part.vaddr as u32,
            part.paddr as u32,
            part.contents.len() as u32,
            part.memory_bytes as u32,
        ];
        for (n, word) in words.into_iter().enumerate() {
            header.put_u32(4 * n, word);
        }
        header.put_u32(28, 4);
        file.extend_from_slice(header.as_bytes());
        offset += part.contents.len() as u32;
    }
    parts.iter().for_each(|part| file.extend_from_slice(&part.contents));
    file
}

/// A multiboot header with these flags and, behind it, these words.
pub(super) fn multiboot_header(flags: u32, fields: &[u32]) -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    let checksum = 0_u32.wrapping_sub(MAGIC).wrapping_sub(flags);
    [MAGIC, flags, checksum].iter().chain(fields).flat_map(|word| word.to_le_bytes()).collect()
}

/// 16 bytes of junk, then a header with addresses for a load at 1 MiB and 0x100 bytes of bss, then code.
pub(super) fn multiboot_flat() -> Vec<u8> {
    let mut file = vec![0xaa; 16];
    file.extend(multiboot_header(1 << 16 | 3, &[0x10_0010, 0x10_0000, 0x10_0034, 0x10_0134, 0x10_0030]));
    file.extend([HLT; 4]);
    file
}

pub(super) fn multiboot_elf() -> Vec<u8> {
    let mut code = multiboot_header(0, &[]);
    code.push(HLT);
    elf32(0x10_000c, &[Part::load(0x10_0000, &code, 0x1000)])
}

pub(super) fn pvh() -> Vec<u8> {
    let note = Part::pvh_note(&0x10_0000_u32.to_le_bytes());
    elf64(0x10_0000, &[Part::load(0x10_0000, &[HLT; 16], 0x2000), note])
}

/// A kernel of one setup sector and 0x400 bytes, that prefers 16 MiB and needs 1 MiB.
pub(super) fn bzimage() -> Vec<u8> {
    let mut setup = Record::<1024>::zeroed();
    setup.put(0x1f1, &[1]);
    setup.put_u32(0x1f4, 0x40);
    setup.put(0x1fe, &0xaa55_u16.to_le_bytes());
    setup.put(0x200, &[0xeb, 0x6a]);
    setup.put(0x202, b"HdrS");
    setup.put(0x206, &0x020f_u16.to_le_bytes());
    setup.put(0x211, &[1]);
    setup.put_u32(0x22c, 0x7fff_ffff);
    setup.put_u32(0x230, 0x20_0000);
    setup.put(0x234, &[1, 21]);
    setup.put(0x236, &3_u16.to_le_bytes());
    setup.put_u32(0x238, 2047);
    setup.put_u64(0x258, 0x100_0000);
    setup.put_u32(0x260, 0x10_0000);
    let mut file = setup.as_bytes().to_vec();
    file.extend([HLT; 0x400]);
    file
}

pub(super) fn boot_sector() -> Vec<u8> {
    let mut sector = vec![HLT; 510];
    sector.extend([0x55, 0xaa]);
    sector
}

pub(super) fn igvm() -> Vec<u8> {
    let mut file = b"IGVM".to_vec();
    file.extend([1, 0, 0, 0]);
    file.resize(64, 0);
    file
}

/// One image of each kind with a name, as the fuzz corpus has it: four bytes of choices (64 MiB, short command line, a
/// small initrd) come first. See [`super::fuzz_one`].
pub(super) fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let flat_choices = [6, 0, 0, 0];
    let choices = [6, 1, 1, 0x80];
    let with = |choices: [u8; 4], image: Vec<u8>| [choices.to_vec(), image].concat();
    let code = [Part::load(0x10_0000, &[HLT; 16], 0x2000)];
    vec![
        ("bzimage", with(choices, bzimage())),
        ("pvh", with(choices, pvh())),
        ("multiboot-elf", with(choices, multiboot_elf())),
        ("multiboot-flat", with([6, 0x81, 2, 0], multiboot_flat())),
        ("elf32", with(choices, elf32(0x10_0004, &code))),
        ("elf64", with(choices, elf64(0x10_0004, &code))),
        ("flat", with(flat_choices, vec![HLT; 64])),
        ("flat-real", with(flat_choices, boot_sector())),
        ("igvm", with(flat_choices, igvm())),
    ]
}
