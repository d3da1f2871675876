//! Known instructions give known results, each kind of fault is seen as it is, and no case wedges the judge.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use native::judge::Judge;
use native::state::{AC, AF, CF, DF, OF, PF, RAX, RBX, RCX, RDI, RDX, RFLAGS_FIXED, RSI, RSP, SF, TF, ZF};
use native::window::{PAGE, Patch};
use native::{Case, CaseResult, Code, Crash, Fault, Outcome, PageProtection, Placement, Scope, Window};

fn case(bytes: &[u8]) -> Case {
    let mut case = Case::new(Code::admit(bytes).unwrap());
    case.state.gpr[RSP] = case.window.base() + PAGE;
    case
}

fn run(case: &Case) -> CaseResult {
    Judge::start().unwrap().run_one(case).unwrap()
}

fn fault(case: &Case) -> Fault {
    match run(case).outcome {
        Outcome::Fault(fault) => fault,
        other => panic!("{other:?}"),
    }
}

fn completed(result: &CaseResult) -> i64 {
    match result.outcome {
        Outcome::Completed { rip_delta } => rip_delta,
        other => panic!("{other:?}"),
    }
}

#[test]
fn add_sets_registers_and_flags() {
    let mut case = case(&[0x48, 0x01, 0xd8]); // add rax, rbx
    case.state.gpr[RAX] = u64::MAX;
    case.state.gpr[RBX] = 1;
    let result = run(&case);
    assert_eq!(completed(&result), 3);
    assert_eq!(result.state.gpr[RAX], 0);
    assert_eq!(result.state.rflags, RFLAGS_FIXED | CF | PF | AF | ZF);
    let mut expected = case.state;
    (expected.gpr, expected.rflags) = (result.state.gpr, result.state.rflags);
    assert_eq!(result.state, expected);
    assert!(result.writes.lines.is_empty());
}

#[test]
fn every_register_goes_in_and_comes_out() {
    let mut case = case(&[0x90]); // nop
    case.scope = Scope::Full;
    for n in 0..16 {
        case.state.gpr[n] = 0x0101_0101_0101_0101 * (n as u64 + 1);
        case.state.vec[n] = [1, 2, 3, 4].map(|k| k * 0x0123_4567_89ab_cdef * (n as u64 + 1));
    }
    for n in 0..8 {
        case.state.x87.st[n] = [n as u8 + 1; 10];
    }
    (case.state.x87.fcw, case.state.x87.fsw, case.state.x87.ftw) = (0x27f, 0x3800, 0xa5);
    case.state.mxcsr = 0xffbf;
    case.state.rflags = RFLAGS_FIXED | CF | PF | AF | ZF | SF | OF | DF | AC;
    let result = run(&case);
    assert_eq!(completed(&result), 1);
    assert_eq!(result.state, case.state);
}

#[test]
fn push_and_call_use_the_window() {
    let mut push = case(&[0x50]);
    push.state.gpr[RAX] = 0x1122_3344_5566_7788;
    let result = run(&push);
    assert_eq!(result.state.gpr[RSP], push.state.gpr[RSP] - 8);
    assert_eq!(result.writes.lines[0].offset as u64, PAGE - 32);
    assert_eq!(result.writes.lines[0].bytes[24..], 0x1122_3344_5566_7788_u64.to_le_bytes());

    let call = case(&[0xe8, 0x40, 0, 0, 0]);
    let result = run(&call);
    assert_eq!(completed(&result), 0x45);
    assert_eq!(result.writes.lines[0].bytes[24..], (call.rip() + 5).to_le_bytes());
}

#[test]
fn return_goes_where_memory_says() {
    let mut case = case(&[0xc3]);
    assert!(case.window.patch(Patch::new(PAGE as u16, &(case.rip() - 0x123).to_le_bytes())));
    let result = run(&case);
    assert_eq!(completed(&result), -0x123);
    assert_eq!(result.state.gpr[RSP], case.state.gpr[RSP] + 8);
}

#[test]
fn memory_is_fresh_in_every_case() {
    let mut store = case(&[0x48, 0x89, 0x01]); // mov [rcx], rax
    store.state.gpr[RCX] = store.window.base() + 0x1ffd;
    let mut load = case(&[0x48, 0x8b, 0x01]); // mov rax, [rcx]
    load.state.gpr[RCX] = store.state.gpr[RCX];
    assert!(load.window.patch(Patch::new(0x1ffd, &7u64.to_le_bytes())));
    let cases = [store.clone(), load.clone(), store, load];
    let mut results = Vec::new();
    Judge::start().unwrap().run(&cases, |_, result| results.push(result)).unwrap();
    assert_eq!(results[0].writes.lines.len(), 2);
    assert_eq!(results[0], results[2]);
    assert_eq!(results[1], results[3]);
    assert_eq!(results[1].state.gpr[RAX], 7);
    assert!(results[1].writes.lines.is_empty());
}

#[test]
fn vectors_and_x87_compute() {
    let mut add = case(&[0xc5, 0xfd, 0xd4, 0xc1]); // vpaddq ymm0, ymm0, ymm1
    add.state.vec[0] = [1, 2, 3, u64::MAX];
    add.state.vec[1] = [10, 20, 30, 1];
    assert_eq!(run(&add).state.vec[0], [11, 22, 33, 0]);

    let divide = case(&[0xf3, 0x0f, 0x5e, 0xc1]); // divss xmm0, xmm1: 0 / 0
    let result = run(&divide);
    assert_eq!((result.state.vec[0][0], result.state.mxcsr), (0xffc0_0000, 0x1f81));

    let one = run(&case(&[0xd9, 0xe8])); // fld1
    assert_eq!(one.state.x87.st[0], [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    assert_eq!((one.state.x87.fsw, one.state.x87.ftw), (7 << 11, 0x80));
}

#[test]
fn faults_are_reported_as_raised() {
    let plain = |vector, rip_delta| Fault { vector, error_code: 0, cr2: None, rip_delta };
    let mut divide = case(&[0xf7, 0xf1]); // div ecx
    divide.state.gpr[RDX] = 1;
    divide.state.gpr[RCX] = 1;
    assert_eq!(fault(&divide), plain(0, 0));
    assert_eq!(fault(&case(&[0xcc])), plain(3, 1));
    assert_eq!(fault(&case(&[0x0f, 0x0b])), plain(6, 0));
    assert_eq!(fault(&case(&[0x90, 0x0f, 0x0b])), plain(6, 1));

    let mut load = case(&[0x48, 0x8b, 0x01]);
    load.state.gpr[RCX] = 0x8000_0000_0000_0000;
    assert_eq!(fault(&load), plain(13, 0));
    let mut push = case(&[0x50]);
    push.state.gpr[RSP] = 0x8000_0000_0000_0000;
    assert_eq!(fault(&push), plain(12, 0));

    let mut aligned = case(&[0x0f, 0x28, 0x01]); // movaps xmm0, [rcx]
    aligned.state.gpr[RCX] = aligned.window.base() + 8;
    assert_eq!(fault(&aligned), plain(13, 0));
    let mut check = case(&[0x48, 0x8b, 0x01]);
    check.state.gpr[RCX] = check.window.base() + 1;
    check.state.rflags |= AC;
    assert_eq!(fault(&check), plain(17, 0));

    let mut x87 = case(&[0xd9, 0xe8]);
    (x87.state.x87.fcw, x87.state.x87.fsw) = (0x37e, 0x8081);
    assert_eq!(fault(&x87), plain(16, 0));
    let mut simd = case(&[0xf3, 0x0f, 0x5e, 0xc1]);
    simd.state.mxcsr = 0x1f00;
    assert_eq!(fault(&simd), plain(19, 0));
}

#[test]
fn page_faults_carry_code_and_address() {
    use PageProtection::{None, ReadOnly, ReadWrite};
    let window = Window::new([ReadWrite, ReadOnly, None]);
    let at = |bytes: &[u8], offset: u64| {
        let mut case = case(bytes);
        case.window = window;
        case.state.gpr[RCX] = window.base() + offset;
        let fault = fault(&case);
        (fault.vector, fault.error_code, fault.cr2.unwrap() - window.base())
    };
    let (load, store) = (&[0x48, 0x8b, 0x01], &[0x48, 0x89, 0x01]);
    assert_eq!(at(load, 2 * PAGE - 4), (14, 4, 2 * PAGE));
    assert_eq!(at(store, PAGE), (14, 7, PAGE));
    assert_eq!(at(store, PAGE - 4), (14, 7, PAGE));
    assert_eq!(at(store, 2 * PAGE + 8), (14, 6, 2 * PAGE + 8));
    assert_eq!(at(load, 3 * PAGE), (14, 4, 3 * PAGE));
}

#[test]
fn a_string_instruction_stops_at_the_page_it_may_not_write() {
    let mut case = case(&[0xf3, 0xaa]); // rep stosb
    case.window = Window::new([PageProtection::ReadWrite, PageProtection::None, PageProtection::ReadWrite]);
    case.state.gpr[RDI] = case.window.base() + PAGE - 3;
    case.state.gpr[RCX] = 10;
    let result = run(&case);
    assert!(matches!(result.outcome, Outcome::Fault(Fault { vector: 14, error_code: 6, rip_delta: 0, .. })));
    assert_eq!((result.state.gpr[RCX], result.state.gpr[RDI]), (7, case.window.base() + PAGE));
    assert_eq!(result.writes.lines[0].bytes[29..], [0, 0, 0]);
}

#[test]
fn many_changes_are_marked_as_truncated() {
    let mut case = case(&[0xf3, 0xa4]); // rep movsb
    case.state.gpr[RSI] = case.window.base();
    case.state.gpr[RDI] = case.window.base() + PAGE;
    case.state.gpr[RCX] = PAGE;
    let result = run(&case);
    assert!(result.writes.truncated);
    assert_eq!(result.writes.lines[0].offset as u64, PAGE);
}

#[test]
fn length_is_found_at_the_page_end() {
    let bytes = [0x48, 0x81, 0xc0, 1, 2, 3, 4]; // add rax, imm32
    for n in 1..=7 {
        let mut case = case(&bytes);
        case.placement = Placement::PageEnd(n);
        let outcome = run(&case).outcome;
        if n < 7 {
            let Outcome::Fault(fault) = outcome else { panic!("{n} {outcome:?}") };
            assert_eq!((fault.vector, fault.rip_delta), (14, 0));
            assert_eq!(fault.cr2, Some(case.rip() + n as u64));
        } else {
            assert_eq!(outcome, Outcome::Completed { rip_delta: 7 });
        }
    }
}

#[test]
fn an_instruction_may_set_the_trap_flag() {
    let mut case = case(&[0x9d]); // popfq
    assert!(case.window.patch(Patch::new(PAGE as u16, &(TF | CF).to_le_bytes())));
    let result = run(&case);
    assert_eq!(completed(&result), 1);
    assert_eq!(result.state.rflags, RFLAGS_FIXED | TF | CF);
}

#[test]
fn a_lost_child_is_replaced_and_the_rest_goes_on() {
    let nop = case(&[0x90]);
    let mut jump = case(&[0xff, 0xe0]); // jmp rax, to itself
    jump.state.gpr[RAX] = jump.rip();
    let mut cases = vec![nop; 1200];
    cases[700] = jump.clone();
    cases[1199] = jump;
    let mut outcomes = Vec::new();
    Judge::start().unwrap().run(&cases, |_, result| outcomes.push(result.outcome)).unwrap();
    for (n, outcome) in outcomes.iter().enumerate() {
        let expected = match n {
            700 | 1199 => Outcome::Crashed(Crash::Hang),
            _ => Outcome::Completed { rip_delta: 1 },
        };
        assert_eq!(*outcome, expected, "case {n}");
    }
    assert_eq!(outcomes.len(), cases.len());
}

#[test]
fn a_system_call_kills_the_child_only() {
    // LEA RAX, [RAX + 0x50f]; JMP RBX. The displacement hides a SYSCALL from admission, and RBX leads there.
    let mut case = case(&[0x48, 0x8d, 0x80, 0x0f, 0x05, 0, 0, 0xff, 0xe3]);
    case.state.gpr[RBX] = case.rip() + 3;
    assert_eq!(run(&case).outcome, Outcome::Crashed(Crash::Signal(31)));
}
