//! Turns: whose it is, how long it lasts, and what ends the run.

use cpu::{Event, Exit};
use devices::{BoardEvents, BoardRequest, CpuIndex};
use emu_core::event::UserExitReason;
use emu_core::time::{Duration, Instant};
use hypervisor::VcpuId;

use super::guest_memory::HostSide;
use super::seat::{Activity, Message};
use super::{Machine, RunError, border, seen};

/// Longest turn of a lone processor when nothing is due.
const LONE_TURN: u64 = 1 << 20;

/// When a run is to stop by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// After this many units of time have been executed by all processors together.
    pub max_instructions: Option<u64>,
}

/// Why a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest wrote this to the debug-exit port.
    DebugExit(u32),
    /// A processor could not deliver a double fault.
    TripleFault {
        /// Which one.
        cpu: u16,
        /// Its registers, in words.
        registers: String,
    },
    /// The guest executes, or has page tables, where no memory is.
    NoMemory {
        /// Which processor.
        cpu: u16,
        /// The guest physical address.
        gpa: emu_core::Gpa,
        /// Its registers, in words.
        registers: String,
    },
    /// A fault on guest memory that the VMM did not resolve (`KVM_EXIT_MEMORY_FAULT`). Run again, it comes again.
    MemoryFault {
        /// Which processor.
        cpu: u16,
        /// What the guest meant, and where.
        fault: hypervisor::MemoryFault,
        /// Its registers, in words.
        registers: String,
    },
    /// An encrypted guest gives up, and says so (`KVM_SYSTEM_EVENT_SEV_TERM`).
    Terminated {
        /// Which processor.
        cpu: u16,
        /// What it says, in words.
        why: String,
        /// Its registers, in words; the hypervisor cannot see them, a debugger beneath it can.
        registers: String,
    },
    /// An encrypted guest, or its host, did what the protocol between them does not allow.
    BrokeProtocol {
        /// Which processor.
        cpu: u16,
        /// What, in words.
        why: String,
        /// Its registers, in words.
        registers: String,
    },
    /// The guest uses memory that has failed (`EHWPOISON`).
    MemoryFailure {
        /// Which processor.
        cpu: u16,
        /// Where.
        gpa: emu_core::Gpa,
        /// Its registers, in words.
        registers: String,
    },
    /// A rule of the hypervisor's was found broken: a mistake of ours, never of the guest's.
    InvariantBroken {
        /// Instructions of all processors before the look that found it.
        at: u64,
        /// The rule.
        invariant: String,
        /// What was seen instead.
        found: String,
    },
    /// Every processor waits and nothing is due that could wake one.
    Asleep {
        /// The first processor's registers, in words.
        registers: String,
    },
    /// A limit of [`Limits`] was reached.
    LimitReached,
    /// The caller asked to come back: the machine can be run on.
    Interrupted,
}

impl Machine {
    /// Runs until the guest ends, a limit is reached, or `keep_going`, asked about once a turn, says no.
    ///
    /// # Errors
    /// [`RunError`]: the host could not go on.
    pub fn run(&mut self, limits: Limits, keep_going: impl FnMut(&mut Machine) -> bool) -> Result<Outcome, RunError> {
        let outcome = self.run_turns(limits, keep_going)?;
        // However it ended, the end is a moment to look at.
        Ok(self.check_invariants().unwrap_or(outcome))
    }

    fn run_turns(
        &mut self,
        limits: Limits,
        mut keep_going: impl FnMut(&mut Machine) -> bool,
    ) -> Result<Outcome, RunError> {
        loop {
            if let Some(broken) = self.check_when_due() {
                return Ok(broken);
            }
            if let Some(outcome) = self.settle(BoardEvents::REQUESTS) {
                return Ok(outcome);
            }
            if let Some(most) = limits.max_instructions
                && self.instructions() >= most
            {
                return Ok(Outcome::LimitReached);
            }
            if !keep_going(self) {
                return Ok(Outcome::Interrupted);
            }
            let Some(n) = self.next_runnable() else {
                // Nobody runs: time jumps to what is due.
                match self.board.next_event(self.now) {
                    Some(due) => {
                        self.now = self.now.max(due);
                        let events = self.board.advance(self.now);
                        if let Some(outcome) = self.settle(events) {
                            return Ok(outcome);
                        }
                        continue;
                    }
                    None => return Ok(Outcome::Asleep { registers: self.describe(0) }),
                }
            };
            if let Some(outcome) = self.take_turn(n, limits)? {
                return Ok(outcome);
            }
        }
    }

    /// Units of time that processors have executed.
    pub fn instructions(&self) -> u64 {
        self.vcpus.iter().map(|p| p.retired).sum()
    }

    /// The next processor in the round that can run, woken if it has reason to.
    fn next_runnable(&mut self) -> Option<usize> {
        let count = self.vcpus.len();
        for offset in 0..count {
            let n = (self.turn + offset) % count;
            if self.wakes(n) {
                self.turn = (n + 1) % count;
                return Some(n);
            }
        }
        None
    }

    /// Whether processor `n` can run; it wakes if it has reason to.
    pub(super) fn wakes(&mut self, n: usize) -> bool {
        let processor = &mut self.vcpus[n];
        processor.read_mail();
        if matches!(processor.activity, Activity::Halted | Activity::ResetHold)
            && (processor.vcpu.has_event()
                || processor.vcpu.interrupts_enabled() && self.board.interrupt_for(CpuIndex(n as u16)).is_some())
        {
            processor.wake();
        }
        if processor.activity == Activity::Running {
            self.follow_guest(n);
        }
        self.vcpus[n].runs()
    }

    /// How long the turn lasts at the most.
    fn turn_end(&mut self, limits: Limits) -> Instant {
        let length = if self.vcpus.len() == 1 {
            LONE_TURN
        } else {
            let quantum = self.config.quantum.max(2);
            quantum / 2 + self.scheduler.below(quantum / 2)
        };
        let length = match limits.max_instructions {
            Some(most) => length.min(most.saturating_sub(self.instructions()).max(1)),
            None => length,
        };
        self.now + Duration::new(length)
    }

    /// Lets processor `n` run until its turn ends, it sleeps, or the machine does.
    fn take_turn(&mut self, n: usize, limits: Limits) -> Result<Option<Outcome>, RunError> {
        self.counters.turns += 1;
        let end = self.turn_end(limits);
        self.vcpus[n].vcpu.advance_clock(self.now);
        while self.now < end && self.vcpus[n].runs() {
            self.offer_interrupt(n);
            let due = self.board.next_event(self.now).unwrap_or(Instant::FAR);
            let until = self.vmm_acts().map_or(end, |at| end.min(at)).min(due.max(self.now + Duration::new(1)));
            let until = self.lie_when_due(n)?.map_or(until, |at| until.min(at));
            self.look_at(n);
            self.lens.task().report(emu_core::event::Event::Entry {});
            self.empty_a_full_ring(n)?;
            let vcpu = &mut self.vcpus[n].vcpu;
            border::prepare(&self.vm, n, vcpu, &self.lens.task())?;
            border::enter(&self.vm, n, vcpu)?;
            let exit = vcpu.run(until);
            border::leave(&self.vm, n, vcpu, &self.lens.task())?;
            seen::saw_inside(&self.lens, n, vcpu);
            let after = vcpu.now();
            self.vcpus[n].retired += after.saturating_since(self.now).units();
            self.now = self.now.max(after);
            let mut events = BoardEvents::empty();
            if exit != Exit::TimeUp {
                self.counters.exits += 1;
                self.saw_exit(n, &exit);
                match self.handle_exit(n, exit)? {
                    Ok(more) => events |= more,
                    Err(outcome) => return Ok(Some(outcome)),
                }
            }
            if self.board.next_event(self.now).is_some_and(|due| due <= self.now) {
                events |= self.board.advance(self.now);
            }
            if !events.is_empty()
                && let Some(outcome) = self.settle(events)
            {
                return Ok(Some(outcome));
            }
        }
        Ok(None)
    }

    /// A processor whose ring is full leaves to the VMM before it enters the guest.
    fn empty_a_full_ring(&mut self, n: usize) -> Result<(), RunError> {
        let has_rings = self.config.params.dirty_ring.is_some();
        if has_rings && self.vm.is_dirty_ring_full(VcpuId(n as u16), &self.lens.task())? {
            let reason = UserExitReason::DirtyRingFull;
            self.lens.task().report(emu_core::event::Event::UserspaceExit { reason, errno: 0 });
            self.vmm.ring_is_full(&self.vm, &self.lens.task())?;
            self.flush_owed();
        }
        Ok(())
    }

    /// Lets the VMM do what is due by its own will. When it wants to act again, if no other processor runs until then.
    fn vmm_acts(&mut self) -> Option<Instant> {
        self.vmm.until_due(0)?;
        let done = self.instructions();
        self.look_at_host();
        if self.vmm.act(&self.vm, done, &self.lens.task()) {
            self.flush_owed();
        }
        self.vmm.until_due(done).map(|units| self.now + Duration::new(units.max(1)))
    }

    /// Gives processor `n` the interrupt that waits for it, or asks to be told when it can take one.
    pub(super) fn offer_interrupt(&mut self, n: usize) {
        let index = CpuIndex(n as u16);
        let waits = self.board.interrupt_for(index).is_some();
        let vcpu = &mut self.vcpus[n].vcpu;
        if waits && vcpu.can_take_interrupt() {
            if let Some(vector) = self.board.acknowledge(index) {
                self.counters.interrupts += 1;
                vcpu.inject(Event::Interrupt { vector });
            }
            let more = self.board.interrupt_for(index).is_some();
            vcpu.request_interrupt_window(more);
        } else {
            vcpu.request_interrupt_window(waits);
        }
    }

    /// Follows up what the board asks for.
    pub(super) fn settle(&mut self, events: BoardEvents) -> Option<Outcome> {
        if events.contains(BoardEvents::DMA) {
            self.look_at_host();
            let more = self.board.run_dma(&mut HostSide::new(&self.vm, self.lens.task()), self.now);
            if let Some(outcome) = self.settle(more - BoardEvents::DMA) {
                return Some(outcome);
            }
            self.flush_owed();
        }
        self.serial.extend(self.board.serial_output());
        if !self.board.has_requests() {
            return None;
        }
        let requests: Vec<BoardRequest> = self.board.take_requests().collect();
        for request in requests {
            match request {
                BoardRequest::PowerOff => return Some(Outcome::PowerOff),
                BoardRequest::Reset => return Some(Outcome::Reset),
                BoardRequest::DebugExit(value) => return Some(Outcome::DebugExit(value)),
                BoardRequest::Init(cpu) => self.tell(cpu, Message::Init),
                BoardRequest::Sipi { cpu, vector } => self.tell(cpu, Message::Sipi { vector }),
                BoardRequest::Nmi(cpu) => self.tell(cpu, Message::Nmi),
                BoardRequest::FlushPage(gpa) => {
                    self.vcpus.iter_mut().for_each(|processor| processor.tell(Message::Forget { gfn: gpa.frame() }));
                }
                // Interrupts are looked at before each entry; address line 20 is always on.
                BoardRequest::InterruptChanged(_) | BoardRequest::A20(_) => {}
            }
        }
        None
    }

    fn tell(&mut self, cpu: CpuIndex, message: Message) {
        if let Some(processor) = self.vcpus.get_mut(cpu.index()) {
            processor.tell(message);
        }
    }
}
