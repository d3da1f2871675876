//! The host's way into guest memory: for loaders and for devices that do DMA.

use devices::DmaPort;
use devices::bus::DmaError;
use emu_core::Gpa;
use emu_core::event::{Direction, Event};
use emu_core::sync::Task;
use hypervisor::Vm;

use crate::loader::{GuestMemory, MemoryRefused};

/// Guest memory through the memslots, populated as it is touched.
pub(super) struct HostSide<'a> {
    vm: &'a Vm,
    task: Task<'a>,
}

impl<'a> HostSide<'a> {
    pub(super) fn new(vm: &'a Vm, task: Task<'a>) -> HostSide<'a> {
        HostSide { vm, task }
    }
}

impl GuestMemory for HostSide<'_> {
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), MemoryRefused> {
        self.vm.guest_write(gpa, bytes, &self.task).map_err(|_| MemoryRefused { gpa, len_bytes: bytes.len() as u64 })
    }

    fn zero(&mut self, _gpa: Gpa, _len_bytes: u64) -> Result<(), MemoryRefused> {
        // Loading happens once, into memory nobody has written: it reads as zero, and is left untouched.
        Ok(())
    }
}

impl HostSide<'_> {
    /// A device may not reach this: it is told, and so is whoever records.
    fn refuse(&self, direction: Direction, gpa: Gpa, len: usize) -> DmaError {
        self.task.report(Event::DmaRefused { direction, gpa, len: len as u64 });
        DmaError { gpa, len }
    }
}

impl DmaPort for HostSide<'_> {
    fn read(&mut self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), DmaError> {
        self.vm.guest_read(gpa, bytes, &self.task).map_err(|_| self.refuse(Direction::Read, gpa, bytes.len()))
    }
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), DmaError> {
        self.vm.guest_write(gpa, bytes, &self.task).map_err(|_| self.refuse(Direction::Write, gpa, bytes.len()))
    }
}
