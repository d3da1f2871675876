//! Two processors of a small guest: the first makes a save area and halts, the second does what each test wants.

use emu_core::Gpa;
use emu_core::sev::{SevFeatures, Vmpl};
use hypervisor::snp::ghcb::{ApCreate, ApStart, GhcbReply};
use igvm::snp_defs::SevVmsa;
use zerocopy::IntoBytes;

use crate::config::SnpChoice;
use crate::loader::Image;
use crate::loader::igvm::samples;
use crate::machine::seat::Message;
use crate::machine::{Limits, Machine, Outcome};

/// A page with a state, which the first processor makes a save area.
const AREA: u64 = 0x2_0000;
/// The same, which nobody makes one.
const NO_AREA: u64 = 0x2_1000;

/// Makes [`AREA`] a save area, and halts.
const MAKE_AREA: &[u8] = &[
    0xb8, 0x00, 0x00, 0x02, 0x00, // mov eax, AREA
    0x31, 0xc9, // xor ecx, ecx: 4 KiB
    0xba, 0x01, 0x00, 0x01, 0x00, // mov edx, VMSA for VMPL1 without permissions
    0xf3, 0x0f, 0x01, 0xfe, // rmpadjust
    0xf4, // idle: hlt
    0xeb, 0xfd, // jmp idle
];
/// Waits by the MSR protocol, and gives up with the answer as its code.
const HOLD: &[u8] = &[
    0xb8, 0x06, 0x00, 0x00, 0x00, // mov eax, 6
    0x31, 0xd2, // xor edx, edx
    0xb9, 0x30, 0x01, 0x01, 0xc0, // mov ecx, 0xc0010130
    0x0f, 0x30, // wrmsr
    0xf3, 0x0f, 0x01, 0xd9, // vmgexit
    0x0f, 0x32, // rdmsr
    0xc1, 0xe0, 0x04, // shl eax, 4
    0x25, 0x00, 0x00, 0xff, 0x00, // and eax, 0xff0000
    0x0d, 0x00, 0x11, 0x00, 0x00, // or eax, 0x1100
    0x0f, 0x30, // wrmsr
    0xf3, 0x0f, 0x01, 0xd9, // vmgexit
    0xf4, // hlt
];
/// Gives up with code 10.
const CREATED: &[u8] = &[
    0xb8, 0x00, 0x11, 0x0a, 0x00, // mov eax, 0xa1100
    0x31, 0xd2, // xor edx, edx
    0xb9, 0x30, 0x01, 0x01, 0xc0, // mov ecx, 0xc0010130
    0x0f, 0x30, // wrmsr
    0xf3, 0x0f, 0x01, 0xd9, // vmgexit
    0xf4, // hlt
];
const IDLE: &[u8] = &[0xf4, 0xeb, 0xfd];

/// Where each begins in the page of code.
const PROGRAMS: [(u64, &[u8]); 4] = [(0, MAKE_AREA), (0x100, HOLD), (0x200, CREATED), (0x300, IDLE)];

fn state_at(program: &[u8]) -> Box<SevVmsa> {
    let (offset, _) = PROGRAMS.into_iter().find(|(_, bytes)| *bytes == program).expect("one of the programs");
    let mut vmsa = samples::vmsa();
    vmsa.rip = samples::CODE + offset;
    vmsa
}

/// The second processor runs `second` from what was launched, as soon as it is started. The first has halted.
fn machine(second: &[u8]) -> Machine {
    let mut code = [0; 0x400];
    for (offset, bytes) in PROGRAMS {
        code[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
    }
    let created = state_at(CREATED);
    let [first, middle, last] = samples::tables();
    let directives = vec![
        samples::page(samples::CODE, &code),
        first,
        middle,
        last,
        samples::page(AREA, created.as_bytes()),
        samples::page(NO_AREA, created.as_bytes()),
        samples::context(0, state_at(MAKE_AREA)),
        samples::context(1, state_at(second)),
    ];
    let bytes = samples::file(Vec::new(), directives);
    let builder = Machine::builder().memory(8 << 20).cpus(2).snp(SnpChoice::default());
    let mut machine = builder.build(&Image { name: "guest.igvm", bytes: &bytes }).expect("the file loads");
    sleeps(&mut machine);
    machine
}

fn run(machine: &mut Machine) -> Outcome {
    machine.run(Limits { max_instructions: Some(100_000) }, |_| true).expect("the host is well")
}

/// Nobody has anything to do.
fn sleeps(machine: &mut Machine) {
    let outcome = run(machine);
    assert!(matches!(outcome, Outcome::Asleep { .. }), "{outcome:?}");
}

/// The second processor gives up with this code.
fn ends_with(machine: &mut Machine, code: u64) {
    let outcome = run(machine);
    let Outcome::Terminated { cpu: 1, why, .. } = &outcome else { panic!("{outcome:?}") };
    assert!(why.contains(&format!("(reason set 1, code {code:#x})")), "{why}");
}

fn init(machine: &mut Machine) {
    machine.vcpus[1].tell(Message::Init);
}

fn sipi(machine: &mut Machine) {
    machine.vcpus[1].tell(Message::Sipi { vector: 0x9f });
}

fn create(machine: &mut Machine, apic_id: u32, vmsa: u64, start: ApStart) -> GhcbReply<'static> {
    let (features, vmpl) = (SevFeatures::SNP_ACTIVE, Vmpl::Vmpl0);
    machine.create_processor(&ApCreate { apic_id, vmsa: Gpa::new(vmsa), features, vmpl, start })
}

#[test]
fn a_reset_hold_ends_by_init_and_a_start_up_message() {
    let mut machine = machine(HOLD);
    sipi(&mut machine);
    sleeps(&mut machine);
    init(&mut machine);
    sleeps(&mut machine);
    sipi(&mut machine);
    ends_with(&mut machine, 1);
}

#[test]
fn a_start_up_message_alone_ends_a_reset_hold_without_a_start() {
    let mut machine = machine(HOLD);
    sipi(&mut machine);
    sleeps(&mut machine);
    sipi(&mut machine);
    ends_with(&mut machine, 0);
}

#[test]
fn a_processor_created_now_leaves_its_reset_hold_unanswered() {
    let mut machine = machine(HOLD);
    sipi(&mut machine);
    sleeps(&mut machine);
    let answer = machine.vcpus[1].vcpu.ghcb();
    assert_eq!(create(&mut machine, 1, AREA, ApStart::Now), GhcbReply::Done);
    ends_with(&mut machine, 10);
    assert_eq!(answer, 6, "nobody has answered");
}

#[test]
fn a_processor_created_for_init_goes_on_until_then() {
    let mut machine = machine(IDLE);
    sipi(&mut machine);
    sleeps(&mut machine);
    assert_eq!(create(&mut machine, 1, AREA, ApStart::OnInit), GhcbReply::Done);
    sleeps(&mut machine);
    // It is running: a start-up message means nothing to it.
    sipi(&mut machine);
    sleeps(&mut machine);
    init(&mut machine);
    sleeps(&mut machine);
    sipi(&mut machine);
    ends_with(&mut machine, 10);
}

#[test]
fn init_without_a_new_state_does_not_touch_the_old_one() {
    let mut machine = machine(HOLD);
    // Before it ever ran, and twice: it starts where it was launched.
    init(&mut machine);
    init(&mut machine);
    sleeps(&mut machine);
    sipi(&mut machine);
    sleeps(&mut machine);
    assert_eq!(machine.vcpus[1].vcpu.ghcb(), 6, "it waits in its hold");
}

#[test]
fn a_processor_that_was_destroyed_runs_only_from_another_state() {
    let mut machine = machine(IDLE);
    sipi(&mut machine);
    sleeps(&mut machine);
    assert_eq!(machine.destroy_processor(1), GhcbReply::Done);
    for wake in [init, sipi] {
        wake(&mut machine);
        sleeps(&mut machine);
    }
    assert_eq!(create(&mut machine, 1, AREA, ApStart::OnInit), GhcbReply::Done);
    sipi(&mut machine);
    sleeps(&mut machine);
    assert_eq!(machine.destroy_processor(1), GhcbReply::Done, "and with it what INIT would have brought");
    for wake in [init, sipi] {
        wake(&mut machine);
        sleeps(&mut machine);
    }
    assert_eq!(create(&mut machine, 1, AREA, ApStart::Now), GhcbReply::Done);
    ends_with(&mut machine, 10);
}

#[test]
fn what_is_no_processor_and_what_is_no_page_is_refused() {
    let mut machine = machine(IDLE);
    for start in [ApStart::Now, ApStart::OnInit] {
        assert_eq!(create(&mut machine, 2, AREA, start), GhcbReply::Refused);
        assert_eq!(create(&mut machine, u32::MAX, AREA, start), GhcbReply::Refused);
        assert_eq!(create(&mut machine, 1, 1 << 40, start), GhcbReply::Refused);
    }
    assert_eq!(machine.destroy_processor(2), GhcbReply::Refused);
    sleeps(&mut machine);
}

#[test]
fn a_page_that_is_no_save_area_is_refused_when_the_processor_enters() {
    let mut machine = machine(IDLE);
    assert_eq!(create(&mut machine, 1, NO_AREA, ApStart::Now), GhcbReply::Done);
    let outcome = run(&mut machine);
    let Outcome::BrokeProtocol { cpu: 1, why, .. } = &outcome else { panic!("{outcome:?}") };
    assert!(why.contains("is no save area of the guest"), "{why}");
}
