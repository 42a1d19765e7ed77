//! Lines of files that others wrote.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The longest line that is read.
const LINE_MAX: u64 = 1 << 20;

/// A file's lines, each with the number that it has for people.
pub(super) struct Lines {
    path: PathBuf,
    source: BufReader<File>,
    number: usize,
}

/// One of them.
pub(super) struct Line {
    pub(super) number: usize,
    pub(super) text: Result<String, &'static str>,
}

impl Lines {
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        Ok(Self { path: path.to_owned(), source: BufReader::new(File::open(path)?), number: 0 })
    }

    /// The next line that is not blank, without its end, or why it cannot be read as one; none behind
    /// the last.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn next(&mut self) -> Result<Option<Line>, Error> {
        while let Some(line) = self.any()? {
            if !line.text.as_ref().is_ok_and(|text| text.trim().is_empty()) {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    fn any(&mut self) -> Result<Option<Line>, Error> {
        let mut line = Vec::new();
        let mut read = self.source.by_ref().take(LINE_MAX + 1).read_until(b'\n', &mut line);
        let is_long = line.len() as u64 > LINE_MAX;
        if is_long && !line.ends_with(b"\n") {
            read = read.and_then(|_| self.source.skip_until(b'\n'));
        }
        read.map_err(|source| Error::io(format!("cannot read {}", self.path.display()), source))?;
        if line.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        let text = match String::from_utf8(line) {
            _ if is_long => Err("the line is longer than 1 MiB"),
            Ok(line) => Ok(line.trim_end_matches('\n').trim_end_matches('\r').to_owned()),
            Err(_) => Err("the line is not UTF-8"),
        };
        Ok(Some(Line { number: self.number, text }))
    }
}

/// What is wrong with a line.
pub(super) fn fault(path: &Path, number: usize, why: &str) -> Error {
    Error::Usage(format!("{}:{number}: {why}", path.display()))
}
