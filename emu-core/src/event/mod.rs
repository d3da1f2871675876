//! What the pipeline reports while it runs.
//!
//! [`Event`] is the vocabulary: one variant for each kernel tracepoint that has a meaning here, under its name
//! ([`Origin::Linux`]), and our own where Linux has none ([`Origin::Bifold`]). Events carry facts and no time; who
//! executes what and when is known to the [`EventSink`] that takes them.
//!
//! The vocabulary is declared once, in `list.rs` and `snp.rs`. Names, groups, field names and the ways to write and to read an event
//! all follow from that declaration, so that no two writers can disagree: [`Event::visit`] gives the fields as
//! [`Value`]s, [`Event::read`] makes an event of them again.
//!
//! Always true: an event is small and `Copy`; reporting allocates nothing; a task without a sink builds no event that is
//! given to it as a closure; what `visit` gives, `read` takes back unchanged.
//!
//! Left out: tracepoints of parts that are not modelled (Hyper-V, Xen, nested virtualisation, asynchronous page faults).

mod declare;
mod list;
mod snp;
mod value;
mod words;

pub use list::{Event, EventKind};
pub use value::{Bits, Field, ReadError, Value};
pub use words::{
    ClipReason, Direction, ExitReason, FailureResult, FaultOutcome, Group, Ino, NpfCode, Origin, RmpOwner, Sharing,
    SlotChange, Stage, TableOrigin, UserExitReason, Validity,
};

/// Where events go.
pub trait EventSink {
    /// Takes one event. Must not call back into the pipeline.
    fn report(&self, event: Event);
}

#[cfg(test)]
mod tests;
