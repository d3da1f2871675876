//! The properties that fuzzing checks: no text makes the reader of scripts panic, and no sequence of actions loses a byte.

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gpa, PageSize};
use gmem::{PageIndex, PageRange};
use hypervisor::check::CheckHistory;
use hypervisor::{
    FaultInput, FolioPolicy, GmemFlags, GmemId, HugeSize, MemSlotSpec, PagePolicy, Shareability, SlotFlags, SlotId,
    SystemMemoryPlan, VcpuId, Vm, VmConfig, VmKind,
};

use super::act::{Holdings, perform};
use super::hypercall::GpaRange;
use super::script::{Convert, GpaText, Nothing, Range, Script, ScriptError, SlotText, What};

const PAGE: u64 = PageSize::Size4K.bytes();
/// Bytes of an input that make one step.
const STEP: usize = 4;

/// Reads a script.
///
/// # Errors
/// What the reader said: any refusal is a good answer, as long as it says something.
///
/// # Panics
/// When a refusal is empty, or an action cannot say itself.
pub fn fuzz_script(input: &[u8]) -> Result<Script, ScriptError> {
    let script = Script::parse(&String::from_utf8_lossy(input));
    match &script {
        Ok(script) => assert!(script.actions.iter().all(|entry| !entry.what.to_string().is_empty())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    script
}

/// A VM of two memslots over one inode, with a plain model of every page's first word.
struct World {
    vm: Vm,
    gmem: GmemId,
    /// The word, and whether the page is private.
    model: Vec<(u64, Shareability)>,
    held: Holdings,
    /// Steps of the migration under way.
    rounds: u8,
}

/// The slots: first address and pages. The second begins in the middle of a large page.
const SLOTS: [(u64, u64); 2] = [(0, 1024), (0x100_0000, 300)];

impl World {
    fn new(pages: PageSize, task: &Task<'_>) -> World {
        // A pool's inode is whole huge pages, of which the second slot shows a part.
        let bytes = (SLOTS[0].1 * PAGE + SLOTS[1].1 * PAGE).next_multiple_of(PageSize::Size2M.bytes());
        let folios = match pages {
            PageSize::Size4K => FolioPolicy::Buddy { largest: pages },
            _ => FolioPolicy::Pool { size: HugeSize::Size2M },
        };
        let policy = PagePolicy { folios, max_level: PageSize::Size2M };
        let plan = SystemMemoryPlan::for_guest(bytes, policy);
        let memory = SystemMemory::flat(plan.arena_bytes).expect("the host gives address space");
        let config = VmConfig { kind: VmKind::SwProtected, ..VmConfig::new(policy, plan.host) };
        let vm = Vm::new(memory, &config).expect("the configuration is one");
        let flags = GmemFlags::MMAP | GmemFlags::INIT_SHARED;
        let gmem = vm.create_guest_memfd(bytes, flags.bits(), task).expect("the plan has room for it");
        let mut offset_bytes = 0;
        for (n, (gpa, pages)) in (0_u16..).zip(SLOTS) {
            let len_bytes = pages * PAGE;
            let (id, gpa) = (SlotId(n), Gpa::new(gpa));
            let spec = MemSlotSpec { id, gpa, len_bytes, flags: SlotFlags::empty(), gmem, offset_bytes };
            vm.add_memslot(&spec, task).expect("the slots are disjoint");
            offset_bytes += len_bytes;
        }
        let nr_pages = SLOTS.iter().map(|(_, pages)| *pages as usize).sum();
        World { vm, gmem, model: vec![(0, Shareability::SHARED); nr_pages], held: Holdings::default(), rounds: 0 }
    }

    /// A range of one slot, and the pages of the inode behind it.
    fn range(slot: u8, first: u8, len: u8) -> (GpaRange, core::ops::Range<usize>) {
        let n = usize::from(slot) % SLOTS.len();
        let (gpa, pages) = SLOTS[n];
        let first = u64::from(first) * 5 % pages;
        // A few pages, or many.
        let wanted = if len >= 0x80 { u64::from(len & 0x7f) * 9 } else { u64::from(len) };
        let len = wanted.clamp(1, pages - first);
        let before: u64 = SLOTS[..n].iter().map(|(_, pages)| pages).sum();
        let index = (before + first) as usize;
        let range = GpaRange { gpa: Gpa::new(gpa + first * PAGE), len_bytes: len * PAGE };
        (range, index..index + len as usize)
    }

    fn step(&mut self, step: [u8; STEP], task: &Task<'_>) {
        let [op, slot, first, len] = step;
        let (range, indices) = Self::range(slot, first, len);
        let at = Range::Gpa(range);
        let what = match op % 13 {
            0 => What::Punch(at),
            1 => What::Allocate(at),
            2 => What::Convert(Convert { range: at, to: Shareability::PRIVATE }),
            3 => What::Convert(Convert { range: at, to: Shareability::SHARED }),
            4 => What::Balloon(at),
            5 => What::Toggle(at),
            6 => What::Zap(GpaText(range)),
            7 => What::Replug(SlotText::from(SlotId(u16::from(slot) % SLOTS.len() as u16))),
            8 => return self.touch(range, indices, op, task),
            9 => What::ZapAll(Nothing {}),
            10 => return self.migrate(task),
            11 => What::Replug(SlotText::from(SlotId(0))),
            _ => What::ZapAllFast(Nothing {}),
        };
        let done = perform(&self.vm, &what, &mut self.held, task);
        assert!(done.is_ok(), "{what}: {done:?}");
        match what {
            What::Punch(_) => self.model[indices].iter_mut().for_each(|page| page.0 = 0),
            What::Convert(Convert { to, .. }) => self.model[indices].iter_mut().for_each(|page| page.1 = to),
            _ => {}
        }
    }

    /// A migration goes one step on.
    fn migrate(&mut self, task: &Task<'_>) {
        let what = match self.rounds {
            0 => What::LogStart(Nothing {}),
            1 | 2 => What::LogRound(Nothing {}),
            _ => What::LogStop(Nothing {}),
        };
        self.rounds = (self.rounds + 1) % 4;
        let done = perform(&self.vm, &what, &mut self.held, task);
        assert!(done.is_ok(), "{what}: {done:?}");
    }

    /// Every page of the range is faulted in as a guest would, and gets a word of its own.
    fn touch(&mut self, range: GpaRange, indices: core::ops::Range<usize>, salt: u8, task: &Task<'_>) {
        // The processor loads the root that it has not loaded yet.
        let _ = self.vm.take_root(VcpuId(0));
        for (n, index) in (0..).zip(indices) {
            let gpa = Gpa::new(range.gpa.raw() + n * PAGE);
            let answer = self.vm.handle_fault(VcpuId(0), FaultInput::new(gpa, AccessKind::Write), task);
            assert!(matches!(answer, Ok(hypervisor::Action::Resume(_))), "a fault at {gpa}: {answer:?}");
            let word = (index as u64 + 1) << 8 | u64::from(salt);
            let inode = self.vm.gmem(self.gmem, task).expect("the inode is there");
            let frame = inode.peek(PageIndex(index as u64), task).expect("the fault put a folio there").sfn;
            self.vm.memory().write(frame.base(), &word.to_le_bytes()).expect("a folio lies in system memory");
            self.model[index].0 = word;
        }
        let _ = self.vm.take_flush(VcpuId(0), task);
    }

    fn verify(&self, task: &Task<'_>) {
        let inode = self.vm.gmem(self.gmem, task).expect("the inode is there");
        let all = PageRange { first: PageIndex(0), nr_pages: self.model.len() as u64 };
        for (index, (word, state)) in (all.first.0..all.nr_pages).map(PageIndex).zip(&self.model) {
            assert_eq!(inode.attribute(index, task), *state, "who may use page {}", index.0);
            let mut bytes = [0; 8];
            if inode.peek(index, task).is_some() {
                let backed = inode.shared(task).get_folio(self.vm.host(), index, task).expect("it is there");
                self.vm.memory().read(backed.sfn.base(), &mut bytes).expect("a folio lies in system memory");
            }
            assert_eq!(u64::from_le_bytes(bytes), *word, "contents of page {}", index.0);
        }
    }
}

/// Does what `input` says to a software-protected VM: its first byte chooses the pages, each further four are an action
/// or a guest's writes.
///
/// # Panics
/// When an action that a correct host may do is refused, or a page's contents or attribute are not what they should be.
pub fn fuzz_actions(input: &[u8]) {
    let Some((pages, steps)) = input.split_first() else { return };
    let task = &Task::QUIET;
    let mut history = CheckHistory::new();
    let mut world = World::new(if pages % 2 == 0 { PageSize::Size4K } else { PageSize::Size2M }, task);
    for step in steps.as_chunks().0.iter().take(256) {
        world.step(*step, task);
        let seen = world.vm.check_quiescent(&mut history);
        assert!(seen.is_ok(), "after {step:?}: {seen:?}");
    }
    world.verify(task);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::memory::MemoryError;
    use emu_core::rng::{Consumer, Seed};

    fn corpus(target: &str) -> impl Iterator<Item = Vec<u8>> {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut files: Vec<_> =
            std::fs::read_dir(dir).expect("the corpus").map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty());
        files.into_iter().map(|path| std::fs::read(path).expect("a file of the corpus"))
    }

    #[test]
    fn the_corpus_of_scripts_is_read_and_so_is_every_beginning_of_it() {
        let mut good = 0;
        for text in corpus("script") {
            good += usize::from(fuzz_script(&text).is_ok());
            (0..text.len()).for_each(|len| drop(fuzz_script(&text[..len])));
        }
        assert!(good >= 3, "{good} of the corpus are scripts");
    }

    #[test]
    fn the_corpus_of_actions_loses_no_byte() {
        corpus("actions").for_each(|input| fuzz_actions(&input));
    }

    #[test]
    fn a_migration_finds_a_write_that_no_log_saw() {
        let task = &Task::QUIET;
        let mut world = World::new(PageSize::Size4K, task);
        let (range, pages) = World::range(0, 10, 4);
        world.touch(range, pages.clone(), 1, task);
        let step = |world: &mut World, what: What| perform(&world.vm, &what, &mut world.held, task);
        assert_eq!(step(&mut world, What::LogStart(Nothing {})), Ok(4 * PAGE), "what was there was copied");
        assert_eq!(step(&mut world, What::LogRound(Nothing {})), Ok(0), "nobody wrote");
        world.touch(range, pages.clone(), 2, task);
        assert_eq!(step(&mut world, What::LogRound(Nothing {})), Ok(4 * PAGE), "every page was written");
        let inode = world.vm.gmem(world.gmem, task).expect("the inode is there");
        let index = PageIndex(pages.start as u64 + 1);
        let frame = inode.peek(index, task).expect("it was touched").sfn;
        world.vm.memory().write(frame.base(), &[0xee]).expect("a folio lies in system memory");
        let refused = step(&mut world, What::LogStop(Nothing {})).expect_err("the copy is old");
        assert_eq!(refused.to_string(), MemoryError::NotLogged { gmem: world.gmem, index }.to_string());
        assert!(step(&mut world, What::LogStop(Nothing {})).is_err(), "the migration is over");
    }

    #[test]
    fn random_actions_lose_no_byte() {
        let mut stream = Seed(11).stream(Consumer::Vmm);
        for round in 0..40 {
            let len = 1 + 4 * (20 + round);
            let input: Vec<u8> = (0..len).map(|_| stream.below(256) as u8).collect();
            fuzz_actions(&input);
        }
    }
}
