//! Running a scenario under a strategy, schedule after schedule.

use emu_core::sync::Schedule;

use crate::strategy::{Recorded, Strategy};
use crate::threads::{Pause, ThreadId, Threads};

/// A run longer than this does not end.
const TOO_LONG: usize = 2_000;
/// A thread that gives way so often while no other can run waits for what will not come. Copying so many pages one by one
/// looks the same: each gives way once.
const TOO_PATIENT: usize = 32;

/// What a thread does.
pub type Body = Box<dyn FnOnce(&dyn Schedule)>;

/// One run's threads and what must hold between their steps.
pub struct Program {
    /// Name and body of each thread.
    pub threads: Vec<(&'static str, Body)>,
    /// Looked at after each step, and once more when every thread has finished; the error says what broke.
    pub check: Box<dyn FnMut(Progress) -> Result<(), String>>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Threads are between steps.
    Running,
    /// All have finished.
    Finished,
}

/// Makes the same program again for every schedule.
pub trait Scenario {
    /// A fresh program.
    fn start(&self) -> Program;
}

impl<F: Fn() -> Program> Scenario for F {
    fn start(&self) -> Program {
        self()
    }
}

/// A thread ran from one pause to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Who.
    pub thread: ThreadId,
    /// Where it gave way; `None` when it finished.
    pub pause: Option<Pause>,
}

/// An interleaving that broke something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What broke, in words.
    pub what: String,
    /// What had happened by then.
    pub steps: Vec<Step>,
}

impl Finding {
    /// The choices that lead there.
    pub fn choices(&self) -> Vec<Option<ThreadId>> {
        self.steps.iter().map(|step| Some(step.thread)).collect()
    }

    /// How often a thread gave way that could have gone on.
    pub fn preemptions(&self) -> usize {
        let switch = |pair: &[Step]| pair[0].thread != pair[1].thread && matches!(pair[0].pause, Some(Pause::At(_)));
        self.steps.windows(2).filter(|pair| switch(pair)).count()
    }
}

/// Why an exploration stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Something broke in the last of these schedules.
    Broke {
        /// Schedules run.
        schedules: u64,
        /// What and how.
        finding: Finding,
    },
    /// The strategy has no schedule left: nothing broke in any.
    Exhausted {
        /// Schedules run.
        schedules: u64,
    },
    /// The caller wanted no more.
    Enough {
        /// Schedules run.
        schedules: u64,
    },
}

/// Runs `scenario` under `strategy` until something breaks, the strategy has nothing left, or `go_on`, asked before each
/// schedule with the number run so far, says no.
pub fn explore(scenario: &dyn Scenario, strategy: &mut dyn Strategy, go_on: &mut dyn FnMut(u64) -> bool) -> Stopped {
    let mut threads = Threads::new();
    let mut schedules = 0;
    loop {
        if !go_on(schedules) {
            return Stopped::Enough { schedules };
        }
        if !strategy.begin() {
            return Stopped::Exhausted { schedules };
        }
        schedules += 1;
        let outcome = run(scenario, strategy, &mut threads);
        threads.clear();
        if let Err(finding) = outcome {
            return Stopped::Broke { schedules, finding };
        }
    }
}

/// Runs one schedule as recorded.
///
/// # Errors
/// What broke.
pub fn replay(scenario: &dyn Scenario, choices: Vec<Option<ThreadId>>) -> Result<(), Finding> {
    let mut threads = Threads::new();
    let outcome = run(scenario, &mut Recorded::new(choices), &mut threads);
    threads.clear();
    outcome
}

fn run(scenario: &dyn Scenario, strategy: &mut dyn Strategy, threads: &mut Threads) -> Result<(), Finding> {
    let Program { threads: bodies, mut check } = scenario.start();
    for (_, body) in bodies {
        threads.spawn(body);
    }
    let mut steps: Vec<Step> = Vec::new();
    let mut ready = Vec::new();
    let mut last = None;
    let mut alone = 0;
    loop {
        ready.clear();
        ready.extend(threads.ready());
        if ready.is_empty() {
            let verdict = match threads.all_finished() {
                true => check(Progress::Finished),
                false => Err("deadlock: every thread waits for a lock".to_owned()),
            };
            return verdict.map_err(|what| Finding { what, steps });
        }
        if steps.len() >= TOO_LONG {
            return Err(Finding { what: format!("E14: no end after {TOO_LONG} steps"), steps });
        }
        let thread = ready[strategy.choose(&ready, last)];
        match threads.step(thread) {
            Ok(pause) => {
                steps.push(Step { thread, pause });
                alone = match pause {
                    _ if ready.len() > 1 => 0,
                    Some(Pause::GaveWay) => alone + 1,
                    Some(Pause::At(_)) => alone,
                    Some(Pause::Waiting) | None => 0,
                };
                last = matches!(pause, Some(Pause::At(_))).then_some(thread);
            }
            Err(what) => {
                steps.push(Step { thread, pause: None });
                return Err(Finding { what: format!("panic: {what}"), steps });
            }
        }
        if let Err(what) = check(Progress::Running) {
            return Err(Finding { what, steps });
        }
        if alone >= TOO_PATIENT {
            let what = "E14: a thread tries again and again, and no other can do anything".to_owned();
            return Err(Finding { what, steps });
        }
    }
}

/// A finding of the same words with as few preemptions as greedy removal leaves.
pub fn shrink(scenario: &dyn Scenario, finding: Finding) -> Finding {
    let mut best = finding;
    loop {
        let mut improved = false;
        for at in 1..best.steps.len() {
            let preempted = best.steps[at].thread != best.steps[at - 1].thread
                && matches!(best.steps[at - 1].pause, Some(Pause::At(_)));
            if !preempted {
                continue;
            }
            let stays = best.steps[at - 1].thread;
            let Some(later) = best.steps[at..].iter().position(|step| step.thread == stays) else { continue };
            let start = best.steps[..at].iter().rposition(|step| step.thread != stays).map_or(0, |before| before + 1);
            // Either the preempted thread goes on one step further, or what it did so far happens only when it goes on.
            let mut further = best.choices();
            further[at..=at + later].rotate_right(1);
            let mut delayed = best.choices();
            delayed[start..at + later].rotate_left(at - start);
            let better = [further, delayed].into_iter().find_map(|choices| {
                let shorter = replay(scenario, choices).err()?;
                let size = |finding: &Finding| (finding.preemptions(), finding.steps.len());
                (shorter.what == best.what && size(&shorter) < size(&best)).then_some(shorter)
            });
            if let Some(better) = better {
                best = better;
                improved = true;
                break;
            }
        }
        if !improved {
            return best;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::{Exhaustive, Pct, Random};
    use emu_core::rng::Seed;
    use emu_core::sync::{Mutex, Point, Task};
    use std::cell::Cell;
    use std::rc::Rc;

    /// Two threads add one to a number, reading and writing it in two steps.
    fn lost_update() -> Program {
        let number = Rc::new(Cell::new(0));
        let adder = |number: Rc<Cell<u32>>| -> Body {
            Box::new(move |schedule| {
                schedule.at(Point::F0);
                let seen = number.get();
                schedule.at(Point::F1);
                number.set(seen + 1);
                schedule.at(Point::F2);
            })
        };
        let threads = vec![("a", adder(Rc::clone(&number))), ("b", adder(Rc::clone(&number)))];
        let check = Box::new(move |progress| match (progress, number.get()) {
            (Progress::Finished, sum) if sum != 2 => Err(format!("the sum is {sum}")),
            _ => Ok(()),
        });
        Program { threads, check }
    }

    #[test]
    fn every_strategy_finds_a_lost_update_and_it_shrinks_to_one_preemption() {
        let strategies: [Box<dyn Strategy>; 3] =
            [Box::new(Random::new(Seed(1))), Box::new(Pct::new(Seed(1), 2)), Box::new(Exhaustive::new(2))];
        for mut strategy in strategies {
            let stopped = explore(&lost_update, &mut *strategy, &mut |n| n < 1000);
            let Stopped::Broke { finding, .. } = stopped else { panic!("{stopped:?}") };
            assert_eq!(finding.what, "the sum is 1");
            let short = shrink(&lost_update, finding);
            assert_eq!(short.preemptions(), 1, "{short:?}");
            assert_eq!(replay(&lost_update, short.choices()), Err(short));
        }
    }

    /// Both threads take two locks in opposite orders, or in the same.
    fn two_locks(opposite: bool) -> impl Fn() -> Program {
        move || {
            let locks = Rc::new((Mutex::new(()), Mutex::new(())));
            let taker = |swap: bool| -> Body {
                let locks = Rc::clone(&locks);
                Box::new(move |schedule| {
                    let task = Task::QUIET.under(schedule);
                    let (first, second) = if swap { (&locks.1, &locks.0) } else { (&locks.0, &locks.1) };
                    let _first = first.lock(&task);
                    task.at(Point::F5);
                    let _second = second.lock(&task);
                })
            };
            Program { threads: vec![("a", taker(false)), ("b", taker(opposite))], check: Box::new(|_| Ok(())) }
        }
    }

    #[test]
    fn a_deadlock_is_found_and_a_proof_of_none_is_exhaustive() {
        let stopped = explore(&two_locks(true), &mut Exhaustive::new(2), &mut |_| true);
        assert!(matches!(&stopped, Stopped::Broke { finding, .. } if finding.what.starts_with("deadlock")));
        let stopped = explore(&two_locks(false), &mut Exhaustive::new(2), &mut |_| true);
        assert!(matches!(stopped, Stopped::Exhausted { schedules } if schedules > 1));
    }

    #[test]
    fn who_tries_again_for_ever_while_nobody_else_can_run_is_a_finding() {
        // The second thread waits for a lock that the first holds while it waits for the second.
        let embrace = || {
            let (lock, done) = (Rc::new(Mutex::new(())), Rc::new(Cell::new(false)));
            let (held, seen) = (Rc::clone(&lock), Rc::clone(&done));
            let waiter: Body = Box::new(move |schedule| {
                let task = Task::QUIET.under(schedule);
                let _held = held.lock(&task);
                while !seen.get() {
                    task.at(Point::F0);
                    task.give_way();
                }
            });
            let doer: Body = Box::new(move |schedule| {
                drop(lock.lock(&Task::QUIET.under(schedule)));
                done.set(true);
            });
            Program { threads: vec![("waiter", waiter), ("doer", doer)], check: Box::new(|_| Ok(())) }
        };
        let stopped = explore(&embrace, &mut Exhaustive::new(1), &mut |_| true);
        let Stopped::Broke { finding, .. } = stopped else { panic!("{stopped:?}") };
        assert!(finding.what.starts_with("E14: a thread tries again"), "{finding:?}");
        assert!(finding.steps.len() < 100, "told in time");
    }

    #[test]
    fn exhaustive_counts_every_interleaving_of_independent_threads() {
        // Two threads of two points each: six interleavings of their steps before the last, which cannot be told apart
        // from who finishes first; without a bound that is C(6, 3).
        let quiet = || {
            let body = || -> Body {
                Box::new(|schedule| {
                    schedule.at(Point::F0);
                    schedule.at(Point::F1);
                })
            };
            Program { threads: vec![("a", body()), ("b", body())], check: Box::new(|_| Ok(())) }
        };
        let stopped = explore(&quiet, &mut Exhaustive::new(9), &mut |_| true);
        assert_eq!(stopped, Stopped::Exhausted { schedules: 20 });
        let stopped = explore(&quiet, &mut Exhaustive::new(0), &mut |_| true);
        assert_eq!(stopped, Stopped::Exhausted { schedules: 2 });
    }
}
