//! Where each register lies: the one table of the layout.

use core::marker::PhantomData;

use crate::segment::SegmentAttributes;

/// Length of the page.
pub const VMSA_LEN: usize = 4096;

/// A segment register or descriptor table as it lies there, attributes packed as in a VMCB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmsaSegment {
    /// Selector; 0 for a descriptor table.
    pub selector: u16,
    /// Attributes: bits 55:52 and 47:40 of the descriptor.
    pub attributes: SegmentAttributes,
    /// Limit in bytes.
    pub limit: u32,
    /// Base.
    pub base: u64,
}

/// What a field can hold.
pub trait Stored: Copy {
    /// Its length in bytes.
    const LEN: usize;
    /// Reads it from as many bytes.
    fn read(bytes: &[u8]) -> Self;
    /// Writes it to as many bytes.
    fn write(self, bytes: &mut [u8]);
}

macro_rules! stored {
    ($($Int:ty)*) => {$(
        impl Stored for $Int {
            const LEN: usize = size_of::<$Int>();
            fn read(bytes: &[u8]) -> $Int {
                bytes.iter().rev().fold(0, |value, &byte| (value as u64) << 8 | byte as u64) as $Int
            }
            fn write(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
stored! { u8 u16 u32 u64 }

impl<const N: usize> Stored for [u8; N] {
    const LEN: usize = N;
    fn read(bytes: &[u8]) -> [u8; N] {
        let mut value = [0; N];
        value.copy_from_slice(bytes);
        value
    }
    fn write(self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self);
    }
}

impl Stored for VmsaSegment {
    const LEN: usize = 16;
    fn read(bytes: &[u8]) -> VmsaSegment {
        VmsaSegment {
            selector: u16::read(&bytes[..2]),
            attributes: SegmentAttributes::from_bits(u16::read(&bytes[2..4])),
            limit: u32::read(&bytes[4..8]),
            base: u64::read(&bytes[8..]),
        }
    }
    fn write(self, bytes: &mut [u8]) {
        self.selector.write(&mut bytes[..2]);
        self.attributes.into_bits().write(&mut bytes[2..4]);
        self.limit.write(&mut bytes[4..8]);
        self.base.write(&mut bytes[8..]);
    }
}

/// The place of one field.
#[derive(Clone, Copy, Debug)]
pub struct VmsaField<T> {
    offset: usize,
    holds: PhantomData<T>,
}

impl<T: Stored> VmsaField<T> {
    const fn at(offset: usize) -> VmsaField<T> {
        VmsaField { offset, holds: PhantomData }
    }
    /// Offset in the page.
    pub const fn offset(self) -> usize {
        self.offset
    }
    /// Its value in `page`.
    pub fn get(self, page: &[u8; VMSA_LEN]) -> T {
        T::read(&page[self.offset..self.offset + T::LEN])
    }
    /// Puts `value` into `page`.
    pub fn set(self, page: &mut [u8; VMSA_LEN], value: T) {
        value.write(&mut page[self.offset..self.offset + T::LEN]);
    }
}

/// Name and extent of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmsaExtent {
    /// Name of its constant.
    pub name: &'static str,
    /// First byte.
    pub offset: usize,
    /// Length in bytes.
    pub len_bytes: usize,
}

macro_rules! layout {
    ($($(#[$meta:meta])* $NAME:ident: $Kind:ty = $offset:literal;)*) => {
        $($(#[$meta])* pub const $NAME: VmsaField<$Kind> = VmsaField::at($offset);)*

        /// Every field that the processor reads or writes, ascending.
        pub const VMSA_FIELDS: &[VmsaExtent] = &[$(
            VmsaExtent { name: stringify!($NAME), offset: $offset, len_bytes: <$Kind as Stored>::LEN },
        )*];
    };
}

layout! {
    /// ES
    ES: VmsaSegment = 0x000;
    /// CS
    CS: VmsaSegment = 0x010;
    /// SS
    SS: VmsaSegment = 0x020;
    /// DS
    DS: VmsaSegment = 0x030;
    /// FS
    FS: VmsaSegment = 0x040;
    /// GS
    GS: VmsaSegment = 0x050;
    /// GDTR
    GDTR: VmsaSegment = 0x060;
    /// LDTR
    LDTR: VmsaSegment = 0x070;
    /// IDTR
    IDTR: VmsaSegment = 0x080;
    /// TR
    TR: VmsaSegment = 0x090;
    /// Privilege level of the guest, 0 to 3.
    VMPL: u8 = 0x0ca;
    /// CPL
    CPL: u8 = 0x0cb;
    /// EFER; SVME must be set.
    EFER: u64 = 0x0d0;
    /// IA32_XSS
    XSS: u64 = 0x140;
    /// CR4
    CR4: u64 = 0x148;
    /// CR3
    CR3: u64 = 0x150;
    /// CR0
    CR0: u64 = 0x158;
    /// DR7
    DR7: u64 = 0x160;
    /// DR6
    DR6: u64 = 0x168;
    /// RFLAGS
    RFLAGS: u64 = 0x170;
    /// RIP
    RIP: u64 = 0x178;
    /// RSP
    RSP: u64 = 0x1d8;
    /// RAX
    RAX: u64 = 0x1f8;
    /// STAR
    STAR: u64 = 0x200;
    /// LSTAR
    LSTAR: u64 = 0x208;
    /// CSTAR
    CSTAR: u64 = 0x210;
    /// SFMASK
    SFMASK: u64 = 0x218;
    /// KERNEL_GS_BASE
    KERNEL_GS_BASE: u64 = 0x220;
    /// SYSENTER_CS
    SYSENTER_CS: u64 = 0x228;
    /// SYSENTER_ESP
    SYSENTER_ESP: u64 = 0x230;
    /// SYSENTER_EIP
    SYSENTER_EIP: u64 = 0x238;
    /// CR2
    CR2: u64 = 0x240;
    /// PAT
    G_PAT: u64 = 0x268;
    /// DEBUGCTL
    DBGCTL: u64 = 0x270;
    /// PKRU
    PKRU: u32 = 0x2e8;
    /// TSC_AUX
    TSC_AUX: u32 = 0x2ec;
    /// RCX
    RCX: u64 = 0x308;
    /// RDX
    RDX: u64 = 0x310;
    /// RBX
    RBX: u64 = 0x318;
    /// RBP
    RBP: u64 = 0x328;
    /// RSI
    RSI: u64 = 0x330;
    /// RDI
    RDI: u64 = 0x338;
    /// R8
    R8: u64 = 0x340;
    /// R9
    R9: u64 = 0x348;
    /// R10
    R10: u64 = 0x350;
    /// R11
    R11: u64 = 0x358;
    /// R12
    R12: u64 = 0x360;
    /// R13
    R13: u64 = 0x368;
    /// R14
    R14: u64 = 0x370;
    /// R15
    R15: u64 = 0x378;
    /// The event whose delivery the exit interrupted, as EXITINTINFO has it.
    GUEST_EXITINTINFO: u64 = 0x3a0;
    /// RIP after the instruction whose event that is, for an event that an instruction asked for.
    GUEST_NRIP: u64 = 0x3a8;
    /// SEV_FEATURES
    SEV_FEATURES: u64 = 0x3b0;
    /// Virtual interrupt control: the interrupt shadow.
    VINTR_CTRL: u64 = 0x3b8;
    /// Which processor has run it last; 0: none, and nothing may be remembered of its translations.
    PCPU_ID: u64 = 0x3d8;
    /// XCR0
    XCR0: u64 = 0x3e8;
    /// x87 data pointer.
    X87_DP: u64 = 0x400;
    /// MXCSR
    MXCSR: u32 = 0x408;
    /// x87 tags, two bits for each physical register.
    X87_FTW: u16 = 0x40c;
    /// x87 status word.
    X87_FSW: u16 = 0x40e;
    /// x87 control word.
    X87_FCW: u16 = 0x410;
    /// x87 opcode.
    X87_FOP: u16 = 0x412;
    /// x87 data segment.
    X87_DS: u16 = 0x414;
    /// x87 code segment.
    X87_CS: u16 = 0x416;
    /// x87 instruction pointer.
    X87_RIP: u64 = 0x418;
    /// ST(0) to ST(7): the significands, then signs and exponents.
    X87_REGISTERS: [u8; 80] = 0x420;
    /// XMM0 to XMM15
    XMM: [u8; 256] = 0x470;
    /// The upper halves of YMM0 to YMM15
    YMM_HIGH: [u8; 256] = 0x570;
}

const fn ascending(fields: &[VmsaExtent]) -> bool {
    let (mut i, mut end) = (0, 0);
    while i < fields.len() {
        if fields[i].offset < end {
            return false;
        }
        end = fields[i].offset + fields[i].len_bytes;
        i += 1;
    }
    // What the processor keeps of the guest ends here; beyond are its own intercepts.
    end <= 0x670
}
const _: () = assert!(ascending(VMSA_FIELDS), "fields ascend, do not overlap and end where the save area does");
