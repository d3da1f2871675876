//! Stage 3: the folio behind the page.

use emu_core::event::EventSink;
use gmem::{GuestMemfd, HostMemory};

use super::Stop;
use super::admit::Admitted;

/// A fault whose page has a folio.
#[derive(Clone, Copy, Debug)]
pub struct Backed {
    fault: Admitted,
    folio: gmem::Backed,
}

impl Backed {
    /// The fault that may be served.
    pub const fn fault(&self) -> &Admitted {
        &self.fault
    }
    /// The frame behind the faulting page and the size of its folio.
    pub const fn folio(&self) -> gmem::Backed {
        self.folio
    }
}

/// Finds or allocates the folio. It may be gone again when the entry is to be written; then the sequence has moved.
pub fn fault_in(
    inode: &mut GuestMemfd,
    host: &mut HostMemory,
    fault: Admitted,
    events: &mut dyn EventSink,
) -> Result<Backed, Stop> {
    let folio = inode.get_folio(host, fault.fault().index(), events)?;
    Ok(Backed { fault, folio })
}
