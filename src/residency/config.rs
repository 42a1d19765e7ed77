//! Limits and times of the residency table.

use std::collections::BTreeSet;
use std::time::Duration;

use roundhouse_types::EndpointName;

/// Everything the table may be told. All bounds are per process.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Endpoints whose models drain when the store holds them no more; those of others serve
    /// until they are evicted.
    pub drain_deleted: BTreeSet<EndpointName>,
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
            drain_deleted: BTreeSet::new(),
        }
    }
}
