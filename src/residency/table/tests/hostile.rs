//! What a hostile reader of the table tried: floors, ceilings, bounds, hung loads.

use std::time::Duration;

use roundhouse_types::{Bytes, Grade};

use super::bench::{Bench, bench_with, footprint, key, unloads};
use crate::config::{Config, Policy, TenantLimits};
use crate::loader::{Resolution, Standing};
use crate::table::{Effect, Event, Key};
use crate::testing::model;

const SECOND: Duration = Duration::from_secs(1);

fn tenants(list: &[(&str, u64, Option<u64>)]) -> Config {
    let tenants = list
        .iter()
        .map(|(n, floor, ceiling)| {
            (
                (*n).to_owned(),
                TenantLimits {
                    floor: Bytes(*floor),
                    ceiling: ceiling.map(Bytes),
                    ..TenantLimits::default()
                },
            )
        })
        .collect();
    Config { tenants, policy: Policy::LeastRecentlyUsed, ..Config::default() }
}

fn wait(bench: &mut Bench, name: &str, bytes: u64) -> Vec<Effect> {
    bench.acquire(name);
    let mut e = bench.resolved(name, bytes);
    e.extend(bench.fetched(name, bytes));
    e
}

#[test]
fn two_claims_do_not_take_a_floor_together() {
    let mut bench = bench_with(tenants(&[("t", 60, None)]));
    for n in ["t/a", "t/b", "t/c"] {
        bench.resident(n, 30);
    }
    for n in ["u/x", "u/y"] {
        bench.acquire(n);
        bench.resolved(n, 30);
    }
    let ex = bench.fetched("u/x", 30);
    let ey = bench.fetched("u/y", 30);
    let left = ["t/a", "t/b", "t/c"]
        .iter()
        .filter(|n| unloads(&ex, &key(n)) || unloads(&ey, &key(n)))
        .count();
    assert!(90 - 30 * left as u64 >= 60, "{left} of t left for others");
}

#[test]
fn a_floor_of_residents_in_use_is_not_taken_twice() {
    let mut bench = bench_with(tenants(&[("t", 60, None)]));
    for n in ["t/a", "t/b", "t/c"] {
        bench.resident(n, 30);
        bench.acquire(n);
    }
    for n in ["u/x", "u/y"] {
        wait(&mut bench, n, 30);
    }
    let draining = bench.table.residents.values().filter(|r| r.claimed_by.is_some()).count();
    assert!(90 - 30 * draining as u64 >= 60, "{draining} of t leave for others");
}

#[test]
fn what_floors_keep_for_ever_holds_nobody_up() {
    let mut config = tenants(&[("t", 60, None)]);
    config.collation.overtaken_at_most = 3;
    let mut bench = bench_with(config);
    bench.resident("t/a", 50);
    bench.resident("t/b", 50);
    let e = wait(&mut bench, "u/c", 30);
    println!("{e:?}");
    // passed
    for n in ["t/d", "t/e"] {
        for _ in 0..3 {
            bench.acquire(n);
        }
        let mut e = bench.resolved(n, 50);
        e.extend(bench.fetched(n, 50));
        let gone: Vec<Key> = e
            .iter()
            .filter_map(|e| match e {
                Effect::Unload { key, .. } => Some(key.clone()),
                _ => None,
            })
            .collect();
        assert_eq!(gone.len(), 1, "{n} may take the room of its own tenant's idle one: {e:?}");
        bench.on(Event::Unloaded { key: gone[0].clone(), copy: None });
        bench.loaded(n, 50);
        for _ in 0..3 {
            bench.released(n);
        }
    }
}

fn on_disk(bench: &mut Bench, name: &str, bytes: u64) -> Vec<Effect> {
    bench.acquire(name);
    let resolution = Resolution {
        version: crate::testing::version(1),
        fetch_bytes: Bytes::ZERO,
        footprint: Some((footprint(bytes), Grade::Exact)),
        shared: Vec::new(),
        kind: None,
        off_cards: false,
        base: None,
        streams: false,
        quarantined: false,
        standing: Standing::default(),
    };
    let mut e = bench.on(Event::Resolved { model: model(name), result: Ok(resolution) });
    e.extend(bench.fetched(name, bytes));
    e
}

#[test]
fn a_load_that_hangs_does_not_stop_all_others() {
    let mut bench = bench_with(Config { max_loads: 2, ..Config::default() });
    bench.resident("idle", 80);
    on_disk(&mut bench, "hangs", 20);
    bench.now += Duration::from_secs(400);
    bench.on(Event::TimePassed);
    let e = on_disk(&mut bench, "new", 30);
    bench.now += Duration::from_secs(20);
    let e2 = bench.on(Event::TimePassed);
    assert!(
        unloads(&e, &key("idle")) || unloads(&e2, &key("idle")),
        "{}",
        bench.table.standing(&model("new")).0
    );
}

#[test]
fn a_later_fetch_does_not_take_the_room_of_an_earlier_load_on_disk() {
    let mut bench = bench_with(Config { max_loads: 2, ..Config::default() });
    bench.resident("idle", 60);
    on_disk(&mut bench, "now", 40);
    on_disk(&mut bench, "first", 50);
    for _ in 0..5 {
        bench.acquire("first");
    }
    bench.now += Duration::from_secs(11);
    bench.acquire("later");
    bench.resolved("later", 55);
    let e = bench.loaded("now", 40);
    assert!(
        unloads(&e, &key("idle")),
        "{} | {}",
        bench.table.standing(&model("first")).0,
        bench.table.standing(&model("later")).0
    );
}

fn next_load(e: &[Effect]) -> Option<String> {
    e.iter().find_map(|e| match e {
        Effect::Load { key, .. } => Some(key.artefact.model.target.as_str().to_owned()),
        _ => None,
    })
}

fn fairness(slow_fetch: bool) -> usize {
    let mut bench = bench_with(Config { max_fetches: 64, max_loads: 1, ..Config::default() });
    if slow_fetch {
        bench.acquire("k/slow");
        bench.resolved("k/slow", 1);
    }
    // calm had three loads, as a tenant may over an hour.
    let mut loading = String::new();
    wait(&mut bench, "scan/first", 2);
    loading.push_str("scan/first");
    for calm in 0..3 {
        wait(&mut bench, &format!("calm/{calm}"), 2);
        wait(&mut bench, &format!("scan/b{calm}"), 2);
        for _ in 0..2 {
            let e = bench.loaded(&loading, 2);
            bench.released(&loading);
            if let Some(n) = next_load(&e) {
                loading = n;
            }
        }
    }
    for scan in 0..30 {
        wait(&mut bench, &format!("scan/{scan}"), 1);
    }
    bench.now += Duration::from_secs(11);
    if slow_fetch {
        bench.acquire("k/slow");
    }
    wait(&mut bench, "calm/new", 1);
    for turn in 1..60 {
        let e = bench.loaded(&loading, 1);
        bench.released(&loading);
        let Some(n) = next_load(&e) else { return 999 };
        if n == "calm/new" {
            return turn;
        }
        loading = n;
    }
    1000
}

#[test]
fn a_third_tenants_slow_fetch_does_not_end_fairness() {
    assert_eq!((fairness(false), fairness(true)), (3, 3), "turns until calm's load");
}

#[test]
fn growth_of_one_tenant_does_not_take_anothers_floor() {
    let mut bench = bench_with(tenants(&[("t", 60, None), ("u", 0, Some(40))]));
    bench.resident("t/a", 60);
    bench.resident("u/b", 40);
    bench.acquire("u/b");
    let e = bench.measured("u/b", 90);
    assert!(!unloads(&e, &key("t/a")), "the floor of t; u has a ceiling of 40 and takes 90");
}

#[test]
fn age_is_not_above_what_stays() {
    let mut config = tenants(&[("s", 0, Some(10))]);
    config.policy = Policy::GreedyDual;
    let mut bench = bench_with(config);
    // popular: asked for ten times, a load takes a second.
    let took = |bench: &mut Bench, n: &str, b: u64, d: Duration| {
        bench.acquire(n);
        bench.resolved(n, b);
        bench.fetched(n, b);
        bench.now += d;
        bench.loaded(n, b);
        bench.released(n);
    };
    took(&mut bench, "t/popular", 40, SECOND);
    for _ in 0..10 {
        bench.acquire("t/popular");
        bench.released("t/popular");
    }
    // s scans below its ceiling, each taking its own room.
    took(&mut bench, "s/0", 10, 10 * SECOND);
    for scan in 1..6 {
        let (n, last) = (format!("s/{scan}"), format!("s/{}", scan - 1));
        bench.acquire(&n);
        bench.resolved(&n, 10);
        assert!(unloads(&bench.fetched(&n, 10), &key(&last)));
        bench.unloaded(&last);
        bench.now += 10 * SECOND;
        bench.loaded(&n, 10);
        bench.released(&n);
    }
    took(&mut bench, "t/once", 40, SECOND);
    let e = wait(&mut bench, "t/new", 40);
    assert!(!unloads(&e, &key("t/popular")), "asked for eleven times; t/once once");
}
