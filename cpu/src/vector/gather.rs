//! The progress of a gather (Intel SDM volume 2, VPGATHERDD/VPGATHERQD, VPGATHERDQ/VPGATHERQQ and the VGATHER
//! forms, which move the same bits).
//!
//! A gather that faults leaves the elements loaded so far in the destination, their mask elements clear, and can be
//! resumed by executing it again. [`Gather`] is that progress: the handler takes an element from
//! [`Gather::advance`], loads it, gives it to [`Gather::supply`], and writes [`Gather::registers`] back both at
//! the end and before it raises a fault.
//!
//! Invariant: mask elements are all ones or all zeros from the start on, as the manual has it. Left out: the
//! #UD for overlapping registers, which is the decoder's to find.

use super::mask::{self, ElementMask};
use super::{V128, V256};

/// The width of an index or of an element.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 32 bits; an index is sign-extended.
    Dword,
    /// 64 bits.
    Qword,
}

impl Width {
    const fn bytes(self) -> usize {
        match self {
            Width::Dword => 4,
            Width::Qword => 8,
        }
    }
}

/// The vector length of the instruction, VEX.L.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    /// VEX.128.
    Xmm,
    /// VEX.256.
    Ymm,
}

/// Which gather it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// The width of an index: the first letter of the suffix.
    pub index: Width,
    /// The width of an element: the second letter of the suffix.
    pub element: Width,
    /// The length of the wider of the index and data vectors.
    pub length: Length,
}

impl Shape {
    /// The number of elements gathered: as many of the wider kind as fit.
    #[inline]
    pub fn elements(self) -> usize {
        let bytes = match self.length {
            Length::Xmm => 16,
            Length::Ymm => 32,
        };
        bytes / self.index.bytes().max(self.element.bytes())
    }
}

/// An element to be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pending {
    /// Its number in the destination.
    pub element: usize,
    /// Its index times the scale, to be added to base and displacement, modulo the address size.
    pub offset: i64,
}

/// A gather under way.
#[derive(Clone, Debug)]
pub struct Gather {
    shape: Shape,
    scale: i64,
    indices: V256,
    destination: V256,
    mask: V256,
    pending: ElementMask,
}

impl Gather {
    /// A gather before its first element: the destination, the mask register and the index register as they are,
    /// and the scale of the VSIB byte (1, 2, 4 or 8).
    pub fn new(shape: Shape, destination: V256, mask: V256, indices: V256, scale: u8) -> Gather {
        let mut gather = Gather {
            shape,
            scale: i64::from(scale),
            indices,
            destination: [V128::ZERO; 2],
            mask: [V128::ZERO; 2],
            pending: ElementMask::default(),
        };
        let selected = match shape.element {
            Width::Dword => ElementMask::of_dwords(mask),
            Width::Qword => ElementMask::of_qwords(mask),
        };
        // Elements beyond the last are cleared in both registers.
        for element in 0..shape.elements() {
            match shape.element {
                Width::Dword => {
                    mask::set_dword(&mut gather.destination, element, mask::dword(destination, element));
                }
                Width::Qword => {
                    mask::set_qword(&mut gather.destination, element, mask::qword(destination, element));
                }
            }
            if selected.contains(element) {
                gather.set_mask(element, u64::MAX);
            }
        }
        gather.pending = match shape.element {
            Width::Dword => ElementMask::of_dwords(gather.mask),
            Width::Qword => ElementMask::of_qwords(gather.mask),
        };
        gather
    }

    /// The next element to load, from the lowest. It counts as loaded only with [`Gather::supply`].
    pub fn advance(&mut self) -> Option<Pending> {
        let element = self.pending.next()?;
        let index = match self.shape.index {
            Width::Dword => i64::from(mask::dword(self.indices, element) as i32),
            Width::Qword => mask::qword(self.indices, element) as i64,
        };
        Some(Pending { element, offset: index.wrapping_mul(self.scale) })
    }

    /// Puts a loaded value into its place and clears its mask element. Of a doubleword gather only the low 32
    /// bits of `value` count.
    pub fn supply(&mut self, element: usize, value: u64) {
        match self.shape.element {
            Width::Dword => mask::set_dword(&mut self.destination, element, value as u32),
            Width::Qword => mask::set_qword(&mut self.destination, element, value),
        }
        self.set_mask(element, 0);
    }

    /// The destination and mask registers as they are to be written back.
    pub fn registers(&self) -> (V256, V256) {
        (self.destination, self.mask)
    }

    fn set_mask(&mut self, element: usize, value: u64) {
        match self.shape.element {
            Width::Dword => mask::set_dword(&mut self.mask, element, value as u32),
            Width::Qword => mask::set_qword(&mut self.mask, element, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Lane;

    fn shape(index: Width, element: Width, length: Length) -> Shape {
        Shape { index, element, length }
    }

    #[test]
    fn the_wider_vector_sets_the_number_of_elements() {
        use Length::{Xmm, Ymm};
        use Width::{Dword, Qword};
        assert_eq!(shape(Dword, Dword, Xmm).elements(), 4);
        assert_eq!(shape(Dword, Dword, Ymm).elements(), 8);
        assert_eq!(shape(Dword, Qword, Ymm).elements(), 4);
        assert_eq!(shape(Qword, Dword, Ymm).elements(), 4);
        assert_eq!(shape(Qword, Dword, Xmm).elements(), 2);
        assert_eq!(shape(Qword, Qword, Xmm).elements(), 2);
    }

    #[test]
    fn a_fault_in_the_middle_keeps_what_was_loaded() {
        let mask = [<u32 as Lane>::join([0x8000_0000, 0x7fff_ffff, 0xffff_ffff, 0x8000_0001]), V128::ONES];
        let indices = [<i32 as Lane>::join([-1, 5, 2, 3]), V128::ZERO];
        let mut gather =
            Gather::new(shape(Width::Dword, Width::Dword, Length::Xmm), [7_u32.splat(), V128::ONES], mask, indices, 4);
        assert_eq!(gather.advance(), Some(Pending { element: 0, offset: -4 }));
        gather.supply(0, 0x1_0000_0042);
        assert_eq!(gather.advance(), Some(Pending { element: 2, offset: 8 }));
        // Element 2 faults.
        let (destination, mask) = gather.registers();
        assert_eq!(destination, [<u32 as Lane>::join([0x42, 7, 7, 7]), V128::ZERO]);
        assert_eq!(mask, [<u32 as Lane>::join([0, 0, u32::MAX, u32::MAX]), V128::ZERO]);
        // Executed again, it resumes there.
        let mut again = Gather::new(shape(Width::Dword, Width::Dword, Length::Xmm), destination, mask, indices, 4);
        for element in [2, 3] {
            assert_eq!(again.advance().map(|pending| pending.element), Some(element));
            again.supply(element, element as u64);
        }
        assert_eq!(again.advance(), None);
        assert_eq!(again.registers(), ([<u32 as Lane>::join([0x42, 7, 2, 3]), V128::ZERO], [V128::ZERO; 2]));
    }

    #[test]
    fn quadword_indices_of_doublewords_clear_the_rest() {
        let indices = [<i64 as Lane>::join([i64::MIN, 3]), V128::ZERO];
        let mut gather =
            Gather::new(shape(Width::Qword, Width::Dword, Length::Xmm), [V128::ONES; 2], [V128::ONES; 2], indices, 2);
        assert_eq!(gather.advance(), Some(Pending { element: 0, offset: 0 }));
        gather.supply(0, 1);
        assert_eq!(gather.advance(), Some(Pending { element: 1, offset: 6 }));
        gather.supply(1, 2);
        assert_eq!(gather.advance(), None);
        assert_eq!(gather.registers(), ([V128::from_low(2 << 32 | 1), V128::ZERO], [V128::ZERO; 2]));
    }

    #[test]
    fn doubleword_indices_of_quadwords() {
        let indices = [<i32 as Lane>::join([1, 2, 3, -4]), V128::ONES];
        let mut gather = Gather::new(
            shape(Width::Dword, Width::Qword, Length::Ymm),
            [V128::ZERO; 2],
            [V128::ZERO, V128::ONES],
            indices,
            8,
        );
        assert_eq!(gather.advance(), Some(Pending { element: 2, offset: 24 }));
        gather.supply(2, u64::MAX);
        assert_eq!(gather.advance(), Some(Pending { element: 3, offset: -32 }));
        gather.supply(3, 1);
        assert_eq!(gather.registers().0, [V128::ZERO, <u64 as Lane>::join([u64::MAX, 1])]);
    }
}
