//! Processors at the same time, each on a host thread of its own.
//!
//! Nothing of the determinism of turns is left, and in exchange two processors run twice as much. A thread takes its
//! processor out of its [`Seat`](super::seat::Seat), runs it for a short slice without any lock, answers nested faults
//! through the hypervisor, which takes `&self`, and comes back to the machine, which is behind one lock, for everything
//! else: devices, interrupts, messages of other processors.
//!
//! Each processor has a clock of its own. They meet whenever one of them comes to the machine or reads its time-stamp
//! counter ([`MeetingPoint`]), so that no one sees time run backwards; the machine's time is where the furthest of them
//! is. When all wait, it jumps to what is due.
//!
//! What differs from processors of silicon: an interrupt, a message or a flush arrives at the end of a slice, and code
//! that one processor writes is seen by another at the beginning of its next slice, unless it serialises before.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use cpu::{Exit, MmioAccess, Vcpu};
use devices::BoardEvents;
use emu_core::event::Event;
use emu_core::time::{Duration, Instant, MeetingPoint};
use hypervisor::{Action, FlushRequest, VcpuId, Vm};

use super::exits::{fault_input, forget};
use super::seen::{reason, saw_inside, stamp};
use super::{Limits, Machine, Outcome, RunError, border};
use crate::trace::Lens;

/// Longest time a processor is away from the machine, in units. Others may wait this long for it to forget a translation.
const SLICE: u64 = 20_000;
/// Slices after which the caller is asked whether to go on.
const PATIENCE: u32 = 128;

/// The machine while its processors run.
struct Floor<'m> {
    machine: &'m mut Machine,
    /// How the run ends; nobody leaves again once it is known.
    ended: Option<Result<Outcome, RunError>>,
    /// Processors that wait for something to happen, and how often they were called.
    waiting: usize,
    calls: u64,
    slices: u32,
    /// Whether the caller is to be asked.
    ask: bool,
}

/// What all threads share.
struct Shared<'m> {
    floor: Mutex<Floor<'m>>,
    /// Something happened that may wake a processor.
    happened: Condvar,
    /// The caller is wanted.
    asked: Condvar,
    point: Arc<MeetingPoint>,
    vm: Arc<Vm>,
    limits: Limits,
}

type OnFloor<'s, 'm> = MutexGuard<'s, Floor<'m>>;

/// Why a processor came back.
enum Return {
    Exit(Exit),
    /// A nested fault that the hypervisor could not settle alone.
    Fault(Action, Option<MmioAccess>),
    Failed(RunError),
}

impl Machine {
    /// Like [`Machine::run`], with every processor on a host thread of its own. Not deterministic.
    ///
    /// # Errors
    /// [`RunError`]: the host could not go on.
    pub fn run_parallel(
        &mut self,
        limits: Limits,
        mut keep_going: impl FnMut(&mut Machine) -> bool,
    ) -> Result<Outcome, RunError> {
        let point = Arc::new(MeetingPoint::default());
        point.meet(self.now);
        let count = self.vcpus.len();
        for processor in &mut self.vcpus {
            processor.vcpu.run_beside_others(Some(Arc::clone(&point)));
        }
        let vm = Arc::clone(&self.vm);
        let floor = Floor { machine: self, ended: None, waiting: 0, calls: 0, slices: 0, ask: true };
        let shared =
            Shared { floor: Mutex::new(floor), happened: Condvar::new(), asked: Condvar::new(), point, vm, limits };
        std::thread::scope(|scope| {
            for n in 0..count {
                let shared = &shared;
                scope.spawn(move || shared.processor(n));
            }
            let mut floor = shared.enter();
            while floor.ended.is_none() {
                if core::mem::take(&mut floor.ask) && !keep_going(floor.machine) {
                    floor.end(Ok(Outcome::Interrupted));
                    break;
                }
                floor = shared.asked.wait(floor).unwrap_or_else(PoisonError::into_inner);
            }
            shared.happened.notify_all();
        });
        let floor = shared.floor.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (machine, ended) = (floor.machine, floor.ended);
        for processor in &mut machine.vcpus {
            processor.vcpu.run_beside_others(None);
        }
        ended.unwrap_or(Ok(Outcome::Interrupted))
    }
}

/// The time a processor has executed, up to a constant.
fn executed(vcpu: &Vcpu) -> u64 {
    vcpu.now().units().wrapping_sub(vcpu.skipped())
}

/// When a processor's thread ends, for whatever reason, all do.
struct EndWithMe<'s, 'm>(&'s Shared<'m>);

impl Drop for EndWithMe<'_, '_> {
    fn drop(&mut self) {
        self.0.enter().end(Ok(Outcome::Interrupted));
        self.0.happened.notify_all();
        self.0.asked.notify_all();
    }
}

impl Floor<'_> {
    fn end(&mut self, how: Result<Outcome, RunError>) {
        self.ended.get_or_insert(how);
    }

    /// Lets the board come to `now` and follows up what it says.
    fn advance(&mut self, now: Instant, mut events: BoardEvents) {
        let machine = &mut *self.machine;
        machine.now = machine.now.max(now);
        if machine.board.next_event(machine.now).is_some_and(|due| due <= machine.now) {
            events |= machine.board.advance(machine.now);
        }
        if let Some(outcome) = machine.settle(events | BoardEvents::REQUESTS) {
            self.end(Ok(outcome));
        }
        self.ask |= !self.machine.serial.is_empty();
    }

    /// Whether any processor that waits would find something to do.
    fn wakes_anybody(&mut self) -> bool {
        (0..self.machine.vcpus.len()).any(|n| self.machine.vcpus[n].vcpu.present().is_some() && self.machine.wakes(n))
    }
}

impl<'m> Shared<'m> {
    fn enter(&self) -> OnFloor<'_, 'm> {
        // A thread that panicked takes the whole run with it when the scope joins it; until then the others may end.
        self.floor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of processor `n`.
    fn processor(&self, n: usize) {
        let _end = EndWithMe(self);
        let mut floor = self.enter();
        let lens = floor.machine.lens().another();
        while floor.ended.is_none() {
            if !floor.machine.wakes(n) {
                floor = self.wait(floor);
                continue;
            }
            let Some((vcpu, until)) = self.leave(&mut floor, n) else { break };
            let begin = executed(&vcpu);
            drop(floor);
            let (vcpu, back) = self.run(n, vcpu, until, &lens);
            floor = self.enter();
            floor.machine.vcpus[n].retired += executed(&vcpu).wrapping_sub(begin);
            self.come_back(&mut floor, n, vcpu, back);
        }
    }

    /// Until something happens. The last processor to wait makes time pass.
    fn wait<'s>(&'s self, mut floor: OnFloor<'s, 'm>) -> OnFloor<'s, 'm> {
        if floor.waiting + 1 < floor.machine.vcpus.len() {
            floor.waiting += 1;
            let calls = floor.calls;
            floor = self.happened.wait(floor).unwrap_or_else(PoisonError::into_inner);
            if floor.calls == calls {
                // Nobody called.
                floor.waiting -= 1;
            }
            return floor;
        }
        let now = floor.machine.now;
        match floor.machine.board.next_event(now) {
            Some(due) => {
                floor.advance(self.point.meet(due.max(now)), BoardEvents::empty());
            }
            None => {
                let registers = floor.machine.describe(0);
                floor.end(Ok(Outcome::Asleep { registers }));
            }
        }
        self.news(&mut floor);
        floor
    }

    /// Tells those who wait that they should look, and the caller when it is time to ask.
    fn news(&self, floor: &mut Floor<'_>) {
        if floor.ended.is_some() || floor.waiting > 0 && floor.wakes_anybody() {
            // They are on their way from now on, so that time does not jump before they have looked.
            floor.waiting = 0;
            floor.calls += 1;
            self.happened.notify_all();
        }
        floor.slices += 1;
        if floor.slices >= PATIENCE {
            floor.slices = 0;
            floor.ask = true;
        }
        if floor.ask || floor.ended.is_some() {
            self.asked.notify_all();
        }
    }

    /// Takes processor `n` away, with what it must know, until when.
    fn leave(&self, floor: &mut Floor<'_>, n: usize) -> Option<(Box<Vcpu>, Instant)> {
        let machine = &mut *floor.machine;
        if let Some(most) = self.limits.max_instructions
            && machine.instructions() >= most
        {
            floor.end(Ok(Outcome::LimitReached));
            return None;
        }
        let now = self.point.meet(machine.now);
        machine.vcpus[n].vcpu.advance_clock(now);
        machine.offer_interrupt(n);
        machine.counters.turns += 1;
        let due = machine.board.next_event(machine.now).unwrap_or(Instant::FAR);
        let until = (now + Duration::new(SLICE)).min(due.max(now + Duration::new(1)));
        Some((machine.vcpus[n].vcpu.leave()?, until))
    }

    /// Executes the guest without the machine, as far as that goes.
    fn run(&self, n: usize, mut vcpu: Box<Vcpu>, until: Instant, lens: &Lens) -> (Box<Vcpu>, Return) {
        let id = VcpuId(n as u16);
        let task = lens.task().on_lane(n as u8);
        loop {
            if let Err(error) = border::prepare(&self.vm, n, &mut vcpu, &task) {
                return (vcpu, Return::Failed(error));
            }
            lens.point_at(|| stamp(n, &vcpu, vcpu.now()));
            task.report(Event::Entry {});
            let exit = match self.vm.enter_guest(id, &task) {
                Err(error) => return (vcpu, Return::Failed(error.into())),
                Ok((inside, flush)) => {
                    flush.into_iter().for_each(|request: FlushRequest| forget(&mut vcpu, request));
                    if self.vm.must_reload(id) {
                        // Somebody took the root or the save area away a moment ago; whoever does so from now on waits.
                        continue;
                    }
                    let ran = border::enter(&self.vm, n, &mut vcpu).map(|()| vcpu.run(until));
                    // What was logged is told before anybody who waits for the processor goes on.
                    let ran = ran.and_then(|exit| border::leave(&self.vm, n, &mut vcpu, &task).map(|()| exit));
                    drop(inside);
                    match ran {
                        Ok(exit) => exit,
                        Err(error) => return (vcpu, Return::Failed(error)),
                    }
                }
            };
            saw_inside(lens, n, &mut vcpu);
            lens.point_at(|| stamp(n, &vcpu, vcpu.now()));
            let Exit::NestedPageFault { fault, access } = exit else { return (vcpu, Return::Exit(exit)) };
            task.report(Event::Exit { reason: reason(&exit) });
            match self.vm.handle_fault(id, fault_input(&fault), &task) {
                Ok(Action::Resume(_)) if vcpu.now() < until => {}
                Ok(Action::Resume(_)) => return (vcpu, Return::Exit(Exit::TimeUp)),
                Ok(action) => return (vcpu, Return::Fault(action, access)),
                Err(error) => return (vcpu, Return::Failed(error.into())),
            }
        }
    }

    /// Processor `n` is back: what it wants is done, and time has passed.
    fn come_back(&self, floor: &mut OnFloor<'_, 'm>, n: usize, vcpu: Box<Vcpu>, back: Return) {
        let now = vcpu.now();
        let machine = &mut *floor.machine;
        machine.now = machine.now.max(self.point.meet(now));
        machine.vcpus[n].vcpu.take(vcpu);
        let handled = match back {
            Return::Exit(Exit::TimeUp) => Ok(Ok(BoardEvents::empty())),
            Return::Exit(exit) => {
                machine.counters.exits += 1;
                machine.saw_exit(n, &exit);
                machine.handle_exit(n, exit)
            }
            Return::Fault(action, access) => {
                machine.counters.exits += 1;
                machine.look_at(n);
                Ok(machine.after_fault(n, action, access))
            }
            Return::Failed(error) => Err(error),
        };
        // What it was told meanwhile comes after what it did.
        machine.vcpus[n].read_mail();
        let now = machine.now;
        match handled {
            Ok(Ok(events)) => floor.advance(now, events),
            Ok(Err(outcome)) => floor.end(Ok(outcome)),
            Err(error) => floor.end(Err(error)),
        }
        self.news(floor);
    }
}
