//! Where the fields of a GHCB page lie.
//!
//! Source: GHCB specification, "GHCB Layout"; Linux `struct ghcb`, `struct ghcb_save_area`. The save area has the shape
//! of a VMSA; each of its fields has a bit in the valid bitmap, numbered by its quadword.
//!
//! Always true: what an event is decided on was copied once, so a guest that goes on writing its page changes nothing.

use emu_core::Gpa;
use emu_core::page::PAGE_SIZE;

use super::{GhcbMemory, GhcbUnreachable};

/// First byte of the valid bitmap, 16 bytes with little-endian numbering of bits.
pub const VALID_BITMAP: usize = 0x3f0;
/// First byte of the shared buffer.
pub const SHARED_BUFFER: usize = 0x800;
/// Bytes in the shared buffer.
pub const SHARED_BUFFER_BYTES: usize = 0x7f0;
/// The version of the protocol the guest follows, 16 bits.
pub const PROTOCOL_VERSION: usize = 0xffa;
/// What the page is used as, 32 bits: 0 is a GHCB.
pub const GHCB_USAGE: usize = 0xffc;

/// One field of the save area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field(u16);

macro_rules! fields {
    ($($(#[$meta:meta])* $NAME:ident = $offset:literal;)*) => {
        impl Field {
            $($(#[$meta])* pub const $NAME: Field = Field($offset);)*

            /// All, by offset.
            pub const ALL: &[Field] = &[$(Field::$NAME),*];
        }
    };
}

fields! {
    /// Current privilege level, one byte.
    CPL = 0x0cb;
    /// IA32_XSS.
    XSS = 0x140;
    /// DR7.
    DR7 = 0x160;
    /// RIP.
    RIP = 0x178;
    /// RSP.
    RSP = 0x1d8;
    /// RAX.
    RAX = 0x1f8;
    /// RCX.
    RCX = 0x308;
    /// RDX.
    RDX = 0x310;
    /// RBX.
    RBX = 0x318;
    /// RBP.
    RBP = 0x328;
    /// RSI.
    RSI = 0x330;
    /// RDI.
    RDI = 0x338;
    /// R8; R9 to R15 follow.
    R8 = 0x340;
    /// R15.
    R15 = 0x378;
    /// The event.
    SW_EXITCODE = 0x390;
    /// Its first argument; 31:0 of the answer's status.
    SW_EXITINFO1 = 0x398;
    /// Its second argument; what goes with the answer's status.
    SW_EXITINFO2 = 0x3a0;
    /// Where the data of an event lie, a guest physical address.
    SW_SCRATCH = 0x3a8;
    /// XCR0.
    XCR0 = 0x3e8;
}

impl Field {
    /// Its place in the page.
    pub const fn offset(self) -> usize {
        self.0 as usize
    }

    /// Its number in the valid bitmap.
    pub const fn valid_bit(self) -> u32 {
        self.0 as u32 / 8
    }
}

/// What a guest had in its page at one moment: the save area, and the fields behind the shared buffer.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    page: Gpa,
    save: [u8; VALID_BITMAP + 16],
    valid: u128,
    pub(super) version: u16,
    pub(super) usage: u32,
}

impl Snapshot {
    /// Copies from the page at `page` and clears its valid bitmap, as the handshake wants.
    pub(super) fn take(page: Gpa, memory: &mut dyn GhcbMemory) -> Result<Snapshot, GhcbUnreachable> {
        let (mut save, mut tail) = ([0; VALID_BITMAP + 16], [0; PAGE_SIZE - PROTOCOL_VERSION]);
        memory.read(page, &mut save)?;
        memory.read(page.wrapping_add(PROTOCOL_VERSION as u64), &mut tail)?;
        memory.write(page.wrapping_add(VALID_BITMAP as u64), &[0; 16])?;
        let [v0, v1, u0, u1, u2, u3] = tail;
        let valid = save.last_chunk().map_or(0, |&bitmap| u128::from_le_bytes(bitmap));
        Ok(Snapshot {
            page,
            save,
            valid,
            version: u16::from_le_bytes([v0, v1]),
            usage: u32::from_le_bytes([u0, u1, u2, u3]),
        })
    }

    /// The page itself.
    pub(super) fn page(&self) -> Gpa {
        self.page
    }

    /// Whether the guest vouches for the field.
    pub(super) fn is_valid(&self, field: Field) -> bool {
        self.valid >> field.valid_bit() & 1 != 0
    }

    /// Whether it does for each of these.
    pub(super) fn are_valid(&self, fields: &[Field]) -> bool {
        fields.iter().all(|&field| self.is_valid(field))
    }

    /// The field's quadword, valid or not.
    pub(super) fn raw(&self, field: Field) -> u64 {
        let bytes = self.save[field.offset()..].first_chunk();
        bytes.map_or(0, |&bytes| u64::from_le_bytes(bytes))
    }

    /// The field, if the guest vouches for it.
    pub(super) fn get(&self, field: Field) -> Option<u64> {
        self.is_valid(field).then(|| self.raw(field))
    }

    /// The same, and 0 for what it does not vouch for.
    pub(super) fn or_zero(&self, field: Field) -> u64 {
        self.get(field).unwrap_or(0)
    }

    /// The level the guest says it was at, 0 if it does not say.
    pub(super) fn cpl(&self) -> u8 {
        self.or_zero(Field::CPL) as u8 & 3
    }
}

/// Fields to be written into a page, with their valid bits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outputs {
    valid: u128,
}

impl Outputs {
    /// Writes one field of the page.
    pub(super) fn put(
        &mut self,
        page: Gpa,
        field: Field,
        value: u64,
        memory: &mut dyn GhcbMemory,
    ) -> Result<(), GhcbUnreachable> {
        self.valid |= 1 << field.valid_bit();
        memory.write(page.wrapping_add(field.offset() as u64), &value.to_le_bytes())
    }

    /// Marks what was written as valid, and nothing else.
    pub(super) fn finish(self, page: Gpa, memory: &mut dyn GhcbMemory) -> Result<(), GhcbUnreachable> {
        memory.write(page.wrapping_add(VALID_BITMAP as u64), &self.valid.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_the_valid_bitmap_are_those_of_the_specification() {
        let expected = [
            (Field::CPL, 25),
            (Field::XSS, 40),
            (Field::DR7, 44),
            (Field::RIP, 47),
            (Field::RSP, 59),
            (Field::RAX, 63),
            (Field::RCX, 97),
            (Field::RDX, 98),
            (Field::RBX, 99),
            (Field::RBP, 101),
            (Field::RSI, 102),
            (Field::RDI, 103),
            (Field::R8, 104),
            (Field::R15, 111),
            (Field::SW_EXITCODE, 114),
            (Field::SW_EXITINFO1, 115),
            (Field::SW_EXITINFO2, 116),
            (Field::SW_SCRATCH, 117),
            (Field::XCR0, 125),
        ];
        assert_eq!(Field::ALL.len(), expected.len());
        for (&field, (named, bit)) in Field::ALL.iter().zip(expected) {
            assert_eq!((field, field.valid_bit()), (named, bit));
            assert!(field.offset() + 8 <= VALID_BITMAP || field == Field::XCR0);
        }
    }
}
