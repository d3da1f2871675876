//! Who chooses the next thread.

use emu_core::rng::{Consumer, Seed, Stream};

use crate::threads::ThreadId;

/// Chooses threads, schedule after schedule.
pub trait Strategy {
    /// Another schedule begins; `false` when there is none left.
    fn begin(&mut self) -> bool;
    /// Which of `ready` runs next, as an index into it. `ready` is ascending and not empty; `last` is who ran before, if it
    /// could go on.
    fn choose(&mut self, ready: &[ThreadId], last: Option<ThreadId>) -> usize;
}

/// The thread that runs goes on, and now and then another one does, each as likely as the next. Switching at every step
/// instead would mix all threads so evenly that long stretches of one of them, which most races need, never come.
#[derive(Clone, Debug)]
pub struct Random {
    stream: Stream,
}

impl Random {
    /// One step in so many is a chance for others.
    const STAY: u64 = 6;

    /// The choices of `seed`.
    pub fn new(seed: Seed) -> Random {
        Random { stream: seed.stream(Consumer::Exploration) }
    }
}

impl Strategy for Random {
    fn begin(&mut self) -> bool {
        true
    }
    fn choose(&mut self, ready: &[ThreadId], last: Option<ThreadId>) -> usize {
        let draw = self.stream.below(Self::STAY * ready.len() as u64);
        let going_on = last.and_then(|last| ready.iter().position(|&id| id == last));
        match (draw.is_multiple_of(Self::STAY), going_on) {
            (false, Some(on)) => on,
            _ => (draw / Self::STAY) as usize,
        }
    }
}

/// Threads have random priorities, the highest runs, and at a few random steps the running one falls to the bottom: finds
/// a bug that needs `d` ordered steps with a probability that does not fall with the length of the run (Burckhardt et
/// al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", ASPLOS 2010).
#[derive(Clone, Debug)]
pub struct Pct {
    stream: Stream,
    changes: usize,
    /// Longest schedule seen: where changes may fall.
    length: u64,
    step: u64,
    /// By thread; larger runs first.
    priorities: Vec<i64>,
    change_at: Vec<u64>,
    lowest: i64,
}

impl Pct {
    /// The choices of `seed` with `changes` changes of priority in a schedule.
    pub fn new(seed: Seed, changes: usize) -> Pct {
        Pct {
            stream: seed.stream(Consumer::Exploration),
            changes,
            length: 16,
            step: 0,
            priorities: Vec::new(),
            change_at: Vec::new(),
            lowest: 0,
        }
    }
}

impl Strategy for Pct {
    fn begin(&mut self) -> bool {
        self.length = self.length.max(self.step);
        self.step = 0;
        self.lowest = 0;
        self.priorities.clear();
        self.change_at.clear();
        for _ in 0..self.changes {
            let at = self.stream.below(self.length);
            self.change_at.push(at);
        }
        true
    }

    fn choose(&mut self, ready: &[ThreadId], last: Option<ThreadId>) -> usize {
        let most = ready.iter().map(|id| usize::from(id.0)).max().unwrap_or(0);
        while self.priorities.len() <= most {
            self.priorities.push(1 + self.stream.below(1 << 32) as i64);
        }
        if let (true, Some(last)) = (self.change_at.contains(&self.step), last) {
            self.lowest -= 1;
            self.priorities[usize::from(last.0)] = self.lowest;
        }
        self.step += 1;
        let best = (0..ready.len()).max_by_key(|&n| self.priorities[usize::from(ready[n].0)]);
        best.unwrap_or(0)
    }
}

/// Every schedule with at most so many preemptions: switches away from a thread that could have gone on.
#[derive(Clone, Debug)]
pub struct Exhaustive {
    bound: usize,
    /// The choices of the schedule being run: what was chosen and what there was to choose from.
    path: Vec<Choice>,
    depth: usize,
    preemptions: usize,
    started: bool,
}

#[derive(Clone, Debug)]
struct Choice {
    /// Indices into `ready`, in the order they are tried.
    order: Vec<usize>,
    at: usize,
}

impl Exhaustive {
    /// Up to `bound` preemptions.
    pub fn new(bound: usize) -> Exhaustive {
        Exhaustive { bound, path: Vec::new(), depth: 0, preemptions: 0, started: false }
    }
}

impl Strategy for Exhaustive {
    fn begin(&mut self) -> bool {
        (self.depth, self.preemptions) = (0, 0);
        if !core::mem::replace(&mut self.started, true) {
            return true;
        }
        // The deepest choice with something left to try takes it.
        while let Some(choice) = self.path.last_mut() {
            choice.at += 1;
            if choice.at < choice.order.len() {
                return true;
            }
            self.path.pop();
        }
        false
    }

    fn choose(&mut self, ready: &[ThreadId], last: Option<ThreadId>) -> usize {
        let going_on = last.and_then(|last| ready.iter().position(|&id| id == last));
        if self.depth == self.path.len() {
            let order = match going_on {
                Some(on) if self.preemptions >= self.bound => vec![on],
                Some(on) => core::iter::once(on).chain((0..ready.len()).filter(|&n| n != on)).collect(),
                None => (0..ready.len()).collect(),
            };
            self.path.push(Choice { order, at: 0 });
        }
        let choice = &self.path[self.depth];
        self.depth += 1;
        let chosen = choice.order[choice.at].min(ready.len() - 1);
        self.preemptions += usize::from(going_on.is_some_and(|on| on != chosen));
        chosen
    }
}

/// One schedule, as somebody wrote it down: the thread to run at each step. Where it says nothing, or what cannot be done,
/// the thread that ran goes on, or the first that can.
#[derive(Clone, Debug)]
pub struct Recorded {
    choices: Vec<Option<ThreadId>>,
    step: usize,
    done: bool,
}

impl Recorded {
    /// These choices.
    pub fn new(choices: Vec<Option<ThreadId>>) -> Recorded {
        Recorded { choices, step: 0, done: false }
    }
}

impl Strategy for Recorded {
    fn begin(&mut self) -> bool {
        self.step = 0;
        !core::mem::replace(&mut self.done, true)
    }

    fn choose(&mut self, ready: &[ThreadId], last: Option<ThreadId>) -> usize {
        let wanted = self.choices.get(self.step).copied().flatten();
        self.step += 1;
        let position = |id: ThreadId| ready.iter().position(|&other| other == id);
        wanted.and_then(position).or_else(|| last.and_then(position)).unwrap_or(0)
    }
}
