//! The ledger's files: the one that is written, and those that it was before.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use roundhouse_types::Bytes;
use tracing::warn;

use super::line::Line;
use crate::calendar;
use crate::error::Error;

/// More than any line has: where no end of one is found in so much, the end of the file is none of
/// ours.
const LINE_MAX: u64 = 64 * 1024;

/// The file that is appended to. One process at a time: a lock beside it says so.
///
/// It ends with a whole line: what a crash or a full disk left of another is cut off.
pub(super) struct LedgerFile {
    path: PathBuf,
    file: File,
    length: u64,
    /// The day of its first line.
    day: u64,
    _lock: File,
}

impl LedgerFile {
    /// Opens or creates it, and cuts off what is no line at its end.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let at = |what, source| Error::ledger(what, path, source);
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|source| at("make the folder of", source))?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(beside(path, ".lock"))
            .map_err(|source| at("lock", source))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => Error::LedgerInUse { path: path.to_owned() },
            fs::TryLockError::Error(source) => at("lock", source),
        })?;
        let mut file = open(path).map_err(|source| at("open", source))?;
        let length = heal(&mut file).map_err(|source| at("read the end of", source))?;
        let day = first_day(&mut file).map_err(|source| at("read the start of", source))?;
        Ok(Self { path: path.to_owned(), file, length, day, _lock: lock })
    }

    /// Appends whole lines. After a failure the file is as before, as far as that can be had; the
    /// same lines may be appended again in any case, for their numbers tell.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(lines) {
            if let Err(kept) = self.file.set_len(self.length) {
                warn!(error = %kept, "a torn line stays in the usage ledger");
                // What comes next must not be a part of it.
                self.length = self.file.metadata()?.len();
                self.file.write_all(b"\n")?;
                self.length += 1;
            }
            return Err(error);
        }
        self.length += lines.len() as u64;
        Ok(())
    }

    /// Waits until all of it is on the disk.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Puts the file aside and begins another, where it is of another day or larger than `size`.
    pub(super) fn turn(&mut self, size: Bytes, daily: bool, now: SystemTime) -> io::Result<()> {
        let today = calendar::day(now);
        if self.length == 0 {
            self.day = today;
            return Ok(());
        }
        if self.length < size.0 && !(daily && today > self.day) {
            return Ok(());
        }
        self.file.sync_all()?;
        fs::rename(&self.path, free_name(&self.path, self.day))?;
        self.file = open(&self.path)?;
        (self.length, self.day) = (0, today);
        if let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            // Both names are to be there after a power cut.
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

/// The files of a ledger, the oldest first.
pub(super) fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let (stem, extension) = parts(path);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder.unwrap_or(Path::new(".")))? {
        let name = entry?.file_name();
        let Some(text) = name.to_str() else {
            continue;
        };
        let numbered = text.strip_prefix(&stem).and_then(|rest| rest.strip_suffix(&extension));
        let is_one = numbered.and_then(|rest| rest.strip_prefix('.')).is_some_and(|rest| {
            // As `free_name` makes them: a date and four digits.
            rest.len() == 15
                && rest.bytes().all(|byte| byte.is_ascii_digit() || b"-.".contains(&byte))
        });
        if is_one {
            found.push(folder.unwrap_or(Path::new("")).join(name));
        }
    }
    found.sort();
    if path.exists() {
        found.push(path.to_owned());
    }
    Ok(found)
}

/// `usage.2026-11-21.0001.jsonl` for `usage.jsonl`, with a number that is not taken.
fn free_name(path: &Path, day: u64) -> PathBuf {
    let (stem, extension) = parts(path);
    let date = calendar::date(day);
    let name = |number: u32| format!("{stem}.{date}.{number:04}{extension}");
    let free = (1..).map(|number| path.with_file_name(name(number))).find(|path| !path.exists());
    free.expect("there are more numbers than files")
}

/// What a file's name begins and ends with.
fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| {
        part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let extension = text(path.extension());
    let extension = if extension.is_empty() { extension } else { format!(".{extension}") };
    (text(path.file_stem()), extension)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

/// Others than its owner's group have no business in what tenants used.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)
}

/// Cuts off what follows the last whole line, and says how long the rest is. A line that lacks its
/// end only is given one.
fn heal(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(LINE_MAX);
    file.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    file.take(LINE_MAX).read_to_end(&mut end)?;
    if end.last().is_none_or(|last| *last == b'\n') {
        return Ok(length);
    }
    let whole = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if Line::read(&end[whole..]).is_some() {
        file.write_all(b"\n")?;
        return Ok(length + 1);
    }
    let kept = match whole {
        // Nothing of ours is that long: it is ended, not cut.
        0 if from > 0 => {
            file.write_all(b"\n")?;
            return Ok(length + 1);
        }
        whole => from + whole as u64,
    };
    warn!(bytes = length - kept, "the usage ledger ended within a line, which is cut off");
    file.set_len(kept)?;
    file.sync_all()?;
    Ok(kept)
}

/// The day of the first line; today's where there is none.
fn first_day(file: &mut File) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut start = Vec::new();
    file.take(LINE_MAX).read_to_end(&mut start)?;
    let first = start.split(|byte| *byte == b'\n').find_map(Line::read);
    let from = first.and_then(|line| calendar::parse_instant(&line.from).ok());
    Ok(calendar::day(from.unwrap_or_else(SystemTime::now)))
}
