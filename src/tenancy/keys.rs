//! The keys that we mint: who holds which, and is it one of them.
//!
//! Reading order: `file` (what is written, and how it is replaced), `mint` (new keys), this file
//! (the keys in force, re-read when the file changes).
//!
//! Bearer keys are stored as a salted HMAC-SHA256 of the whole key. One pass is enough: a key has
//! 256 random bits, so that no guess can be tried in any number, which is what slow hashes of
//! passwords are for. SigV4 secrets must be known to be verified, so they cannot be hashed: each
//! is derived from a master secret, in a file of its own, and its key's id. The file of keys
//! alone lets nobody in.

mod file;
mod mint;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use lru::LruCache;
use roundhouse_types::TenantName;

use crate::denied::Denied;
use crate::error::Error;
use crate::stamp::Stamp;
use file::Stored;
pub use file::{KeyKind, KeyRecord};
pub use mint::{Minted, Wanted};

/// Derived signing keys that are kept: one per key, day and region. A miss costs two microseconds.
const SIGNING_KEYS: NonZeroUsize = NonZeroUsize::new(4096).expect("is not zero");
/// What a bearer key begins with.
const BEARER: &str = "rh-";

/// A file of keys and what of it is in force. Cheap to ask; owned by [`crate::Identity`].
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    current: RwLock<Arc<Keys>>,
    seen: Mutex<Seen>,
}

/// The last reading of the files.
#[derive(Debug)]
struct Seen {
    /// What they looked like.
    stamp: Stamp,
    /// Whether it failed: then they are read again although they look the same, since a fault of
    /// the disk goes by without a trace.
    failed: bool,
}

/// The keys of one reading of the file.
pub(crate) struct Keys {
    held: HashMap<Box<str>, Held>,
    /// Signing keys by credential scope. Goes with the keys, so a revoked one leaves nothing.
    derived: Mutex<LruCache<Box<str>, hmac::Key>>,
}

/// One key in force.
pub(crate) struct Held {
    pub(crate) id: Arc<str>,
    /// Absent for operators.
    pub(crate) tenant: Option<TenantName>,
    /// Seconds since 1970; it is over from then on.
    expires: Option<u64>,
    proof: Proof,
}

/// What a presented credential is held against.
enum Proof {
    Digest {
        salt: Box<hmac::Key>,
        digest: [u8; 32],
    },
    /// The secret itself, as the signer has it.
    Secret(String),
}

impl KeyFile {
    /// Reads a file of keys.
    ///
    /// # Errors
    /// When it cannot be read, is not one, or others may write it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let stamp = stamp(path);
        let keys = Keys::read(path)?;
        Ok(Self {
            path: path.to_owned(),
            current: RwLock::new(Arc::new(keys)),
            seen: Mutex::new(Seen { stamp, failed: false }),
        })
    }

    /// Mints a key into a file, which is made where there is none.
    ///
    /// # Errors
    /// [`Error::Keyless`]; when the file cannot be read or replaced.
    pub fn create(
        path: &Path,
        wanted: Wanted,
        lifetime: Option<Duration>,
    ) -> Result<Minted, Error> {
        mint::create(path, wanted, lifetime)
    }

    /// The keys of a file, in the order in which they were minted.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn list(path: &Path) -> Result<Vec<KeyRecord>, Error> {
        file::read(path)
    }

    /// Ends a key.
    ///
    /// # Errors
    /// [`Error::NoSuchKey`]; when the file cannot be read or replaced.
    pub fn revoke(path: &Path, id: &str) -> Result<KeyRecord, Error> {
        mint::revoke(path, id)
    }

    /// Which file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file again if it has changed; `true` where other keys are in force now. What was
    /// in force stays where the file cannot be read, and a fault is told once per change.
    ///
    /// # Errors
    /// As [`KeyFile::open`].
    pub fn refresh(&self) -> Result<bool, Error> {
        self.refresh_by(Keys::read)
    }

    fn refresh_by(&self, read: impl FnOnce(&Path) -> Result<Keys, Error>) -> Result<bool, Error> {
        let stamp = stamp(&self.path);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = seen.stamp == stamp;
        if is_same && !seen.failed {
            return Ok(false);
        }
        let keys = read(&self.path);
        *seen = Seen { stamp, failed: keys.is_err() };
        let keys = match keys {
            Ok(keys) => Arc::new(keys),
            Err(_) if is_same => return Ok(false),
            Err(error) => return Err(error),
        };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(true)
    }

    /// The keys in force now.
    pub(crate) fn current(&self) -> Arc<Keys> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn stamp(path: &Path) -> Stamp {
    Stamp::of(&[path, &file::master_path(path)])
}

impl Keys {
    fn read(path: &Path) -> Result<Self, Error> {
        let records = file::read(path)?;
        let needs_master = records.iter().any(|record| record.kind() == KeyKind::Sigv4);
        let master = match needs_master {
            true => Some(file::read_master(path)?),
            false => None,
        };
        let held = records.into_iter().map(|record| {
            let held = Held::new(record, master.as_ref());
            (Box::from(held.id.as_ref()), held)
        });
        Ok(Self { held: held.collect(), derived: Mutex::new(LruCache::new(SIGNING_KEYS)) })
    }

    /// Whether any key is an operator's.
    pub(crate) fn has_operators(&self) -> bool {
        self.held.values().any(|held| held.tenant.is_none())
    }

    /// Whose bearer key this is; operators' included.
    ///
    /// # Errors
    /// `Unknown`, also for a wrong secret; `Expired`.
    pub(crate) fn bearer(&self, key: &str, now: u64) -> Result<&Held, Denied> {
        let id = key.strip_prefix(BEARER).and_then(|rest| rest.split_once('-')).map(|(id, _)| id);
        let held = id.and_then(|id| self.held.get(id)).ok_or(Denied::Unknown)?;
        let Proof::Digest { salt, digest } = &held.proof else { return Err(Denied::Unknown) };
        let found = hmac::sign(salt, key.as_bytes());
        verify_slices_are_equal(found.as_ref(), digest).map_err(|_| Denied::Unknown)?;
        held.in_time(now)?;
        Ok(held)
    }

    /// The signing key of a credential scope (`id/date/region/service/aws4_request`), from its
    /// cache where somebody has proved to have it, and whose it is.
    ///
    /// # Errors
    /// `Unknown`, `Expired`.
    pub(crate) fn signing(&self, id: &str, scope: &str, now: u64) -> Result<Signing<'_>, Denied> {
        let held = self.held.get(id).ok_or(Denied::Unknown)?;
        let Proof::Secret(secret) = &held.proof else { return Err(Denied::Unknown) };
        held.in_time(now)?;
        let cached =
            self.derived.lock().unwrap_or_else(PoisonError::into_inner).get(scope).cloned();
        let is_cached = cached.is_some();
        let key = cached.unwrap_or_else(|| crate::sigv4::signing_key(secret, scope));
        Ok(Signing { held, key, is_cached })
    }

    /// Keeps a signing key that has verified a signature. Others would let anybody fill the cache.
    pub(crate) fn proved(&self, scope: &str, key: &hmac::Key) {
        let mut derived = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        derived.put(scope.into(), key.clone());
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("count", &self.held.len()).finish()
    }
}

/// What a signature is verified with.
pub(crate) struct Signing<'a> {
    pub(crate) held: &'a Held,
    pub(crate) key: hmac::Key,
    pub(crate) is_cached: bool,
}

impl Held {
    fn new(record: KeyRecord, master: Option<&hmac::Key>) -> Self {
        let proof = match (record.stored, master) {
            (Stored::Bearer { salt, digest } | Stored::Operator { salt, digest }, _) => {
                let salt = Box::new(hmac::Key::new(hmac::HMAC_SHA256, &salt.0));
                Proof::Digest { salt, digest: digest.0 }
            }
            (Stored::Sigv4, Some(master)) => Proof::Secret(mint::sigv4_secret(master, &record.id)),
            (Stored::Sigv4, None) => unreachable!("the master is read where a key needs it"),
        };
        Self { id: record.id.into(), tenant: record.tenant, expires: record.expires, proof }
    }

    fn in_time(&self, now: u64) -> Result<(), Denied> {
        match self.expires {
            Some(expires) if now >= expires => Err(Denied::Expired),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
