//! Load bandwidth, one sentence each.

use std::time::Duration;

use roundhouse_types::Bytes;

use super::bench::{Bench, bench_with, loads};
use crate::config::{Config, TenantLimits};
use crate::decision::{Action, Obstacle};
use crate::table::{Effect, Event, WaiterId};
use crate::testing::{artefact, model};

/// One fetch at a time for all, and tenants with a ceiling of ten bytes a second.
fn bench_of(tenants: &[&str], max_fetches: usize) -> Bench {
    let limits = TenantLimits { load_bandwidth: Some(Bytes(10)), ..TenantLimits::default() };
    let tenants = tenants.iter().map(|name| ((*name).to_owned(), limits)).collect();
    bench_with(Config { tenants, max_fetches, ..Config::default() })
}

fn acquire_for(bench: &mut Bench, payer: &str, name: &str) -> Vec<Effect> {
    bench.waiters += 1;
    let (waiter, model) = (WaiterId(bench.waiters), model(name));
    let hold_until = bench.now + Duration::from_secs(30);
    let payer = Some(payer.parse().unwrap());
    bench.on(Event::AcquireRequested { waiter, model, hold_until, only_loaded: false, payer })
}

/// On whose behalf a fetch of a model begins among these effects.
fn begun_for(effects: &[Effect], name: &str) -> Option<String> {
    effects.iter().find_map(|effect| match effect {
        Effect::Fetch { artefact: it, payer } if *it == artefact(name, 1) => Some(payer.clone()),
        _ => None,
    })
}

fn is_told(effects: &[Effect], name: &str) -> bool {
    let is = |effect: &Effect| {
        matches!(effect, Effect::Decided(decided)
            if decided.model.target.as_str() == name
            && matches!(decided.action, Action::Blocked { by: Obstacle::LoadBandwidth, .. }))
    };
    effects.iter().any(is)
}

#[test]
fn a_tenant_with_a_ceiling_fetches_two_at_once_and_takes_no_slot_of_others() {
    let mut bench = bench_of(&["scan"], 4);
    for index in 0..6 {
        bench.acquire(&format!("scan/{index}"));
        let effects = bench.resolved(&format!("scan/{index}"), 3);
        let begins = begun_for(&effects, &format!("scan/{index}")).is_some();
        assert_eq!((begins, is_told(&effects, &format!("scan/{index}"))), (index < 2, index >= 2));
    }
    for index in 0..4 {
        bench.acquire(&format!("calm/{index}"));
        let effects = bench.resolved(&format!("calm/{index}"), 3);
        assert!(begun_for(&effects, &format!("calm/{index}")).is_some(), "four slots are others'");
    }
    bench.acquire("calm/4");
    assert!(begun_for(&bench.resolved("calm/4", 3), "calm/4").is_none(), "all are taken");
    let effects = bench.fetched("scan/0", 3);
    assert!(begun_for(&effects, "scan/2").is_some() && begun_for(&effects, "calm/4").is_none());
}

#[test]
fn a_load_is_charged_to_whoever_has_waited_for_it_longest() {
    let mut bench = bench_of(&["scan"], 4);
    acquire_for(&mut bench, "scan", "public/a");
    acquire_for(&mut bench, "calm", "public/a");
    assert_eq!(begun_for(&bench.resolved("public/a", 5), "public/a").as_deref(), Some("scan"));
    acquire_for(&mut bench, "calm", "public/b");
    acquire_for(&mut bench, "scan", "public/b");
    assert_eq!(begun_for(&bench.resolved("public/b", 5), "public/b").as_deref(), Some("calm"));
    // Where nobody says who they are, it is the model's own tenant.
    bench.acquire("scan/c");
    assert_eq!(begun_for(&bench.resolved("scan/c", 5), "scan/c").as_deref(), Some("scan"));
    acquire_for(&mut bench, "scan", "public/d");
    assert!(begun_for(&bench.resolved("public/d", 5), "public/d").is_none(), "it has two");
}

#[test]
fn who_waits_is_told_why_and_until_when() {
    let mut bench = bench_of(&["scan"], 4);
    for name in ["scan/a", "scan/b", "scan/c"] {
        bench.acquire(name);
        bench.resolved(name, 20);
    }
    let (now, estimate) = bench.table.standing(&model("scan/c"));
    assert!(now.contains("it waits for its tenant's load bandwidth to fetch 20 B"), "{now}");
    assert_eq!(bench.table.progress(&model("scan/c")).0.to_string().split(';').count(), 1);
    // How fast loads are was not measured yet; its bytes come behind those of the other two.
    assert!(estimate >= Some(Duration::from_secs(4)), "{estimate:?}");
    let (now, _) = bench.table.standing(&model("scan/a"));
    assert!(now.contains("held to 10 B/s, the load bandwidth of scan"), "{now}");
    bench.fetched("scan/a", 20);
    bench.now += Duration::from_secs(1);
    bench.loaded("scan/a", 20);
    for name in ["scan/d", "scan/e"] {
        bench.acquire(name);
        bench.resolved(name, 20);
    }
    // b and c are under way with 20 bytes each, d waits: its own come behind them.
    let (_, estimate) = bench.table.standing(&model("scan/d"));
    assert!(estimate >= Some(Duration::from_secs(6)), "{estimate:?}");
}

#[test]
fn a_ceiling_that_is_lifted_lets_those_begin_that_waited_for_it() {
    let mut bench = bench_of(&["scan"], 4);
    for index in 0..4 {
        bench.acquire(&format!("scan/{index}"));
        bench.resolved(&format!("scan/{index}"), 3);
    }
    let terms = Event::TermsChanged { tenants: [].into(), drain_deleted: [].into() };
    let effects = bench.on(terms);
    assert!(begun_for(&effects, "scan/2").is_some() && begun_for(&effects, "scan/3").is_some());
}

#[test]
fn what_is_slow_for_its_tenants_ceiling_is_not_dear() {
    let reload = |paced: &[&str]| {
        let mut bench = bench_of(paced, 4);
        // How fast the store is.
        bench.acquire("other/a");
        bench.resolved("other/a", 10);
        bench.now += Duration::from_secs(1);
        bench.fetched("other/a", 10);
        bench.loaded("other/a", 10);
        bench.acquire("scan/a");
        bench.resolved("scan/a", 10);
        bench.now += Duration::from_secs(25);
        let effects = bench.fetched("scan/a", 10);
        assert!(loads(&effects, &super::bench::key("scan/a")));
        bench.loaded("scan/a", 10);
        bench.table.models.peek(&model("scan/a")).unwrap().reload
    };
    assert_eq!(reload(&["scan"]), Some(1.0));
    assert_eq!(reload(&[]), Some(25.0));
}
