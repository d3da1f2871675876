//! Segment registers and descriptor tables (APM vol. 2, "Segmented Virtual Memory"; Intel SDM vol. 3, "Segmentation").
//!
//! A [`Segment`] is the hidden part that the processor keeps after a load: selector, base, limit in bytes and the
//! attributes of the descriptor. Loading and checking live in [`crate::system`].

use bitfield_struct::bitfield;
use emu_core::Gva;

/// The six segment registers with their encoding in instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SegReg {
    /// ES
    Es = 0,
    /// CS
    Cs = 1,
    /// SS
    Ss = 2,
    /// DS
    Ds = 3,
    /// FS
    Fs = 4,
    /// GS
    Gs = 5,
}

impl SegReg {
    /// All, by encoding.
    pub const ALL: [SegReg; 6] = [SegReg::Es, SegReg::Cs, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs];
}

/// Segment number of an operand that has none: its base is always zero and its limit is not checked.
pub(crate) const FLAT: u8 = 6;

/// Attributes of a descriptor: bits 55:52 and 47:40 of the descriptor, as VMCB and VMCS keep them.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct SegmentAttributes {
    /// Type field: code/data, expand-down or conforming, writable or readable, accessed; system type when `s` is clear.
    #[bits(4)]
    pub kind: u8,
    /// Code or data (1), or system (0).
    pub s: bool,
    /// Descriptor privilege level.
    #[bits(2)]
    pub dpl: u8,
    /// Present.
    pub p: bool,
    /// Free for software.
    pub avl: bool,
    /// 64-bit code.
    pub l: bool,
    /// Default size (code), big (stack, expand-down).
    pub db: bool,
    /// Limit was in pages.
    pub g: bool,
    #[bits(4)]
    __: u8,
}

impl SegmentAttributes {
    /// Whether this is a code segment.
    pub const fn is_code(self) -> bool {
        self.s() && self.kind() & 8 != 0
    }
    /// Whether data may be read through it.
    pub const fn is_readable(self) -> bool {
        self.kind() & 8 == 0 || self.kind() & 2 != 0
    }
    /// Whether data may be written through it.
    pub const fn is_writable(self) -> bool {
        self.kind() & 8 == 0 && self.kind() & 2 != 0
    }
    /// Whether this is an expand-down data segment.
    pub const fn is_expand_down(self) -> bool {
        self.kind() & 0b1100 == 0b0100
    }
    /// Whether this is a conforming code segment.
    pub const fn is_conforming(self) -> bool {
        self.kind() & 0b1100 == 0b1100
    }
}

/// A loaded segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes: the last offset of an expand-up segment.
    pub limit: u32,
    /// Attributes; not present (P=0) means that the register holds a null selector and must not be used.
    pub attributes: SegmentAttributes,
}

impl Segment {
    /// A null segment.
    pub const NULL: Segment = Segment { selector: 0, base: 0, limit: 0, attributes: SegmentAttributes::from_bits(0) };

    /// A real-mode segment: base is selector times 16, limit 64 KiB, readable and writable.
    pub const fn real(selector: u16) -> Segment {
        Segment {
            selector,
            base: (selector as u64) << 4,
            limit: 0xffff,
            attributes: SegmentAttributes::from_bits(0x93),
        }
    }

    /// Whether `len` bytes at `offset` lie inside the limit.
    pub const fn contains(&self, offset: u64, len: u64) -> bool {
        let Some(last) = offset.checked_add(len.saturating_sub(1)) else { return false };
        if self.attributes.is_expand_down() {
            let top = if self.attributes.db() { u32::MAX as u64 } else { 0xffff };
            offset > self.limit as u64 && last <= top
        } else {
            last <= self.limit as u64
        }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: Gva,
    /// Last byte of the table, relative to the base.
    pub limit: u16,
}

/// All of segmentation's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    /// ES, CS, SS, DS, FS, GS by encoding.
    pub regs: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table.
    pub idtr: DescriptorTable,
}

impl Segments {
    /// The state after RESET: real mode at F000:FFF0.
    pub fn reset() -> Segments {
        let system = |kind| Segment {
            selector: 0,
            base: 0,
            limit: 0xffff,
            attributes: SegmentAttributes::new().with_p(true).with_kind(kind),
        };
        let mut regs = [Segment::real(0); 6];
        regs[SegReg::Cs as usize] = Segment {
            selector: 0xf000,
            base: 0xffff_0000,
            limit: 0xffff,
            attributes: SegmentAttributes::from_bits(0x9b),
        };
        let table = DescriptorTable { base: Gva::new(0), limit: 0xffff };
        Segments { regs, ldtr: system(2), tr: system(11), gdtr: table, idtr: table }
    }

    /// One of the six.
    #[inline]
    pub fn get(&self, reg: SegReg) -> &Segment {
        &self.regs[reg as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_expand_up_and_down() {
        let mut s = Segment { limit: 0xfff, ..Segment::real(0) };
        assert!(s.contains(0, 0x1000) && !s.contains(1, 0x1000) && !s.contains(u64::MAX, 2));
        s.attributes.set_kind(0b0111);
        assert!(!s.contains(0xfff, 1) && s.contains(0x1000, 1) && s.contains(0xffff, 1) && !s.contains(0xffff, 2));
        s.attributes.set_db(true);
        assert!(s.contains(0xffff, 2) && s.contains(0xffff_ffff, 1) && !s.contains(0xffff_ffff, 2));
    }
}
