//! An NVMe controller with one namespace (NVM Express 1.4, PCIe transport), enough for the drivers of today's systems.
//!
//! [`Nvme`] is the door: a [`PciDevice`] over a [`Disk`]. A doorbell only notes that there is work; commands are
//! fetched, carried out and completed when the machine next lends memory ([`PciDevice::run_dma`]), in the order of the
//! queues' numbers, so that a run repeats. Interrupts go by MSI-X, or by INTA# while that is off.
//!
//! Always true: one call of `run_dma` does at most what the queues held when it began, and a command moves at most
//! [`MAX_TRANSFER`] bytes. A queue that is no memory makes the controller report a fatal status (CSTS.CFS), and a data
//! pointer that is none fails its command.
//!
//! Left out: SGLs, the controller's own memory, more than one namespace, namespace management, reservations, firmware
//! updates, metadata, power states, round robin with priorities. Deallocation is accepted and does nothing.

mod admin;
mod command;
mod identify;
mod io;
mod prp;
mod queue;
mod regs;

use emu_core::addr::Gpa;
use emu_core::time::Instant;

use crate::block::Disk;
use crate::bus::{DmaPort, Width};
use crate::message::MsiMessage;
use crate::pci::config::{Bar, BarKind, ConfigSpace, Identity};
use crate::pci::msix::Msix;
use crate::pci::{BarAccess, PciDevice};
use admin::Admin;
use command::{COMMAND_BYTES, Command, Outcome, completion};
use queue::{CompletionQueue, Queues, SubmissionQueue};
use regs::Reg;

/// Most bytes that one command moves (MDTS).
pub const MAX_TRANSFER: u64 = 512 << 10;

const MSIX_BAR: u8 = 4;
const MSIX_CAPABILITY: u8 = 0x40;

/// The controller.
#[derive(Debug)]
pub struct Nvme {
    config: ConfigSpace,
    msix: Msix,
    disk: Disk,
    /// Tells controllers of one machine apart.
    number: u16,
    registers: Registers,
    queues: Queues,
    admin: Admin,
    /// A doorbell was rung since the queues were last looked at.
    rung: bool,
}

/// What software programmes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Registers {
    mask: u32,
    configuration: u32,
    status: u32,
    admin_lengths: u32,
    /// ASQ and ACQ.
    admin_bases: [u64; 2],
}

impl Nvme {
    /// A controller over `disk`; `number` tells it from the machine's others.
    pub fn new(disk: Disk, number: u16) -> Nvme {
        let mut config = ConfigSpace::new(Identity {
            vendor: identify::VENDOR,
            device: 0x0010,
            // Mass storage, non-volatile memory, NVM Express.
            class: 0x01_0802,
            revision: 1,
            subsystem: (identify::VENDOR, 0x1100),
            interrupt_pin: 1,
        });
        config.set_bar(0, Bar { kind: BarKind::Memory64, size: regs::BAR_BYTES });
        let msix = Msix::new(&mut config, MSIX_CAPABILITY, MSIX_BAR, regs::IO_QUEUES + 1);
        Nvme {
            config,
            msix,
            disk,
            number,
            registers: Registers::default(),
            queues: Queues::default(),
            admin: Admin::default(),
            rung: false,
        }
    }

    /// What the namespace holds.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    fn read_register(&self, reg: Reg) -> u32 {
        let r = &self.registers;
        match reg {
            Reg::CapLow => regs::CAPABILITIES as u32,
            Reg::CapHigh => (regs::CAPABILITIES >> 32) as u32,
            Reg::Version => regs::VERSION,
            Reg::MaskSet | Reg::MaskClear => r.mask,
            Reg::Configuration => r.configuration,
            Reg::Status => r.status,
            Reg::AdminLengths => r.admin_lengths,
            Reg::AdminBase(byte) => (r.admin_bases[usize::from(byte / 8)] >> (byte % 8 * 8)) as u32,
            // Doorbells read as zero.
            Reg::Tail(_) | Reg::Head(_) => 0,
        }
    }

    fn write_register(&mut self, reg: Reg, value: u32) {
        match reg {
            Reg::CapLow | Reg::CapHigh | Reg::Version | Reg::Status => {}
            Reg::MaskSet => self.registers.mask |= value,
            Reg::MaskClear => self.registers.mask &= !value,
            Reg::Configuration => self.configure(value & regs::CC_WRITABLE),
            Reg::AdminLengths => self.registers.admin_lengths = value & 0x0fff_0fff,
            Reg::AdminBase(byte) => {
                let base = &mut self.registers.admin_bases[usize::from(byte / 8)];
                let shift = byte % 8 * 8;
                let value = if shift == 0 { value & !0xfff } else { value };
                *base = *base & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            Reg::Tail(queue) => self.ring(queue, value, true),
            Reg::Head(queue) => self.ring(queue, value, false),
        }
    }

    /// CC was written: enabling, disabling and shutdown follow from its bits.
    fn configure(&mut self, value: u32) {
        let before = self.registers.configuration;
        self.registers.configuration = value;
        let rose = value & !before;
        if before & !value & regs::CC_ENABLE != 0 {
            self.reset();
        }
        if rose & regs::CC_ENABLE != 0 {
            self.enable();
        }
        let shutdown = value & regs::CC_SHUTDOWN != 0;
        self.registers.status &= !(3 << 2);
        if shutdown {
            // Nothing is cached: the shutdown is complete at once.
            self.registers.status |= regs::CSTS_SHUT_DOWN;
        }
    }

    /// Controller reset: queues and status go, the administrative registers stay.
    fn reset(&mut self) {
        let keep = self.registers;
        self.registers = Registers { mask: 0, status: 0, ..keep };
        self.queues = Queues::default();
        self.admin = Admin::default();
        self.msix.forget_pending();
        self.rung = false;
    }

    fn enable(&mut self) {
        let r = &mut self.registers;
        let lengths = [r.admin_lengths & 0xfff, r.admin_lengths >> 16 & 0xfff].map(|field| field + 1);
        if r.configuration & regs::CC_CHOICES != 0 || lengths.iter().any(|&entries| entries < 2) {
            r.status |= regs::CSTS_FATAL;
            return;
        }
        let [submission, completion] = r.admin_bases.map(Gpa::new);
        self.queues.submission.insert(0, SubmissionQueue::new(submission, lengths[0], 0));
        self.queues.completion.insert(0, CompletionQueue::new(completion, lengths[1], Some(0)));
        r.status |= regs::CSTS_READY;
    }

    /// A doorbell. A queue that does not exist or a value beyond its end is an error that an event tells.
    fn ring(&mut self, queue: u16, value: u32, tail: bool) {
        if self.registers.status & regs::CSTS_READY == 0 {
            return;
        }
        match self.queues.ring(queue, value, tail) {
            Ok(()) => {}
            Err(what) => self.admin.doorbell_error(what),
        }
        self.rung = true;
    }

    fn fail(&mut self) {
        self.registers.status |= regs::CSTS_FATAL;
    }

    /// Carries out the commands of one submission queue until it is empty or its completion queue is full.
    fn work_on(&mut self, id: u16, memory: &mut dyn DmaPort) {
        while self.registers.status & regs::CSTS_FATAL == 0 {
            let Some(queue) = self.queues.submission.get(&id).filter(|queue| !queue.is_empty()) else { return };
            let target = queue.completion;
            if !self.queues.completion.get(&target).is_some_and(CompletionQueue::has_room) {
                return;
            }
            let mut bytes = [0; COMMAND_BYTES as usize];
            if memory.read(queue.next_command(), &mut bytes).is_err() {
                return self.fail();
            }
            let command = Command::parse(&bytes);
            if let Some(queue) = self.queues.submission.get_mut(&id) {
                queue.advance();
            }
            let outcome = if id == 0 { self.administer(&command, memory) } else { self.input_output(&command, memory) };
            if let Some(outcome) = outcome {
                self.complete(id, command.id(), outcome, memory);
            }
        }
    }

    /// Posts a completion for a command of submission queue `id`.
    fn complete(&mut self, id: u16, command: u16, outcome: Outcome, memory: &mut dyn DmaPort) {
        let Some(source) = self.queues.submission.get(&id) else { return };
        let (head, target) = (source.head(), source.completion);
        let Some(queue) = self.queues.completion.get_mut(&target) else { return };
        let bytes = completion(outcome, command, (id, head), queue.phase());
        if memory.write(queue.next_place(), &bytes).is_err() {
            return self.fail();
        }
        queue.advance();
        if let Some(vector) = queue.vector
            && self.msix.enabled(&self.config)
        {
            self.msix.raise(vector);
        }
    }

    /// Event requests that wait, completed by events that wait.
    fn tell_events(&mut self, memory: &mut dyn DmaPort) {
        while self.queues.completion.get(&0).is_some_and(CompletionQueue::has_room)
            && let Some((request, event)) = self.admin.next_event()
        {
            self.complete(0, request, Ok(event), memory);
        }
    }
}

impl PciDevice for Nvme {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_read(&mut self, access: BarAccess, _now: Instant) -> u64 {
        if access.bar == MSIX_BAR {
            return self.msix.read(access.offset, access.width);
        }
        let dword = |offset| u64::from(regs::decode(offset).map_or(0, |reg| self.read_register(reg)));
        let offset = access.offset & !3;
        let mut value = dword(offset);
        if access.width == Width::Qword {
            value |= dword(offset + 4) << 32;
        }
        value >> ((access.offset & 3) * 8)
    }

    fn bar_write(&mut self, access: BarAccess, value: u64, _now: Instant) {
        if access.bar == MSIX_BAR {
            return self.msix.write(access.offset, access.width, value);
        }
        // Registers take whole dwords; a narrower write is undefined and does nothing here.
        if !matches!(access.width, Width::Dword | Width::Qword) {
            return;
        }
        for half in 0..u64::from(access.width.bytes()) / 4 {
            if let Some(reg) = regs::decode(access.offset + half * 4) {
                self.write_register(reg, (value >> (half * 32)) as u32);
            }
        }
    }

    fn intx_asserted(&self) -> bool {
        !self.msix.enabled(&self.config)
            && self.registers.mask & 1 == 0
            && self.queues.completion.values().any(|queue| queue.vector.is_some() && !queue.is_empty())
    }

    fn take_msi(&mut self) -> Option<MsiMessage> {
        self.msix.take(&self.config)
    }

    fn wants_dma(&self) -> bool {
        self.rung
    }

    fn run_dma(&mut self, memory: &mut dyn DmaPort, _now: Instant) {
        self.rung = false;
        let ids: Vec<u16> = self.queues.submission.keys().copied().collect();
        for id in ids {
            self.work_on(id, memory);
        }
        self.tell_events(memory);
    }
}

#[cfg(test)]
mod tests;
