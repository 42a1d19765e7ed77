//! Versions: asking for the one to serve, and what its answer starts.

use roundhouse_types::{ArtefactId, Bytes, ErrorKind, Failure, ModelId, RetryHint, Version};

use super::Table;
use super::event::{Effect, Key, RefreshReport, Report, WaiterId};
use super::state::{
    Fetch, Job, Purpose, Resolving, Room, State, Trouble, Unfit, pause, pause_beside,
};
use crate::decision::{Action, Decided, Departure, Stage};
use crate::error::Error;
use crate::loader::Resolution;

impl Table {
    /// Asks for the version to serve, on behalf of those who wait.
    pub(super) fn resolve(&mut self, model: &ModelId, refresh: bool) {
        let Some(entry) = self.models.peek(model) else {
            return;
        };
        let waiting = entry.waiters.iter().filter_map(|id| self.waiters.get(*id));
        let is_base = self.bases.is_awaited(model);
        let mut evict = waiting.into_iter().any(|w| w.purpose.may_evict());
        evict |= entry.waiters.is_empty() && !is_base;
        let load = !entry.waiters.is_empty() || is_base;
        if is_base {
            evict |= self.ask_for_base(model);
        }
        let refreshers = self.models.peek(model).map(|entry| &entry.refreshers);
        if refresh {
            for id in refreshers.cloned().into_iter().flatten() {
                if let Some(waiter) = self.waiters.get_mut(id)
                    && let Purpose::Refresh { asked, .. } = &mut waiter.purpose
                {
                    *asked = true;
                }
            }
        }
        let entry = self.model_mut(model);
        debug_assert!(entry.resolving.is_none(), "one question per model at a time");
        entry.resolving = Some(Resolving { refresh, load, evict, replica: false });
        self.effects.push(Effect::Resolve { model: model.clone(), refresh });
    }

    /// Asks the store beside a request, never in front of it, and not too often.
    pub(super) fn check_freshness(&mut self, model: &ModelId) {
        let is_at_rest = self
            .models
            .peek(model)
            .is_some_and(|entry| entry.resolving.is_none() && entry.jobs.is_empty());
        if is_at_rest && self.is_check_due(model) && !self.stopping {
            self.resolve(model, true);
        }
    }

    /// Whether it was asked for long enough ago which version to serve.
    pub(super) fn is_check_due(&self, model: &ModelId) -> bool {
        let checked_at = self.models.peek(model).and_then(|entry| entry.checked_at);
        let age = checked_at.map(|at| self.now.saturating_duration_since(at));
        age.is_none_or(|age| age >= self.config.refresh_every)
    }

    pub(super) fn resolve_ended(&mut self, model: &ModelId, result: Result<Resolution, Failure>) {
        let now = self.now;
        let Some(entry) = self.models.peek_mut(model) else {
            return;
        };
        let Some(resolving) = entry.resolving.take() else {
            return;
        };
        // A look for a replica asks nobody whether there is a newer version.
        if !resolving.replica {
            entry.checked_at = Some(now);
        }
        let asked: Vec<WaiterId> =
            if resolving.refresh { entry.refreshers.iter().copied().collect() } else { Vec::new() };
        let asked = asked.into_iter().filter(|id| self.is_asked(*id)).collect();
        self.touched.push(model.clone());
        if self.stopping {
            return;
        }
        match result {
            Ok(resolution) => {
                let version = resolution.version.clone();
                let artefact = ArtefactId { model: model.clone(), version };
                self.note_fitness(&artefact, &resolution.standing);
                self.resolved(model, &resolving, resolution, asked);
            }
            Err(failure) => self.unresolved(model, &resolving, &failure, asked),
        }
    }

    /// Whether a question that is being answered covers this refresh.
    fn is_asked(&self, id: WaiterId) -> bool {
        let purpose = self.waiters.get(id).map(|waiter| &waiter.purpose);
        matches!(purpose, Some(Purpose::Refresh { asked: true, aimed: None }))
    }

    fn unresolved(
        &mut self,
        model: &ModelId,
        resolving: &Resolving,
        failure: &Failure,
        asked: Vec<WaiterId>,
    ) {
        for id in asked {
            self.refuse(id, failure);
        }
        if resolving.replica {
            self.look_again_later(model);
        }
        let Some(entry) = self.models.peek(model) else {
            return;
        };
        let is_wanted = resolving.load || !entry.waiters.is_empty() || self.bases.is_awaited(model);
        if is_wanted && self.ready(model).is_none() && entry.jobs.is_empty() {
            if failure.kind() == ErrorKind::ModelNotFound {
                self.fit_again(model, None);
                if self.drains_deleted(model) {
                    self.discard_others(model, None, Departure::Deleted);
                }
            }
            self.trouble(model, None, failure, false, Stage::Resolve);
            self.refuse_waiters(model, failure);
        } else if resolving.refresh && failure.kind() == ErrorKind::ModelNotFound {
            self.deleted(model, self.drains_deleted(model));
        } else {
            // Residents, and loads under way, go on as if nobody had asked.
            let retry = self.config.refresh_every;
            // Any other failure says nothing about what the store holds.
            let is_fault = matches!(
                failure.kind(),
                ErrorKind::ModelInvalid | ErrorKind::ModelFailed | ErrorKind::TooLarge
            );
            if is_fault {
                self.failed_beside(model, None, failure);
            }
            self.decide_failed(model, None, failure, Stage::Resolve, retry);
        }
    }

    fn resolved(
        &mut self,
        model: &ModelId,
        resolving: &Resolving,
        mut resolution: Resolution,
        asked: Vec<WaiterId>,
    ) {
        let artefact = ArtefactId { model: model.clone(), version: resolution.version.clone() };
        let serving = self.ready(model).map(|key| key.artefact.version.clone());
        let standing = std::mem::take(&mut resolution.standing);
        let asked = self.note_standing(&artefact, standing, asked);
        let entry = self.model_mut(model);
        let before = entry.current.replace(artefact.version.clone());
        if before.as_ref() != Some(&artefact.version) {
            entry.deaths = 0;
        }
        let before = serving.clone().or(before);
        // Another version may do what the one that failed did not.
        let is_cleared =
            |trouble: &mut Trouble| trouble.version.as_ref() != Some(&artefact.version);
        entry.trouble.take_if(|trouble| is_cleared(trouble));
        let jobs_before = entry.jobs.clone();
        // A load that nobody waits for would put another version in its place when it ends.
        let is_used = serving.is_some() || !jobs_before.is_empty();
        let is_asked = resolving.load || !entry.waiters.is_empty();
        let is_wanted = is_asked || is_used || self.bases.is_awaited(model);
        self.discard_others(model, Some(&artefact.version), Departure::Superseded);
        if serving.is_none() {
            self.discard_for_others(model);
        }
        let is_there = self.resident_of(&artefact).is_some();

        if is_there {
            self.revert_to(&artefact);
            if resolving.replica {
                self.begin_replica(&artefact, resolution);
            }
        } else if !jobs_before.contains(&artefact) && is_wanted {
            let is_update = serving.is_some() && asked.is_empty();
            if let Some(failure) = self.objection(&artefact, &resolution, is_update) {
                asked.iter().for_each(|id| self.refuse(*id, &failure));
                if serving.is_none() && jobs_before.is_empty() {
                    self.refuse_waiters(model, &failure);
                }
                return;
            }
            self.create_job(&artefact, resolution, resolving.evict);
            for older in jobs_before {
                self.supersede_job(&older, &artefact.version);
            }
        }
        self.answer_refreshers(&artefact, asked, before);
    }

    /// Why a version is not loaded although it is wanted; as an `update` it is wanted by nobody but a look
    /// for newer versions.
    fn objection(
        &mut self,
        artefact: &ArtefactId,
        resolution: &Resolution,
        is_update: bool,
    ) -> Option<Failure> {
        let model = &artefact.model;
        if self.is_forced(model) {
            return None;
        }
        let now = self.now;
        let trouble = self.models.peek_mut(model).and_then(|entry| entry.trouble.as_mut());
        if let Some(trouble) = trouble {
            let until = trouble.beside_until.filter(|_| is_update).unwrap_or(trouble.until);
            if until > now {
                // Who waits was told which version it is; who comes next need not ask.
                trouble.asks &= is_update;
                return Some(trouble.told(now));
            }
        }
        if !resolution.quarantined {
            return None;
        }
        let failure: Failure = Error::Quarantined { model: model.clone() }.into();
        self.trouble(model, Some(&artefact.version), &failure, true, Stage::Load);
        Some(failure)
    }

    /// Whether an operator waits for its load, whatever was known against it.
    pub(super) fn is_forced(&self, model: &ModelId) -> bool {
        let entry = self.models.peek(model);
        let mut waiting = entry.into_iter().flat_map(|entry| &entry.waiters);
        waiting.any(|id| self.waiters.get(*id).is_some_and(|w| w.purpose.is_forced()))
    }

    pub(super) fn create_job(
        &mut self,
        artefact: &ArtefactId,
        resolution: Resolution,
        evict: bool,
    ) {
        let sequence = self.next_sequence();
        let is_quarantined = resolution.quarantined;
        let mut base = resolution.base;
        let mut job = Job {
            begun: self.now,
            sequence,
            fetch_bytes: resolution.fetch_bytes,
            fetched_bytes: Bytes::ZERO,
            spared_bytes: Bytes::ZERO,
            footprint: resolution.footprint.map(|(footprint, _)| footprint),
            shared: resolution.shared,
            kind: resolution.kind,
            off_cards: resolution.off_cards,
            base: None,
            onto: None,
            asked_for_base: false,
            fetch: Fetch::Queued,
            from_copy: false,
            room: Room::Wanted,
            evict,
            replica: false,
            streams: resolution.streams,
            arriving: false,
            broken: None,
            discard: false,
            late: false,
            died: None,
            paced_for: None,
            obstacle: None,
            overtaken: 0,
            withdrawn: (0, 0),
        };
        debug_assert!(!self.jobs.contains_key(artefact), "invariant 3: {artefact} loads already");
        if !is_quarantined {
            self.take_copy(artefact, &mut base, &mut job);
        }
        self.jobs.insert(artefact.clone(), job);
        self.model_mut(&artefact.model).jobs.push(artefact.clone());
        self.base_known(artefact, base);
    }

    /// The store or an operator went back to a version that is still on a device: it serves
    /// again, and the other one leaves. One that is unloading already is left to it.
    fn revert_to(&mut self, artefact: &ArtefactId) {
        let newer = self.serving_but(artefact);
        let may_return = [Departure::Superseded, Departure::Deleted].map(State::Draining);
        let keys = self.models.peek(&artefact.model).map(|entry| entry.residents.clone());
        let mut first = None;
        for key in keys.into_iter().flatten().filter(|key| key.artefact == *artefact) {
            // One whose base leaves goes with it.
            let may_serve = self.may_serve(&key);
            let resident = self.residents.get_mut(&key);
            let resident = resident.filter(|it| may_serve && may_return.contains(&it.state));
            let Some(resident) = resident else {
                continue;
            };
            resident.state = State::Ready;
            self.decide(Decided::of(artefact, Some(key.device), Action::Revived));
            self.revive_adapters(&key);
            first.get_or_insert(key);
        }
        let Some(first) = first else {
            return;
        };
        if let Some(newer) = newer.first() {
            self.switched(&first, newer.artefact.version.clone());
        }
        // Those as well that leave for somebody's room: they could serve again.
        let others = self.models.peek(&artefact.model).map(|entry| entry.residents.clone());
        for other in others.into_iter().flatten().filter(|key| key.artefact != *artefact) {
            self.drain(&other, Departure::Superseded, None);
        }
        self.discard_for_others(&artefact.model);
    }

    /// Gives up a load that a newer version has overtaken, unless it is on its way from disk to
    /// the device already; those who waited for it wait for the newer one.
    fn supersede_job(&mut self, older: &ArtefactId, version: &Version) {
        let is_arriving = self.jobs.get(older).is_some_and(Job::is_arriving);
        if !is_arriving && self.jobs.get(older).is_none_or(Job::is_loading) {
            return;
        }
        let refreshers = self.models.peek(&older.model).map(|entry| entry.refreshers.clone());
        for id in refreshers.into_iter().flatten() {
            if let Some(waiter) = self.waiters.get_mut(id)
                && let Purpose::Refresh { aimed, .. } = &mut waiter.purpose
                && aimed.as_ref() == Some(&older.version)
            {
                *aimed = Some(version.clone());
            }
        }
        match is_arriving {
            true => self.stop(older, None),
            false => self.abandon(older),
        }
    }

    /// Tells operators what a refresh found, or lets them wait for the load it started.
    fn answer_refreshers(
        &mut self,
        artefact: &ArtefactId,
        asked: Vec<WaiterId>,
        before: Option<Version>,
    ) {
        let version = &artefact.version;
        let is_to_come = !self.serves(artefact)
            && (self.jobs.contains_key(artefact) || self.is_leaving(artefact));
        let base = self.jobs.get(artefact).and_then(|job| job.base.clone());
        if is_to_come && !asked.is_empty() {
            base.iter().for_each(|base| self.base_wanted(base, true));
        }
        for id in asked {
            if is_to_come {
                if let Some(waiter) = self.waiters.get_mut(id) {
                    let aimed = Some(version.clone());
                    waiter.purpose = Purpose::Refresh { asked: true, aimed };
                }
                continue;
            }
            let updated = before.as_ref().is_some_and(|before| before != version);
            self.report_refreshed(id, version, updated);
        }
    }

    pub(super) fn report_refreshed(&mut self, id: WaiterId, version: &Version, updated: bool) {
        let Some(waiter) = self.take_waiter(id) else {
            return;
        };
        let entry = self.models.peek(&waiter.model);
        let serving = self.ready(&waiter.model).map(|key| key.artefact.version.clone());
        // One whose files are to blame is not served next, though it is what the store names.
        let is_told = |unfit: &&Unfit| {
            let is_refused = unfit.failure.kind() == ErrorKind::ModelInvalid && serving.is_none();
            unfit.version.as_ref() != Some(version) || is_refused
        };
        let unfit = entry.and_then(|entry| entry.unfit.as_ref()).filter(is_told).map(Unfit::told);
        let report = Report::Refreshed(RefreshReport {
            version: version.clone(),
            updated,
            serving,
            offered: entry.and_then(|entry| entry.offered.clone()),
            kept: entry.is_some_and(|entry| entry.kept),
            unfit,
        });
        self.effects.push(Effect::Report { waiter: id, report });
    }

    /// Operators whose refresh no question covers yet.
    pub(super) fn serve_refreshers(&mut self, model: &ModelId) {
        let Some(entry) = self.models.peek(model) else {
            return;
        };
        if entry.resolving.is_some() || self.stopping {
            return;
        }
        let is_new = |id: &WaiterId| {
            let purpose = self.waiters.get(*id).map(|waiter| &waiter.purpose);
            matches!(purpose, Some(Purpose::Refresh { asked: false, .. }))
        };
        if entry.refreshers.iter().any(is_new) {
            self.resolve(model, true);
        }
    }

    /// Remembers a failure, with a pause that grows with each in a row.
    pub(super) fn trouble(
        &mut self,
        model: &ModelId,
        version: Option<&Version>,
        failure: &Failure,
        quarantined: bool,
        stage: Stage,
    ) {
        let now = self.now;
        let is_other = |key: &Key| version.is_some_and(|it| *it != key.artefact.version);
        let is_beside = self.ready(model).is_some_and(is_other);
        let looks = self.config.refresh_every;
        let entry = self.model_mut(model);
        let attempts = entry.trouble.as_ref().map_or(0, |trouble| trouble.attempts) + 1;
        // A store may be away for once. Between two attempts it named the version again.
        let is_absent = failure.kind() == ErrorKind::StoreUnavailable && attempts == 1;
        let retry = pause(failure, attempts);
        entry.trouble = Some(Trouble {
            failure: failure.clone(),
            version: version.cloned(),
            since: now,
            until: now + retry,
            beside_until: is_beside
                .then(|| now.checked_add(pause_beside(looks, attempts)))
                .flatten(),
            attempts,
            quarantined,
            asks: is_beside,
        });
        if failure.kind() != ErrorKind::ModelNotFound {
            self.note_failed(model);
        }
        if version.is_some() && !is_absent {
            self.failed_beside(model, version, failure);
        }
        self.decide_failed(model, version, failure, stage, retry);
    }

    pub(super) fn decide_failed(
        &mut self,
        model: &ModelId,
        version: Option<&Version>,
        failure: &Failure,
        stage: Stage,
        retry: std::time::Duration,
    ) {
        let retry_ms = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX);
        let lasting = failure.kind() == ErrorKind::TooLarge && failure.retry() == RetryHint::Never;
        let action = Action::Failed { stage, reason: failure.message().into(), retry_ms, lasting };
        let mut decided = Decided::about(model, action).with_kind(failure);
        decided.version = version.cloned();
        self.decide(decided);
    }

    /// Answers all who wait for a model's resident.
    pub(super) fn refuse_waiters(&mut self, model: &ModelId, failure: &Failure) {
        let waiting = self.models.peek(model).map(|entry| entry.waiters.clone());
        for id in waiting.into_iter().flatten() {
            self.refuse(id, failure);
        }
        self.refuse_adapters(model, failure);
    }
}
