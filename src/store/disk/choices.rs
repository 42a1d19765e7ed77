//! The versions that models are held at, remembered across restarts.
//!
//! One small file per model that is held; where there is none, the store decides. A file is
//! there whole or not at all, so a crash leaves the choice before or the one after it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use roundhouse_types::{ArtefactId, ModelId, Version};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::layout::{entries, folder_name, write_durably};
use crate::Error;

/// Models that can be held at a version. Each takes one block of the file system.
const MAX_HELD: usize = 100_000;

/// The version that a model is held at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The version.
    pub version: Version,
    /// Who holds it there.
    pub by: ChosenBy,
    /// Since when.
    pub since: SystemTime,
}

/// Who holds a model at a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChosenBy {
    /// An operator named the version.
    Operator,
    /// The endpoint's update rule: it is what was served when the rule began to count.
    Rule,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    model: ModelId,
    #[serde(flatten)]
    choice: Choice,
}

/// The choices, in memory and on disk. One owner: the disk cache.
#[derive(Debug)]
pub(super) struct Choices {
    folder: PathBuf,
    held: Mutex<HashMap<ModelId, Choice>>,
    /// Files are written one at a time, in the order of the calls.
    writing: tokio::sync::Mutex<()>,
}

impl Choices {
    /// Reads what was remembered; what cannot be read is passed over. Blocks.
    pub(super) fn open(folder: PathBuf) -> Result<Self, Error> {
        let mut held = HashMap::new();
        for path in entries(&folder)? {
            match open_one(&path) {
                Ok(Some(entry)) => drop(held.insert(entry.model, entry.choice)),
                Ok(None) => {}
                // One model's choice must not keep all others from being served.
                Err(error) => {
                    let file = path.display();
                    warn!(%file, %error, "a remembered version cannot be read, passed over");
                }
            }
        }
        Ok(Self { folder, held: Mutex::new(held), writing: tokio::sync::Mutex::new(()) })
    }

    pub(super) fn of(&self, model: &ModelId) -> Option<Choice> {
        self.lock().get(model).cloned()
    }

    pub(super) fn all(&self) -> Vec<(ModelId, Version)> {
        let held = self.lock();
        held.iter().map(|(model, choice)| (model.clone(), choice.version.clone())).collect()
    }

    /// Puts a choice on disk, then in memory.
    pub(super) async fn set(
        self: &Arc<Self>,
        model: &ModelId,
        choice: Choice,
    ) -> Result<(), Error> {
        let _turn = self.writing.lock().await;
        {
            let held = self.lock();
            if held.len() >= MAX_HELD && !held.contains_key(model) {
                return Err(Error::TooManyHeld { model: model.to_string(), limit: MAX_HELD });
            }
        }
        let path = self.path(model);
        let entry = Entry { model: model.clone(), choice: choice.clone() };
        crate::file::blocking(move || write(&path, &entry)).await?;
        self.lock().insert(model.clone(), choice);
        Ok(())
    }

    /// Forgets a choice and says which one it was.
    pub(super) async fn clear(self: &Arc<Self>, model: &ModelId) -> Result<Option<Choice>, Error> {
        let _turn = self.writing.lock().await;
        if self.of(model).is_none() {
            return Ok(None);
        }
        let path = self.path(model);
        crate::file::blocking(move || remove(&path)).await?;
        Ok(self.lock().remove(model))
    }

    fn path(&self, model: &ModelId) -> PathBuf {
        let id = ArtefactId { model: model.clone(), version: Version::from_digest("") };
        self.folder.join(format!("{}.json", folder_name(&id)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ModelId, Choice>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The choice in a file; one that holds none is deleted.
fn open_one(path: &Path) -> Result<Option<Entry>, Error> {
    let is_cut_off = path.extension().is_some_and(|ending| ending == "new");
    let entry = if is_cut_off { None } else { read(path)? };
    if entry.is_none() {
        if !is_cut_off {
            warn!(file = %path.display(), "a remembered version is damaged, forgotten");
        }
        remove(path)?;
    }
    Ok(entry)
}

/// `None` for a file that holds no choice.
fn read(path: &Path) -> Result<Option<Entry>, Error> {
    let text = fs::read(path).map_err(|error| Error::io("read", path, error))?;
    Ok(serde_json::from_slice(&text).ok())
}

fn write(path: &Path, entry: &Entry) -> Result<(), Error> {
    let text = serde_json::to_vec(entry)
        .map_err(|error| Error::Internal(format!("a choice cannot be written: {error}")))?;
    write_durably(path, &text)
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path, error))
        }
        _ => Ok(()),
    }
}
