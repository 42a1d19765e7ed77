//! Why and when copies leave the host's memory, one sentence each.

use std::time::Duration;

use roundhouse_types::{ErrorKind, Failure};

use super::bench::{Bench, footprint};
use super::copies::{at, copy, demotes, discards, fetches, hosted, hosted_with, source, why};
use crate::config::{Config, Policy};
use crate::decision::Departure;
use crate::loader::LoadSource;
use crate::table::{Effect, Event, Report, WaiterId};
use crate::testing::{model, version};

#[test]
fn an_unload_waits_for_no_room_and_copies_that_are_worth_less_leave_for_the_next() {
    let mut bench = hosted(100);
    bench.on_device("a", 60);
    bench.instead_of("a", "b", 60);
    let effects = bench.wants("c", 60);
    assert_eq!(demotes(&effects, "b"), Some(false), "its room is taken");
    assert_eq!(discards(&effects), ["a"]);
    assert_eq!(why(&effects), Some(Departure::Evicted));
    assert_eq!(source(&bench.left("b", None), "c"), Some(LoadSource::Files), "it waits for nobody");
    bench.arrived("c", 60, Vec::new());
    bench.let_go("c");
    assert_eq!(bench.host_bytes(), (60, 0), "charged until the host has its memory back");
    bench.freed("a");
    assert_eq!(bench.host_bytes(), (0, 0));
    assert_eq!(demotes(&bench.wants("d", 60), "c"), Some(true));
}

#[test]
fn copies_leave_for_another_all_or_none_and_none_that_is_worth_more() {
    let mut bench = hosted_with(100, Config { policy: Policy::GreedyDual, ..Config::default() });
    bench.on_device("popular", 60);
    bench.on_device("rare", 20);
    for (name, uses) in [("popular", 20), ("often", 5)] {
        if name == "often" {
            bench.wants("often", 90);
            bench.demoted("popular", 60);
            bench.demoted("rare", 20);
            bench.arrived("often", 60, Vec::new());
            bench.let_go("often");
        }
        for _ in 0..uses {
            bench.acquire(name);
            bench.let_go(name);
        }
    }
    // 40 are missing: the rare one has only 20, the popular one is worth more.
    let effects = bench.wants("last", 90);
    assert_eq!((demotes(&effects, "often"), discards(&effects)), (Some(false), Vec::new()));
    bench.host_budget(120);
    bench.left("often", None);
    bench.arrived("last", 60, Vec::new());
    for _ in 0..5 {
        bench.acquire("last");
        bench.let_go("last");
    }
    bench.let_go("last");
    let effects = bench.wants("next", 90);
    assert_eq!((demotes(&effects, "last"), discards(&effects)), (Some(false), vec!["rare".into()]));
}

#[test]
fn nobody_is_discarded_for_a_copy_that_can_never_fit() {
    let mut bench = hosted(70);
    bench.on_device("a", 50);
    bench.instead_of("a", "b", 90);
    assert_eq!(bench.host().copies, 1);
    let effects = bench.wants("c", 50);
    assert_eq!((demotes(&effects, "b"), discards(&effects)), (Some(false), Vec::new()));
}

#[test]
fn the_copy_of_a_model_that_is_on_the_device_leaves_first() {
    let mut bench = hosted_with(120, Config { policy: Policy::GreedyDual, ..Config::default() });
    bench.on_device("a", 60);
    bench.instead_of("a", "b", 60);
    bench.instead_of("b", "a", 60);
    // Now both have copies, and `a` serves, which is asked for more often.
    for _ in 0..5 {
        bench.acquire("a");
        bench.let_go("a");
    }
    let effects = bench.host_budget(70);
    assert_eq!((discards(&effects), why(&effects)), (vec!["a".into()], Some(Departure::Shrunk)));
}

#[test]
fn a_copy_stays_until_the_load_from_it_has_ended() {
    let mut bench = hosted(100);
    bench.on_device("a", 60);
    bench.instead_of("a", "b", 60);
    bench.acquire("a");
    let effects = bench.resolved("a", 60);
    assert_eq!(demotes(&effects, "b"), Some(false));
    assert!(discards(&effects).is_empty(), "its own copy is held");
    assert!(discards(&bench.host_budget(0)).is_empty());
    bench.left("b", None);
    let effects = bench.arrived("a", 60, Vec::new());
    assert_eq!((discards(&effects), why(&effects)), (vec!["a".into()], Some(Departure::Shrunk)));
}

#[test]
fn a_copy_of_another_version_is_used_by_nobody_and_leaves() {
    let mut bench = hosted(100);
    bench.on_device("a", 60);
    bench.instead_of("a", "b", 60);
    bench.acquire("a");
    let effects = bench.resolved_version("a", 2, 60);
    assert!(fetches(&effects));
    assert_eq!(discards(&effects), ["a"]);
    assert_eq!(why(&effects), Some(Departure::Superseded));
}

#[test]
fn a_copy_that_is_being_made_of_a_version_that_serves_no_more_leaves_when_it_is_there() {
    let mut bench = hosted(100);
    bench.on_device("a", 60);
    assert_eq!(demotes(&bench.wants("b", 60), "a"), Some(true));
    let (waiter, hold_until) = (WaiterId(900), bench.now + Duration::from_secs(9));
    bench.on(Event::RefreshRequested { waiter, model: model("a"), hold_until });
    assert!(discards(&bench.resolved_version("a", 2, 60)).is_empty(), "it is not there yet");
    assert_eq!(discards(&bench.demoted("a", 60)), ["a"]);
}

#[test]
fn who_leaves_because_nobody_may_use_it_again_leaves_no_copy() {
    type Leave = fn(&mut Bench) -> Vec<Effect>;
    let cases: [(&str, Leave); 4] = [
        ("died", |bench| {
            let failure = Failure::new(ErrorKind::ModelFailed, "out of memory");
            bench.on(Event::Died { key: at("a"), failure })
        }),
        ("requested", |bench| {
            let (waiter, hold_until) = (WaiterId(900), bench.now + Duration::from_secs(9));
            bench.on(Event::UnloadRequested { waiter, model: model("a"), hold_until })
        }),
        ("outgrown", |bench| bench.on(Event::Measured { key: at("a"), footprint: footprint(101) })),
        ("shutdown", |bench| bench.on(Event::ShutdownBegan)),
    ];
    for (case, leave) in cases {
        let mut bench = hosted(200);
        bench.on_device("a", 60);
        bench.instead_of("a", "b", 60);
        bench.instead_of("b", "a", 60);
        let effects = leave(&mut bench);
        assert_eq!(demotes(&effects, "a"), Some(false), "{case}");
        assert!(discards(&effects).contains(&"a".into()), "{case}: nor does the one it had stay");
    }
}

#[test]
fn an_operators_unload_ends_when_the_hosts_memory_is_free_too() {
    let mut bench = hosted(100);
    bench.on_device("a", 60);
    bench.instead_of("a", "b", 60);
    let (waiter, hold_until) = (WaiterId(900), bench.now + Duration::from_secs(9));
    let effects = bench.on(Event::UnloadRequested { waiter, model: model("a"), hold_until });
    assert_eq!(discards(&effects), ["a"], "though it is on no device");
    let effects = bench.freed("a");
    let report = effects.iter().find_map(|effect| match effect {
        Effect::Report { waiter: WaiterId(900), report: Report::Unloaded(report) } => Some(report),
        _ => None,
    });
    assert_eq!(report.expect("it is answered now").versions, [version(1)]);
}

#[test]
fn a_model_that_drains_because_it_was_deleted_leaves_the_hosts_memory_too() {
    let mut bench = hosted(200);
    bench.table.config.drain_deleted.insert(model("a").endpoint);
    bench.on_device("a", 60);
    bench.instead_of("a", "b", 60);
    bench.acquire("a");
    let result = Err(Failure::new(ErrorKind::ModelNotFound, "no such model"));
    let effects = bench.on(Event::Resolved { model: model("a"), result });
    assert_eq!((discards(&effects), why(&effects)), (vec!["a".into()], Some(Departure::Deleted)));
}

#[test]
fn an_idle_resident_leaves_a_copy_and_an_idle_copy_leaves() {
    let ttl = Duration::from_secs(60);
    let mut bench = hosted_with(100, Config { idle_ttl: Some(ttl), ..Config::default() });
    bench.on_device("a", 60);
    bench.now += ttl;
    assert_eq!(demotes(&bench.on(Event::TimePassed), "a"), Some(true));
    bench.demoted("a", 60);
    assert_eq!(bench.table.next_wake(), Some(bench.now + ttl));
    bench.now += ttl / 2;
    assert!(discards(&bench.on(Event::TimePassed)).is_empty());
    bench.now += ttl / 2;
    let effects = bench.on(Event::TimePassed);
    assert_eq!((discards(&effects), why(&effects)), (vec!["a".into()], Some(Departure::Idle)));
    assert_eq!(bench.table.next_wake(), None);
}

#[test]
fn the_copy_of_a_model_that_serves_is_not_idle() {
    let ttl = Duration::from_secs(60);
    let mut bench = hosted_with(100, Config { idle_ttl: Some(ttl), ..Config::default() });
    bench.on_device("a", 60);
    bench.now += ttl;
    bench.on(Event::TimePassed);
    bench.demoted("a", 60);
    bench.wants("a", 60);
    bench.arrived("a", 60, Vec::new());
    bench.let_go("a");
    bench.now += ttl;
    let effects = bench.on(Event::TimePassed);
    assert_eq!((demotes(&effects, "a"), discards(&effects)), (Some(true), Vec::new()));
    bench.now += ttl;
    bench.demoted("a", 60);
    assert_eq!(bench.table.next_wake(), Some(bench.now + ttl), "its own time begins now");
}

#[test]
fn a_copy_that_the_loader_has_no_more_leaves() {
    let mut bench = hosted(100);
    bench.on_device("a", 60);
    bench.instead_of("a", "b", 60);
    bench.instead_of("b", "a", 60);
    let effects = bench.wants("b", 60);
    assert_eq!(demotes(&effects, "a"), Some(true));
    let effects = bench.left("a", None);
    assert_eq!((discards(&effects), why(&effects)), (vec!["a".into()], Some(Departure::Failed)));
}

#[test]
fn a_smaller_budget_sends_the_copies_away_that_are_worth_least() {
    let mut bench = hosted(100);
    for name in ["a", "b", "c"] {
        bench.on_device(name, 30);
    }
    let effects = bench.wants("d", 100);
    for name in ["a", "b", "c"] {
        assert_eq!(demotes(&effects, name), Some(true), "{name}");
        bench.demoted(name, 30);
    }
    let effects = bench.host_budget(65);
    assert_eq!(discards(&effects), ["a"], "the least recently used");
    assert!(discards(&bench.on(Event::TimePassed)).is_empty(), "it is on its way");
    assert_eq!(discards(&bench.host_budget(35)), ["b"]);
}

#[test]
fn the_end_comes_when_the_last_copy_is_gone() {
    let mut bench = hosted(100);
    bench.on_device("a", 60);
    bench.wants("b", 60);
    bench.on(Event::ShutdownBegan);
    assert_eq!(discards(&bench.demoted("a", 60)), ["a"]);
    assert!(!bench.table.is_empty());
    bench.freed("a");
    assert!(bench.table.is_empty());
}

#[test]
fn no_more_copies_leave_than_must() {
    let mut bench = hosted(100);
    for (name, bytes) in [("small", 20), ("large", 60)] {
        bench.on_device(name, bytes);
    }
    bench.wants("other", 100);
    for (name, bytes) in [("small", 20), ("large", 60)] {
        bench.demoted(name, bytes);
    }
    assert_eq!(discards(&bench.host_budget(20)), ["large"], "the small one alone would not do");
}

/// Requests for `name`, after others left the device for it with a copy or without; it takes
/// so many seconds to load.
fn comes(bench: &mut Bench, name: &str, bytes: u64, seconds: u64, others: &[(&str, u64)]) {
    bench.wants(name, bytes);
    for (other, copied) in others {
        bench.left(other, (*copied > 0).then(|| copy(*copied)));
    }
    bench.now += Duration::from_secs(seconds);
    bench.arrived(name, bytes, Vec::new());
    bench.let_go(name);
}

#[test]
fn a_resident_that_could_come_back_from_a_copy_leaves_before_one_that_could_not() {
    let mut bench = hosted_with(100, Config { policy: Policy::GreedyDual, ..Config::default() });
    comes(&mut bench, "x", 50, 10, &[]);
    comes(&mut bench, "y", 50, 10, &[]);
    comes(&mut bench, "all", 100, 10, &[("x", 50), ("y", 0)]);
    comes(&mut bench, "x", 50, 1, &[("all", 0)]);
    comes(&mut bench, "y", 50, 10, &[]);
    bench.acquire("x");
    bench.let_go("x");
    let effects = bench.wants("z", 50);
    assert_eq!((demotes(&effects, "x"), demotes(&effects, "y")), (Some(true), None));
}

#[test]
fn a_copy_is_worth_the_reload_from_files_that_it_saves() {
    let mut bench = hosted_with(200, Config { policy: Policy::GreedyDual, ..Config::default() });
    comes(&mut bench, "p", 100, 10, &[]);
    comes(&mut bench, "q", 100, 3, &[("p", 100)]);
    for _ in 0..3 {
        comes(&mut bench, "p", 100, 1, &[("q", 100)]);
        comes(&mut bench, "q", 100, 3, &[("p", 100)]);
    }
    bench.wants("other", 100);
    bench.left("q", Some(copy(100)));
    assert_eq!(discards(&bench.host_budget(100)), ["q"], "three seconds, of the other ten");
}

#[test]
fn a_copy_of_a_version_that_serves_no_more_stays_until_the_load_from_it_has_ended() {
    let mut bench = hosted(100);
    bench.on_device("a", 60);
    bench.instead_of("a", "b", 60);
    bench.wants("a", 60);
    assert_eq!(source(&bench.left("b", None), "a"), Some(LoadSource::Host));
    let (waiter, hold_until) = (WaiterId(900), bench.now + Duration::from_secs(9));
    bench.on(Event::RefreshRequested { waiter, model: model("a"), hold_until });
    assert!(discards(&bench.resolved_version("a", 2, 30)).is_empty(), "a load reads it");
    assert_eq!(discards(&bench.arrived("a", 60, Vec::new())), ["a"]);
}
