//! What the instruction at RIP has already been answered by devices.
//!
//! An instruction that needs a device leaves with an exit and starts again from its first byte afterwards. The answers
//! it got are kept here in order, so that on the second run it takes them from here instead of asking again, and no
//! device sees an access twice. The latch is empty whenever an instruction (or one iteration of a string instruction)
//! has retired.

use crate::exit::Completion;

/// What was asked, compared on the second run so that an answer cannot reach another question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    Memory {
        address: u64,
        len_bytes: u8,
        write: bool,
    },
    Port {
        port: u16,
        write: bool,
    },
    Msr {
        msr: u32,
        write: bool,
    },
    TaskPriority {
        write: bool,
    },
    /// An access that shadow tables refuse; of no bytes, whether there may be one.
    Linear {
        address: u64,
        len_bytes: u8,
        write: bool,
    },
    /// A read-modify-write that they refuse.
    Exchange {
        address: u64,
        len_bytes: u8,
    },
    Pdptes {
        address: u64,
    },
}

impl Question {
    /// Whether it is about an access that tables refuse, which they may do at one time and not at another.
    const fn is_page_fault(self) -> bool {
        matches!(self, Question::Linear { .. } | Question::Exchange { .. })
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Latch {
    answered: Vec<(Question, Completion)>,
    next: usize,
    /// The open question, and before which answer it was asked.
    asked: Option<(usize, Question)>,
}

impl Latch {
    /// The instruction starts (again).
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    /// The instruction retired.
    pub fn clear(&mut self) {
        self.answered.clear();
        self.next = 0;
        self.asked = None;
    }

    pub fn is_empty(&self) -> bool {
        self.answered.is_empty()
    }

    /// The answer to `question`, if the instruction got one before; otherwise remembers that it is open.
    pub fn ask(&mut self, question: Question) -> Option<Completion> {
        match self.answered.get(self.next) {
            Some((asked, answer)) if *asked == question => {
                self.next += 1;
                Some(*answer)
            }
            _ => {
                // A different question than last time: memory changed under the instruction. What follows is new. A page
                // fault that was not there last time says nothing of the sort: its tables are mended, and what follows
                // is as it was.
                if !question.is_page_fault() {
                    self.answered.truncate(self.next);
                }
                self.asked = Some((self.next, question));
                None
            }
        }
    }

    /// The answer to `question` if it is the next there is; asks nothing.
    pub fn answered(&mut self, question: Question) -> Option<Completion> {
        let (_, answer) = self.answered.get(self.next).filter(|(asked, _)| *asked == question)?;
        self.next += 1;
        Some(*answer)
    }

    /// The machine answers the open question. Returns whether there was one.
    pub fn answer(&mut self, completion: Completion) -> bool {
        match self.asked.take() {
            Some((at, question)) => {
                self.answered.insert(at.min(self.answered.len()), (question, completion));
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_fault_in_between_disturbs_no_answer() {
        let store = Question::Linear { address: 8, len_bytes: 8, write: true };
        let fetch = Question::Linear { address: 0x1000, len_bytes: 0, write: false };
        let mut latch = Latch::default();
        assert_eq!(latch.ask(store), None);
        latch.answer(Completion::value(1));
        latch.rewind();
        assert_eq!(latch.ask(fetch), None, "what the store did took the code's own page away");
        latch.rewind();
        assert_eq!(latch.ask(store), Some(Completion::value(1)), "the store is not made again");
        latch.rewind();
        assert_eq!(latch.ask(fetch), None);
        latch.answer(Completion::value(2));
        latch.rewind();
        assert_eq!((latch.ask(fetch), latch.ask(store)), (Some(Completion::value(2)), Some(Completion::value(1))));
    }

    #[test]
    fn answers_come_back_in_order_and_only_to_their_question() {
        let port = |port| Question::Port { port, write: false };
        let mut latch = Latch::default();
        assert_eq!(latch.ask(port(1)), None);
        assert!(latch.answer(Completion::value(7)));
        assert!(!latch.answer(Completion::value(8)), "nothing is open");
        latch.rewind();
        assert_eq!(latch.ask(port(1)), Some(Completion::value(7)));
        assert_eq!(latch.ask(port(2)), None);
        latch.answer(Completion::value(9));
        latch.rewind();
        assert_eq!(latch.ask(port(3)), None, "another question drops what followed");
        latch.rewind();
        assert!(latch.is_empty());
    }
}
