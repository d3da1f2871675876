//! The flags by which a run is recorded, and the recorder they mean.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use clap::Args;
use hypervisor::VmKind;

use super::CliError;
use super::args::{ImageChoice, RunConfig};
use super::{page, report};
use crate::machine::{Outcome, Summary};
use crate::report::Model;
use crate::trace::choice::Target;
use crate::trace::writer::Writer;
use crate::trace::{Choice, Consumer, HostClock, Recorder};

/// The flags, as text.
#[derive(Clone, Debug, Default, Args)]
pub struct TraceArguments {
    /// Write every event of the memory pipeline: FILE, or FILE:text, FILE:jsonl, FILE:perfetto; `digest` writes none.
    #[arg(long, value_name = "FILE[:FORMAT]")]
    pub trace: Option<String>,
    /// Only these: tracepoints like kvm_page_fault, or groups vcpu, fault, mmu, invalidate, dirty, gmem, pool; -NAME
    /// leaves out.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    pub trace_events: Option<String>,
    /// Write one page about the run: memory over time, faults, conversions, pools.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Stamp events with the host's clock too. The digest stays as it is.
    #[arg(long)]
    pub trace_host_time: bool,
}

/// The same, every value checked.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TraceConfig {
    /// Where the trace goes.
    pub target: Option<Target>,
    /// Where a page about the run goes.
    pub page: Option<PathBuf>,
    /// What is recorded.
    pub choice: Choice,
    /// Whose clocks events are stamped with.
    pub clock: TraceClock,
}

/// With which clocks events are stamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TraceClock {
    /// Virtual time alone.
    #[default]
    Virtual,
    /// The host's too.
    Host,
}

impl TraceArguments {
    /// The configuration these flags mean.
    pub fn resolve(&self) -> Result<TraceConfig, CliError> {
        let read = |flag| move |cause| CliError::Flag { flag, cause };
        let target: Option<Target> = self.trace.as_deref().map(str::parse).transpose().map_err(read("--trace"))?;
        let choice: Option<Choice> =
            self.trace_events.as_deref().map(str::parse).transpose().map_err(read("--trace-events"))?;
        let clock = if self.trace_host_time { TraceClock::Host } else { TraceClock::Virtual };
        Ok(TraceConfig { target, page: self.report.clone(), choice: choice.unwrap_or_default(), clock })
    }
}

/// A run that is recorded.
pub(super) struct Recording {
    /// Who records it.
    pub(super) recorder: Arc<Recorder>,
    /// What its page is made of.
    model: Arc<Mutex<Model>>,
}

/// Begins to record a run that is to be recorded.
pub(super) fn begin(config: &RunConfig, image: &str) -> Result<Option<Recording>, CliError> {
    let trace = &config.trace;
    let mut consumers: Vec<Box<dyn Consumer>> = Vec::new();
    let model = Arc::new(Mutex::new(Model::default()));
    if trace.page.is_some() {
        consumers.push(Box::new(Arc::clone(&model)));
    }
    match &trace.target {
        None if trace.page.is_none() => return Ok(None),
        None | Some(Target::Digest) => {}
        Some(Target::File { path, format }) => {
            let file = File::create(path).map_err(|cause| CliError::Write { path: path.clone(), cause })?;
            consumers.push(Box::new(Writer::new(*format, Box::new(file))));
        }
    }
    let clock = (trace.clock == TraceClock::Host).then(|| {
        let begin = Instant::now();
        Box::new(move || begin.elapsed().as_nanos() as u64) as HostClock
    });
    let recorder = Recorder::new(trace.choice.clone(), clock, consumers);
    recorder.begin(&[
        ("bifold", env!("CARGO_PKG_VERSION").to_owned()),
        ("image", image.to_owned()),
        ("builtin", matches!(config.image, ImageChoice::Builtin(_)).to_string()),
        ("append", config.cmdline.clone()),
        (
            "vm",
            match config.vm.kind {
                VmKind::Default => "default",
                VmKind::SwProtected => "sw-protected",
                VmKind::Snp => "snp",
            }
            .to_owned(),
        ),
        ("cpus", config.cpus.get().to_string()),
        ("memory", config.memory.to_string()),
        ("pages", config.pages.to_string()),
        ("mmu", config.mmu.to_string()),
        ("cpu", format!("{:?}", config.cpu).to_lowercase()),
        ("seed", config.seed.0.to_string()),
    ]);
    Ok(Some(Recording { recorder: Arc::new(recorder), model }))
}

/// Says how the run ended, and writes what is written at its end.
pub(super) fn finish(
    recording: &Recording,
    config: &RunConfig,
    outcome: &Outcome,
    summary: &Summary,
) -> Result<(), CliError> {
    let recorded = recording.recorder.recorded();
    let path = match &config.trace.target {
        Some(Target::File { path, .. }) => path.clone(),
        _ => PathBuf::new(),
    };
    recording
        .recorder
        .finish(&[
            ("outcome", report::name(outcome).to_owned()),
            ("instructions", summary.instructions.to_string()),
            ("time_ns", summary.time_ns.to_string()),
            ("events", recorded.events.to_string()),
            ("digest", format!("{:#018x}", recorded.digest)),
        ])
        .map_err(|cause| CliError::Write { path, cause })?;
    match &config.trace.page {
        Some(page) => page::write(&recording.model.lock().unwrap_or_else(PoisonError::into_inner), page),
        None => Ok(()),
    }
}
