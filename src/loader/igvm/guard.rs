//! What is looked at before the crate that reads the format sees a file: it takes offsets and lengths for possible, and
//! reads contexts of other platforms by assertion. After this, its arithmetic cannot wrap and its memory is bounded.

use igvm_defs::*;

use super::error::IgvmError;
use crate::loader::bytes::{u32_at, u64_at};

/// The most that all parameter areas have together.
pub(super) const AREAS_BYTES: u64 = 16 << 20;

const PARAMETER: usize = size_of::<IGVM_VHS_PARAMETER>();
/// Headers that may appear, with their lengths.
const KNOWN: [(IgvmVariableHeaderType, usize); 21] = [
    (IgvmVariableHeaderType::IGVM_VHT_SUPPORTED_PLATFORM, size_of::<IGVM_VHS_SUPPORTED_PLATFORM>()),
    (IgvmVariableHeaderType::IGVM_VHT_GUEST_POLICY, size_of::<IGVM_VHS_GUEST_POLICY>()),
    (IgvmVariableHeaderType::IGVM_VHT_RELOCATABLE_REGION, size_of::<IGVM_VHS_RELOCATABLE_REGION>()),
    (IgvmVariableHeaderType::IGVM_VHT_PAGE_TABLE_RELOCATION_REGION, size_of::<IGVM_VHS_PAGE_TABLE_RELOCATION>()),
    (IgvmVariableHeaderType::IGVM_VHT_PARAMETER_AREA, size_of::<IGVM_VHS_PARAMETER_AREA>()),
    (IgvmVariableHeaderType::IGVM_VHT_PAGE_DATA, size_of::<IGVM_VHS_PAGE_DATA>()),
    (IgvmVariableHeaderType::IGVM_VHT_PARAMETER_INSERT, size_of::<IGVM_VHS_PARAMETER_INSERT>()),
    (IgvmVariableHeaderType::IGVM_VHT_VP_CONTEXT, size_of::<IGVM_VHS_VP_CONTEXT>()),
    (IgvmVariableHeaderType::IGVM_VHT_REQUIRED_MEMORY, size_of::<IGVM_VHS_REQUIRED_MEMORY>()),
    (IgvmVariableHeaderType::IGVM_VHT_SNP_ID_BLOCK, size_of::<IGVM_VHS_SNP_ID_BLOCK>()),
    (IgvmVariableHeaderType::IGVM_VHT_ERROR_RANGE, size_of::<IGVM_VHS_ERROR_RANGE>()),
    (IgvmVariableHeaderType::IGVM_VHT_VP_COUNT_PARAMETER, PARAMETER),
    (IgvmVariableHeaderType::IGVM_VHT_SRAT, PARAMETER),
    (IgvmVariableHeaderType::IGVM_VHT_MADT, PARAMETER),
    (IgvmVariableHeaderType::IGVM_VHT_MMIO_RANGES, PARAMETER),
    (IgvmVariableHeaderType::IGVM_VHT_MEMORY_MAP, PARAMETER),
    (IgvmVariableHeaderType::IGVM_VHT_COMMAND_LINE, PARAMETER),
    (IgvmVariableHeaderType::IGVM_VHT_SLIT, PARAMETER),
    (IgvmVariableHeaderType::IGVM_VHT_PPTT, PARAMETER),
    (IgvmVariableHeaderType::IGVM_VHT_DEVICE_TREE, PARAMETER),
    (IgvmVariableHeaderType::IGVM_VHT_ENVIRONMENT_INFO_PARAMETER, PARAMETER),
];

/// A header's type and length, before its contents.
const HEADER: u64 = size_of::<IGVM_VHS_VARIABLE_HEADER>() as u64;

/// What the headers so far have said.
#[derive(Default)]
struct Seen {
    /// Masks of the platforms whose contexts are a page in the file.
    pages_of: Vec<u32>,
    snp: u32,
    areas_bytes: u64,
}

/// Checks that everything in `file` lies where it can, and that it is for SNP.
pub(super) fn check(file: &[u8]) -> Result<(), IgvmError> {
    let has = file.len() as u64;
    let misfit = IgvmError::FixedHeader { has };
    let fixed = |at: u64| u32_at(file, at).map(u64::from).ok_or(misfit.clone());
    let (first, len_bytes, total) = (fixed(8)?, fixed(12)?, fixed(16)?);
    let data = first + len_bytes;
    if first < size_of::<IGVM_FIXED_HEADER>() as u64 || !first.is_multiple_of(8) || total != has || data >= has {
        return Err(misfit);
    }
    let mut seen = Seen::default();
    let mut at = first;
    while at < data {
        let cut = IgvmError::CutOff { at };
        let (kind, len_bytes) = (u32_at(file, at).ok_or(cut.clone())?, u32_at(file, at + 4).ok_or(cut.clone())?);
        let known = KNOWN.iter().find(|known| known.0.0 == kind && known.1 == len_bytes as usize);
        let &(kind, _) = known.ok_or(IgvmError::UnknownHeader { at, kind, len_bytes })?;
        let next = at + HEADER + u64::from(len_bytes).next_multiple_of(8);
        if next > data {
            return Err(cut);
        }
        header(file, kind, (at, data), &mut seen)?;
        at = next;
    }
    if seen.snp == 0 { Err(IgvmError::NoSnpPlatform) } else { Ok(()) }
}

/// Checks the header at `at` of a file whose data begin at `data`.
fn header(file: &[u8], kind: IgvmVariableHeaderType, (at, data): (u64, u64), seen: &mut Seen) -> Result<(), IgvmError> {
    let cut = IgvmError::CutOff { at };
    let field = |offset: u64| u32_at(file, at + HEADER + offset).ok_or(cut.clone());
    let refers = |offset: u32, len_bytes: u64| {
        let offset = u64::from(offset);
        let inside = offset >= data && offset.checked_add(len_bytes).is_some_and(|end| end <= file.len() as u64);
        if inside { Ok(()) } else { Err(IgvmError::Data { at, offset, len_bytes }) }
    };
    match kind {
        IgvmVariableHeaderType::IGVM_VHT_SUPPORTED_PLATFORM => {
            let mask = field(0)?;
            let platform = IgvmPlatformType((field(4)? >> 8) as u8);
            match platform {
                IgvmPlatformType::SEV_SNP => {
                    seen.snp |= mask;
                    seen.pages_of.push(mask);
                }
                IgvmPlatformType::SEV_ES | IgvmPlatformType::SEV | IgvmPlatformType::NATIVE => {
                    seen.pages_of.push(mask);
                }
                // A mask has one platform; the crate takes the last one that claims it.
                _ => seen.pages_of.retain(|&other| other != mask),
            }
        }
        // Its addresses are added up without a look.
        IgvmVariableHeaderType::IGVM_VHT_RELOCATABLE_REGION
        | IgvmVariableHeaderType::IGVM_VHT_PAGE_TABLE_RELOCATION_REGION
            if field(0)? & seen.snp != 0 =>
        {
            return Err(IgvmError::Unsupported { what: "a relocatable region" });
        }
        IgvmVariableHeaderType::IGVM_VHT_PARAMETER_AREA => {
            let len_bytes = u64_at(file, at + HEADER).ok_or(cut.clone())?;
            seen.areas_bytes = seen.areas_bytes.saturating_add(len_bytes);
            if seen.areas_bytes > AREAS_BYTES {
                return Err(IgvmError::LargeAreas { limit: AREAS_BYTES });
            }
            let offset = field(12)?;
            return if offset == 0 { Ok(()) } else { refers(offset, len_bytes) };
        }
        IgvmVariableHeaderType::IGVM_VHT_PAGE_DATA => {
            let offset = field(12)?;
            return if offset == 0 { Ok(()) } else { refers(offset, PAGE_SIZE_4K) };
        }
        IgvmVariableHeaderType::IGVM_VHT_VP_CONTEXT => {
            if !seen.pages_of.contains(&field(8)?) {
                return Err(IgvmError::ForeignContext { at });
            }
            return refers(field(12)?, PAGE_SIZE_4K);
        }
        _ => {}
    }
    Ok(())
}
