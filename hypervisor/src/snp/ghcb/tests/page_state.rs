//! Buffers of page state changes.

use super::*;
use crate::snp::memory::PageStateChange;

impl Guest {
    /// A page state change over these entries, from `current` on; the buffer lies at the start of the shared buffer.
    fn page_state(&mut self, current: u16, entries: &[u64]) -> SnpAction {
        let at = PAGE + SHARED_BUFFER;
        let end = entries.len() as u16 - 1;
        let mut bytes = Vec::from(current.to_le_bytes());
        bytes.extend(end.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
        self.memory.0[at..at + bytes.len()].copy_from_slice(&bytes);
        self.put(Field::SW_SCRATCH, BUFFER);
        self.exit(ExitCode::PAGE_STATE_CHANGE, 0, 0)
    }

    fn current_entry(&self) -> u16 {
        self.quad(PAGE + SHARED_BUFFER) as u16
    }

    fn entry(&self, index: usize) -> u64 {
        self.quad(PAGE + SHARED_BUFFER + 8 + 8 * index)
    }
}

const fn entry(gfn: u64, operation: u64, size: PageSize) -> u64 {
    gfn << 12 | operation << 52 | (matches!(size, PageSize::Size2M) as u64) << 56
}
const SMASH: u64 = 3;

#[test]
fn entries_that_continue_one_another_are_one_run() {
    let mut guest = Guest::new();
    let (small, large) = (PageSize::Size4K, PageSize::Size2M);
    let entries = [
        entry(0x100, PRIVATE, small),
        entry(0x101, PRIVATE, small),
        entry(0x102, SHARED, small),
        entry(0x200, SHARED, large),
        entry(0x400, SHARED, large),
        entry(0x600, SHARED, small),
    ];
    let run = |start, frames, to, size| SnpAction::PageState(PageStateRun { start: Gfn::new(start), frames, to, size });
    let runs = [
        (run(0x100, 2, PageState::Private, small), 2),
        (run(0x102, 1, PageState::Shared, small), 3),
        (run(0x200, 1024, PageState::Shared, large), 5),
        (run(0x600, 1, PageState::Shared, small), 6),
    ];
    let mut action = guest.page_state(0, &entries);
    for (expected, current) in runs {
        assert_eq!(action, expected);
        action = guest.reply(GhcbReply::Done).unwrap();
        assert_eq!(guest.current_entry(), current);
    }
    assert_eq!((action, guest.info()), (RESUME, (0, 0)));
    for (index, &before) in entries.iter().enumerate() {
        let frames = if before >> 56 & 1 == 1 { 512 } else { 1 };
        assert_eq!(guest.entry(index), before | frames);
    }
}

#[test]
fn a_run_is_a_change_of_the_vms_memory() {
    let (start, size) = (Gfn::new(0x200), PageSize::Size2M);
    for (to, private) in [(PageState::Private, true), (PageState::Shared, false)] {
        let change = PageStateChange::from(PageStateRun { start, frames: 1024, to, size });
        assert_eq!((change.first, change.nr_pages, change.size), (start, 1024, size));
        assert_eq!(change.to.is_private(), private);
    }
}

#[test]
fn a_large_page_that_was_begun_goes_on_in_small_ones() {
    let mut guest = Guest::new();
    let entries = [entry(0x200, PRIVATE, PageSize::Size2M) | 500, entry(0x400, PRIVATE, PageSize::Size2M)];
    let first =
        PageStateRun { start: Gfn::new(0x200 + 500), frames: 12, to: PageState::Private, size: PageSize::Size4K };
    assert_eq!(guest.page_state(0, &entries), SnpAction::PageState(first));
    let second = PageStateRun { start: Gfn::new(0x400), frames: 512, size: PageSize::Size2M, ..first };
    assert_eq!(guest.reply(GhcbReply::Done), Ok(SnpAction::PageState(second)));
    assert_eq!(guest.reply(GhcbReply::Done), Ok(RESUME));
    assert_eq!((guest.entry(0) & 0xfff, guest.current_entry()), (512, 2));
}

#[test]
fn hints_and_finished_entries_are_passed_over() {
    let mut guest = Guest::new();
    let small = PageSize::Size4K;
    let entries =
        [entry(0x1, PRIVATE, small) | 1, entry(0x2, SMASH, small), entry(0x3, 15, small), entry(0x4, SHARED, small)];
    let run = PageStateRun { start: Gfn::new(4), frames: 1, to: PageState::Shared, size: small };
    assert_eq!(guest.page_state(0, &entries), SnpAction::PageState(run));
    assert_eq!(guest.current_entry(), 3);
    guest.reply(GhcbReply::Done).unwrap();
    assert_eq!((guest.info(), guest.current_entry()), ((0, 0), 4));
    assert_eq!((guest.page_state(7, &entries), guest.info(), guest.current_entry()), (RESUME, (0, 0), 7));
}

#[test]
fn buffers_that_make_no_sense_are_refused() {
    let mut guest = Guest::new();
    let bad = [
        entry(0x201, PRIVATE, PageSize::Size2M),
        entry(0x1, PRIVATE, PageSize::Size4K) | 2,
        entry(0x200, SHARED, PageSize::Size2M) | 513,
    ];
    for entry in bad {
        assert_eq!((guest.page_state(0, &[entry]), guest.info()), (RESUME, (0, 1 << 32 | 2)), "{entry:#x}");
    }
    let most = vec![entry(1, SMASH, PageSize::Size4K); PAGE_STATE_ENTRIES_MAX];
    assert_eq!(most.len(), 253);
    assert_eq!((guest.page_state(0, &most), guest.info()), (RESUME, (0, 0)));
    guest.page_state(0, &[0]);
    guest.memory.0[PAGE + SHARED_BUFFER + 2] = 253;
    guest.put(Field::SW_SCRATCH, BUFFER);
    assert_eq!((guest.exit(ExitCode::PAGE_STATE_CHANGE, 0, 0), guest.info()), (RESUME, (0, 1 << 32 | 1)));
    // A buffer that starts later has less room, down to none.
    let end = BUFFER + SHARED_BUFFER_BYTES as u64;
    for at in [end, end - 7, end - 8] {
        guest.put(Field::SW_SCRATCH, at);
        assert_eq!((guest.exit(ExitCode::PAGE_STATE_CHANGE, 0, 0), guest.info()), (RESUME, (0, 1 << 32 | 1)));
    }
}

#[test]
fn a_run_that_fails_ends_the_change_and_keeps_what_was_done() {
    let mut guest = Guest::new();
    let small = PageSize::Size4K;
    guest.page_state(0, &[entry(1, PRIVATE, small), entry(5, PRIVATE, small), entry(9, PRIVATE, small)]);
    guest.reply(GhcbReply::Done).unwrap();
    assert_eq!((guest.reply(GhcbReply::Refused), guest.info()), (Ok(RESUME), (0, 0x100 << 32)));
    assert_eq!(guest.current_entry(), 1);
    assert_eq!([0, 1, 2].map(|index| guest.entry(index) & 0xfff), [1, 0, 0]);
}
