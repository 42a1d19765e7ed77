//! The queue on disk: a file for each request, and one beside it when it is decided how it ends.
//!
//! A file appears under its name when all of it is on disk, so a process that dies at any instant
//! leaves whole files behind, and temporary ones that the next start removes. `N-ID.request` is
//! there from before its caller is told until its object is in the store; `N-ID.outcome` from before
//! the first byte goes to the store. The request is removed first: an outcome without one is done.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use roundhouse_types::{EndpointName, TenantName};
use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};
use uuid::Uuid;

use crate::error::Error;

/// Held while a process works on the folder.
const LOCK: &str = "lock";
const REQUEST: &str = "request";
const OUTCOME: &str = "outcome";
/// What was damaged, out of the way and left for a person.
const DAMAGED: &str = "damaged";
const TEMPORARY: &str = ".writing-";
/// Before the head: its length and the checksum of all that follows it.
const PREAMBLE: usize = 8;

/// A request as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    #[serde(with = "as_text")]
    pub(crate) id: Uuid,
    pub(crate) endpoint: EndpointName,
    pub(crate) tenant: Option<TenantName>,
    pub(crate) credential: Option<Arc<str>>,
    pub(crate) inference_id: String,
    /// In milliseconds since 1970.
    pub(crate) accepted_at: u64,
    pub(crate) ttl_seconds: u64,
    pub(crate) timeout_seconds: u64,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) content_type: Option<String>,
    /// Where the input is; absent where it is kept along.
    pub(crate) input: Option<String>,
    /// The URI of the answer.
    pub(crate) output: String,
    /// The URI of the failure.
    pub(crate) failure: String,
    /// The region of the store that answers go to, where it is known.
    pub(crate) region: Option<String>,
}

/// How a request ends; its object's bytes are kept along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Decided {
    /// Why it failed, for those who are told; absent where it was answered.
    pub(crate) failure: Option<String>,
    /// Whether it waited too long for its turn.
    pub(crate) expired: bool,
    pub(crate) content_type: Option<String>,
    /// In milliseconds since 1970.
    pub(crate) at: u64,
}

/// What is kept in memory of a request in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// The order of acceptance.
    pub(crate) number: u64,
    pub(crate) id: Uuid,
    pub(crate) endpoint: EndpointName,
    pub(crate) tenant: Option<TenantName>,
    /// In milliseconds since 1970.
    pub(crate) accepted_at: u64,
    /// The same: when it will have waited too long.
    pub(crate) expires_at: u64,
    /// What it takes on disk, its outcome included.
    pub(crate) bytes: u64,
    /// Whether it is decided how it ends.
    pub(crate) is_decided: bool,
    /// How often it could not be done.
    pub(crate) tries: u32,
}

/// The folder. All functions block.
pub(crate) struct Spool {
    folder: PathBuf,
    next: AtomicU64,
    _lock: File,
}

impl Spool {
    /// Opens a folder, which is made where it is missing, with the requests that are in it, in the
    /// order in which they were accepted.
    ///
    /// # Errors
    /// `Locked` where another process works on it; `Io`.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Vec<Ticket>), Error> {
        fs::create_dir_all(folder).map_err(|error| Error::io("make", folder, error))?;
        let at = folder.join(LOCK);
        let lock = File::options().create(true).append(true).open(&at);
        let lock = lock.map_err(|error| Error::io("open", &at, error))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| Error::Locked(folder.to_owned()))?;
        let spool = Self { folder: folder.to_owned(), next: AtomicU64::new(0), _lock: lock };
        let tickets = spool.recover()?;
        let last = tickets.last().map_or(0, |ticket| ticket.number);
        spool.next.store(last + 1, Ordering::Relaxed);
        Ok((spool, tickets))
    }

    /// Removes what nobody was promised, and reads what somebody was.
    fn recover(&self) -> Result<Vec<Ticket>, Error> {
        let fault = |error| Error::io("list", &self.folder, error);
        let mut tickets = Vec::new();
        let mut outcomes = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(fault)? {
            let path = entry.map_err(fault)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(TEMPORARY) {
                remove(&path)?;
                continue;
            }
            match path.extension().and_then(|it| it.to_str()) {
                Some(REQUEST) => tickets.extend(self.ticket(&path)?),
                Some(OUTCOME) => outcomes.push(path),
                _ => {}
            }
        }
        let path_of = |(at, ticket): (usize, &Ticket)| (self.path(ticket, OUTCOME), at);
        let by_path: HashMap<PathBuf, usize> = tickets.iter().enumerate().map(path_of).collect();
        for path in outcomes {
            let of = by_path.get(&path).map(|at| &mut tickets[*at]);
            match of {
                None => remove(&path)?,
                // A damaged one decided nothing yet, as far as anybody can know.
                Some(ticket) => match read::<Decided>(&path) {
                    Ok((decided, body)) => {
                        ticket.is_decided = true;
                        ticket.bytes += size_of(&decided, &body)?;
                    }
                    Err(error @ Error::Damaged { .. }) => self.set_aside(&path, &error),
                    Err(error) => return Err(error),
                },
            }
        }
        tickets.sort_unstable_by_key(|ticket| ticket.number);
        Ok(tickets)
    }

    /// What a file says, if it is one of ours; it is set aside where the disk damaged it.
    fn ticket(&self, path: &Path) -> Result<Option<Ticket>, Error> {
        let number = |path: &Path| -> Option<u64> {
            path.file_stem()?.to_str()?.split_once('-')?.0.parse().ok()
        };
        let Some(number) = number(path) else { return Ok(None) };
        match read::<Entry>(path) {
            Ok((entry, body)) => Ok(Some(ticket(number, &entry, size_of(&entry, &body)?))),
            Err(error @ Error::Damaged { .. }) => {
                self.set_aside(path, &error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// A file that the disk damaged: it cannot be run, and a person may want to look.
    fn set_aside(&self, path: &Path, error: &Error) {
        error!(%error, "a file of the queue is set aside");
        if let Err(error) = fs::rename(path, path.with_extension(DAMAGED)) {
            warn!(%error, path = %path.display(), "it stays where it is");
        }
    }

    /// Keeps a request; it is on disk for good when this returns.
    ///
    /// # Errors
    /// `Io`: then it is not kept.
    pub(crate) fn accept(&self, entry: &Entry, body: &[u8]) -> Result<Ticket, Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let ticket = ticket(number, entry, size_of(entry, body)?);
        self.write(&self.path(&ticket, REQUEST), entry, body)?;
        Ok(ticket)
    }

    /// A request with the input that was sent along.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub(crate) fn entry(&self, ticket: &Ticket) -> Result<(Entry, Bytes), Error> {
        read(&self.path(ticket, REQUEST))
    }

    /// Decides how a request ends; that is on disk for good when this returns.
    ///
    /// # Errors
    /// `Io`: then nothing is decided.
    pub(crate) fn decide(
        &self,
        ticket: &Ticket,
        decided: &Decided,
        body: &[u8],
    ) -> Result<(), Error> {
        self.write(&self.path(ticket, OUTCOME), decided, body)
    }

    /// How it was decided that a request ends, if it was.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub(crate) fn decided(&self, ticket: &Ticket) -> Result<Option<(Decided, Bytes)>, Error> {
        match read(&self.path(ticket, OUTCOME)) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            outcome => outcome.map(Some),
        }
    }

    /// Forgets a request.
    ///
    /// # Errors
    /// `Io`: it is done again after the next start.
    pub(crate) fn remove(&self, ticket: &Ticket) -> Result<(), Error> {
        remove(&self.path(ticket, REQUEST))?;
        remove(&self.path(ticket, OUTCOME))
    }

    fn path(&self, ticket: &Ticket, kind: &str) -> PathBuf {
        self.folder.join(format!("{:020}-{}.{kind}", ticket.number, ticket.id))
    }

    fn write<T: Serialize>(&self, path: &Path, head: &T, body: &[u8]) -> Result<(), Error> {
        let text = head_of(head)?;
        let length = u32::try_from(text.len())
            .map_err(|_| Error::Internal("a request's head is larger than 4 GiB".into()))?;
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&text);
        checksum.update(body);
        let written = || {
            // Removed when it is dropped; what a dead process leaves, the next start removes.
            let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.folder)?;
            file.write_all(&length.to_be_bytes())?;
            file.write_all(&checksum.finalize().to_be_bytes())?;
            file.write_all(&text)?;
            file.write_all(body)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)?;
            File::open(&self.folder)?.sync_all()
        };
        written().map_err(|error| {
            // A name whose folder could not be synced may outlive the refusal.
            let _ = fs::remove_file(path);
            Error::io("write", path, error)
        })
    }
}

/// What a request or an outcome takes on disk: its headers and names, and the bytes kept along.
///
/// # Errors
/// `Internal` where it cannot be written at all.
pub(crate) fn size_of<T: Serialize>(head: &T, body: &[u8]) -> Result<u64, Error> {
    Ok((PREAMBLE + head_of(head)?.len() + body.len()) as u64)
}

fn head_of<T: Serialize>(head: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(head).map_err(|error| Error::Internal(error.to_string()))
}

/// An id as text.
mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use uuid::Uuid;

    pub(super) fn serialize<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Uuid, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}

fn ticket(number: u64, entry: &Entry, bytes: u64) -> Ticket {
    let ttl = entry.ttl_seconds.saturating_mul(1000);
    Ticket {
        number,
        id: entry.id,
        endpoint: entry.endpoint.clone(),
        tenant: entry.tenant.clone(),
        accepted_at: entry.accepted_at,
        expires_at: entry.accepted_at.saturating_add(ttl),
        bytes,
        is_decided: false,
        tries: 0,
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<(T, Bytes), Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(|error| Error::io("read", path, error))?;
    let damaged = |why| Error::Damaged { path: path.to_owned(), why };
    let (preamble, rest) = bytes.split_at_checked(PREAMBLE).ok_or(damaged("it is too short"))?;
    let number = |at: usize| {
        let four = preamble[at..at + 4].try_into().expect("the preamble has eight bytes");
        u32::from_be_bytes(four)
    };
    if crc32fast::hash(rest) != number(4) {
        return Err(damaged("its checksum is another"));
    }
    let length = usize::try_from(number(0)).unwrap_or(usize::MAX);
    let text = rest.get(..length).ok_or(damaged("its head is cut off"))?;
    let head = serde_json::from_slice(text).map_err(|_| damaged("its head is not readable"))?;
    let body = Bytes::from(bytes).slice(PREAMBLE + length..);
    Ok((head, body))
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::entry;

    fn decided(failure: Option<&str>) -> Decided {
        let failure = failure.map(str::to_owned);
        Decided { failure, expired: false, content_type: None, at: 7 }
    }

    #[test]
    fn what_was_accepted_is_found_again_in_its_order() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, none) = Spool::open(folder.path()).unwrap();
        assert_eq!(none, []);
        let kept: Vec<Ticket> =
            (0..12_u8).map(|n| spool.accept(&entry("ep"), &[n; 3]).unwrap()).collect();
        spool.remove(&kept[0]).unwrap();
        drop(spool);
        let (spool, found) = Spool::open(folder.path()).unwrap();
        assert_eq!(found, kept[1..]);
        assert_eq!(spool.entry(&found[10]).unwrap().1, [11_u8; 3].as_slice());
        let later = spool.accept(&entry("ep"), b"").unwrap();
        assert!(later.number > found[10].number, "a later one is behind all that were found");
    }

    #[test]
    fn what_was_decided_is_decided_after_a_start() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(folder.path()).unwrap();
        let ticket = spool.accept(&entry("ep"), b"in").unwrap();
        assert_eq!(spool.decided(&ticket).unwrap(), None);
        spool.decide(&ticket, &decided(Some("no")), b"body").unwrap();
        drop(spool);
        let (spool, found) = Spool::open(folder.path()).unwrap();
        assert!(found[0].is_decided);
        let files = ["request", "outcome"].map(|kind| spool.path(&found[0], kind));
        let on_disk: u64 = files.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert_eq!(
            found[0].bytes, on_disk,
            "what is to be written counts too, and what is about it"
        );
        let (how, body) = spool.decided(&found[0]).unwrap().unwrap();
        assert_eq!((how, body.as_ref()), (decided(Some("no")), b"body".as_slice()));
    }

    #[test]
    fn what_a_dead_process_left_half_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(folder.path()).unwrap();
        let ticket = spool.accept(&entry("ep"), b"in").unwrap();
        spool.decide(&ticket, &decided(None), b"out").unwrap();
        // It died between the two removals, and while it wrote another.
        fs::remove_file(spool.path(&ticket, REQUEST)).unwrap();
        fs::write(folder.path().join(".writing-x"), b"ha").unwrap();
        drop(spool);
        let (_spool, found) = Spool::open(folder.path()).unwrap();
        assert_eq!(found, []);
        let names = fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), [LOCK]);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_the_others_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(folder.path()).unwrap();
        let (bad, good) = (spool.accept(&entry("ep"), b"in"), spool.accept(&entry("ep"), b"in"));
        let path = spool.path(&bad.unwrap(), REQUEST);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        drop(spool);
        let (_spool, found) = Spool::open(folder.path()).unwrap();
        assert_eq!(found, [good.unwrap()]);
        assert!(path.with_extension(DAMAGED).exists());
    }

    #[test]
    fn a_folder_has_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let _spool = Spool::open(folder.path()).unwrap();
        assert!(matches!(Spool::open(folder.path()), Err(Error::Locked(_))));
    }
}
