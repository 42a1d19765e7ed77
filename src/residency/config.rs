//! Limits and times of the residency table.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use roundhouse_types::{Bytes, EndpointName, ModelId};

/// Everything the table may be told. All bounds are per process.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Fetches from the store at once. Artefacts that are whole on disk do not count.
    pub max_fetches: usize,
    /// Loads onto devices at once, those of handlers not counted.
    pub max_loads: usize,
    /// Loads of handlers at once. They have slots of their own: one that imports for a
    /// minute keeps no checkpoint from loading, nor the other way round.
    pub max_handler_loads: usize,
    /// Requests that may wait for one model.
    pub max_waiters_per_model: usize,
    /// Requests that may wait in all.
    pub max_waiters: usize,
    /// Models whose failures and check times are remembered; residents and models
    /// with waiters come on top.
    pub max_known_models: usize,
    /// How long a load may take from its start to Ready. It outlives its waiters this long.
    pub load_timeout: Duration,
    /// How long a version in use may go unchecked against the store.
    pub refresh_every: Duration,
    /// Unload a resident that nobody used for this long. Absent: never.
    pub idle_ttl: Option<Duration>,
    /// A resident is no victim before it has been ready for this long.
    pub minimum_residence: Duration,
    /// Who leaves first.
    pub policy: Policy,
    /// In which order loads are served while they are the bottleneck.
    pub collation: Collation,
    /// What is promised to tenants and asked of them, by [`tenant`].
    pub tenants: BTreeMap<String, TenantLimits>,
    /// What copies of models that left other devices may take in the host's memory; what
    /// residents take there, where it is a device as well, comes on top. Zero: none stay.
    pub host_budget: Bytes,
    /// When a model is served from one more device. Absent: never; with one device neither.
    pub replicas: Option<Replicas>,
    /// Endpoints whose models drain when the store holds them no more; those of others serve
    /// until they are evicted.
    pub drain_deleted: BTreeSet<EndpointName>,
}

/// Who leaves first, of those that may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The least recently used.
    LeastRecentlyUsed,
    /// The one whose requests, each weighed with the time that a reload takes, are fewest per
    /// byte; what is not asked for any more ages. GreedyDual-Size-Frequency (Cherkasova,
    /// "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy",
    /// HPL-98-69R1), with frequencies that fade.
    GreedyDual,
}

/// How far the order of arrival may be left so that one load answers many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collation {
    /// Whether the load that most requests wait for goes first. Without, the one whose first
    /// request came first does.
    pub most_waited_first: bool,
    /// Later requests that may be given a load before an earlier one is: then it is its turn.
    pub overtaken_at_most: u32,
    /// How long a request may be overtaken.
    pub overtaken_within: Duration,
}

/// When a model is hot, and on how many devices it may be then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicas {
    /// Leases that each of its residents must hold, for some seconds on end.
    pub at_leases: u32,
    /// Devices that one version may serve from, the first included. One: no replicas.
    pub at_most: usize,
}

impl Default for Replicas {
    fn default() -> Self {
        // Batches of eight share most of a step's cost; with more, steps grow longer. Two: what
        // a third would bring is seldom worth the models that leave for it.
        Self { at_leases: 8, at_most: 2 }
    }
}

/// What one tenant has and may take. All tenants together must be promised no more than there is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TenantLimits {
    /// Bytes of its residents that other tenants' loads leave where they are.
    pub floor: Bytes,
    /// The most its residents may take; its own leave for what comes on top. `None`: all there is.
    pub ceiling: Option<Bytes>,
    /// Its weight where several tenants wait for loads; 1 for those without limits.
    pub share: f64,
    /// Bytes a second that loads begun for it may fetch from stores; the loader keeps to it, the
    /// table to what follows: such fetches are few at once, and have slots of their own. `None`:
    /// as the store and the machine allow.
    pub load_bandwidth: Option<Bytes>,
}

impl Default for TenantLimits {
    fn default() -> Self {
        Self { floor: Bytes::ZERO, ceiling: None, share: 1.0, load_bandwidth: None }
    }
}

/// Whose model it is: the first segment of its target's name. Targets without a `/` are one
/// tenant's, whose name is empty.
pub fn tenant(model: &ModelId) -> &str {
    model.target.tenant()
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // Four connections' worth of one object each saturate common instance
            // networks; more only make each fetch later.
            max_fetches: 4,
            // Loads share memory bandwidth: the second hides the first one's waits.
            max_loads: 2,
            // A handler's start is mostly imports, which wait for files and for each other
            // more than they compute.
            max_handler_loads: 8,
            max_waiters_per_model: 256,
            max_waiters: 4096,
            max_known_models: 10_000,
            // What SageMaker grants a model to load.
            load_timeout: Duration::from_secs(360),
            refresh_every: Duration::from_secs(30),
            idle_ttl: None,
            minimum_residence: Duration::ZERO,
            // What a replayed trace of 87 models loads least with, at every size tried.
            policy: Policy::GreedyDual,
            collation: Collation {
                most_waited_first: true,
                overtaken_at_most: 32,
                overtaken_within: Duration::from_secs(10),
            },
            tenants: BTreeMap::new(),
            host_budget: Bytes::ZERO,
            replicas: Some(Replicas::default()),
            drain_deleted: BTreeSet::new(),
        }
    }
}
