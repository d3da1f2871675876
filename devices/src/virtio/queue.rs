//! Split virtqueues, the device's side (Virtual I/O Device specification 1.2, section 2.7).

use emu_core::addr::Gpa;

use super::chain::{Broken, Chain, DESCRIPTOR};
use crate::bus::DmaPort;

/// Most entries of a queue.
pub const MAX_ENTRIES: u16 = 256;

/// Bit 0 of the available ring's flags: the driver wants no interrupt.
const NO_INTERRUPT: u16 = 1;

/// How driver and device say when they want to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Suppression {
    /// By flags of the rings.
    #[default]
    Flags,
    /// By the index that is to be told of (VIRTIO_F_EVENT_IDX).
    EventIndex,
}

/// A queue as the driver set it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Number of entries.
    pub(super) size: u16,
    /// Whether the driver has enabled it.
    pub(super) enabled: bool,
    /// Addresses of the descriptor table, the driver's (available) and the device's (used) ring.
    pub(super) places: [u64; 3],
    /// The vector it interrupts with.
    pub(super) vector: u16,
    /// How either side is told.
    pub(super) suppression: Suppression,
    /// Chains taken from the available ring, modulo 2^16.
    taken: u16,
    /// Chains put into the used ring, modulo 2^16.
    used: u16,
    /// What `used` was when the driver was last considered for an interrupt.
    told: u16,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue {
            size: MAX_ENTRIES,
            enabled: false,
            places: [0; 3],
            vector: super::transport::NO_VECTOR,
            suppression: Suppression::Flags,
            taken: 0,
            used: 0,
            told: 0,
        }
    }
}

/// Whether an index that went from `old` to `new` passed `event` (section 2.7.7.2).
const fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

impl Queue {
    /// Whether length and places are such as a queue can have.
    pub(super) fn is_valid(&self) -> bool {
        let aligned = self.places.iter().zip([16, 2, 4]).all(|(place, to)| place.is_multiple_of(to));
        self.size.is_power_of_two() && self.size <= MAX_ENTRIES && aligned
    }

    fn descriptors(&self) -> Gpa {
        Gpa::new(self.places[0])
    }
    fn available(&self, byte: u64) -> Gpa {
        Gpa::new(self.places[1]).wrapping_add(byte)
    }
    fn used_ring(&self, byte: u64) -> Gpa {
        Gpa::new(self.places[2]).wrapping_add(byte)
    }

    fn word(gpa: Gpa, memory: &mut dyn DmaPort) -> Result<u16, Broken> {
        let mut bytes = [0; 2];
        memory.read(gpa, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// How many chains wait.
    fn waiting(&self, memory: &mut dyn DmaPort) -> Result<u16, Broken> {
        let waiting = Queue::word(self.available(2), memory)?.wrapping_sub(self.taken);
        if waiting > self.size { Err(Broken::Overrun(waiting, self.size)) } else { Ok(waiting) }
    }

    /// The next chain that the driver made available. When there is none, the driver is asked to tell of the next.
    ///
    /// # Errors
    /// See [`Broken`].
    pub fn next(&mut self, memory: &mut dyn DmaPort) -> Result<Option<Chain>, Broken> {
        let mut waiting = self.waiting(memory)?;
        if waiting == 0 && self.suppression == Suppression::EventIndex {
            let event = self.used_ring(4 + 8 * u64::from(self.size));
            memory.write(event, &self.taken.to_le_bytes())?;
            // One may have come before the driver could see that it is to tell.
            waiting = self.waiting(memory)?;
        }
        if waiting == 0 {
            return Ok(None);
        }
        let place = self.available(4 + 2 * u64::from(self.taken % self.size));
        let head = Queue::word(place, memory)?;
        let chain = Chain::read(self.descriptors(), self.size, head, memory)?;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Gives `chain` back, `written` bytes of it written.
    ///
    /// # Errors
    /// [`Broken::Memory`]: the used ring is no memory.
    pub fn give_back(&mut self, chain: &Chain, written: u32, memory: &mut dyn DmaPort) -> Result<(), Broken> {
        let mut element = [0; 8];
        element[..2].copy_from_slice(&chain.head.to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        memory.write(self.used_ring(4 + 8 * u64::from(self.used % self.size)), &element)?;
        self.used = self.used.wrapping_add(1);
        memory.write(self.used_ring(2), &self.used.to_le_bytes())?;
        Ok(())
    }

    /// Whether the driver is to be interrupted for what was given back since this was last asked.
    pub(super) fn is_to_tell(&mut self, memory: &mut dyn DmaPort) -> Result<bool, Broken> {
        let (old, new) = (self.told, self.used);
        if old == new {
            return Ok(false);
        }
        self.told = new;
        Ok(match self.suppression {
            Suppression::Flags => Queue::word(self.available(0), memory)? & NO_INTERRUPT == 0,
            Suppression::EventIndex => {
                let event = Queue::word(self.available(4 + 2 * u64::from(self.size)), memory)?;
                passed(event, new, old)
            }
        })
    }
}

const _: () = assert!(DESCRIPTOR == 16, "the alignment of the descriptor table");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_index_is_passed_exactly_when_it_lies_between() {
        for old in [0, 5, 65_530, 65_535_u16] {
            for step in 0..20_u16 {
                let new = old.wrapping_add(step);
                for event in 0..=u16::MAX {
                    // The driver wants to hear when entry `event` was used, that is when the index becomes event + 1.
                    let between = event.wrapping_sub(old) < step;
                    assert_eq!(passed(event, new, old), between, "{event} in {old}..{new}");
                }
            }
        }
    }
}
