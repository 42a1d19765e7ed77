//! Requests: asking for a lease, getting it, giving it back.

use std::time::{Duration, Instant};

use roundhouse_types::{ErrorKind, Failure, ModelId, TenantName, Tier};

use super::Table;
use super::event::{Effect, Grant, Key, LoadReport, Report, WaiterId};
use super::state::{Purpose, State, Waiter};
use crate::error::Error;

impl Table {
    pub(super) fn acquire(
        &mut self,
        waiter: WaiterId,
        model: &ModelId,
        hold_until: Instant,
        only_loaded: bool,
        payer: Option<TenantName>,
    ) {
        if self.stopping {
            return self.refuse_caller(waiter, model, &Error::ShuttingDown.into());
        }
        // A use counts for which models are remembered.
        self.models.promote(model);
        if let Some(key) = self.next_to_serve(model).cloned() {
            if let Some(base) = self.grant(waiter, &key, None) {
                // It may be that nobody asks for its base by name.
                self.check_freshness(&base);
            }
            return self.check_freshness(model);
        }
        if only_loaded {
            let failure = Error::NotLoaded { model: model.clone() }.into();
            return self.refuse_caller(waiter, model, &failure);
        }
        if let Some(failure) = self.trouble_stands(model) {
            self.check_freshness(model);
            return self.refuse_caller(waiter, model, &failure);
        }
        self.enqueue(waiter, model, hold_until, Purpose::Request { payer });
    }

    /// Puts a caller on the model's list of waiters, within the bounds.
    pub(super) fn enqueue(
        &mut self,
        id: WaiterId,
        model: &ModelId,
        hold_until: Instant,
        purpose: Purpose,
    ) {
        let evict = purpose.may_evict();
        let is_request = matches!(purpose, Purpose::Request { .. });
        if !self.admit(id, model, hold_until, purpose) {
            return;
        }
        let entry = self.model_mut(model);
        entry.waiters.insert(id);
        entry.asked |= is_request;
        if let Some(resolving) = &mut entry.resolving {
            resolving.evict |= evict;
            resolving.load = true;
        }
        for artefact in entry.jobs.clone() {
            if let Some(job) = self.jobs.get_mut(&artefact) {
                job.evict |= evict;
                let base = job.base.clone();
                base.iter().for_each(|base| self.base_wanted(base, evict));
            }
        }
        self.touched.push(model.clone());
    }

    /// Registers a waiter unless too many wait already; then it is refused.
    pub(super) fn admit(
        &mut self,
        id: WaiterId,
        model: &ModelId,
        hold_until: Instant,
        purpose: Purpose,
    ) -> bool {
        let waiters = self.config.max_waiters;
        if !self.waiters.take_place(waiters, model) {
            let waiters = self.waiters.len();
            self.refuse_caller(id, model, &Error::QueueFull { waiters }.into());
            return false;
        }
        let waiters = self.config.max_waiters_per_model;
        let waiting = self.models.peek(model).map_or(0, |entry| {
            entry.waiters.len() + entry.refreshers.len() + entry.unloaders.len()
        });
        if waiting >= waiters {
            let (_, estimate) = self.progress(model);
            self.waiters.give_place(model);
            let failure = Error::ModelQueueFull { model: model.clone(), waiters, estimate }.into();
            self.refuse_caller(id, model, &failure);
            return false;
        }
        let (arrived, sequence) = (self.now, self.next_sequence());
        let model = model.clone();
        self.waiters.insert(id, Waiter { model, arrived, sequence, hold_until, purpose });
        true
    }

    /// Answers a model's waiters from its resident, or sees to it that there will be one.
    pub(super) fn serve(&mut self, model: &ModelId) {
        let Some(entry) = self.models.peek(model) else {
            return;
        };
        if !entry.waiters.is_empty() || self.is_sought(model) {
            if self.ready(model).is_some() {
                let waiting: Vec<WaiterId> = entry.waiters.iter().copied().collect();
                for id in waiting {
                    if let Some(key) = self.next_to_serve(model).cloned() {
                        self.answer(id, &key);
                    }
                }
            } else if entry.jobs.is_empty() && entry.resolving.is_none() {
                let leaving = |key: &&Key| entry.current.as_ref() == Some(&key.artefact.version);
                // While the version they want is leaving they wait: it may be revived, and
                // it cannot be loaded again before it is gone.
                if !entry.residents.iter().any(|key| leaving(&key)) {
                    let is_asked_for = !entry.waiters.is_empty();
                    match self.trouble_stands(model).filter(|_| !is_asked_for) {
                        // As its own callers would be told.
                        Some(failure) => self.refuse_adapters(model, &failure),
                        // Who is let in because a look is due, or by force, has the store itself looked
                        // at: what it was last known to name is what failed.
                        None => {
                            let looks = self.looks_anew(model) || self.is_forced(model);
                            self.resolve(model, looks);
                        }
                    }
                }
            }
        }
        self.serve_refreshers(model);
    }

    fn answer(&mut self, id: WaiterId, key: &Key) {
        let Some(waiter) = self.take_waiter(id) else {
            return;
        };
        match waiter.purpose {
            Purpose::Load(_) => {
                let (version, device) = (key.artefact.version.clone(), key.device);
                let tier = self.waited(&waiter, key).0;
                let report = Report::Loaded(LoadReport { version, device, tier });
                self.effects.push(Effect::Report { waiter: id, report });
            }
            Purpose::Request { .. } | Purpose::Refresh { .. } | Purpose::Unload { .. } => {
                self.grant(id, key, Some(&waiter));
            }
        }
    }

    /// Gives a lease; to one that waited, with what it waited for. Returns what the model adapts.
    fn grant(&mut self, id: WaiterId, key: &Key, waiter: Option<&Waiter>) -> Option<ModelId> {
        let (tier, load_wait, queue_wait) = match waiter {
            Some(waiter) => self.waited(waiter, key),
            None => (Tier::Device, Duration::ZERO, Duration::ZERO),
        };
        self.count_use(&key.artefact.model);
        let resident = self.used(key).expect("grants name a resident");
        debug_assert_eq!(resident.state, State::Ready, "{} takes no leases", key.artefact);
        resident.leases += 1;
        let base = resident.base.clone();
        let artefact = &key.artefact;
        if let Some(base) = &base {
            // A base is in demand as much as all that it carries.
            self.count_use(&base.model);
            self.used(&Key { artefact: base.clone(), device: key.device });
        }
        let key = key.clone();
        self.effects.push(Effect::Grant(Grant { waiter: id, key, tier, load_wait, queue_wait }));
        if self.config.replicas.is_some() {
            self.granted(artefact);
        }
        base.map(|base| base.model)
    }

    /// Where a waiter's model was found, how long it was worked on meanwhile, and the rest.
    fn waited(&self, waiter: &Waiter, key: &Key) -> (Tier, Duration, Duration) {
        let total = self.now.saturating_duration_since(waiter.arrived);
        match self.residents.get(key) {
            Some(resident) if waiter.sequence < resident.ready_sequence => {
                let load = resident.arrival.work_since(waiter.arrived).min(total);
                (resident.arrival.tier, load, total.saturating_sub(load))
            }
            _ => (Tier::Device, Duration::ZERO, total),
        }
    }

    /// A lease ended. A draining resident with none left starts to unload; its bytes stay
    /// charged until `Unloaded` arrives, because the device frees late.
    pub(super) fn released(&mut self, key: &Key) {
        let Some(resident) = self.used(key) else {
            return;
        };
        debug_assert!(resident.leases > 0, "{} released more often than leased", key.artefact);
        resident.leases = resident.leases.saturating_sub(1);
        if resident.leases == 0 && matches!(resident.state, State::Draining(_)) {
            self.unload_if_free(key);
        }
        self.feel(&key.artefact.model);
    }

    /// The failure that keeps whoever comes now from a load: the remembered one, unless another version may
    /// be the one to serve by now.
    pub(super) fn trouble_stands(&self, model: &ModelId) -> Option<Failure> {
        let told = self.trouble_told(model)?;
        let trouble = self.models.peek(model)?.trouble.as_ref()?;
        (!trouble.asks && !self.looks_anew(model)).then_some(told)
    }

    /// Whether a remembered failure of a version is so old that the next look for newer ones is due.
    fn looks_anew(&self, model: &ModelId) -> bool {
        let Some(told) = self.trouble_told(model) else { return false };
        let trouble = self.models.peek(model).and_then(|entry| entry.trouble.as_ref());
        trouble.is_some_and(|trouble| {
            let is_of_version =
                trouble.version.is_some() && told.kind() != ErrorKind::StoreUnavailable;
            let age = self.now.saturating_duration_since(trouble.since);
            is_of_version && age >= self.config.refresh_every && self.is_check_due(model)
        })
    }

    /// The remembered failure, while its pause lasts.
    pub(super) fn trouble_told(&self, model: &ModelId) -> Option<Failure> {
        let trouble = self.models.peek(model)?.trouble.as_ref()?;
        (trouble.until > self.now).then(|| trouble.told(self.now))
    }
}
