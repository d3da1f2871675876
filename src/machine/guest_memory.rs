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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use devices::CpuIndex;
    use devices::block::{Blank, Disk, DiskAccess};
    use devices::bus::Width;
    use devices::dma::DmaCounters;
    use devices::pci::config::{BarRange, reg};
    use hypervisor::Shareability;
    use proptest::prelude::*;

    use super::*;
    use crate::config::{DiskBus, SnpChoice};
    use crate::loader::Image;
    use crate::loader::igvm::samples;
    use crate::machine::{Device, Limits, Machine, Outcome};
    use crate::trace::Recorder;
    use crate::vmm::hypercall::GpaRange;
    use crate::vmm::memory;

    /// What the guest shares.
    const SHARED: [(u64, u64); 2] = [(0x30_0000, 0x4000), (0x40_0000, 0x1000)];
    const RAM: u64 = 8 << 20;
    const SUBMISSION: u64 = SHARED[0].0;
    const COMPLETION: u64 = SHARED[0].0 + 0x1000;
    const DATA: u64 = SHARED[0].0 + 0x2000;

    /// An SNP guest that has run to its end and shares a little memory, and who counts the accesses that were refused.
    fn machine() -> (Machine, Arc<Recorder>) {
        let refusals = Arc::new(Recorder::new("kvm_dma_refused".parse().expect("an event"), None, Vec::new()));
        let disk = Disk::new(Arc::new(Blank(1 << 20)), DiskAccess::ReadWrite, "serial");
        let builder = Machine::builder().memory(RAM).snp(SnpChoice::default()).recorder(Arc::clone(&refusals));
        let builder = builder.device(Device::Disk(disk, DiskBus::Nvme));
        let mut machine = builder.build(&Image { name: "guest.igvm", bytes: &samples::guest() }).expect("it loads");
        let outcome = machine.run(Limits { max_instructions: Some(100_000) }, |_| true).expect("the host is well");
        assert!(matches!(outcome, Outcome::Terminated { .. }), "{outcome:?}");
        for (gpa, len_bytes) in SHARED {
            let range = GpaRange { gpa: Gpa::new(gpa), len_bytes };
            memory::convert(&machine.vm, range, Shareability::SHARED, &machine.lens.task()).expect("it is memory");
        }
        (machine, refusals)
    }

    /// What the host reads where the guest's code is.
    fn ciphertext(machine: &Machine) -> [u8; 4096] {
        let code = Gpa::new(samples::CODE).frame();
        machine.vm.snp_read_ciphertext(code, &machine.lens.task()).expect("it was executed")
    }

    #[test]
    fn a_device_reaches_exactly_what_the_guest_shares() {
        let (machine, refusals) = machine();
        let before = ciphertext(&machine);
        let starts = prop_oneof![
            0x2f_e000..0x30_5000_u64,
            0x3f_e000..0x40_2000_u64,
            samples::TABLES..samples::PARAMETERS,
            0..RAM + 0x10_0000,
            (1 << 52) - 0x2000..(1_u64 << 52) + 0x2000,
            u64::MAX - 0x2000..=u64::MAX,
        ];
        proptest!(|(start in starts, len in prop_oneof![1..64_usize, 1..0x3000_usize])| {
            let is_shared = |&(gpa, bytes): &(u64, u64)| {
                start >= gpa && start.checked_add(len as u64).is_some_and(|end| end <= gpa + bytes)
            };
            let reachable = SHARED.iter().any(is_shared);
            let told = refusals.recorded().events;
            let gpa = Gpa::new(start);
            let mut port = HostSide::new(&machine.vm, machine.lens.task());
            let mut bytes = vec![0x5a; len];
            let expected = if reachable { Ok(()) } else { Err(DmaError { gpa, len }) };
            prop_assert_eq!(DmaPort::write(&mut port, gpa, &bytes), expected);
            bytes.fill(0);
            prop_assert_eq!(DmaPort::read(&mut port, gpa, &mut bytes), expected);
            prop_assert!(!reachable || bytes.iter().all(|&byte| byte == 0x5a));
            prop_assert_eq!(refusals.recorded().events - told, if reachable { 0 } else { 2 });
        });
        assert!(before == ciphertext(&machine), "nothing private was written");
    }

    #[test]
    fn what_the_host_reads_of_private_memory_is_ciphertext_and_what_it_writes_is_refused() {
        let (machine, _) = machine();
        let code = samples::INSTRUCTIONS;
        let seen = ciphertext(&machine);
        assert!(
            !seen.windows(8).any(|window| code.windows(8).any(|plain| plain == window)),
            "no line of the guest's code"
        );
        let gfn = Gpa::new(samples::CODE).frame();
        let refused = machine.vm.snp_host_write(gfn, &[0x90; 4096], &machine.lens.task()).unwrap_err();
        assert!(refused.is_refusal(), "{refused}");
        assert!(seen == ciphertext(&machine));
    }

    fn registers(machine: &Machine) -> Gpa {
        let device = machine.board.pci().device(2).expect("the disk");
        match device.config().bar_range(0) {
            Some(BarRange::Memory { base, .. }) => base,
            other => panic!("{other:?}"),
        }
    }

    /// The guest's driver writes a register, and the device does what follows.
    fn write(machine: &mut Machine, offset: u64, width: Width, value: u64) {
        let at = registers(machine).wrapping_add(offset);
        let events = machine.board.mmio_write(at, width, value, CpuIndex(0), machine.now).expect("a device");
        assert_eq!(machine.settle(events), None);
    }

    /// An NVMe controller that is ready, with its first command: IDENTIFY into `data`. Status of the controller.
    fn identify(machine: &mut Machine, submission: u64, completion: u64, data: u64) -> u64 {
        let device = machine.board.pci_mut().device_mut(2).expect("the disk");
        device.config_mut().write(reg::COMMAND, Width::Word, 7);
        let mut command = [0; 64];
        (command[0], command[40]) = (6, 1);
        command[24..32].copy_from_slice(&data.to_le_bytes());
        let task = machine.lens.task();
        machine.vm.guest_write(Gpa::new(SUBMISSION), &command, &task).expect("shared");
        write(machine, 0x24, Width::Dword, 15 << 16 | 15);
        write(machine, 0x28, Width::Qword, submission);
        write(machine, 0x30, Width::Qword, completion);
        write(machine, 0x14, Width::Dword, 0x0046_0001);
        write(machine, 0x1000, Width::Dword, 1);
        let at = registers(machine).wrapping_add(0x1c);
        machine.board.mmio_read(at, Width::Dword, CpuIndex(0), machine.now).expect("a device")
    }

    fn completion_status(machine: &mut Machine) -> u16 {
        let mut status = [0; 2];
        machine.read_guest(Gpa::new(COMPLETION + 14), &mut status).expect("shared");
        u16::from_le_bytes(status) >> 1 & 0xff
    }

    #[test]
    fn an_nvme_controller_works_where_the_guest_shares_and_fails_where_it_does_not() {
        const READY: u64 = 1;
        const FATAL: u64 = 2;
        const DATA_TRANSFER_ERROR: u16 = 4;
        let private = samples::CODE;
        let none = DmaCounters::default();
        let counted = |machine: &Machine| machine.device_dma()[0].counters;

        let (mut shared, told) = machine();
        assert_eq!(identify(&mut shared, SUBMISSION, COMPLETION, DATA), READY);
        assert_eq!(completion_status(&mut shared), 0);
        assert_eq!(counted(&shared), DmaCounters { read_bytes: 64, written_bytes: 4096 + 16, refused: 0 });
        assert_eq!(told.recorded().events, 0);

        let (mut data, told) = machine();
        let before = ciphertext(&data);
        assert_eq!(identify(&mut data, SUBMISSION, COMPLETION, private), READY);
        assert_eq!(completion_status(&mut data), DATA_TRANSFER_ERROR);
        assert_eq!(counted(&data), DmaCounters { read_bytes: 64, written_bytes: 16, refused: 1 });
        assert_eq!(told.recorded().events, 1);
        assert!(before == ciphertext(&data), "the guest's memory is what it was");

        let (mut queue, told) = machine();
        assert_eq!(identify(&mut queue, private, COMPLETION, DATA) & FATAL, FATAL);
        assert_eq!(counted(&queue), DmaCounters { refused: 1, ..none });
        assert_eq!(told.recorded().events, 1);
    }
}
