//! Printing: short sentences and tables for people, JSON for programs. Standard output is for what
//! was asked; notes go to standard error. A reader that went away is no error.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::ProgressBar;
use serde_json::Value;

/// What takes less is not worth a word.
const SHOWN_AFTER: Duration = Duration::from_millis(500);
/// How often progress is drawn.
const TICK_EVERY: Duration = Duration::from_millis(100);

/// Where and how a command prints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// A sentence for people.
    pub(crate) fn say(&self, text: impl AsRef<str>) {
        if !self.json {
            line(text.as_ref());
        }
    }

    /// An object for programs.
    pub(crate) fn object(&self, value: &Value) {
        if self.json {
            line(&value.to_string());
        }
    }

    /// Both at once.
    pub(crate) fn both(&self, text: impl AsRef<str>, value: &Value) {
        self.say(text);
        self.object(value);
    }

    /// What a person should know beside the answer; on standard error.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        let _ = writeln!(std::io::stderr(), "{}", text.as_ref());
    }

    /// Runs `work`, and shows that it goes on where that takes long and there is a terminal: on
    /// standard error, with what `state` says, gone when it is done.
    pub(crate) async fn progress<T>(
        &self,
        state: impl Fn() -> String,
        work: impl Future<Output = T>,
    ) -> T {
        if self.json || !std::io::stderr().is_terminal() {
            return work.await;
        }
        let bar = ProgressBar::new_spinner();
        let mut work = std::pin::pin!(work);
        let mut tick = tokio::time::interval(TICK_EVERY);
        loop {
            tokio::select! {
                done = &mut work => {
                    bar.finish_and_clear();
                    return done;
                }
                _ = tick.tick() => {
                    if bar.elapsed() >= SHOWN_AFTER {
                        bar.set_message(state());
                        bar.tick();
                    }
                }
            }
        }
    }

    /// A table for people, or a sentence where there is nothing to show. Columns whose header begins
    /// with `#` are numbers.
    pub(crate) fn table(&self, header: &[&str], rows: Vec<Vec<String>>, empty: &str) {
        if self.json {
            return;
        }
        if rows.is_empty() {
            return line(empty);
        }
        line(&table(header, rows));
    }
}

/// Prints a line; an answer that nobody reads is dropped.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Whether standard output is a terminal, on which lines can be drawn again.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Lays out a table.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !is_terminal() {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(header.iter().map(|name| name.trim_start_matches('#')));
    for row in rows {
        table.add_row(row);
    }
    for (index, name) in header.iter().enumerate() {
        let Some(column) = table.column_mut(index) else { continue };
        column.set_padding((0, 2));
        if name.starts_with('#') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// A time as it stands in JSON, `null` where there is none.
pub(crate) fn time(millis: Option<i64>) -> Value {
    millis.map_or(Value::Null, |millis| crate::store::time::format(millis).into())
}

/// `3m 20s ago`, or `never`.
pub(crate) fn ago(millis: Option<i64>, now: i64) -> String {
    match millis {
        None => "never".to_owned(),
        Some(then) if now - then < 1_000 => "just now".to_owned(),
        Some(then) => format!("{} ago", span(now - then)),
    }
}

/// A length of time in its two largest units.
pub(crate) fn span(millis: i64) -> String {
    let millis = u64::try_from(millis).unwrap_or_default();
    if millis < 1_000 {
        return format!("{millis}ms");
    }
    let text = humantime::format_duration(Duration::from_secs(millis / 1_000)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// `1 record`, `2 records`.
pub(crate) fn count(number: impl Into<i128>, one: &str) -> String {
    let number = number.into();
    match (number, one.strip_suffix('y')) {
        (1, _) => format!("1 {one}"),
        (_, Some(stem)) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{number} {stem}ies"),
        _ if one.ends_with('s') => format!("{number} {one}es"),
        _ => format!("{number} {one}s"),
    }
}

/// Text as a JSON value, `null` where there is none.
pub(crate) fn text(value: Option<&str>) -> Value {
    value.map_or(Value::Null, Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!(count(1, "record"), "1 record");
        assert_eq!(count(2, "class"), "2 classes");
        assert_eq!(count(0, "entry"), "0 entries");
        assert_eq!(count(0, "delay"), "0 delays");
        assert_eq!(span(90_061_000), "1day 1h");
        assert_eq!(ago(Some(1_000), 62_000), "1m 1s ago");
        assert_eq!(ago(None, 0), "never");
    }

    #[test]
    fn a_table_has_no_trailing_blanks() {
        let text = table(
            &["a", "#n"],
            vec![vec!["x".into(), "1".into()], vec!["long".into(), "10".into()]],
        );
        assert!(text.lines().all(|line| line == line.trim_end()));
        assert_eq!(text.lines().count(), 3);
    }
}
