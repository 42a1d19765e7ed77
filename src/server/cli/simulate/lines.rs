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

impl Lines {
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        Ok(Self { path: path.to_owned(), source: BufReader::new(File::open(path)?), number: 0 })
    }

    /// The next line without its end; none behind the last.
    ///
    /// # Errors
    /// When the file cannot be read, or the line is too long or no text.
    pub(super) fn next(&mut self) -> Result<Option<(usize, String)>, Error> {
        let mut line = Vec::new();
        let read = self.source.by_ref().take(LINE_MAX + 1).read_until(b'\n', &mut line);
        read.map_err(|source| Error::io(format!("cannot read {}", self.path.display()), source))?;
        if line.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        let fault = |why: &str| fault(&self.path, self.number, why);
        if line.len() as u64 > LINE_MAX {
            return Err(fault("the line is longer than 1 MiB"));
        }
        let line = String::from_utf8(line).map_err(|_| fault("the line is not UTF-8"))?;
        let line = line.trim_end_matches('\n').trim_end_matches('\r');
        Ok(Some((self.number, line.to_owned())))
    }
}

/// What is wrong with a line.
pub(super) fn fault(path: &Path, number: usize, why: &str) -> Error {
    Error::Usage(format!("{}:{number}: {why}", path.display()))
}
