//! A guest as the firmware knows it: from GCTX_CREATE over the launch to requests of the running guest.
//!
//! Source: SEV-SNP firmware ABI, "Guest State Machine", SNP_LAUNCH_START, SNP_ACTIVATE, SNP_LAUNCH_UPDATE,
//! SNP_LAUNCH_FINISH; AMD's published firmware for the order of checks.

use std::sync::Arc;

use emu_core::page::PAGE_SIZE;
use emu_core::{Gpa, PageSize};
use mmu::Asid;
use mmu::rmp::VmplPermissions;

use super::chip::Chip;
use super::cpuid::CpuidPage;
use super::digest::LaunchDigest;
use super::id_block::{Identity, SignedId};
use super::policy::Policy;
use super::report::Report;
use super::secrets::{SecretsPage, Vmpck};
use super::status::FirmwareStatus;
use crate::snp::memory;

/// Kinds of pages that a launch puts into a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PageType {
    /// As given, and measured.
    Normal = 1,
    /// A virtual processor's state.
    Vmsa = 2,
    /// Zeros.
    Zero = 3,
    /// As given, and not measured.
    Unmeasured = 4,
    /// Written by the firmware: [`SecretsPage`].
    Secrets = 5,
    /// As given after checks: [`CpuidPage`].
    Cpuid = 6,
}

impl PageType {
    /// All, by number.
    pub const ALL: [PageType; 6] =
        [PageType::Normal, PageType::Vmsa, PageType::Zero, PageType::Unmeasured, PageType::Secrets, PageType::Cpuid];

    /// The type with this number.
    pub fn new(number: u8) -> Option<PageType> {
        PageType::ALL.into_iter().find(|&kind| kind as u8 == number)
    }

    /// Whether a page of 2 MiB can be of this type.
    pub const fn can_be_2m(self) -> bool {
        matches!(self, PageType::Normal | PageType::Zero | PageType::Unmeasured)
    }
}

/// The state of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestState {
    /// It has a context and nothing else.
    Init,
    /// Pages are put into it.
    Launch,
    /// It runs.
    Running,
}

/// What SNP_LAUNCH_START is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchStart {
    /// What the guest's owner demands.
    pub policy: Policy,
    /// Guest-OS-visible workarounds, for the secrets page.
    pub gosvw: [u8; 16],
    /// Which guest of the chip this is: its keys follow from the chip's seed and this number.
    pub number: u64,
}

/// What SNP_LAUNCH_UPDATE is told about one page.
#[derive(Clone, Copy, Debug)]
pub struct LaunchUpdate<'a> {
    /// What the page is.
    pub kind: PageType,
    /// Where the guest finds it: the address in its RMP entry.
    pub gpa: Gpa,
    /// Its size in the RMP, 4 KiB or 2 MiB.
    pub size: PageSize,
    /// What it holds; not looked at for pages that the firmware writes itself.
    pub contents: &'a [u8],
    /// What VMPL 1 to 3 may do with it.
    pub permissions: [VmplPermissions; 3],
}

/// What a page holds after it was put into the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaunchedPage {
    /// What was given.
    AsGiven,
    /// Zeros.
    Zeros,
    /// What the firmware wrote.
    Written(Box<[u8; PAGE_SIZE]>),
}

/// Whether the chip's key (VCEK) may sign for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum VcekUse {
    /// It may.
    #[default]
    Allowed,
    /// The hypervisor has disabled it at launch.
    Disabled,
}

/// What SNP_LAUNCH_FINISH is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct LaunchFinish<'a> {
    /// What the owner expects, if it says so.
    pub id: Option<SignedId<'a>>,
    /// Data of the hypervisor's, for reports.
    pub host_data: [u8; 32],
    /// Whether the chip's key may sign.
    pub vcek: VcekUse,
}

/// What is known since the launch began.
#[derive(Clone, Debug)]
struct Started {
    policy: Policy,
    gosvw: [u8; 16],
    vmpcks: [Vmpck; 4],
    root_key: [u8; 32],
    report_id: [u8; 32],
}

impl Started {
    fn secrets(&self, fms: u32) -> SecretsPage {
        SecretsPage { fms, gosvw: self.gosvw, vmpcks: self.vmpcks }
    }
}

/// A guest's context.
#[derive(Clone, Debug)]
pub struct GuestContext {
    chip: Arc<Chip>,
    state: GuestState,
    started: Option<Started>,
    asid: Option<Asid>,
    digest: LaunchDigest,
    identity: Option<Identity>,
    host_data: [u8; 32],
    vcek: VcekUse,
    /// Messages under each key, requests and responses.
    message_counts: [u64; 4],
}

impl GuestContext {
    /// SNP_GCTX_CREATE.
    pub fn create(chip: Arc<Chip>) -> GuestContext {
        GuestContext {
            chip,
            state: GuestState::Init,
            started: None,
            asid: None,
            digest: LaunchDigest::EMPTY,
            identity: None,
            host_data: [0; 32],
            vcek: VcekUse::Allowed,
            message_counts: [0; 4],
        }
    }

    /// Where the guest is.
    pub fn state(&self) -> GuestState {
        self.state
    }

    /// The digest of what was put into the guest so far.
    pub fn digest(&self) -> LaunchDigest {
        self.digest
    }

    /// Its ASID, once it has one.
    pub fn asid(&self) -> Option<Asid> {
        self.asid
    }

    /// Its policy, since the launch began.
    pub fn policy(&self) -> Option<Policy> {
        self.started.as_ref().map(|started| started.policy)
    }

    /// SNP_LAUNCH_START: Init to Launch; keys are made.
    pub fn launch_start(&mut self, start: &LaunchStart) -> Result<(), FirmwareStatus> {
        if self.state != GuestState::Init {
            return Err(FirmwareStatus::InvalidGuestState);
        }
        start.policy.check_firmware()?;
        let secret = |purpose| self.chip.guest_secret(start.number, purpose);
        self.started = Some(Started {
            policy: start.policy,
            gosvw: start.gosvw,
            vmpcks: ["VMPCK0", "VMPCK1", "VMPCK2", "VMPCK3"].map(|purpose| Vmpck::new(secret(purpose))),
            root_key: secret("VMRK"),
            report_id: secret("report id"),
        });
        self.state = GuestState::Launch;
        Ok(())
    }

    /// SNP_ACTIVATE: binds an ASID, which no entry of the RMP carries any more.
    pub fn activate(&mut self, asid: Asid) -> Result<(), FirmwareStatus> {
        if self.state == GuestState::Init {
            return Err(FirmwareStatus::InvalidGuestState);
        }
        if asid.0 == 0 {
            return Err(FirmwareStatus::InvalidAsid);
        }
        if self.asid.is_some() {
            return Err(FirmwareStatus::Active);
        }
        self.asid = Some(asid);
        Ok(())
    }

    /// SNP_LAUNCH_UPDATE for one page, whose RMP entry is Pre-Guest with this guest's ASID (the caller's to check). What the
    /// page has to hold comes back; on an error nothing is measured.
    pub fn launch_update(&mut self, update: &LaunchUpdate<'_>) -> Result<LaunchedPage, FirmwareStatus> {
        match update.size {
            PageSize::Size4K => {}
            PageSize::Size2M if update.kind.can_be_2m() => {}
            PageSize::Size2M | PageSize::Size1G => return Err(FirmwareStatus::InvalidPageSize),
        }
        if !update.gpa.is_aligned(update.size) {
            return Err(FirmwareStatus::InvalidAddress);
        }
        if self.state != GuestState::Launch {
            return Err(FirmwareStatus::InvalidGuestState);
        }
        let Some(started) = self.started.as_ref() else { return Err(FirmwareStatus::InvalidGuestState) };
        if self.asid.is_none() {
            return Err(FirmwareStatus::Inactive);
        }
        let pages = update.contents.as_chunks::<PAGE_SIZE>().0;
        let given = update.contents.len() as u64 == update.size.bytes();
        let launched = match update.kind {
            PageType::Zero => LaunchedPage::Zeros,
            PageType::Secrets => LaunchedPage::Written(started.secrets(self.chip.fms).to_bytes()),
            PageType::Normal | PageType::Vmsa | PageType::Unmeasured | PageType::Cpuid if !given => {
                return Err(FirmwareStatus::InvalidLength);
            }
            PageType::Cpuid => {
                let page = pages.first().ok_or(FirmwareStatus::InvalidLength)?;
                CpuidPage::from_bytes(page)?;
                LaunchedPage::AsGiven
            }
            PageType::Normal | PageType::Vmsa | PageType::Unmeasured => LaunchedPage::AsGiven,
        };
        let mut digest = self.digest;
        for n in 0..update.size.frames() {
            let contents = pages.get(n as usize).unwrap_or(&[0; PAGE_SIZE]);
            let gpa = update.gpa.wrapping_add(n * PAGE_SIZE as u64);
            digest = digest.extended(update.kind, gpa, contents, update.permissions);
        }
        self.digest = digest;
        Ok(launched)
    }

    /// The same for 4 KiB that [`crate::Vm::snp_launch_update`] has put into the guest.
    pub fn measure(&mut self, page: &memory::LaunchedPage<'_>) -> Result<(), FirmwareStatus> {
        let update = LaunchUpdate {
            kind: page.page_type,
            gpa: page.gpa,
            size: PageSize::Size4K,
            contents: page.bytes.unwrap_or(&[0; PAGE_SIZE]),
            permissions: page.permissions,
        };
        self.launch_update(&update).map(drop)
    }

    /// What the secrets page of this guest says, for whoever fills pages before they are measured.
    pub fn secrets(&self) -> Result<SecretsPage, FirmwareStatus> {
        let launching = self.started.as_ref().filter(|_| self.state == GuestState::Launch);
        launching.map(|started| started.secrets(self.chip.fms)).ok_or(FirmwareStatus::InvalidGuestState)
    }

    /// SNP_LAUNCH_FINISH: Launch to Running.
    pub fn launch_finish(&mut self, finish: &LaunchFinish<'_>) -> Result<(), FirmwareStatus> {
        if self.state != GuestState::Launch {
            return Err(FirmwareStatus::InvalidGuestState);
        }
        let Some(started) = self.started.as_ref() else { return Err(FirmwareStatus::InvalidGuestState) };
        if self.asid.is_none() {
            return Err(FirmwareStatus::Inactive);
        }
        if let Some(id) = finish.id {
            self.identity = Some(id.check(self.digest, started.policy)?);
        }
        self.host_data = finish.host_data;
        self.vcek = finish.vcek;
        self.state = GuestState::Running;
        Ok(())
    }

    pub(super) fn chip(&self) -> &Chip {
        &self.chip
    }

    pub(super) fn vcek_use(&self) -> VcekUse {
        self.vcek
    }

    /// The keys of messages, for a guest that runs.
    pub(super) fn running_vmpcks(&self) -> Result<&[Vmpck; 4], FirmwareStatus> {
        let running = self.started.as_ref().filter(|_| self.state == GuestState::Running);
        running.map(|started| &started.vmpcks).ok_or(FirmwareStatus::InvalidGuestState)
    }

    /// The root of keys that belong to this guest alone (VMRK).
    pub(super) fn root_key(&self) -> &[u8] {
        self.started.as_ref().map_or(&[], |started| &started.root_key)
    }

    pub(super) fn message_count(&self, vmpck: u8) -> u64 {
        self.message_counts[usize::from(vmpck & 3)]
    }

    pub(super) fn set_message_count(&mut self, vmpck: u8, count: u64) {
        self.message_counts[usize::from(vmpck & 3)] = count;
    }

    /// A report without what its request says.
    pub(super) fn report_template(&self) -> Report {
        let block = self.identity.map(|identity| identity.block);
        Report {
            guest_svn: block.map_or(0, |block| block.guest_svn),
            policy: self.policy().map_or(0, Policy::bits),
            family_id: block.map_or([0; 16], |block| block.family_id),
            image_id: block.map_or([0; 16], |block| block.image_id),
            vmpl: 0,
            report_data: [0; 64],
            measurement: *self.digest.bytes(),
            host_data: self.host_data,
            id_key_digest: self.identity.map_or([0; 48], |identity| identity.id_key_digest),
            author_key_digest: self.identity.and_then(|identity| identity.author_key_digest),
            report_id: self.started.as_ref().map_or([0; 32], |started| started.report_id),
        }
    }
}
