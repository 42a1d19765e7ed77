//! Who leaves and who goes first, one sentence each.

use std::time::Duration;

use roundhouse_types::{Bytes, ErrorKind, Failure, ModelKind, RetryHint};

use super::bench::{Bench, bench, bench_with, footprint, granted, key, loads, unloads};
use crate::config::{Collation, Config, TenantLimits};
use crate::decision::{Action, Obstacle};
use crate::loader::{Fetched, Loaded};
use crate::table::{Effect, Event, WaiterId};
use crate::testing::{artefact, model};

const SECOND: Duration = Duration::from_secs(1);

/// A resident that took that long to load.
fn resident_that_took(bench: &mut Bench, name: &str, bytes: u64, load: Duration) {
    bench.acquire(name);
    bench.resolved(name, bytes);
    bench.fetched(name, bytes);
    bench.now += load;
    bench.loaded(name, bytes);
    bench.released(name);
}

fn use_once(bench: &mut Bench, name: &str) {
    assert_eq!(granted(&bench.acquire(name)).len(), 1);
    bench.released(name);
}

/// A whole load with everything that leaves for it.
fn bring(bench: &mut Bench, name: &str, bytes: u64, leaves: &str) {
    bench.acquire(name);
    bench.resolved(name, bytes);
    assert!(unloads(&bench.fetched(name, bytes), &key(leaves)), "{leaves} leaves for {name}");
    bench.unloaded(leaves);
    bench.now += SECOND;
    bench.loaded(name, bytes);
    bench.released(name);
}

fn one_load_at_a_time(collation: Collation) -> Bench {
    bench_with(Config { max_fetches: 64, max_loads: 1, collation, ..Config::default() })
}

fn collation() -> Collation {
    Config::default().collation
}

#[test]
fn what_is_asked_for_often_outlives_a_scan() {
    let mut bench = bench_with(Config::default());
    resident_that_took(&mut bench, "often", 50, SECOND);
    (0..3).for_each(|_| use_once(&mut bench, "often"));
    resident_that_took(&mut bench, "scan0", 50, SECOND);
    bring(&mut bench, "scan1", 50, "scan0");
    bring(&mut bench, "scan2", 50, "scan1");
}

#[test]
fn what_is_not_asked_for_any_more_ages() {
    let mut bench = bench_with(Config::default());
    resident_that_took(&mut bench, "once-hot", 50, SECOND);
    (0..3).for_each(|_| use_once(&mut bench, "once-hot"));
    resident_that_took(&mut bench, "scan0", 50, SECOND);
    for scan in 0..10 {
        let (next, last) = (format!("scan{}", scan + 1), format!("scan{scan}"));
        bench.acquire(&next);
        bench.resolved(&next, 50);
        let effects = bench.fetched(&next, 50);
        if unloads(&effects, &key("once-hot")) {
            return;
        }
        bench.unloaded(&last);
        bench.now += SECOND;
        bench.loaded(&next, 50);
        bench.released(&next);
    }
    panic!("what was popular once stays for ever");
}

#[test]
fn what_is_dear_to_reload_stays_longer() {
    let mut bench = bench_with(Config::default());
    resident_that_took(&mut bench, "dear", 50, 10 * SECOND);
    resident_that_took(&mut bench, "cheap", 50, SECOND);
    bring(&mut bench, "new", 50, "cheap");
}

#[test]
fn what_was_done_once_makes_no_reload_dear() {
    let mut bench = bench_with(Config::default());
    bench.acquire("installed");
    bench.resolved("installed", 50);
    bench.fetched("installed", 50);
    bench.now += 20 * SECOND;
    let loaded = Loaded {
        model: (),
        footprint: footprint(50),
        shared: Vec::new(),
        once: 19 * SECOND,
        idle_ttl: None,
    };
    bench.on(Event::Loaded { key: key("installed"), result: Ok(loaded) });
    bench.released("installed");
    resident_that_took(&mut bench, "dear", 50, 10 * SECOND);
    bring(&mut bench, "new", 50, "installed");
}

#[test]
fn what_was_brought_once_makes_no_reload_dear_either() {
    let mut bench = bench_with(Config::default());
    bench.acquire("installed");
    bench.resolved("installed", 50);
    bench.now += 20 * SECOND;
    let fetched = Fetched {
        footprint: footprint(50),
        shared: Vec::new(),
        kind: ModelKind::Handler,
        off_cards: false,
        base: None,
        once: 19 * SECOND,
    };
    bench.on(Event::Fetched { artefact: artefact("installed", 1), result: Ok(fetched) });
    bench.loaded("installed", 50);
    bench.released("installed");
    assert_eq!(bench.table.models.peek(&model("installed")).unwrap().reload, Some(1.0));
    resident_that_took(&mut bench, "dear", 50, 10 * SECOND);
    bring(&mut bench, "new", 50, "installed");
}

#[test]
fn the_load_that_most_requests_wait_for_goes_first() {
    let mut bench = one_load_at_a_time(collation());
    for (name, requests) in [("now", 1), ("few", 1), ("many", 3)] {
        (0..requests).for_each(|_| drop(bench.acquire(name)));
        bench.resolved(name, 30);
        bench.fetched(name, 30);
    }
    let effects = bench.loaded("now", 30);
    assert!(loads(&effects, &key("many")) && !loads(&effects, &key("few")));
}

#[test]
fn what_was_overtaken_enough_goes_first() {
    for (bound, first) in [(3, "few"), (4, "many")] {
        let bound = Collation { overtaken_at_most: bound, ..collation() };
        let mut bench = one_load_at_a_time(bound);
        for (name, requests) in [("now", 1), ("few", 1), ("more", 3), ("many", 2)] {
            (0..requests).for_each(|_| drop(bench.acquire(name)));
            bench.resolved(name, 25);
            bench.fetched(name, 25);
        }
        assert!(loads(&bench.loaded("now", 25), &key("more")));
        assert!(loads(&bench.loaded("more", 25), &key(first)));
    }
}

#[test]
fn what_waited_long_enough_goes_first() {
    let mut bench = one_load_at_a_time(collation());
    for (name, requests) in [("now", 1), ("few", 1)] {
        (0..requests).for_each(|_| drop(bench.acquire(name)));
        bench.resolved(name, 30);
        bench.fetched(name, 30);
    }
    bench.now += collation().overtaken_within;
    (0..3).for_each(|_| drop(bench.acquire("many")));
    bench.resolved("many", 30);
    bench.fetched("many", 30);
    assert!(loads(&bench.loaded("now", 30), &key("few")));
}

#[test]
fn without_collation_the_order_is_that_of_arrival() {
    let mut bench = one_load_at_a_time(Collation { most_waited_first: false, ..collation() });
    for (name, requests) in [("now", 1), ("few", 1), ("many", 3)] {
        (0..requests).for_each(|_| drop(bench.acquire(name)));
        bench.resolved(name, 30);
        bench.fetched(name, 30);
    }
    assert!(loads(&bench.loaded("now", 30), &key("few")));
}

#[test]
fn no_more_residents_in_use_leave_early_than_loads_can_begin() {
    let config = Config { max_loads: 1, ..Config::default() };
    let mut bench = bench_with(config);
    for name in ["a", "b", "c"] {
        bench.resident(name, 30);
        bench.acquire(name);
    }
    for name in ["x", "y", "z"] {
        bench.acquire(name);
        bench.resolved(name, 35);
        bench.fetched(name, 35);
    }
    let serving = ["a", "b", "c"].iter().filter(|name| granted(&bench.acquire(name)).len() == 1);
    // One load takes two of 30 with what is free; the third serves on.
    assert_eq!(serving.count(), 2);
}

#[test]
fn a_small_fetch_does_not_wait_behind_large_ones() {
    let config = Config { max_fetches: 1, ..Config::default() };
    let mut bench = bench_with(config);
    bench.acquire("large");
    bench.resolved("large", 60);
    bench.acquire("small");
    let effects = bench.resolved("small", 5);
    let begins = |effects: &[Effect]| effects.iter().any(|e| matches!(e, Effect::Fetch { .. }));
    assert!(begins(&effects));
    bench.acquire("third");
    assert!(!begins(&bench.resolved("third", 4)), "twice the slots at most");
    bench.fetched("small", 5);
    bench.acquire("as-large");
    assert!(!begins(&bench.resolved("as-large", 61)));
}

fn with_tenant(name: &str, limits: TenantLimits) -> Bench {
    let tenants = [(name.to_owned(), limits)].into();
    bench_with(Config { tenants, ..Config::default() })
}

#[test]
fn a_floor_is_not_taken_by_other_tenants() {
    let floor = TenantLimits { floor: Bytes(60), ..TenantLimits::default() };
    let mut bench = with_tenant("t", floor);
    bench.resident("t/a", 40);
    bench.resident("t/b", 30);
    bench.resident("u/c", 30);
    bench.acquire("u/d");
    bench.resolved("u/d", 30);
    let effects = bench.fetched("u/d", 30);
    assert!(unloads(&effects, &key("u/c")), "of t nothing may leave");
    bench.unloaded("u/c");
    bench.loaded("u/d", 30);
    bench.acquire("u/large");
    let effects = bench.resolved("u/large", 50);
    let is_told = |effect: &Effect| {
        matches!(effect, Effect::Decided(decided)
            if matches!(decided.action, Action::Blocked { by: Obstacle::Floors, .. }))
    };
    assert!(effects.iter().any(is_told));
    bench.acquire("t/e");
    bench.resolved("t/e", 40);
    let effects = bench.fetched("t/e", 40);
    assert!(unloads(&effects, &key("t/a")) || unloads(&effects, &key("t/b")), "its own may");
}

#[test]
fn a_tenant_at_its_ceiling_gives_of_its_own() {
    let ceiling = TenantLimits { ceiling: Some(Bytes(40)), ..TenantLimits::default() };
    let mut bench = with_tenant("t", ceiling);
    bench.resident("t/a", 30);
    bench.resident("u/old", 10);
    bench.acquire("t/b");
    bench.resolved("t/b", 30);
    let effects = bench.fetched("t/b", 30);
    assert!(unloads(&effects, &key("t/a")), "although 60 are free");
    assert!(!unloads(&effects, &key("u/old")));
    bench.unloaded("t/a");
    assert!(loads(&bench.loaded("t/b", 30), &key("t/a")) || !bench.table.residents.is_empty());
}

#[test]
fn what_is_above_its_tenants_ceiling_is_refused_by_name() {
    let ceiling = TenantLimits { ceiling: Some(Bytes(40)), ..TenantLimits::default() };
    let mut bench = with_tenant("t", ceiling);
    bench.acquire("t/a");
    let effects = bench.resolved("t/a", 41);
    let refusal = effects.iter().find_map(|effect| match effect {
        Effect::Refuse { failure, .. } => Some(failure),
        _ => None,
    });
    let refusal = refusal.expect("it can never fit");
    assert_eq!(refusal.kind(), ErrorKind::TooLarge);
    assert!(refusal.message().contains("tenant 't' may take 40 B"), "{refusal}");
}

#[test]
fn a_tenant_that_scans_does_not_hold_up_another() {
    let mut bench = one_load_at_a_time(collation());
    for scan in 0..30 {
        let name = format!("scan/{scan}");
        bench.acquire(&name);
        bench.resolved(&name, 2);
        bench.fetched(&name, 2);
    }
    for done in 0..6 {
        let name = format!("scan/{done}");
        bench.loaded(&name, 2);
        bench.released(&name);
    }
    bench.acquire("calm/a");
    bench.resolved("calm/a", 2);
    bench.fetched("calm/a", 2);
    // 23 of the scan came earlier; two more than its share may pass.
    let is_next = (6..9).any(|done| {
        let name = format!("scan/{done}");
        let effects = bench.loaded(&name, 2);
        bench.released(&name);
        loads(&effects, &key("calm/a"))
    });
    assert!(is_next);
}

#[test]
fn a_request_that_is_cancelled_is_not_counted() {
    let mut bench = one_load_at_a_time(collation());
    bench.acquire("now");
    bench.resolved("now", 30);
    bench.fetched("now", 30);
    bench.acquire("first");
    bench.resolved("first", 30);
    bench.fetched("first", 30);
    (0..2).for_each(|_| drop(bench.acquire("second")));
    bench.resolved("second", 30);
    bench.fetched("second", 30);
    (3..5).for_each(|waiter| drop(bench.on(Event::Cancelled { waiter: WaiterId(waiter) })));
    assert!(loads(&bench.loaded("now", 30), &key("first")));
    assert!(bench.table.models.peek(&model("second")).is_some());
}

#[test]
fn by_recency_the_least_recently_used_leaves_however_often_it_was_used() {
    let mut bench = bench();
    resident_that_took(&mut bench, "often", 50, SECOND);
    (0..3).for_each(|_| use_once(&mut bench, "often"));
    resident_that_took(&mut bench, "late", 50, SECOND);
    bring(&mut bench, "new", 50, "often");
}

#[test]
fn who_is_told_to_come_again_is_told_when() {
    let mut bench = one_load_at_a_time(collation());
    bench.table.config.max_fetches = 1;
    bench.acquire("measured");
    bench.resolved("measured", 20);
    bench.now += 2 * SECOND;
    bench.fetched("measured", 20);
    bench.now += SECOND;
    bench.loaded("measured", 20);
    // From here on 10 bytes a second are fetched and 20 are loaded.
    bench.acquire("first");
    bench.resolved("first", 20);
    bench.acquire("second");
    bench.resolved("second", 30);
    let told = |bench: &Bench, name| bench.table.not_ready(&model(name)).retry();
    let after = |seconds| RetryHint::After(Duration::from_secs_f64(seconds));
    assert_eq!(told(&bench, "first"), after(2.0 + 1.0));
    assert_eq!(told(&bench, "second"), after(2.0 + 3.0 + 1.5));
    bench.now += SECOND;
    let artefact = key("first").artefact;
    bench.on(Event::Progressed { artefact, bytes: Bytes(5) });
    assert_eq!(told(&bench, "first"), after(3.0 + 1.0), "it comes at half the speed");
    bench.fetched("first", 20);
    bench.now += SECOND / 4;
    bench.on(Event::TimePassed);
    assert_eq!(told(&bench, "first"), after(0.75));
}

#[test]
fn before_anything_was_loaded_it_is_told_when_the_fetch_will_have_ended() {
    let mut bench = bench();
    bench.acquire("first");
    bench.resolved("first", 30);
    let told = |bench: &Bench| bench.table.not_ready(&model("first")).retry();
    assert!(!matches!(told(&bench), RetryHint::After(_)), "nothing is known yet");
    bench.now += 2 * SECOND;
    let artefact = key("first").artefact;
    bench.on(Event::Progressed { artefact, bytes: Bytes(10) });
    assert_eq!(told(&bench), RetryHint::After(4 * SECOND), "5 bytes a second, 20 are left");
}

#[test]
fn it_says_how_a_model_stands() {
    let mut bench = one_load_at_a_time(collation());
    let says = |bench: &Bench, name| bench.table.standing(&model(name)).0;
    assert_eq!(says(&bench, "a"), "not asked for of late");
    resident_that_took(&mut bench, "a", 60, SECOND);
    assert_eq!(
        says(&bench, "a"),
        "serves on cpu, version 000000000000, takes 60 B, 0 leases held, last used 0 s ago, \
         asked for 1.00 times of late, a load takes 1.0 s"
    );
    bench.acquire("b");
    bench.resolved("b", 30);
    bench.fetched("b", 30);
    for _ in 0..3 {
        bench.acquire("c");
    }
    bench.resolved("c", 30);
    bench.fetched("c", 30);
    let (sentence, ready_in) = bench.table.standing(&model("c"));
    assert_eq!(
        sentence,
        "it waits for others to leave the device; version 000000000000 to cpu; 1 of 2 loads, \
         3 requests wait"
    );
    assert_eq!(ready_in, Some(SECOND / 2), "60 bytes took a second");
    bench.on(Event::KeepChanged { model: model("a"), kept: true });
    assert!(says(&bench, "a").ends_with("; kept"));
    let failure = Failure::new(ErrorKind::ModelInvalid, "broken files");
    bench.acquire("d");
    bench.on(Event::Resolved { model: model("d"), result: Err(failure) });
    let (sentence, pause) = bench.table.standing(&model("d"));
    assert_eq!((sentence.as_str(), pause), ("failed: broken files", Some(SECOND)));
}
