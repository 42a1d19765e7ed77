//! Bases and what is on them: who stays for whom, who leaves with whom, one sentence each.

use std::time::{Duration, SystemTime};

use roundhouse_types::{Bytes, DeviceId, ErrorKind, Failure, Tier};

use super::adapters::{fetches, onto, refusals};
use super::bench::{Bench, bench, bench_with, footprint, granted, key, key_of, loads, unloads};
use super::copies::{demotes, discards, tier, why};
use super::devices::{FIRST, SECOND};
use crate::config::{Config, Policy, Replicas};
use crate::decision::{Action, Departure};
use crate::loader::LoadSource;
use crate::snapshot::{Clocks, ResidentSnapshot};
use crate::table::state::{Purpose, State};
use crate::table::{Effect, Event, Key, LeftWith, Report, Table, WaiterId};
use crate::testing::{artefact, model};

fn state(bench: &Bench, key: &Key) -> State {
    bench.table.residents[key].state
}

fn shown(bench: &Bench, name: &str) -> ResidentSnapshot {
    let clocks = Clocks { instant: bench.now, wall: SystemTime::UNIX_EPOCH };
    let snapshot = bench.table.snapshot(&clocks);
    snapshot.ready(&model(name)).expect("it serves").clone()
}

/// A base of 60 bytes with two idle adapters of 10.
fn loaded_base() -> Bench {
    let mut bench = bench();
    bench.resident("b", 60);
    bench.adapter("x", 10, "b");
    bench.adapter("y", 10, "b");
    bench
}

#[test]
fn an_adapter_leaves_for_another_and_their_base_stays() {
    let mut bench = loaded_base();
    bench.acquire("z");
    bench.found("z", 1, 25, "b");
    let effects = bench.brought("z", 1, 25, "b");
    assert!(unloads(&effects, &key("x")), "the one used least of late");
    assert!(!unloads(&effects, &key("y")) && !unloads(&effects, &key("b")));
    assert_eq!(onto(&bench.unloaded("x"), &key("z")).unwrap().0, Some(key("b")));
}

#[test]
fn a_base_leaves_after_all_of_its_adapters_have() {
    let mut bench = loaded_base();
    bench.acquire("c");
    bench.resolved("c", 90);
    let effects = bench.fetched("c", 90);
    assert!(unloads(&effects, &key("x")) && unloads(&effects, &key("y")));
    assert!(!unloads(&effects, &key("b")), "they are still on it");
    assert!(!unloads(&bench.unloaded("y"), &key("b")));
    assert!(unloads(&bench.unloaded("x"), &key("b")));
    assert!(loads(&bench.unloaded("b"), &key("c")), "its room is what they freed together");
}

#[test]
fn a_base_in_use_by_an_adapter_drains_like_one_in_use_itself() {
    let mut bench = loaded_base();
    bench.acquire("y");
    bench.acquire("c");
    bench.resolved("c", 90);
    bench.fetched("c", 90);
    assert_eq!(state(&bench, &key("y")), State::Draining(Departure::Evicted));
    assert_eq!(state(&bench, &key("b")), State::Draining(Departure::Evicted));
    assert!(granted(&bench.acquire("y")).is_empty(), "it takes no new requests");
    bench.unloaded("x");
    assert!(unloads(&bench.released("y"), &key("y")));
    assert!(unloads(&bench.unloaded("y"), &key("b")));
}

#[test]
fn a_base_whose_room_is_not_needed_any_more_serves_again_with_its_adapters() {
    let mut bench = loaded_base();
    bench.acquire("y");
    bench.acquire("c");
    bench.resolved("c", 90);
    bench.fetched("c", 90);
    bench.unloaded("x");
    // The device has room for all of them now.
    bench.on(Event::BudgetChanged { device: DeviceId::Cpu, budget: Bytes(200) });
    assert_eq!(state(&bench, &key("b")), State::Ready);
    assert_eq!(granted(&bench.acquire("y")).len(), 1);
}

#[test]
fn a_kept_adapter_keeps_its_base_for_as_long_as_it_is_on_it() {
    let mut bench = loaded_base();
    bench.on(Event::KeepChanged { model: model("x"), kept: true });
    bench.acquire("c");
    bench.resolved("c", 60);
    let effects = bench.fetched("c", 60);
    assert!(!unloads(&effects, &key("b")) && !unloads(&effects, &key("y")));
    let effects = bench.on(Event::KeepChanged { model: model("x"), kept: false });
    assert!(unloads(&effects, &key("x")));
}

#[test]
fn what_uses_an_adapter_uses_its_base() {
    let ttl = Duration::from_secs(10);
    let mut bench = bench_with(Config { idle_ttl: Some(ttl), ..Config::default() });
    bench.resident("b", 40);
    bench.adapter("x", 10, "b");
    for _ in 0..3 {
        bench.now += Duration::from_secs(8);
        assert_eq!(granted(&bench.acquire("x")).len(), 1);
        bench.released("x");
        bench.on(Event::Resolved { model: model("x"), result: Err(down()) });
        bench.on(Event::Resolved { model: model("b"), result: Err(down()) });
    }
    let uses = bench.table.demand(&model("b")).uses_percent;
    assert!(uses > bench.table.demand(&model("x")).uses_percent, "{uses}");
    bench.now += ttl;
    let effects = bench.on(Event::TimePassed);
    assert!(unloads(&effects, &key("x")) && !unloads(&effects, &key("b")));
    bench.now += Duration::from_secs(3);
    assert!(!unloads(&bench.unloaded("x"), &key("b")), "it was in use until now");
    bench.now += ttl;
    assert!(unloads(&bench.on(Event::TimePassed), &key("b")));
}

fn down() -> Failure {
    Failure::new(ErrorKind::StoreUnavailable, "no answer")
}

#[test]
fn adapters_serve_on_the_old_version_of_their_base_until_it_drains_and_come_back_on_the_new() {
    let mut bench = bench();
    bench.resident("b", 30);
    bench.adapter("x", 10, "b");
    bench.now += Duration::from_secs(60);
    bench.acquire("x");
    bench.resolved_version("b", 2, 30);
    bench.fetched_version("b", 2, 30);
    let before = granted(&bench.acquire("x"));
    assert_eq!(before.len(), 1, "the old one serves while the new one loads");
    bench.loaded_version("b", 2, 30);
    assert_eq!(state(&bench, &key("x")), State::Draining(Departure::Base));
    let (now, _) = bench.table.standing(&model("x"));
    assert!(now.contains("leaving the device, 2 leases"), "{now}");
    assert!(granted(&bench.acquire("x")).is_empty());
    bench.released("x");
    assert!(unloads(&bench.released("x"), &key("x")));
    assert!(unloads(&bench.unloaded("x"), &key("b")));
    bench.found("x", 1, 10, "b");
    let effects = bench.brought("x", 1, 10, "b");
    assert_eq!(onto(&effects, &key("x")).unwrap().0, Some(key_of("b", 2)));
}

#[test]
fn an_adapter_that_is_loading_when_its_base_begins_to_leave_leaves_with_it() {
    let mut bench = bench();
    bench.resident("b", 30);
    bench.acquire("x");
    bench.found("x", 1, 10, "b");
    bench.brought("x", 1, 10, "b");
    let failure = Failure::new(ErrorKind::ModelFailed, "the workers are gone");
    let effects = bench.on(Event::Died { key: key("b"), failure });
    assert!(!unloads(&effects, &key("b")), "a load counts on it");
    let effects = bench.loaded("x", 10);
    assert!(unloads(&effects, &key("x")) && granted(&effects).is_empty());
    let effects = bench.unloaded("x");
    assert!(unloads(&effects, &key("b")));
}

#[test]
fn a_load_that_fails_on_a_leaving_base_lets_it_go() {
    let mut bench = bench();
    bench.resident("b", 30);
    bench.acquire("x");
    bench.found("x", 1, 10, "b");
    bench.brought("x", 1, 10, "b");
    let failure = Failure::new(ErrorKind::ModelFailed, "the workers are gone");
    bench.on(Event::Died { key: key("b"), failure });
    let result = Err(Failure::new(ErrorKind::ModelInvalid, "another shape"));
    let effects = bench.on(Event::Loaded { key: key("x"), result });
    assert_eq!(refusals(&effects)[0].message(), "another shape");
    assert!(unloads(&effects, &key("b")));
}

#[test]
fn an_operators_unload_of_a_base_takes_its_adapters_along_and_names_them() {
    let mut bench = loaded_base();
    bench.on(Event::KeepChanged { model: model("y"), kept: true });
    let (waiter, hold_until) = (WaiterId(100), bench.now + Duration::from_secs(30));
    let effects = bench.on(Event::UnloadRequested { waiter, model: model("b"), hold_until });
    let is_told = |it: &Effect| {
        matches!(it, Effect::Decided(decided) if decided.model == model("x")
            && matches!(decided.action, Action::Draining { why: Departure::Base, .. }))
    };
    assert!(effects.iter().any(is_told));
    bench.unloaded("x");
    assert!(unloads(&bench.unloaded("y"), &key("b")));
    let effects = bench.unloaded("b");
    let reports = effects.iter().filter_map(|effect| match effect {
        Effect::Report { report: Report::Unloaded(report), .. } => Some(report.adapters.clone()),
        _ => None,
    });
    let left = |name, kept| LeftWith { artefact: artefact(name, 1), kept };
    assert_eq!(reports.collect::<Vec<_>>(), [[left("x", false), left("y", true)]]);
    assert!(bench.table.is_kept(&model("y")), "it was not what was named");
}

#[test]
fn a_smaller_budget_sends_adapters_away_before_their_base() {
    let mut bench = loaded_base();
    let shrink = |to| Event::BudgetChanged { device: DeviceId::Cpu, budget: Bytes(to) };
    let effects = bench.on(shrink(70));
    assert!(unloads(&effects, &key("x")) && !unloads(&effects, &key("b")));
    let effects = bench.on(shrink(50));
    assert!(unloads(&effects, &key("y")) && !unloads(&effects, &key("b")));
    bench.unloaded("x");
    assert!(unloads(&bench.unloaded("y"), &key("b")));
}

#[test]
fn the_end_of_the_server_unloads_adapters_before_their_base() {
    let mut bench = loaded_base();
    let effects = bench.on(Event::ShutdownBegan);
    assert!(unloads(&effects, &key("x")) && !unloads(&effects, &key("b")));
    bench.unloaded("x");
    assert!(unloads(&bench.unloaded("y"), &key("b")));
}

#[test]
fn a_base_shows_how_many_are_on_it_and_an_adapter_what_it_is_on() {
    let bench = loaded_base();
    assert_eq!((shown(&bench, "b").adapters, shown(&bench, "b").base), (2, None));
    assert_eq!((shown(&bench, "x").adapters, shown(&bench, "x").base), (0, Some(artefact("b", 1))));
}

#[test]
fn an_unused_base_whose_adapters_are_gone_goes_by_its_own_worth() {
    let mut bench = loaded_base();
    bench.resident("other", 10);
    // The adapters are older than both; the base was used with them.
    bench.acquire("c");
    bench.resolved("c", 30);
    let effects = bench.fetched("c", 30);
    let (leave, stay) = (["x", "y"], ["b"]);
    assert!(leave.iter().all(|name| unloads(&effects, &key(name))), "{effects:?}");
    assert!(stay.iter().all(|name| !unloads(&effects, &key(name))));
}

/// A table with two devices of their own memory, an adapter's base on the first.
fn two_devices(first: u64, second: u64, host: u64) -> Bench {
    let config =
        Config { policy: Policy::LeastRecentlyUsed, host_budget: Bytes(host), ..Config::default() };
    let mut bench = bench();
    let devices = vec![(FIRST, Bytes(first)), (SECOND, Bytes(second))];
    bench.table = Table::new(config, devices, bench.now);
    bench
}

fn at(name: &str, device: DeviceId) -> Key {
    Key { artefact: artefact(name, 1), device }
}

fn loaded_at(bench: &mut Bench, name: &str, bytes: u64, device: DeviceId) -> Vec<Effect> {
    let (footprint, shared) = (footprint(bytes), Vec::new());
    let loaded = crate::loader::Loaded {
        model: (),
        footprint,
        shared,
        once: Duration::ZERO,
        idle_ttl: None,
    };
    bench.on(Event::Loaded { key: at(name, device), result: Ok(loaded) })
}

#[test]
fn a_base_goes_where_the_adapter_that_waits_for_it_fits_as_well() {
    let mut bench = two_devices(60, 100, 0);
    bench.acquire("old");
    bench.resolved("old", 55);
    bench.fetched("old", 55);
    loaded_at(&mut bench, "old", 55, SECOND);
    bench.on(Event::Released { key: at("old", SECOND) });
    bench.acquire("x");
    bench.found("x", 1, 30, "b");
    bench.resolved("b", 50);
    // Alone it would fit what is free on the first.
    let effects = bench.fetched("b", 50);
    assert!(unloads(&effects, &at("old", SECOND)), "{effects:?}");
    let effects = bench.on(Event::Unloaded { key: at("old", SECOND), copy: None });
    assert!(loads(&effects, &at("b", SECOND)));
    bench.brought("x", 1, 30, "b");
    let effects = loaded_at(&mut bench, "b", 50, SECOND);
    assert_eq!(onto(&effects, &at("x", SECOND)).unwrap().0, Some(at("b", SECOND)));
}

#[test]
fn an_adapter_on_several_devices_is_named_once_by_the_unload_of_its_base() {
    let mut bench = two_devices(60, 60, 0);
    bench.table.config.replicas = Some(Replicas { at_leases: 1, at_most: 2 });
    let placed = |bench: &Bench, name: &str| {
        let job = bench.table.jobs.get(&artefact(name, 1));
        job.and_then(|job| job.device()).expect("it is on its way to a device")
    };
    // Both are hot: the base comes to the second device too, and the adapter after it.
    for _ in 0..2 {
        bench.acquire("b");
        bench.resolved("b", 20);
        bench.fetched("b", 20);
        let device = placed(&bench, "b");
        loaded_at(&mut bench, "b", 20, device);
        bench.now += Duration::from_secs(3);
    }
    for _ in 0..2 {
        bench.acquire("x");
        bench.found("x", 1, 5, "b");
        bench.brought("x", 1, 5, "b");
        let device = placed(&bench, "x");
        loaded_at(&mut bench, "x", 5, device);
        bench.now += Duration::from_secs(3);
    }
    assert_eq!(bench.table.devices_of(&artefact("x", 1)), 2);
    let (waiter, hold_until) = (WaiterId(900), bench.now + Duration::from_secs(30));
    bench.on(Event::UnloadRequested { waiter, model: model("b"), hold_until });
    let purpose = bench.table.waiters.get(waiter).map(|waiter| &waiter.purpose);
    let Some(Purpose::Unload { adapters, .. }) = purpose else { panic!("it waits") };
    assert_eq!(*adapters, [LeftWith { artefact: artefact("x", 1), kept: false }]);
}

#[test]
fn an_adapter_goes_where_its_base_is_however_much_room_there_is_elsewhere() {
    let mut bench = two_devices(60, 100, 0);
    bench.acquire("b");
    bench.resolved("b", 50);
    bench.fetched("b", 50);
    loaded_at(&mut bench, "b", 50, SECOND);
    bench.acquire("wide");
    bench.resolved("wide", 45);
    bench.fetched("wide", 45);
    loaded_at(&mut bench, "wide", 45, FIRST);
    bench.on(Event::Released { key: at("wide", FIRST) });
    bench.acquire("x");
    bench.found("x", 1, 10, "b");
    let effects = bench.brought("x", 1, 10, "b");
    assert!(loads(&effects, &at("x", SECOND)));
}

/// A base whose adapter `x` made room for `y`, which is idle, and left a copy.
fn with_a_copy() -> Bench {
    let mut bench = two_devices(60, 10, 100);
    bench.acquire("b");
    bench.resolved("b", 15);
    bench.fetched("b", 15);
    loaded_at(&mut bench, "b", 15, FIRST);
    for name in ["x", "y"] {
        bench.acquire(name);
        bench.found(name, 1, 25, "b");
        bench.brought(name, 1, 25, "b");
        if name == "y" {
            bench.demoted("x", 25);
        }
        loaded_at(&mut bench, name, 25, FIRST);
        bench.let_go(name);
    }
    bench.let_go("b");
    bench
}

fn second_loaded(bench: &mut Bench) -> Vec<Effect> {
    let loaded = crate::loader::Loaded {
        model: (),
        footprint: footprint(15),
        shared: Vec::new(),
        once: Duration::ZERO,
        idle_ttl: None,
    };
    let key = Key { artefact: artefact("b", 2), device: FIRST };
    bench.on(Event::Loaded { key, result: Ok(loaded) })
}

#[test]
fn an_adapter_comes_back_from_its_copy_in_host_memory_onto_its_base() {
    let mut bench = with_a_copy();
    bench.acquire("x");
    bench.found("x", 1, 25, "b");
    let effects = bench.on(Event::Unloaded { key: at("y", FIRST), copy: None });
    let (base, source) = onto(&effects, &at("x", FIRST)).expect("its copy needs no fetch");
    assert_eq!((base, source), (Some(at("b", FIRST)), LoadSource::Host));
}

#[test]
fn when_another_version_of_a_base_serves_its_adapters_leave_no_copies_and_lose_those_they_had() {
    let mut bench = with_a_copy();
    bench.now += Duration::from_secs(60);
    bench.acquire("b");
    let effects = bench.resolved_version("b", 2, 15);
    assert!(discards(&effects).is_empty(), "the old one still serves");
    bench.fetched_version("b", 2, 15);
    let effects = second_loaded(&mut bench);
    assert_eq!(demotes(&effects, "y"), Some(false), "it could serve beside the old one alone");
    assert_eq!((discards(&effects), why(&effects)), (vec!["x".into()], Some(Departure::Base)));
}

#[test]
fn an_operators_unload_of_a_base_leaves_no_copies_of_its_adapters() {
    let mut bench = with_a_copy();
    let (waiter, hold_until) = (WaiterId(900), bench.now + Duration::from_secs(30));
    let effects = bench.on(Event::UnloadRequested { waiter, model: model("b"), hold_until });
    assert_eq!(demotes(&effects, "y"), Some(false));
}

#[test]
fn adapters_of_a_base_that_died_leave_copies_and_keep_those_they_had_for_the_same_version() {
    let mut bench = with_a_copy();
    let failure = Failure::new(ErrorKind::ModelFailed, "its lane fell over");
    let effects = bench.on(Event::Died { key: at("b", FIRST), failure });
    assert_eq!((demotes(&effects, "y"), discards(&effects)), (Some(true), Vec::new()));
    let effects = bench.demoted("y", 25);
    assert_eq!(demotes(&effects, "b"), Some(false), "what died leaves none");
    bench.on(Event::Unloaded { key: at("b", FIRST), copy: None });
    for name in ["x", "y"] {
        bench.acquire(name);
        assert!(!fetches(&bench.found(name, 1, 25, "b"), name), "{name} has a copy");
    }
    let effects = bench.resolved_version("b", 2, 15);
    assert_eq!(discards(&effects), ["x", "y"], "of another version they are of no use");
}

#[test]
fn a_load_from_a_copy_fetches_its_files_when_its_base_comes_in_another_version() {
    let mut bench = with_a_copy();
    bench.wants("c", 60);
    bench.demoted("y", 25);
    bench.demoted("b", 15);
    loaded_at(&mut bench, "c", 60, FIRST);
    bench.let_go("c");
    bench.acquire("x");
    assert!(!fetches(&bench.found("x", 1, 25, "b"), "x"), "it has a copy");
    let effects = bench.resolved_version("b", 2, 15);
    assert!(fetches(&effects, "x") && fetches(&effects, "b"), "{effects:?}");
    assert_eq!(discards(&effects), ["b", "x", "y"]);
    bench.brought("x", 1, 25, "b");
    bench.fetched_version("b", 2, 15);
    bench.left("c", None);
    let effects = second_loaded(&mut bench);
    let (_, source) = onto(&effects, &at("x", FIRST)).expect("its base serves");
    assert_eq!(source, LoadSource::Files);
    let effects = loaded_at(&mut bench, "x", 25, FIRST);
    assert_eq!(tier(&effects), Some(Tier::Store), "it is booked as what it was");
}
