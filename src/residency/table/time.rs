//! What passes with time: waiters' patience, loads' limits, idle residents.

use std::time::{Duration, Instant};

use roundhouse_types::ArtefactId;

use super::Table;
use super::event::Key;
use super::state::{Resident, Room, State};
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
        [deadline, job, idle, self.first_of_age(), self.next_idle_copy()]
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
            let is_over = |(key, resident): &(&Key, &Resident)| {
                self.unused_until(resident).is_some_and(|at| at <= self.now) && self.may_idle(key)
            };
            let idle = self.residents.iter().filter(is_over).map(|(key, _)| key.clone());
            let idle: Vec<Key> = idle.collect();
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
        self.residents.iter().fold(None::<Instant>, |first, (key, resident)| {
            // What keeps one from leaving is asked of few: those that would be the first.
            let at = self.unused_until(resident).filter(|at| first.is_none_or(|it| *at < it));
            at.filter(|_| self.may_idle(key)).or(first)
        })
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
        let at = self.unused_until(self.residents.get(key)?)?;
        self.may_idle(key).then_some(at)
    }

    /// When a resident will have been unused for too long, whatever keeps it there.
    fn unused_until(&self, resident: &Resident) -> Option<Instant> {
        let ttl = resident.idle_ttl.or(self.config.idle_ttl)?;
        let is_idle = resident.state == State::Ready && resident.leases == 0;
        is_idle.then(|| resident.last_used + ttl)
    }

    /// Whether nothing keeps a resident that nobody uses.
    fn may_idle(&self, key: &Key) -> bool {
        !self.bases.is_used(key)
            && !self.bases.is_awaited(&key.artefact.model)
            && !self.is_held(key)
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
