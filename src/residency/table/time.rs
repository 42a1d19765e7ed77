//! What passes with time: waiters' patience, loads' limits, idle residents.

use std::time::{Duration, Instant};

use roundhouse_types::ArtefactId;

use super::Table;
use super::event::Key;
use super::state::{Room, State};
use crate::decision::Departure;

impl Table {
    /// When the table wants to be told that time passed, if nothing happens before.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        let deadline = self.waiters.first_deadline().map(|(at, _)| at);
        let jobs = self.jobs.values().filter(|job| !job.late);
        let job = jobs.map(|job| job.begun + self.config.load_timeout).min();
        let idle = match self.idle_from {
            Some(_) if self.residents.is_empty() => None,
            None if self.shortest_idle().is_some() => self.first_idle(),
            known => known,
        };
        [deadline, job, idle, self.first_of_age(), self.first_idle_copy()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what was due before the event that is being handled.
    pub(super) fn expire(&mut self) {
        while let Some((at, id)) = self.waiters.first_deadline()
            && at <= self.now
        {
            let Some(waiter) = self.waiters.get(id) else {
                return;
            };
            let failure = self.not_ready(&waiter.model);
            self.refuse(id, &failure);
        }
        let limit = self.config.load_timeout;
        let late = self.jobs.iter().filter(|(_, job)| !job.late && job.begun + limit <= self.now);
        let late: Vec<ArtefactId> = late.map(|(artefact, _)| artefact.clone()).collect();
        for artefact in late {
            self.load_timed_out(&artefact);
        }
        if let Some(ttl) = self.shortest_idle()
            && self.idle_from.is_none_or(|at| at <= self.now)
        {
            let is_over = |key: &&Key| self.idle_until(key).is_some_and(|at| at <= self.now);
            let idle: Vec<Key> = self.residents.keys().filter(is_over).cloned().collect();
            for key in idle {
                // Of a kept model's idle residents the last one stays.
                if self.idle_until(&key).is_none() {
                    continue;
                }
                self.drain(&key, Departure::Idle, None);
            }
            // Who comes or is used later is unused for too long later than this. Of several
            // residents of a kept model, any may be the one that is held from now on.
            let latest = self.now + ttl;
            let first = self.first_idle().map_or(latest, |at| at.min(latest));
            self.idle_from = (!self.is_one_of_several_kept()).then_some(first);
        }
        self.expire_copies();
    }

    /// The shortest time for which anybody may be unused; `None`: nobody leaves for that.
    pub(super) fn shortest_idle(&self) -> Option<Duration> {
        self.config.idle_ttl.into_iter().chain(self.own_idle).min()
    }

    /// When the first resident leaves because nobody uses it.
    pub(super) fn first_idle(&self) -> Option<Instant> {
        self.residents.keys().filter_map(|key| self.idle_until(key)).min()
    }

    fn is_one_of_several_kept(&self) -> bool {
        self.config.replicas.is_some()
            && self.residents.keys().any(|key| {
                let entry = self.models.peek(&key.artefact.model);
                entry.is_some_and(|entry| entry.kept && entry.residents.len() > 1)
            })
    }

    /// When a resident leaves because nobody uses it.
    fn idle_until(&self, key: &Key) -> Option<Instant> {
        let resident = self.residents.get(key)?;
        let ttl = resident.idle_ttl.or(self.config.idle_ttl)?;
        let is_idle = resident.state == State::Ready
            && resident.leases == 0
            && !self.bases.is_used(key)
            && !self.bases.is_awaited(&key.artefact.model);
        (is_idle && !self.is_held(key)).then(|| resident.last_used + ttl)
    }

    /// When the next young resident becomes a possible victim, while a load wants room.
    fn first_of_age(&self) -> Option<Instant> {
        let minimum = self.config.minimum_residence;
        let is_wanted = || self.jobs.values().any(|job| matches!(job.room, Room::Wanted));
        if minimum.is_zero() || !is_wanted() {
            return None;
        }
        let of_age = self.residents.values().map(|resident| resident.ready_at + minimum);
        of_age.filter(|at| *at > self.now).min()
    }
}
