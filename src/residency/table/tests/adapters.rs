//! Adapters on their way to a device: their base comes first, one sentence each.

use std::time::Duration;

use roundhouse_types::{Bytes, ErrorKind, Failure, Grade, ModelKind};

use super::bench::{Bench, bench, bench_with, footprint, granted, key, key_of, loads, unloads};
use crate::config::{Config, TenantLimits};
use crate::loader::{Fetched, LoadSource, Resolution, Standing};
use crate::table::{Effect, Event, Key, LoadOptions, WaiterId};
use crate::testing::{artefact, model, version};

impl Bench {
    /// The store's answer about an adapter of this base; nothing of it is on disk.
    pub(super) fn found(&mut self, name: &str, number: u64, bytes: u64, base: &str) -> Vec<Effect> {
        self.found_with(name, number, bytes, Some(base), true)
    }

    /// As above; without a footprint nothing is known before the fetch.
    fn found_with(
        &mut self,
        name: &str,
        number: u64,
        bytes: u64,
        base: Option<&str>,
        is_known: bool,
    ) -> Vec<Effect> {
        let resolution = Resolution {
            version: version(number),
            fetch_bytes: Bytes(bytes),
            footprint: is_known.then_some((footprint(bytes), Grade::Exact)),
            shared: Vec::new(),
            kind: is_known.then_some(ModelKind::Generative),
            off_cards: false,
            base: base.map(model),
            streams: true,
            quarantined: false,
            standing: Standing::default(),
        };
        self.on(Event::Resolved { model: model(name), result: Ok(resolution) })
    }

    /// An adapter's files are on disk.
    pub(super) fn brought(
        &mut self,
        name: &str,
        number: u64,
        bytes: u64,
        base: &str,
    ) -> Vec<Effect> {
        let (footprint, base) = (footprint(bytes), Some(model(base)));
        let fetched = Fetched {
            footprint,
            shared: Vec::new(),
            kind: ModelKind::Generative,
            off_cards: false,
            base,
            once: Duration::ZERO,
        };
        self.on(Event::Fetched { artefact: artefact(name, number), result: Ok(fetched) })
    }

    /// An adapter that nobody uses, on a base that serves.
    pub(super) fn adapter(&mut self, name: &str, bytes: u64, base: &str) {
        self.acquire(name);
        self.found(name, 1, bytes, base);
        self.brought(name, 1, bytes, base);
        let effects = self.loaded(name, bytes);
        assert_eq!(granted(&effects).len(), 1, "{name} serves");
        self.released(name);
    }
}

pub(super) fn refusals(effects: &[Effect]) -> Vec<Failure> {
    let refused = effects.iter().filter_map(|effect| match effect {
        Effect::Refuse { failure, .. } => Some(failure.clone()),
        _ => None,
    });
    refused.collect()
}

fn asks(effects: &[Effect], name: &str) -> bool {
    effects
        .iter()
        .any(|it| matches!(it, Effect::Resolve { model: other, .. } if *other == model(name)))
}

pub(super) fn fetches(effects: &[Effect], name: &str) -> bool {
    let is_it =
        |it: &Effect| matches!(it, Effect::Fetch { artefact, .. } if artefact.model == model(name));
    effects.iter().any(is_it)
}

/// What an adapter is loaded onto, and from where.
pub(super) fn onto(effects: &[Effect], adapter: &Key) -> Option<(Option<Key>, LoadSource)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Load { key, source, base } if key == adapter => {
            let device = key.device;
            Some((base.clone().map(|artefact| Key { artefact, device }), *source))
        }
        _ => None,
    })
}

fn gone(why: &str) -> Failure {
    Failure::new(ErrorKind::StoreUnavailable, why)
}

#[test]
fn a_request_for_an_adapter_has_its_base_loaded_while_its_own_files_come() {
    let mut bench = bench();
    bench.acquire("x");
    let effects = bench.found("x", 1, 5, "b");
    assert!(asks(&effects, "b") && fetches(&effects, "x"), "both begin at once");
    assert!(fetches(&bench.resolved("b", 40), "b"));
    let effects = bench.brought("x", 1, 5, "b");
    assert_eq!(onto(&effects, &key("x")), None, "its base is not there");
    let (now, _) = bench.table.standing(&model("x"));
    assert!(now.starts_with("its base is loading"), "{now}");
    assert!(loads(&bench.fetched("b", 40), &key("b")));
    let effects = bench.loaded("b", 40);
    assert_eq!(onto(&effects, &key("x")), Some((Some(key("b")), LoadSource::Files)));
    assert_eq!(granted(&bench.loaded("x", 5)), [1]);
    let (now, _) = bench.table.standing(&model("x"));
    assert!(now.contains("on its base test:b@"), "{now}");
}

#[test]
fn an_adapter_that_only_its_fetch_shows_to_be_one_waits_for_its_base_then() {
    let mut bench = bench();
    bench.acquire("x");
    assert!(!asks(&bench.found_with("x", 1, 5, None, false), "b"));
    let effects = bench.brought("x", 1, 5, "b");
    assert!(asks(&effects, "b"));
    bench.resolved("b", 40);
    bench.fetched("b", 40);
    assert_eq!(onto(&bench.loaded("b", 40), &key("x")).unwrap().0, Some(key("b")));
}

#[test]
fn an_adapter_whose_files_arrive_waits_for_them_and_its_base() {
    let mut bench = bench();
    bench.resident("b", 40);
    bench.acquire("x");
    let effects = bench.found("x", 1, 5, "b");
    assert_eq!(onto(&effects, &key("x")), None, "nothing is read behind the fetch");
    let effects = bench.brought("x", 1, 5, "b");
    assert_eq!(onto(&effects, &key("x")), Some((Some(key("b")), LoadSource::Files)));
}

#[test]
fn many_adapters_of_a_cold_base_have_it_loaded_once_and_before_other_models() {
    let mut bench = bench_with(Config { max_loads: 1, ..Config::default() });
    bench.acquire("other");
    for name in ["x", "y", "z"] {
        bench.acquire(name);
        bench.found(name, 1, 5, "b");
        bench.brought(name, 1, 5, "b");
    }
    bench.resolved("other", 20);
    bench.resolved("b", 40);
    // Three wait for the base, one for the other.
    let effects = bench.fetched("b", 40);
    assert!(loads(&effects, &key("b")));
    assert!(!loads(&bench.fetched("other", 20), &key("other")));
}

#[test]
fn a_base_that_cannot_be_had_is_told_to_the_adapters_callers_and_not_held_against_them() {
    let mut bench = bench();
    bench.acquire("x");
    bench.found("x", 1, 5, "b");
    let result = Err(gone("no route to the store"));
    let refused = refusals(&bench.on(Event::Resolved { model: model("b"), result }));
    let told = "test:x cannot be loaded without its base test:b: no route to the store";
    assert_eq!(refused.iter().map(Failure::message).collect::<Vec<_>>(), [told]);
    assert_eq!(refused[0].kind(), ErrorKind::StoreUnavailable);
    assert!(bench.table.models.peek(&model("x")).unwrap().trouble.is_none());
    // While the base's pause lasts, the base is what is told.
    assert!(asks(&bench.acquire("x"), "x"));
    assert_eq!(refusals(&bench.found("x", 1, 5, "b"))[0].message(), told);
    bench.now += std::time::Duration::from_secs(2);
    bench.acquire("x");
    assert!(asks(&bench.found("x", 1, 5, "b"), "b"), "and it is tried again after that");
}

#[test]
fn where_a_missing_base_was_looked_for_is_not_told_to_its_adapters_callers() {
    let mut bench = bench();
    bench.acquire("x");
    bench.found("x", 1, 5, "b");
    let result = Err(Failure::new(ErrorKind::ModelNotFound, "model 'b' is not in s3://bucket/"));
    let refused = refusals(&bench.on(Event::Resolved { model: model("b"), result }));
    let told = "test:x cannot be loaded without its base test:b: it is not there";
    assert_eq!(refused.iter().map(Failure::message).collect::<Vec<_>>(), [told]);
    assert_eq!(refused[0].kind(), ErrorKind::ModelInvalid);
}

#[test]
fn a_base_that_fails_to_load_fails_all_that_wait_for_it_once() {
    let mut bench = bench();
    for name in ["x", "y"] {
        bench.acquire(name);
        bench.found(name, 1, 5, "b");
    }
    bench.resolved("b", 40);
    bench.fetched("b", 40);
    let result = Err(Failure::new(ErrorKind::ModelInvalid, "a bad tensor"));
    let refused = refusals(&bench.on(Event::Loaded { key: key("b"), result }));
    assert_eq!(refused.len(), 2);
    for failure in refused {
        assert!(failure.message().ends_with("its base test:b: a bad tensor"), "{failure}");
    }
    assert!(bench.table.jobs.is_empty());
}

#[test]
fn a_base_that_the_store_does_not_hold_makes_the_adapter_invalid_not_unknown() {
    let mut bench = bench();
    bench.acquire("x");
    bench.found("x", 1, 5, "b");
    let result = Err(Failure::new(ErrorKind::ModelNotFound, "no such model"));
    let refused = refusals(&bench.on(Event::Resolved { model: model("b"), result }));
    assert_eq!(refused[0].kind(), ErrorKind::ModelInvalid);
}

#[test]
fn an_adapter_of_itself_is_refused_by_name() {
    let mut bench = bench();
    bench.acquire("x");
    let refused = refusals(&bench.found("x", 1, 5, "x"));
    assert_eq!(refused[0].message(), "test:x names itself as its base");
    assert!(bench.table.jobs.is_empty());
}

#[test]
fn an_adapter_of_an_adapter_is_refused_before_anything_is_loaded_for_it() {
    let mut bench = bench();
    bench.acquire("x");
    bench.found("x", 1, 5, "y");
    let effects = bench.found("y", 1, 5, "b");
    let refused = refusals(&effects);
    assert_eq!(refused[0].message(), "the base of test:x is test:y, which is an adapter itself");
    assert!(!asks(&effects, "b") && bench.table.jobs.is_empty());
    // One that serves is known to be one at once.
    bench.resident("b", 40);
    bench.adapter("y", 5, "b");
    bench.now += std::time::Duration::from_secs(60);
    bench.acquire("z");
    assert_eq!(refusals(&bench.found("z", 1, 5, "y")).len(), 1);
}

#[test]
fn what_fits_no_device_beside_its_base_is_refused_by_name_and_nobody_leaves() {
    let mut bench = bench();
    bench.resident("old", 90);
    bench.acquire("x");
    bench.found("x", 1, 30, "b");
    let effects = bench.resolved("b", 80);
    let told = "test:x needs 30 B beside its base test:b, which needs 80 B, and no device may use \
                as much: cpu 100 B";
    assert_eq!(refusals(&effects)[0].message(), told);
    assert!(!unloads(&effects, &key("old")));
    assert!(bench.table.jobs.is_empty(), "nobody waits for the base");
    assert!(!unloads(&bench.fetched("b", 80), &key("old")));
}

#[test]
fn what_its_tenant_may_not_take_together_with_its_base_is_refused_by_name() {
    let limits = TenantLimits { ceiling: Some(Bytes(60)), ..TenantLimits::default() };
    let tenants = [("t".to_owned(), limits)].into_iter().collect();
    let mut bench = bench_with(Config { tenants, ..Config::default() });
    bench.acquire("t/x");
    bench.found("t/x", 1, 20, "t/b");
    let effects = bench.resolved("t/b", 50);
    let told = "test:t/x needs 20 B beside its base test:t/b, which needs 50 B, and tenant 't' may \
                take 60 B";
    assert_eq!(refusals(&effects)[0].message(), told);
    assert!(bench.table.jobs.is_empty());
}

#[test]
fn what_the_base_leaves_too_little_room_for_now_may_come_later() {
    let mut bench = bench();
    bench.resident("b", 40);
    bench.on(Event::BudgetChanged { device: key("b").device, budget: Bytes(50) });
    bench.acquire("x");
    let refused = refusals(&bench.found("x", 1, 20, "b"));
    let told = "test:x needs 20 B beside its base test:b: for now that leaves it cpu 10 B";
    assert_eq!((refused[0].message(), refused[0].kind()), (told, ErrorKind::NotReady));
}

#[test]
fn a_load_that_must_not_evict_has_no_base_evict_for_it() {
    let mut bench = bench();
    bench.resident("old", 60);
    let (waiter, hold_until) = (WaiterId(100), bench.now + std::time::Duration::from_secs(30));
    let options = LoadOptions { evict: false, force: false };
    bench.on(Event::LoadRequested { waiter, model: model("x"), hold_until, options });
    bench.found("x", 1, 5, "b");
    let effects = bench.resolved("b", 50);
    assert!(!unloads(&effects, &key("old")));
    let told = "test:x cannot be loaded without its base test:b: no room now for test:b";
    assert!(refusals(&effects)[0].message().starts_with(told), "{:?}", refusals(&effects));
}

#[test]
fn an_operators_refresh_brings_the_base_of_an_adapter_that_nobody_waited_for_any_more() {
    let mut bench = bench();
    bench.acquire("x");
    bench.found("x", 1, 5, "b");
    bench.resolved("b", 40);
    bench.on(Event::Cancelled { waiter: WaiterId(1) });
    let hold_until = bench.now + std::time::Duration::from_secs(30);
    let waiter = WaiterId(100);
    bench.on(Event::UnloadRequested { waiter, model: model("b"), hold_until });
    assert_eq!(bench.table.jobs.len(), 1, "the base was given up, the adapter's fetch goes on");
    let waiter = WaiterId(101);
    bench.on(Event::RefreshRequested { waiter, model: model("x"), hold_until });
    assert!(asks(&bench.found("x", 1, 5, "b"), "b"));
}

#[test]
fn a_new_version_of_an_adapter_loads_beside_the_old_and_ends_its_requests_on_it() {
    let mut bench = bench();
    bench.resident("b", 40);
    bench.adapter("x", 5, "b");
    bench.now += std::time::Duration::from_secs(60);
    let effects = bench.acquire("x");
    assert_eq!(granted(&effects).len(), 1);
    assert!(asks(&effects, "b"), "nobody else may ask for the base by name");
    bench.found("x", 2, 6, "b");
    let effects = bench.brought("x", 2, 6, "b");
    assert_eq!(onto(&effects, &key_of("x", 2)).unwrap().0, Some(key("b")));
    assert!(!unloads(&bench.loaded_version("x", 2, 6), &key("x")), "a request runs on it");
    let effects = bench.acquire("x");
    assert!(
        effects.iter().any(|it| matches!(it, Effect::Grant(grant) if grant.key == key_of("x", 2)))
    );
    assert!(unloads(&bench.released("x"), &key("x")));
}
