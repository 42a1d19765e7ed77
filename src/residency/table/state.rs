//! What the table knows: models, loads under way, residents, waiters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, ErrorKind, Failure, Footprint, ModelId, ModelKind, Places,
    RetryHint, SharedPart, TenantName, Tier, Version,
};

use super::elastic::Pool;
use super::event::{Key, LeftWith, LoadOptions, WaiterId};
use super::replicas::Heat;
use super::residents::Listed;
use super::worth::Frequency;
use crate::config::tenant;
use crate::decision::{Departure, Obstacle};
use crate::loader::Authority;

/// The first pause after a failure, and the longest for failures of the store.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest pause after a failure.
const PAUSE_LONGEST: Duration = Duration::from_secs(60);
/// The longest pause after "no such model": people upload and try again.
const PAUSE_NOT_FOUND: Duration = Duration::from_secs(2);

/// The longest pause after failures beside a version that serves.
const PAUSE_BESIDE: Duration = Duration::from_secs(900);

/// One target model. Its state is the sum of its residents and loads.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// Requests and operators' loads that wait for a resident.
    pub(super) waiters: BTreeSet<WaiterId>,
    /// Operators that wait for a refresh.
    pub(super) refreshers: BTreeSet<WaiterId>,
    /// Operators that wait for an unload.
    pub(super) unloaders: BTreeSet<WaiterId>,
    pub(super) resolving: Option<Resolving>,
    /// The version to serve, as it was last found out.
    pub(super) current: Option<Version>,
    /// Who says so.
    pub(super) by: Authority,
    /// The version in the store, where that is another one.
    pub(super) offered: Option<Version>,
    /// What failed beside what serves or is on its way, or was found in the store in place of it.
    pub(super) unfit: Option<Unfit>,
    /// The store said that it holds the model no more, and that was told.
    pub(super) deleted: bool,
    pub(super) checked_at: Option<Instant>,
    pub(super) trouble: Option<Trouble>,
    /// Deaths in a row of the current version, each soon after it was ready.
    pub(super) deaths: u32,
    pub(super) kept: bool,
    /// A request has waited for it since it was loaded last.
    pub(super) asked: bool,
    /// How often it is asked for.
    pub(super) frequency: Frequency,
    /// Whether it is due on one device more, or could do with one less.
    pub(super) heat: Heat,
    /// Seconds that its fetches and loads took, those from a copy apart.
    pub(super) reload: Option<f64>,
    /// Seconds that its loads from a copy took.
    pub(super) promotion: Option<f64>,
    pub(super) residents: Vec<Key>,
    pub(super) jobs: Vec<ArtefactId>,
    /// Copies in the host's memory, those on their way there or away included.
    pub(super) copies: usize,
}

impl Model {
    /// Whether forgetting it loses nothing but a back-off, a check time or how popular it was.
    pub(super) fn is_cold(&self) -> bool {
        self.waiters.is_empty()
            && self.refreshers.is_empty()
            && self.unloaders.is_empty()
            && self.resolving.is_none()
            && !self.kept
            && self.residents.is_empty()
            && self.jobs.is_empty()
            && self.copies == 0
    }
}

/// A question to the store that is not answered yet.
#[derive(Debug)]
pub(super) struct Resolving {
    /// Whether the store itself is asked, rather than a cache.
    pub(super) refresh: bool,
    /// Whether the answer shall be loaded even if nobody waits any more.
    pub(super) load: bool,
    /// Whether others may leave for that load.
    pub(super) evict: bool,
    /// Whether it is asked for a replica.
    pub(super) replica: bool,
}

/// The last failure of a model, remembered so that it is not tried in vain.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) failure: Failure,
    /// The version that failed; `None` where none was found.
    pub(super) version: Option<Version>,
    pub(super) since: Instant,
    pub(super) until: Instant,
    /// Of one that failed beside another version: until then it is not tried in place of what serves,
    /// unless an operator asks.
    pub(super) beside_until: Option<Instant>,
    pub(super) attempts: u32,
    pub(super) quarantined: bool,
    /// Whoever wants the model next has it asked which version to serve: it may be another one.
    pub(super) asks: bool,
}

impl Trouble {
    /// The failure as it is told while the pause lasts.
    pub(super) fn told(&self, now: Instant) -> Failure {
        self.failure.with_retry(RetryHint::After(self.until.saturating_duration_since(now)))
    }
}

/// What failed of a version in whose place another one answers, or would. It informs: it keeps nobody
/// from trying.
#[derive(Debug, Clone)]
pub(super) struct Unfit {
    /// `None` where no version was named; it may be the one that serves.
    pub(super) version: Option<Version>,
    pub(super) failure: Failure,
    pub(super) since: Instant,
}

impl Unfit {
    /// The failure as operators are told it.
    pub(super) fn told(&self) -> (ErrorKind, String) {
        (self.failure.kind(), self.failure.message().to_owned())
    }
}

/// How long the `attempts`-th failure in a row keeps a version from being tried beside one that serves, if
/// looks come that often.
pub(super) fn pause_beside(looks: Duration, attempts: u32) -> Duration {
    let doubled = looks.saturating_mul(1 << attempts.saturating_sub(1).min(6));
    doubled.min(PAUSE_BESIDE.max(looks))
}

/// How long to pause after the `attempts`-th failure in a row.
pub(super) fn pause(failure: &Failure, attempts: u32) -> Duration {
    let doubled = PAUSE_FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(6));
    let by_kind = match failure.kind() {
        ErrorKind::ModelNotFound => doubled.min(PAUSE_NOT_FOUND),
        ErrorKind::StoreUnavailable => PAUSE_FIRST,
        _ => doubled.min(PAUSE_LONGEST),
    };
    match failure.retry() {
        RetryHint::After(told) => by_kind.max(told).min(PAUSE_LONGEST),
        RetryHint::Never | RetryHint::Later => by_kind,
    }
}

/// What loads have in common that can go to the same devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kin {
    /// To all: processes that say themselves what they use, adapters, which go where their base is, and
    /// what is not known yet.
    Any,
    /// To the device of the host's memory, where there is one: handlers, whose processes live there.
    Host,
    /// To no card, where there is another device.
    OffCards,
    /// To cards alone, where there are any: what they compute is slow elsewhere.
    Cards,
}

impl Kin {
    pub(super) fn of(kind: ModelKind, off_cards: bool) -> Self {
        match kind {
            ModelKind::Handler => Self::Host,
            ModelKind::External | ModelKind::Adapter => Self::Any,
            _ if off_cards => Self::OffCards,
            _ => Self::Cards,
        }
    }

    fn suits(self, device: DeviceId) -> bool {
        match self {
            Self::Any => true,
            Self::Host => device.is_host(),
            Self::OffCards => !device.is_card(),
            Self::Cards => device.is_card(),
        }
    }

    /// Of these devices those to which such a load can go.
    pub(super) fn among(
        self,
        devices: impl Iterator<Item = DeviceId> + Clone,
    ) -> impl Iterator<Item = DeviceId> {
        let is_choosy = devices.clone().any(|device| self.suits(device));
        devices.filter(move |device| !is_choosy || self.suits(*device))
    }
}

/// One artefact on its way to a device.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) begun: Instant,
    /// Order of creation, for those that nobody waits for.
    pub(super) sequence: u64,
    pub(super) fetch_bytes: Bytes,
    pub(super) fetched_bytes: Bytes,
    /// What it would have to fetch without its copy.
    pub(super) spared_bytes: Bytes,
    pub(super) footprint: Option<Footprint>,
    /// Parts of the footprint's weights that others may hold as well.
    pub(super) shared: Vec<SharedPart>,
    pub(super) kind: Option<ModelKind>,
    /// Whether cards do not compute it.
    pub(super) off_cards: bool,
    pub(super) fetch: Fetch,
    /// Whether it loads from the copy in the host's memory, which it holds until it ends.
    pub(super) from_copy: bool,
    pub(super) room: Room,
    /// Whether others may leave for it.
    pub(super) evict: bool,
    /// Whether it began because the version serves and is hot.
    pub(super) replica: bool,
    /// Of an adapter: the model that it adapts, where that is known.
    pub(super) base: Option<ModelId>,
    /// Of an adapter that is promised room: the version of its base that it counts on there.
    pub(super) onto: Option<ArtefactId>,
    /// Whether its base was asked for on its behalf.
    pub(super) asked_for_base: bool,
    /// Whether a load may begin while its files are coming.
    pub(super) streams: bool,
    /// Its load began while its files were coming.
    pub(super) arriving: bool,
    /// Why a load that began so ends before it is ready.
    pub(super) broken: Option<Broken>,
    /// To be unloaded as soon as it is loaded: an operator or a shutdown came between.
    pub(super) discard: bool,
    /// The load timeout passed while it was on its way to the device.
    pub(super) late: bool,
    /// The model died before the end of its load was seen.
    pub(super) died: Option<Failure>,
    /// Whom its fetch is held to the load bandwidth of, once that has begun.
    pub(super) paced_for: Option<String>,
    /// What was in the way when room, or a place among its tenant's fetches, was last looked for.
    pub(super) obstacle: Option<Obstacle>,
    /// Later requests that were given a load before this one.
    pub(super) overtaken: u32,
    /// The last event in which a promise to it was taken back, and how often it was then.
    pub(super) withdrawn: (u64, u32),
}

impl Job {
    /// The device that promised it room.
    pub(super) fn device(&self) -> Option<DeviceId> {
        match self.room {
            Room::Wanted => None,
            Room::Promised { device } | Room::Loading { device, .. } => Some(device),
        }
    }

    /// To which devices it can go at all.
    pub(super) fn kin(&self) -> Kin {
        self.kind.map_or(Kin::Any, |kind| Kin::of(kind, self.off_cards))
    }

    /// Whether its load starts processes: such loads have slots of their own.
    pub(super) fn starts_processes(&self) -> bool {
        matches!(self.kind, Some(ModelKind::Handler | ModelKind::External))
    }

    pub(super) fn is_loading(&self) -> bool {
        matches!(self.room, Room::Loading { .. })
    }

    pub(super) fn is_whole(&self) -> bool {
        matches!(self.fetch, Fetch::Whole { .. })
    }
}

/// Why a load ends that began while its files were coming.
#[derive(Debug)]
pub(super) enum Broken {
    /// Nobody wants it any more, or its room is needed.
    GivenUp,
    /// The fetch failed, or took too long.
    Failed(Failure),
}

/// The way to disk.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fetch {
    Queued,
    Running { since: Instant },
    Whole { since: Instant, until: Instant },
}

/// The way to device memory.
#[derive(Debug, Clone, Copy)]
pub(super) enum Room {
    Wanted,
    /// What is free is reserved, and a set of victims covers the rest.
    Promised {
        device: DeviceId,
    },
    Loading {
        device: DeviceId,
        since: Instant,
    },
}

/// One artefact on its device.
#[derive(Debug)]
pub(super) struct Resident {
    pub(super) kind: ModelKind,
    /// Whether cards do not compute it.
    pub(super) off_cards: bool,
    /// Of an adapter: what it is on, on the same device.
    pub(super) base: Option<ArtefactId>,
    pub(super) footprint: Footprint,
    /// Parts of the footprint's weights that others may hold as well.
    pub(super) shared: Vec<SharedPart>,
    pub(super) state: State,
    /// What was agreed on its KV pool, once that has said something.
    pub(super) pool: Option<Pool>,
    pub(super) leases: u32,
    pub(super) last_used: Instant,
    /// Recency among all residents.
    pub(super) used_sequence: u64,
    /// What its stay is worth; the least leaves first.
    pub(super) worth: f64,
    pub(super) ready_at: Instant,
    pub(super) ready_sequence: u64,
    /// Whether its unload is to leave a copy in the host's memory.
    pub(super) demotes: bool,
    /// The load that its bytes are promised to.
    pub(super) claimed_by: Option<ArtefactId>,
    /// How it came, for those that waited for it.
    pub(super) arrival: Arrival,
    /// How long it may be unused, where it has a time of its own.
    pub(super) idle_ttl: Option<Duration>,
    /// Where those who look for victims find it.
    pub(super) listed: Listed,
}

/// The states of a resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    Draining(Departure),
    Unloading,
}

/// When it is to be looked again whether something was unused for too long: a look goes over all of it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum NextLook {
    /// Something has changed since the last look.
    #[default]
    Now,
    At(Instant),
    Never,
}

/// How a resident came to its device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    pub(super) tier: Tier,
    pub(super) fetch: (Instant, Instant),
    pub(super) load: (Instant, Instant),
}

impl Arrival {
    /// How long a fetch or load ran after `from`.
    pub(super) fn work_since(&self, from: Instant) -> Duration {
        let overlap =
            |(begin, end): (Instant, Instant)| end.saturating_duration_since(begin.max(from));
        overlap(self.fetch) + overlap(self.load)
    }
}

/// A caller that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) model: ModelId,
    pub(super) arrived: Instant,
    pub(super) sequence: u64,
    pub(super) hold_until: Instant,
    pub(super) purpose: Purpose,
}

/// What a caller waits for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// A lease; a load that is begun for it is charged to `payer`.
    Request {
        payer: Option<TenantName>,
    },
    Load(LoadOptions),
    /// A refresh: `asked` once a question covers it, `aimed` at the version it waits for.
    Refresh {
        asked: bool,
        aimed: Option<Version>,
    },
    /// An unload: what has still to go, and what it will report.
    Unload {
        keys: BTreeSet<Key>,
        copies: BTreeSet<ArtefactId>,
        versions: Vec<Version>,
        adapters: Vec<LeftWith>,
    },
}

impl Purpose {
    pub(super) fn payer(&self) -> Option<&TenantName> {
        match self {
            Self::Request { payer } => payer.as_ref(),
            Self::Load(_) | Self::Refresh { .. } | Self::Unload { .. } => None,
        }
    }

    pub(super) fn may_evict(&self) -> bool {
        !matches!(self, Self::Load(LoadOptions { evict: false, .. }))
    }

    pub(super) fn is_forced(&self) -> bool {
        matches!(self, Self::Load(LoadOptions { force: true, .. }))
    }
}

/// Whom a waiter's place is counted to. Targets without a `/` are nobody's in particular.
fn holder(model: &ModelId) -> Option<&str> {
    Some(tenant(model)).filter(|name| !name.is_empty())
}

/// All callers that wait, by id and by deadline.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    by_id: BTreeMap<WaiterId, Waiter>,
    deadlines: BTreeSet<(Instant, WaiterId)>,
    places: Places<String>,
}

impl Waiters {
    /// Takes one of `all` places for a waiter for `model`; false where there is none for its tenant.
    pub(super) fn take_place(&mut self, all: usize, model: &ModelId) -> bool {
        self.places.take(all, holder(model))
    }

    /// Gives back the place of a waiter that does not come after all.
    pub(super) fn give_place(&mut self, model: &ModelId) {
        self.places.give(holder(model));
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn get(&self, id: WaiterId) -> Option<&Waiter> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: WaiterId) -> Option<&mut Waiter> {
        self.by_id.get_mut(&id)
    }

    /// Adds a waiter that has taken its place.
    pub(super) fn insert(&mut self, id: WaiterId, waiter: Waiter) {
        self.deadlines.insert((waiter.hold_until, id));
        let before = self.by_id.insert(id, waiter);
        debug_assert!(before.is_none(), "waiter ids are used once");
    }

    pub(super) fn remove(&mut self, id: WaiterId) -> Option<Waiter> {
        let waiter = self.by_id.remove(&id)?;
        self.deadlines.remove(&(waiter.hold_until, id));
        self.places.give(holder(&waiter.model));
        debug_assert_eq!(self.places.taken(), self.by_id.len(), "a place each");
        Some(waiter)
    }

    pub(super) fn first_deadline(&self) -> Option<(Instant, WaiterId)> {
        self.deadlines.first().copied()
    }

    pub(super) fn ids(&self) -> Vec<WaiterId> {
        self.by_id.keys().copied().collect()
    }

    /// Whether an index of a model and this one agree.
    #[cfg(debug_assertions)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&WaiterId, &Waiter)> {
        self.by_id.iter()
    }
}
