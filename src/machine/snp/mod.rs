//! An SNP guest in the machine: its launch in place of the firmware, its exits, its processors.
//!
//! The processor protects the guest's registers and raises #VC, the hypervisor keeps the RMP and reads GHCBs; here the one
//! meets the other and the board. Every processor runs from a save area (VMSA) in a page that the RMP says is one: the first
//! from what the launch measured, the others from pages that the guest makes.

mod igvm;
mod image;
mod inject;
mod launch;
mod parts;
mod processors;
mod vmgexit;

use std::sync::Arc;

use cpu::SevGuest;
use emu_core::cpu_model::CpuModel;
use emu_core::sev::SevFeatures;
use hypervisor::VmKind;
use hypervisor::snp::ghcb::{GhcbConfig, GhcbGuest, GhcbVcpu, HvFeatures};
use hypervisor::snp::launch::{GuestContext, LaunchDigest};
use hypervisor::snp::memory::SnpConfig;
use mmu::rmp::Rmp;
use mmu::{Asid, SnpGuest};

pub(super) use inject::Injector;
pub use inject::{Injected, LieResult};
pub(super) use launch::Launch;

use super::{BuildError, MachineConfig};
use crate::config::{NestedPaging, SnpChoice};

/// The one guest of the machine.
pub(super) const ASID: Asid = Asid(1);

/// What every processor's VMSA says: nothing beyond SNP itself, which is all that Linux guests take.
const FEATURES: SevFeatures = SevFeatures::SNP_ACTIVE;

/// The machine's side of an SNP guest.
pub(super) struct Snp {
    /// What the guest is told by the protocol.
    guest: GhcbGuest,
    /// What each processor has said so far.
    vcpus: Vec<GhcbVcpu>,
    /// Who launched the guest, and answers messages that the hypervisor cannot read.
    firmware: GuestContext,
}

impl Snp {
    fn new(choice: &SnpChoice, cpus: u16, firmware: GuestContext) -> Snp {
        let config = GhcbConfig {
            c_bit: choice.c_bit,
            features: HvFeatures::SNP | HvFeatures::AP_CREATION,
            sev_features: FEATURES,
        };
        Snp { guest: GhcbGuest::new(config), vcpus: vec![GhcbVcpu::new(); usize::from(cpus)], firmware }
    }

    pub(super) fn digest(&self) -> LaunchDigest {
        self.firmware.digest()
    }
}

/// Makes `config` one of a machine that SNP guests run on, or says what stands against it.
pub(super) fn check(config: &mut MachineConfig) -> Result<(), BuildError> {
    if config.mmu != NestedPaging::Npt {
        return Err(BuildError::SnpNeedsNpt { mmu: config.mmu });
    }
    config.model = CpuModel::amd_snp().with_c_bit(config.snp.c_bit)?;
    debug_assert_eq!(config.kind, VmKind::Snp);
    Ok(())
}

/// Guest memory under `rmp`.
pub(super) fn config(choice: &SnpChoice, rmp: Arc<Rmp>) -> SnpConfig {
    SnpConfig { rmp, asid: ASID, assign: choice.assign, sizes: choice.sizes }
}

/// What VMRUN puts in force beneath the guest.
pub(super) fn guest_mode(choice: &SnpChoice) -> SnpGuest {
    SnpGuest { c_bit: choice.c_bit, vmpl: choice.vmpl }
}

/// What it puts in force within.
fn sev_guest(choice: &SnpChoice) -> SevGuest {
    SevGuest { features: FEATURES, vmpl: choice.vmpl, c_bit: choice.c_bit }
}
