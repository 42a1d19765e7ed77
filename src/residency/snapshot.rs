//! The state of the table at one instant, in the shape of `/admin/v1/residency`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, EndpointName, Footprint, ModelId, ModelKind, TargetName, Version,
};
use serde::Serialize;

use crate::table::Key;

/// The whole table at one instant.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// Every device with its residents.
    pub devices: Vec<DeviceSnapshot>,
    /// Copies of models that left a device with a memory of its own, in the host's memory;
    /// absent where that may hold none and holds none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostSnapshot>,
    /// Requests and operators that wait.
    pub waiters: usize,
    /// Loads under way.
    pub loads: Vec<LoadSnapshot>,
    /// Models that failed or are quarantined.
    pub failed: Vec<FailedSnapshot>,
    /// What failed of the store's versions of models of which nothing serves. Residents tell their own.
    #[serde(skip)]
    pub unfit: Vec<(ModelId, UnfitSnapshot)>,
}

impl Snapshot {
    /// What failed of a model's version in whose place another one answers, or would.
    pub fn unfit(&self, model: &ModelId) -> Option<&UnfitSnapshot> {
        match self.ready(model) {
            Some(resident) => resident.unfit.as_ref(),
            None => self.unfit.iter().find(|(id, _)| id == model).map(|(_, unfit)| unfit),
        }
    }

    /// The resident that serves `model`, where one is ready.
    pub fn ready(&self, model: &ModelId) -> Option<&ResidentSnapshot> {
        let mut residents = self.devices.iter().flat_map(|device| &device.residents);
        residents.find(|resident| {
            resident.state == ResidentState::Ready
                && resident.endpoint == model.endpoint
                && resident.target == model.target
        })
    }
}

/// One device.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceSnapshot {
    /// Which one.
    pub id: DeviceId,
    /// What residency may use.
    pub budget_bytes: Bytes,
    /// What residents take, those that are leaving included, and what loads count on. Less
    /// than the sum over the residents where they share: what they hold together is
    /// charged once.
    pub charged_bytes: Bytes,
    /// What is promised to loads.
    pub reserved_bytes: Bytes,
    /// By how much charged and reserved exceed the budget: it shrank, or residents take
    /// more than was foreseen.
    pub over_bytes: Bytes,
    /// The loaded artefacts.
    pub residents: Vec<ResidentSnapshot>,
}

/// One loaded artefact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResidentSnapshot {
    /// The model's endpoint.
    pub endpoint: EndpointName,
    /// The model's target.
    pub target: TargetName,
    /// The version.
    pub version: Version,
    /// What it does.
    pub kind: ModelKind,
    /// Of an adapter: what it is on, on the same device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<ArtefactId>,
    /// Of a base: how many adapters are on it, those that are leaving included.
    #[serde(skip_serializing_if = "is_zero")]
    pub adapters: usize,
    /// Whether it serves or leaves.
    pub state: ResidentState,
    /// What it takes, by part.
    pub bytes: Footprint,
    /// How much of `bytes` others hold as well right now, or loads under way count on. It
    /// does not come free when this resident leaves.
    pub shared_bytes: Bytes,
    /// Its part of all that the device holds: `bytes`, with what several hold split among them.
    pub share_bytes: Bytes,
    /// Requests that hold it.
    pub leases: u32,
    /// Whether an operator wants it to stay.
    pub kept: bool,
    /// A version in the store that is served only when an operator says so.
    pub offered: Option<Version>,
    /// Another version that failed, while this one serves on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unfit: Option<UnfitSnapshot>,
    /// When it was last acquired or released, in RFC 3339.
    pub last_used: String,
}

/// What failed of a model while a version of it serves: mostly a newer one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnfitSnapshot {
    /// Which; absent where the newest version cannot be told, which may be the one that serves.
    pub version: Option<Version>,
    /// The failure's text.
    pub reason: String,
    /// When it was first seen, in RFC 3339.
    pub since: String,
}

/// The states of a resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResidentState {
    /// It serves.
    Ready,
    /// It serves its last leases.
    Draining,
    /// The device is giving its memory back; still charged.
    Unloading,
}

/// The copies in the host's memory.
#[derive(Debug, Clone, Serialize)]
pub struct HostSnapshot {
    /// What copies may take.
    pub budget_bytes: Bytes,
    /// What they take, those that are leaving included. What several hold together is charged
    /// once.
    pub charged_bytes: Bytes,
    /// What is promised to those that unloads are making.
    pub reserved_bytes: Bytes,
    /// By how much charged and reserved exceed the budget.
    pub over_bytes: Bytes,
    /// The copies.
    pub copies: Vec<CopySnapshot>,
}

/// One copy in the host's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopySnapshot {
    /// The model's endpoint.
    pub endpoint: EndpointName,
    /// The model's target.
    pub target: TargetName,
    /// The version.
    pub version: Version,
    /// What it does.
    pub kind: ModelKind,
    /// Whether loads may begin from it.
    pub state: CopyState,
    /// What it takes, by part: weights and host parts.
    pub bytes: Footprint,
    /// How much of `bytes` other copies hold as well right now.
    pub shared_bytes: Bytes,
    /// Its part of all that copies hold: `bytes`, with what several hold split among them.
    pub share_bytes: Bytes,
    /// Whether a load takes it for its source; until that ends it stays.
    pub in_use: bool,
    /// When it came, or a load from it last ended, in RFC 3339.
    pub last_used: String,
}

/// The states of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyState {
    /// A load may begin from it.
    Ready,
    /// It leaves, when the load that uses it has ended, or is leaving; still charged.
    Leaving,
}

/// A load under way.
#[derive(Debug, Clone, Serialize)]
pub struct LoadSnapshot {
    /// The model's endpoint.
    pub endpoint: EndpointName,
    /// The model's target.
    pub target: TargetName,
    /// The version.
    pub version: Version,
    /// How far it is.
    pub state: LoadState,
    /// Of an adapter: the model that it adapts, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<ModelId>,
    /// The device that promised it room.
    pub device: Option<DeviceId>,
    /// What has to come from the store.
    pub fetch_bytes: Bytes,
    /// What has come so far.
    pub fetched_bytes: Bytes,
    /// What it will take on the device; absent where that is not known before the fetch.
    pub footprint_bytes: Option<Bytes>,
    /// What is promised to it by now.
    pub reserved_bytes: Bytes,
    /// The tenant to whose load bandwidth its fetch is held; absent where it is held to none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paced_for: Option<String>,
    /// Requests that wait for it.
    pub waiters: usize,
    /// Whether the version serves already and this is for one more device.
    pub replica: bool,
}

/// The states of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadState {
    /// Waits for a fetch slot.
    Queued,
    /// Files are on their way.
    Fetching,
    /// Files are on their way, and what has come of them goes to the device.
    Arriving,
    /// Whole on disk; no room could be promised yet.
    WaitingForRoom,
    /// Room is promised; victims are leaving or a load slot is awaited.
    WaitingToLoad,
    /// On its way to the device.
    Loading,
}

/// A model whose last attempt failed.
#[derive(Debug, Clone, Serialize)]
pub struct FailedSnapshot {
    /// The model's endpoint.
    pub endpoint: EndpointName,
    /// The model's target.
    pub target: TargetName,
    /// The version that failed, where one was known.
    pub version: Option<Version>,
    /// Whether it failed or is quarantined.
    pub state: FailedState,
    /// The failure's text.
    pub message: String,
    /// Attempts that failed in a row.
    pub attempts: u32,
    /// No new attempt before this.
    pub retry_at: String,
}

/// Why a model is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailedState {
    /// An attempt failed; another will be made.
    Failed,
    /// Two deaths while loading; only a forced load will be made.
    Quarantined,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Some of what devices or the host's memory hold: a look at all of it, part by part, holds up
/// nobody for long. What changes between two parts is seen or not; what stays is seen once.
#[derive(Debug, Clone)]
pub struct Part<R, A> {
    /// What is in it, in the order of names.
    pub rows: Vec<R>,
    /// Where the next one begins; `None` behind the last.
    pub rest: Option<A>,
}

/// The residents of a part, each with its device.
pub type ResidentsPart = Part<(DeviceId, ResidentSnapshot), AfterResident>;
/// The copies of a part.
pub type CopiesPart = Part<CopySnapshot, ArtefactId>;

/// The last resident of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AfterResident(pub(crate) Key);

/// Tells wall-clock time for instants of the table: one pair of readings of both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clocks {
    pub(crate) instant: Instant,
    pub(crate) wall: SystemTime,
}

/// How far two pairs of readings may be apart and mean the same: more than what comes between the
/// two readings of a pair, less than anybody sees. An instant that is told again is told the same.
const SAME_CLOCK: Duration = Duration::from_millis(50);

impl Clocks {
    /// This pair, or `fresh` where the wall clock was set or drifted away.
    pub(crate) fn or(self, fresh: Self) -> Self {
        let told = self.wall + fresh.instant.saturating_duration_since(self.instant);
        let apart = match fresh.wall.duration_since(told) {
            Ok(ahead) => ahead,
            Err(behind) => behind.duration(),
        };
        if apart < SAME_CLOCK { self } else { fresh }
    }

    /// The wall-clock time of `instant` in RFC 3339.
    pub(crate) fn rfc3339(&self, instant: Instant) -> String {
        let wall = match instant.checked_duration_since(self.instant) {
            Some(ahead) => self.wall.checked_add(ahead),
            None => self.wall.checked_sub(self.instant.saturating_duration_since(instant)),
        };
        rfc3339(wall.unwrap_or(self.wall))
    }
}

/// UTC with milliseconds. Times before 1970 are shown as its first instant.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to civil date over 400-year eras that begin on 1 March, so that leap days
    // fall at the end of a year.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_millis(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_clock_times_are_civil_dates() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ];
        for (seconds, want) in cases {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), want);
        }
    }
}
