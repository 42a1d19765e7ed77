use std::time::Duration;

use roundhouse_types::Bytes;

use super::*;
use crate::config::{Config, Policy};
use crate::testing::model;

/// Requests for models by the letters of `asked`, one each second; every model takes `bytes`.
fn trace(asked: &str, bytes: u64) -> Trace {
    let mut trace = Trace::new();
    for (second, letter) in asked.chars().enumerate() {
        let at = Duration::from_secs(second as u64);
        trace.push(at, &model(&letter.to_string()));
    }
    trace.size(|_| Bytes(bytes));
    trace.sort();
    trace
}

/// 100 bytes per second from the store and 1000 onto the device, and nothing else takes time.
fn setup(budget: u64) -> Setup {
    Setup {
        config: Config::default(),
        budget: Bytes(budget),
        world: World {
            store_bandwidth: Bytes(100),
            store_latency: Duration::ZERO,
            on_disk: false,
            disk: None,
            load_bandwidth: Bytes(1000),
            load_latency: Duration::ZERO,
            unload: Duration::ZERO,
            service: Duration::ZERO,
        },
        drive: Drive::Open { compress: 1.0 },
        hold: Duration::from_secs(60),
    }
}

fn milliseconds(wait: f64) -> f64 {
    wait.round()
}

#[test]
fn a_cold_request_waits_for_fetch_and_load_and_a_warm_one_not_at_all() {
    let outcome = run(&trace("aa", 50), &setup(100));
    assert_eq!((outcome.hits, outcome.loads, outcome.evictions), (1, 1, 0));
    assert_eq!(milliseconds(outcome.waits.max_ms), 550.0);
    assert_eq!((outcome.answered, outcome.refused), (2, 0));
    assert_eq!((outcome.hit_ratio, outcome.miss_ratio), (0.5, 0.5));
}

#[test]
fn what_was_fetched_once_is_on_disk_unless_the_disk_is_too_small() {
    // b's load makes a leave; a comes back from disk in 50 ms.
    let outcome = run(&trace("aba", 50), &setup(50));
    assert_eq!((outcome.loads, outcome.evictions), (3, 2));
    assert_eq!((outcome.loaded_bytes, outcome.fetched_bytes), (Bytes(150), Bytes(100)));
    let mut small = setup(50);
    small.world.disk = Some(Bytes(60));
    assert_eq!(run(&trace("aba", 50), &small).fetched_bytes, Bytes(150));
    small.world.on_disk = true;
    // b, the last in, is there; a makes it leave.
    assert_eq!(run(&trace("bab", 50), &small).fetched_bytes, Bytes(150));
    let mut warm = setup(50);
    warm.world.on_disk = true;
    assert_eq!(run(&trace("aba", 50), &warm).fetched_bytes, Bytes::ZERO);
}

#[test]
fn fetches_side_by_side_share_the_store() {
    let mut setup = setup(100);
    setup.drive = Drive::Open { compress: 1e9 };
    let outcome = run(&trace("ab", 50), &setup);
    // Both are on disk after a second; then both load side by side.
    assert_eq!(milliseconds(outcome.waits.max_ms), 1100.0);
    assert_eq!(milliseconds(outcome.waits.p50_ms), 1100.0);
}

#[test]
fn a_request_is_refused_when_its_hold_time_is_over_and_the_load_goes_on() {
    let mut setup = setup(100);
    setup.hold = Duration::from_millis(500);
    let outcome = run(&trace("aa", 50), &setup);
    assert_eq!((outcome.refused, outcome.answered, outcome.hits), (1, 1, 1));
    let too_large = run(&trace("a", 101), &setup);
    assert_eq!((too_large.refused, too_large.loads), (1, 0));
}

#[test]
fn a_closed_loop_keeps_as_many_unanswered_as_it_is_told() {
    let mut setup = setup(50);
    setup.drive = Drive::Closed { pending: 1 };
    setup.world.service = Duration::from_secs(1);
    let outcome = run(&trace("aab", 50), &setup);
    // 0.55 + 1 + 1, then b: 0.5 of fetching, 0.05 of loading, 1 of service.
    assert!((outcome.seconds - 4.1).abs() < 1e-6, "{}", outcome.seconds);
    assert!((outcome.goodput - 3.0 / 4.1).abs() < 1e-6);
    setup.drive = Drive::Closed { pending: 3 };
    let outcome = run(&trace("aab", 50), &setup);
    assert_eq!((outcome.hits, outcome.loads), (0, 2), "both requests for a wait for one load");
}

#[test]
fn a_later_request_for_a_resident_overtakes_one_that_needs_a_load() {
    // b comes after a second and waits for 0.55; the third request finds a, 0.1 after.
    let mut overtaken = Trace::new();
    for (at, name) in [(0, "a"), (1000, "b"), (1100, "a"), (1200, "a")] {
        overtaken.push(Duration::from_millis(at), &model(name));
    }
    overtaken.size(|_| Bytes(50));
    overtaken.sort();
    let outcome = run(&overtaken, &setup(100));
    assert_eq!((outcome.hits, outcome.most_overtakings), (2, 2));
}

/// A trace in which lower numbers are asked for more often.
fn skewed(requests: u64, models: u64) -> Trace {
    let mut trace = Trace::new();
    let mut state = 7_u64;
    let mut dice = |bound: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    for second in 0..requests {
        let chosen = dice(models).min(dice(models)).min(dice(models));
        trace.push(Duration::from_secs(second), &model(&format!("m{chosen}")));
    }
    trace.size(|_| Bytes(10));
    trace.sort();
    trace
}

#[test]
fn the_same_trace_and_setup_give_the_same_outcome() {
    let trace = skewed(500, 12);
    let mut setup = setup(50);
    setup.drive = Drive::Closed { pending: 8 };
    assert_eq!(run(&trace, &setup), run(&trace, &setup));
}

#[test]
fn one_request_at_a_time_loads_what_plain_lru_loads() {
    let trace = skewed(1500, 12);
    for slots in [1, 3, 6, 11] {
        let mut setup = setup(10 * slots);
        setup.config.policy = Policy::LeastRecentlyUsed;
        setup.drive = Drive::Closed { pending: 1 };
        let outcome = run(&trace, &setup);
        let plain = reference::lru(&trace.sequence(), Bytes(10 * slots));
        assert_eq!((outcome.loads, outcome.hits), (plain.loads, 1500 - plain.loads), "{slots}");
    }
}

#[test]
fn the_least_budget_reaches_the_target_and_one_slot_less_does_not() {
    let trace = skewed(400, 12);
    let mut setup = setup(0);
    setup.drive = Drive::Closed { pending: 1 };
    let found = least_budget(&trace, &setup, 0.7).expect("all models at once reach it");
    assert!(found.hit_ratio >= 0.7 && found.models == 12);
    let less = Setup { budget: Bytes(found.budget.0 - 10), ..setup.clone() };
    assert!(run(&trace, &less).hit_ratio < 0.7);
    assert_eq!(least_budget(&trace, &setup, 0.999), None);
}
