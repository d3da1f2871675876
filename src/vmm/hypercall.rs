//! Hypercalls: what the guest asks by VMCALL or VMMCALL, and what it reads in RAX.
//!
//! Modelled: Linux `Documentation/virt/kvm/x86/hypercalls.rst` and `kvm_emulate_hypercall`. The number is in RAX, the
//! arguments are in RBX, RCX, RDX and RSI; outside 64-bit mode each is 32 bits wide. Two further numbers are this VMM's
//! own, far above KVM's: a guest that tests the memory under it asks for a hole or for an allocation by them, as the
//! guests of KVM's selftests do by their own calls.
//!
//! CPUID announces none of it: its hypervisor signature stays Bifold's own, so that no guest takes the machine for one
//! with KVM's clocks. A guest that uses these calls knows where it runs.

use cpu::{SegReg, VcpuState};
use emu_core::page::PAGE_SHIFT;
use emu_core::regs::Efer;
use emu_core::{Gpa, PageSize};
use hypervisor::Shareability;

/// `KVM_HC_VAPIC_POLL_IRQ`.
const VAPIC_POLL_IRQ: u64 = 1;
/// `KVM_HC_MAP_GPA_RANGE`.
const MAP_GPA_RANGE: u64 = 12;
/// Our own: [`Request::Punch`] and, one above, [`Request::Allocate`].
const PUNCH_RANGE: u64 = 0x00b1_f000;
const ALLOCATE_RANGE: u64 = PUNCH_RANGE + 1;

/// `KVM_MAP_GPA_RANGE_ENCRYPTED`.
const ENCRYPTED: u64 = 1 << 4;
/// `KVM_MAP_GPA_RANGE_PAGE_SZ_*`.
const PAGE_SIZE_FIELD: u64 = 0xf;

/// Why a hypercall failed, as the guest reads it: negated, in RAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum HypercallError {
    /// `KVM_EPERM`: not from ring 0.
    NotPermitted = 1,
    /// `EAGAIN`: a page is in use by the host; ask again.
    Busy = 11,
    /// `KVM_EINVAL`: impossible arguments.
    Invalid = 22,
    /// `KVM_ENOSYS`: no such hypercall here.
    NoSuchCall = 1000,
}

impl HypercallError {
    /// What RAX holds.
    pub const fn rax(self) -> u64 {
        (self as i64).wrapping_neg() as u64
    }
}

/// Whole 4 KiB pages of guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpaRange {
    /// First address, a multiple of 4 KiB.
    pub gpa: Gpa,
    /// Length, a positive multiple of 4 KiB; the range does not wrap.
    pub len_bytes: u64,
}

impl GpaRange {
    /// A range of whole pages that exists in the 64-bit address space.
    pub const fn new(gpa: Gpa, len_bytes: u64) -> Option<GpaRange> {
        let page = PageSize::Size4K.bytes();
        let whole = gpa.raw().is_multiple_of(page) && len_bytes.is_multiple_of(page) && len_bytes != 0;
        if whole && gpa.raw().checked_add(len_bytes).is_some() { Some(GpaRange { gpa, len_bytes }) } else { None }
    }

    fn of_pages(gpa: u64, nr_pages: u64) -> Option<GpaRange> {
        GpaRange::new(Gpa::new(gpa), nr_pages.checked_mul(1 << PAGE_SHIFT)?)
    }
}

impl core::fmt::Display for GpaRange {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x} bytes at {}", self.len_bytes, self.gpa)
    }
}

/// What a guest may ask of the VMM beside conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Punch a hole: the pages read as zero.
    Punch,
    /// Allocate what is not there.
    Allocate,
}

/// A hypercall that KVM hands to the VMM (`KVM_EXIT_HYPERCALL`), arguments checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hypercall {
    /// `KVM_HC_VAPIC_POLL_IRQ`: nothing to do.
    PollIrq,
    /// `KVM_HC_MAP_GPA_RANGE`: the guest wants to use a range in this way from now on.
    MapGpaRange {
        /// Which.
        range: GpaRange,
        /// How.
        to: Shareability,
    },
    /// One of our own.
    Vmm {
        /// What.
        request: Request,
        /// Where.
        range: GpaRange,
    },
}

impl Hypercall {
    /// What the processor's registers ask for.
    ///
    /// # Errors
    /// What `kvm_emulate_hypercall` and its VMM answer without looking at memory.
    pub fn read(state: &VcpuState) -> Result<Hypercall, HypercallError> {
        let segment = |reg: SegReg| state.segments.regs[reg as usize].attributes;
        let wide = state.efer.contains(Efer::LMA) && segment(SegReg::Cs).l();
        let mask = if wide { u64::MAX } else { u64::from(u32::MAX) };
        let [rax, rcx, rdx, rbx, rsi] = [0, 1, 2, 3, 6].map(|n: usize| state.gpr[n] & mask);
        Hypercall::decode(rax, [rbx, rcx, rdx, rsi], segment(SegReg::Ss).dpl())
    }

    /// What hypercall `number` with these arguments (RBX, RCX, RDX, RSI) asks for, made at level `cpl`.
    ///
    /// # Errors
    /// As [`Hypercall::read`].
    pub fn decode(number: u64, [rbx, rcx, rdx, _]: [u64; 4], cpl: u8) -> Result<Hypercall, HypercallError> {
        if cpl != 0 {
            return Err(HypercallError::NotPermitted);
        }
        match number {
            VAPIC_POLL_IRQ => Ok(Hypercall::PollIrq),
            MAP_GPA_RANGE => map_gpa_range(rbx, rcx, rdx),
            PUNCH_RANGE | ALLOCATE_RANGE => {
                let range = GpaRange::of_pages(rbx, rcx).ok_or(HypercallError::Invalid)?;
                let request = if number == PUNCH_RANGE { Request::Punch } else { Request::Allocate };
                Ok(Hypercall::Vmm { request, range })
            }
            _ => Err(HypercallError::NoSuchCall),
        }
    }
}

fn map_gpa_range(gpa: u64, nr_pages: u64, attributes: u64) -> Result<Hypercall, HypercallError> {
    let range = GpaRange::of_pages(gpa, nr_pages).ok_or(HypercallError::Invalid)?;
    // What follows KVM leaves to the VMM: a range that is not made of the pages it says it is made of is a mistake.
    let page = match attributes & PAGE_SIZE_FIELD {
        0 => PageSize::Size4K,
        1 => PageSize::Size2M,
        2 => PageSize::Size1G,
        _ => return Err(HypercallError::Invalid),
    };
    if attributes & !(PAGE_SIZE_FIELD | ENCRYPTED) != 0 || !range.gpa.is_aligned(page) {
        return Err(HypercallError::Invalid);
    }
    let to = if attributes & ENCRYPTED != 0 { Shareability::PRIVATE } else { Shareability::SHARED };
    Ok(Hypercall::MapGpaRange { range, to })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpu::{Vcpu, VcpuConfig};
    use emu_core::cpu_model::CpuModel;
    use emu_core::memory::SystemMemory;
    use emu_core::rng::Seed;

    /// A processor at CPL 0 in 64-bit mode with these in RAX, RBX, RCX, RDX.
    fn asking(rax: u64, rbx: u64, rcx: u64, rdx: u64) -> VcpuState {
        let config = VcpuConfig { model: CpuModel::amd_v3(), apic_id: 0, cpu_count: 1, seed: Seed(0) };
        let memory = SystemMemory::flat(1 << 20).expect("a megabyte of system memory");
        let mut state = Vcpu::new(memory, &config).state();
        (state.gpr[0], state.gpr[3], state.gpr[1], state.gpr[2]) = (rax, rbx, rcx, rdx);
        state.efer |= Efer::LMA;
        state.segments.regs[SegReg::Cs as usize].attributes.set_l(true);
        state
    }

    fn range(gpa: u64, len_bytes: u64) -> GpaRange {
        GpaRange::new(Gpa::new(gpa), len_bytes).expect("whole pages")
    }

    #[test]
    fn map_gpa_range_takes_ranges_of_whole_pages_and_both_states() {
        let read = |rbx, rcx, rdx| Hypercall::read(&asking(MAP_GPA_RANGE, rbx, rcx, rdx));
        let to = |range, to| Ok(Hypercall::MapGpaRange { range, to });
        assert_eq!(read(0x1000, 3, 0), to(range(0x1000, 0x3000), Shareability::SHARED));
        assert_eq!(read(0x1000, 1, ENCRYPTED), to(range(0x1000, 0x1000), Shareability::PRIVATE));
        assert_eq!(read(2 << 20, 512, ENCRYPTED | 1), to(range(2 << 20, 2 << 20), Shareability::PRIVATE));
        assert_eq!(read(1 << 30, 1 << 18, 2), to(range(1 << 30, 1 << 30), Shareability::SHARED));
    }

    #[test]
    fn map_gpa_range_refuses_what_is_no_range_or_no_attribute() {
        let wrong = [
            (0x1001, 1, 0),
            (0x1000, 0, 0),
            (0x1000, u64::MAX, 0),
            (0x1000, 1 << 52, 0),
            (!0xfff, 2, 0),
            (0x1000, 1, 3),
            (0x1000, 1, 1),
            (2 << 20, 512, 2),
            (0x1000, 1, 1 << 5),
            (0x1000, 1, 1 << 63),
        ];
        for (rbx, rcx, rdx) in wrong {
            let answer = Hypercall::read(&asking(MAP_GPA_RANGE, rbx, rcx, rdx));
            assert_eq!(answer, Err(HypercallError::Invalid), "{rbx:#x} {rcx:#x} {rdx:#x}");
        }
    }

    #[test]
    fn only_ring_0_may_ask_and_only_for_what_exists() {
        let mut user = asking(MAP_GPA_RANGE, 0x1000, 1, 0);
        user.segments.regs[SegReg::Ss as usize].attributes.set_dpl(3);
        assert_eq!(Hypercall::read(&user), Err(HypercallError::NotPermitted));
        for number in [0, 2, 5, 9, 10, 11, 13, PUNCH_RANGE + 2, u64::MAX] {
            assert_eq!(Hypercall::read(&asking(number, 0x1000, 1, 0)), Err(HypercallError::NoSuchCall), "{number}");
        }
        assert_eq!(Hypercall::read(&asking(VAPIC_POLL_IRQ, 0, 0, 0)), Ok(Hypercall::PollIrq));
        let [nosys, perm] = [HypercallError::NoSuchCall, HypercallError::NotPermitted].map(|e| e.rax() as i64);
        assert_eq!((nosys, perm), (-1000, -1));
    }

    #[test]
    fn outside_64_bit_mode_the_upper_halves_do_not_count() {
        let mut state = asking(1 << 40 | MAP_GPA_RANGE, 1 << 40 | 0x1000, 1 << 40 | 1, 1 << 40);
        assert_eq!(Hypercall::read(&state), Err(HypercallError::NoSuchCall));
        state.segments.regs[SegReg::Cs as usize].attributes.set_l(false);
        let wanted = Hypercall::MapGpaRange { range: range(0x1000, 0x1000), to: Shareability::SHARED };
        assert_eq!(Hypercall::read(&state), Ok(wanted));
    }

    #[test]
    fn the_two_of_our_own_carry_a_range() {
        let read = |number| Hypercall::read(&asking(number, 0x2000, 2, 0));
        let at = range(0x2000, 0x2000);
        assert_eq!(read(PUNCH_RANGE), Ok(Hypercall::Vmm { request: Request::Punch, range: at }));
        assert_eq!(read(ALLOCATE_RANGE), Ok(Hypercall::Vmm { request: Request::Allocate, range: at }));
        assert_eq!(Hypercall::read(&asking(PUNCH_RANGE, 0x2001, 2, 0)), Err(HypercallError::Invalid));
    }
}
