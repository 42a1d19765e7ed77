//! The side that fetches and loads, in chaos: each step takes any time and fails in any way, and
//! what residency asks of it is held against its contract.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, ErrorKind, Failure, Footprint, Grade, ModelId, ModelKind,
};
use tokio::time::sleep;

use crate::loader::{
    Base, Fetched, HostCopy, InStore, LoadSource, Loaded, Loader, Resolution, Standing,
};
use crate::reporter::Reporter;
use crate::testing::{artefact, model, version};

/// The models of the world, of three tenants.
pub(super) const MODELS: [&str; 10] =
    ["t/a", "t/b", "u/c", "u/d", "e", "f", "g", "t/x", "u/y", "z"];

/// What some of them adapt.
pub(super) fn base(of: &ModelId) -> Option<ModelId> {
    let base = match of.target.as_str() {
        "t/x" | "z" => "t/a",
        "u/y" => "f",
        _ => return None,
    };
    Some(model(base))
}

/// A stream of numbers from one seed.
#[derive(Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub(super) fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    pub(super) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    /// Any time, most often a short one.
    pub(super) fn time(&mut self) -> Duration {
        let most = match self.below(16) {
            0..5 => 1,
            5..12 => 500,
            12..15 => 8_000,
            _ => 90_000,
        };
        Duration::from_millis(self.below(most))
    }
}

/// A loaded model, signed with what it was loaded from.
#[derive(Debug)]
pub(super) struct Signed {
    pub(super) artefact: ArtefactId,
    pub(super) device: DeviceId,
    pub(super) is_leaving: AtomicBool,
    alive: Arc<AtomicUsize>,
}

impl Drop for Signed {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What is in a device's memory, from the begin of its load to the end of its unload.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) bytes: u64,
    pub(super) is_loaded: bool,
    /// What it was loaded onto, on the same device.
    onto: Option<ArtefactId>,
}

/// The state of the world.
#[derive(Debug)]
pub(super) struct Truth {
    pub(super) dice: Dice,
    /// Whatever happened, counted.
    pub(super) events: u64,
    /// What must not be, as it was seen.
    pub(super) violations: Vec<String>,
    /// Nothing fails any more, and nothing takes long.
    pub(super) is_calm: bool,
    /// The version in the store, by model; `None`: deleted.
    pub(super) stored: Vec<Option<u64>>,
    pub(super) store_fails: bool,
    pub(super) disk_is_full: bool,
    pub(super) on_disk: BTreeSet<ArtefactId>,
    pub(super) corrupt: BTreeSet<ArtefactId>,
    pub(super) quarantined: BTreeSet<ArtefactId>,
    /// Versions that residency was told may be loaded, until they were or failed to be.
    fit: BTreeSet<ArtefactId>,
    /// Models that an operator ever forced.
    pub(super) forced: BTreeSet<ModelId>,
    /// What versions were seen to take, where that was not what they say.
    grown: BTreeMap<ArtefactId, u64>,
    /// What residency was last told that they take.
    foretold: BTreeMap<ArtefactId, u64>,
    fetching: BTreeSet<ArtefactId>,
    once_fetched: BTreeSet<ArtefactId>,
    pub(super) placed: BTreeMap<(ArtefactId, DeviceId), Placed>,
    /// Reporters of loads of now and before.
    pub(super) reporters: Vec<(ArtefactId, DeviceId, Reporter)>,
    copies: BTreeSet<ArtefactId>,
    /// By how much, in all, budgets shrank and models took more than was foreseen.
    pub(super) surprise: u64,
}

impl Truth {
    pub(super) fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violations.push(what());
        }
    }

    /// What a version takes.
    pub(super) fn bytes(&self, artefact: &ArtefactId) -> u64 {
        let made_of =
            artefact.version.as_str().bytes().chain(artefact.model.target.as_str().bytes());
        let sum = made_of.fold(7_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
        self.grown.get(artefact).copied().unwrap_or(4 + sum % 45)
    }

    /// A resident takes so much from now on.
    pub(super) fn grows(&mut self, at: &(ArtefactId, DeviceId), bytes: u64) -> bool {
        let Some(placed) = self.placed.get_mut(at).filter(|placed| placed.is_loaded) else {
            return false;
        };
        self.surprise += bytes.saturating_sub(placed.bytes);
        placed.bytes = bytes;
        self.grown.insert(at.0.clone(), bytes);
        true
    }

    fn time(&mut self) -> Duration {
        if self.is_calm { Duration::from_millis(self.dice.below(20)) } else { self.dice.time() }
    }

    fn one_in(&mut self, bound: u64) -> bool {
        !self.is_calm && self.dice.one_in(bound)
    }
}

/// The loader. Its lock is held for a few instructions only.
#[derive(Debug)]
pub(super) struct World {
    truth: Mutex<Truth>,
    /// Models in anybody's hands.
    pub(super) alive: Arc<AtomicUsize>,
}

/// A fetch under way: it may be dropped at any time.
struct Fetching<'a> {
    world: &'a World,
    artefact: &'a ArtefactId,
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.world.truth().fetching.remove(self.artefact);
    }
}

fn failure(kind: ErrorKind) -> Failure {
    Failure::new(kind, "the dice say so")
}

/// A panic without words on the standard error.
fn panic_quietly() -> ! {
    resume_unwind(Box::new("the dice say so"))
}

fn footprint(bytes: u64) -> Footprint {
    Footprint { weights: Bytes(bytes), ..Footprint::default() }
}

fn kind(model: &ModelId) -> ModelKind {
    if model.target.as_str() == "e" { ModelKind::Handler } else { ModelKind::Embedding }
}

impl World {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        let truth = Truth {
            dice: Dice(seed),
            events: 0,
            violations: Vec::new(),
            is_calm: false,
            stored: vec![Some(1); MODELS.len()],
            store_fails: false,
            disk_is_full: false,
            on_disk: BTreeSet::new(),
            corrupt: BTreeSet::new(),
            quarantined: BTreeSet::new(),
            fit: BTreeSet::new(),
            forced: BTreeSet::new(),
            grown: BTreeMap::new(),
            foretold: BTreeMap::new(),
            fetching: BTreeSet::new(),
            once_fetched: BTreeSet::new(),
            placed: BTreeMap::new(),
            reporters: Vec::new(),
            copies: BTreeSet::new(),
            surprise: 0,
        };
        Arc::new(Self { truth: Mutex::new(truth), alive: Arc::default() })
    }

    pub(super) fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version in the store of one of the world's models.
    fn stored(&self, asked: &ModelId) -> Option<ArtefactId> {
        let at = MODELS.iter().position(|name| model(name) == *asked)?;
        Some(artefact(MODELS[at], self.truth().stored[at]?))
    }

    async fn take_time(&self) {
        let time = self.truth().time();
        // Some calls end within the poll in which they begin.
        if !time.is_zero() {
            sleep(time).await;
        }
        self.truth().events += 1;
    }

    /// The files come: the end of a fetch, one way or the other.
    fn arrive(&self, artefact: &ArtefactId) -> Result<Fetched, Failure> {
        let mut truth = self.truth();
        if !truth.on_disk.contains(artefact) {
            let is_gone = truth.corrupt.contains(artefact);
            if truth.store_fails || truth.one_in(30) {
                return Err(failure(ErrorKind::StoreUnavailable));
            }
            if truth.disk_is_full {
                return Err(failure(ErrorKind::Overloaded));
            }
            if is_gone {
                return Err(failure(ErrorKind::ModelInvalid));
            }
            truth.on_disk.insert(artefact.clone());
        }
        let bytes = truth.bytes(artefact);
        truth.foretold.insert(artefact.clone(), bytes);
        let footprint = footprint(bytes);
        let (kind, base) = (kind(&artefact.model), base(&artefact.model));
        Ok(Fetched {
            footprint,
            shared: Vec::new(),
            kind,
            off_cards: false,
            base,
            once: Duration::ZERO,
        })
    }

    fn begin_load(
        &self,
        artefact: &ArtefactId,
        device: DeviceId,
        source: LoadSource,
        on: Option<&Base<Signed>>,
    ) {
        let mut truth = self.truth();
        let onto = on.map(|base| base.artefact.clone());
        let is_its = onto.as_ref().map(|onto| &onto.model) == base(&artefact.model).as_ref();
        truth.must(is_its, || format!("{artefact} is loaded onto {onto:?}"));
        if let Some(Base { artefact: named, model }) = on {
            let is_same = model.artefact == *named && model.device == device;
            truth.must(is_same, || format!("{artefact} is given {model:?} for {named}"));
            let is_leaving = model.is_leaving.load(Ordering::SeqCst);
            truth.must(!is_leaving, || format!("{artefact} is loaded onto {named}, which leaves"));
        }
        let is_there = match source {
            LoadSource::Files => truth.on_disk.contains(artefact),
            // The fetch has begun; it may have ended by now, and how.
            LoadSource::Arriving => truth.once_fetched.contains(artefact),
            LoadSource::Host => truth.copies.contains(artefact),
        };
        truth.must(is_there, || format!("{artefact} is loaded from {source:?} without them"));
        let may_load = truth.fit.contains(artefact) || truth.forced.contains(&artefact.model);
        truth.must(may_load, || format!("{artefact} is quarantined, and nobody forced it"));
        let bytes = truth.foretold.get(artefact).copied().unwrap_or_default();
        let before = truth
            .placed
            .insert((artefact.clone(), device), Placed { bytes, is_loaded: false, onto });
        truth.must(before.is_none(), || format!("{artefact} is on {device} already"));
    }

    /// A load that began while its files were coming ends with them.
    async fn files(&self, artefact: &ArtefactId) -> bool {
        while self.truth().fetching.contains(artefact) {
            sleep(Duration::from_millis(10)).await;
        }
        self.truth().on_disk.contains(artefact)
    }
}

impl Loader for World {
    type Model = Signed;

    async fn resolve(&self, model: &ModelId, _refresh: bool) -> Result<Resolution, Failure> {
        self.take_time().await;
        if self.truth().one_in(100) {
            panic_quietly();
        }
        let stored = self.stored(model);
        let mut truth = self.truth();
        let (artefact, store) = if truth.store_fails {
            let last = truth.on_disk.iter().rfind(|artefact| artefact.model == *model);
            let unreached = failure(ErrorKind::StoreUnavailable);
            (last.cloned().ok_or(unreached.clone())?, InStore::Unreached(unreached))
        } else {
            (stored.ok_or(failure(ErrorKind::ModelNotFound))?, InStore::Same)
        };
        let bytes = truth.bytes(&artefact);
        truth.foretold.insert(artefact.clone(), bytes);
        let is_whole = truth.on_disk.contains(&artefact);
        let quarantined = truth.quarantined.contains(&artefact);
        if !quarantined {
            truth.fit.insert(artefact.clone());
        }
        let (is_known, streams) = (!truth.dice.one_in(3), truth.dice.one_in(3));
        let base = base(model).filter(|_| is_known);
        Ok(Resolution {
            fetch_bytes: Bytes(if is_whole { 0 } else { bytes }),
            footprint: is_known.then_some((footprint(bytes), Grade::Exact)),
            shared: Vec::new(),
            kind: is_known.then_some(kind(model)),
            off_cards: false,
            base,
            streams: streams && is_known,
            quarantined,
            version: artefact.version,
            standing: Standing { store, ..Standing::default() },
        })
    }

    async fn fetch(&self, artefact: &ArtefactId, _: &str) -> Result<Fetched, Failure> {
        self.truth().once_fetched.insert(artefact.clone());
        let is_first = self.truth().fetching.insert(artefact.clone());
        self.truth().must(is_first, || format!("{artefact} is fetched twice at once"));
        let _fetching = Fetching { world: self, artefact };
        let (hangs, panics) = {
            let mut truth = self.truth();
            (truth.one_in(60), truth.one_in(100))
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        self.take_time().await;
        if panics {
            panic_quietly();
        }
        self.arrive(artefact)
    }

    fn fetched_bytes(&self, artefact: &ArtefactId) -> Bytes {
        Bytes(self.truth().bytes(artefact) / 2)
    }

    async fn load(
        &self,
        artefact: &ArtefactId,
        device: DeviceId,
        source: LoadSource,
        base: Option<Base<Self::Model>>,
        reporter: Reporter,
    ) -> Result<Loaded<Signed>, Failure> {
        self.begin_load(artefact, device, source, base.as_ref());
        self.take_time().await;
        let came = source != LoadSource::Arriving || self.files(artefact).await;
        let at = (artefact.clone(), device);
        let mut truth = self.truth();
        if !came || truth.one_in(12) {
            truth.placed.remove(&at);
            truth.fit.remove(artefact);
            let panics = came && truth.one_in(6);
            drop(truth);
            if panics {
                panic_quietly();
            }
            return Err(failure(ErrorKind::ModelFailed));
        }
        if truth.one_in(40) {
            reporter.died(failure(ErrorKind::ModelFailed));
        }
        let mut bytes = truth.bytes(artefact);
        if truth.one_in(20) {
            bytes = bytes / 2 + truth.dice.below(bytes + 1);
        }
        truth.placed.get_mut(&at).expect("it was placed when the load began").is_loaded = true;
        truth.grows(&at, bytes);
        truth.reporters.push((artefact.clone(), device, reporter));
        self.alive.fetch_add(1, Ordering::SeqCst);
        let (is_leaving, alive) = (AtomicBool::new(false), Arc::clone(&self.alive));
        let model = Signed { artefact: artefact.clone(), device, is_leaving, alive };
        Ok(Loaded {
            model,
            footprint: footprint(bytes),
            shared: Vec::new(),
            once: Duration::ZERO,
            idle_ttl: None,
        })
    }

    async fn unload(
        &self,
        artefact: &ArtefactId,
        device: DeviceId,
        model: Arc<Signed>,
        demote: bool,
    ) -> Option<HostCopy> {
        let holders = Arc::strong_count(&model);
        model.is_leaving.store(true, Ordering::SeqCst);
        self.truth()
            .must(holders == 1, || format!("{artefact} is unloaded with {holders} holders"));
        let is_same = model.artefact == *artefact && model.device == device;
        self.truth().must(is_same, || format!("{artefact} is unloaded, {model:?} handed over"));
        let on_it = {
            let is_on = |(at, placed): &(&(ArtefactId, DeviceId), &Placed)| {
                at.1 == device && placed.onto.as_ref() == Some(artefact)
            };
            let truth = self.truth();
            truth.placed.iter().find(is_on).map(|(at, _)| at.0.clone())
        };
        self.truth().must(on_it.is_none(), || format!("{artefact} is unloaded under {on_it:?}"));
        self.take_time().await;
        drop(model);
        let mut truth = self.truth();
        let placed = truth.placed.remove(&(artefact.clone(), device));
        truth.fit.remove(artefact);
        truth.must(placed.is_some(), || format!("{artefact} is unloaded from {device} twice"));
        if truth.one_in(50) {
            drop(truth);
            panic_quietly();
        }
        if !demote || truth.one_in(10) {
            return None;
        }
        truth.copies.insert(artefact.clone());
        let footprint = footprint(placed.map_or(0, |placed| placed.bytes));
        Some(HostCopy { footprint, shared: Vec::new() })
    }

    async fn discard(&self, artefact: &ArtefactId) {
        self.take_time().await;
        let was_there = self.truth().copies.remove(artefact);
        self.truth().must(was_there, || format!("{artefact} has no copy to discard"));
    }
}

/// Any of the world's models.
pub(super) fn any_model(dice: &mut Dice) -> ModelId {
    let name: &&str = dice.pick(&MODELS);
    model(name)
}

/// Any version of any of them.
pub(super) fn any_artefact(dice: &mut Dice) -> ArtefactId {
    ArtefactId { model: any_model(dice), version: version(1 + dice.below(4)) }
}
