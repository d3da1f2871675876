//! What a shadow page was made for (`union kvm_mmu_page_role`): with the guest frame it is the page's key.

use bitflags::bitflags;
use emu_core::Gfn;
use emu_core::regs::{Cr0, Cr4, Efer};
use mmu::{GuestRights, PagingMode, PagingState};

/// Format of the guest's tables, as far as their entries differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableFormat {
    /// Paging is off: there are no tables.
    None,
    /// 4-byte entries (`has_4_byte_gpte`).
    Legacy,
    /// 8-byte entries of PAE paging.
    Pae,
    /// 8-byte entries of 4-level and 5-level paging.
    Long,
}

impl TableFormat {
    /// The format that `mode` uses.
    pub const fn of(mode: PagingMode) -> TableFormat {
        match mode {
            PagingMode::Off => TableFormat::None,
            PagingMode::Legacy32 => TableFormat::Legacy,
            PagingMode::Pae => TableFormat::Pae,
            PagingMode::FourLevel | PagingMode::FiveLevel => TableFormat::Long,
        }
    }
    /// Bytes of an entry.
    pub const fn entry_bytes(self) -> u64 {
        match self {
            TableFormat::Legacy => 4,
            TableFormat::None | TableFormat::Pae | TableFormat::Long => 8,
        }
    }
}

/// Whose entries a shadow page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Nobody's: it maps consecutive guest frames, because paging is off or a guest's large page is mapped in parts.
    Direct,
    /// Those of the guest's table at the page's guest frame.
    Guest,
}

bitflags! {
    /// Control bits under which entries are made differently.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct RoleControls: u8 {
        /// EFER.NXE.
        const NX = 1 << 0;
        /// CR0.WP.
        const WP = 1 << 1;
        /// CR4.SMEP without CR0.WP: a user page made a supervisor's for its writes must not be executed by it.
        const SMEP_ANDNOT_WP = 1 << 2;
        /// CR4.SMAP without CR0.WP.
        const SMAP_ANDNOT_WP = 1 << 3;
        /// CR4.PSE, where entries of 4 bytes ask for it.
        const PSE = 1 << 4;
    }
}

impl RoleControls {
    /// What `state` says.
    pub fn of(state: &PagingState) -> RoleControls {
        let wp = state.cr0.contains(Cr0::WP);
        let mut controls = RoleControls::empty();
        if state.mode() == PagingMode::Off {
            return controls;
        }
        controls.set(RoleControls::NX, state.efer.contains(Efer::NXE));
        controls.set(RoleControls::WP, wp);
        controls.set(RoleControls::SMEP_ANDNOT_WP, state.cr4.contains(Cr4::SMEP) && !wp);
        controls.set(RoleControls::SMAP_ANDNOT_WP, state.cr4.contains(Cr4::SMAP) && !wp);
        controls.set(RoleControls::PSE, state.mode() == PagingMode::Legacy32 && state.cr4.contains(Cr4::PSE));
        controls
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Role {
    /// 1 holds PTEs; 4 or 5 is the root of a 64-bit guest, 2 the highest of any other.
    pub level: u8,
    /// Format of the guest's tables.
    pub format: TableFormat,
    /// Which part of a table of 4-byte entries: they are twice as many as fit in a shadow page.
    pub quadrant: u8,
    /// Whose entries.
    pub origin: Origin,
    /// What the entries above allow together; for a direct page, what its leaves allow.
    pub access: GuestRights,
    /// Control bits.
    pub controls: RoleControls,
}

impl Role {
    /// The bits in Linux's order where it has them: level 3:0, 4-byte entries 4, quadrant 6:5, direct 7, access 10:8,
    /// controls from 11 on, format from 16 on.
    pub const fn word(self) -> u32 {
        let direct = matches!(self.origin, Origin::Direct) as u32;
        let legacy = matches!(self.format, TableFormat::Legacy) as u32;
        self.level as u32
            | legacy << 4
            | (self.quadrant as u32) << 5
            | direct << 7
            | (self.access.bits() as u32) << 8
            | (self.controls.bits() as u32) << 11
            | (self.format as u32) << 16
    }

    /// Guest frames under one entry of the page.
    pub const fn frames(self) -> u64 {
        frames(self.level)
    }

    /// Guest physical offset in its table of the guest's entry behind shadow entry `index`.
    pub const fn guest_offset(self, index: u16) -> u64 {
        let index = index as u64;
        match (self.format, self.level) {
            (TableFormat::Legacy, 1) => (self.quadrant as u64 * 512 + index) * 4,
            // A 4 MiB entry stands behind two shadow entries.
            (TableFormat::Legacy, _) => (self.quadrant as u64 * 256 + index / 2) * 4,
            _ => index * 8,
        }
    }

    /// The shadow entries, first and count, behind which the guest's entry at `offset` stands, if this page has any.
    pub const fn shadow_entries(self, offset: u64) -> Option<(u16, u16)> {
        match (self.format, self.level) {
            (TableFormat::Legacy, 1) => {
                let entry = offset / 4;
                if entry / 512 == self.quadrant as u64 { Some(((entry % 512) as u16, 1)) } else { None }
            }
            (TableFormat::Legacy, _) => {
                let entry = offset / 4;
                if entry / 256 == self.quadrant as u64 { Some(((entry % 256 * 2) as u16, 2)) } else { None }
            }
            _ => Some(((offset / 8) as u16, 1)),
        }
    }
}

/// Guest frames under one shadow entry of `level`.
pub const fn frames(level: u8) -> u64 {
    1 << (9 * (level as u32 - 1))
}

/// The entry for `address` in a shadow page of `level`.
pub const fn index_at(address: u64, level: u8) -> u16 {
    (address >> (12 + 9 * (level as u32 - 1)) & 511) as u16
}

/// The first guest frame of the naturally aligned run of `frames` around `gfn`.
pub const fn run_base(gfn: Gfn, frames: u64) -> Gfn {
    Gfn::new(gfn.raw() & !(frames - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(format: TableFormat, level: u8, quadrant: u8) -> Role {
        let (origin, access) = (Origin::Guest, GuestRights::all());
        Role { level, format, quadrant, origin, access, controls: RoleControls::empty() }
    }

    #[test]
    fn every_guest_entry_stands_behind_the_shadow_entries_that_name_it() {
        for (format, level, quadrants) in [
            (TableFormat::Long, 1, 1),
            (TableFormat::Pae, 2, 1),
            (TableFormat::Legacy, 1, 2),
            (TableFormat::Legacy, 2, 4),
        ] {
            let mut seen = vec![0; 4096 / format.entry_bytes() as usize];
            for quadrant in 0..quadrants {
                let role = role(format, level, quadrant);
                for index in 0..512 {
                    let offset = role.guest_offset(index);
                    seen[(offset / format.entry_bytes()) as usize] += 1;
                    let (first, count) = role.shadow_entries(offset).expect("the page has it");
                    assert!((first..first + count).contains(&index), "{role:?} {index}");
                }
            }
            let each = if (format, level) == (TableFormat::Legacy, 2) { 2 } else { 1 };
            assert!(seen.iter().all(|&n| n == each), "{format:?} {level}");
        }
    }

    #[test]
    fn the_word_tells_roles_apart() {
        let mut words = std::collections::BTreeSet::new();
        let mut count = 0;
        for format in [TableFormat::None, TableFormat::Legacy, TableFormat::Pae, TableFormat::Long] {
            for level in 1..=5 {
                for quadrant in 0..4 {
                    for origin in [Origin::Direct, Origin::Guest] {
                        for access in 0..8 {
                            for controls in 0..32 {
                                let access = GuestRights::from_bits_truncate(access);
                                let controls = RoleControls::from_bits_truncate(controls);
                                words.insert(Role { level, format, quadrant, origin, access, controls }.word());
                                count += 1;
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(words.len(), count);
    }
}
