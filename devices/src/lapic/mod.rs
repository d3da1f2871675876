//! The local APIC (Intel SDM vol. 3, "Advanced Programmable Interrupt Controller (APIC)"; APM vol. 2, chapter of the
//! same name).
//!
//! [`Lapic`] is one processor's, with both register interfaces: [`Lapic::mmio_read`] and [`Lapic::mmio_write`] for the
//! xAPIC page, [`Lapic::msr_read`] and [`Lapic::msr_write`] for x2APIC, IA32_APIC_BASE and IA32_TSC_DEADLINE.
//! The processor looks at [`Lapic::pending_vector`], takes with [`Lapic::acknowledge`], and finds NMI, INIT and SIPI
//! in latches. What leaves a local APIC is a value, an [`Effect`]; [`fabric::Apics`] carries it to the others.
//!
//! Invariants: a vector is in ISR only between acknowledge and EOI; PPR is computed, never stored; a hardware-disabled
//! APIC accepts nothing and its registers are as after reset.
//!
//! Left out: SMI (dropped), CMCI and AMD's extended LVT, remote read, arbitration (APR reads as PPR).

mod base;
pub mod fabric;
pub mod regs;
pub mod timer;
mod vectors;

use emu_core::time::Instant;

pub use base::{ApicBase, ApicMode, MsrError};
pub use fabric::Apics;
pub use vectors::VectorSet;

use crate::message::{DeliveryMode, Destination, IpiRequest, Trigger, physical8};
use regs::{Lvt, Reg};
use timer::{Timer, TimerMode, TscClock};

/// MSRs that belong to the local APIC.
pub mod msr {
    /// IA32_APIC_BASE.
    pub const APIC_BASE: u32 = 0x1b;
    /// IA32_TSC_DEADLINE.
    pub const TSC_DEADLINE: u32 = 0x6e0;
    /// First of the x2APIC registers.
    pub const X2APIC_FIRST: u32 = 0x800;
    /// Last of the x2APIC registers.
    pub const X2APIC_LAST: u32 = 0x8ff;
}

/// Version 0x14, six LVT entries, EOI broadcast suppression.
const VERSION: u32 = 1 << 24 | 5 << 16 | 0x14;
const LVT_MASKED: u32 = 1 << 16;
const LVT_LEVEL: u32 = 1 << 15;
const LVT_REMOTE_IRR: u32 = 1 << 14;
const SVR_ENABLE: u32 = 1 << 8;
const SVR_NO_EOI_BROADCAST: u32 = 1 << 12;
const ESR_SEND_ILLEGAL: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// What a register write asks of the rest of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Carry this message.
    Ipi(IpiRequest),
    /// Tell the I/O APICs that a level-triggered interrupt has ended.
    EoiBroadcast(u8),
}

/// How a local APIC is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LapicConfig {
    /// APIC ID; above 0xfe only x2APIC mode shows it whole.
    pub id: u32,
    /// Whether this is the bootstrap processor (IA32_APIC_BASE.BSP).
    pub bsp: bool,
    /// The undivided timer clock in ticks a virtual second.
    pub timer_hertz: u64,
    /// The time-stamp counter that TSC-deadline mode compares with.
    pub tsc: TscClock,
    /// Width of physical addresses: higher bits of IA32_APIC_BASE are reserved.
    pub phys_bits: u32,
}

/// One processor's local APIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lapic {
    config: LapicConfig,
    base: ApicBase,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: VectorSet,
    tmr: VectorSet,
    irr: VectorSet,
    /// Errors shown, and errors gathered since ESR was last written.
    esr: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; 6],
    /// Levels of LINT0 and LINT1.
    pins: [bool; 2],
    timer: Timer,
    nmi: bool,
    init: bool,
    sipi: Option<u8>,
}

impl Lapic {
    /// A local APIC after power-up: enabled in xAPIC mode at 0xfee0_0000, software-disabled, all local vectors masked.
    pub fn new(config: LapicConfig) -> Lapic {
        Lapic {
            config,
            base: ApicBase::reset(config.bsp),
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            isr: VectorSet::EMPTY,
            tmr: VectorSet::EMPTY,
            irr: VectorSet::EMPTY,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [LVT_MASKED; 6],
            pins: [false; 2],
            timer: Timer::new(config.timer_hertz),
            nmi: false,
            init: false,
            sipi: None,
        }
    }

    /// What firmware leaves on the bootstrap processor: enabled, LINT0 as ExtINT (virtual wire), LINT1 as NMI.
    pub fn enter_virtual_wire(&mut self) {
        self.svr = SVR_ENABLE | 0xff;
        self.lvt[Lvt::Lint0 as usize] = 0x700;
        self.lvt[Lvt::Lint1 as usize] = 0x400;
    }

    /// INIT: registers as after reset; the mode and the base stay.
    fn init_reset(&mut self) {
        let fresh = Lapic::new(self.config);
        *self = Lapic { base: self.base, pins: self.pins, ..fresh };
        if self.base.mode() == ApicMode::X2Apic {
            self.ldr = self.x2apic_ldr();
        }
    }

    /// The APIC ID.
    pub const fn id(&self) -> u32 {
        self.config.id
    }
    /// IA32_APIC_BASE.
    #[inline]
    pub const fn base(&self) -> ApicBase {
        self.base
    }
    /// The time-stamp counter of this processor.
    pub const fn tsc(&self) -> TscClock {
        self.config.tsc
    }
    /// Sets what is added to the time-stamp counter; an armed TSC deadline moves with it.
    pub fn set_tsc_offset(&mut self, offset: u64, now: Instant) {
        self.config.tsc.offset = offset;
        self.timer.retime(self.config.tsc, now);
    }

    const fn x2apic_ldr(&self) -> u32 {
        self.config.id >> 4 << 16 | 1 << (self.config.id & 0xf)
    }

    /// Whether the hardware enable is set, in either mode.
    pub const fn hardware_enabled(&self) -> bool {
        !matches!(self.base.mode(), ApicMode::Disabled)
    }
    /// Whether SVR's software enable and the hardware enable are both set.
    pub const fn enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0 && self.hardware_enabled()
    }

    // ----- the processor's side -----

    /// The task priority register.
    pub const fn tpr(&self) -> u8 {
        self.tpr
    }
    /// CR8: bits 7:4 of TPR.
    pub const fn cr8(&self) -> u8 {
        self.tpr >> 4
    }
    /// Writes CR8 (bits 3:0 of `value`; the rest is reserved and the processor's to check).
    pub const fn set_cr8(&mut self, value: u8) {
        self.tpr = (value & 0xf) << 4;
    }
    /// The processor priority register.
    pub const fn ppr(&self) -> u8 {
        let served = match self.isr.highest() {
            Some(vector) => vector,
            None => 0,
        };
        if self.tpr & 0xf0 >= served & 0xf0 { self.tpr } else { served & 0xf0 }
    }
    /// The vector the processor is to be interrupted with, if one outranks its priority.
    #[inline]
    pub const fn pending_vector(&self) -> Option<u8> {
        match self.irr.highest() {
            Some(vector) if self.enabled() && vector & 0xf0 > self.ppr() & 0xf0 => Some(vector),
            _ => None,
        }
    }
    /// The processor takes the interrupt: the vector is now in service. The spurious vector when there is none.
    pub const fn acknowledge(&mut self) -> u8 {
        match self.pending_vector() {
            Some(vector) => {
                self.irr.remove(vector);
                self.isr.insert(vector);
                vector
            }
            None => self.svr as u8,
        }
    }
    /// Whether the external controller's INTR passes to the processor: LINT0 as an unmasked ExtINT, or as a bare INTR
    /// pin when the APIC is off.
    #[inline]
    pub const fn accepts_ext_int(&self) -> bool {
        let lint0 = self.lvt[Lvt::Lint0 as usize];
        !self.hardware_enabled()
            || lint0 & LVT_MASKED == 0 && matches!(DeliveryMode::from_bits(lint0 >> 8), DeliveryMode::ExtInt)
    }
    /// Whether INTR is asserted and accepted.
    #[inline]
    pub const fn ext_int_pending(&self) -> bool {
        self.pins[0] && self.accepts_ext_int()
    }
    /// Takes the latched NMI.
    pub const fn take_nmi(&mut self) -> bool {
        core::mem::replace(&mut self.nmi, false)
    }
    /// Takes the latched INIT. The local APIC itself was reset when it came.
    pub const fn take_init(&mut self) -> bool {
        core::mem::replace(&mut self.init, false)
    }
    /// Takes the latched start-up message.
    pub const fn take_sipi(&mut self) -> Option<u8> {
        self.sipi.take()
    }
    /// Whether any of the three latches is set.
    #[inline]
    pub const fn latched(&self) -> bool {
        self.nmi || self.init || self.sipi.is_some()
    }
    /// The interrupt request register.
    pub const fn irr(&self) -> &VectorSet {
        &self.irr
    }
    /// The in-service register.
    pub const fn isr(&self) -> &VectorSet {
        &self.isr
    }

    // ----- the bus's side -----

    /// Whether a message with this destination is for this APIC. Shorthands relative to the sender are the fabric's.
    pub const fn matches(&self, destination: Destination) -> bool {
        let x2apic = match self.base.mode() {
            ApicMode::Disabled => return false,
            ApicMode::XApic => false,
            ApicMode::X2Apic => true,
        };
        match destination {
            Destination::Everyone => true,
            Destination::Physical(id) => id == self.config.id,
            Destination::Logical(mda) if x2apic => {
                mda == u32::MAX || mda >> 16 == self.ldr >> 16 && mda & self.ldr & 0xffff != 0
            }
            Destination::Logical(mda) => {
                let logical = self.ldr >> 24;
                if mda > 0xff {
                    mda == u32::MAX
                } else if self.dfr >> 28 == 0xf {
                    mda & logical != 0
                } else if self.dfr >> 28 == 0 {
                    mda == 0xff || mda >> 4 == logical >> 4 && mda & logical & 0xf != 0
                } else {
                    false
                }
            }
            Destination::Others | Destination::Sender => false,
        }
    }

    /// Takes a message that is for this APIC; whether it was accepted.
    pub fn deliver(&mut self, delivery: DeliveryMode, vector: u8, trigger: Trigger) -> bool {
        if !self.hardware_enabled() {
            return false;
        }
        match delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if !self.enabled() {
                    return false;
                }
                if vector < 16 {
                    self.error(ESR_RECEIVE_ILLEGAL);
                    return true;
                }
                self.request(vector, trigger);
            }
            DeliveryMode::Nmi => self.nmi = true,
            DeliveryMode::Init => {
                self.init_reset();
                self.init = true;
            }
            DeliveryMode::StartUp => self.sipi = Some(vector),
            // INTR is a level of the 8259A pair, seen at LINT0 and not latched here.
            DeliveryMode::ExtInt | DeliveryMode::Smi | DeliveryMode::Reserved => return false,
        }
        true
    }

    const fn request(&mut self, vector: u8, trigger: Trigger) {
        self.irr.insert(vector);
        self.tmr.set(vector, matches!(trigger, Trigger::Level));
    }

    fn error(&mut self, bits: u32) {
        self.errors |= bits;
        self.fire(Lvt::Error);
    }

    /// A local source signals: deliver as its entry says.
    fn fire(&mut self, source: Lvt) {
        let entry = self.lvt[source as usize];
        if entry & LVT_MASKED != 0 {
            return;
        }
        let delivery = match source {
            Lvt::Timer | Lvt::Error => DeliveryMode::Fixed,
            _ => DeliveryMode::from_bits(entry >> 8),
        };
        if delivery == DeliveryMode::Fixed && entry as u8 >= 16 {
            if self.enabled() {
                // Only LINT0 has a level mode; LINT1 is always an edge.
                let level = source == Lvt::Lint0 && entry & LVT_LEVEL != 0;
                self.request(entry as u8, if level { Trigger::Level } else { Trigger::Edge });
                if level {
                    self.lvt[source as usize] |= LVT_REMOTE_IRR;
                }
            }
        } else if delivery == DeliveryMode::Fixed {
            self.errors |= ESR_RECEIVE_ILLEGAL;
            // The error's own vector may be the illegal one: it must not signal itself.
            if source != Lvt::Error {
                self.fire(Lvt::Error);
            }
        } else {
            self.deliver(delivery, entry as u8, Trigger::Edge);
        }
    }

    /// Sets the level of LINT0, the 8259A pair's INTR.
    pub fn set_lint0(&mut self, level: bool) {
        self.set_pin(Lvt::Lint0, level);
    }
    /// Sets the level of LINT1, the board's NMI. With the APIC off it is the processor's NMI pin.
    pub fn set_lint1(&mut self, level: bool) {
        if !self.hardware_enabled() && level && !self.pins[1] {
            self.nmi = true;
        }
        self.set_pin(Lvt::Lint1, level);
    }

    fn set_pin(&mut self, pin: Lvt, level: bool) {
        let index = if pin == Lvt::Lint0 { 0 } else { 1 };
        let rose = level && !self.pins[index];
        self.pins[index] = level;
        if rose && self.hardware_enabled() {
            self.fire(pin);
        }
    }

    // ----- time -----

    /// When the timer fires next.
    #[inline]
    pub const fn next_event(&self) -> Option<Instant> {
        self.timer.next_event()
    }
    /// Goes on to `now`; whether the timer fired.
    pub fn advance(&mut self, now: Instant) -> bool {
        let fired = self.timer.advance(now);
        if fired {
            self.fire(Lvt::Timer);
        }
        fired
    }

    // ----- registers -----

    /// Reads a register of the xAPIC page. A place without one reads 0 and notes an illegal-register error.
    pub fn mmio_read(&mut self, offset: u16, now: Instant) -> u32 {
        match regs::decode_xapic(offset) {
            Some(Reg::Id) => self.config.id << 24,
            Some(Reg::Icr) => self.icr as u32,
            Some(Reg::IcrHigh) => (self.icr >> 32) as u32,
            Some(reg) => self.read(reg, now),
            None => {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// Writes a register of the xAPIC page. Read-only registers keep their value.
    pub fn mmio_write(&mut self, offset: u16, value: u32, now: Instant) -> Effect {
        match regs::decode_xapic(offset) {
            Some(Reg::Icr) => {
                self.icr = self.icr & !0xffff_ffff | (value & 0x000c_cfff) as u64;
                self.send(self.icr, physical8((self.icr >> 56) as u32), (self.icr >> 56) as u32)
            }
            Some(Reg::IcrHigh) => {
                self.icr = self.icr & 0xffff_ffff | ((value & 0xff00_0000) as u64) << 32;
                Effect::None
            }
            Some(Reg::Ldr) => {
                self.ldr = value & 0xff00_0000;
                Effect::None
            }
            Some(Reg::Dfr) => {
                self.dfr = value | 0x0fff_ffff;
                Effect::None
            }
            Some(reg) => self.write(reg, value, now),
            None => {
                self.error(ESR_ILLEGAL_REGISTER);
                Effect::None
            }
        }
    }

    /// The registers both interfaces read alike.
    fn read(&self, reg: Reg, now: Instant) -> u32 {
        match reg {
            Reg::Id => self.config.id,
            Reg::Version => VERSION,
            Reg::Tpr => self.tpr as u32,
            Reg::Apr | Reg::Ppr => self.ppr() as u32,
            Reg::Ldr => self.ldr,
            Reg::Dfr => self.dfr,
            Reg::Svr => self.svr,
            Reg::Isr(n) => self.isr.register(n),
            Reg::Tmr(n) => self.tmr.register(n),
            Reg::Irr(n) => self.irr.register(n),
            Reg::Esr => self.esr,
            Reg::Icr => self.icr as u32,
            Reg::IcrHigh => (self.icr >> 32) as u32,
            Reg::Lvt(lvt) => self.lvt[lvt as usize],
            Reg::InitialCount => self.timer.initial(),
            Reg::CurrentCount => self.timer.current(now),
            Reg::Divide => self.timer.divide(),
            Reg::Eoi | Reg::Rrd | Reg::SelfIpi => 0,
        }
    }

    /// The registers both interfaces write alike.
    fn write(&mut self, reg: Reg, value: u32, now: Instant) -> Effect {
        match reg {
            Reg::Tpr => self.tpr = value as u8,
            Reg::Eoi => return self.end_of_interrupt(),
            Reg::Svr => {
                self.svr = value & 0x13ff;
                if value & SVR_ENABLE == 0 {
                    for entry in &mut self.lvt {
                        *entry |= LVT_MASKED;
                    }
                }
            }
            Reg::Esr => self.esr = core::mem::take(&mut self.errors),
            Reg::Lvt(lvt) => self.write_lvt(lvt, value, now),
            Reg::InitialCount => self.timer.set_initial(value, now),
            Reg::Divide => self.timer.set_divide(value, now),
            _ => {}
        }
        Effect::None
    }

    fn write_lvt(&mut self, lvt: Lvt, value: u32, now: Instant) {
        let forced = if self.svr & SVR_ENABLE == 0 { LVT_MASKED } else { 0 };
        let entry = &mut self.lvt[lvt as usize];
        // A pin that stays level-triggered keeps its remote IRR.
        let kept = if value & LVT_LEVEL != 0 { *entry & LVT_REMOTE_IRR } else { 0 };
        let was_masked = *entry & LVT_MASKED != 0;
        *entry = value & lvt.writable() | forced | kept & lvt.read_only();
        let unmasked = was_masked && *entry & LVT_MASKED == 0;
        let level = *entry & LVT_LEVEL != 0;
        match lvt {
            Lvt::Timer => self.timer.set_mode(TimerMode::from_lvt(value), now),
            // A level pin unmasked while it is high requests at once.
            Lvt::Lint0 if unmasked && level && self.pins[0] => self.fire(lvt),
            _ => {}
        }
    }

    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else { return Effect::None };
        self.isr.remove(vector);
        if !self.tmr.contains(vector) {
            return Effect::None;
        }
        let lint0 = &mut self.lvt[Lvt::Lint0 as usize];
        if *lint0 & LVT_REMOTE_IRR != 0 && *lint0 as u8 == vector {
            *lint0 &= !LVT_REMOTE_IRR;
            if self.pins[0] {
                self.fire(Lvt::Lint0);
            }
        }
        if self.svr & SVR_NO_EOI_BROADCAST != 0 { Effect::None } else { Effect::EoiBroadcast(vector) }
    }

    /// An ICR write: `physical` and `logical` are the two readings of its destination field.
    fn send(&mut self, icr: u64, physical: Destination, logical: u32) -> Effect {
        let low = icr as u32;
        let delivery = DeliveryMode::from_bits(low >> 8);
        let vector = low as u8;
        let level = low & LVT_LEVEL != 0;
        let assert = low & 1 << 14 != 0;
        if delivery == DeliveryMode::Init && level && !assert {
            return Effect::None;
        }
        if delivery.uses_vector() && vector < 16 {
            self.error(ESR_SEND_ILLEGAL);
            return Effect::None;
        }
        let destination = match low >> 18 & 3 {
            0 if low & 1 << 11 != 0 => Destination::Logical(logical),
            0 => physical,
            1 => Destination::Sender,
            2 => Destination::Everyone,
            _ => Destination::Others,
        };
        // IPIs are edges whatever the trigger bit says: the level bits serve INIT de-assert alone.
        Effect::Ipi(IpiRequest { delivery, destination, vector, trigger: Trigger::Edge })
    }
}

#[cfg(test)]
mod tests;
