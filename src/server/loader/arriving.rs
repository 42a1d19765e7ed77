//! From files that are still coming to a model: what has arrived is read meanwhile.
//!
//! A load has a marker on disk, so that a model that kills the process is known by it. One that
//! reads behind its fetch would have it for as long as the download takes, and then whatever ends
//! the process meanwhile would be blamed on it. So the marker stands while the tokenizer is read, and
//! from the end of the fetch on. A model that kills the process by its weights before that is marked
//! when its files are whole, which they are after as many restarts as its download needs.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use roundhouse_models::{Cancel, DeviceMemory, Digests, Error, ModelFiles, ModelPlan, load_files};
use roundhouse_serving::TextCodec;
use roundhouse_store::{ArrivingFiles, Artefact, DiskCache};
use roundhouse_types::{ArtefactId, Bytes, DeviceId, ErrorKind, Failure, RetryHint};

use super::load::{Files, Origin, Read};
use super::plan::Plan;
use super::sharing::Shares;
use super::{ModelLoader, blocking, locked, purpose};
use crate::allocator;

/// Whether a load of a version may begin while its files are coming: its weights lie in files
/// that can be read from the first byte to the last.
///
/// Not where such a load has failed before its files were verified: they may be damaged, which is
/// found out at the end of a fetch, and a failed load ends its fetch.
pub(super) fn streams(artefact: &Artefact, plan: Option<&Plan>, has_failed: bool) -> bool {
    let is_weights = |path: &str| path.ends_with(WEIGHTS);
    !has_failed
        && matches!(plan, Some(Plan::Model(_)))
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

    /// Reads a model behind its fetch. Returns when that has ended well.
    pub(super) async fn read_arriving(
        &self,
        cache: &DiskCache,
        id: &ArtefactId,
        arriving: ArrivingFiles,
        plan: &Arc<ModelPlan>,
        device: DeviceId,
    ) -> Result<Read, Failure> {
        let files = Arc::new(Behind { arriving, broken: Mutex::default() });
        let small = Arc::clone(&files);
        let folder = blocking(move || small.folder_with_text()).await?;
        self.mark(cache, id).await;
        let text = blocking({
            let plan = Arc::clone(plan);
            move || read_text(&folder, &plan)
        });
        let text = text.await;
        self.unmark(cache, id).await;
        let (memory, shares) = (self.memory(device), Arc::clone(&self.shares));
        let (early, plan, reader) = (text?, Arc::clone(plan), id.clone());
        blocking(move || files.read(&reader, early, &plan, &memory, &shares)).await
    }

    /// The failure of a load behind its fetch. Where the files were not verified by then, it may be
    /// theirs or that of damaged bytes: then the next load waits until they are.
    pub(super) fn failed_behind(
        &self,
        cache: &DiskCache,
        id: &ArtefactId,
        failure: Failure,
    ) -> Failure {
        if failure.kind() != ErrorKind::ModelInvalid || cache.get(id).is_some() {
            return failure;
        }
        let mut known = self.recall(id);
        known.failed_unverified = true;
        self.remember(id, known);
        let message = format!(
            "{failure}; its files were not verified by then, the next load does that first"
        );
        Failure::new(failure.kind(), message).with_retry(failure.retry())
    }
}

/// The tokenizer and what it takes. `None` where the folder moved meanwhile, because the fetch has
/// ended. Blocking.
fn read_text(folder: &Path, plan: &ModelPlan) -> Result<Option<(TextCodec, Bytes)>, Failure> {
    let (text, taken) = allocator::counted(|| purpose::open_text(folder, plan));
    // It moves once, so what is there now was there all the time: a file that was missing is
    // missing, and not gone.
    match folder.exists() {
        true => Ok(Some((text?, taken))),
        false => Ok(None),
    }
}

/// Files behind their fetch.
struct Behind {
    arriving: ArrivingFiles,
    /// What the fetch failed with, where that ended a read.
    broken: Mutex<Option<Failure>>,
}

impl Behind {
    /// The folder, when all that comes before the weights is there.
    fn folder_with_text(&self) -> Result<PathBuf, Failure> {
        let files = &self.arriving.artefact().files;
        let small = files.iter().map(|file| file.path.as_str()).filter(|p| !p.ends_with(WEIGHTS));
        Ok(self.arriving.folder_with(small)?)
    }

    /// Reads the weights, and what is not `early`. Returns when the fetch has ended well.
    fn read(
        &self,
        id: &ArtefactId,
        early: Option<(TextCodec, Bytes)>,
        plan: &ModelPlan,
        memory: &DeviceMemory,
        shares: &Shares,
    ) -> Result<Read, Failure> {
        // Nothing is known of its content before it has been read.
        let sharing = shares.of(id, memory.id(), Digests::default());
        let loaded = load_files(self, plan, memory, &Cancel::default(), sharing.as_ref());
        if let Some(failure) = locked(&self.broken).take() {
            return Err(failure);
        }
        let loaded = loaded?;
        let cached = self.arriving.whole()?;
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
