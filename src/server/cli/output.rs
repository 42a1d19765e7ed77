//! What commands print: tables for people, JSON for programs.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::error::Error;

/// Writes to standard output.
///
/// # Errors
/// [`Error::OutputClosed`] when the reader has left, as `head` does.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    print_bytes(text.as_bytes())
}

/// Writes bytes to standard output and flushes, so that a stream is seen as it comes.
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
    print(&format!("{text}\n"))
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

/// The text without control characters: names and messages come from stores and servers,
/// and must not steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
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
        table.row(vec!["a\u{1b}[2Jb".into()]);
        assert!(!table.render().contains('\u{1b}'));
    }
}
