//! What the table promises about copies in the host's memory, one sentence each.

use std::time::{Duration, Instant};

use roundhouse_types::{
    Bytes, ContentId, DeviceId, ErrorKind, Failure, Footprint, ModelKind, SharedPart, Tier,
};

use super::bench::{Bench, footprint};
use crate::config::{Config, Policy};
use crate::decision::{Action, Departure};
use crate::loader::{Fetched, HostCopy, LoadSource, Loaded, Resolution, Standing};
use crate::table::sharing::whole;
use crate::table::view::HostLevel;
use crate::table::{Effect, Event, Key, Table, WaiterId};
use crate::testing::{artefact, model, version};

const DEVICE: DeviceId = DeviceId::Simulated(0);

/// A table with one device of 100 bytes that is not the host, and so much for copies.
pub(super) fn hosted(host_budget: u64) -> Bench {
    hosted_with(host_budget, Config { policy: Policy::LeastRecentlyUsed, ..Config::default() })
}

pub(super) fn hosted_with(host_budget: u64, config: Config) -> Bench {
    let now = Instant::now();
    let config = Config { host_budget: Bytes(host_budget), ..config };
    Bench { table: Table::new(config, vec![(DEVICE, Bytes(100))], now), now, waiters: 0 }
}

pub(super) fn at(name: &str) -> Key {
    Key { artefact: artefact(name, 1), device: DEVICE }
}

pub(super) fn base(bytes: u64) -> Vec<SharedPart> {
    vec![SharedPart { content: ContentId::from_digest([1; 32]), bytes: Bytes(bytes) }]
}

/// How an unload was asked for: whether it is to leave a copy.
pub(super) fn demotes(effects: &[Effect], name: &str) -> Option<bool> {
    effects.iter().find_map(|effect| match effect {
        Effect::Unload { key, demote } if *key == at(name) => Some(*demote),
        _ => None,
    })
}

pub(super) fn source(effects: &[Effect], name: &str) -> Option<LoadSource> {
    effects.iter().find_map(|effect| match effect {
        Effect::Load { key, source, .. } if *key == at(name) => Some(*source),
        _ => None,
    })
}

pub(super) fn discards(effects: &[Effect]) -> Vec<String> {
    let discards = effects.iter().filter_map(|effect| match effect {
        Effect::Discard { artefact } => Some(artefact.model.target.to_string()),
        _ => None,
    });
    discards.collect()
}

pub(super) fn fetches(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Fetch { .. }))
}

pub(super) fn tier(effects: &[Effect]) -> Option<Tier> {
    effects.iter().find_map(|effect| match effect {
        Effect::Grant(grant) => Some(grant.tier),
        _ => None,
    })
}

pub(super) fn why(effects: &[Effect]) -> Option<Departure> {
    effects.iter().find_map(|effect| match effect {
        Effect::Decided(decided) => match decided.action {
            Action::Discarded { why, .. } => Some(why),
            _ => None,
        },
        _ => None,
    })
}

impl Bench {
    pub(super) fn arrived(
        &mut self,
        name: &str,
        bytes: u64,
        shared: Vec<SharedPart>,
    ) -> Vec<Effect> {
        let loaded = Loaded {
            model: (),
            footprint: footprint(bytes),
            shared,
            once: Duration::ZERO,
            idle_ttl: None,
        };
        self.on(Event::Loaded { key: at(name), result: Ok(loaded) })
    }

    pub(super) fn let_go(&mut self, name: &str) -> Vec<Effect> {
        self.on(Event::Released { key: at(name) })
    }

    /// A resident of the device that nobody uses, loaded from its files.
    pub(super) fn on_device(&mut self, name: &str, bytes: u64) {
        self.sharing(name, bytes, Vec::new());
    }

    pub(super) fn sharing(&mut self, name: &str, bytes: u64, shared: Vec<SharedPart>) {
        self.acquire(name);
        self.resolved(name, bytes);
        self.fetched(name, bytes);
        self.arrived(name, bytes, shared);
        self.let_go(name);
    }

    /// A request for what is not on the device; the effects of its load's begin or wait.
    pub(super) fn wants(&mut self, name: &str, bytes: u64) -> Vec<Effect> {
        self.acquire(name);
        let mut effects = self.resolved(name, bytes);
        if fetches(&effects) {
            effects.extend(self.fetched(name, bytes));
        }
        effects
    }

    pub(super) fn left(&mut self, name: &str, copy: Option<HostCopy>) -> Vec<Effect> {
        self.on(Event::Unloaded { key: at(name), copy })
    }

    /// Its unload has ended and left a copy of its size.
    pub(super) fn demoted(&mut self, name: &str, bytes: u64) -> Vec<Effect> {
        self.left(name, Some(copy(bytes)))
    }

    /// Loads `name`, which the device has room for when `victim` has left it with a copy.
    pub(super) fn instead_of(&mut self, victim: &str, name: &str, bytes: u64) -> Vec<Effect> {
        let mut effects = self.wants(name, bytes);
        if demotes(&effects, victim) == Some(true) {
            effects.extend(self.demoted(victim, bytes));
        } else {
            effects.extend(self.left(victim, None));
        }
        effects.extend(self.arrived(name, bytes, Vec::new()));
        self.let_go(name);
        effects
    }

    pub(super) fn host(&self) -> HostLevel {
        self.table.levels().host
    }

    /// Bytes that copies are charged and promised.
    pub(super) fn host_bytes(&self) -> (u64, u64) {
        (self.host().charged.0, self.host().reserved.0)
    }

    pub(super) fn freed(&mut self, name: &str) -> Vec<Effect> {
        self.on(Event::Discarded { artefact: artefact(name, 1) })
    }

    pub(super) fn host_budget(&mut self, bytes: u64) -> Vec<Effect> {
        self.on(Event::HostBudgetChanged { budget: Bytes(bytes) })
    }
}

pub(super) fn copy(bytes: u64) -> HostCopy {
    HostCopy { footprint: footprint(bytes), shared: Vec::new() }
}

#[test]
fn a_model_that_made_room_comes_back_from_the_hosts_memory_without_a_fetch() {
    let mut bench = hosted(100);
    bench.on_device("a", 60);
    let effects = bench.wants("b", 60);
    assert_eq!(demotes(&effects, "a"), Some(true));
    assert_eq!(bench.host_bytes(), (0, 60), "promised until it is there");
    assert_eq!(source(&bench.demoted("a", 60), "b"), Some(LoadSource::Files));
    assert_eq!(bench.host_bytes(), (60, 0));
    bench.arrived("b", 60, Vec::new());
    bench.let_go("b");
    bench.acquire("a");
    let effects = bench.resolved("a", 60);
    assert!(!fetches(&effects));
    assert_eq!(demotes(&effects, "b"), Some(false), "40 are free");
    assert_eq!(source(&bench.left("b", None), "a"), Some(LoadSource::Host));
    assert_eq!(tier(&bench.arrived("a", 60, Vec::new())), Some(Tier::Host));
    assert_eq!(bench.host_bytes(), (60, 0), "the copy stays while nobody needs its room");
}

#[test]
fn a_copy_takes_weights_and_host_parts_and_no_cache() {
    let mut bench = hosted(70);
    bench.on_device("a", 60);
    let takes =
        Footprint { weights: Bytes(40), kv: Bytes(30), workspace: Bytes(5), host: Bytes(7) };
    bench.on(Event::Measured { key: at("a"), footprint: takes });
    assert_eq!(demotes(&bench.wants("b", 60), "a"), Some(true));
    assert_eq!(bench.host_bytes(), (0, 47));
}

#[test]
fn a_device_that_is_the_host_leaves_no_copies() {
    let config = Config { host_budget: Bytes(100), ..Config::default() };
    let mut bench = super::bench::bench_with(config);
    bench.resident("a", 60);
    bench.acquire("b");
    bench.resolved("b", 60);
    let effects = bench.fetched("b", 60);
    let demotes = |effect: &Effect| matches!(effect, Effect::Unload { demote: true, .. });
    assert!(super::bench::unloads(&effects, &super::bench::key("a")));
    assert!(!effects.iter().any(demotes));
}

#[test]
fn a_handler_leaves_no_copy() {
    let mut bench = hosted(100);
    bench.acquire("a");
    bench.resolved("a", 60);
    bench.fetched_as(ModelKind::Handler, "a", 60);
    bench.arrived("a", 60, Vec::new());
    bench.let_go("a");
    assert_eq!(demotes(&bench.wants("b", 60), "a"), Some(false));
}

#[test]
fn leaving_a_copy_that_is_there_costs_nothing() {
    let mut bench = hosted(120);
    for (victim, name) in [("a", "b"), ("b", "a"), ("a", "b"), ("b", "a")] {
        if victim == "a" && bench.host().copies == 0 {
            bench.on_device("a", 60);
        }
        bench.instead_of(victim, name, 60);
    }
    assert_eq!(bench.host_bytes(), (120, 0));
    let effects = bench.wants("b", 60);
    assert_eq!((demotes(&effects, "a"), bench.host_bytes()), (Some(true), (120, 0)));
    assert_eq!(source(&bench.demoted("a", 60), "b"), Some(LoadSource::Host));
    assert_eq!((bench.host_bytes(), bench.host().copies), ((120, 0), 2));
}

#[test]
fn after_a_load_from_a_copy_that_failed_the_next_is_made_from_the_files() {
    let mut bench = hosted(100);
    bench.on_device("a", 60);
    bench.instead_of("a", "b", 60);
    bench.acquire("a");
    bench.resolved("a", 60);
    assert_eq!(source(&bench.left("b", None), "a"), Some(LoadSource::Host));
    let failure = Failure::new(ErrorKind::ModelInvalid, "a bad tensor");
    let effects = bench.on(Event::Loaded { key: at("a"), result: Err(failure) });
    assert_eq!((discards(&effects), why(&effects)), (vec!["a".into()], Some(Departure::Failed)));
    bench.now += Duration::from_secs(2);
    bench.acquire("a");
    assert!(fetches(&bench.resolved("a", 60)), "also while it is still leaving");
    assert_eq!(source(&bench.fetched("a", 60), "a"), Some(LoadSource::Files));
}

#[test]
fn a_copy_of_a_quarantined_version_is_not_used() {
    let mut bench = hosted(100);
    bench.on_device("a", 60);
    bench.instead_of("a", "b", 60);
    let (waiter, hold_until) = (WaiterId(900), bench.now + Duration::from_secs(9));
    let options = crate::table::LoadOptions { evict: true, force: true };
    bench.on(Event::LoadRequested { waiter, model: model("a"), hold_until, options });
    let resolution = Resolution {
        version: version(1),
        fetch_bytes: Bytes(60),
        footprint: None,
        shared: Vec::new(),
        kind: None,
        off_cards: false,
        base: None,
        streams: false,
        quarantined: true,
        standing: Standing::default(),
    };
    assert!(fetches(&bench.on(Event::Resolved { model: model("a"), result: Ok(resolution) })));
}

/// The store's answer where it cannot tell what the model takes.
fn resolved_blindly(bench: &mut Bench, name: &str) -> Vec<Effect> {
    let resolution = Resolution {
        version: version(1),
        fetch_bytes: Bytes(60),
        footprint: None,
        shared: Vec::new(),
        kind: None,
        off_cards: false,
        base: None,
        streams: false,
        quarantined: false,
        standing: Standing::default(),
    };
    bench.on(Event::Resolved { model: model(name), result: Ok(resolution) })
}

#[test]
fn a_copy_knows_what_a_fetch_would_tell() {
    for budget in [100, 65] {
        let mut bench = hosted(100);
        bench.on_device("a", 60);
        bench.on(Event::Measured { key: at("a"), footprint: footprint(70) });
        assert_eq!(demotes(&bench.wants("b", 60), "a"), Some(true));
        bench.demoted("a", 70);
        bench.arrived("b", 60, Vec::new());
        bench.let_go("b");
        bench.on(Event::BudgetChanged { device: DEVICE, budget: Bytes(budget) });
        bench.acquire("a");
        let effects = resolved_blindly(&mut bench, "a");
        if budget == 65 {
            assert!(fetches(&effects), "it had grown; its files may need less");
            continue;
        }
        let job = &bench.table.jobs[&artefact("a", 1)];
        assert_eq!((whole(job), job.fetch_bytes), (Bytes(70), Bytes::ZERO));
        bench.left("b", None);
        bench.arrived("a", 70, Vec::new());
        assert_eq!(bench.table.residents[&at("a")].kind, ModelKind::Embedding);
    }
}

#[test]
fn an_unload_that_left_no_copy_gives_the_promise_back() {
    let mut bench = hosted(100);
    bench.on_device("a", 60);
    assert_eq!(demotes(&bench.wants("b", 60), "a"), Some(true));
    bench.left("a", None);
    assert_eq!((bench.host_bytes(), bench.host().copies), ((0, 0), 0));
}

#[test]
fn a_copy_is_charged_with_what_it_takes() {
    let mut bench = hosted(100);
    bench.on_device("a", 60);
    bench.wants("b", 60);
    assert!(discards(&bench.demoted("a", 66)).is_empty());
    assert_eq!(bench.host_bytes(), (66, 0));
    bench.arrived("b", 60, Vec::new());
    bench.let_go("b");
    let mut bench = hosted(60);
    bench.on_device("a", 60);
    bench.wants("b", 60);
    assert_eq!(discards(&bench.demoted("a", 66)), ["a"], "more than there is cannot stay");
}

#[test]
fn content_that_copies_have_in_common_is_charged_once() {
    let mut bench = hosted(100);
    bench.sharing("a", 50, base(30));
    bench.sharing("b", 50, base(30));
    let copy = HostCopy { footprint: footprint(50), shared: base(30) };
    bench.wants("c", 50);
    bench.left("a", Some(copy.clone()));
    assert_eq!(bench.host_bytes(), (50, 0));
    bench.arrived("c", 50, Vec::new());
    bench.wants("d", 50);
    assert_eq!(bench.host_bytes(), (50, 20), "of the second only what the first has not brought");
    bench.host_budget(60);
    bench.freed("a");
    assert_eq!(bench.host_bytes(), (30, 20), "the second counts on the rest");
    bench.left("b", Some(copy));
    assert_eq!(bench.host_bytes(), (50, 0));
}

#[test]
fn people_are_told_of_copies() {
    let mut bench = hosted(100);
    bench.on_device("a", 60);
    bench.instead_of("a", "b", 60);
    let (sentence, _) = bench.table.standing(&model("a"));
    assert_eq!(sentence, "not loaded; a copy is in host memory");
    let clocks = crate::snapshot::Clocks {
        instant: bench.now,
        wall: std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(5),
    };
    let host = bench.table.snapshot(&clocks).host.expect("it has a budget");
    let copy = serde_json::to_value(&host.copies[0]).unwrap();
    assert_eq!(copy["target"], "a");
    assert_eq!((&copy["state"], &copy["in_use"]), (&"ready".into(), &false.into()));
    assert_eq!(copy["bytes"]["weights"], 60);
    assert_eq!(host.charged_bytes, Bytes(60));
    assert!(super::bench::bench().table.snapshot(&clocks).host.is_none());
}

#[test]
fn how_long_a_load_from_a_copy_takes_is_learned_apart() {
    let mut bench = hosted(100);
    let load = |bench: &mut Bench, name: &str, seconds: u64| {
        bench.wants(name, 60);
        let victim = if name == "a" { "b" } else { "a" };
        if bench.table.residents.get(&at(victim)).is_some() {
            bench.demoted(victim, 60);
        }
        bench.now += Duration::from_secs(seconds);
        bench.arrived(name, 60, Vec::new());
        bench.let_go(name);
    };
    // From files: 6 bytes a second. From the copy: 30.
    load(&mut bench, "a", 10);
    load(&mut bench, "b", 10);
    bench.host_budget(200);
    bench.wants("a", 60);
    bench.demoted("b", 60);
    bench.now += Duration::from_secs(2);
    bench.arrived("a", 60, Vec::new());
    bench.let_go("a");
    bench.wants("b", 60);
    let (_, ready_in) = bench.table.standing(&model("b"));
    assert_eq!(ready_in, Some(Duration::from_secs(2)), "it has a copy");
    bench.demoted("a", 60);
    bench.acquire("c");
    bench.resolved("c", 30);
    bench.fetched("c", 30);
    let fetched = Fetched {
        footprint: footprint(30),
        shared: Vec::new(),
        kind: ModelKind::Embedding,
        off_cards: false,
        base: None,
        once: Duration::ZERO,
    };
    bench.on(Event::Fetched { artefact: artefact("c", 1), result: Ok(fetched) });
    let (_, ready_in) = bench.table.standing(&model("c"));
    assert_eq!(ready_in, Some(Duration::from_secs(5)), "it has none");
}
