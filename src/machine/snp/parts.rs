//! The launch: RAM and the processors' first states, page by page, and their measurement.
//!
//! Modelled: `SNP_LAUNCH_START`, `_UPDATE` and `_FINISH` as a VMM drives them through KVM (`snp_launch_update`,
//! `snp_launch_update_vmsa`). Guest frames go in ascending order, then the save areas in the order of processors, so that
//! the digest is a function of image and configuration alone. A block of 2 MiB in which anybody wrote is launched whole, as
//! 512 normal pages: how large the pages are that stand behind the guest does not show in the digest.

use emu_core::page::PAGE_SIZE;
use emu_core::sync::Task;
use emu_core::{Gfn, Gpa, PageSize};
use hypervisor::Vm;
use hypervisor::plan::RamLayout;
use hypervisor::snp::launch::PageType;
use hypervisor::snp::memory::{LaunchContent, SnpLaunchUpdate};

use super::image::LaunchImage;
use super::launch::Firmware;
use crate::config::SnpBoot;
use crate::loader::Confidential;
use crate::machine::BuildError;

const BLOCK: u64 = PageSize::Size2M.frames();

/// Pages that follow one another and are launched in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The page of secrets.
    Secrets,
    /// The table of CPUID.
    Cpuid,
    /// Somebody wrote to it, or to the block it lies in.
    Written { frames: u64 },
    /// Nobody did.
    Untouched { frames: u64 },
}

/// What guest memory of `layout` consists of, in ascending order.
pub(super) fn parts(layout: &RamLayout, image: &LaunchImage) -> Vec<(Gfn, Part)> {
    let mut parts: Vec<(Gfn, Part)> = Vec::new();
    for range in &layout.ranges {
        let end = range.gpa.raw() + range.len_bytes;
        let mut at = range.gpa.frame();
        while at.base().raw() < end {
            let limit = end.div_ceil(PAGE_SIZE as u64) - at.raw();
            let (part, frames) = next_part(at, limit, image);
            at = Gfn::new(at.raw() + frames);
            let first = Gfn::new(at.raw() - frames);
            match (parts.last_mut(), part) {
                (Some((start, Part::Untouched { frames: so_far })), Part::Untouched { frames })
                    if start.raw() + *so_far == first.raw() =>
                {
                    *so_far += frames;
                }
                _ => parts.push((first, part)),
            }
        }
    }
    parts
}

/// What begins at `at`, `limit` frames before the range's end, and how many frames it takes.
fn next_part(at: Gfn, limit: u64, image: &LaunchImage) -> (Part, u64) {
    let special = |gfn: Gfn| gfn == Confidential::SECRETS.frame() || gfn == Confidential::CPUID.frame();
    if at == Confidential::SECRETS.frame() {
        return (Part::Secrets, 1);
    }
    if at == Confidential::CPUID.frame() {
        return (Part::Cpuid, 1);
    }
    let whole =
        at.is_aligned(PageSize::Size2M) && limit >= BLOCK && !(0..BLOCK).any(|n| special(Gfn::new(at.raw() + n)));
    let frames = if whole { BLOCK } else { 1 };
    if image.next(at).is_some_and(|next| next.raw() < at.raw() + frames) {
        (Part::Written { frames }, frames)
    } else {
        (Part::Untouched { frames }, frames)
    }
}

/// The ranges that are part of the launch when untouched pages are not, merged.
pub(super) fn launched_ranges(parts: &[(Gfn, Part)]) -> Vec<(Gpa, u64)> {
    let mut ranges: Vec<(Gpa, u64)> = Vec::new();
    for &(first, part) in parts {
        let frames = match part {
            Part::Untouched { .. } => continue,
            Part::Written { frames } => frames,
            Part::Secrets | Part::Cpuid => 1,
        };
        let len_bytes = frames * PAGE_SIZE as u64;
        match ranges.last_mut() {
            Some((start, so_far)) if start.raw() + *so_far == first.base().raw() => *so_far += len_bytes,
            _ => ranges.push((first.base(), len_bytes)),
        }
    }
    ranges
}

/// Launches a page that the firmware writes or checks: it has seen it before the page is the guest's.
pub(super) fn special(
    vm: &Vm,
    firmware: &mut Firmware,
    first: Gfn,
    page_type: PageType,
    given: &[u8; PAGE_SIZE],
    task: &Task<'_>,
) -> Result<(), BuildError> {
    let written = firmware.page(page_type, first.base(), given)?;
    let content = LaunchContent::Bytes(written.as_deref().unwrap_or(given));
    let update = SnpLaunchUpdate { first, content, page_type, permissions: firmware.permissions() };
    Ok(vm.snp_launch_update(&update, &mut |_| {}, task)?)
}

/// Launches guest memory, with this table of CPUID.
pub(super) fn memory(
    vm: &Vm,
    boot: SnpBoot,
    parts: &[(Gfn, Part)],
    image: &LaunchImage,
    cpuid: &[u8; PAGE_SIZE],
    firmware: &mut Firmware,
    task: &Task<'_>,
) -> Result<(), BuildError> {
    let permissions = firmware.permissions();
    let mut bytes = Vec::new();
    for &(first, part) in parts {
        let (content, page_type) = match part {
            Part::Secrets => {
                special(vm, firmware, first, PageType::Secrets, &[0; PAGE_SIZE], task)?;
                continue;
            }
            Part::Cpuid => {
                special(vm, firmware, first, PageType::Cpuid, cpuid, task)?;
                continue;
            }
            Part::Untouched { frames } => match boot {
                SnpBoot::Launch => (LaunchContent::Zero { nr_pages: frames }, PageType::Zero),
                SnpBoot::Stage0 => continue,
            },
            Part::Written { frames } => {
                bytes.clear();
                for n in 0..frames {
                    let page = image.page(Gfn::new(first.raw() + n));
                    bytes.extend_from_slice(page.unwrap_or(&[0; PAGE_SIZE]));
                }
                (LaunchContent::Bytes(&bytes), PageType::Normal)
            }
        };
        let update = SnpLaunchUpdate { first, content, page_type, permissions };
        vm.snp_launch_update(&update, &mut |page| firmware.measure(page), task)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::GuestMemory;

    #[test]
    fn memory_falls_into_parts_that_cover_it() {
        let layout = RamLayout::pc(16 << 20, PageSize::Size4K).expect("a possible layout");
        let mut image = LaunchImage::default();
        image.write(Gpa::new(0x2_0000), &[1; 0x1001]).expect("in range");
        image.write(Gpa::new(0x40_0123), &[1]).expect("in range");
        let parts = parts(&layout, &image);
        let mut end = 0;
        for &(first, part) in &parts {
            assert_eq!(first.raw(), end);
            end += match part {
                Part::Secrets | Part::Cpuid => 1,
                Part::Written { frames } | Part::Untouched { frames } => frames,
            };
        }
        assert_eq!(end, (16 << 20) / 0x1000);
        let block = (Gfn::new(0x400), Part::Written { frames: 512 });
        assert!(parts.contains(&block), "a block with a written page is one part");
        let ranges = launched_ranges(&parts);
        let expected = [(0x2_0000, 0x2000), (0x9_0000, 0x2000), (0x40_0000, 0x20_0000)];
        assert_eq!(ranges, expected.map(|(at, len)| (Gpa::new(at), len)));
    }
}
