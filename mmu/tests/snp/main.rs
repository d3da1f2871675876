//! Translation under the RMP, through real tables: every state of a page, access, C-bit, size and privilege level against
//! the manual's table of checks, spelt out row by row; the guest's instructions; keys; what is cached (APM vol. 2, "Secure
//! Nested Paging").

mod access;
mod coherence;
mod instructions;
mod keys;
mod scene;

use emu_core::Gva;
use mmu::{MmuFault, NestedFaultKind, RmpCause};

/// Bits of EXITINFO1.
const RMP: u64 = 1 << 31;
const ENC: u64 = 1 << 34;
const VMPL: u64 = 1 << 36;

const GVA: Gva = Gva::new(scene::DATA);

/// Cause and EXITINFO1 of a refusal by the RMP.
fn cause(result: Result<impl core::fmt::Debug, MmuFault>) -> (RmpCause, u64) {
    match result {
        Err(MmuFault::Nested(fault)) => match fault.kind {
            NestedFaultKind::Rmp(cause) => (cause, fault.exitinfo1()),
            kind => panic!("{kind:?}"),
        },
        other => panic!("{other:?}"),
    }
}
