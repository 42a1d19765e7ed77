//! The seam to the side that fetches, loads and frees.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, Failure, Footprint, Grade, ModelId, ModelKind, SharedPart, Version,
};
use serde::Serialize;

use crate::reporter::Reporter;

/// What is known of a model before anything is fetched.
#[derive(Debug, Clone)]
pub struct Resolution {
    /// The version to serve.
    pub version: Version,
    /// What still has to come from the store; zero when it is whole on disk.
    pub fetch_bytes: Bytes,
    /// What it needs on a device and how far that can be trusted; `None`: unknown until fetched.
    pub footprint: Option<(Footprint, Grade)>,
    /// Parts of the footprint's weights whose content is known, each content once: what is
    /// on the device already needs no room. The rest is its own as far as one can know.
    pub shared: Vec<SharedPart>,
    /// Its kind, where the headers already tell.
    pub kind: Option<ModelKind>,
    /// Whether cards do not compute it. It goes to another device, where there is one.
    pub off_cards: bool,
    /// Of an adapter: the model that it adapts, where that is known already. It is loaded on
    /// the adapter's device before the adapter, and leaves after it.
    pub base: Option<ModelId>,
    /// Whether a load may begin while the files are still coming ([`LoadSource::Arriving`]).
    pub streams: bool,
    /// The process died twice while it loaded this version. It is refused until an
    /// operator's forced load.
    pub quarantined: bool,
    /// Why it is this version, and what the store holds beside it.
    pub standing: Standing,
}

/// Why a version is the one to serve, and what the store holds beside it. By default it is
/// what the store holds.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// Who says so.
    pub by: Authority,
    /// What the store holds.
    pub store: InStore,
    /// What the store holds in place of it and is no version that can be served, and why not.
    pub unfit: Option<(Version, Failure)>,
    /// Whether the store holds an upload that may still be under way: what was found of one before is
    /// neither confirmed nor past.
    pub unsettled: bool,
}

/// Who says which version is served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Authority {
    /// The store: it is the newest there.
    #[default]
    Store,
    /// An operator chose it.
    Operator,
    /// The endpoint's update rule holds what was served first.
    Rule,
}

/// What the store holds of a model, as far as it was asked.
#[derive(Debug, Clone, Default)]
pub enum InStore {
    /// The version that is to be served.
    #[default]
    Same,
    /// Nobody asked.
    Unasked,
    /// Another version, which is served only when an operator says so.
    Other(Version),
    /// Nothing of that name any more.
    Gone,
    /// It could not be asked; the version to serve is one that is on disk.
    Unreached(Failure),
}

/// What is known once the files are whole on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// What it needs on a device.
    pub footprint: Footprint,
    /// As in [`Resolution::shared`].
    pub shared: Vec<SharedPart>,
    /// Its kind.
    pub kind: ModelKind,
    /// As in [`Resolution::off_cards`].
    pub off_cards: bool,
    /// As in [`Resolution::base`].
    pub base: Option<ModelId>,
    /// How much of the fetch no later one takes: what was brought beside the files and stays.
    pub once: Duration,
}

/// Where a load takes a model from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadSource {
    /// Its files, whole on disk.
    Files,
    /// Its files, while the fetch of them is under way. Such a load ends when the fetch has
    /// ended; it fails with it, and when the fetch is abandoned.
    Arriving,
    /// The copy in the host's memory, which stays there; no fetch comes before.
    Host,
}

/// What an unload left in the host's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCopy {
    /// What the copy takes: weights and host parts.
    pub footprint: Footprint,
    /// The parts of its weights that it holds together with whichever copy in the host's
    /// memory has the same content, each content once.
    pub shared: Vec<SharedPart>,
}

/// The resident that an adapter is loaded onto. It stays until the adapter has been unloaded.
#[derive(Debug)]
pub struct Base<M> {
    /// Which version of the base it is.
    pub artefact: ArtefactId,
    /// The model. For the load alone: whoever keeps it keeps the base from being freed.
    pub model: Arc<M>,
}

/// A model on its device.
#[derive(Debug, Clone)]
pub struct Loaded<M> {
    /// The model, warm.
    pub model: M,
    /// What it takes, measured.
    pub footprint: Footprint,
    /// The parts of the footprint's weights that it holds together with whoever holds the
    /// same content on this device, each content once. Charged once for all of them.
    pub shared: Vec<SharedPart>,
    /// How much of the load's time a later one will not take: it made what stays on this machine,
    /// such as a handler's environment. No part of what a reload is taken to cost.
    pub once: Duration,
    /// How long it may be unused before it leaves, where that differs from what
    /// [`Config`](crate::Config) says.
    pub idle_ttl: Option<Duration>,
}

/// Performs what the table decides. Calls run as tasks of their own, side by side up to
/// the limits of [`Config`](crate::Config). A panic in one counts as its failure.
pub trait Loader: Send + Sync + 'static {
    /// What requests lease.
    type Model: Send + Sync + 'static;

    /// Finds the version to serve. With `refresh` the store itself is asked, else a
    /// cache may answer. With the store down, a version whole on disk is an answer, whose
    /// [`Standing`] says so. Where [`Config::drain_deleted`](crate::Config) names the endpoint,
    /// a refresh that fails with `ModelNotFound` means that the model was deleted for good.
    fn resolve(
        &self,
        model: &ModelId,
        refresh: bool,
    ) -> impl Future<Output = Result<Resolution, Failure>> + Send;

    /// Brings the files to disk, whole; called before every load, also when they are
    /// there already. Dropping the future abandons the fetch; ranges on disk are kept. What it
    /// brings is charged to `payer`, a tenant's name, and held to that one's
    /// [`TenantLimits::load_bandwidth`](crate::TenantLimits::load_bandwidth).
    fn fetch(
        &self,
        artefact: &ArtefactId,
        payer: &str,
    ) -> impl Future<Output = Result<Fetched, Failure>> + Send;

    /// Bytes that the fetch under way has brought so far. For messages only.
    fn fetched_bytes(&self, artefact: &ArtefactId) -> Bytes;

    /// Loads the files and warms the model up. Runs to its end; it is never dropped. When
    /// it fails, everything it took on the device has been given back. A quarantined
    /// version comes here only after an operator forced it.
    ///
    /// Content that was on the device when the room was promised, or that another load
    /// brings meanwhile, is not brought a second time.
    ///
    /// `base` is there if, and only if, [`Resolution::base`] or [`Fetched::base`] named one.
    ///
    /// `reporter` is for what the model does later: that it takes more or less than the
    /// returned footprint, or that it died. It may be kept for as long as one likes.
    fn load(
        &self,
        artefact: &ArtefactId,
        device: DeviceId,
        source: LoadSource,
        base: Option<Base<Self::Model>>,
        reporter: Reporter,
    ) -> impl Future<Output = Result<Loaded<Self::Model>, Failure>> + Send;

    /// Frees the device; returns when the memory is free. `model` is the last reference
    /// that residency holds, and no lease is left. Called for a model that died, too.
    ///
    /// With `demote`, room for the weights and host parts of its footprint is promised in the
    /// host's memory, and the model's copy there is returned: one that a load left there, or a
    /// new one. `None`: there is no copy, because this model cannot have one or making it failed.
    /// Without `demote` no copy is made; one that is there stays until it is discarded.
    fn unload(
        &self,
        artefact: &ArtefactId,
        device: DeviceId,
        model: Arc<Self::Model>,
        demote: bool,
    ) -> impl Future<Output = Option<HostCopy>> + Send;

    /// Frees a copy in the host's memory; returns when the memory is free. Loads from it have
    /// ended. Called as well for one that the loader said it has no more: then it returns at once.
    fn discard(&self, artefact: &ArtefactId) -> impl Future<Output = ()> + Send;
}
