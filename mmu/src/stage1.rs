//! The first stage: from a linear address to where it lies, through whichever guest memory there is.
//!
//! Order of events (Intel SDM vol. 3, "Access Rights" and "Accessed and Dirty Flags"; APM vol. 2, "Nested versus Guest
//! Page Faults, Fault Ordering"): the guest's tables are walked, a nested fault on one of them wins; then the guest's
//! rights are judged; then the final address goes through the second stage; only then A and D of the guest's entries are
//! set. A walk that faults leaves the guest's tables as they were.

use emu_core::sev::CBit;
use emu_core::{Access, AccessKind, Gpa, Gva, PageFaultCode, PageSize};

use crate::fault::MmuFault;
use crate::format::Format;
use crate::nested::{Effects, GuestMemory, Judge, Reached, Wanted};
use crate::rights::{Controls, LinearMode, Rules};
use crate::tlb::Space;
use crate::translation::{PageFlags, Translation};
use crate::walk::{Marked, Stop, Walk, mark, walk};
use crate::walk_cache::{TablePointer, WalkCache};

/// A translation together with the size of the guest's page, which may be larger than the reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) translation: Translation,
    /// log2 of the guest's page.
    pub(crate) page_shift: u8,
    /// How far the second stage reaches.
    pub(crate) nested: PageSize,
}

/// One translation to make.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) gva: Gva,
    pub(crate) access: Access,
    pub(crate) rules: &'a Rules,
    pub(crate) root: TablePointer<Gpa>,
    /// Tag of cached table pointers.
    pub(crate) space: Space,
    pub(crate) effects: Effects,
    pub(crate) judge: Judge,
}

impl Request<'_> {
    fn refuse(&self, code: PageFaultCode) -> MmuFault {
        MmuFault::Guest { gva: self.gva, code: code | self.rules.access_code(self.access) }
    }
}

/// Translates with paging on.
#[inline]
pub(crate) fn translate<F: Format, M: GuestMemory>(
    format: &F,
    memory: &mut M,
    mut walk_cache: Option<&mut WalkCache<Gpa>>,
    request: Request<'_>,
) -> Result<Outcome, MmuFault> {
    let Request { gva, access, rules, root, space, effects, judge } = request;
    let input = gva.raw();
    if M::NESTED {
        memory.stats().walks_2d += 1;
    } else {
        memory.stats().walks_1d += 1;
    }
    loop {
        let known = walk_cache.as_ref().and_then(|cache| cache.lookup(input, space, F::shift));
        let start = known.unwrap_or(root);
        let mut way = Walk::from(start);
        match walk(format, memory, &mut way, start, input) {
            Ok(()) => {}
            Err(Stop::NotPresent(_)) => return Err(request.refuse(PageFaultCode::empty())),
            Err(Stop::Reserved(_)) => return Err(request.refuse(PageFaultCode::P | PageFaultCode::RSVD)),
            Err(Stop::Table(fault)) => return Err(fault),
        }
        let leaf = *way.leaf();
        let attributes = format.leaf_attributes(leaf.raw, way.level);
        let write = access.kind == AccessKind::Write;
        let mut flags = PageFlags::of_grants(leaf.grants);
        flags.set(PageFlags::GLOBAL, attributes.global && rules.controls.contains(Controls::PGE));
        flags.set(PageFlags::DIRTY, write || leaf.raw & format.dirty() != 0);
        let c_bit = format.c_bit(leaf.raw);
        flags.set(PageFlags::ENCRYPTED, memory.encrypts(c_bit));
        rules.check(flags, attributes.protection_key, access).map_err(|code| MmuFault::Guest { gva, code })?;

        let page_shift = F::shift(way.level);
        let gpa = Gpa::new(format.page(leaf.raw, way.level) | input & ((1 << page_shift) - 1));
        let mode = if flags.contains(PageFlags::USER) { LinearMode::User } else { LinearMode::Supervisor };
        let page = largest_within(page_shift);
        let reached = memory.reach(gpa, Wanted { access, mode, c_bit, page, judge })?;
        if effects == Effects::Live && mark(format, memory, &way, write)? == Marked::Raced {
            continue;
        }
        if let Some(cache) = &mut walk_cache {
            for (level, from, to) in way.tables() {
                let table = to.slot.align_down(PageSize::Size4K);
                let spa = Some(to.spa.align_down(PageSize::Size4K));
                cache.fill(input, space, TablePointer { level, table, spa, grants: from.grants }, F::shift);
            }
        }
        let translation = Translation {
            spa: reached.spa,
            gpa,
            size: reached.size.min(page),
            memory_type: reached.memory_type,
            pat_index: attributes.pat_index,
            protection_key: attributes.protection_key,
            flags: flags | reached.flags,
        };
        return Ok(Outcome { translation, page_shift: page_shift as u8, nested: reached.size });
    }
}

/// The largest reach within a page of 2^`shift` bytes: a 4 MiB page is cached as 2 MiB pieces.
const fn largest_within(shift: u32) -> PageSize {
    match shift {
        0..=20 => PageSize::Size4K,
        21..=29 => PageSize::Size2M,
        _ => PageSize::Size1G,
    }
}

/// Translates with paging off: only the second stage has a say. Everything an encrypted guest does then is private.
pub(crate) fn unpaged<M: GuestMemory>(
    memory: &mut M,
    gva: Gva,
    access: Access,
    judge: Judge,
) -> Result<Outcome, MmuFault> {
    let gpa = Gpa::new(gva.raw());
    let c_bit = CBit::Set;
    let wanted = Wanted { access, mode: LinearMode::User, c_bit, page: PageSize::Size4K, judge };
    let Reached { spa, size, memory_type, flags } = memory.reach(gpa, wanted)?;
    let mut own = PageFlags::WRITABLE | PageFlags::USER | PageFlags::EXECUTABLE | PageFlags::DIRTY;
    own.set(PageFlags::ENCRYPTED, memory.encrypts(c_bit));
    let translation = Translation { spa, gpa, size, memory_type, pat_index: 0, protection_key: 0, flags: own | flags };
    Ok(Outcome { translation, page_shift: size.shift() as u8, nested: size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_4m_page_is_cached_as_2m_pieces() {
        let reach = [(12, PageSize::Size4K), (21, PageSize::Size2M), (22, PageSize::Size2M), (30, PageSize::Size1G)];
        for (shift, size) in reach {
            assert_eq!(largest_within(shift), size);
        }
    }
}
