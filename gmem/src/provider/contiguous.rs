//! Folios of a contiguous-memory area, each within the inode's claim.

use super::{FolioProvider, FreshFolio, ProviderError, Want};
use crate::cma::{ClaimId, CmaError};
use crate::folio::{FolioFlags, FolioKind, Source};
use crate::host::HostMemory;
use crate::pool::HugeSize;

#[derive(Debug)]
pub(super) struct CmaProvider {
    pub(super) size: HugeSize,
    /// Number of the area, and what it set aside.
    pub(super) claim: Option<(u8, ClaimId)>,
}

impl FolioProvider for CmaProvider {
    /// Claims all of the inode in the first area that has room. Loans are called back; their borrower asks
    /// [`HostMemory::take_recalled`].
    fn reserve(&mut self, host: &mut HostMemory, nr_pages: u64) -> Result<(), ProviderError> {
        let size = self.size.page_size();
        let nr_blocks = nr_pages.div_ceil(size.frames());
        let mut refused = ProviderError::NotReserved { size };
        for number in (0_u8..=u8::MAX).take(host.cma.len()) {
            let area = &mut host.cma[usize::from(number)];
            match area.claim(self.size, nr_blocks) {
                Ok(claimed) => {
                    self.claim = Some((number, claimed.id));
                    // What a borrower left behind is not the inode's to see.
                    for loan in &claimed.recalled {
                        host.clear(loan.first, loan.order.frames());
                    }
                    host.recalled.extend(claimed.recalled);
                    return Ok(());
                }
                Err(error) => refused = error.into(),
            }
        }
        Err(refused)
    }

    fn allocate(&mut self, host: &mut HostMemory, want: Want) -> Result<FreshFolio, ProviderError> {
        let size = self.size.page_size();
        if want.at_most < size {
            return Err(ProviderError::TooLarge { size, at_most: want.at_most });
        }
        let (number, claim) = self.claim.ok_or(ProviderError::NotReserved { size })?;
        let used_up = CmaError::UsedUp { size, blocks: 0 };
        let online = host.frames.online();
        let area = host.cma.get_mut(usize::from(number)).ok_or(used_up)?;
        if !want.policy.order(want.index / size.frames(), online).any(|node| node == area.node()) {
            return Err(ProviderError::Node { node: area.node() });
        }
        let head = area.take(claim)?;
        let source = Source::Cma { area: number, claim };
        host.begin_use(head, size, FolioKind::Gmem, FolioFlags::empty(), source);
        Ok(FreshFolio { head, size })
    }

    fn unreserve(&mut self, host: &mut HostMemory) {
        if let Some((number, claim)) = self.claim.take()
            && let Some(area) = host.cma.get_mut(usize::from(number))
        {
            area.unclaim(claim);
        }
    }
}
