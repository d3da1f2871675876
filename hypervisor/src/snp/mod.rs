//! SEV-SNP as a hypervisor does it: the launch in place of the firmware, the GHCB protocol, and guest memory under the RMP.
//!
//! Modelled: Linux `arch/x86/kvm/svm/sev.c` and `arch/x86/virt/svm/sev.c`; the SEV-SNP firmware ABI for what the firmware
//! does at launch; the GHCB specification. What a guest asks for becomes an action that the machine performs: nothing here
//! knows a processor or a device.
//!
//! - [`memory`]: who owns which page: RMPUPDATE and PSMASH beneath faults, conversions and freeing.
//! - [`ghcb`]: what a guest says by VMGEXIT, and the answers.
//! - [`launch`]: pages, digest, policy, secrets, from START to FINISH.

pub mod ghcb;
pub mod launch;
pub mod memory;
