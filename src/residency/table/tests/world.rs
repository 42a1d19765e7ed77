//! A world that plays with the table: it performs effects in any order, or fails them, and
//! holds what it sees against the invariants, by number.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use roundhouse_types::{
    ArtefactId, Bytes, ContentId, DeviceId, ErrorKind, Failure, Footprint, Grade, ModelId,
    ModelKind, SharedPart, Version,
};

use super::hosted::Host;
use super::pools::Side;
use crate::config::{Collation, Config, Policy, Replicas, TenantLimits};
use crate::loader::{Fetched, InStore, Loaded, Resolution, Standing};
use crate::table::sharing::with_shared;
use crate::table::{Event, Key, Table, WaiterId};
use crate::testing::{model, version};

/// A stream of numbers from one seed.
#[derive(Debug, Clone)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub(super) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// What a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Lease,
    Other,
}

pub(super) struct World {
    pub(super) table: Table,
    pub(super) now: Instant,
    pub(super) config: Config,
    pub(super) budgets: BTreeMap<DeviceId, u64>,
    pub(super) models: Vec<ModelId>,
    pub(super) versions: Vec<Version>,
    /// The version in the store, by model.
    pub(super) stored: Vec<usize>,
    pub(super) kept: BTreeSet<ModelId>,
    pub(super) resolves: Vec<(ModelId, bool)>,
    pub(super) fetches: Vec<ArtefactId>,
    pub(super) on_disk: BTreeSet<ArtefactId>,
    /// Footprints as a load that goes on foresees them.
    pub(super) foreseen: BTreeMap<ArtefactId, Footprint>,
    pub(super) loads: BTreeMap<Key, u64>,
    /// Loads that read behind a fetch, and whether that brings, or has brought, everything.
    pub(super) arriving: BTreeMap<Key, bool>,
    /// What loads under way bring of the content that others may hold.
    pub(super) bringing: BTreeMap<Key, Vec<SharedPart>>,
    /// What is on a device, those that are being unloaded included.
    pub(super) loaded: BTreeMap<Key, u64>,
    pub(super) unloads: Vec<Key>,
    /// Adapters on a device or on their way there, each with its base there.
    pub(super) onto: BTreeMap<Key, Key>,
    /// What died on a device or on its way there, and is not unloaded yet.
    pub(super) dead: BTreeSet<Key>,
    /// KV pools that have said something.
    pub(super) pools: BTreeMap<Key, Side>,
    pub(super) leases: Vec<Key>,
    pub(super) pending: BTreeMap<WaiterId, (ModelId, Wish)>,
    pub(super) granted: BTreeSet<WaiterId>,
    pub(super) refused: BTreeMap<WaiterId, ErrorKind>,
    /// What the largest resident took when somebody was refused.
    pub(super) largest: BTreeMap<WaiterId, u64>,
    pub(super) next_waiter: u64,
    pub(super) excess: BTreeMap<DeviceId, u64>,
    pub(super) host: Host,
    /// Whether its models have content in common.
    is_sharing: bool,
    /// Whether many ask for one model time and again.
    is_hot: bool,
    pub(super) stopping: bool,
}

impl World {
    pub(super) fn new(devices: usize, dice: &mut Dice) -> Self {
        let own = [DeviceId::Simulated(0), DeviceId::Simulated(1), DeviceId::Simulated(2)];
        let mixed = [own[0], DeviceId::Cpu, own[1]];
        let cpu_first = [DeviceId::Cpu, own[0], own[1]];
        let all = [own, mixed, cpu_first][dice.below(3)];
        let budgets: BTreeMap<DeviceId, u64> =
            all[..devices].iter().map(|id| (*id, 60 + dice.below(80) as u64)).collect();
        let is_hot = devices > 1 && dice.one_in(2);
        let seconds = Duration::from_secs;
        let config = Config {
            max_fetches: 1 + dice.below(3),
            max_loads: 1 + dice.below(2),
            max_handler_loads: 1 + dice.below(2),
            max_waiters_per_model: 2 + dice.below(6),
            max_waiters: 4 + dice.below(12),
            max_known_models: 3 + dice.below(4),
            load_timeout: seconds(40),
            refresh_every: seconds(1 + dice.below(8) as u64),
            idle_ttl: dice.one_in(3).then(|| seconds(3 + dice.below(10) as u64)),
            minimum_residence: seconds(if dice.one_in(3) { 2 } else { 0 }),
            policy: [Policy::LeastRecentlyUsed, Policy::GreedyDual][dice.below(2)],
            collation: Collation {
                most_waited_first: dice.one_in(2),
                overtaken_at_most: 1 + dice.below(6) as u32,
                overtaken_within: seconds(1 + dice.below(20) as u64),
            },
            tenants: Self::tenants(dice),
            host_budget: Bytes(if dice.one_in(4) { 0 } else { 10 + dice.below(140) as u64 }),
            replicas: (is_hot || dice.one_in(2)).then(|| Replicas {
                at_leases: 1 + dice.below(3) as u32,
                at_most: 2 + dice.below(2),
            }),
            drain_deleted: dice.one_in(2).then(|| model("a").endpoint).into_iter().collect(),
        };
        let now = Instant::now();
        let devices = budgets.iter().map(|(id, budget)| (*id, Bytes(*budget))).collect();
        let mut models: Vec<ModelId> = ["t/a", "u/b", "t/c", "u/d", "e"]
            .iter()
            .take(3 + dice.below(3))
            .map(|n| model(n))
            .collect();
        let adapters = ["t/x", "u/x", "t/y", "u/z"];
        if !dice.one_in(3) {
            models.extend(adapters[..1 + dice.below(4)].iter().map(|name| model(name)));
        }
        Self {
            table: Table::new(config.clone(), devices, now),
            now,
            host: Host::new(config.host_budget.0),
            excess: budgets.keys().map(|id| (*id, 0)).collect(),
            config,
            is_sharing: !dice.one_in(4),
            is_hot,
            budgets,
            stored: vec![0; models.len()],
            models,
            versions: (0..4).map(version).collect(),
            kept: BTreeSet::new(),
            resolves: Vec::new(),
            fetches: Vec::new(),
            on_disk: BTreeSet::new(),
            foreseen: BTreeMap::new(),
            loads: BTreeMap::new(),
            arriving: BTreeMap::new(),
            bringing: BTreeMap::new(),
            loaded: BTreeMap::new(),
            unloads: Vec::new(),
            onto: BTreeMap::new(),
            dead: BTreeSet::new(),
            pools: BTreeMap::new(),
            leases: Vec::new(),
            pending: BTreeMap::new(),
            granted: BTreeSet::new(),
            refused: BTreeMap::new(),
            largest: BTreeMap::new(),
            next_waiter: 0,
            stopping: false,
        }
    }

    fn tenants(dice: &mut Dice) -> BTreeMap<String, TenantLimits> {
        let mut tenants = BTreeMap::new();
        for name in ["t", "u"] {
            if dice.one_in(2) {
                let floor = Bytes(if dice.one_in(2) { dice.below(60) as u64 } else { 0 });
                let ceiling = dice.one_in(3).then(|| Bytes(30 + dice.below(90) as u64));
                let share = [0.5, 1.0, 3.0][dice.below(3)];
                tenants.insert(
                    name.to_owned(),
                    TenantLimits { floor, ceiling, share, ..TenantLimits::default() },
                );
            }
        }
        tenants
    }

    /// One thing happens.
    pub(super) fn step(&mut self, dice: &mut Dice) {
        if self.is_hot && dice.one_in(3) {
            return self.rush(dice);
        }
        match dice.below(96) {
            0..14 => {
                self.ask_for_lease(dice);
            }
            14..16 => self.ask_as_operator(dice),
            16..19 => self.cancel(dice),
            19..27 => self.release_one(dice),
            27..35 => self.answer_resolve(dice, true),
            35..42 => self.answer_fetch(dice, true),
            42..49 => self.answer_load(dice, true),
            49..54 => self.answer_unload(dice),
            54..56 => self.pass(Duration::from_millis(200 + dice.below(9000) as u64)),
            56 => self.pass(Duration::from_secs(20)),
            57 | 58 => {
                let index = dice.below(self.models.len());
                self.stored[index] = dice.below(self.versions.len());
            }
            59 | 60 => self.toggle_keep(dice),
            61 => self.change_budget(dice),
            62 => {
                self.on_disk.clear();
            }
            63..69 => self.measure(dice),
            69 | 70 => self.die(dice),
            71..74 => self.answer_discard(dice),
            74 => self.change_host_budget(dice),
            75..95 => self.pool_event(dice),
            _ => {
                if dice.one_in(6) {
                    self.shut_down();
                }
            }
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.tell(Event::TimePassed);
    }

    /// What an artefact takes, as its headers say.
    pub(super) fn size(artefact: &ArtefactId) -> u64 {
        let text = artefact.version.as_str().bytes().chain(artefact.model.target.as_str().bytes());
        let mut dice = Dice(text.fold(7, |seed, byte| seed.wrapping_mul(31) + u64::from(byte)));
        if dice.one_in(12) {
            170
        } else if artefact.model.target.as_str().ends_with(['x', 'y', 'z']) {
            6 + dice.below(25) as u64
        } else {
            8 + dice.below(60) as u64
        }
    }

    /// The content that an artefact may hold together with others.
    pub(super) fn contents(&self, artefact: &ArtefactId) -> Vec<SharedPart> {
        const SIZES: [u64; 6] = [3, 5, 8, 12, 18, 27];
        let size = Self::size(artefact);
        let mut dice = Dice(size.wrapping_mul(31));
        // Less than the weights, also when it is measured at less than foreseen.
        let mut left = if self.is_sharing { (size / 2).saturating_sub(4) } else { 0 };
        let mut parts = Vec::new();
        for (index, bytes) in (0_u8..).zip(SIZES) {
            if bytes <= left && !dice.one_in(3) {
                left -= bytes;
                let content = ContentId::from_digest([index; 32]);
                parts.push(SharedPart { content, bytes: Bytes(bytes) });
            }
        }
        parts
    }

    /// What is known of it beforehand: for some all, for others nothing.
    fn known_contents(&self, artefact: &ArtefactId, dice: &mut Dice) -> Vec<SharedPart> {
        if dice.one_in(3) { Vec::new() } else { self.contents(artefact) }
    }

    pub(super) fn footprint(total: u64) -> Footprint {
        let kv = total / 4;
        Footprint { weights: Bytes(total - kv), kv: Bytes(kv), ..Footprint::default() }
    }

    pub(super) fn kind(model: &ModelId) -> ModelKind {
        match model.target.as_str() {
            "t/a" | "u/b" => ModelKind::Handler,
            _ => ModelKind::Embedding,
        }
    }

    /// The model that an artefact adapts, for those that do. Another version may adapt another.
    pub(super) fn base(&self, artefact: &ArtefactId) -> Option<ModelId> {
        let adapts = match artefact.model.target.as_str() {
            "t/x" => "t/c",
            "u/x" => "u/b",
            "t/y" if artefact.version == version(2) => "t/a",
            "t/y" => "t/c",
            // Some of its versions adapt what is no model that others can stand on.
            "u/z" if artefact.version == version(1) => "u/z",
            "u/z" if artefact.version == version(3) => "t/x",
            "u/z" => "t/c",
            _ => return None,
        };
        Some(model(adapts))
    }

    pub(super) fn answer_resolve(&mut self, dice: &mut Dice, may_fail: bool) {
        if self.resolves.is_empty() {
            return;
        }
        let (model, _) = self.resolves.swap_remove(dice.below(self.resolves.len()));
        if may_fail && dice.one_in(6) {
            let kind = [ErrorKind::ModelNotFound, ErrorKind::StoreUnavailable][dice.below(2)];
            let result = Err(Failure::new(kind, "the store said no"));
            return self.tell(Event::Resolved { model, result });
        }
        let Some(index) = self.models.iter().position(|other| *other == model) else {
            // A base that the store does not hold.
            let result = Err(Failure::new(ErrorKind::ModelNotFound, "the store said no"));
            return self.tell(Event::Resolved { model, result });
        };
        let version = self.versions[self.stored[index]].clone();
        let artefact = ArtefactId { model: model.clone(), version: version.clone() };
        let (size, kind) = (Self::size(&artefact), Self::kind(&model));
        let footprint = Self::footprint(size);
        let is_known = !size.is_multiple_of(3);
        let streams = is_known && kind != ModelKind::Handler && !dice.one_in(4);
        // Of some it is known only when they have been fetched; those are not read behind it.
        let base = self.base(&artefact).filter(|_| is_known || dice.one_in(2));
        let resolution = Resolution {
            version,
            fetch_bytes: Bytes(if self.on_disk.contains(&artefact) { 0 } else { size }),
            footprint: is_known.then_some((footprint, Grade::Exact)),
            shared: if is_known { self.known_contents(&artefact, dice) } else { Vec::new() },
            kind: streams.then_some(kind),
            off_cards: false,
            base,
            streams,
            quarantined: may_fail && dice.one_in(12),
            standing: self.standing(dice),
        };
        let is_under_way = self.table.jobs.contains_key(&artefact);
        if is_known && !is_under_way {
            self.foreseen.insert(artefact.clone(), footprint);
        } else if !is_under_way {
            self.foreseen.remove(&artefact);
            self.foresee_from_copy(&artefact, resolution.quarantined);
        }
        self.tell(Event::Resolved { model, result: Ok(resolution) });
    }

    /// What the store holds beside the version to serve.
    fn standing(&self, dice: &mut Dice) -> Standing {
        let store = match dice.below(12) {
            0 => InStore::Unreached(Failure::new(ErrorKind::StoreUnavailable, "no answer")),
            1 => InStore::Gone,
            2 => InStore::Other(self.versions[dice.below(self.versions.len())].clone()),
            3 => InStore::Unasked,
            _ => InStore::Same,
        };
        let unfit = dice.one_in(8).then(|| {
            let version = self.versions[dice.below(self.versions.len())].clone();
            (version, Failure::new(ErrorKind::ModelInvalid, "damaged"))
        });
        Standing { store, unfit, ..Standing::default() }
    }

    pub(super) fn answer_fetch(&mut self, dice: &mut Dice, may_fail: bool) {
        if self.fetches.is_empty() {
            return;
        }
        let artefact = self.fetches.remove(dice.below(self.fetches.len()));
        if may_fail && dice.one_in(6) {
            let result = Err(Failure::new(ErrorKind::ModelInvalid, "broken files"));
            self.break_load(&artefact);
            return self.tell(Event::Fetched { artefact, result });
        }
        self.on_disk.insert(artefact.clone());
        // Now and then the files need something else than their headers said.
        let other = if may_fail && dice.one_in(8) { dice.below(12) as u64 } else { 0 };
        let footprint = Self::footprint(Self::size(&artefact) + other);
        self.foreseen.insert(artefact.clone(), footprint);
        let shared = self.known_contents(&artefact, dice);
        let (kind, base) = (Self::kind(&artefact.model), self.base(&artefact));
        let result =
            Ok(Fetched { footprint, shared, kind, off_cards: false, base, once: Duration::ZERO });
        self.tell(Event::Fetched { artefact, result });
    }

    pub(super) fn answer_load(&mut self, dice: &mut Dice, may_fail: bool) {
        if self.loads.is_empty() {
            return;
        }
        let index = dice.below(self.loads.len());
        let key = self.loads.keys().nth(index).unwrap().clone();
        let is_coming = self.fetches.contains(&key.artefact);
        let arrives = self.arriving.get(&key).copied();
        // What has to come from the store ends after its fetch, whoever hears of that first.
        let may_end = arrives != Some(true) || !is_coming || (may_fail && dice.one_in(4));
        if !may_end {
            return;
        }
        let promised = self.loads.remove(&key).unwrap();
        self.bringing.remove(&key);
        self.arriving.remove(&key);
        self.host.sources.remove(&key);
        if arrives == Some(false) || (may_fail && dice.one_in(5)) {
            let result = Err(Failure::new(ErrorKind::ModelInvalid, "a bad tensor"));
            self.dead.remove(&key);
            self.onto.remove(&key);
            return self.tell(Event::Loaded { key, result });
        }
        let measured = match dice.below(if may_fail { 10 } else { 1 }) {
            1 => promised + 6,
            2 => promised.saturating_sub(3),
            _ => promised,
        };
        let shared = self.contents(&key.artefact);
        // What is shared is there, whatever was measured.
        let footprint = with_shared(Self::footprint(measured), &shared);
        self.loaded.insert(key.clone(), footprint.total().0);
        // Some have a time of their own.
        let idle_ttl =
            key.artefact.to_string().len().is_multiple_of(3).then(|| Duration::from_secs(9));
        let loaded = Loaded { model: (), footprint, shared, once: Duration::ZERO, idle_ttl };
        self.tell(Event::Loaded { key, result: Ok(loaded) });
    }

    pub(super) fn answer_unload(&mut self, dice: &mut Dice) {
        if !self.unloads.is_empty() {
            let key = self.unloads.swap_remove(dice.below(self.unloads.len()));
            let copy = self.leave_copy(&key, dice);
            self.loaded.remove(&key).expect("it was on the device");
            self.forget_pool(&key);
            self.onto.remove(&key);
            self.dead.remove(&key);
            self.tell(Event::Unloaded { key, copy });
        }
    }
}
