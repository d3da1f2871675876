//! Flat images: bytes that are put somewhere and run from their first one.

use emu_core::Gpa;

use super::bytes::u16_at;
use super::error::{LoadError, Part};
use super::long_mode::{FOUR_GIB, LongMode};
use super::memory::GuestMemory;
use super::placement::Placement;
use super::{Entry, ImageKind, LoadOptions};

const BOOT_SECTOR: Gpa = Gpa::new(0x7c00);
const ONE_MIB: Gpa = Gpa::new(0x10_0000);
/// The last bytes of a boot sector.
const SIGNATURE_AT: u64 = 510;
const SIGNATURE: u16 = 0xaa55;

/// The mode a flat image starts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlatMode {
    /// Real mode, CS base 0.
    Real,
    /// Protected mode with flat 32-bit segments, paging off.
    Protected32,
    /// 64-bit mode over an identity map of the low 4 GiB.
    Long64,
}

/// Where a flat image goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FlatPlacement {
    /// With a boot sector's signature (0xaa55 at 510): at 0x7c00 in real mode, as a BIOS starts it. Else at 1 MiB in
    /// 64-bit mode.
    #[default]
    Customary,
    /// Here.
    At {
        /// Address of the first byte, which is the entry point.
        address: Gpa,
        /// The mode it starts in.
        mode: FlatMode,
    },
}

pub(super) fn load(
    bytes: &[u8],
    options: &LoadOptions<'_>,
    placement: &mut Placement<'_>,
    memory: &mut dyn GuestMemory,
) -> Result<Entry, LoadError> {
    let passed = [
        (!options.cmdline.is_empty(), "a command line"),
        (options.initrd.is_some(), "an initrd"),
        (!options.modules.is_empty(), "boot modules"),
    ];
    if let Some((_, what)) = passed.into_iter().find(|(given, _)| *given) {
        return Err(LoadError::CannotPass { kind: ImageKind::Flat, what });
    }
    let (address, mode) = match options.flat {
        FlatPlacement::At { address, mode } => (address, mode),
        FlatPlacement::Customary if u16_at(bytes, SIGNATURE_AT) == Some(SIGNATURE) => (BOOT_SECTOR, FlatMode::Real),
        FlatPlacement::Customary => (ONE_MIB, FlatMode::Long64),
    };
    let len_bytes = bytes.len() as u64;
    placement.claim(Part::Image, address, len_bytes)?;
    let real_mode_range = LoadError::RealModeRange { base: address, len_bytes };
    let too_high = LoadError::EntryTooHigh { entry: address.raw() };
    memory.write(address, bytes)?;
    match mode {
        FlatMode::Real => {
            // Claimed, so the sum does not wrap.
            if address.raw() + len_bytes > ONE_MIB.raw() {
                return Err(real_mode_range);
            }
            Ok(Entry::FlatReal { ip: u16::try_from(address.raw()).map_err(|_| real_mode_range)? })
        }
        FlatMode::Protected32 => Ok(Entry::Flat32 { eip: u32::try_from(address.raw()).map_err(|_| too_high)? }),
        FlatMode::Long64 if address >= FOUR_GIB => Err(LoadError::EntryUnmapped { entry: address }),
        FlatMode::Long64 => Ok(Entry::Flat64 {
            rip: address,
            long_mode: LongMode::build(options.encryption_mask(), placement, memory)?,
        }),
    }
}
