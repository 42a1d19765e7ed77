//! What the table decided and why: for `explain`, the event stream and metrics.

use std::fmt;

use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, EndpointName, ErrorKind, Failure, ModelId, TargetName, Version,
    count, count_that,
};
use serde::Serialize;

use crate::loader::{Authority, LoadSource};
use crate::table::Demand;

/// A decision about one model, as it is kept and published.
#[derive(Debug, Clone, Serialize)]
pub struct Decision {
    /// When, in RFC 3339; the last time where it happened several times in a row.
    pub time: String,
    /// The model's endpoint.
    pub endpoint: EndpointName,
    /// The model's target.
    pub target: TargetName,
    /// The version, where one was known.
    pub version: Option<Version>,
    /// The device, where one was chosen.
    pub device: Option<DeviceId>,
    /// How many times in a row.
    pub times: u64,
    /// The decision as a sentence.
    pub message: String,
    /// The decision.
    #[serde(flatten)]
    pub action: Action,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// A request or an operator was turned away.
    Refused {
        /// The failure's text.
        reason: String,
    },
    /// A fetch began.
    Fetching {
        /// What has to come from the store.
        bytes: Bytes,
    },
    /// The files are whole on disk.
    Fetched,
    /// Room was promised to a load.
    Promised {
        /// What it needs.
        bytes: Bytes,
        /// Who leaves for it once it is on disk.
        victims: Vec<ArtefactId>,
    },
    /// A model that serves is loaded onto one more device, because it is hot.
    Replicating {
        /// Leases on each of its residents, at the least.
        leases: u32,
        /// The devices that it serves from.
        devices: usize,
    },
    /// An adapter's base is loaded for it, because it serves nowhere.
    AwaitsBase {
        /// Which model that is.
        base: ModelId,
    },
    /// No room could be promised yet.
    Blocked {
        /// What it needs.
        bytes: Bytes,
        /// What is in the way.
        by: Obstacle,
    },
    /// A promise was taken back, because a load with waiters needs the room or more is
    /// charged than the budget allows.
    Withdrawn,
    /// A load began.
    Loading {
        /// What it loads from.
        from: LoadSource,
        /// Requests that wait for it.
        requests: usize,
        /// Loads that go on waiting although requests for them came earlier.
        ahead_of: usize,
    },
    /// The model serves.
    Ready {
        /// What it takes, measured.
        bytes: Bytes,
    },
    /// A resident takes so much more than before that the budget is exceeded.
    Grown {
        /// What it takes, measured.
        bytes: Bytes,
        /// By how much charges and promises exceed the device's budget.
        over_bytes: Bytes,
    },
    /// A loaded model is gone by itself.
    Died {
        /// The failure's text.
        reason: String,
        /// Deaths in a row, each soon after the model was ready.
        deaths: u32,
        /// No new load before this many milliseconds have passed.
        retry_ms: u64,
    },
    /// Resolving, fetching or loading failed.
    Failed {
        /// Which of them.
        stage: Stage,
        /// The failure's text.
        reason: String,
        /// No new attempt before this many milliseconds have passed.
        retry_ms: u64,
        /// It fails again until the model, the budgets or the ceilings change.
        lasting: bool,
    },
    /// The resident takes no new leases and unloads when the last one ends.
    Draining {
        /// Why it leaves.
        why: Departure,
        /// Whose room it makes, for an eviction.
        for_artefact: Option<ArtefactId>,
        /// Leases that are still held.
        leases: u32,
        /// How long nobody had used it, in milliseconds.
        idle_ms: u64,
        /// How much it was wanted.
        #[serde(flatten)]
        demand: Demand,
    },
    /// A draining resident serves again: its room is not needed any more.
    Revived,
    /// The device gave the bytes back.
    Unloaded {
        /// How many.
        bytes: Bytes,
    },
    /// A copy stays in the host's memory.
    Demoted {
        /// What the copy takes.
        bytes: Bytes,
    },
    /// The copy in the host's memory leaves.
    Discarded {
        /// Why.
        why: Departure,
        /// What comes free with it.
        bytes: Bytes,
    },
    /// A load was given up.
    Abandoned,
    /// Requests go to this version from now on.
    Switched {
        /// The version that served before.
        from: Version,
        /// Who says that this one is served.
        by: Authority,
    },
    /// The store holds a version that is served only when an operator says so.
    Offered {
        /// That version.
        offered: Version,
    },
    /// What the store holds in place of the version to serve is damaged.
    Unfit {
        /// What it lacks.
        reason: String,
    },
    /// An operator chose the version to serve, or leaves that to the endpoint again.
    Chosen {
        /// Whether a version is chosen now.
        held: bool,
    },
    /// The store holds nothing of the model's name any more.
    Deleted {
        /// Whether its residents leave for that.
        drains: bool,
    },
    /// An operator's wish that it stay was set or lifted.
    Keep {
        /// The new state.
        kept: bool,
    },
}

/// What stands between a load and its room.
///
/// Where devices differ, the first of these that is in the way on one of them is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Obstacle {
    /// Its base is not there yet.
    Base,
    /// Others' KV pools have yet to give back what they do not use.
    Pools,
    /// Residents in use, residents that just came, or loads that came first.
    InUse,
    /// More is charged than the budget allows.
    OverBudget,
    /// What other tenants are promised leaves too little of the budget.
    Floors,
    /// What is kept leaves too little of the budget.
    Kept,
    /// Its tenant has as much as it may, and nothing of it can leave.
    Ceiling,
    /// Not room but a fetch is waited for: its tenant has as many under way as its load bandwidth
    /// is good for.
    LoadBandwidth,
}

/// The stage at which a load failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Finding the version.
    Resolve,
    /// Bringing the files to disk.
    Fetch,
    /// Finding room.
    Room,
    /// Loading onto the device.
    Load,
}

/// Why a resident leaves its device, or a copy the host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Departure {
    /// Another load needs the room; of a copy: other copies do, which are worth more.
    Evicted,
    /// Another model needs the place that it has in the engine or container that serves both.
    Place,
    /// Another version serves instead.
    Superseded,
    /// The store holds the model no more.
    Deleted,
    /// An operator asked for it.
    Requested,
    /// Nobody used it for the idle time.
    Idle,
    /// More is charged than the budget allows: it shrank, or a resident takes more than
    /// was foreseen.
    Shrunk,
    /// It takes more than the whole budget of its device.
    Outgrown,
    /// Of adapters only: what they are on leaves.
    Base,
    /// It is gone by itself; of a copy: what was loaded is.
    Died,
    /// Of copies only: a load from it failed, or the loader has it no more.
    Failed,
    /// The server stops.
    Shutdown,
}

impl Departure {
    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::Place => "place",
            Self::Superseded => "superseded",
            Self::Deleted => "deleted",
            Self::Requested => "requested",
            Self::Idle => "idle",
            Self::Shrunk => "shrunk",
            Self::Outgrown => "outgrown",
            Self::Base => "base",
            Self::Died => "died",
            Self::Failed => "failed",
            Self::Shutdown => "shutdown",
        }
    }
}

impl Stage {
    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Fetch => "fetch",
            Self::Room => "room",
            Self::Load => "load",
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "its base is loading",
            Self::Pools => "others give back free KV room first",
            Self::Kept => "kept models leave too little of the budget",
            Self::InUse => "the room is in use or promised to earlier loads",
            Self::OverBudget => "more is charged than the budget allows",
            Self::Floors => "what other tenants are promised leaves too little of the budget",
            Self::LoadBandwidth => "its tenant's load bandwidth is taken by its other loads",
            Self::Ceiling => "its tenant has as much as it may and nothing of that can leave",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { reason } => write!(f, "refused: {reason}"),
            Self::Fetching { bytes } => write!(f, "fetching {bytes}"),
            Self::Fetched => f.write_str("whole on disk"),
            Self::Promised { bytes, victims } if victims.is_empty() => {
                write!(f, "promised {bytes} of free room")
            }
            Self::Promised { bytes, victims } => {
                write!(f, "promised {bytes}; to leave when it can load:")?;
                victims.iter().try_for_each(|victim| write!(f, " {victim}"))
            }
            Self::Replicating { leases, devices } => write!(
                f,
                "replicating: {} or more on each of {} it",
                count(*leases, "lease"),
                count_that(*devices, "device", ["that serves", "that serve"]),
            ),
            Self::AwaitsBase { base } => write!(f, "its base {base} is loaded first"),
            Self::Blocked { bytes, by: Obstacle::LoadBandwidth } => {
                write!(f, "waits for its tenant's load bandwidth to fetch {bytes}")
            }
            Self::Blocked { bytes, by } => write!(f, "waits for {bytes}: {by}"),
            Self::Withdrawn => f.write_str("promise taken back"),
            Self::Loading { from, requests, ahead_of } => {
                let source = match from {
                    LoadSource::Host => " from its copy in host memory",
                    LoadSource::Arriving => " while it arrives",
                    LoadSource::Files => "",
                };
                match requests {
                    1 => write!(f, "loading{source}, one request waits for it")?,
                    n => write!(f, "loading{source}, {n} requests wait for it")?,
                }
                match ahead_of {
                    0 => Ok(()),
                    n => {
                        let loads = count_that(*n, "load", ["that was", "that were"]);
                        write!(f, "; goes before {loads} asked for earlier")
                    }
                }
            }
            Self::Ready { bytes } => write!(f, "ready, takes {bytes}"),
            Self::Grown { bytes, over_bytes } => {
                write!(f, "takes {bytes} by now, the budget is exceeded by {over_bytes}")
            }
            Self::Died { reason, retry_ms: 0, .. } => write!(f, "died: {reason}"),
            Self::Died { reason, deaths, retry_ms } => {
                write!(f, "died {deaths} times, next load in {}: {reason}", Lasting(*retry_ms))
            }
            Self::Failed { stage, reason, lasting: true, .. } => {
                write!(f, "{} failed: {reason}", stage.as_str())
            }
            Self::Failed { stage, reason, retry_ms, .. } => {
                let (stage, pause) = (stage.as_str(), Lasting(*retry_ms));
                write!(f, "{stage} failed, next attempt in {pause}: {reason}")
            }
            Self::Draining { why, for_artefact, leases, idle_ms, demand } => {
                let why = if *why == Departure::Base { "with its base" } else { why.as_str() };
                write!(f, "leaves ({why}")?;
                if let Some(artefact) = for_artefact {
                    write!(f, " for {artefact}")?;
                }
                let held = if *leases == 1 { "lease" } else { "leases" };
                let idle = Lasting(*idle_ms);
                write!(f, "), {leases} {held} held, last used {idle} ago, {demand}")
            }
            Self::Revived => f.write_str("serves again, its room is not needed"),
            Self::Unloaded { bytes } => write!(f, "unloaded, {bytes} are free"),
            Self::Demoted { bytes } => {
                write!(f, "a copy stays in host memory, takes {bytes}")
            }
            Self::Discarded { why, bytes } => {
                write!(f, "its copy leaves host memory ({}), {bytes} come free", why.as_str())
            }
            Self::Abandoned => f.write_str("load given up"),
            Self::Switched { from, by } => {
                let by = match by {
                    Authority::Store => "it is the store's newest",
                    Authority::Operator => "an operator chose it",
                    Authority::Rule => "the endpoint's update rule holds it",
                };
                write!(f, "serves instead of {}: {by}", short(from))
            }
            Self::Offered { offered } => write!(
                f,
                "the store holds version {}, which is not served before an operator says so",
                short(offered)
            ),
            Self::Unfit { reason } => write!(f, "passed over: {reason}"),
            Self::Chosen { held: true } => f.write_str("an operator chose this version"),
            Self::Chosen { held: false } => {
                f.write_str("an operator lifted the choice of a version")
            }
            Self::Deleted { drains: true } => {
                f.write_str("the store holds it no more: it takes no new requests")
            }
            Self::Deleted { drains: false } => {
                f.write_str("the store holds it no more: it serves until it is evicted")
            }
            Self::Keep { kept: true } => f.write_str("kept"),
            Self::Keep { kept: false } => f.write_str("no longer kept"),
        }
    }
}

/// Milliseconds as people say them.
pub(crate) struct Lasting(pub(crate) u64);

impl fmt::Display for Lasting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, part) = (self.0 / 1000, self.0 % 1000);
        match seconds {
            0 => write!(f, "{part} ms"),
            1..60 => write!(f, "{seconds}.{} s", part / 100),
            60..3600 => write!(f, "{} min {} s", seconds / 60, seconds % 60),
            3600..86_400 => write!(f, "{} h {} min", seconds / 3600, seconds / 60 % 60),
            _ => write!(f, "{} d {} h", seconds / 86_400, seconds / 3600 % 24),
        }
    }
}

/// The beginning of a version's digest, which tells it from the model's others.
pub(crate) fn short(version: &Version) -> &str {
    version.as_str().get(..12).unwrap_or(version.as_str())
}

/// A decision as the table emits it, without a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decided {
    pub(crate) model: ModelId,
    pub(crate) version: Option<Version>,
    pub(crate) device: Option<DeviceId>,
    pub(crate) action: Action,
    /// For metrics: the kind of a refusal or failure.
    pub(crate) kind: Option<ErrorKind>,
}

impl Decided {
    pub(crate) fn about(model: &ModelId, action: Action) -> Self {
        Self { model: model.clone(), version: None, device: None, action, kind: None }
    }

    pub(crate) fn of(artefact: &ArtefactId, device: Option<DeviceId>, action: Action) -> Self {
        Self {
            model: artefact.model.clone(),
            version: Some(artefact.version.clone()),
            device,
            action,
            kind: None,
        }
    }

    pub(crate) fn with_kind(mut self, failure: &Failure) -> Self {
        self.kind = Some(failure.kind());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_people_say_them() {
        let said = |milliseconds: u64| Lasting(milliseconds).to_string();
        assert_eq!([0, 999, 1000, 59_999].map(said), ["0 ms", "999 ms", "1.0 s", "59.9 s"]);
        assert_eq!([60_000, 3_599_999].map(said), ["1 min 0 s", "59 min 59 s"]);
        assert_eq!([3_600_000, 90_000_000].map(said), ["1 h 0 min", "1 d 1 h"]);
    }
}
