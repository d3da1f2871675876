//! The ACPI tables of the board (ACPI 6.5, "ACPI Software Programming Model"), laid out at a guest physical base.
//!
//! [`AcpiImage::build`] gives bytes to copy to [`AcpiImage::base`]: RSDP first, then FACS, DSDT, FADT, MADT and XSDT.
//! The RSDP is found by scanning when the base lies on a 16-byte boundary from 0xe0000 to 0xfffff; a boot protocol
//! can pass [`AcpiImage::rsdp`] instead.

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, facs::FACS, rsdp::Rsdp, xsdt::XSDT};
use emu_core::addr::Gpa;
use thiserror::Error;

use super::{aml, pm};
use crate::bus::Port;

const OEM: [u8; 6] = *b"BIFOLD";
const OEM_TABLE: [u8; 8] = *b"BIFOLDPC";
const REVISION: u32 = 1;

/// The customary place: the start of the BIOS area that is searched for the RSDP.
pub const DEFAULT_BASE: Gpa = Gpa::new(0xe_0000);

/// What the tables describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Where the image will lie; a multiple of 64 (the FACS wants it).
    pub base: Gpa,
    /// APIC IDs, the bootstrap processor's first. IDs from 255 on are listed as x2APICs.
    pub apic_ids: Vec<u32>,
    /// ID of the I/O APIC.
    pub ioapic_id: u8,
    /// Width of the PM timer.
    pub pm_timer: pm::TimerWidth,
    /// First and last byte of the memory window for PCI BARs.
    pub pci_window: (u32, u32),
}

impl AcpiConfig {
    /// Tables at [`DEFAULT_BASE`] for `cpus` processors with APIC IDs 0, 1, ..
    pub fn new(cpus: u16) -> AcpiConfig {
        AcpiConfig {
            base: DEFAULT_BASE,
            apic_ids: (0..cpus as u32).collect(),
            ioapic_id: 0,
            pm_timer: pm::TimerWidth::default(),
            pci_window: (0xe000_0000, 0xfebf_ffff),
        }
    }
}

/// The tables cannot be built as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AcpiError {
    /// The base is not a multiple of 64.
    #[error("ACPI base {0} is not a multiple of 64 bytes")]
    Unaligned(Gpa),
    /// The image would reach past 4 GiB, where the FACS and DSDT pointers cannot follow.
    #[error("ACPI base {0} leaves no room for the tables below 4 GiB")]
    TooHigh(Gpa),
    /// The PCI window's first byte lies behind its last.
    #[error("PCI window from {0:#x} to {1:#x} is empty")]
    EmptyWindow(u32, u32),
}

/// Tables ready to be copied into guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiImage {
    /// Where the bytes go.
    pub base: Gpa,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Address of the RSDP.
    pub rsdp: Gpa,
}

/// Grows the image a table at a time and keeps their addresses.
struct Layout {
    base: Gpa,
    bytes: Vec<u8>,
}

impl Layout {
    /// Appends a table at the next multiple of 64 and gives its address.
    fn place(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let at = self.base.raw() + self.bytes.len() as u64;
        self.bytes.extend(table);
        at
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

impl AcpiImage {
    /// Builds the tables.
    ///
    /// # Errors
    /// See [`AcpiError`].
    pub fn build(config: &AcpiConfig) -> Result<AcpiImage, AcpiError> {
        let base = config.base;
        if !base.raw().is_multiple_of(64) {
            return Err(AcpiError::Unaligned(base));
        }
        if config.pci_window.0 > config.pci_window.1 {
            return Err(AcpiError::EmptyWindow(config.pci_window.0, config.pci_window.1));
        }
        // The tables of the largest board stay far below a mebibyte.
        if base.raw() > (1 << 32) - (1 << 20) {
            return Err(AcpiError::TooHigh(base));
        }
        let mut layout = Layout { base, bytes: vec![0; Rsdp::len()] };
        let facs = layout.place(&bytes_of(&FACS::new()));
        let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, REVISION);
        dsdt.append_slice(&aml::definition_block(config));
        let dsdt = layout.place(dsdt.as_slice());
        let fadt = layout.place(&fadt(config, facs as u32, dsdt as u32));
        let madt = layout.place(madt(config).as_slice());
        let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
        xsdt.add_entry(fadt);
        xsdt.add_entry(madt);
        let xsdt = layout.place(&bytes_of(&xsdt));
        let rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
        layout.bytes[..rsdp.len()].copy_from_slice(&rsdp);
        Ok(AcpiImage { base, bytes: layout.bytes, rsdp: base })
    }
}

fn io(port: Port, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, port.0 as u64)
}

fn fadt(config: &AcpiConfig, facs: u32, dsdt: u32) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, REVISION)
        .dsdt_32(dsdt)
        .firmware_ctrl_32(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .gpe_info(pm::GPE0.0 as u32, 0, 4, 0, 0);
    if config.pm_timer == pm::TimerWidth::Bits32 {
        fadt = fadt.flag(Flags::TmrValExt);
    }
    fadt.x_dsdt = (dsdt as u64).into();
    fadt.sci_int = (pm::SCI as u16).into();
    // No SMI command port: the hardware is in ACPI mode from the start.
    fadt.pm1a_evt_blk = (pm::PM1A_EVT.0 as u32).into();
    fadt.pm1a_cnt_blk = (pm::PM1A_CNT.0 as u32).into();
    fadt.pm_tmr_blk = (pm::PM_TMR.0 as u32).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    // C2 and C3 are not there.
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.century = 0x32;
    // Legacy devices yes; neither keyboard controller nor VGA; the RTC is there.
    fadt.iapc_boot_arch = (1 | 1 << 2).into();
    fadt.reset_reg = io(Port(0xcf9), 8, AccessSize::ByteAccess);
    fadt.reset_value = 0x06;
    fadt.x_pm1a_evt_blk = io(pm::PM1A_EVT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io(pm::PM1A_CNT, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = io(pm::PM_TMR, 32, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = io(pm::GPE0, 32, AccessSize::ByteAccess);
    bytes_of(&fadt.finalize())
}

/// Interrupt source override flags: polarity and trigger, as the MPS INTI field has them.
#[derive(Clone, Copy)]
#[repr(u16)]
enum Inti {
    Conforms = 0,
    EdgeHigh = 0b0101,
    LevelHigh = 0b1101,
}

/// MADT structures (ACPI 6.5, "Multiple APIC Description Table").
fn madt(config: &AcpiConfig) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 44, 5, OEM, OEM_TABLE, REVISION);
    madt.write_u32(36, 0xfee0_0000);
    // PCAT_COMPAT: there is a pair of 8259As.
    madt.write_u32(40, 1);
    let mut wide = false;
    for (uid, &id) in config.apic_ids.iter().enumerate() {
        let mut entry = Vec::new();
        if id < 255 && uid < 255 {
            entry.extend([0, 8, uid as u8, id as u8]);
            entry.extend(1_u32.to_le_bytes());
        } else {
            wide = true;
            entry.extend([9, 16, 0, 0]);
            entry.extend(id.to_le_bytes());
            entry.extend(1_u32.to_le_bytes());
            entry.extend((uid as u32).to_le_bytes());
        }
        madt.append_slice(&entry);
    }
    let mut ioapic = vec![1, 12, config.ioapic_id, 0];
    ioapic.extend(0xfec0_0000_u32.to_le_bytes());
    ioapic.extend(0_u32.to_le_bytes());
    madt.append_slice(&ioapic);
    let mut source_override = |source: u8, gsi: u32, inti: Inti| {
        let mut entry = vec![2, 10, 0, source];
        entry.extend(gsi.to_le_bytes());
        entry.extend((inti as u16).to_le_bytes());
        madt.append_slice(&entry);
    };
    source_override(0, 2, Inti::Conforms);
    source_override(pm::SCI, pm::SCI as u32, Inti::LevelHigh);
    // NMI on LINT1 of every processor.
    let mut nmi = vec![4, 6, 0xff];
    nmi.extend((Inti::EdgeHigh as u16).to_le_bytes());
    nmi.push(1);
    madt.append_slice(&nmi);
    if wide {
        let mut nmi = vec![0x0a, 12];
        nmi.extend((Inti::EdgeHigh as u16).to_le_bytes());
        nmi.extend(u32::MAX.to_le_bytes());
        nmi.extend([1, 0, 0, 0]);
        madt.append_slice(&nmi);
    }
    madt
}

#[cfg(test)]
mod tests;
