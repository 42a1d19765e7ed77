//! What a ledger adds up to.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;
use std::time::SystemTime;

use super::line::Line;
use super::{Key, Totals, file};
use crate::calendar;
use crate::error::Error;

/// More than any line has; what is longer is read over.
const LINE_MAX: u64 = 64 * 1024;

/// Which lines count.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Those that begin at this instant or later.
    pub from: Option<SystemTime>,
    /// Those that begin before this instant.
    pub to: Option<SystemTime>,
    /// Those of this tenant.
    pub tenant: Option<String>,
}

/// What a ledger's lines add up to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Per tenant and model.
    pub sums: BTreeMap<Key, Totals>,
    /// Lines that count.
    pub lines: u64,
    /// Lines that were there twice and counted once: a disk was full, or failed, in between.
    pub repeated: u64,
    /// Lines that nobody can read.
    pub damaged: u64,
}

impl Report {
    /// All of it.
    pub fn total(&self) -> Totals {
        let mut all = Totals::default();
        self.sums.values().for_each(|sums| all += *sums);
        all
    }
}

/// Adds up a ledger: its file and the earlier ones beside it. A last line that is being written is
/// left out.
///
/// # Errors
/// Where there is none, or it cannot be read.
pub fn report(path: &Path, filter: &Filter) -> Result<Report, Error> {
    let files = file::files(path).map_err(|source| Error::ledger("find", path, source))?;
    if files.is_empty() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        return Err(Error::ledger("read", path, source));
    }
    let mut reading = Reading::default();
    for file in &files {
        reading.read(file, filter).map_err(|source| Error::ledger("read", file, source))?;
    }
    Ok(reading.report)
}

/// What tenants used since the last midnight, UTC.
pub(crate) fn today(path: &Path) -> Result<Report, Error> {
    let files = file::files(path).map_err(|source| Error::ledger("find", path, source))?;
    let day = calendar::day(SystemTime::now());
    let filter =
        Filter { from: calendar::parse_instant(&calendar::date(day)).ok(), ..Filter::default() };
    // The oldest that may have lines of today is the one before the first that begins today.
    let date = calendar::date(day);
    let begins_today = |file: &Path| {
        file != path && file.file_name().is_some_and(|it| it.to_string_lossy().contains(&date))
    };
    let first = files.iter().position(|file| begins_today(file)).unwrap_or(files.len());
    let current = files.iter().position(|file| file == path).unwrap_or(files.len());
    let mut reading = Reading::default();
    for file in &files[first.min(current).saturating_sub(1)..] {
        reading.read(file, &filter).map_err(|source| Error::ledger("read", file, source))?;
    }
    Ok(reading.report)
}

#[derive(Default)]
struct Reading {
    report: Report,
    /// The last number of each process.
    seen: HashMap<String, u64>,
}

impl Reading {
    fn read(&mut self, path: &Path, filter: &Filter) -> io::Result<()> {
        let mut lines = BufReader::new(File::open(path)?);
        let mut text = Vec::new();
        loop {
            text.clear();
            lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut text)?;
            if text.last() != Some(&b'\n') {
                if text.len() as u64 == LINE_MAX {
                    lines.skip_until(b'\n')?;
                    self.report.damaged += 1;
                    continue;
                }
                return Ok(());
            }
            self.line(&text, filter);
        }
    }

    fn line(&mut self, text: &[u8], filter: &Filter) {
        let text = text.trim_ascii();
        if text.is_empty() {
            return;
        }
        let Some(line) = Line::read(text) else {
            self.report.damaged += 1;
            return;
        };
        if self.seen.get(&line.instance).is_some_and(|last| line.seq <= *last) {
            self.report.repeated += 1;
            return;
        }
        self.seen.insert(line.instance.clone(), line.seq);
        let Ok(from) = calendar::parse_instant(&line.from) else {
            self.report.damaged += 1;
            return;
        };
        let is_in = filter.from.is_none_or(|bound| from >= bound)
            && filter.to.is_none_or(|bound| from < bound);
        let tenant = line.tenant.as_ref().map_or("", |tenant| tenant.as_str());
        if is_in && filter.tenant.as_deref().is_none_or(|wanted| wanted == tenant) {
            *self.report.sums.entry(line.key()).or_default() += line.totals;
            self.report.lines += 1;
        }
    }
}
