//! What is remembered of a version from one of its steps to the next.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use roundhouse_store::{Artefact, Progress};
use roundhouse_types::Bytes;

use super::plan::Plan;
use super::refused::Refused;
use super::stages::Stages;

/// What is known of a version between its steps.
#[derive(Clone, Default)]
pub(super) struct Known {
    /// Its listing, unless it was only found on disk.
    pub(super) artefact: Option<Arc<Artefact>>,
    /// What a load of it means, once its configuration and headers were seen.
    pub(super) plan: Option<Plan>,
    pub(super) progress: Arc<Progress>,
    pub(super) stages: Stages,
    /// How long the store took to name it.
    pub(super) listing: Duration,
    /// When the store named it first.
    pub(super) seen_at: Option<SystemTime>,
    /// Of an adapter: what texts of its own took when it was loaded.
    pub(super) texts: Bytes,
    /// On whose behalf it was fetched last.
    pub(super) payer: String,
    /// Why it was not taken, where it is to blame and nothing of it has served.
    pub(super) refused: Option<Refused>,
    /// A load of it failed of files that were not verified yet.
    pub(super) failed_unverified: bool,
}
