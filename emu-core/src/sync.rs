//! The locks of pipeline code. One facade, so that an exploration build can put a controlled scheduler in their place
//! without a line of the pipeline changing.

pub use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
