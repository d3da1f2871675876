//! NPT and EPT, each level spelt out.

use emu_core::AccessKind;

use crate::{Answer, Machine, Nested, bit, bits};

/// What a nested translation is for.
#[derive(Clone, Copy)]
pub(crate) enum Reason {
    /// The address that the access itself reaches.
    Final {
        /// U/S of its linear address.
        user_linear: bool,
    },
    /// Reading a guest table entry.
    Read,
    /// Setting A or D in one, where that is an access of its own.
    Update,
}

/// Where a guest table entry lies for reading.
pub(crate) fn for_read(m: &Machine<'_>, slot_gpa: u64, gva: u64) -> Result<u64, Answer> {
    let kind = match m.nested {
        Nested::None => return Ok(slot_gpa),
        // "Always treated as user writes at the nested page table level."
        Nested::Npt { .. } => AccessKind::Write,
        // Treated as writes while accessed and dirty flags for EPT are enabled.
        Nested::Ept { eptp, .. } if bit(eptp, 6) => AccessKind::Write,
        Nested::Ept { .. } => AccessKind::Read,
    };
    translate(m, slot_gpa, kind, Reason::Read, Some(gva))
}

/// Where it lies for setting A or D.
pub(crate) fn for_update(m: &Machine<'_>, slot_gpa: u64, slot_spa: u64, gva: u64) -> Result<u64, Answer> {
    match m.nested {
        Nested::Ept { eptp, .. } if !bit(eptp, 6) => {
            translate(m, slot_gpa, AccessKind::Write, Reason::Update, Some(gva))
        }
        _ => Ok(slot_spa),
    }
}

/// Translates a guest physical address.
pub(crate) fn translate(
    m: &Machine<'_>,
    gpa: u64,
    kind: AccessKind,
    reason: Reason,
    gva: Option<u64>,
) -> Result<u64, Answer> {
    match m.nested {
        Nested::None => Ok(gpa),
        Nested::Npt { ncr3, la57, nxe } => npt(m, ncr3, la57, nxe, gpa, kind, reason),
        Nested::Ept { eptp, mode_based } => ept(m, eptp, mode_based, gpa, kind, reason, gva),
    }
}

fn npt(
    m: &Machine<'_>,
    ncr3: u64,
    la57: bool,
    nxe: bool,
    gpa: u64,
    kind: AccessKind,
    reason: Reason,
) -> Result<u64, Answer> {
    let mut info = 1 << 2;
    if kind == AccessKind::Write {
        info |= 1 << 1;
    }
    if kind == AccessKind::Execute {
        info |= 1 << 4;
    }
    info |= match reason {
        Reason::Final { .. } => 1 << 32,
        Reason::Read | Reason::Update => 1 << 33,
    };
    let not_present = Answer::NestedPageFault { gpa, exitinfo1: info };
    let reserved = Answer::NestedPageFault { gpa, exitinfo1: info | 1 | 1 << 3 };
    let refused = Answer::NestedPageFault { gpa, exitinfo1: info | 1 };
    let always_reserved = |e: u64| {
        (m.processor.physical_bits < 52 && bits(e, 51, m.processor.physical_bits) != 0) || (bit(e, 63) && !nxe)
    };

    if bits(gpa, 63, if la57 { 57 } else { 48 }) != 0 {
        return Err(not_present);
    }
    let mut path = Vec::new();
    let mut table = bits(ncr3, 51, 12);
    let mut levels = vec![(39, 47), (30, 38), (21, 29), (12, 20)];
    if la57 {
        levels.insert(0, (48, 56));
    }
    let mut spa = None;
    for (low, high) in levels {
        let slot = table + (bits(gpa, high, low) >> low) * 8;
        let e = (m.ram.read)(slot, 8);
        if !bit(e, 0) {
            return Err(not_present);
        }
        let large = bit(e, 7);
        let bad = match low {
            48 | 39 => large || (m.processor.amd && bit(e, 8)),
            30 if large => !m.processor.page_1g || bits(e, 29, 13) != 0,
            21 if large => bits(e, 20, 13) != 0,
            _ => false,
        };
        if always_reserved(e) || bad {
            return Err(reserved);
        }
        path.push((slot, e));
        if low == 12 || ((low == 30 || low == 21) && large) {
            spa = Some(bits(e, 51, low) + bits(gpa, low - 1, 0));
            break;
        }
        table = bits(e, 51, 12);
    }
    let Some(spa) = spa else { return Err(not_present) };
    if !path.iter().all(|&(_, e)| bit(e, 2)) {
        return Err(refused);
    }
    if kind == AccessKind::Write && !path.iter().all(|&(_, e)| bit(e, 1)) {
        return Err(refused);
    }
    if kind == AccessKind::Execute && path.iter().any(|&(_, e)| bit(e, 63)) {
        return Err(refused);
    }
    let last = path.len() - 1;
    for (n, (slot, e)) in path.into_iter().enumerate() {
        let dirty = if n == last && kind == AccessKind::Write { 1 << 6 } else { 0 };
        (m.ram.write)(slot, 8, e | 1 << 5 | dirty);
    }
    Ok(spa)
}

fn ept(
    m: &Machine<'_>,
    eptp: u64,
    mode_based: bool,
    gpa: u64,
    kind: AccessKind,
    reason: Reason,
    gva: Option<u64>,
) -> Result<u64, Answer> {
    let keeps_flags = bit(eptp, 6);
    let mut qualification = match kind {
        AccessKind::Read => 1,
        AccessKind::Write => 2,
        AccessKind::Execute => 4,
    };
    if matches!(reason, Reason::Read) && keeps_flags {
        qualification = 3;
    }
    if gva.is_some() {
        qualification |= 1 << 7;
        if matches!(reason, Reason::Final { .. }) {
            qualification |= 1 << 8;
        }
    }
    let violation = |allowed: u64| Answer::EptViolation { gpa, qualification: qualification | allowed << 3 };
    let misconfigured = Answer::EptMisconfiguration { gpa };

    let five = bits(eptp, 5, 3) >> 3 == 4;
    if bits(gpa, 63, if five { 57 } else { 48 }) != 0 {
        return Err(violation(0));
    }
    let mut path = Vec::new();
    let mut table = bits(eptp, 51, 12);
    let mut allowed = 0b1111;
    let mut spa = None;
    let mut levels = vec![(39, 47), (30, 38), (21, 29), (12, 20)];
    if five {
        levels.insert(0, (48, 56));
    }
    for (low, high) in levels {
        let slot = table + (bits(gpa, high, low) >> low) * 8;
        let e = (m.ram.read)(slot, 8);
        let (r, w, x, xu) = (bit(e, 0), bit(e, 1), bit(e, 2), mode_based && bit(e, 10));
        if !(r || w || x || xu) {
            return Err(violation(0));
        }
        if w && !r {
            return Err(misconfigured);
        }
        if !r && !m.processor.execute_only {
            return Err(misconfigured);
        }
        if m.processor.physical_bits < 52 && bits(e, 51, m.processor.physical_bits) != 0 {
            return Err(misconfigured);
        }
        let leaf = low == 12 || ((low == 30 || low == 21) && bit(e, 7));
        let bad = match (low, leaf) {
            (48 | 39, _) => bits(e, 7, 3) != 0,
            (30, true) => !m.processor.page_1g || bits(e, 29, 12) != 0,
            (21, true) => bits(e, 20, 12) != 0,
            (_, true) => false,
            (_, false) => bits(e, 6, 3) != 0,
        };
        if bad || (leaf && [2, 3, 7].contains(&(bits(e, 5, 3) >> 3))) {
            return Err(misconfigured);
        }
        allowed &= u64::from(r) | u64::from(w) << 1 | u64::from(x) << 2 | u64::from(xu) << 3;
        path.push((slot, e));
        if leaf {
            spa = Some(bits(e, 51, low) + bits(gpa, low - 1, 0));
            break;
        }
        table = bits(e, 51, 12);
    }
    let Some(spa) = spa else { return Err(violation(0)) };
    let user_linear = matches!(reason, Reason::Final { user_linear: true });
    let permitted = match kind {
        AccessKind::Read => bit(allowed, 0),
        AccessKind::Write => bit(allowed, 1),
        AccessKind::Execute if mode_based && user_linear => bit(allowed, 3),
        AccessKind::Execute => bit(allowed, 2),
    };
    if !permitted {
        return Err(violation(allowed));
    }
    if keeps_flags {
        let last = path.len() - 1;
        for (n, (slot, e)) in path.into_iter().enumerate() {
            let dirty = if n == last && kind == AccessKind::Write { 1 << 9 } else { 0 };
            (m.ram.write)(slot, 8, e | 1 << 8 | dirty);
        }
    }
    Ok(spa)
}
