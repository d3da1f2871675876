//! The registers that place the table and put it in force: RMP_BASE, RMP_END, RMP_CFG and four bits of SYSCFG.
//!
//! Source: APM vol. 2, "Enabling SEV-SNP", "Reverse Map Table", "Segmented RMP"; the masks that Linux reads them with
//! (arch/x86/virt/svm/sev.c). The type is pure: WRMSR and RDMSR of a processor call it, and [`RmpRegisters::place`] is where
//! [`super::Rmp::new`] looks once SNP is on. Whatever it refuses is #GP(0).
//!
//! Always true: while SNP is on nothing here changes, and the place is one that the manual allows.
//!
//! Left out: that all processors of a machine hold the same values, which the machine sees to.

use emu_core::Spa;
use emu_core::msr::Msr;
use thiserror::Error;

use super::place::RmpPlace;

/// SYSCFG.MtrrFixDramModEn: the extended bits of fixed-range MTRRs can be written.
pub const SYSCFG_MFDM: u64 = 1 << 19;
/// SYSCFG.MemEncryptionModEn: memory encryption is available.
pub const SYSCFG_MEM_ENCRYPT: u64 = 1 << 23;
/// SYSCFG.SecureNestedPagingEn: accesses are judged by the RMP.
pub const SYSCFG_SNP: u64 = 1 << 24;
/// SYSCFG.VMPLEn: and by the permissions of privilege levels.
pub const SYSCFG_VMPL: u64 = 1 << 25;

/// RMP_CFG.SegmentedRmpEn.
const CFG_SEGMENTED: u64 = 1 << 0;
/// RMP_CFG.RmpSegSize.
const CFG_SIZE_SHIFT: u32 = 8;
const CFG_SIZE: u64 = 0x3f << CFG_SIZE_SHIFT;
/// What an address here may have.
const ADDRESS: u64 = 0x000f_ffff_ffff_ffff;
/// Of what the base and the byte after the end are multiples.
const CONTIGUOUS_ALIGN: u64 = 0x2000;
const SEGMENTED_ALIGN: u64 = 0x10_0000;

/// One of the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RmpRegister {
    /// SYSCFG, as far as SNP reads it.
    Syscfg,
    /// RMP_BASE.
    Base,
    /// RMP_END.
    End,
    /// RMP_CFG.
    Cfg,
}

impl RmpRegister {
    /// All.
    pub const ALL: [RmpRegister; 4] = [RmpRegister::Syscfg, RmpRegister::Base, RmpRegister::End, RmpRegister::Cfg];

    /// Its number.
    pub const fn msr(self) -> Msr {
        match self {
            RmpRegister::Syscfg => Msr(0xc001_0010),
            RmpRegister::Base => Msr(0xc001_0132),
            RmpRegister::End => Msr(0xc001_0133),
            RmpRegister::Cfg => Msr(0xc001_0136),
        }
    }
}

/// The sizes of segments that the processor knows (CPUID 8000_0025 EAX), as log2 of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentShifts {
    /// The smallest.
    pub min: u8,
    /// The largest.
    pub max: u8,
}

/// Why WRMSR or RDMSR is #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RmpRegisterRefused {
    /// The processor has no segmented RMP.
    #[error("the processor has no RMP_CFG")]
    Absent,
    /// The register cannot be written while SNP is on.
    #[error("{register:?} cannot be written while SNP is on")]
    Fixed {
        /// Which.
        register: RmpRegister,
    },
    /// Bits that must be zero are set.
    #[error("bits {bits:#x} of {register:?} must be zero")]
    Reserved {
        /// Which.
        register: RmpRegister,
        /// The bits.
        bits: u64,
    },
    /// A size of segments that the processor does not know.
    #[error("segments of 2^{shift} bytes")]
    SegmentShift {
        /// log2 of the bytes.
        shift: u8,
    },
    /// SNP was to be put in force, and the table is misaligned or ends before it begins.
    #[error("no RMP can be from {base} to {last}")]
    Place {
        /// RMP_BASE.
        base: Spa,
        /// RMP_END.
        last: Spa,
    },
}

/// What became of a write that is not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The register has the value.
    Taken,
    /// SYSCFG while SNP is on: nothing happened.
    Ignored,
}

/// The registers of one processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RmpRegisters {
    syscfg: u64,
    base: u64,
    end: u64,
    cfg: u64,
    segments: Option<SegmentShifts>,
}

impl RmpRegisters {
    /// What SYSCFG has of SNP; the other bits are the processor's.
    pub const SYSCFG_BITS: u64 = SYSCFG_MFDM | SYSCFG_MEM_ENCRYPT | SYSCFG_SNP | SYSCFG_VMPL;

    /// After RESET: all zero. `segments` is what CPUID says of segmented tables, nothing for a processor without.
    pub const fn new(segments: Option<SegmentShifts>) -> RmpRegisters {
        RmpRegisters { syscfg: 0, base: 0, end: 0, cfg: 0, segments }
    }

    /// Whether SecureNestedPagingEn is set.
    pub const fn snp_is_on(&self) -> bool {
        self.syscfg & SYSCFG_SNP != 0
    }

    /// Whether VMPLEn is set.
    pub const fn vmpl_is_on(&self) -> bool {
        self.syscfg & SYSCFG_VMPL != 0
    }

    /// Whether WRMSR of another register is #GP(0) while SNP is on: fixed-range MTRRs, IORRs, TOP_MEM, TOP_MEM2, SMM_KEY.
    pub const fn fixes(&self, msr: Msr) -> bool {
        let fixed_with_snp = matches!(
            msr.0,
            0x250 | 0x258 | 0x259 | 0x268..=0x26f | 0xc001_0016..=0xc001_0019 | 0xc001_001a | 0xc001_001d | 0xc001_0119
        );
        fixed_with_snp && self.snp_is_on()
    }

    /// RDMSR.
    pub const fn read(&self, register: RmpRegister) -> Result<u64, RmpRegisterRefused> {
        match register {
            RmpRegister::Syscfg => Ok(self.syscfg),
            RmpRegister::Base => Ok(self.base),
            RmpRegister::End => Ok(self.end),
            RmpRegister::Cfg if self.segments.is_none() => Err(RmpRegisterRefused::Absent),
            RmpRegister::Cfg => Ok(self.cfg),
        }
    }

    /// WRMSR. Of SYSCFG only [`RmpRegisters::SYSCFG_BITS`] are looked at.
    pub fn write(&mut self, register: RmpRegister, value: u64) -> Result<Written, RmpRegisterRefused> {
        match register {
            RmpRegister::Syscfg if self.snp_is_on() => return Ok(Written::Ignored),
            RmpRegister::Syscfg => {
                if value & SYSCFG_SNP != 0 {
                    self.check_place()?;
                }
                self.syscfg = value & Self::SYSCFG_BITS;
            }
            RmpRegister::Cfg if self.segments.is_none() => return Err(RmpRegisterRefused::Absent),
            _ if self.snp_is_on() => return Err(RmpRegisterRefused::Fixed { register }),
            RmpRegister::Base => self.base = only_bits(register, value, ADDRESS)?,
            RmpRegister::End => self.end = only_bits(register, value, ADDRESS)?,
            RmpRegister::Cfg => {
                only_bits(register, value, CFG_SEGMENTED | CFG_SIZE)?;
                self.check_segments(value)?;
                self.cfg = value;
            }
        }
        Ok(Written::Taken)
    }

    /// The table in force; `None` while SNP is off.
    pub const fn place(&self) -> Option<RmpPlace> {
        if self.snp_is_on() { Some(self.named_place()) } else { None }
    }

    const fn named_place(&self) -> RmpPlace {
        let (base, last) = (Spa::new(self.base), Spa::new(self.end));
        match self.cfg & CFG_SEGMENTED {
            0 => RmpPlace::Contiguous { base, last },
            _ => RmpPlace::Segmented { base, segment_shift: segment_shift(self.cfg) },
        }
    }

    fn check_segments(&self, cfg: u64) -> Result<(), RmpRegisterRefused> {
        let shift = segment_shift(cfg);
        let known = self.segments.is_some_and(|known| (known.min..=known.max).contains(&shift));
        // Without the enable the field may be zero, as it is after RESET.
        if known || cfg == 0 { Ok(()) } else { Err(RmpRegisterRefused::SegmentShift { shift }) }
    }

    fn check_place(&self) -> Result<(), RmpRegisterRefused> {
        let sound = match self.named_place() {
            RmpPlace::Segmented { base, .. } => base.raw().is_multiple_of(SEGMENTED_ALIGN),
            RmpPlace::Contiguous { base, last } => {
                let end = last.raw() + 1;
                let aligned = base.raw().is_multiple_of(CONTIGUOUS_ALIGN) && end.is_multiple_of(CONTIGUOUS_ALIGN);
                aligned && base.raw() < end
            }
        };
        let (base, last) = (Spa::new(self.base), Spa::new(self.end));
        if sound { Ok(()) } else { Err(RmpRegisterRefused::Place { base, last }) }
    }
}

const fn segment_shift(cfg: u64) -> u8 {
    ((cfg & CFG_SIZE) >> CFG_SIZE_SHIFT) as u8
}

fn only_bits(register: RmpRegister, value: u64, mask: u64) -> Result<u64, RmpRegisterRefused> {
    match value & !mask {
        0 => Ok(value),
        bits => Err(RmpRegisterRefused::Reserved { register, bits }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIFTS: SegmentShifts = SegmentShifts { min: 36, max: 40 };

    fn on(segments: Option<SegmentShifts>) -> RmpRegisters {
        let mut registers = RmpRegisters::new(segments);
        registers.write(RmpRegister::Base, 0x10_0000).unwrap();
        registers.write(RmpRegister::End, 0x110_3fff).unwrap();
        registers.write(RmpRegister::Syscfg, SYSCFG_MFDM).unwrap();
        assert_eq!(registers.place(), None);
        registers.write(RmpRegister::Syscfg, RmpRegisters::SYSCFG_BITS).unwrap();
        registers
    }

    #[test]
    fn linuxs_order_puts_the_manuals_example_in_force() {
        let registers = on(None);
        assert!(registers.snp_is_on() && registers.vmpl_is_on());
        let place = RmpPlace::Contiguous { base: Spa::new(0x10_0000), last: Spa::new(0x110_3fff) };
        assert_eq!(registers.place(), Some(place));
    }

    #[test]
    fn once_on_nothing_changes() {
        let mut registers = on(Some(SHIFTS));
        let before = registers;
        assert_eq!(registers.write(RmpRegister::Syscfg, 0), Ok(Written::Ignored));
        for register in [RmpRegister::Base, RmpRegister::End, RmpRegister::Cfg] {
            assert_eq!(registers.write(register, 0), Err(RmpRegisterRefused::Fixed { register }));
        }
        assert_eq!(registers, before);
    }

    #[test]
    fn the_memory_map_is_fixed_from_then_on() {
        let off = RmpRegisters::new(None);
        let on = on(None);
        for msr in [0x250, 0x259, 0x268, 0x26f, 0xc001_0016, 0xc001_0019, 0xc001_001a, 0xc001_001d, 0xc001_0119] {
            assert!(on.fixes(Msr(msr)) && !off.fixes(Msr(msr)), "{msr:#x}");
        }
        for msr in [0x200, 0x251, 0x2ff, 0x277, 0xc001_0015, 0xc001_001b] {
            assert!(!on.fixes(Msr(msr)), "{msr:#x}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_is_refused_when_it_would_come_in_force() {
        for (base, end) in [(0x1000, 0x110_3fff), (0x10_0000, 0x110_3000), (0x110_4000, 0x110_3fff), (0, 0)] {
            let mut registers = RmpRegisters::new(None);
            registers.write(RmpRegister::Base, base).unwrap();
            registers.write(RmpRegister::End, end).unwrap();
            let refused = registers.write(RmpRegister::Syscfg, SYSCFG_SNP);
            assert_eq!(refused, Err(RmpRegisterRefused::Place { base: Spa::new(base), last: Spa::new(end) }));
            assert!(!registers.snp_is_on());
        }
        let mut registers = RmpRegisters::new(None);
        let reserved = RmpRegisterRefused::Reserved { register: RmpRegister::End, bits: 1 << 52 };
        assert_eq!(registers.write(RmpRegister::End, 1 << 52 | 0x3fff), Err(reserved));
    }

    #[test]
    fn segments_need_a_processor_that_knows_them() {
        let mut without = RmpRegisters::new(None);
        assert_eq!(without.write(RmpRegister::Cfg, 0), Err(RmpRegisterRefused::Absent));
        assert_eq!(without.read(RmpRegister::Cfg), Err(RmpRegisterRefused::Absent));

        let mut registers = RmpRegisters::new(Some(SHIFTS));
        assert_eq!(
            registers.write(RmpRegister::Cfg, 0x2402),
            Err(RmpRegisterRefused::Reserved { register: RmpRegister::Cfg, bits: 2 })
        );
        assert_eq!(registers.write(RmpRegister::Cfg, 0x2301), Err(RmpRegisterRefused::SegmentShift { shift: 35 }));
        assert_eq!(registers.write(RmpRegister::Cfg, 0x2901), Err(RmpRegisterRefused::SegmentShift { shift: 41 }));
        assert_eq!(registers.write(RmpRegister::Cfg, 0x2401), Ok(Written::Taken));
        registers.write(RmpRegister::Base, 0x10_2000).unwrap();
        assert!(registers.write(RmpRegister::Syscfg, SYSCFG_SNP).is_err(), "1 MiB for segmented tables");
        registers.write(RmpRegister::Base, 0x20_0000).unwrap();
        registers.write(RmpRegister::Syscfg, SYSCFG_SNP).unwrap();
        let place = RmpPlace::Segmented { base: Spa::new(0x20_0000), segment_shift: 36 };
        assert_eq!(registers.place(), Some(place));
        assert_eq!(registers.write(RmpRegister::Cfg, 0), Err(RmpRegisterRefused::Fixed { register: RmpRegister::Cfg }));
    }

    #[test]
    fn every_register_has_its_number() {
        let numbers: Vec<u32> = RmpRegister::ALL.iter().map(|register| register.msr().0).collect();
        assert_eq!(numbers, [0xc001_0010, 0xc001_0132, 0xc001_0133, 0xc001_0136]);
    }
}
