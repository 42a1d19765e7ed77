//! What is looked at before a model is loaded: names and sizes of all files, the small
//! ones' contents, and the headers of the weight files.
//!
//! The same questions are asked of a folder ([`read_local`]) and of an object store
//! (the caller reads what [`wanted`] names).

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Error;
use crate::adapter::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use crate::config::prompts;
use crate::gguf::{self, gguf_bytes};
use crate::properties::{PROPERTIES, PROPERTIES_MAX};
use crate::settings;

/// The largest header read from a weight file: what the format itself allows.
pub const HEADER_MAX: u64 = 100_000_000;
/// The largest configuration file read.
const CONFIG_MAX: u64 = 16 << 20;
/// How many files a folder may have before it is taken for something else.
const FILES_MAX: usize = 10_000;
/// How deep folders are looked into.
const DEPTH_MAX: usize = 4;

/// The index file of a sharded checkpoint.
pub(crate) const SHARD_INDEX: &str = "model.safetensors.index.json";
/// The weight file of an unsharded one.
pub(crate) const SINGLE: &str = "model.safetensors";

/// What inspection sees of an artefact. Paths are relative to it, with `/`.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Every file with its size in bytes.
    pub sizes: BTreeMap<String, u64>,
    /// Whole contents of the files wanted whole.
    pub contents: BTreeMap<String, Vec<u8>>,
    /// The first bytes of weight files: eight of length and as many of JSON as they say, or a
    /// GGUF file's header.
    pub headers: BTreeMap<String, Vec<u8>>,
}

/// How much of a file inspection wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// All of it.
    Whole,
    /// Its first eight bytes, and then as many more as [`header_bytes`] says.
    SafetensorsHeader,
    /// Its first bytes, as many as [`gguf_bytes`] says for those that are there.
    GgufHeader,
}

/// Which files [`crate::inspect`] needs to see, and how much of each. When they are there,
/// [`wanted_gguf`] says whether another one is needed.
pub fn wanted(sizes: &BTreeMap<String, u64>) -> Vec<(String, Want)> {
    let single = sizes.contains_key(SINGLE);
    let want = |(path, size): (&String, &u64)| {
        let depth = path.matches('/').count();
        let is_config = match depth {
            0 => matches!(
                path.as_str(),
                "config.json"
                    | ADAPTER_CONFIG
                    | "generation_config.json"
                    | "modules.json"
                    | prompts::FILE
                    | settings::FILE
                    | SHARD_INDEX
            ),
            // Sentence-transformers modules: `1_Pooling/config.json`, `2_Dense/config.json`.
            1 => path.ends_with("/config.json") && is_module(path),
            _ => false,
        };
        let is_properties = path == PROPERTIES && *size <= PROPERTIES_MAX;
        if is_properties || (is_config && *size <= CONFIG_MAX) {
            return Some((path.clone(), Want::Whole));
        }
        let is_weights = depth == 0 && path.ends_with(".safetensors");
        // Like transformers: the single file is used where it exists, whatever lies beside it.
        // And their weights: `2_Dense/model.safetensors`.
        if depth == 1 && is_module(path) && path.ends_with("/model.safetensors") {
            return Some((path.clone(), Want::SafetensorsHeader));
        }
        if is_weights && (path == SINGLE || path == ADAPTER_WEIGHTS || !single) {
            return Some((path.clone(), Want::SafetensorsHeader));
        }
        None
    };
    sizes.iter().filter_map(want).collect()
}

/// Whether a file is in the folder of a module of sentence-transformers.
fn is_module(path: &str) -> bool {
    path.starts_with(|c: char| c.is_ascii_digit())
}

/// The GGUF file whose header [`crate::inspect`] needs to see, if it is one that holds the model.
/// `files` has the contents that are wanted whole.
///
/// # Errors
/// When there are several and the artefact's settings choose none, or it is in parts.
pub fn wanted_gguf(files: &Files) -> Result<Option<(String, Want)>, Error> {
    Ok(gguf::chosen(files)?.map(|path| (path, Want::GgufHeader)))
}

/// How the texts begin that Git has in place of the files that its extension for large ones keeps.
const POINTER: &[u8] = b"version https://git-lfs.";

/// Refuses what Git LFS has in place of a file, of which `first` are the first bytes.
///
/// # Errors
/// When they are such a pointer's.
pub(crate) fn refuse_pointer(file: &str, first: &[u8]) -> Result<(), Error> {
    // Eight bytes are all that is read of a file at first, and no header begins with these.
    let seen = first.len().min(POINTER.len());
    match seen >= 8 && first[..seen] == POINTER[..seen] {
        true => Err(Error::Pointer { file: file.into() }),
        false => Ok(()),
    }
}

/// The bytes of a weight file's header, the eight of its length included.
///
/// # Errors
/// When fewer than eight bytes are given, they are a Git LFS pointer's, or the length is zero or beyond
/// [`HEADER_MAX`].
pub fn header_bytes(file: &str, first: &[u8]) -> Result<u64, Error> {
    refuse_pointer(file, first)?;
    let Some(length) = first.first_chunk::<8>() else {
        return Err(Error::header(file, format!("it has {} bytes", first.len())));
    };
    match u64::from_le_bytes(*length) {
        length @ 2..=HEADER_MAX => Ok(length + 8),
        length => Err(Error::header(file, format!("it claims a header of {length} bytes"))),
    }
}

/// A model's files, wherever their bytes come from.
pub trait ModelFiles: Send + Sync {
    /// Every file with its size in bytes.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn sizes(&self) -> Result<BTreeMap<String, u64>, Error>;

    /// Fills `buffer` with a file's bytes from `offset` on. Blocks until they are there.
    ///
    /// # Errors
    /// When they cannot be read, or will never be there.
    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// Files that lie in a folder.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    open: Mutex<HashMap<String, Arc<File>>>,
}

impl Folder {
    /// The files in `dir` and below.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), open: Mutex::default() }
    }

    fn file(&self, path: &str) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(path) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(self.dir.join(path))?);
        open.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }
}

impl ModelFiles for Folder {
    fn sizes(&self) -> Result<BTreeMap<String, u64>, Error> {
        list_local(&self.dir)
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file(path)?.read_exact_at(buffer, offset)
    }
}

/// Reads what inspection wants of a folder. Blocking.
///
/// # Errors
/// When the folder or a wanted file cannot be read, or a weight file is too short for its header.
pub fn read_local(dir: &Path) -> Result<Files, Error> {
    read_wanted(&Folder::new(dir))
}

/// Reads what inspection wants of files. Blocking.
///
/// # Errors
/// As [`read_local`].
pub(crate) fn read_wanted(source: &dyn ModelFiles) -> Result<Files, Error> {
    let mut files = Files { sizes: source.sizes()?, ..Files::default() };
    for (path, want) in wanted(&files.sizes) {
        read_into(source, path, want, &mut files)?;
    }
    if let Some((path, want)) = wanted_gguf(&files)? {
        read_into(source, path, want, &mut files)?;
    }
    Ok(files)
}

/// Reads a GGUF file's header, or one file that is looked at by itself. Blocking.
///
/// # Errors
/// As [`read_local`].
pub fn read_file(path: &Path) -> Result<Files, Error> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io_error(&path.to_string_lossy(), io::ErrorKind::InvalidInput.into()));
    };
    let name = name.to_string_lossy().into_owned();
    let size = fs::metadata(path).map_err(|source| io_error(&name, source))?.len();
    let mut files = Files { sizes: [(name, size)].into(), ..Files::default() };
    if let Some((path, want)) = wanted_gguf(&files)? {
        read_into(&Folder::new(dir), path, want, &mut files)?;
    }
    Ok(files)
}

fn read_into(
    source: &dyn ModelFiles,
    path: String,
    want: Want,
    files: &mut Files,
) -> Result<(), Error> {
    let size = files.sizes.get(&path).copied().unwrap_or_default();
    match want {
        Want::Whole => {
            let content = read_first(source, &path, size)?;
            files.contents.insert(path, content);
        }
        Want::SafetensorsHeader => {
            let first = read_first(source, &path, size.min(8))?;
            // A false length allocates no more than the file has.
            let bytes = header_bytes(&path, &first)?.min(size);
            let header = read_first(source, &path, bytes)?;
            files.headers.insert(path, header);
        }
        Want::GgufHeader => {
            let header = read_gguf_header(source, &path, size)?;
            files.headers.insert(path, header);
        }
    }
    Ok(())
}

fn read_first(files: &dyn ModelFiles, path: &str, bytes: u64) -> Result<Vec<u8>, Error> {
    let mut first = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    files.read_at(path, 0, &mut first).map_err(|source| io_error(path, source))?;
    Ok(first)
}

/// The header of a GGUF file of so many bytes.
pub(crate) fn read_gguf_header(
    files: &dyn ModelFiles,
    path: &str,
    size: u64,
) -> Result<Vec<u8>, Error> {
    let mut header = Vec::new();
    loop {
        let have = header.len() as u64;
        let wanted = gguf_bytes(path, size, &header)?;
        if wanted <= have {
            header.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
            header.shrink_to_fit();
            return Ok(header);
        }
        if have >= size {
            return Err(Error::header(path, "it ends inside its header"));
        }
        let upto = usize::try_from(wanted.min(size)).unwrap_or(usize::MAX);
        let known = header.len();
        header.resize(upto, 0);
        let read = files.read_at(path, have, &mut header[known..]);
        read.map_err(|source| io_error(path, source))?;
    }
}

/// The names and sizes of a folder's files. Blocking.
///
/// # Errors
/// When the folder cannot be read, or has too many files to be a model's.
pub fn list_local(dir: &Path) -> Result<BTreeMap<String, u64>, Error> {
    let mut sizes = BTreeMap::new();
    list(dir, "", 0, &mut sizes)?;
    Ok(sizes)
}

fn list(
    dir: &Path,
    prefix: &str,
    depth: usize,
    sizes: &mut BTreeMap<String, u64>,
) -> Result<(), Error> {
    let shown = if prefix.is_empty() { "the model's folder" } else { prefix };
    for entry in fs::read_dir(dir).map_err(|source| io_error(shown, source))? {
        let entry = entry.map_err(|source| io_error(shown, source))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // Follows links: hub caches are folders of links.
        let Ok(meta) = fs::metadata(entry.path()) else {
            continue;
        };
        if sizes.len() >= FILES_MAX {
            return Err(Error::UnknownKind {
                expected: "a model's folder",
                found: format!("more than {FILES_MAX} files"),
            });
        }
        if meta.is_dir() && depth < DEPTH_MAX {
            list(&entry.path(), &format!("{prefix}{name}/"), depth + 1, sizes)?;
        } else if meta.is_file() {
            sizes.insert(format!("{prefix}{name}"), meta.len());
        }
    }
    Ok(())
}

pub(crate) fn io_error(file: &str, source: std::io::Error) -> Error {
    Error::Io { file: file.into(), source }
}
