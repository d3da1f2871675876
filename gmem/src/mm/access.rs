//! What a process reads and writes, and how its page table answers.

use core::ops::Range;

use emu_core::memory::BusError;
use emu_core::page::PAGE_SIZE;
use emu_core::{Hva, Hvn, Sfn, Spa};
use thiserror::Error;

use super::{Kernel, Mm, UserFault};

/// What a process does with a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UserAccess {
    /// It reads.
    Read,
    /// It writes.
    Write,
}

/// Why a process got not all of what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("after {done_bytes} bytes: {fault}")]
pub struct UserAccessError {
    /// Bytes copied before.
    pub done_bytes: usize,
    /// What happened then.
    pub fault: UserFault,
}

type CopyPage<'c> = dyn FnMut(Spa, Range<usize>) -> Result<(), BusError> + 'c;

impl Mm {
    /// The process reads. What could be read before a fault is in the buffer.
    pub fn read(&self, at: Hva, into: &mut [u8], kernel: Kernel<'_>) -> Result<(), UserAccessError> {
        let memory = self.table.memory();
        self.copy(at, into.len(), UserAccess::Read, &mut |spa, part| memory.read(spa, &mut into[part]), kernel)
    }

    /// The process writes. What could be written before a fault is.
    pub fn write(&self, at: Hva, from: &[u8], kernel: Kernel<'_>) -> Result<(), UserAccessError> {
        let memory = self.table.memory();
        self.copy(at, from.len(), UserAccess::Write, &mut |spa, part| memory.write(spa, &from[part]), kernel)
    }

    fn copy(
        &self,
        start: Hva,
        total: usize,
        access: UserAccess,
        copy: &mut CopyPage<'_>,
        kernel: Kernel<'_>,
    ) -> Result<(), UserAccessError> {
        let mut done = 0;
        while done < total {
            let stopped = |fault| UserAccessError { done_bytes: done, fault };
            let at = start.checked_add(done as u64).ok_or(stopped(UserFault::NotMapped { at: start }))?;
            let offset = at.page_offset();
            let part = done..done + (PAGE_SIZE - offset).min(total - done);
            let (page, len) = (at.frame(), part.len());
            self.touch(page, access, &mut |sfn| copy(sfn.base().wrapping_add(offset as u64), part.clone()), kernel)
                .map_err(stopped)?;
            done += len;
        }
        Ok(())
    }

    /// Runs `with` on the frame behind the page at `at` while the page is mapped for `access`, after as many faults as it
    /// takes: `copy_from_user` and `copy_to_user` of one page.
    pub fn with_page(
        &self,
        at: Hva,
        access: UserAccess,
        kernel: Kernel<'_>,
        with: &mut dyn FnMut(Sfn) -> Result<(), BusError>,
    ) -> Result<(), UserFault> {
        self.touch(at.frame(), access, with, kernel)
    }

    fn touch(
        &self,
        page: Hvn,
        access: UserAccess,
        with: &mut dyn FnMut(Sfn) -> Result<(), BusError>,
        kernel: Kernel<'_>,
    ) -> Result<(), UserFault> {
        loop {
            if let Some(copied) = self.table.lock(kernel.task).access(page, access, &mut *with) {
                return copied.map_err(|_| UserFault::BusError { at: page.base() });
            }
            self.fault(page, access, kernel)?;
            // Whoever unmapped it again meanwhile did something useful; let others do the same.
            kernel.task.give_way();
        }
    }
}
