//! PVALIDATE, RMPADJUST and RMPQUERY on a page that both stages of translation reach.

use super::{Leaf, Map, Page};

/// The operand after translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// rAX.
    pub gva: u64,
    /// What guest paging makes of it.
    pub gpa: u64,
    /// What nested paging makes of that.
    pub spa: u64,
    /// The nested leaf.
    pub leaf: Leaf,
    /// The guest.
    pub asid: u32,
    /// The level that executes.
    pub vmpl: usize,
}

/// How the instruction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With this in EAX, and the carry flag (PVALIDATE alone may set it).
    Returns {
        /// EAX.
        eax: u32,
        /// CF.
        carry: bool,
    },
    /// With #VMEXIT(NPF); bit 31 of EXITINFO1, and 35 if the sizes are why.
    NestedPageFault {
        /// Bit 35.
        size: bool,
    },
    /// With #VC, 0x404.
    NotValidated,
}

impl Answer {
    const DONE: Answer = Answer::Returns { eax: 0, carry: false };

    const fn failed(eax: u32) -> Answer {
        Answer::Returns { eax, carry: false }
    }
}

impl Map {
    /// The page if the guest owns it and may have it changed, else the fault.
    fn owned(&self, operand: &Operand) -> Result<Page, Answer> {
        let refused = Answer::NestedPageFault { size: false };
        let page = self.page(operand.spa >> 12).ok_or(refused)?;
        let mine = page.assigned && page.asid == operand.asid && page.gpa >> 12 == operand.gpa >> 12;
        if mine && !page.immutable { Ok(*page) } else { Err(refused) }
    }

    /// PVALIDATE of 4 KiB or 2 MiB (`large`); Validated becomes `value`.
    pub fn pvalidate(&mut self, operand: &Operand, large: bool, value: bool) -> Answer {
        if operand.vmpl != 0 {
            return Answer::failed(2);
        }
        if large && operand.gva & 0x1f_ffff != 0 {
            return Answer::failed(1);
        }
        let page = match self.owned(operand) {
            Ok(page) => page,
            Err(fault) => return fault,
        };
        if !large && (page.large || operand.leaf != Leaf::Small) {
            return Answer::NestedPageFault { size: true };
        }
        if large && (!page.large || operand.leaf == Leaf::Small) {
            return Answer::failed(6);
        }
        if page.validated == value {
            return Answer::Returns { eax: 0, carry: true };
        }
        let whole = self.whole(operand.spa >> 12);
        for page in &mut self.pages[whole] {
            page.validated = value;
        }
        Answer::DONE
    }

    /// RMPADJUST with RCX and RDX.
    pub fn rmpadjust(&mut self, operand: &Operand, rcx: u64, rdx: u64) -> Answer {
        let (target, mask, vmsa) = (rdx & 0xff, (rdx >> 8 & 0xff) as u8, rdx >> 16 & 1 == 1);
        let large = rcx == 1;
        if rcx > 1 || large && operand.gva & 0x1f_ffff != 0 || target > 3 || mask & 0xe0 != 0 || rdx >> 17 != 0 {
            return Answer::failed(1);
        }
        if target as usize <= operand.vmpl {
            return Answer::failed(2);
        }
        let page = match self.owned(operand) {
            Ok(page) => page,
            Err(fault) => return fault,
        };
        if !large && (page.large || operand.leaf != Leaf::Small) {
            return Answer::NestedPageFault { size: true };
        }
        if !page.validated {
            return Answer::NotValidated;
        }
        if large && (!page.large || operand.leaf == Leaf::Small) {
            return Answer::failed(6);
        }
        if mask & !page.masks[operand.vmpl] != 0 {
            return Answer::failed(2);
        }
        let whole = self.whole(operand.spa >> 12);
        for page in &mut self.pages[whole] {
            page.masks[target as usize] = mask;
            if operand.vmpl == 0 {
                page.vmsa = vmsa;
            }
        }
        Answer::DONE
    }

    /// RMPQUERY: the mask of `target`, VMSA, and whether the page is of 2 MiB.
    pub fn rmpquery(&self, operand: &Operand, target: usize) -> Result<(u8, bool, bool), Answer> {
        if target < operand.vmpl {
            return Err(Answer::failed(2));
        }
        let page = self.owned(operand)?;
        if page.large != (operand.leaf != Leaf::Small) {
            return Err(Answer::NestedPageFault { size: false });
        }
        if !page.validated {
            return Err(Answer::NotValidated);
        }
        Ok((page.masks[target], page.vmsa, page.large))
    }
}
