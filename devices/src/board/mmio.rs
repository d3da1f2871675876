//! Memory and MSR accesses of the processors.

use emu_core::addr::Gpa;
use emu_core::page::PageSize;
use emu_core::time::Instant;

use super::{Board, BoardEvents, TestPorts};
use crate::bus::{CpuIndex, Width};
use crate::lapic::regs::decode_xapic;
use crate::lapic::{ApicMode, Effect, MsrError};
use crate::testdev;

/// The I/O APIC's window: one page.
pub const IOAPIC_BASE: Gpa = Gpa::new(0xfec0_0000);

impl Board {
    /// Byte within the xAPIC page of `cpu`, if `gpa` lies in it and the page is in force.
    #[inline]
    fn in_lapic(&self, gpa: Gpa, cpu: CpuIndex) -> Option<u16> {
        let base = self.apics.get(cpu)?.base();
        let hit = base.mode() == ApicMode::XApic && gpa.align_down(PageSize::Size4K) == base.page();
        hit.then(|| gpa.page_offset() as u16)
    }

    /// Whether a memory access of `cpu` at `gpa` is a device's: the question to ask before RAM, which a local
    /// APIC's page covers.
    #[inline]
    pub fn claims_mmio(&self, gpa: Gpa, cpu: CpuIndex) -> bool {
        self.in_lapic(gpa, cpu).is_some() || gpa.align_down(PageSize::Size4K) == IOAPIC_BASE
    }

    /// Reads memory on behalf of `cpu`: the value, all ones where nothing answers. `None` when the access is to RAM's
    /// part of the space, below [`BoardConfig::low_memory`](super::BoardConfig) or from 4 GiB on within high memory,
    /// and no local APIC lies over it.
    pub fn mmio_read(&mut self, gpa: Gpa, width: Width, cpu: CpuIndex, now: Instant) -> Option<u64> {
        if let Some(offset) = self.in_lapic(gpa, cpu) {
            // Registers are 32 bits at 16-byte steps; narrower reads see their bytes, wider ones zeros above.
            let byte = offset & 3;
            // Only a place without a register has an effect when read: the error interrupt.
            let lapic = match decode_xapic(offset & !3) {
                Some(_) => self.apics.get_quietly(cpu)?,
                None => self.apics.get_mut(cpu)?,
            };
            let value = lapic.mmio_read(offset & !3, now) as u64 >> (byte * 8) & width.mask();
            self.collect_touched();
            return Some(value);
        }
        if gpa.align_down(PageSize::Size4K) == IOAPIC_BASE {
            let offset = gpa.page_offset() as u16;
            return Some(self.ioapic.read(offset & !3) as u64 >> ((offset & 3) * 8) & width.mask());
        }
        if self.is_ram(gpa) {
            return None;
        }
        if let Some(offset) = self.in_test_memory(gpa) {
            return Some(self.test.memory_read(offset, width));
        }
        let value = self.pci.mmio_read(gpa, width, now).unwrap_or(width.mask());
        self.settle();
        Some(value)
    }

    /// Writes memory on behalf of `cpu`; `None` as in [`Board::mmio_read`]. Local and I/O APIC registers take aligned
    /// 32-bit writes; other writes to them do nothing.
    pub fn mmio_write(
        &mut self,
        gpa: Gpa,
        width: Width,
        value: u64,
        cpu: CpuIndex,
        now: Instant,
    ) -> Option<BoardEvents> {
        if let Some(offset) = self.in_lapic(gpa, cpu) {
            if offset & 3 == 0 && width == Width::Dword {
                let effect = self.apics.get_mut(cpu)?.mmio_write(offset, value as u32, now);
                return Some(self.after_lapic(cpu, effect));
            }
            return Some(BoardEvents::empty());
        }
        if gpa.align_down(PageSize::Size4K) == IOAPIC_BASE {
            if width == Width::Dword {
                let apics = &mut self.apics;
                let offset = gpa.page_offset() as u16;
                self.ioapic.write(offset, value as u32, |message| apics.route(None, message));
            }
            return Some(self.settle());
        }
        if self.is_ram(gpa) {
            return None;
        }
        if let Some(offset) = self.in_test_memory(gpa) {
            self.test.memory_write(offset, width, value);
            return Some(BoardEvents::empty());
        }
        self.pci.mmio_write(gpa, width, value, now);
        Some(self.settle() | BoardEvents::TIMERS)
    }

    /// Byte within the test device's memory, if the board has that device and `gpa` lies there.
    fn in_test_memory(&self, gpa: Gpa) -> Option<u64> {
        let offset = gpa.raw().checked_sub(testdev::MEMORY_BASE.raw())?;
        (self.config.test_ports == TestPorts::Present && offset < testdev::MEMORY_BYTES).then_some(offset)
    }

    const fn is_ram(&self, gpa: Gpa) -> bool {
        let at = gpa.raw();
        const HIGH: u64 = 1 << 32;
        at < self.config.low_memory || at >= HIGH && at - HIGH < self.config.high_memory
    }

    fn after_lapic(&mut self, cpu: CpuIndex, effect: Effect) -> BoardEvents {
        self.apply(cpu, effect);
        self.collect_touched();
        self.outstanding() | BoardEvents::TIMERS
    }

    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// [`MsrError::NotOurs`] when another part of the machine must answer, else what the guest gets.
    pub fn msr_read(&self, cpu: CpuIndex, number: u32, now: Instant) -> Result<u64, MsrError> {
        match self.apics.get(cpu) {
            Some(lapic) => lapic.msr_read(number, now),
            None => Err(MsrError::NotOurs(number)),
        }
    }

    /// WRMSR of the same.
    ///
    /// # Errors
    /// As for [`Board::msr_read`].
    pub fn msr_write(&mut self, cpu: CpuIndex, number: u32, value: u64, now: Instant) -> Result<BoardEvents, MsrError> {
        let Some(lapic) = self.apics.get_mut(cpu) else { return Err(MsrError::NotOurs(number)) };
        let effect = lapic.msr_write(number, value, now)?;
        Ok(self.after_lapic(cpu, effect))
    }
}
