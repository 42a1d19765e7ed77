//! Models in folders that someone else put on this machine: the container contract's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use roundhouse_types::{ErrorKind, Failure, ModelId, TargetName, Version};
use sha2::{Digest, Sha256};

/// A model that the platform announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announced {
    /// The `url` as it was given.
    pub(crate) url: String,
    /// The folder, checked and canonical.
    pub(crate) folder: PathBuf,
}

/// Names and folders, as announced and not yet withdrawn.
#[derive(Debug, Default)]
pub(crate) struct LocalModels {
    announced: Mutex<BTreeMap<TargetName, Announced>>,
    /// A folder all of whose folders are announced by their paths.
    root: Option<PathBuf>,
}

impl LocalModels {
    /// The folders below one that an operator named.
    pub(crate) fn below(root: PathBuf) -> Self {
        Self { announced: Mutex::default(), root: Some(root) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TargetName, Announced>> {
        // A map whose holder panicked is whole: entries are inserted or removed at once.
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a model; `false` where the name is taken.
    pub(crate) fn announce(&self, name: TargetName, model: Announced) -> bool {
        let mut models = self.lock();
        if models.contains_key(&name) {
            return false;
        }
        models.insert(name, model);
        true
    }

    /// Forgets a model.
    pub(crate) fn withdraw(&self, name: &str) -> Option<Announced> {
        self.lock().remove(name)
    }

    /// One model.
    pub(crate) fn get(&self, name: &str) -> Option<Announced> {
        self.lock().get(name).cloned()
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<(TargetName, Announced)> {
        self.lock().iter().map(|(name, model)| (name.clone(), model.clone())).collect()
    }
}

/// Where a model lies. Blocking where folders are announced by their paths.
pub(super) fn announced(models: &LocalModels, model: &ModelId) -> Result<Announced, Failure> {
    let below = || {
        // A target has no `..`, and links below the root are its owner's.
        let folder = models.root.as_ref()?.join(model.target.as_str());
        folder.is_dir().then(|| Announced { url: folder.display().to_string(), folder })
    };
    models
        .get(model.target.as_str())
        .or_else(below)
        .ok_or_else(|| Failure::new(ErrorKind::ModelNotFound, format!("{model} is not announced")))
}

/// The folder that holds the model: the one given, or its only sub-folder where an archive
/// was packed with a folder at its top; `code` is a part of a model, never its top.
pub(crate) fn model_folder(folder: &Path) -> PathBuf {
    let Ok(entries) = std::fs::read_dir(folder) else { return folder.to_owned() };
    let entries: Vec<_> = entries.filter_map(Result::ok).collect();
    match entries.as_slice() {
        [only] if only.path().is_dir() && only.file_name() != "code" => only.path(),
        _ => folder.to_owned(),
    }
}

/// A digest over the files' names, sizes and times: a folder that the platform replaces
/// under the same name is another version. Blocking.
pub(crate) fn version(folder: &Path) -> Result<Version, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::new(ErrorKind::ModelInvalid, format!("{}: {error}", folder.display()))
    };
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let metadata = entry.metadata().map_err(unreadable)?;
        entries.push((entry.file_name(), metadata.len(), metadata.modified().ok()));
    }
    entries.sort();
    let mut digest = Sha256::new();
    for entry in entries {
        digest.update(format!("{entry:?}\n"));
    }
    Ok(Version::from_digest(&format!("{:x}", digest.finalize())))
}
