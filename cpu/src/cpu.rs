//! The state of one virtual processor, as instruction semantics see it.
//!
//! Registers that the hot handlers touch come first and together. The rest is grouped by the manual's chapters. State
//! that follows from other state (effective segment bases, the mode key, the fast TLB's context) is refreshed by
//! [`Cpu::refresh_mode`] and [`Cpu::refresh_privilege`], which every change of its sources must call.

use std::sync::Arc;

use emu_core::cpu_model::CpuModel;
use emu_core::memory::code::Cursor;
use emu_core::regs::{Cr0, Cr4, Dr6, Dr7, Efer, Rflags, Xcr0};
use emu_core::time::{Instant, MeetingPoint};
use emu_core::{Exception, Gva, Privilege};
use mmu::Mmu;
use mmu::rmp::RmpRegisters;

use crate::code::JumpTable;
use crate::event::{Event, InterruptShadow, Pending};
use crate::exit::Trap;
use crate::flags::Flags;
use crate::intercept::Tables;
use crate::latch::Latch;
use crate::mode::{Mode, ModeKey};
use crate::msr::MsrFile;
use crate::op::{GPR_SLOTS, Op, OpenLink, RIP};
use crate::random::Random;
use crate::segment::{SegReg, Segments};
use crate::sev::SevGuest;
use crate::sev::record::SevRecord;
use crate::simd::VectorState;
use crate::width::Width;
use crate::x87::X87State;

/// Control and debug registers.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    pub cr0: Cr0,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: Cr4,
    pub efer: Efer,
    pub xcr0: Xcr0,
    pub pkru: u32,
    pub dr: [u64; 4],
    pub dr6: Dr6,
    pub dr7: Dr7,
    /// The PDPTE registers, loaded with CR3 while PAE paging is on; `None` where every walk reads the entries.
    pub pdptes: Option<[u64; 4]>,
}

/// See the module. In memory as it stands here, so that what handlers touch most is reached by short displacements.
#[repr(C)]
pub(crate) struct Cpu {
    pub flags: Flags,
    /// Units of time left before `until`; a block is charged when it is entered.
    pub budget: i64,
    pub key: ModeKey,
    /// Something happened that the run loop must see before the next instruction (code was overwritten).
    pub attention: bool,
    pub jumps: JumpTable,
    /// The sixteen registers, [`crate::op::ZERO`], [`RIP`], and padding to a power of two.
    pub gpr: [u64; GPR_SLOTS],
    /// When `budget` is zero it is this time.
    pub until: Instant,
    /// Effective base of each segment ([`crate::segment::FLAT`] and above are zero); in 64-bit mode only FS and GS have one.
    pub seg_base: [u64; 8],
    pub mmu: Mmu,

    pub cpl: u8,
    pub mode: Mode,
    pub segments: Segments,
    pub control: Control,
    pub vector: VectorState,
    pub x87: X87State,
    pub msr: MsrFile,
    pub model: CpuModel,
    pub random: Random,

    /// Why the last handler returned [`crate::op::Next::Trap`].
    pub trap: Option<Trap>,
    /// An exception or interrupt that is being delivered; survives exits during its delivery.
    pub event: Option<Event>,
    pub shadow: InterruptShadow,
    pub pending: Pending,
    /// DR6 bits of data breakpoints and single step that fire when the current instruction retires.
    pub debug_hits: Dr6,
    /// The chain ended at a direct branch whose link is open.
    pub unlinked: Option<OpenLink>,
    pub latch: Latch,
    /// Whose tables `mmu` walks.
    pub tables: Tables,
    pub code_cursor: Cursor,
    /// Where it meets the clocks of processors that run at the same time.
    pub meeting_point: Option<Arc<MeetingPoint>>,
    /// Units by which its clock was moved there.
    pub skipped: u64,
    /// APIC ID, for CPUID and nothing else.
    pub apic_id: u32,
    /// Number of processors, for CPUID's topology leaves.
    pub cpu_count: u32,
    /// IA32_APIC_BASE.EN as the board last said, for CPUID.
    pub apic_enabled: bool,
    /// The guest mode of encrypted state, while it is in force.
    pub sev: Option<SevGuest>,
    /// The registers that place the RMP and put it in force.
    pub rmp_registers: RmpRegisters,
    /// What such a guest did, while somebody wants to know.
    pub sev_records: Option<Vec<SevRecord>>,
}

impl Cpu {
    /// Reads the low part of register `n`. Byte registers go through [`Cpu::reg8`].
    #[inline(always)]
    pub fn reg<T: Width>(&self, n: u8) -> T {
        if T::LOG == 0 {
            let shift = (n >> 4) & 8;
            return T::truncate(self.gpr[n as usize % GPR_SLOTS] >> shift);
        }
        T::truncate(self.gpr[n as usize % GPR_SLOTS])
    }

    /// Writes the low part of register `n`: 32-bit values clear the upper half, 8- and 16-bit values keep the rest.
    #[inline(always)]
    pub fn set_reg<T: Width>(&mut self, n: u8, value: T) {
        let slot = &mut self.gpr[n as usize % GPR_SLOTS];
        if T::LOG == 0 {
            let shift = (n >> 4) & 8;
            *slot = *slot & !(0xff << shift) | value.zero_extend() << shift;
        } else {
            *slot = value.merge(*slot);
        }
    }

    /// The address of the instruction that `op` is.
    #[inline]
    pub fn rip_of(&self, op: &Op) -> u64 {
        self.gpr[RIP as usize].wrapping_add(op.start()) & self.ip_mask()
    }

    /// The address after the instruction that `op` is.
    #[inline]
    pub fn rip_after(&self, op: &Op) -> u64 {
        self.gpr[RIP as usize].wrapping_add(op.ip as u64) & self.ip_mask()
    }

    /// RIP at an instruction boundary.
    #[inline]
    pub fn rip(&self) -> u64 {
        self.gpr[RIP as usize]
    }

    /// Sets RIP; the caller leaves the block.
    #[inline]
    pub fn set_rip(&mut self, rip: u64) {
        self.gpr[RIP as usize] = rip;
    }

    /// Outside 64-bit mode the instruction pointer has 32 bits.
    #[inline]
    pub fn ip_mask(&self) -> u64 {
        if self.key.is_64() { u64::MAX } else { 0xffff_ffff }
    }

    /// Linear address of code at offset `rip`.
    #[inline]
    pub fn code_linear(&self, rip: u64) -> u64 {
        let base = self.seg_base[SegReg::Cs as usize];
        if self.key.is_64() { rip } else { base.wrapping_add(rip) & 0xffff_ffff }
    }

    /// The time at the instruction boundary before `op`, which is part of a block charged already.
    #[inline]
    pub fn now_at(&self, op: &Op) -> Instant {
        Instant::new(self.until.units().wrapping_sub((self.budget + op.left as i64) as u64))
    }

    /// The time at an instruction boundary outside any block.
    #[inline]
    pub fn now(&self) -> Instant {
        Instant::new(self.until.units().wrapping_sub(self.budget as u64))
    }

    /// Where other processors have come further than `now`, so has this one: its clock moves to theirs.
    pub fn meet_others(&mut self, now: Instant) {
        if let Some(point) = &self.meeting_point {
            let ahead = point.meet(now).saturating_since(now);
            self.until = self.until + ahead;
            self.skipped += ahead.units();
        }
    }

    /// On whose authority the program's own operands are accessed.
    #[inline]
    pub fn privilege(&self) -> Privilege {
        if self.cpl == 3 {
            Privilege::User
        } else if self.flags.other.contains(Rflags::AC) {
            Privilege::SupervisorAc
        } else {
            Privilege::Supervisor
        }
    }

    /// Whether data accesses are checked for alignment (CR0.AM, RFLAGS.AC, CPL 3).
    #[inline]
    pub fn alignment_checked(&self) -> bool {
        self.cpl == 3 && self.control.cr0.contains(Cr0::AM) && self.flags.other.contains(Rflags::AC)
    }

    /// After a change of CPL, RFLAGS.AC, CR0.AM or DR7: selects what the fast TLB may answer.
    pub fn refresh_privilege(&mut self) {
        if self.alignment_checked() || self.has_data_breakpoints() {
            let privilege = self.privilege();
            self.mmu.fast.select_none(privilege);
        } else {
            let privilege = self.privilege();
            self.mmu.fast.select(privilege);
        }
    }

    /// After a change of CR0, CR4, EFER, XCR0, RFLAGS.VM, CS or SS: the mode, what decoded code depends on, and the
    /// effective segment bases.
    pub fn refresh_mode(&mut self) {
        let c = &self.control;
        self.mode = Mode::of(c.cr0, c.efer, self.flags.other, &self.segments);
        self.key = ModeKey::of(self.mode, c.cr0, c.cr4, c.xcr0, &self.segments);
        for reg in SegReg::ALL {
            let flat = self.mode == Mode::Long64 && !matches!(reg, SegReg::Fs | SegReg::Gs);
            self.seg_base[reg as usize] = if flat { 0 } else { self.segments.get(reg).base };
        }
        self.refresh_privilege();
    }

    /// Whether any enabled breakpoint watches data.
    pub fn has_data_breakpoints(&self) -> bool {
        use emu_core::regs::BreakpointKind::{ReadWrite, Write};
        let dr7 = self.control.dr7;
        dr7.any_enabled() && (0..4).any(|n| dr7.enabled(n) && matches!(dr7.kind(n), Write | ReadWrite))
    }

    /// Whether `gva` is canonical in the current paging mode.
    pub fn is_canonical(&self, gva: u64) -> bool {
        let shift = if self.control.cr4.contains(Cr4::LA57) { 64 - 57 } else { 64 - 48 };
        ((gva << shift) as i64 >> shift) as u64 == gva
    }

    /// The exception for an unusable address: #SS through the stack segment, #GP otherwise.
    pub fn bad_address(&self, seg: u8) -> Exception {
        if seg == SegReg::Ss as u8 {
            Exception::StackFault(emu_core::exception::SelectorError::NONE)
        } else {
            Exception::GP0
        }
    }

    /// The linear address as a typed one.
    #[inline]
    pub fn gva(linear: u64) -> Gva {
        Gva::new(linear)
    }
}
