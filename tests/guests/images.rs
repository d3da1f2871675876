//! Small images made by hand.

use std::path::{Path, PathBuf};

/// Writes `bytes` as `name` into `dir`.
pub fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).expect("an image can be written");
    path
}

/// A loadable segment as its program header describes it.
pub struct Segment {
    /// Where it goes.
    pub address: u64,
    /// Its bytes in the file, as the header claims.
    pub file_bytes: u64,
    /// Its bytes in memory, as the header claims.
    pub memory_bytes: u64,
}

/// An ELF64 executable for x86-64 with these segments, all of whose contents are the one page at its end.
pub fn elf(entry: u64, segments: &[Segment]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    let long = |file: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    half(&mut file, &[2, 62]);
    word(&mut file, 1);
    long(&mut file, &[entry, 64, 0]);
    word(&mut file, 0);
    half(&mut file, &[64, 56, segments.len() as u16, 0, 0, 0]);
    let contents = 64 + 56 * segments.len() as u64;
    for segment in segments {
        word(&mut file, 1);
        word(&mut file, 5);
        let Segment { address, file_bytes, memory_bytes } = *segment;
        long(&mut file, &[contents, address, address, file_bytes, memory_bytes, 1]);
    }
    file.resize(file.len() + 4096, 0xf4);
    file
}

/// The beginning of a bzImage that says it is longer than it is.
pub fn cut_bzimage() -> Vec<u8> {
    // Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
    let mut file = vec![0; 0x1000];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[4]);
    put(0x1f4, &0x10_0000_u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    put(0x201, &[0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x236, &3_u16.to_le_bytes());
    put(0x230, &0x20_0000_u32.to_le_bytes());
    put(0x260, &0x200_0000_u32.to_le_bytes());
    file
}

/// `mov eax, value; out 0xf4, eax`: ends the run through the debug-exit port.
pub fn debug_exit(value: u8) -> Vec<u8> {
    vec![0xb8, value, 0, 0, 0, 0xe7, 0xf4]
}
