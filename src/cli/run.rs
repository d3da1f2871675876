//! `bifold run`.

use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::{Gpa, Spa};

use super::args::RunConfig;
use super::check::LOW_RAM_END;
use super::exit::ExitCode;
use super::{CliError, files};
use crate::loader::{BUILTIN, GuestMemory, Image, LoadOptions, MemoryMap, MemoryRefused, load};

/// Fresh system memory whose addresses are the guest's own.
struct Flat(Arc<SystemMemory>);

impl GuestMemory for Flat {
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), MemoryRefused> {
        let refused = MemoryRefused { gpa, len_bytes: bytes.len() as u64 };
        self.0.write(Spa::new(gpa.raw()), bytes).map_err(|_| refused)
    }
    fn zero(&mut self, _: Gpa, _: u64) -> Result<(), MemoryRefused> {
        // Fresh memory reads as zero, and a loader writes nothing twice.
        Ok(())
    }
}

/// Runs what `config` asks for.
pub fn run(config: &RunConfig) -> Result<ExitCode, CliError> {
    let file = config.image.as_deref().map(files::read_named).transpose()?;
    let image = file.as_ref().map_or(BUILTIN, |(name, bytes)| Image { name, bytes });
    let initrd = config.initrd.as_deref().map(files::read).transpose()?;
    let map = MemoryMap::pc(config.memory.bytes(), LOW_RAM_END)?;
    let end = map.ram().map(|region| region.base.raw() + region.len_bytes).max().unwrap_or(0);
    let memory = SystemMemory::flat(end.next_multiple_of(0x1000))?;
    let mut options = LoadOptions::new(&map);
    options.cmdline = &config.cmdline;
    options.initrd = initrd.as_deref();
    load(&image, &options, &mut Flat(memory))
        .map_err(|cause| CliError::Load { image: image.name.to_owned(), cause })?;
    Err(CliError::NoMachine)
}
