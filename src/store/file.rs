//! A folder of the local file system as a store.

use std::fs::{self, File, Metadata};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;

use crate::write::check_key;
use crate::{ArtifactStore, Error, ListPage, ListRequest, ObjectMeta, ObjectRead, WritableStore};

/// One read of a file. Larger reads gain nothing and make cancelling slow.
const CHUNK: u64 = 256 << 10;
/// Of a file that is written: its folder says who may come to it.
const FILE_MODE: u32 = 0o644;

/// A folder and everything below it. Links are followed as long as they stay inside.
///
/// A file's tag is made of its size, modification time in nanoseconds and inode: it
/// changes when the file is rewritten or replaced, without reading the contents.
#[derive(Debug, Clone)]
pub struct FileStore {
    root: Arc<Root>,
}

#[derive(Debug)]
struct Root {
    name: String,
    folder: PathBuf,
}

impl FileStore {
    /// Takes a folder, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        let name = format!("file://{}", folder.display());
        Self { root: Arc::new(Root { name, folder }) }
    }
}

#[async_trait]
impl ArtifactStore for FileStore {
    fn name(&self) -> &str {
        &self.root.name
    }

    fn identity(&self) -> String {
        format!("{}/", self.root.name.trim_end_matches('/'))
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn writes_are_atomic(&self) -> bool {
        false
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, Error> {
        let (root, request) = (Arc::clone(&self.root), request.clone());
        blocking(move || root.list(&request)).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, Error> {
        let (root, key) = (Arc::clone(&self.root), key.to_owned());
        blocking(move || {
            let (_, metadata) = root.open(&key)?;
            Ok(meta(key, &metadata))
        })
        .await
    }

    async fn get(&self, key: &str, etag: &str, range: Range<u64>) -> Result<ObjectRead, Error> {
        let (root, key, etag) = (Arc::clone(&self.root), key.to_owned(), etag.to_owned());
        let reader = blocking(move || {
            let (file, metadata) = root.open(&key)?;
            let reader = Reader { root, key, etag, file };
            reader.check(&metadata)?;
            Ok(Arc::new(reader))
        })
        .await?;
        let etag = reader.etag.clone();
        let stream = stream::try_unfold(range, move |left| {
            let reader = Arc::clone(&reader);
            async move {
                if left.is_empty() {
                    return Ok(None);
                }
                let end = left.end.min(left.start + CHUNK);
                let chunk = blocking(move || reader.read(left.start..end)).await?;
                Ok(Some((chunk, end..left.end)))
            }
        });
        Ok(ObjectRead { etag, stream: stream.boxed() })
    }
}

#[async_trait]
impl WritableStore for FileStore {
    /// A file has no content type.
    async fn put(&self, key: &str, body: Bytes, _: Option<&str>) -> Result<(), Error> {
        check_key(self.name(), key)?;
        let (root, key) = (Arc::clone(&self.root), key.to_owned());
        blocking(move || root.put(&key, &body)).await
    }
}

/// An open file that must stay the one that was asked for.
struct Reader {
    root: Arc<Root>,
    key: String,
    etag: String,
    file: File,
}

impl Reader {
    fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        let length = usize::try_from(range.end - range.start).expect("at most one chunk");
        let mut buffer = vec![0; length];
        self.file.read_exact_at(&mut buffer, range.start).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.changed(),
            _ => self.root.fault(&self.key, &error),
        })?;
        // After the read: bytes that were read before an unchanged state are unchanged.
        let metadata = self.file.metadata().map_err(|error| self.root.fault(&self.key, &error))?;
        self.check(&metadata)?;
        Ok(buffer.into())
    }

    fn check(&self, metadata: &Metadata) -> Result<(), Error> {
        if tag(metadata) == self.etag { Ok(()) } else { Err(self.changed()) }
    }

    fn changed(&self) -> Error {
        Error::Changed { store: self.root.name.clone(), key: self.key.clone() }
    }
}

impl Root {
    /// Opens a regular file inside the root.
    fn open(&self, key: &str) -> Result<(File, Metadata), Error> {
        let path = self.inside(key)?;
        let open = || {
            // A fifo would block the open; look before.
            let metadata = fs::metadata(&path)?;
            if !metadata.is_file() {
                return Err(io::ErrorKind::NotFound.into());
            }
            let file = File::open(&path)?;
            let metadata = file.metadata()?;
            Ok((file, metadata))
        };
        open().map_err(|error| self.fault(key, &error))
    }

    /// The path of a key with all links followed; refused if it leaves the root.
    fn inside(&self, key: &str) -> Result<PathBuf, Error> {
        let root = fs::canonicalize(&self.folder).map_err(|error| Error::NoSuchBucket {
            store: self.name.clone(),
            cause: error.to_string(),
        })?;
        let path = fs::canonicalize(root.join(key)).map_err(|error| self.fault(key, &error))?;
        if path.starts_with(&root) {
            return Ok(path);
        }
        Err(Error::AccessDenied {
            store: self.name.clone(),
            key: key.into(),
            cause: "it is a link out of the store's folder".into(),
        })
    }

    /// Writes beside the file, then gives it its name.
    fn put(&self, key: &str, body: &[u8]) -> Result<(), Error> {
        fs::create_dir_all(&self.folder).map_err(|error| self.fault(key, &error))?;
        let (folders, name) = key.rsplit_once('/').unwrap_or(("", key));
        let folder = self.folder_for(key, folders)?;
        let written = || {
            // In the same folder, so that the renaming is one step; removed when it is dropped.
            let mut file = tempfile::Builder::new().prefix(".writing-").tempfile_in(&folder)?;
            file.write_all(body)?;
            file.as_file().set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
            file.as_file().sync_all()?;
            file.persist(folder.join(name)).map_err(|error| error.error)?;
            // The name too is there for good.
            File::open(&folder)?.sync_all()
        };
        written().map_err(|error| self.fault(key, &error))
    }

    /// A key's folder, made where it is missing; none of its parts leaves the root.
    fn folder_for(&self, key: &str, folders: &str) -> Result<PathBuf, Error> {
        let mut folder = self.inside("")?;
        let mut so_far = String::new();
        for segment in folders.split('/').filter(|segment| !segment.is_empty()) {
            match fs::create_dir(folder.join(segment)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(self.fault(key, &error));
                }
                _ => {}
            }
            so_far = format!("{so_far}{segment}/");
            folder = self.inside(&so_far)?;
        }
        Ok(folder)
    }

    fn fault(&self, key: &str, error: &io::Error) -> Error {
        let (store, key) = (self.name.clone(), key.to_owned());
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                Error::ObjectNotFound { store, key }
            }
            io::ErrorKind::PermissionDenied => {
                Error::AccessDenied { store, key, cause: error.to_string() }
            }
            io::ErrorKind::InvalidFilename | io::ErrorKind::IsADirectory => {
                Error::Refused { store, key, cause: error.to_string() }
            }
            _ => Error::Unavailable { store, key, cause: error.to_string() },
        }
    }

    fn list(&self, request: &ListRequest) -> Result<ListPage, Error> {
        let root = fs::canonicalize(&self.folder).map_err(|error| Error::NoSuchBucket {
            store: self.name.clone(),
            cause: error.to_string(),
        })?;
        let start = root.join(&request.prefix);
        let mut walk = Walk {
            root: self,
            after: request.token.clone().unwrap_or_default(),
            limit: request.limit,
            objects: Vec::new(),
            depth: 0,
        };
        match fs::metadata(&start) {
            Ok(metadata) if metadata.is_dir() => {
                self.inside(&request.prefix)?;
            }
            Ok(_) => return Ok(ListPage::default()),
            Err(error) => {
                return match self.fault(&request.prefix, &error) {
                    Error::ObjectNotFound { .. } => Ok(ListPage::default()),
                    other => Err(other),
                };
            }
        }
        let more = walk.folder(&start, &request.prefix)?;
        let next = walk.objects.last().filter(|_| more).map(|object| object.key.clone());
        Ok(ListPage { objects: walk.objects, next })
    }
}

/// Folders nested deeper are a loop of links, or nobody's model.
const DEPTH: usize = 64;

/// A walk in the byte order of the keys, which is not that of the names: a folder
/// sorts with its trailing `/`.
struct Walk<'a> {
    root: &'a Root,
    after: String,
    limit: usize,
    objects: Vec<ObjectMeta>,
    depth: usize,
}

impl Walk<'_> {
    /// Takes what is below a folder; true when the page is full and more may follow.
    fn folder(&mut self, folder: &Path, prefix: &str) -> Result<bool, Error> {
        let fault = |error: &io::Error| self.root.fault(prefix, error);
        if self.depth == DEPTH {
            return Err(Error::Refused {
                store: self.root.name.clone(),
                key: prefix.into(),
                cause: format!("its folders are nested deeper than {DEPTH}"),
            });
        }
        let mut names = Vec::new();
        let entries = match fs::read_dir(folder) {
            // It was removed while we walked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            entries => entries.map_err(|error| fault(&error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| fault(&error))?;
            // A name that is not UTF-8 can be no target and no file of one.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let Ok(metadata) = fs::metadata(entry.path()) else {
                continue;
            };
            if metadata.is_dir() {
                names.push((format!("{prefix}{name}/"), entry.path(), None));
            } else if metadata.is_file() {
                names.push((format!("{prefix}{name}"), entry.path(), Some(metadata)));
            }
        }
        names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (key, path, metadata) in names {
            let Some(metadata) = metadata else {
                let passed = key < self.after && !self.after.starts_with(&key);
                self.depth += 1;
                let full = !passed && self.folder(&path, &key)?;
                self.depth -= 1;
                if full {
                    return Ok(true);
                }
                continue;
            };
            if key <= self.after {
                continue;
            }
            if self.objects.len() == self.limit {
                return Ok(true);
            }
            self.objects.push(meta(key, &metadata));
        }
        Ok(false)
    }
}

fn meta(key: String, metadata: &Metadata) -> ObjectMeta {
    // The change time too: copies keep the modification time of their source.
    let changed = u64::try_from(metadata.ctime()).map_or(UNIX_EPOCH, |seconds| {
        let nanos = u32::try_from(metadata.ctime_nsec()).unwrap_or_default();
        UNIX_EPOCH + Duration::new(seconds, nanos)
    });
    let modified = metadata.modified().map_or(changed, |modified| modified.max(changed));
    ObjectMeta {
        key,
        size: metadata.len(),
        etag: tag(metadata),
        modified: Some(modified),
        checksum: None,
    }
}

fn tag(metadata: &Metadata) -> String {
    format!(
        "{:x}-{:x}.{:09}-{:x}",
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ino()
    )
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::Internal(format!("a file task ended early: {error}"))),
    }
}
