//! Which version a target's name means now, and which targets there are.

mod find;
mod passed;
mod pick;
mod place;
mod reads;
mod settle;
mod siblings;
mod targets;
#[cfg(test)]
mod tests;
mod whole;

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use moka::future::Cache;
use roundhouse_types::{ArtefactId, EndpointName, ModelId, TargetName};
use tokio::time::Instant;
use tracing::{debug, info};

use self::find::{Found, targets_in};
pub use self::passed::PassedOver;
pub use self::pick::Pick;
use self::pick::chosen;
use self::place::Mount;
use self::reads::Heads;
pub(crate) use self::reads::Source;
use self::settle::{Sighting, quiet_for, still_to_wait};
use self::siblings::Siblings;
pub use self::targets::{Target, TargetForm, TargetPage};
use crate::remote::{Remote, RetryConfig};
use crate::{
    Artefact, ArtifactStore, DiskCache, Error, FileStore, MountConfig, RemoteFile, S3Store,
    StoreUri,
};

/// A negative answer is believed this long at most: people upload, then call.
const NEGATIVE_MAX: Duration = Duration::from_secs(2);
/// Targets whose answers are remembered.
const REMEMBERED: u64 = 100_000;
/// A folder that is incomplete and has been quiet this long is not being uploaded any more.
const GIVEN_UP: Duration = Duration::from_secs(60);
/// What lacks something for this many times the settling time may be damaged as well.
const STALE_FACTOR: u32 = 10;
/// How often a folder that is being written is listed again, at most.
const POLL_MIN: Duration = Duration::from_millis(200);

/// How long answers are believed and how long uploads are waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogConfig {
    /// How long a resolved version is believed.
    pub ttl: Duration,
    /// How long "there is no such model" is believed; 2 s at most.
    pub negative_ttl: Duration,
    /// How long a new folder's listing must have been the same to become a version.
    pub settle: Duration,
    /// The same for a folder of which an older version is known.
    pub update_settle: Duration,
    /// How long [`Catalog::resolve`] waits for a folder that is being written.
    pub settle_wait: Duration,
    /// The most files one artefact may have.
    pub max_files: usize,
    /// The most objects of a mount that [`Catalog::list`] looks at.
    pub max_listed: usize,
    /// How long the store is given, and how often it is asked again.
    pub retry: RetryConfig,
}

impl Default for CatalogConfig {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            negative_ttl: NEGATIVE_MAX,
            settle: Duration::from_secs(2),
            update_settle: Duration::from_secs(10),
            settle_wait: Duration::from_secs(12),
            max_files: 10_000,
            // A hundred thousand adapters have two objects each, and a card.
            max_listed: 500_000,
            retry: RetryConfig::default(),
        }
    }
}

/// Whether an answer from memory will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// From memory while it is believed.
    Cached,
    /// The store is asked. A check that is already under way is shared.
    Fresh,
}

/// The targets of one endpoint. Clones are the same catalogue.
///
/// Owns what is remembered about targets; nothing else writes it.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: EndpointName,
    mounts: Vec<Mount>,
    config: CatalogConfig,
    disk: OnceLock<DiskCache>,
    answers: Cache<TargetName, Answer>,
    /// The latest settled version of each target.
    known: Cache<TargetName, Arc<Artefact>>,
    sightings: Cache<TargetName, Sighting>,
    /// Uploads that a settled version answers in place of.
    passed: Cache<TargetName, Arc<PassedOver>>,
    listings: Cache<usize, Listing>,
}

#[derive(Clone)]
struct Answer {
    outcome: Result<Arc<Artefact>, Error>,
    begun: Instant,
    until: Instant,
}

#[derive(Clone)]
struct Listing {
    outcome: Result<Arc<(Vec<Target>, bool)>, Error>,
    until: Instant,
}

/// What keeps a found target from being a version.
struct Lack {
    /// How long until it may be one.
    pause: Duration,
    /// What it lacks.
    why: String,
    /// Whether it has lacked that for so long that it may stay so.
    stale: bool,
    /// Whether it lacks nothing but age.
    is_whole: bool,
}

impl Catalog {
    /// Opens the mounts of an endpoint. No request is made yet: a store that is down
    /// is an error of [`Catalog::resolve`], not of this.
    pub async fn connect(
        endpoint: EndpointName,
        mounts: Vec<MountConfig>,
        config: CatalogConfig,
    ) -> Result<Self, Error> {
        let mut stores: Vec<(Option<String>, Arc<dyn ArtifactStore>)> = Vec::new();
        for mount in mounts {
            let store: Arc<dyn ArtifactStore> = match &mount.uri {
                StoreUri::File { root } => Arc::new(FileStore::new(root)),
                StoreUri::S3 { .. } => Arc::new(S3Store::connect(&mount).await?),
            };
            stores.push((mount.name, store));
        }
        Self::over(endpoint, stores, config)
    }

    /// A catalogue over stores that are already open, each under its mount's name.
    pub fn over(
        endpoint: EndpointName,
        stores: Vec<(Option<String>, Arc<dyn ArtifactStore>)>,
        config: CatalogConfig,
    ) -> Result<Self, Error> {
        let mut mounts: Vec<Mount> = Vec::new();
        for (name, store) in stores {
            let name = name.map(|name| name.trim_matches('/').to_owned());
            let fault = |why: String| Error::Config { uri: store.name().into(), why };
            if let Some(name) = &name
                && let Err(why) = name.parse::<TargetName>()
            {
                return Err(fault(format!("the mount's name '{name}' cannot be used: {why}")));
            }
            if mounts.iter().any(|mount| mount.name == name) {
                let name = name.as_deref().unwrap_or("(none)");
                return Err(fault(format!("a second mount has the name '{name}'")));
            }
            let remote = Remote::new(store, endpoint.clone(), config.retry.clone());
            mounts.push(Mount { name, remote, heads: Heads::new(), siblings: Siblings::new() });
        }
        // The longest name first, so that the first that fits is the right one.
        mounts.sort_by_key(|mount| std::cmp::Reverse(mount.name.as_ref().map_or(0, String::len)));
        Ok(Self {
            inner: Arc::new(Inner {
                endpoint,
                mounts,
                config,
                disk: OnceLock::new(),
                answers: Cache::new(REMEMBERED),
                known: Cache::new(REMEMBERED),
                sightings: Cache::new(REMEMBERED),
                passed: Cache::new(REMEMBERED),
                listings: Cache::new(64),
            }),
        })
    }

    /// Lets the catalogue see which versions are whole on disk: those keep answering
    /// while their folder is being replaced, and survive a restart. The first call counts.
    #[must_use]
    pub fn with_disk(self, disk: DiskCache) -> Self {
        disk.adopt(&self.inner.endpoint, |target| self.origin(target));
        let _ = self.inner.disk.set(disk);
        self
    }

    /// The endpoint whose targets these are.
    pub fn endpoint(&self) -> &EndpointName {
        &self.inner.endpoint
    }

    /// The version that a target's name means now.
    ///
    /// Concurrent calls for one target share one check; if the caller that began it
    /// goes away, another one goes on. A folder that is being written answers with
    /// its last settled version while that can still be had, else the call waits up
    /// to `settle_wait` for it to settle.
    pub async fn resolve(
        &self,
        target: &TargetName,
        freshness: Freshness,
    ) -> Result<Arc<Artefact>, Error> {
        let asked = Instant::now();
        let stale = move |answer: &Answer| {
            answer.until <= asked || (freshness == Freshness::Fresh && answer.begun < asked)
        };
        let inner = &self.inner;
        let entry = inner.answers.entry(target.clone());
        entry.or_insert_with_if(inner.answer(target), stale).await.into_value().outcome
    }

    /// Forgets what was resolved for a target, so that the next call asks the store.
    pub async fn forget(&self, target: &TargetName) {
        self.inner.answers.invalidate(target).await;
    }

    /// Targets behind the name `after`, at most `limit`, from a listing that is
    /// remembered for `ttl`.
    pub async fn list(&self, after: Option<&str>, limit: usize) -> Result<TargetPage, Error> {
        self.list_where(after, limit, |_| Pick::Take).await
    }

    /// The same of those that `choose` takes. What it leaves out by ranges costs nothing.
    pub async fn list_where(
        &self,
        after: Option<&str>,
        limit: usize,
        choose: impl Fn(&str) -> Pick,
    ) -> Result<TargetPage, Error> {
        let mut truncated = false;
        let mut targets = Vec::new();
        for index in 0..self.inner.mounts.len() {
            let listing = self.inner.listing(index).await?;
            truncated |= listing.1;
            let first =
                after.map_or(0, |after| listing.0.partition_point(|it| it.name.as_str() <= after));
            targets.extend(chosen(&listing.0[first..], limit.max(1) + 1, &choose).await);
        }
        targets.sort_by(|a, b| a.name.cmp(&b.name));
        // A name under a named mount hides the same name in the mount without one.
        targets.dedup_by(|a, b| a.name == b.name);
        let limit = limit.max(1);
        let next = (targets.len() > limit).then(|| targets[limit - 1].name.to_string());
        targets.truncate(limit);
        Ok(TargetPage { targets, next, truncated })
    }

    /// Reads a file of an artefact, or a range of it, from the store: for headers and
    /// small configurations. Beginnings of files are remembered.
    pub async fn read(
        &self,
        artefact: &Artefact,
        path: &str,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, Error> {
        let (mount, _) = self.inner.place(&artefact.id.model.target)?;
        let missing = || Error::ObjectNotFound {
            store: mount.remote.name().into(),
            key: format!("{}/{path}", artefact.id.model.target),
        };
        let file = artefact.file(path).ok_or_else(missing)?;
        let range = range.unwrap_or(0..file.size);
        if range.start > range.end || range.end > file.size {
            return Err(Error::Refused {
                store: mount.remote.name().into(),
                key: file.key.clone(),
                cause: format!("bytes {range:?} are not inside its {} bytes", file.size),
            });
        }
        let outcome = mount.heads.read(&mount.remote, file, range).await;
        if matches!(outcome, Err(Error::Changed { .. } | Error::ObjectNotFound { .. })) {
            self.forget(&artefact.id.model.target).await;
        }
        outcome
    }

    /// The store that holds an artefact, and what is in memory of its files.
    pub(crate) fn source(&self, artefact: &Artefact) -> Result<Source, Error> {
        let (mount, key) = self.inner.place(&artefact.id.model.target)?;
        let (remote, heads) = (mount.remote.clone(), mount.heads.clone());
        Ok(Source { remote, heads, origin: mount.origin(key) })
    }
}

impl Inner {
    fn model(&self, target: &TargetName) -> ModelId {
        ModelId { endpoint: self.endpoint.clone(), target: target.clone() }
    }

    async fn answer(&self, target: &TargetName) -> Answer {
        let begun = Instant::now();
        let (outcome, believed) = match self.look_up(target).await {
            Ok((artefact, believed)) => (Ok(artefact), believed),
            Err(error) => {
                // The store's own failures are not remembered: it is asked with back-off.
                let known_bad = matches!(
                    error,
                    Error::ModelNotFound { .. } | Error::Invalid { .. } | Error::Unsettled { .. }
                );
                let believed = if known_bad { self.config.negative_ttl } else { Duration::ZERO };
                (Err(error), believed.min(NEGATIVE_MAX))
            }
        };
        Answer { outcome, begun, until: Instant::now() + believed }
    }

    /// Asks the store until the target is settled; says how long to believe it.
    async fn look_up(&self, target: &TargetName) -> Result<(Arc<Artefact>, Duration), Error> {
        let (mount, key) = self.place(target)?;
        let begun = Instant::now();
        let give_up = begun + self.config.settle_wait;
        // What is read whole is read for a fetch, which nobody may hold to a pace.
        mount.heads.take_whole(self.disk.get().is_some_and(|disk| !disk.holds_to_paces()));
        loop {
            let Some(found) = self.find(mount, target, key).await? else {
                self.known.invalidate(target).await;
                self.sightings.invalidate(target).await;
                self.passed.invalidate(target).await;
                return Err(Error::ModelNotFound {
                    model: self.model(target).to_string(),
                    store: mount.remote.name().into(),
                });
            };
            let known = self.known(target).await;
            let Some(lack) = self.unsettled(mount, target, &found, known.as_deref()).await? else {
                let artefact = Arc::new(found.artefact);
                if known.as_ref().is_none_or(|known| known.id != artefact.id) {
                    info!(artefact = %artefact.id, bytes = %artefact.bytes, "version settled");
                    mount.siblings.settled(key, &artefact).await;
                }
                self.sightings.invalidate(target).await;
                self.passed.invalidate(target).await;
                self.known.insert(target.clone(), Arc::clone(&artefact)).await;
                return Ok((artefact, self.config.ttl));
            };
            if let Some(known) = known.filter(|known| self.can_be_had(known, &found.artefact)) {
                debug!(artefact = %known.id, why = %lack.why, "answering with the settled version");
                self.pass_over(target, &found.artefact, &lack).await;
                return Ok((known, lack.pause.max(POLL_MIN).min(self.config.settle)));
            }
            let Lack { pause, mut why, stale, .. } = lack;
            let next = Instant::now() + pause.max(POLL_MIN);
            if next > give_up || self.abandoned(&found, mount) {
                let waited = begun.elapsed().as_secs();
                if waited > 0 {
                    why.push_str(&format!("; the end of its upload was waited for {waited}s"));
                }
                return Err(Error::Unsettled { model: self.model(target).to_string(), why, stale });
            }
            tokio::time::sleep_until(next).await;
        }
    }

    /// How long until a found target may be settled, and what it lacks; `None` if nothing.
    async fn unsettled(
        &self,
        mount: &Mount,
        target: &TargetName,
        found: &Found,
        known: Option<&Artefact>,
    ) -> Result<Option<Lack>, Error> {
        if self.on_disk(&found.artefact.id) {
            // It was settled when it was fetched.
            return Ok(None);
        }
        if found.artefact.archive.is_none()
            && let Some(why) =
                match whole::missing(&mount.remote, &mount.heads, &found.artefact).await {
                    // Replaced between the listing and the look inside.
                    Err(Error::Changed { key, .. } | Error::ObjectNotFound { key, .. }) => {
                        Some(format!("'{key}' is being replaced"))
                    }
                    outcome => outcome?,
                }
        {
            self.sighted(target, &found.artefact).await;
            let quiet = quiet_for(&found.artefact, mount.remote.store.now());
            let stale = quiet >= self.config.settle * STALE_FACTOR;
            let pause = self.config.settle;
            return Ok(Some(Lack { pause, why, stale, is_whole: false }));
        }
        if !found.may_be_partial {
            return Ok(None);
        }
        let seen_for = self.sighted(target, &found.artefact).await;
        let now = mount.remote.store.now();
        let wait = still_to_wait(&found.artefact, known, seen_for, now, &self.config);
        if wait.is_zero() {
            return Ok(None);
        }
        // A long wait is cut into looks, so that the time of a change is known.
        let pause = wait.min(self.config.settle);
        let why = format!("its files changed less than {:?} ago", seen_for + wait);
        Ok(Some(Lack { pause, why, stale: false, is_whole: true }))
    }

    /// For how long this very listing has been seen.
    async fn sighted(&self, target: &TargetName, artefact: &Artefact) -> Duration {
        let now = Instant::now();
        let version = artefact.id.version.clone();
        match self.sightings.get(target).await {
            Some(sighting) if sighting.version == version => now.duration_since(sighting.since),
            _ => {
                self.sightings.insert(target.clone(), Sighting { version, since: now }).await;
                Duration::ZERO
            }
        }
    }

    /// The latest settled version: remembered, or whole on disk from before a restart. None of another
    /// store, and none that the store is known to have deleted.
    async fn known(&self, target: &TargetName) -> Option<Arc<Artefact>> {
        if let Some(known) = self.known.get(target).await {
            return Some(known);
        }
        let (disk, model) = (self.disk.get()?, self.model(target));
        let (mount, key) = self.place(target).ok()?;
        let origin = mount.origin(key);
        if disk.is_gone(&model, &origin) {
            return None;
        }
        disk.latest_artefact(&model, &origin).map(Arc::new)
    }

    /// Whether a version's files are on disk, or all still in the store.
    fn can_be_had(&self, known: &Artefact, listed: &Artefact) -> bool {
        let same = |old: &RemoteFile| {
            listed.file(&old.path).is_some_and(|new| new.etag == old.etag && new.size == old.size)
        };
        self.on_disk(&known.id) || known.files.iter().all(same)
    }

    fn on_disk(&self, id: &ArtefactId) -> bool {
        self.disk.get().is_some_and(|disk| disk.get(id).is_some())
    }

    fn abandoned(&self, found: &Found, mount: &Mount) -> bool {
        quiet_for(&found.artefact, mount.remote.store.now()) >= GIVEN_UP
    }

    async fn listing(&self, index: usize) -> Result<Arc<(Vec<Target>, bool)>, Error> {
        let asked = Instant::now();
        let mount = &self.mounts[index];
        let look = async {
            let outcome = targets_in(mount, self.config.max_listed).await.map(Arc::new);
            let believed = if outcome.is_ok() { self.config.ttl } else { Duration::ZERO };
            Listing { outcome, until: Instant::now() + believed }
        };
        let stale = move |listing: &Listing| listing.until <= asked;
        self.listings.entry(index).or_insert_with_if(look, stale).await.into_value().outcome
    }
}
