//! The file of keys: what stands in it, who may touch it, how it is replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use roundhouse_types::TenantName;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;
use crate::text::{hex, unhex};

/// The version of the file's format.
const VERSION: u32 = 1;
/// Who may read and write what we write.
const MODE: u32 = 0o600;
/// Group and others: the file of keys may be read by them, the master not even that.
const WRITABLE: u32 = 0o022;
const ANY: u32 = 0o077;

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// A tenant's, sent as it is: `Authorization: Bearer rh-…`.
    Bearer,
    /// A tenant's pair of id and secret, for AWS's SDKs.
    Sigv4,
    /// An operator's, for the admin port; sent as it is.
    Operator,
}

impl KeyKind {
    /// The kind's name in the file and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::Sigv4 => "sigv4",
            Self::Operator => "operator",
        }
    }
}

/// One key as the file has it: nothing in it lets anybody in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// Its id; for SigV4 the access key id. Not a secret.
    pub id: String,
    /// Whose it is; absent for operators.
    pub tenant: Option<TenantName>,
    /// When it was minted, in seconds since 1970.
    pub created: u64,
    /// When it is over, in seconds since 1970; absent is never.
    pub expires: Option<u64>,
    pub(super) stored: Stored,
}

impl KeyRecord {
    /// What it is for.
    pub fn kind(&self) -> KeyKind {
        match self.stored {
            Stored::Bearer { .. } => KeyKind::Bearer,
            Stored::Sigv4 => KeyKind::Sigv4,
            Stored::Operator { .. } => KeyKind::Operator,
        }
    }
}

/// What is kept of a key's secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stored {
    Bearer {
        salt: Hex<16>,
        digest: Hex<32>,
    },
    /// Nothing: it is derived from the master.
    Sigv4,
    Operator {
        salt: Hex<16>,
        digest: Hex<32>,
    },
}

/// Bytes that are written in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hex<const N: usize>(pub(super) [u8; N]);

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let expected =
            || serde::de::Error::custom(format!("expected {} hexadecimal digits", 2 * N));
        unhex(&text).map(Self).ok_or_else(expected)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    version: u32,
    keys: Vec<Line>,
}

/// A key as it is written.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Line {
    Bearer {
        id: String,
        tenant: TenantName,
        created: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires: Option<u64>,
        salt: Hex<16>,
        digest: Hex<32>,
    },
    Sigv4 {
        id: String,
        tenant: TenantName,
        created: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires: Option<u64>,
    },
    Operator {
        id: String,
        created: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires: Option<u64>,
        salt: Hex<16>,
        digest: Hex<32>,
    },
}

impl From<Line> for KeyRecord {
    fn from(line: Line) -> Self {
        match line {
            Line::Bearer { id, tenant, created, expires, salt, digest } => {
                let stored = Stored::Bearer { salt, digest };
                Self { id, tenant: Some(tenant), created, expires, stored }
            }
            Line::Sigv4 { id, tenant, created, expires } => {
                Self { id, tenant: Some(tenant), created, expires, stored: Stored::Sigv4 }
            }
            Line::Operator { id, created, expires, salt, digest } => {
                let stored = Stored::Operator { salt, digest };
                Self { id, tenant: None, created, expires, stored }
            }
        }
    }
}

impl Line {
    fn of(record: KeyRecord) -> Option<Self> {
        let KeyRecord { id, tenant, created, expires, stored } = record;
        Some(match stored {
            Stored::Bearer { salt, digest } => {
                Self::Bearer { id, tenant: tenant?, created, expires, salt, digest }
            }
            Stored::Sigv4 => Self::Sigv4 { id, tenant: tenant?, created, expires },
            Stored::Operator { salt, digest } => {
                Self::Operator { id, created, expires, salt, digest }
            }
        })
    }
}

/// The file's keys.
pub(super) fn read(path: &Path) -> Result<Vec<KeyRecord>, Error> {
    let text = read_guarded(path, WRITABLE, "written")?;
    let malformed =
        |why: String| Error::Malformed { path: path.to_owned(), what: "file of keys", why };
    let whole: Whole = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
    if whole.version != VERSION {
        return Err(malformed(format!("its version is {}, not {VERSION}", whole.version)));
    }
    let records: Vec<KeyRecord> = whole.keys.into_iter().map(KeyRecord::from).collect();
    let mut ids: Vec<&str> = records.iter().map(|record| record.id.as_str()).collect();
    ids.sort_unstable();
    if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(malformed(format!("two keys have the id {}", pair[0])));
    }
    Ok(records)
}

/// Writes the file's keys: a reader sees the old ones or the new ones, whole.
pub(super) fn write(path: &Path, records: Vec<KeyRecord>) -> Result<(), Error> {
    let keys = records.into_iter().filter_map(Line::of).collect();
    let mut text = serde_json::to_string_pretty(&Whole { version: VERSION, keys })
        .expect("our values have string keys only");
    text.push('\n');
    replace(path, text.as_bytes()).map_err(io_error("write", path))
}

/// Where the master secret of a file of keys is.
pub(super) fn master_path(keys: &Path) -> PathBuf {
    let mut path = keys.as_os_str().to_owned();
    path.push(".master");
    path.into()
}

/// The master secret of a file of keys.
pub(super) fn read_master(keys: &Path) -> Result<hmac::Key, Error> {
    let path = master_path(keys);
    let text = match read_guarded(&path, ANY, "used") {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NoMaster { keys: keys.to_owned(), master: path });
        }
        other => other?,
    };
    let bytes: [u8; 32] = unhex(text.trim()).ok_or_else(|| Error::Malformed {
        path,
        what: "master secret",
        why: "expected 64 hexadecimal digits".to_owned(),
    })?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// Writes the master secret of a file of keys, which has none yet.
pub(super) fn write_master(keys: &Path, secret: &[u8; 32]) -> Result<(), Error> {
    let path = master_path(keys);
    replace(&path, format!("{}\n", hex(secret)).as_bytes()).map_err(io_error("write", &path))
}

/// Holds off others that change the same file, until it is dropped.
pub(super) fn lock(path: &Path) -> Result<File, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock = PathBuf::from(name);
    let open = || {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(MODE).open(&lock)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(io_error("lock", &lock))
}

pub(super) fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl Fn(io::Error) -> Error + use<'a> {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

/// Reads a file that others may not touch in the ways of `forbidden`.
fn read_guarded(path: &Path, forbidden: u32, what: &'static str) -> Result<String, Error> {
    let mode = fs::metadata(path).map_err(io_error("read", path))?.permissions().mode() & 0o777;
    if mode & forbidden != 0 {
        let wanted = mode & !forbidden;
        return Err(Error::Exposed { path: path.to_owned(), what, mode, wanted });
    }
    fs::read_to_string(path).map_err(io_error("read", path))
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let written = PathBuf::from(name);
    // What an interrupted writer left behind.
    match fs::remove_file(&written) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(MODE).open(&written)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&written, path)?;
    File::open(folder)?.sync_all()
}
