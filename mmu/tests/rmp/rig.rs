//! The table and the model side by side, and the words of one in those of the other.

use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::sev::{CBit, Vmpl};
use emu_core::{Access, AccessKind, Gpa, Gva, PageSize, Privilege, Sfn, Spa};
use mmu::rmp::{
    Changed, FirmwareCommand, GuestAccess, GuestPage, InUse, Pvalidate, RmpAdjust, RmpError, RmpPageSize, RmpPlace,
    RmpRefusal, RmpUpdate, Vmsa,
};
use mmu::{Asid, Rmp, RmpCause};
use oracle::rmp::{Answer, Check, Doing, Launch, Leaf, Map, NewEntry, Operand, Outcome, Use, Who};

/// The guest that acts.
pub const MINE: u32 = 5;
/// Another.
pub const OTHER: u32 = 6;
/// Regions with entries.
pub const REGIONS: u64 = 2;

pub struct Rig {
    pub memory: Arc<SystemMemory>,
    pub rmp: Rmp,
    pub map: Map,
    image: Vec<u8>,
}

impl Rig {
    pub fn new() -> Rig {
        let bytes = Rmp::bytes_for(REGIONS * PageSize::Size2M.bytes());
        let memory = SystemMemory::flat(bytes).unwrap();
        let place = RmpPlace::Contiguous { base: Spa::new(0), last: Spa::new(bytes - 1) };
        let rmp = Rmp::new(Arc::clone(&memory), place).unwrap();
        Rig { memory, rmp, map: Map::new(REGIONS), image: vec![0; bytes as usize] }
    }

    /// Every byte of the table is what the model says.
    pub fn compare(&mut self, what: &dyn core::fmt::Debug) {
        self.memory.read(Spa::new(0), &mut self.image).unwrap();
        let expected = self.map.image();
        if self.image != expected {
            let at = self.image.iter().zip(&expected).position(|(a, b)| a != b).unwrap() / 16 * 16;
            let (got, want) = (&self.image[at..at + 16], &expected[at..at + 16]);
            panic!("after {what:x?} the table has {got:02x?} at {at:#x}, the model {want:02x?}");
        }
    }

    pub fn access(&self, access: &Use) -> Result<Option<PageSize>, RmpRefusal> {
        let (spa, mapped) = (Spa::new(access.spa), page_size(access.leaf));
        let kind = match access.doing {
            Doing::Read | Doing::TableWalk => AccessKind::Read,
            Doing::Write => AccessKind::Write,
            Doing::Fetch => AccessKind::Execute,
        };
        match access.who {
            Who::HostOrPlainGuest if access.doing == Doing::Write => {
                self.rmp.check_host_write(spa, mapped).map_err(RmpRefusal::from)?;
                Ok(None)
            }
            Who::HostOrPlainGuest => Ok(None),
            Who::SnpGuest { asid, gpa, c_bit, vmpl } => {
                let private = c_bit || access.doing == Doing::TableWalk;
                let access = GuestAccess {
                    spa,
                    gpa: Gpa::new(gpa),
                    mapped,
                    asid: Asid(asid),
                    vmpl: Vmpl::ALL[vmpl],
                    c_bit: if private { CBit::Set } else { CBit::Clear },
                    access: Access::new(kind, if access.user { Privilege::User } else { Privilege::Supervisor }),
                };
                self.rmp.check_guest(&access).map(Some)
            }
        }
    }

    /// Asks both about one access.
    pub fn compare_access(&self, access: &Use) {
        let expected = match self.map.access(access) {
            Outcome::Proceeds => Ok(()),
            Outcome::Fails(Check::Validated) => Err(RmpRefusal::NotValidated),
            Outcome::Fails(Check::Vmpl) => Err(RmpCause::Vmpl.into()),
            Outcome::Fails(Check::PageSize) => Err(RmpCause::PageSize.into()),
            Outcome::Fails(_) => Err(RmpCause::Ownership.into()),
        };
        let got = self.access(access);
        assert_eq!(got.map(|_| ()), expected, "{access:x?} of {:x?}", self.map.page(access.spa >> 12));
        if let Ok(Some(size)) = got {
            let most = page_size(access.leaf).min(PageSize::Size2M);
            let private = matches!(access.who, Who::SnpGuest { c_bit: true, .. });
            assert!(size <= most);
            if private && !self.map.pages[(access.spa >> 12) as usize].large {
                assert_eq!(size, PageSize::Size4K);
            }
        }
    }
}

/// An event that may change the table.
#[derive(Clone, Debug)]
pub enum Event {
    Update(u64, NewEntry),
    Psmash(u64),
    Pvalidate(Operand, bool, bool),
    Adjust(Operand, u64, u64),
    Launch(u64, Launch),
    Reclaim(u64, bool),
    CreateContext(u64),
    Decommission(u64),
    Fix(u64),
    Unsmash(u64),
    Run(u64),
    Stop(u64),
}

impl Rig {
    /// Lets the event happen to both and compares the answers; says whether it succeeded.
    pub fn apply(&mut self, event: &Event) -> bool {
        match *event {
            Event::Update(spa, new) => {
                let update = update(&new);
                self.same_code(event, self.rmp.rmpupdate(Spa::new(spa), update), |map| map.rmpupdate(spa, &new))
            }
            Event::Psmash(spa) => self.same_code(event, self.rmp.psmash(Spa::new(spa)), |map| map.psmash(spa)),
            Event::Pvalidate(operand, large, value) => {
                let request = Pvalidate::decode(large.into(), value.into()).unwrap();
                let got = match self.rmp.pvalidate(&guest_page(&operand), &request) {
                    Ok(Ok(changed)) => Answer::Returns { eax: 0, carry: changed == Changed::No },
                    Ok(Err(error)) => Answer::Returns { eax: error.code(), carry: false },
                    Err(refusal) => refused(refusal),
                };
                assert_eq!(got, self.map.pvalidate(&operand, large, value), "{event:x?}");
                got == Answer::Returns { eax: 0, carry: false }
            }
            Event::Adjust(operand, rcx, rdx) => {
                let got = RmpAdjust::decode_size(rcx).and_then(|size| Ok((size, RmpAdjust::decode(rdx)?)));
                let got = match got.map(|(size, adjust)| self.rmp.rmpadjust(&guest_page(&operand), size, &adjust)) {
                    Ok(Ok(Ok(()))) => Answer::Returns { eax: 0, carry: false },
                    Ok(Ok(Err(error))) | Err(error) => Answer::Returns { eax: error.code(), carry: false },
                    Ok(Err(refusal)) => refused(refusal),
                };
                assert_eq!(got, self.map.rmpadjust(&operand, rcx, rdx), "{event:x?}");
                got == Answer::Returns { eax: 0, carry: false }
            }
            Event::Launch(spa, launch) => {
                let command = FirmwareCommand::LaunchPage {
                    asid: Asid(launch.asid),
                    size: rmp_size(launch.large),
                    vmsa: if launch.vmsa { Vmsa::Yes } else { Vmsa::No },
                    permissions: launch.masks.map(mmu::rmp::VmplPermissions::from_bits_retain),
                };
                self.same_status(event, spa, command, |map| map.launch(spa, &launch))
            }
            Event::Reclaim(spa, large) => {
                let command = FirmwareCommand::Reclaim { size: rmp_size(large) };
                self.same_status(event, spa, command, |map| map.reclaim(spa, large))
            }
            Event::CreateContext(spa) => {
                self.same_status(event, spa, FirmwareCommand::CreateContext, |map| map.create_context(spa))
            }
            Event::Decommission(spa) => {
                self.same_status(event, spa, FirmwareCommand::Decommission, |map| map.decommission(spa))
            }
            Event::Fix(spa) => self.same_status(event, spa, FirmwareCommand::SetHvFixed, |map| map.set_hv_fixed(spa)),
            Event::Unsmash(spa) => self.same_status(event, spa, FirmwareCommand::Unsmash, |map| map.unsmash(spa)),
            Event::Run(frame) => {
                self.rmp.set_in_use(Sfn::new(frame), InUse::Yes);
                self.map.running.push(frame);
                true
            }
            Event::Stop(frame) => {
                let place = self.map.running.iter().position(|&running| running == frame);
                if let Some(place) = place {
                    self.map.running.remove(place);
                    self.rmp.set_in_use(Sfn::new(frame), InUse::No);
                }
                place.is_some()
            }
        }
    }

    fn same_code(&mut self, event: &Event, got: Result<(), RmpError>, model: impl FnOnce(&mut Map) -> u32) -> bool {
        let code = got.map_or_else(RmpError::code, |()| 0);
        assert_eq!(code, model(&mut self.map), "{event:x?}");
        code == 0
    }

    fn same_status(
        &mut self,
        event: &Event,
        spa: u64,
        command: FirmwareCommand,
        model: impl FnOnce(&mut Map) -> Result<(), u32>,
    ) -> bool {
        let got = self.rmp.firmware(Spa::new(spa), command).map_err(|refused| refused.code());
        assert_eq!(got, model(&mut self.map), "{event:x?}");
        got.is_ok()
    }
}

pub fn page_size(leaf: Leaf) -> PageSize {
    match leaf {
        Leaf::Small => PageSize::Size4K,
        Leaf::Medium => PageSize::Size2M,
        Leaf::Huge => PageSize::Size1G,
    }
}

pub fn rmp_size(large: bool) -> RmpPageSize {
    if large { RmpPageSize::Size2M } else { RmpPageSize::Size4K }
}

/// The operand as software writes it, read back.
pub fn update(new: &NewEntry) -> RmpUpdate {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&new.gpa.to_le_bytes());
    bytes[8] = new.assigned.into();
    bytes[9] = new.large.into();
    bytes[10] = new.immutable.into();
    bytes[12..].copy_from_slice(&new.asid.to_le_bytes());
    RmpUpdate::from_bytes(&bytes).unwrap()
}

pub fn guest_page(operand: &Operand) -> GuestPage {
    GuestPage {
        gva: Gva::new(operand.gva),
        gpa: Gpa::new(operand.gpa),
        spa: Spa::new(operand.spa),
        mapped: page_size(operand.leaf),
        asid: Asid(operand.asid),
        vmpl: Vmpl::ALL[operand.vmpl],
    }
}

pub fn refused(refusal: RmpRefusal) -> Answer {
    match refusal {
        RmpRefusal::NotValidated => Answer::NotValidated,
        RmpRefusal::Rmp(cause) => Answer::NestedPageFault { size: cause == RmpCause::SizeMismatch },
    }
}
