//! Locks and threads of pipeline code. What runs in production is what exploration interleaves.
//!
//! A [`Task`] is the thread that executes a piece of the pipeline. It is handed down explicitly, says where events go,
//! and, when a controlled [`Schedule`] drives it, offers that schedule every [`Point`] and every lock as an occasion to
//! let another task run. Without a schedule a point is one branch and the locks are parking_lot's and our own.
//!
//! - [`Mutex`]: one holder. [`ShardedLock`]: many readers that do not touch each other's cache lines, one writer; for
//!   what every fault reads and few operations change.
//! - [`Sharded`]: counters that tasks on different host threads add to without meeting.
//!
//! Always true: a guard borrows the task that took it, and tells its schedule when it goes; a task that waits for a lock
//! under a schedule never blocks the host thread.
//!
//! Left out: condition variables (operations of the pipeline wait only for locks), fairness.

mod lock;
mod point;
mod sharded;
mod task;

pub use lock::{Mutex, MutexGuard};
pub use point::Point;
pub use sharded::{ReadGuard, Sharded, ShardedLock, WriteGuard};
pub use task::{Schedule, Task, WaitKey};
