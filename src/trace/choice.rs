//! Which events are recorded, and as what they are written: the values of `--trace-events` and `--trace`.

use core::str::FromStr;
use std::path::PathBuf;

use emu_core::event::{EventKind, Group};

use crate::config::ConfigError;

/// How a trace is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line for each event, as `trace_pipe` of ftrace shows it.
    Text,
    /// A JSON object on each line; the only format that `bifold report` reads.
    Jsonl,
    /// The JSON trace format that ui.perfetto.dev opens.
    Perfetto,
}

impl Format {
    /// Every one with its name.
    pub const ALL: [(Format, &'static str); 3] =
        [(Format::Text, "text"), (Format::Jsonl, "jsonl"), (Format::Perfetto, "perfetto")];
}

/// Where a trace goes: `FILE`, `FILE:format`, or the word `digest` for no file at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Into a file.
    File {
        /// Which.
        path: PathBuf,
        /// As what.
        format: Format,
    },
    /// Nowhere: only counted and digested.
    Digest,
}

impl FromStr for Target {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<Target, ConfigError> {
        if text == "digest" {
            return Ok(Target::Digest);
        }
        let named = |name: &str| Format::ALL.into_iter().find(|(_, known)| *known == name).map(|(format, _)| format);
        let (path, format) = match text.rsplit_once(':') {
            Some((path, name)) => (path, named(name).ok_or_else(|| ConfigError::TraceFormat(name.to_owned()))?),
            None if text.ends_with(".txt") => (text, Format::Text),
            None if text.ends_with(".json") => (text, Format::Perfetto),
            None => (text, Format::Jsonl),
        };
        Ok(Target::File { path: PathBuf::from(path), format })
    }
}

/// Which kinds of events are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    wanted: Vec<bool>,
}

impl Default for Choice {
    fn default() -> Choice {
        Choice { wanted: vec![true; EventKind::ALL.len()] }
    }
}

impl Choice {
    /// Whether events of `kind` are wanted.
    #[inline]
    pub fn wants(&self, kind: EventKind) -> bool {
        self.wanted.get(kind.index()).copied().unwrap_or(false)
    }
}

/// Groups and tracepoints, separated by commas; a leading `-` takes away, and a list that begins with one begins with
/// everything.
impl FromStr for Choice {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<Choice, ConfigError> {
        let mut wanted = vec![text.starts_with('-'); EventKind::ALL.len()];
        for word in text.split(',') {
            let (word, want) = word.strip_prefix('-').map_or((word, true), |word| (word, false));
            let group = Group::ALL.iter().find(|group| group.word() == word).copied();
            let kind = EventKind::named(word);
            if group.is_none() && kind.is_none() && word != "all" {
                return Err(ConfigError::TraceEvent(word.to_owned()));
            }
            for (one, wanted) in EventKind::ALL.iter().zip(&mut wanted) {
                if Some(*one) == kind || Some(one.group()) == group || word == "all" {
                    *wanted = want;
                }
            }
        }
        Ok(Choice { wanted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_adds_and_takes_away_in_order() {
        let chosen = |text: &str| {
            let choice: Choice = text.parse().unwrap();
            EventKind::ALL.iter().filter(|kind| choice.wants(**kind)).map(|kind| kind.name()).collect::<Vec<_>>()
        };
        assert_eq!(chosen("kvm_page_fault,kvm_exit"), ["kvm_exit", "kvm_page_fault"]);
        assert_eq!(
            chosen("dirty,-kvm_get_dirty_log"),
            ["kvm_dirty_ring_push", "kvm_dirty_ring_reset", "kvm_dirty_ring_exit", "kvm_pml_full"]
        );
        assert_eq!(chosen("-kvm_tdp_mmu_spte_changed").len(), EventKind::ALL.len() - 1);
        assert_eq!(chosen("all").len(), EventKind::ALL.len());
        assert_eq!("fault,soon".parse::<Choice>(), Err(ConfigError::TraceEvent("soon".to_owned())));
    }

    #[test]
    fn the_files_name_says_its_format_unless_the_flag_does() {
        let target = |text: &str| text.parse::<Target>().unwrap();
        let file = |path: &str, format| Target::File { path: PathBuf::from(path), format };
        assert_eq!(target("run.jsonl"), file("run.jsonl", Format::Jsonl));
        assert_eq!(target("run.txt"), file("run.txt", Format::Text));
        assert_eq!(target("run.json"), file("run.json", Format::Perfetto));
        assert_eq!(target("run:text"), file("run", Format::Text));
        assert_eq!(target("digest"), Target::Digest);
        assert_eq!("run:yaml".parse::<Target>(), Err(ConfigError::TraceFormat("yaml".to_owned())));
    }
}
