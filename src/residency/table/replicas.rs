//! Replicas: when a model is served from one more device, what that may cost others, and that
//! a replica is the first to leave.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use roundhouse_types::{ArtefactId, Bytes, DeviceId, Failure, ModelId};

use super::Table;
use super::event::Key;
use super::state::{Job, Kin, Resident, Room, State, pause};
use crate::config::Replicas;
use crate::decision::{Action, Decided, Stage};
use crate::loader::Resolution;

/// Over how long the leases in flight are averaged: one burst loads no replica, and requests
/// that end together and come again are no pause.
const WINDOW: Duration = Duration::from_secs(2);
/// What counts of a burst at most, as a multiple of what makes a model hot.
const BURST: u64 = 2;
/// How long a model must have been able to do with one resident less before it does.
const COOLED: Duration = Duration::from_secs(10);
/// After a look for room that found none, and a load that was given up.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// After a replica left for another load.
const MAKES_WAY: Duration = Duration::from_secs(60);

/// How much a model is in use, as far as replicas depend on it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Heat {
    window: Option<Window>,
    /// Whether the leases of the last whole window made it hot.
    is_hot: bool,
    /// Since when less than half of what makes one resident less hot was held.
    cool_since: Option<Instant>,
    /// No attempt at a replica before.
    not_before: Option<Instant>,
    /// Loads of replicas that failed in a row.
    failures: u32,
    /// Residents that died in a row, each soon after it was ready, while another served on.
    deaths: u32,
}

/// Leases added up over time.
#[derive(Debug, Clone, Copy)]
struct Window {
    since: Instant,
    /// When leases were last counted, and how many they were, up to what counts of a burst.
    at: Instant,
    held: u64,
    /// Leases by nanoseconds until then.
    sum: u64,
}

impl Heat {
    fn feel(&mut self, leases: Leases, at_leases: u32, now: Instant) {
        let at = u64::from(at_leases.max(1));
        let enough = at * leases.residents as u64;
        let window = self.window.get_or_insert(Window { since: now, at: now, held: 0, sum: 0 });
        let more = window.held.saturating_mul(nanoseconds(window.at, now));
        (window.at, window.sum) = (now, window.sum.saturating_add(more));
        window.held = leases.sum.min(enough * BURST);
        if now.saturating_duration_since(window.since) >= WINDOW {
            let needed = enough.saturating_mul(nanoseconds(window.since, now));
            self.is_hot = enough > 0 && window.sum >= needed;
            (window.since, window.sum) = (now, 0);
        }
        let enough_for_others = at * leases.residents.saturating_sub(1) as u64;
        if leases.sum * 2 < enough_for_others {
            self.cool_since.get_or_insert(now);
        } else if leases.sum >= enough_for_others {
            self.cool_since = None;
        }
    }

    fn may_want_more(&self, now: Instant) -> bool {
        self.is_hot && self.not_before.is_none_or(|at| at <= now)
    }

    fn is_cooled(&self, now: Instant) -> bool {
        self.cool_since.is_some_and(|since| since + COOLED <= now)
    }
}

fn nanoseconds(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}

/// The leases on a model's residents that serve.
#[derive(Debug, Clone, Copy, Default)]
struct Leases {
    residents: usize,
    sum: u64,
    /// Those of the resident with the fewest.
    fewest: u32,
}

impl Table {
    /// The residents that serve a model's requests: of one version, each on its device.
    pub(super) fn all_ready(&self, model: &ModelId) -> impl Iterator<Item = (&Key, &Resident)> {
        let keys = self.models.peek(model).into_iter().flat_map(|entry| &entry.residents);
        let residents = keys.filter_map(|key| Some((key, self.residents.get(key)?)));
        residents.filter(|(_, resident)| resident.state == State::Ready)
    }

    /// The keys of the residents that serve a model's requests.
    pub(super) fn ready_keys(&self, model: &ModelId) -> Vec<Key> {
        self.all_ready(model).map(|(key, _)| key.clone()).collect()
    }

    /// The resident that takes a model's next request: the one with the fewest leases, of those
    /// that are not to leave if there are any. A model that has cooled down is served by one of
    /// them alone, so that the others are free to go.
    pub(super) fn next_to_serve(&self, model: &ModelId) -> Option<&Key> {
        let mut serving = self.all_ready(model);
        let first = serving.next()?;
        let Some(second) = serving.next() else {
            return Some(first.0);
        };
        let is_cooled = self.models.peek(model).is_some_and(|entry| entry.heat.is_cooled(self.now));
        let all = [first, second].into_iter().chain(serving);
        let next = all.min_by_key(|(_, resident)| {
            let leases = if is_cooled { 0 } else { resident.leases };
            (resident.claimed_by.is_some(), leases, resident.ready_sequence)
        });
        next.map(|(key, _)| key)
    }

    /// On how many devices an artefact is, in whatever state: who leaves may come back.
    pub(super) fn devices_of(&self, artefact: &ArtefactId) -> usize {
        let keys = self.models.peek(&artefact.model).into_iter().flat_map(|it| &it.residents);
        keys.filter(|key| key.artefact == *artefact).count()
    }

    /// Whether this artefact serves, on any device.
    pub(super) fn serves(&self, artefact: &ArtefactId) -> bool {
        self.all_ready(&artefact.model).any(|(key, _)| key.artefact == *artefact)
    }

    /// Whether its version goes on serving when this resident leaves: another one of it does
    /// serve, and nobody counts on that one's room.
    pub(super) fn has_twin(&self, key: &Key) -> bool {
        if self.config.replicas.is_none() {
            return false;
        }
        self.all_ready(&key.artefact.model).any(|(other, resident)| {
            other != key && other.artefact == key.artefact && resident.claimed_by.is_none()
        })
    }

    /// Whether a keep holds it: of a kept model one resident stays, not all. What a kept adapter
    /// is on stays with it.
    pub(super) fn is_held(&self, key: &Key) -> bool {
        (self.is_kept(&key.artefact.model) && !self.has_twin(key)) || self.bases.is_kept(key)
    }

    /// All residents that a keep holds.
    pub(super) fn held(&self) -> BTreeSet<&Key> {
        let models = self.kept.iter().filter_map(|model| self.models.peek(model));
        let theirs = models.flat_map(|entry| &entry.residents);
        let bases = self.bases.keys().filter_map(|base| self.residents.key(base));
        theirs.chain(bases).filter(|key| self.is_held(key)).collect()
    }

    /// Whether this is the load of a replica: nobody waits for it.
    pub(super) fn is_replica(&self, artefact: &ArtefactId, job: &Job) -> bool {
        job.replica && !self.is_wanted(artefact)
    }

    /// A lease on it began.
    pub(super) fn granted(&mut self, artefact: &ArtefactId) {
        self.feel(&artefact.model);
        let entry = self.models.peek(&artefact.model);
        if entry.is_some_and(|entry| entry.heat.may_want_more(self.now)) {
            self.want_replica(artefact);
        }
    }

    /// Leases began or ended, or a resident came.
    pub(super) fn feel(&mut self, model: &ModelId) {
        let Some(Replicas { at_leases, .. }) = self.config.replicas else {
            return;
        };
        let (leases, now) = (self.leases(model), self.now);
        if let Some(entry) = self.models.peek_mut(model) {
            entry.heat.feel(leases, at_leases, now);
        }
    }

    fn leases(&self, model: &ModelId) -> Leases {
        let mut leases = Leases { fewest: u32::MAX, ..Leases::default() };
        for (_, resident) in self.all_ready(model) {
            leases.residents += 1;
            leases.sum += u64::from(resident.leases);
            leases.fewest = leases.fewest.min(resident.leases);
        }
        if leases.residents == 0 { Leases::default() } else { leases }
    }

    /// Has a replica looked up, where one is due and there is room that it may take.
    fn want_replica(&mut self, artefact: &ArtefactId) {
        let at_leases = self.config.replicas.map_or(u32::MAX, |replicas| replicas.at_leases);
        let is_now = self.leases(&artefact.model).fewest >= at_leases;
        if !is_now || !self.may_replicate(artefact) {
            return;
        }
        self.residents.list();
        if !self.is_room_for_replica(artefact) {
            return self.look_again_later(&artefact.model);
        }
        let model = &artefact.model;
        self.resolve(model, false);
        if let Some(resolving) = &mut self.model_mut(model).resolving {
            resolving.replica = true;
        }
    }

    /// Whether one resident more may be loaded of a model that is hot: nothing else is under way
    /// for it, and nobody waits for room. One replica is loaded at a time, so that its load takes one slot
    /// at most.
    fn may_replicate(&self, artefact: &ArtefactId) -> bool {
        let (Some(entry), Some(of)) = (self.models.peek(&artefact.model), self.config.replicas)
        else {
            return false;
        };
        let is_at_rest = entry.resolving.is_none() && entry.jobs.is_empty() && !entry.deleted;
        let is_current = entry.current.as_ref() == Some(&artefact.version);
        is_at_rest
            && is_current
            && !self.stopping
            && self.devices_of(artefact) < of.at_most
            && self.trouble_told(&artefact.model).is_none()
            && !self.jobs.values().any(|job| job.replica || matches!(job.room, Room::Wanted))
    }

    /// Whether a replica would find room now, as far as that can be told before it is looked up.
    fn is_room_for_replica(&self, artefact: &ArtefactId) -> bool {
        let Some((_, resident)) = self.all_ready(&artefact.model).next() else {
            return false;
        };
        let bytes = resident.footprint.total();
        let theirs = self.tenant_bytes(crate::config::tenant(&artefact.model));
        if self.ceiling(&artefact.model).is_some_and(|ceiling| theirs + bytes > ceiling) {
            return false;
        }
        let base = resident.base.as_ref().map(|base| &base.model);
        let may_stand =
            |device: &DeviceId| base.is_none_or(|it| self.ground(it, *device).is_some());
        let kin = Kin::of(resident.kind, resident.off_cards);
        self.free_of(artefact, kin, bytes).filter(may_stand).any(|device| {
            let there = self.ledger.there(device, &resident.shared, &Default::default());
            let need = bytes.saturating_sub(there);
            let missing = need.saturating_sub(self.ledger.free(device));
            let victims = self.victims(device, &[artefact], missing, false);
            victims.is_some_and(|victims| self.may_leave_for_replica(artefact, &victims))
        })
    }

    /// A replica was looked up: it is loaded if it is due by now.
    pub(super) fn begin_replica(&mut self, artefact: &ArtefactId, resolution: Resolution) {
        if resolution.quarantined || !self.serves(artefact) || !self.may_replicate(artefact) {
            return self.look_again_later(&artefact.model);
        }
        let leases = self.leases(&artefact.model);
        self.create_job(artefact, resolution, true);
        if let Some(job) = self.jobs.get_mut(artefact) {
            job.replica = true;
        }
        let action = Action::Replicating { leases: leases.fewest, devices: leases.residents };
        self.decide(Decided::of(artefact, None, action));
    }

    /// Where a replica goes and who leaves for it: room that is free, or that of residents whom
    /// nobody uses and who are worth less than it; `None` where there is none.
    pub(super) fn place_replica(&mut self, artefact: &ArtefactId) -> Option<(DeviceId, Vec<Key>)> {
        if self.above_ceiling(&[artefact]) > Bytes::ZERO {
            return None;
        }
        let hosts = self.hosts(artefact);
        let first = hosts.first().copied()?;
        if self.need(artefact, first) <= self.ledger.free(first) {
            return Some((first, Vec::new()));
        }
        self.cheapest(artefact, &hosts, false, |table, victims| {
            table.may_leave_for_replica(artefact, victims)
        })
    }

    /// Whether a load may go on counting on these victims: any may that somebody waits for.
    pub(super) fn may_leave_for(&self, artefact: &ArtefactId, victims: &[Key]) -> bool {
        let is_replica = self.jobs.get(artefact).is_some_and(|job| self.is_replica(artefact, job));
        !is_replica || self.may_leave_for_replica(artefact, victims)
    }

    /// Whether reloading these would cost less than the replica's part of its model's demand
    /// stands for. Replicas of models that have not cooled down never leave for it.
    fn may_leave_for_replica(&self, artefact: &ArtefactId, victims: &[Key]) -> bool {
        let mut cost = 0.0;
        for key in victims {
            let model = &key.artefact.model;
            let stays = self.residents.get(key).is_some_and(|it| it.state == State::Ready);
            if stays && !self.has_twin(key) {
                cost += self.reload_cost(model);
            } else if stays
                && !self.models.peek(model).is_some_and(|it| it.heat.is_cooled(self.now))
            {
                return false;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a handful of devices")]
        let parts = (self.leases(&artefact.model).residents + 1) as f64;
        victims.is_empty() || cost < self.reload_cost(&artefact.model) / parts
    }

    /// Gives up loads of replicas that are not on their way to a device, where another load
    /// waits for room or the version serves no more; those whose files are still coming, where
    /// somebody waits for the slot that their fetch has.
    pub(super) fn give_up_replicas(&mut self) {
        if !self.jobs.values().any(|job| job.replica) {
            return;
        }
        let (replicas, others): (Vec<_>, Vec<_>) =
            self.jobs.iter().partition(|(artefact, job)| self.is_replica(artefact, job));
        let is_room_wanted = others.iter().any(|(_, job)| matches!(job.room, Room::Wanted));
        let underway = self.underway();
        let is_slot_wanted = others.iter().any(|(artefact, job)| {
            self.is_wanted(artefact) && self.lacks_fetch_slot(artefact, job, &underway)
        });
        let given_up: Vec<ArtefactId> = replicas
            .into_iter()
            .filter(|(artefact, job)| {
                let is_over = !self.serves(artefact);
                match job.is_loading() {
                    true => job.is_arriving() && (is_over || is_slot_wanted),
                    false => is_over || is_room_wanted,
                }
            })
            .map(|(artefact, _)| artefact.clone())
            .collect();
        for artefact in given_up {
            self.give_up_replica(&artefact);
        }
    }

    pub(super) fn give_up_replica(&mut self, artefact: &ArtefactId) {
        self.look_again_later(&artefact.model);
        match self.jobs.get(artefact).is_some_and(Job::is_arriving) {
            true => self.stop(artefact, None),
            false => self.abandon(artefact),
        }
    }

    /// No further replica of a model is looked up for a while.
    pub(super) fn look_again_later(&mut self, model: &ModelId) {
        self.look_again_after(model, LOOK_AGAIN);
    }

    /// A resident with a twin leaves for another load, or for a smaller budget: one that came in
    /// its place at once would send that load's resident away, and leave for it again.
    pub(super) fn replica_left(&mut self, model: &ModelId) {
        self.look_again_after(model, MAKES_WAY);
    }

    fn look_again_after(&mut self, model: &ModelId, pause: Duration) {
        let until = Some(self.now + pause);
        let heat = &mut self.model_mut(model).heat;
        heat.not_before = heat.not_before.max(until);
    }

    /// A resident came: the next one is due when all of them have been hot for a while.
    pub(super) fn replicated(&mut self, model: &ModelId) {
        let entry = self.model_mut(model);
        // Whether it lives is not known yet.
        entry.heat = Heat { deaths: entry.heat.deaths, ..Heat::default() };
        self.feel(model);
    }

    /// A resident died whose version goes on serving elsewhere. From the second death in a row
    /// on, further replicas pause as a model would. Says how many there were, and the pause.
    pub(super) fn replica_died(
        &mut self,
        model: &ModelId,
        failure: &Failure,
        soon: bool,
    ) -> (u32, Duration) {
        let now = self.now;
        let heat = &mut self.model_mut(model).heat;
        heat.deaths = if soon { heat.deaths.saturating_add(1) } else { 1 };
        if heat.deaths == 1 {
            return (1, Duration::ZERO);
        }
        let retry = pause(failure, heat.deaths - 1);
        heat.not_before = heat.not_before.max(Some(now + retry));
        (heat.deaths, retry)
    }

    /// A load failed. Where its version serves all the same that is no trouble of the model's:
    /// only further replicas wait, for as long as a model would.
    pub(super) fn replica_failed(
        &mut self,
        artefact: &ArtefactId,
        failure: &Failure,
        stage: Stage,
    ) -> bool {
        if !self.serves(artefact) {
            return false;
        }
        let now = self.now;
        let heat = &mut self.model_mut(&artefact.model).heat;
        heat.failures = heat.failures.saturating_add(1);
        let retry = pause(failure, heat.failures);
        heat.not_before = Some(now + retry);
        self.decide_failed(&artefact.model, Some(&artefact.version), failure, stage, retry);
        true
    }
}
