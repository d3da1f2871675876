//! Building a machine: from a configuration and an image to processors ready to run.

use std::sync::Arc;

use cpu::{Vcpu, VcpuConfig};
use devices::acpi::tables::{AcpiConfig, AcpiImage};
use devices::board::TestPorts;
use devices::{Board, BoardConfig};
use emu_core::cpu_model::CpuModel;
use emu_core::cpuid::Feature;
use emu_core::event::Event;
use emu_core::memory::SystemMemory;
use emu_core::rng::{Consumer, Seed};
use emu_core::sync::Task;
use emu_core::time::Instant;
use emu_core::{PageSize, Spa};
use gmem::policy::{Generation, GmemPolicy};
use hypervisor::plan::LOW_RAM_END;
use hypervisor::shadow::ShadowConfig;
use hypervisor::{
    FolioPolicy, GmemFlags, MemSlotSpec, MmioCaching, MmuParams, PagePolicy, RamLayout, Shareability, SlotFlags,
    SlotId, SystemMemoryPlan, TdpFormat, VcpuId, Vm, VmConfig, VmError, VmKind,
};
use mmu::rmp::Rmp;
use mmu::{Asid, Ept, EptExecute, Eptp, ModificationLog, NestedNx, Npt, SpaceTag, Stage2, Stage2Levels, Vpid};

use super::checks::Checks;
use super::devices::Device;
use super::guest_memory::HostSide;
use super::seat::{Activity, Processor};
use super::snp::{self, Injector, Launch};
use super::{BuildError, Counters, Machine, boot, firmware};
use crate::config::{Injection, NestedPaging, SnpChoice};
use crate::loader::{self, Confidential, Image, LoadOptions, MemoryMap, Module};
use crate::trace::{Lens, Recorder};
use crate::vmm::hypercall::GpaRange;
use crate::vmm::script::Script;
use crate::vmm::{InitialRam, OnMemoryFault, SharedSide, Vmm, memory};

/// The most processors a machine has.
pub(crate) const MAX_CPUS: u16 = 64;

/// What a machine is.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Processors, 1 to 64.
    pub cpus: u16,
    /// Guest memory, rounded up to whole pages of `pages`.
    pub memory_bytes: u64,
    /// Size of the folios behind guest memory and the largest leaf over them.
    pub pages: PageSize,
    /// Format of the nested tables.
    pub mmu: NestedPaging,
    /// How the hypervisor's MMU works. Entries for devices need an address bit that does not exist: a model with 52 has none.
    pub params: MmuParams,
    /// The kind of the VM.
    pub kind: VmKind,
    /// How guest_memfd behaves.
    pub gmem: GmemPolicy,
    /// How RAM of a software-protected VM begins.
    pub ram: InitialRam,
    /// Where a software-protected VM has the memory that it shares: [`SharedSide::UserMemory`] needs the 7.3 generation of
    /// guest_memfd and small pages.
    pub shared: SharedSide,
    /// How an SNP guest is launched and its memory kept.
    pub snp: SnpChoice,
    /// How the host of an SNP guest lies to it, if it does.
    pub inject: Option<Injection>,
    /// What the VMM does about memory faults.
    pub on_memory_fault: OnMemoryFault,
    /// Instructions between two looks at the hypervisor's invariants; `None`: nobody looks.
    pub check_every: Option<u64>,
    /// The run's seed.
    pub seed: Seed,
    /// The processor model.
    pub model: CpuModel,
    /// Longest turn of a processor among several, in units of time.
    pub quantum: u64,
}

impl Default for MachineConfig {
    fn default() -> MachineConfig {
        MachineConfig {
            cpus: 1,
            memory_bytes: 1 << 30,
            pages: PageSize::Size4K,
            mmu: NestedPaging::Npt,
            params: MmuParams::default(),
            kind: VmKind::Default,
            gmem: GmemPolicy::DEFAULT,
            ram: InitialRam::Shared,
            shared: SharedSide::Gmem,
            snp: SnpChoice::default(),
            inject: None,
            on_memory_fault: OnMemoryFault::Convert,
            check_every: None,
            seed: Seed(0),
            model: CpuModel::amd_v3(),
            quantum: 20_000,
        }
    }
}

/// Collects what a machine is to be and what it is to run.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    config: MachineConfig,
    cmdline: String,
    initrd: Option<Vec<u8>>,
    script: Script,
    modules: Vec<(Vec<u8>, String)>,
    recorder: Option<Arc<Recorder>>,
    devices: Vec<Device>,
}

impl Builder {
    /// Number of processors.
    pub fn cpus(mut self, cpus: u16) -> Builder {
        self.config.cpus = cpus;
        self
    }
    /// Guest memory in bytes.
    pub fn memory(mut self, bytes: u64) -> Builder {
        self.config.memory_bytes = bytes;
        self
    }
    /// Page size of guest memory.
    pub fn pages(mut self, size: PageSize) -> Builder {
        self.config.pages = size;
        self
    }
    /// Nested paging format.
    pub fn mmu(mut self, kind: NestedPaging) -> Builder {
        self.config.mmu = kind;
        self
    }
    /// How the hypervisor's MMU works.
    pub fn mmu_params(mut self, params: MmuParams) -> Builder {
        self.config.params = params;
        self
    }
    /// The kind of the VM, and how its RAM begins: [`InitialRam::Private`] needs a kind that has private memory.
    pub fn kind(mut self, kind: VmKind, ram: InitialRam) -> Builder {
        (self.config.kind, self.config.ram) = (kind, ram);
        self
    }
    /// Where a software-protected VM has the memory that it shares with the host.
    pub fn shared_side(mut self, shared: SharedSide) -> Builder {
        self.config.shared = shared;
        self
    }
    /// An SNP guest, launched so; the processor model becomes one with SEV-SNP.
    pub fn snp(mut self, choice: SnpChoice) -> Builder {
        (self.config.kind, self.config.snp) = (VmKind::Snp, choice);
        self
    }
    /// A host that lies to an SNP guest, once; other guests have nothing that it could lie about.
    pub fn inject(mut self, injection: Option<Injection>) -> Builder {
        self.config.inject = injection;
        self
    }
    /// How guest_memfd behaves.
    pub fn gmem(mut self, policy: GmemPolicy) -> Builder {
        self.config.gmem = policy;
        self
    }
    /// What the VMM does about memory faults.
    pub fn on_memory_fault(mut self, what: OnMemoryFault) -> Builder {
        self.config.on_memory_fault = what;
        self
    }
    /// Looks at the hypervisor's invariants every so many instructions, and at the end.
    pub fn check_invariants(mut self, every: Option<u64>) -> Builder {
        self.config.check_every = every;
        self
    }
    /// What the VMM does by its own will.
    pub fn script(mut self, script: Script) -> Builder {
        self.script = script;
        self
    }
    /// Who records what the machine does, from its building on.
    pub fn recorder(mut self, recorder: Arc<Recorder>) -> Builder {
        self.recorder = Some(recorder);
        self
    }
    /// Another device on the PCI bus. Their order is that of their slots.
    pub fn device(mut self, device: Device) -> Builder {
        self.devices.push(device);
        self
    }
    /// The seed.
    pub fn seed(mut self, seed: Seed) -> Builder {
        self.config.seed = seed;
        self
    }
    /// The processor model.
    pub fn model(mut self, model: CpuModel) -> Builder {
        self.config.model = model;
        self
    }
    /// The kernel's command line.
    pub fn append(mut self, cmdline: &str) -> Builder {
        self.cmdline = cmdline.to_owned();
        self
    }
    /// The initial ramdisk.
    pub fn initrd(mut self, bytes: Vec<u8>) -> Builder {
        self.initrd = Some(bytes);
        self
    }
    /// A further boot module with its command line.
    pub fn module(mut self, bytes: Vec<u8>, cmdline: &str) -> Builder {
        self.modules.push((bytes, cmdline.to_owned()));
        self
    }

    /// Builds the machine and loads `image` into it.
    pub fn build(self, image: &Image<'_>) -> Result<Machine, BuildError> {
        let mut config = self.config;
        if config.kind == VmKind::Snp {
            snp::check(&mut config)?;
        }
        if config.mmu == NestedPaging::Shadow {
            config.model = without_keys(config.model)?;
        }
        if config.cpus == 0 || config.cpus > MAX_CPUS {
            return Err(BuildError::Cpus { cpus: config.cpus, most: MAX_CPUS });
        }
        let layout = RamLayout::pc(config.memory_bytes, config.pages)?;
        let policy = PagePolicy::of(config.pages);
        let two_sided = config.shared == SharedSide::UserMemory && config.kind == VmKind::SwProtected;
        if two_sided && (config.gmem.generation != Generation::V7_3 || config.pages != PageSize::Size4K) {
            return Err(BuildError::TwoSided);
        }
        let plan = SystemMemoryPlan::for_guest(layout.inode_bytes << u32::from(two_sided), policy);
        let (plan, rmp_place) = match config.kind {
            VmKind::Snp => {
                let (plan, place) = plan.with_rmp();
                (plan, Some(place))
            }
            VmKind::Default | VmKind::SwProtected => (plan, None),
        };
        let memory = SystemMemory::flat(plan.arena_bytes)?;
        memory.seed_keys(config.seed).expect("nothing is encrypted yet");
        let rmp = rmp_place.map(|place| Rmp::new(memory.clone(), place).map(Arc::new)).transpose()?;
        if let Some(rmp) = &rmp {
            rmp.protect_own_pages();
        }
        let format = match config.mmu {
            // Without nested paging nothing is ever put into these tables.
            NestedPaging::Npt | NestedPaging::Shadow => TdpFormat::Npt,
            NestedPaging::Ept => TdpFormat::Ept,
        };
        let vm_config = VmConfig {
            format,
            maxphyaddr: config.model.physical_width().min(48),
            nr_vcpus: config.cpus,
            kind: config.kind,
            gmem: config.gmem,
            snp: rmp.as_ref().map(|rmp| snp::config(&config.snp, Arc::clone(rmp))),
            ..VmConfig::new(policy, plan.host)
        };
        let lens = self.recorder.map(Lens::new).unwrap_or_default();
        lens.task().report(Event::VmCreated { nr_vcpus: config.cpus });
        let params = MmuParams {
            // With 52 address bits NPT has none left that would be reserved.
            mmio_caching: if config.model.physical_width() < 52 {
                config.params.mmio_caching
            } else {
                MmioCaching::Off
            },
            ..config.params
        };
        let mut vm = Vm::with_params(memory.clone(), &vm_config, params)?;
        if config.mmu == NestedPaging::Shadow {
            let features = Vcpu::paging_features(&config.model);
            vm = vm.shadowing(&ShadowConfig::for_guest(features, layout.inode_bytes))?;
        }
        match two_sided {
            true => vm.add_two_sided_ram(&layout, SlotId(0), &lens.task())?,
            false => vm.add_ram(&layout, SlotId(0), &lens.task())?,
        };
        if rmp.is_none() {
            add_firmware(&vm, SlotId(layout.ranges.len() as u16), &lens.task())?;
        }

        let low = layout.inode_bytes.min(LOW_RAM_END.raw());
        let high = layout.inode_bytes - low;
        let mut board = Board::new(BoardConfig {
            tsc_hertz: config.model.tsc_hz(),
            apic_timer_hertz: config.model.apic_hz(),
            phys_bits: config.model.physical_width() as u32,
            test_ports: TestPorts::Present,
            ..BoardConfig::new(config.cpus, low, high)
        })?;

        let acpi = AcpiConfig::new(config.cpus);
        super::devices::plug(&mut board, self.devices, config.seed, acpi.pci_window)?;
        let acpi = AcpiImage::build(&acpi)?;
        let map = match config.kind {
            VmKind::Snp => MemoryMap::confidential(layout.inode_bytes, LOW_RAM_END, acpi.base)?,
            VmKind::Default | VmKind::SwProtected => MemoryMap::pc(layout.inode_bytes, LOW_RAM_END)?,
        };
        let modules: Vec<Module<'_>> = self.modules.iter().map(|(bytes, cmdline)| Module { bytes, cmdline }).collect();
        let options = LoadOptions {
            cmdline: &self.cmdline,
            initrd: self.initrd.as_deref(),
            modules: &modules,
            acpi_rsdp: Some(acpi.rsdp),
            confidential: rmp.as_ref().map(|_| Confidential { c_bit: config.snp.c_bit }),
            ..LoadOptions::new(&map)
        };
        let mut launch = rmp.as_ref().map(|_| Launch::new(config.snp, &layout));
        let entry = match &mut launch {
            Some(launch) => launch.load(image, &options, &acpi, config.cpus)?,
            None => {
                let mut host = HostSide::new(&vm, lens.task());
                loader::GuestMemory::write(&mut host, acpi.base, &acpi.bytes)
                    .map_err(|_| BuildError::NoRoomForTables { gpa: acpi.base })?;
                Some(loader::load(image, &options, &mut host)?)
            }
        };
        if launch.is_some() || config.ram == InitialRam::Private {
            for range in &layout.ranges {
                let all = GpaRange { gpa: range.gpa, len_bytes: range.len_bytes };
                memory::convert(&vm, all, Shareability::PRIVATE, &lens.task())?;
            }
        }

        let mut vcpus = (0..config.cpus)
            .map(|n| {
                let vcpu_config = VcpuConfig {
                    model: config.model.clone(),
                    apic_id: n as u32,
                    cpu_count: config.cpus as u32,
                    seed: config.seed,
                };
                let mut vcpu = Vcpu::new(memory.clone(), &vcpu_config);
                vcpu.mmu().set_rmp(rmp.clone());
                if rmp.is_some() && lens.is_recording() {
                    vcpu.record_sev();
                }
                vcpu.mmu().set_stage2(stage2(&config, vm.root_register(), n));
                let log = vm.pml_buffer(VcpuId(n))?.map(ModificationLog::new);
                vcpu.mmu().set_modification_log(log);
                let activity = if n == 0 {
                    if let Some(entry) = &entry {
                        boot::enter(&mut vcpu, entry);
                    }
                    Activity::Running
                } else {
                    Activity::WaitForSipi
                };
                if config.mmu == NestedPaging::Shadow {
                    vcpu.intercept_paging();
                }
                Ok(Processor::new(vcpu, activity))
            })
            .collect::<Result<Vec<Processor>, VmError>>()?;
        let snp = match launch {
            Some(launch) => Some(launch.finish(&vm, &mut vcpus, config.seed, &lens.task())?),
            None => None,
        };
        let (on_memory_fault, seed) = (config.on_memory_fault, config.seed);
        let config_checks = config.check_every;
        let scheduler = config.seed.stream(Consumer::Scheduler);
        let injector = config.inject.filter(|_| snp.is_some()).map(|plan| Injector::new(plan, seed));
        Ok(Machine {
            config,
            vm: Arc::new(vm),
            checks: config_checks.map(Checks::every),
            vmm: Vmm::new(on_memory_fault, &self.script, seed),
            board,
            vcpus,
            now: Instant::ZERO,
            scheduler,
            counters: Counters::default(),
            serial: Vec::new(),
            turn: 0,
            snp,
            injector,
            lens,
        })
    }
}

/// The firmware's ROM, in a read-only memslot over a guest_memfd of its own.
fn add_firmware(vm: &Vm, id: SlotId, task: &Task<'_>) -> Result<(), BuildError> {
    let flags = GmemFlags::MMAP | GmemFlags::INIT_SHARED;
    let small = FolioPolicy::Buddy { largest: PageSize::Size4K };
    let gmem = vm.create_guest_memfd_with(firmware::ROM_BYTES, flags.bits(), small, task)?;
    let spec = MemSlotSpec {
        id,
        gpa: firmware::ROM,
        len_bytes: firmware::ROM_BYTES,
        flags: SlotFlags::READONLY,
        gmem,
        offset_bytes: 0,
    };
    vm.add_memslot(&spec, task)?;
    vm.load_rom(firmware::ROM, &firmware::rom(), task).map_err(|_| BuildError::NoRoomForTables { gpa: firmware::ROM })
}

/// The model without protection keys, which shadow tables have no place for (`kvm_set_cpu_caps` without nested paging).
fn without_keys(mut model: CpuModel) -> Result<CpuModel, BuildError> {
    for feature in [Feature::Pku, Feature::Pks] {
        if model.has(feature) {
            model = model.without(feature)?;
        }
    }
    Ok(model)
}

/// The second stage of processor `n`. Each has an address-space identifier of its own, as KVM gives them.
fn stage2(config: &MachineConfig, register: u64, n: u16) -> Stage2 {
    match config.mmu {
        NestedPaging::Npt => {
            let root = Spa::new(register);
            let (asid, snp) = match config.kind {
                VmKind::Snp => (snp::ASID, Some(snp::guest_mode(&config.snp))),
                VmKind::Default | VmKind::SwProtected => (Asid(n as u32 + 1), None),
            };
            Stage2::Npt(Npt { root, levels: Stage2Levels::Four, nx: NestedNx::Enabled, asid, snp })
        }
        NestedPaging::Shadow => Stage2::Untranslated(SpaceTag::Asid(Asid(n as u32 + 1))),
        NestedPaging::Ept => Stage2::Ept(Ept { eptp: Eptp(register), execute: EptExecute::Single, vpid: Vpid(n + 1) }),
    }
}
