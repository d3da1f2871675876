//! Histories of the reverse map out of bytes: what the fuzz target `rmp` runs, and the tests over its committed corpus.
//!
//! An input is a list of [`STEP`] bytes each: what happens, to which frame, by whom, with which operands. Every value means
//! something, so that no input is wasted. After each step the answer is the model's, after each change and at the end the
//! table is the model's byte for byte, and the laws below hold between what was and what is.

use emu_core::Spa;
use emu_core::sev::Vmpl;
use mmu::rmp::{RmpBacklog, RmpChange, RmpCursor, Taken, Vmsa};
use oracle::rmp::{Answer, Doing, Launch, Leaf, NewEntry, Operand, Page, REGION, Use, Who};

use crate::rig::{Event, MINE, OTHER, REGIONS, Rig, guest_page, refused, update};

/// Bytes of a step: what, frame, who, how, and four of operands.
pub const STEP: usize = 8;
/// Most steps of one input.
const STEPS_MAX: usize = 128;

/// Frames that meet each other: both ends of both regions, their middle, and two without an entry.
const FRAMES: [u64; 16] = [
    0,
    1,
    2,
    3,
    REGION / 2,
    REGION - 1,
    REGION,
    REGION + 1,
    REGION + 2,
    REGION + 511,
    0,
    1,
    REGION,
    REGION + 1,
    REGIONS * REGION,
    REGIONS * REGION + 3,
];
/// Guests, the firmware's mark and numbers that no entry carries.
const ASIDS: [u32; 8] = [MINE, MINE, OTHER, 7, 0, 0x3fe, 0x3ff, u32::MAX];

// What byte 3 of a step says.
const YES: u8 = 1 << 0;
const LARGE: u8 = 1 << 1;
const MORE: u8 = 1 << 2;
const SPA_OFF: u8 = 1 << 3;
const GVA_OFF: u8 = 1 << 4;
const GPA_OFF: u8 = 1 << 5;
const GPA_TOP: u8 = 1 << 6;
/// Operands of an unassigned page keep what they say instead of the zeros that RMPUPDATE wants.
const CONTRADICT: u8 = 1 << 7;

/// What a step says of its operands.
struct Step([u8; STEP]);

impl Step {
    fn has(&self, flag: u8) -> bool {
        self.0[3] & flag != 0
    }
    fn frame(&self) -> u64 {
        let frame = FRAMES[usize::from(self.0[1] % 16)];
        if self.has(LARGE) && self.0[1] < 0x80 { frame / REGION * REGION } else { frame }
    }
    fn spa(&self) -> u64 {
        (self.frame() << 12) + if self.has(SPA_OFF) { 0x800 } else { 0 }
    }
    fn asid(&self) -> u32 {
        ASIDS[usize::from(self.0[2] % 8)]
    }
    fn vmpl(&self) -> usize {
        usize::from(self.0[2] >> 3 & 3)
    }
    fn leaf(&self) -> Leaf {
        [Leaf::Small, Leaf::Medium, Leaf::Huge, Leaf::Small][usize::from(self.0[2] >> 5 & 3)]
    }
    /// The guest has frame n at n, or a region further.
    fn gpa(&self) -> u64 {
        let elsewhere = if self.0[2] & 0x80 != 0 { REGION } else { 0 };
        let off = if self.has(GPA_OFF) { 0x800 } else { 0 };
        ((self.frame() + elsewhere) << 12) + off + if self.has(GPA_TOP) { 1 << 51 } else { 0 }
    }
    /// No guest runs under ASID 0, which an entry has for nobody.
    fn guest(&self) -> u32 {
        if self.asid() == 0 { MINE } else { self.asid() }
    }
    fn operand(&self) -> Operand {
        let gpa = self.gpa() & ((1 << 51) - 1);
        let gva = gpa + if self.has(GVA_OFF) { 0x1000 } else { 0 };
        Operand { gva, gpa, spa: self.spa(), leaf: self.leaf(), asid: self.guest(), vmpl: self.vmpl() }
    }
    fn update(&self) -> NewEntry {
        let (assigned, large) = (self.has(YES), self.has(LARGE));
        if !assigned && !self.has(CONTRADICT) {
            return NewEntry { gpa: 0, assigned, large, immutable: false, asid: 0 };
        }
        NewEntry { gpa: self.gpa(), assigned, large, immutable: self.has(MORE), asid: self.asid() }
    }
    fn masks(&self) -> [u8; 3] {
        [5, 6, 7].map(|n| self.0[n] & 0x1f)
    }

    fn event(&self) -> Option<Event> {
        let (spa, large) = (self.spa(), self.has(LARGE));
        Some(match self.0[0] % 16 {
            0 | 1 => Event::Update(spa, self.update()),
            2 => Event::Psmash(spa),
            3 | 4 => Event::Pvalidate(self.operand(), large, self.has(YES)),
            5 => {
                let [target, mask, vmsa] = [5, 6, 7].map(|n| u64::from(self.0[n]));
                Event::Adjust(self.operand(), u64::from(self.0[4] & 3), target | mask << 8 | (vmsa & 3) << 16)
            }
            6 => {
                let launch = Launch { asid: self.asid(), large, vmsa: self.has(MORE), masks: self.masks() };
                Event::Launch(spa, launch)
            }
            7 => Event::Reclaim(spa, large),
            8 => Event::CreateContext(spa),
            9 => Event::Decommission(spa),
            10 => Event::Fix(spa),
            11 => Event::Unsmash(spa),
            12 => Event::Run(self.frame()),
            13 => Event::Stop(self.frame()),
            _ => return None,
        })
    }

    /// What is asked and changes nothing: accesses by every way, RMPREAD and RMPQUERY.
    fn ask(&self, rig: &Rig) {
        let operand = self.operand();
        let snp = Who::SnpGuest { asid: operand.asid, gpa: operand.gpa, c_bit: self.has(YES), vmpl: operand.vmpl };
        for who in [Who::HostOrPlainGuest, snp] {
            for doing in [Doing::Read, Doing::Write, Doing::Fetch, Doing::TableWalk] {
                rig.compare_access(&Use { who, doing, user: self.has(MORE), leaf: operand.leaf, spa: operand.spa });
            }
        }
        let read = rig.rmp.rmpread(Spa::new(operand.spa)).map(|read| read.to_bytes()).map_err(|error| error.code());
        let expected = rig.map.rmpread(operand.spa).map(|read| {
            let mut bytes = update(&read.entry).to_bytes();
            bytes[9] |= u8::from(read.others) << 1;
            bytes
        });
        assert_eq!(read, expected, "RMPREAD of {:#x}", operand.spa);
        for (target, level) in Vmpl::ALL.into_iter().enumerate() {
            let told = match rig.rmp.rmpquery(&guest_page(&operand), level) {
                Ok(Ok(query)) => Ok((query.permissions.bits(), query.vmsa == Vmsa::Yes, query.size.frames() == REGION)),
                Ok(Err(error)) => Err(Answer::Returns { eax: error.code(), carry: false }),
                Err(refusal) => Err(refused(refusal)),
            };
            assert_eq!(told, rig.map.rmpquery(&operand, target), "RMPQUERY of {operand:x?} for {target}");
        }
    }
}

/// Lets the steps happen to a table and to the model.
///
/// # Panics
/// When an answer or the table is not the model's, or a law is broken.
pub fn run_bytes(input: &[u8]) {
    let mut rig = Rig::new();
    for step in input.as_chunks().0.iter().take(STEPS_MAX) {
        let step = Step(*step);
        let Some(event) = step.event() else {
            step.ask(&rig);
            continue;
        };
        let was = rig.map.pages.clone();
        let mut seen = rig.rmp.changes().now();
        let done = rig.apply(&event);
        // What a refusal changed would show after the next change, or at the end.
        if done {
            rig.compare(&event);
        }
        laws(&event, done, &was, &rig, &mut seen);
    }
    rig.compare(&"the end");
}

/// What holds between the pages before an event and after it, whatever the event.
fn laws(event: &Event, done: bool, was: &[Page], rig: &Rig, seen: &mut RmpCursor) {
    let RmpBacklog::Changes(log) = rig.rmp.changes().catch_up(seen) else {
        panic!("{event:x?} logs more than is kept")
    };
    for ((frame, old), new) in (0..).zip(was).zip(&rig.map.pages) {
        if old == new {
            continue;
        }
        assert!(done, "{event:x?} was refused and changed {frame:#x}");
        if new.validated && !old.validated {
            assert!(matches!(event, Event::Pvalidate(..) | Event::Launch(..)), "{event:x?} validates {frame:#x}");
        }
        if let Event::Pvalidate(operand, ..) | Event::Adjust(operand, ..) = event {
            assert!(old.asid == operand.asid && new.asid == operand.asid, "{event:x?} touches another's {frame:#x}");
        }
        if let Event::Psmash(_) = event {
            assert_eq!(Page { large: true, ..*new }, *old, "PSMASH changes more than the size of {frame:#x}");
        }
        assert!(
            !takes(old, new) || log.iter().any(|change| covers(change, frame)),
            "{event:x?} of {frame:#x} is not told"
        );
    }
}

/// Whether somebody who could use the page as it was may cache more than he may do now.
fn takes(old: &Page, new: &Page) -> bool {
    let usable = |page: &Page| page.assigned && !page.immutable && page.validated;
    let same = (old.asid, old.gpa, old.large) == (new.asid, new.gpa, new.large);
    let less = old.masks.iter().zip(new.masks).any(|(old, new)| old & !new != 0);
    !old.assigned && new.assigned || usable(old) && (!usable(new) || !same || less)
}

fn covers(change: &RmpChange, frame: u64) -> bool {
    change.what == Taken::Rights && (change.first.raw()..change.first.raw() + change.frames).contains(&frame)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    /// Byte 2 for an instruction through a leaf of 2 MiB.
    const MEDIUM: u8 = 1 << 5;
    const UPDATE: u8 = 0;
    const PSMASH: u8 = 2;
    const PVALIDATE: u8 = 3;
    const ADJUST: u8 = 5;
    const LAUNCH: u8 = 6;
    const RECLAIM: u8 = 7;
    const CREATE: u8 = 8;
    const DECOMMISSION: u8 = 9;
    const FIX: u8 = 10;
    const UNSMASH: u8 = 11;
    const RUN: u8 = 12;
    const STOP: u8 = 13;
    const ASK: u8 = 14;

    /// Named lives of pages: the fuzz target's seeds.
    fn seeds() -> Vec<(&'static str, Vec<[u8; STEP]>)> {
        let of = |what, frame, who, how| [what, frame, who, how, 0, 0, 0, 0];
        vec![
            (
                "small",
                vec![
                    of(UPDATE, 1, 0, YES),
                    of(PVALIDATE, 1, 0, YES),
                    of(ASK, 1, 0, YES),
                    of(PVALIDATE, 1, 0, YES),
                    of(PVALIDATE, 1, 0, 0),
                    of(UPDATE, 1, 2, YES),
                    of(UPDATE, 1, 0, 0),
                    of(ASK, 1, 0, 0),
                ],
            ),
            (
                "large",
                vec![
                    of(UPDATE, 6, 0, YES | LARGE),
                    of(PVALIDATE, 6, MEDIUM, YES | LARGE),
                    of(PVALIDATE, 7, 0, YES),
                    of(PSMASH, 6, 0, LARGE),
                    of(PVALIDATE, 7, 0, 0),
                    of(ASK, 7, MEDIUM, YES),
                    of(UNSMASH, 6, 0, LARGE),
                    of(PVALIDATE, 7, 0, YES),
                    of(UNSMASH, 6, 0, LARGE),
                    of(UPDATE, 6, 0, LARGE),
                ],
            ),
            (
                "levels",
                vec![
                    of(UPDATE, 2, 0, YES),
                    of(PVALIDATE, 2, 0, YES),
                    [ADJUST, 2, 0, 0, 0, 1, 0x0f, 0],
                    [ADJUST, 2, 1 << 3, 0, 0, 2, 0x03, 0],
                    [ADJUST, 2, 1 << 3, 0, 0, 2, 0x1f, 0],
                    [ADJUST, 2, 0, 0, 0, 1, 0x01, 1],
                    of(ASK, 2, 2 << 3, YES),
                ],
            ),
            (
                "launch",
                vec![
                    of(UPDATE, 3, 0, YES | MORE),
                    [LAUNCH, 3, 0, MORE, 0, 1, 3, 0x1f],
                    of(RUN, 3, 0, 0),
                    of(UPDATE, 3, 0, 0),
                    of(STOP, 3, 0, 0),
                    of(UPDATE, 3, 0, 0),
                    of(UPDATE, 0, 0, YES | MORE | LARGE),
                    of(RECLAIM, 0, 0, LARGE),
                    of(UPDATE, 0, 0, LARGE),
                ],
            ),
            (
                "firmware",
                vec![
                    of(UPDATE, 0, 4, YES | MORE),
                    of(CREATE, 0, 0, 0),
                    of(ASK, 0, 4, YES),
                    of(DECOMMISSION, 0, 0, 0),
                    of(RECLAIM, 0, 0, 0),
                    of(UPDATE, 0, 0, 0),
                    of(FIX, 0, 0, 0),
                    of(UPDATE, 0, 0, YES),
                ],
            ),
            (
                "refused",
                vec![
                    of(UPDATE, 14, 0, YES),
                    of(UPDATE, 1, 6, YES),
                    of(UPDATE, 1, 0, YES | GPA_TOP),
                    of(UPDATE, 1, 0, CONTRADICT),
                    of(UPDATE, 1, 0, YES | SPA_OFF),
                    of(UPDATE, 1, 0, YES),
                    of(UPDATE, 0, 0, YES | LARGE),
                    of(PVALIDATE, 1, 2, YES),
                    of(PVALIDATE, 1, 1 << 3, YES),
                    [ADJUST, 1, 0, 0, 0, 1, 3, 0],
                ],
            ),
        ]
    }

    fn directory() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/rmp")
    }

    /// The files are [`seeds`], written anew with `BLESS_CORPUS=1`.
    #[test]
    fn the_committed_corpus_is_the_named_lives() {
        for (name, steps) in seeds() {
            let path = directory().join(name);
            if std::env::var_os("BLESS_CORPUS").is_some() {
                std::fs::create_dir_all(directory()).unwrap();
                std::fs::write(&path, steps.as_flattened()).unwrap();
            }
            let file = std::fs::read(&path);
            assert!(file.is_ok_and(|file| file == steps.as_flattened()), "{} is stale", path.display());
        }
    }

    #[test]
    fn the_corpus_follows_the_model_and_so_does_every_mixture_of_two_of_it() {
        let files: Vec<_> = std::fs::read_dir(directory()).unwrap().map(|file| file.unwrap().path()).collect();
        let inputs: Vec<_> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
        assert!(inputs.len() >= seeds().len());
        for first in &inputs {
            for second in &inputs {
                run_bytes(&[&first[..], second].concat());
                // A step out of place, so that every byte is read as every other.
                run_bytes(&[&first[..], &[0], second].concat());
            }
        }
    }

    #[test]
    fn the_lives_of_the_corpus_reach_what_they_are_named_for() {
        let done = |name: &str| {
            let mut rig = Rig::new();
            let steps = seeds().into_iter().find(|(seed, _)| *seed == name).unwrap().1;
            let events: Vec<_> = steps.iter().filter_map(|&step| Step(step).event()).collect();
            events.iter().map(|event| rig.apply(event)).collect::<Vec<_>>()
        };
        assert_eq!(done("small"), [true, true, false, true, true, true]);
        assert_eq!(done("large"), [true, true, false, true, true, false, true, true, true]);
        assert_eq!(done("levels"), [true, true, true, true, false, true]);
        assert_eq!(done("launch"), [true, true, true, false, true, true, true, true, true]);
        assert_eq!(done("firmware"), [true, true, true, true, true, true, false]);
        assert_eq!(done("refused"), [false, false, false, false, false, true, false, false, false, false]);
    }

    proptest! {
        #[test]
        fn no_bytes_part_the_table_from_the_model(input in prop::collection::vec(any::<u8>(), 0..64 * STEP)) {
            run_bytes(&input);
        }
    }
}
