//! `bifold explore`: races of the memory pipeline, found by machine.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use emu_core::defect::{Defect, Defects};
use emu_core::rng::Seed;
use indicatif::{ProgressBar, ProgressStyle};
use interleave::{Exhaustive, Finding, Pct, Random, Stopped, Strategy, explore as run_schedules, replay, shrink};

use super::exit::ExitCode;
use super::{CliError, out};
use crate::config::parse_seed;
use crate::explore::catalogue::{RACES, Shown};
use crate::explore::choices::NotChoices;
use crate::explore::{Scenario, choices, scenarios, words};
use crate::trace::timeline::Timelines;

/// The flags of `bifold explore`.
#[derive(Debug, Args)]
pub struct ExploreArguments {
    /// The scenario [default: all of them, or the one that shows --defect].
    #[arg(value_name = "SCENARIO")]
    pub scenario: Option<String>,
    /// Say what each scenario and each defect is.
    #[arg(long)]
    pub list: bool,
    /// Put this known bug back in.
    #[arg(long, value_name = "NAME")]
    pub defect: Option<String>,
    /// Who chooses the order of steps.
    #[arg(long, value_name = "KIND", value_enum, default_value_t = StrategyKind::Random)]
    pub strategy: StrategyKind,
    /// Schedules of each scenario, at the most.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub schedules: u64,
    /// Preemptions: the bound of `exhaustive`, the changes of `pct`.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub preemptions: usize,
    /// What decides every choice [default: 0].
    #[arg(long, value_name = "N")]
    pub seed: Option<String>,
    /// Write what is found here, for ui.perfetto.dev: a track for each task.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Run one schedule of SCENARIO, as a finding printed it.
    #[arg(long, value_name = "STEPS", requires = "scenario")]
    pub replay: Option<String>,
}

/// Who chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StrategyKind {
    /// The running task goes on, and now and then another does.
    Random,
    /// Random priorities with a few changes.
    Pct,
    /// Every schedule up to a number of preemptions.
    Exhaustive,
}

impl StrategyKind {
    fn strategy(self, seed: Seed, preemptions: usize) -> Box<dyn Strategy> {
        match self {
            StrategyKind::Random => Box::new(Random::new(seed)),
            StrategyKind::Pct => Box::new(Pct::new(seed, preemptions)),
            StrategyKind::Exhaustive => Box::new(Exhaustive::new(preemptions)),
        }
    }
}

/// What cannot be explored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExploreError {
    /// No such scenario.
    #[error("there is no scenario {name:?}")]
    Scenario {
        /// What was asked for.
        name: String,
    },
    /// No such defect.
    #[error("there is no defect {name:?}")]
    Defect {
        /// What was asked for.
        name: String,
    },
    /// A schedule that says nothing.
    #[error("--replay: {0}")]
    Replay(#[from] NotChoices),
}

impl ExploreError {
    /// What would have been right.
    pub const fn help(&self) -> &'static str {
        match self {
            ExploreError::Scenario { .. } | ExploreError::Defect { .. } => "`bifold explore --list` names them all",
            ExploreError::Replay(_) => "give the steps as a finding prints them, like 0x12,1x3,0",
        }
    }
}

/// Explores, and prints what it found on standard output.
pub(super) fn explore(arguments: &ExploreArguments) -> Result<ExitCode, CliError> {
    if arguments.list {
        list()?;
        return Ok(ExitCode::Done);
    }
    let defect = arguments.defect.as_deref().map(named_defect).transpose()?;
    let defects = defect.map_or(Defects::NONE, Defects::only);
    let chosen: Vec<&Scenario> = match (&arguments.scenario, defect) {
        (Some(name), _) => {
            vec![Scenario::named(name).ok_or_else(|| ExploreError::Scenario { name: name.clone() })?]
        }
        (None, Some(defect)) => Scenario::showing(defect).into_iter().collect(),
        (None, None) => scenarios().collect(),
    };
    let seed = arguments.seed.as_deref().map_or(Ok(0), parse_seed);
    let seed = Seed(seed.map_err(|cause| CliError::Flag { flag: "--seed", cause })?);
    // A task that panics is a finding, and is told as one.
    std::panic::set_hook(Box::new(|_| {}));
    let mut broke = false;
    let mut timelines = Timelines::default();
    for scenario in chosen {
        let finding = match &arguments.replay {
            Some(steps) => {
                let choices = choices::read(steps).map_err(ExploreError::Replay)?;
                let outcome = replay(&|| scenario.start(defects), choices);
                out::line(format_args!(
                    "{}: {}",
                    scenario.name,
                    if outcome.is_ok() { "nothing broke" } else { "it broke again" }
                ))?;
                outcome.err()
            }
            None => search(scenario, defects, seed, arguments)?,
        };
        if let Some(finding) = finding {
            broke = true;
            tell(scenario, defect, &finding)?;
            draw(scenario, defects, &finding, &mut timelines);
        }
    }
    drop(std::panic::take_hook());
    if let Some(path) = &arguments.trace {
        let refused = |cause| CliError::Write { path: path.clone(), cause };
        let mut file = BufWriter::new(File::create(path).map_err(refused)?);
        timelines.write(&mut file).and_then(|()| file.flush()).map_err(refused)?;
    }
    Ok(if broke { ExitCode::Broke } else { ExitCode::Done })
}

fn named_defect(name: &str) -> Result<Defect, ExploreError> {
    Defect::named(name).ok_or_else(|| ExploreError::Defect { name: name.to_owned() })
}

fn list() -> Result<(), CliError> {
    out::line(format_args!("scenarios"))?;
    for scenario in scenarios() {
        out::line(format_args!("  {:18} {}", scenario.name, scenario.what))?;
    }
    out::line(format_args!("races"))?;
    for race in RACES {
        let shown = match race.shown {
            Shown::By(defects) => defects.iter().map(|shown| shown.0.name()).collect::<Vec<_>>().join(", "),
            Shown::Not(why) => format!("not shown: {why}"),
        };
        out::line(format_args!("  R-{:02} {} ({shown})", race.number, race.title))?;
    }
    out::line(format_args!("defects"))?;
    for &defect in Defect::ALL {
        let shown_by = Scenario::showing(defect).map_or("-", |scenario| scenario.name);
        out::line(format_args!("  {:27} {} (shown by {shown_by})", defect.name(), defect.what()))?;
    }
    Ok(())
}

/// Runs schedules until one breaks something, which is then made short.
fn search(
    scenario: &Scenario,
    defects: Defects,
    seed: Seed,
    arguments: &ExploreArguments,
) -> Result<Option<Finding>, CliError> {
    let mut strategy = arguments.strategy.strategy(seed, arguments.preemptions);
    let bar = bar(arguments.schedules, scenario.name);
    let start = || scenario.start(defects);
    let stopped = run_schedules(&start, &mut *strategy, &mut |n| {
        if n.is_multiple_of(256) {
            bar.set_position(n);
        }
        n < arguments.schedules
    });
    bar.finish_and_clear();
    match stopped {
        Stopped::Enough { schedules } => {
            out::line(format_args!("{}: nothing broke in {schedules} schedules", scenario.name))?;
            Ok(None)
        }
        Stopped::Exhausted { schedules } => {
            let bound = arguments.preemptions;
            out::line(format_args!(
                "{}: nothing breaks in any of the {schedules} schedules with at most {bound} preemptions",
                scenario.name
            ))?;
            Ok(None)
        }
        Stopped::Broke { schedules, finding } => {
            let before = finding.preemptions();
            let short = shrink(&start, finding);
            out::line(format_args!(
                "{}: broke in schedule {schedules}, {} preemptions of {before} are needed",
                scenario.name,
                short.preemptions()
            ))?;
            Ok(Some(short))
        }
    }
}

fn bar(schedules: u64, name: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} schedules, {per_sec}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(schedules).with_message(name).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Adds a finding to the file of those that are found.
fn draw(scenario: &Scenario, defects: Defects, finding: &Finding, to: &mut Timelines) {
    let steps = finding.steps.iter().map(|step| {
        let what = step.pause.as_ref().map_or("the end", words::of);
        (usize::from(step.thread.0), what)
    });
    to.add(scenario.name, &scenario.tasks(defects), steps, &finding.what);
}

fn tell(scenario: &Scenario, defect: Option<Defect>, finding: &Finding) -> Result<(), CliError> {
    let defects = defect.map_or(Defects::NONE, Defects::only);
    out::line(format_args!("\n{}", scenario.picture(defects, finding)))?;
    let defect = defect.map_or(String::new(), |defect| format!(" --defect {}", defect.name()));
    out::line(format_args!(
        "  again:\n  bifold explore {}{defect} --replay {}",
        scenario.name,
        choices::write(&finding.choices())
    ))
}
