//! Folios of the page allocator, huge where they can be had (`FGP`-style allocation of transparent huge pages).

use emu_core::PageSize;

use super::{FolioProvider, FreshFolio, ProviderError, Want};
use crate::folio::{FolioFlags, FolioKind, Source};
use crate::host::{HostMemory, OutOfMemory, Stocked};

#[derive(Debug)]
pub(super) struct PageProvider {
    pub(super) largest: PageSize,
}

impl FolioProvider for PageProvider {
    fn reserve(&mut self, _host: &mut HostMemory, _nr_pages: u64) -> Result<(), ProviderError> {
        Ok(())
    }

    fn allocate(&mut self, host: &mut HostMemory, want: Want) -> Result<FreshFolio, ProviderError> {
        let most = self.largest.min(want.at_most);
        let online = host.frames.online();
        for &size in PageSize::ALL[..=most.index()].iter().rev() {
            let nodes = want.policy.order(want.index / size.frames(), online);
            if let Some(head) = host.frames.pages.alloc(size.order(), nodes) {
                host.begin_use(head, size, FolioKind::Gmem, FolioFlags::empty(), Source::Pages);
                return Ok(FreshFolio { head, size });
            }
        }
        Err(OutOfMemory { size: PageSize::Size4K, free_frames: host.frames.pages.free_frames() }.into())
    }

    fn stock(&self) -> Option<Stocked> {
        (self.largest <= PageSize::Size2M).then_some(Stocked::Pages(self.largest))
    }

    fn unreserve(&mut self, _host: &mut HostMemory) {}
}
