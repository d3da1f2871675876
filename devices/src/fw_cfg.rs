//! The firmware configuration interface (QEMU specification "QEMU Firmware Configuration (fw_cfg) Device").
//!
//! [`FwCfg`] is the door: items are numbered byte strings, some of them named files listed in a directory. The guest
//! selects an item at port 0x510, reads it byte by byte at 0x511, or gives the address of a request at 0x514 to
//! 0x51b. Such a request is carried out by [`FwCfg::run_dma`] when the machine next lends its memory; until then the
//! guest sees its control word unchanged, which the specification provides for.
//!
//! Left out: writing items (a DMA write reports an error).

use std::collections::BTreeMap;

use emu_core::addr::Gpa;

use crate::bus::{DmaPort, Width};

/// Well-known item numbers.
pub mod key {
    /// "QEMU".
    pub const SIGNATURE: u16 = 0x00;
    /// Features: bit 0 the traditional interface, bit 1 DMA.
    pub const ID: u16 = 0x01;
    /// Memory below and above 4 GiB in bytes, 64 bits.
    pub const RAM_SIZE: u16 = 0x03;
    /// Processors at boot, 16 bits.
    pub const NB_CPUS: u16 = 0x05;
    /// Kernel: load address, 32 bits.
    pub const KERNEL_ADDR: u16 = 0x07;
    /// Kernel: length, 32 bits.
    pub const KERNEL_SIZE: u16 = 0x08;
    /// Kernel: entry point, 32 bits.
    pub const KERNEL_ENTRY: u16 = 0x10;
    /// Initial RAM disk: load address, 32 bits.
    pub const INITRD_ADDR: u16 = 0x0a;
    /// Initial RAM disk: length, 32 bits.
    pub const INITRD_SIZE: u16 = 0x0b;
    /// Highest APIC ID + 1, 16 bits.
    pub const MAX_CPUS: u16 = 0x0f;
    /// Kernel: contents.
    pub const KERNEL_DATA: u16 = 0x11;
    /// Initial RAM disk: contents.
    pub const INITRD_DATA: u16 = 0x12;
    /// Command line: load address, 32 bits.
    pub const CMDLINE_ADDR: u16 = 0x13;
    /// Command line: length with its NUL, 32 bits.
    pub const CMDLINE_SIZE: u16 = 0x14;
    /// Command line: contents.
    pub const CMDLINE_DATA: u16 = 0x15;
    /// Real-mode setup code: load address, 32 bits.
    pub const SETUP_ADDR: u16 = 0x16;
    /// Real-mode setup code: length, 32 bits.
    pub const SETUP_SIZE: u16 = 0x17;
    /// Real-mode setup code: contents.
    pub const SETUP_DATA: u16 = 0x18;
    /// The directory of named files.
    pub const FILE_DIR: u16 = 0x19;
    /// The first named file.
    pub const FILE_FIRST: u16 = 0x20;
}

/// Where the DMA address register begins.
const DMA_SIGNATURE: u64 = 0x5145_4d55_2043_4647;
const DMA_ERROR: u32 = 1 << 0;
const DMA_READ: u32 = 1 << 1;
const DMA_SKIP: u32 = 1 << 2;
const DMA_SELECT: u32 = 1 << 3;
const DMA_WRITE: u32 = 1 << 4;
/// Longest name of a file with its NUL.
const NAME: usize = 56;

/// A port of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// 0x510: item selector (16 bits); 0x511 under a byte access is [`Reg::Data`].
    Selector,
    /// 0x511: the next byte.
    Data,
    /// 0x514 to 0x517: high half of the DMA address, big-endian.
    DmaHigh,
    /// 0x518 to 0x51b: low half; writing it starts the request.
    DmaLow,
}

/// Which register a port reaches.
pub const fn decode(port: u16) -> Option<Reg> {
    match port {
        0x510 => Some(Reg::Selector),
        0x511 => Some(Reg::Data),
        0x514 => Some(Reg::DmaHigh),
        0x518 => Some(Reg::DmaLow),
        _ => None,
    }
}

/// A stretch of memory in the "etc/e820" file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820 {
    /// First byte.
    pub base: Gpa,
    /// Bytes.
    pub length: u64,
    /// 1 is RAM, 2 reserved, 3 ACPI tables, 4 ACPI NVS.
    pub kind: u32,
}

/// The interface and what it offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    names: Vec<(String, u16)>,
    selected: u16,
    offset: usize,
    dma_high: u32,
    pending: Option<Gpa>,
}

impl FwCfg {
    /// An interface with signature, features and an empty directory.
    pub fn new() -> FwCfg {
        let mut this =
            FwCfg { items: BTreeMap::new(), names: Vec::new(), selected: 0, offset: 0, dma_high: 0, pending: None };
        this.set(key::SIGNATURE, b"QEMU".to_vec());
        this.set(key::ID, 3_u32.to_le_bytes().to_vec());
        this.write_directory();
        this
    }

    /// Sets item `key` (bits 14 and 15 are not part of a number).
    pub fn set(&mut self, key: u16, bytes: Vec<u8>) {
        self.items.insert(key & 0x3fff, bytes);
    }
    /// Sets an item to a 16-bit number.
    pub fn set_u16(&mut self, key: u16, value: u16) {
        self.set(key, value.to_le_bytes().to_vec());
    }
    /// Sets an item to a 32-bit number.
    pub fn set_u32(&mut self, key: u16, value: u32) {
        self.set(key, value.to_le_bytes().to_vec());
    }
    /// Sets an item to a 64-bit number.
    pub fn set_u64(&mut self, key: u16, value: u64) {
        self.set(key, value.to_le_bytes().to_vec());
    }
    /// The contents of an item.
    pub fn item(&self, key: u16) -> Option<&[u8]> {
        self.items.get(&(key & 0x3fff)).map(Vec::as_slice)
    }

    /// Adds a named file, or replaces it; its item number. Names are cut at 55 bytes.
    pub fn add_file(&mut self, name: &str, bytes: Vec<u8>) -> u16 {
        let key = match self.names.iter().find(|(known, _)| known == name) {
            Some(&(_, key)) => key,
            None => {
                let key = key::FILE_FIRST + self.names.len() as u16;
                self.names.push((name.to_owned(), key));
                key
            }
        };
        self.set(key, bytes);
        self.write_directory();
        key
    }

    /// Sets the "etc/e820" file.
    pub fn set_e820(&mut self, map: &[E820]) {
        let mut bytes = Vec::with_capacity(map.len() * 20);
        for entry in map {
            bytes.extend(entry.base.raw().to_le_bytes());
            bytes.extend(entry.length.to_le_bytes());
            bytes.extend(entry.kind.to_le_bytes());
        }
        self.add_file("etc/e820", bytes);
    }

    /// Sets the command line items; a NUL is added.
    pub fn set_cmdline(&mut self, line: &str, load_at: u32) {
        let mut bytes = line.as_bytes().to_vec();
        bytes.push(0);
        self.set_u32(key::CMDLINE_ADDR, load_at);
        self.set_u32(key::CMDLINE_SIZE, bytes.len() as u32);
        self.set(key::CMDLINE_DATA, bytes);
    }

    /// Sets the kernel items.
    pub fn set_kernel(&mut self, bytes: Vec<u8>, load_at: u32) {
        self.set_u32(key::KERNEL_ADDR, load_at);
        self.set_u32(key::KERNEL_SIZE, bytes.len() as u32);
        self.set(key::KERNEL_DATA, bytes);
    }

    /// Sets the initial RAM disk items.
    pub fn set_initrd(&mut self, bytes: Vec<u8>, load_at: u32) {
        self.set_u32(key::INITRD_ADDR, load_at);
        self.set_u32(key::INITRD_SIZE, bytes.len() as u32);
        self.set(key::INITRD_DATA, bytes);
    }

    fn write_directory(&mut self) {
        let mut sorted: Vec<_> = self.names.iter().collect();
        sorted.sort();
        let mut bytes = (sorted.len() as u32).to_be_bytes().to_vec();
        for (name, key) in sorted {
            let size = self.items.get(key).map_or(0, Vec::len) as u32;
            bytes.extend(size.to_be_bytes());
            bytes.extend(key.to_be_bytes());
            bytes.extend([0; 2]);
            let mut field = [0; NAME];
            for (place, byte) in field[..NAME - 1].iter_mut().zip(name.bytes()) {
                *place = byte;
            }
            bytes.extend(field);
        }
        self.set(key::FILE_DIR, bytes);
    }

    fn next_byte(&mut self) -> u8 {
        let byte = self.items.get(&self.selected).and_then(|item| item.get(self.offset));
        self.offset = self.offset.saturating_add(1);
        byte.copied().unwrap_or(0)
    }

    const fn select(&mut self, key: u16) {
        self.selected = key & 0x3fff;
        self.offset = 0;
    }

    /// Reads a register. Past an item's end the data port gives zeros.
    pub fn read(&mut self, reg: Reg, width: Width) -> u32 {
        match reg {
            Reg::Data => self.next_byte() as u32,
            Reg::Selector => width.mask32(),
            Reg::DmaHigh => ((DMA_SIGNATURE >> 32) as u32).swap_bytes() & width.mask32(),
            Reg::DmaLow => (DMA_SIGNATURE as u32).swap_bytes() & width.mask32(),
        }
    }

    /// Writes a register; whether a DMA request is now waiting.
    pub fn write(&mut self, reg: Reg, width: Width, value: u32) -> bool {
        match (reg, width) {
            (Reg::Selector, _) => self.select(value as u16),
            (Reg::DmaHigh, Width::Dword) => self.dma_high = value.swap_bytes(),
            (Reg::DmaLow, Width::Dword) => {
                let address = (self.dma_high as u64) << 32 | value.swap_bytes() as u64;
                self.dma_high = 0;
                self.pending = Some(Gpa::new(address));
            }
            _ => {}
        }
        self.pending.is_some()
    }

    /// Carries out the waiting request, if there is one. Its control word says how it ended.
    pub fn run_dma(&mut self, memory: &mut dyn DmaPort) {
        let Some(at) = self.pending.take() else { return };
        let mut request = [0; 16];
        if memory.read(at, &mut request).is_err() {
            return;
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3, address @ ..] = request;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let target = Gpa::new(u64::from_be_bytes(address));
        if control & DMA_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let ok = if control & DMA_READ != 0 {
            self.copy_out(target, length, memory)
        } else if control & DMA_WRITE != 0 {
            false
        } else {
            if control & DMA_SKIP != 0 {
                self.offset = self.offset.saturating_add(length);
            }
            true
        };
        let status = if ok { 0 } else { DMA_ERROR };
        // A control word that cannot be written back leaves the guest waiting, as it would on hardware.
        let _ = memory.write(at, &status.to_be_bytes());
    }

    /// Copies `length` bytes of the selected item, then zeros, to `target`.
    fn copy_out(&mut self, target: Gpa, length: usize, memory: &mut dyn DmaPort) -> bool {
        const ZEROS: [u8; 4096] = [0; 4096];
        let item = self.items.get(&self.selected).map_or(&[][..], Vec::as_slice);
        let rest = item.get(self.offset..).unwrap_or(&[]);
        let data = &rest[..rest.len().min(length)];
        self.offset = self.offset.saturating_add(length);
        if memory.write(target, data).is_err() {
            return false;
        }
        let mut done = data.len();
        while done < length {
            let chunk = (length - done).min(ZEROS.len());
            let Some(at) = target.checked_add(done as u64) else { return false };
            if memory.write(at, &ZEROS[..chunk]).is_err() {
                return false;
            }
            done += chunk;
        }
        true
    }
}

impl Default for FwCfg {
    fn default() -> FwCfg {
        FwCfg::new()
    }
}

#[cfg(test)]
mod tests;
