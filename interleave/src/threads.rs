//! Threads that run one step at a time.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use emu_core::sync::{Point, Schedule, WaitKey};

/// Deep enough for the pipeline in an unoptimised build; the host commits only what is used.
const STACK_BYTES: usize = 512 << 10;

/// Number of a thread, in the order of their start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ThreadId(pub u8);

/// Why a thread gave way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// It reached a point.
    At(Point),
    /// It waits for a lock.
    Waiting,
    /// It will try again when somebody else has done something.
    GaveWay,
}

/// What a thread could do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Run, from its start or from a point.
    Ready,
    /// Nothing until a lock is given up.
    Blocked(WaitKey),
    /// Nothing useful until these others, a bit each, have taken a step or cannot. So who tries again and again does not
    /// keep anybody from running.
    GaveWay(u64),
    /// Nothing any more.
    Finished,
}

enum Yielded {
    At(Point),
    Wait(WaitKey),
    GiveWay,
}

/// The schedule as a thread sees it from inside.
struct Inside<'y> {
    yielder: &'y Yielder<(), Yielded>,
    released: Rc<RefCell<Vec<WaitKey>>>,
}

impl Schedule for Inside<'_> {
    fn at(&self, point: Point) {
        self.yielder.suspend(Yielded::At(point));
    }
    fn wait(&self, key: WaitKey) {
        self.yielder.suspend(Yielded::Wait(key));
    }
    fn give_way(&self) {
        self.yielder.suspend(Yielded::GiveWay);
    }
    fn released(&self, key: WaitKey) {
        self.released.borrow_mut().push(key);
    }
}

type Body = Coroutine<(), Yielded, (), DefaultStack>;

struct Thread {
    body: Option<Body>,
    status: Status,
}

/// A set of threads. Stacks are kept for the next set made from the same one.
#[derive(Default)]
pub struct Threads {
    threads: Vec<Thread>,
    released: Rc<RefCell<Vec<WaitKey>>>,
    spare: Vec<DefaultStack>,
}

impl Threads {
    /// No threads.
    pub fn new() -> Threads {
        Threads::default()
    }

    /// Adds a thread, which starts at its first step.
    ///
    /// # Panics
    /// When the host has no memory for a stack, or with the 65th thread.
    pub fn spawn(&mut self, body: impl FnOnce(&dyn Schedule) + 'static) -> ThreadId {
        assert!(self.threads.len() < 64, "at most 64 threads");
        let id = ThreadId(self.threads.len() as u8);
        let stack = self.spare.pop().unwrap_or_else(|| DefaultStack::new(STACK_BYTES).expect("memory for a stack"));
        let released = Rc::clone(&self.released);
        let coroutine = Coroutine::with_stack(stack, move |yielder: &Yielder<(), Yielded>, ()| {
            body(&Inside { yielder, released });
        });
        self.threads.push(Thread { body: Some(coroutine), status: Status::Ready });
        id
    }

    /// How many there are, finished ones included.
    pub fn len(&self) -> usize {
        self.threads.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }

    /// What a thread could do next.
    pub fn status(&self, id: ThreadId) -> Option<Status> {
        self.threads.get(usize::from(id.0)).map(|thread| thread.status)
    }

    fn having(&self, wanted: fn(Status) -> bool) -> impl Iterator<Item = ThreadId> + '_ {
        let having = self.threads.iter().enumerate().filter(move |(_, thread)| wanted(thread.status));
        having.map(|(n, _)| ThreadId(n as u8))
    }

    /// A bit for each thread that is ready, but for one.
    fn ready_but(&self, id: ThreadId) -> u64 {
        let others = self.having(|status| status == Status::Ready).filter(|&other| other != id);
        others.fold(0, |mask, other| mask | 1 << other.0)
    }

    /// The threads that could run. Those that gave way are among them only when nobody else is.
    pub fn ready(&self) -> impl Iterator<Item = ThreadId> + '_ {
        let ready = || self.having(|status| status == Status::Ready);
        let patient = ready().next().is_none().then(|| self.having(|status| matches!(status, Status::GaveWay(_))));
        ready().chain(patient.into_iter().flatten())
    }

    /// Whether every thread has finished.
    pub fn all_finished(&self) -> bool {
        self.threads.iter().all(|thread| thread.status == Status::Finished)
    }

    /// Runs a thread up to its next pause; `None` when it finished.
    ///
    /// # Errors
    /// What it panicked with.
    pub fn step(&mut self, id: ThreadId) -> Result<Option<Pause>, String> {
        let Some(thread) = self.threads.get_mut(usize::from(id.0)) else { return Ok(None) };
        if let Status::GaveWay(_) = thread.status {
            thread.status = Status::Ready;
        }
        let Some(body) = thread.body.as_mut() else { return Ok(None) };
        // The pipeline's state may be half changed by a panic; whoever gets the error looks at nothing but the message.
        let outcome = catch_unwind(AssertUnwindSafe(|| body.resume(())));
        let pause = match outcome {
            Ok(CoroutineResult::Yield(Yielded::At(point))) => Some(Pause::At(point)),
            Ok(CoroutineResult::Yield(Yielded::Wait(key))) => {
                thread.status = Status::Blocked(key);
                Some(Pause::Waiting)
            }
            Ok(CoroutineResult::Yield(Yielded::GiveWay)) => {
                // Who has to go first is known below.
                thread.status = Status::GaveWay(0);
                Some(Pause::GaveWay)
            }
            Ok(CoroutineResult::Return(())) => {
                thread.status = Status::Finished;
                self.spare.extend(thread.body.take().map(Coroutine::into_stack));
                None
            }
            Err(panic) => {
                thread.status = Status::Finished;
                thread.body = None;
                return Err(message(&*panic));
            }
        };
        for key in self.released.borrow_mut().drain(..) {
            for thread in &mut self.threads {
                if thread.status == Status::Blocked(key) {
                    thread.status = Status::Ready;
                }
            }
        }
        if pause == Some(Pause::GaveWay) {
            let first = self.ready_but(id);
            self.threads[usize::from(id.0)].status = Status::GaveWay(first);
        }
        let ready = self.ready_but(id);
        let others = self.threads.iter_mut().enumerate().filter(|(n, _)| *n != usize::from(id.0));
        for (_, thread) in others {
            if let Status::GaveWay(first) = thread.status {
                let left = first & ready;
                thread.status = if left == 0 { Status::Ready } else { Status::GaveWay(left) };
            }
        }
        Ok(pause)
    }

    /// Ends every thread, wherever it is: its stack is unwound, so that its guards give up their locks.
    pub fn clear(&mut self) {
        for thread in self.threads.drain(..) {
            if let Some(mut body) = thread.body {
                body.force_unwind();
                if body.done() {
                    self.spare.push(body.into_stack());
                }
            }
        }
        self.released.borrow_mut().clear();
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu_core::sync::{Mutex, Task};
    use std::cell::Cell;

    #[test]
    fn a_thread_runs_from_point_to_point_and_waits_for_locks() {
        let lock = Rc::new(Mutex::new(0));
        let mut threads = Threads::new();
        for _ in 0..2 {
            let lock = Rc::clone(&lock);
            threads.spawn(move |schedule| {
                let task = Task::QUIET.under(schedule);
                let mut value = lock.lock(&task);
                task.at(Point::F6);
                *value += 1;
            });
        }
        let (a, b) = (ThreadId(0), ThreadId(1));
        assert_eq!(threads.step(a), Ok(Some(Pause::At(Point::F6))));
        assert_eq!(threads.step(b), Ok(Some(Pause::Waiting)));
        assert_eq!(threads.ready().collect::<Vec<_>>(), [a]);
        assert_eq!(threads.step(a), Ok(None));
        assert_eq!(threads.ready().collect::<Vec<_>>(), [b]);
        assert_eq!(threads.step(b), Ok(Some(Pause::At(Point::F6))));
        assert_eq!(threads.step(b), Ok(None));
        assert!(threads.all_finished());
        assert_eq!(*lock.lock(&Task::QUIET), 2);
    }

    #[test]
    fn who_gives_way_again_and_again_keeps_nobody_from_running() {
        let done = Rc::new(Cell::new(false));
        let mut threads = Threads::new();
        for _ in 0..2 {
            let done = Rc::clone(&done);
            threads.spawn(move |schedule| {
                while !done.get() {
                    schedule.give_way();
                }
            });
        }
        let doer = threads.spawn(move |schedule| {
            schedule.at(Point::F0);
            done.set(true);
        });
        for _ in 0..6 {
            let first = threads.ready().next().unwrap();
            threads.step(first).unwrap();
        }
        assert_eq!(threads.status(doer), Some(Status::Finished), "chosen last, and yet it ran");
        let lone = threads.ready().next().unwrap();
        assert_eq!(threads.step(lone), Ok(None));
    }

    #[test]
    fn a_panic_is_an_answer_and_clearing_unwinds() {
        struct Bell(Rc<Cell<u32>>);
        impl Drop for Bell {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let rung = Rc::new(Cell::new(0));
        let mut threads = Threads::new();
        let bell = Bell(Rc::clone(&rung));
        threads.spawn(move |schedule| {
            let _bell = bell;
            schedule.at(Point::F0);
            panic!("as {}", "planned");
        });
        let bell = Bell(Rc::clone(&rung));
        threads.spawn(move |schedule| {
            let _bell = bell;
            schedule.at(Point::F0);
        });
        threads.step(ThreadId(0)).unwrap();
        threads.step(ThreadId(1)).unwrap();
        assert_eq!(threads.step(ThreadId(0)), Err("as planned".to_owned()));
        assert_eq!(rung.get(), 1);
        threads.clear();
        assert_eq!((rung.get(), threads.len()), (2, 0));
    }
}
