//! Who may come in: bounds on the requests in flight, in all and for each model.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roundhouse_types::{ModelId, RetryHint};
use tokio::time::Instant;

use crate::Error;

/// Bounds on requests in flight, waiting for a load or for their turn included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) in_all: usize,
    pub(crate) per_model: usize,
}

/// Below a second clients only hammer; above half a minute they had better look elsewhere.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How much the latest gap between two departures counts against those before.
const GAP_WEIGHT: f64 = 0.2;

/// Counts requests in flight. Shared by all permits, whose drops count down.
///
/// 1. `in_all` is the sum of `per_model`.
/// 2. Neither exceeds its bound.
/// 3. A model without requests has no entry.
#[derive(Debug)]
pub(crate) struct Admission {
    bounds: Bounds,
    /// Held for a look-up and two additions; never across an await.
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    in_all: usize,
    per_model: HashMap<ModelId, usize>,
    left: Option<Instant>,
    /// Seconds between two departures, smoothed.
    gap: Option<f64>,
}

/// One request's place. Dropping it makes room for the next.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    model: ModelId,
}

impl Admission {
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, counts: Mutex::default() })
    }

    /// A place for a request to a model.
    ///
    /// # Errors
    /// `Overloaded`, with a hint from the pace at which requests have been leaving.
    pub(crate) fn enter(self: &Arc<Self>, model: &ModelId) -> Result<Permit, Error> {
        let mut counts = self.counts();
        let for_model = counts.per_model.get(model).copied().unwrap_or(0);
        let full =
            |in_flight, scope: String, retry| Err(Error::QueueFull { scope, in_flight, retry });
        if counts.in_all >= self.bounds.in_all {
            return full(counts.in_all, "in all".to_owned(), counts.retry());
        }
        if for_model >= self.bounds.per_model {
            return full(for_model, format!("for {model}"), counts.retry());
        }
        counts.in_all += 1;
        counts.per_model.insert(model.clone(), for_model + 1);
        Ok(Permit { admission: Arc::clone(self), model: model.clone() })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn leave(&mut self, model: &ModelId, now: Instant) {
        self.in_all = self.in_all.saturating_sub(1);
        if let Some(count) = self.per_model.get_mut(model) {
            *count -= 1;
            if *count == 0 {
                self.per_model.remove(model);
            }
        }
        debug_assert_eq!(self.in_all, self.per_model.values().sum::<usize>(), "invariant 1");
        if let Some(before) = self.left.replace(now) {
            let latest = now.duration_since(before).as_secs_f64();
            let gap = self.gap.map_or(latest, |gap| gap + GAP_WEIGHT * (latest - gap));
            self.gap = Some(gap);
        }
    }

    /// A place is free when the next request leaves.
    fn retry(&self) -> RetryHint {
        self.gap.map_or(RetryHint::Later, |gap| {
            RetryHint::After(Duration::from_secs_f64(gap).clamp(RETRY_MIN, RETRY_MAX))
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.counts().leave(&self.model, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(target: &str) -> ModelId {
        ModelId { endpoint: "e".parse().unwrap(), target: target.parse().unwrap() }
    }

    fn admission() -> Arc<Admission> {
        Admission::new(Bounds { in_all: 3, per_model: 2 })
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_model_does_not_close_the_door_for_others() {
        let admission = admission();
        let _first = admission.enter(&model("a")).unwrap();
        let second = admission.enter(&model("a")).unwrap();
        let error = admission.enter(&model("a")).unwrap_err();
        assert_eq!(error.to_string(), "2 requests are in flight for e:a, which is the limit");
        let _other = admission.enter(&model("b")).unwrap();
        let error = admission.enter(&model("b")).unwrap_err();
        assert_eq!(error.to_string(), "3 requests are in flight in all, which is the limit");
        drop(second);
        assert!(admission.enter(&model("a")).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn models_without_requests_are_forgotten() {
        let admission = admission();
        drop(admission.enter(&model("a")).unwrap());
        assert!(admission.counts().per_model.is_empty());
        assert_eq!(admission.counts().in_all, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_retry_hint_follows_the_pace_of_departures() {
        let admission = admission();
        let permits: Vec<Permit> =
            ["a", "b", "c"].iter().map(|name| admission.enter(&model(name)).unwrap()).collect();
        assert_eq!(admission.enter(&model("d")).unwrap_err().retry(), RetryHint::Later);
        for permit in permits {
            tokio::time::advance(Duration::from_secs(4)).await;
            drop(permit);
        }
        let _places: Vec<Permit> =
            ["a", "b", "c"].iter().map(|name| admission.enter(&model(name)).unwrap()).collect();
        let retry = admission.enter(&model("d")).unwrap_err().retry();
        assert_eq!(retry, RetryHint::After(Duration::from_secs(4)));
    }
}
