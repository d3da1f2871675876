//! The property that fuzzing checks: whatever the bytes, a file is read or refused, and what is read keeps the promises of the
//! module above.

use std::collections::BTreeSet;

use emu_core::Gpa;
use emu_core::sev::Vmpl;

use super::{Igvm, IgvmMachine, Step, load};
use crate::loader::bytes::u32_at;
use crate::loader::{LoadError, LoadOptions, MemoryMap};

/// Whether the checksum is made right first, so that what lies behind it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IgvmFuzz {
    /// It is as in the input.
    AsGiven,
    /// It is made right.
    Checksummed,
}

/// Reads `input` as a file for a machine of 64 MiB and two processors.
///
/// # Panics
///
/// When what was read breaks a promise: a mistake of the reader, which is what this function is for.
pub fn fuzz_igvm(input: &[u8], how: IgvmFuzz) -> Result<Igvm, LoadError> {
    let map = MemoryMap::pc(64 << 20, Gpa::new(3 << 30)).expect("a PC of 64 MiB has a map");
    let options = LoadOptions::new(&map);
    let mut bytes = input.to_vec();
    if how == IgvmFuzz::Checksummed {
        put_checksum(&mut bytes);
    }
    let igvm = load(&bytes, &options, IgvmMachine { cpus: 2, vmpl: Vmpl::Vmpl0 })?;
    let (mut pages, mut processors) = (BTreeSet::new(), BTreeSet::new());
    for step in &igvm.steps {
        match step {
            Step::Memory { gfn, .. } => {
                assert!(map.holds(gfn.base(), 0x1000), "{gfn:?} is not RAM");
                assert!(pages.insert(*gfn), "{gfn:?} twice");
            }
            Step::Vmsa { index, .. } => assert!(*index < 2 && processors.insert(*index), "processor {index}"),
        }
    }
    assert!(processors.contains(&0), "the first processor has a state");
    Ok(igvm)
}

/// Makes the checksum of a file right, as far as its fixed header says what it covers.
pub(super) fn put_checksum(bytes: &mut [u8]) {
    const CHECKSUM: usize = 20;
    let field = |at| u32_at(bytes, at).unwrap_or(0) as usize;
    let (version, first, len) = (field(4), field(8), field(12));
    let fixed = if version == 2 { 32 } else { 24 };
    let (Some(header), Some(rest)) = (bytes.get(..fixed), first.checked_add(len).and_then(|end| bytes.get(first..end)))
    else {
        return;
    };
    let mut covered = header.to_vec();
    covered[CHECKSUM..CHECKSUM + 4].fill(0);
    covered.extend_from_slice(rest);
    let sum = crc32(&covered).to_le_bytes();
    bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum);
}

/// CRC-32 of IEEE 802.3.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}
