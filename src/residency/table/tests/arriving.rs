//! Loads that begin while their files are still coming.

use std::time::Duration;

use roundhouse_types::{Bytes, DeviceId, ErrorKind, Failure, Grade, ModelKind, Tier};

use super::bench::{Bench, bench, bench_with, footprint, granted, key, key_of, loads, unloads};
use crate::config::{Config, Policy};
use crate::loader::{LoadSource, Resolution, Standing};
use crate::table::{Effect, Event, Key, LoadOptions, WaiterId};
use crate::testing::{artefact, model, version};

impl Bench {
    /// A version in the store whose load may begin while it arrives.
    fn streams(&mut self, name: &str, number: u64, bytes: u64) -> Vec<Effect> {
        let resolution = Resolution {
            version: version(number),
            fetch_bytes: Bytes(bytes),
            footprint: Some((footprint(bytes), Grade::Exact)),
            shared: Vec::new(),
            kind: Some(ModelKind::Embedding),
            off_cards: false,
            base: None,
            streams: true,
            quarantined: false,
            standing: Standing::default(),
        };
        self.on(Event::Resolved { model: model(name), result: Ok(resolution) })
    }

    /// A request for it, and what its resolve brings.
    fn asked(&mut self, name: &str, bytes: u64) -> Vec<Effect> {
        self.acquire(name);
        self.streams(name, 1, bytes)
    }

    fn load_fails(&mut self, name: &str, number: u64, why: &str) -> Vec<Effect> {
        let result = Err(Failure::new(ErrorKind::NotReady, why));
        self.on(Event::Loaded { key: key_of(name, number), result })
    }

    fn cancel_all(&mut self) {
        for waiter in 1..=self.waiters {
            self.on(Event::Cancelled { waiter: WaiterId(waiter) });
        }
    }
}

fn arrives(effects: &[Effect], key: &Key) -> bool {
    effects.iter().any(|effect| {
        matches!(effect, Effect::Load { key: other, source: LoadSource::Arriving, .. } if other == key)
    })
}

fn fetches(effects: &[Effect], name: &str) -> bool {
    effects.iter().any(
        |effect| matches!(effect, Effect::Fetch { artefact: other, .. } if *other == artefact(name, 1)),
    )
}

fn abandons(effects: &[Effect], name: &str) -> bool {
    effects.iter().any(|effect| {
        matches!(effect, Effect::AbandonFetch { artefact: other } if *other == artefact(name, 1))
    })
}

fn refused(effects: &[Effect]) -> Vec<String> {
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::Refuse { failure, .. } => Some(failure.message().to_owned()),
        _ => None,
    });
    told.collect()
}

fn small(max_fetches: usize, max_loads: usize) -> Bench {
    let policy = Policy::LeastRecentlyUsed;
    bench_with(Config { max_fetches, max_loads, policy, ..Config::default() })
}

#[test]
fn a_load_into_free_room_begins_with_its_fetch_and_ends_after_it() {
    let mut bench = bench();
    let begun = bench.asked("a", 40);
    assert!(fetches(&begun, "a") && arrives(&begun, &key("a")));
    assert!(!loads(&bench.fetched("a", 40), &key("a")), "it loads once");
    let effects = bench.loaded("a", 40);
    assert_eq!(granted(&effects), [1]);
    let tier = effects.iter().find_map(|effect| match effect {
        Effect::Grant(grant) => Some(grant.tier),
        _ => None,
    });
    assert_eq!(tier, Some(Tier::Store));
}

#[test]
fn where_others_must_leave_the_files_come_first() {
    let mut bench = bench();
    bench.resident("idle", 80);
    let begun = bench.asked("a", 40);
    assert!(fetches(&begun, "a") && !loads(&begun, &key("a")));
    let whole = bench.fetched("a", 40);
    assert!(unloads(&whole, &key("idle")), "it served until now");
    assert!(loads(&bench.unloaded("idle"), &key("a")));
}

#[test]
fn room_that_comes_free_meanwhile_is_loaded_into_at_once() {
    let mut bench = bench();
    bench.resident("idle", 80);
    bench.asked("a", 40);
    bench.waiters += 1;
    let (waiter, hold_until) = (WaiterId(bench.waiters), bench.now + Duration::from_secs(30));
    let wish = Event::UnloadRequested { waiter, model: model("idle"), hold_until };
    assert!(unloads(&bench.on(wish), &key("idle")));
    assert!(arrives(&bench.unloaded("idle"), &key("a")));
}

#[test]
fn it_takes_the_slot_of_its_fetch_and_none_for_loads() {
    let mut bench = small(1, 1);
    assert!(arrives(&bench.asked("a", 20), &key("a")));
    // On disk already.
    bench.acquire("b");
    bench.resolved("b", 0);
    assert!(loads(&bench.fetched("b", 20), &key("b")), "a download keeps no load from its slot");
    let other = bench.asked("c", 30);
    assert!(!fetches(&other, "c"));
    assert!(!fetches(&bench.fetched("a", 20), "c"), "it has its slot until it ends");
    assert!(fetches(&bench.loaded("a", 20), "c"));
}

#[test]
fn a_fetch_that_fails_is_told_once_when_the_load_has_ended() {
    let mut bench = bench();
    bench.asked("a", 40);
    let failure = Failure::new(ErrorKind::StoreDenied, "no s3:GetObject");
    let failed = bench.on(Event::Fetched { artefact: artefact("a", 1), result: Err(failure) });
    assert!(refused(&failed).is_empty(), "its room is in the loader's hands");
    let ended = bench.load_fails("a", 1, "the fetch ended");
    assert_eq!(refused(&ended), ["no s3:GetObject"]);
    assert!(bench.table.is_empty());
    let again = bench.acquire("a");
    assert_eq!(refused(&again), ["no s3:GetObject"], "and remembered");
}

#[test]
fn a_load_that_fails_ends_its_fetch() {
    let mut bench = bench();
    bench.asked("a", 40);
    let ended = bench.load_fails("a", 1, "a bad tensor");
    assert!(abandons(&ended, "a"));
    assert_eq!(refused(&ended), ["a bad tensor"]);
    assert!(bench.table.is_empty());
}

#[test]
fn a_load_whose_end_is_heard_before_its_fetchs_serves() {
    let mut bench = bench();
    bench.asked("a", 40);
    let ended = bench.loaded("a", 40);
    assert!(abandons(&ended, "a") && granted(&ended) == [1]);
    assert!(bench.fetched("a", 40).is_empty(), "nobody waits for that word");
}

#[test]
fn one_that_nobody_waits_for_is_stopped_for_one_that_somebody_does() {
    let mut bench = bench();
    bench.asked("a", 60);
    bench.cancel_all();
    let wanted = bench.asked("b", 50);
    assert!(abandons(&wanted, "a"));
    assert!(!loads(&wanted, &key("b")), "the room is not there before the load has ended");
    let ended = bench.load_fails("a", 1, "the fetch ended");
    assert!(arrives(&ended, &key("b")));
    assert!(bench.acquire("a").iter().all(|effect| !matches!(effect, Effect::Refuse { .. })));
}

#[test]
fn one_that_somebody_waits_for_is_stopped_for_nobody() {
    let mut bench = bench();
    bench.asked("a", 60);
    let other = bench.asked("b", 50);
    assert!(!abandons(&other, "a") && !loads(&other, &key("b")));
}

#[test]
fn residents_leave_before_one_that_nobody_waits_for_is_stopped() {
    let mut bench = bench();
    bench.resident("idle", 40);
    bench.asked("a", 60);
    bench.cancel_all();
    assert!(!abandons(&bench.asked("b", 40), "a"));
    assert!(unloads(&bench.fetched("b", 40), &key("idle")));
}

#[test]
fn who_comes_while_it_is_being_stopped_gets_a_new_load() {
    let mut bench = bench();
    bench.asked("a", 60);
    bench.cancel_all();
    bench.asked("b", 50);
    bench.acquire("a");
    let ended = bench.load_fails("a", 1, "the fetch ended");
    assert!(refused(&ended).is_empty());
    assert!(ended.iter().any(|effect| matches!(effect, Effect::Resolve { .. })));
}

#[test]
fn a_budget_that_shrinks_stops_it_before_residents_leave() {
    let mut bench = bench();
    bench.resident("idle", 40);
    bench.asked("a", 60);
    bench.cancel_all();
    let device = DeviceId::Cpu;
    let shrunk = bench.on(Event::BudgetChanged { device, budget: Bytes(50) });
    assert!(abandons(&shrunk, "a") && !unloads(&shrunk, &key("idle")));
    let ended = bench.load_fails("a", 1, "the fetch ended");
    assert!(!unloads(&ended, &key("idle")), "40 of 50 are charged");
}

#[test]
fn a_newer_version_stops_it() {
    let mut bench = bench();
    bench.asked("a", 40);
    let hold_until = bench.now + Duration::from_secs(30);
    bench.on(Event::RefreshRequested { waiter: WaiterId(9), model: model("a"), hold_until });
    let newer = bench.streams("a", 2, 40);
    assert!(abandons(&newer, "a") && arrives(&newer, &key_of("a", 2)));
    let ended = bench.load_fails("a", 1, "the fetch ended");
    assert!(refused(&ended).is_empty(), "they wait for the newer one");
}

#[test]
fn the_load_timeout_stops_it_and_is_told_at_once() {
    let mut bench = bench();
    bench.asked("a", 40);
    bench.now += Duration::from_secs(350);
    bench.acquire("a");
    bench.now += Duration::from_secs(11);
    let late = bench.on(Event::TimePassed);
    assert!(abandons(&late, "a"));
    assert_eq!(refused(&late).len(), 1);
    let ended = bench.load_fails("a", 1, "the fetch ended");
    assert!(bench.table.is_empty() && refused(&ended).is_empty());
    let again = refused(&bench.acquire("a"));
    assert!(again[0].contains("360"), "the limit is what it failed of: {again:?}");
}

#[test]
fn an_operators_unload_and_a_shutdown_stop_it() {
    let mut bench = bench();
    bench.asked("a", 40);
    bench.cancel_all();
    let hold_until = bench.now + Duration::from_secs(30);
    let unload = Event::UnloadRequested { waiter: WaiterId(9), model: model("a"), hold_until };
    assert!(abandons(&bench.on(unload), "a"));
    let ended = bench.load_fails("a", 1, "the fetch ended");
    assert!(ended.iter().any(|effect| matches!(effect, Effect::Report { .. })));
    bench.asked("b", 40);
    assert!(abandons(&bench.on(Event::ShutdownBegan), "b"));
    bench.load_fails("b", 1, "the fetch ended");
    assert!(bench.table.is_empty());
}

#[test]
fn an_operators_load_that_must_not_evict_arrives_into_free_room() {
    let mut bench = bench();
    let (waiter, hold_until) = (WaiterId(1), bench.now + Duration::from_secs(30));
    let options = LoadOptions { evict: false, force: false };
    bench.on(Event::LoadRequested { waiter, model: model("a"), hold_until, options });
    assert!(arrives(&bench.streams("a", 1, 40), &key("a")));
}

#[test]
fn it_is_ready_about_when_its_fetch_is() {
    let mut bench = bench();
    bench.asked("a", 40);
    bench.now += Duration::from_secs(10);
    bench.on(Event::Progressed { artefact: artefact("a", 1), bytes: Bytes(10) });
    let (_, ready_in) = bench.table.standing(&model("a"));
    assert_eq!(ready_in, Some(Duration::from_secs(30)));
}
