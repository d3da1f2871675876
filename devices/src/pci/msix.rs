//! MSI-X: a table of messages that software fills, each with a mask, and a bit for what is pending (PCI Local Bus
//! specification 3.0, section 6.8.2).
//!
//! Table and pending bits live in a BAR of their own, one page long. [`Msix::raise`] only sets a pending bit, and
//! [`Msix::take`] hands out a message when nothing masks it, so that whatever a guest does costs one bit a vector.

use emu_core::addr::Gpa;

use crate::bus::Width;
use crate::message::MsiMessage;
use crate::pci::config::{Bar, BarKind, ConfigSpace};

/// The most vectors a function of ours has.
pub const MAX_VECTORS: u16 = 64;
/// Length of the BAR that holds the table (at 0) and the pending bits (at [`PENDING_AT`]).
pub const BAR_BYTES: u64 = 0x1000;
/// Where in the BAR the pending bits are.
pub const PENDING_AT: u64 = 0x800;

const CAPABILITY_ID: u8 = 0x11;
/// Bytes of a table entry.
const ENTRY: u64 = 16;
/// Vector control: bit 0 masks the vector.
const CONTROL: usize = 3;
const MASKED: u32 = 1;
const ENABLE: u32 = 1 << 15;
const FUNCTION_MASK: u32 = 1 << 14;

/// The MSI-X state of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Msix {
    /// Address low and high, data, vector control.
    entries: Vec<[u32; 4]>,
    pending: u64,
    /// Where the capability is in configuration space.
    capability: u8,
}

impl Msix {
    /// Declares the capability at `capability` and the BAR `bar` in `config`, with 1 to [`MAX_VECTORS`] vectors.
    pub fn new(config: &mut ConfigSpace, capability: u8, bar: u8, vectors: u16) -> Msix {
        let vectors = vectors.clamp(1, MAX_VECTORS);
        config.set_bar(bar, Bar { kind: BarKind::Memory32, size: BAR_BYTES });
        let [size, _] = (vectors - 1).to_le_bytes();
        let [low, high, ..] = (PENDING_AT as u32).to_le_bytes();
        config.add_capability(capability, &[CAPABILITY_ID, 0, size, 0, bar, 0, 0, 0, low | bar, high, 0, 0]);
        config.allow(capability + 3, &[((ENABLE | FUNCTION_MASK) >> 8) as u8]);
        // As after reset: every vector masked.
        Msix { entries: vec![[0, 0, 0, MASKED]; vectors as usize], pending: 0, capability }
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    fn control(&self, config: &ConfigSpace) -> u32 {
        config.read(self.capability + 2, Width::Word)
    }
    /// Whether software uses MSI-X; INTx is then never asserted.
    pub fn enabled(&self, config: &ConfigSpace) -> bool {
        self.control(config) & ENABLE != 0
    }

    /// Reads the BAR.
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        let mut value = u64::from(self.dword(offset & !3));
        if width == Width::Qword {
            value |= u64::from(self.dword((offset & !3) + 4)) << 32;
        }
        value >> ((offset & 3) * 8) & width.mask()
    }

    fn dword(&self, offset: u64) -> u32 {
        match offset.checked_sub(PENDING_AT) {
            Some(0) => self.pending as u32,
            Some(4) => (self.pending >> 32) as u32,
            Some(_) => 0,
            None => self.entries.get((offset / ENTRY) as usize).map_or(0, |entry| entry[(offset % ENTRY / 4) as usize]),
        }
    }

    /// Writes the BAR. The specification allows aligned accesses of four and eight bytes; others do nothing.
    pub fn write(&mut self, offset: u64, width: Width, value: u64) {
        if !matches!(width, Width::Dword | Width::Qword) || !offset.is_multiple_of(u64::from(width.bytes())) {
            return;
        }
        for half in 0..u64::from(width.bytes()) / 4 {
            let at = offset + half * 4;
            if let Some(entry) = self.entries.get_mut((at / ENTRY) as usize) {
                let field = (at % ENTRY / 4) as usize;
                let value = (value >> (half * 32)) as u32;
                // The low bits of an address are zero, and of the control word only the mask exists.
                entry[field] = match field {
                    0 => value & !3,
                    CONTROL => value & MASKED,
                    _ => value,
                };
            }
        }
    }

    /// The function wants vector `vector`; one that does not exist is ignored.
    pub fn raise(&mut self, vector: u16) {
        if vector < self.vectors() {
            self.pending |= 1 << vector;
        }
    }

    /// The next message to send: the lowest pending vector that nothing masks.
    pub fn take(&mut self, config: &ConfigSpace) -> Option<MsiMessage> {
        if self.pending == 0 || self.control(config) & (ENABLE | FUNCTION_MASK) != ENABLE {
            return None;
        }
        let ready = |&n: &usize| self.pending >> n & 1 != 0 && self.entries[n][CONTROL] & MASKED == 0;
        let vector = (0..self.entries.len()).find(ready)?;
        self.pending &= !(1 << vector);
        let [low, high, data, _] = self.entries[vector];
        Some(MsiMessage { address: Gpa::new(u64::from(high) << 32 | u64::from(low)), data })
    }

    /// Drops what is pending, as the reset of the function does; table and masks are software's.
    pub fn forget_pending(&mut self) {
        self.pending = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::config::Identity;
    use proptest::prelude::*;

    fn function(vectors: u16) -> (ConfigSpace, Msix) {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            class: 0x01_8000,
            revision: 1,
            subsystem: (0, 0),
            interrupt_pin: 1,
        };
        let mut config = ConfigSpace::new(identity);
        let msix = Msix::new(&mut config, 0x40, 1, vectors);
        (config, msix)
    }

    fn message(msix: &mut Msix, vector: u64, data: u32) {
        msix.write(vector * 16, Width::Qword, 0xfee0_1000);
        msix.write(vector * 16 + 8, Width::Dword, u64::from(data));
        msix.write(vector * 16 + 12, Width::Dword, 0);
    }

    #[test]
    fn the_capability_says_where_table_and_pending_bits_are() {
        let (config, msix) = function(17);
        assert_eq!(config.dword(0x40), 16 << 16 | 0x11);
        assert_eq!((config.dword(0x44), config.dword(0x48)), (1, 0x801));
        assert_eq!(msix.vectors(), 17);
        assert_eq!(msix.read(16 * 16 + 12, Width::Dword), 1, "masked after reset");
    }

    #[test]
    fn a_message_waits_for_enable_function_mask_and_vector_mask() {
        let (mut config, mut msix) = function(4);
        message(&mut msix, 2, 0x41);
        msix.raise(2);
        msix.raise(3);
        msix.raise(4);
        assert_eq!(msix.read(PENDING_AT, Width::Qword), 0b1100);
        assert_eq!(msix.take(&config), None);
        config.write(0x42, Width::Word, 0xc000);
        assert_eq!(msix.take(&config), None);
        config.write(0x42, Width::Word, 0x8000);
        assert_eq!(msix.take(&config), Some(MsiMessage { address: Gpa::new(0xfee0_1000), data: 0x41 }));
        assert_eq!(msix.take(&config), None, "vector 3 is masked still");
        message(&mut msix, 3, 0x42);
        assert_eq!(msix.take(&config).map(|message| message.data), Some(0x42));
        assert_eq!(msix.read(PENDING_AT, Width::Qword), 0);
    }

    proptest! {
        #[test]
        fn no_access_of_the_bar_panics_and_pending_bits_are_read_only(
            accesses in prop::collection::vec((0..BAR_BYTES, 0..4_usize, any::<u64>()), 0..64), vectors in 1..100_u16,
        ) {
            let (_, mut msix) = function(vectors);
            msix.raise(0);
            for (offset, width, value) in accesses {
                msix.write(offset, Width::ALL[width], value);
                prop_assert!(msix.read(offset, Width::ALL[width]) <= Width::ALL[width].mask());
            }
            prop_assert_eq!(msix.read(PENDING_AT, Width::Qword), 1);
        }
    }
}
