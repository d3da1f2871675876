//! A small SNP guest over real nested tables and a real RMP: it starts from a VMSA, validates a page, and asks for CPUID by
//! the GHCB's MSR. And the hypervisor's side of the RMP, in 64-bit code that owns the machine.
//!
//! Guest physical and system physical addresses are the same below 2 MiB, in 4 KiB pages.

mod common;

use std::sync::Arc;

use common::{CODE, long_mode, long_mode_of, run};
use cpu::vmsa::{self, Resumed, VMSA_LEN, VmsaSegment};
use cpu::{Exit, SegReg, SevAct, SevGuest, Stepped, Vcpu, VcpuConfig};
use emu_core::cpu_model::CpuModel;
use emu_core::cpuid::Feature;
use emu_core::memory::{Key, SystemMemory};
use emu_core::regs::Rflags;
use emu_core::rng::Seed;
use emu_core::sev::{CBit, ExitCode, SevFeatures, Vmpl};
use emu_core::{Exception, Gpa, Spa};
use mmu::rmp::{FirmwareCommand, Rmp, RmpPageSize, RmpPlace, RmpUpdate, Validated, VmplPermissions, Vmsa};
use mmu::{Asid, NestedFaultKind, NestedNx, Npt, RmpCause, SnpGuest, Stage2, Stage2Levels};

const ASID: Asid = Asid(1);
const C: u64 = 1 << 51;
const PML4: u64 = 0x1000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const HANDLER: u64 = 0x7000;
const STACK_TOP: u64 = 0x9000;
const VMSA: u64 = 0xa000;
const PAYLOAD: u64 = 0x1_0000;
/// Assigned to the guest and not validated.
const RAW: u64 = 0x1_1000;
/// Shared with the hypervisor.
const SHARED: u64 = 0x1_2000;
/// A device: the nested entry has a reserved bit set.
const DEVICE: u64 = 0x1_3000;
/// Nested tables.
const NESTED: u64 = 0x100_0000;
const RMP: u64 = 0x200_0000;
const COVERED: u64 = 0x400_0000;

struct Machine {
    memory: Arc<SystemMemory>,
    rmp: Arc<Rmp>,
    vcpu: Vcpu,
}

fn rmp_of(memory: &Arc<SystemMemory>) -> Arc<Rmp> {
    let last = Spa::new(RMP + Rmp::bytes_for(COVERED) - 1);
    Arc::new(Rmp::new(Arc::clone(memory), RmpPlace::Contiguous { base: Spa::new(RMP), last }).unwrap())
}

/// An SNP guest of `model` about to execute `payload`, whose #VC handler is `handler`.
fn machine_of(model: CpuModel, vmpl: Vmpl, payload: &[u8], handler: &[u8]) -> Machine {
    let memory = SystemMemory::flat(64 << 20).unwrap();
    let store = |at: u64, value: u64| memory.store(Spa::new(at), value).unwrap();
    let rmp = rmp_of(&memory);
    // The guest's tables: 4 KiB pages, private but for two.
    for (table, next) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)] {
        store(table, next | C | 7);
    }
    for page in 0..512_u64 {
        let c = if matches!(page << 12, SHARED | DEVICE) { 0 } else { C };
        store(0x4000 + 8 * page, page << 12 | c | 0x67);
    }
    store(GDT + 8, 0x00af_9b00_0000_ffff);
    store(GDT + 16, 0x00cf_9300_0000_ffff);
    memory.store(Spa::new(IDT + 16 * 29), HANDLER as u128 | 8 << 16 | 0x8e << 40).unwrap();
    memory.write(Spa::new(HANDLER), handler).unwrap();
    memory.write(Spa::new(PAYLOAD), payload).unwrap();
    memory.write(Spa::new(VMSA), &first_page(vmpl)).unwrap();
    for table in 0..3_u64 {
        store(NESTED + 0x1000 * table, (NESTED + 0x1000 * (table + 1)) | 7);
    }
    for page in 0..512_u64 {
        let reserved = if page << 12 == DEVICE { C } else { 0 };
        store(NESTED + 0x3000 + 8 * page, page << 12 | reserved | 0x67);
    }
    for page in (0x1000..=PAYLOAD).step_by(0x1000) {
        rmp.rmpupdate(Spa::new(page), RmpUpdate::pre_guest(ASID, Gpa::new(page), RmpPageSize::Size4K)).unwrap();
        let command = FirmwareCommand::LaunchPage {
            asid: ASID,
            size: RmpPageSize::Size4K,
            vmsa: if page == VMSA { Vmsa::Yes } else { Vmsa::No },
            permissions: [VmplPermissions::all(); 3],
        };
        rmp.firmware(Spa::new(page), command).unwrap();
        memory.set_key(Spa::new(page).frame(), Key::of_asid(ASID.0).unwrap());
    }
    rmp.rmpupdate(Spa::new(RAW), RmpUpdate::guest(ASID, Gpa::new(RAW), RmpPageSize::Size4K)).unwrap();
    let config = VcpuConfig { model, apic_id: 0, cpu_count: 1, seed: Seed(1) };
    let mut vcpu = Vcpu::new(Arc::clone(&memory), &config);
    vcpu.mmu().set_rmp(Some(Arc::clone(&rmp)));
    vcpu.mmu().set_stage2(Stage2::Npt(Npt {
        root: Spa::new(NESTED),
        levels: Stage2Levels::Four,
        nx: NestedNx::Enabled,
        asid: ASID,
        snp: Some(SnpGuest { c_bit: 51, vmpl }),
    }));
    let mut machine = Machine { memory, rmp, vcpu };
    let page = machine.vmsa();
    machine.vcpu.load_vmsa(&page).unwrap();
    machine
}

fn machine(payload: &[u8], handler: &[u8]) -> Machine {
    machine_of(CpuModel::amd_snp(), Vmpl::Vmpl0, payload, handler)
}

/// The VMSA of a kernel at [`PAYLOAD`] in 64-bit mode.
fn first_page(vmpl: Vmpl) -> [u8; VMSA_LEN] {
    let mut page = [0; VMSA_LEN];
    let flat =
        |s: cpu::Segment| VmsaSegment { selector: s.selector, attributes: s.attributes, limit: s.limit, base: 0 };
    for field in [vmsa::DS, vmsa::ES, vmsa::FS, vmsa::GS, vmsa::SS] {
        field.set(&mut page, flat(common::flat(0x10, 3, false, 0)));
    }
    vmsa::CS.set(&mut page, flat(common::flat(8, 0xb, true, 0)));
    let table = |base, limit| VmsaSegment { base, limit, ..flat(cpu::Segment::NULL) };
    vmsa::GDTR.set(&mut page, table(GDT, 0x17));
    vmsa::IDTR.set(&mut page, table(IDT, 0xfff));
    vmsa::CR0.set(&mut page, 0x8001_0011);
    vmsa::CR3.set(&mut page, PML4 | C);
    vmsa::CR4.set(&mut page, 0x20);
    vmsa::EFER.set(&mut page, 0x1d01);
    vmsa::RFLAGS.set(&mut page, 2);
    vmsa::RIP.set(&mut page, PAYLOAD);
    vmsa::RSP.set(&mut page, STACK_TOP);
    vmsa::G_PAT.set(&mut page, 0x0007_0406_0007_0406);
    vmsa::XCR0.set(&mut page, 1);
    vmsa::MXCSR.set(&mut page, 0x1f80);
    vmsa::VMPL.set(&mut page, vmpl as u8);
    vmsa::SEV_FEATURES.set(&mut page, 1);
    page
}

impl Machine {
    fn vmsa(&self) -> [u8; VMSA_LEN] {
        let mut page = [0; VMSA_LEN];
        self.memory.read(Spa::new(VMSA), &mut page).unwrap();
        page
    }

    /// #VMEXIT into the page in memory, and VMRUN from it.
    fn exit_and_resume(&mut self) -> Resumed {
        let mut page = self.vmsa();
        self.vcpu.save_vmsa(&mut page);
        self.memory.write(Spa::new(VMSA), &page).unwrap();
        self.vcpu.resume_from(&self.vmsa()).unwrap()
    }

    /// Sets general registers and steps once.
    fn step_with(&mut self, registers: &[(usize, u64)]) -> Stepped {
        let mut now = self.vcpu.user_registers();
        for &(n, value) in registers {
            now.gpr[n] = value;
        }
        self.vcpu.set_user_registers(&now);
        self.vcpu.step()
    }

    fn eax(&self) -> u64 {
        self.vcpu.user_registers().gpr[0]
    }

    fn flags(&self) -> Rflags {
        self.vcpu.user_registers().rflags & Rflags::STATUS
    }
}

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;

const PVALIDATE: [u8; 4] = [0xf2, 0x0f, 0x01, 0xff];
const RMPADJUST: [u8; 4] = [0xf3, 0x0f, 0x01, 0xfe];
const RMPQUERY: [u8; 4] = [0xf3, 0x0f, 0x01, 0xfd];
const RMPUPDATE: [u8; 4] = [0xf2, 0x0f, 0x01, 0xfe];
const PSMASH: [u8; 4] = [0xf3, 0x0f, 0x01, 0xff];

#[rustfmt::skip]
const TWENTY_INSTRUCTIONS: &[u8] = &[
    0xb8, 0x00, 0x10, 0x01, 0x00,       // mov eax, RAW
    0x31, 0xc9,                         // xor ecx, ecx
    0xba, 0x01, 0x00, 0x00, 0x00,       // mov edx, 1
    0xf2, 0x0f, 0x01, 0xff,             // pvalidate
    0x41, 0x0f, 0x92, 0xc1,             // setc r9b
    0x41, 0x89, 0xc2,                   // mov r10d, eax
    0xb8, 0x00, 0x10, 0x01, 0x00,       // mov eax, RAW
    0xf2, 0x0f, 0x01, 0xff,             // pvalidate
    0x41, 0x0f, 0x92, 0xc3,             // setc r11b
    0x41, 0x89, 0xc4,                   // mov r12d, eax
    0xc7, 0x04, 0x25, 0x00, 0x10, 0x01, 0x00, 0x5a, 0x00, 0x00, 0x00, // mov dword [RAW], 0x5a
    0xb8, 0x1f, 0x00, 0x00, 0x80,       // mov eax, 0x8000001f
    0x0f, 0xa2,                         // cpuid
    0xf4,                               // hlt
];

#[rustfmt::skip]
const ASKS_BY_MSR: &[u8] = &[
    0x41, 0x58,                         // pop r8: the exit code
    0x89, 0xc2,                         // mov edx, eax: the function
    0xb8, 0x04, 0x00, 0x00, 0x00,       // mov eax, 4: a CPUID request for EAX
    0xb9, 0x30, 0x01, 0x01, 0xc0,       // mov ecx, 0xc0010130
    0x0f, 0x30,                         // wrmsr
    0xf3, 0x0f, 0x01, 0xd9,             // vmgexit
    0x0f, 0x32,                         // rdmsr
    0x89, 0xd3,                         // mov ebx, edx: the answer
    0x48, 0x83, 0x04, 0x24, 0x02,       // add qword [rsp], 2
    0x48, 0xcf,                         // iretq
];

/// Keeps what it is told, and halts.
const STOPS: &[u8] = &[0x41, 0x58, 0xf4];

#[test]
fn a_guest_validates_a_page_and_asks_for_cpuid_by_vmgexit() {
    for reload in [false, true] {
        let mut m = machine(TWENTY_INSTRUCTIONS, ASKS_BY_MSR);
        assert_eq!(run(&mut m.vcpu, 100), Exit::VmgExit);
        assert_eq!(m.vcpu.ghcb(), 0x8000_001f << 32 | 4, "the request");
        let answer = m.vcpu.emulated_cpuid(0x8000_001f, 0, 1, 0).eax;
        m.vcpu.set_ghcb((answer as u64) << 32 | 5);
        assert_eq!(m.exit_and_resume(), Resumed::AsSaved);
        if reload {
            // As another processor would take the guest over.
            m.vcpu.load_vmsa(&m.vmsa()).unwrap();
        }
        assert_eq!(run(&mut m.vcpu, 100), Exit::Halt);
        let state = m.vcpu.state();
        assert_eq!(state.rip, PAYLOAD + TWENTY_INSTRUCTIONS.len() as u64);
        assert_eq!(state.gpr[8], 0x72, "#VC of CPUID");
        assert_eq!((state.gpr[9], state.gpr[10]), (0, 0), "validated");
        assert_eq!((state.gpr[11], state.gpr[12]), (1, 0), "nothing left to change: CF");
        assert_eq!(state.gpr[RBX], answer as u64);
        assert_eq!(m.memory.load::<u32>(Spa::new(RAW)).unwrap(), 0x5a);
    }
}

#[test]
fn what_a_guest_does_by_itself_is_written_down_with_its_instruction_and_changes_nothing() {
    let runs = |records: bool| {
        let mut m = machine(TWENTY_INSTRUCTIONS, ASKS_BY_MSR);
        if records {
            m.vcpu.record_sev();
        }
        assert_eq!(run(&mut m.vcpu, 100), Exit::VmgExit);
        m
    };
    let mut quiet = runs(false);
    assert_eq!(quiet.vcpu.take_sev_records(), []);
    let mut m = runs(true);
    assert_eq!(m.vcpu.user_registers(), quiet.vcpu.user_registers());
    assert_eq!(m.vcpu.now(), quiet.vcpu.now());
    let records = m.vcpu.take_sev_records();
    let rips: Vec<u64> = records.iter().map(|record| record.rip.raw() - PAYLOAD).collect();
    assert_eq!(rips, [12, 28, 55], "both PVALIDATEs and CPUID");
    assert!(records.is_sorted_by(|a, b| a.at < b.at));
    for (record, nothing_to_change) in records.iter().zip([false, true]) {
        let SevAct::Pvalidate { gva, page, size, to, eax, carry } = record.act else { panic!("{record:?}") };
        assert_eq!((gva.raw(), size, to, eax), (RAW, RmpPageSize::Size4K, Validated::Yes, 0));
        assert_eq!(page.map(|page| (page.gpa, page.spa)), Some((Gpa::new(RAW), Spa::new(RAW))));
        assert_eq!(carry, nothing_to_change);
    }
    assert_eq!(records[2].act, SevAct::VmmCommunication { exit_code: 0x72 });
    assert_eq!(m.vcpu.take_sev_records(), [], "each is taken once");
}

#[test]
fn a_page_that_is_not_validated_is_the_guests_own_affair() {
    // mov eax, [RAW]
    let mut m = machine(&[0x8b, 0x04, 0x25, 0x00, 0x10, 0x01, 0x00], STOPS);
    assert_eq!(run(&mut m.vcpu, 10), Exit::Halt);
    let state = m.vcpu.state();
    assert_eq!((state.gpr[8], state.cr2), (0x404, RAW));
}

#[test]
fn a_shared_access_to_a_device_is_a_vc_and_a_private_one_an_exit() {
    // mov eax, [rbx]
    let mut m = machine(&[0x8b, 0x03], STOPS);
    let vc = Exception::VmmCommunication { exit_code: ExitCode::NPF.0 as u32 };
    assert_eq!(m.step_with(&[(RBX, DEVICE)]), Stepped::Exception(vc));
    // The same page, private.
    let slot = Spa::new(0x4000 + 8 * (DEVICE >> 12));
    m.memory.store(slot, m.memory.load::<u64>(slot).unwrap() | C).unwrap();
    m.vcpu.mmu().flush_all();
    let mut now = m.vcpu.user_registers();
    now.rip = PAYLOAD;
    m.vcpu.set_user_registers(&now);
    let Stepped::Exit(Exit::NestedPageFault { fault, access: None }) = m.step_with(&[(RBX, DEVICE)]) else {
        panic!("an exit that tells nothing")
    };
    assert!(matches!(fault.kind, NestedFaultKind::Reserved { .. }));
    assert_eq!((fault.gpa, fault.c_bit), (Gpa::new(DEVICE), CBit::Set));
    // A shared store to a page that is a guest's.
    let mut m = machine(&[0x89, 0x03], STOPS);
    m.rmp.rmpupdate(Spa::new(SHARED), RmpUpdate::guest(ASID, Gpa::new(SHARED), RmpPageSize::Size4K)).unwrap();
    let Stepped::Exit(Exit::NestedPageFault { fault, .. }) = m.step_with(&[(RBX, SHARED)]) else { panic!("an exit") };
    assert_eq!((fault.kind, fault.c_bit), (NestedFaultKind::Rmp(RmpCause::Ownership), CBit::Clear));
}

#[test]
fn pvalidate_leaves_its_code_in_eax_and_the_flags() {
    let zero = Rflags::ZF | Rflags::PF;
    for (rcx, rdx, gva, vmpl, code) in [
        (0, 1, RAW, Vmpl::Vmpl0, 0),
        (0, 0xffff_ffff, RAW + 0x123, Vmpl::Vmpl0, 0),
        (2, 1, RAW, Vmpl::Vmpl0, 1),
        (1, 1, RAW, Vmpl::Vmpl0, 1),
        (0, 1, RAW, Vmpl::Vmpl1, 2),
        (2, 1, RAW, Vmpl::Vmpl1, 2),
    ] {
        let mut m = machine_of(CpuModel::amd_snp(), vmpl, &PVALIDATE, STOPS);
        let inputs = [(RAX, gva), (RCX, rcx), (RDX, rdx)];
        assert_eq!(m.step_with(&inputs), Stepped::Retired, "{inputs:x?}");
        assert_eq!(m.eax(), code, "{inputs:x?} {vmpl:?}");
        assert!(!m.flags().contains(Rflags::CF), "no failure may look like no change");
        assert_eq!(m.flags() == zero, code == 0);
        let validated = m.rmp.entry(Spa::new(RAW).frame()).unwrap().validated();
        assert_eq!(validated, code == 0, "{inputs:x?}");
    }
    // Clearing what is clear already.
    let mut m = machine(&PVALIDATE, STOPS);
    assert_eq!(m.step_with(&[(RAX, RAW), (RCX, 0), (RDX, 0)]), Stepped::Retired);
    assert_eq!((m.eax(), m.flags()), (0, zero | Rflags::CF));
}

#[test]
fn pvalidate_faults_where_an_access_would() {
    let mut m = machine(&PVALIDATE, STOPS);
    assert_eq!(m.step_with(&[(RAX, 1 << 63), (RCX, 0), (RDX, 1)]), Stepped::Exception(Exception::GP0));
    let unmapped = m.step_with(&[(RAX, 0x4000_0000), (RCX, 0), (RDX, 1)]);
    assert!(matches!(unmapped, Stepped::Exception(Exception::PageFault { .. })), "{unmapped:?}");
    // A page that nobody has assigned to the guest, and an entry of 2 MiB: the hypervisor's to mend.
    let Stepped::Exit(Exit::NestedPageFault { fault, .. }) = m.step_with(&[(RAX, 0x2_0000), (RCX, 0), (RDX, 1)]) else {
        panic!("an exit")
    };
    assert_eq!((fault.kind, fault.c_bit), (NestedFaultKind::Rmp(RmpCause::Ownership), CBit::Set));
    assert_eq!(m.vcpu.state().rip, PAYLOAD, "it starts again");
}

#[test]
fn rmpadjust_gives_rights_to_lower_levels_alone() {
    for (rdx, code) in [(1, 0), (1 | 0xf << 8, 0), (3 | 1 << 16, 0), (0, 2), (4, 1), (1 | 1 << 17, 1), (1 | 1 << 13, 1)]
    {
        let mut m = machine(&RMPADJUST, STOPS);
        assert_eq!(m.step_with(&[(RAX, HANDLER), (RCX, 0), (RDX, rdx)]), Stepped::Retired);
        assert_eq!(m.eax(), code, "RDX {rdx:#x}");
        assert!(!m.flags().contains(Rflags::CF));
        let entry = m.rmp.entry(Spa::new(HANDLER).frame()).unwrap();
        assert_eq!(entry.vmsa(), code == 0 && rdx >> 16 & 1 == 1);
    }
    let mut m = machine(&RMPADJUST, STOPS);
    let vc = Exception::VmmCommunication { exit_code: 0x404 };
    assert_eq!(m.step_with(&[(RAX, RAW), (RCX, 0), (RDX, 1)]), Stepped::Exception(vc));
    assert_eq!(m.step_with(&[(RAX, HANDLER), (RCX, 2), (RDX, 1)]), Stepped::Retired);
    assert_eq!(m.eax(), 1);
}

#[test]
fn rmpquery_exists_where_it_is_advertised_and_tells_what_rmpadjust_set() {
    let mut m = machine(&RMPQUERY, STOPS);
    assert_eq!(m.step_with(&[(RAX, HANDLER), (RDX, 1)]), Stepped::Exception(Exception::InvalidOpcode));
    let model = CpuModel::amd_snp().with(Feature::Rmpquery).unwrap();
    let code = [RMPADJUST, RMPQUERY].concat();
    let mut m = machine_of(model, Vmpl::Vmpl0, &code, STOPS);
    assert_eq!(m.step_with(&[(RAX, HANDLER), (RCX, 0), (RDX, 2 | 0x3 << 8 | 1 << 16)]), Stepped::Retired);
    assert_eq!(m.step_with(&[(RAX, HANDLER), (RCX, 9), (RDX, 2)]), Stepped::Retired);
    let gpr = m.vcpu.user_registers().gpr;
    assert_eq!((gpr[RAX], gpr[RCX], gpr[RDX]), (0, 0, 2 | 0x3 << 8 | 1 << 16));
}

#[test]
fn instructions_of_guests_are_undefined_elsewhere_and_privileged_there() {
    let ud = Stepped::Exception(Exception::InvalidOpcode);
    for code in [PVALIDATE, RMPADJUST] {
        assert_eq!(long_mode(&code).0.step(), ud, "a model without SNP");
        let (mut vcpu, _) = long_mode_of(CpuModel::amd_snp(), &code);
        assert_eq!(vcpu.step(), ud, "no guest");
        vcpu.enter_sev(SevGuest { features: SevFeatures::empty(), vmpl: Vmpl::Vmpl0, c_bit: 51 }).unwrap();
        let state = vcpu.state();
        vcpu.set_state(&state);
        assert_eq!(vcpu.step(), ud, "encrypted state without SNP");
        let (mut vcpu, _) = long_mode_of(CpuModel::amd_snp(), &code);
        vcpu.enter_sev(SevGuest { features: SevFeatures::SNP_ACTIVE, vmpl: Vmpl::Vmpl0, c_bit: 51 }).unwrap();
        let mut state = vcpu.state();
        state.segments.regs[SegReg::Cs as usize] = common::flat(0x2b, 0xb, true, 3);
        state.segments.regs[SegReg::Ss as usize] = common::flat(0x23, 3, false, 3);
        vcpu.set_state(&state);
        assert_eq!(vcpu.step(), Stepped::Exception(Exception::GP0));
    }
}

/// 64-bit code that owns a machine with an RMP.
fn owner(code: &[u8]) -> (Vcpu, Arc<SystemMemory>, Arc<Rmp>) {
    let memory = SystemMemory::flat(64 << 20).unwrap();
    let rmp = rmp_of(&memory);
    let config = VcpuConfig { model: CpuModel::amd_snp(), apic_id: 0, cpu_count: 1, seed: Seed(1) };
    let mut vcpu = Vcpu::new(Arc::clone(&memory), &config);
    let (source, _) = long_mode_of(CpuModel::amd_snp(), &[]);
    memory.store(Spa::new(0x1000), 0x2007_u64).unwrap();
    memory.store(Spa::new(0x2000), 0x87_u64).unwrap();
    memory.write(Spa::new(CODE), code).unwrap();
    vcpu.set_state(&source.state());
    vcpu.mmu().set_rmp(Some(Arc::clone(&rmp)));
    (vcpu, memory, rmp)
}

fn step_with(vcpu: &mut Vcpu, registers: &[(usize, u64)]) -> (Stepped, u64) {
    let mut now = vcpu.user_registers();
    for &(n, value) in registers {
        now.gpr[n] = value;
    }
    vcpu.set_user_registers(&now);
    (vcpu.step(), vcpu.user_registers().gpr[RAX])
}

#[test]
fn whoever_owns_the_machine_assigns_pages_and_splits_them() {
    let code = [RMPUPDATE, PSMASH, PSMASH, RMPUPDATE].concat();
    let (mut vcpu, memory, rmp) = owner(&code);
    let page = Spa::new(0x60_0000);
    let new = RmpUpdate::guest(ASID, Gpa::new(0x80_0000), RmpPageSize::Size2M);
    memory.write(Spa::new(0x9008), &new.to_bytes()).unwrap();
    let operands = [(RAX, page.raw()), (RCX, 0x9008)];
    assert_eq!(step_with(&mut vcpu, &operands), (Stepped::Retired, 0));
    let entry = rmp.entry(page.frame()).unwrap();
    assert!(entry.assigned() && entry.page_size() == RmpPageSize::Size2M);
    assert_eq!(vcpu.user_registers().rflags & Rflags::STATUS, Rflags::ZF | Rflags::PF);
    assert_eq!(step_with(&mut vcpu, &[(RAX, page.raw())]), (Stepped::Retired, 0));
    assert_eq!(rmp.entry(page.frame()).unwrap().page_size(), RmpPageSize::Size4K);
    assert_eq!(step_with(&mut vcpu, &[(RAX, page.raw())]), (Stepped::Retired, 1), "there is nothing to split");
    assert_eq!(vcpu.user_registers().rflags & Rflags::STATUS, Rflags::empty());
    assert_eq!(step_with(&mut vcpu, &[(RAX, page.raw() + 1), (RCX, 0x9008)]), (Stepped::Retired, 1));
}

#[test]
fn instructions_of_the_owner_need_a_table_its_privilege_and_no_guest() {
    for code in [RMPUPDATE, PSMASH] {
        let ud = Stepped::Exception(Exception::InvalidOpcode);
        let (mut without, _) = long_mode_of(CpuModel::amd_snp(), &code);
        assert_eq!(without.step(), ud);
        let mut guest = machine(&code, STOPS);
        assert_eq!(guest.vcpu.step(), ud);
        let (mut vcpu, ..) = owner(&code);
        let mut state = vcpu.state();
        state.segments.regs[SegReg::Cs as usize] = common::flat(0x2b, 0xb, true, 3);
        state.segments.regs[SegReg::Ss as usize] = common::flat(0x23, 3, false, 3);
        vcpu.set_state(&state);
        assert_eq!(vcpu.step(), Stepped::Exception(Exception::GP0));
    }
    // The new entry is read like any operand.
    let (mut vcpu, ..) = owner(&RMPUPDATE);
    let (what, _) = step_with(&mut vcpu, &[(RAX, 0x60_0000), (RCX, 0x7000_0000_0000)]);
    assert!(matches!(what, Stepped::Exception(Exception::PageFault { .. })), "{what:?}");
}

#[test]
fn a_processor_runs_from_its_save_area_and_leaves_its_registers_there() {
    // mov eax, 0x5eed; hlt; mov ebx, eax; hlt
    let Machine { memory, mut vcpu, rmp } = machine(&[0xb8, 0xed, 0x5e, 0, 0, 0xf4, 0x89, 0xc3, 0xf4], &[]);
    let area = || {
        let mut page = [0; VMSA_LEN];
        memory.read(Spa::new(VMSA), &mut page).unwrap();
        page
    };
    vcpu.set_vmsa(Spa::new(VMSA));
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    let page = area();
    assert_eq!((vmsa::RAX.get(&page), vmsa::RIP.get(&page)), (0x5eed, PAYLOAD + 6));
    // Nobody runs with it now, so its guest may put another value there, and the processor goes on from that.
    let mut changed = page;
    vmsa::RAX.set(&mut changed, 0xbeef);
    memory.write(Spa::new(VMSA), &changed).unwrap();
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    assert_eq!(vmsa::RBX.get(&area()), 0xbeef);
    let free = rmp.rmpupdate(Spa::new(VMSA), RmpUpdate::hypervisor(RmpPageSize::Size4K));
    assert_eq!(free, Ok(()), "the page is in use only while the guest runs");
}

#[test]
fn a_page_that_is_no_save_area_is_not_entered() {
    let Machine { mut vcpu, rmp, .. } = machine(&[0xf4], &[]);
    vcpu.set_vmsa(Spa::new(STACK_TOP - 0x1000));
    let Exit::InvalidGuestState(cause) = run(&mut vcpu, 10) else { panic!("VMRUN from a stack") };
    assert_eq!(cause.to_string().split(':').next(), Some("the page at Spa(0x8000) is no save area of the guest"));
    vcpu.set_vmsa(Spa::new(VMSA));
    assert!(!vcpu.can_take_interrupt(), "what the area holds is not known before it is entered");
    rmp.rmpupdate(Spa::new(VMSA), RmpUpdate::hypervisor(RmpPageSize::Size4K)).unwrap();
    assert!(matches!(run(&mut vcpu, 10), Exit::InvalidGuestState(_)), "the host took the page away");
}
