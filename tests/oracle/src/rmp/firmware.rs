//! Commands of the firmware, by the table of page states (AMD's SEV firmware sources).

use super::{Map, Page, REGION};

/// Status of a command; the numbers are those of the firmware's interface.
pub type FirmwareStatus = u32;

const INVALID_ADDRESS: FirmwareStatus = 0x09;
const INVALID_PAGE_SIZE: FirmwareStatus = 0x19;
const INVALID_PAGE_STATE: FirmwareStatus = 0x1a;
const INVALID_PAGE_OWNER: FirmwareStatus = 0x1c;

/// What SNP_LAUNCH_UPDATE is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The guest.
    pub asid: u32,
    /// 2 MiB.
    pub large: bool,
    /// For a virtual processor to run from.
    pub vmsa: bool,
    /// Masks of VMPL 1 to 3.
    pub masks: [u8; 3],
}

impl Page {
    fn is_firmwares(&self) -> bool {
        self.assigned && self.immutable && self.asid == 0
    }
    fn is_pre_guest(&self) -> bool {
        self.assigned && self.immutable && self.asid != 0 && !self.validated
    }
    fn is_context(&self) -> bool {
        self.is_firmwares() && self.vmsa
    }
    /// And nothing but the firmware's.
    fn is_plain_firmwares(&self) -> bool {
        self.is_firmwares() && !self.vmsa && self.gpa == 0
    }
}

impl Map {
    fn named(&self, spa: u64, large: bool) -> Result<u64, FirmwareStatus> {
        let align = if large { 1 << 21 } else { 1 << 12 };
        match self.page(spa >> 12) {
            Some(_) if spa.is_multiple_of(align) => Ok(spa >> 12),
            _ => Err(INVALID_ADDRESS),
        }
    }

    /// SNP_LAUNCH_UPDATE: Pre-Guest to Guest-Valid.
    pub fn launch(&mut self, spa: u64, launch: &Launch) -> Result<(), FirmwareStatus> {
        let frame = self.named(spa, launch.large)?;
        let page = self.pages[frame as usize];
        if !page.is_pre_guest() {
            return Err(INVALID_PAGE_STATE);
        }
        if page.large != launch.large || launch.vmsa && launch.large {
            return Err(INVALID_PAGE_SIZE);
        }
        if page.asid != launch.asid {
            return Err(INVALID_PAGE_OWNER);
        }
        let whole = self.whole(frame);
        for page in &mut self.pages[whole] {
            page.validated = true;
            page.immutable = false;
            page.locked = false;
            page.vmsa = launch.vmsa;
            page.masks[1..].copy_from_slice(&launch.masks);
        }
        Ok(())
    }

    /// SNP_PAGE_RECLAIM: the firmware's pages, and those of a guest it was to work on, to Reclaim.
    pub fn reclaim(&mut self, spa: u64, large: bool) -> Result<(), FirmwareStatus> {
        let frame = self.named(spa, large)?;
        let page = self.pages[frame as usize];
        if page.locked || !page.is_firmwares() && !page.is_pre_guest() {
            return Err(INVALID_PAGE_STATE);
        }
        if page.large != large {
            return Err(INVALID_PAGE_SIZE);
        }
        let whole = self.whole(frame);
        for (n, page) in (0..).zip(&mut self.pages[whole]) {
            *page = Page { assigned: true, large, gpa: if large { n * 4096 } else { 0 }, ..Page::HYPERVISOR };
        }
        Ok(())
    }

    /// SNP_GCTX_CREATE.
    pub fn create_context(&mut self, spa: u64) -> Result<(), FirmwareStatus> {
        self.context(spa, Page::is_plain_firmwares, true)
    }

    /// SNP_DECOMMISSION.
    pub fn decommission(&mut self, spa: u64) -> Result<(), FirmwareStatus> {
        self.context(spa, Page::is_context, false)
    }

    fn context(&mut self, spa: u64, from: fn(&Page) -> bool, to: bool) -> Result<(), FirmwareStatus> {
        let frame = self.named(spa, false)?;
        let page = &mut self.pages[frame as usize];
        if !from(page) || page.locked {
            return Err(INVALID_PAGE_STATE);
        }
        if page.large {
            return Err(INVALID_PAGE_SIZE);
        }
        page.vmsa = to;
        Ok(())
    }

    /// SNP_PAGE_SET_STATE: Hypervisor to HV-Fixed.
    pub fn set_hv_fixed(&mut self, spa: u64) -> Result<(), FirmwareStatus> {
        let frame = self.named(spa, false)?;
        let page = &mut self.pages[frame as usize];
        if *page != Page::HYPERVISOR {
            return Err(INVALID_PAGE_STATE);
        }
        page.immutable = true;
        Ok(())
    }

    /// SNP_PAGE_UNSMASH.
    pub fn unsmash(&mut self, spa: u64) -> Result<(), FirmwareStatus> {
        let frame = self.named(spa, true)?;
        if self.running.iter().any(|running| running / REGION == frame / REGION) {
            return Err(INVALID_PAGE_STATE);
        }
        let first = self.pages[frame as usize];
        if first.large {
            return Err(INVALID_PAGE_SIZE);
        }
        let region = self.region_mut(frame);
        let sound = first.assigned && first.asid != 0 && first.gpa.is_multiple_of(1 << 21);
        let alike = (0..).zip(&*region).all(|(n, page)| *page == Page { gpa: first.gpa + n * 4096, ..first });
        if !sound || !alike {
            return Err(INVALID_PAGE_STATE);
        }
        for page in region {
            page.large = true;
        }
        Ok(())
    }
}
