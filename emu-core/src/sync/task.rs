//! The thread that executes a piece of the pipeline, and who decides when it runs.

use super::Point;
use crate::defect::{Defect, Defects};
use crate::event::{Event, EventSink};

/// What a task waits for: the identity of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WaitKey(usize);

impl WaitKey {
    /// The key of something that stays where it is while anybody waits for it.
    pub(super) fn of<T: ?Sized>(what: &T) -> WaitKey {
        WaitKey(core::ptr::from_ref(what).addr())
    }
}

/// Decides when a task runs. One object per task; all tasks of a schedule share one host thread.
pub trait Schedule {
    /// The task has reached `point`: others may run before this returns.
    fn at(&self, point: Point);
    /// The task waits for `key`. Returns when somebody has [released](Schedule::released) it since; it may be taken
    /// again by then.
    fn wait(&self, key: WaitKey);
    /// The task can do nothing useful until somebody else did something, but waits for no lock.
    fn give_way(&self);
    /// The task gave `key` up. Must not switch.
    fn released(&self, key: WaitKey);
}

/// See the module's introduction. Cheap to copy; lives as long as what it reports to.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    schedule: Option<&'a dyn Schedule>,
    sink: Option<&'a dyn EventSink>,
    defects: Defects,
    lane: u8,
}

impl<'a> Task<'a> {
    /// A task that runs freely, reports nothing and has no defects.
    pub const QUIET: Task<'static> = Task { schedule: None, sink: None, defects: Defects::NONE, lane: 0 };

    /// A task that runs freely and reports to `sink`.
    pub const fn reporting(sink: &'a dyn EventSink) -> Task<'a> {
        Task { schedule: None, sink: Some(sink), defects: Defects::NONE, lane: 0 }
    }

    /// The same task under a schedule.
    pub const fn under(self, schedule: &'a dyn Schedule) -> Task<'a> {
        Task { schedule: Some(schedule), ..self }
    }

    /// The same task in a pipeline with these defects.
    pub const fn with(self, defects: Defects) -> Task<'a> {
        Task { defects, ..self }
    }

    /// The same task, adding to lane `n` of [`super::Sharded`] counters: tasks of different host threads take different
    /// ones.
    pub const fn on_lane(self, n: u8) -> Task<'a> {
        Task { lane: n, ..self }
    }

    /// The lane it adds to.
    #[inline]
    pub const fn lane(&self) -> usize {
        self.lane as usize
    }

    /// Whether the pipeline has `defect`.
    #[inline]
    pub const fn has(&self, defect: Defect) -> bool {
        self.defects.contains(defect)
    }

    /// Lets others run, if anybody decides about that.
    #[inline]
    pub fn at(&self, point: Point) {
        if let Some(schedule) = self.schedule {
            schedule.at(point);
        }
    }

    /// Whether whoever holds a lock for long should let others have it in between (`need_resched`): under a schedule always,
    /// so that what happens then is explored; host threads wait their turn instead.
    #[inline]
    pub const fn needs_resched(&self) -> bool {
        self.schedule.is_some()
    }

    /// Lets others run first, if anybody decides about that: what a caller does before it tries again.
    pub fn give_way(&self) {
        if let Some(schedule) = self.schedule {
            schedule.give_way();
        }
    }

    /// Reports an event.
    #[inline]
    pub fn report(&self, event: Event) {
        if let Some(sink) = self.sink {
            sink.report(event);
        }
    }

    /// Reports an event that takes work to build: nothing is built for a task that reports nowhere.
    #[inline]
    pub fn report_with(&self, event: impl FnOnce() -> Event) {
        if let Some(sink) = self.sink {
            sink.report(event());
        }
    }

    /// Whether anybody takes what it reports.
    #[inline]
    pub const fn is_reporting(&self) -> bool {
        self.sink.is_some()
    }

    #[inline]
    pub(super) const fn schedule(&self) -> Option<&'a dyn Schedule> {
        self.schedule
    }
}
