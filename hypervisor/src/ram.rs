//! Guest RAM: one guest_memfd behind all of it, alone or beside the VMM's own memory.

use emu_core::Hva;
use emu_core::sync::Task;
use gmem::mm::{MapRequest, Prot, Sharing, ThpChoice, What};
use gmem::{GmemFlags, SlotId};

use crate::config::VmError;
use crate::kind::VmKind;
use crate::memslot::{MemFd, MemSlotSpec, SlotFlags, UserMemoryRegion2};
use crate::plan::RamLayout;
use crate::vm::{GmemId, Vm};

/// Where the VMM has the shared side of RAM in its address space ([`Vm::add_two_sided_ram`]).
pub const RAM_HVA: Hva = Hva::new(0x1000_0000_0000);

impl Vm {
    /// Guest RAM: one guest_memfd, shared with the host (private to begin with for an SNP guest), and a memslot for each part,
    /// numbered from `first_id`. All or nothing.
    pub fn add_ram(&self, layout: &RamLayout, first_id: SlotId, task: &Task<'_>) -> Result<GmemId, VmError> {
        let flags = match self.kind {
            VmKind::Default | VmKind::SwProtected => GmemFlags::MMAP | GmemFlags::INIT_SHARED,
            VmKind::Snp => GmemFlags::MMAP,
        };
        let gmem = self.create_guest_memfd(layout.inode_bytes, flags.bits(), task)?;
        self.add_ranges(layout, first_id, gmem, task, |n| {
            let (range, flags) = (layout.ranges[n], SlotFlags::empty());
            let (id, offset_bytes) = (nth(first_id, n), range.offset_bytes);
            let spec = MemSlotSpec { id, gpa: range.gpa, len_bytes: range.len_bytes, flags, gmem, offset_bytes };
            self.add_memslot(&spec, task)
        })
    }

    /// Guest RAM with two sides, as VMMs have it up to 7.3: shared pages are anonymous memory of the VMM's at [`RAM_HVA`],
    /// private ones lie in a guest_memfd that the host cannot map. All or nothing. The VM must say who may use which page:
    /// a generation whose inodes do so has one side only.
    ///
    /// # Errors
    /// What a memslot or the VMM's mapping is refused for.
    pub fn add_two_sided_ram(&self, layout: &RamLayout, first_id: SlotId, task: &Task<'_>) -> Result<GmemId, VmError> {
        let what = What::Anonymous { thp: ThpChoice::Never };
        let (len_bytes, prot) = (layout.inode_bytes, Prot::READ_WRITE);
        let request = MapRequest { at: RAM_HVA, len_bytes, prot, sharing: Sharing::Private, what };
        self.mm().map(request, task)?;
        let unmap = |error| {
            // The error that counts is the first.
            let _ = self.mm().munmap(RAM_HVA, len_bytes, self.kernel(task));
            error
        };
        let gmem = self.create_guest_memfd(len_bytes, GmemFlags::empty().bits(), task).map_err(unmap)?;
        let added = self.add_ranges(layout, first_id, gmem, task, |n| {
            let range = layout.ranges[n];
            let region = UserMemoryRegion2 {
                slot: nth(first_id, n).0.into(),
                flags: SlotFlags::GUEST_MEMFD.bits(),
                guest_phys_addr: range.gpa.raw(),
                memory_size: range.len_bytes,
                userspace_addr: RAM_HVA.raw() + range.offset_bytes,
                guest_memfd_offset: range.offset_bytes,
                guest_memfd: MemFd::Gmem(gmem),
            };
            self.set_user_memory_region2(&region, task).map(|_| ())
        });
        added.map_err(unmap)
    }

    /// Adds the memslots of each range by `add`, or takes back those that came and the inode.
    fn add_ranges(
        &self,
        layout: &RamLayout,
        first_id: SlotId,
        gmem: GmemId,
        task: &Task<'_>,
        add: impl Fn(usize) -> Result<(), VmError>,
    ) -> Result<GmemId, VmError> {
        for n in 0..layout.ranges.len() {
            if let Err(error) = add(n) {
                for n in 0..n {
                    self.remove_memslot(nth(first_id, n), task)?;
                }
                self.close_guest_memfd(gmem, task)?;
                return Err(error);
            }
        }
        Ok(gmem)
    }
}

fn nth(first: SlotId, n: usize) -> SlotId {
    SlotId(first.0.saturating_add(n as u16))
}
