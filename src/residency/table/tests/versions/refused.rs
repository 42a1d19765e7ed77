//! Versions that fail beside others: when they are tried again, and who is told.

use super::*;

fn failure(kind: ErrorKind) -> Failure {
    Failure::new(kind, "not today")
}

fn asks(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Resolve { .. }))
}

fn fetches(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Fetch { .. }))
}

fn refuses(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Refuse { .. }))
}

#[test]
fn a_version_that_fails_beside_one_that_serves_is_tried_again_after_pauses_that_grow() {
    for kind in [ErrorKind::StoreUnavailable, ErrorKind::ModelFailed, ErrorKind::TooLarge] {
        let mut bench = bench();
        bench.resident("a", 30);
        let mut tried = Vec::new();
        let fails = |bench: &mut Bench| {
            let result = Err(failure(kind));
            bench.on(Event::Fetched { artefact: key_of("a", 2).artefact, result });
        };
        for look in 1..=17 {
            bench.now += bench.table.config.refresh_every;
            assert!(asks(&bench.acquire("a")), "{kind:?}: it is looked, at least");
            if fetches(&names(&mut bench, 2)) {
                tried.push(look);
                fails(&mut bench);
            }
        }
        assert_eq!(tried, [1, 2, 4, 8, 16], "{kind:?}");
        refresh(&mut bench);
        assert!(fetches(&names(&mut bench, 2)), "{kind:?}: an operator asks");
        fails(&mut bench);
        // Another one is tried at once.
        bench.now += bench.table.config.refresh_every;
        bench.acquire("a");
        assert!(fetches(&names(&mut bench, 3)), "{kind:?}");
    }
}

/// Version 1 has left the device, and before that version 2 failed beside it.
fn unloaded_after_a_failure() -> Bench {
    let mut bench = bench();
    bench.resident("a", 30);
    refresh(&mut bench);
    names(&mut bench, 2);
    bench.fetched_version("a", 2, 30);
    let result = Err(failure(ErrorKind::ModelInvalid));
    bench.on(Event::Loaded { key: key_of("a", 2), result });
    sent_away(&mut bench);
    bench
}

#[test]
fn who_comes_after_an_unload_is_answered_by_the_version_before_the_one_that_failed() {
    let mut bench = unloaded_after_a_failure();
    assert!(asks(&bench.acquire("a")));
    names(&mut bench, 1);
    assert_eq!(granted(&arrives(&mut bench, 1)).len(), 1);
}

#[test]
fn where_no_version_before_it_is_named_the_failure_is_told_and_the_next_need_not_ask() {
    let mut bench = unloaded_after_a_failure();
    assert!(asks(&bench.acquire("a")));
    assert!(refuses(&names(&mut bench, 2)));
    let effects = bench.acquire("a");
    assert!(refuses(&effects) && !asks(&effects));
}

#[test]
fn a_request_that_comes_when_a_look_is_due_waits_for_it_though_the_last_failure_pauses_the_model() {
    for is_mended in [false, true] {
        let mut bench = bench();
        // The longest pause is longer than the time between looks.
        for attempt in 0..7 {
            bench.now += Duration::from_secs(60 * u64::from(attempt > 0));
            bench.acquire("a");
            names(&mut bench, 1);
            let result = Err(failure(ErrorKind::ModelInvalid));
            bench.on(Event::Fetched { artefact: key_of("a", 1).artefact, result });
        }
        let effects = bench.acquire("a");
        assert!(refuses(&effects) && !asks(&effects));
        bench.now += bench.table.config.refresh_every;
        let effects = bench.acquire("a");
        assert!(asks(&effects) && !refuses(&effects));
        let is_fresh = |effect: &Effect| matches!(effect, Effect::Resolve { refresh: true, .. });
        assert!(effects.iter().any(is_fresh), "what is remembered is the version that failed");
        if is_mended {
            names(&mut bench, 2);
            assert_eq!(granted(&arrives(&mut bench, 2)).len(), 1);
        } else {
            assert!(refuses(&names(&mut bench, 1)));
        }
    }
}

#[test]
fn what_was_found_of_an_upload_is_told_until_another_one_has_settled() {
    let mut bench = bench();
    bench.resident("a", 30);
    let look = |bench: &mut Bench, number, standing| {
        refresh(bench);
        bench.resolved_with("a", number, 30, standing);
        unfit(bench).and_then(|it| it.0)
    };
    let standing = |unsettled, unfit| Standing { unfit, unsettled, ..Standing::default() };
    assert_eq!(look(&mut bench, 1, standing(false, damaged())), Some(version(2)));
    assert_eq!(look(&mut bench, 1, standing(true, None)), Some(version(2)), "it is written anew");
    assert_eq!(look(&mut bench, 3, standing(false, None)), None);
}
