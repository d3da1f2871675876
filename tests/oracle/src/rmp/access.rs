//! Accesses: the table of checks by kind of access, and each check by itself (APM vol. 2, "RMP and VMPL Access Checks").

use super::{Map, Page};

/// Size of the leaf that gives the system physical address: the host's own, or the nested one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Medium,
    /// 1 GiB.
    Huge,
}

impl Leaf {
    /// All.
    pub const ALL: [Leaf; 3] = [Leaf::Small, Leaf::Medium, Leaf::Huge];
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// A data read.
    Read,
    /// A data write, or setting A or D.
    Write,
    /// An instruction fetch.
    Fetch,
    /// Reading an entry of the guest's page tables.
    TableWalk,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The host, or a guest that is not SNP-active.
    HostOrPlainGuest,
    /// An SNP guest.
    SnpGuest {
        /// Its ASID.
        asid: u32,
        /// Guest physical address of the access.
        gpa: u64,
        /// C-bit of the mapping.
        c_bit: bool,
        /// Its privilege level.
        vmpl: usize,
    },
}

/// One access.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Who.
    pub who: Who,
    /// What.
    pub doing: Doing,
    /// At CPL 3.
    pub user: bool,
    /// The leaf.
    pub leaf: Leaf,
    /// Where it goes.
    pub spa: u64,
}

/// A check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// RMP-Covered.
    Covered,
    /// Hypervisor-Owned.
    HypervisorOwned,
    /// Guest-Owned.
    GuestOwned,
    /// Reverse-Map.
    ReverseMap,
    /// Mutable.
    Mutable,
    /// Page-Size.
    PageSize,
    /// Validated.
    Validated,
    /// VMPL.
    Vmpl,
}

/// What becomes of the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It proceeds.
    Proceeds,
    /// The first check that failed. Validated: #VC. Everything else: #PF of the host, #NPF of a guest.
    Fails(Check),
}

/// "Guest private": every check, in the order of priority.
const PRIVATE: [Check; 7] = [
    Check::Covered,
    Check::GuestOwned,
    Check::ReverseMap,
    Check::Mutable,
    Check::PageSize,
    Check::Validated,
    Check::Vmpl,
];

impl Map {
    /// Decides an access that paging and nested paging allow.
    pub fn access(&self, access: &Use) -> Outcome {
        let checks: &[Check] = match (access.who, access.doing) {
            (Who::HostOrPlainGuest, Doing::Read | Doing::Fetch | Doing::TableWalk) => &[],
            (Who::HostOrPlainGuest, Doing::Write) => &[Check::HypervisorOwned],
            // Fetches and the guest's tables are private, whatever the C-bit says.
            (Who::SnpGuest { .. }, Doing::Fetch | Doing::TableWalk) => &PRIVATE,
            (Who::SnpGuest { c_bit: false, .. }, Doing::Read) => &[],
            (Who::SnpGuest { c_bit: false, .. }, Doing::Write) => &[Check::HypervisorOwned],
            (Who::SnpGuest { c_bit: true, .. }, Doing::Read | Doing::Write) => &PRIVATE,
        };
        match checks.iter().find(|&&check| !self.passes(check, access)) {
            None => Outcome::Proceeds,
            Some(&check) => Outcome::Fails(check),
        }
    }

    fn passes(&self, check: Check, access: &Use) -> bool {
        let frame = access.spa >> 12;
        let page = self.page(frame).copied().unwrap_or(Page::HYPERVISOR);
        let Who::SnpGuest { asid, gpa, vmpl, .. } = access.who else {
            return self.hypervisor_owned(frame, access.leaf);
        };
        match check {
            Check::HypervisorOwned => self.hypervisor_owned(frame, access.leaf),
            Check::Covered => self.page(frame).is_some(),
            Check::GuestOwned => page.asid == asid,
            Check::ReverseMap => page.gpa >> 12 == gpa >> 12,
            Check::Mutable => !page.immutable,
            Check::PageSize => page.large == (access.leaf != Leaf::Small),
            Check::Validated => page.validated,
            Check::Vmpl => {
                let mask = page.masks[vmpl];
                let read = mask & 1 != 0;
                let write = mask & 2 != 0;
                match access.doing {
                    // A mask with W and without R fails every data access.
                    Doing::Read | Doing::TableWalk => read,
                    Doing::Write => read && write,
                    Doing::Fetch => mask & (if access.user { 4 } else { 8 }) != 0,
                }
            }
        }
    }

    /// Not covered, or not assigned; through 2 MiB or more, all 512.
    fn hypervisor_owned(&self, frame: u64, leaf: Leaf) -> bool {
        match leaf {
            Leaf::Small => self.page(frame).is_none_or(|page| !page.assigned),
            Leaf::Medium | Leaf::Huge => {
                self.region(frame).is_none_or(|region| region.iter().all(|page| !page.assigned))
            }
        }
    }

    /// VMRUN of an SNP-active guest: Covered, Guest-Owned, Mutable and VMSA of its VMSA.
    pub fn may_run(&self, spa: u64, asid: u32) -> bool {
        self.page(spa >> 12).is_some_and(|page| page.asid == asid && !page.immutable && page.vmsa)
    }
}
