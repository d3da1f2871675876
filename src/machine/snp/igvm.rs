//! The launch that an IGVM file describes: its pages and save areas in the file's order, then those of processors that it does
//! not speak of, as KVM launches the states of all processors.
//!
//! RAM that the file does not speak of is private and nobody's: the guest makes it valid, as behind stage0.

use emu_core::page::PAGE_SIZE;
use emu_core::sync::Task;
use emu_core::{Gpa, Spa};
use hypervisor::Vm;
use hypervisor::plan::RamLayout;
use hypervisor::snp::launch::{AuthorKey, ID_BLOCK_BYTES, IdBlock, LaunchDigest, PageType, Policy, SignedId};
use hypervisor::snp::memory::{LaunchContent, SnpLaunchUpdate};

use super::launch::Firmware;
use super::parts;
use crate::loader::igvm::{Identity, Igvm, Step};
use crate::loader::{MemoryMap, MemoryMapError, MemoryRegion, RegionKind};
use crate::machine::BuildError;

/// Everything that the machine has is RAM to the file.
pub(super) fn memory_map(layout: &RamLayout) -> Result<MemoryMap, MemoryMapError> {
    let region = |(base, len_bytes): (Gpa, u64)| MemoryRegion { base, len_bytes, kind: RegionKind::Ram };
    MemoryMap::new(layout.ranges.iter().map(|range| region((range.gpa, range.len_bytes))).collect())
}

/// Launches what the file says. The save areas that it has go to `areas`, by processor.
pub(super) fn launch(
    vm: &Vm,
    igvm: &Igvm,
    cpuid: &[u8; PAGE_SIZE],
    firmware: &mut Firmware,
    areas: &mut [Option<Spa>],
    task: &Task<'_>,
) -> Result<(), BuildError> {
    let permissions = firmware.permissions();
    for step in &igvm.steps {
        match step {
            Step::Memory { gfn, page_type: page_type @ PageType::Secrets, .. } => {
                parts::special(vm, firmware, *gfn, *page_type, &[0; PAGE_SIZE], task)?;
            }
            Step::Memory { gfn, page_type: page_type @ PageType::Cpuid, .. } => {
                parts::special(vm, firmware, *gfn, *page_type, cpuid, task)?;
            }
            Step::Memory { gfn, page_type, bytes } => {
                let content = match bytes {
                    Some(bytes) => LaunchContent::Bytes(&bytes[..]),
                    None => LaunchContent::Zero { nr_pages: 1 },
                };
                let update = SnpLaunchUpdate { first: *gfn, content, page_type: *page_type, permissions };
                vm.snp_launch_update(&update, &mut |page| firmware.measure(page), task)?;
            }
            Step::Vmsa { index, bytes } => {
                let area = vm.snp_launch_vmsa(bytes, &mut |page| firmware.measure(page), task)?;
                areas[usize::from(*index)] = Some(area);
            }
        }
    }
    Ok(())
}

/// An identity block with its keys, as the firmware takes them.
pub(super) struct SignedIdentity {
    block: [u8; ID_BLOCK_BYTES],
    auth: Box<[u8; PAGE_SIZE]>,
    author: AuthorKey,
}

impl SignedIdentity {
    /// Of a guest with this policy.
    pub(super) fn new(identity: &Identity, policy: Policy) -> SignedIdentity {
        let block = IdBlock {
            digest: LaunchDigest::new(identity.digest),
            family_id: identity.family_id,
            image_id: identity.image_id,
            version: identity.version,
            guest_svn: identity.guest_svn,
            policy,
        };
        SignedIdentity { block: block.to_bytes(), auth: identity.auth.to_page(), author: identity.auth.author() }
    }

    pub(super) fn as_signed(&self) -> SignedId<'_> {
        SignedId { block: &self.block, auth: &self.auth, author: self.author }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use emu_core::event::Event;
    use hypervisor::snp::launch::FirmwareStatus;
    use igvm::IgvmDirectiveHeader;
    use igvm_defs::{IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY as PublicKey, IGVM_VHS_SNP_ID_BLOCK_SIGNATURE as Signature};
    use mmu::rmp::VmplPermissions;
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;
    use crate::config::SnpChoice;
    use crate::loader::igvm::samples;
    use crate::loader::{Image, LoadError};
    use crate::machine::{Limits, Machine, Outcome};
    use crate::trace::jsonl::{Line, read};
    use crate::trace::shared::Shared;
    use crate::trace::writer::Writer;
    use crate::trace::{Choice, Format, Recorder};

    fn build(bytes: &[u8], cpus: u16) -> Result<Machine, BuildError> {
        let builder = Machine::builder().memory(8 << 20).cpus(cpus).append("one two").snp(SnpChoice::default());
        builder.build(&Image { name: "guest.igvm", bytes })
    }

    /// The digest by the file's own words, in their order.
    fn measured(directives: &[IgvmDirectiveHeader]) -> LaunchDigest {
        let mut digest = LaunchDigest::EMPTY;
        let mut link = |kind, gpa: u64, data: &[u8]| {
            let mut page = [0; PAGE_SIZE];
            page[..data.len()].copy_from_slice(data);
            digest = digest.extended(kind, Gpa::new(gpa), &page, [VmplPermissions::empty(); 3]);
        };
        for directive in directives {
            match directive {
                IgvmDirectiveHeader::PageData { gpa, data, flags, data_type, .. } => {
                    let kind = match data_type.0 {
                        0 if flags.unmeasured() => PageType::Unmeasured,
                        0 => PageType::Normal,
                        1 => PageType::Secrets,
                        _ => PageType::Cpuid,
                    };
                    link(kind, *gpa, data);
                }
                IgvmDirectiveHeader::ParameterInsert(insert) => link(PageType::Unmeasured, insert.gpa, &[]),
                IgvmDirectiveHeader::SnpVpContext { gpa, vmsa, .. } => link(PageType::Vmsa, *gpa, vmsa.as_bytes()),
                _ => {}
            }
        }
        digest
    }

    #[test]
    fn the_guest_of_a_file_runs_from_its_save_area_and_makes_memory_valid() {
        for cpus in [1, 2] {
            let mut machine = build(&samples::guest(), cpus).expect("the file loads");
            let limits = Limits { max_instructions: Some(100_000) };
            let outcome = machine.run(limits, |_| true).expect("the host is well");
            let Outcome::Terminated { why, .. } = &outcome else { panic!("{outcome:?}") };
            assert!(why.contains(&format!("(reason set 1, code {cpus:#x})")), "{why}");
        }
    }

    #[test]
    fn a_trace_has_what_the_guest_does_by_itself_with_its_instruction() {
        let file = Shared::default();
        let writer = Writer::new(Format::Jsonl, Box::new(file.clone()));
        let recorder = Arc::new(Recorder::new(Choice::default(), None, vec![Box::new(writer)]));
        recorder.begin(&[]);
        let builder = Machine::builder().memory(8 << 20).snp(SnpChoice::default()).recorder(Arc::clone(&recorder));
        let mut machine = builder.build(&Image { name: "guest.igvm", bytes: &samples::guest() }).unwrap();
        machine.run(Limits { max_instructions: Some(100_000) }, |_| true).unwrap();
        recorder.finish(&[]).unwrap();
        let text = String::from_utf8(file.bytes()).unwrap();
        let records: Vec<_> = text
            .lines()
            .filter_map(|line| match read(line).unwrap() {
                Line::Record(record) => Some(record),
                _ => None,
            })
            .collect();
        let at = |wanted: fn(&Event) -> bool| records.iter().position(|record| wanted(&record.event)).unwrap();
        let validated = at(|event| matches!(event, Event::Pvalidate { result: 0, carry: 0, .. }));
        let entered = at(|event| matches!(event, Event::VmgexitMsrProtocolEnter { .. }));
        let ended = at(|event| matches!(event, Event::VmgexitMsrProtocolExit { result: -22, .. }));
        assert!(validated < entered && entered < ended);
        let rip = |n: usize| records[n].stamp.rip.expect("the processor's doing").raw();
        // It ends with VMGEXIT, four bytes.
        assert!(rip(validated) < rip(entered), "{:#x}, {:#x}", rip(validated), rip(entered));
        assert!(records.windows(2).all(|pair| pair[0].stamp.time <= pair[1].stamp.time), "time never goes back");
    }

    #[test]
    fn the_digest_follows_the_order_of_the_file() {
        let mut directives = samples::directives();
        let mut seen = Vec::new();
        for _ in 0..2 {
            let machine = build(&samples::file(Vec::new(), directives.clone()), 1).expect("the file loads");
            assert_eq!(machine.launch_digest(), Some(measured(&directives)));
            seen.push(machine.launch_digest());
            directives.swap(1, 2);
        }
        assert_ne!(seen[0], seen[1]);
        // The save area first.
        directives.rotate_right(1);
        let machine = build(&samples::file(Vec::new(), directives.clone()), 1).expect("the file loads");
        assert_eq!(machine.launch_digest(), Some(measured(&directives)));
        assert!(!seen.contains(&machine.launch_digest()));
    }

    fn id_block(ld: &LaunchDigest) -> IgvmDirectiveHeader {
        let signature = || Box::new(Signature::new_zeroed());
        let key = || Box::new(PublicKey { curve: 2, ..PublicKey::new_zeroed() });
        IgvmDirectiveHeader::SnpIdBlock {
            compatibility_mask: samples::MASK,
            author_key_enabled: 0,
            reserved: [0; 3],
            ld: *ld.bytes(),
            family_id: [1; 16],
            image_id: [2; 16],
            version: 1,
            guest_svn: 3,
            id_key_algorithm: 1,
            author_key_algorithm: 0,
            id_key_signature: signature(),
            id_public_key: key(),
            author_key_signature: signature(),
            author_public_key: key(),
        }
    }

    #[test]
    fn an_identity_block_is_held_against_the_launch() {
        let digest = measured(&samples::directives());
        for (ld, expected) in
            [(LaunchDigest::EMPTY, FirmwareStatus::BadMeasurement), (digest, FirmwareStatus::BadSignature)]
        {
            let directives = [samples::directives(), vec![id_block(&ld)]].concat();
            let refused = build(&samples::file(Vec::new(), directives), 1).err();
            let Some(BuildError::Firmware(status)) = refused else { panic!("{refused:?}") };
            assert_eq!(status, expected);
        }
    }

    #[test]
    fn a_machine_without_snp_refuses_the_file() {
        let refused = Machine::builder().build(&Image { name: "guest.igvm", bytes: &samples::guest() }).err();
        let Some(BuildError::Load(error)) = refused else { panic!("{refused:?}") };
        assert_eq!((error.help(), error), ("say --vm snp", LoadError::IgvmNeedsSnp));
    }
}
