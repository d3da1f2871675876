//! What a guest asks by VMGEXIT, done: ports and devices by the board, MSRs and CPUID by what the hypervisor keeps for the
//! processor, page states by the VMM's conversion, processors from VMSAs of the guest's.

use devices::BoardEvents;
use emu_core::event::{Bits, Event};
use emu_core::regs::Xcr0;
use emu_core::sync::Task;
use emu_core::{Exception, Gpa};
use hypervisor::snp::ghcb::{
    ExitWords, GhcbMemory, GhcbReply, GhcbUnreachable, GhcbVcpu, GuestRequest, Hypercall as Asked, IoRequest,
    IoTransfer, PageState, PageStateRun, ReplyError, SnpAction,
};
use hypervisor::snp::memory::PageStateChange;
use hypervisor::{Shareability, Vm};

use super::inject::IsInput;
use crate::machine::exits::Handled;
use crate::machine::{Machine, Outcome, RunError};
use crate::vmm::hypercall::Hypercall;
use cpu::{Emulated, IoAccess, MmioAccess, MmioData, MsrAccess};

/// The shared side of guest memory, where GHCBs lie.
pub(super) struct Shared<'a> {
    pub(super) vm: &'a Vm,
    pub(super) task: Task<'a>,
}

impl GhcbMemory for Shared<'_> {
    fn read(&mut self, gpa: Gpa, into: &mut [u8]) -> Result<(), GhcbUnreachable> {
        self.vm.guest_read(gpa, into, &self.task).map_err(|_| GhcbUnreachable)
    }
    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), GhcbUnreachable> {
        self.vm.guest_write(gpa, from, &self.task).map_err(|_| GhcbUnreachable)
    }
}

/// What one action came to.
enum Done {
    /// An answer for the guest.
    Reply(GhcbReply<'static>),
    /// The same, in bytes.
    Bytes(Vec<u8>),
    /// The processor waits; the answer comes when it is started.
    Waits,
    /// The guest is at its end.
    Ended(Outcome),
}

/// What ends the VM's run, negated.
const EINVAL: i32 = 22;

/// A VMGEXIT as a trace tells it.
fn entered(ghcb: &GhcbVcpu, ghcb_msr: u64) -> Event {
    match ghcb.asked() {
        Some(ExitWords { code, info1, info2 }) => {
            Event::VmgexitEnter { exit_code: Bits(code), info1: Bits(info1), info2: Bits(info2) }
        }
        None => Event::VmgexitMsrProtocolEnter { ghcb_gpa: Bits(ghcb_msr) },
    }
}

impl Machine {
    /// Processor `n` has executed VMGEXIT.
    pub(in crate::machine) fn vmgexit(&mut self, n: usize) -> Result<Handled, RunError> {
        let ghcb_msr = self.vcpus[n].vcpu.ghcb();
        self.counters.vmgexits += 1;
        let mut events = BoardEvents::empty();
        let Some(snp) = &mut self.snp else { return Ok(Ok(events)) };
        // Out of its place while the machine acts for it.
        let mut ghcb = core::mem::take(&mut snp.vcpus[n]);
        let mut action = {
            let mut memory = Shared { vm: &self.vm, task: self.lens.task() };
            ghcb.vmgexit(&snp.guest, ghcb_msr, &mut memory)
        };
        self.lens.task().report_with(|| entered(&ghcb, ghcb_msr));
        let page = Gpa::new(ghcb_msr);
        let mut input = IsInput::No;
        let ended = loop {
            if let SnpAction::Resume { ghcb_msr } = action {
                match ghcb_msr {
                    Some(value) => self.vcpus[n].vcpu.set_ghcb(value),
                    None if page == page.frame().base() => self.falsify_ghcb(page, input),
                    None => {}
                }
                break None;
            }
            if let SnpAction::Io(IoRequest { transfer: IoTransfer::In, .. }) = &action {
                input = IsInput::Yes;
            }
            let bytes;
            let reply = match self.perform(n, action, &mut events)? {
                Done::Reply(reply) => reply,
                Done::Bytes(read) => {
                    bytes = read;
                    GhcbReply::Bytes(&bytes)
                }
                Done::Waits => break None,
                Done::Ended(outcome) => break Some(outcome),
            };
            let mut memory = Shared { vm: &self.vm, task: self.lens.task() };
            action = match ghcb.reply(&mut memory, reply) {
                Ok(next) => next,
                // The guest took its page away in the middle: it goes on without the answer.
                Err(ReplyError::Lost(_)) => break None,
                Err(ReplyError::Mismatch) => unreachable!("every action above has its kind of reply"),
            };
        };
        if self.lens.is_recording() {
            self.saw_answer(n, &ghcb, ended.is_some());
        }
        if let Some(snp) = &mut self.snp {
            snp.vcpus[n] = ghcb;
        }
        Ok(ended.map_or(Ok(events), Err))
    }

    /// Reports what processor `n` goes on with, or that it does not.
    fn saw_answer(&mut self, n: usize, ghcb: &GhcbVcpu, ended: bool) {
        if ghcb.asked().is_none() {
            let result = if ended { -EINVAL } else { 1 };
            let ghcb_gpa = Bits(self.vcpus[n].vcpu.ghcb());
            self.lens.task().report(Event::VmgexitMsrProtocolExit { ghcb_gpa, result });
            return;
        }
        let answer = ghcb.answered(&mut Shared { vm: &self.vm, task: self.lens.task() });
        if let Some(ExitWords { code, info1, info2 }) = answer.filter(|_| !ended) {
            let [exit_code, info1, info2] = [code, info1, info2].map(Bits);
            self.lens.task().report(Event::VmgexitExit { exit_code, info1, info2 });
        }
    }

    fn perform(&mut self, n: usize, action: SnpAction, events: &mut BoardEvents) -> Result<Done, RunError> {
        let done = Ok(Done::Reply(GhcbReply::Done));
        match action {
            SnpAction::Resume { .. } => done,
            SnpAction::Io(request) => Ok(self.guest_io(&request, events)),
            SnpAction::MmioRead { gpa, len_bytes } => {
                let (bytes, more) = self.mmio(n, MmioAccess { gpa, len_bytes, data: MmioData::Read });
                *events |= more;
                Ok(Done::Bytes(bytes[..usize::from(len_bytes)].to_vec()))
            }
            SnpAction::MmioWrite { gpa, len_bytes, data } => {
                let mut bytes = [0; 32];
                bytes[..data.len()].copy_from_slice(&data);
                *events |= self.mmio(n, MmioAccess { gpa, len_bytes, data: MmioData::Write(bytes) }).1;
                done
            }
            SnpAction::MsrRead(msr) => {
                let value = match self.vcpus[n].vcpu.emulated_rdmsr(msr) {
                    Ok(Emulated::Done(value)) => Some(value),
                    Ok(Emulated::Board(access)) => self.ask_board(n, access, events),
                    Err(_) => None,
                };
                Ok(Done::Reply(value.map_or(GhcbReply::Exception(Exception::GP0), GhcbReply::Value)))
            }
            SnpAction::MsrWrite(msr, value) => {
                let accepted = match self.vcpus[n].vcpu.emulated_wrmsr(msr, value) {
                    Ok(Emulated::Done(())) => true,
                    Ok(Emulated::Board(access)) => {
                        let taken = self.ask_board(n, access, events).is_some();
                        if taken {
                            self.vcpus[n].vcpu.board_took(access);
                        }
                        taken
                    }
                    Err(_) => false,
                };
                Ok(Done::Reply(if accepted { GhcbReply::Done } else { GhcbReply::Exception(Exception::GP0) }))
            }
            SnpAction::Cpuid(request) => {
                // The MSR protocol has no place for them, and the decompressor that uses it has set nothing.
                let (xcr0, xss) = (request.xcr0.unwrap_or(Xcr0::X87.bits()), request.xss.unwrap_or(0));
                let result = self.vcpus[n].vcpu.emulated_cpuid(request.leaf, request.subleaf, xcr0, xss);
                Ok(Done::Reply(GhcbReply::Cpuid(self.cpuid_answer(&request, result))))
            }
            SnpAction::Tsc => {
                let (tsc, aux) = self.vcpus[n].vcpu.tsc();
                Ok(Done::Reply(GhcbReply::Tsc { tsc, aux }))
            }
            // There are no counters.
            SnpAction::Rdpmc { .. } => Ok(Done::Reply(GhcbReply::Exception(Exception::GP0))),
            SnpAction::Hypercall(asked) => Ok(Done::Reply(GhcbReply::Value(self.guest_hypercall(&asked)))),
            SnpAction::PageState(run) => Ok(Done::Reply(self.page_state(run))),
            SnpAction::NmiComplete => {
                self.vcpus[n].vcpu.nmi_complete();
                done
            }
            SnpAction::ApResetHold => {
                self.vcpus[n].hold();
                Ok(Done::Waits)
            }
            SnpAction::ApCreate(create) => Ok(Done::Reply(self.create_processor(&create))),
            SnpAction::ApDestroy { apic_id } => Ok(Done::Reply(self.destroy_processor(apic_id))),
            SnpAction::GuestRequest(request) => Ok(Done::Reply(self.guest_request(&request))),
            SnpAction::Terminate(termination) => {
                let cpu = n as u16;
                let registers = self.describe(n);
                Ok(Done::Ended(Outcome::Terminated { cpu, why: termination.to_string(), registers }))
            }
            SnpAction::Fatal(cause) => {
                let (cpu, registers) = (n as u16, self.describe(n));
                Ok(Done::Ended(Outcome::BrokeProtocol { cpu, why: cause.to_string(), registers }))
            }
        }
    }

    /// An access to a register on the board. What was read; `None` if the board refuses.
    fn ask_board(&mut self, n: usize, access: MsrAccess, events: &mut BoardEvents) -> Option<u64> {
        let (value, more) = self.board_msr(n, access).ok()?;
        *events |= more;
        Some(value)
    }

    fn guest_io(&mut self, request: &IoRequest, events: &mut BoardEvents) -> Done {
        let len_bytes = request.width.bytes() as u8;
        let mut one = |machine: &mut Machine, write: Option<u32>| {
            let (value, more) = machine.port_access(IoAccess { port: request.port, len_bytes, write });
            *events |= more;
            value
        };
        match &request.transfer {
            IoTransfer::In => Done::Reply(GhcbReply::Value(one(self, None).into())),
            &IoTransfer::Out(value) => {
                one(self, Some(value));
                Done::Reply(GhcbReply::Done)
            }
            &IoTransfer::StringIn { count } => {
                let elements = (0..count).flat_map(|_| {
                    let value = one(self, None).to_le_bytes();
                    value.into_iter().take(usize::from(len_bytes))
                });
                Done::Bytes(elements.collect())
            }
            IoTransfer::StringOut { bytes } => {
                for element in bytes.chunks(usize::from(len_bytes)) {
                    let mut value = [0; 4];
                    value[..element.len()].copy_from_slice(element);
                    one(self, Some(u32::from_le_bytes(value)));
                }
                Done::Reply(GhcbReply::Done)
            }
        }
    }

    fn guest_hypercall(&mut self, asked: &Asked) -> u64 {
        let [a0, a1, a2, a3] = asked.arguments.map(Bits);
        self.lens.task().report(Event::Hypercall { nr: asked.number, a0, a1, a2, a3 });
        let call = Hypercall::decode(asked.number, asked.arguments, asked.cpl);
        let answer = self.vmm.hypercall(&self.vm, call, &self.lens.task());
        self.flush_owed();
        answer
    }

    /// `KVM_HC_MAP_GPA_RANGE`, as KVM and its VMM answer it.
    fn page_state(&mut self, run: PageStateRun) -> GhcbReply<'static> {
        let to = match run.to {
            PageState::Private => Shareability::PRIVATE,
            PageState::Shared => Shareability::SHARED,
        };
        self.counters.page_state_changes += 1;
        let change = PageStateChange { first: run.start, nr_pages: run.frames, to, size: run.size };
        let changed = self.vmm.page_state(&self.vm, change, &self.lens.task());
        self.flush_owed();
        if changed { GhcbReply::Done } else { GhcbReply::Refused }
    }

    fn guest_request(&mut self, request: &GuestRequest) -> GhcbReply<'static> {
        let Some(snp) = &mut self.snp else { return GhcbReply::Refused };
        let mut memory = Shared { vm: &self.vm, task: self.lens.task() };
        GhcbReply::GuestRequest(snp.firmware.serve(request, &[], &mut memory))
    }
}
