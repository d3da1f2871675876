//! The agenda of a scripted VMM: which action is due, and what became of each.
//!
//! Actions come between two instructions of the machine, at most one batch at a time, in the order of the script; those at
//! random come last. [`Agenda::until_due`] tells the machine how far it may run, which does not end a turn: a run whose
//! actions the guest cannot notice differs from the run without them by its nested faults alone, a unit of time each.

use emu_core::rng::Seed;
use emu_core::sync::Task;
use hypervisor::{Vm, VmError};

use super::act::{self, Holdings};
use super::memory::MemoryError;
use super::random::{Kind, RandomActor};
use super::script::{Entry, Happening, Script, What, When};

/// Records kept of actions by the script; later ones are counted alone.
const MOST_RECORDS: usize = 1000;

/// One action of the script that was carried out, or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Instructions of all processors before it.
    pub at: u64,
    /// What was to be done, in the script's words.
    pub what: String,
    /// Bytes concerned, or why it was refused.
    pub result: Result<u64, String>,
}

/// What became of actions at random of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Carried out.
    pub done: u64,
    /// Refused by the hypervisor.
    pub refused: u64,
    /// Bytes concerned by those carried out.
    pub bytes: u64,
    /// Why the first was refused.
    pub first_refusal: Option<String>,
}

/// Everything that a VMM did by its own will.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deeds {
    /// By the script, in order.
    pub script: Vec<Record>,
    /// By the script, beyond those that are kept.
    pub not_kept: u64,
    /// At random, by kind as [`Kind::ALL`] lists them.
    pub random: Vec<(Kind, Tally)>,
}

/// An entry of the script with its state.
#[derive(Clone, Debug)]
struct Item {
    entry: Entry,
    due: Due,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// At this instruction, and this often from then on; `None` is for ever.
    At {
        at: u64,
        left: Option<u64>,
    },
    /// When that has happened so often.
    After {
        event: Happening,
        count: u64,
    },
    Never,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Agenda {
    items: Vec<Item>,
    random: Option<(RandomActor, u64)>,
    happened: [u64; Happening::ALL.len()],
    /// The earliest instruction at which something is due.
    next: Option<u64>,
    /// Whether an event made something due.
    now: bool,
    held: Holdings,
    deeds: Deeds,
}

impl Agenda {
    /// What `script` says, for a run with this seed.
    pub fn new(script: &Script, seed: Seed) -> Agenda {
        let due = |when: When| match when {
            When::Instructions(at) => Due::At { at, left: Some(1) },
            When::Every { first, times, .. } => Due::At { at: first, left: times },
            When::Event { event, count } => Due::After { event, count },
        };
        let items = script.actions.iter().map(|entry| Item { entry: entry.clone(), due: due(entry.when) }).collect();
        let random = script.random.clone().map(|config| {
            let mut actor = RandomActor::new(config, seed);
            let first = actor.pause();
            (actor, first)
        });
        let mut agenda = Agenda { items, random, ..Agenda::default() };
        if agenda.random.is_some() {
            agenda.deeds.random = Kind::ALL.iter().map(|kind| (*kind, Tally::default())).collect();
        }
        agenda.look_ahead();
        agenda
    }

    /// Notes that something happened.
    pub fn note(&mut self, event: Happening) {
        let count = &mut self.happened[event as usize];
        *count += 1;
        let reached = Due::After { event, count: *count };
        self.now |= self.items.iter().any(|item| item.due == reached);
    }

    /// Instructions that may be executed after the first `done` before something is due; `None`: nothing ever is.
    #[inline]
    pub fn until_due(&self, done: u64) -> Option<u64> {
        if self.now { Some(0) } else { self.next.map(|at| at.saturating_sub(done)) }
    }

    /// Takes what is in the processors' rings.
    pub fn empty_rings(&mut self, vm: &Vm, task: &Task<'_>) -> Result<(), VmError> {
        self.held.empty_rings(vm, task)
    }

    /// Does what the guest asked for, with everything that the VMM has going on in mind.
    pub fn on_request(&mut self, vm: &Vm, what: &What, task: &Task<'_>) -> Result<(), MemoryError> {
        act::perform(vm, what, &mut self.held, task).map(|_| ())
    }

    /// Does everything that is due after `done` instructions. Whether anything was.
    pub fn act(&mut self, vm: &Vm, done: u64, task: &Task<'_>) -> bool {
        if self.until_due(done) != Some(0) {
            return false;
        }
        self.now = false;
        for item in &mut self.items {
            let due = match item.due {
                Due::At { at, .. } => at <= done,
                Due::After { event, count } => self.happened[event as usize] >= count,
                Due::Never => false,
            };
            if !due {
                continue;
            }
            let result = act::perform(vm, &item.entry.what, &mut self.held, task).map_err(|error| error.to_string());
            if self.deeds.script.len() < MOST_RECORDS {
                self.deeds.script.push(Record { at: done, what: item.entry.what.to_string(), result });
            } else {
                self.deeds.not_kept += 1;
            }
            item.due = match (item.due, item.entry.when) {
                (Due::At { at, left }, When::Every { every, .. }) if left != Some(1) => {
                    // What was missed, because one instruction cannot be stopped in, is not made up for.
                    let next = at.saturating_add(every.saturating_mul((done - at) / every + 1));
                    Due::At { at: next, left: left.map(|n| n - 1) }
                }
                _ => Due::Never,
            };
        }
        if let Some((actor, at)) = &mut self.random
            && *at <= done
        {
            *at = done.saturating_add(actor.pause());
            if let Some((kind, what)) = actor.draw(vm, task) {
                let result = act::perform(vm, &what, &mut self.held, task);
                if let Some((_, tally)) = self.deeds.random.iter_mut().find(|(of, _)| *of == kind) {
                    match result {
                        Ok(bytes) => {
                            tally.done += 1;
                            tally.bytes += bytes;
                        }
                        Err(error) => {
                            tally.refused += 1;
                            tally.first_refusal.get_or_insert_with(|| format!("{what}: {error}"));
                        }
                    }
                }
            }
        }
        self.look_ahead();
        true
    }

    /// What was done so far.
    pub const fn deeds(&self) -> &Deeds {
        &self.deeds
    }

    fn look_ahead(&mut self) {
        let scripted = self.items.iter().filter_map(|item| match item.due {
            Due::At { at, .. } => Some(at),
            Due::After { .. } | Due::Never => None,
        });
        self.next = scripted.chain(self.random.as_ref().map(|(_, at)| *at)).min();
    }
}
