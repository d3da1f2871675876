//! What many host threads use at once without meeting on a cache line.

#![expect(unsafe_code, reason = "the value of a lock whose readers are counted by lane")]

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crossbeam_utils::CachePadded;

use super::lock::Note;
use super::task::{Task, WaitKey};

/// A lock with many readers or one writer (`percpu_rw_semaphore`). A reader counts itself in the lane of its task, so that
/// readers of different lanes share no cache line that anybody writes; a writer announces itself and waits until every
/// lane is empty, which also makes it the grace period of what SRCU protects in Linux.
///
/// Who waits for a writer sleeps; a writer spins for the readers there are. Readers that come later wait for it.
/// A panic while it is held does not poison it: the broken invariant that panicked ends the run anyway.
pub struct ShardedLock<T> {
    readers: Sharded<AtomicU32>,
    /// Whether somebody writes or is about to.
    writing: AtomicBool,
    /// Held by the writer.
    turn: parking_lot::Mutex<()>,
    value: UnsafeCell<T>,
}

// SAFETY: a shared lock hands out `&T` to many threads at once, and `&mut T` to one at a time.
unsafe impl<T: Send + Sync> Sync for ShardedLock<T> {}

/// Holds a [`ShardedLock`] for reading.
pub struct ReadGuard<'a, T> {
    raw: Reading<'a, T>,
    /// Dropped after the lock.
    #[expect(dead_code, reason = "its drop tells the schedule")]
    note: Note<'a>,
}

/// Holds a [`ShardedLock`] for writing.
pub struct WriteGuard<'a, T> {
    raw: Writing<'a, T>,
    #[expect(dead_code, reason = "its drop tells the schedule")]
    note: Note<'a>,
}

/// A reader that is counted in `lane`.
struct Reading<'a, T> {
    lock: &'a ShardedLock<T>,
    lane: usize,
}

impl<T> Drop for Reading<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.readers.lane(self.lane).fetch_sub(1, Ordering::Release);
    }
}

/// The writer, whose announcement kept new readers out until all lanes were empty.
struct Writing<'a, T> {
    lock: &'a ShardedLock<T>,
    /// Dropped after the announcement is taken back.
    #[expect(dead_code, reason = "it is the writer's turn as long as this lives")]
    turn: parking_lot::MutexGuard<'a, ()>,
}

impl<T> Drop for Writing<'_, T> {
    fn drop(&mut self) {
        self.lock.writing.store(false, Ordering::Release);
    }
}

impl<T: Default> Default for ShardedLock<T> {
    fn default() -> ShardedLock<T> {
        ShardedLock::new(T::default())
    }
}

impl<T> core::fmt::Debug for ShardedLock<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ShardedLock").finish_non_exhaustive()
    }
}

impl<T> ShardedLock<T> {
    /// An unlocked lock.
    pub fn new(value: T) -> ShardedLock<T> {
        ShardedLock {
            readers: Sharded::default(),
            writing: AtomicBool::new(false),
            turn: parking_lot::Mutex::new(()),
            value: UnsafeCell::new(value),
        }
    }

    /// Counts a reader unless somebody writes. Both this and [`ShardedLock::announce`] store first and load then, in one
    /// order for all (`SeqCst`): at least one of two that meet sees the other.
    #[inline]
    fn enter(&self, lane: usize) -> Option<Reading<'_, T>> {
        self.readers.lane(lane).fetch_add(1, Ordering::SeqCst);
        let reading = Reading { lock: self, lane };
        (!self.writing.load(Ordering::SeqCst)).then_some(reading)
    }

    #[cold]
    fn enter_after_writer(&self, lane: usize) -> Reading<'_, T> {
        // Nobody writes or is about to while this is held.
        let _turn = self.turn.lock();
        self.readers.lane(lane).fetch_add(1, Ordering::SeqCst);
        Reading { lock: self, lane }
    }

    fn announce<'a>(&'a self, turn: parking_lot::MutexGuard<'a, ()>) -> Writing<'a, T> {
        self.writing.store(true, Ordering::SeqCst);
        Writing { lock: self, turn }
    }

    fn is_read(&self) -> bool {
        self.readers.iter().any(|readers| readers.load(Ordering::SeqCst) != 0)
    }

    fn try_announce(&self) -> Option<Writing<'_, T>> {
        let writing = self.announce(self.turn.try_lock()?);
        (!self.is_read()).then_some(writing)
    }

    /// Waits for writers to be gone.
    #[inline]
    pub fn read<'a>(&'a self, task: &Task<'a>) -> ReadGuard<'a, T> {
        let lane = task.lane();
        let raw = match task.schedule() {
            None => self.enter(lane).unwrap_or_else(|| self.enter_after_writer(lane)),
            Some(schedule) => loop {
                match self.enter(lane) {
                    Some(raw) => break raw,
                    None => schedule.wait(WaitKey::of(self)),
                }
            },
        };
        ReadGuard { raw, note: Note::new(task, || WaitKey::of(self)) }
    }

    /// Takes the lock for reading if nobody has it for writing: for checks between the steps of a schedule.
    #[inline]
    pub fn try_read<'a>(&'a self, task: &Task<'a>) -> Option<ReadGuard<'a, T>> {
        let raw = self.enter(task.lane())?;
        Some(ReadGuard { raw, note: Note::new(task, || WaitKey::of(self)) })
    }

    /// Waits for everybody to be gone.
    pub fn write<'a>(&'a self, task: &Task<'a>) -> WriteGuard<'a, T> {
        let raw = match task.schedule() {
            None => {
                let writing = self.announce(self.turn.lock());
                let backoff = crossbeam_utils::Backoff::new();
                while self.is_read() {
                    backoff.snooze();
                }
                writing
            }
            Some(schedule) => loop {
                match self.try_announce() {
                    Some(raw) => break raw,
                    None => schedule.wait(WaitKey::of(self)),
                }
            },
        };
        WriteGuard { raw, note: Note::new(task, || WaitKey::of(self)) }
    }

    /// The value, without locking.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: a reader is counted, so every writer still waits.
        unsafe { &*self.raw.lock.value.get() }
    }
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: nobody else reads or writes.
        unsafe { &*self.raw.lock.value.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: nobody else reads or writes, and the guard is borrowed exclusively.
        unsafe { &mut *self.raw.lock.value.get() }
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

    #[test]
    fn readers_and_a_writer_exclude_each_other_in_every_lane() {
        let lock = ShardedLock::new((0_u64, 0_u64));
        std::thread::scope(|scope| {
            for lane in 0..4 {
                let lock = &lock;
                scope.spawn(move || {
                    let task = Task::QUIET.on_lane(lane);
                    for n in 0..2000 {
                        if n % 16 == 0 {
                            let mut both = lock.write(&task);
                            both.0 += 1;
                            both.1 += 1;
                        }
                        let both = lock.read(&task);
                        assert_eq!(both.0, both.1);
                    }
                });
            }
        });
        assert_eq!(lock.into_inner(), (500, 500));
    }

    #[test]
    fn trying_fails_while_the_other_side_has_it() {
        let (lock, task) = (ShardedLock::new(()), &Task::QUIET.on_lane(3));
        let reading = lock.read(task);
        assert!(lock.try_announce().is_none() && lock.try_read(&Task::QUIET).is_some());
        drop(reading);
        let writing = lock.write(task);
        assert!(lock.try_read(task).is_none());
        drop(writing);
        assert!(lock.try_read(task).is_some() && lock.try_announce().is_some());
    }
}
