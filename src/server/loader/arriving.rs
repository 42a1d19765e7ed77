//! From files that are still coming to a model: what has arrived is read meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use roundhouse_models::{Cancel, DeviceMemory, Digests, Error, ModelFiles, ModelPlan, load_files};
use roundhouse_serving::TextCodec;
use roundhouse_store::{ArrivingFiles, Artefact, DiskCache};
use roundhouse_types::{ArtefactId, Bytes, ErrorKind, Failure, RetryHint};

use super::load::{Files, Origin, Read};
use super::plan::Plan;
use super::sharing::Shares;
use super::{ModelLoader, locked, purpose};
use crate::allocator;

/// Whether a load of a version may begin while its files are coming: its weights lie in files
/// that can be read from the first byte to the last.
pub(super) fn streams(artefact: &Artefact, plan: Option<&Plan>) -> bool {
    let is_weights = |path: &str| path.ends_with(WEIGHTS);
    matches!(plan, Some(Plan::Model(_)))
        && artefact.archive.is_none()
        && artefact.files.iter().any(|file| is_weights(&file.path))
}

/// What the files with weights are called.
const WEIGHTS: &str = ".safetensors";

impl ModelLoader {
    /// Where a load begins that need not wait for its fetch: behind it, or with the files if it
    /// has ended by now.
    pub(super) fn arriving(&self, cache: &DiskCache, id: &ArtefactId) -> Result<Origin, Failure> {
        if let (Some(arriving), Some(Plan::Model(plan))) =
            (cache.arriving(id), self.recall(id).plan)
        {
            return Ok(Origin::Arriving(arriving, plan));
        }
        let Some(cached) = cache.get(id) else {
            let failure = Failure::new(ErrorKind::NotReady, format!("the fetch of {id} has ended"));
            return Err(failure.with_retry(RetryHint::Later));
        };
        Ok(Origin::Files(Files { dir: cached.dir().to_owned(), held: Some(cached) }))
    }
}

/// Reads a model behind its fetch. Returns when that has ended well. Blocking.
pub(super) fn read(
    id: &ArtefactId,
    arriving: ArrivingFiles,
    plan: &ModelPlan,
    memory: &DeviceMemory,
    shares: &Shares,
) -> Result<Read, Failure> {
    let files = Behind { arriving, broken: Mutex::default() };
    let early = files.read_text(plan)?;
    // Nothing is known of its content before it has been read.
    let sharing = shares.of(id, memory.id(), Digests::default());
    let cancel = Cancel::default();
    let loaded = load_files(&files, plan, memory, &cancel, sharing.as_ref());
    if let Some(failure) = locked(&files.broken).take() {
        return Err(failure);
    }
    let loaded = loaded?;
    let cached = files.arriving.whole()?;
    let (text, taken) = match early {
        Some(read) => read,
        None => {
            let (text, taken) = allocator::counted(|| purpose::open_text(cached.dir(), plan));
            (text?, taken)
        }
    };
    allocator::give_back();
    Ok(Read { loaded, text, taken })
}

/// Files behind their fetch.
struct Behind {
    arriving: ArrivingFiles,
    /// What the fetch failed with, where that ended a read.
    broken: Mutex<Option<Failure>>,
}

impl Behind {
    /// The tokenizer, which comes before the weights, and what it takes. `None` where the folder
    /// moved meanwhile, because the fetch has ended.
    fn read_text(&self, plan: &ModelPlan) -> Result<Option<(TextCodec, Bytes)>, Failure> {
        let files = &self.arriving.artefact().files;
        let small = files.iter().map(|file| file.path.as_str()).filter(|p| !p.ends_with(WEIGHTS));
        let folder = self.arriving.folder_with(small)?;
        let (text, taken) = allocator::counted(|| purpose::open_text(&folder, plan));
        // It moves once, so what is there now was there all the time: a file that was missing is
        // missing, and not gone.
        match folder.exists() {
            true => Ok(Some((text?, taken))),
            false => Ok(None),
        }
    }
}

impl ModelFiles for Behind {
    fn sizes(&self) -> Result<BTreeMap<String, u64>, Error> {
        let files = &self.arriving.artefact().files;
        Ok(files.iter().map(|file| (file.path.clone(), file.size)).collect())
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.arriving.read_at(path, offset, buffer).map_err(|error| {
            let told = io::Error::other(error.to_string());
            *locked(&self.broken) = Some(error.into());
            told
        })
    }
}
