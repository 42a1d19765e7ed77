//! Who is on which device, who must leave, who waits: events in, effects out.

mod adapters;
mod arriving;
mod bandwidth;
mod bases;
mod beside;
mod check;
mod copies;
mod demotion;
mod elastic;
mod event;
mod forecast;
mod leavers;
mod ledger;
mod loads;
mod obstacle;
mod operator;
mod order;
mod placement;
mod places;
mod replicas;
mod reports;
mod requests;
mod residents;
mod resolve;
mod room;
mod sharing;
mod standing;
mod state;
mod tenants;
mod time;
mod versions;
mod victims;
mod view;
mod worth;

pub use event::{
    Among, LeftWith, LoadOptions, LoadReport, PlaceWanted, RefreshReport, UnloadReport,
};
pub(crate) use event::{Effect, Event, Grant, Key, Report, WaiterId};
pub use placement::may_go;
pub(crate) use view::Levels;
pub use worth::Demand;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lru::LruCache;
use roundhouse_types::{ArtefactId, Bytes, DeviceId, Failure, ModelId};

use self::bases::Bases;
use self::copies::Copies;
use self::elastic::Flow;
use self::forecast::Rates;
use self::ledger::Ledger;
use self::residents::Residents;
use self::state::{Job, Model, NextLook, State, Waiters};
use self::tenants::Turns;
use self::worth::Ages;
use crate::config::Config;
use crate::decision::{Action, Decided, Departure};

/// Rounds in which an event must settle. Each round that is not the last gives or takes back
/// something; far fewer are needed.
const ROUNDS: usize = 1_000;

/// The table. Owned by one task, which performs its effects and reports what came of them.
///
/// Its invariants are those of the crate's documentation, by number.
#[derive(Debug)]
pub(crate) struct Table {
    config: Config,
    ledger: Ledger,
    models: LruCache<ModelId, Model>,
    jobs: BTreeMap<ArtefactId, Job>,
    residents: Residents,
    copies: Copies,
    bases: Bases,
    /// Models that failed; some of them serve again.
    failed: BTreeSet<ModelId>,
    /// Models that an operator wants to stay, loaded or not.
    kept: BTreeSet<ModelId>,
    /// Residents whose KV pools have more than their floor, or want more.
    pools: BTreeSet<Key>,
    flow: Flow,
    waiters: Waiters,
    rates: Rates,
    ages: Ages,
    turns: Turns,
    /// Devices whose residents may be draining because the budget was exceeded.
    shrunk: BTreeSet<DeviceId>,
    /// The shortest time for which one may be unused that had a time of its own.
    own_idle: Option<Duration>,
    /// No resident has been unused for too long before this; `None`: it has to be looked.
    idle_from: Option<Instant>,
    /// When a copy may have been unused for too long.
    idle_copies: NextLook,
    /// Counts what has an order: arrivals, uses, creations.
    sequence: u64,
    /// Counts events.
    events: u64,
    /// Models of which the store holds a version that waits for an operator's word.
    offers: usize,
    /// Models of which a version failed in whose place another one answers, or would.
    unfit: BTreeSet<ModelId>,
    stopping: bool,
    /// The time of the event that is being handled.
    now: Instant,
    /// Models whose waiters may have something coming to them.
    touched: Vec<ModelId>,
    /// What the event that is being handled wants done.
    effects: Vec<Effect>,
}

impl Table {
    pub(crate) fn new(mut config: Config, devices: Vec<(DeviceId, Bytes)>, now: Instant) -> Self {
        config.replicas = config.replicas.filter(|_| devices.len() > 1);
        Self {
            copies: Copies::new(config.host_budget),
            own_idle: None,
            config,
            ledger: Ledger::new(devices),
            // Its bound is kept by `forget_cold`: what has state is never dropped.
            models: LruCache::unbounded(),
            jobs: BTreeMap::new(),
            residents: Residents::default(),
            bases: Bases::default(),
            failed: BTreeSet::new(),
            kept: BTreeSet::new(),
            pools: BTreeSet::new(),
            flow: Flow::default(),
            waiters: Waiters::default(),
            rates: Rates::default(),
            ages: Ages::default(),
            turns: Turns::default(),
            shrunk: BTreeSet::new(),
            idle_from: None,
            idle_copies: NextLook::Now,
            sequence: 0,
            events: 0,
            offers: 0,
            unfit: BTreeSet::new(),
            stopping: false,
            now,
            touched: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// Takes in what happened and says what to do, in order.
    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        self.now = now;
        self.events += 1;
        // It only informs, and those whose time is over now are told it.
        if let Event::Progressed { artefact, bytes } = &event {
            self.progressed(artefact, *bytes);
            return Vec::new();
        }
        self.expire();
        match event {
            Event::AcquireRequested { waiter, model, hold_until, only_loaded, payer } => {
                self.acquire(waiter, &model, hold_until, only_loaded, payer);
            }
            Event::LoadRequested { waiter, model, hold_until, options } => {
                self.operator_load(waiter, &model, hold_until, options);
            }
            Event::UnloadRequested { waiter, model, hold_until } => {
                self.operator_unload(waiter, &model, hold_until);
            }
            Event::PlaceRequested { waiter, place, hold_until } => {
                self.give_place(waiter, &place, hold_until);
            }
            Event::RefreshRequested { waiter, model, hold_until } => {
                self.operator_refresh(waiter, &model, hold_until);
            }
            Event::KeepChanged { model, kept } => self.keep_changed(&model, kept),
            Event::ChoiceChanged { model, chosen } => self.choice_changed(&model, chosen),
            Event::StoreSeen { model, named, unfit } => {
                self.store_seen(&model, named.as_ref(), unfit);
            }
            Event::EndpointLeft { endpoint } => self.endpoint_left(&endpoint),
            Event::Cancelled { waiter } => {
                self.take_waiter(waiter);
            }
            Event::Released { key } => self.released(&key),
            Event::Resolved { model, result } => self.resolve_ended(&model, result),
            Event::Fetched { artefact, result } => self.fetch_ended(&artefact, result),
            Event::Loaded { key, result } => self.load_ended(&key, result),
            Event::Measured { key, footprint } => self.measured(&key, footprint),
            Event::KvReported { key, report } => self.kv_reported(&key, report),
            Event::Died { key, failure } => self.died(&key, &failure),
            Event::Unloaded { key, copy } => self.unloaded(&key, copy),
            Event::Discarded { artefact } => self.discarded(&artefact),
            Event::BudgetChanged { device, budget } => self.budget_changed(device, budget),
            Event::HostBudgetChanged { budget } => self.copies.set_budget(budget),
            Event::TermsChanged { tenants, drain_deleted } => {
                self.config.tenants = tenants;
                self.config.drain_deleted = drain_deleted;
            }
            Event::Progressed { .. } | Event::TimePassed => {}
            Event::ShutdownBegan => self.shutdown(),
        }
        self.settle();
        self.tell_pools();
        self.rebalance_copies();
        self.forget_cold();
        #[cfg(debug_assertions)]
        self.check();
        std::mem::take(&mut self.effects)
    }

    /// Whether nothing is on a device, on its way there, or in the host's memory.
    pub(crate) fn is_empty(&self) -> bool {
        self.residents.is_empty() && self.jobs.is_empty() && self.copies.is_empty()
    }

    /// Answers who can be answered and gives room to who is next, until nothing moves.
    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            self.see_loosened();
            while let Some(model) = self.touched.pop() {
                self.serve(&model);
            }
            self.rebalance();
            self.make_room();
            self.see_loosened();
            if self.touched.is_empty() {
                return;
            }
        }
        let last = self.effects.len().saturating_sub(8);
        debug_assert!(false, "it does not settle: {:?}", &self.effects[last..]);
        tracing::error!("loads undo each other; the next event goes on with them");
        self.touched.clear();
    }

    /// Forgets the models least recently asked for that have no state, down to the limit.
    /// Those with state go to the other end of the queue, so that they hide nobody.
    fn forget_cold(&mut self) {
        /// Models looked at per event, so that one event costs a bounded time.
        const LOOKED_AT: usize = 8;
        for _ in 0..LOOKED_AT {
            if self.models.len() <= self.config.max_known_models {
                return;
            }
            let Some((oldest, model)) = self.models.peek_lru() else { return };
            let is_cold = model.is_cold() && !self.bases.is_awaited(oldest);
            let oldest = oldest.clone();
            if is_cold {
                let forgotten = self.models.pop(&oldest).unwrap_or_default();
                self.offers -= usize::from(forgotten.offered.is_some());
                self.unfit.remove(&oldest);
            } else {
                self.models.promote(&oldest);
            }
        }
    }

    fn model_mut(&mut self, model: &ModelId) -> &mut Model {
        self.models.get_or_insert_mut_ref(model, Model::default)
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// A resident that serves a model's requests; others of its version may beside it.
    fn ready(&self, model: &ModelId) -> Option<&Key> {
        let keys = &self.models.peek(model)?.residents;
        keys.iter().find(|key| self.residents.get(key).is_some_and(|r| r.state == State::Ready))
    }

    /// A device that an artefact is on, in whatever state.
    fn resident_of(&self, artefact: &ArtefactId) -> Option<&Key> {
        let keys = &self.models.peek(&artefact.model)?.residents;
        keys.iter().find(|key| key.artefact == *artefact)
    }

    /// Whether it is kept, loaded or on its way: what its name means was seen before.
    pub(crate) fn is_known(&self, model: &ModelId) -> bool {
        let entry = self.models.peek(model);
        entry.is_some_and(|it| it.kept || !it.residents.is_empty() || !it.jobs.is_empty())
    }

    /// Whether a request has waited for it since it was loaded last.
    pub(crate) fn was_asked_for(&self, model: &ModelId) -> bool {
        self.models.peek(model).is_some_and(|entry| entry.asked)
    }

    fn is_kept(&self, model: &ModelId) -> bool {
        self.models.peek(model).is_some_and(|model| model.kept)
    }

    fn decide(&mut self, decided: Decided) {
        self.effects.push(Effect::Decided(decided));
    }

    /// Takes a waiter off every list; `None` where it was answered already.
    fn take_waiter(&mut self, id: WaiterId) -> Option<state::Waiter> {
        let waiter = self.waiters.remove(id)?;
        if let Some(model) = self.models.peek_mut(&waiter.model) {
            model.waiters.remove(&id);
            model.refreshers.remove(&id);
            model.unloaders.remove(&id);
        }
        Some(waiter)
    }

    /// Answers a waiter with a failure.
    fn refuse(&mut self, id: WaiterId, failure: &Failure) {
        if let Some(waiter) = self.take_waiter(id) {
            self.refuse_caller(id, &waiter.model, failure);
        }
    }

    /// Answers a caller that is on no list.
    fn refuse_caller(&mut self, waiter: WaiterId, model: &ModelId, failure: &Failure) {
        self.effects.push(Effect::Refuse { waiter, failure: failure.clone() });
        let action = Action::Refused { reason: failure.message().into() };
        self.decide(Decided::about(model, action).with_kind(failure));
    }

    /// Sends a resident on its way out: no new leases, and it unloads when the last one ends.
    fn drain(&mut self, key: &Key, why: Departure, claim: Option<&ArtefactId>) {
        let now = self.now;
        let is_own = claim.is_some_and(|claim| self.above_ceiling(&[claim]) > Bytes::ZERO);
        let has_twin = self.has_twin(key);
        let Some(resident) = self.residents.get_mut(key) else {
            return;
        };
        // A resident that leaves for good does not leave for somebody's room as well.
        let may_change = match resident.state {
            State::Ready | State::Draining(Departure::Evicted | Departure::Shrunk) => true,
            State::Draining(Departure::Died | Departure::Shutdown) | State::Unloading => false,
            // The store, or an operator, may return to it: then it must be able to serve.
            State::Draining(Departure::Superseded | Departure::Deleted)
                if why == Departure::Outgrown =>
            {
                true
            }
            // With its base it may come back, unless it leaves for a reason of its own.
            State::Draining(Departure::Base) => {
                !matches!(why, Departure::Evicted | Departure::Shrunk | Departure::Idle)
            }
            State::Draining(_) => matches!(why, Departure::Shutdown | Departure::Died),
        };
        if !may_change || resident.state == State::Draining(why) {
            return;
        }
        resident.state = State::Draining(why);
        let leases = resident.leases;
        // One in use, one that had to leave for its own tenant, or one whose version goes on
        // serving, was not worth least of all.
        if why == Departure::Evicted && leases == 0 && !is_own && !has_twin {
            self.ages.left(key.device, resident.worth);
        }
        let idle = now.saturating_duration_since(resident.last_used);
        if has_twin && matches!(why, Departure::Evicted | Departure::Shrunk) {
            self.replica_left(&key.artefact.model);
        }
        let action = Action::Draining {
            why,
            for_artefact: claim.cloned(),
            leases,
            idle_ms: u64::try_from(idle.as_millis()).unwrap_or(u64::MAX),
            demand: self.demand(&key.artefact.model),
        };
        self.decide(Decided::of(&key.artefact, Some(key.device), action));
        self.drain_adapters(key, why);
        if leases == 0 {
            self.unload_if_free(key);
        }
    }

    /// Unloads what no request holds, unless adapters are on it: those leave first.
    fn unload_if_free(&mut self, key: &Key) {
        if self.bases.is_used(key) {
            return;
        }
        let demote = self.demote(key);
        let Some(resident) = self.residents.get_mut(key) else {
            return;
        };
        debug_assert_eq!(resident.leases, 0, "invariant 2: {} is leased", key.artefact);
        resident.state = State::Unloading;
        resident.demotes = demote;
        // A copy that waited beside it may have been unused for long.
        self.idle_copies = NextLook::Now;
        self.effects.push(Effect::Unload { key: key.clone(), demote });
    }
}

#[cfg(test)]
mod tests;
