//! The guest's own tables: one function a format, one paragraph a level.

use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::{Access, AccessKind};

use crate::nested::{self, Reason};
use crate::rights::{Page, error_code, judge};
use crate::{Answer, Machine, bit, bits};

/// An entry that was used and has an A bit (a PDPTE of PAE paging has none).
struct Used {
    slot_gpa: u64,
    slot_spa: u64,
    value: u64,
}

/// What a format's walk found.
struct Mapping {
    gpa: u64,
    page: Page,
    used: Vec<Used>,
    entry_bytes: u32,
}

pub(crate) fn translate(m: &Machine<'_>, gva: u64, access: Access) -> Result<(u64, u64), Answer> {
    let r = &m.registers;
    if !r.cr0.contains(Cr0::PG) {
        let gpa = bits(gva, 31, 0);
        let spa = nested::translate(m, gpa, access.kind, Reason::Final { user_linear: true }, Some(gva))?;
        return Ok((gpa, spa));
    }
    let mapping = if r.efer.contains(Efer::LMA) {
        long(m, gva, access)?
    } else if r.cr4.contains(Cr4::PAE) {
        pae(m, bits(gva, 31, 0), access)?
    } else {
        legacy(m, bits(gva, 31, 0), access)?
    };
    judge(r, &mapping.page, access).map_err(|code| Answer::PageFault { code })?;
    let reason = Reason::Final { user_linear: mapping.page.user_mode };
    let spa = nested::translate(m, mapping.gpa, access.kind, reason, Some(gva))?;

    let last = mapping.used.len() - 1;
    for (n, used) in mapping.used.iter().enumerate() {
        let mut value = used.value | 1 << 5;
        if n == last && access.kind == AccessKind::Write {
            value |= 1 << 6;
        }
        if value != used.value {
            let to = nested::for_update(m, used.slot_gpa, used.slot_spa, gva)?;
            (m.ram.write)(to, mapping.entry_bytes, value);
        }
    }
    Ok((mapping.gpa, spa))
}

/// Reads the entry at `slot_gpa` of a guest table.
fn read(m: &Machine<'_>, slot_gpa: u64, entry_bytes: u32, gva: u64) -> Result<Used, Answer> {
    let slot_spa = nested::for_read(m, slot_gpa, gva)?;
    let value = (m.ram.read)(slot_spa, entry_bytes);
    Ok(Used { slot_gpa, slot_spa, value })
}

fn not_present(m: &Machine<'_>, access: Access) -> Answer {
    Answer::PageFault { code: error_code(&m.registers, access) }
}
fn reserved(m: &Machine<'_>, access: Access) -> Answer {
    Answer::PageFault { code: error_code(&m.registers, access) | 1 | 1 << 3 }
}

/// Bits 51 to MAXPHYADDR.
fn above_physical(m: &Machine<'_>, value: u64) -> bool {
    m.processor.physical_bits < 52 && bits(value, 51, m.processor.physical_bits) != 0
}

/// 4-level and 5-level paging.
fn long(m: &Machine<'_>, gva: u64, access: Access) -> Result<Mapping, Answer> {
    let r = &m.registers;
    let five = r.cr4.contains(Cr4::LA57);
    let top_bit = if five { 56 } else { 47 };
    let high = bits(gva, 63, top_bit);
    if high != 0 && high != bits(u64::MAX, 63, top_bit) {
        return Err(Answer::NonCanonical);
    }
    let always_reserved = |value: u64| above_physical(m, value) || (bit(value, 63) && !r.efer.contains(Efer::NXE));
    let mut used = Vec::new();
    let mut table = bits(r.cr3, 51, 12);

    if five {
        let e = read(m, table + bits(gva, 56, 48) / (1 << 48) * 8, 8, gva)?;
        if !bit(e.value, 0) {
            return Err(not_present(m, access));
        }
        if always_reserved(e.value) || bit(e.value, 7) || (m.processor.amd && bit(e.value, 8)) {
            return Err(reserved(m, access));
        }
        table = bits(e.value, 51, 12);
        used.push(e);
    }

    let e = read(m, table + bits(gva, 47, 39) / (1 << 39) * 8, 8, gva)?;
    if !bit(e.value, 0) {
        return Err(not_present(m, access));
    }
    if always_reserved(e.value) || bit(e.value, 7) || (m.processor.amd && bit(e.value, 8)) {
        return Err(reserved(m, access));
    }
    table = bits(e.value, 51, 12);
    used.push(e);

    let e = read(m, table + bits(gva, 38, 30) / (1 << 30) * 8, 8, gva)?;
    if !bit(e.value, 0) {
        return Err(not_present(m, access));
    }
    if always_reserved(e.value) {
        return Err(reserved(m, access));
    }
    if bit(e.value, 7) {
        if !m.processor.page_1g || bits(e.value, 29, 13) != 0 {
            return Err(reserved(m, access));
        }
        let gpa = bits(e.value, 51, 30) + bits(gva, 29, 0);
        used.push(e);
        return Ok(long_mapping(gpa, used));
    }
    table = bits(e.value, 51, 12);
    used.push(e);

    let e = read(m, table + bits(gva, 29, 21) / (1 << 21) * 8, 8, gva)?;
    if !bit(e.value, 0) {
        return Err(not_present(m, access));
    }
    if always_reserved(e.value) {
        return Err(reserved(m, access));
    }
    if bit(e.value, 7) {
        if bits(e.value, 20, 13) != 0 {
            return Err(reserved(m, access));
        }
        let gpa = bits(e.value, 51, 21) + bits(gva, 20, 0);
        used.push(e);
        return Ok(long_mapping(gpa, used));
    }
    table = bits(e.value, 51, 12);
    used.push(e);

    let e = read(m, table + bits(gva, 20, 12) / (1 << 12) * 8, 8, gva)?;
    if !bit(e.value, 0) {
        return Err(not_present(m, access));
    }
    if always_reserved(e.value) {
        return Err(reserved(m, access));
    }
    let gpa = bits(e.value, 51, 12) + bits(gva, 11, 0);
    used.push(e);
    Ok(long_mapping(gpa, used))
}

fn long_mapping(gpa: u64, used: Vec<Used>) -> Mapping {
    let leaf = used.last().map_or(0, |e| e.value);
    let key = Some((bits(leaf, 62, 59) >> 59) as u32);
    Mapping { gpa, page: page(&used, key), used, entry_bytes: 8 }
}

fn page(used: &[Used], key: Option<u32>) -> Page {
    Page {
        user_mode: used.iter().all(|e| bit(e.value, 2)),
        writable: used.iter().all(|e| bit(e.value, 1)),
        execute_disable: used.iter().any(|e| bit(e.value, 63)),
        key,
    }
}

/// PAE paging.
fn pae(m: &Machine<'_>, gva: u64, access: Access) -> Result<Mapping, Answer> {
    let r = &m.registers;
    let index = bits(gva, 31, 30) >> 30;
    let pdpte = match r.pdptes {
        Some(registers) => registers[index as usize],
        None => read(m, bits(r.cr3, 31, 5) + index * 8, 8, gva)?.value,
    };
    if !bit(pdpte, 0) {
        return Err(not_present(m, access));
    }
    if bits(pdpte, 2, 1) != 0 || bits(pdpte, 8, 5) != 0 || bits(pdpte, 63, m.processor.physical_bits) != 0 {
        return Err(reserved(m, access));
    }
    let always_reserved =
        |value: u64| bits(value, 62, m.processor.physical_bits) != 0 || (bit(value, 63) && !r.efer.contains(Efer::NXE));
    let mut used = Vec::new();

    let e = read(m, bits(pdpte, 51, 12) + bits(gva, 29, 21) / (1 << 21) * 8, 8, gva)?;
    if !bit(e.value, 0) {
        return Err(not_present(m, access));
    }
    if always_reserved(e.value) || (bit(e.value, 7) && bits(e.value, 20, 13) != 0) {
        return Err(reserved(m, access));
    }
    if bit(e.value, 7) {
        let gpa = bits(e.value, 51, 21) + bits(gva, 20, 0);
        used.push(e);
        return Ok(Mapping { gpa, page: page(&used, None), used, entry_bytes: 8 });
    }
    let table = bits(e.value, 51, 12);
    used.push(e);

    let e = read(m, table + bits(gva, 20, 12) / (1 << 12) * 8, 8, gva)?;
    if !bit(e.value, 0) {
        return Err(not_present(m, access));
    }
    if always_reserved(e.value) {
        return Err(reserved(m, access));
    }
    let gpa = bits(e.value, 51, 12) + bits(gva, 11, 0);
    used.push(e);
    Ok(Mapping { gpa, page: page(&used, None), used, entry_bytes: 8 })
}

/// 32-bit paging.
fn legacy(m: &Machine<'_>, gva: u64, access: Access) -> Result<Mapping, Answer> {
    let r = &m.registers;
    let mut used = Vec::new();
    let e = read(m, bits(r.cr3, 31, 12) + bits(gva, 31, 22) / (1 << 22) * 4, 4, gva)?;
    if !bit(e.value, 0) {
        return Err(not_present(m, access));
    }
    if r.cr4.contains(Cr4::PSE) && bit(e.value, 7) {
        // M is the width of an address in a 4 MiB page: bits 20:13 give address bits 39:32, as far as they exist.
        let width = if m.processor.pse36 { m.processor.physical_bits.min(40) } else { 32 };
        if bits(e.value, 21, width - 19) != 0 {
            return Err(reserved(m, access));
        }
        let gpa = (bits(e.value, 20, 13) >> 13 << 32) + bits(e.value, 31, 22) + bits(gva, 21, 0);
        used.push(e);
        return Ok(Mapping { gpa, page: page(&used, None), used, entry_bytes: 4 });
    }
    let table = bits(e.value, 31, 12);
    used.push(e);

    let e = read(m, table + bits(gva, 21, 12) / (1 << 12) * 4, 4, gva)?;
    if !bit(e.value, 0) {
        return Err(not_present(m, access));
    }
    let gpa = bits(e.value, 31, 12) + bits(gva, 11, 0);
    used.push(e);
    Ok(Mapping { gpa, page: page(&used, None), used, entry_bytes: 4 })
}
