//! What the table makes of what residents do by themselves, and of handlers.

use std::time::Duration;

use roundhouse_types::{Bytes, DeviceId, ErrorKind, Failure, ModelKind};

use super::bench::{Bench, bench, bench_with, granted, key, key_of, loads, unloads};
use crate::config::Config;
use crate::decision::{Action, Departure};
use crate::table::view::DeviceLevel;
use crate::table::{Effect, Event, Key, LoadOptions, WaiterId};
use crate::testing::{artefact, model};

fn level(bench: &Bench) -> DeviceLevel {
    bench.table.levels().devices.remove(0)
}

fn actions(effects: &[Effect]) -> Vec<&Action> {
    let decided = effects.iter().filter_map(|effect| match effect {
        Effect::Decided(decided) => Some(&decided.action),
        _ => None,
    });
    decided.collect()
}

fn leaves(effects: &[Effect], because: Departure) -> bool {
    actions(effects).iter().any(|a| matches!(a, Action::Draining { why, .. } if *why == because))
}

fn refused(effects: &[Effect]) -> Vec<String> {
    let failures = effects.iter().filter_map(|effect| match effect {
        Effect::Refuse { failure, .. } => Some(failure.message().to_string()),
        _ => None,
    });
    failures.collect()
}

/// Loads a model that is known and not loaded, for one request that stays.
fn load(bench: &mut Bench, name: &str, bytes: u64) -> Vec<Effect> {
    bench.resolved(name, bytes);
    bench.fetched(name, bytes);
    bench.loaded(name, bytes)
}

/// A resident that nobody uses dies, and is off its device.
fn die(bench: &mut Bench, name: &str) -> Vec<Effect> {
    let effects = bench.died(name);
    bench.unloaded(name);
    effects
}

#[test]
fn a_resident_is_charged_with_what_it_takes_now() {
    let mut bench = bench();
    bench.resident("a", 40);
    bench.measured("a", 55);
    assert_eq!(level(&bench).charged, Bytes(55));
    bench.measured("a", 25);
    assert_eq!(level(&bench).charged, Bytes(25));
    bench.on(Event::UnloadRequested {
        waiter: WaiterId(99),
        model: model("a"),
        hold_until: bench.now + Duration::from_secs(9),
    });
    bench.measured("a", 12);
    assert_eq!(level(&bench).charged, Bytes(12), "also while it is being unloaded");
    bench.unloaded("a");
    assert_eq!(level(&bench).charged, Bytes::ZERO);
}

#[test]
fn a_resident_that_grows_over_the_budget_sends_idle_ones_away_and_grants_nothing_meanwhile() {
    let mut bench = bench();
    bench.resident("old", 30);
    bench.resident("young", 30);
    bench.acquire("grower");
    load(&mut bench, "grower", 30);
    let effects = bench.measured("grower", 50);
    assert!(unloads(&effects, &key("old")) && leaves(&effects, Departure::Shrunk));
    assert!(!unloads(&effects, &key("young")));
    let grown = Action::Grown { bytes: Bytes(50), over_bytes: Bytes(10) };
    assert!(actions(&effects).contains(&&grown), "the decision says by how much");
    bench.acquire("next");
    bench.resolved("next", 10);
    assert!(!loads(&bench.fetched("next", 10), &key("next")));
    assert!(loads(&bench.unloaded("old"), &key("next")));
}

#[test]
fn a_resident_that_grows_takes_back_promises_before_anybody_leaves() {
    let mut bench = bench();
    bench.resident("a", 30);
    bench.acquire("grower");
    load(&mut bench, "grower", 30);
    bench.acquire("next");
    bench.resolved("next", 40);
    assert_eq!(level(&bench).reserved, Bytes(40));
    let effects = bench.measured("grower", 40);
    assert!(actions(&effects).contains(&&Action::Withdrawn));
    assert!(!unloads(&effects, &key("a")), "the room that is left is promised anew, with a victim");
    assert_eq!(level(&bench).reserved, Bytes(30));
    assert!(unloads(&bench.fetched("next", 40), &key("a")));
}

#[test]
fn the_one_that_grew_leaves_itself_where_it_is_the_idle_one() {
    let mut bench = bench();
    bench.resident("grower", 40);
    bench.acquire("busy");
    load(&mut bench, "busy", 50);
    let effects = bench.measured("grower", 60);
    assert!(unloads(&effects, &key("grower")));
    assert_eq!(granted(&bench.acquire("busy")).len(), 1);
}

#[test]
fn one_that_takes_more_than_the_whole_budget_leaves_kept_or_not() {
    let mut bench = bench();
    bench.resident("grower", 40);
    bench.on(Event::KeepChanged { model: model("grower"), kept: true });
    bench.acquire("grower");
    let effects = bench.measured("grower", 101);
    assert!(leaves(&effects, Departure::Outgrown));
    bench.measured("grower", 20);
    assert!(granted(&bench.acquire("grower")).is_empty(), "it leaves for good");
    assert!(unloads(&bench.released("grower"), &key("grower")));
}

#[test]
fn a_kept_one_that_grew_stays_while_it_fits_alone() {
    let mut bench = bench();
    bench.resident("kept", 40);
    bench.on(Event::KeepChanged { model: model("kept"), kept: true });
    bench.resident("other", 40);
    let effects = bench.measured("kept", 100);
    assert!(unloads(&effects, &key("other")) && !unloads(&effects, &key("kept")));
}

#[test]
fn what_leaves_for_a_grown_one_serves_again_when_that_shrinks() {
    let mut bench = bench();
    bench.acquire("busy");
    load(&mut bench, "busy", 40);
    bench.acquire("grower");
    load(&mut bench, "grower", 40);
    assert!(leaves(&bench.measured("grower", 70), Departure::Shrunk));
    assert!(granted(&bench.acquire("busy")).is_empty(), "it drains");
    assert_eq!(granted(&bench.measured("grower", 50)).len(), 1, "it serves again");
}

#[test]
fn room_that_a_resident_gives_back_goes_to_who_waits() {
    let mut bench = bench();
    bench.resident("a", 80);
    bench.on(Event::KeepChanged { model: model("a"), kept: true });
    bench.acquire("next");
    bench.resolved("next", 40);
    assert!(!loads(&bench.fetched("next", 40), &key("next")));
    assert!(loads(&bench.measured("a", 60), &key("next")));
}

#[test]
fn a_dead_resident_takes_no_leases_and_leaves_with_its_last_one() {
    let mut bench = bench();
    bench.acquire("a");
    load(&mut bench, "a", 40);
    let effects = bench.died("a");
    assert!(leaves(&effects, Departure::Died) && !unloads(&effects, &key("a")));
    let died = |a: &&Action| matches!(a, Action::Died { reason, deaths: 1, retry_ms: 0 } if reason == "the workers are gone");
    assert!(actions(&effects).iter().any(died));
    assert!(granted(&bench.acquire("a")).is_empty());
    assert!(unloads(&bench.released("a"), &key("a")));
    assert_eq!(level(&bench).charged, Bytes(40), "charged until the unload is confirmed");
    let effects = bench.unloaded("a");
    assert!(matches!(effects[..], [.., Effect::Resolve { .. }]), "the waiter causes a new load");
    assert_eq!(granted(&load(&mut bench, "a", 40)).len(), 1);
}

#[test]
fn a_dead_victim_is_not_asked_back() {
    let mut bench = bench();
    bench.acquire("a");
    load(&mut bench, "a", 80);
    bench.acquire("new");
    bench.resolved("new", 60);
    assert!(leaves(&bench.fetched("new", 60), Departure::Evicted));
    bench.died("a");
    let effects = bench.on(Event::KeepChanged { model: model("a"), kept: true });
    assert!(granted(&effects).is_empty());
    assert!(granted(&bench.acquire("a")).is_empty());
}

#[test]
fn a_dead_old_version_is_not_asked_back_when_the_store_returns_to_it() {
    let mut bench = bench();
    bench.acquire("a");
    load(&mut bench, "a", 40);
    let refresh = |bench: &mut Bench, id: u64| {
        let (waiter, hold_until) = (WaiterId(id), bench.now + Duration::from_secs(30));
        bench.on(Event::RefreshRequested { waiter, model: model("a"), hold_until });
    };
    refresh(&mut bench, 90);
    bench.resolved_version("a", 2, 40);
    bench.fetched_version("a", 2, 40);
    let effects = bench.loaded_version("a", 2, 40);
    assert!(leaves(&effects, Departure::Superseded));
    bench.died("a");
    refresh(&mut bench, 91);
    let effects = bench.resolved("a", 40);
    assert!(!actions(&effects).contains(&&Action::Revived));
    let serving = bench.table.ready(&model("a")).map(|key| key.artefact.clone());
    assert_eq!(serving, Some(artefact("a", 2)), "the newer one goes on");
}

#[test]
fn the_death_of_an_old_version_does_not_count_for_the_new_one() {
    let mut bench = bench();
    bench.acquire("a");
    load(&mut bench, "a", 40);
    let (waiter, hold_until) = (WaiterId(90), bench.now + Duration::from_secs(30));
    bench.on(Event::RefreshRequested { waiter, model: model("a"), hold_until });
    bench.resolved_version("a", 2, 40);
    bench.fetched_version("a", 2, 40);
    bench.loaded_version("a", 2, 40);
    bench.died("a");
    let effects = bench.died_version("a", 2);
    assert!(actions(&effects).iter().any(|a| matches!(a, Action::Died { deaths: 1, .. })));
}

#[test]
fn a_death_before_the_load_was_seen_grants_nobody_and_loads_again() {
    let mut bench = bench();
    bench.acquire("a");
    bench.resolved("a", 40);
    bench.fetched("a", 40);
    bench.died("a");
    let effects = bench.loaded("a", 40);
    assert!(unloads(&effects, &key("a")) && leaves(&effects, Departure::Died));
    assert!(granted(&effects).is_empty() && refused(&effects).is_empty());
    assert!(!actions(&effects).iter().any(|a| matches!(a, Action::Ready { .. })));
    bench.unloaded("a");
    assert_eq!(granted(&load(&mut bench, "a", 40)).len(), 1);
}

#[test]
fn a_new_version_that_is_born_dead_leaves_the_old_one_serving() {
    let mut bench = bench();
    bench.acquire("a");
    load(&mut bench, "a", 40);
    let (waiter, hold_until) = (WaiterId(90), bench.now + Duration::from_secs(30));
    bench.on(Event::RefreshRequested { waiter, model: model("a"), hold_until });
    bench.resolved_version("a", 2, 40);
    bench.fetched_version("a", 2, 40);
    bench.died_version("a", 2);
    let effects = bench.loaded_version("a", 2, 40);
    assert_eq!(refused(&effects), ["the workers are gone"], "the refresh is told");
    assert_eq!(granted(&bench.acquire("a")).len(), 1);
    assert_eq!(bench.table.ready(&model("a")), Some(&key("a")));
}

#[test]
fn a_first_death_is_not_paused_and_further_ones_ever_longer() {
    let mut bench = bench();
    bench.resident("a", 40);
    die(&mut bench, "a");
    for pause in [1_000, 2_000, 4_000] {
        bench.resident("a", 40);
        let effects = die(&mut bench, "a");
        let is_paused =
            |a: &&Action| matches!(a, Action::Died { retry_ms, .. } if *retry_ms == pause);
        assert!(actions(&effects).iter().any(is_paused), "{pause}: {:?}", actions(&effects));
        assert_eq!(refused(&bench.acquire("a")), ["the workers are gone"]);
        bench.now += Duration::from_millis(pause);
    }
    bench.resident("a", 40);
    bench.now += Duration::from_secs(60);
    die(&mut bench, "a");
    assert!(refused(&bench.acquire("a")).is_empty(), "after a minute of service it is a first one");
}

#[test]
fn those_who_wait_for_a_model_that_keeps_dying_are_told() {
    let mut bench = bench();
    bench.resident("a", 40);
    die(&mut bench, "a");
    bench.acquire("a");
    bench.resolved("a", 40);
    bench.fetched("a", 40);
    bench.died("a");
    let effects = bench.loaded("a", 40);
    assert_eq!(refused(&effects), ["the workers are gone"]);
}

#[test]
fn another_version_and_a_forced_load_end_a_row_of_deaths() {
    let mut bench = bench();
    bench.resident("a", 40);
    die(&mut bench, "a");
    bench.acquire("a");
    bench.resolved_version("a", 2, 40);
    bench.fetched_version("a", 2, 40);
    bench.loaded_version("a", 2, 40);
    let effects = bench.died_version("a", 2);
    assert!(actions(&effects).iter().any(|a| matches!(a, Action::Died { deaths: 1, .. })));
    bench.on(Event::Released { key: key_of("a", 2) });
    bench.on(Event::Unloaded { key: key_of("a", 2), copy: None });
    let options = LoadOptions { evict: true, force: true };
    let (waiter, hold_until) = (WaiterId(90), bench.now + Duration::from_secs(30));
    let asked = bench.on(Event::LoadRequested { waiter, model: model("a"), hold_until, options });
    // The files may have been mended a moment ago.
    let looks = |it: &Effect| matches!(it, Effect::Resolve { refresh: true, .. });
    assert!(asked.iter().any(looks), "{asked:?}");
    bench.resolved_version("a", 2, 40);
    bench.fetched_version("a", 2, 40);
    bench.loaded_version("a", 2, 40);
    let effects = bench.died_version("a", 2);
    assert!(actions(&effects).iter().any(|a| matches!(a, Action::Died { deaths: 1, .. })));
}

#[test]
fn reports_about_what_is_not_there_change_nothing() {
    let mut bench = bench();
    bench.resident("a", 40);
    assert!(bench.measured("b", 30).is_empty() && bench.died("b").is_empty());
    let other = Key { artefact: artefact("a", 1), device: DeviceId::Cuda(0) };
    let failure = Failure::new(ErrorKind::ModelFailed, "gone");
    assert!(bench.on(Event::Died { key: other.clone(), failure: failure.clone() }).is_empty());
    assert_eq!(granted(&bench.acquire("a")).len(), 1);
    bench.acquire("b");
    bench.resolved("b", 40);
    bench.fetched("b", 40);
    let elsewhere = Key { artefact: artefact("b", 1), ..other };
    assert!(bench.on(Event::Died { key: elsewhere, failure }).is_empty());
    assert_eq!(granted(&bench.loaded("b", 40)).len(), 1);
}

#[test]
fn a_death_of_what_is_being_unloaded_or_dead_is_no_news() {
    let mut bench = bench();
    bench.resident("a", 40);
    bench.acquire("a");
    bench.died("a");
    assert!(bench.died("a").is_empty());
    bench.released("a");
    assert!(bench.died("a").is_empty());
    bench.unloaded("a");
    assert!(refused(&bench.acquire("a")).is_empty(), "it died once");
}

#[test]
fn an_old_version_that_outgrew_the_budget_is_not_asked_back() {
    let mut bench = bench();
    bench.resident("a", 40);
    bench.acquire("a");
    bench.on(Event::KeepChanged { model: model("a"), kept: true });
    let refresh = |bench: &mut Bench, id: u64| {
        let (waiter, hold_until) = (WaiterId(id), bench.now + Duration::from_secs(30));
        bench.on(Event::RefreshRequested { waiter, model: model("a"), hold_until });
    };
    refresh(&mut bench, 90);
    bench.resolved_version("a", 2, 40);
    bench.fetched_version("a", 2, 40);
    bench.loaded_version("a", 2, 40);
    bench.measured("a", 101);
    refresh(&mut bench, 91);
    let effects = bench.resolved("a", 40);
    assert!(!actions(&effects).contains(&&Action::Revived));
}

#[test]
fn a_kept_model_that_died_is_loaded_by_its_next_request_and_is_kept_again() {
    let mut bench = bench();
    bench.resident("a", 40);
    bench.on(Event::KeepChanged { model: model("a"), kept: true });
    bench.died("a");
    assert!(!bench.unloaded("a").iter().any(|e| matches!(e, Effect::Resolve { .. })));
    bench.resident("a", 40);
    bench.acquire("new");
    bench.resolved("new", 80);
    assert!(!unloads(&bench.fetched("new", 80), &key("a")));
}

#[test]
fn loads_of_handlers_and_other_loads_take_no_slots_from_each_other() {
    let config = Config { max_loads: 1, max_handler_loads: 2, ..Config::default() };
    let mut bench = bench_with(config);
    let mut begun = Vec::new();
    for name in ["h1", "h2", "h3", "m1", "m2"] {
        bench.acquire(name);
        bench.resolved(name, 10);
        let kind = if name.starts_with('h') { ModelKind::Handler } else { ModelKind::Embedding };
        begun.push(loads(&bench.fetched_as(kind, name, 10), &key(name)));
    }
    assert_eq!(begun, [true, true, false, true, false]);
    let effects = bench.loaded("m1", 10);
    assert!(loads(&effects, &key("m2")) && !loads(&effects, &key("h3")));
    assert!(loads(&bench.loaded("h1", 10), &key("h3")));
}
