//! The disk cache: whole, verified versions of models, within a bound of bytes.

mod arrival;
mod attempts;
mod cached;
mod choices;
mod digest;
mod extents;
mod fetch;
mod flight;
mod found;
mod gone;
mod held;
mod journal;
mod layout;
mod ledger;
mod manifest;
mod notes;
mod pace;
mod pieces;
mod recipe;
mod share;
mod skim;
mod standing;
mod tenants;
#[cfg(test)]
mod tests;
mod unpack;
mod verify;

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use roundhouse_types::{ArtefactId, Bytes, ModelId, Version};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::info;

pub use self::arrival::ArrivingFiles;
use self::arrival::{Arrival, Ending};
use self::attempts::Attempts;
pub use self::cached::CachedArtefact;
use self::choices::Choices;
pub use self::choices::{Choice, ChosenBy};
use self::fetch::Fetch;
use self::found::{find_partial, find_whole};
use self::gone::Gone;
use self::held::Held;
use self::layout::{Layout, MANIFEST};
use self::ledger::{Ledger, off_thread};
pub use self::manifest::DiskFile;
use self::pace::Paces;
pub use self::pace::Payer;
pub use self::pieces::{Digest, Piece};
pub use self::skim::{Skimmed, remembered, skim};
pub use self::tenants::{DiskLimits, TenantOnDisk};
use crate::file::blocking;
use crate::progress::{Counters, Stage};
use crate::{Artefact, Catalog, Error, Progress, metrics};

/// Where the cache is and what it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// The cache's own folder; made if it is not there.
    pub dir: PathBuf,
    /// The most that all its files may take, partial ones and archives included.
    pub size: Bytes,
    /// The most bytes that may be in memory on their way from stores to disk.
    pub in_flight: Bytes,
    /// The size of one ranged read.
    pub part: Bytes,
    /// Ranged reads of one artefact at the same time.
    pub concurrency: usize,
    /// The most that one archive may unpack to; by default 20 times its size, 1 GiB at
    /// least. The cache's size bounds it too.
    pub unpacked: Option<Bytes>,
}

impl CacheConfig {
    /// A cache in a folder with a size, everything else by default.
    pub fn new(dir: impl Into<PathBuf>, size: Bytes) -> Self {
        Self {
            dir: dir.into(),
            size,
            in_flight: Bytes::mib(256),
            part: Bytes::mib(8),
            concurrency: 8,
            unpacked: None,
        }
    }
}

/// What the cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheUsage {
    /// The most it may hold.
    pub budget: Bytes,
    /// What it holds and has promised, everything included.
    pub used: Bytes,
    /// The part of it that belongs to fetches, running or abandoned.
    pub partial: Bytes,
    /// How much more that would be if versions held nothing together.
    pub shared: Bytes,
    /// Whole artefacts.
    pub artefacts: usize,
}

/// A version that is whole on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskVersion {
    /// The version.
    pub version: Version,
    /// What it takes on disk, with what it has in common with others.
    pub bytes: Bytes,
    /// When its files were whole.
    pub fetched_at: SystemTime,
    /// When it was last asked for.
    pub used_at: SystemTime,
}

/// A version that was removed from disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purged {
    /// The version.
    pub version: Version,
    /// What it took there and nobody else has.
    pub bytes: Bytes,
    /// Somebody still holds its files: they go when the last one lets go.
    pub in_use: bool,
}

type Outcome = Result<Arc<Held>, Error>;

/// A fetch for as long as somebody waits for it.
struct Running {
    fetch: WeakShared<BoxFuture<'static, Outcome>>,
    counters: Arc<Counters>,
    arrival: Weak<Arrival>,
}

/// The cache. Clones are the same cache; the folder is unlocked when the last is gone.
#[derive(Clone)]
pub struct DiskCache {
    inner: Arc<Inner>,
}

struct Inner {
    config: CacheConfig,
    ledger: Arc<Ledger>,
    attempts: Arc<Attempts>,
    choices: Arc<Choices>,
    gone: Arc<Gone>,
    paces: Arc<Paces>,
    in_flight: Arc<Semaphore>,
    fetches: Mutex<Fetches>,
    /// One version at a time looks for what it has in common with others.
    sharing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Fetches {
    running: HashMap<ArtefactId, Running>,
    turns: HashMap<ArtefactId, Arc<tokio::sync::Mutex<()>>>,
}

impl DiskCache {
    /// Locks the folder and finds out what is whole in it. What is neither whole nor
    /// can be gone on with is deleted; so is what exceeds the size.
    pub async fn open(config: CacheConfig) -> Result<Self, Error> {
        blocking(move || {
            let layout = Layout::open(&config.dir)?;
            let attempts = Arc::new(Attempts::open(layout.attempts())?);
            let choices = Arc::new(Choices::open(layout.choices())?);
            let gone = Arc::new(Gone::open(layout.gone())?);
            let ledger = Ledger::new(layout, config.size);
            for (model, version) in choices.all() {
                ledger.hold_at(&model, Some(version));
            }
            find_whole(&ledger)?;
            find_partial(&ledger)?;
            gone.prune(&ledger);
            ledger.forget_loads(|model, origin| gone.has(model, origin));
            ledger.settle();
            ledger.shrink();
            let usage = ledger.usage();
            info!(dir = %config.dir.display(), artefacts = usage.artefacts, used = %usage.used, budget = %usage.budget, "disk cache opened");
            let permits = (config.in_flight.0 / 1024).clamp(1, u64::from(u32::MAX));
            let permits = usize::try_from(permits).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
            let in_flight = Arc::new(Semaphore::new(permits));
            let fetches = Mutex::default();
            let sharing = Arc::default();
            let paces = Arc::default();
            let inner = Inner { config, ledger, attempts, choices, gone, paces, in_flight, fetches, sharing };
            Ok(Self { inner: Arc::new(inner) })
        })
        .await
    }

    /// Brings a version to disk, whole and verified, or says that it is there.
    ///
    /// Concurrent calls for one version share one fetch, which ends when the last of
    /// them is dropped; ranges that are on disk are not fetched again the next time.
    /// [`Error::Changed`] means that the store has another version now: the catalogue
    /// has forgotten this one and can be asked again at once.
    pub async fn fetch(
        &self,
        catalog: &Catalog,
        artefact: &Artefact,
        progress: &Progress,
    ) -> Result<CachedArtefact, Error> {
        self.fetch_for(Payer::default(), catalog, artefact, progress).await
    }

    /// The same on behalf of a tenant: its fetches together bring no more in a second than
    /// [`DiskCache::set_load_bandwidths`] says. Whom a fetch that is shared is charged to is who
    /// began it.
    pub async fn fetch_for(
        &self,
        payer: Payer,
        catalog: &Catalog,
        artefact: &Artefact,
        progress: &Progress,
    ) -> Result<CachedArtefact, Error> {
        let source = catalog.source(artefact)?;
        let (fetch, counters) = self.join(source, artefact, payer);
        progress.show(counters);
        let outcome = fetch.await;
        if let Err(Error::Changed { .. } | Error::ObjectNotFound { .. }) = &outcome {
            catalog.forget(&artefact.id.model.target).await;
        }
        match outcome {
            // Listed a moment ago and gone now: it is being replaced or was deleted.
            Err(Error::ObjectNotFound { store, key }) => Err(Error::Changed { store, key }),
            outcome => outcome.map(CachedArtefact::new),
        }
    }

    /// The files of a version whose fetch is under way, to be read as they arrive; `None`
    /// when nobody waits for a fetch of it.
    pub fn arriving(&self, id: &ArtefactId) -> Option<ArrivingFiles> {
        let fetches = self.inner.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        let running = fetches.running.get(id)?;
        let is_wanted = running.fetch.upgrade().is_some();
        let arrival = running.arrival.upgrade().filter(|_| is_wanted);
        arrival.map(ArrivingFiles::new)
    }

    /// The running fetch of a version, or a new one.
    fn join(
        &self,
        source: crate::catalog::Source,
        artefact: &Artefact,
        payer: Payer,
    ) -> (Shared<BoxFuture<'static, Outcome>>, Arc<Counters>) {
        let id = &artefact.id;
        let mut fetches = self.inner.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = fetches.running.get(id)
            && let Some(fetch) = running.fetch.upgrade().filter(|fetch| fetch.peek().is_none())
        {
            return (fetch, Arc::clone(&running.counters));
        }
        // One that has ended is known for as long as somebody reads its files.
        fetches.running.retain(|_, running| {
            running.fetch.upgrade().is_some() || running.arrival.strong_count() > 0
        });
        fetches.turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        let turn = Arc::clone(fetches.turns.entry(id.clone()).or_default());
        let counters = Counters::new(artefact.bytes.0);
        let arrival = Arrival::new(artefact);
        let weak_arrival = Arc::downgrade(&arrival);
        let fetch = Fetch {
            ledger: Arc::clone(&self.inner.ledger),
            config: self.inner.config.clone(),
            in_flight: Arc::clone(&self.inner.in_flight),
            paces: Arc::clone(&self.inner.paces),
            payer,
            source,
            artefact: artefact.clone(),
            counters: Arc::clone(&counters),
            arrival,
            turn,
        };
        let shared = measured(fetch).boxed().shared();
        if let Some(fetch) = shared.downgrade() {
            let (counters, arrival) = (Arc::clone(&counters), weak_arrival);
            fetches.running.insert(id.clone(), Running { fetch, counters, arrival });
        }
        (shared, counters)
    }

    /// A version, only if it is whole on disk.
    pub fn get(&self, id: &ArtefactId) -> Option<CachedArtefact> {
        let (held, write_down) = self.inner.ledger.get(id)?;
        if write_down {
            let manifest = held.folder.join(MANIFEST);
            // Only the order after a restart depends on it.
            off_thread(move || {
                let touched = File::options()
                    .append(true)
                    .open(&manifest)
                    .and_then(|file| file.set_modified(SystemTime::now()));
                drop(touched);
            });
        }
        Some(CachedArtefact::new(held))
    }

    /// Removes a version and what an abandoned fetch of it left. It is not handed out
    /// any more from now on; the files go when nobody holds it.
    pub async fn purge(&self, id: &ArtefactId) -> Result<(), Error> {
        let (ledger, id) = (Arc::clone(&self.inner.ledger), id.clone());
        blocking(move || {
            if let Some(held) = ledger.purge(&id) {
                held.forget()?;
            }
            ledger.purge_partial(&id)
        })
        .await
    }

    /// Removes every version of a model, as [`DiskCache::purge`] does, and says what each took.
    /// None at all is no error.
    pub async fn purge_model(&self, model: &ModelId) -> Result<Vec<Purged>, Error> {
        let ledger = &self.inner.ledger;
        let whole = ledger.versions(model).into_iter().map(|(held, _)| {
            // One is the table's, one is ours.
            let (id, in_use) = (held.manifest.artefact.id.clone(), Arc::strong_count(&held) > 2);
            (id, Err(held.folder.clone()), in_use)
        });
        let partial = ledger.partials(model).into_iter().map(|(id, bytes)| (id, Ok(bytes), false));
        let found: Vec<_> = whole.chain(partial).collect();
        let mut purged: Vec<Purged> = Vec::with_capacity(found.len());
        for (id, bytes, in_use) in found {
            let bytes = bytes.unwrap_or_else(|folder| ledger.frees(&folder));
            self.purge(&id).await?;
            match purged.iter_mut().find(|before| before.version == id.version) {
                Some(before) => before.bytes = Bytes(before.bytes.0.saturating_add(bytes)),
                None => purged.push(Purged { version: id.version, bytes: Bytes(bytes), in_use }),
            }
        }
        Ok(purged)
    }

    /// The versions of a model that are whole on disk. To look is no use of them.
    pub fn versions(&self, model: &ModelId) -> Vec<DiskVersion> {
        let found = self.inner.ledger.versions(model).into_iter();
        found
            .map(|(held, used_at)| DiskVersion {
                version: held.manifest.artefact.id.version.clone(),
                bytes: Bytes(held.bytes),
                fetched_at: held.manifest.fetched_at,
                used_at,
            })
            .collect()
    }

    /// The version that a model is held at, if it is.
    pub fn choice(&self, model: &ModelId) -> Option<Choice> {
        self.inner.choices.of(model)
    }

    /// Holds a model at a version, also after a restart. It need not be on disk; while it is,
    /// it is the last to be evicted.
    pub async fn choose(&self, model: &ModelId, choice: Choice) -> Result<(), Error> {
        let version = choice.version.clone();
        self.inner.choices.set(model, choice).await?;
        self.inner.ledger.hold_at(model, Some(version));
        Ok(())
    }

    /// Holds a model at no version any more and says which one it was.
    pub async fn unchoose(&self, model: &ModelId) -> Result<Option<Choice>, Error> {
        let before = self.inner.choices.clear(model).await?;
        self.inner.ledger.hold_at(model, None);
        Ok(before)
    }

    /// What the cache holds.
    pub fn usage(&self) -> CacheUsage {
        self.inner.ledger.usage()
    }

    /// Reads all files of a version again and compares our digests. A version that
    /// does not match is purged and the error says which file it was.
    pub async fn verify(&self, id: &ArtefactId) -> Result<(), Error> {
        let Some(cached) = self.get(id) else {
            return Err(Error::ModelNotFound {
                model: id.to_string(),
                store: "the disk cache".into(),
            });
        };
        let held = cached.held;
        let outcome = blocking(move || verify::verify(&held)).await;
        if let Err(Error::Corrupt { .. }) = &outcome {
            self.purge(id).await?;
        }
        outcome
    }

    /// Whether a fetch of the version has readers, or had and some of them still read.
    fn is_read_behind(&self, id: &ArtefactId) -> bool {
        let fetches = self.inner.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        fetches.running.get(id).is_some_and(|running| running.arrival.strong_count() > 0)
    }

    /// Offers a version to the others of its scope, and holds what it has in common with them
    /// once from then on: equal files, and equal tensors of weight files. Says how many bytes
    /// that gave back. Where they lie is not for readers by path any more: what has tensors is
    /// read by [`CachedArtefact::read_at`], so only what nobody else reads may be offered. Done
    /// once for each version; again, it does nothing, and neither does it while somebody reads
    /// behind the fetch.
    ///
    /// If dropped, it goes on to its end.
    pub async fn share(&self, id: &ArtefactId, scope: &str) -> Result<Bytes, Error> {
        let turn = Arc::clone(&self.inner.sharing).lock_owned().await;
        let Some((held, _)) = self.inner.ledger.get(id) else { return Ok(Bytes::ZERO) };
        if self.is_read_behind(id) || held.is_apart() {
            return Ok(Bytes::ZERO);
        }
        let (ledger, scope) = (Arc::clone(&self.inner.ledger), scope.to_owned());
        let sharing = move || {
            let _turn = turn;
            share::share(&ledger, &held, &scope).map(Bytes)
        };
        blocking(sharing).await
    }

    /// Has a version's bytes stay where readers by path find them: while anybody holds it, it takes
    /// nothing from others any more. Waits for sharing under way. `false` where some of its bytes
    /// lie in other versions' files already.
    pub async fn keep_apart(&self, cached: &CachedArtefact) -> bool {
        let _turn = self.inner.sharing.lock().await;
        cached.held.set_apart();
        !cached.held.borrows()
    }

    /// How many times the process has died while it loaded this version.
    pub fn attempts(&self, id: &ArtefactId) -> u32 {
        self.inner.attempts.deaths(id)
    }

    /// Notes on disk that a load of this version begins. If the process dies before
    /// [`DiskCache::end_load`], that counts as one of its [`DiskCache::attempts`].
    pub async fn begin_load(&self, id: &ArtefactId) -> Result<(), Error> {
        self.inner.attempts.begin(id).await
    }

    /// Notes that a load of this version has ended, well or with an error, and clears
    /// its attempts. Without a load it only clears them: to lift a quarantine.
    pub async fn end_load(&self, id: &ArtefactId) -> Result<(), Error> {
        self.inner.attempts.end(id).await
    }
}

async fn measured(fetch: Fetch) -> Outcome {
    let begun = Instant::now();
    let id = fetch.artefact.id.clone();
    let counters = Arc::clone(&fetch.counters);
    let ending = Ending::of(&fetch.arrival);
    let outcome = fetch.run().await;
    ending.with(&outcome);
    let label = outcome.as_ref().err().map_or("ok", metrics::outcome);
    metrics::fetch(id.model.endpoint.as_str(), label, begun.elapsed());
    if let Ok(held) = &outcome {
        counters.enter(Stage::Done);
        info!(artefact = %id, bytes = %Bytes(held.bytes), elapsed = ?begun.elapsed(), "whole on disk");
    }
    outcome
}
