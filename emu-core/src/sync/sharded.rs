//! What many host threads use at once without meeting on a cache line.

use core::ops::{Deref, DerefMut};
use std::sync::{PoisonError, TryLockError};

use crossbeam_utils::CachePadded;
use crossbeam_utils::sync::{ShardedLock as Raw, ShardedLockReadGuard, ShardedLockWriteGuard};

use super::lock::Note;
use super::task::{Task, WaitKey};

/// A lock with many readers or one writer. Reading is cheap and scales; writing waits for every reader there is, which
/// also makes it the grace period of what SRCU protects in Linux.
///
/// A panic while it is held does not poison it: the broken invariant that panicked ends the run anyway.
#[derive(Debug, Default)]
pub struct ShardedLock<T> {
    raw: Raw<T>,
}

/// Holds a [`ShardedLock`] for reading.
pub struct ReadGuard<'a, T> {
    raw: ShardedLockReadGuard<'a, T>,
    /// Dropped after the lock.
    #[expect(dead_code, reason = "its drop tells the schedule")]
    note: Note<'a>,
}

/// Holds a [`ShardedLock`] for writing.
pub struct WriteGuard<'a, T> {
    raw: ShardedLockWriteGuard<'a, T>,
    #[expect(dead_code, reason = "its drop tells the schedule")]
    note: Note<'a>,
}

impl<T> ShardedLock<T> {
    /// An unlocked lock.
    pub fn new(value: T) -> ShardedLock<T> {
        ShardedLock { raw: Raw::new(value) }
    }

    /// Waits for writers to be gone.
    #[inline]
    pub fn read<'a>(&'a self, task: &Task<'a>) -> ReadGuard<'a, T> {
        let raw = match task.schedule() {
            None => self.raw.read().unwrap_or_else(PoisonError::into_inner),
            Some(schedule) => loop {
                match self.raw.try_read() {
                    Ok(raw) => break raw,
                    Err(TryLockError::Poisoned(error)) => break error.into_inner(),
                    Err(TryLockError::WouldBlock) => schedule.wait(WaitKey::of(self)),
                }
            },
        };
        ReadGuard { raw, note: Note::new(task, || WaitKey::of(self)) }
    }

    /// Takes the lock for reading if nobody has it for writing: for checks between the steps of a schedule.
    pub fn try_read<'a>(&'a self, task: &Task<'a>) -> Option<ReadGuard<'a, T>> {
        let raw = match self.raw.try_read() {
            Ok(raw) => raw,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(ReadGuard { raw, note: Note::new(task, || WaitKey::of(self)) })
    }

    /// Waits for everybody to be gone.
    pub fn write<'a>(&'a self, task: &Task<'a>) -> WriteGuard<'a, T> {
        let raw = match task.schedule() {
            None => self.raw.write().unwrap_or_else(PoisonError::into_inner),
            Some(schedule) => loop {
                match self.raw.try_write() {
                    Ok(raw) => break raw,
                    Err(TryLockError::Poisoned(error)) => break error.into_inner(),
                    Err(TryLockError::WouldBlock) => schedule.wait(WaitKey::of(self)),
                }
            },
        };
        WriteGuard { raw, note: Note::new(task, || WaitKey::of(self)) }
    }

    /// The value, without locking.
    pub fn get_mut(&mut self) -> &mut T {
        self.raw.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.raw.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.raw
    }
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.raw
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.raw
    }
}

/// One `T` for each of a few lanes; every user keeps to the lane of its number.
#[derive(Debug, Default)]
pub struct Sharded<T> {
    lanes: [CachePadded<T>; 8],
}

impl<T> Sharded<T> {
    /// The lane of user `n`.
    #[inline]
    pub fn lane(&self, n: usize) -> &T {
        &self.lanes[n % self.lanes.len()]
    }

    /// All lanes, for sums.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.lanes.iter().map(|lane| &**lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_writer_waits_for_all() {
        let lock = ShardedLock::new(0_u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let before = *lock.read(&Task::QUIET);
                        let mut value = lock.write(&Task::QUIET);
                        assert!(*value >= before);
                        *value += 1;
                    }
                });
            }
        });
        assert_eq!(lock.into_inner(), 4000);
    }
}
