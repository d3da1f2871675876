//! The buffer of a page state change (NAE event 8000_0010): a header, and entries with a GFN, an operation and progress.
//!
//! Source: GHCB specification, "SNP Page State Change"; Linux `arch/x86/kvm/svm/sev.c:snp_begin_psc`,
//! `snp_complete_one_psc`; on the guest's side `vmgexit_psc`, which refuses a hypervisor that goes back, changes the
//! reserved field or moves the end.
//!
//! Always true: the entries were copied once and are taken in order, so the work ends whatever the guest does to the
//! buffer meanwhile. Only the current entry of the header and the current page of finished entries are written.

use emu_core::{Gfn, Gpa, PageSize};

use super::action::{PageState, PageStateRun};
use super::layout::SHARED_BUFFER_BYTES;
use super::{GhcbMemory, GhcbUnreachable};

/// Bytes in the header: 16 bits current entry, 16 bits last entry, 32 bits reserved.
const HEADER_BYTES: usize = 8;
const ENTRY_BYTES: usize = 8;
/// As many entries as fit into the shared buffer behind a header.
pub const PAGE_STATE_ENTRIES_MAX: usize = (SHARED_BUFFER_BYTES - HEADER_BYTES) / ENTRY_BYTES;

/// SW_EXITINFO2 of a change that did not work.
pub(super) mod status {
    /// The header is wrong: the entries do not fit.
    pub(crate) const BAD_HEADER: u64 = 1 << 32 | 1;
    /// An entry is wrong: alignment or progress.
    pub(crate) const BAD_ENTRY: u64 = 1 << 32 | 2;
    /// The hypervisor could not do it.
    pub(crate) const FAILED: u64 = 0x100 << 32;
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

/// What an entry asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Become(PageState),
    /// PSMASH and UNSMASH, which are hints, and numbers without a meaning: nothing to do.
    Nothing,
}

impl Entry {
    fn current_page(self) -> u64 {
        self.0 & 0xfff
    }

    fn gfn(self) -> u64 {
        self.0 >> 12 & ((1 << 40) - 1)
    }

    fn operation(self) -> Operation {
        page_state(self.0 >> 52 & 0xf).map_or(Operation::Nothing, Operation::Become)
    }

    /// The number of the operation: runs are of one.
    fn operation_number(self) -> u64 {
        self.0 >> 52 & 0xf
    }

    fn size(self) -> PageSize {
        if self.0 >> 56 & 1 != 0 { PageSize::Size2M } else { PageSize::Size4K }
    }

    fn finished(self) -> Entry {
        Entry(self.0 & !0xfff | self.size().frames())
    }
}

/// The state that an operation asks for: 1 private, 2 shared, in the buffer as in the MSR protocol.
pub(super) fn page_state(operation: u64) -> Option<PageState> {
    match operation {
        1 => Some(PageState::Private),
        2 => Some(PageState::Shared),
        _ => None,
    }
}

/// Entries that are done together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct InFlight {
    first: usize,
    entries: usize,
}

/// A change under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    buffer: Gpa,
    current: usize,
    /// From the first of the buffer to the last that counts.
    entries: Vec<Entry>,
    in_flight: Option<InFlight>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Run(PageStateRun),
    /// It ends, with this in SW_EXITINFO2.
    End(u64),
}

impl Cursor {
    /// Copies the buffer at `buffer`, of which `room_bytes` lie within the shared buffer. `Err(status)`: the header is wrong.
    pub(super) fn read(
        buffer: Gpa,
        room_bytes: usize,
        memory: &mut dyn GhcbMemory,
    ) -> Result<Result<Cursor, u64>, GhcbUnreachable> {
        if room_bytes < HEADER_BYTES {
            return Ok(Err(status::BAD_HEADER));
        }
        let mut header = [0; 4];
        memory.read(buffer, &mut header)?;
        let [current, end] =
            [[header[0], header[1]], [header[2], header[3]]].map(|b| usize::from(u16::from_le_bytes(b)));
        let count = end + 1;
        if count > (room_bytes - HEADER_BYTES) / ENTRY_BYTES {
            return Ok(Err(status::BAD_HEADER));
        }
        let mut bytes = vec![0; count * ENTRY_BYTES];
        memory.read(buffer.wrapping_add(HEADER_BYTES as u64), &mut bytes)?;
        let entries = bytes.as_chunks().0.iter().map(|&bytes| Entry(u64::from_le_bytes(bytes))).collect();
        Ok(Ok(Cursor { buffer, current, entries, in_flight: None }))
    }

    /// The next run that the machine has to do. Entries without work are finished on the way.
    pub(super) fn next(&mut self, memory: &mut dyn GhcbMemory) -> Result<Next, GhcbUnreachable> {
        let start = self.current;
        while let Some(&entry) = self.entries.get(self.current) {
            let frames = entry.size().frames();
            if entry.current_page() > frames || entry.gfn() & (frames - 1) != 0 {
                self.write_current(start, memory)?;
                return Ok(Next::End(status::BAD_ENTRY));
            }
            let left = frames - entry.current_page();
            match entry.operation() {
                _ if left == 0 => self.current += 1,
                Operation::Nothing => {
                    self.write_entry(self.current, entry.finished(), memory)?;
                    self.current += 1;
                }
                Operation::Become(to) => {
                    self.write_current(start, memory)?;
                    return Ok(Next::Run(self.run(entry, left, to)));
                }
            }
        }
        self.write_current(start, memory)?;
        Ok(Next::End(0))
    }

    /// The run that starts with `entry`: itself and those behind it that continue it.
    fn run(&mut self, entry: Entry, left: u64, to: PageState) -> PageStateRun {
        // What is left of a 2 MiB page that was begun is no longer one.
        let begun = entry.current_page() != 0;
        let size = if begun { PageSize::Size4K } else { entry.size() };
        let start = Gfn::new(entry.gfn() + entry.current_page());
        let mut run = PageStateRun { start, frames: left, to, size };
        let mut entries = 1;
        if !begun {
            let continues = |next: &&Entry, run: &PageStateRun| {
                next.operation_number() == entry.operation_number()
                    && next.gfn() == run.start.raw() + run.frames
                    && next.current_page() == 0
                    && next.size() == size
            };
            let behind = &self.entries[self.current + 1..];
            while behind.get(entries - 1).filter(|next| continues(next, &run)).is_some() {
                run.frames += size.frames();
                entries += 1;
            }
        }
        self.in_flight = Some(InFlight { first: self.current, entries });
        run
    }

    /// The run that was given out is done: its entries are finished.
    pub(super) fn done(&mut self, memory: &mut dyn GhcbMemory) -> Result<(), GhcbUnreachable> {
        let Some(InFlight { first, entries }) = self.in_flight.take() else { return Ok(()) };
        for index in first..first + entries {
            self.write_entry(index, self.entries[index].finished(), memory)?;
        }
        self.current = first + entries;
        self.write_current(first, memory)
    }

    fn write_entry(&mut self, index: usize, entry: Entry, memory: &mut dyn GhcbMemory) -> Result<(), GhcbUnreachable> {
        self.entries[index] = entry;
        // The progress lies in bits 11:0; the bits above stay as they were copied.
        let at = self.buffer.wrapping_add((HEADER_BYTES + index * ENTRY_BYTES) as u64);
        memory.write(at, &(entry.0 as u16).to_le_bytes())
    }

    /// Tells the guest which entry is current, if that moved from `before`.
    fn write_current(&self, before: usize, memory: &mut dyn GhcbMemory) -> Result<(), GhcbUnreachable> {
        if self.current == before {
            return Ok(());
        }
        // At most 253: the number of the last entry and one more.
        memory.write(self.buffer, &(self.current as u16).to_le_bytes())
    }
}
