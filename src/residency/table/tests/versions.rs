//! Which version serves when several are wanted, loading or leaving at once.

use std::time::{Duration, SystemTime};

use roundhouse_types::{ErrorKind, Failure, Version};

use super::bench::{Bench, bench, granted, key_of, unloads};
use crate::decision::Action;
use crate::loader::{Authority, InStore, Standing};
use crate::snapshot::Clocks;
use crate::table::{Effect, Event, RefreshReport, Report, WaiterId};
use crate::testing::{model, version};

mod deleted;
mod refused;

const OPERATOR: WaiterId = WaiterId(1000);

fn refresh(bench: &mut Bench) -> Vec<Effect> {
    let hold_until = bench.now + Duration::from_secs(60);
    bench.on(Event::RefreshRequested { waiter: OPERATOR, model: model("a"), hold_until })
}

/// The store, or an operator, names a version.
fn names(bench: &mut Bench, number: u64) -> Vec<Effect> {
    bench.resolved_version("a", number, 30)
}

/// A version comes to the disk and to the device.
fn arrives(bench: &mut Bench, number: u64) -> Vec<Effect> {
    let mut effects = bench.fetched_version("a", number, 30);
    effects.extend(bench.loaded_version("a", number, 30));
    effects
}

/// An operator has the model unloaded.
fn sent_away(bench: &mut Bench) {
    let (waiter, hold_until) = (WaiterId(1001), bench.now + Duration::from_secs(60));
    bench.on(Event::UnloadRequested { waiter, model: model("a"), hold_until });
    bench.unloaded("a");
}

fn serving(bench: &Bench) -> Option<Version> {
    bench.table.ready(&model("a")).map(|key| key.artefact.version.clone())
}

fn refreshed(effects: &[Effect]) -> Option<RefreshReport> {
    effects.iter().find_map(|effect| match effect {
        Effect::Report { waiter: OPERATOR, report: Report::Refreshed(report) } => {
            Some(report.clone())
        }
        _ => None,
    })
}

fn refusal(effects: &[Effect]) -> Option<ErrorKind> {
    effects.iter().find_map(|effect| match effect {
        Effect::Refuse { waiter: OPERATOR, failure } => Some(failure.kind()),
        _ => None,
    })
}

fn decided(effects: &[Effect]) -> Vec<Action> {
    let actions = effects.iter().filter_map(|effect| match effect {
        Effect::Decided(decided) => Some(decided.action.clone()),
        _ => None,
    });
    actions.collect()
}

fn gone() -> Failure {
    Failure::new(ErrorKind::ModelNotFound, "no such model")
}

#[test]
fn a_load_that_ends_after_another_version_was_asked_for_takes_nothing_over() {
    let mut bench = bench();
    bench.resident("a", 30);
    refresh(&mut bench);
    names(&mut bench, 2);
    bench.fetched_version("a", 2, 30);
    bench.on(Event::Cancelled { waiter: OPERATOR });
    refresh(&mut bench);
    let report = refreshed(&names(&mut bench, 1)).expect("it serves already");
    assert_eq!(report.serving, Some(version(1)));
    let effects = bench.loaded_version("a", 2, 30);
    assert!(unloads(&effects, &key_of("a", 2)), "it came too late");
    assert_eq!(serving(&bench), Some(version(1)));
}

#[test]
fn a_refresh_that_waits_for_a_load_is_told_what_serves_when_another_came_first() {
    let mut bench = bench();
    bench.resident("a", 30);
    refresh(&mut bench);
    names(&mut bench, 2);
    bench.fetched_version("a", 2, 30);
    let (waiter, hold_until) = (WaiterId(1001), bench.now + Duration::from_secs(60));
    bench.on(Event::RefreshRequested { waiter, model: model("a"), hold_until });
    names(&mut bench, 1);
    let report = refreshed(&bench.loaded_version("a", 2, 30)).expect("it is answered");
    assert_eq!((report.version, report.serving), (version(1), Some(version(1))));
}

#[test]
fn a_load_that_nobody_waits_for_is_given_up_for_the_version_asked_for() {
    let mut bench = bench();
    bench.acquire("a");
    names(&mut bench, 1);
    bench.on(Event::Cancelled { waiter: WaiterId(1) });
    refresh(&mut bench);
    let effects = names(&mut bench, 2);
    assert!(decided(&effects).contains(&Action::Abandoned));
    assert_eq!(refreshed(&effects), None, "it waits for the load that was begun instead");
    let report = refreshed(&arrives(&mut bench, 2)).expect("it serves");
    assert_eq!(report.serving, Some(version(2)));
}

#[test]
fn a_version_asked_for_while_it_unloads_is_loaded_again_and_then_reported() {
    let mut bench = bench();
    bench.resident("a", 30);
    refresh(&mut bench);
    names(&mut bench, 2);
    assert!(unloads(&arrives(&mut bench, 2), &key_of("a", 1)));
    refresh(&mut bench);
    assert_eq!(refreshed(&names(&mut bench, 1)), None, "it does not serve yet");
    let effects = bench.unloaded("a");
    assert!(effects.iter().any(|it| matches!(it, Effect::Resolve { refresh: true, .. })));
    names(&mut bench, 1);
    let report = refreshed(&arrives(&mut bench, 1)).expect("it serves again");
    assert_eq!((report.version, report.serving), (version(1), Some(version(1))));
    assert_eq!(serving(&bench), Some(version(1)));
}

#[test]
fn a_version_that_drains_serves_again_at_once_when_it_is_asked_for() {
    let mut bench = bench();
    bench.resident("a", 30);
    bench.acquire("a");
    refresh(&mut bench);
    names(&mut bench, 2);
    arrives(&mut bench, 2);
    refresh(&mut bench);
    let effects = names(&mut bench, 1);
    let switched = Action::Switched { from: version(2), by: Authority::Store };
    assert!(decided(&effects).contains(&switched));
    assert_eq!(refreshed(&effects).and_then(|it| it.serving), Some(version(1)));
    assert!(unloads(&effects, &key_of("a", 2)));
}

#[test]
fn an_unload_while_another_version_is_on_its_way_leaves_what_the_operator_waits_for() {
    let mut bench = bench();
    bench.resident("a", 30);
    refresh(&mut bench);
    names(&mut bench, 2);
    let (waiter, hold_until) = (WaiterId(1001), bench.now + Duration::from_secs(60));
    let effects = bench.on(Event::UnloadRequested { waiter, model: model("a"), hold_until });
    assert!(unloads(&effects, &key_of("a", 1)));
    let effects = bench.unloaded("a");
    assert!(effects.iter().any(|it| matches!(it, Effect::Report { waiter: WaiterId(1001), .. })));
    let report = refreshed(&arrives(&mut bench, 2)).expect("the refresh is answered too");
    assert_eq!(report.serving, Some(version(2)));
}

#[test]
fn the_failure_of_a_version_that_is_not_asked_for_any_more_keeps_nobody_waiting() {
    let mut bench = bench();
    bench.resident("a", 30);
    refresh(&mut bench);
    names(&mut bench, 2);
    bench.fetched_version("a", 2, 30);
    bench.on(Event::Cancelled { waiter: OPERATOR });
    refresh(&mut bench);
    names(&mut bench, 1);
    let failure = Failure::new(ErrorKind::ModelInvalid, "a bad tensor");
    let effects = bench.on(Event::Loaded { key: key_of("a", 2), result: Err(failure) });
    assert!(decided(&effects).iter().any(|it| matches!(it, Action::Failed { .. })));
    sent_away(&mut bench);
    let effects = bench.acquire("a");
    assert!(effects.iter().any(|it| matches!(it, Effect::Resolve { .. })), "there is no pause");
}

#[test]
fn a_store_that_was_not_reached_fails_the_refresh_and_changes_nothing_else() {
    let mut bench = bench();
    bench.resident("a", 30);
    refresh(&mut bench);
    let down = Failure::new(ErrorKind::StoreUnavailable, "connection refused");
    let standing = Standing { store: InStore::Unreached(down), ..Standing::default() };
    let effects = bench.resolved_with("a", 1, 30, standing);
    assert_eq!(refusal(&effects), Some(ErrorKind::StoreUnavailable));
    assert_eq!(granted(&bench.acquire("a")).len(), 1);
}

#[test]
fn a_version_that_waits_for_an_operator_is_told_once_and_shown_until_it_serves() {
    let mut bench = bench();
    bench.resident("a", 30);
    let held = || Standing {
        by: Authority::Rule,
        store: InStore::Other(version(2)),
        ..Standing::default()
    };
    let offered = Action::Offered { offered: version(2) };
    for (round, told) in [(0, 1), (1, 0)] {
        refresh(&mut bench);
        let effects = bench.resolved_with("a", 1, 30, held());
        assert_eq!(decided(&effects).iter().filter(|it| **it == offered).count(), told, "{round}");
        assert_eq!(refreshed(&effects).unwrap().offered, Some(version(2)));
    }
    assert_eq!(bench.table.levels().offers, 1);
    refresh(&mut bench);
    let by_operator = Standing { by: Authority::Operator, ..Standing::default() };
    bench.resolved_with("a", 2, 30, by_operator);
    let effects = arrives(&mut bench, 2);
    let switched = Action::Switched { from: version(1), by: Authority::Operator };
    assert!(decided(&effects).contains(&switched));
    assert_eq!(bench.table.levels().offers, 0);
}

/// What is told of a newer version that failed beside the one that serves.
fn unfit(bench: &Bench) -> Option<(Option<Version>, String)> {
    let clocks = Clocks { instant: bench.now, wall: SystemTime::UNIX_EPOCH };
    let snapshot = bench.table.snapshot(&clocks);
    let unfit = snapshot.ready(&model("a"))?.unfit.clone();
    assert_eq!(bench.table.levels().unfit, usize::from(unfit.is_some()));
    let (now, _) = bench.table.standing(&model("a"));
    let said = match unfit.as_ref().map(|it| &it.version) {
        Some(Some(_)) => now.contains("; another version, "),
        Some(None) => now.contains("; its newest version cannot be told for "),
        None => !["; another version", "; its newest"].iter().any(|it| now.contains(it)),
    };
    assert!(said, "{now}");
    unfit.map(|it| (it.version, it.reason))
}

#[test]
fn a_damaged_upload_is_told_once_beside_what_serves_until_the_store_holds_another() {
    let mut bench = bench();
    bench.resident("a", 30);
    let damaged = || Failure::new(ErrorKind::ModelInvalid, "9 of 10 bytes");
    let failed = |effects: &[Effect]| {
        let actions = decided(effects);
        // The version was resolved: nothing of it failed.
        assert!(!actions.iter().any(|it| matches!(it, Action::Failed { .. })));
        actions.iter().filter(|it| matches!(it, Action::Unfit { .. })).count()
    };
    for told in [1, 0] {
        refresh(&mut bench);
        let unfit = Some((version(2), damaged()));
        let effects = bench.resolved_with("a", 1, 30, Standing { unfit, ..Standing::default() });
        assert_eq!(failed(&effects), told);
    }
    assert_eq!(unfit(&bench), Some((Some(version(2)), "9 of 10 bytes".to_owned())));
    assert_eq!(serving(&bench), Some(version(1)));
    refresh(&mut bench);
    names(&mut bench, 3);
    assert_eq!(unfit(&bench), None);
}

#[test]
fn a_newer_version_that_fails_at_any_stage_is_told_until_it_serves_or_is_taken_back() {
    let invalid = || Failure::new(ErrorKind::ModelInvalid, "no tensor 'x'");
    for goes_back in [false, true] {
        let mut bench = bench();
        bench.resident("a", 30);
        // Before it was known which version that is.
        refresh(&mut bench);
        bench.on(Event::Resolved { model: model("a"), result: Err(invalid()) });
        assert_eq!(unfit(&bench), Some((None, "no tensor 'x'".to_owned())));
        refresh(&mut bench);
        names(&mut bench, 2);
        assert_eq!(unfit(&bench), None, "its files are sound by now");
        bench.fetched_version("a", 2, 30);
        bench.on(Event::Loaded { key: key_of("a", 2), result: Err(invalid()) });
        assert_eq!(unfit(&bench).and_then(|it| it.0), Some(version(2)));
        // A store that is down takes nothing back.
        let down = Failure::new(ErrorKind::StoreUnavailable, "connection refused");
        refresh(&mut bench);
        bench.on(Event::Resolved { model: model("a"), result: Err(down) });
        assert_eq!(unfit(&bench).and_then(|it| it.0), Some(version(2)));
        bench.now += Duration::from_secs(120);
        refresh(&mut bench);
        if goes_back {
            names(&mut bench, 1);
        } else {
            names(&mut bench, 2);
            arrives(&mut bench, 2);
            assert_eq!(serving(&bench), Some(version(2)));
        }
        assert_eq!(unfit(&bench), None);
    }
}

/// What the store holds in place of version 2, which is damaged.
fn damaged() -> Option<(Version, Failure)> {
    Some((version(2), Failure::new(ErrorKind::ModelInvalid, "9 of 10 bytes")))
}

#[test]
fn a_damaged_upload_is_told_loaded_or_not_and_its_time_begins_once() {
    let standing = || Standing { unfit: damaged(), ..Standing::default() };
    let mut bench = bench();
    let told = |bench: &mut Bench, seconds: u64| {
        bench.on(Event::TimePassed);
        let (now, _) = bench.table.standing(&model("a"));
        assert!(now.contains(&format!(" failed {seconds} s ago: 9 of 10 bytes")), "{now}");
        assert_eq!(bench.table.levels().unfit, 1);
    };
    // Nothing of it is loaded or wanted.
    refresh(&mut bench);
    let effects = bench.resolved_with("a", 1, 30, standing());
    assert!(decided(&effects).iter().any(|it| matches!(it, Action::Unfit { .. })));
    let report = refreshed(&effects).expect("it is answered");
    assert_eq!(report.unfit, Some((ErrorKind::ModelInvalid, "9 of 10 bytes".to_owned())));
    told(&mut bench, 0);
    // It is on its way, and never comes.
    bench.now += Duration::from_secs(20);
    bench.acquire("a");
    bench.resolved_with("a", 1, 30, standing());
    let result = Err(Failure::new(ErrorKind::ModelInvalid, "broken files"));
    bench.on(Event::Fetched { artefact: key_of("a", 1).artefact, result });
    assert_eq!(bench.table.levels().unfit, 1);
    // It comes, and leaves.
    bench.now += Duration::from_secs(120);
    bench.acquire("a");
    bench.resolved_with("a", 1, 30, standing());
    arrives(&mut bench, 1);
    told(&mut bench, 140);
    bench.released("a");
    sent_away(&mut bench);
    told(&mut bench, 140);
    // The store holds nothing of it any more.
    refresh(&mut bench);
    bench.on(Event::Resolved { model: model("a"), result: Err(gone()) });
    assert_eq!(bench.table.levels().unfit, 0);
}

#[test]
fn a_refresh_of_what_is_not_loaded_tells_that_the_version_in_the_store_was_refused() {
    for (kind, is_told) in [(ErrorKind::ModelFailed, false), (ErrorKind::ModelInvalid, true)] {
        let mut bench = bench();
        bench.resident("a", 30);
        refresh(&mut bench);
        names(&mut bench, 2);
        bench.fetched_version("a", 2, 30);
        let result = Err(Failure::new(kind, "no tensor 'x'"));
        bench.on(Event::Loaded { key: key_of("a", 2), result });
        sent_away(&mut bench);
        refresh(&mut bench);
        let report = refreshed(&names(&mut bench, 2)).expect("it is answered");
        assert_eq!(report.unfit.map(|it| it.0), is_told.then_some(kind));
    }
}

#[test]
fn what_somebody_saw_in_the_store_is_told_until_it_is_seen_otherwise_or_the_endpoint_is_gone() {
    let mut bench = bench();
    let seen = |bench: &mut Bench, number: Option<u64>, unfit| {
        bench.on(Event::StoreSeen { model: model("a"), named: number.map(version), unfit });
        bench.table.levels().unfit
    };
    assert_eq!(seen(&mut bench, Some(1), None), 0);
    assert_eq!(seen(&mut bench, Some(1), damaged()), 1);
    assert_eq!(seen(&mut bench, Some(3), None), 0, "it was mended");
    assert_eq!(seen(&mut bench, Some(1), damaged()), 1);
    assert_eq!(seen(&mut bench, None, None), 0, "it was deleted");
    // Whether what the store names can be served was not looked at.
    bench.resident("a", 30);
    refresh(&mut bench);
    names(&mut bench, 2);
    bench.fetched_version("a", 2, 30);
    let result = Err(Failure::new(ErrorKind::ModelInvalid, "no tensor 'x'"));
    bench.on(Event::Loaded { key: key_of("a", 2), result });
    assert_eq!(seen(&mut bench, Some(2), None), 1);
    let endpoint = model("a").endpoint;
    bench.on(Event::EndpointLeft { endpoint });
    assert_eq!(bench.table.levels().unfit, 0);
}

#[test]
fn a_version_that_an_operator_chose_is_told_without_what_failed_before() {
    let mut bench = bench();
    bench.resident("a", 30);
    refresh(&mut bench);
    names(&mut bench, 2);
    bench.fetched_version("a", 2, 30);
    let result = Err(Failure::new(ErrorKind::ModelInvalid, "no tensor 'x'"));
    bench.on(Event::Loaded { key: key_of("a", 2), result });
    assert_eq!(unfit(&bench).and_then(|it| it.0), Some(version(2)));
    let held = |by| Standing { by, store: InStore::Other(version(2)), ..Standing::default() };
    for (by, is_told) in [(Authority::Rule, true), (Authority::Operator, false)] {
        refresh(&mut bench);
        bench.resolved_with("a", 1, 30, held(by));
        assert_eq!(unfit(&bench).is_some(), is_told, "{by:?}");
    }
}

#[test]
fn a_newer_version_that_finds_no_room_in_time_is_told_though_nobody_waited_for_it() {
    let mut bench = bench();
    bench.resident("a", 30);
    // What is in use leaves no room, and no request waits.
    bench.acquire("a");
    bench.resident("b", 60);
    bench.acquire("b");
    bench.now += Duration::from_secs(120);
    bench.acquire("a");
    names(&mut bench, 2);
    bench.fetched_version("a", 2, 30);
    assert_eq!(unfit(&bench), None);
    bench.now += bench.table.config.load_timeout;
    let effects = bench.on(Event::TimePassed);
    assert!(decided(&effects).contains(&Action::Abandoned));
    assert_eq!(unfit(&bench).and_then(|it| it.0), Some(version(2)));
    // A cold load that is late is beside nothing.
    bench.on(Event::Cancelled { waiter: OPERATOR });
    bench.acquire("c");
    bench.resolved("c", 5);
    bench.fetched("c", 5);
    bench.now += bench.table.config.load_timeout;
    bench.on(Event::TimePassed);
    assert_eq!(bench.table.levels().unfit, 1, "that of a");
}

#[test]
fn a_version_fails_for_any_reason_but_a_store_that_is_away_for_once() {
    let kinds = [
        (ErrorKind::StoreDenied, [true; 2]),
        (ErrorKind::NotReady, [true; 2]),
        (ErrorKind::Internal, [true; 2]),
        // The second time the store had named the version again.
        (ErrorKind::StoreUnavailable, [false, true]),
    ];
    for (kind, told) in kinds {
        let mut bench = bench();
        bench.resident("a", 30);
        // Of a look for the newest none of these says anything.
        refresh(&mut bench);
        bench.on(Event::Resolved { model: model("a"), result: Err(Failure::new(kind, "no")) });
        assert_eq!(unfit(&bench), None, "{kind:?}");
        for is_told in told {
            refresh(&mut bench);
            names(&mut bench, 2);
            let result = Err(Failure::new(kind, "no"));
            bench.on(Event::Fetched { artefact: key_of("a", 2).artefact, result });
            assert_eq!(unfit(&bench).is_some(), is_told, "{kind:?}");
            bench.now += Duration::from_secs(120);
        }
    }
}
