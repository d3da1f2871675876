//! The fast TLB: the direct-mapped front of all translation, which answers a memory access with a host address.
//!
//! Each privilege context has its own arrays of entries, one for data and one for code. Those of the selected context
//! are in a place of their own, so that an access finds them without asking which context it is; a change of CPL or
//! RFLAGS.AC exchanges boxes. An entry keeps one tag for each kind of access. A tag is the page's base address where the kind may use the host page
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

use emu_core::memory::{HostPage, PageView, Scalar, SystemMemory, atomic};
use emu_core::{Gva, Privilege, Sfn};

/// Entries in one context.
pub const ENTRIES: usize = 1024;
/// Contexts that are filled, one a privilege.
const CONTEXTS: usize = Privilege::ALL.len();
const TOTAL: usize = ENTRIES * CONTEXTS;
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

/// What loads and stores need of a page.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Data {
    tag_r: u64,
    tag_w: u64,
    /// The host page less the page's base address: added to an address in the page it is the host's address of it.
    addend: *mut u8,
}

/// What execution needs of a page.
#[derive(Clone, Copy)]
#[repr(C)]
struct Code {
    tag_x: u64,
    host: *mut u8,
}

/// Arrays with one entry a slot, of which that of one context is in front.
struct Contexts<T> {
    /// The array of the context `selected`; the one in which nothing ever hits, if that is `None`.
    front: Box<[T; ENTRIES]>,
    selected: Option<Privilege>,
    /// The arrays of the other contexts. In the place of the selected one's is the one in which nothing ever hits.
    others: [Box<[T; ENTRIES]>; CONTEXTS],
}

impl<T: Copy> Contexts<T> {
    fn new(empty: impl Fn(usize) -> T) -> Contexts<T> {
        let array = || {
            let entries: Box<[T]> = (0..ENTRIES).map(&empty).collect();
            let Ok(entries) = entries.try_into() else { unreachable!("made with this length") };
            entries
        };
        Contexts { front: array(), selected: None, others: core::array::from_fn(|_| array()) }
    }

    #[inline]
    fn select(&mut self, wanted: Option<Privilege>) {
        if self.selected == wanted {
            return;
        }
        for context in [self.selected, wanted].into_iter().flatten() {
            core::mem::swap(&mut self.front, &mut self.others[context.index()]);
        }
        self.selected = wanted;
    }

    /// The entry `index`, counted over all contexts.
    #[inline]
    fn at(&mut self, index: usize) -> &mut T {
        let (context, slot) = (index / ENTRIES, index % ENTRIES);
        match self.selected {
            Some(selected) if selected.index() == context => &mut self.front[slot],
            _ => &mut self.others[context][slot],
        }
    }
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

// SAFETY: the address is compared and nothing else; what reads code goes through a `FastTlb`.
unsafe impl Send for CodePage {}

impl CodePage {
    /// A value that equals no page.
    pub const NONE: CodePage = CodePage { host: core::ptr::null() };
}

/// See the module.
pub struct FastTlb {
    data: Contexts<Data>,
    /// Selected apart from data: no alignment check or data breakpoint slows code down.
    code: Contexts<Code>,
    info: Box<[Info; TOTAL]>,
    /// Slots in use, so that a flush costs what was filled and not what could have been.
    filled: Vec<u16>,
    /// By the low bits of their number, frames known to have no write tag: code that is patched over and over is
    /// decoded as often, and each time its frame's write tags must go.
    unwritable: [Option<Sfn>; UNWRITABLE],
    memory: Arc<SystemMemory>,
    others: Others,
}

/// When the other processors of the machine run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Others {
    /// Never at the same time: they take turns, and every instruction is atomic by itself.
    #[default]
    InTurn,
    /// On other host threads, at the same time: what reads and writes memory does so in one step.
    Beside,
}

const UNWRITABLE: usize = 16;

// SAFETY: the pointers lead into `memory`, which is `Send + Sync` and kept alive by the `Arc`.
unsafe impl Send for FastTlb {}

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
        let Ok(info) = vec![Info { sfn: Sfn::new(0), global: false }; TOTAL].into_boxed_slice().try_into() else {
            unreachable!("made with this length")
        };
        let mut tlb = FastTlb {
            data: Contexts::new(Self::no_data),
            code: Contexts::new(Self::no_code),
            info,
            filled: Vec::with_capacity(TOTAL),
            unwritable: [None; UNWRITABLE],
            memory,
            others: Others::InTurn,
        };
        tlb.select(Privilege::ALL[0]);
        tlb
    }

    const fn no_data(index: usize) -> Data {
        let never = impossible(index);
        Data { tag_r: never, tag_w: never, addend: core::ptr::null_mut() }
    }

    const fn no_code(index: usize) -> Code {
        Code { tag_x: impossible(index), host: core::ptr::null_mut() }
    }

    fn empty(&mut self, index: usize) {
        *self.data.at(index) = Self::no_data(index);
        *self.code.at(index) = Self::no_code(index);
    }

    /// The memory behind it.
    pub fn memory(&self) -> &Arc<SystemMemory> {
        &self.memory
    }

    /// When the machine's other processors run.
    #[inline]
    pub fn others(&self) -> Others {
        self.others
    }

    /// Says when the machine's other processors will run.
    pub fn set_others(&mut self, others: Others) {
        self.others = others;
    }

    /// Makes the context of `privilege` the one that [`FastTlb::load`] and the others use.
    #[inline]
    pub fn select(&mut self, privilege: Privilege) {
        self.data.select(Some(privilege));
        self.code.select(Some(privilege));
    }

    /// Like [`FastTlb::select`] for code; for data a context in which nothing ever hits, so that every access is seen by
    /// the slow path, as alignment checks and data breakpoints need it.
    #[inline]
    pub fn select_none(&mut self, privilege: Privilege) {
        self.data.select(None);
        self.code.select(Some(privilege));
    }

    #[inline(always)]
    fn entry(&self, gva: u64) -> &Data {
        &self.data.front[slot_of(gva)]
    }

    #[inline(always)]
    fn hit<T>(addend: *mut u8, tag: u64, gva: u64) -> Option<*mut T> {
        if gva ^ tag <= PAGE - size_of::<T>() as u64 {
            // The pages agree, so this is inside the live page of `memory` that was filled (see `fill`).
            Some(addend.wrapping_add(gva as usize).cast::<T>())
        } else {
            None
        }
    }

    /// Loads from `gva` if the page is here and the value lies within it.
    #[inline(always)]
    pub fn load<T: Scalar>(&self, gva: u64) -> Option<T> {
        let entry = self.entry(gva);
        let at = Self::hit::<T>(entry.addend, entry.tag_r, gva)?;
        // SAFETY: `hit` bounds the access by one live page; any bits are a `T`.
        Some(unsafe { at.read_unaligned() })
    }

    /// Stores to `gva` if the page is here, writable and the value lies within it. `None`: nothing was stored.
    #[inline(always)]
    pub fn store<T: Scalar>(&mut self, gva: u64, value: T) -> Option<()> {
        let entry = self.entry(gva);
        let at = Self::hit::<T>(entry.addend, entry.tag_w, gva)?;
        // SAFETY: as in `load`; the write tag says that the page is RAM.
        unsafe { at.write_unaligned(value) };
        Some(())
    }

    /// Loads, computes and stores back in one look-up, and in one step where other processors run at the same time.
    #[inline(always)]
    pub fn update<T: Scalar, R>(&mut self, gva: u64, change: impl Fn(T) -> (T, R)) -> Option<R> {
        let entry = self.entry(gva);
        let at = Self::hit::<T>(entry.addend, entry.tag_w, gva)?;
        if self.others == Others::Beside {
            // SAFETY: as in `store`.
            return Some(unsafe { atomic::update(at, change) });
        }
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
        let from = entry.addend.wrapping_add(gva as usize);
        // SAFETY: the range is inside one live page; `into` is ordinary memory and cannot overlap it.
        unsafe { core::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
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
        let at = entry.addend.wrapping_add(gva as usize).cast::<T>();
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
        let (s, t) = (source.addend.wrapping_add(from as usize), target.addend.wrapping_add(to as usize));
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
        let entry = &self.code.front[slot_of(gva)];
        if gva ^ entry.tag_x < PAGE { Some(CodePage { host: entry.host }) } else { None }
    }

    /// The frame that code at `gva` lies in, if its page is here.
    #[inline]
    pub fn code_frame(&self, gva: u64) -> Option<Sfn> {
        self.code_page(gva)?;
        let context = self.code.selected?;
        Some(self.info[context.index() * ENTRIES + slot_of(gva)].sfn)
    }

    /// Copies the code bytes from `gva` on, as many as are wanted and in its page, and says which frame they are in.
    pub fn code_bytes<'a>(&self, gva: u64, into: &'a mut [u8]) -> Option<(Sfn, &'a [u8])> {
        let sfn = self.code_frame(gva)?;
        let CodePage { host } = self.code_page(gva)?;
        let offset = gva as usize % PAGE as usize;
        let len = into.len().min(PAGE as usize - offset);
        // SAFETY: the range is inside one live page; `into` is ordinary memory.
        unsafe { core::ptr::copy_nonoverlapping(host.add(offset), into.as_mut_ptr(), len) };
        Some((sfn, &into[..len]))
    }

    /// Enters the 4 KiB page of `gva` in the context of `privilege`. Rights replace those of an entry for another page
    /// and add to those of an entry for the same one.
    pub fn fill(&mut self, privilege: Privilege, gva: Gva, sfn: Sfn, page: PageView, rights: FastRights, global: bool) {
        let index = privilege.index() * ENTRIES + slot_of(gva.raw());
        let base = gva.raw() & !(PAGE - 1);
        let host = page.host.as_ptr();
        debug_assert!(self.is_of_memory(sfn, page.host), "a filled page belongs to this TLB's memory");
        let never = impossible(index);
        let addend = host.wrapping_sub(base as usize);
        let vacant = self.is_vacant(index);
        let data = self.data.at(index);
        let same = data.addend == addend;
        let tag = |old: u64, same: bool, allowed: bool| if allowed || same && old == base { base } else { never };
        *data = Data { tag_r: tag(data.tag_r, same, rights.read), tag_w: tag(data.tag_w, same, rights.write), addend };
        let code = self.code.at(index);
        *code = Code { tag_x: tag(code.tag_x, code.host == host, rights.execute), host };
        self.info[index] = Info { sfn, global };
        if vacant {
            self.filled.push(index as u16);
        }
        let known = &mut self.unwritable[sfn.raw() as usize % UNWRITABLE];
        if rights.write && *known == Some(sfn) {
            *known = None;
        }
    }

    fn is_vacant(&mut self, index: usize) -> bool {
        let never = impossible(index);
        let data = *self.data.at(index);
        data.tag_r == never && data.tag_w == never && self.code.at(index).tag_x == never
    }

    fn is_of_memory(&self, sfn: Sfn, host: HostPage) -> bool {
        self.memory.page(sfn).is_some_and(|view| view.host == host)
    }

    /// Drops the entries for which `gone` holds.
    fn drop_where(&mut self, mut gone: impl FnMut(&mut FastTlb, usize) -> bool) {
        let mut filled = core::mem::take(&mut self.filled);
        filled.retain(|&index| {
            let index = index as usize;
            let gone = gone(self, index);
            if gone {
                self.empty(index);
            }
            !gone
        });
        self.filled = filled;
    }

    /// The page of entry `index`, which is not vacant.
    fn base_of(&mut self, index: usize) -> u64 {
        let never = impossible(index);
        let (data, code) = (*self.data.at(index), *self.code.at(index));
        [data.tag_r, data.tag_w, code.tag_x].into_iter().find(|&tag| tag != never).unwrap_or(never)
    }

    /// Drops everything.
    pub fn flush_all(&mut self) {
        self.drop_where(|_, _| true);
    }

    /// Drops everything but global pages: what MOV to CR3 does.
    pub fn flush_non_global(&mut self) {
        self.drop_where(|tlb, index| !tlb.info[index].global);
    }

    /// Drops the page of `gva` from every context.
    pub fn flush_page(&mut self, gva: Gva) {
        let base = gva.raw() & !(PAGE - 1);
        for context in 0..CONTEXTS {
            let index = context * ENTRIES + slot_of(base);
            if self.base_of(index) == base {
                self.empty(index);
                self.filled.retain(|&i| i as usize != index);
            }
        }
    }

    /// Drops every page within `bytes` from `base` (a large page or a range), in all contexts.
    pub fn flush_range(&mut self, base: Gva, bytes: u64) {
        self.drop_where(|tlb, index| tlb.base_of(index).wrapping_sub(base.raw()) < bytes);
    }

    /// Drops every page that lies in one of `frames` frames from `first`, in all contexts.
    pub fn flush_frames(&mut self, first: Sfn, frames: u64) {
        self.drop_where(|tlb, index| tlb.info[index].sfn.raw().wrapping_sub(first.raw()) < frames);
    }

    /// Drops the write tags of every entry for frame `sfn`: it holds translated code now, or must be seen when written.
    pub fn strip_writes(&mut self, sfn: Sfn) {
        let known = &mut self.unwritable[sfn.raw() as usize % UNWRITABLE];
        if *known == Some(sfn) {
            return;
        }
        *known = Some(sfn);
        self.strip(|info| info.sfn == sfn);
    }

    /// Drops every write tag.
    pub fn strip_all_writes(&mut self) {
        self.strip(|_| true);
    }

    fn strip(&mut self, these: impl Fn(&Info) -> bool) {
        self.drop_where(|tlb, index| {
            if !these(&tlb.info[index]) {
                return false;
            }
            tlb.data.at(index).tag_w = impossible(index);
            tlb.is_vacant(index)
        });
    }
}

#[cfg(test)]
mod tests;
