//! The mutex of the pipeline.

use core::ops::{Deref, DerefMut};

use super::task::{Schedule, Task, WaitKey};

/// A lock with one holder (`mutex`, `spinlock_t`).
#[derive(Debug, Default)]
pub struct Mutex<T> {
    raw: parking_lot::Mutex<T>,
}

/// Holds a [`Mutex`].
pub struct MutexGuard<'a, T> {
    raw: parking_lot::MutexGuard<'a, T>,
    #[expect(dead_code, reason = "its drop tells the schedule")]
    note: Note<'a>,
}

/// Tells a schedule that a lock was given up. It is the last field of a guard, so the lock is free by then.
pub(super) struct Note<'a>(Option<(&'a dyn Schedule, WaitKey)>);

impl<'a> Note<'a> {
    pub(super) fn new(task: &Task<'a>, key: impl FnOnce() -> WaitKey) -> Note<'a> {
        Note(task.schedule().map(|schedule| (schedule, key())))
    }
}

impl Drop for Note<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some((schedule, key)) = self.0 {
            schedule.released(key);
        }
    }
}

impl<T> Mutex<T> {
    /// An unlocked mutex.
    pub const fn new(value: T) -> Mutex<T> {
        Mutex { raw: parking_lot::Mutex::new(value) }
    }

    /// Waits for the lock and takes it.
    #[inline]
    pub fn lock<'a>(&'a self, task: &Task<'a>) -> MutexGuard<'a, T> {
        let raw = match task.schedule() {
            None => self.raw.lock(),
            Some(schedule) => loop {
                match self.raw.try_lock() {
                    Some(raw) => break raw,
                    None => schedule.wait(WaitKey::of(self)),
                }
            },
        };
        MutexGuard { raw, note: Note::new(task, || WaitKey::of(self)) }
    }

    /// Takes the lock if nobody has it: for checks between the steps of a schedule.
    pub fn try_lock<'a>(&'a self, task: &Task<'a>) -> Option<MutexGuard<'a, T>> {
        let raw = self.raw.try_lock()?;
        Some(MutexGuard { raw, note: Note::new(task, || WaitKey::of(self)) })
    }

    /// The value, without locking: whoever has the mutex alone needs no lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.raw.get_mut()
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.raw.into_inner()
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.raw
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Point;
    use std::cell::RefCell;

    /// Notes what it is told, and lets a test act while the task waits.
    struct Told<'a> {
        log: RefCell<Vec<&'static str>>,
        while_waiting: RefCell<Option<Box<dyn FnOnce() + 'a>>>,
    }

    impl Schedule for Told<'_> {
        fn at(&self, _: Point) {
            self.log.borrow_mut().push("at");
        }
        fn wait(&self, _: WaitKey) {
            self.log.borrow_mut().push("wait");
            let act = self.while_waiting.borrow_mut().take().expect("waits once");
            act();
        }
        fn give_way(&self) {
            self.log.borrow_mut().push("give way");
        }
        fn released(&self, _: WaitKey) {
            self.log.borrow_mut().push("released");
        }
    }

    #[test]
    fn a_scheduled_task_waits_by_its_schedule_and_tells_when_it_is_done() {
        let lock = Mutex::new(1);
        let held = RefCell::new(Some(lock.lock(&Task::QUIET)));
        let told = Told { log: RefCell::default(), while_waiting: RefCell::default() };
        *told.while_waiting.borrow_mut() = Some(Box::new(|| drop(held.borrow_mut().take())));
        let task = Task::QUIET.under(&told);
        task.at(Point::F5);
        *lock.lock(&task) += 1;
        task.give_way();
        assert_eq!(*told.log.borrow(), ["at", "wait", "released", "give way"]);
        assert_eq!(*lock.lock(&Task::QUIET), 2);
    }
}
