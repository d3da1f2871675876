//! What stands between a page that both stages of translation allow and the access to it: the RMP, and the key.
//!
//! Modelled: which checks apply to whom, what they leave for a TLB to remember, and under which key memory is accessed.
//! Source: AMD APM vol. 2, "RMP and VMPL Access Checks", "Encrypted Memory". [`Protection`] has two forms, chosen when registers are prepared for translating: [`Open`] checks nothing
//! and costs nothing; [`Guarded`] is for a machine with an RMP in force, and for SNP guests, whose accesses have a C-bit.
//!
//! Always true: a verdict allows no more than what a check of its own would allow under the same effective C-bit, so that it
//! can be cached in place of the check until [`crate::rmp::RmpChanges`] names the page.

use emu_core::memory::Key;
use emu_core::sev::CBit;
use emu_core::{Access, AccessKind, Gpa, PageSize, Privilege, Spa};

use crate::nested::Effects;
use crate::rmp::{GuestAccess, Rmp, RmpRefusal, VmplPermissions};
use crate::stage2::{Asid, SnpGuest};
use crate::translation::PageFlags;

/// Whose accesses are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accessor {
    /// The host, or a guest that is not SNP-active: what it writes must be the hypervisor's.
    Plain,
    /// An SNP-active guest.
    Snp(Asid, SnpGuest),
}

impl Accessor {
    /// The effective C-bit of an access through a page whose leaf says `leaf`: fetches are private in any case.
    #[inline]
    pub(crate) const fn effective(self, leaf: CBit, kind: AccessKind) -> CBit {
        match (self, kind) {
            (Accessor::Plain, _) => CBit::Clear,
            (Accessor::Snp(..), AccessKind::Execute) => CBit::Set,
            (Accessor::Snp(..), AccessKind::Read | AccessKind::Write) => leaf,
        }
    }

    /// The key of an access with this effective C-bit. An ASID that no key belongs to owns no page either.
    #[inline]
    pub(crate) fn key(self, effective: CBit) -> Key {
        match (self, effective) {
            (Accessor::Snp(asid, _), CBit::Set) => Key::of_asid(asid.0).unwrap_or(Key::HOST),
            (Accessor::Snp(..), CBit::Clear) | (Accessor::Plain, _) => Key::HOST,
        }
    }
}

/// A page of memory as an access reaches it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) spa: Spa,
    /// Without the C-bit.
    pub(crate) gpa: Gpa,
    /// Size of the leaf that gave the system physical address.
    pub(crate) mapped: PageSize,
}

/// What an access that is allowed leaves behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verdict {
    /// How far it reaches at most.
    pub(crate) size: PageSize,
    /// Members of [`PageFlags::NESTED`]: every access under the same effective C-bit that would be allowed too.
    pub(crate) allows: PageFlags,
}

impl Verdict {
    const EVERYTHING: Verdict = Verdict { size: PageSize::Size1G, allows: PageFlags::NESTED };
}

/// See the module.
pub(crate) trait Protection {
    /// Whether it can refuse anything.
    const JUDGES: bool;
    /// [`Accessor::effective`].
    fn effective(&self, leaf: CBit, kind: AccessKind) -> CBit;
    /// Whether data of a page whose leaf says `leaf` is private.
    fn encrypts(&self, leaf: CBit) -> bool;
    /// Judges an access to memory.
    fn judge(&self, place: Place, access: Access, leaf: CBit) -> Result<Verdict, RmpRefusal>;
    /// Judges an access to an entry of the guest's own tables: a read, or a write where A or D is set.
    fn judge_table(&self, place: Place, kind: AccessKind) -> Result<(), RmpRefusal>;
    /// Prepares memory for reading an entry of the guest's tables in it.
    fn claim_table(&self, spa: Spa);
}

/// No RMP, no C-bit.
#[derive(Clone, Copy)]
pub(crate) struct Open;

impl Protection for Open {
    const JUDGES: bool = false;

    #[inline(always)]
    fn effective(&self, _leaf: CBit, _kind: AccessKind) -> CBit {
        CBit::Clear
    }
    #[inline(always)]
    fn encrypts(&self, _leaf: CBit) -> bool {
        false
    }
    #[inline(always)]
    fn judge(&self, _place: Place, _access: Access, _leaf: CBit) -> Result<Verdict, RmpRefusal> {
        Ok(Verdict::EVERYTHING)
    }
    #[inline(always)]
    fn judge_table(&self, _place: Place, _kind: AccessKind) -> Result<(), RmpRefusal> {
        Ok(())
    }
    #[inline(always)]
    fn claim_table(&self, _spa: Spa) {}
}

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Guarded<'a> {
    /// Absent where SNP is off and a guest has a C-bit nevertheless: then nothing is checked.
    pub(crate) rmp: Option<&'a Rmp>,
    pub(crate) accessor: Accessor,
    pub(crate) effects: Effects,
}

const EXECUTE: PageFlags = PageFlags::NESTED_EXECUTE.union(PageFlags::NESTED_EXECUTE_USER);

/// The largest page that a TLB holds while SNP is enabled.
fn piece(mapped: PageSize) -> PageSize {
    mapped.min(PageSize::Size2M)
}

impl Guarded<'_> {
    /// Hypervisor-Owned, for a write; what else may be done with the page is `others`.
    fn judge_shared(rmp: &Rmp, place: Place, kind: AccessKind, others: PageFlags) -> Result<Verdict, RmpRefusal> {
        let mut allows = others;
        match rmp.check_host_write(place.spa, place.mapped) {
            Ok(()) => {}
            Err(cause) if kind == AccessKind::Write => return Err(cause.into()),
            Err(_) => allows.remove(PageFlags::NESTED_WRITE),
        }
        Ok(Verdict { size: piece(place.mapped), allows })
    }

    /// Everything, in the order of the manual.
    fn judge_private(
        rmp: &Rmp,
        place: Place,
        (asid, guest): (Asid, SnpGuest),
        access: Access,
    ) -> Result<Verdict, RmpRefusal> {
        let Place { spa, gpa, mapped } = place;
        let access = GuestAccess { spa, gpa, mapped, asid, vmpl: guest.vmpl, c_bit: CBit::Set, access };
        let entry = rmp.check_private(&access)?;
        let permissions = entry.permissions(guest.vmpl);
        let mut allows = PageFlags::NESTED_DIRTY;
        let read_write = VmplPermissions::READ | VmplPermissions::WRITE;
        allows.set(PageFlags::NESTED_READ, permissions.contains(VmplPermissions::READ));
        allows.set(PageFlags::NESTED_WRITE, permissions.contains(read_write));
        allows.set(PageFlags::NESTED_EXECUTE, permissions.contains(VmplPermissions::EXECUTE_SUPERVISOR));
        allows.set(PageFlags::NESTED_EXECUTE_USER, permissions.contains(VmplPermissions::EXECUTE_USER));
        Ok(Verdict { size: entry.page_size().page_size(), allows })
    }
}

impl Protection for Guarded<'_> {
    const JUDGES: bool = true;

    #[inline]
    fn effective(&self, leaf: CBit, kind: AccessKind) -> CBit {
        self.accessor.effective(leaf, kind)
    }
    #[inline]
    fn encrypts(&self, leaf: CBit) -> bool {
        matches!(self.accessor, Accessor::Snp(..)) && leaf.is_set()
    }

    #[inline]
    fn judge(&self, place: Place, access: Access, leaf: CBit) -> Result<Verdict, RmpRefusal> {
        let Some(rmp) = self.rmp else { return Ok(Verdict::EVERYTHING) };
        match self.accessor {
            Accessor::Plain => Self::judge_shared(rmp, place, access.kind, PageFlags::NESTED),
            Accessor::Snp(..) if !self.effective(leaf, access.kind).is_set() => {
                Self::judge_shared(rmp, place, access.kind, PageFlags::NESTED - EXECUTE)
            }
            Accessor::Snp(asid, guest) => {
                let mut verdict = Self::judge_private(rmp, place, (asid, guest), access)?;
                if !leaf.is_set() {
                    // Data of this page is shared: what was judged holds for fetches alone.
                    verdict.allows &= EXECUTE;
                }
                Ok(verdict)
            }
        }
    }

    #[inline]
    fn judge_table(&self, place: Place, kind: AccessKind) -> Result<(), RmpRefusal> {
        let Some(rmp) = self.rmp else { return Ok(()) };
        match self.accessor {
            // An entry has the size of a 4 KiB page to the check, whatever maps it; reads are not checked.
            Accessor::Plain if kind == AccessKind::Read => Ok(()),
            Accessor::Plain => rmp.check_host_write(place.spa, PageSize::Size4K).map_err(RmpRefusal::from),
            Accessor::Snp(asid, guest) => {
                Self::judge_private(rmp, place, (asid, guest), Access::new(kind, Privilege::Supervisor)).map(|_| ())
            }
        }
    }

    #[inline]
    fn claim_table(&self, spa: Spa) {
        if let (Some(rmp), Effects::Live) = (self.rmp, self.effects) {
            rmp.rekey(spa.frame(), self.accessor.key(CBit::Set));
        }
    }
}
