//! How long each stage of a cold load took, for the log and a metric. Where a model is read while
//! it is fetched, the two overlap: the read lasts from its begin to the end of the fetch.

use std::time::{Duration, SystemTime};

use metrics::{Unit, describe_histogram, histogram};
use roundhouse_gateway::LoadStage;
use roundhouse_types::{ArtefactId, Bytes};
use tracing::info;

use super::recent::RecentLoads;

/// Seconds by stage.
const STAGE_SECONDS: &str = "roundhouse_load_stage_seconds";

/// A stage of a cold load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Listing the objects and reading what tells the footprint.
    List,
    /// Bringing the files to disk, unpacking included.
    Fetch,
    /// Reading and converting weights and tokenizer.
    Read,
    /// Copying weights from the host's memory to the device's.
    Copy,
    /// The first forward of every step shape.
    Warm,
}

impl Stage {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Fetch => "fetch",
            Self::Read => "read",
            Self::Copy => "copy",
            Self::Warm => "warm",
        }
    }
}

/// The stages so far. A stage that was not needed stays zero: nothing is listed or fetched
/// for a version that was whole on disk, and nothing read for one in the host's memory.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stages {
    list: Duration,
    fetch: Duration,
    read: Duration,
    copy: Duration,
    warm: Duration,
    /// When they were, in the order of [`Stage`].
    times: [Option<LoadStage>; 5],
}

impl Stages {
    /// Registers the metric's help.
    pub(crate) fn describe() {
        let help = "Duration of a stage of a cold load: list, fetch, read, copy or warm; fetch and read may overlap.";
        describe_histogram!(STAGE_SECONDS, Unit::Seconds, help);
        super::host::describe();
        super::beside::describe();
        super::placed::describe();
    }

    pub(crate) fn set(&mut self, stage: Stage, took: Duration) {
        match stage {
            Stage::List => self.list = took,
            Stage::Fetch => self.fetch = took,
            Stage::Read => self.read = took,
            Stage::Copy => self.copy = took,
            Stage::Warm => self.warm = took,
        }
        let ended = SystemTime::now();
        let began = ended.checked_sub(took).unwrap_or(ended);
        self.times[stage as usize] = Some(LoadStage { name: stage.as_str(), began, ended });
        histogram!(STAGE_SECONDS, "stage" => stage.as_str()).record(took);
    }

    /// Says how long a finished load took, stage by stage.
    pub(crate) fn report(&self, id: &ArtefactId, bytes: Bytes, recent: &RecentLoads) {
        recent.add(id, self.times.into_iter().flatten().collect());
        info!(
            model = %id.model,
            version = %id.version,
            bytes = bytes.0,
            list = ?self.list,
            fetch = ?self.fetch,
            read = ?self.read,
            copy = ?self.copy,
            warm = ?self.warm,
            "loaded"
        );
    }
}
