//! Places in engines and containers: who leaves for one more.

use std::time::Duration;

use super::bench::{Bench, bench, bench_with, key, unloads};
use crate::config::Config;
use crate::decision::{Action, Departure};
use crate::table::event::{Among, PlaceWanted};
use crate::table::{Effect, Event, Report, WaiterId};
use crate::testing::{artefact, model};
use roundhouse_types::DeviceId;

const WAITER: WaiterId = WaiterId(900);

fn wants(bench: &mut Bench, among: Among, only_idle: bool) -> Vec<Effect> {
    let hold_until = bench.now + Duration::from_secs(30);
    let place = PlaceWanted { artefact: artefact("new", 1), among, only_idle };
    bench.on(Event::PlaceRequested { waiter: WAITER, place, hold_until })
}

fn on_base(bench: &mut Bench) -> Vec<Effect> {
    wants(bench, Among::OnBase(model("b"), DeviceId::Cpu), false)
}

/// How many versions left, where the waiter is told.
fn told(effects: &[Effect]) -> Option<usize> {
    effects.iter().find_map(|effect| match effect {
        Effect::Report { waiter: WAITER, report: Report::Unloaded(report) } => {
            Some(report.versions.len())
        }
        _ => None,
    })
}

/// A base with these adapters, the first of which was used longest ago.
fn engine(mut bench: Bench, adapters: &[&str]) -> Bench {
    bench.resident("b", 30);
    adapters.iter().for_each(|name| bench.adapter(name, 10, "b"));
    bench
}

#[test]
fn by_recency_the_one_that_was_not_used_for_the_longest_time_leaves_and_nobody_else() {
    let mut bench = engine(bench(), &["x", "y"]);
    bench.resident("older-elsewhere", 10);
    let effects = on_base(&mut bench);
    assert!(unloads(&effects, &key("x")) && !unloads(&effects, &key("y")));
    assert_eq!(told(&effects), None, "not before it is gone");
    let why = effects.iter().find_map(|effect| match effect {
        Effect::Decided(decided) => match &decided.action {
            Action::Draining { why, for_artefact, .. } => Some((*why, for_artefact.clone())),
            _ => None,
        },
        _ => None,
    });
    assert_eq!(why, Some((Departure::Place, Some(artefact("new", 1)))));
    assert_eq!(told(&bench.unloaded("x")), Some(1));
}

#[test]
fn by_worth_the_one_that_is_asked_for_least_and_comes_back_soonest_leaves() {
    let mut bench = engine(bench_with(Config::default()), &["often", "late"]);
    for _ in 0..5 {
        bench.acquire("often");
        bench.released("often");
    }
    bench.acquire("late");
    bench.released("late");
    let effects = on_base(&mut bench);
    assert!(unloads(&effects, &key("late")) && !unloads(&effects, &key("often")));
}

#[test]
fn one_in_use_leaves_last_and_one_that_is_kept_never() {
    let mut bench = engine(bench(), &["kept", "busy", "idle"]);
    bench.on(Event::KeepChanged { model: model("kept"), kept: true });
    bench.acquire("busy");
    assert!(unloads(&on_base(&mut bench), &key("idle")));
    bench.unloaded("idle");
    let effects = on_base(&mut bench);
    assert!(
        effects.iter().all(|it| !matches!(it, Effect::Unload { .. })),
        "its requests end first"
    );
    assert!(unloads(&bench.released("busy"), &key("busy")));
    bench.unloaded("busy");
    assert_eq!(told(&on_base(&mut bench)), Some(0), "nobody may");
    assert!(bench.table.is_kept(&model("kept")));
}

#[test]
fn one_that_leaves_anyway_is_waited_for_where_nobody_else_may() {
    let mut bench = engine(bench(), &["x"]);
    assert!(unloads(&on_base(&mut bench), &key("x")));
    let hold_until = bench.now + Duration::from_secs(30);
    let among = Among::OnBase(model("b"), DeviceId::Cpu);
    let place = PlaceWanted { artefact: artefact("newer", 1), among, only_idle: false };
    let waiter = WaiterId(901);
    assert!(bench.on(Event::PlaceRequested { waiter, place, hold_until }).is_empty());
    let effects = bench.unloaded("x");
    let told = effects.iter().filter(|it| matches!(it, Effect::Report { .. })).count();
    assert_eq!(told, 2);
}

#[test]
fn of_named_models_those_in_use_stay_where_only_idle_ones_may_leave() {
    let mut bench = bench();
    ["one", "two", "elsewhere"].into_iter().for_each(|name| bench.resident(name, 10));
    bench.acquire("one");
    let among = || Among::Models(vec![model("one"), model("two"), model("gone")]);
    assert!(unloads(&wants(&mut bench, among(), true), &key("two")));
    bench.unloaded("two");
    assert_eq!(told(&wants(&mut bench, among(), true)), Some(0));
}
