//! The interpreter as the other side of the judge: executes a [`Case`] on a [`Vcpu`] and says what came of it.
//!
//! One processor serves all cases of a thread. It sits in 64-bit mode at CPL 3 over page tables that hold the code
//! page and every window (all of them views of the same three frames, each with its own protections), so that between
//! two cases only registers, a few bytes of code and the lines that the last case changed are replaced.

use std::sync::Arc;

use cpu::{Exit, MediaRegisters, SegReg, Stepped, UserRegisters, Vcpu, VcpuConfig, X87Registers};
use emu_core::cpu_model::CpuModel;
use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr0, Cr4, Efer, Rflags, Xcr0};
use emu_core::rng::Seed;
use emu_core::{Exception, Spa};
use iced_x86::{Code as Opcode, CpuidFeature, Mnemonic};
use native::case::CODE_PAGE;
use native::state::{RFLAGS_FIXED, RFLAGS_FREE, TF, X87State};
use native::window::{BACKGROUND, COMBINATIONS, LINE, MAX_LINES, PAGE, PAGES, WINDOW_BYTES};
use native::window::{Line, PageProtection, Window, Writes};
use native::{Case, CaseResult, Crash, Fault, Mismatch, Outcome, Scope};

#[path = "../common/mod.rs"]
#[expect(dead_code, reason = "the bare machine serves other tests")]
mod common;

/// Where things lie in system memory.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const FIRST_PT: u64 = 0x10_0000;
const CODE: u64 = 0x4000;
const WINDOW: u64 = 0x8000;
const MEMORY_BYTES: u64 = 4 << 20;

/// Page-table entry bits: present, writable, user, accessed, dirty, no-execute.
const TABLE: u64 = 0x27;
const READ_ONLY: u64 = 1 << 63 | 0x65;
const READ_WRITE: u64 = 1 << 63 | 0x67;
const EXECUTABLE: u64 = 0x25;

/// The interpreter with its machine.
pub struct Interpreter {
    vcpu: Vcpu,
    memory: Arc<SystemMemory>,
    /// What the window's frames hold between two cases.
    now: Box<[u8; WINDOW_BYTES]>,
    /// Where in the code page the last case's code lies.
    code_at: (u64, usize),
}

/// Whether the model advertises what an encoding needs, and so can be compared: all that a case may hold but SSE4A.
pub fn advertised(code: Opcode) -> bool {
    !code.cpuid_features().contains(&CpuidFeature::SSE4A)
}

/// Whether a mismatch is one that is left as it is: MXCSR.MM, which the host has and the model leaves out; which of the
/// bytes of an x87 environment Zen 4 touches first, when more than one of them would fault; and which operand of a
/// comparison of strings is read first when both would (Zen 4 reads the source, Zen 3 under REP the destination).
pub fn known_difference(mismatch: &Mismatch) -> bool {
    const MM: u32 = 1 << 17;
    use Mnemonic::{Cmpsb, Cmpsd, Cmpsq, Cmpsw, Fldenv, Fnsave, Fnstenv, Frstor, Ldmxcsr, Vldmxcsr};
    let insn = native::admit::decode(mismatch.case.code.bytes(), mismatch.case.rip());
    let memory_fault = |outcome| matches!(outcome, Outcome::Fault(Fault { vector: 12..=14 | 17, .. }));
    let (host, ours) = (mismatch.native.outcome, mismatch.ours.outcome);
    match insn.mnemonic() {
        Ldmxcsr | Vldmxcsr => {
            mismatch.native.state.mxcsr & MM != 0 && matches!(ours, Outcome::Fault(Fault { vector: 13, .. }))
        }
        Fldenv | Fnstenv | Fnsave | Frstor | Cmpsb | Cmpsw | Cmpsd | Cmpsq => {
            memory_fault(host) && memory_fault(ours) && mismatch.differences.len() == 1
        }
        _ => false,
    }
}

impl Interpreter {
    /// A machine with the model of the host's vendor.
    pub fn for_this_host() -> Interpreter {
        let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Interpreter::new(if about.contains("GenuineIntel") { CpuModel::intel_v3() } else { CpuModel::amd_v3() })
    }

    /// A machine of this model.
    pub fn new(model: CpuModel) -> Interpreter {
        let memory = SystemMemory::flat(MEMORY_BYTES).expect("4 MiB");
        tables(&memory);
        memory.write(Spa::new(CODE), &[0xcc; PAGE as usize]).expect("in memory");
        memory.write(Spa::new(WINDOW), &**BACKGROUND).expect("in memory");
        let config = VcpuConfig { model, apic_id: 0, cpu_count: 1, seed: Seed(1) };
        let mut vcpu = Vcpu::new(memory.clone(), &config);
        let mut state = vcpu.state();
        state.cr0 = Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE | Cr0::MP | Cr0::WP | Cr0::AM;
        state.cr3 = PML4;
        state.cr4 = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::PGE;
        state.efer = Efer::LME | Efer::LMA | Efer::NXE | Efer::SCE;
        state.xcr0 = Xcr0::X87 | Xcr0::SSE | Xcr0::AVX;
        for reg in SegReg::ALL {
            state.segments.regs[reg as usize] = common::flat(0x2b, 3, false, 3);
        }
        state.segments.regs[SegReg::Cs as usize] = common::flat(0x33, 0xb, true, 3);
        state.rip = CODE_PAGE;
        vcpu.set_state(&state);
        Interpreter { vcpu, memory, now: BACKGROUND.clone(), code_at: (0, 0) }
    }

    /// Executes a case.
    pub fn execute(&mut self, case: &Case) -> CaseResult {
        let initial = case.state.normalised();
        self.place_code(case);
        let touches_memory = case.scope >= Scope::Memory || case.code.scope() >= Scope::Memory;
        for patch in case.window.patches() {
            self.put(patch.offset(), patch.bytes());
        }
        self.vcpu.set_user_registers(&UserRegisters {
            gpr: initial.gpr,
            rip: case.rip(),
            rflags: Rflags::from_bits_retain(initial.rflags),
        });
        if case.scope == Scope::Full {
            self.vcpu.set_media_registers(&MediaRegisters {
                ymm: initial.vec,
                mxcsr: initial.mxcsr,
                x87: x87_in(&initial.x87),
            });
        }
        let outcome = self.run(case);
        let mut state = initial;
        let after = self.vcpu.user_registers();
        // Cases do not see NT, which POPF may set.
        (state.gpr, state.rflags) = (after.gpr, after.rflags.bits() & (RFLAGS_FREE | RFLAGS_FIXED | TF));
        if case.scope == Scope::Full {
            let media = self.vcpu.media_registers();
            (state.vec, state.mxcsr, state.x87) = (media.ymm, media.mxcsr, x87_out(&media.x87));
        }
        let writes = if touches_memory { self.take_writes(case) } else { Writes::default() };
        CaseResult { outcome, state, writes }
    }

    /// Executes until RIP leaves the code.
    fn run(&mut self, case: &Case) -> Outcome {
        let start = case.rip();
        let len = case.code.bytes().len() as u64;
        loop {
            let stepped = self.vcpu.step();
            let rip_delta = self.vcpu.user_registers().rip.wrapping_sub(start) as i64;
            let fault = |vector, error_code, cr2| Outcome::Fault(Fault { vector, error_code, cr2, rip_delta });
            match stepped {
                Stepped::Retired if (0..len as i64).contains(&rip_delta) => {}
                Stepped::Retired => return Outcome::Completed { rip_delta },
                Stepped::Exception(Exception::PageFault { gva, code }) => {
                    return fault(14, code.bits(), Some(gva.raw()));
                }
                Stepped::Exception(exception) => {
                    return fault(exception.vector(), exception.error_code().unwrap_or(0), None);
                }
                Stepped::Event(cpu::Event::Software { vector, .. }) => return fault(vector, 0, None),
                Stepped::Event(_) | Stepped::Exit(Exit::Shutdown) => return Outcome::Crashed(Crash::Exit(1)),
                Stepped::Exit(_) => return Outcome::Crashed(Crash::Exit(2)),
            }
        }
    }

    fn place_code(&mut self, case: &Case) {
        let (offset, len) = self.code_at;
        let at = case.rip() - CODE_PAGE;
        let present = &case.code.bytes()[..case.present_len()];
        if (at, present.len()) != (offset, len) {
            self.memory.write(Spa::new(CODE + offset), &[0xcc; 32][..len]).expect("in memory");
        }
        self.memory.write(Spa::new(CODE + at), present).expect("in memory");
        self.code_at = (at, present.len());
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.memory.write(Spa::new(WINDOW + offset as u64), bytes).expect("in memory");
    }

    /// The lines that changed; puts the background back.
    fn take_writes(&mut self, case: &Case) -> Writes {
        self.memory.read(Spa::new(WINDOW), &mut self.now[..]).expect("in memory");
        let mut writes = Writes::default();
        const BLOCK: usize = 512;
        for block in 0..WINDOW_BYTES / BLOCK {
            let range = block * BLOCK..(block + 1) * BLOCK;
            if self.now[range.clone()] == BACKGROUND[range.clone()] {
                continue;
            }
            for offset in range.step_by(LINE) {
                let line = offset..offset + LINE;
                let mut bytes = [0; LINE];
                bytes.copy_from_slice(&BACKGROUND[line.clone()]);
                if self.now[line.clone()] == bytes {
                    continue;
                }
                self.memory.write(Spa::new(WINDOW + offset as u64), &bytes).expect("in memory");
                patch_line(&case.window, offset, &mut bytes);
                if self.now[line.clone()] != bytes {
                    bytes.copy_from_slice(&self.now[line]);
                    note(&mut writes, Line { offset: offset as u16, bytes });
                }
            }
        }
        // A line that was patched and became background again has changed as well.
        for patch in case.window.patches() {
            let end = patch.offset() + patch.bytes().len();
            for offset in (patch.offset() / LINE * LINE..end).step_by(LINE) {
                let mut bytes = [0; LINE];
                bytes.copy_from_slice(&BACKGROUND[offset..offset + LINE]);
                patch_line(&case.window, offset, &mut bytes);
                let background = &BACKGROUND[offset..offset + LINE];
                if self.now[offset..offset + LINE] == *background && bytes != *background {
                    let mut bytes = [0; LINE];
                    bytes.copy_from_slice(background);
                    if !writes.lines.iter().any(|line| line.offset as usize == offset) {
                        note(&mut writes, Line { offset: offset as u16, bytes });
                        writes.lines.sort_by_key(|line| line.offset);
                    }
                }
            }
        }
        writes
    }
}

fn note(writes: &mut Writes, line: Line) {
    if writes.lines.len() == MAX_LINES {
        writes.truncated = true;
    } else {
        writes.lines.push(line);
    }
}

/// Lays the window's patches over the line at `offset`.
fn patch_line(window: &Window, offset: usize, line: &mut [u8; LINE]) {
    for patch in window.patches() {
        for (n, &byte) in patch.bytes().iter().enumerate() {
            if let Some(place) = (patch.offset() + n).checked_sub(offset).and_then(|at| line.get_mut(at)) {
                *place = byte;
            }
        }
    }
}

/// Page tables with the code page and all windows.
fn tables(memory: &SystemMemory) {
    let store = |at: u64, value: u64| memory.store(Spa::new(at), value).expect("in memory");
    store(PML4, PDPT | TABLE);
    store(PDPT, PD | TABLE);
    let mut free = FIRST_PT;
    let mut map = |linear: u64, entry: u64| {
        assert!(linear < 1 << 30, "one page directory is enough");
        let pde = PD + (linear >> 21) * 8;
        let mut table: u64 = memory.load(Spa::new(pde)).expect("in memory");
        if table == 0 {
            table = free | TABLE;
            store(pde, table);
            free += PAGE;
        }
        store((table & !0xfff) + (linear >> 12 & 0x1ff) * 8, entry);
    };
    map(CODE_PAGE, CODE | EXECUTABLE);
    for n in 0..COMBINATIONS {
        let protections = Window::protections_of(n);
        for (page, protection) in (0..PAGES as u64).zip(protections) {
            let rights = match protection {
                PageProtection::ReadWrite => READ_WRITE,
                PageProtection::ReadOnly => READ_ONLY,
                PageProtection::None => continue,
            };
            map(Window::base_of(n) + page * PAGE, WINDOW + page * PAGE | rights);
        }
    }
}

fn x87_in(x87: &X87State) -> X87Registers {
    X87Registers { fcw: x87.fcw, fsw: x87.fsw, ftw: x87.ftw, fop: 0, fip: 0, fdp: 0, st: x87.st }
}

fn x87_out(x87: &X87Registers) -> X87State {
    X87State { fcw: x87.fcw, fsw: x87.fsw, ftw: x87.ftw, st: x87.st }
}
