//! The RMP against a second model of it, and the laws it obeys.
//!
//! `exhaustive` meets every entry with every access and every instruction, `laws` states what must hold whatever happens,
//! `history` lets random events follow each other, `bytes` those that fuzzing finds, `threads` looks while others change.
//! `rig` has table and model side by side, `scenes` the entries that are met. The model is `oracle::rmp`; what is compared
//! is every answer, and after it every byte of the table.

mod bytes;
mod exhaustive;
mod history;
mod laws;
mod rig;
mod scenes;
mod threads;
