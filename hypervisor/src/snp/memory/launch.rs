//! Pages of the launch image (`snp_launch_update`, and `SNP_LAUNCH_UPDATE` of the firmware).
//!
//! A page that is private and nobody's yet is filled, becomes the guest's and immutable (Pre-Guest), and is accepted by the
//! firmware in the guest's place; from then on it is the guest's like any other. What the firmware refuses goes back. Ranges
//! go by 2M where folio and policy allow it. What is measured is the caller's: [`Measure`] sees every 4 KiB in order.

use emu_core::event::Event;
use emu_core::memory::BusError;
use emu_core::page::PAGE_SIZE;
use emu_core::sync::Task;
use emu_core::{Errno, Gfn, Gpa, PageSize, Sfn, Spa};
use gmem::{GetError, OutOfMemory};
use mmu::rmp::{FirmwareCommand, FirmwareRefused, RmpPageSize, RmpUpdate, VmplPermissions, Vmsa};
use thiserror::Error;

use super::{AssignError, RmpSizes, SnpMemory, count};
use crate::fault::back::Origin;
use crate::fault::level;
pub use crate::snp::launch::PageType as SnpPageType;
use crate::snp::launch::VMSA_GPA;
use crate::vm::Vm;

const M2: u64 = PageSize::Size2M.frames();

/// What the guest finds in pages of the launch image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchContent<'a> {
    /// These bytes: whole pages.
    Bytes(&'a [u8]),
    /// Zeros, in so many 4 KiB pages.
    Zero {
        /// How many.
        nr_pages: u64,
    },
}

/// Pages of one type that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnpLaunchUpdate<'a> {
    /// First guest frame.
    pub first: Gfn,
    /// What is in them.
    pub content: LaunchContent<'a>,
    /// Their type.
    pub page_type: SnpPageType,
    /// What VMPL 1 to 3 may do with them; VMPL 0 may do everything.
    pub permissions: [VmplPermissions; 3],
}

/// A page that the firmware accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchedPage<'a> {
    /// Where the guest has it.
    pub gpa: Gpa,
    /// Its type.
    pub page_type: SnpPageType,
    /// Its 4 KiB; `None` for zeros.
    pub bytes: Option<&'a [u8]>,
    /// What VMPL 1 to 3 may do with it.
    pub permissions: [VmplPermissions; 3],
}

/// Who measures what is launched, in 4 KiB in ascending order.
pub type Measure<'m> = dyn FnMut(&LaunchedPage<'_>) + 'm;

/// What VMPL 1 to 3 may do with save areas.
const NO_PERMISSIONS: [VmplPermissions; 3] = [VmplPermissions::empty(); 3];

/// Why a page was not launched; those before it were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LaunchError {
    /// The VM has no reverse map.
    #[error("the VM is no SNP guest")]
    NotSnp,
    /// `EINVAL`: nothing, not whole pages, or zeros for a type that has contents.
    #[error("{len_bytes:#x} bytes are no pages of type {page_type:?}")]
    BadContent {
        /// How much was given.
        len_bytes: u64,
        /// As what.
        page_type: SnpPageType,
    },
    /// `EINVAL`.
    #[error("no memslot on guest_memfd holds {gfn:?}")]
    NoGmem {
        /// The guest frame.
        gfn: Gfn,
    },
    /// `EINVAL`.
    #[error("{gfn:?} is shared memory, which is not launched")]
    Shared {
        /// The guest frame.
        gfn: Gfn,
    },
    /// `EEXIST`: the page was launched before.
    #[error("{gfn:?} is assigned to a guest already")]
    Assigned {
        /// The guest frame.
        gfn: Gfn,
    },
    /// The page has no memory.
    #[error(transparent)]
    Backing(#[from] GetError),
    /// No memory for a save area.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The page could not be given to the firmware.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// The firmware refused the page.
    #[error("the firmware refused {gfn:?}: {cause}")]
    Firmware {
        /// The guest frame.
        gfn: Gfn,
        /// Its status.
        cause: FirmwareRefused,
    },
    /// A page lies outside system memory.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl LaunchError {
    /// What the ioctl returns.
    pub const fn errno(&self) -> Errno {
        match self {
            LaunchError::NotSnp => Errno::NoTty,
            LaunchError::BadContent { .. } | LaunchError::NoGmem { .. } | LaunchError::Shared { .. } => Errno::Inval,
            LaunchError::Assigned { .. } => Errno::Exist,
            LaunchError::Backing(error) => error.errno(),
            LaunchError::OutOfMemory(_) => Errno::NoMem,
            LaunchError::Assign(_) => Errno::Inval,
            LaunchError::Firmware { .. } | LaunchError::Bus(_) => Errno::Io,
        }
    }
}

/// A block on its way into the guest.
#[derive(Clone, Copy)]
struct Block<'a> {
    gfn: Gfn,
    sfn: Sfn,
    size: RmpPageSize,
    page_type: SnpPageType,
    bytes: Option<&'a [u8]>,
    permissions: [VmplPermissions; 3],
}

impl SnpLaunchUpdate<'_> {
    fn nr_pages(&self) -> Result<u64, LaunchError> {
        let (len_bytes, whole) = match self.content {
            LaunchContent::Zero { nr_pages } => (
                nr_pages * PAGE_SIZE as u64,
                matches!(self.page_type, SnpPageType::Zero | SnpPageType::Normal | SnpPageType::Unmeasured),
            ),
            LaunchContent::Bytes(bytes) => {
                (bytes.len() as u64, bytes.len().is_multiple_of(PAGE_SIZE) && self.page_type != SnpPageType::Zero)
            }
        };
        // Save areas are no memory of the guest's: [`Vm::snp_launch_vmsa`].
        let fits = self.first.raw().checked_add(len_bytes / PAGE_SIZE as u64).is_some();
        match whole && fits && len_bytes > 0 && self.page_type != SnpPageType::Vmsa {
            true => Ok(len_bytes / PAGE_SIZE as u64),
            false => Err(LaunchError::BadContent { len_bytes, page_type: self.page_type }),
        }
    }

    /// The bytes of `nr` pages after `done`.
    fn bytes(&self, done: u64, nr: u64) -> Option<&[u8]> {
        match self.content {
            LaunchContent::Zero { .. } => None,
            LaunchContent::Bytes(bytes) => {
                let at = done as usize * PAGE_SIZE;
                bytes.get(at..at + nr as usize * PAGE_SIZE)
            }
        }
    }
}

impl Vm {
    /// Fills private pages of the guest, makes them its own and accepts them in its place. `measure` learns of each 4 KiB.
    ///
    /// # Errors
    /// [`LaunchError`]; what was launched before the page that failed stays launched.
    pub fn snp_launch_update(
        &self,
        update: &SnpLaunchUpdate<'_>,
        measure: &mut Measure<'_>,
        task: &Task<'_>,
    ) -> Result<(), LaunchError> {
        let snp = self.snp.as_deref().ok_or(LaunchError::NotSnp)?;
        let nr_pages = update.nr_pages()?;
        let mut done = 0;
        while done < nr_pages {
            done += self.launch_block(snp, update, (done, nr_pages), measure, task)?;
        }
        Ok(())
    }

    /// Launches the next page, or the next 2M; how many pages that was.
    fn launch_block(
        &self,
        snp: &SnpMemory,
        update: &SnpLaunchUpdate<'_>,
        (done, nr_pages): (u64, u64),
        measure: &mut Measure<'_>,
        task: &Task<'_>,
    ) -> Result<u64, LaunchError> {
        let gfn = Gfn::new(update.first.raw() + done);
        let slots = self.slots.read(task);
        let slot = slots.lookup(gfn).ok_or(LaunchError::NoGmem { gfn })?;
        let (inode, index) = slot.gmem_page(gfn).ok_or(LaunchError::NoGmem { gfn })?;
        // Nobody takes the folio or makes it shared meanwhile.
        let exclusive = inode.exclusive(task);
        if !self.slot_attribute(slot, gfn, task).is_private() {
            return Err(LaunchError::Shared { gfn });
        }
        let was_there = inode.peek(index, task).is_some();
        let folio = exclusive.get_folio(&self.host, index, task)?;
        let allowed = level::allowed_by_memory(self, slot, gfn, folio, Origin::Gmem, task);
        let large = snp.sizes != RmpSizes::Only4K
            && allowed >= PageSize::Size2M
            && gfn.is_aligned(PageSize::Size2M)
            && nr_pages - done >= M2
            && matches!(update.page_type, SnpPageType::Normal | SnpPageType::Zero | SnpPageType::Unmeasured)
            && snp.is_free(folio.sfn);
        let size = if large { RmpPageSize::Size2M } else { RmpPageSize::Size4K };
        let bytes = update.bytes(done, size.frames());
        let block =
            Block { gfn, sfn: folio.sfn, size, page_type: update.page_type, bytes, permissions: update.permissions };
        if snp.rmp.entry(folio.sfn).is_none_or(|entry| entry.assigned()) {
            return Err(LaunchError::Assigned { gfn });
        }
        match bytes {
            Some(bytes) => self.memory().write(folio.sfn.base(), bytes)?,
            // A folio that has just come reads as zero.
            None if !was_there => {}
            None => self.memory().discard(folio.sfn.base(), size.frames() * PAGE_SIZE as u64)?,
        }
        self.host.assign_block(folio.sfn, size.page_size(), task);
        snp.launch(&block, Vmsa::No, task).inspect_err(|_| self.host.keep_block(folio.sfn, size.page_size(), task))?;
        for n in 0..size.frames() {
            let bytes = bytes.and_then(|bytes| bytes.get(n as usize * PAGE_SIZE..(n as usize + 1) * PAGE_SIZE));
            let gpa = gfn.base().wrapping_add(n * PAGE_SIZE as u64);
            measure(&LaunchedPage { gpa, page_type: update.page_type, bytes, permissions: update.permissions });
        }
        Ok(size.frames())
    }

    /// Makes a processor's first save area: a page of the kernel that the guest owns at an address of no memory
    /// (`snp_launch_update_vmsa`), for the VMCB to point at. It never lies on a boundary of 2M, as no page in use by a
    /// processor may (`snp_alloc_vmsa_page`).
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn snp_launch_vmsa(
        &self,
        bytes: &[u8; PAGE_SIZE],
        measure: &mut Measure<'_>,
        task: &Task<'_>,
    ) -> Result<Spa, LaunchError> {
        let snp = self.snp.as_deref().ok_or(LaunchError::NotSnp)?;
        let spa = {
            let mut host = self.host.lock(task);
            let mut spa = host.alloc_table()?;
            if spa.is_aligned(PageSize::Size2M) {
                let other = host.alloc_table();
                host.free_table(spa);
                spa = other?;
            }
            spa
        };
        let gfn = VMSA_GPA.frame();
        let block = Block {
            gfn,
            sfn: spa.frame(),
            size: RmpPageSize::Size4K,
            page_type: SnpPageType::Vmsa,
            bytes: Some(bytes),
            permissions: NO_PERMISSIONS,
        };
        let launched = self.memory().write(spa, bytes).map_err(LaunchError::from);
        if let Err(error) = launched.and_then(|()| snp.launch(&block, Vmsa::Yes, task)) {
            // A page that the firmware kept is lost.
            if self.may_host_write(spa, PAGE_SIZE) {
                self.host.lock(task).free_table(spa);
            }
            return Err(error);
        }
        snp.vmsas.lock(task).push(spa.frame());
        measure(&LaunchedPage {
            gpa: VMSA_GPA,
            page_type: SnpPageType::Vmsa,
            bytes: block.bytes,
            permissions: NO_PERMISSIONS,
        });
        Ok(spa)
    }
}

impl SnpMemory {
    /// RMPUPDATE to Pre-Guest and the firmware's command. What it refuses is taken back.
    fn launch(&self, block: &Block<'_>, vmsa: Vmsa, task: &Task<'_>) -> Result<(), LaunchError> {
        let &Block { gfn, sfn, size, page_type, permissions, .. } = block;
        let _alone = self.block(sfn, task);
        let pre_guest = RmpUpdate::pre_guest(self.asid, gfn.base(), size);
        self.rmpupdate(sfn, pre_guest, task).map_err(|cause| AssignError::Refused { sfn, gfn, cause })?;
        let command = FirmwareCommand::LaunchPage { asid: self.asid, size, vmsa, permissions };
        let launched = self.rmp.firmware(sfn.base(), command);
        let status = launched.err().map_or(0, FirmwareRefused::code);
        let page_type = page_type as u8;
        task.report(Event::LaunchUpdate { gfn, sfn, size: size.page_size(), page_type, status });
        if let Err(cause) = launched {
            if let Some(entry) = self.rmp.entry(sfn) {
                // A page that does not come back is immutable, and nobody's to use; its index is launched by nobody.
                let _ = self.take_back(sfn, entry, size, task);
            }
            return Err(LaunchError::Firmware { gfn, cause });
        }
        // The firmware encrypts in place.
        (0..size.frames()).for_each(|n| self.memory.set_key(Sfn::new(sfn.raw() + n), self.key));
        count(&self.counters.launched_pages, size.frames());
        Ok(())
    }
}
