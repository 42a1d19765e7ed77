//! Which ranges of an artefact's objects are on disk, durably.
//!
//! A range is recorded after its bytes are synced. A torn last line is ignored; the
//! range is fetched again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::layout::{sync_folder, write_durably};
use crate::Error;

/// Synced and recorded in lots of this size: a sync for each part costs throughput, and
/// a power cut costs at most this much.
const LOT: u64 = 64 << 20;
/// What is read back at once: what a core's cache holds.
const PIECE: usize = 256 << 10;

/// Ranges without overlap, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds a range, joining what touches.
    pub(super) fn insert(&mut self, mut new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        let first = self.0.partition_point(|range| range.end < new.start);
        let last = self.0.partition_point(|range| range.start <= new.end);
        if first < last {
            new.start = new.start.min(self.0[first].start);
            new.end = new.end.max(self.0[last - 1].end);
        }
        self.0.splice(first..last, [new]);
    }

    /// The sum of the lengths.
    pub(super) fn len(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// Where the gapless beginning ends.
    pub(super) fn contiguous(&self) -> u64 {
        self.0.first().filter(|range| range.start == 0).map_or(0, |range| range.end)
    }

    /// Whether all of a range is there.
    fn covers(&self, wanted: &Range<u64>) -> bool {
        let at = self.0.partition_point(|range| range.end <= wanted.start);
        let holds = |range: &Range<u64>| range.start <= wanted.start && wanted.end <= range.end;
        wanted.is_empty() || self.0.get(at).is_some_and(holds)
    }

    /// What is missing of `0..size`, in pieces of at most `part`.
    pub(super) fn missing(&self, size: u64, part: u64) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = 0;
        let end = size..size;
        for range in self.0.iter().chain([&end]) {
            while at < range.start.min(size) {
                let to = range.start.min(size).min(at.saturating_add(part));
                missing.push(at..to);
                at = to;
            }
            at = at.max(range.end);
        }
        missing
    }
}

/// The partial files of one artefact and the record of what they hold.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    log: File,
    /// Opened for each use: there may be more of them than descriptors.
    files: Vec<PathBuf>,
    state: Mutex<State>,
    grown: Condvar,
    /// The same for those who wait without a thread.
    told: Notify,
}

#[derive(Debug)]
struct State {
    /// What has been written, by file.
    written: Vec<Ranges>,
    pending: Vec<(usize, Range<u64>)>,
    pending_bytes: u64,
    closed: bool,
}

impl Journal {
    /// Opens the files, creating what is not there, and reads what is recorded.
    pub(super) fn open(path: PathBuf, files: Vec<(PathBuf, u64)>) -> Result<Self, Error> {
        let mut written = read(&path, &files)?;
        let mut lost = false;
        let mut folders = BTreeSet::new();
        for (index, (path, size)) in files.iter().enumerate() {
            let open = || {
                let file = File::options().write(true).create(true).truncate(false).open(path)?;
                let kept = file.metadata()?.len() == *size;
                if kept { Ok(true) } else { file.set_len(*size).map(|()| false) }
            };
            if !open().map_err(|error| Error::io("open", path, error))? {
                // Whatever is recorded of it went with the old file.
                lost |= written[index].len() > 0;
                written[index] = Ranges::default();
                folders.extend(path.parent().map(Path::to_owned));
            }
        }
        // The names must be durable before the first record of their contents.
        folders.iter().try_for_each(|folder| sync_folder(folder))?;
        if lost {
            write_durably(&path, records(&written).as_bytes())?;
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|error| Error::io("open", &path, error))?;
        let state = State { written, pending: Vec::new(), pending_bytes: 0, closed: false };
        let files = files.into_iter().map(|(path, _)| path).collect();
        Ok(Self {
            path,
            log,
            files,
            state: Mutex::new(state),
            grown: Condvar::new(),
            told: Notify::new(),
        })
    }

    /// What one file holds.
    pub(super) fn written(&self, index: usize) -> Ranges {
        self.lock().written[index].clone()
    }

    /// Writes bytes at their place, chunk behind chunk. Recorded when a lot is full, or by `flush`.
    pub(super) fn write(
        &self,
        index: usize,
        start: u64,
        chunks: &[impl AsRef<[u8]>],
    ) -> Result<(), Error> {
        let path = &self.files[index];
        let mut end = start;
        let mut write = || {
            let file = File::options().write(true).open(path)?;
            for chunk in chunks {
                file.write_all_at(chunk.as_ref(), end)?;
                end += chunk.as_ref().len() as u64;
            }
            Ok(())
        };
        write().map_err(|error| Error::io("write", path, error))?;
        let mut state = self.lock();
        state.written[index].insert(start..end);
        // Parts that arrive side by side grow each by itself.
        let grows = |(of, range): &&mut (usize, Range<u64>)| *of == index && range.end == start;
        match state.pending.iter_mut().find(grows) {
            Some((_, range)) => range.end = end,
            None => state.pending.push((index, start..end)),
        }
        state.pending_bytes += end - start;
        let full = state.pending_bytes >= LOT;
        drop(state);
        self.grown.notify_all();
        self.told.notify_waiters();
        if full { self.flush() } else { Ok(()) }
    }

    /// Syncs what was written and records it.
    pub(super) fn flush(&self) -> Result<(), Error> {
        let pending = {
            let mut state = self.lock();
            state.pending_bytes = 0;
            std::mem::take(&mut state.pending)
        };
        let mut indexes: Vec<_> = pending.iter().map(|(index, _)| *index).collect();
        indexes.sort_unstable();
        indexes.dedup();
        for index in indexes {
            let path = &self.files[index];
            File::open(path)
                .and_then(|file| file.sync_data())
                .map_err(|error| Error::io("sync", path, error))?;
        }
        let lines: String = pending
            .iter()
            .map(|(index, range)| format!("{index} {} {}\n", range.start, range.end))
            .collect();
        (&self.log)
            .write_all(lines.as_bytes())
            .map_err(|error| Error::io("write", &self.path, error))
    }

    /// Reads what was written without a gap behind `at`, waiting until there is some.
    /// `None` when the fetch ended without it; zero at the end of the file.
    pub(super) fn read_behind(
        &self,
        index: usize,
        at: u64,
        size: u64,
        buffer: &mut [u8],
    ) -> Option<std::io::Result<usize>> {
        if at >= size {
            return Some(Ok(0));
        }
        let mut state = self.lock();
        let ready = loop {
            let contiguous = state.written[index].contiguous();
            if contiguous > at {
                break contiguous;
            }
            if state.closed {
                return None;
            }
            state = self.grown.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        let length = usize::try_from(ready - at).unwrap_or(usize::MAX).min(buffer.len());
        Some(
            File::open(&self.files[index]).and_then(|file| file.read_at(&mut buffer[..length], at)),
        )
    }

    /// Ends the wait of readers: nothing more will be written.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.grown.notify_all();
        self.told.notify_waiters();
    }

    /// Waits until a range is written. False when the fetch ended without it. Blocks.
    pub(super) fn wait_for(&self, index: usize, range: Range<u64>) -> bool {
        let mut state = self.lock();
        loop {
            if state.written[index].covers(&range) {
                return true;
            }
            if state.closed {
                return false;
            }
            state = self.grown.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until so many of a file's first bytes are written without a gap, and says how far
    /// they go; `None` when the fetch ended without them.
    pub(super) async fn ready_to(&self, index: usize, least: u64) -> Option<u64> {
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            {
                let state = self.lock();
                let contiguous = state.written[index].contiguous();
                if contiguous >= least {
                    return Some(contiguous);
                }
                if state.closed {
                    return None;
                }
            }
            told.await;
        }
    }

    /// Hands a range of what was written to `look`, piece by piece. Blocks.
    pub(super) fn read_range(
        &self,
        index: usize,
        range: Range<u64>,
        look: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Error> {
        let path = &self.files[index];
        let fault = |error| Error::io("read", path, error);
        let file = File::open(path).map_err(fault)?;
        let mut buffer =
            vec![0; PIECE.min(usize::try_from(range.end - range.start).unwrap_or(PIECE))];
        let mut at = range.start;
        while at < range.end {
            let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let piece = &mut buffer[..PIECE.min(left)];
            file.read_exact_at(piece, at).map_err(fault)?;
            look(piece);
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The record of everything that is written.
fn records(written: &[Ranges]) -> String {
    let of_file = |(index, ranges): (usize, &Ranges)| {
        ranges.0.iter().map(|r| format!("{index} {} {}\n", r.start, r.end)).collect::<String>()
    };
    written.iter().enumerate().map(of_file).collect()
}

fn read(path: &Path, files: &[(PathBuf, u64)]) -> Result<Vec<Ranges>, Error> {
    let mut written = vec![Ranges::default(); files.len()];
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    for line in text.split_inclusive('\n') {
        let Some(line) = line.strip_suffix('\n') else {
            break;
        };
        let mut numbers = line.split(' ').map(str::parse::<u64>);
        let (Some(Ok(index)), Some(Ok(start)), Some(Ok(end))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            continue;
        };
        let Ok(index) = usize::try_from(index) else {
            continue;
        };
        if let Some((_, size)) = files.get(index)
            && start < end
            && end <= *size
        {
            written[index].insert(start..end);
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        // The next record must not be glued to the torn one.
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let cut = || File::options().write(true).open(path)?.set_len(whole as u64);
        cut().map_err(|error| Error::io("cut", path, error))?;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn written_and_missing_ranges_cover_a_file_once(
            inserts in prop::collection::vec((0_u64..100, 0_u64..30), 0..20),
            part in 1_u64..40,
        ) {
            let size = 100;
            let mut ranges = Ranges::default();
            let mut bytes = vec![0_u32; 100];
            for (start, length) in inserts {
                let end = (start + length).min(size);
                ranges.insert(start..end);
                for at in start..end { bytes[usize::try_from(at).unwrap()] = 1; }
            }
            prop_assert_eq!(ranges.len(), u64::from(bytes.iter().sum::<u32>()));
            let gap = bytes.iter().position(|b| *b == 0).unwrap_or(100);
            prop_assert_eq!(ranges.contiguous(), gap as u64);
            for (from, to) in [(0, gap), (gap, gap), (3, 20), (50, 51), (0, 100)] {
                let is_there = bytes[from..to].iter().all(|count| *count == 1);
                prop_assert_eq!(ranges.covers(&(from as u64..to as u64)), is_there);
            }
            for range in ranges.missing(size, part) {
                prop_assert!(!range.is_empty() && range.end - range.start <= part);
                for at in range { bytes[usize::try_from(at).unwrap()] += 1; }
            }
            prop_assert!(bytes.iter().all(|count| *count == 1));
        }
    }

    #[test]
    fn a_torn_record_is_ignored_and_does_not_spoil_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let files = || vec![(folder.path().join("a"), 100)];
        fs::write(folder.path().join("a"), [0; 100]).unwrap();
        fs::write(&path, "0 0 10\n0 10 2").unwrap();
        let journal = Journal::open(path.clone(), files()).unwrap();
        assert_eq!(journal.written(0).contiguous(), 10);
        journal.write(0, 10, &[[1; 2], [1; 2]]).unwrap();
        journal.flush().unwrap();
        drop(journal);
        assert_eq!(Journal::open(path, files()).unwrap().written(0).contiguous(), 14);
    }

    #[test]
    fn a_record_without_its_file_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        fs::write(&path, "0 0 10\n7 0 10\n0 90 101\nx\n").unwrap();
        let journal = Journal::open(path, vec![(folder.path().join("a"), 100)]).unwrap();
        assert_eq!(journal.written(0), Ranges::default());
    }
}
