//! Address newtypes, one per space, and their frame numbers.
//!
//! An address has no `+` and no `-`: every operation says what happens on overflow. Whether an address is valid
//! (canonical, below MAXPHYADDR) is a question to the CPU model, not to the type.

use core::fmt;

use crate::page::{PAGE_SHIFT, PageSize};

macro_rules! address_space {
    ($($(#[$meta:meta])* $Addr:ident in frames of $Frame:ident;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $Addr(u64);

        impl $Addr {
            /// The address with this number.
            #[inline]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }
            /// The number, for table entries, registers and messages.
            #[inline]
            pub const fn raw(self) -> u64 {
                self.0
            }
            /// The 4 KiB frame this address lies in.
            #[inline]
            pub const fn frame(self) -> $Frame {
                $Frame(self.0 >> PAGE_SHIFT)
            }
            /// Bits 11:0, the byte within the 4 KiB frame.
            #[inline]
            pub const fn page_offset(self) -> usize {
                (self.0 & 0xfff) as usize
            }
            /// The byte within a page of `size`.
            #[inline]
            pub const fn offset_in(self, size: PageSize) -> u64 {
                self.0 & (size.bytes() - 1)
            }
            /// The first address of the page of `size` that holds this one.
            #[inline]
            pub const fn align_down(self, size: PageSize) -> Self {
                Self(self.0 & !(size.bytes() - 1))
            }
            /// Whether this is the first address of a page of `size`.
            #[inline]
            pub const fn is_aligned(self, size: PageSize) -> bool {
                self.offset_in(size) == 0
            }
            /// `self + bytes`, or `None` past the end of the 64-bit space.
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }
            /// `self + bytes` modulo 2^64, as effective addresses are formed.
            #[inline]
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
            /// Bytes from `base` up to `self`, or `None` when `self` lies below it.
            #[inline]
            pub const fn offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }
        }

        impl fmt::Debug for $Addr {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($Addr), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $Addr {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
        impl fmt::LowerHex for $Addr {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        #[doc = concat!("Number of a 4 KiB frame of [`", stringify!($Addr), "`] space.")]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $Frame(u64);

        impl $Frame {
            /// The frame with this number.
            #[inline]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }
            /// The number.
            #[inline]
            pub const fn raw(self) -> u64 {
                self.0
            }
            /// The first address of the frame. Bits above 63 are lost, so the number must be below 2^52.
            #[inline]
            pub const fn base(self) -> $Addr {
                $Addr(self.0 << PAGE_SHIFT)
            }
            /// `self + frames`, or `None` past 2^64.
            #[inline]
            pub const fn checked_add(self, frames: u64) -> Option<Self> {
                match self.0.checked_add(frames) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }
            /// Frames from `base` up to `self`, or `None` when `self` lies below it.
            #[inline]
            pub const fn offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }
            /// The first frame of the page of `size` that holds this one.
            #[inline]
            pub const fn align_down(self, size: PageSize) -> Self {
                Self(self.0 & !(size.frames() - 1))
            }
            /// Whether this is the first frame of a page of `size`.
            #[inline]
            pub const fn is_aligned(self, size: PageSize) -> bool {
                self.0 & (size.frames() - 1) == 0
            }
        }

        impl fmt::Debug for $Frame {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($Frame), "({:#x})"), self.0)
            }
        }
    )*};
}

address_space! {
    /// Linear (virtual) address: what segmentation yields and the guest's CR3 tables translate.
    Gva in frames of Gvn;
    /// Guest physical address: what the nested tables translate; never an index into host memory.
    Gpa in frames of Gfn;
    /// System physical address: what the RMP is indexed by and system memory answers to.
    Spa in frames of Sfn;
    /// Host user address: where a process of the host, the VMM above all, sees a byte; what a memslot's
    /// `userspace_addr` is.
    Hva in frames of Hvn;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_names_the_space() {
        assert_eq!(format!("{:?} {:?}", Gpa::new(0x1234), Gpa::new(0x1234).frame()), "Gpa(0x1234) Gfn(0x1)");
    }

    #[test]
    fn alignment_and_offsets_agree_for_every_size() {
        for size in PageSize::ALL {
            let addr = Spa::new(0x1234_5678_9abc);
            let base = addr.align_down(size);
            assert!(base.is_aligned(size));
            assert_eq!(base.checked_add(addr.offset_in(size)), Some(addr));
            assert_eq!(addr.frame().align_down(size), base.frame());
        }
    }

    #[test]
    fn overflow_is_visible() {
        assert_eq!(Gva::new(u64::MAX).checked_add(1), None);
        assert_eq!(Gva::new(u64::MAX).wrapping_add(1), Gva::new(0));
        assert_eq!(Gva::new(1).offset_from(Gva::new(2)), None);
    }
}
