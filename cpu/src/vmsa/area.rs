//! Where a processor's save area lies: VMRUN takes the guest's registers from there, and #VMEXIT puts them back.
//!
//! APM vol. 2, "SEV-ES: VMRUN" and "RMP and VMPL Access Checks" for VMSA pages. The VMCB names the page by its system
//! physical address. Between VMRUN and #VMEXIT nobody can take it away, because the RMP counts it as in use.

use emu_core::Spa;
use emu_core::memory::{BusError, Key};
use emu_core::time::Instant;
use mmu::rmp::InUse;
use mmu::{Asid, RmpCause, SpaceTag, Stage2};
use thiserror::Error;

use super::{Page, VMSA_LEN, VmsaError};
use crate::exit::Exit;
use crate::vcpu::Vcpu;

/// Why VMRUN does not begin (VMEXIT_INVALID).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidGuestState {
    /// The RMP does not say that the page is a save area of this guest.
    #[error("the page at {spa} is no save area of the guest: {cause}")]
    NotVmsa {
        /// Where.
        spa: Spa,
        /// What is wrong with its entry.
        cause: RmpCause,
    },
    /// What the page holds is no state of a processor.
    #[error("the save area at {spa} cannot be loaded: {cause}")]
    Contents {
        /// Where.
        spa: Spa,
        /// What is wrong.
        cause: VmsaError,
    },
    /// There is no memory.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl Vcpu {
    /// From now on the processor enters the guest from the save area at `spa`, and leaves it there.
    /// No interrupt can be taken before it has done so.
    pub fn set_vmsa(&mut self, spa: Spa) {
        if self.area.replace(spa).is_some() {
            self.saved = None;
        }
    }

    /// The guest's registers as a page to be launched.
    pub fn vmsa(&mut self) -> Box<Page> {
        let mut page = Box::new([0; VMSA_LEN]);
        self.save_vmsa(&mut page);
        page
    }

    /// VMRUN, the guest, #VMEXIT.
    pub(crate) fn run_from(&mut self, area: Spa, until: Instant) -> Exit {
        let asid = self.asid();
        if let Err(invalid) = self.vmrun(area, asid) {
            return Exit::InvalidGuestState(invalid);
        }
        let exit = self.engine.run(until);
        let left = self.vmexit(area);
        if let Some(rmp) = self.mmu().rmp() {
            rmp.set_in_use(area.frame(), InUse::No);
        }
        match left {
            Ok(()) => exit,
            Err(error) => Exit::InvalidGuestState(error.into()),
        }
    }

    /// The ASID under which the guest runs; 0 where there is none.
    fn asid(&mut self) -> Asid {
        match self.mmu().stage2() {
            Stage2::Npt(npt) => npt.asid,
            Stage2::Untranslated(SpaceTag::Asid(asid)) => *asid,
            Stage2::None | Stage2::Untranslated(SpaceTag::Vpid(_)) | Stage2::Ept(_) => Asid(0),
        }
    }

    fn vmrun(&mut self, area: Spa, asid: Asid) -> Result<(), InvalidGuestState> {
        let mut page = [0; VMSA_LEN];
        let mmu = self.mmu();
        let key = Key::of_asid(asid.0).unwrap_or(Key::HOST);
        if let Some(rmp) = mmu.rmp() {
            // From here on nobody takes the page away.
            rmp.use_vmsa(area, asid).map_err(|cause| InvalidGuestState::NotVmsa { spa: area, cause })?;
            rmp.rekey(area.frame(), key);
        }
        let loaded = mmu.memory().read(area, &mut page).map_err(InvalidGuestState::from).and_then(|()| {
            let resumed = self.resume_from(&page).map(drop);
            resumed.map_err(|cause| InvalidGuestState::Contents { spa: area, cause })
        });
        if loaded.is_err()
            && let Some(rmp) = self.mmu().rmp()
        {
            rmp.set_in_use(area.frame(), InUse::No);
        }
        loaded
    }

    fn vmexit(&mut self, area: Spa) -> Result<(), BusError> {
        let mut page = [0; VMSA_LEN];
        self.mmu().memory().read(area, &mut page)?;
        self.save_vmsa(&mut page);
        self.mmu().memory().write(area, &page)
    }
}
