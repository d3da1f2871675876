//! The properties that fuzzing checks: whatever a guest leaves in its GHCB page or MSR, the answer comes after a bounded
//! number of actions, is one that the protocol has, and touches nothing but that page.

use emu_core::cpuid::CpuidResult;
use emu_core::page::PAGE_SIZE;
use emu_core::sev::{ExitCode, SevFeatures};
use emu_core::{Exception, Gpa, PageSize};

use super::layout::{Field, SHARED_BUFFER, SHARED_BUFFER_BYTES, VALID_BITMAP};
use super::{
    GhcbConfig, GhcbGuest, GhcbMemory, GhcbReply, GhcbUnreachable, GhcbVcpu, GuestRequestStatus, HvFeatures,
    IoTransfer, PAGE_STATE_ENTRIES_MAX, PageStateRun, SnpAction,
};

/// Where the page lies.
const PAGE: u64 = 0x7000;
/// Most actions that one VMGEXIT can mean: each run of a page state change finishes at least one entry.
const ACTIONS_MAX: usize = PAGE_STATE_ENTRIES_MAX + 1;

/// One page of shared memory. Nobody has a reason to touch anything else.
struct OnePage([u8; PAGE_SIZE]);

impl OnePage {
    fn place(gpa: Gpa, len: usize) -> Result<core::ops::Range<usize>, GhcbUnreachable> {
        let start = gpa.raw().checked_sub(PAGE).ok_or(GhcbUnreachable)?;
        let start = usize::try_from(start).map_err(|_| GhcbUnreachable)?;
        let end = start.checked_add(len).filter(|&end| end <= PAGE_SIZE).ok_or(GhcbUnreachable)?;
        Ok(start..end)
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u64_at(&self, at: usize) -> u64 {
        self.0[at..].first_chunk().map_or(0, |&bytes| u64::from_le_bytes(bytes))
    }
}

impl GhcbMemory for OnePage {
    fn read(&mut self, gpa: Gpa, into: &mut [u8]) -> Result<(), GhcbUnreachable> {
        into.copy_from_slice(&self.0[Self::place(gpa, into.len())?]);
        Ok(())
    }
    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), GhcbUnreachable> {
        let place = Self::place(gpa, from.len()).expect("only the page itself is written");
        self.0[place].copy_from_slice(from);
        Ok(())
    }
}

fn guest() -> (GhcbGuest, GhcbVcpu, OnePage) {
    let features = HvFeatures::SNP | HvFeatures::AP_CREATION;
    let host = GhcbGuest::new(GhcbConfig { c_bit: 51, features, sev_features: SevFeatures::SNP_ACTIVE });
    let (mut vcpu, mut memory) = (GhcbVcpu::new(), OnePage([0; PAGE_SIZE]));
    vcpu.vmgexit(&host, PAGE | 0x012, &mut memory);
    (host, vcpu, memory)
}

/// A value of the GHCB MSR (8 bytes), a byte that says whether it counts (odd) or the page is meant, a byte that steers the
/// machine's replies, and the page's contents.
///
/// # Panics
/// When an answer breaks a property.
pub fn fuzz_ghcb(input: &[u8]) {
    let Some((msr, rest)) = input.split_first_chunk::<8>() else { return };
    let [which, steer, contents @ ..] = rest else { return };
    let (host, mut vcpu, mut memory) = guest();
    let len = contents.len().min(PAGE_SIZE);
    memory.0[..len].copy_from_slice(&contents[..len]);
    let msr = if which & 1 == 0 { PAGE } else { u64::from_le_bytes(*msr) };
    let before = memory.0;
    let action = vcpu.vmgexit(&host, msr, &mut memory);
    let last = answer_all(&mut vcpu, &mut memory, action, *steer, &mut |_| {});
    if msr == PAGE {
        check_answer(&before, &memory, &last);
    } else {
        assert!(memory.0 == before, "a request through the MSR touches no memory");
    }
}

/// The contents of a page state buffer, of which the first byte says where in the shared buffer it starts and the second
/// after how many runs the machine refuses one.
///
/// # Panics
/// When the guest's side of the protocol would refuse the answer, or a run is not what an entry asked for.
pub fn fuzz_page_state(input: &[u8]) {
    let [start, runs_until_refused, contents @ ..] = input else { return };
    let (host, mut vcpu, mut memory) = guest();
    let start = SHARED_BUFFER + usize::from(*start) * 8;
    let room = SHARED_BUFFER + SHARED_BUFFER_BYTES - start.min(SHARED_BUFFER + SHARED_BUFFER_BYTES);
    let len = contents.len().min(room);
    memory.0[start..start + len].copy_from_slice(&contents[..len]);
    let fields = [
        (Field::SW_EXITCODE, ExitCode::PAGE_STATE_CHANGE.0),
        (Field::SW_EXITINFO1, 0),
        (Field::SW_EXITINFO2, 0),
        (Field::SW_SCRATCH, PAGE + start as u64),
    ];
    let mut valid = 0u128;
    for (field, value) in fields {
        memory.0[field.offset()..field.offset() + 8].copy_from_slice(&value.to_le_bytes());
        valid |= 1 << field.valid_bit();
    }
    memory.0[VALID_BITMAP..VALID_BITMAP + 16].copy_from_slice(&valid.to_le_bytes());

    let before = memory.0;
    let mut frames = 0;
    let mut count = |run: &PageStateRun| {
        assert!(run.frames > 0 && run.size != PageSize::Size1G);
        assert!(run.start.is_aligned(run.size) && run.frames.is_multiple_of(run.size.frames()));
        frames += run.frames;
    };
    let action = vcpu.vmgexit(&host, PAGE, &mut memory);
    let last = answer_all(&mut vcpu, &mut memory, action, *runs_until_refused, &mut count);
    check_answer(&before, &memory, &last);
    assert!(frames <= (PAGE_STATE_ENTRIES_MAX * 512) as u64);
    if room < 8 {
        return;
    }
    // What a Linux guest checks before it believes the progress.
    let was = OnePage(before);
    assert!(memory.u16_at(start) >= was.u16_at(start), "the current entry never goes back");
    assert_eq!(memory.0[start + 2..start + 8], before[start + 2..start + 8], "end and reserved field stay");
    let mut at = start + 8;
    while at + 8 <= SHARED_BUFFER + SHARED_BUFFER_BYTES {
        let (new, old) = (memory.u64_at(at), was.u64_at(at));
        assert_eq!(new & !0xfff, old & !0xfff, "an entry keeps what it asks for");
        assert!(new & 0xfff == old & 0xfff || [1, 512].contains(&(new & 0xfff)), "an entry is begun or finished");
        at += 8;
    }
    let answered = (memory.u64_at(Field::SW_EXITINFO1.offset()), memory.u64_at(Field::SW_EXITINFO2.offset()));
    if last == (SnpAction::Resume { ghcb_msr: None }) && answered == (0, 0) {
        assert!(memory.u16_at(start) > was.u16_at(start + 2), "success leaves no entry behind");
    }
}

/// Plays the machine until the guest runs again, or never does.
fn answer_all(
    vcpu: &mut GhcbVcpu,
    memory: &mut OnePage,
    mut action: SnpAction,
    mut steer: u8,
    run: &mut dyn FnMut(&PageStateRun),
) -> SnpAction {
    let bytes = [0xa5; SHARED_BUFFER_BYTES];
    for _ in 0..ACTIONS_MAX {
        let refused = steer == 0;
        steer = steer.wrapping_sub(1);
        let exception = GhcbReply::Exception(Exception::GP0);
        let or_exception = |reply| if refused { exception } else { reply };
        let or_refused = if refused { GhcbReply::Refused } else { GhcbReply::Done };
        let reply = match &action {
            SnpAction::Resume { .. } | SnpAction::Terminate(_) | SnpAction::Fatal(_) => return action,
            SnpAction::Io(io) => or_exception(match &io.transfer {
                IoTransfer::In => GhcbReply::Value(u64::MAX),
                IoTransfer::StringIn { count } => GhcbReply::Bytes(&bytes[..count * io.width.bytes()]),
                IoTransfer::Out(value) => {
                    assert_eq!(value & !io.width.mask(), 0);
                    GhcbReply::Done
                }
                IoTransfer::StringOut { bytes } => {
                    assert!(!bytes.is_empty() && bytes.len().is_multiple_of(io.width.bytes()));
                    GhcbReply::Done
                }
            }),
            SnpAction::MmioRead { len_bytes, .. } => or_exception(GhcbReply::Bytes(&bytes[..usize::from(*len_bytes)])),
            SnpAction::MmioWrite { len_bytes, .. } => {
                assert!((1..=8).contains(len_bytes));
                or_exception(GhcbReply::Done)
            }
            SnpAction::MsrRead(_) | SnpAction::Rdpmc { .. } | SnpAction::Hypercall(_) => {
                or_exception(GhcbReply::Value(u64::MAX))
            }
            SnpAction::MsrWrite(..) | SnpAction::NmiComplete => or_exception(GhcbReply::Done),
            // Through the MSR there is no way to raise an exception.
            SnpAction::Cpuid(_) => GhcbReply::Cpuid(CpuidResult { eax: 1, ebx: 2, ecx: 3, edx: 4 }),
            SnpAction::Tsc => or_exception(GhcbReply::Tsc { tsc: 1 << 40, aux: 9 }),
            SnpAction::PageState(pages) => {
                run(pages);
                or_refused
            }
            SnpAction::ApCreate(_) | SnpAction::ApDestroy { .. } => or_refused,
            SnpAction::ApResetHold => GhcbReply::Done,
            SnpAction::GuestRequest(_) => GhcbReply::GuestRequest(GuestRequestStatus::Firmware(u32::from(steer))),
        };
        action = vcpu.reply(memory, reply).expect("the reply belongs to the action, and the page is there");
    }
    assert!(matches!(action, SnpAction::Resume { .. }), "{ACTIONS_MAX} actions were not enough: {action:?}");
    action
}

/// What is true of every answer to an event of a page.
fn check_answer(before: &[u8; PAGE_SIZE], memory: &OnePage, last: &SnpAction) {
    let outputs = [Field::RAX, Field::RBX, Field::RCX, Field::RDX, Field::SW_EXITINFO1, Field::SW_EXITINFO2];
    let written = |at: usize| {
        outputs.iter().any(|field| (field.offset()..field.offset() + 8).contains(&at))
            || (VALID_BITMAP..VALID_BITMAP + 16).contains(&at)
            || (SHARED_BUFFER..SHARED_BUFFER + SHARED_BUFFER_BYTES).contains(&at)
    };
    let kept = |at: &usize| memory.0[*at] == before[*at] || written(*at);
    assert!((0..PAGE_SIZE).all(|at| kept(&at)), "a field is changed that is not an answer");
    if *last != (SnpAction::Resume { ghcb_msr: None }) {
        assert!(matches!(last, SnpAction::Terminate(_) | SnpAction::Fatal(_)), "{last:?}");
        return;
    }
    let valid = memory.0[VALID_BITMAP..].first_chunk().map_or(0, |&bytes| u128::from_le_bytes(bytes));
    let expected = outputs.iter().fold(0u128, |bits, field| bits | 1 << field.valid_bit());
    assert_eq!(valid, expected, "the answer is valid, and nothing else");
    let info = [Field::SW_EXITINFO1, Field::SW_EXITINFO2].map(|field| memory.u64_at(field.offset()));
    match info[0] {
        0 => {}
        1 => assert_eq!(info[1], 0x8000_030d),
        2 => assert!((2..=6).contains(&info[1])),
        _ => panic!("an answer of a kind that there is not: {info:#x?}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Events that there are, so that not every input is an unknown one.
    const EVENTS: &[ExitCode] = &[
        ExitCode::DR7_READ,
        ExitCode::DR7_WRITE,
        ExitCode::RDTSC,
        ExitCode::RDTSCP,
        ExitCode::RDPMC,
        ExitCode::CPUID,
        ExitCode::INVD,
        ExitCode::IOIO,
        ExitCode::MSR,
        ExitCode::VMMCALL,
        ExitCode::WBINVD,
        ExitCode::MONITOR,
        ExitCode::MWAIT,
        ExitCode::MMIO_READ,
        ExitCode::MMIO_WRITE,
        ExitCode::NMI_COMPLETE,
        ExitCode::AP_RESET_HOLD,
        ExitCode::AP_JUMP_TABLE,
        ExitCode::PAGE_STATE_CHANGE,
        ExitCode::GUEST_REQUEST,
        ExitCode::EXTENDED_GUEST_REQUEST,
        ExitCode::AP_CREATION,
        ExitCode::HV_FEATURES,
        ExitCode::TERMINATE,
        ExitCode::UNSUPPORTED_EVENT,
    ];

    fn entry() -> impl Strategy<Value = u64> {
        // Mostly aligned, close together and of few operations, so that runs arise.
        (
            0u64..6,
            0u64..4,
            any::<bool>(),
            prop_oneof![8 => Just(0u64), 1 => 0u64..600],
            prop_oneof![9 => Just(0u64), 1 => any::<u64>()],
        )
            .prop_map(|(gfn, operation, large, page, noise)| {
                let frames = if large { 512 } else { 1 };
                (gfn * frames) << 12 | operation << 52 | u64::from(large) << 56 | page | noise
            })
    }

    proptest! {
        #[test]
        fn no_page_and_no_value_of_the_msr_breaks_the_protocol(
            msr in prop_oneof![any::<u64>(), (any::<u64>(), 0u64..0x120).prop_map(|(data, code)| data << 12 | code)],
            which: u8,
            steer: u8,
            event in proptest::option::weighted(0.9, 0..EVENTS.len()),
            info in proptest::collection::vec(prop_oneof![any::<u64>(), 0u64..0x100, Just(0x1000u64), Just(0x2000)], 2),
            scratch in prop_oneof![PAGE + 0x7f0..PAGE + 0x1000, any::<u64>()],
            valid in prop_oneof![3 => Just(u128::MAX), 1 => any::<u128>()],
            noise in proptest::collection::vec(any::<u8>(), PAGE_SIZE),
        ) {
            let mut page = noise;
            let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
            if let Some(event) = event {
                put(Field::SW_EXITCODE.offset(), &EVENTS[event].0.to_le_bytes());
                put(Field::SW_EXITINFO1.offset(), &info[0].to_le_bytes());
                put(Field::SW_EXITINFO2.offset(), &info[1].to_le_bytes());
                put(Field::SW_SCRATCH.offset(), &scratch.to_le_bytes());
                put(VALID_BITMAP, &valid.to_le_bytes());
                put(super::super::PROTOCOL_VERSION, &[2, 0, 0, 0, 0, 0]);
            }
            let mut input = Vec::from(msr.to_le_bytes());
            input.extend([which, steer]);
            input.extend(page);
            fuzz_ghcb(&input);
        }

        #[test]
        fn no_page_state_buffer_breaks_what_a_guest_relies_on(
            start in prop_oneof![4 => Just(0u8), 1 => any::<u8>()],
            refused_after: u8,
            current in prop_oneof![4 => Just(0u16), 1 => any::<u16>()],
            end in prop_oneof![8 => 0u16..253, 1 => any::<u16>()],
            reserved: u32,
            entries in proptest::collection::vec(entry(), 0..260),
        ) {
            let mut input = vec![start.min(254), refused_after];
            input.extend(current.to_le_bytes());
            input.extend(end.to_le_bytes());
            input.extend(reserved.to_le_bytes());
            input.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
            fuzz_page_state(&input);
        }
    }

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let files = std::fs::read_dir(dir).expect("the corpus").map(|entry| entry.expect("an entry").path());
        files.map(|path| std::fs::read(path).expect("a file of the corpus")).collect()
    }

    #[test]
    fn the_committed_corpus_and_every_beginning_of_it_break_nothing() {
        for (target, fuzz) in [("ghcb", fuzz_ghcb as fn(&[u8])), ("page_state", fuzz_page_state)] {
            let inputs = corpus(target);
            assert!(inputs.len() > 5);
            for input in inputs {
                (0..=input.len()).rev().step_by(7).for_each(|len| fuzz(&input[..len]));
            }
        }
    }

    #[test]
    fn inputs_that_are_too_short_are_nothing() {
        for len in 0..10 {
            fuzz_ghcb(&vec![0; len]);
            fuzz_page_state(&vec![0; len]);
        }
    }
}
