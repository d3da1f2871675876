//! Folios of a huge-page pool, each within the inode's subpool (`gmem_hugetlb` of the proposed series).

use super::{FolioProvider, FreshFolio, ProviderError, Want};
use crate::folio::FolioFlags;
use crate::host::{HostMemory, Stocked};
use crate::pool::{HugeSize, SubpoolId, SubpoolLimits};

#[derive(Debug)]
pub(super) struct HugetlbProvider {
    pub(super) size: HugeSize,
    pub(super) subpool: Option<SubpoolId>,
}

impl FolioProvider for HugetlbProvider {
    fn reserve(&mut self, host: &mut HostMemory, nr_pages: u64) -> Result<(), ProviderError> {
        let nr_folios = nr_pages.div_ceil(self.size.page_size().frames());
        let (pool, frames) = host.pool_mut(self.size);
        self.subpool = Some(pool.new_subpool(frames, SubpoolLimits::exactly(nr_folios))?);
        Ok(())
    }

    fn allocate(&mut self, host: &mut HostMemory, want: Want) -> Result<FreshFolio, ProviderError> {
        let size = self.size.page_size();
        if want.at_most < size {
            return Err(ProviderError::TooLarge { size, at_most: want.at_most });
        }
        let subpool = self.subpool.ok_or(ProviderError::NotReserved { size })?;
        let head = host.take_pool_folio(self.size, subpool, want.policy, want.index, FolioFlags::KNOWN_ZERO)?;
        Ok(FreshFolio { head, size })
    }

    fn stock(&self) -> Option<Stocked> {
        self.subpool.filter(|_| self.size == HugeSize::Size2M).map(Stocked::Pool)
    }

    fn unreserve(&mut self, host: &mut HostMemory) {
        if let Some(subpool) = self.subpool.take() {
            let (pool, frames) = host.pool_mut(self.size);
            pool.put_subpool(frames, subpool);
        }
    }
}
