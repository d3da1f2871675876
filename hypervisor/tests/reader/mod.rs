//! A second, naive reader of nested tables, from the manuals alone: AMD APM vol. 2, "Long-Mode Page Translation" and
//! "Nested Paging"; Intel SDM vol. 3, "EPT Translation Mechanism". It knows no software bit and shares no code with the
//! tables it reads.

use emu_core::memory::SystemMemory;
use emu_core::{Gpa, PageSize, Spa};
use hypervisor::TdpFormat;

/// What a nested walk finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    pub spa: Spa,
    pub size: PageSize,
    pub writable: bool,
    pub executable: bool,
    pub accessed: bool,
    pub dirty: bool,
    /// Where the leaf stands.
    pub entry: Spa,
}

fn bit(value: u64, n: u32) -> bool {
    value >> n & 1 == 1
}

/// Walks four levels from what the root register holds. `None`: not present. Panics on an entry that hardware would
/// call misconfigured or reserved.
pub fn walk(memory: &SystemMemory, format: TdpFormat, register: u64, gpa: Gpa) -> Option<Translation> {
    let mut table = register & 0x000f_ffff_ffff_f000;
    match format {
        TdpFormat::Npt => assert_eq!(register & 0xfff, 0),
        // Write-back, four levels, with or without accessed and dirty flags.
        TdpFormat::Ept => assert_eq!(register & 0xfbf, 6 | 3 << 3),
    }
    let (mut writable, mut executable) = (true, true);
    for level in (0..4).rev() {
        let index = gpa.raw() >> (12 + 9 * level) & 511;
        let at = Spa::new(table + 8 * index);
        let entry: u64 = memory.load(at).expect("tables are in memory");
        let leaf = level == 0 || bit(entry, 7);
        match format {
            TdpFormat::Npt => {
                if !bit(entry, 0) {
                    return None;
                }
                if bit(entry, 51) {
                    // Reserved by every MAXPHYADDR that tests have: what an entry for a device is made of.
                    assert_eq!(level, 0, "a device has pages of 4K");
                    return None;
                }
                assert!(bit(entry, 2), "nested walks are user accesses");
                writable &= bit(entry, 1);
                executable &= !bit(entry, 63);
            }
            TdpFormat::Ept => {
                if entry & 7 == 0 {
                    return None;
                }
                if entry & 7 == 6 {
                    // A misconfiguration: what an entry for a device is made of.
                    assert_eq!(level, 0, "a device has pages of 4K");
                    return None;
                }
                assert!(bit(entry, 0), "writable or executable without readable is a misconfiguration");
                writable &= bit(entry, 1);
                executable &= bit(entry, 2);
                if leaf {
                    assert!(matches!(entry >> 3 & 7, 0 | 1 | 4 | 5 | 6), "memory type");
                } else {
                    assert_eq!(entry >> 3 & 0xf, 0, "reserved in an entry that leads to a table");
                }
            }
        }
        let base = entry & 0x000f_ffff_ffff_f000;
        if !leaf {
            table = base;
            continue;
        }
        assert!(level < 3, "no leaf at the root");
        let mask = (1_u64 << (12 + 9 * level)) - 1;
        // Bit 12 of a large leaf is PAT in the long-mode format; the others below the page are reserved.
        assert_eq!(base & mask, 0, "a large leaf is aligned");
        let (accessed, dirty) = match format {
            TdpFormat::Npt => (bit(entry, 5), bit(entry, 6)),
            TdpFormat::Ept => (bit(entry, 8), bit(entry, 9)),
        };
        return Some(Translation {
            spa: Spa::new(base | gpa.raw() & mask),
            size: PageSize::ALL[level],
            writable,
            executable,
            accessed,
            dirty,
            entry: at,
        });
    }
    None
}

#[allow(dead_code, reason = "not every test that shares this reader lists tables")]
/// Every table that a walk can reach, the root included.
pub fn tables(memory: &SystemMemory, format: TdpFormat, register: u64) -> Vec<Spa> {
    let present = match format {
        TdpFormat::Npt => 1,
        TdpFormat::Ept => 7,
    };
    let mut found = vec![Spa::new(register & 0x000f_ffff_ffff_f000)];
    let mut from = 0;
    for _ in 1..4 {
        let level = from..found.len();
        from = found.len();
        for at in level {
            for index in 0..512 {
                let entry: u64 = memory.load(Spa::new(found[at].raw() + 8 * index)).expect("tables are in memory");
                if entry & present != 0 && !bit(entry, 7) {
                    found.push(Spa::new(entry & 0x000f_ffff_ffff_f000));
                }
            }
        }
    }
    found
}
