//! What residency itself refuses, and why.

use std::fmt;
use std::time::Duration;

use roundhouse_types::{Bytes, DeviceId, ErrorKind, Failure, ModelId, RetryHint, count_that};
use thiserror::Error;

use crate::decision::Obstacle;

/// A refusal of residency's own. Failures of the loader pass through as they are.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// The footprint exceeds every device's budget.
    #[error("{model} needs {need}, and no device may use as much: {}", list(.devices))]
    TooLarge {
        /// Which model.
        model: ModelId,
        /// Its footprint.
        need: Bytes,
        /// The devices, each with the largest budget that it ever had.
        devices: Vec<(DeviceId, Bytes)>,
    },
    /// The footprint exceeds what every device has now, but not what it had.
    #[error(
        "{model} needs {need}: others use the memory or it is not there, for now models are left {}",
        list_left(.devices)
    )]
    Lowered {
        /// Which model.
        model: ModelId,
        /// Its footprint.
        need: Bytes,
        /// The devices, each with its budget now and the largest that it ever had.
        devices: Vec<(DeviceId, Bytes, Bytes)>,
    },
    /// The footprint exceeds what the model's tenant may take.
    #[error("{model} needs {need} and tenant '{tenant}' may take {ceiling}")]
    AboveCeiling {
        /// Which model.
        model: ModelId,
        /// Its footprint.
        need: Bytes,
        /// Its tenant.
        tenant: String,
        /// What the tenant may take.
        ceiling: Bytes,
    },
    /// An adapter fits no device beside its base.
    #[error(
        "{model} needs {need} beside its base {base}, which needs {base_need}, and no device may \
         use as much: {}", list(.devices)
    )]
    TooLargeBeside {
        /// The adapter.
        model: ModelId,
        /// Its footprint.
        need: Bytes,
        /// Its base.
        base: ModelId,
        /// Its base's footprint.
        base_need: Bytes,
        /// The devices, each with the largest budget that it ever had.
        devices: Vec<(DeviceId, Bytes)>,
    },
    /// An adapter and its base exceed what their tenant may take.
    #[error(
        "{model} needs {need} beside its base {base}, which needs {base_need}, and tenant \
         '{tenant}' may take {ceiling}"
    )]
    CeilingBeside {
        /// The adapter.
        model: ModelId,
        /// Its footprint.
        need: Bytes,
        /// Its base.
        base: ModelId,
        /// Its base's footprint.
        base_need: Bytes,
        /// The tenant of both.
        tenant: String,
        /// What the tenant may take.
        ceiling: Bytes,
    },
    /// An adapter does not fit what its base leaves of the devices that it may come to now.
    #[error("{model} needs {need} beside its base {base}: for now that leaves it {}", list(.left))]
    LeftBeside {
        /// The adapter.
        model: ModelId,
        /// Its footprint.
        need: Bytes,
        /// Its base.
        base: ModelId,
        /// The devices where the base is, or all where it is nowhere, each with what is left
        /// beside it.
        left: Vec<(DeviceId, Bytes)>,
    },
    /// An adapter names itself as its base.
    #[error("{model} names itself as its base")]
    OwnBase {
        /// The adapter.
        model: ModelId,
    },
    /// An adapter's base is an adapter.
    #[error("the base of {model} is {base}, which is an adapter itself")]
    ChainedBase {
        /// The adapter.
        model: ModelId,
        /// Its base.
        base: ModelId,
    },
    /// What was loaded while its files arrived turned out to be an adapter.
    #[error("{model} turned out to adapt {base} while it was loaded as a model of its own")]
    LateBase {
        /// The adapter.
        model: ModelId,
        /// Its base.
        base: ModelId,
    },
    /// An adapter's base could not be had.
    #[error("{model} cannot be loaded without its base {base}: {reason}")]
    BaseFailed {
        /// The adapter.
        model: ModelId,
        /// Its base.
        base: ModelId,
        /// What went wrong with it.
        reason: String,
        /// Of which kind that is.
        kind: ErrorKind,
        /// Whether it may go better later.
        retry: RetryHint,
    },
    /// A load that must not evict found too little free room.
    #[error("no room now for {model}: it needs {need}, {free} are free")]
    NoRoomNow {
        /// Which model.
        model: ModelId,
        /// Its footprint.
        need: Bytes,
        /// The most that is free on one device.
        free: Bytes,
    },
    /// The hold time is over; the work goes on.
    #[error("{model} is not ready: {progress}")]
    NotReady {
        /// Which model.
        model: ModelId,
        /// How far it is.
        progress: Progress,
        /// When it may be ready, where that can be told.
        estimate: Option<Duration>,
    },
    /// The load did not end within the load timeout.
    #[error("{model} was not ready within {limit:?}: {progress}")]
    LoadTimedOut {
        /// Which model.
        model: ModelId,
        /// How far it came.
        progress: Progress,
        /// The load timeout.
        limit: Duration,
    },
    /// Too many requests wait for this model.
    #[error("{} for {model} already", count_that(*.waiters, "request", ["waits", "wait"]))]
    ModelQueueFull {
        /// Which model.
        model: ModelId,
        /// The limit.
        waiters: usize,
        /// When they may be answered, where that can be told.
        estimate: Option<Duration>,
    },
    /// Too many requests wait in all.
    #[error("{} for models already", count_that(*.waiters, "request", ["waits", "wait"]))]
    QueueFull {
        /// How many do: all that may, or so many that the rest of the places is for other tenants.
        waiters: usize,
    },
    /// Only loaded models were asked for, and this one is not.
    #[error("{model} is not loaded")]
    NotLoaded {
        /// Which model.
        model: ModelId,
    },
    /// The process died twice while it loaded this version.
    #[error(
        "{model} is quarantined: the server died twice while loading it; load it with force to try again"
    )]
    Quarantined {
        /// Which model.
        model: ModelId,
    },
    /// A loader call panicked.
    #[error("the loader panicked in {call} of {subject}")]
    LoaderPanicked {
        /// Which call.
        call: &'static str,
        /// For what.
        subject: String,
    },
    /// The load was given up before it ended.
    #[error("the load of {model} was given up")]
    Abandoned {
        /// Which model.
        model: ModelId,
    },
    /// The server stops.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The task that owns the table is gone.
    #[error("the residency task has ended")]
    OwnerGone,
}

impl Error {
    /// What the client is told.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge { .. }
            | Self::TooLargeBeside { .. }
            | Self::CeilingBeside { .. }
            | Self::AboveCeiling { .. }
            | Self::NoRoomNow { .. } => ErrorKind::TooLarge,
            // The model that was asked for is there.
            Self::BaseFailed { kind: ErrorKind::ModelNotFound, .. } => ErrorKind::ModelInvalid,
            Self::BaseFailed { kind, .. } => *kind,
            Self::OwnBase { .. } | Self::ChainedBase { .. } | Self::LateBase { .. } => {
                ErrorKind::ModelInvalid
            }
            Self::Lowered { .. }
            | Self::LeftBeside { .. }
            | Self::NotReady { .. }
            | Self::LoadTimedOut { .. }
            | Self::Abandoned { .. } => ErrorKind::NotReady,
            Self::ModelQueueFull { .. } | Self::QueueFull { .. } | Self::ShuttingDown => {
                ErrorKind::Overloaded
            }
            Self::NotLoaded { .. } => ErrorKind::ModelNotFound,
            Self::Quarantined { .. } => ErrorKind::ModelInvalid,
            Self::LoaderPanicked { .. } | Self::OwnerGone => ErrorKind::Internal,
        }
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> RetryHint {
        match self {
            Self::BaseFailed { retry, .. } => *retry,
            Self::TooLarge { .. }
            | Self::TooLargeBeside { .. }
            | Self::CeilingBeside { .. }
            | Self::OwnBase { .. }
            | Self::ChainedBase { .. }
            | Self::AboveCeiling { .. }
            | Self::NotLoaded { .. }
            | Self::Quarantined { .. } => RetryHint::Never,
            Self::NotReady { estimate: Some(estimate), .. }
            | Self::ModelQueueFull { estimate: Some(estimate), .. } => RetryHint::After(*estimate),
            Self::NoRoomNow { .. }
            | Self::Lowered { .. }
            | Self::LeftBeside { .. }
            | Self::LateBase { .. }
            | Self::NotReady { .. }
            | Self::LoadTimedOut { .. }
            | Self::ModelQueueFull { .. }
            | Self::QueueFull { .. }
            | Self::LoaderPanicked { .. }
            | Self::Abandoned { .. }
            | Self::ShuttingDown
            | Self::OwnerGone => RetryHint::Later,
        }
    }
}

/// How far a load has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The version is not known yet.
    Resolving,
    /// Files are on their way or wait for their turn.
    Fetching {
        /// What has come so far.
        done: Bytes,
        /// What had to come.
        total: Bytes,
    },
    /// Its tenant's other loads take what it may fetch in a second.
    WaitingForBandwidth {
        /// What has to come.
        need: Bytes,
    },
    /// On disk, but there is no room.
    WaitingForRoom {
        /// Its footprint.
        need: Bytes,
        /// What is in the way.
        obstacle: Obstacle,
    },
    /// On disk; its base is not on a device yet.
    WaitingForBase,
    /// On disk; other loads go first.
    WaitingForTurn,
    /// Room is promised; others have to leave first, or a load slot has to come free.
    WaitingForVictims,
    /// On its way to the device.
    Loading,
    /// The resident is leaving the device.
    Leaving {
        /// Leases that are held.
        leases: u32,
    },
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolving => f.write_str("its version is being looked up"),
            Self::Fetching { done, total } => write!(f, "still fetching, {done} of {total}"),
            Self::WaitingForBandwidth { need } => {
                write!(f, "it waits for its tenant's load bandwidth to fetch {need}")
            }
            Self::WaitingForRoom { need, obstacle } => {
                write!(f, "it waits for {need} of device memory: {obstacle}")
            }
            Self::WaitingForBase => f.write_str("its base is loading"),
            Self::WaitingForTurn => f.write_str("it waits for other loads to end"),
            Self::WaitingForVictims => f.write_str("it waits for others to leave the device"),
            Self::Loading => f.write_str("still loading"),
            Self::Leaving { leases } => {
                let leases = count_that(*leases, "lease", ["is", "are"]);
                write!(f, "it is leaving the device, {leases} held")
            }
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from_error(error.kind(), &error).with_retry(error.retry())
    }
}

/// The devices, each with what it may use.
fn list(devices: &[(DeviceId, Bytes)]) -> String {
    let devices: Vec<String> =
        devices.iter().map(|(device, budget)| format!("{device} {budget}")).collect();
    devices.join(", ")
}

fn list_left(devices: &[(DeviceId, Bytes, Bytes)]) -> String {
    let devices: Vec<String> = devices
        .iter()
        .map(|(device, budget, most)| format!("{budget} of {most} on {device}"))
        .collect();
    devices.join(", ")
}
