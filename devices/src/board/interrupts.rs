//! Interrupt lines of the board and the processors' view of them.

use emu_core::time::Instant;

use super::{Board, BoardEvents, BoardRequest};
use crate::acpi::pm;
use crate::bus::CpuIndex;
use crate::lapic::{Apics, Effect, Lapic};
use crate::message::{IpiRequest, MsiMessage};
use crate::uart;

/// Where a processor's next maskable interrupt comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InterruptSource {
    /// The local APIC: this vector.
    Lapic(u8),
    /// The 8259A pair; the vector is known when it is acknowledged.
    Pic,
}

/// Line 0 arrives at the I/O APIC's input 2, and its input 0 is the unconnected ExtINT.
const fn to_ioapic(lines: u32) -> u32 {
    lines & !0b101 | (lines & 1) << 2 | lines & 0b100
}

impl Board {
    /// The local APIC of `cpu`.
    #[inline]
    pub fn lapic(&self, cpu: CpuIndex) -> Option<&Lapic> {
        self.apics.get(cpu)
    }
    /// The local APIC of `cpu`, to change (CR8, TSC offset).
    #[inline]
    pub fn lapic_mut(&mut self, cpu: CpuIndex) -> Option<&mut Lapic> {
        self.apics.get_mut(cpu)
    }

    /// Recomputes the lines, carries what follows, and gathers requests.
    pub(super) fn settle(&mut self) -> BoardEvents {
        while let Some(message) = self.pci.take_msi() {
            self.carry_msi(message);
        }
        let rose = self.pit.take_rise();
        let lines = self.device_lines();
        if rose && self.lines & 1 != 0 {
            // The timer's output fell and rose unseen: show the controllers the fall.
            self.drive(lines & !1);
            self.drive(lines | 1);
        } else if rose && lines & 1 == 0 {
            self.drive(lines | 1);
        }
        if lines != self.lines {
            self.drive(lines);
        }
        self.settle_intr();
        self.collect_touched();
        self.outstanding()
    }

    fn device_lines(&self) -> u32 {
        (self.pit.out(0) as u32)
            | (self.i8042.interrupt() as u32) << 1
            | (self.uart.interrupt() as u32) << uart::COM1.1
            | (self.rtc.interrupt() as u32) << 8
            | (self.power.interrupt() as u32) << pm::SCI
            | self.pci.intx_lines()
            | self.test.lines()
    }

    fn drive(&mut self, lines: u32) {
        self.lines = lines;
        self.pic.set_lines(lines as u16);
        let apics = &mut self.apics;
        self.ioapic.set_lines(to_ioapic(lines), |message| apics.route(None, message));
    }

    /// Carries INTR of the 8259A pair to LINT0.
    pub(super) fn settle_intr(&mut self) {
        let intr = self.pic.intr();
        if intr != self.intr {
            self.intr = intr;
            self.apics.set_lint0(intr);
        }
    }

    /// Turns latches of the touched APICs into requests.
    pub(super) fn collect_touched(&mut self) {
        if !self.apics.any_touched() {
            return;
        }
        let touched = self.apics.take_touched();
        self.interrupts_changed = self.interrupts_changed.union(touched);
        for cpu in touched {
            if self.apics.get(cpu).is_some_and(Lapic::latched)
                && let Some(lapic) = self.apics.get_mut(cpu)
            {
                if lapic.take_init() {
                    self.requests.push_back(BoardRequest::Init(cpu));
                }
                if let Some(vector) = lapic.take_sipi() {
                    self.requests.push_back(BoardRequest::Sipi { cpu, vector });
                }
                if lapic.take_nmi() {
                    self.requests.push_back(BoardRequest::Nmi(cpu));
                }
            }
        }
        // Looking at the latches touched them again; that was us.
        self.apics.take_touched();
    }

    /// Carries out what a register write of `cpu` asked for.
    pub(super) fn apply(&mut self, cpu: CpuIndex, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Ipi(message) => {
                self.apics.route(Some(cpu), &message);
            }
            Effect::EoiBroadcast(vector) => {
                let apics = &mut self.apics;
                self.ioapic.end_of_interrupt(vector, |message| apics.route(None, message));
            }
        }
    }

    /// Sends a message as a device would, outside of any line.
    pub fn send_message(&mut self, message: &IpiRequest) -> BoardEvents {
        self.apics.route(None, message);
        self.settle()
    }

    /// Sends a message-signalled interrupt; an address outside the interrupt window does nothing.
    pub fn send_msi(&mut self, message: MsiMessage) -> BoardEvents {
        self.carry_msi(message);
        self.settle()
    }

    fn carry_msi(&mut self, message: MsiMessage) {
        if let Some(message) = message.decode() {
            self.apics.route(None, &message);
        }
    }

    /// A pulse on the NMI line: LINT1 of every processor.
    pub fn pulse_nmi(&mut self) -> BoardEvents {
        if !self.rtc.nmi_blocked() {
            self.apics.pulse_lint1();
        }
        self.settle()
    }

    /// What `cpu` is to be interrupted with, if its RFLAGS.IF and shadow allow. ExtINT goes before the local APIC.
    #[inline]
    pub fn interrupt_for(&self, cpu: CpuIndex) -> Option<InterruptSource> {
        let lapic = self.apics.get(cpu)?;
        // Without an APIC in the way, INTR is a pin of the bootstrap processor alone.
        if self.intr && lapic.accepts_ext_int() && (lapic.hardware_enabled() || cpu == CpuIndex::BSP) {
            return Some(InterruptSource::Pic);
        }
        lapic.pending_vector().map(InterruptSource::Lapic)
    }

    /// `cpu` takes its interrupt: the vector, and the controller's state as after the acknowledge. `None` when there is
    /// nothing to take.
    pub fn acknowledge(&mut self, cpu: CpuIndex) -> Option<u8> {
        let vector = match self.interrupt_for(cpu)? {
            InterruptSource::Pic => self.pic.acknowledge(),
            InterruptSource::Lapic(_) => self.apics.get_mut(cpu)?.acknowledge(),
        };
        self.settle_intr();
        self.collect_touched();
        Some(vector)
    }

    /// The time-stamp counter of `cpu`.
    pub fn tsc(&self, cpu: CpuIndex, now: Instant) -> Option<u64> {
        self.apics.get(cpu).map(|lapic| lapic.tsc().read(now))
    }

    /// The local APICs together.
    pub const fn apics(&self) -> &Apics {
        &self.apics
    }
}
