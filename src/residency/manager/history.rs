//! The latest decisions about each model.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::time::SystemTime;

use lru::LruCache;
use roundhouse_types::ModelId;

use crate::decision::{Decided, Decision};
use crate::snapshot::rfc3339;

/// Decisions remembered per model.
const PER_MODEL: usize = 32;
/// Models whose decisions are remembered: a few MiB at most.
const MODELS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Owned by the residency owner.
pub(super) struct History {
    models: LruCache<ModelId, VecDeque<Decision>>,
}

impl History {
    pub(super) fn new() -> Self {
        Self { models: LruCache::new(MODELS) }
    }

    /// Remembers a decision and returns it as it is published. The same decision several
    /// times in a row is one entry.
    pub(super) fn record(&mut self, decided: Decided, time: SystemTime) -> Decision {
        let decisions = self.models.get_or_insert_mut(decided.model.clone(), VecDeque::new);
        let mut decision = Decision {
            time: rfc3339(time),
            endpoint: decided.model.endpoint,
            target: decided.model.target,
            version: decided.version,
            device: decided.device,
            times: 1,
            message: decided.action.to_string(),
            action: decided.action,
        };
        if let Some(last) = decisions.back_mut()
            && last.action == decision.action
            && last.version == decision.version
        {
            decision.times = last.times + 1;
            *last = decision.clone();
            return decision;
        }
        if decisions.len() == PER_MODEL {
            decisions.pop_front();
        }
        decisions.push_back(decision.clone());
        decision
    }

    pub(super) fn of(&self, model: &ModelId) -> Vec<Decision> {
        self.models
            .peek(model)
            .map(|decisions| decisions.iter().cloned().collect())
            .unwrap_or_default()
    }
}
