//! The board: every device of this crate, wired, for a number of processors.
//!
//! [`Board`] answers the three ways a processor reaches devices: ports ([`Board::io_read`]), memory
//! ([`Board::mmio_read`]) and MSRs ([`Board::msr_read`]). What the machine has to do in turn comes out as values:
//! [`BoardEvents`] from each write says in a byte whether to look, [`Board::take_requests`] says at what. Whoever runs
//! the processors calls [`Board::advance`] no later than [`Board::next_event`], lends memory to [`Board::run_dma`]
//! when asked, and asks [`Board::interrupt_for`] whenever a request named the processor or its own RFLAGS.IF,
//! TPR or interrupt shadow changed.
//!
//! Wiring: line 0 (PIT) goes to input 0 of the 8259A pair and input 2 of the I/O APIC; every other line to the input of
//! its number on both; INTR of the 8259A pair to LINT0 of every processor. Lines are recomputed from device state
//! after each access.
//!
//! Accesses of a port or an address that nobody claims read all ones and write nothing.

mod interrupts;
mod mmio;
mod ports;

use core::iter;
use std::collections::VecDeque;

use bitflags::bitflags;
use emu_core::addr::Gpa;
use emu_core::time::Instant;
use thiserror::Error;

pub use interrupts::InterruptSource;
pub use mmio::IOAPIC_BASE;

use crate::acpi::PowerManagement;
use crate::acpi::pm::TimerWidth;
use crate::bus::{CpuIndex, CpuSet, DmaPort, MAX_CPUS};
use crate::chipset::Chipset;
use crate::fw_cfg::{FwCfg, key};
use crate::i8042::I8042;
use crate::ioapic::Ioapic;
use crate::lapic::timer::TscClock;
use crate::lapic::{Apics, Lapic, LapicConfig};
use crate::pci::{INTX_LINES, PciBus};
use crate::pic::PicPair;
use crate::pit::Pit;
use crate::rtc::Rtc;
use crate::testdev::TestDevice;
use crate::uart::Uart;

/// What state the interrupt controllers start in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum StartState {
    /// As firmware leaves a PC: 8259A pair initialised and masked, the bootstrap processor's APIC in virtual-wire mode.
    #[default]
    AfterFirmware,
    /// As the reset line leaves it, for images that bring their own firmware.
    Reset,
}

/// Whether the ports of kvm-unit-tests' test device exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum TestPorts {
    /// They do not; 0xe9 is a debug console.
    #[default]
    Absent,
    /// They do.
    Present,
}

/// How a board is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoardConfig {
    /// Processors, 1 to [`MAX_CPUS`]. Their APIC IDs are their numbers.
    pub cpus: u16,
    /// Ticks of the time-stamp counter in a virtual second; not 0.
    pub tsc_hertz: u64,
    /// Ticks of the undivided APIC timer clock in a virtual second; not 0.
    pub apic_timer_hertz: u64,
    /// Width of guest physical addresses in bits.
    pub phys_bits: u32,
    /// What the clock shows at reset, in seconds since 1970.
    pub start_time: u64,
    /// Memory below 4 GiB in bytes.
    pub low_memory: u64,
    /// Memory from 4 GiB on in bytes.
    pub high_memory: u64,
    /// Width of the ACPI PM timer.
    pub pm_timer: TimerWidth,
    /// State of the interrupt controllers.
    pub start: StartState,
    /// The test device's ports.
    pub test_ports: TestPorts,
}

impl BoardConfig {
    /// 1 GHz clocks, 48 address bits, 1 January 2026, 32-bit PM timer, after firmware, no test ports.
    pub fn new(cpus: u16, low_memory: u64, high_memory: u64) -> BoardConfig {
        BoardConfig {
            cpus,
            tsc_hertz: 1_000_000_000,
            apic_timer_hertz: 1_000_000_000,
            phys_bits: 48,
            start_time: 1_767_225_600,
            low_memory,
            high_memory,
            pm_timer: TimerWidth::default(),
            start: StartState::default(),
            test_ports: TestPorts::default(),
        }
    }
}

/// The board cannot be built as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BoardError {
    /// Number of processors.
    #[error("{0} processors: a board takes 1 to {MAX_CPUS}")]
    Cpus(u16),
    /// A clock without ticks.
    #[error("the {0} clock needs a frequency of at least 1 Hz")]
    Clock(&'static str),
}

bitflags! {
    /// What a call may have changed that the machine has to follow up.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct BoardEvents: u8 {
        /// [`Board::take_requests`] has something.
        const REQUESTS = 1 << 0;
        /// [`Board::next_event`] may have moved.
        const TIMERS = 1 << 1;
        /// [`Board::run_dma`] is wanted.
        const DMA = 1 << 2;
    }
}

/// What the board asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BoardRequest {
    /// The guest entered S5.
    PowerOff,
    /// The guest reset the machine: build the board anew.
    Reset,
    /// The guest wrote this to a debug-exit port.
    DebugExit(u32),
    /// INIT: the processor goes to its reset state and waits. Its local APIC has been reset already.
    Init(CpuIndex),
    /// Start-up: a processor that waits begins at page `vector`; any other ignores it.
    Sipi {
        /// Which processor.
        cpu: CpuIndex,
        /// Bits 19:12 of where it begins.
        vector: u8,
    },
    /// A non-maskable interrupt.
    Nmi(CpuIndex),
    /// [`Board::interrupt_for`] may answer differently than before.
    InterruptChanged(CpuIndex),
    /// Drop the nested translation of this page (test device).
    FlushPage(Gpa),
    /// Address line 20 was switched.
    A20(bool),
}

/// Every device of a PC but processors and memory.
#[derive(Debug)]
pub struct Board {
    config: BoardConfig,
    apics: Apics,
    ioapic: Ioapic,
    pic: PicPair,
    pit: Pit,
    rtc: Rtc,
    uart: Uart,
    i8042: I8042,
    chipset: Chipset,
    power: PowerManagement,
    pci: PciBus,
    fw_cfg: FwCfg,
    test: TestDevice,
    serial_out: Vec<u8>,
    console_out: Vec<u8>,
    /// Levels of all lines as the controllers last saw them.
    lines: u32,
    /// INTR of the 8259A pair as LINT0 last saw it.
    intr: bool,
    requests: VecDeque<BoardRequest>,
    interrupts_changed: CpuSet,
    dma_wanted: bool,
}

impl Board {
    /// A board as `config` says, at [`Instant::ZERO`].
    ///
    /// # Errors
    /// See [`BoardError`].
    pub fn new(config: BoardConfig) -> Result<Board, BoardError> {
        if config.cpus == 0 || config.cpus as usize > MAX_CPUS {
            return Err(BoardError::Cpus(config.cpus));
        }
        if config.tsc_hertz == 0 {
            return Err(BoardError::Clock("time-stamp"));
        }
        if config.apic_timer_hertz == 0 {
            return Err(BoardError::Clock("APIC timer"));
        }
        let mut lapics: Vec<Lapic> = (0..config.cpus)
            .map(|cpu| {
                Lapic::new(LapicConfig {
                    id: cpu as u32,
                    bsp: cpu == 0,
                    timer_hertz: config.apic_timer_hertz,
                    tsc: TscClock { hertz: config.tsc_hertz, offset: 0 },
                    phys_bits: config.phys_bits,
                })
            })
            .collect();
        let mut pic = PicPair::new();
        if config.start == StartState::AfterFirmware {
            lapics[0].enter_virtual_wire();
            let level = INTX_LINES.iter().fold(1 << crate::acpi::pm::SCI, |set, &line| set | 1 << line);
            pic.firmware_init(level);
        }
        let mut fw_cfg = FwCfg::new();
        fw_cfg.set_u64(key::RAM_SIZE, config.low_memory.saturating_add(config.high_memory));
        fw_cfg.set_u16(key::NB_CPUS, config.cpus);
        fw_cfg.set_u16(key::MAX_CPUS, config.cpus);
        Ok(Board {
            apics: Apics::new(lapics),
            ioapic: Ioapic::new(0),
            pic,
            pit: Pit::new(),
            rtc: Rtc::new(config.start_time, config.low_memory, config.high_memory),
            uart: Uart::new(),
            i8042: I8042::new(),
            chipset: Chipset::new(),
            power: PowerManagement::new(config.pm_timer),
            pci: PciBus::new(),
            fw_cfg,
            test: TestDevice::default(),
            serial_out: Vec::new(),
            console_out: Vec::new(),
            lines: 0,
            intr: false,
            requests: VecDeque::new(),
            interrupts_changed: CpuSet::EMPTY,
            dma_wanted: false,
            config,
        })
    }

    /// How it was built.
    pub const fn config(&self) -> &BoardConfig {
        &self.config
    }
    /// The firmware configuration items, to fill before the guest starts.
    pub const fn fw_cfg_mut(&mut self) -> &mut FwCfg {
        &mut self.fw_cfg
    }
    /// The PCI bus.
    pub const fn pci(&self) -> &PciBus {
        &self.pci
    }
    /// The PCI bus, to plug devices in or to let one take input; call [`Board::refresh`] after the latter.
    pub const fn pci_mut(&mut self) -> &mut PciBus {
        &mut self.pci
    }
    /// Whether address line 20 passes.
    pub const fn a20(&self) -> bool {
        self.chipset.a20()
    }
    /// The last POST code.
    pub const fn post_code(&self) -> u8 {
        self.chipset.post_code()
    }

    /// Bytes for the guest's COM1.
    pub fn serial_input(&mut self, bytes: &[u8]) -> BoardEvents {
        self.uart.receive(bytes);
        self.settle()
    }
    /// Bytes given to COM1 that the guest has not read yet.
    pub fn serial_unread(&self) -> usize {
        self.uart.unread()
    }
    /// Bytes COM1 sent since the last call.
    pub fn serial_output(&mut self) -> impl Iterator<Item = u8> + '_ {
        self.serial_out.drain(..)
    }
    /// Whether [`Board::serial_output`] has anything.
    pub const fn has_serial_output(&self) -> bool {
        !self.serial_out.is_empty()
    }
    /// Bytes the debug console got since the last call.
    pub fn console_output(&mut self) -> impl Iterator<Item = u8> + '_ {
        self.console_out.drain(..)
    }

    /// The power button is pressed.
    pub fn press_power_button(&mut self) -> BoardEvents {
        self.power.press_power_button();
        self.settle()
    }

    /// When the board next has something to do of its own. May be in the past: then at once.
    pub fn next_event(&self, _now: Instant) -> Option<Instant> {
        [
            self.apics.next_event(),
            self.pit.next_event(),
            self.rtc.next_event(),
            self.power.next_event(),
            self.pci.next_event(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Goes on to `now`.
    pub fn advance(&mut self, now: Instant) -> BoardEvents {
        self.apics.advance(now);
        self.pit.sync(now);
        self.rtc.sync(now);
        self.power.sync(now);
        self.pci.advance(now);
        self.settle() | BoardEvents::TIMERS
    }

    /// Lets devices that wait for it work on guest memory.
    pub fn run_dma(&mut self, memory: &mut dyn DmaPort, now: Instant) -> BoardEvents {
        self.dma_wanted = false;
        self.fw_cfg.run_dma(memory);
        self.pci.run_dma(memory, now);
        self.settle()
    }

    /// Looks at all lines and latches anew, after a device was changed through [`Board::pci_mut`].
    pub fn refresh(&mut self) -> BoardEvents {
        self.settle()
    }

    /// Whether [`Board::take_requests`] has something: to ask after reads, which return data alone.
    #[inline]
    pub fn has_requests(&self) -> bool {
        !self.requests.is_empty() || !self.interrupts_changed.is_empty()
    }

    /// What the machine has to do, oldest first; changed interrupts come last, each processor once.
    pub fn take_requests(&mut self) -> impl Iterator<Item = BoardRequest> + '_ {
        self.collect_touched();
        iter::from_fn(|| {
            let request = self.requests.pop_front();
            request.or_else(|| self.interrupts_changed.pop().map(BoardRequest::InterruptChanged))
        })
    }

    /// What is outstanding, as an event set.
    fn outstanding(&self) -> BoardEvents {
        let mut events = BoardEvents::empty();
        events.set(BoardEvents::REQUESTS, self.has_requests());
        events.set(BoardEvents::DMA, self.dma_wanted || self.pci.wants_dma());
        events
    }
}

#[cfg(test)]
mod tests;
