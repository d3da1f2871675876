//! Interleavings as ui.perfetto.dev opens them: a process for each, a track for each of its tasks, a slice for each step.
//!
//! Steps of controlled threads take no time. Each is drawn one microsecond long, in the order in which they happened, so
//! that no two of them overlap; what broke is an instant behind the last.

use std::io::{self, Write};

use serde_json::{Value, json};

/// Nanoseconds that a step is drawn long; the format's unit is the microsecond.
const STEP_US: usize = 1;

/// See the module. It grows with its steps, of which an interleaving has some hundred at the most.
#[derive(Debug, Default)]
pub struct Timelines {
    entries: Vec<Value>,
    processes: usize,
}

impl Timelines {
    /// Adds an interleaving called `name` of the tasks `tasks`: for each step its task, by its place among them, and what
    /// it did; at the end `what` broke.
    pub fn add<'s>(
        &mut self,
        name: &str,
        tasks: &[&str],
        steps: impl IntoIterator<Item = (usize, &'s str)>,
        what: &str,
    ) {
        self.processes += 1;
        let pid = self.processes;
        self.entries.push(json!({ "ph": "M", "name": "process_name", "pid": pid, "args": { "name": name } }));
        for (tid, task) in tasks.iter().enumerate() {
            self.entries
                .push(json!({ "ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": { "name": task } }));
        }
        let mut last = (0, 0);
        for (n, (tid, step)) in steps.into_iter().enumerate() {
            let at = n * STEP_US;
            self.entries
                .push(json!({ "ph": "X", "name": step, "pid": pid, "tid": tid, "ts": at, "dur": STEP_US, "args": { "step": n } }));
            last = (tid, at + STEP_US);
        }
        let (tid, ts) = last;
        self.entries.push(json!({ "ph": "i", "s": "p", "name": what, "pid": pid, "tid": tid, "ts": ts }));
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The first failure to write.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        write!(to, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
        for (n, entry) in self.entries.iter().enumerate() {
            write!(to, "{}\n{entry}", if n > 0 { "," } else { "" })?;
        }
        writeln!(to, "\n]}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_has_a_track_and_steps_follow_one_another() {
        let mut timelines = Timelines::default();
        let steps = [(0, "F0 fault taken"), (1, "I1 \"begun\""), (0, "done")];
        timelines.add("fault-punch", &["vcpu0", "puncher"], steps, "a leaf outlived its page");
        timelines.add("another", &["one"], [], "nothing was done");
        let mut file = Vec::new();
        timelines.write(&mut file).unwrap();
        let file: Value = serde_json::from_slice(&file).unwrap();
        let entries = file["traceEvents"].as_array().unwrap();
        let of = |ph: &str| entries.iter().filter(|entry| entry["ph"] == ph).collect::<Vec<_>>();
        let slices: Vec<_> =
            of("X").iter().map(|e| (e["tid"].as_u64(), e["ts"].as_u64(), e["name"].as_str())).collect();
        let expected = [(0, 0, "F0 fault taken"), (1, 1, "I1 \"begun\""), (0, 2, "done")];
        assert_eq!(slices, expected.map(|(tid, ts, name)| (Some(tid), Some(ts), Some(name))));
        let names: Vec<_> = of("M").iter().map(|e| e["args"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["fault-punch", "vcpu0", "puncher", "another", "one"]);
        assert_eq!(of("i").iter().map(|e| e["ts"].as_u64()).collect::<Vec<_>>(), [Some(3), Some(0)]);
    }
}
