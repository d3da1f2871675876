//! The launch of an SNP guest, and what the running guest asks for afterwards, as the firmware does it.
//!
//! Modelled: the SEV-SNP firmware ABI (AMD 56860) and AMD's published firmware for family 19h. A guest's context goes from
//! Init over Launch to Running ([`GuestContext`]): LAUNCH_START makes its keys, ACTIVATE binds its ASID, LAUNCH_UPDATE puts
//! pages into it and measures them, LAUNCH_FINISH lets it run. Then it sends messages: [`GuestContext::serve`].
//!
//! - [`GuestContext`] is the door; [`Chip`] the processor whose keys sign and derive.
//! - `digest` is the chain of measurements, `policy` what the owner demands, `id_block` what the owner expects.
//! - `secrets` and `cpuid` are the two pages with a meaning of their own.
//! - `message`, `request`, `report` are what a running guest gets.
//!
//! Always true: everything follows from the chip's seed and what the commands are given, so a launch repeats bit for bit. A
//! command that is refused changes nothing. The RMP and memory are not known here: who calls checks and changes entries, and
//! puts into pages what LAUNCH_UPDATE says.
//!
//! Left out: migration (agents, images, swapping), debugging through the firmware, loaded endorsement keys (VLEK), the
//! firmware's comparison of CPUID entries with the processor, secure TSC.

mod bytes;
mod chip;
mod context;
mod cpuid;
mod digest;
mod id_block;
mod message;
mod policy;
mod report;
pub mod request;
mod secrets;
mod status;
#[cfg(test)]
mod tests;

pub use chip::{Chip, TcbVersion};
pub use context::{GuestContext, GuestState, LaunchFinish, LaunchStart, LaunchUpdate, LaunchedPage, PageType, VcekUse};
pub use cpuid::{CPUID_ENTRIES_MAX, CpuidEntry, CpuidPage, CpuidPageError};
pub use digest::{LaunchDigest, VMSA_GPA};
pub use id_block::{AuthorKey, ID_BLOCK_BYTES, IdAuth, IdBlock, IdKey, SignedId};
pub use message::{MESSAGE_HEADER_BYTES, MESSAGE_PAYLOAD_MAX, Message};
pub use policy::{AbiVersion, Policy, PolicyRefused};
pub use report::REPORT_BYTES;
pub use secrets::{SecretsPage, Vmpck};
pub use status::FirmwareStatus;
