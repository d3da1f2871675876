//! The messages interrupt controllers send each other: what travels from an ICR, an I/O APIC or an MSI to local APICs
//! (Intel SDM vol. 3, "Issuing Interprocessor Interrupts", "Message Signalled Interrupts"; 82093AA data sheet).

use emu_core::addr::Gpa;

/// What the receiving local APIC is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeliveryMode {
    /// Request the vector.
    Fixed,
    /// Request the vector at the one addressed processor of lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt; the vector is ignored.
    Nmi,
    /// INIT; the vector is ignored.
    Init,
    /// Start-up: begin at page `vector`.
    StartUp,
    /// The vector comes from the external 8259A pair.
    ExtInt,
    /// Encoding 3, which no manual defines: never delivered.
    Reserved,
}

impl DeliveryMode {
    /// From the three-bit field of an ICR, LVT entry, redirection entry or MSI data word.
    pub const fn from_bits(bits: u32) -> DeliveryMode {
        match bits & 7 {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            2 => DeliveryMode::Smi,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            6 => DeliveryMode::StartUp,
            7 => DeliveryMode::ExtInt,
            _ => DeliveryMode::Reserved,
        }
    }
    /// Whether the vector field names an interrupt to request.
    pub const fn uses_vector(self) -> bool {
        matches!(self, DeliveryMode::Fixed | DeliveryMode::LowestPriority)
    }
}

/// How the request ends: an edge is over when accepted, a level at its EOI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// Edge.
    Edge,
    /// Level.
    Level,
}

/// Whom a message is for. Eight-bit broadcast (0xff, physical) has already become [`Destination::Everyone`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// The APIC with this ID.
    Physical(u32),
    /// The APICs whose logical ID matches this message destination address.
    Logical(u32),
    /// All, the sender included.
    Everyone,
    /// All but the sender.
    Others,
    /// The sender alone.
    Sender,
}

/// One interrupt message; also what an ICR write asks for (an IPI request).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpiRequest {
    /// What to do.
    pub delivery: DeliveryMode,
    /// To whom.
    pub destination: Destination,
    /// Interrupt vector, or the start page of a start-up.
    pub vector: u8,
    /// Edge or level. An ICR's level de-assert of INIT never becomes a request: no processor since the P6 acts on it.
    pub trigger: Trigger,
}

/// Address and data of a message-signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Where the device writes: 0xfee0_0000 to 0xfeef_ffff.
    pub address: Gpa,
    /// What it writes.
    pub data: u32,
}

impl MsiMessage {
    /// The interrupt message that this write is, or `None` when the address is not the interrupt window.
    ///
    /// The redirection hint asks for one processor among several, so it turns fixed delivery into lowest priority.
    pub const fn decode(self) -> Option<IpiRequest> {
        let address = self.address.raw();
        if address >> 20 != 0xfee {
            return None;
        }
        let id = (address >> 12 & 0xff) as u32;
        let destination = if address & 1 << 2 != 0 { Destination::Logical(id) } else { physical8(id) };
        let mut delivery = DeliveryMode::from_bits(self.data >> 8);
        if address & 1 << 3 != 0 && matches!(delivery, DeliveryMode::Fixed) {
            delivery = DeliveryMode::LowestPriority;
        }
        Some(IpiRequest {
            delivery,
            destination,
            vector: self.data as u8,
            trigger: if self.data & 1 << 15 != 0 { Trigger::Level } else { Trigger::Edge },
        })
    }
}

/// Physical destination in an eight-bit field, where 0xff is everyone.
pub(crate) const fn physical8(id: u32) -> Destination {
    if id == 0xff { Destination::Everyone } else { Destination::Physical(id) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi_decodes_each_field() {
        let msi = |address, data| MsiMessage { address: Gpa::new(address), data }.decode();
        assert_eq!(
            msi(0xfee0_3000, 0x41),
            Some(IpiRequest {
                delivery: DeliveryMode::Fixed,
                destination: Destination::Physical(3),
                vector: 0x41,
                trigger: Trigger::Edge
            })
        );
        let hinted = msi(0xfee0_300c, 0x8041).expect("in the window");
        assert_eq!(hinted.delivery, DeliveryMode::LowestPriority);
        assert_eq!(hinted.destination, Destination::Logical(3));
        assert_eq!(hinted.trigger, Trigger::Level);
        assert_eq!(msi(0xfeef_f000, 0).map(|m| m.destination), Some(Destination::Everyone));
        assert_eq!(msi(0xfef0_0000, 0), None);
    }
}
