//! What the table promises, one sentence each.

use std::time::Duration;

use roundhouse_types::{Bytes, DeviceId, ErrorKind, Failure};

use super::bench::{bench, bench_with, footprint, granted, key, loads, unloads};
use crate::config::Config;
use crate::loader::Loaded;
use crate::table::{Effect, Event, WaiterId};
use crate::testing::model;

#[test]
fn a_victim_serves_until_the_files_that_need_its_room_are_on_disk() {
    let mut bench = bench();
    bench.resident("old", 80);
    bench.acquire("new");
    bench.resolved("new", 60);
    let still = bench.acquire("old");
    assert_eq!(granted(&still).len(), 1);
    bench.released("old");
    let effects = bench.fetched("new", 60);
    assert!(unloads(&effects, &key("old")) && !loads(&effects, &key("new")));
    let effects = bench.unloaded("old");
    assert!(loads(&effects, &key("new")), "its bytes pass to the claim when they are free");
}

#[test]
fn two_claims_never_count_on_the_same_room() {
    let mut bench = bench();
    bench.resident("old", 60);
    for name in ["first", "second"] {
        bench.acquire(name);
        bench.resolved(name, 70);
    }
    bench.fetched("second", 70);
    let level = bench.table.levels().devices.remove(0);
    assert_eq!((level.charged, level.reserved), (Bytes(60), Bytes(40)));
    let effects = bench.fetched("first", 70);
    assert!(unloads(&effects, &key("old")));
    let effects = bench.unloaded("old");
    assert!(loads(&effects, &key("first")) && !loads(&effects, &key("second")));
}

#[test]
fn a_victim_that_became_hot_is_swapped_for_a_colder_one() {
    let mut bench = bench();
    bench.resident("a", 50);
    bench.resident("b", 50);
    bench.acquire("new");
    bench.resolved("new", 50);
    bench.acquire("a");
    let effects = bench.fetched("new", 50);
    assert!(unloads(&effects, &key("b")) && !unloads(&effects, &key("a")));
}

#[test]
fn a_draining_victim_serves_again_when_its_room_is_not_needed() {
    let mut bench = bench();
    bench.resident("a", 80);
    bench.acquire("a");
    bench.acquire("new");
    bench.resolved("new", 60);
    bench.fetched("new", 60);
    assert_eq!(granted(&bench.acquire("a")), Vec::<u64>::new(), "it drains");
    let effects = bench.on(Event::KeepChanged { model: model("a"), kept: true });
    assert_eq!(granted(&effects).len(), 1, "a kept one is no victim");
}

#[test]
fn the_least_recently_used_leaves_and_needless_victims_stay() {
    let mut bench = bench();
    bench.resident("small", 10);
    bench.resident("large", 60);
    bench.resident("late", 30);
    bench.acquire("new");
    bench.resolved("new", 55);
    let effects = bench.fetched("new", 55);
    assert!(unloads(&effects, &key("large")));
    assert!(!unloads(&effects, &key("small")) && !unloads(&effects, &key("late")));
}

#[test]
fn a_load_with_waiters_takes_the_promise_of_one_without() {
    let mut bench = bench();
    bench.acquire("unwanted");
    bench.resolved("unwanted", 90);
    bench.on(Event::Cancelled { waiter: WaiterId(1) });
    bench.acquire("wanted");
    bench.resolved("wanted", 90);
    let effects = bench.fetched("wanted", 90);
    assert!(loads(&effects, &key("wanted")));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::AbandonFetch { .. })));
}

#[test]
fn a_shrunken_budget_grants_nothing_until_idle_residents_have_left() {
    let mut bench = bench();
    bench.resident("a", 40);
    bench.resident("b", 40);
    let budget = Bytes(50);
    let effects = bench.on(Event::BudgetChanged { device: DeviceId::Cpu, budget });
    assert!(unloads(&effects, &key("a")) && !unloads(&effects, &key("b")));
    bench.acquire("c");
    bench.resolved("c", 10);
    assert!(!loads(&bench.fetched("c", 10), &key("c")));
    assert!(loads(&bench.unloaded("a"), &key("c")));
}

#[test]
fn an_idle_resident_leaves_after_its_time_unless_it_is_kept() {
    let mut bench = bench();
    bench.table.config.idle_ttl = Some(Duration::from_secs(60));
    bench.resident("a", 40);
    bench.resident("kept", 40);
    bench.on(Event::KeepChanged { model: model("kept"), kept: true });
    let wake = bench.table.next_wake().expect("an idle resident has its time");
    assert_eq!(wake, bench.now + Duration::from_secs(60));
    bench.now = wake;
    let effects = bench.on(Event::TimePassed);
    assert!(unloads(&effects, &key("a")) && !unloads(&effects, &key("kept")));
}

#[test]
fn one_with_a_time_of_its_own_leaves_by_that_and_others_as_ever() {
    for (all, own) in [(Some(60), 20), (Some(60), 90), (None, 20)] {
        let mut bench = bench();
        bench.table.config.idle_ttl = all.map(Duration::from_secs);
        bench.resident("a", 40);
        // It is known by now that nobody leaves for a while.
        bench.on(Event::TimePassed);
        bench.acquire("own");
        bench.resolved("own", 40);
        bench.fetched("own", 40);
        let idle_ttl = Some(Duration::from_secs(own));
        let (footprint, shared) = (footprint(40), Vec::new());
        let loaded = Loaded { model: (), footprint, shared, once: Duration::ZERO, idle_ttl };
        bench.on(Event::Loaded { key: key("own"), result: Ok(loaded) });
        bench.released("own");
        let mut left = [None, None];
        for second in 1..=100 {
            bench.now += Duration::from_secs(1);
            let effects = bench.on(Event::TimePassed);
            for (left, name) in left.iter_mut().zip(["a", "own"]) {
                *left = left.or(unloads(&effects, &key(name)).then_some(second));
            }
        }
        assert_eq!(left, [all, Some(own)]);
    }
}

#[test]
fn a_flood_of_unknown_names_is_forgotten() {
    let mut bench = bench();
    bench.table.config.max_known_models = 10;
    bench.resident("a", 40);
    for number in 0..200 {
        let name = format!("nobody-{number}");
        bench.acquire(&name);
        let failure =
            roundhouse_types::Failure::new(roundhouse_types::ErrorKind::ModelNotFound, "no such");
        bench.on(Event::Resolved { model: model(&name), result: Err(failure) });
    }
    assert!(bench.table.models.len() <= 10);
    assert_eq!(granted(&bench.acquire("a")).len(), 1, "what is loaded is never forgotten");
}

#[test]
fn models_with_state_do_not_keep_those_without_from_being_forgotten() {
    let config = Config { max_known_models: 12, ..Config::default() };
    let mut bench = bench_with(config);
    for resident in 0..10 {
        let name = format!("resident{resident}");
        bench.acquire(&name);
        bench.resolved(&name, 10);
        bench.fetched(&name, 10);
        bench.loaded(&name, 10);
    }
    for missing in 0..100 {
        let name = format!("missing{missing}");
        bench.acquire(&name);
        let failure = Failure::new(ErrorKind::ModelNotFound, "no such model");
        bench.on(Event::Resolved { model: model(&name), result: Err(failure) });
    }
    assert!(bench.table.models.len() <= 12, "{} are known", bench.table.models.len());
    assert_eq!(bench.table.residents.len(), 10);
}

#[test]
fn a_wish_to_keep_what_is_not_loaded_is_shown() {
    let mut bench = bench();
    bench.on(Event::KeepChanged { model: model("a"), kept: true });
    let (now, _) = bench.table.standing(&model("a"));
    assert_eq!(now, "not loaded; kept once it is loaded");
    bench.on(Event::KeepChanged { model: model("a"), kept: false });
    assert!(!bench.table.standing(&model("a")).0.contains("kept"));
}
