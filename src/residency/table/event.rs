//! What happens to the table and what it wants done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, EndpointName, ErrorKind, Failure, Footprint, KvOrder, KvReport,
    ModelId, TenantName, Tier, Version,
};
use serde::Serialize;

use crate::config::TenantLimits;
use crate::decision::Decided;
use crate::loader::{Fetched, HostCopy, LoadSource, Loaded, Resolution};

/// Names one caller that waits for an answer. Ids grow with arrival: the smaller one came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WaiterId(pub(crate) u64);

/// One artefact on one device.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) artefact: ArtefactId,
    pub(crate) device: DeviceId,
}

/// A place in an engine or container that serves several models, and has no room for one more. It is
/// no bytes of a device.
#[derive(Debug, Clone)]
pub struct PlaceWanted {
    /// Who needs it.
    pub artefact: ArtefactId,
    /// Who has such places.
    pub among: Among,
    /// Whether only models may leave that no request holds.
    pub only_idle: bool,
}

/// Who competes for a place.
#[derive(Debug, Clone)]
pub enum Among {
    /// The adapters on this base, on one device.
    OnBase(ModelId, DeviceId),
    /// These models, wherever they are.
    Models(Vec<ModelId>),
}

/// How an operator's load differs from a request's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// Whether others may leave for it. Without, it is refused when it does not fit what is free.
    pub evict: bool,
    /// Load it although it is quarantined or its last attempt failed.
    pub force: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { evict: true, force: false }
    }
}

/// Something that happened.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A request wants a lease; with `only_loaded` on a resident or not at all. A load that is
    /// begun for it is charged to its `payer`; without one, to the model's own tenant.
    AcquireRequested {
        waiter: WaiterId,
        model: ModelId,
        hold_until: Instant,
        only_loaded: bool,
        payer: Option<TenantName>,
    },
    /// An operator wants it loaded.
    LoadRequested { waiter: WaiterId, model: ModelId, hold_until: Instant, options: LoadOptions },
    /// An operator wants it off its devices.
    UnloadRequested { waiter: WaiterId, model: ModelId, hold_until: Instant },
    /// A model needs a place in an engine or container that has none: one of these leaves for it.
    PlaceRequested { waiter: WaiterId, place: PlaceWanted, hold_until: Instant },
    /// An operator wants the store asked now, and a new version loaded.
    RefreshRequested { waiter: WaiterId, model: ModelId, hold_until: Instant },
    /// An operator wants it to stay, or no longer.
    KeepChanged { model: ModelId, kept: bool },
    /// An operator chose the version to serve, or chose none any more.
    ChoiceChanged { model: ModelId, chosen: Option<Version> },
    /// Somebody looked into the store: this is the version that it names, none where it holds nothing
    /// of the model, and what it holds in place of one that can be served.
    StoreSeen { model: ModelId, named: Option<Version>, unfit: Option<(Version, Failure)> },
    /// An endpoint is not served any more.
    EndpointLeft { endpoint: EndpointName },
    /// A caller went away before it was answered.
    Cancelled { waiter: WaiterId },
    /// A lease ended.
    Released { key: Key },
    /// Answers `Effect::Resolve`.
    Resolved { model: ModelId, result: Result<Resolution, Failure> },
    /// A fetch has brought this much.
    Progressed { artefact: ArtefactId, bytes: Bytes },
    /// Answers `Effect::Fetch`.
    Fetched { artefact: ArtefactId, result: Result<Fetched, Failure> },
    /// Answers `Effect::Load`, with what it takes as measured; the owner keeps the model.
    Loaded { key: Key, result: Result<Loaded<()>, Failure> },
    /// A resident takes this much by now.
    Measured { key: Key, footprint: Footprint },
    /// A resident's KV pool says what it needs and has given back.
    KvReported { key: Key, report: KvReport },
    /// A model that is loaded, or about to be, is gone by itself.
    Died { key: Key, failure: Failure },
    /// Answers `Effect::Unload`: the device has its memory back. The copy is in the host's
    /// memory; there is none unless the unload was to demote.
    Unloaded { key: Key, copy: Option<HostCopy> },
    /// Answers `Effect::Discard`: the host has its memory back.
    Discarded { artefact: ArtefactId },
    /// The device may use more or less from now on.
    BudgetChanged { device: DeviceId, budget: Bytes },
    /// Copies in the host's memory may use more or less from now on.
    HostBudgetChanged { budget: Bytes },
    /// The operator promises tenants other things, or has other endpoints drain what was deleted.
    TermsChanged { tenants: BTreeMap<String, TenantLimits>, drain_deleted: BTreeSet<EndpointName> },
    /// The instant of `Table::next_wake` has come.
    TimePassed,
    /// No more requests; everything leaves.
    ShutdownBegan,
}

/// Something to be done.
#[derive(Debug, Clone)]
pub(crate) enum Effect {
    /// Ask for the version; answered by `Event::Resolved`.
    Resolve { model: ModelId, refresh: bool },
    /// Bring the files to disk on behalf of this tenant; answered by `Event::Fetched` unless
    /// abandoned.
    Fetch { artefact: ArtefactId, payer: String },
    /// Drop the fetch; no answer is wanted any more.
    AbandonFetch { artefact: ArtefactId },
    /// Load, an adapter onto this base on the same device; answered by `Event::Loaded`.
    Load { key: Key, source: LoadSource, base: Option<ArtefactId> },
    /// Unload, and leave a copy in the host's memory where it is to `demote`; answered by
    /// `Event::Unloaded`.
    Unload { key: Key, demote: bool },
    /// Free a copy in the host's memory; answered by `Event::Discarded`.
    Discard { artefact: ArtefactId },
    /// Tell a resident's KV pool what it may have.
    OrderKv { key: Key, order: KvOrder },
    /// Give the waiter its lease.
    Grant(Grant),
    /// Tell the waiter why not.
    Refuse { waiter: WaiterId, failure: Failure },
    /// Tell the operator how it went.
    Report { waiter: WaiterId, report: Report },
    /// Remember and publish.
    Decided(Decided),
}

/// A lease for a waiter.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub(crate) waiter: WaiterId,
    pub(crate) key: Key,
    pub(crate) tier: Tier,
    pub(crate) load_wait: Duration,
    pub(crate) queue_wait: Duration,
}

/// How an operator's wish ended.
#[derive(Debug, Clone)]
pub(crate) enum Report {
    Loaded(LoadReport),
    Unloaded(UnloadReport),
    Refreshed(RefreshReport),
}

/// An operator's load that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoadReport {
    /// The version that serves.
    pub version: Version,
    /// Where it is.
    pub device: DeviceId,
    /// Where it was found; `Device` where it was loaded already.
    pub tier: Tier,
}

/// An operator's unload that succeeded: the memory is free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnloadReport {
    /// The versions that were unloaded.
    pub versions: Vec<Version>,
    /// The adapters that were on them, and left with them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<LeftWith>,
}

/// An adapter that left with its base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftWith {
    /// Which.
    pub artefact: ArtefactId,
    /// Whether it was kept. Its keep stays in force, for it was not what was named: the next load of it is
    /// kept.
    pub kept: bool,
}

/// A refresh that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefreshReport {
    /// The version to serve.
    pub version: Version,
    /// Whether it differs from what served before.
    pub updated: bool,
    /// The version that serves; absent where none is loaded.
    pub serving: Option<Version>,
    /// The version in the store, where that is another one, which waits for an operator's word.
    pub offered: Option<Version>,
    /// Whether an operator wants the model to stay.
    pub kept: bool,
    /// What failed of the version in whose place this one answers, or would: kind and text.
    #[serde(skip)]
    pub unfit: Option<(ErrorKind, String)>,
}
