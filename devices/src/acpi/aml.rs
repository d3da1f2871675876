//! The DSDT: what the tables of [`super::tables`] cannot say, in AML.
//!
//! Processors, the PCI host bridge with its windows and interrupt routing, COM1, the RTC, and \_S5.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, PackageBuilder,
    ResourceTemplate, Scope,
};

use acpi_tables::Aml;

use crate::acpi::{AcpiConfig, pm};
use crate::pci::{SLOTS, intx_line};

/// Appends a device with `children`.
fn device(name: &str, children: Vec<&dyn Aml>, out: &mut Vec<u8>) {
    Device::new(name.into(), children).to_aml_bytes(out);
}

/// An interrupt descriptor: consumer, `level` or edge, active high.
fn interrupt(level: bool, line: u8) -> Interrupt {
    Interrupt::new(true, !level, false, false, line as u32)
}

fn processors(config: &AcpiConfig, out: &mut Vec<u8>) {
    for uid in 0..config.apic_ids.len() {
        let hid = Name::new("_HID".into(), &"ACPI0007");
        let uid_name = Name::new("_UID".into(), &(uid as u32));
        device(&format!("C{uid:03X}"), vec![&hid, &uid_name], out);
    }
}

/// _PRT: slot, pin and the global interrupt each reaches, for every slot but the bridges'.
fn routing() -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for slot in 2..SLOTS as u8 {
        for pin in 0..4_u8 {
            let address = (slot as u32) << 16 | 0xffff;
            let line = intx_line(slot, pin) as u32;
            table.add_element(&Package::new(vec![&address, &pin, &0_u8, &line]));
        }
    }
    table
}

fn host_bridge(config: &AcpiConfig, out: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A03"));
    let address = Name::new("_ADR".into(), &0_u32);
    let uid = Name::new("_UID".into(), &0_u32);
    let bus = AddressSpace::new_bus_number(0_u16, 0);
    let config_ports = IO::new(0xcf8, 0xcf8, 1, 8);
    let low_ports = AddressSpace::new_io(0_u16, 0x0cf7, None);
    let high_ports = AddressSpace::new_io(0x0d00_u16, 0xffff, None);
    let (first, last) = config.pci_window;
    let window = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    let resources = ResourceTemplate::new(vec![&bus, &config_ports, &low_ports, &high_ports, &window]);
    let crs = Name::new("_CRS".into(), &resources);
    let prt = Name::new("_PRT".into(), &routing());
    device("PCI0", vec![&hid, &address, &uid, &crs, &prt], out);
}

fn serial(out: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &0_u32);
    let (port, line) = crate::uart::COM1;
    let ports = IO::new(port.0, port.0, 0, 8);
    let irq = interrupt(false, line);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &irq]));
    device("COM1", vec![&hid, &uid, &crs], out);
}

fn clock(out: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0B00"));
    let ports = IO::new(0x70, 0x70, 0, 2);
    let irq = interrupt(false, 8);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &irq]));
    device("RTC0", vec![&hid, &crs], out);
}

/// The definition block without its table header.
pub fn definition_block(config: &AcpiConfig) -> Vec<u8> {
    let mut inside = Vec::new();
    processors(config, &mut inside);
    host_bridge(config, &mut inside);
    serial(&mut inside);
    clock(&mut inside);
    let mut out = Scope::raw("\\_SB_".into(), inside);
    let kind = pm::SLP_TYP_S5 as u8;
    Name::new("_S5_".into(), &Package::new(vec![&kind, &kind, &0_u8, &0_u8])).to_aml_bytes(&mut out);
    out
}
