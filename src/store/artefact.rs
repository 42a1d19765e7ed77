//! One immutable version of a target's files, as the store has it.

use std::collections::BTreeSet;
use std::time::SystemTime;

use roundhouse_types::{ArtefactId, Bytes, ModelId, Version};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, ObjectMeta};

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArchiveKind {
    /// `.tar`
    Tar,
    /// `.tar.gz` or `.tgz`
    TarGz,
    /// `.tar.zst`
    TarZst,
}

impl ArchiveKind {
    /// The kind that a key's ending tells.
    pub fn of(key: &str) -> Option<Self> {
        let endings = [
            (".tar.gz", Self::TarGz),
            (".tgz", Self::TarGz),
            (".tar", Self::Tar),
            (".tar.zst", Self::TarZst),
        ];
        endings.into_iter().find(|(ending, _)| key.ends_with(ending)).map(|(_, kind)| kind)
    }
}

/// Where a target lies, told apart from every other place: its store's
/// [`identity`](crate::ArtifactStore::identity) and its key there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Origin(pub(crate) String);

/// One object of an artefact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteFile {
    /// Relative to the artefact's folder, safe to join.
    pub path: String,
    /// The object's key, relative to the mount's store.
    pub key: String,
    /// In bytes.
    pub size: u64,
    /// What reads are pinned to.
    pub etag: String,
    /// When the store says it was last written.
    pub modified: Option<SystemTime>,
}

/// One immutable version of a target's files. Plain data; whether they are on disk
/// is the disk cache's to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    /// The model and the digest over all files' paths, tags and sizes.
    pub id: ArtefactId,
    /// The files, in the byte order of their paths. An archive is one file.
    pub files: Vec<RemoteFile>,
    /// Set when the only file is an archive to unpack.
    pub archive: Option<ArchiveKind>,
    /// The sum of the files' sizes: what a fetch reads from the store.
    pub bytes: Bytes,
}

impl Artefact {
    /// The file at a path.
    pub fn file(&self, path: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Makes an artefact of listed objects whose keys all begin with `base`.
    pub(crate) fn new(
        model: ModelId,
        base: &str,
        objects: &[ObjectMeta],
        archive: Option<ArchiveKind>,
    ) -> Result<Self, Error> {
        let invalid = |why: String| Error::Invalid { model: model.to_string(), why };
        let mut files = Vec::with_capacity(objects.len());
        let mut bytes = Bytes::ZERO;
        for object in objects {
            let path = object.key.strip_prefix(base).unwrap_or(&object.key);
            if let Err(why) = check_path(path) {
                return Err(invalid(format!("the name '{}' {why}", path.escape_debug())));
            }
            bytes = bytes
                .checked_add(Bytes(object.size))
                .ok_or_else(|| invalid("its sizes add up to more than 64 bits".into()))?;
            files.push(RemoteFile {
                path: path.into(),
                key: object.key.clone(),
                size: object.size,
                etag: object.etag.clone(),
                modified: object.modified,
            });
        }
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        if let Some(path) = file_and_folder(&files) {
            return Err(invalid(format!("'{path}' is both a file and a folder")));
        }
        let version = version(&files);
        Ok(Self { id: ArtefactId { model, version }, files, archive, bytes })
    }
}

/// The digest over every file's path, tag and size. Each text is preceded by its
/// length, so that no two lists read the same.
fn version(files: &[RemoteFile]) -> Version {
    let mut digest = Sha256::new();
    for file in files {
        for text in [&file.path, &file.etag] {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        }
        digest.update(file.size.to_le_bytes());
    }
    Version::from_digest(&hex(&digest.finalize()))
}

/// A path that is also a folder of another path.
fn file_and_folder(files: &[RemoteFile]) -> Option<&str> {
    let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    paths.iter().copied().find(|path| {
        let mut folder = *path;
        while let Some((parent, _)) = folder.rsplit_once('/') {
            if paths.contains(parent) {
                return true;
            }
            folder = parent;
        }
        false
    })
}

/// The longest name that the usual file systems take.
const SEGMENT_MAX: usize = 255;
/// The longest path below the artefact's folder.
const PATH_MAX: usize = 1024;

/// Whether a relative path can be joined to a folder and stays inside; the text says
/// which rule it breaks.
pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("is empty");
    }
    if path.len() > PATH_MAX {
        return Err("is longer than 1024 bytes");
    }
    if path.starts_with('/') {
        return Err("is absolute");
    }
    if path.chars().any(|c| c.is_control() || c == '\\') {
        return Err("has a control character or a backslash");
    }
    for segment in path.split('/') {
        match segment {
            "" => return Err("has an empty segment"),
            "." | ".." => return Err("has a '.' or '..' segment"),
            _ if segment.len() > SEGMENT_MAX => {
                return Err("has a segment longer than 255 bytes");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str, size: u64, etag: &str) -> ObjectMeta {
        ObjectMeta { key: key.into(), size, etag: etag.into(), modified: None, checksum: None }
    }

    fn model() -> ModelId {
        ModelId { endpoint: "ep".parse().unwrap(), target: "m".parse().unwrap() }
    }

    fn version_of(objects: &[ObjectMeta]) -> Version {
        Artefact::new(model(), "m/", objects, None).unwrap().id.version
    }

    #[test]
    fn a_version_follows_keys_tags_and_sizes_and_not_their_order() {
        let a = object("m/a", 1, "x");
        let b = object("m/b", 2, "y");
        let version = version_of(&[a.clone(), b.clone()]);
        assert_eq!(version, version_of(&[b.clone(), a.clone()]));
        for other in [object("m/c", 2, "y"), object("m/b", 3, "y"), object("m/b", 2, "z")] {
            assert_ne!(version, version_of(&[a.clone(), other]));
        }
        assert_ne!(version, version_of(&[a]));
        assert_ne!(
            version_of(&[object("m/ab", 1, "c")]),
            version_of(&[object("m/a", 1, "bc")]),
            "texts must not run into each other"
        );
    }

    #[test]
    fn keys_that_leave_the_folder_or_contradict_are_refused() {
        let long = format!("m/{}", "a".repeat(256));
        for key in
            ["m/../x", "m/a/./b", "m/a//b", "m//a", "m/a\\b", "m/a\nb", "m/..", long.as_str()]
        {
            let outcome = Artefact::new(model(), "m/", &[object(key, 1, "x")], None);
            assert!(matches!(outcome, Err(Error::Invalid { .. })), "{key}");
        }
        let both = [object("m/a", 1, "x"), object("m/a-b", 1, "x"), object("m/a/b/c", 1, "y")];
        assert!(Artefact::new(model(), "m/", &both, None).is_err());
    }
}
