//! The protocol, from a guest's point of view.

mod page_state;

use emu_core::cpuid::{CpuidResult, Reg};
use emu_core::page::PAGE_SIZE;
use emu_core::sev::{ExitCode, SevFeatures, Vmpl, ghcb_sev_info};
use emu_core::{Exception, Gpa, Msr, PageSize};

use super::layout::*;
use super::*;

/// Shared memory from 0 on.
struct Shared(Vec<u8>);

impl Shared {
    fn range(&self, gpa: Gpa, len: usize) -> Result<core::ops::Range<usize>, GhcbUnreachable> {
        let start = usize::try_from(gpa.raw()).map_err(|_| GhcbUnreachable)?;
        let end = start.checked_add(len).filter(|&end| end <= self.0.len()).ok_or(GhcbUnreachable)?;
        Ok(start..end)
    }
}

impl GhcbMemory for Shared {
    fn read(&mut self, gpa: Gpa, into: &mut [u8]) -> Result<(), GhcbUnreachable> {
        let range = self.range(gpa, into.len())?;
        into.copy_from_slice(&self.0[range]);
        Ok(())
    }
    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), GhcbUnreachable> {
        let range = self.range(gpa, from.len())?;
        self.0[range].copy_from_slice(from);
        Ok(())
    }
}

const PAGE: usize = 0x3000;
const BUFFER: u64 = (PAGE + SHARED_BUFFER) as u64;
const CONFIG: GhcbConfig = GhcbConfig {
    c_bit: 51,
    features: HvFeatures::SNP.union(HvFeatures::AP_CREATION),
    sev_features: SevFeatures::SNP_ACTIVE,
};
const RESUME: SnpAction = SnpAction::Resume { ghcb_msr: None };

/// A guest with a registered page.
struct Guest {
    host: GhcbGuest,
    vcpu: GhcbVcpu,
    memory: Shared,
}

impl Guest {
    fn new() -> Guest {
        let mut guest =
            Guest { host: GhcbGuest::new(CONFIG), vcpu: GhcbVcpu::new(), memory: Shared(vec![0; 8 * PAGE_SIZE]) };
        assert_eq!(guest.msr(PAGE as u64 | 0x012), Some(PAGE as u64 | 0x013));
        guest
    }

    /// A request of the MSR protocol that is answered at once.
    fn msr(&mut self, value: u64) -> Option<u64> {
        match self.vcpu.vmgexit(&self.host, value, &mut self.memory) {
            SnpAction::Resume { ghcb_msr } => ghcb_msr,
            other => panic!("{other:?}"),
        }
    }

    fn put(&mut self, field: Field, value: u64) -> &mut Guest {
        let at = PAGE + field.offset();
        let len = if field == Field::CPL { 1 } else { 8 };
        self.memory.0[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        let bit = field.valid_bit() as usize;
        self.memory.0[PAGE + VALID_BITMAP + bit / 8] |= 1 << (bit % 8);
        self
    }

    /// An event whose other fields are there already.
    fn exit(&mut self, code: ExitCode, info1: u64, info2: u64) -> SnpAction {
        self.put(Field::SW_EXITCODE, code.0).put(Field::SW_EXITINFO1, info1).put(Field::SW_EXITINFO2, info2);
        self.vcpu.vmgexit(&self.host, PAGE as u64, &mut self.memory)
    }

    fn reply(&mut self, reply: GhcbReply<'_>) -> Result<SnpAction, ReplyError> {
        self.vcpu.reply(&mut self.memory, reply)
    }

    /// A field that the hypervisor has marked as valid.
    fn get(&self, field: Field) -> u64 {
        let bit = field.valid_bit() as usize;
        assert!(self.memory.0[PAGE + VALID_BITMAP + bit / 8] >> (bit % 8) & 1 == 1, "{field:?} is not valid");
        self.quad(PAGE + field.offset())
    }

    fn quad(&self, at: usize) -> u64 {
        self.memory.0[at..at + 8].as_chunks().0.first().map_or(0, |&bytes| u64::from_le_bytes(bytes))
    }

    fn info(&self) -> (u64, u64) {
        (self.get(Field::SW_EXITINFO1), self.get(Field::SW_EXITINFO2))
    }
}

const PRIVATE: u64 = 1;
const SHARED: u64 = 2;

#[test]
fn the_msr_protocol_answers_what_it_can_by_itself() {
    let mut guest = Guest::new();
    assert_eq!(CONFIG.initial_msr(), 0x0002_0001_3300_0001);
    assert_eq!(guest.msr(0x002), Some(ghcb_sev_info(2, 1, 51)));
    assert_eq!(guest.msr(0x080), Some(0x3081));
    assert_eq!(guest.msr(0x010), Some(0xffff_ffff_ffff_f011));
    assert_eq!(guest.msr(0x5_0012), Some(0x5_0013));
    assert_eq!(guest.vcpu.registered(), Some(Gpa::new(0x5_0000)));
}

#[test]
fn an_unknown_request_leaves_the_msr_as_it_is() {
    let mut guest = Guest::new();
    let known = [0x000, 0x002, 0x004, 0x006, 0x010, 0x012, 0x014, 0x016, 0x080, 0x100];
    for request in (0..0x1000).filter(|request| !known.contains(request)) {
        assert_eq!(guest.msr(0xdead_beef_0000_0000 | request), None, "{request:#x}");
    }
}

#[test]
fn cpuid_through_the_msr_gives_the_register_that_is_asked_for() {
    let mut guest = Guest::new();
    let result = CpuidResult { eax: 1, ebx: 2, ecx: 3, edx: 4 };
    for (number, register) in [Reg::Eax, Reg::Ebx, Reg::Ecx, Reg::Edx].into_iter().enumerate() {
        let value = 0x8000_001f << 32 | (number as u64) << 30 | 0x004;
        let action = guest.vcpu.vmgexit(&guest.host, value, &mut guest.memory);
        assert_eq!(action, SnpAction::Cpuid(CpuidRequest { leaf: 0x8000_001f, subleaf: 0, xcr0: None, xss: None }));
        let answer = u64::from(result.get(register)) << 32 | (number as u64) << 30 | 0x005;
        assert_eq!(guest.reply(GhcbReply::Cpuid(result)), Ok(SnpAction::Resume { ghcb_msr: Some(answer) }));
    }
}

#[test]
fn a_page_changes_its_state_through_the_msr() {
    let mut guest = Guest::new();
    let run = |to| PageStateRun { start: Gfn::new(0x1234), frames: 1, to, size: PageSize::Size4K };
    for (operation, to) in [(PRIVATE, PageState::Private), (SHARED, PageState::Shared)] {
        for (reply, msr) in [(GhcbReply::Done, 0x015), (GhcbReply::Refused, 1 << 63 | 0x015)] {
            let value = operation << 52 | 0x123_4014;
            assert_eq!(guest.vcpu.vmgexit(&guest.host, value, &mut guest.memory), SnpAction::PageState(run(to)));
            assert_eq!(guest.reply(reply), Ok(SnpAction::Resume { ghcb_msr: Some(msr) }));
        }
    }
    for operation in (0..16).filter(|operation| ![PRIVATE, SHARED].contains(operation)) {
        assert_eq!(guest.msr(operation << 52 | 0x123_4014), Some(1 << 63 | 0x015));
    }
}

#[test]
fn a_page_that_is_not_registered_ends_the_machine() {
    let mut guest = Guest::new();
    let action = guest.vcpu.vmgexit(&guest.host, 0x4000, &mut guest.memory);
    let registered = Some(Gpa::new(PAGE as u64));
    assert_eq!(action, SnpAction::Fatal(VmgexitFatal::NotRegistered { page: Gpa::new(0x4000), registered }));
}

#[test]
fn without_a_page_that_can_be_read_the_guest_just_goes_on() {
    let mut guest = Guest::new();
    for page in [0, 0x10_0000, 0xffff_ffff_ffff_f000] {
        assert_eq!(guest.vcpu.vmgexit(&guest.host, page, &mut guest.memory), RESUME);
    }
}

#[test]
fn termination_through_the_msr_and_through_the_page_is_the_same_reason() {
    let mut guest = Guest::new();
    let reason = TerminationReason { set: 1, code: 3 };
    let action = guest.vcpu.vmgexit(&guest.host, 3 << 16 | 1 << 12 | 0x100, &mut guest.memory);
    assert_eq!(action, SnpAction::Terminate(Termination { reason, info: None }));
    let action = guest.exit(ExitCode::TERMINATE, 3 << 4 | 1, 77);
    assert_eq!(action, SnpAction::Terminate(Termination { reason, info: Some(77) }));
}

#[test]
fn out_gives_its_value_in_the_width_of_the_access() {
    let mut guest = Guest::new();
    guest.put(Field::RAX, 0xaabb_ccdd_eeff_1122);
    for (size, width, value) in [(1, IoWidth::Byte, 0x22), (2, IoWidth::Word, 0x1122), (4, IoWidth::Dword, 0xeeff_1122)]
    {
        guest.put(Field::RAX, 0xaabb_ccdd_eeff_1122);
        let action = guest.exit(ExitCode::IOIO, 0x3f8 << 16 | size << 4, 0);
        let transfer = IoTransfer::Out(value);
        assert_eq!(action, SnpAction::Io(IoRequest { port: 0x3f8, width, transfer }));
        assert_eq!(guest.reply(GhcbReply::Done), Ok(RESUME));
        assert_eq!(guest.info(), (0, 0));
    }
}

#[test]
fn in_replaces_the_low_part_of_rax() {
    let mut guest = Guest::new();
    for (size, expected) in [(1, 0x1111_1111_1111_11ff), (2, 0x1111_1111_1111_ffff), (4, 0xffff_ffff)] {
        guest.put(Field::RAX, 0x1111_1111_1111_1111);
        let action = guest.exit(ExitCode::IOIO, 0x60 << 16 | size << 4 | 1, 0);
        assert!(matches!(action, SnpAction::Io(IoRequest { port: 0x60, transfer: IoTransfer::In, .. })));
        assert_eq!(guest.reply(GhcbReply::Value(u64::MAX)), Ok(RESUME));
        assert_eq!(guest.get(Field::RAX), expected);
    }
    guest.exit(ExitCode::IOIO, 0x60 << 16 | 1 << 4 | 1, 0);
    guest.reply(GhcbReply::Value(0x5a)).unwrap();
    assert_eq!(guest.get(Field::RAX), 0xffff_ff5a, "what the hypervisor left is valid");
}

#[test]
fn string_io_goes_through_the_shared_buffer() {
    let mut guest = Guest::new();
    guest.memory.0[PAGE + SHARED_BUFFER..][..6].copy_from_slice(b"abcdef");
    guest.put(Field::SW_SCRATCH, BUFFER);
    let action = guest.exit(ExitCode::IOIO, 0x3f8 << 16 | 2 << 4 | 4 | 8, 3);
    let transfer = IoTransfer::StringOut { bytes: b"abcdef".to_vec() };
    assert_eq!(action, SnpAction::Io(IoRequest { port: 0x3f8, width: IoWidth::Word, transfer }));
    guest.reply(GhcbReply::Done).unwrap();
    guest.put(Field::SW_SCRATCH, BUFFER + 1);
    let action = guest.exit(ExitCode::IOIO, 0x3f8 << 16 | 1 << 4 | 4 | 1, 5);
    let transfer = IoTransfer::StringIn { count: 5 };
    assert_eq!(action, SnpAction::Io(IoRequest { port: 0x3f8, width: IoWidth::Byte, transfer }));
    assert_eq!(guest.reply(GhcbReply::Bytes(b"1234")), Err(ReplyError::Mismatch));
    assert_eq!(guest.reply(GhcbReply::Bytes(b"12345")), Ok(RESUME));
    assert_eq!(&guest.memory.0[PAGE + SHARED_BUFFER..][..7], b"a12345\0");
}

#[test]
fn scratch_areas_lie_within_the_shared_buffer() {
    let mut guest = Guest::new();
    let end = BUFFER + SHARED_BUFFER_BYTES as u64;
    let cases = [(0, 1), (BUFFER - 1, 1), (end - 7, 8), (end, 1), (u64::MAX - 3, 8), (u64::MAX, u64::MAX)];
    for (scratch, count) in cases {
        guest.put(Field::SW_SCRATCH, scratch);
        assert_eq!(guest.exit(ExitCode::IOIO, 1 << 4 | 4 | 1, count), RESUME);
        assert_eq!(guest.info(), (2, 3), "{scratch:#x}, {count}");
    }
    guest.put(Field::SW_SCRATCH, end - 8);
    assert!(matches!(guest.exit(ExitCode::MMIO_READ, 0xfee0_0000, 8), SnpAction::MmioRead { .. }));
}

#[test]
fn device_memory_is_read_into_and_written_from_the_shared_buffer() {
    let mut guest = Guest::new();
    guest.put(Field::SW_SCRATCH, BUFFER);
    let gpa = Gpa::new(0xfec0_0010);
    assert_eq!(guest.exit(ExitCode::MMIO_READ, gpa.raw(), 4), SnpAction::MmioRead { gpa, len_bytes: 4 });
    guest.reply(GhcbReply::Bytes(&[1, 2, 3, 4])).unwrap();
    guest.put(Field::SW_SCRATCH, BUFFER);
    let action = guest.exit(ExitCode::MMIO_WRITE, gpa.raw(), 3);
    assert_eq!(action, SnpAction::MmioWrite { gpa, len_bytes: 3, data: [1, 2, 3, 0, 0, 0, 0, 0] });
    guest.reply(GhcbReply::Done).unwrap();
    guest.put(Field::SW_SCRATCH, BUFFER);
    assert_eq!(guest.exit(ExitCode::MMIO_WRITE, gpa.raw(), 9), RESUME);
    assert_eq!(guest.info(), (2, 5));
}

#[test]
fn msrs_are_read_and_written_and_refused_with_general_protection() {
    let mut guest = Guest::new();
    guest.put(Field::RCX, 0xc000_0080);
    assert_eq!(guest.exit(ExitCode::MSR, 0, 0), SnpAction::MsrRead(Msr(0xc000_0080)));
    guest.reply(GhcbReply::Value(0x1234_5678_9abc_def0)).unwrap();
    assert_eq!((guest.get(Field::RAX), guest.get(Field::RDX)), (0x9abc_def0, 0x1234_5678));
    let action = guest.exit(ExitCode::MSR, 1, 0);
    assert_eq!(action, SnpAction::MsrWrite(Msr(0xc000_0080), 0x1234_5678_9abc_def0));
    assert_eq!(guest.reply(GhcbReply::Exception(Exception::GP0)), Ok(RESUME));
    assert_eq!(guest.info(), (1, 0x8000_030d));
}

#[test]
fn cpuid_needs_xcr0_for_the_leaf_that_depends_on_it() {
    let mut guest = Guest::new();
    guest.put(Field::RAX, 0xd).put(Field::RCX, 1);
    assert_eq!(guest.exit(ExitCode::CPUID, 0, 0), RESUME);
    assert_eq!(guest.info(), (2, 4));
    guest.put(Field::XCR0, 7);
    let request = CpuidRequest { leaf: 0xd, subleaf: 1, xcr0: Some(7), xss: None };
    // The bitmap was cleared, and RAX and RCX marked by the answer.
    assert_eq!(guest.exit(ExitCode::CPUID, 0, 0), SnpAction::Cpuid(request));
    guest.reply(GhcbReply::Cpuid(CpuidResult { eax: 1, ebx: 2, ecx: 3, edx: 4 })).unwrap();
    assert_eq!([Field::RAX, Field::RBX, Field::RCX, Field::RDX].map(|field| guest.get(field)), [1, 2, 3, 4]);
}

/// Events, and the fields without which they are malformed.
const NEEDS: &[(ExitCode, u64, &[Field])] = &[
    (ExitCode::DR7_WRITE, 0, &[Field::RAX]),
    (ExitCode::RDPMC, 0, &[Field::RCX]),
    (ExitCode::CPUID, 0, &[Field::RAX, Field::RCX]),
    (ExitCode::IOIO, 1 << 4, &[Field::RAX]),
    (ExitCode::IOIO, 1 << 4 | 4, &[Field::SW_SCRATCH]),
    (ExitCode::MSR, 0, &[Field::RCX]),
    (ExitCode::MSR, 1, &[Field::RCX, Field::RAX, Field::RDX]),
    (ExitCode::VMMCALL, 0, &[Field::RAX, Field::CPL]),
    (ExitCode::MONITOR, 0, &[Field::RAX, Field::RCX, Field::RDX]),
    (ExitCode::MWAIT, 0, &[Field::RAX, Field::RCX]),
    (ExitCode::MMIO_READ, 0, &[Field::SW_SCRATCH]),
    (ExitCode::MMIO_WRITE, 0, &[Field::SW_SCRATCH]),
    (ExitCode::PAGE_STATE_CHANGE, 0, &[Field::SW_SCRATCH]),
    (ExitCode::AP_CREATION, 1, &[Field::RAX]),
];

#[test]
fn an_event_without_a_field_that_it_needs_is_malformed() {
    for &(code, info1, fields) in NEEDS {
        for missing in 0..=fields.len() {
            let mut guest = Guest::new();
            for (_, &field) in fields.iter().enumerate().filter(|&(index, _)| index != missing) {
                guest.put(field, if field == Field::SW_SCRATCH { BUFFER } else { 0 });
            }
            let action = guest.exit(code, info1, 0x4000);
            let refused = action == RESUME && guest.info() == (2, 4);
            assert_eq!(refused, missing < fields.len(), "{code:?} without {missing}");
        }
    }
    for missing in [Field::SW_EXITCODE, Field::SW_EXITINFO1, Field::SW_EXITINFO2] {
        let mut guest = Guest::new();
        for field in [Field::SW_EXITCODE, Field::SW_EXITINFO1, Field::SW_EXITINFO2] {
            if field != missing {
                guest.put(field, ExitCode::RDTSC.0);
            }
        }
        assert_eq!(guest.vcpu.vmgexit(&guest.host, PAGE as u64, &mut guest.memory), RESUME);
        assert_eq!(guest.info(), (2, 4));
    }
}

#[test]
fn pages_of_another_use_or_version_and_unknown_events_are_malformed() {
    let mut guest = Guest::new();
    guest.memory.0[PAGE + GHCB_USAGE] = 1;
    assert_eq!((guest.exit(ExitCode::RDTSC, 0, 0), guest.info()), (RESUME, (2, 2)));
    guest.memory.0[PAGE + GHCB_USAGE] = 0;
    guest.memory.0[PAGE + PROTOCOL_VERSION] = 3;
    assert_eq!((guest.exit(ExitCode::RDTSC, 0, 0), guest.info()), (RESUME, (2, 5)));
    guest.memory.0[PAGE + PROTOCOL_VERSION] = 2;
    for code in [0, 0x78, 0x400, 0x8000_0014, 0x8000_0017, 0x8000_0018, 0x1_0000_0072, u64::MAX] {
        assert_eq!((guest.exit(ExitCode(code), 0, 0), guest.info()), (RESUME, (2, 6)), "{code:#x}");
    }
}

#[test]
fn time_stamps_come_with_tsc_aux_only_for_rdtscp() {
    let mut guest = Guest::new();
    for (code, rcx) in [(ExitCode::RDTSC, 9), (ExitCode::RDTSCP, 5)] {
        guest.put(Field::RCX, 9);
        assert_eq!(guest.exit(code, 0, 0), SnpAction::Tsc);
        guest.reply(GhcbReply::Tsc { tsc: 0x1_0000_0002, aux: 5 }).unwrap();
        assert_eq!([Field::RAX, Field::RDX, Field::RCX].map(|field| guest.get(field)), [2, 1, rcx]);
    }
}

#[test]
fn debug_register_7_is_kept_for_the_guest() {
    let mut guest = Guest::new();
    assert_eq!((guest.exit(ExitCode::DR7_READ, 0, 0), guest.get(Field::RAX)), (RESUME, 0x400));
    guest.put(Field::RAX, 0x455);
    assert_eq!(guest.exit(ExitCode::DR7_WRITE, 0, 0), RESUME);
    guest.put(Field::RAX, 0);
    assert_eq!((guest.exit(ExitCode::DR7_READ, 0, 0), guest.get(Field::RAX)), (RESUME, 0x455));
}

#[test]
fn a_hypercall_shows_its_registers_and_gets_rax() {
    let mut guest = Guest::new();
    guest.put(Field::RAX, 12).put(Field::CPL, 3).put(Field::RBX, 1).put(Field::RDX, 3).put(Field::RSI, 4);
    let call = Hypercall { number: 12, arguments: [1, 0, 3, 4], cpl: 3 };
    assert_eq!(guest.exit(ExitCode::VMMCALL, 0, 0), SnpAction::Hypercall(call));
    guest.reply(GhcbReply::Value(u64::MAX)).unwrap();
    assert_eq!(guest.get(Field::RAX), u64::MAX);
}

#[test]
fn the_jump_table_is_one_for_all_processors() {
    let mut guest = Guest::new();
    assert_eq!(guest.exit(ExitCode::AP_JUMP_TABLE, 0, 0x9_f000), RESUME);
    guest.vcpu = GhcbVcpu::new();
    guest.msr(PAGE as u64 | 0x012);
    assert_eq!((guest.exit(ExitCode::AP_JUMP_TABLE, 1, 0), guest.info()), (RESUME, (0, 0x9_f000)));
    assert_eq!((guest.exit(ExitCode::AP_JUMP_TABLE, 2, 0), guest.info()), (RESUME, (2, 5)));
}

#[test]
fn features_come_through_the_page_too() {
    let mut guest = Guest::new();
    assert_eq!((guest.exit(ExitCode::HV_FEATURES, 0, 0), guest.info()), (RESUME, (0, 3)));
}

#[test]
fn a_processor_that_waits_learns_that_it_was_started() {
    let mut guest = Guest::new();
    assert_eq!(guest.exit(ExitCode::AP_RESET_HOLD, 0, 0), SnpAction::ApResetHold);
    assert_eq!(guest.reply(GhcbReply::Done), Ok(RESUME));
    assert_eq!(guest.info(), (0, 1));
    assert_eq!(guest.vcpu.vmgexit(&guest.host, 0x006, &mut guest.memory), SnpAction::ApResetHold);
    assert_eq!(guest.reply(GhcbReply::Done), Ok(SnpAction::Resume { ghcb_msr: Some(0x1007) }));
}

#[test]
fn a_processor_that_waits_and_is_woken_by_something_else_learns_that_it_was_not_started() {
    let mut guest = Guest::new();
    assert_eq!(guest.exit(ExitCode::AP_RESET_HOLD, 0, 0), SnpAction::ApResetHold);
    assert_eq!(guest.reply(GhcbReply::Refused), Ok(RESUME));
    assert_eq!(guest.info(), (0, 0));
    assert_eq!(guest.vcpu.vmgexit(&guest.host, 0x006, &mut guest.memory), SnpAction::ApResetHold);
    assert_eq!(guest.reply(GhcbReply::Refused), Ok(SnpAction::Resume { ghcb_msr: Some(0x7) }));
    assert_eq!(guest.reply(GhcbReply::Done), Err(ReplyError::Mismatch), "that was all");
}

#[test]
fn another_level_is_refused_in_the_protocols_words_because_none_is_announced() {
    let mut guest = Guest::new();
    assert!(!CONFIG.features.contains(HvFeatures::from_bits_retain(1 << 5)), "MULTI_VMPL");
    for vmpl in 0..=0xff {
        let answer = guest.msr(vmpl << 32 | 0x016).expect("an answer");
        assert_eq!(answer & 0xffff_ffff, 0x017, "VMPL{vmpl}");
        assert_ne!(answer >> 32, 0, "VMPL{vmpl}: an error");
        assert_eq!((guest.exit(ExitCode::RUN_VMPL, vmpl, 0), guest.info()), (RESUME, (2, 6)), "VMPL{vmpl}");
        assert_eq!(guest.reply(GhcbReply::Done), Err(ReplyError::Mismatch), "nothing is under way");
    }
    // A processor of another level: SW_EXITINFO1 19:16.
    for vmpl in 1..16 {
        guest.put(Field::RAX, SevFeatures::SNP_ACTIVE.bits());
        assert_eq!(guest.exit(ExitCode::AP_CREATION, 1 << 32 | vmpl << 16 | 1, 0x1000), RESUME, "VMPL{vmpl}");
        assert_eq!(guest.info(), (2, 5), "VMPL{vmpl}");
    }
}

#[test]
fn a_processor_is_created_from_a_page_that_may_be_a_vmsa() {
    let mut guest = Guest::new();
    let mut create = |request: u64, vmsa, features| {
        guest.put(Field::RAX, features);
        let action = guest.exit(ExitCode::AP_CREATION, 5 << 32 | request, vmsa);
        (action.clone(), if action == RESUME { guest.info() } else { (0, 0) })
    };
    let expected = |start| {
        let (vmsa, features) = (Gpa::new(0x20_1000), SevFeatures::SNP_ACTIVE);
        SnpAction::ApCreate(ApCreate { apic_id: 5, vmsa, features, vmpl: Vmpl::Vmpl0, start })
    };
    assert_eq!(create(1, 0x20_1000, 1).0, expected(ApStart::Now));
    assert_eq!(create(0, 0x20_1000, 1).0, expected(ApStart::OnInit));
    assert_eq!(create(2, 0, 0).0, SnpAction::ApDestroy { apic_id: 5 });
    let refused = [
        (1, 0x20_1800, 1),
        (1, 0x20_0000, 1),
        (1, 0, 1),
        (1, 0x20_1000, 1 | 1 << 3),
        (1, 0x20_1000, 1 | 1 << 4),
        (3, 0x20_1000, 1),
        (1 << 16 | 1, 0x20_1000, 1),
    ];
    for (request, vmsa, features) in refused {
        assert_eq!(create(request, vmsa, features), (RESUME, (2, 5)), "{request:#x} {vmsa:#x} {features:#x}");
    }
}

#[test]
fn a_processor_that_there_is_not_makes_creation_malformed() {
    let mut guest = Guest::new();
    guest.put(Field::RAX, 1);
    guest.exit(ExitCode::AP_CREATION, 1, 0x20_1000);
    assert_eq!((guest.reply(GhcbReply::Refused), guest.info()), (Ok(RESUME), (2, 5)));
}

#[test]
fn guest_requests_name_two_pages() {
    let mut guest = Guest::new();
    for (request, response) in [(0x1000, 0x1000), (0x1001, 0x2000), (0x1000, 0x2004)] {
        assert_eq!((guest.exit(ExitCode::GUEST_REQUEST, request, response), guest.info()), (RESUME, (2, 4)));
    }
    let (request, response) = (Gpa::new(0x1000), Gpa::new(0x2000));
    let plain = GuestRequest { request, response, certificates: None };
    assert_eq!(guest.exit(ExitCode::GUEST_REQUEST, 0x1000, 0x2000), SnpAction::GuestRequest(plain));
    guest.reply(GhcbReply::GuestRequest(GuestRequestStatus::Firmware(0x16))).unwrap();
    assert_eq!(guest.info(), (0, 0x16));
    guest.put(Field::RAX, 0x4000).put(Field::RBX, 4);
    let certificates = Some(CertificateArea { gpa: Gpa::new(0x4000), pages: 4 });
    let extended = GuestRequest { request, response, certificates };
    assert_eq!(guest.exit(ExitCode::EXTENDED_GUEST_REQUEST, 0x1000, 0x2000), SnpAction::GuestRequest(extended));
    guest.reply(GhcbReply::GuestRequest(GuestRequestStatus::CertificatesNeed { pages: 8 })).unwrap();
    assert_eq!((guest.info(), guest.get(Field::RBX)), ((0, 1 << 32), 8));
}

#[test]
fn a_reply_to_nothing_and_a_reply_of_another_kind_are_mistakes_of_the_machine() {
    let mut guest = Guest::new();
    assert_eq!(guest.reply(GhcbReply::Done), Err(ReplyError::Mismatch));
    guest.put(Field::RCX, 0);
    guest.exit(ExitCode::MSR, 0, 0);
    assert_eq!(guest.reply(GhcbReply::Done), Err(ReplyError::Mismatch));
    assert_eq!(guest.reply(GhcbReply::Value(1)), Ok(RESUME), "the action is still under way after a mistake");
    guest.exit(ExitCode::RDTSC, 0, 0);
    guest.vcpu.abandon();
    assert_eq!(guest.reply(GhcbReply::Tsc { tsc: 0, aux: 0 }), Err(ReplyError::Mismatch));
}

#[test]
fn a_page_that_goes_away_loses_the_answer_and_nothing_else() {
    let mut guest = Guest::new();
    assert_eq!(guest.exit(ExitCode::RDTSC, 0, 0), SnpAction::Tsc);
    guest.memory.0.truncate(PAGE);
    let lost = Err(ReplyError::Lost(GhcbUnreachable));
    assert_eq!(guest.reply(GhcbReply::Tsc { tsc: 1, aux: 0 }), lost);
    assert_eq!(guest.reply(GhcbReply::Tsc { tsc: 1, aux: 0 }), Err(ReplyError::Mismatch));
}

#[test]
fn only_what_is_announced_is_offered() {
    let mut guest = Guest::new();
    guest.host = GhcbGuest::new(GhcbConfig { features: HvFeatures::SNP, ..CONFIG });
    guest.put(Field::RAX, 1);
    assert_eq!((guest.exit(ExitCode::AP_CREATION, 1, 0x20_1000), guest.info()), (RESUME, (2, 6)));
}

#[test]
fn an_event_that_the_guest_cannot_handle_ends_the_machine() {
    let mut guest = Guest::new();
    let fatal = VmgexitFatal::UnsupportedEvent { code: 0x404, info: 7 };
    assert_eq!(guest.exit(ExitCode::UNSUPPORTED_EVENT, 0x404, 7), SnpAction::Fatal(fatal));
}

#[test]
fn instructions_without_an_effect_here_are_done_at_once() {
    let mut guest = Guest::new();
    for code in [ExitCode::INVD, ExitCode::WBINVD, ExitCode::MONITOR, ExitCode::MWAIT] {
        guest.put(Field::RAX, 1).put(Field::RCX, 2).put(Field::RDX, 3);
        assert_eq!((guest.exit(code, 0, 0), guest.info()), (RESUME, (0, 0)));
        assert_eq!([Field::RAX, Field::RCX, Field::RDX].map(|field| guest.get(field)), [1, 2, 3]);
    }
    assert_eq!(guest.exit(ExitCode::NMI_COMPLETE, 0, 0), SnpAction::NmiComplete);
    guest.reply(GhcbReply::Done).unwrap();
    assert_eq!(guest.info(), (0, 0));
}
