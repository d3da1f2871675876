//! Submission and completion queues (NVM Express 1.4, section 4.1).
//!
//! Always true: heads and tails lie below the number of entries, so that a queue never names memory outside itself.

use std::collections::BTreeMap;

use emu_core::addr::Gpa;

use super::command::{COMMAND_BYTES, COMPLETION_BYTES};

/// Commands, from the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubmissionQueue {
    base: Gpa,
    entries: u32,
    head: u32,
    tail: u32,
    /// Number of the completion queue that its completions go to.
    pub completion: u16,
}

impl SubmissionQueue {
    /// An empty queue of at least two entries.
    pub fn new(base: Gpa, entries: u32, completion: u16) -> SubmissionQueue {
        SubmissionQueue { base, entries, head: 0, tail: 0, completion }
    }
    /// Whether every command was fetched.
    pub fn is_empty(&self) -> bool {
        self.head == self.tail
    }
    /// Where the next command lies.
    pub fn next_command(&self) -> Gpa {
        self.base.wrapping_add(u64::from(self.head) * COMMAND_BYTES)
    }
    /// The next command was fetched.
    pub fn advance(&mut self) {
        self.head = (self.head + 1) % self.entries;
    }
    /// The head, as completions report it.
    pub fn head(&self) -> u16 {
        self.head as u16
    }
}

/// Completions, for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletionQueue {
    base: Gpa,
    entries: u32,
    head: u32,
    tail: u32,
    phase: bool,
    /// The vector it interrupts with, if it does.
    pub vector: Option<u16>,
}

impl CompletionQueue {
    /// An empty queue of at least two entries.
    pub fn new(base: Gpa, entries: u32, vector: Option<u16>) -> CompletionQueue {
        CompletionQueue { base, entries, head: 0, tail: 0, phase: true, vector }
    }
    /// Whether the driver has seen every completion.
    pub fn is_empty(&self) -> bool {
        self.head == self.tail
    }
    /// Whether another completion fits.
    pub fn has_room(&self) -> bool {
        (self.tail + 1) % self.entries != self.head
    }
    /// Where the next completion goes.
    pub fn next_place(&self) -> Gpa {
        self.base.wrapping_add(u64::from(self.tail) * COMPLETION_BYTES)
    }
    /// The phase bit of the next completion.
    pub fn phase(&self) -> bool {
        self.phase
    }
    /// A completion was posted.
    pub fn advance(&mut self) {
        self.tail = (self.tail + 1) % self.entries;
        self.phase ^= self.tail == 0;
    }
}

/// What is wrong with a doorbell write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorbellError {
    /// There is no such queue.
    NoQueue,
    /// The value lies beyond the queue's end.
    Value,
}

/// Every queue there is, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queues {
    /// Submission queues.
    pub submission: BTreeMap<u16, SubmissionQueue>,
    /// Completion queues.
    pub completion: BTreeMap<u16, CompletionQueue>,
}

impl Queues {
    /// The doorbell of submission queue `id` (its tail) or completion queue `id` (its head).
    ///
    /// # Errors
    /// See [`DoorbellError`]; nothing has changed then.
    pub fn ring(&mut self, id: u16, value: u32, tail: bool) -> Result<(), DoorbellError> {
        let (place, entries) = if tail {
            self.submission.get_mut(&id).map(|queue| (&mut queue.tail, queue.entries))
        } else {
            self.completion.get_mut(&id).map(|queue| (&mut queue.head, queue.entries))
        }
        .ok_or(DoorbellError::NoQueue)?;
        // The upper half of a doorbell is reserved.
        let value = value & 0xffff;
        if value >= entries {
            return Err(DoorbellError::Value);
        }
        *place = value;
        Ok(())
    }
}
