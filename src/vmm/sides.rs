//! RAM with two sides, as VMMs have it up to Linux 7.3: shared pages are the VMM's own memory, which `userspace_addr` of
//! the memslot shows, private ones lie in a guest_memfd that nobody on the host can map.
//!
//! A conversion changes what the guest sees at an address; KVM moves no byte. This VMM carries the bytes over before it
//! sets the attribute, as far as the policy of guest_memfd preserves them, so that a guest cannot tell two sides from
//! conversion in place, and then gives back the side that is not used any more (as QEMU does, `ram_block_discard_range`).
//! Nobody could carry over what is encrypted: such VMs do not come here.
//!
//! Always true between two calls: a page has memory on the side that the guest sees, or on none; but for what a device
//! wrote to a page that was private, which goes to the shared side (as in KVM) and is lost.

use emu_core::sync::Task;
use emu_core::{Gfn, Hva, PageSize};
use gmem::mm::{Advice, UserAccess};
use gmem::policy::Content;
use gmem::{PageIndex, PageRange};
use hypervisor::{GmemId, Shareability, Vm, VmError};

use super::hypercall::GpaRange;
use super::memory::{MemoryError, Part, set_attributes};

const PAGE: u64 = PageSize::Size4K.bytes();

/// A part of RAM with both of its sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sides {
    range: GpaRange,
    gmem: GmemId,
    first: PageIndex,
    hva: Hva,
}

impl Sides {
    /// Of a part of a memslot, if it has two.
    pub(super) fn of(part: &Part) -> Option<Sides> {
        let Part { gmem, offset_bytes, range, user, .. } = *part;
        user.map(|hva| Sides { range, gmem, first: PageIndex(offset_bytes / PAGE), hva })
    }

    fn nr_pages(self) -> u64 {
        self.range.len_bytes / PAGE
    }

    /// `nr_pages` of it from its `n`-th on.
    fn part(self, n: u64, nr_pages: u64) -> Sides {
        Sides {
            range: GpaRange { gpa: self.range.gpa.wrapping_add(n * PAGE), len_bytes: nr_pages * PAGE },
            first: PageIndex(self.first.0 + n),
            hva: Hva::new(self.hva.raw() + n * PAGE),
            ..self
        }
    }

    /// Its parts that the guest sees on one side each.
    fn runs(self, vm: &Vm, task: &Task<'_>) -> Vec<(Sides, Shareability)> {
        let first = self.range.gpa.frame().raw();
        let of = |n| vm.memory_attribute(Gfn::new(first + n), task);
        let mut runs: Vec<(u64, u64, Shareability)> = Vec::new();
        for n in 0..self.nr_pages() {
            match runs.last_mut() {
                Some((_, nr, same)) if *same == of(n) => *nr += 1,
                _ => runs.push((n, 1, of(n))),
            }
        }
        runs.into_iter().map(|(n, nr_pages, state)| (self.part(n, nr_pages), state)).collect()
    }

    /// What one page of a side holds; `None` where it has no memory.
    fn read(self, side: Shareability, vm: &Vm, task: &Task<'_>) -> Result<Option<Box<[u8]>>, MemoryError> {
        if side.is_private() {
            return super::act::page_bytes(vm, self.gmem, self.first, task);
        }
        if vm.mm().table().leaf(self.hva.frame(), task).is_none() {
            return Ok(None);
        }
        let mut bytes = vec![0; PAGE as usize].into_boxed_slice();
        vm.mm().read(self.hva, &mut bytes, vm.kernel(task))?;
        Ok(Some(bytes))
    }

    /// Fills one page of a side.
    fn write(self, side: Shareability, bytes: &[u8], vm: &Vm, task: &Task<'_>) -> Result<(), MemoryError> {
        if !side.is_private() {
            return Ok(vm.mm().write(self.hva, bytes, vm.kernel(task))?);
        }
        let inode = vm.gmem(self.gmem, task).ok_or(VmError::NoSuchGmem { id: self.gmem })?;
        let shared = inode.shared(task);
        let backed = shared.get_folio(vm.host(), self.first, task).map_err(VmError::from)?;
        // The lock is held: the folio stays where it is until its bytes are there.
        Ok(vm.memory().write(backed.sfn.base(), bytes).map_err(VmError::from)?)
    }

    /// Gives the memory of a side back: it reads as zero.
    fn discard(self, side: Shareability, vm: &Vm, task: &Task<'_>) -> Result<(), MemoryError> {
        if side.is_private() {
            return Ok(vm.punch_hole(self.gmem, self.first.0 * PAGE, self.range.len_bytes, task)?);
        }
        vm.mm().madvise(self.hva, self.range.len_bytes, Advice::DontNeed, vm.kernel(task))?;
        Ok(())
    }

    /// Carries the bytes of a part over to the side that is not seen yet.
    fn carry(self, from: Shareability, to: Shareability, vm: &Vm, task: &Task<'_>) -> Result<(), MemoryError> {
        for n in 0..self.nr_pages() {
            let page = self.part(n, 1);
            if let Some(bytes) = page.read(from, vm, task)? {
                page.write(to, &bytes, vm, task)?;
            }
        }
        Ok(())
    }
}

/// Makes a part private or shared. An error leaves the runs before it changed.
pub(super) fn convert(vm: &Vm, part: Sides, to: Shareability, task: &Task<'_>) -> Result<(), MemoryError> {
    let inode = vm.gmem(part.gmem, task).ok_or(VmError::NoSuchGmem { id: part.gmem })?;
    let content = if to.is_private() { inode.policy().to_private } else { inode.policy().to_shared };
    for (run, from) in part.runs(vm, task).into_iter().filter(|(_, from)| *from != to) {
        // A device may have left something there.
        run.discard(to, vm, task)?;
        let carried = if content == Content::Preserve { run.carry(from, to, vm, task) } else { Ok(()) };
        let changed = carried.and_then(|()| set_attributes(vm, run.range, to, task));
        // What is not seen goes: the old side, or after an error the new one.
        run.discard(if changed.is_ok() { from } else { to }, vm, task)?;
        changed?;
    }
    Ok(())
}

/// Both sides of a part read as zero.
pub(super) fn punch(vm: &Vm, part: Sides, task: &Task<'_>) -> Result<(), MemoryError> {
    Shareability::ALL.into_iter().try_for_each(|side| part.discard(side, vm, task))
}

/// Every page of a part gets memory on the side that the guest sees.
pub(super) fn allocate(vm: &Vm, part: Sides, task: &Task<'_>) -> Result<(), MemoryError> {
    for (run, side) in part.runs(vm, task) {
        if side.is_private() {
            let inode = vm.gmem(run.gmem, task).ok_or(VmError::NoSuchGmem { id: run.gmem })?;
            let range = PageRange { first: run.first, nr_pages: run.nr_pages() };
            inode.shared(task).allocate(vm.host(), range, task).map_err(VmError::from)?;
            continue;
        }
        for n in 0..run.nr_pages() {
            vm.mm().with_page(run.part(n, 1).hva, UserAccess::Write, vm.kernel(task), &mut |_| Ok(()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::memory;
    use super::*;
    use emu_core::Gpa;
    use emu_core::memory::SystemMemory;
    use gmem::Generation;
    use hypervisor::check::CheckHistory;
    use hypervisor::{PagePolicy, RamLayout, SlotId, SystemMemoryPlan, VmConfig, VmKind};

    const QUIET: &Task<'static> = &Task::QUIET;
    const RANGE: GpaRange = GpaRange { gpa: Gpa::new(4 * PAGE), len_bytes: 2 * PAGE };

    fn two_sided() -> Vm {
        let layout = RamLayout::pc(16 * PAGE, PageSize::Size4K).expect("it is not too much");
        let policy = PagePolicy::of(PageSize::Size4K);
        let plan = SystemMemoryPlan::for_guest(2 * layout.inode_bytes, policy);
        let memory = SystemMemory::flat(plan.arena_bytes).expect("the host has a little memory");
        let (kind, gmem) = (VmKind::SwProtected, Generation::V7_3.policy());
        let config = VmConfig { kind, gmem, maxphyaddr: 36, ..VmConfig::new(policy, plan.host) };
        let vm = Vm::new(memory, &config).expect("the plan fits");
        vm.add_two_sided_ram(&layout, SlotId(0), QUIET).expect("the layout fits");
        vm
    }

    /// What the first page of the range holds on each side.
    fn sides(vm: &Vm) -> [Option<u8>; 2] {
        let parts = memory::parts(vm, RANGE, QUIET).expect("it is memory");
        let part = Sides::of(&parts[0]).expect("it has two sides");
        [Shareability::SHARED, Shareability::PRIVATE]
            .map(|side| part.part(0, 1).read(side, vm, QUIET).expect("it can be read").map(|bytes| bytes[7]))
    }

    #[test]
    fn a_conversion_carries_the_bytes_over_and_gives_the_other_side_back() {
        let vm = two_sided();
        vm.guest_write(RANGE.gpa, &[0x5a; 8], QUIET).expect("it is shared");
        assert_eq!(sides(&vm), [Some(0x5a), None]);
        for _ in 0..2 {
            memory::convert(&vm, RANGE, Shareability::PRIVATE, QUIET).expect("there is memory");
            assert_eq!(sides(&vm), [None, Some(0x5a)]);
        }
        assert!(vm.memory_attribute(RANGE.gpa.frame(), QUIET).is_private());
        memory::convert(&vm, RANGE, Shareability::SHARED, QUIET).expect("there is memory");
        assert_eq!(sides(&vm), [Some(0x5a), None]);
        let parts = memory::parts(&vm, RANGE, QUIET).expect("it is memory");
        let both = Sides::of(&parts[0]).expect("it has two sides");
        punch(&vm, both, QUIET).expect("whole pages");
        assert_eq!(sides(&vm), [None, None]);
        allocate(&vm, both, QUIET).expect("there is memory");
        assert_eq!(sides(&vm), [Some(0), None]);
        vm.check_quiescent(&mut CheckHistory::new()).expect("nothing is broken");
    }

    #[test]
    fn a_conversion_that_finds_no_memory_changes_nothing() {
        let vm = two_sided();
        vm.guest_write(RANGE.gpa, &[0x5a; 8], QUIET).expect("it is shared");
        vm.host().lock(QUIET).occupy(u64::MAX);
        let refused = memory::convert(&vm, RANGE, Shareability::PRIVATE, QUIET);
        assert!(matches!(refused, Err(MemoryError::Refused(VmError::Backing(_)))), "{refused:?}");
        assert_eq!(sides(&vm), [Some(0x5a), None]);
        assert!(!vm.memory_attribute(RANGE.gpa.frame(), QUIET).is_private());
        vm.check_quiescent(&mut CheckHistory::new()).expect("nothing is broken");
    }
}
