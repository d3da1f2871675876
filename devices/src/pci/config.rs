//! Configuration space of a type 0 function (PCI Local Bus specification 3.0, "Configuration Space Organization").
//!
//! [`ConfigSpace`] keeps 256 bytes with a mask of the bits software may write, so that BAR sizing, command bits and
//! device registers all follow from one rule. Bits that are cleared by writing ones have a second mask.

use emu_core::addr::Gpa;

use crate::bus::{Port, Width};

/// Offsets of the header's registers.
pub mod reg {
    /// Vendor ID, 16 bits.
    pub const VENDOR: u8 = 0x00;
    /// Device ID, 16 bits.
    pub const DEVICE: u8 = 0x02;
    /// Command, 16 bits.
    pub const COMMAND: u8 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u8 = 0x06;
    /// Revision ID; the class code is the three bytes after it.
    pub const REVISION: u8 = 0x08;
    /// Header type.
    pub const HEADER_TYPE: u8 = 0x0e;
    /// First base address register.
    pub const BAR0: u8 = 0x10;
    /// Subsystem vendor ID, 16 bits.
    pub const SUBSYSTEM_VENDOR: u8 = 0x2c;
    /// Subsystem ID, 16 bits.
    pub const SUBSYSTEM: u8 = 0x2e;
    /// Offset of the first capability.
    pub const CAPABILITIES: u8 = 0x34;
    /// Interrupt line: scratch for software.
    pub const INTERRUPT_LINE: u8 = 0x3c;
    /// Interrupt pin: 0 none, 1 INTA#.
    pub const INTERRUPT_PIN: u8 = 0x3d;
}

const COMMAND_IO: u8 = 1 << 0;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_MASTER: u8 = 1 << 2;
/// Bit 10 of the command register, in its second byte.
const COMMAND_NO_INTX: u8 = 1 << 2;

/// What identifies a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code: base class, subclass, interface from bit 23 down.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Subsystem vendor and device ID.
    pub subsystem: (u16, u16),
    /// INTA# (1) to INTD# (4), or 0 for none.
    pub interrupt_pin: u8,
}

/// Kind of a base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes two registers.
    Memory64,
}

/// A base address register as a device declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Kind.
    pub kind: BarKind,
    /// Bytes; rounded up to a power of two of at least 4 (I/O) or 16 (memory).
    pub size: u64,
}

/// Where a base address register currently decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarRange {
    /// Ports.
    Io {
        /// First port.
        base: Port,
        /// How many.
        size: u32,
    },
    /// Memory.
    Memory {
        /// First byte.
        base: Gpa,
        /// How many.
        size: u64,
    },
}

/// 256 bytes of configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
    clear_on_one: [u8; 256],
    bars: [Option<Bar>; 6],
}

impl ConfigSpace {
    /// The space of a function without BARs or capabilities.
    pub fn new(identity: Identity) -> ConfigSpace {
        let mut this = ConfigSpace { bytes: [0; 256], writable: [0; 256], clear_on_one: [0; 256], bars: [None; 6] };
        this.set(reg::VENDOR, &identity.vendor.to_le_bytes());
        this.set(reg::DEVICE, &identity.device.to_le_bytes());
        this.set(reg::REVISION, &(identity.class << 8 | identity.revision as u32).to_le_bytes());
        this.set(reg::SUBSYSTEM_VENDOR, &identity.subsystem.0.to_le_bytes());
        this.set(reg::SUBSYSTEM, &identity.subsystem.1.to_le_bytes());
        this.set(reg::INTERRUPT_PIN, &[identity.interrupt_pin]);
        // I/O, memory, bus master, parity, SERR#, INTx disable.
        this.allow(reg::COMMAND, &0x0547_u16.to_le_bytes());
        this.allow(reg::INTERRUPT_LINE, &[0xff]);
        this.clear_on_one[reg::STATUS as usize + 1] = 0xf9;
        this
    }

    /// Sets bytes as hardware; what would lie past the end is dropped.
    pub fn set(&mut self, offset: u8, bytes: &[u8]) {
        for (place, byte) in self.bytes[offset as usize..].iter_mut().zip(bytes) {
            *place = *byte;
        }
    }
    /// Lets software write the bits set in `mask`.
    pub fn allow(&mut self, offset: u8, mask: &[u8]) {
        for (place, byte) in self.writable[offset as usize..].iter_mut().zip(mask) {
            *place |= *byte;
        }
    }

    /// Declares register `index` (0 to 5); a 64-bit one takes the next register too and so cannot be the last.
    pub fn set_bar(&mut self, index: u8, bar: Bar) {
        if index >= 6 || bar.kind == BarKind::Memory64 && index == 5 {
            return;
        }
        let least = if bar.kind == BarKind::Io { 4 } else { 16 };
        let bar = Bar { size: bar.size.clamp(least, 1 << 62).next_power_of_two(), ..bar };
        self.bars[index as usize] = Some(bar);
        let at = reg::BAR0 + index * 4;
        let mask = !(bar.size - 1);
        match bar.kind {
            BarKind::Io => {
                self.set(at, &1_u32.to_le_bytes());
                self.allow(at, &(mask as u32 & 0xffff).to_le_bytes());
            }
            BarKind::Memory32 => self.allow(at, &(mask as u32).to_le_bytes()),
            BarKind::Memory64 => {
                self.set(at, &4_u32.to_le_bytes());
                self.allow(at, &mask.to_le_bytes());
            }
        }
    }

    /// Appends a capability of `bytes` (ID and a placeholder for the next pointer first) at `offset`, in front of those
    /// there already.
    pub fn add_capability(&mut self, offset: u8, bytes: &[u8]) {
        let next = self.bytes[reg::CAPABILITIES as usize];
        self.set(offset, bytes);
        self.set(offset.saturating_add(1), &[next]);
        self.set(reg::CAPABILITIES, &[offset]);
        self.bytes[reg::STATUS as usize] |= 1 << 4;
    }

    const fn command(&self, bit: u8) -> bool {
        self.bytes[reg::COMMAND as usize] & bit != 0
    }
    /// Whether the function may master the bus (DMA and MSI).
    pub const fn bus_master(&self) -> bool {
        self.command(COMMAND_MASTER)
    }

    /// Whether the function may assert its interrupt pin: Interrupt Disable is clear.
    pub const fn intx_allowed(&self) -> bool {
        self.bytes[reg::COMMAND as usize + 1] & COMMAND_NO_INTX == 0
    }
    /// Register `index` as it was declared.
    pub fn bar(&self, index: u8) -> Option<Bar> {
        *self.bars.get(index as usize)?
    }

    /// Where register `index` decodes now; `None` while its kind of decoding is off.
    pub fn bar_range(&self, index: u8) -> Option<BarRange> {
        let bar = (*self.bars.get(index as usize)?)?;
        let at = reg::BAR0 + index * 4;
        let low = self.dword(at);
        Some(match bar.kind {
            BarKind::Io if self.command(COMMAND_IO) => {
                BarRange::Io { base: Port((low & 0xfffc) as u16), size: bar.size as u32 }
            }
            BarKind::Memory32 if self.command(COMMAND_MEMORY) => {
                BarRange::Memory { base: Gpa::new((low & !0xf) as u64), size: bar.size }
            }
            BarKind::Memory64 if self.command(COMMAND_MEMORY) => {
                let base = (self.dword(at + 4) as u64) << 32 | (low & !0xf) as u64;
                BarRange::Memory { base: Gpa::new(base), size: bar.size }
            }
            _ => return None,
        })
    }

    /// The aligned dword at `offset`.
    pub fn dword(&self, offset: u8) -> u32 {
        self.read(offset & !3, Width::Dword)
    }

    /// Reads; bytes past the end are ones.
    pub fn read(&self, offset: u8, width: Width) -> u32 {
        let mut value = 0;
        for i in 0..width.bytes().min(4) {
            let byte = self.bytes.get(offset as usize + i as usize).copied().unwrap_or(0xff);
            value |= (byte as u32) << (i * 8);
        }
        value
    }

    /// Writes what software may write.
    pub fn write(&mut self, offset: u8, width: Width, value: u32) {
        for i in 0..width.bytes().min(4) {
            let at = offset as usize + i as usize;
            let byte = (value >> (i * 8)) as u8;
            if let Some(place) = self.bytes.get_mut(at) {
                let mask = self.writable[at];
                *place = (*place & !mask | byte & mask) & !(byte & self.clear_on_one[at]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            class: 0x01_8000,
            revision: 1,
            subsystem: (0x1af4, 2),
            interrupt_pin: 1,
        })
    }

    #[test]
    fn sizing_gives_the_complement_of_the_size_for_every_kind() {
        for shift in 4..31 {
            let size = 1_u64 << shift;
            let mut c = space();
            c.set_bar(0, Bar { kind: BarKind::Memory32, size });
            c.set_bar(2, Bar { kind: BarKind::Memory64, size: size << 8 });
            for at in [0x10, 0x18, 0x1c] {
                c.write(at, Width::Dword, u32::MAX);
            }
            assert_eq!(c.dword(0x10), !(size as u32 - 1));
            let wide = (c.dword(0x1c) as u64) << 32 | (c.dword(0x18) & !0xf) as u64;
            assert_eq!(wide, !((size << 8) - 1));
            assert_eq!(c.dword(0x18) & 0xf, 4);
        }
        let mut c = space();
        c.set_bar(1, Bar { kind: BarKind::Io, size: 0x21 });
        c.write(0x14, Width::Dword, u32::MAX);
        assert_eq!(c.dword(0x14), 0xffc1);
    }

    #[test]
    fn a_bar_decodes_only_while_the_command_register_says_so() {
        let mut c = space();
        c.set_bar(0, Bar { kind: BarKind::Memory32, size: 0x1000 });
        c.set_bar(1, Bar { kind: BarKind::Io, size: 0x20 });
        c.write(0x10, Width::Dword, 0xfeb0_0fff);
        c.write(0x14, Width::Dword, 0xc020);
        assert_eq!((c.bar_range(0), c.bar_range(1)), (None, None));
        c.write(4, Width::Word, 3);
        assert_eq!(c.bar_range(0), Some(BarRange::Memory { base: Gpa::new(0xfeb0_0000), size: 0x1000 }));
        assert_eq!(c.bar_range(1), Some(BarRange::Io { base: Port(0xc020), size: 0x20 }));
        assert_eq!(c.bar_range(2), None);
    }

    #[test]
    fn identity_cannot_be_written_and_capabilities_chain() {
        let mut c = space();
        c.add_capability(0x40, &[0x11, 0, 1, 2]);
        c.add_capability(0x50, &[0x09, 0]);
        for offset in (0..=0xfc).step_by(4) {
            c.write(offset, Width::Dword, u32::MAX);
        }
        assert_eq!(c.dword(0), 0x1042_1af4);
        assert_eq!(c.dword(8), 0x0180_0001);
        assert_eq!(c.read(reg::COMMAND, Width::Word), 0x0547);
        assert_eq!(c.read(reg::STATUS, Width::Word), 0x10);
        assert_eq!(c.read(0x34, Width::Byte), 0x50);
        assert_eq!(c.read(0x51, Width::Byte), 0x40);
        assert_eq!(c.read(0x41, Width::Byte), 0);
        assert_eq!(c.read(0xff, Width::Dword), 0xffff_ff00);
    }
}
