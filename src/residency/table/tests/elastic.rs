//! KV pools that grow into free room and give it back, by sentences.

use roundhouse_types::{Bytes, DeviceId, KvOrder, KvReport};

use super::bench::{Bench, bench, bench_with, key, loads, unloads};
use crate::config::{Config, TenantLimits};
use crate::decision::Obstacle;
use crate::table::{Effect, Event, LoadOptions, WaiterId};
use crate::testing::model;

const CHUNK: u64 = 5;

/// What a pool says, in order; sums over all time.
fn says(bench: &mut Bench, name: &str, [wanted, returned, obeyed]: [u64; 3]) -> Vec<Effect> {
    let report =
        KvReport { chunk: Bytes(CHUNK), wanted: Bytes(wanted), returned: Bytes(returned), obeyed };
    bench.on(Event::KvReported { key: key(name), report })
}

fn orders(effects: &[Effect]) -> Vec<(&str, KvOrder)> {
    let orders = effects.iter().filter_map(|effect| match effect {
        Effect::OrderKv { key, order } => Some((key.artefact.model.target.as_str(), *order)),
        _ => None,
    });
    orders.collect()
}

fn order(granted: u64, tight: bool, number: u64) -> KvOrder {
    KvOrder { granted: Bytes(granted), tight, number }
}

fn charged(bench: &Bench) -> u64 {
    bench.table.levels().devices[0].charged.0
}

/// "a" with 40 bytes and 20 of KV beyond its floor, and an idle "old" with 30.
fn grown() -> Bench {
    let mut bench = bench();
    bench.resident("old", 30);
    bench.resident("a", 40);
    assert_eq!(orders(&says(&mut bench, "a", [20, 0, 0])), [("a", order(20, false, 1))]);
    assert_eq!(charged(&bench), 90);
    bench
}

#[test]
fn a_pool_is_granted_what_is_free_in_whole_chunks_and_nobody_leaves_for_it() {
    let mut bench = bench();
    bench.resident("old", 30);
    bench.resident("a", 42);
    let effects = says(&mut bench, "a", [60, 0, 0]);
    assert_eq!(orders(&effects), [("a", order(25, false, 1))], "28 are free");
    assert!(!unloads(&effects, &key("old")));
    assert_eq!(charged(&bench), 97);
    // What it wants is known, and granted when there is room.
    let effects = bench.on(Event::UnloadRequested {
        waiter: WaiterId(90),
        model: model("old"),
        hold_until: bench.now,
    });
    assert_eq!(orders(&effects), []);
    assert_eq!(orders(&bench.unloaded("old")), [("a", order(55, false, 2))]);
    assert_eq!(charged(&bench), 97);
}

#[test]
fn pools_that_want_more_than_is_free_share_it() {
    let mut bench = bench();
    bench.resident("a", 30);
    bench.resident("b", 30);
    bench.resident("c", 30);
    says(&mut bench, "a", [5, 0, 0]);
    says(&mut bench, "b", [40, 0, 0]);
    assert_eq!(charged(&bench), 100);
    says(&mut bench, "c", [40, 0, 0]);
    bench.on(Event::BudgetChanged { device: DeviceId::Cpu, budget: Bytes(130) });
    let kv = |name| bench.table.residents[&key(name)].grown().0;
    assert_eq!(
        (kv("a"), kv("b"), kv("c")),
        (5, 20, 15),
        "the one with least first, in equal parts"
    );
}

#[test]
fn a_load_waits_for_free_chunks_before_anybody_leaves_for_it() {
    let mut bench = grown();
    bench.acquire("next");
    let effects = bench.resolved("next", 15);
    assert_eq!(orders(&effects), [("a", order(20, true, 2))]);
    assert_eq!(bench.table.jobs[&key("next").artefact].obstacle, Some(Obstacle::Pools));
    assert!(!unloads(&bench.fetched("next", 15), &key("old")));
    // An older word is no answer.
    assert!(!loads(&says(&mut bench, "a", [20, 0, 1]), &key("next")));
    assert!(loads(&says(&mut bench, "a", [20, 10, 2]), &key("next")));
    assert_eq!(charged(&bench), 80);
}

#[test]
fn what_free_chunks_do_not_make_up_for_idle_residents_do() {
    let mut bench = grown();
    bench.acquire("a");
    bench.acquire("next");
    bench.resolved("next", 40);
    bench.fetched("next", 40);
    let effects = says(&mut bench, "a", [20, 5, 2]);
    assert!(unloads(&effects, &key("old")), "15 are free, and 30 with it");
    assert!(loads(&bench.unloaded("old"), &key("next")));
    assert_eq!(charged(&bench) + 40, 95);
    // While it comes nothing is tight any more.
    let effects = bench.loaded("next", 40);
    assert_eq!(orders(&effects), []);
    let told = bench.table.residents[&key("a")].pool.unwrap();
    let told = format!("{told:?}");
    assert!(told.contains("tight: false"), "{told}");
}

#[test]
fn nothing_is_granted_while_a_load_waits_for_room() {
    let mut bench = grown();
    bench.acquire("a");
    bench.acquire("old");
    bench.acquire("next");
    bench.resolved("next", 95);
    bench.fetched("next", 95);
    let effects = says(&mut bench, "a", [60, 5, 2]);
    assert_eq!(orders(&effects), [], "its own tight order stands");
    assert_eq!(bench.table.residents[&key("a")].grown(), Bytes(15));
}

#[test]
fn an_operator_who_wants_nobody_to_leave_gets_free_chunks_too() {
    let mut bench = grown();
    let options = LoadOptions { evict: false, force: false };
    let (waiter, model) = (WaiterId(91), model("next"));
    let hold_until = bench.now + std::time::Duration::from_secs(30);
    bench.on(Event::LoadRequested { waiter, model, hold_until, options });
    bench.resolved("next", 25);
    bench.fetched("next", 25);
    let effects = says(&mut bench, "a", [20, 15, 2]);
    assert!(loads(&effects, &key("next")) && !unloads(&effects, &key("old")));
}

#[test]
fn a_smaller_budget_takes_free_chunks_before_residents() {
    let mut bench = grown();
    let budget = |bytes| Event::BudgetChanged { device: DeviceId::Cpu, budget: Bytes(bytes) };
    let effects = bench.on(budget(75));
    assert_eq!(orders(&effects), [("a", order(20, true, 2))]);
    assert!(!unloads(&effects, &key("old")));
    assert!(!unloads(&says(&mut bench, "a", [20, 20, 2]), &key("old")), "that was enough");
    let effects = bench.on(budget(60));
    assert!(unloads(&effects, &key("old")), "nothing is left to give back");
}

#[test]
fn whoever_is_dead_or_unloading_is_not_waited_for() {
    let mut bench = grown();
    bench.acquire("a");
    bench.died("a");
    bench.acquire("next");
    bench.resolved("next", 40);
    assert!(unloads(&bench.fetched("next", 40), &key("old")));
}

#[test]
fn what_a_resident_is_measured_at_says_nothing_of_its_pool() {
    let mut bench = grown();
    bench.measured("a", 35);
    assert_eq!(charged(&bench), 30 + 35 + 20);
    says(&mut bench, "a", [20, 20, 1]);
    assert_eq!(charged(&bench), 30 + 35);
    says(&mut bench, "a", [20, 45, 1]);
    assert_eq!(charged(&bench), 30 + 35, "more than was granted cannot come back");
}

#[test]
fn a_pool_grows_no_further_than_its_tenants_ceiling() {
    let limits = TenantLimits { ceiling: Some(Bytes(57)), ..TenantLimits::default() };
    let tenants = [("t".to_owned(), limits)].into();
    let mut bench = bench_with(Config { tenants, ..Config::default() });
    bench.resident("t/a", 40);
    says(&mut bench, "t/a", [60, 0, 0]);
    assert_eq!(charged(&bench), 55);
}

#[test]
fn no_pool_is_squeezed_for_what_is_kept_and_it_grows_on() {
    let mut bench = grown();
    bench.on(Event::KeepChanged { model: model("old"), kept: true });
    bench.on(Event::KeepChanged { model: model("a"), kept: true });
    bench.acquire("next");
    // 30 and 40 are kept, whatever pools give back.
    let effects = bench.resolved("next", 35);
    assert_eq!(orders(&effects), []);
    assert_eq!(bench.table.jobs[&key("next").artefact].obstacle, Some(Obstacle::Kept));
    assert_eq!(orders(&says(&mut bench, "a", [30, 0, 1])), [("a", order(30, false, 2))]);
    // What has grown is nobody's to keep.
    bench.acquire("other");
    let effects = bench.resolved("other", 25);
    assert_eq!(orders(&effects), [("a", order(30, true, 3))]);
}

#[test]
fn pools_grow_on_when_nobody_waits_for_a_load_any_more() {
    let mut bench = grown();
    bench.acquire("a");
    bench.acquire("old");
    bench.acquire("next");
    let effects = bench.resolved("next", 15);
    assert_eq!(orders(&effects), [("a", order(20, true, 2))]);
    says(&mut bench, "a", [20, 0, 2]);
    let effects = bench.on(Event::Cancelled { waiter: WaiterId(bench.waiters) });
    assert_eq!(orders(&effects), [("a", order(20, false, 3))]);
}
