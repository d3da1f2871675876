//! Checks of one page size: who may do what, and which error code says so.

use crate::checks::{Bench, Done, Failure, faults, works};
use crate::cpu;
use crate::paging::{NX, PS, Size, U, W};
use crate::traps::{Op, probe};

/// R/W=0 at any level; ring 0 may write regardless while CR0.WP is off.
pub fn write_protect(bench: &Bench, size: Size) -> Result<Done, Failure> {
    let at = bench.mapped(size, 0, W | U);
    for level in size.level()..=4 {
        bench.change_at(level, size, |entry| entry & !W);
        works("read of a read-only page", probe(at, Op::Read, 0))?;
        faults("write", probe(at, Op::Write, 0), 3, at)?;
        faults("modify", probe(at, Op::Modify, 0), 3, at)?;
        works("read in ring 3", bench.user.probe(at, Op::Read, 0))?;
        faults("write in ring 3", bench.user.probe(at, Op::Write, 0), 7, at)?;
        let cr0 = cpu::cr0();
        cpu::set_cr0(cr0 & !cpu::CR0_WP);
        let write = probe(at, Op::Modify, 0);
        let user_write = bench.user.probe(at, Op::Modify, 0);
        cpu::set_cr0(cr0);
        works("write without WP", write)?;
        faults("write in ring 3 without WP", user_write, 7, at)?;
        bench.change_at(level, size, |entry| entry | W);
        works("write when writable again", probe(at, Op::Modify, 0))?;
    }
    Ok(Done::Checked)
}

/// NX=1 at any level.
pub fn no_execute(bench: &Bench, size: Size) -> Result<Done, Failure> {
    if !bench.features.no_execute {
        return Ok(Done::NotOffered);
    }
    let at = bench.mapped(size, 0, W | U);
    for level in size.level()..=4 {
        bench.change_at(level, size, |entry| entry | NX);
        works("write of a no-execute page", probe(at, Op::Modify, 0))?;
        faults("fetch", probe(at, Op::Execute, 0), 0x11, at)?;
        faults("fetch in ring 3", bench.user.probe(at, Op::Execute, 0), 0x15, at)?;
        bench.change_at(level, size, |entry| entry & !NX);
        works("fetch when executable", probe(at, Op::Execute, 0))?;
        works("fetch in ring 3 when executable", bench.user.probe(at, Op::Execute, 0))?;
    }
    Ok(Done::Checked)
}

/// U/S=0 at any level keeps ring 3 out.
pub fn user(bench: &Bench, size: Size) -> Result<Done, Failure> {
    let at = bench.mapped(size, 0, W | U);
    let fetch = bench.fetch_bit();
    for level in size.level()..=4 {
        bench.change_at(level, size, |entry| entry & !U);
        works("ring 0 on a supervisor page", probe(at, Op::Modify, 0))?;
        // Ring 3's own pages lie under another entry of the root.
        faults("read in ring 3", bench.user.probe(at, Op::Read, 0), 5, at)?;
        faults("write in ring 3", bench.user.probe(at, Op::Write, 0), 7, at)?;
        faults("fetch in ring 3", bench.user.probe(at, Op::Execute, 0), 5 | fetch, at)?;
        bench.change_at(level, size, |entry| entry | U);
        works("ring 3 on a user page", bench.user.probe(at, Op::Modify, 0))?;
    }
    Ok(Done::Checked)
}

/// Bits that must be zero: physical address bits the processor lacks, the low address bits of a large page, PS in a
/// PML4 entry.
pub fn reserved(bench: &Bench, size: Size) -> Result<Done, Failure> {
    let at = bench.mapped(size, 0, W | U);
    let refused = |level: u32, bit: u64| {
        bench.change_at(level, size, |entry| entry | bit);
        faults("read", probe(at, Op::Read, 0), 9, at)?;
        faults("write", probe(at, Op::Write, 0), 0xb, at)?;
        faults("read in ring 3", bench.user.probe(at, Op::Read, 0), 0xd, at)?;
        bench.change_at(level, size, |entry| entry & !bit);
        works("read without the bit", probe(at, Op::Read, 0)).map(|_| ())
    };
    if bench.features.physical_bits < 52 {
        for level in size.level()..=4 {
            refused(level, 1 << 51)?;
            refused(level, 1 << bench.features.physical_bits)?;
        }
    }
    if size != Size::K4 {
        refused(size.level(), 1 << 13)?;
        refused(size.level(), size.bytes() >> 1)?;
    }
    // Slot look-up must not meet the bit, so this one is set and cleared by itself.
    let root = bench.space.slot(at, 4);
    let entry = root.get();
    root.set(entry | PS);
    cpu::reload_cr3();
    let outcome = probe(at, Op::Read, 0);
    root.set(entry);
    cpu::reload_cr3();
    faults("PS in the PML4 entry", outcome, 9, at)?;
    Ok(Done::Checked)
}

/// CR4.SMEP keeps ring 0 from running user pages, CR4.SMAP from touching them unless RFLAGS.AC.
pub fn smep_smap(bench: &Bench, size: Size) -> Result<Done, Failure> {
    let at = bench.mapped(size, 0, W | U);
    let cr4 = cpu::cr4();
    let under = |bit: u64, op: Op| {
        cpu::set_cr4(cr4 | bit);
        let outcome = probe(at, op, 0);
        cpu::set_cr4(cr4);
        outcome
    };
    works("fetch of a user page", probe(at, Op::Execute, 0))?;
    works("write of a user page", probe(at, Op::Modify, 0))?;
    if bench.features.smep {
        faults("fetch under SMEP", under(cpu::CR4_SMEP, Op::Execute), 0x11, at)?;
        works("read under SMEP", under(cpu::CR4_SMEP, Op::Read))?;
    }
    if bench.features.smap {
        faults("read under SMAP", under(cpu::CR4_SMAP, Op::Read), 1, at)?;
        faults("write under SMAP", under(cpu::CR4_SMAP, Op::Write), 3, at)?;
        works("fetch under SMAP", under(cpu::CR4_SMAP, Op::Execute))?;
        cpu::set_ac(true);
        let lifted = under(cpu::CR4_SMAP, Op::Modify);
        cpu::set_ac(false);
        works("write under SMAP with AC", lifted)?;
        faults("read under SMAP without AC again", under(cpu::CR4_SMAP, Op::Read), 1, at)?;
    }
    Ok(if bench.features.smep || bench.features.smap { Done::Checked } else { Done::NotOffered })
}
