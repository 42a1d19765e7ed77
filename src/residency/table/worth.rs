//! What it is worth that a resident stays: who leaves first among those that may.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use roundhouse_types::{Bytes, DeviceId, ModelId, Tier};
use serde::Serialize;

use super::Table;
use super::event::Key;
use super::state::{Arrival, Resident};
use crate::config::Policy;
use crate::decision::Lasting;

/// What is known of the demand for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Demand {
    /// How often it was asked for, older requests counting less, in hundredths.
    pub uses_percent: u64,
    /// How long its last loads took, in milliseconds.
    pub reload_ms: u64,
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (uses, part) = (self.uses_percent / 100, self.uses_percent % 100);
        let load = Lasting(self.reload_ms);
        write!(f, "asked for {uses}.{part:02} times of late, a load takes {load}")
    }
}

/// Grants after which a request counts half. On a replayed trace of 27,000 requests anything
/// from 300 to never loads about as little; fading lets go of what was popular last month.
const HALF_LIFE: f64 = 1000.0;
/// A reload that seems to take no time still costs this many seconds.
const LEAST_RELOAD: f64 = 0.001;
/// Weight of the newest reload.
const NEWEST: f64 = 0.5;

/// How often a model was asked for, older requests counting less.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Frequency {
    count: f64,
    /// The grant of all models at which it was last counted.
    at: u64,
}

impl Frequency {
    fn at(self, grant: u64) -> f64 {
        self.count * (-float(grant.saturating_sub(self.at)) / HALF_LIFE).exp2()
    }
}

/// How far each device has aged, in the worth of what left it: a resident must be worth more
/// than what left before it was used.
#[derive(Debug, Default)]
pub(super) struct Ages {
    by_device: BTreeMap<DeviceId, f64>,
    grants: u64,
}

impl Ages {
    /// A resident of this worth leaves for another.
    pub(super) fn left(&mut self, device: DeviceId, worth: f64) {
        let age = self.by_device.entry(device).or_default();
        *age = age.max(worth);
    }

    fn of(&self, device: DeviceId) -> f64 {
        self.by_device.get(&device).copied().unwrap_or_default()
    }
}

impl Table {
    /// A request of this model is answered.
    pub(super) fn count_use(&mut self, model: &ModelId) {
        self.ages.grants += 1;
        let grants = self.ages.grants;
        let frequency = &mut self.model_mut(model).frequency;
        *frequency = Frequency { count: frequency.at(grants) + 1.0, at: grants };
    }

    /// A resident is in use now.
    pub(super) fn used(&mut self, key: &Key) -> Option<&mut Resident> {
        let (now, sequence) = (self.now, self.next_sequence());
        let has_copy = self.copies.is_usable(&key.artefact);
        let resident = self.residents.get_mut(key)?;
        resident.last_used = now;
        resident.used_sequence = sequence;
        resident.worth = match self.config.policy {
            Policy::LeastRecentlyUsed => float(sequence),
            Policy::GreedyDual => {
                let saved = self.models.peek(&key.artefact.model).map_or(0.0, |model| {
                    // It comes back from its copy for as long as that is there.
                    let reload = model.promotion.filter(|_| has_copy).or(model.reload);
                    let bytes = resident.settled_bytes();
                    saved(model.frequency.at(self.ages.grants), reload, bytes)
                });
                self.ages.of(key.device) + saved
            }
        };
        Some(resident)
    }

    /// What a copy of this size in the host's memory is worth now: its requests fade, so it
    /// ages without a clock of its own.
    pub(super) fn copy_worth(&self, model: &ModelId, bytes: Bytes, used_sequence: u64) -> f64 {
        match self.config.policy {
            Policy::LeastRecentlyUsed => float(used_sequence),
            Policy::GreedyDual => self.models.peek(model).map_or(0.0, |model| {
                saved(model.frequency.at(self.ages.grants), model.reload, bytes)
            }),
        }
    }

    /// The seconds of loading that the demand for a model stands for if it has to be loaded
    /// again.
    pub(super) fn reload_cost(&self, model: &ModelId) -> f64 {
        let entry = self.models.peek(model);
        let uses = entry.map_or(0.0, |entry| entry.frequency.at(self.ages.grants));
        let reload = entry.and_then(|entry| entry.reload).unwrap_or_default();
        uses * reload.max(LEAST_RELOAD)
    }

    /// What victims are judged by, for those who ask why.
    pub(super) fn demand(&self, model: &ModelId) -> Demand {
        let entry = self.models.peek(model);
        let uses = entry.map_or(0.0, |entry| entry.frequency.at(self.ages.grants));
        let reload = entry.and_then(|entry| entry.reload).unwrap_or_default();
        Demand { uses_percent: whole(uses * 100.0), reload_ms: whole(reload * 1000.0) }
    }

    /// Remembers how long a model took to come, with `fetch` seconds of fetching. A fetch counts too: one that is fetched each
    /// time has a dear reload, one that stays on disk soon has not. What was done once for all
    /// loads does not.
    pub(super) fn learn_reload(
        &mut self,
        model: &ModelId,
        arrival: Arrival,
        fetch: f64,
        once: Duration,
    ) {
        let (begin, end) = arrival.load;
        let load = end.saturating_duration_since(begin).saturating_sub(once);
        let seconds = fetch + load.as_secs_f64();
        let entry = self.model_mut(model);
        let reload =
            if arrival.tier == Tier::Host { &mut entry.promotion } else { &mut entry.reload };
        *reload = Some(reload.map_or(seconds, |known| known + NEWEST * (seconds - known)));
    }
}

/// Seconds of reloading that a stay saves, per mebibyte.
fn saved(frequency: f64, reload: Option<f64>, bytes: Bytes) -> f64 {
    let mebibytes = float(bytes.0.max(1)) / float(1 << 20);
    frequency * reload.unwrap_or_default().max(LEAST_RELOAD) / mebibytes
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "never negative, and saturating where it is large"
)]
fn whole(number: f64) -> u64 {
    number.round() as u64
}

#[expect(clippy::cast_precision_loss, reason = "an order, not an account")]
pub(super) fn float(number: u64) -> f64 {
    number as f64
}
