//! Files for tests, written by the crate that reads them.

use emu_core::Gpa;
use emu_core::sev::SevFeatures;
use hypervisor::snp::launch::VMSA_GPA;
use igvm::snp_defs::{SevSelector, SevVmsa};
use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmInitializationHeader, IgvmPlatformHeader, IgvmRevision};
use igvm_defs::{
    IGVM_VHS_PARAMETER, IGVM_VHS_PARAMETER_INSERT, IGVM_VHS_SUPPORTED_PLATFORM, IgvmPageDataFlags, IgvmPageDataType,
    IgvmPlatformType,
};
use zerocopy::FromZeros;

/// The platform's mask in all files here.
pub(crate) const MASK: u32 = 1;

pub(crate) fn platform(kind: IgvmPlatformType) -> IgvmPlatformHeader {
    IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
        compatibility_mask: MASK,
        highest_vtl: 0,
        platform_type: kind,
        platform_version: 1,
        shared_gpa_boundary: 0,
    })
}

/// The bytes of a file for SNP.
pub(crate) fn file(initializations: Vec<IgvmInitializationHeader>, directives: Vec<IgvmDirectiveHeader>) -> Vec<u8> {
    let platforms = vec![platform(IgvmPlatformType::SEV_SNP)];
    let file = IgvmFile::new(IgvmRevision::V1, platforms, initializations, directives).expect("the crate takes it");
    let mut bytes = Vec::new();
    file.serialize(&mut bytes).expect("what it takes it writes");
    bytes
}

pub(crate) fn page_of(
    gpa: u64,
    flags: IgvmPageDataFlags,
    data_type: IgvmPageDataType,
    data: &[u8],
) -> IgvmDirectiveHeader {
    IgvmDirectiveHeader::PageData { gpa, compatibility_mask: MASK, flags, data_type, data: data.to_vec() }
}

/// A measured page.
pub(crate) fn page(gpa: u64, data: &[u8]) -> IgvmDirectiveHeader {
    page_of(gpa, IgvmPageDataFlags::new(), IgvmPageDataType::NORMAL, data)
}

pub(crate) fn area(index: u32, number_of_bytes: u64) -> IgvmDirectiveHeader {
    IgvmDirectiveHeader::ParameterArea { number_of_bytes, parameter_area_index: index, initial_data: Vec::new() }
}

pub(crate) fn place(index: u32, byte_offset: u32) -> IGVM_VHS_PARAMETER {
    IGVM_VHS_PARAMETER { parameter_area_index: index, byte_offset }
}

pub(crate) fn insert(index: u32, gpa: u64) -> IgvmDirectiveHeader {
    let insert = IGVM_VHS_PARAMETER_INSERT { gpa, compatibility_mask: MASK, parameter_area_index: index };
    IgvmDirectiveHeader::ParameterInsert(insert)
}

pub(crate) fn context_at(gpa: Gpa, vp_index: u16, vmsa: Box<SevVmsa>) -> IgvmDirectiveHeader {
    IgvmDirectiveHeader::SnpVpContext { gpa: gpa.raw(), compatibility_mask: MASK, vp_index, vmsa }
}

pub(crate) fn context(vp_index: u16, vmsa: Box<SevVmsa>) -> IgvmDirectiveHeader {
    context_at(VMSA_GPA, vp_index, vmsa)
}

/// Where the parts of [`guest`] lie.
pub(crate) const TABLES: u64 = 0x1_0000;
pub(crate) const CODE: u64 = 0x1_4000;
pub(crate) const PARAMETERS: u64 = 0x1_8000;
/// Not part of the launch.
pub(crate) const NOT_LAUNCHED: u64 = 0x10_0000;

/// A processor in 64-bit mode at [`CODE`], over [`tables`].
pub(crate) fn vmsa() -> Box<SevVmsa> {
    let mut vmsa = SevVmsa::new_box_zeroed().expect("there is memory");
    // Attributes as in a VMCB: type, S, P in the low byte, L and G above.
    let data = SevSelector { selector: 0x18, attrib: 0xc93, limit: u32::MAX, base: 0 };
    (vmsa.es, vmsa.ss, vmsa.ds, vmsa.fs, vmsa.gs) = (data, data, data, data, data);
    vmsa.cs = SevSelector { selector: 0x10, attrib: 0xa9b, limit: u32::MAX, base: 0 };
    vmsa.tr = SevSelector { selector: 0, attrib: 0x8b, limit: 0x67, base: 0 };
    vmsa.ldtr = SevSelector { selector: 0, attrib: 0x82, limit: 0, base: 0 };
    vmsa.efer = 0x1d00;
    vmsa.cr0 = 0x8000_0011;
    vmsa.cr3 = TABLES | 1 << 51;
    vmsa.cr4 = 0x20;
    vmsa.rflags = 2;
    vmsa.rip = CODE;
    vmsa.xcr0 = 1;
    vmsa.dr6 = 0xffff_0ff0;
    vmsa.dr7 = 0x400;
    vmsa.pat = 0x0007_0406_0007_0406;
    vmsa.mxcsr = 0x1f80;
    vmsa.x87_fcw = 0x37f;
    vmsa.sev_features = SevFeatures::SNP_ACTIVE.bits().into();
    vmsa
}

/// Three pages of tables that map the first 2 MiB to themselves, all of it encrypted.
pub(crate) fn tables() -> [IgvmDirectiveHeader; 3] {
    let table = |n: u64, entry: u64| page(TABLES + n * 0x1000, &(entry | 1 << 51).to_le_bytes());
    [table(0, TABLES + 0x1003), table(1, TABLES + 0x2003), table(2, 0x83)]
}

/// The guest: makes [`NOT_LAUNCHED`] valid, writes there, and gives up with the number of processors as its reason, or with
/// 0xff if the page could not be made valid.
pub(crate) const INSTRUCTIONS: &[u8] = &[
    0xb8, 0x00, 0x00, 0x10, 0x00, // mov eax, NOT_LAUNCHED
    0x31, 0xc9, // xor ecx, ecx: 4 KiB
    0xba, 0x01, 0x00, 0x00, 0x00, // mov edx, 1
    0xf2, 0x0f, 0x01, 0xff, // pvalidate
    0x72, 0x0d, // jc failed: it was valid
    0x85, 0xc0, // test eax, eax
    0x75, 0x09, // jnz failed
    0x8b, 0x1c, 0x25, 0x00, 0x80, 0x01, 0x00, // mov ebx, [PARAMETERS]
    0xeb, 0x05, // jmp on
    0xbb, 0xff, 0x00, 0x00, 0x00, // failed: mov ebx, 0xff
    0x89, 0x1c, 0x25, 0x00, 0x00, 0x10, 0x00, // on: mov [NOT_LAUNCHED], ebx
    0x8b, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00, // mov eax, [NOT_LAUNCHED]
    0xc1, 0xe0, 0x10, // shl eax, 16
    0x0d, 0x00, 0x11, 0x00, 0x00, // or eax, 0x1100: termination, reason set 1
    0x31, 0xd2, // xor edx, edx
    0xb9, 0x30, 0x01, 0x01, 0xc0, // mov ecx, 0xc0010130: the GHCB's MSR
    0x0f, 0x30, // wrmsr
    0xf3, 0x0f, 0x01, 0xd9, // vmgexit
    0xf4, // hlt
];

pub(crate) fn code() -> IgvmDirectiveHeader {
    page(CODE, INSTRUCTIONS)
}

/// Everything that the loader knows, in one file.
pub(crate) fn directives() -> Vec<IgvmDirectiveHeader> {
    use IgvmPageDataType as Kind;
    let plain = IgvmPageDataFlags::new();
    let required = IgvmDirectiveHeader::RequiredMemory {
        gpa: NOT_LAUNCHED,
        compatibility_mask: MASK,
        number_of_bytes: 0x10_0000,
        vtl2_protectable: false,
    };
    let [first, second, third] = tables();
    vec![
        required,
        code(),
        first,
        second,
        third,
        page_of(0x1_5000, plain, Kind::SECRETS, &[]),
        page_of(0x1_6000, plain, Kind::CPUID_DATA, &[]),
        page_of(0x1_7000, plain.with_unmeasured(true), Kind::NORMAL, b"unmeasured"),
        page(0x1_3000, &[]),
        area(3, 0x1000),
        IgvmDirectiveHeader::VpCount(place(3, 0)),
        IgvmDirectiveHeader::EnvironmentInfo(place(3, 4)),
        IgvmDirectiveHeader::MemoryMap(place(3, 8)),
        IgvmDirectiveHeader::CommandLine(place(3, 0x800)),
        insert(3, PARAMETERS),
        context(0, vmsa()),
    ]
}

/// The bytes of a whole guest.
pub(crate) fn guest() -> Vec<u8> {
    file(vec![IgvmInitializationHeader::GuestPolicy { policy: 0x3_0000, compatibility_mask: MASK }], directives())
}
