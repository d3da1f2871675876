//! What firmware does to a bus before a system starts: every BAR gets an address, decoding is switched on, and the
//! interrupt-line register says which line INTx reaches.
//!
//! Systems may programme all of it anew; one that trusts its firmware need not.

use thiserror::Error;

use super::config::{BarKind, reg};
use super::{PciBus, SLOTS, intx_line};
use crate::bus::Width;

/// First port that is given to I/O BARs.
const FIRST_PORT: u64 = 0xc000;
const LAST_PORT: u64 = 0xffff;

/// The windows are too small for the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the PCI window has no room for BAR {bar} of slot {slot}, {size:#x} bytes")]
pub struct NoRoom {
    /// Slot of the device.
    pub slot: u8,
    /// Number of the BAR.
    pub bar: u8,
    /// Its length in bytes.
    pub size: u64,
}

/// Gives every BAR of `bus` an address: memory within `window` (first and last byte), ports from 0xc000 on. Larger BARs
/// come first, so that alignment wastes nothing.
///
/// # Errors
/// [`NoRoom`]: a window is full; what was placed before stays placed.
pub fn assign(bus: &mut PciBus, window: (u32, u32)) -> Result<(), NoRoom> {
    let mut wanted = Vec::new();
    for slot in 0..SLOTS as u8 {
        let Some(device) = bus.device(slot) else { continue };
        wanted.extend((0..6).filter_map(|bar| Some((slot, bar, device.config().bar(bar)?))));
    }
    wanted.sort_by_key(|&(slot, bar, declared)| (core::cmp::Reverse(declared.size), slot, bar));
    let (mut next_port, mut next_byte) = (FIRST_PORT, u64::from(window.0));
    for (slot, bar, declared) in wanted {
        let (next, last) = match declared.kind {
            BarKind::Io => (&mut next_port, LAST_PORT),
            BarKind::Memory32 | BarKind::Memory64 => (&mut next_byte, u64::from(window.1)),
        };
        let base = next.next_multiple_of(declared.size);
        let full = NoRoom { slot, bar, size: declared.size };
        let end = base.checked_add(declared.size).filter(|end| end - 1 <= last).ok_or(full)?;
        *next = end;
        let Some(device) = bus.device_mut(slot) else { continue };
        device.config_mut().write(reg::BAR0 + bar * 4, Width::Dword, base as u32);
    }
    for slot in 0..SLOTS as u8 {
        let Some(config) = bus.device_mut(slot).map(|device| device.config_mut()) else { continue };
        let pin = config.read(reg::INTERRUPT_PIN, Width::Byte) as u8;
        if pin != 0 {
            config.write(reg::INTERRUPT_LINE, Width::Byte, u32::from(intx_line(slot, pin - 1)));
        }
        if (0..6).any(|bar| config.bar(bar).is_some()) {
            // I/O and memory; mastering the bus is the driver's to allow.
            let command = config.read(reg::COMMAND, Width::Word);
            config.write(reg::COMMAND, Width::Word, command | 3);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::config::BarRange;
    use crate::pci::tests::Scratch;

    #[test]
    fn bars_are_aligned_inside_the_window_and_disjoint() {
        let mut bus = PciBus::new();
        for slot in 2..12 {
            bus.plug(slot, Scratch::boxed()).expect("free");
        }
        assign(&mut bus, (0xe000_0000, 0xe00f_ffff)).expect("room");
        let mut memory = Vec::new();
        for slot in 2..12 {
            let config = bus.device(slot).expect("plugged").config();
            match (config.bar_range(0), config.bar_range(2)) {
                (Some(BarRange::Memory { base, size }), Some(BarRange::Io { base: port, size: ports })) => {
                    assert!(base.raw().is_multiple_of(size) && base.raw() + size <= 0xe010_0000);
                    assert!(port.0.is_multiple_of(ports as u16) && port.0 >= 0xc000);
                    memory.push(base.raw());
                }
                ranges => panic!("not decoded: {ranges:?}"),
            }
            assert_eq!(config.read(reg::INTERRUPT_LINE, Width::Byte), u32::from(intx_line(slot, 0)));
            assert!(!config.bus_master());
        }
        memory.dedup();
        assert!(memory.len() == 10 && memory.is_sorted());
    }

    #[test]
    fn a_window_that_is_too_small_is_said() {
        let mut bus = PciBus::new();
        bus.plug(2, Scratch::boxed()).expect("free");
        bus.plug(3, Scratch::boxed()).expect("free");
        let full = NoRoom { slot: 3, bar: 0, size: 0x4000 };
        assert_eq!(assign(&mut bus, (0xe000_0000, 0xe000_4000)), Err(full));
    }
}
