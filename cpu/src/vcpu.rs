//! The door of the crate: one virtual processor.

use std::sync::Arc;

use emu_core::Spa;
use emu_core::cpu_model::{CpuModel, Vendor};
use emu_core::cpuid::Feature;
use emu_core::memory::SystemMemory;
use emu_core::memory::code::Cursor;
use emu_core::msr::Msr;
use emu_core::regs::{Cr0, Cr4, Dr6, Dr7, Efer, Rflags, Xcr0};
use emu_core::rng::{Consumer, Seed};
use emu_core::time::{Instant, MeetingPoint};
use mmu::fast::Others;
use mmu::rmp::RmpRegisters;
use mmu::{Mmu, PagingCapabilities, PagingChange, PagingFeatures, PagingState};

use crate::code::JumpTable;
use crate::cpu::{Control, Cpu};
use crate::event::{Event, InterruptShadow, Pending};
use crate::exec::Engine;
use crate::exit::{Completion, Exit};
use crate::flags::Flags;
use crate::intercept::Tables;
use crate::latch::Latch;
use crate::mode::{Mode, ModeKey};
use crate::msr::MsrFile;
use crate::op::{GPR_SLOTS, RIP, TWO_GIB};
use crate::random::Random;
use crate::segment::{SegReg, Segments};
use crate::simd::VectorState;
use crate::softfloat::F80;
use crate::vmsa::VMSA_LEN;
use crate::x87::X87State;

/// What a processor is made of, beside its memory.
#[derive(Clone, Debug)]
pub struct VcpuConfig {
    /// The model.
    pub model: CpuModel,
    /// APIC ID.
    pub apic_id: u32,
    /// Processors in the machine.
    pub cpu_count: u32,
    /// The run's seed.
    pub seed: Seed,
}

/// The x87 part of [`VcpuState`], as FXSAVE in 64-bit form has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X87Registers {
    /// Control word.
    pub fcw: u16,
    /// Status word.
    pub fsw: u16,
    /// Abridged tags: bit n set, physical register n is not empty.
    pub ftw: u8,
    /// Last opcode.
    pub fop: u16,
    /// Last instruction's address.
    pub fip: u64,
    /// Last operand's address.
    pub fdp: u64,
    /// ST(0) to ST(7), 80 bits each.
    pub st: [[u8; 10]; 8],
}

/// Architectural state, for loaders, debuggers and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: Rflags,
    /// Segment registers and tables.
    pub segments: Segments,
    /// CR0
    pub cr0: Cr0,
    /// CR2
    pub cr2: u64,
    /// CR3
    pub cr3: u64,
    /// CR4
    pub cr4: Cr4,
    /// EFER
    pub efer: Efer,
    /// XCR0
    pub xcr0: Xcr0,
    /// PKRU
    pub pkru: u32,
    /// DR0 to DR3
    pub dr: [u64; 4],
    /// DR6
    pub dr6: Dr6,
    /// DR7
    pub dr7: Dr7,
    /// YMM0 to YMM15
    pub ymm: [[u64; 4]; 16],
    /// MXCSR
    pub mxcsr: u32,
    /// x87
    pub x87: X87Registers,
}

/// A virtual processor.
pub struct Vcpu {
    pub(crate) engine: Engine,
    /// What [`Vcpu::save_vmsa`] last wrote, while nothing else has replaced the registers.
    pub(crate) saved: Option<Box<[u8; VMSA_LEN]>>,
    /// Where its save area is, in a guest with encrypted state.
    pub(crate) area: Option<Spa>,
}

impl Vcpu {
    /// A processor after RESET, over `memory`.
    pub fn new(memory: Arc<SystemMemory>, config: &VcpuConfig) -> Vcpu {
        let model = config.model.clone();
        let features = Vcpu::paging_features(&model);
        let mut cpu = Cpu {
            gpr: [0; GPR_SLOTS],
            flags: Flags::new(),
            budget: 0,
            until: Instant::ZERO,
            seg_base: [0; 8],
            key: ModeKey::DEAD,
            attention: false,
            jumps: JumpTable::new(),
            mmu: Mmu::new(memory, features),
            cpl: 0,
            mode: Mode::Real,
            segments: Segments::reset(),
            control: Control {
                cr0: Cr0::ET | Cr0::NW | Cr0::CD,
                cr2: 0,
                cr3: 0,
                cr4: Cr4::empty(),
                efer: Efer::empty(),
                xcr0: Xcr0::X87,
                pkru: 0,
                dr: [0; 4],
                dr6: Dr6::FIXED,
                dr7: Dr7::RESET,
                pdptes: None,
            },
            vector: VectorState::reset(),
            x87: X87State::reset(),
            msr: MsrFile::reset(),
            model,
            random: Random::new(config.seed.numbered_stream(Consumer::CpuRandom, config.apic_id)),
            trap: None,
            event: None,
            shadow: InterruptShadow::None,
            pending: Pending::default(),
            debug_hits: Dr6::empty(),
            unlinked: None,
            latch: Latch::default(),
            tables: Tables::default(),
            code_cursor: Cursor::default(),
            apic_id: config.apic_id,
            cpu_count: config.cpu_count,
            meeting_point: None,
            skipped: 0,
            apic_enabled: true,
            sev: None,
            rmp_registers: RmpRegisters::new(None),
            sev_records: None,
        };
        cpu.gpr[RIP as usize] = 0xfff0;
        cpu.gpr[TWO_GIB as usize] = 1 << 31;
        cpu.gpr[2] = cpu.model.signature().eax() as u64;
        cpu.refresh_mode();
        Vcpu { engine: Engine::new(cpu), saved: None, area: None }
    }

    /// What `model` says about paging.
    pub fn paging_features(model: &CpuModel) -> PagingFeatures {
        let mut capabilities = PagingCapabilities::empty();
        capabilities.set(PagingCapabilities::PAGE_1G, model.has(Feature::Page1Gb));
        PagingFeatures {
            vendor: match model.vendor() {
                Vendor::Amd => mmu::Vendor::Amd,
                Vendor::Intel => mmu::Vendor::Intel,
            },
            physical_bits: model.physical_width(),
            capabilities,
        }
    }

    /// Executes until `until` or until something needs the machine.
    pub fn run(&mut self, until: Instant) -> Exit {
        match self.area {
            None => self.engine.run(until),
            Some(area) => self.run_from(area, until),
        }
    }

    /// The time-stamp counter, and what RDTSCP gives beside it.
    pub fn tsc(&self) -> (u64, u32) {
        let cpu = &self.engine.cpu;
        (cpu.tsc(cpu.now()), cpu.msr.tsc_aux as u32)
    }

    /// What software has added to the time-stamp counter, modulo 2^64.
    pub fn tsc_offset(&self) -> u64 {
        self.engine.cpu.msr.tsc_adjust
    }

    /// The processor's clock.
    pub fn now(&self) -> Instant {
        self.engine.cpu.now()
    }

    /// Moves the clock forward to `to` (idle time); never backward.
    pub fn advance_clock(&mut self, to: Instant) {
        let cpu = &mut self.engine.cpu;
        if to > cpu.now() {
            cpu.until = to;
            cpu.budget = 0;
        }
    }

    /// From now on the machine's other processors run at the same time, on other host threads, and their clocks meet at
    /// `point`. `None`: they take turns again.
    pub fn run_beside_others(&mut self, point: Option<Arc<MeetingPoint>>) {
        let cpu = &mut self.engine.cpu;
        cpu.mmu.fast.set_others(if point.is_some() { Others::Beside } else { Others::InTurn });
        cpu.meeting_point = point;
    }

    /// Units of time that passed because others had come further, without being executed here.
    pub fn skipped(&self) -> u64 {
        self.engine.cpu.skipped
    }

    /// Answers the exit that asked for something. Returns whether something was asked.
    pub fn complete(&mut self, completion: Completion) -> bool {
        self.engine.cpu.latch.answer(completion)
    }

    /// Makes `event` the next thing that happens, before any instruction.
    pub fn inject(&mut self, event: Event) {
        self.engine.cpu.event = Some(event);
    }

    /// The value of a register that this processor stores; 0 for the board's, the clock's and those that do not exist.
    pub fn msr(&mut self, msr: Msr) -> u64 {
        self.engine.cpu.stored_msr(msr)
    }

    /// An NMI has arrived. It is delivered as soon as no NMI handler runs; a second one waits, a third is lost.
    pub fn inject_nmi(&mut self) {
        self.engine.cpu.pending.nmi = true;
    }

    /// Asks for one [`Exit::InterruptWindow`] at the first boundary at which a maskable interrupt can be taken, or
    /// takes the request back.
    pub fn request_interrupt_window(&mut self, wanted: bool) {
        self.engine.cpu.pending.window = wanted;
    }

    /// INIT: the state after RESET, except what INIT keeps (APM vol. 2, "Processor Initialization"): MSRs other than EFER and the
    /// segment bases, x87 and vector state, XCR0, cache control, and the clock.
    pub fn init(&mut self) {
        self.saved = None;
        self.engine.cpu.init();
    }

    /// A start-up IPI with `vector`: real mode at page `vector` of the first megabyte.
    pub fn start_at(&mut self, vector: u8) {
        self.saved = None;
        self.engine.cpu.start_at(vector);
    }

    /// Whether a maskable interrupt can be delivered before the next instruction.
    pub fn can_take_interrupt(&self) -> bool {
        let cpu = &self.engine.cpu;
        // What a save area holds is known when it has been entered.
        let is_loaded = self.area.is_none() || self.saved.is_some();
        is_loaded
            && cpu.event.is_none()
            && cpu.flags.other.contains(Rflags::IF)
            && cpu.shadow == InterruptShadow::None
            && cpu.latch.is_empty()
    }

    /// Whether an event waits to be delivered.
    pub fn has_event(&self) -> bool {
        self.engine.cpu.event.is_some()
    }

    /// RFLAGS.IF.
    pub fn interrupts_enabled(&self) -> bool {
        self.engine.cpu.flags.other.contains(Rflags::IF)
    }

    /// Sets general register `n` (0 to 15), as a hypervisor gives back the result of a hypercall.
    pub fn set_gpr(&mut self, n: u8, value: u64) {
        self.saved = None;
        self.engine.cpu.gpr[n as usize % 16] = value;
    }

    /// The translation unit, for what the machine configures and invalidates.
    pub fn mmu(&mut self) -> &mut Mmu {
        &mut self.engine.cpu.mmu
    }

    /// Blocks decoded so far.
    pub fn blocks_decoded(&self) -> u64 {
        self.engine.code.decoded
    }

    /// The architectural state at this instruction boundary.
    pub fn state(&self) -> VcpuState {
        let cpu = &self.engine.cpu;
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&cpu.gpr[..16]);
        let c = &cpu.control;
        VcpuState {
            gpr,
            rip: cpu.rip(),
            rflags: cpu.flags.rflags(),
            segments: cpu.segments.clone(),
            cr0: c.cr0,
            cr2: c.cr2,
            cr3: c.cr3,
            cr4: c.cr4,
            efer: c.efer,
            xcr0: c.xcr0,
            pkru: c.pkru,
            dr: c.dr,
            dr6: c.dr6,
            dr7: c.dr7,
            ymm: cpu.vector.to_quadwords(),
            mxcsr: cpu.vector.mxcsr,
            x87: x87_out(&cpu.x87),
        }
    }

    /// Replaces the architectural state. CPL follows SS. The caller answers for a consistent state, as firmware does.
    pub fn set_state(&mut self, state: &VcpuState) {
        self.saved = None;
        let cpu = &mut self.engine.cpu;
        cpu.gpr[..16].copy_from_slice(&state.gpr);
        cpu.set_rip(state.rip);
        cpu.flags.set_rflags(state.rflags);
        cpu.segments = state.segments.clone();
        let c = &mut cpu.control;
        c.cr0 = state.cr0;
        c.cr2 = state.cr2;
        c.cr3 = state.cr3;
        c.cr4 = state.cr4;
        c.efer = if cpu.sev.is_some() { state.efer | Efer::SVME } else { state.efer };
        c.xcr0 = state.xcr0;
        c.pkru = state.pkru;
        c.dr = state.dr;
        c.dr6 = state.dr6;
        c.dr7 = state.dr7;
        c.pdptes = None;
        cpu.vector = VectorState::from_quadwords(&state.ymm, state.mxcsr);
        cpu.x87 = x87_in(&state.x87);
        cpu.cpl = if state.cr0.contains(Cr0::PE) { state.segments.get(SegReg::Ss).attributes.dpl() } else { 0 };
        cpu.event = None;
        cpu.shadow = InterruptShadow::None;
        cpu.pending = Pending::default();
        cpu.latch.clear();
        cpu.update_paging(PagingChange::Reset);
        cpu.refresh_mode();
    }
}

impl Cpu {
    /// Tells the translation unit the registers it works by.
    pub fn update_paging(&mut self, change: PagingChange) {
        if self.is_shadowed() {
            self.note_paging_change(change);
        } else {
            let state = self.guest_paging();
            self.mmu.set_paging(state, change);
        }
    }

    /// The registers that govern the guest's paging.
    pub fn guest_paging(&self) -> PagingState {
        let c = &self.control;
        PagingState {
            cr0: c.cr0,
            cr3: c.cr3,
            cr4: c.cr4,
            efer: c.efer,
            pkru: c.pkru,
            pkrs: self.msr.pkrs as u32,
            pdptes: c.pdptes,
        }
    }
}

pub(crate) fn x87_out(x87: &X87State) -> X87Registers {
    let top = x87.fsw >> 11 & 7;
    let st = core::array::from_fn(|i| {
        let value = x87.regs[(top as usize + i) % 8];
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&value.significand.to_le_bytes());
        bytes[8..].copy_from_slice(&value.sign_exp.to_le_bytes());
        bytes
    });
    X87Registers { fcw: x87.fcw, fsw: x87.fsw, ftw: x87.valid, fop: x87.fop, fip: x87.fip, fdp: x87.fdp, st }
}

pub(crate) fn x87_in(from: &X87Registers) -> X87State {
    let top = from.fsw >> 11 & 7;
    let mut regs = [F80 { sign_exp: 0, significand: 0 }; 8];
    for (i, bytes) in from.st.iter().enumerate() {
        let significand = bytes[..8].iter().rev().fold(0, |w, &b| w << 8 | b as u64);
        let sign_exp = u16::from_le_bytes([bytes[8], bytes[9]]);
        regs[(top as usize + i) % 8] = F80 { sign_exp, significand };
    }
    X87State {
        regs,
        fcw: from.fcw,
        fsw: from.fsw,
        valid: from.ftw,
        fop: from.fop,
        fip: from.fip,
        fcs: 0,
        fdp: from.fdp,
        fds: 0,
    }
}

/// A processor may run on any host thread.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Vcpu>();
};
