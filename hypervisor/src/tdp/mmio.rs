//! Entries that say: no memory here (`make_mmio_spte`, `is_mmio_spte`).
//!
//! The processor must fault on such an entry in a way that tells it from an absent one: NPT sets a reserved address bit
//! in a present entry, EPT allows writes and fetches but not reads, which is a misconfiguration. The rest of the entry is
//! software's: the guest frame, what the guest may do, and the low bits of the memslots' generation at the time. An entry
//! of another generation says nothing.
//!
//! Left out: the copy of high address bits that defends against L1TF; no processor of ours has it.

use emu_core::Gfn;

use super::spte::{FRAME, PRESENT, READ, Rights, Spte, TdpFormat, WRITE, ept, npt};

/// Bits of a generation that an entry keeps (`MMIO_SPTE_GEN_MASK` of Linux 7.3).
pub const MMIO_GENERATION_BITS: u32 = 18;
const LOW_BITS: u32 = 7;
const LOW_SHIFT: u32 = 3;
const HIGH_SHIFT: u32 = 52;
/// Reserved while MAXPHYADDR is below 52.
const NPT_MAGIC: u64 = 1 << 51 | READ;
const EPT_MAGIC: u64 = WRITE | ept::EXECUTE;

/// The low bits of a generation of the memslots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MmioGeneration(u32);

impl MmioGeneration {
    /// Of a whole generation.
    pub const fn of(generation: u64) -> MmioGeneration {
        MmioGeneration((generation & ((1 << MMIO_GENERATION_BITS) - 1)) as u32)
    }
    /// The bits. Zero again means that older entries could be taken for new ones.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// An entry for a device, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MmioSpte {
    /// The guest frame.
    pub gfn: Gfn,
    /// What the guest may do there.
    pub rights: Rights,
    /// When it was made.
    pub generation: MmioGeneration,
}

impl TdpFormat {
    /// The entry that says that no memory is at a guest frame. EPT keeps no rights: nothing but the instruction decides.
    pub const fn mmio(self, mmio: MmioSpte) -> Spte {
        let generation = mmio.generation.0 as u64;
        let low = (generation & ((1 << LOW_BITS) - 1)) << LOW_SHIFT;
        let high = generation >> LOW_BITS << HIGH_SHIFT;
        let magic = match self {
            TdpFormat::Npt => NPT_MAGIC | npt::USER | if mmio.rights.contains(Rights::WRITE) { WRITE } else { 0 },
            TdpFormat::Ept => EPT_MAGIC,
        };
        Spte::from_raw(magic | mmio.gfn.base().raw() & FRAME | low | high)
    }

    pub(super) const fn read_mmio(self, spte: Spte) -> Option<MmioSpte> {
        let raw = spte.raw();
        let (magic, mask) = match self {
            TdpFormat::Npt => (NPT_MAGIC, NPT_MAGIC | PRESENT),
            TdpFormat::Ept => (EPT_MAGIC, EPT_MAGIC | READ | PRESENT),
        };
        if raw & mask != magic {
            return None;
        }
        let rights = match self {
            TdpFormat::Npt if raw & WRITE == 0 => Rights::EXECUTE,
            _ => Rights::all(),
        };
        let low = raw >> LOW_SHIFT & ((1 << LOW_BITS) - 1);
        let high = raw >> HIGH_SHIFT & ((1 << (MMIO_GENERATION_BITS - LOW_BITS)) - 1);
        let generation = MmioGeneration((high << LOW_BITS | low) as u32);
        let frame = match self {
            TdpFormat::Npt => raw & FRAME & !(1 << 51),
            TdpFormat::Ept => raw & FRAME,
        };
        Some(MmioSpte { gfn: Gfn::new(frame >> emu_core::page::PAGE_SHIFT), rights, generation })
    }
}

#[cfg(test)]
mod tests {
    use super::super::spte::{Entry, Level};
    use super::*;
    use emu_core::{PageSize, Spa};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_entry_for_a_device_keeps_frame_and_generation_and_is_nothing_else(
            ept in any::<bool>(), gfn in 0_u64..1 << 39, generation: u64,
        ) {
            let format = if ept { TdpFormat::Ept } else { TdpFormat::Npt };
            let mmio =
                MmioSpte { gfn: Gfn::new(gfn), rights: Rights::all(), generation: MmioGeneration::of(generation) };
            let spte = format.mmio(mmio);
            prop_assert_eq!(format.read(spte, Level::of_leaf(PageSize::Size4K)), Entry::Mmio(mmio));
            prop_assert!(spte != Spte::FROZEN && spte != Spte::ABSENT);
        }
    }

    #[test]
    fn no_other_entry_is_taken_for_one_for_a_device() {
        for format in [TdpFormat::Npt, TdpFormat::Ept] {
            for spte in [Spte::ABSENT, Spte::FROZEN, format.table(Spa::new(0x5000))] {
                assert_eq!(format.read_mmio(spte), None);
            }
        }
    }
}
