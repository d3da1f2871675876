//! What an SNP guest did: counts over time, and which of its instructions caused what.
//!
//! Causes are kept by what happened and by the instruction's address, up to [`CAUSES`] of them; what comes later is counted
//! as one. An exit code has its name from the manual or the GHCB specification.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use emu_core::Gva;
use emu_core::event::{Event, RmpOwner, Sharing, Validity};
use emu_core::sev::ExitCode;
use serde_json::{Value as Json, json};

use super::timeline::Timeline;
use crate::trace::Record;

/// The most causes that are told apart.
const CAUSES: usize = 4096;
/// The most that a page lists.
const LISTED: usize = 60;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Snp {
    causes: BTreeMap<(String, Option<Gva>), u64>,
    others: u64,
}

fn code(code: u64) -> String {
    ExitCode(code).name().map_or_else(|| format!("{code:#x}"), str::to_owned)
}

/// What happened, where the guest's instruction is worth knowing.
fn what(event: &Event) -> Option<String> {
    Some(match *event {
        Event::VmmCommunication { exit_code } => format!("#VC {}", code(exit_code.0)),
        Event::VmgexitEnter { exit_code, .. } => format!("VMGEXIT {}", code(exit_code.0)),
        Event::VmgexitMsrProtocolEnter { ghcb_gpa } => format!("VMGEXIT by the MSR, request {:#x}", ghcb_gpa.0 & 0xfff),
        Event::Pvalidate { size, to, result, carry, .. } => {
            let came_to = match (result, carry) {
                (0, 0) => to.word().to_owned(),
                (0, _) => format!("{} already", to.word()),
                (code, _) => format!("refused with {code}"),
            };
            format!("PVALIDATE {size}: {came_to}")
        }
        Event::RmpAdjust { result: 0, .. } => "RMPADJUST".to_owned(),
        Event::RmpAdjust { result, .. } => format!("RMPADJUST: refused with {result}"),
        Event::RmpFault { psmash_ret: 0, .. } => "nested fault by the RMP".to_owned(),
        Event::RmpFault { psmash_ret, .. } => format!("nested fault by the RMP, PSMASH refused with {psmash_ret}"),
        Event::PageStateChange { to, size, errno, .. } => {
            let failed = if errno == 0 { String::new() } else { format!(", errno {}", -errno) };
            format!("page state change to {} by {size}{failed}", to.word())
        }
        _ => return None,
    })
}

impl Snp {
    /// Counts `record`, if it is one of an SNP guest's.
    pub(super) fn follow(&mut self, record: &Record, timeline: &mut Timeline) {
        over_time(&record.event, timeline);
        let Some(what) = what(&record.event) else { return };
        let key = (what, record.stamp.rip);
        let full = self.causes.len() >= CAUSES;
        match self.causes.entry(key) {
            Entry::Occupied(mut count) => *count.get_mut() += 1,
            Entry::Vacant(place) if !full => _ = place.insert(1),
            Entry::Vacant(_) => self.others += 1,
        }
    }

    /// The most frequent causes: what, the instruction's address, how often; and how often any other.
    pub(super) fn json(&self) -> Json {
        let mut causes: Vec<_> = self.causes.iter().collect();
        causes.sort_by_key(|((what, rip), count)| (core::cmp::Reverse(**count), what.clone(), *rip));
        let listed: Vec<Json> = causes
            .iter()
            .take(LISTED)
            .map(|((what, rip), count)| json!([what, rip.map(|rip| format!("{:#x}", rip.raw())), count]))
            .collect();
        let rest: u64 = causes.iter().skip(LISTED).map(|(_, count)| **count).sum();
        json!({ "causes": listed, "others": rest + self.others })
    }
}

fn over_time(event: &Event, timeline: &mut Timeline) {
    match *event {
        Event::Pvalidate { size, to, result: 0, carry: 0, .. } => match to {
            Validity::Validated => timeline.add("snp.validated", size.frames()),
            Validity::Rescinded => timeline.add("snp.rescinded", size.frames()),
        },
        Event::RmpUpdate { size, owner, result: 0, .. } => match owner {
            RmpOwner::Hypervisor => timeline.add("snp.returned", size.frames()),
            RmpOwner::Guest | RmpOwner::PreGuest => timeline.add("snp.assigned", size.frames()),
            RmpOwner::Firmware => {}
        },
        Event::PageStateChange { nr_pages, to, errno: 0, .. } => match to {
            Sharing::Private => timeline.add("snp.to_private", nr_pages),
            Sharing::Shared => timeline.add("snp.to_shared", nr_pages),
        },
        Event::LaunchUpdate { size, status: 0, .. } => timeline.add("snp.launched", size.frames()),
        Event::Psmash { result: 0, .. } => timeline.add("snp.psmash", 1),
        Event::Unsmash { status: 0, .. } => timeline.add("snp.unsmash", 1),
        Event::RmpFault { .. } => timeline.add("snp.fault", 1),
        Event::VmmCommunication { exit_code } => timeline.add(&format!("vc.{}", code(exit_code.0)), 1),
        Event::VmgexitEnter { exit_code, .. } => timeline.add(&format!("vmgexit.{}", code(exit_code.0)), 1),
        Event::VmgexitMsrProtocolEnter { .. } => timeline.add("vmgexit.MSR protocol", 1),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use emu_core::event::Bits;

    use super::*;
    use crate::trace::Stamp;

    fn vc(code: u64, rip: u64) -> Record {
        let stamp = Stamp { rip: Some(Gva::new(rip)), ..Stamp::default() };
        Record { stamp, host_ns: None, event: Event::VmmCommunication { exit_code: Bits(code) } }
    }

    #[test]
    fn causes_are_told_by_name_and_by_instruction_the_most_frequent_first() {
        let (mut snp, mut timeline) = (Snp::default(), Timeline::default());
        for record in [vc(0x72, 0x1000), vc(0x7c, 0x2000), vc(0x7c, 0x2000), vc(0x999, 0x1000)] {
            snp.follow(&record, &mut timeline);
        }
        let expected = json!([["#VC MSR", "0x2000", 2], ["#VC 0x999", "0x1000", 1], ["#VC CPUID", "0x1000", 1]]);
        assert_eq!(snp.json()["causes"], expected);
        let series: Vec<_> = timeline.finished().map(|(name, values)| (name.to_owned(), values[0])).collect();
        let expected = [("vc.0x999", 1), ("vc.CPUID", 1), ("vc.MSR", 2)].map(|(name, n)| (name.to_owned(), n));
        assert_eq!(series, expected);
    }

    #[test]
    fn a_guest_with_ever_new_causes_takes_bounded_memory() {
        let (mut snp, mut timeline) = (Snp::default(), Timeline::default());
        let most = CAUSES as u64 + 10;
        (0..most).for_each(|n| snp.follow(&vc(0x72, n), &mut timeline));
        let told = snp.json();
        assert_eq!(told["causes"].as_array().map(Vec::len), Some(LISTED));
        assert_eq!(told["others"], most - LISTED as u64);
    }
}
