//! `bifold run`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::args::{ImageChoice, OnReset, Report, RunConfig, Vcpus};
use super::console::{Console, Wish};
use super::exit::ExitCode;
use super::{CliError, devices, files, out, report, trace};
use crate::loader::{BUILTIN, BUILTINS, BuiltinGuest, Image};
use crate::machine::{BuildError, Device, Limits, Machine, Outcome};
use crate::vmm::script::Script;
use hypervisor::VmKind;

/// How long to sleep between looks at the clock while the guest waits for a key.
const PATIENCE: Duration = Duration::from_millis(100);

/// Runs what `config` asks for.
pub fn run(config: &RunConfig) -> Result<ExitCode, CliError> {
    let file;
    let image = match &config.image {
        ImageChoice::File(path) => {
            file = files::read_named(path)?;
            Image { name: &file.0, bytes: &file.1 }
        }
        ImageChoice::Builtin(name) => BuiltinGuest::named(name).map_or(BUILTIN, |guest| guest.image),
    };
    let script = script(config)?;
    let initrd = config.initrd.as_deref().map(files::read).transpose()?;
    let recording = trace::begin(config, image.name)?;
    let mut plugged = devices::open(&config.devices)?;
    let build = |plugged: &[Device]| -> Result<Machine, CliError> {
        let mut builder = plugged.iter().cloned().fold(Machine::builder(), |builder, device| builder.device(device));
        builder = builder
            .cpus(config.cpus.get() as u16)
            .memory(config.memory.bytes())
            .pages(config.pages)
            .mmu(config.mmu.paging)
            .mmu_params(config.mmu.params)
            .kind(config.vm.kind, config.vm.ram)
            .shared_side(config.vm.shared)
            .on_memory_fault(config.vm.on_memory_fault)
            .model(config.cpu.model())
            .seed(config.seed)
            .gmem(config.gmem.0)
            .script(script.clone())
            .check_invariants(config.check_every)
            .append(&config.cmdline);
        if config.vm.kind == VmKind::Snp {
            builder = builder.snp(config.vm.snp).inject(config.inject);
        }
        if let Some(recording) = &recording {
            builder = builder.recorder(Arc::clone(&recording.recorder));
        }
        if let Some(bytes) = &initrd {
            builder = builder.initrd(bytes.clone());
        }
        builder.build(&image).map_err(|cause| match cause {
            BuildError::Load(cause) => CliError::Load { image: image.name.to_owned(), cause },
            cause => CliError::Build(cause),
        })
    };
    let mut machine = build(&plugged)?;
    if config.launch_digest {
        if let Some(digest) = machine.launch_digest() {
            out::line(format_args!("{digest}"))?;
        }
        return Ok(ExitCode::Done);
    }
    let mut console = Console::open(config.serial.as_deref(), config.report).map_err(CliError::Console)?;
    console.second = devices::console_file(&config.devices)?;
    let deadline = config.timeout.map(|span| Instant::now() + span);
    let limits = Limits { max_instructions: config.max_instructions };
    let outcome = loop {
        match drive(&mut machine, &mut console, config.vcpus, limits, deadline)? {
            Outcome::Reset if config.on_reset == OnReset::Restart => {
                // A reset loses memory, not what is on disks.
                devices::keep(&mut plugged, &machine);
                machine = build(&plugged)?;
            }
            outcome => break outcome,
        }
    };
    drop(console);
    devices::finish(&config.devices, &machine)?;
    let code = report::exit_code(&outcome);
    let summary = machine.summary();
    if let Some(recording) = &recording {
        trace::finish(recording, config, &outcome, &summary)?;
    }
    match config.report {
        Report::Text => eprintln!("\nbifold: {}\n{summary}", report::sentence(&outcome)),
        Report::Json => out::line(format_args!("{}", report::json(&outcome, code, &summary)))?,
    }
    Ok(code)
}

/// What the VMM is to do: by its file, and at random by its flag where the file does not say.
fn script(config: &RunConfig) -> Result<Script, CliError> {
    let mut script = match &config.script {
        None => Script::default(),
        Some(path) => {
            let text = files::read(path)?;
            let refused = |cause| CliError::Script { path: path.clone(), cause };
            Script::parse(&String::from_utf8_lossy(&text)).map_err(refused)?
        }
    };
    if let Some(random) = &config.vmm_random {
        script.random.get_or_insert_with(|| random.clone());
    }
    Ok(script)
}

/// Writes the guests that need no file to standard output.
pub(super) fn list_guests() -> Result<ExitCode, CliError> {
    for guest in &BUILTINS {
        out::line(format_args!("{:14}{}", guest.name, guest.about))?;
    }
    Ok(ExitCode::Done)
}

/// Runs the machine to its end, carrying bytes between it and the console.
fn drive(
    machine: &mut Machine,
    console: &mut Console,
    vcpus: Vcpus,
    limits: Limits,
    deadline: Option<Instant>,
) -> Result<Outcome, CliError> {
    let late = || deadline.is_some_and(|at| Instant::now() >= at);
    let mut failed = None;
    loop {
        let mut wish = Wish::Continue;
        let attend = |machine: &mut Machine| {
            if let Err(cause) = console.write(&machine.take_serial(), &machine.take_console()) {
                failed = Some(cause);
            }
            let (bytes, wanted) = console.typed();
            if !bytes.is_empty() {
                console.give(machine, &bytes);
            }
            wish = wanted;
            failed.is_none() && wish == Wish::Continue && !late()
        };
        let outcome = match vcpus {
            Vcpus::InTurns => machine.run(limits, attend)?,
            Vcpus::Parallel => machine.run_parallel(limits, attend)?,
        };
        console.write(&machine.take_serial(), &machine.take_console()).map_err(CliError::Console)?;
        if let Some(cause) = failed.take() {
            return Err(CliError::Console(cause));
        }
        match outcome {
            Outcome::Interrupted if wish == Wish::Quit => return Ok(Outcome::Interrupted),
            Outcome::Interrupted => return Ok(Outcome::LimitReached),
            // Only a key can wake it.
            Outcome::Asleep { registers } => match console.wait(PATIENCE) {
                Some((_, Wish::Quit)) => return Ok(Outcome::Interrupted),
                Some((bytes, Wish::Continue)) => console.give(machine, &bytes),
                None => return Ok(Outcome::Asleep { registers }),
            },
            ended => return Ok(ended),
        }
        if late() {
            return Ok(Outcome::LimitReached);
        }
    }
}
