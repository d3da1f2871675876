//! A user-mode machine in which the cases of the native judge are executed.

use std::collections::BTreeMap;
use std::sync::Arc;

use cpu::{DescriptorTable, Exit, SegReg, Segment, SegmentAttributes, Vcpu, VcpuState};
use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr0, Rflags};
use emu_core::{Gva, Spa};
use iced_x86::{Code, Decoder};
use native::case::CODE_PAGE;
use native::driver::{Summary, run};
use native::generator::{Catalogue, Generator};
use native::state::RSP;
use native::window::{COMBINATIONS, PAGE, PAGES};
use native::{Case, CaseResult, Comparison, Fault, Mismatch, Outcome, PageProtection, Window, WindowMemory};

use crate::common::{flat, long_mode};

/// Where the pages of the window and the code page are in physical memory.
const FRAMES: u64 = 0x80_0000;
const CODE_FRAME: u64 = FRAMES + PAGES as u64 * PAGE;
/// Page tables from here on.
const TABLES: u64 = 0x40_0000;
/// Two supervisor pages (linear and physical address): GDT, TSS and IDT in the first, the stack in the second.
const SYSTEM: u64 = 0xffff_8000_0000_0000;
const SYSTEM_FRAME: u64 = 0x70_0000;
const TSS: u64 = 0x100;
const IDT: u64 = 0x200;
const STACK_TOP: u64 = 0x2000;
/// Handlers, which are not executed: vector `n` at `n` times 16.
const HANDLERS: u64 = 0xffff_9000_0000_0000;
const KERNEL_CS: u16 = 0x08;

/// A processor in user mode whose address space holds the code page and all the windows.
pub struct Machine {
    vcpu: Vcpu,
    memory: Arc<SystemMemory>,
    base: VcpuState,
    window: WindowMemory,
}

impl Machine {
    /// Everything mapped, nothing run.
    pub fn new() -> Machine {
        let (mut vcpu, memory) = long_mode(&[]);
        let mut tables = Tables { memory: memory.clone(), free: TABLES + PAGE };
        for n in 0..COMBINATIONS {
            for (page, protection) in (0..).zip(Window::protections_of(n)) {
                let rights = match protection {
                    PageProtection::ReadWrite => 0x67,
                    PageProtection::ReadOnly => 0x65,
                    PageProtection::None => continue,
                };
                tables.map(Window::base_of(n) + page * PAGE, FRAMES + page * PAGE | 1 << 63 | rights);
            }
        }
        tables.map(CODE_PAGE, CODE_FRAME | 0x25);
        tables.map(SYSTEM, SYSTEM_FRAME | 0x63);
        tables.map(SYSTEM + PAGE, SYSTEM_FRAME + PAGE | 0x63);
        let store = |at: u64, value: u64| memory.store(Spa::new(SYSTEM_FRAME + at), value).unwrap();
        store(KERNEL_CS as u64, 0x00af_9b00_0000_ffff);
        // RSP0
        store(TSS + 4, SYSTEM + STACK_TOP);
        for vector in 0..32 {
            let target = HANDLERS + 16 * vector;
            let low = target & 0xffff | (KERNEL_CS as u64) << 16 | 0x8e << 40 | (target >> 16 & 0xffff) << 48;
            store(IDT + 16 * vector, low);
            store(IDT + 16 * vector + 8, target >> 32);
        }
        let mut base = vcpu.state();
        base.cr3 = TABLES;
        base.cr0 |= Cr0::AM;
        for reg in [SegReg::Es, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
            base.segments.regs[reg as usize] = flat(0x23, 3, false, 3);
        }
        base.segments.regs[SegReg::Cs as usize] = flat(0x2b, 0xb, true, 3);
        base.segments.gdtr = DescriptorTable { base: Gva::new(SYSTEM), limit: 0xff };
        base.segments.idtr = DescriptorTable { base: Gva::new(SYSTEM + IDT), limit: 0x1ff };
        let attributes = SegmentAttributes::new().with_kind(11).with_p(true);
        base.segments.tr = Segment { selector: 0x30, base: SYSTEM + TSS, limit: 0x67, attributes };
        vcpu.set_state(&base);
        Machine { vcpu, memory, base, window: WindowMemory::default() }
    }

    /// Executes a case, up to its end or the first byte of the exception's handler.
    pub fn execute(&mut self, case: &Case) -> CaseResult {
        let mut state = self.base.clone();
        state.gpr = case.state.gpr;
        state.rip = case.rip();
        state.rflags = Rflags::from_bits_retain(case.state.rflags);
        state.ymm = case.state.vec;
        state.mxcsr = case.state.mxcsr;
        let x87 = &case.state.x87;
        (state.x87.fcw, state.x87.fsw, state.x87.ftw, state.x87.st) = (x87.fcw, x87.fsw, x87.ftw, x87.st);
        self.window.load(&case.window);
        self.memory.write(Spa::new(FRAMES), self.window.bytes()).unwrap();
        self.memory.write(Spa::new(CODE_FRAME), &case.code_page()[..]).unwrap();
        self.vcpu.set_state(&state);
        assert_eq!(crate::common::run(&mut self.vcpu, 1), Exit::TimeUp);
        let after = self.vcpu.state();
        self.memory.read(Spa::new(FRAMES), self.window.bytes_mut()).unwrap();
        let mut result = CaseResult {
            outcome: Outcome::Completed { rip_delta: after.rip.wrapping_sub(case.rip()) as i64 },
            state: case.state,
            writes: self.window.writes(),
        };
        result.state.gpr = after.gpr;
        result.state.rflags = after.rflags.bits();
        result.state.vec = after.ymm;
        result.state.mxcsr = after.mxcsr;
        let x87 = &mut result.state.x87;
        (x87.fcw, x87.fsw, x87.ftw, x87.st) = (after.x87.fcw, after.x87.fsw, after.x87.ftw, after.x87.st);
        if after.rip >= HANDLERS {
            let vector = ((after.rip - HANDLERS) / 16) as u8;
            let pushed = SYSTEM + STACK_TOP - after.gpr[RSP];
            let frame =
                |n: u64| -> u64 { self.memory.load(Spa::new(SYSTEM_FRAME + STACK_TOP - pushed + 8 * n)).unwrap() };
            let first = pushed / 8 - 5;
            result.state.gpr[RSP] = frame(first + 3);
            result.state.rflags = frame(first + 2) & !Rflags::RF.bits();
            result.outcome = Outcome::Fault(Fault {
                vector,
                error_code: if first == 1 { frame(0) as u32 } else { 0 },
                cr2: (vector == 14).then_some(after.cr2),
                rip_delta: frame(first).wrapping_sub(case.rip()) as i64,
            });
        }
        result
    }
}

/// Page tables under construction.
struct Tables {
    memory: Arc<SystemMemory>,
    free: u64,
}

impl Tables {
    fn map(&mut self, linear: u64, leaf: u64) {
        let mut table = TABLES;
        for shift in [39, 30, 21] {
            let slot = Spa::new(table + (linear >> shift & 0x1ff) * 8);
            let mut entry: u64 = self.memory.load(slot).unwrap();
            if entry == 0 {
                entry = self.free | 0x27;
                self.free += PAGE;
                self.memory.store(slot, entry).unwrap();
            }
            table = entry & !0xfff;
        }
        self.memory.store(Spa::new(table + (linear >> 12 & 0x1ff) * 8), leaf).unwrap();
    }
}

/// Runs `count` cases of the instructions that `keep` keeps against the host, but those that `excuse` excuses, and fails
/// with one example for each instruction that differs. The environment variable BIFOLD_CASES replaces `count`.
pub fn agrees(seed: u64, count: u64, least: usize, keep: impl FnMut(Code) -> bool, excuse: impl Fn(&Mismatch) -> bool) {
    if !(std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("f16c"))
    {
        eprintln!("SKIPPED: the host has no AVX2, FMA or F16C, so nothing was compared");
        return;
    }
    let catalogue = Catalogue::filtered(keep);
    assert!(catalogue.codes().len() >= least, "{}", catalogue.codes().len());
    let mut machine = Machine::new();
    let mut reports = BTreeMap::new();
    let generator = Generator::new(catalogue, seed);
    let count = std::env::var("BIFOLD_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(count);
    let execute = |case: &Case| machine.execute(case);
    let report = |mismatch: Mismatch| {
        if excuse(&mismatch) {
            return;
        }
        let instruction = Decoder::with_ip(64, mismatch.case.code.bytes(), mismatch.case.rip(), 0).decode();
        let entry = reports.entry(format!("{:?}", instruction.code())).or_insert((0, String::new()));
        entry.0 += 1;
        entry.1 = mismatch.to_string();
    };
    let summary: Summary = run(&generator, 0..count, Comparison::Architectural(&[]), execute, report).unwrap();
    for (code, (count, last)) in &reports {
        println!("{code}, {count} times, such as {last}");
    }
    assert!(reports.is_empty(), "{} instructions differ: {summary:?}", reports.len());
    assert_eq!(summary.crashed, 0, "{summary:?}");
}
