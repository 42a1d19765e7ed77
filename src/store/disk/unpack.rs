//! Archives, read as what a stranger wrote.
//!
//! Refused: absolute names, `..`, links of any kind, devices and pipes, names given
//! twice, more entries or bytes than the limits, headers that do not end, archives
//! without an end mark. Modes and owners are not taken over.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::rc::Rc;

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entry, EntryType};

use super::digest::FileDigester;
use super::layout::{charge, create_folder, remove_tree};
use super::manifest::DiskFile;
use crate::artefact::check_path;
use crate::{ArchiveKind, Error};

/// The most entries an archive may have.
const ENTRIES_MAX: u32 = 100_000;
/// What may lie between two files' contents: headers and long names.
const BETWEEN_MAX: u64 = 1 << 20;
/// What may follow the end mark: `tar` pads to its record size.
const PADDING_MAX: u64 = 64 << 20;
/// 128 MiB: what `zstd --ultra -22` needs. More would let an archive choose our memory.
const ZSTD_WINDOW_LOG: u32 = 27;
const CHUNK: usize = 256 << 10;
/// A folder of handlers is one that a model may consist of, not a wrapper around it.
const NOT_A_WRAPPER: &str = "code";

/// Why an archive was not unpacked.
#[derive(Debug)]
pub(super) enum Fault {
    /// The archive is to blame.
    Archive(String),
    /// We or the disk are.
    Ours(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

/// Unpacks into a folder that is made for it. `room` is asked before each entry is
/// written, with what it will take on disk. A single folder around everything is
/// taken away. Blocks.
pub(super) fn unpack(
    source: impl Read,
    kind: ArchiveKind,
    folder: &Path,
    bytes_max: u64,
    room: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<Vec<DiskFile>, Fault> {
    create_folder(folder)?;
    let mut files = Vec::new();
    let mut left = bytes_max;
    each(source, kind, &mut |entry, path, size| {
        if size > left {
            return Err(Fault::Archive(format!(
                "it unpacks to more than {bytes_max} bytes: '{path}' has {size} more"
            )));
        }
        left -= size;
        room(charge(size))?;
        if entry.header().entry_type().is_dir() {
            return create_folder_of(folder, path);
        }
        files.push(write(entry, folder, path, size)?);
        Ok(())
    })?;
    if files.is_empty() {
        return Err(Fault::Archive("it holds no files".into()));
    }
    unwrap_folder(folder, &mut files)?;
    files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Hands each file's path, size and contents to `look` and writes nothing. `look` says whether
/// the path is a new one. Blocks.
pub(super) fn visit(
    source: impl Read,
    kind: ArchiveKind,
    look: &mut dyn FnMut(&str, u64, &mut dyn Read) -> io::Result<bool>,
) -> Result<(), Fault> {
    let mut count = 0_u32;
    each(source, kind, &mut |entry, path, size| {
        if entry.header().entry_type().is_dir() {
            return Ok(());
        }
        count += 1;
        let is_new = look(path, size, entry).map_err(archive)?;
        // What was not looked at is passed over here, where its size is allowed for.
        io::copy(entry, &mut io::sink()).map_err(archive)?;
        match is_new {
            true => Ok(()),
            false => Err(Fault::Archive(format!("'{path}' is in it twice"))),
        }
    })?;
    if count == 0 { Err(Fault::Archive("it holds no files".into())) } else { Ok(()) }
}

type Decompressed<'a> = Meter<Box<dyn Read + 'a>>;
type Look<'l, 'a> =
    dyn FnMut(&mut Entry<'_, Decompressed<'a>>, &str, u64) -> Result<(), Fault> + 'l;

/// Reads an archive to its end, and hands over what it holds, one after the other.
fn each<'a>(
    source: impl Read + 'a,
    kind: ArchiveKind,
    look: &mut Look<'_, 'a>,
) -> Result<(), Fault> {
    let gauge = Rc::new(Gauge::default());
    let unpacked: Box<dyn Read + 'a> = match kind {
        ArchiveKind::Tar => Box::new(source),
        ArchiveKind::TarGz => Box::new(MultiGzDecoder::new(source)),
        ArchiveKind::TarZst => {
            let mut decoder = zstd::stream::read::Decoder::new(source).map_err(archive)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(archive)?;
            Box::new(decoder)
        }
    };
    let mut tar = Archive::new(Meter { inner: unpacked, gauge: Rc::clone(&gauge) });
    entries(&mut tar, &gauge, look)?;
    if gauge.ended.get() {
        return Err(Fault::Archive("it ends without an end mark: it is truncated".into()));
    }
    // To the end, so that the compression's own check is made.
    gauge.allowed.set(PADDING_MAX);
    io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(archive)?;
    Ok(())
}

fn entries<'a>(
    tar: &mut Archive<Decompressed<'a>>,
    gauge: &Gauge,
    look: &mut Look<'_, 'a>,
) -> Result<(), Fault> {
    let mut entries = tar.entries().map_err(archive)?;
    let mut count = 0_u32;
    loop {
        gauge.allowed.set(BETWEEN_MAX);
        let Some(entry) = entries.next() else {
            return Ok(());
        };
        let mut entry = entry.map_err(archive)?;
        count += 1;
        if count > ENTRIES_MAX {
            return Err(Fault::Archive(format!("it has more than {ENTRIES_MAX} entries")));
        }
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            continue;
        }
        let path = path(&entry)?;
        refuse(kind, &path)?;
        if path.is_empty() {
            continue;
        }
        let size = if kind.is_dir() { 0 } else { entry.size() };
        if !kind.is_dir() {
            gauge.allowed.set(size.saturating_add(BETWEEN_MAX));
        }
        look(&mut entry, &path, size)?;
    }
}

/// The entry's name without `.` segments; empty for the archive's own folder.
fn path<R: Read>(entry: &Entry<'_, R>) -> Result<String, Fault> {
    let bytes = entry.path_bytes();
    let fault = |why: &str| {
        let shown: String = String::from_utf8_lossy(&bytes).chars().take(200).collect();
        Fault::Archive(format!("the name '{}' {why}", shown.escape_debug()))
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| fault("is not UTF-8"))?;
    if text.starts_with('/') {
        return Err(fault("is absolute"));
    }
    let text = text.strip_suffix('/').unwrap_or(text);
    let path = text.split('/').filter(|segment| *segment != ".").collect::<Vec<_>>().join("/");
    if !path.is_empty() {
        check_path(&path).map_err(fault)?;
    }
    Ok(path)
}

/// Lets files and folders pass.
fn refuse(kind: EntryType, path: &str) -> Result<(), Fault> {
    let what = match kind {
        EntryType::Regular
        | EntryType::Continuous
        | EntryType::GNUSparse
        | EntryType::Directory => return Ok(()),
        EntryType::Symlink => "a symbolic link",
        EntryType::Link => "a hard link",
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Fifo => "a pipe",
        _ => "of an unknown type",
    };
    Err(Fault::Archive(format!("'{path}' is {what}; only files and folders are unpacked")))
}

fn write<R: Read>(
    entry: &mut Entry<'_, R>,
    folder: &Path,
    path: &str,
    size: u64,
) -> Result<DiskFile, Fault> {
    if let Some((parent, _)) = path.rsplit_once('/') {
        create_folder_of(folder, parent)?;
    }
    let target = folder.join(path);
    let mut file = match File::options().write(true).create_new(true).open(&target) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Fault::Archive(format!("'{path}' is in it twice")));
        }
        file => file.map_err(|error| Error::io("create", &target, error))?,
    };
    let mut digester = FileDigester::new(path, size, None);
    let mut length = 0;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = entry.read(&mut buffer).map_err(archive)?;
        if count == 0 {
            break;
        }
        digester.update(&buffer[..count]);
        length += count as u64;
        file.write_all(&buffer[..count]).map_err(|error| Error::io("write", &target, error))?;
    }
    if length != size {
        return Err(Fault::Archive(format!(
            "it is truncated in '{path}': {length} of {size} bytes"
        )));
    }
    file.sync_data().map_err(|error| Error::io("sync", &target, error))?;
    digester.finish().map_err(Fault::Archive)
}

fn create_folder_of(folder: &Path, path: &str) -> Result<(), Fault> {
    let target = folder.join(path);
    match fs::create_dir_all(&target) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory
            ) =>
        {
            Err(Fault::Archive(format!("'{path}' is both a file and a folder")))
        }
        outcome => Ok(outcome.map_err(|error| Error::io("create", &target, error))?),
    }
}

/// The folder around everything, with its `/`, where there is one.
pub(super) fn wrapper<'p>(mut paths: impl Iterator<Item = &'p str> + Clone) -> Option<&'p str> {
    let all = paths.clone();
    let first = paths.next()?;
    let top = first.get(..=first.find('/')?)?;
    let wrapped = all.into_iter().all(|path| path.starts_with(top));
    (wrapped && top.trim_end_matches('/') != NOT_A_WRAPPER).then_some(top)
}

/// Archives are often made of a folder instead of its contents.
fn unwrap_folder(folder: &Path, files: &mut [DiskFile]) -> Result<(), Error> {
    let Some(top) = wrapper(files.iter().map(|file| file.path.as_str())) else {
        return Ok(());
    };
    let top = top.to_owned();
    let aside = folder.with_added_extension("unwrapped");
    let fault = |error| Error::io("rename", folder, error);
    remove_tree(&aside)?;
    fs::rename(folder.join(&top), &aside).map_err(fault)?;
    remove_tree(folder)?;
    fs::rename(&aside, folder).map_err(fault)?;
    for file in files {
        file.path.drain(..top.len());
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn archive(error: io::Error) -> Fault {
    Fault::Archive(error.to_string())
}

/// How much the archive reader may take before we look again.
#[derive(Default)]
struct Gauge {
    allowed: Cell<u64>,
    ended: Cell<bool>,
}

/// Stops a reader that swallows endless headers or padding.
struct Meter<R> {
    inner: R,
    gauge: Rc<Gauge>,
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = usize::try_from(self.gauge.allowed.get()).unwrap_or(usize::MAX);
        if allowed == 0 {
            return Err(io::Error::other("a header or the padding does not end"));
        }
        let length = buffer.len().min(allowed);
        let count = self.inner.read(&mut buffer[..length])?;
        self.gauge.allowed.set(self.gauge.allowed.get() - count as u64);
        if count == 0 && length > 0 {
            self.gauge.ended.set(true);
        }
        Ok(count)
    }
}
