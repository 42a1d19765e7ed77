//! What commands print: tables for people, JSON for programs.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::error::Error;

/// Writes text to standard output, as [`printable_lines`] has it.
///
/// # Errors
/// [`Error::OutputClosed`] when the reader has left, as `head` does.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    print_bytes(printable_lines(text).as_bytes())
}

/// Writes bytes to standard output as they are and flushes, so that a stream is seen as it comes.
///
/// # Errors
/// [`Error::OutputClosed`] when the reader has left, as `head` does.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Error::OutputClosed),
        Err(error) => Err(Error::io("cannot write to standard output", error)),
    }
}

/// Writes a value as JSON with a line's end.
///
/// # Errors
/// As [`print`].
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).expect("our values have string keys only");
    print_bytes(format!("{}\n", plain_json(&text)).as_bytes())
}

/// The same JSON, whose strings hold nothing that steers a terminal: serde escapes the oldest
/// control characters alone.
pub(crate) fn plain_json(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c != '\n' && steers(c) {
            // All of them are below U+10000.
            true => plain.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => plain.push(c),
        }
    }
    plain
}

/// Rows under headings, aligned. Numbers' columns are aligned to the right.
pub(crate) struct Table {
    headings: Vec<&'static str>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings; one that begins with `>` is a column of numbers.
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self {
            right: headings.iter().map(|heading| heading.starts_with('>')).collect(),
            headings: headings.iter().map(|heading| heading.trim_start_matches('>')).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; one cell per heading.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.headings.len(), "one cell per heading");
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// The table as text with a line's end.
    pub(crate) fn render(&self) -> String {
        let mut widths: Vec<usize> = self.headings.iter().map(|it| it.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let headings: Vec<String> = self.headings.iter().map(|it| (*it).to_owned()).collect();
        let mut text = String::new();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.right) {
                let gap = " ".repeat(width - cell.chars().count());
                let (before, after) = if *right { (gap.as_str(), "") } else { ("", gap.as_str()) };
                line.push_str(before);
                line.push_str(cell);
                line.push_str(after);
                line.push_str("  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The text without control characters and those that reorder what is beside them: names and
/// messages come from stores and servers, and must not steer a terminal, nor look like others.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

/// As [`printable`], of a text that may have lines and tabs.
pub(crate) fn printable_lines(text: &str) -> String {
    let stays = |c| c == '\n' || c == '\t' || !steers(c);
    text.chars().map(|c| if stays(c) { c } else { '\u{fffd}' }).collect()
}

/// Control characters, and Unicode's controls of the direction of writing (UAX 9).
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_stand_right() {
        let mut table = Table::new(&["TARGET", ">SIZE", "STATE"]);
        table.row(vec!["a".into(), "10 B".into(), "ready".into()]);
        table.row(vec!["über/lang".into(), "1 B".into(), String::new()]);
        let want = "TARGET     SIZE  STATE\na          10 B  ready\nüber/lang   1 B\n";
        assert_eq!(table.render(), want);
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        let mut table = Table::new(&["TARGET"]);
        table.row(vec!["a\u{1b}[2Jb\u{202e}\u{2066}\u{9b}c".into()]);
        assert_eq!(table.render(), "TARGET\na\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}c\n");
        assert_eq!(printable_lines("a\n\tb\r\u{1b}c"), "a\n\tb\u{fffd}\u{fffd}c");
    }

    #[test]
    fn json_means_the_same_without_steering_the_terminal() {
        let value = serde_json::json!({"a\u{9b}": ["\u{1b}[2J\u{202e}x\u{7f}", "über\n"]});
        let text = plain_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(text.chars().all(|c| c == '\n' || !steers(c)), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
