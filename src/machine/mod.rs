//! The machine: processors, board, hypervisor and memory wired together, and the loop that runs them.
//!
//! Built by [`Machine::builder`], run by [`Machine::run`]. This is the *hosted* kind: the guest's memory is a guest_memfd
//! behind memslots, the processors run over nested tables that the hypervisor builds, and a nested fault goes through
//! its pipeline.
//!
//! Time is one line for the whole machine: processors take turns on it, in an order and for lengths that the seed
//! decides, so that two processors never see it run backwards. Everything that happens is a function of image,
//! configuration and seed; except with [`Machine::run_parallel`], which gives each processor a host thread.

mod boot;
mod border;
mod builder;
mod checks;
mod devices;
mod error;
mod exits;
mod firmware;
mod guest_memory;
mod parallel;
mod run;
mod seat;
mod seen;
mod shadow;
mod snp;
mod summary;

pub(crate) use builder::MAX_CPUS;
pub use builder::{Builder, MachineConfig};
pub use devices::{Device, DeviceDma};
pub use error::{BuildError, RunError};
pub(crate) use exits::fault_input;
pub use run::{Limits, Outcome};
pub use snp::{Injected, LieResult};
pub use summary::{SnpSummary, Summary};

use std::sync::Arc;

use ::devices::Board;
use checks::Checks;
use cpu::VcpuState;
use emu_core::Gpa;
use emu_core::rng::Stream;
use emu_core::time::Instant;
use hypervisor::snp::launch::LaunchDigest;
use hypervisor::{GuestAccessError, Vm};
use seat::{Activity, Processor};

use crate::trace::Lens;

use crate::vmm::Vmm;

/// A whole computer.
pub struct Machine {
    config: MachineConfig,
    vm: Arc<Vm>,
    vmm: Vmm,
    checks: Option<Checks>,
    board: Board,
    vcpus: Vec<Processor>,
    now: Instant,
    scheduler: Stream,
    counters: Counters,
    /// Serial output not fetched yet.
    serial: Vec<u8>,
    /// Which processor's turn it is.
    turn: usize,
    /// Of an SNP guest.
    snp: Option<snp::Snp>,
    /// What its host does to it, when it is to be lied to.
    injector: Option<snp::Injector>,
    /// How what it does is seen.
    lens: Lens,
}

/// What the machine itself counts.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    exits: u64,
    io: u64,
    mmio: u64,
    msr: u64,
    halts: u64,
    interrupts: u64,
    turns: u64,
    vmgexits: u64,
    page_state_changes: u64,
}

impl Machine {
    /// A builder with the defaults: one processor, 1 GiB, 4K pages, NPT, seed 0.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// What it was built as.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Virtual time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Takes what the guest wrote to its first serial port since the last call.
    pub fn take_serial(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.serial)
    }

    /// Gives bytes to the guest's first serial port.
    pub fn serial_input(&mut self, bytes: &[u8]) {
        let events = self.board.serial_input(bytes);
        // What it changes is seen at the next turn.
        let _ = events;
    }

    /// The architectural state of processor `n`, if there is one.
    pub fn vcpu_state(&mut self, n: usize) -> Option<VcpuState> {
        self.vcpus.get_mut(n)?.vcpu.present().map(|vcpu| vcpu.state())
    }

    /// Reads guest physical memory as a device would.
    ///
    /// # Errors
    /// [`GuestAccessError`]: part of the range is no memory.
    pub fn read_guest(&mut self, gpa: Gpa, into: &mut [u8]) -> Result<(), GuestAccessError> {
        self.vm.guest_read(gpa, into, &self.lens.task())
    }

    /// What the launch of an SNP guest was measured as.
    pub fn launch_digest(&self) -> Option<LaunchDigest> {
        self.snp.as_ref().map(snp::Snp::digest)
    }

    /// The VMM, for what it did.
    pub fn vmm(&self) -> &Vmm {
        &self.vmm
    }

    /// The hypervisor, for whoever looks at memory and tables.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }
}
