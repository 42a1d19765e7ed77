//! Who may come in: bounds on the requests in flight, in all and for each model.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roundhouse_tenancy::Caller;
use roundhouse_types::{ModelId, Places, RetryHint, TenantName};
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
/// 1. `in_all` counts as many as all of `per_model` together.
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
    in_all: Places<TenantName>,
    per_model: HashMap<ModelId, Places<TenantName>>,
    left: Option<Instant>,
    /// Seconds between two departures, smoothed.
    gap: Option<f64>,
}

/// One request's place. Dropping it makes room for the next.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    model: ModelId,
    tenant: Option<TenantName>,
}

impl Admission {
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, counts: Mutex::default() })
    }

    /// A place for a caller's request to a model. Of callers that are known, no tenant may have all.
    ///
    /// # Errors
    /// `Overloaded`, with a hint from the pace at which requests have been leaving.
    pub(crate) fn enter(
        self: &Arc<Self>,
        model: &ModelId,
        caller: &Caller,
    ) -> Result<Permit, Error> {
        let tenant = caller.tenant.as_ref();
        let mut counts = self.counts();
        let full =
            |in_flight, scope: String, retry| Err(Error::QueueFull { scope, in_flight, retry });
        if !counts.in_all.take(self.bounds.in_all, tenant) {
            return full(counts.in_all.taken(), "in all".to_owned(), counts.retry());
        }
        let for_model = counts.per_model.entry(model.clone()).or_default();
        if !for_model.take(self.bounds.per_model, tenant) {
            let taken = for_model.taken();
            counts.in_all.give(tenant);
            return full(taken, format!("for {model}"), counts.retry());
        }
        Ok(Permit {
            admission: Arc::clone(self),
            model: model.clone(),
            tenant: caller.tenant.clone(),
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn leave(&mut self, model: &ModelId, tenant: Option<&TenantName>, now: Instant) {
        self.in_all.give(tenant);
        if let Some(places) = self.per_model.get_mut(model) {
            places.give(tenant);
            if places.taken() == 0 {
                self.per_model.remove(model);
            }
        }
        debug_assert_eq!(
            self.in_all.taken(),
            self.per_model.values().map(Places::taken).sum::<usize>(),
            "invariant 1"
        );
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
        self.admission.counts().leave(&self.model, self.tenant.as_ref(), Instant::now());
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
        let _first = admission.enter(&model("a"), &Caller::anonymous()).unwrap();
        let second = admission.enter(&model("a"), &Caller::anonymous()).unwrap();
        let error = admission.enter(&model("a"), &Caller::anonymous()).unwrap_err();
        assert_eq!(error.to_string(), "2 requests are in flight for e:a, which is the limit");
        let _other = admission.enter(&model("b"), &Caller::anonymous()).unwrap();
        let error = admission.enter(&model("b"), &Caller::anonymous()).unwrap_err();
        assert_eq!(error.to_string(), "3 requests are in flight in all, which is the limit");
        drop(second);
        assert!(admission.enter(&model("a"), &Caller::anonymous()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenants_flood_leaves_a_place_for_another() {
        let of = |tenant: &str| Caller { tenant: tenant.parse().ok(), ..Caller::anonymous() };
        let admission = Admission::new(Bounds { in_all: 8, per_model: 4 });
        let _flood: Vec<_> =
            (0..3).map(|_| admission.enter(&model("a"), &of("flood")).unwrap()).collect();
        assert!(admission.enter(&model("a"), &of("flood")).is_err());
        assert!(admission.enter(&model("a"), &of("calm")).is_ok());
        assert_eq!(admission.counts().in_all.taken(), 3, "a refusal takes nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn models_without_requests_are_forgotten() {
        let admission = admission();
        drop(admission.enter(&model("a"), &Caller::anonymous()).unwrap());
        assert!(admission.counts().per_model.is_empty());
        assert_eq!(admission.counts().in_all.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_retry_hint_follows_the_pace_of_departures() {
        let admission = admission();
        let permits: Vec<Permit> = ["a", "b", "c"]
            .iter()
            .map(|name| admission.enter(&model(name), &Caller::anonymous()).unwrap())
            .collect();
        assert_eq!(
            admission.enter(&model("d"), &Caller::anonymous()).unwrap_err().retry(),
            RetryHint::Later
        );
        for permit in permits {
            tokio::time::advance(Duration::from_secs(4)).await;
            drop(permit);
        }
        let _places: Vec<Permit> = ["a", "b", "c"]
            .iter()
            .map(|name| admission.enter(&model(name), &Caller::anonymous()).unwrap())
            .collect();
        let retry = admission.enter(&model("d"), &Caller::anonymous()).unwrap_err().retry();
        assert_eq!(retry, RetryHint::After(Duration::from_secs(4)));
    }
}
