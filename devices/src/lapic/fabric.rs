//! The fabric between local APICs: who gets a message (Intel SDM vol. 3, "Determining IPI Destination").

use emu_core::time::Instant;

use super::Lapic;
use crate::bus::{CpuIndex, CpuSet};
use crate::message::{DeliveryMode, Destination, IpiRequest};

/// The local APICs of a board, by [`CpuIndex`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apics {
    lapics: Vec<Lapic>,
    /// Processors whose interrupt state may have changed since [`Apics::take_touched`].
    touched: CpuSet,
}

impl Apics {
    /// A fabric over these APICs; at most [`crate::bus::MAX_CPUS`] of them take part.
    pub fn new(lapics: Vec<Lapic>) -> Apics {
        Apics { lapics, touched: CpuSet::EMPTY }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lapics.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lapics.is_empty()
    }
    /// The APIC of `cpu`.
    #[inline]
    pub fn get(&self, cpu: CpuIndex) -> Option<&Lapic> {
        self.lapics.get(cpu.index())
    }
    /// The APIC of `cpu`, to change: it counts as touched.
    #[inline]
    pub fn get_mut(&mut self, cpu: CpuIndex) -> Option<&mut Lapic> {
        self.touched.insert(cpu);
        self.lapics.get_mut(cpu.index())
    }
    /// The same for an access that cannot change what the processor is interrupted with.
    #[inline]
    pub(crate) fn get_quietly(&mut self, cpu: CpuIndex) -> Option<&mut Lapic> {
        self.lapics.get_mut(cpu.index())
    }
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Lapic> {
        self.lapics.iter()
    }
    /// Whether any processor was touched.
    #[inline]
    pub const fn any_touched(&self) -> bool {
        !self.touched.is_empty()
    }
    /// The processors touched since the last call.
    pub const fn take_touched(&mut self) -> CpuSet {
        core::mem::replace(&mut self.touched, CpuSet::EMPTY)
    }

    /// Carries a message from `sender` (`None`: an I/O APIC or a device); whether anybody accepted it.
    pub fn route(&mut self, sender: Option<CpuIndex>, message: &IpiRequest) -> bool {
        if message.delivery == DeliveryMode::LowestPriority {
            return match self.lowest_priority(sender, message.destination) {
                Some(cpu) => self.deliver(cpu, message),
                None => false,
            };
        }
        if message.destination == Destination::Sender {
            return sender.is_some_and(|cpu| self.deliver(cpu, message));
        }
        let mut accepted = false;
        for index in 0..self.lapics.len() {
            let cpu = CpuIndex(index as u16);
            if self.addressed(sender, message.destination, cpu) {
                accepted |= self.deliver(cpu, message);
            }
        }
        accepted
    }

    fn addressed(&self, sender: Option<CpuIndex>, destination: Destination, cpu: CpuIndex) -> bool {
        match destination {
            Destination::Sender => sender == Some(cpu),
            Destination::Others => sender != Some(cpu),
            other => self.lapics[cpu.index()].matches(other),
        }
    }

    /// The addressed and enabled processor with the lowest PPR, the lowest-numbered of equals.
    fn lowest_priority(&self, sender: Option<CpuIndex>, destination: Destination) -> Option<CpuIndex> {
        (0..self.lapics.len())
            .map(|index| CpuIndex(index as u16))
            .filter(|&cpu| self.lapics[cpu.index()].enabled() && self.addressed(sender, destination, cpu))
            .min_by_key(|cpu| self.lapics[cpu.index()].ppr())
    }

    fn deliver(&mut self, cpu: CpuIndex, message: &IpiRequest) -> bool {
        self.get_mut(cpu).is_some_and(|lapic| lapic.deliver(message.delivery, message.vector, message.trigger))
    }

    /// Sets LINT0 of every processor: INTR of the 8259A pair is wired to all.
    pub fn set_lint0(&mut self, level: bool) {
        self.touched = self.touched.union(CpuSet::first(self.lapics.len()));
        for lapic in &mut self.lapics {
            lapic.set_lint0(level);
        }
    }

    /// An NMI edge on LINT1 of every processor.
    pub fn pulse_lint1(&mut self) {
        self.touched = self.touched.union(CpuSet::first(self.lapics.len()));
        for lapic in &mut self.lapics {
            lapic.set_lint1(true);
            lapic.set_lint1(false);
        }
    }

    /// The earliest timer.
    pub fn next_event(&self) -> Option<Instant> {
        self.lapics.iter().filter_map(Lapic::next_event).min()
    }

    /// Goes on to `now`.
    pub fn advance(&mut self, now: Instant) {
        for (index, lapic) in self.lapics.iter_mut().enumerate() {
            if lapic.advance(now) {
                self.touched.insert(CpuIndex(index as u16));
            }
        }
    }
}
