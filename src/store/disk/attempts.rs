//! Loads during which the process died.
//!
//! A marker is on disk while a load runs. One that is still there when the folder is
//! opened counts as a death; a load that ends, well or badly, clears the count.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roundhouse_types::ArtefactId;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::layout::{entries, folder_name, write_durably};
use crate::Error;

#[derive(Serialize, Deserialize)]
struct Marker {
    id: ArtefactId,
    deaths: u32,
    loading: bool,
}

/// The counts, in memory and on disk. One owner: the disk cache.
#[derive(Debug)]
pub(super) struct Attempts {
    folder: PathBuf,
    counts: Mutex<HashMap<ArtefactId, Count>>,
    /// Markers are written one at a time, in the order of the calls.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    deaths: u32,
    loading: u32,
}

impl Attempts {
    /// Reads the markers and counts those of loads that never ended.
    pub(super) fn open(folder: PathBuf) -> Result<Self, Error> {
        let mut counts = HashMap::new();
        for path in entries(&folder)? {
            if path.extension().is_some_and(|ending| ending == "new") {
                // Cut off before its rename: the marker beside it, if any, is the truth.
                fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
                continue;
            }
            let text = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
            let Ok(mut marker) = serde_json::from_slice::<Marker>(&text) else {
                fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
                continue;
            };
            if marker.loading {
                marker.deaths = marker.deaths.saturating_add(1);
                marker.loading = false;
                if let Err(error) = write(&path, &marker) {
                    // A full disk must not keep the server from starting.
                    warn!(file = %path.display(), %error, "a death could not be written down");
                }
            }
            counts.insert(marker.id, Count { deaths: marker.deaths, loading: 0 });
        }
        Ok(Self { folder, counts: Mutex::new(counts), writing: tokio::sync::Mutex::new(()) })
    }

    pub(super) fn deaths(&self, id: &ArtefactId) -> u32 {
        self.lock().get(id).map_or(0, |count| count.deaths)
    }

    /// Puts the marker on disk before a load begins.
    pub(super) async fn begin(self: &Arc<Self>, id: &ArtefactId) -> Result<(), Error> {
        let _turn = self.writing.lock().await;
        let deaths = {
            let mut counts = self.lock();
            let count = counts.entry(id.clone()).or_default();
            count.loading += 1;
            count.deaths
        };
        let (path, marker) = (self.path(id), Marker { id: id.clone(), deaths, loading: true });
        crate::file::blocking(move || write(&path, &marker)).await
    }

    /// Takes the marker away when a load has ended, and clears the deaths.
    pub(super) async fn end(self: &Arc<Self>, id: &ArtefactId) -> Result<(), Error> {
        let _turn = self.writing.lock().await;
        let running = {
            let mut counts = self.lock();
            let running = counts.get(id).map_or(0, |count| count.loading.saturating_sub(1));
            if running == 0 {
                counts.remove(id);
            } else {
                counts.insert(id.clone(), Count { deaths: 0, loading: running });
            }
            running
        };
        let (path, marker) = (self.path(id), Marker { id: id.clone(), deaths: 0, loading: true });
        crate::file::blocking(move || {
            if running > 0 {
                return write(&path, &marker);
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::io("remove", &path, error))
                }
                _ => Ok(()),
            }
        })
        .await
    }

    fn path(&self, id: &ArtefactId) -> PathBuf {
        self.folder.join(format!("{}.json", folder_name(id)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ArtefactId, Count>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(path: &std::path::Path, marker: &Marker) -> Result<(), Error> {
    let text = serde_json::to_vec(marker)
        .map_err(|error| Error::Internal(format!("a marker cannot be written: {error}")))?;
    write_durably(path, &text)
}
