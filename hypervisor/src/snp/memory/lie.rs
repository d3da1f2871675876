//! A host that lies: what it can do to a private page behind its guest's back.
//!
//! Modelled: a hypervisor with all the power that the architecture leaves it: RMPUPDATE and PSMASH, the nested tables, and
//! writes through its own mapping of all memory. It has no other: each function here does what such a host would execute,
//! and the same checks answer. Whether the guest notices is the processor's business.
//!
//! Always true: a lie changes entries of the RMP, leaves, or nothing. The bookkeeping of guest_memfd does not learn of it, so
//! that a leaf which shows another frame must go ([`Vm::zap_range`]) before the ordinary path answers a fault on its page.

use emu_core::defect::Defect;
use emu_core::memory::Key;
use emu_core::page::PAGE_SIZE;
use emu_core::sync::Task;
use emu_core::{Gfn, PageSize, Sfn};
use mmu::RmpCause;
use mmu::rmp::{RmpError, RmpPageSize, RmpUpdate};
use thiserror::Error;

use super::SnpMemory;
use crate::config::VmError;
use crate::flush::Owed;
use crate::tdp::LeafView;
use crate::vm::Vm;

/// Why a lie was not told.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LieError {
    /// There is nothing to lie about.
    #[error("no validated private page is mapped at guest frame {:#x}", gfn.raw())]
    NoPage {
        /// The guest frame.
        gfn: Gfn,
    },
    /// Leaves of different sizes cannot show each other's frames.
    #[error("guest frames {:#x} and {:#x} are mapped by leaves of different sizes", gfn.raw(), other.raw())]
    Sizes {
        /// One.
        gfn: Gfn,
        /// The other.
        other: Gfn,
    },
    /// #PF with the RMP bit: the processor refuses the host's write.
    #[error("the processor refuses the write: {0}")]
    Write(#[from] RmpCause),
    /// The instruction fails.
    #[error("the instruction fails: {0}")]
    Instruction(#[from] RmpError),
    /// The hypervisor could not even try.
    #[error(transparent)]
    Vm(#[from] VmError),
}

impl LieError {
    /// Whether the architecture stood against it, and not that there was nothing to do it to.
    pub const fn is_refusal(&self) -> bool {
        matches!(self, LieError::Write(_) | LieError::Instruction(_))
    }
}

impl Vm {
    /// Leaves that show validated private pages of the guest, ascending: its first frame and its size. A page without a leaf
    /// was not used since it was last unmapped, so that nobody could notice for long.
    ///
    /// # Errors
    /// [`LieError::Vm`]: the nested tables cannot be read.
    pub fn snp_mapped_pages(&self, task: &Task<'_>) -> Result<Vec<(Gfn, PageSize)>, LieError> {
        let Some(snp) = self.snp.as_deref() else { return Ok(Vec::new()) };
        let leaves = self.mmu.write(task).leaves().map_err(VmError::from)?;
        Ok(leaves.iter().filter(|leaf| snp.shows_own(leaf)).map(|leaf| (leaf.gfn, leaf.size)).collect())
    }

    /// What the host reads at private page `gfn`: ciphertext.
    ///
    /// # Errors
    /// [`LieError`].
    pub fn snp_read_ciphertext(&self, gfn: Gfn, task: &Task<'_>) -> Result<[u8; PAGE_SIZE], LieError> {
        let (snp, leaf) = self.lied_page(gfn, task)?;
        let sfn = frame_of(&leaf, gfn);
        let mut bytes = [0; PAGE_SIZE];
        match task.has(Defect::ScanBehindTranslations) {
            true => drop(snp.memory.rekey(sfn, Key::HOST)),
            false => snp.rmp.rekey(sfn, Key::HOST),
        }
        snp.memory.read(sfn.base(), &mut bytes).map_err(VmError::from)?;
        Ok(bytes)
    }

    /// Writes `bytes` to private page `gfn` through the host's mapping of it.
    ///
    /// # Errors
    /// [`LieError`].
    pub fn snp_host_write(&self, gfn: Gfn, bytes: &[u8; PAGE_SIZE], task: &Task<'_>) -> Result<(), LieError> {
        let (snp, leaf) = self.lied_page(gfn, task)?;
        let sfn = frame_of(&leaf, gfn);
        snp.rmp.check_host_write(sfn.base(), PageSize::Size4K)?;
        snp.rmp.rekey(sfn, Key::HOST);
        Ok(snp.memory.write(sfn.base(), bytes).map_err(VmError::from)?)
    }

    /// Lets the leaf of `gfn` show the frame of `other`, which keeps its own.
    ///
    /// # Errors
    /// [`LieError`].
    pub fn snp_remap(&self, gfn: Gfn, other: Gfn, task: &Task<'_>) -> Result<(), LieError> {
        let (of_gfn, of_other) = self.lied_pair(gfn, other, task)?;
        self.repoint(&[(of_gfn, of_other.sfn)], task)
    }

    /// Lets the leaves of `gfn` and `other` show each other's frames.
    ///
    /// # Errors
    /// [`LieError`].
    pub fn snp_swap(&self, gfn: Gfn, other: Gfn, task: &Task<'_>) -> Result<(), LieError> {
        let (of_gfn, of_other) = self.lied_pair(gfn, other, task)?;
        let (first, second) = (of_gfn.sfn, of_other.sfn);
        self.repoint(&[(of_gfn, second), (of_other, first)], task)
    }

    /// Gives the entry of `gfn` another size, while the leaf stays: PSMASH of one of 2M, RMPUPDATE to 2M of one of 4K.
    ///
    /// # Errors
    /// [`LieError`].
    pub fn snp_resize(&self, gfn: Gfn, task: &Task<'_>) -> Result<(), LieError> {
        let (snp, leaf) = self.lied_page(gfn, task)?;
        let sfn = frame_of(&leaf, gfn);
        let entry = snp.rmp.entry(sfn).ok_or(LieError::NoPage { gfn })?;
        match entry.page_size() {
            RmpPageSize::Size2M => Ok(snp.psmash(sfn, task)?),
            RmpPageSize::Size4K => {
                let (block, first) = (sfn.align_down(PageSize::Size2M), gfn.align_down(PageSize::Size2M));
                let whole = RmpUpdate::guest(snp.asid, first.base(), RmpPageSize::Size2M);
                Ok(snp.rmpupdate(block, whole, task)?)
            }
        }
    }

    /// Makes the page of `gfn`, or the 2M that its entry is for, the hypervisor's, while the leaf stays.
    ///
    /// # Errors
    /// [`LieError`].
    pub fn snp_drop(&self, gfn: Gfn, task: &Task<'_>) -> Result<(), LieError> {
        let (snp, leaf) = self.lied_page(gfn, task)?;
        let sfn = frame_of(&leaf, gfn);
        let size = snp.rmp.entry(sfn).ok_or(LieError::NoPage { gfn })?.page_size();
        Ok(snp.rmpupdate(sfn.align_down(size.page_size()), RmpUpdate::hypervisor(size), task)?)
    }

    fn lied_page(&self, gfn: Gfn, task: &Task<'_>) -> Result<(&SnpMemory, LeafView), LieError> {
        let snp = self.snp.as_deref().ok_or(LieError::NoPage { gfn })?;
        let leaves = self.mmu.write(task).leaves().map_err(VmError::from)?;
        let covers = |leaf: &LeafView| leaf.gfn == gfn.align_down(leaf.size) && snp.shows_own(leaf);
        let leaf = leaves.into_iter().find(covers).ok_or(LieError::NoPage { gfn })?;
        Ok((snp, leaf))
    }

    fn lied_pair(&self, gfn: Gfn, other: Gfn, task: &Task<'_>) -> Result<(LeafView, LeafView), LieError> {
        let ((_, one), (_, two)) = (self.lied_page(gfn, task)?, self.lied_page(other, task)?);
        if one.size != two.size {
            return Err(LieError::Sizes { gfn, other });
        }
        Ok((one, two))
    }

    fn repoint(&self, changes: &[(LeafView, Sfn)], task: &Task<'_>) -> Result<(), LieError> {
        let tables = self.mmu.write(task);
        let mut owed = Owed::default();
        let done = changes.iter().try_for_each(|(leaf, head)| tables.repoint(leaf, *head, &mut owed, task));
        self.flush(&owed, task);
        Ok(done.map_err(VmError::from)?)
    }
}

impl SnpMemory {
    /// Whether `leaf` shows a page that the guest has validated, at its place. Save areas are left alone: a processor runs
    /// from them.
    fn shows_own(&self, leaf: &LeafView) -> bool {
        let own = |entry: &mmu::rmp::RmpEntry| self.is_at(*entry, leaf.gfn) && entry.validated() && !entry.vmsa();
        self.rmp.entry(leaf.sfn).as_ref().is_some_and(own)
    }
}

/// The frame behind `gfn`, which `leaf` covers.
fn frame_of(leaf: &LeafView, gfn: Gfn) -> Sfn {
    Sfn::new(leaf.sfn.raw() + (gfn.raw() - leaf.gfn.raw()))
}
