//! The fast TLB: the direct-mapped front of all translation, which answers a memory access with a host address.
//!
//! Each privilege context has its own array of entries, so that a change of CPL or RFLAGS.AC is one assignment. An
//! entry keeps one tag for each kind of access. A tag is the page's base address where the kind may use the host page
//! directly, otherwise a value that no address indexing the slot can have; therefore one unsigned compare decides hit,
//! permission and page crossing together: `address ^ tag` is the offset in the page on a hit, and anything else fails
//! `<= 4096 - size`. Non-canonical addresses need no check: nothing fills them.
//!
//! What must never get a fast tag is the filler's duty (`Mmu`): MMIO, ROM writes, writes to frames with translated
//! code, writes to pages whose dirty bit is still clear.
//!
//! One of the few modules with `unsafe`. What makes it sound: a host pointer enters only by [`FastTlb::fill`] as a
//! [`PageView`] of the very [`SystemMemory`] this TLB keeps alive, tags match only addresses inside that page, and the
//! compare bounds offset plus size by the page.
#![expect(unsafe_code, reason = "a TLB hit must cost a few host instructions; see the module for why it is sound")]

use std::sync::Arc;

use emu_core::memory::{HostPage, PageView, Scalar, SystemMemory};
use emu_core::{Gva, Privilege, Sfn};

/// Entries in one context.
pub const ENTRIES: usize = 1024;
/// Contexts that are filled, one a privilege. After them comes one that never is, see [`FastTlb::select_none`].
const CONTEXTS: usize = Privilege::ALL.len();
const TOTAL: usize = ENTRIES * (CONTEXTS + 1);
const _: () = assert!(TOTAL.is_power_of_two(), "a masked index needs no bounds check");
const PAGE: u64 = 4096;

/// What a fill allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FastRights {
    /// Loads may go to the host page.
    pub read: bool,
    /// Stores may go there: the page is dirty already, is RAM, and holds no translated code.
    pub write: bool,
    /// Code may be decoded from there.
    pub execute: bool,
}

#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Entry {
    tag_r: u64,
    tag_w: u64,
    tag_x: u64,
    host: *mut u8,
}

/// Cold companion of an entry.
#[derive(Clone, Copy)]
struct Info {
    sfn: Sfn,
    global: bool,
}

/// A page code may be decoded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePage {
    host: *const u8,
}

impl CodePage {
    /// A value that equals no page.
    pub const NONE: CodePage = CodePage { host: core::ptr::null() };
}

/// See the module.
pub struct FastTlb {
    entries: Box<[Entry; TOTAL]>,
    /// First entry of the selected context.
    active: usize,
    /// The same for code, which no alignment check or data breakpoint slows down.
    active_code: usize,
    info: Box<[Info; TOTAL]>,
    /// Slots in use, so that a flush costs what was filled and not what could have been.
    filled: Vec<u16>,
    memory: Arc<SystemMemory>,
}

// SAFETY: the pointers lead into `memory`, which is `Send + Sync` and kept alive by the `Arc`.
unsafe impl Send for FastTlb {}

const FLUSH_LIST: usize = ENTRIES * CONTEXTS;

/// The tag that no address indexing slot `index` can match: the base of a page that indexes the neighbouring slot.
#[inline]
const fn impossible(index: usize) -> u64 {
    ((index % ENTRIES) as u64 ^ 1) << 12
}

#[inline(always)]
const fn slot_of(gva: u64) -> usize {
    (gva >> 12) as usize % ENTRIES
}

impl FastTlb {
    /// An empty TLB over `memory`.
    pub fn new(memory: Arc<SystemMemory>) -> FastTlb {
        let mut entries = Vec::with_capacity(TOTAL);
        for i in 0..TOTAL {
            entries.push(Self::empty(i));
        }
        let (Ok(entries), Ok(info)) = (
            entries.into_boxed_slice().try_into(),
            vec![Info { sfn: Sfn::new(0), global: false }; TOTAL].into_boxed_slice().try_into(),
        ) else {
            unreachable!("both were made with this length")
        };
        FastTlb { entries, active: 0, active_code: 0, info, filled: Vec::with_capacity(FLUSH_LIST), memory }
    }

    const fn empty(index: usize) -> Entry {
        let never = impossible(index);
        Entry { tag_r: never, tag_w: never, tag_x: never, host: core::ptr::null_mut() }
    }

    /// The memory behind it.
    pub fn memory(&self) -> &Arc<SystemMemory> {
        &self.memory
    }

    /// Makes the context of `privilege` the one that [`FastTlb::load`] and the others use.
    #[inline]
    pub fn select(&mut self, privilege: Privilege) {
        self.active = privilege.index() * ENTRIES;
        self.active_code = self.active;
    }

    /// Like [`FastTlb::select`] for code; for data a context in which nothing ever hits, so that every access is seen by
    /// the slow path, as alignment checks and data breakpoints need it.
    #[inline]
    pub fn select_none(&mut self, privilege: Privilege) {
        self.active = CONTEXTS * ENTRIES;
        self.active_code = privilege.index() * ENTRIES;
    }

    #[inline(always)]
    fn entry(&self, gva: u64) -> &Entry {
        &self.entries[(self.active + slot_of(gva)) % TOTAL]
    }

    #[inline(always)]
    fn hit<T>(host: *mut u8, tag: u64, gva: u64) -> Option<*mut T> {
        let offset = gva ^ tag;
        if offset <= PAGE - size_of::<T>() as u64 {
            // SAFETY: `offset` is below 4096, so the pages agree and `host` is a live page of `memory` (see `fill`).
            Some(unsafe { host.add(offset as usize).cast::<T>() })
        } else {
            None
        }
    }

    /// Loads from `gva` if the page is here and the value lies within it.
    #[inline(always)]
    pub fn load<T: Scalar>(&self, gva: u64) -> Option<T> {
        let entry = self.entry(gva);
        let at = Self::hit::<T>(entry.host, entry.tag_r, gva)?;
        // SAFETY: `hit` bounds the access by one live page; any bits are a `T`.
        Some(unsafe { at.read_unaligned() })
    }

    /// Stores to `gva` if the page is here, writable and the value lies within it. `None`: nothing was stored.
    #[inline(always)]
    pub fn store<T: Scalar>(&mut self, gva: u64, value: T) -> Option<()> {
        let entry = self.entry(gva);
        let at = Self::hit::<T>(entry.host, entry.tag_w, gva)?;
        // SAFETY: as in `load`; the write tag says that the page is RAM.
        unsafe { at.write_unaligned(value) };
        Some(())
    }

    /// Loads, computes and stores back in one look-up.
    #[inline(always)]
    pub fn update<T: Scalar, R>(&mut self, gva: u64, change: impl FnOnce(T) -> (T, R)) -> Option<R> {
        let entry = self.entry(gva);
        let at = Self::hit::<T>(entry.host, entry.tag_w, gva)?;
        // SAFETY: as in `load`; a write tag implies that reading is allowed too.
        let old = unsafe { at.read_unaligned() };
        let (new, result) = change(old);
        // SAFETY: as in `store`.
        unsafe { at.write_unaligned(new) };
        Some(result)
    }

    /// Whether `len` bytes from `gva`, within one page, could be stored without a miss.
    #[inline(always)]
    pub fn can_store(&self, gva: u64, len: u64) -> bool {
        let entry = self.entry(gva);
        (gva ^ entry.tag_w).checked_add(len).is_some_and(|end| end <= PAGE)
    }

    /// The bytes from `gva` to the end of its page, at most `len`, for reading; `None` on a miss.
    #[inline]
    pub fn read_bytes(&self, gva: u64, into: &mut [u8]) -> Option<()> {
        let entry = self.entry(gva);
        let offset = gva ^ entry.tag_r;
        if offset >= PAGE || offset + into.len() as u64 > PAGE {
            return None;
        }
        // SAFETY: the range is inside one live page; `into` is ordinary memory and cannot overlap it.
        unsafe { core::ptr::copy_nonoverlapping(entry.host.add(offset as usize), into.as_mut_ptr(), into.len()) };
        Some(())
    }

    /// Fills `len` bytes from `gva`, all in one page, with copies of `value`; `None` on a miss, with nothing stored.
    #[inline]
    pub fn fill_bytes<T: Scalar>(&mut self, gva: u64, value: T, count: usize) -> Option<()> {
        let entry = self.entry(gva);
        let offset = gva ^ entry.tag_w;
        if offset >= PAGE || (count as u64).checked_mul(size_of::<T>() as u64).is_none_or(|n| offset + n > PAGE) {
            return None;
        }
        // SAFETY: `offset` is inside the page.
        let at = unsafe { entry.host.add(offset as usize).cast::<T>() };
        for i in 0..count {
            // SAFETY: `offset + count * size` is inside the page.
            unsafe { at.add(i).write_unaligned(value) };
        }
        Some(())
    }

    /// Copies `len` bytes from `from` to `to`, each range in one page, as if lowest byte first in steps of `step` bytes
    /// (what `REP MOVS` does upwards). `None` on a miss, with nothing stored.
    #[inline]
    pub fn copy_bytes(&mut self, to: u64, from: u64, len: usize, step: usize) -> Option<()> {
        let (source, target) = (self.entry(from), self.entry(to));
        let (s, t) = (from ^ source.tag_r, to ^ target.tag_w);
        if s >= PAGE || t >= PAGE || s + len as u64 > PAGE || t + len as u64 > PAGE {
            return None;
        }
        // SAFETY: both offsets are inside their pages.
        let (s, t) = unsafe { (source.host.add(s as usize), target.host.add(t as usize)) };
        let distance = (t as usize).wrapping_sub(s as usize);
        if distance >= len {
            // SAFETY: both ranges are inside live pages. The target does not start inside the source, so copying
            // upwards in any step equals `memmove`.
            unsafe { core::ptr::copy(s, t, len) };
        } else {
            // The target starts inside the source: earlier stores feed later loads, element by element.
            let mut done = 0;
            while done + step <= len {
                let mut element = [0_u8; 8];
                let width = step.min(8);
                // SAFETY: `done + step <= len`, inside both pages; the element passes through a buffer of its own.
                unsafe {
                    core::ptr::copy_nonoverlapping(s.add(done), element.as_mut_ptr(), width);
                    core::ptr::copy_nonoverlapping(element.as_ptr(), t.add(done), width);
                }
                done += step;
            }
        }
        Some(())
    }

    /// The page that code at `gva` lies in, if it is here.
    #[inline(always)]
    pub fn code_page(&self, gva: u64) -> Option<CodePage> {
        let entry = &self.entries[(self.active_code + slot_of(gva)) % TOTAL];
        if gva ^ entry.tag_x < PAGE { Some(CodePage { host: entry.host }) } else { None }
    }

    /// The frame that code at `gva` lies in, if its page is here.
    #[inline]
    pub fn code_frame(&self, gva: u64) -> Option<Sfn> {
        self.code_page(gva)?;
        Some(self.info[(self.active_code + slot_of(gva)) % TOTAL].sfn)
    }

    /// Copies the code bytes from `gva` to the end of its page, and says which frame they are in.
    pub fn code_bytes<'a>(&self, gva: u64, into: &'a mut [u8; PAGE as usize]) -> Option<(Sfn, &'a [u8])> {
        let index = (self.active_code + slot_of(gva)) % TOTAL;
        let entry = &self.entries[index];
        let offset = gva ^ entry.tag_x;
        if offset >= PAGE {
            return None;
        }
        let len = (PAGE - offset) as usize;
        // SAFETY: the range is inside one live page; `into` is ordinary memory.
        unsafe { core::ptr::copy_nonoverlapping(entry.host.add(offset as usize), into.as_mut_ptr(), len) };
        Some((self.info[index].sfn, &into[..len]))
    }

    /// Enters the 4 KiB page of `gva` in the context of `privilege`. Rights replace those of an entry for another page
    /// and add to those of an entry for the same one.
    pub fn fill(&mut self, privilege: Privilege, gva: Gva, sfn: Sfn, page: PageView, rights: FastRights, global: bool) {
        let index = privilege.index() * ENTRIES + slot_of(gva.raw());
        let base = gva.raw() & !(PAGE - 1);
        let host = page.host.as_ptr();
        debug_assert!(self.is_of_memory(sfn, page.host), "a filled page belongs to this TLB's memory");
        let never = impossible(index);
        let old = self.entries[index];
        let vacant = old.tag_r == never && old.tag_w == never && old.tag_x == never;
        let keeps = |tag: u64| tag == base && old.host == host;
        let tag = |old_tag: u64, allowed: bool| if allowed || keeps(old_tag) { base } else { never };
        self.entries[index] = Entry {
            tag_r: tag(old.tag_r, rights.read),
            tag_w: tag(old.tag_w, rights.write),
            tag_x: tag(old.tag_x, rights.execute),
            host,
        };
        self.info[index] = Info { sfn, global };
        if vacant {
            self.filled.push(index as u16);
        }
    }

    fn is_of_memory(&self, sfn: Sfn, host: HostPage) -> bool {
        self.memory.page(sfn).is_some_and(|view| view.host == host)
    }

    /// Drops everything.
    pub fn flush_all(&mut self) {
        for index in self.filled.drain(..) {
            self.entries[index as usize] = Self::empty(index as usize);
        }
    }

    /// Drops everything but global pages: what MOV to CR3 does.
    pub fn flush_non_global(&mut self) {
        let (entries, info) = (&mut self.entries, &self.info);
        self.filled.retain(|&index| {
            let keep = info[index as usize].global;
            if !keep {
                entries[index as usize] = Self::empty(index as usize);
            }
            keep
        });
    }

    /// Drops the page of `gva` from every context.
    pub fn flush_page(&mut self, gva: Gva) {
        for context in 0..CONTEXTS {
            let index = context * ENTRIES + slot_of(gva.raw());
            let (entry, base) = (self.entries[index], gva.raw() & !(PAGE - 1));
            if entry.tag_r == base || entry.tag_w == base || entry.tag_x == base {
                self.entries[index] = Self::empty(index);
                self.filled.retain(|&i| i as usize != index);
            }
        }
    }

    /// Drops every page within `bytes` from `base` (a large page or a range), in all contexts.
    pub fn flush_range(&mut self, base: Gva, bytes: u64) {
        let entries = &mut self.entries;
        self.filled.retain(|&index| {
            let entry = entries[index as usize];
            let never = impossible(index as usize);
            let tag = [entry.tag_r, entry.tag_w, entry.tag_x].into_iter().find(|&t| t != never).unwrap_or(never);
            let gone = tag.wrapping_sub(base.raw()) < bytes;
            if gone {
                entries[index as usize] = Self::empty(index as usize);
            }
            !gone
        });
    }

    /// Drops the write tags of every entry for frame `sfn`: it holds translated code now, or must be seen when written.
    pub fn strip_writes(&mut self, sfn: Sfn) {
        for &index in &self.filled {
            if self.info[index as usize].sfn == sfn {
                self.entries[index as usize].tag_w = impossible(index as usize);
            }
        }
        self.forget_vacant();
    }

    /// Drops every write tag.
    pub fn strip_all_writes(&mut self) {
        for &index in &self.filled {
            self.entries[index as usize].tag_w = impossible(index as usize);
        }
        self.forget_vacant();
    }

    fn forget_vacant(&mut self) {
        let entries = &self.entries;
        self.filled.retain(|&index| {
            let (e, never) = (&entries[index as usize], impossible(index as usize));
            e.tag_r != never || e.tag_w != never || e.tag_x != never
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: FastRights = FastRights { read: true, write: true, execute: true };
    const READ: FastRights = FastRights { read: true, write: false, execute: false };

    fn tlb() -> FastTlb {
        FastTlb::new(SystemMemory::flat(0x10_0000).expect("a mebibyte"))
    }

    fn enter(tlb: &mut FastTlb, privilege: Privilege, gva: u64, frame: u64, rights: FastRights, global: bool) {
        let sfn = Sfn::new(frame);
        let page = tlb.memory().page(sfn).expect("inside memory");
        tlb.fill(privilege, Gva::new(gva), sfn, page, rights, global);
    }

    #[test]
    fn hits_stay_inside_the_page_and_the_rights() {
        let mut t = tlb();
        enter(&mut t, Privilege::User, 0x7000, 3, READ, false);
        t.select(Privilege::User);
        assert_eq!(t.load::<u64>(0x7ff8), Some(0));
        assert_eq!(t.load::<u64>(0x7ff9), None, "crosses the page");
        assert_eq!(t.store::<u8>(0x7000, 1), None, "read only");
        assert!(t.code_page(0x7000).is_none());
        assert_eq!(t.load::<u8>(0x7000 + (ENTRIES as u64) * 0x1000), None, "same slot, other page");
        t.select(Privilege::Supervisor);
        assert_eq!(t.load::<u8>(0x7000), None, "another context");
    }

    #[test]
    fn an_empty_slot_matches_no_address() {
        let t = tlb();
        for gva in
            [0_u64, 0x1000, 0xfff, u64::MAX, u64::MAX << 12, 1 << 47, 0x8000_0000_0000_0000, (ENTRIES as u64 - 1) << 12]
        {
            assert_eq!(t.load::<u8>(gva), None, "{gva:#x}");
            assert!(!t.can_store(gva, 1));
            assert!(t.code_page(gva).is_none());
        }
    }

    #[test]
    fn rights_add_up_for_one_page_and_are_replaced_by_another() {
        let mut t = tlb();
        enter(&mut t, Privilege::User, 0x7000, 3, READ, false);
        enter(&mut t, Privilege::User, 0x7000, 3, FastRights { execute: true, ..FastRights::default() }, false);
        t.select(Privilege::User);
        assert!(t.load::<u8>(0x7000).is_some() && t.code_page(0x7123).is_some());
        enter(&mut t, Privilege::User, 0x7000, 4, READ, false);
        assert!(t.code_page(0x7000).is_none(), "the frame changed");
    }

    #[test]
    fn stores_and_updates_reach_memory() {
        let mut t = tlb();
        enter(&mut t, Privilege::Supervisor, 0xffff_8000_0000_5000, 5, ALL, true);
        t.select(Privilege::Supervisor);
        let gva = 0xffff_8000_0000_5010;
        assert_eq!(t.store(gva, 7_u32), Some(()));
        assert_eq!(t.update(gva, |v: u32| (v + 1, v)), Some(7));
        assert_eq!(t.memory().load::<u32>(emu_core::Spa::new(0x5010)), Ok(8));
    }

    #[test]
    fn flushes_drop_exactly_what_they_name() {
        let mut t = tlb();
        t.select(Privilege::User);
        let fill = |t: &mut FastTlb| {
            enter(t, Privilege::User, 0x1000, 1, ALL, true);
            enter(t, Privilege::User, 0x2000, 2, ALL, false);
            enter(t, Privilege::User, 0x20_0000, 3, ALL, false);
        };
        let there = |t: &FastTlb| [0x1000, 0x2000, 0x20_0000].map(|a| t.load::<u8>(a).is_some());
        fill(&mut t);
        t.flush_non_global();
        assert_eq!(there(&t), [true, false, false]);
        fill(&mut t);
        t.flush_page(Gva::new(0x2fff));
        assert_eq!(there(&t), [true, false, true]);
        fill(&mut t);
        t.flush_range(Gva::new(0), 0x20_0000);
        assert_eq!(there(&t), [false, false, true]);
        fill(&mut t);
        t.strip_writes(Sfn::new(2));
        assert_eq!([0x1000, 0x2000].map(|a| t.can_store(a, 1)), [true, false]);
        t.flush_all();
        assert_eq!(there(&t), [false; 3]);
        assert!(t.filled.is_empty());
    }

    #[test]
    fn copies_behave_as_element_by_element() {
        for (to, from, len, step) in [
            (0x1001_u64, 0x1000_u64, 8_usize, 1_usize),
            (0x1000, 0x1001, 8, 1),
            (0x1004, 0x1000, 16, 4),
            (0x1003, 0x1000, 16, 4),
        ] {
            let mut t = tlb();
            enter(&mut t, Privilege::User, 0x1000, 1, ALL, false);
            t.select(Privilege::User);
            let mut model: Vec<u8> = (0..64).collect();
            for (i, b) in model.iter().enumerate() {
                t.store(0x1000 + i as u64, *b);
            }
            assert_eq!(t.copy_bytes(to, from, len, step), Some(()));
            let (to, from) = ((to - 0x1000) as usize, (from - 0x1000) as usize);
            for i in (0..len).step_by(step) {
                let element = model[from + i..from + i + step].to_vec();
                model[to + i..to + i + step].copy_from_slice(&element);
            }
            let mut seen = vec![0; 64];
            t.read_bytes(0x1000, &mut seen);
            assert_eq!(seen, model);
        }
        let mut t = tlb();
        enter(&mut t, Privilege::User, 0x1000, 1, ALL, false);
        t.select(Privilege::User);
        assert_eq!(t.fill_bytes(0x1ffc, 0xaa_u8, 4), Some(()));
        assert_eq!(t.fill_bytes(0x1ffc, 0xaa_u8, 5), None);
        assert_eq!(t.load::<u32>(0x1ffc), Some(0xaaaa_aaaa));
    }
}
