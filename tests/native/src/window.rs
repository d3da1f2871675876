//! The memory an instruction may touch: three pages with a protection each, a fixed background and a few patches.
//!
//! The background is the same in every case and differs at every offset, so that an access to a wrong address shows;
//! a case lists only what it changes. Each combination of protections has its own place in the address space, so no
//! protection has to be changed between cases: [`Window::base`] is a function of the protections.
//!
//! [`WindowMemory`] is the same memory on the side of whoever executes the case in software: load, execute, take
//! the changed lines. Around each window, and in its [`PageProtection::None`] pages, nothing is mapped (an access is
//! #PF with P = 0). Pages are user pages and never executable.

use std::ops::Range;
use std::sync::LazyLock;

use crate::rng::SplitMix;

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Pages in a window.
pub const PAGES: usize = 3;
/// Bytes in a window.
pub const WINDOW_BYTES: usize = PAGES * PAGE as usize;
/// Bytes in the unit in which changes are reported.
pub const LINE: usize = 32;
/// Patches a case may have.
pub const MAX_PATCHES: usize = 4;
/// Changed lines that are reported; a case that changes more is marked as truncated.
pub const MAX_LINES: usize = 40;

// No two windows, and no window and the judge's own pages, lie a power of two apart (nor nearly so): a register with
// a boundary value, added to an address in a window, leads to nothing that is mapped.
const FIRST_WINDOW: u64 = 0x1c05_8000;
const WINDOW_STRIDE: u64 = 0xbe_6000;

/// Where windows and the judge's own pages lie. A case that writes there, but not in its own window, has no answer
/// that can be relied on.
pub const JUDGE_RANGE: Range<u64> = 0x1b50_0000..FIRST_WINDOW + COMBINATIONS as u64 * WINDOW_STRIDE;

/// What may be done to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum PageProtection {
    /// Read and write.
    #[default]
    ReadWrite = 0,
    /// Read only: a write is #PF with P = 1, W = 1, U = 1.
    ReadOnly = 1,
    /// Not present.
    None = 2,
}

/// Number of combinations of protections.
pub const COMBINATIONS: usize = 27;

/// Bytes of the window that differ from the background before the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Patch {
    offset: u16,
    len: u8,
    bytes: [u8; LINE],
}

impl Patch {
    const EMPTY: Patch = Patch { offset: 0, len: 0, bytes: [0; LINE] };

    /// The first of `bytes` (at most 32), clipped to the window, at `offset`.
    pub fn new(offset: u16, bytes: &[u8]) -> Patch {
        let room = WINDOW_BYTES.saturating_sub(offset as usize);
        let len = bytes.len().min(LINE).min(room);
        let mut patch = Patch { offset: if len == 0 { 0 } else { offset }, len: len as u8, bytes: [0; LINE] };
        patch.bytes[..len].copy_from_slice(&bytes[..len]);
        patch
    }
    /// Where it lies, from the start of the window.
    pub fn offset(&self) -> usize {
        self.offset as usize
    }
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

/// Protections and initial contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Window {
    /// One protection a page.
    pub protections: [PageProtection; PAGES],
    count: u8,
    patches: [Patch; MAX_PATCHES],
}

impl Default for Window {
    fn default() -> Self {
        Window::new([PageProtection::ReadWrite; PAGES])
    }
}

impl Window {
    /// A window with background contents.
    pub fn new(protections: [PageProtection; PAGES]) -> Self {
        Window { protections, count: 0, patches: [Patch::EMPTY; MAX_PATCHES] }
    }
    /// Number of the combination of protections, below [`COMBINATIONS`].
    pub fn combination(&self) -> usize {
        self.protections.iter().rev().fold(0, |n, &p| n * 3 + p as usize)
    }
    /// The protections of combination `n`.
    pub fn protections_of(n: usize) -> [PageProtection; PAGES] {
        let of = |n| match n % 3 {
            0 => PageProtection::ReadWrite,
            1 => PageProtection::ReadOnly,
            _ => PageProtection::None,
        };
        [of(n), of(n / 3), of(n / 9)]
    }
    /// Linear address of its first byte.
    pub fn base(&self) -> u64 {
        Window::base_of(self.combination())
    }
    /// Linear address of the window of combination `n`.
    pub fn base_of(n: usize) -> u64 {
        FIRST_WINDOW + n as u64 * WINDOW_STRIDE
    }
    /// Adds a patch; later ones lie over earlier ones. False when there is no room for it.
    pub fn patch(&mut self, patch: Patch) -> bool {
        let Some(slot) = self.patches.get_mut(self.count as usize) else { return false };
        *slot = patch;
        self.count += 1;
        true
    }
    /// The patches in order.
    pub fn patches(&self) -> &[Patch] {
        &self.patches[..self.count as usize]
    }
}

/// One changed line after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Line {
    /// Offset in the window, a multiple of [`LINE`].
    pub offset: u16,
    /// Its contents now.
    pub bytes: [u8; LINE],
}

impl Line {
    /// Nothing.
    pub const ZERO: Line = Line { offset: 0, bytes: [0; LINE] };
}

/// The lines that differ from the initial contents, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Writes {
    /// At most [`MAX_LINES`] lines.
    pub lines: Vec<Line>,
    /// There were more.
    pub truncated: bool,
}

/// The background of every window.
pub static BACKGROUND: LazyLock<Box<[u8; WINDOW_BYTES]>> = LazyLock::new(|| {
    let mut rng = SplitMix::new(0x6261_636b);
    let mut bytes = Box::new([0; WINDOW_BYTES]);
    for chunk in bytes.chunks_exact_mut(8) {
        chunk.copy_from_slice(&rng.next_u64().to_le_bytes());
    }
    bytes
});

/// A window as plain memory, for an interpreter that executes cases.
#[derive(Clone, Debug)]
pub struct WindowMemory {
    initial: Box<[u8; WINDOW_BYTES]>,
    now: Box<[u8; WINDOW_BYTES]>,
}

impl Default for WindowMemory {
    fn default() -> Self {
        WindowMemory { initial: BACKGROUND.clone(), now: BACKGROUND.clone() }
    }
}

impl WindowMemory {
    /// Puts the initial contents of `window` in place.
    pub fn load(&mut self, window: &Window) {
        self.initial.copy_from_slice(&**BACKGROUND);
        for patch in window.patches() {
            self.initial[patch.offset()..][..patch.bytes().len()].copy_from_slice(patch.bytes());
        }
        self.now.copy_from_slice(&*self.initial);
    }
    /// The contents.
    pub fn bytes(&self) -> &[u8; WINDOW_BYTES] {
        &self.now
    }
    /// The contents, to execute upon.
    pub fn bytes_mut(&mut self) -> &mut [u8; WINDOW_BYTES] {
        &mut self.now
    }
    /// What changed since [`WindowMemory::load`].
    pub fn writes(&self) -> Writes {
        let mut writes = Writes::default();
        for (n, (new, old)) in self.now.chunks_exact(LINE).zip(self.initial.chunks_exact(LINE)).enumerate() {
            if new != old {
                if writes.lines.len() == MAX_LINES {
                    writes.truncated = true;
                    break;
                }
                let mut line = Line { offset: (n * LINE) as u16, bytes: [0; LINE] };
                line.bytes.copy_from_slice(new);
                writes.lines.push(line);
            }
        }
        writes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_are_a_bijection() {
        for n in 0..COMBINATIONS {
            assert_eq!(Window::new(Window::protections_of(n)).combination(), n);
        }
    }

    #[test]
    fn no_two_windows_lie_a_power_of_two_apart() {
        for n in 1..COMBINATIONS as u64 {
            let distance = Window::base_of(n as usize) - Window::base_of(0);
            assert!((12..32).all(|k| distance.abs_diff(1 << k) > WINDOW_BYTES as u64 + PAGE), "{n}");
        }
    }

    #[test]
    fn patches_are_clipped_and_bounded() {
        let mut window = Window::default();
        assert!(window.patch(Patch::new(WINDOW_BYTES as u16 - 2, &[1, 2, 3])));
        assert_eq!(window.patches()[0].bytes(), [1, 2]);
        assert!((1..MAX_PATCHES).all(|_| window.patch(Patch::new(0, &[]))));
        assert!(!window.patch(Patch::new(0, &[])));
    }

    #[test]
    fn writes_are_lines_against_the_patched_contents() {
        let mut window = Window::default();
        window.patch(Patch::new(100, &[0xaa; 8]));
        let mut memory = WindowMemory::default();
        memory.load(&window);
        assert_eq!(memory.writes(), Writes::default());
        memory.bytes_mut()[100] = 0xab;
        let writes = memory.writes();
        assert_eq!(writes.lines.len(), 1);
        assert_eq!((writes.lines[0].offset, writes.lines[0].bytes[4]), (96, 0xab));
    }
}
