//! The parent's side of the child: the shared ring, handing over, waiting, the watchdog, replacing a lost child.

#![expect(unsafe_code, reason = "forks, and shares memory with the child")]

use std::io;
use std::ptr;
use std::sync::LazyLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::time::Duration;

use super::layout::{READY, SLOTS, STARTING, Shared, Slot};
use super::{JudgeError, child, futex};
use crate::case::Crash;
use crate::window::BACKGROUND;

/// How often a sleeping parent looks after its child.
const TICK: Duration = Duration::from_millis(20);

/// A child and the ring shared with it.
///
/// Holds raw pointers and so stays on the thread that made it; the child dies with that thread.
pub struct Child {
    shared: *mut Shared,
    pid: libc::pid_t,
    /// Oldest case that has not been released, as a running number of the ring.
    head: u32,
}

impl Child {
    /// Maps a ring and forks a child.
    pub fn start() -> Result<Child, JudgeError> {
        // Forced here because a forked child must not initialise it.
        LazyLock::force(&BACKGROUND);
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping.
        let shared = unsafe {
            libc::mmap(ptr::null_mut(), size_of::<Shared>(), libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if shared == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        let mut this = Child { shared: shared.cast(), pid: 0, head: 0 };
        this.fork()?;
        Ok(this)
    }

    fn ring(&self) -> &Shared {
        // SAFETY: mapped until drop; the fields used through this reference are atomics.
        unsafe { &*self.shared }
    }

    fn fork(&mut self) -> Result<(), JudgeError> {
        self.ring().ready.store(STARTING, SeqCst);
        self.ring().child_sleeps.store(0, SeqCst);
        self.ring().submitted.store(self.head, SeqCst);
        self.ring().completed.store(self.head, SeqCst);
        // SAFETY: the child goes to `child::run` at once, which keeps to what a forked child may do.
        unsafe {
            let parent = libc::getpid();
            match libc::fork() {
                -1 => return Err(io::Error::last_os_error().into()),
                0 => child::run(self.shared, parent),
                pid => self.pid = pid,
            }
        }
        loop {
            match self.ring().ready.load(Acquire) {
                READY => return Ok(()),
                STARTING => match self.ended() {
                    Some(_) => return Err(JudgeError::Unstable),
                    None => std::thread::sleep(Duration::from_micros(50)),
                },
                step => return Err(JudgeError::Setup(step)),
            }
        }
    }

    /// The slot `n` behind the oldest that was not released. It must not be between submission and completion.
    pub fn slot(&mut self, n: usize) -> &mut Slot {
        let at = self.head.wrapping_add(n as u32) as usize % SLOTS;
        // SAFETY: in bounds; by the ring's protocol the child does not touch it, and `&mut self` keeps us alone.
        unsafe { &mut *(&raw mut (*self.shared).slots).cast::<Slot>().add(at) }
    }

    /// Hands over all slots up to `n` behind the oldest.
    pub fn submit(&mut self, n: usize) {
        let ring = self.ring();
        ring.submitted.store(self.head.wrapping_add(n as u32), SeqCst);
        if ring.child_sleeps.load(SeqCst) != 0 {
            ring.child_bell.fetch_add(1, SeqCst);
            futex::wake(&ring.child_bell);
        }
    }

    /// How many from the oldest on have been answered.
    pub fn completed(&self) -> u32 {
        self.ring().completed.load(Acquire).wrapping_sub(self.head)
    }

    /// Gives up the oldest slot, which has been answered.
    pub fn release(&mut self) {
        self.head = self.head.wrapping_add(1);
    }

    /// Waits until `enough` cases have been answered, or the child is lost at the first that has not been.
    pub fn wait(&mut self, enough: usize, patience: Duration) -> Result<Option<Crash>, JudgeError> {
        let mut seen = (self.completed(), self.cpu_time());
        loop {
            let ring = self.ring();
            let bell = ring.parent_bell.load(SeqCst);
            ring.parent_sleeps.store(1, SeqCst);
            if self.completed() as usize >= enough {
                ring.parent_sleeps.store(0, Relaxed);
                return Ok(None);
            }
            futex::wait(&ring.parent_bell, bell, Some(TICK));
            if let Some(crash) = self.ended() {
                return Ok(Some(crash));
            }
            let now = (self.completed(), self.cpu_time());
            if now.0 != seen.0 {
                seen = now;
            } else if now.1.saturating_sub(seen.1) > patience {
                self.kill();
                return Ok(Some(Crash::Hang));
            }
        }
    }

    /// Starts a new child after one was lost; slots that were not released are taken back.
    pub fn replace(&mut self) -> Result<(), JudgeError> {
        self.fork()
    }

    /// Processor time the child has used.
    fn cpu_time(&self) -> Duration {
        let mut clock = 0;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: plain out-parameters. A child that is gone gives an error and so no progress.
        unsafe {
            if libc::clock_getcpuclockid(self.pid, &raw mut clock) != 0
                || libc::clock_gettime(clock, &raw mut time) != 0
            {
                return Duration::ZERO;
            }
        }
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    /// How the child ended, if it did.
    fn ended(&mut self) -> Option<Crash> {
        let mut status = 0;
        // SAFETY: our own child.
        if self.pid == 0 || unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) } != self.pid {
            return None;
        }
        self.pid = 0;
        if libc::WIFSIGNALED(status) {
            Some(Crash::Signal(libc::WTERMSIG(status)))
        } else {
            Some(Crash::Exit(libc::WEXITSTATUS(status)))
        }
    }

    fn kill(&mut self) {
        if self.pid != 0 {
            // SAFETY: our own child, not yet reaped.
            unsafe {
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, ptr::null_mut(), 0);
            }
            self.pid = 0;
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        // SAFETY: nobody uses the mapping any more.
        unsafe { libc::munmap(self.shared.cast(), size_of::<Shared>()) };
    }
}
