//! A finding as a reader follows it: one column a thread, one line a step, time going down.

use crate::explore::Finding;
use crate::threads::Pause;

/// The text. `names` are the threads'; `explain` says in a few words what a thread has done when it gives way there.
pub fn render(finding: &Finding, names: &[&str], explain: &dyn Fn(&Pause) -> String) -> String {
    let cells: Vec<(usize, String)> = finding
        .steps
        .iter()
        .enumerate()
        .map(|(n, step)| {
            let text = match step.pause {
                Some(pause) => explain(&pause),
                None if n + 1 == finding.steps.len() && finding.what.starts_with("panic") => "panics".to_owned(),
                None => "done".to_owned(),
            };
            (usize::from(step.thread.0), text)
        })
        .collect();
    let width = |column: usize| {
        let texts = cells.iter().filter(|cell| cell.0 == column).map(|cell| cell.1.chars().count());
        texts.chain(names.get(column).map(|name| name.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn FnMut(usize) -> String| {
        let mut row = String::from(" ");
        for (column, &width) in widths.iter().enumerate() {
            let cell = cells(column);
            let pad = width.saturating_sub(cell.chars().count());
            row.push_str(&format!(" {cell}{}  ", " ".repeat(pad)));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    };
    line(&mut |column| names[column].to_owned());
    line(&mut |column| "-".repeat(widths[column]));
    for (at, cell) in &cells {
        line(&mut |column| if column == *at { cell.clone() } else { String::new() });
    }
    text.push_str(&format!("  => {}\n", finding.what));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explore::Step;
    use crate::threads::ThreadId;
    use emu_core::sync::Point;

    #[test]
    fn columns_line_up() {
        let step = |thread, pause| Step { thread: ThreadId(thread), pause };
        let finding = Finding {
            what: "it broke".into(),
            steps: vec![step(0, Some(Pause::At(Point::F3))), step(1, Some(Pause::Waiting)), step(0, None)],
        };
        let text = render(&finding, &["vcpu0", "puncher"], &|pause| format!("{pause:?}"));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "  vcpu0    puncher");
        assert_eq!(lines[2], "  At(F3)");
        assert_eq!(lines[3].find("Waiting"), lines[0].find("puncher"));
        assert_eq!(lines.last(), Some(&"  => it broke"));
    }
}
