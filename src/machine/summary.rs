//! What a run amounted to.

use emu_core::PageSize;
use emu_core::sev::Vmpl;
use hypervisor::VmStats;
use hypervisor::snp::launch::LaunchDigest;
use mmu::MmuStats;

use super::{DeviceDma, Injected, LieResult, Machine};
use crate::trace::Recorded;
use crate::vmm::VmmCounters;
use crate::vmm::agent::{Deeds, Tally};

/// Counters of a run, all of them functions of image, configuration and seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The seed.
    pub seed: u64,
    /// Units of time executed by all processors.
    pub instructions: u64,
    /// Virtual nanoseconds since reset.
    pub time_ns: u64,
    /// Exits to the machine: all, and of these port, device memory, MSR.
    pub exits: u64,
    /// Port accesses.
    pub io: u64,
    /// Accesses to device memory.
    pub mmio: u64,
    /// MSR accesses that the board answered.
    pub msr: u64,
    /// HLTs.
    pub halts: u64,
    /// Interrupts delivered.
    pub interrupts: u64,
    /// Turns taken.
    pub turns: u64,
    /// Looks at the hypervisor's invariants.
    pub checks: u64,
    /// What the VMM was asked.
    pub vmm: VmmCounters,
    /// What the VMM did by its own will.
    pub deeds: Deeds,
    /// Blocks decoded.
    pub blocks: u64,
    /// What was recorded of it, if anything.
    pub trace: Option<Recorded>,
    /// What its devices did to guest memory.
    pub dma: Vec<DeviceDma>,
    /// Of an SNP guest.
    pub snp: Option<SnpSummary>,
    /// What its host did to it.
    pub injected: Option<Injected>,
    /// The hypervisor's counters.
    pub vm: VmStats,
    /// The translation units' counters, added up.
    pub mmu: MmuStats,
}

/// What an SNP guest was, and what it amounted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnpSummary {
    /// What its launch was measured as.
    pub digest: LaunchDigest,
    /// Its policy.
    pub policy: u64,
    /// The number of its C-bit.
    pub c_bit: u8,
    /// The privilege level its processors start at.
    pub vmpl: Vmpl,
    /// VMGEXITs.
    pub vmgexits: u64,
    /// Runs of pages that the guest wanted in another state.
    pub page_state_changes: u64,
}

impl Machine {
    /// The counters as they stand.
    pub fn summary(&mut self) -> Summary {
        let mut mmu = MmuStats::default();
        let mut blocks = 0;
        for processor in &mut self.vcpus {
            add(&mut mmu, &processor.vcpu.mmu().stats());
            blocks += processor.vcpu.blocks_decoded();
        }
        let c = &self.counters;
        Summary {
            seed: self.config.seed.0,
            instructions: self.vcpus.iter().map(|p| p.retired).sum(),
            time_ns: self.now.units(),
            exits: c.exits,
            io: c.io,
            mmio: c.mmio,
            msr: c.msr,
            halts: c.halts,
            interrupts: c.interrupts,
            turns: c.turns,
            checks: self.checks.as_ref().map_or(0, |checks| checks.done),
            vmm: self.vmm.counters(),
            deeds: self.vmm.deeds().clone(),
            blocks,
            trace: self.trace(),
            dma: self.device_dma(),
            snp: self.snp.as_ref().map(|snp| SnpSummary {
                digest: snp.digest(),
                policy: self.config.snp.policy,
                c_bit: self.config.snp.c_bit,
                vmpl: self.config.snp.vmpl,
                vmgexits: c.vmgexits,
                page_state_changes: c.page_state_changes,
            }),
            injected: self.injector.as_ref().and_then(|injector| injector.record.clone()),
            vm: self.vm.stats(),
            mmu,
        }
    }
}

fn add(sum: &mut MmuStats, more: &MmuStats) {
    // Every field by name: a new counter does not compile until it is added here.
    let MmuStats {
        fast_misses,
        tlb_hits,
        walks_1d,
        walks_2d,
        nested_walks,
        table_loads,
        ad_updates,
        restarts,
        flushes,
    } = more;
    sum.fast_misses += fast_misses;
    sum.tlb_hits += tlb_hits;
    sum.walks_1d += walks_1d;
    sum.walks_2d += walks_2d;
    sum.nested_walks += nested_walks;
    sum.table_loads += table_loads;
    sum.ad_updates += ad_updates;
    sum.restarts += restarts;
    sum.flushes += flushes;
}

impl core::fmt::Display for Summary {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let by_size =
            |counts: [u64; 3]| PageSize::ALL.map(|size| format!("{size} {}", counts[size.index()])).join(", ");
        let faults = &self.vm.faults;
        writeln!(f, "instructions {}  time {} ns  seed {}", self.instructions, self.time_ns, self.seed)?;
        writeln!(
            f,
            "exits        {}  (io {}, mmio {}, msr {}, hlt {})  interrupts {}",
            self.exits, self.io, self.mmio, self.msr, self.halts, self.interrupts
        )?;
        writeln!(
            f,
            "nested fault {}  (on guest tables {}, fixed: {}; spurious {}, retry {}, mmio {})",
            faults.taken,
            faults.on_guest_tables,
            by_size(faults.fixed),
            faults.spurious,
            faults.retry,
            faults.mmio
        )?;
        writeln!(f, "folios       {}", by_size(self.vm.folios))?;
        if self.checks > 0 {
            writeln!(f, "checks       every invariant {} times", self.checks)?;
        }
        for DeviceDma { slot, id: (vendor, device), counters: c } in &self.dma {
            writeln!(
                f,
                "DMA          slot {slot} ({vendor:04x}:{device:04x}): {} bytes read, {} written; {} accesses refused",
                c.read_bytes, c.written_bytes, c.refused
            )?;
        }
        if let Some(snp) = &self.snp {
            let m = &self.vm.snp;
            writeln!(f, "SNP          policy {:#x}, C-bit {}, VMPL{}", snp.policy, snp.c_bit, snp.vmpl.index())?;
            writeln!(f, "             launch digest {}", snp.digest)?;
            writeln!(
                f,
                "             {} pages launched, {} VMGEXITs, {} page state changes",
                m.launched_pages, snp.vmgexits, snp.page_state_changes
            )?;
            writeln!(
                f,
                "             RMP entries: 4K {} assigned, {} returned; 2M {} assigned, {} returned; {} PSMASH, {} UNSMASH; {} faults",
                m.assigned[0], m.returned[0], m.assigned[1], m.returned[1], m.smashed, m.unsmashed, m.rmp_faults
            )?;
        }
        if let Some(told) = &self.injected {
            write!(f, "host         at {}: {}", told.at, told.lie)?;
            let pages = [(" of ", told.gpa), (" with ", told.other)];
            for (word, gpa) in pages.into_iter().filter_map(|(word, gpa)| Some((word, gpa?))) {
                write!(f, "{word}{gpa}")?;
            }
            match &told.result {
                LieResult::Done => write!(f, ": done")?,
                LieResult::Refused(why) => write!(f, ": refused: {why}")?,
                LieResult::Impossible(why) => write!(f, ": impossible: {why}")?,
            }
            match told.caught {
                Some(at) => writeln!(f, "; caught at {at} by a nested fault of the RMP")?,
                None => writeln!(f)?,
            }
        }
        let v = &self.vmm;
        if v.hypercalls > 0 || v.memory_faults > 0 {
            writeln!(
                f,
                "VMM          {} hypercalls  ({} refused, {} conversions)  {} memory faults",
                v.hypercalls, v.refused, v.conversions, v.memory_faults
            )?;
        }
        if v.full_rings > 0 {
            writeln!(f, "VMM          {} exits for full dirty rings", v.full_rings)?;
        }
        for record in &self.deeds.script {
            let what = &record.what;
            match &record.result {
                Ok(0) => writeln!(f, "VMM          at {}: {what}: done", record.at)?,
                Ok(bytes) => writeln!(f, "VMM          at {}: {what}: done, {bytes:#x} bytes", record.at)?,
                Err(why) => writeln!(f, "VMM          at {}: {what}: refused: {why}", record.at)?,
            }
        }
        if self.deeds.not_kept > 0 {
            writeln!(f, "VMM          and {} more", self.deeds.not_kept)?;
        }
        for (kind, tally) in self.deeds.random.iter().filter(|(_, tally)| tally.done + tally.refused > 0) {
            let (name, Tally { done, refused, bytes, first_refusal }) = (kind.name(), tally);
            writeln!(f, "VMM          at random {name}: {done} done, {bytes:#x} bytes; {refused} refused")?;
            if let Some(why) = first_refusal {
                writeln!(f, "             the first: {why}")?;
            }
        }
        let m = &self.mmu;
        writeln!(
            f,
            "translation  {} misses of the fast TLB, {} hits behind it, {} walks over nested tables, {} of nested tables",
            m.fast_misses, m.tlb_hits, m.walks_2d, m.nested_walks
        )?;
        write!(
            f,
            "             {} entries read, {} A/D updates, {} flushes; {} blocks decoded",
            m.table_loads, m.ad_updates, m.flushes, self.blocks
        )
    }
}
