//! What a trace says of the machine's own doings: when, on which processor, and why it left the guest.

use cpu::{Exit, SevAct, SevRecord, Vcpu};
use emu_core::event::{Bits, Direction, Event, ExitReason, Validity};
use emu_core::time::Instant;
use emu_core::{Gfn, Gva, Sfn};
use mmu::rmp::{GuestPage, Validated};

use super::Machine;
use crate::trace::{Lens, Recorded, Stamp};

/// The stamp of what happens on behalf of processor `n` at `time`.
pub(super) fn stamp(n: usize, vcpu: &Vcpu, time: Instant) -> Stamp {
    Stamp { time, vcpu: Some(n as u16), rip: Some(Gva::new(vcpu.state().rip)) }
}

/// As events tell it.
pub(super) fn reason(exit: &Exit) -> ExitReason {
    match exit {
        Exit::TimeUp => ExitReason::TimeUp,
        Exit::InterruptWindow => ExitReason::InterruptWindow,
        Exit::Halt => ExitReason::Halt,
        Exit::NestedPageFault { .. } => ExitReason::NestedPageFault,
        Exit::ModificationLogFull => ExitReason::ModificationLogFull,
        Exit::Mmio { .. } => ExitReason::Mmio,
        Exit::Io(_) => ExitReason::Io,
        Exit::Msr(_) => ExitReason::Msr,
        Exit::TaskPriority { .. } => ExitReason::TaskPriority,
        Exit::Hypercall => ExitReason::Hypercall,
        Exit::VmgExit => ExitReason::VmgExit,
        Exit::TscMoved => ExitReason::TscMoved,
        Exit::PageFault(_) => ExitReason::Exception,
        Exit::PagingWritten { .. } | Exit::Invlpg { .. } | Exit::Invpcid { .. } | Exit::ReadPdptes { .. } => {
            ExitReason::Intercept
        }
        Exit::InvalidGuestState(_) => ExitReason::Invalid,
        Exit::Shutdown => ExitReason::Shutdown,
    }
}

/// The direction of an access that writes or not.
pub(super) fn direction<T>(write: Option<T>) -> Direction {
    if write.is_some() { Direction::Write } else { Direction::Read }
}

/// As events tell it.
fn act(record: &SevRecord) -> Event {
    let frames =
        |page: Option<GuestPage>| page.map_or((Gfn::new(0), Sfn::new(0)), |page| (page.gpa.frame(), page.spa.frame()));
    match record.act {
        SevAct::Pvalidate { gva, page, size, to, eax, carry } => {
            let (gfn, sfn) = frames(page);
            let to = match to {
                Validated::Yes => Validity::Validated,
                Validated::No => Validity::Rescinded,
            };
            let (size, carry) = (size.page_size(), carry.into());
            Event::Pvalidate { gva, gfn, sfn, size, to, result: eax, carry }
        }
        SevAct::RmpAdjust { gva, page, rcx, rdx, eax } => {
            Event::RmpAdjust { gva, gfn: frames(page).0, rcx: Bits(rcx), rdx: Bits(rdx), result: eax }
        }
        SevAct::VmmCommunication { exit_code } => Event::VmmCommunication { exit_code: Bits(exit_code.into()) },
    }
}

/// Reports what processor `n` did inside the guest by instructions that do not leave it, as of then and there.
pub(super) fn saw_inside(lens: &Lens, n: usize, vcpu: &mut Vcpu) {
    if !lens.is_recording() {
        return;
    }
    for record in vcpu.take_sev_records() {
        lens.point_at(|| Stamp { time: record.at, vcpu: Some(n as u16), rip: Some(record.rip) });
        lens.task().report(act(&record));
    }
}

impl Machine {
    /// From now on what happens is processor `n`'s doing.
    pub(super) fn look_at(&mut self, n: usize) {
        let Machine { lens, vcpus, now, .. } = self;
        if let Some(vcpu) = vcpus[n].vcpu.present() {
            lens.point_at(|| stamp(n, vcpu, *now));
        }
    }

    /// From now on what happens is the VMM's doing, or a device's.
    pub(super) fn look_at_host(&self) {
        self.lens.point_at(|| Stamp { time: self.now, vcpu: None, rip: None });
    }

    /// Reports that processor `n` leaves the guest.
    pub(super) fn saw_exit(&mut self, n: usize, exit: &Exit) {
        self.look_at(n);
        self.lens.task().report_with(|| Event::Exit { reason: reason(exit) });
    }

    /// How many events were recorded, and their digest, if the machine records.
    pub fn trace(&self) -> Option<Recorded> {
        self.lens.recorded()
    }

    /// The view with which the machine does things.
    pub(super) fn lens(&self) -> &Lens {
        &self.lens
    }
}
