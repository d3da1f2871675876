//! From an image and a configuration to a launched guest, in the order of the firmware's commands: START, an UPDATE for
//! every page, FINISH.

use std::sync::Arc;

use cpu::Vcpu;
use devices::acpi::tables::AcpiImage;
use emu_core::msr::Msr;
use emu_core::page::PAGE_SIZE;
use emu_core::rng::Seed;
use emu_core::sev::Vmpl;
use emu_core::sync::Task;
use emu_core::{Gpa, PageSize};
use hypervisor::Vm;
use hypervisor::plan::RamLayout;
use hypervisor::snp::launch::{
    Chip, CpuidPage, FirmwareStatus, GuestContext, LaunchFinish, LaunchStart, LaunchUpdate, LaunchedPage as Launched,
    PageType, Policy, SignedId,
};
use hypervisor::snp::memory::LaunchedPage;
use mmu::rmp::VmplPermissions;

use super::igvm::SignedIdentity;
use super::image::LaunchImage;
use super::{ASID, Snp, sev_guest};
use super::{igvm, parts};
use crate::config::{SnpBoot, SnpChoice};
use crate::loader::igvm::{Igvm, IgvmMachine};
use crate::loader::{self, Entry, GuestMemory, Image, ImageKind, LoadOptions, stage0};
use crate::machine::BuildError;
use crate::machine::seat::Processor;

/// MTRR_DEF_TYPE: MTRRs are on, and what none of them covers is write-back.
const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;

/// A launch that is being prepared.
pub(in crate::machine) struct Launch<'a> {
    choice: SnpChoice,
    layout: &'a RamLayout,
    image: LaunchImage,
    /// The file that says all this instead.
    igvm: Option<Igvm>,
}

impl<'a> Launch<'a> {
    /// Of RAM laid out so.
    pub(in crate::machine) fn new(choice: SnpChoice, layout: &'a RamLayout) -> Launch<'a> {
        Launch { choice, layout, image: LaunchImage::default(), igvm: None }
    }

    /// Puts the kernel and the board's tables into the image, or takes the launch from an IGVM file. Where the first processor
    /// starts; `None` if its save area says that.
    pub(in crate::machine) fn load(
        &mut self,
        image: &Image<'_>,
        options: &LoadOptions<'_>,
        acpi: &AcpiImage,
        cpus: u16,
    ) -> Result<Option<Entry>, BuildError> {
        if self.choice.boot == SnpBoot::Launch && loader::probe(image.bytes) == Some(ImageKind::Igvm) {
            let map = igvm::memory_map(self.layout)?;
            let options = LoadOptions { memory_map: &map, ..*options };
            let machine = IgvmMachine { cpus, vmpl: self.choice.vmpl };
            self.igvm = Some(loader::igvm::load(image.bytes, &options, machine)?);
            return Ok(None);
        }
        let memory = &mut self.image;
        memory.write(acpi.base, &acpi.bytes).map_err(|_| BuildError::NoRoomForTables { gpa: acpi.base })?;
        match self.choice.boot {
            SnpBoot::Launch => Ok(Some(loader::load(image, options, memory)?)),
            SnpBoot::Stage0 => {
                let loaded = stage0::load(image.bytes, options, memory)?;
                let (entry, at) = (loaded.entry, loaded.parameters_at);
                // The page is one of those it lists.
                memory.write(at, &[0; PAGE_SIZE]).map_err(loader::LoadError::from)?;
                let ranges = parts::launched_ranges(&parts::parts(self.layout, memory));
                memory.write(at, &loaded.parameters(&ranges)?).map_err(loader::LoadError::from)?;
                Ok(Some(entry))
            }
        }
    }

    /// Launches memory and processors, which have the registers they are to start with.
    pub(in crate::machine) fn finish(
        self,
        vm: &Vm,
        vcpus: &mut [Processor],
        seed: Seed,
        task: &Task<'_>,
    ) -> Result<Snp, BuildError> {
        let Some(first) = vcpus.first_mut() else { unreachable!("a machine has processors") };
        let vcpu: &mut Vcpu = &mut first.vcpu;
        let chip = Chip::new(seed.0, vcpu.emulated_cpuid(1, 0, 1, 0).eax);
        let policy = self.igvm.as_ref().and_then(|igvm| igvm.policy).unwrap_or(self.choice.policy);
        let policy = Policy::new(policy).check_kvm()?;
        let mut firmware = Firmware::start(chip, policy, self.choice.vmpl)?;
        let cpuid = CpuidPage::build(&mut |leaf, subleaf, xcr0, xss| vcpu.emulated_cpuid(leaf, subleaf, xcr0, xss))?;
        let mut areas = vec![None; vcpus.len()];
        match &self.igvm {
            Some(igvm) => igvm::launch(vm, igvm, &cpuid.to_bytes(), &mut firmware, &mut areas, task)?,
            None => {
                let parts = parts::parts(self.layout, &self.image);
                parts::memory(vm, self.choice.boot, &parts, &self.image, &cpuid.to_bytes(), &mut firmware, task)?;
            }
        }

        let states = vcpus.iter_mut().map(|processor| {
            let vcpu: &mut Vcpu = &mut processor.vcpu;
            vcpu.enter_sev(sev_guest(&self.choice))?;
            // As firmware leaves it. An encrypted Linux wants write-protected mappings of its PAT, and sets the PAT up only
            // where MTRRs are on.
            vcpu.emulated_wrmsr(Msr::MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK)?;
            Ok(vcpu.vmsa())
        });
        let states = states.collect::<Result<Vec<_>, BuildError>>()?;
        let mut states = states.into_iter().zip(&areas).map(|(state, area)| area.is_none().then_some(state));
        let mut state = |_| states.next().flatten();
        let launched = vm.snp_launch_processors(&mut state, &mut |page| firmware.measure(page), task)?;
        for ((processor, area), launched) in vcpus.iter_mut().zip(areas).zip(launched) {
            if let Some(area) = area.or(launched) {
                processor.vcpu.set_vmsa(area);
            }
        }
        let identity = self.igvm.as_ref().and_then(|igvm| igvm.id.as_deref());
        let identity = identity.map(|identity| SignedIdentity::new(identity, policy));
        let guest = firmware.finish(identity.as_ref().map(SignedIdentity::as_signed))?;
        Ok(Snp::new(&self.choice, vcpus.len() as u16, guest))
    }
}

/// The firmware's part of a launch.
pub(super) struct Firmware {
    context: GuestContext,
    /// The level that the guest starts at.
    vmpl: Vmpl,
    /// The first page that it refused to measure.
    refused: Result<(), FirmwareStatus>,
}

impl Firmware {
    fn start(chip: Chip, policy: Policy, vmpl: Vmpl) -> Result<Firmware, FirmwareStatus> {
        let mut context = GuestContext::create(Arc::new(chip));
        context.launch_start(&LaunchStart { policy, gosvw: [0; 16], number: 0 })?;
        context.activate(ASID)?;
        Ok(Firmware { context, vmpl, refused: Ok(()) })
    }

    /// What VMPL 1 to 3 may do with what is launched: everything down to the level that the guest starts at.
    pub(super) fn permissions(&self) -> [VmplPermissions; 3] {
        [Vmpl::Vmpl1, Vmpl::Vmpl2, Vmpl::Vmpl3].map(|level| match level <= self.vmpl {
            true => VmplPermissions::all() - VmplPermissions::SSS,
            false => VmplPermissions::empty(),
        })
    }

    /// Measures a page that is about to be launched. What it is to hold, where the firmware says that.
    pub(super) fn page(
        &mut self,
        kind: PageType,
        gpa: Gpa,
        contents: &[u8; PAGE_SIZE],
    ) -> Result<Option<Box<[u8; PAGE_SIZE]>>, FirmwareStatus> {
        let update = LaunchUpdate { kind, gpa, size: PageSize::Size4K, contents, permissions: self.permissions() };
        match self.context.launch_update(&update)? {
            Launched::Written(bytes) => Ok(Some(bytes)),
            Launched::AsGiven | Launched::Zeros => Ok(None),
        }
    }

    /// Measures a page that has been launched; a refusal shows when all is finished.
    pub(super) fn measure(&mut self, page: &LaunchedPage<'_>) {
        let measured = self.context.measure(page);
        self.refused = self.refused.and(measured);
    }

    fn finish(mut self, id: Option<SignedId<'_>>) -> Result<GuestContext, FirmwareStatus> {
        self.refused?;
        self.context.launch_finish(&LaunchFinish { id, ..LaunchFinish::default() })?;
        Ok(self.context)
    }
}
