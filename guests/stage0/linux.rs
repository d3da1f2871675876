//! What the kernel finds: the zero page, the node of setup data, the blob with the places of secrets and CPUID table.
//!
//! Source: Linux, "The Linux/x86 Boot Protocol" and "Zero Page"; `struct cc_blob_sev_info`.

use crate::memory::{copy, get, put, zero_page};
use crate::parameters::{Parameters, Reason};

/// Where startup_64 begins in the protected-mode part.
const ENTRY_64: u64 = 0x200;
const HEADER: u64 = 0x1f1;
const HEADER_LIMIT: u64 = 0x290;
const SETUP_CC_BLOB: u32 = 7;
const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const CC_BLOB_MAGIC: u32 = u32::from_le_bytes(*b"AMDE");

/// Builds it all. The entry point.
pub fn prepare(parameters: &Parameters) -> Result<u64, Reason> {
    let Parameters { setup, kernel, initrd, cmdline, boot_params: zero, .. } = *parameters;
    if setup.len_bytes < HEADER_LIMIT || get::<u32>(setup.base + 0x202) != MAGIC {
        return Err(Reason::Parameters);
    }
    zero_page(zero);
    let header_end = (0x202 + u64::from(get::<u8>(setup.base + 0x201))).min(HEADER_LIMIT);
    copy(setup.base + HEADER, zero + HEADER, header_end - HEADER);
    put(zero + 0x070, parameters.rsdp);
    put(zero + 0x1fa, 0xffff_u16);
    // A loader without a number of its own, and a kernel that is loaded high.
    put(zero + 0x210, 0xff_u8);
    put(zero + 0x211, get::<u8>(setup.base + 0x211) | 1);
    split(zero, 0x218, 0x0c0, initrd.base);
    split(zero, 0x21c, 0x0c4, initrd.len_bytes);
    split(zero, 0x228, 0x0c8, cmdline.base);

    let map = parameters.map.get(..parameters.nr_map as usize).ok_or(Reason::Parameters)?;
    put(zero + 0x1e8, map.len() as u8);
    for (n, entry) in (0..).zip(map) {
        let at = zero + 0x2d0 + 20 * n;
        put(at, entry.range.base);
        put(at + 8, entry.range.len_bytes);
        put(at + 16, entry.kind as u32);
    }

    let blob = parameters.cc_blob;
    zero_page(blob);
    put(blob, CC_BLOB_MAGIC);
    put(blob + 8, parameters.secrets);
    put(blob + 16, 0x1000_u32);
    put(blob + 24, parameters.cpuid);
    put(blob + 32, 0x1000_u32);

    let node = parameters.setup_data;
    zero_page(node);
    put(node + 8, SETUP_CC_BLOB);
    put(node + 12, 4_u32);
    put(node + 16, blob as u32);
    put(zero + 0x250, node);
    Ok(kernel.base + ENTRY_64)
}

/// A 64-bit value whose halves lie apart.
fn split(zero: u64, low_at: u64, high_at: u64, value: u64) {
    put(zero + low_at, value as u32);
    put(zero + high_at, (value >> 32) as u32);
}
