//! From the store to disk: ranges, verification, unpacking, and the final rename.

use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{Mutex, Semaphore};

use super::arrival::Arrival;
use super::digest::FileDigester;
use super::flight::Flight;
use super::held::Held;
use super::journal::Journal;
use super::layout::{
    ARCHIVE, FILES, JOURNAL, charge, create_folder, entries, remove_tree, sync_folder,
};
use super::ledger::Ledger;
use super::manifest::{DiskFile, Manifest, charge_all};
use super::pace::Paces;
use super::recipe::holds;
use super::unpack::{Fault, unpack};
use super::verify::digest;
use super::{CacheConfig, Payer};
use crate::catalog::Source;
use crate::file::blocking;
use crate::metrics::Purpose;
use crate::progress::{Counters, Stage};
use crate::{ArchiveKind, Artefact, Checksum, Error, Origin, RemoteFile};

/// Files that are read for their digests, or asked for their checksums, at once.
const VERIFIES: usize = 4;
/// The unit of the semaphore of bytes in flight, whose counts are 32 bits wide.
const PERMIT: u64 = 1024;
/// An archive may always unpack to this much, and else to so many times its size.
const UNPACKED_MIN: u64 = 1 << 30;
const UNPACKED_FACTOR: u64 = 20;

/// Bytes that are written at once: few enough to be in a core's cache still, where they were put
/// when they were received; enough for what waking a thread costs.
const LOT: u64 = 1 << 20;
/// Bytes that are digested at once, where so many are still to come.
const DIGESTED: u64 = 4 << 20;

/// Bytes that follow each other, as they arrived.
#[derive(Default)]
struct Lot {
    chunks: Vec<Bytes>,
    bytes: u64,
}

impl Lot {
    fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len() as u64;
        self.chunks.push(chunk);
    }
}

/// What a fetch works with.
pub(super) struct Fetch {
    pub(super) ledger: Arc<Ledger>,
    pub(super) config: CacheConfig,
    pub(super) in_flight: Arc<Semaphore>,
    pub(super) paces: Arc<Paces>,
    pub(super) payer: Payer,
    pub(super) source: Source,
    pub(super) artefact: Artefact,
    pub(super) counters: Arc<Counters>,
    /// For those who read behind it.
    pub(super) arrival: Arc<Arrival>,
    /// One fetch of a version works on its folder at a time.
    pub(super) turn: Arc<Mutex<()>>,
}

impl Fetch {
    /// Runs to the end. If dropped, what was fetched stays for the next time.
    pub(super) async fn run(self) -> Result<Arc<Held>, Error> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let id = self.artefact.id.clone();
        if let Some((held, _)) = self.ledger.get(&id) {
            return Ok(held);
        }
        let flight = Arc::new(Flight::new(Arc::clone(&self.ledger), id, turn));
        let outcome = self.fly(&flight).await;
        match &outcome {
            Ok(_) => {
                for file in &self.artefact.files {
                    self.source.heads.release(file).await;
                }
            }
            // Nothing of it can be used again.
            Err(
                Error::Changed { .. }
                | Error::Archive { .. }
                | Error::Corrupt { .. }
                | Error::Invalid { .. }
                | Error::TooLarge { .. }
                | Error::AboveDiskCeiling { .. }
                | Error::ObjectNotFound { .. },
            ) => {
                flight.discard();
                for file in &self.artefact.files {
                    self.source.heads.forget(file).await;
                }
            }
            Err(Error::DiskFull { .. }) => {
                let needed = charge(self.artefact.bytes.0);
                blocking(move || {
                    flight.ledger.relieve(&flight.id, needed);
                    Ok(())
                })
                .await?;
            }
            _ => {}
        }
        outcome
    }

    async fn fly(&self, flight: &Arc<Flight>) -> Result<Arc<Held>, Error> {
        let (prepared, artefact) = (Arc::clone(flight), self.artefact.clone());
        let from = self.source.origin.clone();
        let had = blocking(move || prepare(&prepared, &artefact, &from)).await?;
        self.counters.add(had);
        self.arrival.open(Arc::clone(flight.journal()?), flight.folder.join(FILES));
        self.counters.enter(Stage::Fetching);
        let files = match self.artefact.archive {
            Some(kind) => self.fetch_archive(flight, kind).await?,
            None => self.fetch_files(flight).await?,
        };
        let (flight, artefact) = (Arc::clone(flight), self.artefact.clone());
        let from = self.source.origin.clone();
        let held = blocking(move || land(&flight, &artefact, &from, files)).await?;
        self.counters.enter(Stage::Done);
        Ok(held)
    }

    /// Computes the digests behind the bytes that arrive, while they are in memory.
    async fn fetch_files(&self, flight: &Arc<Flight>) -> Result<Vec<DiskFile>, Error> {
        let digests: Vec<_> =
            self.order().into_iter().map(|index| self.digest_behind(flight, index)).collect();
        let digests = stream::iter(digests).buffered(VERIFIES).try_collect::<Vec<_>>();
        let arrive = async {
            // Who reads behind waits for bytes: whatever ends this must end that wait.
            let _end = CloseOnDrop(flight);
            self.ranges(flight).await?;
            self.counters.enter(Stage::Verifying);
            Ok(())
        };
        let (mut files, ()) = futures_util::try_join!(digests, arrive)?;
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// One file's digests, each byte read once and in order.
    async fn digest_behind(&self, flight: &Arc<Flight>, index: usize) -> Result<DiskFile, Error> {
        let file = &self.artefact.files[index];
        let expected = self.checksum(file).await?;
        let mut digester = FileDigester::new(&file.path, file.size, expected);
        let mut at = 0;
        while at < file.size {
            let least = file.size.min(at + DIGESTED);
            let ready = flight.journal()?.ready_to(index, least).await;
            let ready = ready.ok_or_else(|| Error::Internal("the file's fetch ended".into()))?;
            let (behind, range) = (Arc::clone(flight), at..ready);
            digester = blocking(move || {
                let journal = behind.journal()?;
                journal.read_range(index, range, &mut |bytes| digester.update(bytes))?;
                Ok(digester)
            })
            .await?;
            at = ready;
        }
        let outcome = blocking(move || Ok(digester.finish())).await?;
        outcome.map_err(|what| self.corrupt(&file.path, what))
    }

    /// The files in the order in which they are fetched: small ones first, because a load that
    /// reads behind needs them before it can do anything with the others.
    fn order(&self) -> Vec<usize> {
        let files = &self.artefact.files;
        let mut order: Vec<usize> = (0..files.len()).collect();
        order.sort_by_key(|index| (files[*index].size > self.config.part.0, *index));
        order
    }

    /// Unpacks behind the bytes that arrive.
    async fn fetch_archive(
        &self,
        flight: &Arc<Flight>,
        kind: ArchiveKind,
    ) -> Result<Vec<DiskFile>, Error> {
        let file = self.artefact.files.first();
        let file = file.ok_or_else(|| Error::Internal("an archive without a file".into()))?;
        let limit = self.config.unpacked.map_or_else(
            || UNPACKED_MIN.max(file.size.saturating_mul(UNPACKED_FACTOR)),
            |limit| limit.0,
        );
        let size = file.size;
        let (unpacker, model) = (Arc::clone(flight), self.artefact.id.model.to_string());
        let unpacked = blocking(move || {
            unpack_behind(&unpacker, kind, size, limit).map_err(|fault| match fault {
                Fault::Ours(error) => error,
                Fault::Archive(why) => Error::Archive { model, why },
            })
        });
        let arrive = async {
            // The unpacker waits for bytes: whatever ends this must end that wait.
            let _end = CloseOnDrop(flight);
            self.ranges(flight).await
        };
        let ((files, hasher), (), checksums) =
            futures_util::try_join!(unpacked, arrive, self.checksums())?;
        self.counters.enter(Stage::Verifying);
        let expected = checksums.into_iter().next().flatten();
        if expected.is_some() {
            let path = flight.folder.join(ARCHIVE);
            let digester = FileDigester::new(&file.path, size, expected);
            let outcome = blocking(move || digest(&path, digester)).await?;
            outcome.map_err(|what| self.corrupt(&file.path, what))?;
        }
        debug_assert_eq!(hasher, size, "the unpacker reads to the end");
        Ok(files)
    }

    /// Fetches what is missing of every file, in order, so that it can be read behind.
    async fn ranges(&self, flight: &Arc<Flight>) -> Result<(), Error> {
        let part = self.config.part.0.clamp(PERMIT, self.config.in_flight.0.max(PERMIT));
        let part = self.paces.part(&self.payer.tenant, part);
        let journal = flight.journal()?;
        let mut missing = Vec::new();
        for index in self.order() {
            let ranges = journal.written(index).missing(self.artefact.files[index].size, part);
            missing.extend(ranges.into_iter().map(|range| Ok((index, range))));
        }
        stream::iter(missing)
            .try_for_each_concurrent(self.config.concurrency.max(1), |(index, range)| {
                self.range(flight, index, range)
            })
            .await?;
        let flight = Arc::clone(flight);
        blocking(move || flight.journal()?.flush()).await
    }

    async fn range(
        &self,
        flight: &Arc<Flight>,
        index: usize,
        range: Range<u64>,
    ) -> Result<(), Error> {
        let file = &self.artefact.files[index];
        let length = range.end - range.start;
        let permits = u32::try_from(length.div_ceil(PERMIT)).unwrap_or(u32::MAX);
        // Before room in memory and a connection are taken, which others want.
        self.paces.take(&self.payer.tenant, length).await;
        let permit = Arc::clone(&self.in_flight)
            .acquire_many_owned(permits)
            .await
            .map_err(|_| Error::Internal("the bytes in flight have no bound any more".into()))?;
        if let Some(whole) = self.source.heads.whole(file).await {
            let at = |position: u64| usize::try_from(position).expect("inside what is in memory");
            let bytes = whole.slice(at(range.start)..at(range.end));
            self.put(flight, (index, range.start), Lot { bytes: length, chunks: vec![bytes] })
                .await?;
            return Ok(());
        }
        let mut chunks =
            self.source.remote.chunks(&file.key, &file.etag, range.clone(), Purpose::Fetch);
        let (mut at, mut lot) = (range.start, Lot::default());
        while let Some(chunk) = chunks.next().await? {
            lot.push(chunk);
            if lot.bytes >= LOT || at + lot.bytes == range.end {
                at += self.put(flight, (index, at), std::mem::take(&mut lot)).await?;
            }
        }
        drop(permit);
        Ok(())
    }

    /// Writes bytes to their file and place; says how many they were.
    async fn put(
        &self,
        flight: &Arc<Flight>,
        (index, at): (usize, u64),
        lot: Lot,
    ) -> Result<u64, Error> {
        let (flight, length) = (Arc::clone(flight), lot.bytes);
        blocking(move || flight.journal()?.write(index, at, &lot.chunks)).await?;
        self.counters.add(length);
        if let Some(meter) = &self.payer.meter {
            meter(roundhouse_types::Bytes(length));
        }
        Ok(length)
    }

    /// The store's checksum of each file; also that each is still the one that was listed.
    async fn checksums(&self) -> Result<Vec<Option<Checksum>>, Error> {
        let heads = self.artefact.files.iter().map(|file| self.checksum(file));
        let heads: Vec<_> = heads.collect();
        stream::iter(heads).buffered(VERIFIES).try_collect().await
    }

    async fn checksum(&self, file: &RemoteFile) -> Result<Option<Checksum>, Error> {
        self.source.heads.checksum(&self.source.remote, file).await
    }

    fn corrupt(&self, path: &str, what: String) -> Error {
        Error::Corrupt { model: self.artefact.id.model.to_string(), path: path.into(), what }
    }
}

/// Makes the folder ready to be written to; says how many bytes are there already.
fn prepare(flight: &Flight, artefact: &Artefact, from: &Origin) -> Result<u64, Error> {
    let folder = &flight.folder;
    let same = Manifest::read(folder).is_some_and(|found| found.artefact == *artefact);
    if !same {
        flight.ledger.purge_partial(&artefact.id)?;
        flight.ledger.layout.remove(folder)?;
    } else if artefact.archive.is_some() {
        // Unpacking begins again; the packed bytes stay.
        remove_tree(&folder.join(FILES))?;
    }
    flight.grow(charge_all(artefact.files.iter().map(|file| file.size)))?;
    create_folder(folder)?;
    if !same {
        Manifest::new(artefact, from, Vec::new()).write(folder)?;
        sync_folder(&flight.ledger.layout.partials())?;
    }
    let mut paths: Vec<(PathBuf, u64)> = Vec::with_capacity(artefact.files.len());
    for file in &artefact.files {
        let path = match artefact.archive {
            Some(_) => folder.join(ARCHIVE),
            None => folder.join(FILES).join(&file.path),
        };
        if let Some(parent) = path.parent() {
            create_folder(parent)?;
        }
        paths.push((path, file.size));
    }
    let count = paths.len();
    let journal = Journal::open(folder.join(JOURNAL), paths)?;
    let had = (0..count).map(|index| journal.written(index).len()).sum();
    flight
        .journal
        .set(Arc::new(journal))
        .map_err(|_| Error::Internal("a fetch was prepared twice".into()))?;
    Ok(had)
}

/// Makes an artefact of a folder whose files are all there and verified.
pub(super) fn land(
    flight: &Flight,
    artefact: &Artefact,
    from: &Origin,
    files: Vec<DiskFile>,
) -> Result<Arc<Held>, Error> {
    let (folder, ledger) = (&flight.folder, &flight.ledger);
    for name in [ARCHIVE, JOURNAL] {
        match std::fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &folder.join(name), error));
            }
            _ => {}
        }
    }
    sync_folders(&folder.join(FILES))?;
    let manifest = Manifest::new(artefact, from, files);
    let more = manifest.charge().saturating_sub(flight.promised());
    if more > 0 {
        // What the files consist of was not known when room was promised.
        flight.grow(more)?;
    }
    manifest.write(folder)?;
    // Before the rename: from there on nothing may fail until the ledger has taken the room over.
    let holds = holds(folder, &manifest, None)?;
    let target = ledger.layout.new_artefact(&artefact.id)?;
    std::fs::rename(folder, &target).map_err(|error| Error::io("rename", folder, error))?;
    flight.landed();
    let (now, promised) = (SystemTime::now(), flight.promised());
    let held = ledger.admit((manifest, None), target.clone(), holds, now, promised);
    target.parent().map_or(Ok(()), sync_folder)?;
    Ok(held)
}

/// Makes the names in a folder and below it durable.
fn sync_folders(folder: &Path) -> Result<(), Error> {
    for path in entries(folder)? {
        if path.is_dir() {
            sync_folders(&path)?;
        }
    }
    sync_folder(folder)
}

/// Unpacks an archive as it arrives; also says how many bytes of it were read.
fn unpack_behind(
    flight: &Flight,
    kind: ArchiveKind,
    size: u64,
    limit: u64,
) -> Result<(Vec<DiskFile>, u64), Fault> {
    let mut source = Arriving { journal: flight.journal()?, at: 0, size, broken_off: false };
    let folder = flight.folder.join(FILES);
    let mut room = |bytes| flight.grow(bytes);
    let outcome = unpack(&mut source, kind, &folder, limit, &mut room);
    let outcome = outcome.and_then(|files| {
        // What follows the compressed data belongs to the object too.
        io::copy(&mut source, &mut io::sink())
            .map_err(|error| Fault::Archive(error.to_string()))?;
        Ok(files)
    });
    match outcome {
        Ok(files) => Ok((files, source.at)),
        Err(fault) => {
            if let Err(error) = remove_tree(&folder) {
                tracing::warn!(error = %error, "an unfinished unpacking could not be removed");
            }
            if source.broken_off {
                // The fetch itself says why it ended.
                return Err(Fault::Ours(Error::Internal("the archive's fetch ended".into())));
            }
            Err(fault)
        }
    }
}

/// The archive's bytes in order, as they come.
struct Arriving<'a> {
    journal: &'a Journal,
    at: u64,
    size: u64,
    broken_off: bool,
}

impl Read for Arriving<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(read) = self.journal.read_behind(0, self.at, self.size, buffer) else {
            self.broken_off = true;
            return Err(io::Error::other("the fetch ended"));
        };
        let count = read?;
        self.at += count as u64;
        Ok(count)
    }
}

struct CloseOnDrop<'a>(&'a Flight);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        if let Ok(journal) = self.0.journal() {
            journal.close();
        }
    }
}
