//! Descriptors and selectors as they lie in memory, and how they are fetched.
//!
//! APM vol. 2, "Segment Descriptors" and "Gate Descriptors". A fetch says by which exception a selector outside its
//! table is refused, because that depends on who asks.

use emu_core::Exception;
use emu_core::exception::SelectorError;
use emu_core::regs::Efer;

use crate::cpu::Cpu;
use crate::exit::Trap;
use crate::segment::{Segment, SegmentAttributes};

/// A selector: index, table indicator, requested privilege level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Selector(pub u16);

impl Selector {
    /// Index 0 of the GDT, whatever the RPL.
    pub const fn is_null(self) -> bool {
        self.0 & 0xfffc == 0
    }
    pub const fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }
    pub const fn is_local(self) -> bool {
        self.0 & 4 != 0
    }
    /// The same selector with another RPL.
    pub const fn with_rpl(self, rpl: u8) -> Selector {
        Selector(self.0 & 0xfffc | rpl as u16)
    }
    /// As an error code.
    pub const fn error(self) -> SelectorError {
        SelectorError::selector(self.0)
    }
}

/// What a descriptor with S clear is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SystemKind {
    Ldt,
    /// A TSS of 16-bit layout (32-bit and 64-bit ones share a type).
    Tss16 {
        busy: bool,
    },
    Tss {
        busy: bool,
    },
    CallGate16,
    CallGate,
    TaskGate,
    InterruptGate16,
    TrapGate16,
    InterruptGate,
    TrapGate,
    Reserved,
}

/// The first eight bytes of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor(pub u64);

impl Descriptor {
    pub const fn attributes(self) -> SegmentAttributes {
        SegmentAttributes::from_bits((self.0 >> 40 & 0xff | self.0 >> 44 & 0xf00) as u16)
    }
    /// Base address, as far as eight bytes hold it.
    pub const fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000
    }
    /// Limit in bytes.
    pub const fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.attributes().g() { raw << 12 | 0xfff } else { raw }
    }
    /// `None` for code and data.
    pub const fn system(self) -> Option<SystemKind> {
        let attributes = self.attributes();
        if attributes.s() {
            return None;
        }
        Some(match attributes.kind() {
            1 => SystemKind::Tss16 { busy: false },
            2 => SystemKind::Ldt,
            3 => SystemKind::Tss16 { busy: true },
            4 => SystemKind::CallGate16,
            5 => SystemKind::TaskGate,
            6 => SystemKind::InterruptGate16,
            7 => SystemKind::TrapGate16,
            9 => SystemKind::Tss { busy: false },
            11 => SystemKind::Tss { busy: true },
            12 => SystemKind::CallGate,
            14 => SystemKind::InterruptGate,
            15 => SystemKind::TrapGate,
            _ => SystemKind::Reserved,
        })
    }
    /// The register that this descriptor loads.
    pub const fn segment(self, selector: Selector) -> Segment {
        Segment { selector: selector.0, base: self.base(), limit: self.limit(), attributes: self.attributes() }
    }
    /// Of a gate: the selector it leads to.
    pub const fn gate_selector(self) -> Selector {
        Selector((self.0 >> 16) as u16)
    }
    /// Of a gate: the low 32 bits of the offset.
    pub const fn gate_offset(self) -> u64 {
        self.0 & 0xffff | self.0 >> 32 & 0xffff_0000
    }
}

/// #GP about a selector.
pub(crate) fn gp(selector: Selector) -> Trap {
    Exception::GeneralProtection(selector.error()).into()
}
/// #NP about a selector.
pub(crate) fn np(selector: Selector) -> Trap {
    Exception::SegmentNotPresent(selector.error()).into()
}
/// #SS about a selector.
pub(crate) fn ss(selector: Selector) -> Trap {
    Exception::StackFault(selector.error()).into()
}
/// #TS about a selector.
pub(crate) fn ts(selector: Selector) -> Trap {
    Exception::InvalidTss(selector.error()).into()
}

/// #GP(0)
pub(crate) fn gp0() -> Trap {
    Exception::GP0.into()
}

/// #UD
pub(crate) fn ud() -> Trap {
    Exception::InvalidOpcode.into()
}

impl Cpu {
    /// Whether long mode is active (64-bit or compatibility mode).
    pub fn is_long(&self) -> bool {
        self.control.efer.contains(Efer::LMA)
    }

    /// A linear address of a system structure: 32 bits outside long mode.
    pub fn system_linear(&self, base: u64, offset: u64) -> u64 {
        let linear = base.wrapping_add(offset);
        if self.is_long() { linear } else { linear & 0xffff_ffff }
    }

    /// Where `len` bytes of the descriptor of `selector` lie, if the table reaches that far.
    pub fn descriptor_linear(&self, selector: Selector, len: u64) -> Option<u64> {
        let offset = (selector.0 & 0xfff8) as u64;
        let (base, limit) = if selector.is_local() {
            let ldtr = &self.segments.ldtr;
            if !ldtr.attributes.p() || Selector(ldtr.selector).is_null() {
                return None;
            }
            (ldtr.base, ldtr.limit as u64)
        } else {
            (self.segments.gdtr.base.raw(), self.segments.gdtr.limit as u64)
        };
        (offset + len - 1 <= limit).then(|| self.system_linear(base, offset))
    }

    /// Fetches the descriptor of `selector`, or refuses with `refuse`.
    pub fn descriptor(&mut self, selector: Selector, refuse: fn(Selector) -> Trap) -> Result<Descriptor, Trap> {
        let linear = self.descriptor_linear(selector, 8).ok_or_else(|| refuse(selector))?;
        Ok(Descriptor(self.load_system(linear)?))
    }

    /// Fetches a descriptor that has sixteen bytes in long mode, with its upper half (zero outside long mode).
    pub fn wide_descriptor(
        &mut self,
        selector: Selector,
        refuse: fn(Selector) -> Trap,
    ) -> Result<(Descriptor, u64), Trap> {
        if !self.is_long() {
            return Ok((self.descriptor(selector, refuse)?, 0));
        }
        let linear = self.descriptor_linear(selector, 16).ok_or_else(|| refuse(selector))?;
        let raw: u128 = self.load_system(linear)?;
        Ok((Descriptor(raw as u64), (raw >> 64) as u64))
    }

    /// Sets the accessed bit of a code or data descriptor in memory and in the copy.
    pub fn mark_accessed(&mut self, selector: Selector, descriptor: Descriptor) -> Result<Descriptor, Trap> {
        const ACCESSED: u64 = 1 << 40;
        if descriptor.0 & ACCESSED == 0
            && let Some(linear) = self.descriptor_linear(selector, 8)
        {
            let marked = (descriptor.0 | ACCESSED) >> 40;
            self.store_system(linear.wrapping_add(5), marked as u8)?;
        }
        Ok(Descriptor(descriptor.0 | ACCESSED))
    }

    /// Changes the busy bit of a TSS descriptor in memory.
    pub fn mark_busy(&mut self, selector: Selector, busy: bool) -> Result<(), Trap> {
        let Some(linear) = self.descriptor_linear(selector, 8) else { return Ok(()) };
        let linear = linear.wrapping_add(5);
        let byte: u8 = self.load_system(linear)?;
        self.store_system(linear, if busy { byte | 2 } else { byte & !2 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_descriptor() {
        // Base 0x12345678, limit 0xabcde pages, type 0xb (code), S, DPL 3, P, AVL, D, G.
        let raw = 0x12da_fb34_5678_bcde_u64;
        let d = Descriptor(raw);
        assert_eq!(d.base(), 0x1234_5678);
        assert_eq!(d.limit(), 0xabcd_efff);
        let a = d.attributes();
        assert!(a.is_code() && a.p() && a.avl() && a.db() && a.g() && !a.l());
        assert_eq!((a.dpl(), a.kind()), (3, 0xb));
        assert_eq!(d.system(), None);
    }
}
