//! How instructions reach memory.
//!
//! An instruction's meaning is written once, over a [`Path`]. On the [`Fast`] path every access is a TLB hit or a
//! [`Miss`], and nothing but tail calls happens; on the [`Slow`] path an access walks, checks, asks devices, and fails
//! with a [`Trap`]. A hot handler runs the fast instance and, on a miss, hands over to an out-of-line slow instance
//! that starts the instruction again. Therefore an instruction must not change any state before its last access that
//! can fail.

use emu_core::memory::Scalar;
use emu_core::regs::{BreakpointKind, Dr6};
use emu_core::sev::ExitCode;
use emu_core::{Access, AccessKind, Exception, Gpa, Gva, Privilege, Spa};
use mmu::fast::Others;
use mmu::{MmuFault, NestedPageFault, Stage2Cause};

use crate::cpu::Cpu;
use crate::exit::{Completion, Exit, LinearData, MmioAccess, MmioData, Trap};
use crate::intercept::Refused;
use crate::latch::Question;
use crate::sev::intercept::vc;

/// The fast path cannot: take the slow one.
pub(crate) struct Miss;

impl From<Exception> for Miss {
    fn from(_: Exception) -> Miss {
        Miss
    }
}

/// See the module.
pub(crate) trait Path {
    /// Why an access was not made.
    type Stop: From<Exception>;
    /// Whether this is the fast path, where stopping means starting again on the slow one.
    const FAST: bool;
    /// Loads from a linear address reached through segment `seg`.
    fn load<T: Scalar>(cpu: &mut Cpu, linear: u64, seg: u8) -> Result<T, Self::Stop>;
    /// Stores.
    fn store<T: Scalar>(cpu: &mut Cpu, linear: u64, seg: u8, value: T) -> Result<(), Self::Stop>;
    /// Loads, changes and stores back; nothing is changed unless the store is possible.
    fn update<T: Scalar, R>(cpu: &mut Cpu, linear: u64, seg: u8, change: impl Fn(T) -> (T, R))
    -> Result<R, Self::Stop>;
    /// Makes sure that a store of `len` bytes would succeed.
    fn probe_store(cpu: &mut Cpu, linear: u64, seg: u8, len: u64) -> Result<(), Self::Stop>;
}

pub(crate) struct Fast;
pub(crate) struct Slow;

impl Path for Fast {
    type Stop = Miss;
    const FAST: bool = true;

    #[inline(always)]
    fn load<T: Scalar>(cpu: &mut Cpu, linear: u64, _seg: u8) -> Result<T, Miss> {
        cpu.mmu.fast.load(linear).ok_or(Miss)
    }
    #[inline(always)]
    fn store<T: Scalar>(cpu: &mut Cpu, linear: u64, _seg: u8, value: T) -> Result<(), Miss> {
        cpu.mmu.fast.store(linear, value).ok_or(Miss)
    }
    #[inline(always)]
    fn update<T: Scalar, R>(cpu: &mut Cpu, linear: u64, _seg: u8, change: impl Fn(T) -> (T, R)) -> Result<R, Miss> {
        cpu.mmu.fast.update(linear, change).ok_or(Miss)
    }
    #[inline(always)]
    fn probe_store(cpu: &mut Cpu, linear: u64, _seg: u8, len: u64) -> Result<(), Miss> {
        if cpu.mmu.fast.can_store(linear, len) { Ok(()) } else { Err(Miss) }
    }
}

impl Path for Slow {
    type Stop = Trap;
    const FAST: bool = false;

    #[inline]
    fn load<T: Scalar>(cpu: &mut Cpu, linear: u64, seg: u8) -> Result<T, Trap> {
        match cpu.mmu.fast.load(linear) {
            Some(value) => Ok(value),
            None => load_slow(cpu, linear, seg),
        }
    }
    #[inline]
    fn store<T: Scalar>(cpu: &mut Cpu, linear: u64, seg: u8, value: T) -> Result<(), Trap> {
        match cpu.mmu.fast.store(linear, value) {
            Some(()) => Ok(()),
            None => store_slow(cpu, linear, seg, value),
        }
    }
    fn update<T: Scalar, R>(cpu: &mut Cpu, linear: u64, seg: u8, change: impl Fn(T) -> (T, R)) -> Result<R, Trap> {
        let len = size_of::<T>() as u64;
        if cpu.is_shadowed()
            && split(linear, len).is_none()
            && let Some(result) = update_refused(cpu, linear, seg, &change)?
        {
            return Ok(result);
        }
        // Writability is settled before the load, so that a read-only page faults as a write does and a device's read
        // is not repeated.
        Self::probe_store(cpu, linear, seg, len)?;
        if cpu.mmu.fast.others() == Others::Beside && split(linear, len).is_none() {
            // Others may store between a load and a store of ours. What crosses a page is done in two steps all the same.
            if let Target::Memory(spa) = cpu.place(linear, AccessKind::Write, seg)? {
                let Ok(result) = cpu.mmu.fast.memory().update(spa, change) else {
                    unreachable!("the page was there when it was placed")
                };
                cpu.note_data_access(linear, len, BreakpointKind::ReadWrite);
                cpu.look_for_written_code();
                return Ok(result);
            }
        }
        let (new, result) = change(Self::load(cpu, linear, seg)?);
        Self::store(cpu, linear, seg, new)?;
        Ok(result)
    }
    fn probe_store(cpu: &mut Cpu, linear: u64, seg: u8, len: u64) -> Result<(), Trap> {
        if cpu.mmu.fast.can_store(linear, len) {
            return Ok(());
        }
        cpu.check_operand(linear, len, seg)?;
        // Where a device is found nothing is asked yet: the store itself does.
        let first = cpu.place(linear, AccessKind::Write, seg)?;
        cpu.settle_target(&first)?;
        if let Some((next, _)) = split(linear, len) {
            let second = cpu.place(next, AccessKind::Write, seg)?;
            cpu.settle_target(&second)?;
        }
        Ok(())
    }
}

/// A read-modify-write of a page that shadow tables let be read only, because it is a guest table: the hypervisor makes it
/// in one step. `None` where the page is anything else.
#[cold]
#[inline(never)]
fn update_refused<T: Scalar, R>(
    cpu: &mut Cpu,
    linear: u64,
    seg: u8,
    change: &impl Fn(T) -> (T, R),
) -> Result<Option<R>, Trap> {
    if let Some(old) = cpu.exchanged(linear) {
        cpu.note_data_access(linear, size_of::<T>() as u64, BreakpointKind::ReadWrite);
        return Ok(Some(change(old).1));
    }
    if cpu.mmu.fast.can_store(linear, size_of::<T>() as u64) {
        return Ok(None);
    }
    cpu.check_operand(linear, size_of::<T>() as u64, seg)?;
    let Target::Refused(refused) = cpu.place(linear, AccessKind::Write, seg)? else { return Ok(None) };
    let Target::Memory(spa) = cpu.place(linear, AccessKind::Read, seg)? else { return Ok(None) };
    let mut bytes = [0; 32];
    cpu.fetch_bytes(&Target::Memory(spa), &mut bytes[..size_of::<T>()])?;
    let old = T::from_bytes(&bytes);
    Err(cpu.ask_exchange(linear, refused, old, change(old).0))
}

/// For an access that crosses into another page: the first address there, and the bytes before it.
fn split(linear: u64, len: u64) -> Option<(u64, usize)> {
    let before = 0x1000 - (linear & 0xfff);
    (len > before).then(|| (linear.wrapping_add(before), before as usize))
}

/// What a linear address turned out to be.
enum Target {
    Memory(Spa),
    Device {
        gpa: Gpa,
        refused: Option<NestedPageFault>,
    },
    /// Shadow tables say no; what is behind is for the hypervisor to find out.
    Refused(Refused),
}

#[cold]
#[inline(never)]
fn load_slow<T: Scalar>(cpu: &mut Cpu, linear: u64, seg: u8) -> Result<T, Trap> {
    let len = size_of::<T>();
    cpu.check_operand(linear, len as u64, seg)?;
    let first = cpu.place(linear, AccessKind::Read, seg)?;
    let mut bytes = [0; 32];
    match split(linear, len as u64) {
        None => cpu.fetch_bytes(&first, &mut bytes[..len])?,
        Some((next, before)) => {
            let second = cpu.place(next, AccessKind::Read, seg)?;
            cpu.settle_target(&first)?;
            cpu.settle_target(&second)?;
            cpu.fetch_bytes(&first, &mut bytes[..before])?;
            cpu.fetch_bytes(&second, &mut bytes[before..len])?;
        }
    }
    cpu.note_data_access(linear, len as u64, BreakpointKind::ReadWrite);
    Ok(T::from_bytes(&bytes))
}

#[cold]
#[inline(never)]
fn store_slow<T: Scalar>(cpu: &mut Cpu, linear: u64, seg: u8, value: T) -> Result<(), Trap> {
    let len = size_of::<T>();
    cpu.check_operand(linear, len as u64, seg)?;
    let first = cpu.place(linear, AccessKind::Write, seg)?;
    let bytes = value.to_bytes();
    match split(linear, len as u64) {
        None => cpu.put_bytes(&first, &bytes[..len])?,
        Some((next, before)) => {
            let second = cpu.place(next, AccessKind::Write, seg)?;
            cpu.settle_target(&first)?;
            cpu.settle_target(&second)?;
            cpu.put_bytes(&first, &bytes[..before])?;
            cpu.put_bytes(&second, &bytes[before..len])?;
        }
    }
    cpu.note_data_access(linear, len as u64, BreakpointKind::Write);
    cpu.look_for_written_code();
    Ok(())
}

impl Cpu {
    /// Whether the code watch has news; they are read before the next instruction.
    #[inline]
    pub fn look_for_written_code(&mut self) {
        if self.mmu.fast.memory().code().is_behind(self.code_cursor) {
            self.attention = true;
        }
    }

    /// What is checked of a whole operand before any of it is translated: that both its ends are canonical, and its
    /// alignment if that is wanted.
    fn check_operand(&self, linear: u64, len: u64, seg: u8) -> Result<(), Exception> {
        if !self.is_canonical(linear) || !self.is_canonical(linear.wrapping_add(len - 1)) {
            return Err(self.bad_address(seg));
        }
        // Of YMM operands, as of XMM operands, four bits are looked at. Other operands longer than 8 bytes are structures
        // whose instructions know what they demand.
        let natural = match len {
            0..=8 => len.next_power_of_two(),
            16 | 32 => 16,
            _ => 1,
        };
        if self.alignment_checked() && linear & (natural - 1) != 0 {
            return Err(Exception::AlignmentCheck);
        }
        Ok(())
    }

    /// Translates one of the program's own operands.
    fn place(&mut self, linear: u64, kind: AccessKind, seg: u8) -> Result<Target, Trap> {
        let access = Access::new(kind, self.privilege());
        let placed = self.locate(linear, access, seg);
        self.look_for_written_code();
        placed
    }

    fn locate(&mut self, linear: u64, access: Access, seg: u8) -> Result<Target, Trap> {
        match self.mmu.translate(Gva::new(linear), access) {
            Ok(found) => {
                if self.mmu.fast.memory().page(found.spa.frame()).is_some() {
                    Ok(Target::Memory(found.spa))
                } else {
                    Ok(Target::Device { gpa: found.gpa, refused: None })
                }
            }
            // What a guest with encrypted state wanted there, nobody is told.
            Err(MmuFault::Nested(fault)) if matches!(fault.cause, Stage2Cause::FinalAddress) && self.sev.is_none() => {
                Ok(Target::Device { gpa: fault.gpa, refused: Some(fault) })
            }
            Err(MmuFault::Guest { gva, code }) if self.is_shadowed() => {
                Ok(Target::Refused(Refused { gva, access, code }))
            }
            Err(fault) => Err(self.mmu_trap(fault, seg)),
        }
    }

    /// Settles what is known of `target` before another part of the access is made.
    fn settle_target(&mut self, target: &Target) -> Result<(), Trap> {
        match *target {
            Target::Refused(refused) => self.settle_refused(refused),
            Target::Memory(_) | Target::Device { .. } => Ok(()),
        }
    }

    /// What a failed translation means to the instruction, when no device can be behind it.
    pub fn mmu_trap(&mut self, fault: MmuFault, seg: u8) -> Trap {
        match fault {
            MmuFault::NonCanonical { .. } => self.bad_address(seg).into(),
            MmuFault::Guest { gva, code } if self.is_shadowed() => self.page_fault(gva, code),
            MmuFault::Guest { gva, code } => Exception::PageFault { gva, code }.into(),
            MmuFault::Nested(fault) => self.nested_trap(fault),
            MmuFault::NotValidated { gva } => {
                self.control.cr2 = gva.raw();
                vc(ExitCode::PAGE_NOT_VALIDATED).into()
            }
            MmuFault::LogFull => Exit::ModificationLogFull.into(),
            // A page table where no memory is reads as all ones on the bus; no system has one on purpose.
            MmuFault::Bus(error) => {
                let access = MmioAccess { gpa: Gpa::new(error.spa.raw()), len_bytes: 8, data: MmioData::Read };
                Exit::Mmio { spa: error.spa, access }.into()
            }
        }
    }

    fn ask_device(
        &mut self,
        gpa: Gpa,
        refused: Option<NestedPageFault>,
        len: usize,
        data: MmioData,
    ) -> Result<[u8; 32], Trap> {
        let write = data != MmioData::Read;
        let question = Question::Memory { address: gpa.raw(), len_bytes: len as u8, write };
        match self.latch.ask(question) {
            Some(Completion::Done(bytes)) => Ok(bytes),
            Some(Completion::Refused | Completion::PageFault(_)) => Err(Exception::GP0.into()),
            None => {
                let access = MmioAccess { gpa, len_bytes: len as u8, data };
                Err(match refused {
                    Some(fault) => Exit::NestedPageFault { fault, access: Some(access) }.into(),
                    None => Exit::Mmio { spa: Spa::new(gpa.raw()), access }.into(),
                })
            }
        }
    }

    fn fetch_bytes(&mut self, from: &Target, into: &mut [u8]) -> Result<(), Trap> {
        match *from {
            Target::Memory(spa) => {
                if self.mmu.fast.memory().read(spa, into).is_err() {
                    unreachable!("the page was there when it was placed")
                }
                Ok(())
            }
            Target::Device { gpa, refused } => {
                let bytes = self.ask_device(gpa, refused, into.len(), MmioData::Read)?;
                into.copy_from_slice(&bytes[..into.len()]);
                Ok(())
            }
            Target::Refused(refused) => {
                let bytes = self.ask_linear(refused, into.len(), LinearData::Read)?;
                into.copy_from_slice(&bytes[..into.len()]);
                Ok(())
            }
        }
    }

    fn put_bytes(&mut self, to: &Target, from: &[u8]) -> Result<(), Trap> {
        match *to {
            Target::Memory(spa) => {
                if self.mmu.fast.memory().write(spa, from).is_err() {
                    unreachable!("the page was there when it was placed")
                }
                Ok(())
            }
            Target::Device { gpa, refused } => {
                let mut bytes = [0; 32];
                bytes[..from.len()].copy_from_slice(from);
                self.ask_device(gpa, refused, from.len(), MmioData::Write(bytes)).map(drop)
            }
            Target::Refused(refused) => {
                let mut bytes = [0; 32];
                bytes[..from.len()].copy_from_slice(from);
                self.ask_linear(refused, from.len(), LinearData::Write(bytes)).map(drop)
            }
        }
    }

    /// Remembers which data breakpoints this access matches; they trap when the instruction retires.
    fn note_data_access(&mut self, linear: u64, len: u64, kind: BreakpointKind) {
        let dr7 = self.control.dr7;
        if !dr7.any_enabled() {
            return;
        }
        for n in 0..4 {
            let watches = match dr7.kind(n) {
                BreakpointKind::ReadWrite => true,
                BreakpointKind::Write => kind == BreakpointKind::Write,
                BreakpointKind::Execute | BreakpointKind::Io => false,
            };
            let size = dr7.len_bytes(n);
            let base = self.control.dr[n] & !(size - 1);
            let overlaps = linear < base.wrapping_add(size) && base < linear.wrapping_add(len);
            if dr7.enabled(n) && watches && overlaps {
                self.debug_hits |= Dr6::from_bits_retain(1 << n);
                self.attention = true;
            }
        }
    }

    /// Loads from a system structure (descriptor table, TSS): supervisor authority whatever the CPL.
    pub fn load_system<T: Scalar>(&mut self, linear: u64) -> Result<T, Trap> {
        self.load_as(linear, Privilege::Supervisor)
    }

    /// Stores to a system structure.
    pub fn store_system<T: Scalar>(&mut self, linear: u64, value: T) -> Result<(), Trap> {
        self.store_as(linear, Privilege::Supervisor, value)
    }

    /// Loads on the authority of `privilege`.
    pub fn load_as<T: Scalar>(&mut self, linear: u64, privilege: Privilege) -> Result<T, Trap> {
        self.mmu.fast.select(privilege);
        let hit = self.mmu.fast.load(linear);
        self.refresh_privilege();
        if let Some(value) = hit {
            return Ok(value);
        }
        let mut bytes = [0; 32];
        self.load_implicit(linear, &mut bytes[..size_of::<T>()], privilege)?;
        Ok(T::from_bytes(&bytes))
    }

    /// Stores on the authority of `privilege`.
    pub fn store_as<T: Scalar>(&mut self, linear: u64, privilege: Privilege, value: T) -> Result<(), Trap> {
        self.mmu.fast.select(privilege);
        let hit = self.mmu.fast.store(linear, value);
        self.refresh_privilege();
        match hit {
            Some(()) => Ok(()),
            None => self.store_implicit(linear, &value.to_bytes()[..size_of::<T>()], privilege),
        }
    }

    /// Loads on an authority that may differ from the program's (the stack of an inner ring).
    pub fn load_implicit(&mut self, linear: u64, into: &mut [u8], privilege: Privilege) -> Result<(), Trap> {
        let access = Access::new(AccessKind::Read, privilege);
        let len = into.len();
        let first = self.locate(linear, access, crate::segment::FLAT)?;
        match split(linear, len as u64) {
            None => self.fetch_bytes(&first, into)?,
            Some((next, before)) => {
                let second = self.locate(next, access, crate::segment::FLAT)?;
                self.settle_target(&first)?;
                self.settle_target(&second)?;
                let (low, high) = into.split_at_mut(before);
                self.fetch_bytes(&first, low)?;
                self.fetch_bytes(&second, high)?;
            }
        }
        self.look_for_written_code();
        Ok(())
    }

    /// Stores on an authority that may differ from the program's.
    pub fn store_implicit(&mut self, linear: u64, from: &[u8], privilege: Privilege) -> Result<(), Trap> {
        let access = Access::new(AccessKind::Write, privilege);
        let first = self.locate(linear, access, crate::segment::FLAT)?;
        match split(linear, from.len() as u64) {
            None => self.put_bytes(&first, from)?,
            Some((next, before)) => {
                let second = self.locate(next, access, crate::segment::FLAT)?;
                self.settle_target(&first)?;
                self.settle_target(&second)?;
                self.put_bytes(&first, &from[..before])?;
                self.put_bytes(&second, &from[before..])?;
            }
        }
        self.look_for_written_code();
        Ok(())
    }
}
