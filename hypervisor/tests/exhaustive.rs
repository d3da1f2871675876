//! Every history of a small VM: two huge pages in the pool, two slots on two inodes of one huge page each, two
//! processors, and all sequences of a few calls up to a depth. After each call every invariant is looked at.

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, Gpa, PageSize, Sfn};
use hypervisor::check::{CheckHistory, Moment, Unseen};
use hypervisor::*;

const QUIET: &Task<'static> = &Task::QUIET;
const M2: u64 = PageSize::Size2M.frames();
const SLOTS: [SlotId; 2] = [SlotId(0), SlotId(1)];

#[derive(Clone, Copy, Debug)]
enum Call {
    /// A processor touches the first page of a slot, or one in its middle.
    Touch(u16, u64, Shareability),
    /// A slot comes or goes.
    Toggle(usize),
    /// All of an inode, or one page of it, becomes private or shared.
    Convert(u32, u64, Shareability),
    /// All of an inode, or one page of it, is punched out.
    Punch(u32, u64),
    ZapAll,
}

fn calls() -> Vec<Call> {
    let mut calls = vec![Call::ZapAll];
    for n in 0..2_u16 {
        let inode = u32::from(n);
        calls.push(Call::Toggle(usize::from(n)));
        for to in Shareability::ALL {
            calls.push(Call::Touch(n, u64::from(n) * M2 + 7, to));
            calls.extend([1, M2].map(|nr_pages| Call::Convert(inode, nr_pages, to)));
        }
        calls.extend([1, M2].map(|nr_pages| Call::Punch(inode, nr_pages)));
    }
    calls
}

fn spec(n: usize) -> MemSlotSpec {
    MemSlotSpec {
        id: SLOTS[n],
        gpa: Gpa::new((n as u64 * M2) << 12),
        len_bytes: M2 << 12,
        flags: SlotFlags::empty(),
        gmem: GmemId(n as u32),
        offset_bytes: 0,
    }
}

fn vm() -> Vm {
    let pages = PagePolicy::of(PageSize::Size2M);
    let memory = SystemMemory::flat(4 * M2 << 12).unwrap();
    let host = HostConfig { first: Sfn::new(1), nr_frames: 4 * M2 - 1, pools: vec![(HugeSize::Size2M, 2)] };
    let vm = Vm::new(memory, &VmConfig { maxphyaddr: 36, nr_vcpus: 2, ..VmConfig::new(pages, host) }).unwrap();
    for n in 0..2 {
        vm.create_guest_memfd(M2 << 12, GmemFlags::INIT_SHARED.bits(), QUIET).unwrap();
        vm.add_memslot(&spec(n), QUIET).unwrap();
    }
    vm
}

fn run(vm: &Vm, call: Call) {
    match call {
        Call::Touch(vcpu, gfn, privacy) => {
            let input = FaultInput { privacy, ..FaultInput::new(Gfn::new(gfn).base(), AccessKind::Write) };
            let action = vm.handle_fault(VcpuId(vcpu), input, QUIET).unwrap();
            assert_ne!(action, Action::Resume(Resumed::Retry), "nothing to race with");
        }
        Call::Toggle(n) if vm.memslots(QUIET).by_id(SLOTS[n]).is_some() => vm.remove_memslot(SLOTS[n], QUIET).unwrap(),
        Call::Toggle(n) => vm.add_memslot(&spec(n), QUIET).unwrap(),
        Call::Convert(inode, nr_pages, to) => vm.convert(GmemId(inode), 0, nr_pages << 12, to, QUIET).unwrap(),
        Call::Punch(inode, nr_pages) => vm.punch_hole(GmemId(inode), 0, nr_pages << 12, QUIET).unwrap(),
        Call::ZapAll => vm.zap_all(QUIET).unwrap(),
    }
}

#[test]
fn every_short_history_keeps_the_invariants() {
    let calls = calls();
    // Deeper with more cases asked for: each level costs a factor of the number of calls.
    let depth = match std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse::<u32>().ok()) {
        Some(1000..) => 4,
        _ => 3,
    };
    let nr_histories = calls.len().pow(depth);
    for history in 0..nr_histories {
        let vm = vm();
        let mut seen = CheckHistory::new();
        let mut done = Vec::new();
        let mut rest = history;
        for _ in 0..depth {
            let call = calls[rest % calls.len()];
            rest /= calls.len();
            done.push(call);
            run(&vm, call);
            if let Err(violation) = vm.check(Moment::Quiescent, &mut seen, &Unseen, QUIET) {
                panic!("{violation}\nafter {done:?}");
            }
        }
    }
}
