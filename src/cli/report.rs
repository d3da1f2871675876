//! The end of a run, for people and for programs.

use serde_json::{Map, Value, json};

use super::exit::ExitCode;
use crate::machine::{DeviceDma, Injected, LieResult, Outcome, SnpSummary, Summary};
use crate::vmm::agent::{Deeds, Record, Tally};
use emu_core::PageSize;
use hypervisor::snp::memory::SnpStats;

/// The outcome's name in `--json`.
pub(super) fn name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::PowerOff => "power-off",
        Outcome::Reset => "reset",
        Outcome::DebugExit(_) => "debug-exit",
        Outcome::TripleFault { .. } => "triple-fault",
        Outcome::NoMemory { .. } => "no-memory",
        Outcome::MemoryFault { .. } => "memory-fault",
        Outcome::MemoryFailure { .. } => "memory-failure",
        Outcome::Terminated { .. } => "terminated",
        Outcome::BrokeProtocol { .. } => "protocol",
        Outcome::InvariantBroken { .. } => "invariant",
        Outcome::Asleep { .. } => "asleep",
        Outcome::LimitReached => "limit",
        Outcome::Interrupted => "interrupted",
    }
}

/// The exit code an outcome means.
pub(super) fn exit_code(outcome: &Outcome) -> ExitCode {
    match outcome {
        Outcome::PowerOff | Outcome::Reset | Outcome::Interrupted => ExitCode::Done,
        Outcome::DebugExit(value) => ExitCode::Guest(*value),
        Outcome::TripleFault { .. }
        | Outcome::NoMemory { .. }
        | Outcome::MemoryFault { .. }
        | Outcome::MemoryFailure { .. }
        | Outcome::Terminated { .. }
        | Outcome::BrokeProtocol { .. }
        | Outcome::Asleep { .. } => ExitCode::GuestDied,
        Outcome::InvariantBroken { .. } => ExitCode::Invariant,
        Outcome::LimitReached => ExitCode::Limit,
    }
}

/// The outcome in a sentence.
pub(super) fn sentence(outcome: &Outcome) -> String {
    match outcome {
        Outcome::PowerOff => "the guest powered off".into(),
        Outcome::Reset => "the guest asked for a reset".into(),
        Outcome::DebugExit(value) => format!("the guest wrote {value:#x} to the debug-exit port"),
        Outcome::TripleFault { cpu, registers } => format!("triple fault on CPU {cpu}: {registers}"),
        Outcome::NoMemory { cpu, gpa, registers } => {
            format!("CPU {cpu} executes, or has page tables, at {gpa}, where no memory is: {registers}")
        }
        Outcome::MemoryFault { cpu, fault, registers } => {
            let meant = if fault.privacy.is_private() { "private" } else { "shared" };
            format!("CPU {cpu} wants {meant} memory at {}, and the VMM gives none: {registers}", fault.gpa)
        }
        Outcome::MemoryFailure { cpu, gpa, registers } => {
            format!("CPU {cpu} uses memory at {gpa} that has failed: {registers}")
        }
        Outcome::Terminated { cpu, why, registers } => format!("CPU {cpu}: {why}: {registers}"),
        Outcome::BrokeProtocol { cpu, why, registers } => format!("CPU {cpu} cannot go on: {why}: {registers}"),
        Outcome::InvariantBroken { at, invariant, found } => {
            format!("an invariant of the hypervisor is broken after {at} instructions: {invariant}: {found}")
        }
        Outcome::Asleep { registers } => {
            format!("every CPU sleeps and nothing is due that could wake one: {registers}")
        }
        Outcome::LimitReached => "the limit was reached".into(),
        Outcome::Interrupted => "ended from the keyboard".into(),
    }
}

fn by_size(counts: [u64; 3]) -> Value {
    PageSize::ALL.into_iter().map(|size| (size.to_string(), counts[size.index()].into())).collect::<Map<_, _>>().into()
}

fn script(deeds: &Deeds) -> Value {
    let record = |r: &Record| match &r.result {
        Ok(bytes) => json!({ "at": r.at, "what": r.what, "bytes": bytes }),
        Err(why) => json!({ "at": r.at, "what": r.what, "refused": why }),
    };
    deeds.script.iter().map(record).collect()
}

fn random(deeds: &Deeds) -> Value {
    let tally = |t: &Tally| json!({ "done": t.done, "refused": t.refused, "bytes": t.bytes, "why": t.first_refusal });
    let named = deeds.random.iter().map(|(kind, of)| (kind.name().to_owned(), tally(of)));
    named.collect::<Map<_, _>>().into()
}

fn snp_json(snp: &SnpSummary, memory: &SnpStats) -> Value {
    let sizes = |[small, large]: [u64; 2]| json!({ "4K": small, "2M": large });
    json!({
        "launch_digest": snp.digest.to_string(),
        "policy": snp.policy,
        "c_bit": snp.c_bit,
        "vmpl": snp.vmpl.index(),
        "vmgexits": snp.vmgexits,
        "page_state_changes": snp.page_state_changes,
        "launched_pages": memory.launched_pages,
        "assigned": sizes(memory.assigned),
        "returned": sizes(memory.returned),
        "psmash": memory.smashed,
        "unsmash": memory.unsmashed,
        "rmp_faults": memory.rmp_faults,
    })
}

fn dma_json(dma: &DeviceDma) -> Value {
    let ((vendor, device), c) = (dma.id, dma.counters);
    json!({
        "slot": dma.slot,
        "id": format!("{vendor:04x}:{device:04x}"),
        "read_bytes": c.read_bytes,
        "written_bytes": c.written_bytes,
        "refused": c.refused,
    })
}

fn injected_json(told: &Injected) -> Value {
    let (result, why) = match &told.result {
        LieResult::Done => ("done", None),
        LieResult::Refused(why) => ("refused", Some(why)),
        LieResult::Impossible(why) => ("impossible", Some(why)),
    };
    json!({
        "what": told.lie.name(),
        "at": told.at,
        "gpa": told.gpa.map(|gpa| gpa.raw()),
        "other": told.other.map(|gpa| gpa.raw()),
        "result": result,
        "why": why,
        "promised": told.promised.name(),
        "caught": told.caught,
    })
}

/// The one JSON object of `--json`.
pub(super) fn json(outcome: &Outcome, code: ExitCode, summary: &Summary) -> Value {
    let f = &summary.vm.faults;
    let m = &summary.mmu;
    let s = &summary.vm.shadow;
    let v = &summary.vmm;
    json!({
        "schema": 1,
        "outcome": name(outcome),
        "why": sentence(outcome),
        "exit": code.code(),
        "seed": summary.seed,
        "instructions": summary.instructions,
        "time_ns": summary.time_ns,
        "exits": { "all": summary.exits, "io": summary.io, "mmio": summary.mmio, "msr": summary.msr, "hlt": summary.halts },
        "vmm": {
            "hypercalls": v.hypercalls,
            "refused": v.refused,
            "conversions": v.conversions,
            "memory_faults": v.memory_faults,
            "full_rings": v.full_rings,
            "script": script(&summary.deeds),
            "random": random(&summary.deeds),
        },
        "trace": summary.trace.map(|tally| json!({
            "events": tally.events,
            "digest": format!("{:#018x}", tally.digest),
        })),
        "dma": summary.dma.iter().map(dma_json).collect::<Vec<_>>(),
        "snp": summary.snp.map(|snp| snp_json(&snp, &summary.vm.snp)),
        "injected": summary.injected.as_ref().map(injected_json),
        "checks": summary.checks,
        "interrupts": summary.interrupts,
        "turns": summary.turns,
        "blocks": summary.blocks,
        "faults": {
            "taken": f.taken,
            "on_guest_tables": f.on_guest_tables,
            "denied": f.denied,
            "fixed": by_size(f.fixed),
            "spurious": f.spurious,
            "retry": f.retry,
            "mmio": f.mmio,
            "mmio_cached": f.mmio_cached,
            "fast": f.fast,
            "rom_write": f.rom_write,
        },
        "levels": by_size(f.fixed),
        "shadow": {
            "pages": s.pages,
            "created": s.created,
            "zapped": s.zapped_pages,
            "recycled": s.recycled,
            "prefetched": s.prefetched,
            "write_protected": s.write_protected,
            "unsync": s.unsync,
            "synced": s.synced,
            "emulated": s.emulated,
            "flooded": s.flooded,
            "reflected": s.reflected,
            "roots_loaded": s.roots_loaded,
            "roots_reused": s.roots_reused,
        },
        "folios": by_size(summary.vm.folios),
        "translation": {
            "fast_misses": m.fast_misses,
            "tlb_hits": m.tlb_hits,
            "walks_1d": m.walks_1d,
            "walks_2d": m.walks_2d,
            "nested_walks": m.nested_walks,
            "table_loads": m.table_loads,
            "ad_updates": m.ad_updates,
            "flushes": m.flushes,
        },
    })
}
