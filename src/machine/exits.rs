//! What each exit of a processor leads to.

use cpu::{Completion, Exit, IoAccess, MmioAccess, MmioData, MsrAccess, Vcpu};
use devices::lapic::MsrError;
use devices::{BoardEvents, CpuIndex, Port, Width};
use emu_core::event::{Bits, Direction, Event, UserExitReason};
use gmem::GetError;
use hypervisor::{Action, EntryState, FaultCause, FaultInput, FlushRequest, Shareability, VcpuId, VmError};
use mmu::{NestedFaultKind, NestedPageFault, Stage2Cause};

use super::run::Outcome;
use super::seen::direction;
use super::{Activity, Machine, RunError};
use crate::vmm::AfterFault;
use crate::vmm::hypercall::Hypercall;
use crate::vmm::script::Happening;

/// What the board said, or how the run ended.
pub(super) type Handled = Result<BoardEvents, Outcome>;

/// What `KVM_RUN` returns with a memory fault, negated.
const EFAULT: i32 = 14;

impl Machine {
    pub(super) fn handle_exit(&mut self, n: usize, exit: Exit) -> Result<Handled, RunError> {
        match exit {
            Exit::TimeUp | Exit::InterruptWindow => Ok(Ok(BoardEvents::empty())),
            Exit::Halt => {
                self.counters.halts += 1;
                self.vmm.note(Happening::Halt);
                self.vcpus[n].activity = Activity::Halted;
                // An interrupt may be there already.
                Ok(Ok(BoardEvents::empty()))
            }
            Exit::NestedPageFault { fault, access } => self.nested_fault(n, fault, access),
            Exit::ModificationLogFull => {
                // It was emptied as at every exit.
                self.lens.task().report(Event::PmlFull {});
                Ok(Ok(BoardEvents::empty()))
            }
            Exit::PageFault(fault) => self.page_fault(n, fault),
            Exit::PagingWritten { change } => self.paging_written(n, change),
            Exit::Invlpg { gva } => self.shadow_invlpg(n, gva),
            Exit::Invpcid { what } => self.shadow_invpcid(n, what),
            Exit::ReadPdptes { gpa } => Ok(Ok(self.read_pdptes(n, gpa))),
            Exit::Mmio { access, .. } => Ok(Err(self.no_memory(n, access.gpa))),
            Exit::Io(access) => Ok(Ok(self.port(n, access))),
            Exit::Msr(access) => Ok(Ok(self.msr(n, access))),
            Exit::TaskPriority { write } => Ok(Ok(self.task_priority(n, write))),
            Exit::VmgExit => self.vmgexit(n),
            Exit::Hypercall => {
                let state = self.vcpus[n].vcpu.state();
                let asked = Hypercall::read(&state);
                // RAX; RBX, RCX, RDX and RSI.
                let [nr, a0, a1, a2, a3] = [0, 3, 1, 2, 6].map(|register: usize| state.gpr[register]);
                let [a0, a1, a2, a3] = [a0, a1, a2, a3].map(Bits);
                self.lens.task().report(Event::Hypercall { nr, a0, a1, a2, a3 });
                let answer = self.vmm.hypercall(&self.vm, asked, &self.lens.task());
                self.flush_owed();
                self.vcpus[n].vcpu.set_gpr(0, answer);
                Ok(Ok(BoardEvents::empty()))
            }
            Exit::TscMoved => {
                let offset = self.vcpus[n].vcpu.tsc_offset();
                if let Some(lapic) = self.board.lapic_mut(CpuIndex(n as u16)) {
                    lapic.set_tsc_offset(offset, self.now);
                }
                Ok(Ok(BoardEvents::TIMERS))
            }
            Exit::InvalidGuestState(cause) => {
                let (cpu, registers) = (n as u16, self.describe(n));
                Ok(Err(Outcome::BrokeProtocol { cpu, why: cause.to_string(), registers }))
            }
            Exit::Shutdown => Ok(Err(Outcome::TripleFault { cpu: n as u16, registers: self.describe(n) })),
        }
    }

    pub(super) fn describe(&self, n: usize) -> String {
        let state = self.vcpus[n].vcpu.state();
        format!(
            "rip={:#x} rsp={:#x} rax={:#x} rflags={:?} cr0={:?} cr2={:#x} cr3={:#x} cr4={:?} efer={:?} cs={:#x}",
            state.rip,
            state.gpr[4],
            state.gpr[0],
            state.rflags,
            state.cr0,
            state.cr2,
            state.cr3,
            state.cr4,
            state.efer,
            state.segments.regs[1].selector,
        )
    }

    pub(super) fn no_memory(&self, n: usize, gpa: emu_core::Gpa) -> Outcome {
        Outcome::NoMemory { cpu: n as u16, gpa, registers: self.describe(n) }
    }

    fn nested_fault(
        &mut self,
        n: usize,
        fault: NestedPageFault,
        access: Option<MmioAccess>,
    ) -> Result<Handled, RunError> {
        self.saw_nested_fault(&fault)?;
        let action = match self.vm.handle_fault(VcpuId(n as u16), fault_input(&fault), &self.lens.task()) {
            // `EHWPOISON`: the VMM has no other copy to give.
            Err(VmError::Backing(GetError::Poisoned { .. })) => {
                return Ok(Err(Outcome::MemoryFailure { cpu: n as u16, gpa: fault.gpa, registers: self.describe(n) }));
            }
            Err(VmError::PrivateMmio { gpa }) => {
                let (cpu, registers) = (n as u16, self.describe(n));
                let why = format!("a private access at {gpa}, where a device is");
                return Ok(Err(Outcome::BrokeProtocol { cpu, why, registers }));
            }
            action => action?,
        };
        self.flush_owed();
        Ok(self.after_fault(n, action, access))
    }

    /// What the hypervisor's answer to a nested fault means for processor `n`.
    pub(super) fn after_fault(&mut self, n: usize, action: Action, access: Option<MmioAccess>) -> Handled {
        self.vmm.note(Happening::PageFault);
        match action {
            Action::Resume(_) => Ok(BoardEvents::empty()),
            Action::Mmio { gpa } => match access {
                Some(access) => Ok(self.device(n, access)),
                // Nobody can emulate the instruction of a guest with encrypted state. It comes again, meets the entry that
                // stands for a device now, and becomes #VC.
                None if self.snp.is_some() => Ok(BoardEvents::empty()),
                None => Err(self.no_memory(n, gpa)),
            },
            Action::RomWrite { gpa } => match access {
                // The write is dropped, the instruction goes on.
                Some(_) => {
                    self.vcpus[n].vcpu.complete(Completion::value(0));
                    Ok(BoardEvents::empty())
                }
                None => Err(self.no_memory(n, gpa)),
            },
            Action::MemoryFault(fault) => {
                let reason = UserExitReason::MemoryFault;
                self.lens.task().report(Event::UserspaceExit { reason, errno: -EFAULT });
                let after = self.vmm.memory_fault(&self.vm, &fault, &self.lens.task());
                self.flush_owed();
                match after {
                    AfterFault::Retry => Ok(BoardEvents::empty()),
                    AfterFault::Stop => Err(Outcome::MemoryFault { cpu: n as u16, fault, registers: self.describe(n) }),
                }
            }
        }
    }

    /// Makes every processor forget what the hypervisor says it must.
    pub(super) fn flush_owed(&mut self) {
        for (n, processor) in self.vcpus.iter_mut().enumerate() {
            // A processor that is running elsewhere looks for itself before it enters the guest again.
            if let Some(vcpu) = processor.vcpu.present()
                && let Some(request) = self.vm.take_flush(VcpuId(n as u16), &self.lens.task())
            {
                forget(vcpu, request);
            }
        }
    }

    /// A memory access that a device answers.
    fn device(&mut self, n: usize, access: MmioAccess) -> BoardEvents {
        let (bytes, events) = self.mmio(n, access);
        self.vcpus[n].vcpu.complete(Completion::Done(bytes));
        events
    }

    /// The same without telling the processor, in pieces no wider than a bus cycle. What was read.
    pub(super) fn mmio(&mut self, n: usize, access: MmioAccess) -> ([u8; 32], BoardEvents) {
        self.counters.mmio += 1;
        let cpu = CpuIndex(n as u16);
        let mut events = BoardEvents::empty();
        let mut bytes = [0; 32];
        if let MmioData::Write(data) = access.data {
            bytes = data;
        }
        let len = access.len_bytes as usize;
        let mut at = 0;
        while at < len {
            let gpa = access.gpa.wrapping_add(at as u64);
            let width = piece(len - at);
            let size = width as usize;
            if access.data == MmioData::Read {
                let value = self.board.mmio_read(gpa, width, cpu, self.now).unwrap_or(u64::MAX);
                let (direction, len) = (Direction::Read, size as u8);
                self.lens.task().report(Event::Mmio { direction, len, gpa, value: Bits(value) });
                bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
            } else {
                let mut value = [0; 8];
                value[..size].copy_from_slice(&bytes[at..at + size]);
                let value = u64::from_le_bytes(value);
                let (direction, len) = (Direction::Write, size as u8);
                self.lens.task().report(Event::Mmio { direction, len, gpa, value: Bits(value) });
                events |= self.board.mmio_write(gpa, width, value, cpu, self.now).unwrap_or_default();
            }
            at += size;
        }
        (bytes, events)
    }

    fn port(&mut self, n: usize, access: IoAccess) -> BoardEvents {
        let (value, events) = self.port_access(access);
        self.vcpus[n].vcpu.complete(Completion::value(value.into()));
        events
    }

    /// A port access. What was read.
    pub(super) fn port_access(&mut self, access: IoAccess) -> (u32, BoardEvents) {
        self.counters.io += 1;
        let width = match access.len_bytes {
            1 => Width::Byte,
            2 => Width::Word,
            _ => Width::Dword,
        };
        let port = Port(access.port);
        let (value, events) = match access.write {
            Some(value) => (0, self.board.io_write(port, width, value, self.now)),
            None => (self.board.io_read(port, width, self.now), BoardEvents::REQUESTS),
        };
        let direction = direction(access.write);
        let bits = Bits(access.write.unwrap_or(value).into());
        self.lens.task().report(Event::Pio { direction, len: access.len_bytes, port: access.port, value: bits });
        (value, events)
    }

    fn msr(&mut self, n: usize, access: MsrAccess) -> BoardEvents {
        let (completion, events) = match self.board_msr(n, access) {
            Ok((value, events)) => (Completion::value(value), events),
            Err(_) => (Completion::Refused, BoardEvents::empty()),
        };
        self.vcpus[n].vcpu.complete(completion);
        events
    }

    /// An access to a register that the board answers for. What was read.
    pub(super) fn board_msr(&mut self, n: usize, access: MsrAccess) -> Result<(u64, BoardEvents), MsrError> {
        self.counters.msr += 1;
        let cpu = CpuIndex(n as u16);
        let answer: Result<(u64, BoardEvents), MsrError> = match access.write {
            Some(value) => self.board.msr_write(cpu, access.msr, value, self.now).map(|events| (0, events)),
            None => self.board.msr_read(cpu, access.msr, self.now).map(|value| (value, BoardEvents::empty())),
        };
        if let Ok((value, _)) = &answer {
            let data = Bits(access.write.unwrap_or(*value));
            let direction = direction(access.write);
            self.lens.task().report(Event::Msr { direction, ecx: access.msr, data });
        }
        answer
    }
}

impl Machine {
    /// MOV to or from CR8: bits 7:4 of the local APIC's task priority.
    fn task_priority(&mut self, n: usize, write: Option<u8>) -> BoardEvents {
        let mut value = 0;
        if let Some(lapic) = self.board.lapic_mut(CpuIndex(n as u16)) {
            match write {
                Some(priority) => lapic.set_cr8(priority),
                None => value = lapic.cr8(),
            }
        }
        self.vcpus[n].vcpu.complete(Completion::value(value as u64));
        BoardEvents::REQUESTS
    }
}

/// A nested fault in the hypervisor's words.
pub(crate) fn fault_input(fault: &NestedPageFault) -> FaultInput {
    FaultInput {
        cause: match fault.cause {
            Stage2Cause::FinalAddress => FaultCause::FinalAddress,
            _ => FaultCause::GuestTable,
        },
        entry: match fault.kind {
            NestedFaultKind::NotPresent { .. } => EntryState::NotPresent,
            NestedFaultKind::Reserved { .. } | NestedFaultKind::Misconfigured { .. } => EntryState::Reserved,
            NestedFaultKind::Permission => EntryState::Denied,
            NestedFaultKind::Rmp(cause) => EntryState::Rmp(cause),
        },
        privacy: if fault.c_bit.is_set() { Shareability::PRIVATE } else { Shareability::SHARED },
        ..FaultInput::new(fault.gpa, fault.access)
    }
}

/// Makes a processor forget what the hypervisor says it must.
pub(super) fn forget(vcpu: &mut Vcpu, request: FlushRequest) {
    match request {
        FlushRequest::All => vcpu.mmu().flush_all(),
        FlushRequest::Range { first, nr_pages } => vcpu.mmu().flush_gpa_range(first, nr_pages),
    }
}

/// The widest access for `len` bytes.
fn piece(len: usize) -> Width {
    match len {
        8.. => Width::Qword,
        4..8 => Width::Dword,
        2..4 => Width::Word,
        _ => Width::Byte,
    }
}
