//! An interleaving as a line of text: which task runs, for how many steps, and so on, as `0x12,1x3,0`.

use interleave::ThreadId;
use thiserror::Error;

/// Longer lists than this are nobody's finding.
const LONGEST: usize = 100_000;

/// A list that says nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{part:?} is not a task and its steps")]
pub struct NotChoices {
    /// The part in question.
    pub part: String,
}

/// Writes choices down.
pub fn write(choices: &[Option<ThreadId>]) -> String {
    let runs = choices.chunk_by(|a, b| a == b).filter_map(|run| Some((run.first().copied()??, run.len())));
    let parts = runs.map(|(ThreadId(task), steps)| match steps {
        1 => task.to_string(),
        _ => format!("{task}x{steps}"),
    });
    parts.collect::<Vec<_>>().join(",")
}

/// Reads them.
pub fn read(text: &str) -> Result<Vec<Option<ThreadId>>, NotChoices> {
    let mut choices = Vec::new();
    for part in text.split(',') {
        let wrong = || NotChoices { part: part.to_owned() };
        let (task, steps) = part.split_once('x').unwrap_or((part, "1"));
        let task = ThreadId(task.trim().parse().map_err(|_| wrong())?);
        let steps: usize = steps.trim().parse().map_err(|_| wrong())?;
        if choices.len() + steps.min(LONGEST + 1) > LONGEST {
            return Err(wrong());
        }
        choices.extend(std::iter::repeat_n(Some(task), steps));
    }
    Ok(choices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let choices: Vec<_> = [0, 0, 0, 2, 1, 1].map(|task| Some(ThreadId(task))).to_vec();
        assert_eq!(write(&choices), "0x3,2,1x2");
        assert_eq!(read("0x3,2,1x2"), Ok(choices));
        for bad in ["", "a", "0x", "x3", "0x3,,1", "300", "0x99999999999", "0x100001", "-1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
