//! What engines and containers call our models, and where they find their files.

use std::path::{Path, PathBuf};

use roundhouse_types::{ArtefactId, ErrorKind, Failure};
use sha2::{Digest, Sha256};

/// What of a target's name an engine's name for an adapter shows.
const NAME_SHOWN: usize = 64;

/// The folder with a model's files, or the file where there is but one. Blocking.
pub(super) fn model_path(dir: &Path) -> Result<String, Failure> {
    let folder = canonical(dir)?;
    let unreadable = |error: std::io::Error| {
        Failure::new(ErrorKind::ModelInvalid, format!("its files cannot be read: {error}"))
    };
    let mut entries = std::fs::read_dir(&folder).map_err(unreadable)?;
    let path = match (entries.next(), entries.next()) {
        (Some(Ok(only)), None) if only.file_type().is_ok_and(|it| it.is_file()) => only.path(),
        _ => folder,
    };
    path.into_os_string()
        .into_string()
        .map_err(|_| Failure::new(ErrorKind::ModelInvalid, "the name of its file is not UTF-8"))
}

pub(super) fn canonical(dir: &Path) -> Result<PathBuf, Failure> {
    dir.canonicalize().map_err(|error| {
        Failure::new(ErrorKind::ModelInvalid, format!("its folder cannot be read: {error}"))
    })
}

/// What an engine calls an adapter: nobody else's name, in letters that every engine takes.
pub(super) fn adapter_name(id: &ArtefactId) -> String {
    let digest = digest(id, 6);
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    let shown: String = id.model.target.as_str().chars().take(NAME_SHOWN).map(plain).collect();
    format!("{shown}-{digest}")
}

/// The first bytes of a digest of all that names a version, in hexadecimal digits.
pub(super) fn digest(id: &ArtefactId, bytes: usize) -> String {
    let mut digest = Sha256::new();
    for text in [id.model.endpoint.as_str(), id.model.target.as_str(), id.version.as_str()] {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    digest.finalize().iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use roundhouse_types::{ModelId, Version};

    use super::*;

    #[test]
    fn engines_names_for_adapters_are_plain_and_nobody_elses() {
        let id = |target: &str, version: &str| ArtefactId {
            model: ModelId { endpoint: "e".parse().unwrap(), target: target.parse().unwrap() },
            version: Version::from_digest(version),
        };
        let name = adapter_name(&id("acme/é:x", "0b"));
        assert!(name.starts_with("acme---x-"), "{name}");
        assert_eq!(name, adapter_name(&id("acme/é:x", "0b")));
        for other in [id("acme/ü:x", "0b"), id("acme/é:x", "0c")] {
            assert_ne!(name, adapter_name(&other));
        }
    }

    #[test]
    fn a_model_of_one_file_is_that_file_and_any_other_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().canonicalize().unwrap().join(name);
        std::fs::write(path("a.gguf"), "x").unwrap();
        assert_eq!(model_path(folder.path()).unwrap(), path("a.gguf").to_str().unwrap());
        std::fs::write(path("b"), "x").unwrap();
        assert_eq!(Path::new(&model_path(folder.path()).unwrap()), path("").as_path());
    }
}
