//! New keys, and the end of old ones.

use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use roundhouse_types::TenantName;

use super::BEARER;
use super::file::{self, Hex, KeyRecord, Stored};
use crate::caller::ANONYMOUS;
use crate::error::Error;
use crate::secret::Secret;
use crate::text::letters;

/// What an access key id begins with: not AWS's, so that neither is taken for the other.
const ACCESS_KEY: &str = "RHAK";
/// Random bytes of a bearer key's id: sixty bits, twelve letters.
const ID_BYTES: usize = 8;
/// Random bytes of an access key's id: eighty bits, sixteen letters.
const ACCESS_KEY_BYTES: usize = 10;
/// Keeps derived secrets apart from anything else that is ever derived from a master.
const PURPOSE: &[u8] = b"roundhouse sigv4 secret access key 1:";

/// Which key is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A tenant's bearer key.
    Bearer(TenantName),
    /// A tenant's SigV4 pair.
    Sigv4(TenantName),
    /// An operator's key.
    Operator,
}

/// A new key: the one time its secret is seen.
#[derive(Debug, Clone)]
pub struct Minted {
    /// As the file has it.
    pub record: KeyRecord,
    /// The whole bearer key, or the secret access key that goes with the id.
    pub secret: Secret,
}

/// Mints a key into a file, which is made where there is none.
///
/// # Errors
/// [`Error::Keyless`]; when the file cannot be read or replaced.
pub(super) fn create(
    path: &Path,
    wanted: Wanted,
    lifetime: Option<Duration>,
) -> Result<Minted, Error> {
    if let Wanted::Bearer(tenant) | Wanted::Sigv4(tenant) = &wanted
        && tenant.as_str() == ANONYMOUS
    {
        return Err(Error::Keyless(tenant.clone()));
    }
    let _lock = file::lock(path)?;
    let mut records = match path.exists() {
        true => file::read(path)?,
        false => Vec::new(),
    };
    let created = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map(|since| since.as_secs())
        .unwrap_or_default();
    let expires = lifetime.map(|lifetime| created.saturating_add(lifetime.as_secs()));
    let (id, tenant, stored, secret) = match wanted {
        Wanted::Bearer(tenant) => {
            let (id, salt, digest, secret) = bearer()?;
            (id, Some(tenant), Stored::Bearer { salt, digest }, secret)
        }
        Wanted::Operator => {
            let (id, salt, digest, secret) = bearer()?;
            (id, None, Stored::Operator { salt, digest }, secret)
        }
        Wanted::Sigv4(tenant) => {
            let id = letters(&random::<ACCESS_KEY_BYTES>()?).to_ascii_uppercase();
            let id = format!("{ACCESS_KEY}{id}");
            let secret = Secret::new(sigv4_secret(&master(path)?, &id));
            (id, Some(tenant), Stored::Sigv4, secret)
        }
    };
    let record = KeyRecord { id, tenant, created, expires, stored };
    records.push(record.clone());
    file::write(path, records)?;
    Ok(Minted { record, secret })
}

/// Ends a key.
///
/// # Errors
/// [`Error::NoSuchKey`]; when the file cannot be read or replaced.
pub(super) fn revoke(path: &Path, id: &str) -> Result<KeyRecord, Error> {
    let _lock = file::lock(path)?;
    let mut records = file::read(path)?;
    let index = records.iter().position(|record| record.id == id);
    let index = index.ok_or_else(|| Error::NoSuchKey(id.to_owned()))?;
    let revoked = records.remove(index);
    file::write(path, records)?;
    Ok(revoked)
}

/// The secret access key that belongs to an id.
pub(super) fn sigv4_secret(master: &hmac::Key, id: &str) -> String {
    let tag = hmac::sign(master, &[PURPOSE, id.as_bytes()].concat());
    BASE64_URL_SAFE_NO_PAD.encode(tag)
}

fn master(keys: &Path) -> Result<hmac::Key, Error> {
    match file::read_master(keys) {
        Err(Error::NoMaster { .. }) => {
            file::write_master(keys, &random()?)?;
            file::read_master(keys)
        }
        other => other,
    }
}

fn bearer() -> Result<(String, Hex<16>, Hex<32>, Secret), Error> {
    let id = letters(&random::<ID_BYTES>()?);
    let key = format!("{BEARER}{id}-{}", letters(&random::<32>()?));
    let salt = random::<16>()?;
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &salt), key.as_bytes());
    let mut digest = [0; 32];
    digest.copy_from_slice(tag.as_ref());
    Ok((id, Hex(salt), Hex(digest), Secret::new(key)))
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}
