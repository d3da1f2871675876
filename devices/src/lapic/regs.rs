//! The registers of a local APIC and the two ways to name them (Intel SDM vol. 3, "Local APIC Register Address Map",
//! "x2APIC Register Address Space").

/// An entry of the local vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Lvt {
    /// The APIC timer.
    Timer = 0,
    /// Thermal sensor.
    Thermal = 1,
    /// Performance counters.
    Performance = 2,
    /// The LINT0 pin: on a PC, the 8259A pair's INTR.
    Lint0 = 3,
    /// The LINT1 pin: on a PC, NMI.
    Lint1 = 4,
    /// The APIC's own errors.
    Error = 5,
}

impl Lvt {
    /// Every entry, in the order of their registers.
    pub const ALL: [Lvt; 6] = [Lvt::Timer, Lvt::Thermal, Lvt::Performance, Lvt::Lint0, Lvt::Lint1, Lvt::Error];

    /// The bits software can set.
    pub const fn writable(self) -> u32 {
        match self {
            Lvt::Timer => 0x0007_00ff,
            Lvt::Thermal | Lvt::Performance => 0x0001_07ff,
            Lvt::Lint0 | Lvt::Lint1 => 0x0001_a7ff,
            Lvt::Error => 0x0001_00ff,
        }
    }

    /// Bits that hardware shows but software cannot set: delivery status and, on pins, remote IRR.
    pub const fn read_only(self) -> u32 {
        match self {
            Lvt::Lint0 | Lvt::Lint1 => 0x5000,
            _ => 0x1000,
        }
    }
}

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reg {
    /// Local APIC ID.
    Id,
    /// Version.
    Version,
    /// Task priority.
    Tpr,
    /// Arbitration priority.
    Apr,
    /// Processor priority.
    Ppr,
    /// End of interrupt.
    Eoi,
    /// Remote read.
    Rrd,
    /// Logical destination.
    Ldr,
    /// Destination format (xAPIC only).
    Dfr,
    /// Spurious interrupt vector.
    Svr,
    /// In-service, 32 bits each.
    Isr(u8),
    /// Trigger mode, 32 bits each.
    Tmr(u8),
    /// Interrupt request, 32 bits each.
    Irr(u8),
    /// Error status.
    Esr,
    /// Interrupt command, low half; under x2APIC all 64 bits.
    Icr,
    /// Interrupt command, high half (xAPIC only).
    IcrHigh,
    /// Local vector table.
    Lvt(Lvt),
    /// Timer: initial count.
    InitialCount,
    /// Timer: current count.
    CurrentCount,
    /// Timer: divide configuration.
    Divide,
    /// Self IPI (x2APIC only).
    SelfIpi,
}

/// The register whose number is `n`: byte offset >> 4 in the xAPIC page, or MSR number - 0x800.
const fn numbered(n: u16) -> Option<Reg> {
    Some(match n {
        0x02 => Reg::Id,
        0x03 => Reg::Version,
        0x08 => Reg::Tpr,
        0x09 => Reg::Apr,
        0x0a => Reg::Ppr,
        0x0b => Reg::Eoi,
        0x0c => Reg::Rrd,
        0x0d => Reg::Ldr,
        0x0e => Reg::Dfr,
        0x0f => Reg::Svr,
        0x10..=0x17 => Reg::Isr(n as u8 & 7),
        0x18..=0x1f => Reg::Tmr(n as u8 & 7),
        0x20..=0x27 => Reg::Irr(n as u8 & 7),
        0x28 => Reg::Esr,
        0x30 => Reg::Icr,
        0x31 => Reg::IcrHigh,
        0x32..=0x37 => Reg::Lvt(Lvt::ALL[(n - 0x32) as usize]),
        0x38 => Reg::InitialCount,
        0x39 => Reg::CurrentCount,
        0x3e => Reg::Divide,
        0x3f => Reg::SelfIpi,
        _ => return None,
    })
}

/// The register at a byte offset of the xAPIC page, or `None` where the page has none.
///
/// Only the first four bytes of each sixteen belong to a register.
pub const fn decode_xapic(offset: u16) -> Option<Reg> {
    if offset & 0xc != 0 {
        return None;
    }
    match numbered(offset >> 4) {
        Some(Reg::SelfIpi) => None,
        reg => reg,
    }
}

/// The register behind an MSR (0x800 to 0x8ff) in x2APIC mode, or `None` where an access is #GP.
pub const fn decode_x2apic(msr: u32) -> Option<Reg> {
    if msr < 0x800 || msr > 0x8ff {
        return None;
    }
    match numbered((msr - 0x800) as u16) {
        Some(Reg::Apr | Reg::Rrd | Reg::Dfr | Reg::IcrHigh) => None,
        reg => reg,
    }
}

impl Reg {
    /// Whether RDMSR may read it in x2APIC mode.
    pub const fn x2apic_readable(self) -> bool {
        !matches!(self, Reg::Eoi | Reg::SelfIpi)
    }

    /// Whether WRMSR may write it in x2APIC mode.
    pub const fn x2apic_writable(self) -> bool {
        !matches!(
            self,
            Reg::Id | Reg::Version | Reg::Ppr | Reg::Ldr | Reg::Isr(_) | Reg::Tmr(_) | Reg::Irr(_) | Reg::CurrentCount
        )
    }

    /// The bits a WRMSR may set without #GP.
    pub const fn x2apic_allowed(self) -> u64 {
        match self {
            Reg::Tpr | Reg::SelfIpi => 0xff,
            Reg::Svr => 0x13ff,
            Reg::Icr => 0xffff_ffff_000c_dfff,
            Reg::Lvt(lvt) => (lvt.writable() | lvt.read_only()) as u64,
            Reg::InitialCount => 0xffff_ffff,
            Reg::Divide => 0b1011,
            // EOI and ESR take zero alone; the rest is not writable at all.
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_address_maps_agree_where_both_have_a_register() {
        let mut both = 0;
        for n in 0..0x100_u16 {
            let x = decode_xapic(n << 4);
            let x2 = decode_x2apic(0x800 + n as u32);
            if let (Some(x), Some(x2)) = (x, x2) {
                assert_eq!(x, x2);
                both += 1;
            }
            for byte in [4, 8, 12] {
                assert_eq!(decode_xapic(n << 4 | byte), None);
            }
        }
        // ID, version, TPR, PPR, EOI, LDR, SVR, 24 vector registers, ESR, ICR, 6 LVT, 3 timer.
        assert_eq!(both, 7 + 24 + 2 + 6 + 3);
    }

    #[test]
    fn what_one_map_alone_has() {
        for (n, reg) in [(0x9, Reg::Apr), (0xc, Reg::Rrd), (0xe, Reg::Dfr), (0x31, Reg::IcrHigh)] {
            assert_eq!(decode_xapic(n << 4), Some(reg));
            assert_eq!(decode_x2apic(0x800 + n as u32), None);
        }
        assert_eq!(decode_xapic(0x3f0), None);
        assert_eq!(decode_x2apic(0x83f), Some(Reg::SelfIpi));
        assert_eq!(decode_x2apic(0x7ff), None);
        assert_eq!(decode_x2apic(0x900), None);
    }

    #[test]
    fn every_x2apic_register_can_be_read_or_written() {
        for msr in 0x800..0x900 {
            if let Some(reg) = decode_x2apic(msr) {
                assert!(reg.x2apic_readable() || reg.x2apic_writable(), "{reg:?}");
            }
        }
    }
}
