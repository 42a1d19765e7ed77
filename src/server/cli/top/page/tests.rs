use serde_json::json;

use super::*;

fn device() -> Value {
    json!({"id": "cpu", "budget_bytes": 80, "configured_bytes": 100, "charged_bytes": 40,
    "reserved_bytes": 10, "residents": {"e/a@1": {
        "endpoint": "e", "target": "a\u{1b}[2J", "version": "0123456789abcdef",
        "state": "ready", "kept": true, "leases": 2, "last_used": "t", "share_bytes": 40,
        "bytes": {"weights": 20, "kv": 20, "workspace": 5, "host": 5},
        "serves": {"kv": {"token_bytes": 1, "used": {"tokens": 10}, "now": {"tokens": 20}}}
    }}})
}

fn feed(state: Value) -> Feed {
    let mut feed = Feed::default();
    feed.begin_with(state, json!({"samples": []}));
    feed
}

#[test]
fn rates_are_of_the_time_that_the_server_says() {
    let mut feed = Feed::default();
    feed.begin_with(json!({}), json!({"every_ms": 2000, "samples": [{"requests": 9}]}));
    let page = Page::new(&feed, "http://x", Room::PAPER).render();
    assert!(page.contains("requests 4.5/s"), "{page}");
    feed.begin_with(json!({}), json!({"every_ms": 0, "samples": [{"requests": 9}]}));
    let page = Page::new(&feed, "http://x", Room::PAPER).render();
    assert!(page.contains("requests -\n"), "{page}");
}

#[test]
fn wide_letters_take_two_columns() {
    let named = json!({"failed": {"e/a@": {"endpoint": "e", "target": "模型模型模型模型",
        "state": "failed", "message": "한".repeat(200)}}, "unready": "待".repeat(100)});
    let feed = feed(named);
    for columns in [7, 20, 61, 80] {
        let room = Room { columns, rows: Some(24), colours: false };
        for line in Page::new(&feed, "http://x", room).render().lines() {
            let wide = |c: char| usize::from(!c.is_ascii());
            let taken: usize = line.chars().map(|c| 1 + wide(c)).sum();
            assert!(taken <= columns, "{columns}: {line}");
        }
    }
}

#[test]
fn a_bar_is_to_scale_and_as_long_as_it_should_be() {
    // 40 of 100 in the ratio 20:10:10:10 of bytes, 10 reserved, 30 free, 20 used by others.
    let drawn = bar(&device(), 50);
    assert_eq!(
        drawn,
        format!(
            "{}{}{}{}{}{}{}",
            "#".repeat(8),
            "=".repeat(4),
            "k".repeat(4),
            "-".repeat(4),
            "r".repeat(5),
            " ".repeat(15),
            "x".repeat(10)
        )
    );
    assert_eq!(bar(&json!({"budget_bytes": 0}), 7).len(), 7);
    let over = json!({"budget_bytes": 10, "reserved_bytes": 30});
    assert_eq!(bar(&over, 9), "r".repeat(9));
}

#[test]
fn a_page_fits_its_terminal_and_no_name_steers_it() {
    let mut state = json!({"devices": {"cpu": device()}, "waiters": 1, "build": "1",
        "failed": {"e/f@": {"endpoint": "e", "target": "f", "state": "failed",
        "message": "no\u{7}good"}}, "loads": {"e/l@": {"endpoint": "e", "target": "l",
        "state": "waiting_to_load", "waiters": 3}}});
    let residents = state["devices"]["cpu"]["residents"].as_object_mut().unwrap();
    let one = residents["e/a@1"].clone();
    for index in 0..100 {
        residents.insert(format!("e/m{index}@1"), one.clone());
    }
    let feed = feed(state);
    for (columns, rows) in [(60, 20), (80, 24), (200, 50), (40, 10)] {
        let room = Room { columns, rows: Some(rows), colours: false };
        let page = Page::new(&feed, "http://x", room).render();
        assert!(page.lines().count() <= rows, "{page}");
        assert!(page.lines().all(|line| line.chars().count() <= columns), "{page}");
    }
    let page = Page::new(&feed, "http://x", Room::PAPER).render();
    for words in ["waiting to load", "failed: no", "ready, kept", "10/20", "... and 51 more"] {
        assert!(page.contains(words), "'{words}' is not in {page}");
    }
    assert!(page.chars().all(|it| it == '\n' || !it.is_control()), "{page}");
}

#[test]
fn containers_are_shown_and_those_that_are_not_well_come_first() {
    let container = |name: &str, state: &str| {
        json!({"endpoint": "pipe", "name": name, "state": state, "in_flight": 3,
            "max_in_flight": 8, "pid": 77, "restarts": 2, "address": "http://127.0.0.1:9",
            "failure": "its process was ended by signal 9"})
    };
    let state = json!({"containers": {"pipe/a@": container("a", "healthy"),
        "pipe/b@": container("b", "left_alone")}});
    let page = Page::new(&feed(state), "http://x", Room::PAPER).render();
    let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("pipe:")).collect();
    assert!(lines[0].starts_with("pipe:b     left alone"), "{page}");
    assert!(lines[1].starts_with("pipe:a     healthy"), "{page}");
    for words in ["3/8", "77", "http://127.0.0.1:9", "its process was ended"] {
        assert!(lines[0].contains(words), "'{words}' is not in {page}");
    }
}

#[test]
fn eighty_columns_hold_all_figures_and_why_a_model_failed() {
    let why = "the store denies access to the bucket, and the role that was assumed is none";
    let state = json!({"devices": {"cpu": device()}, "waiters": 128, "build": "0.9.0",
        "time": "2026-11-21T23:59:59.000Z", "failed": {"e/f@": {"endpoint": "e",
        "target": "team/f", "state": "failed", "message": why}},
        "disk": {"used_bytes": 5_000_000_000_u64, "budget_bytes": 50_000_000_000_u64}});
    let mut feed = Feed::default();
    let told = json!({"p50": 0.0123, "p95": 1.25});
    let sample = json!({"requests": 1234, "hits": 9, "grants": 10, "evictions": 1_000_000,
        "regret_lower": 1.25, "regret_upper": 1.5, "regret_requests": 10_000,
        "first_token": told, "per_token": told, "queue": told});
    feed.begin_with(state, json!({"every_ms": 1000, "samples": [sample]}));
    let room = Room { columns: 80, rows: Some(30), colours: false };
    let page = Page::new(&feed, "http://127.0.0.1:8081", room).render();
    assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    for words in [
        "ready\n",
        "requests 1234.0/s",
        "evictions 1000000",
        "regret 1.25 to 1.50",
        "queue 12.3 ms (95 % 1.25 s)",
        "disk 4.7 GiB of 46.6 GiB",
        "assumed is none",
        "x used by others",
        "IN USE\n",
    ] {
        assert!(page.contains(words), "'{words}' is not in\n{page}");
    }
}

#[test]
fn a_lost_server_is_told_with_what_was_known() {
    let mut feed = feed(json!({"devices": {"cpu": device()}}));
    feed.lost("gone");
    let page = Page::new(&feed, "http://x", Room::PAPER).render();
    assert!(page.contains("DISCONNECTED: gone") && page.contains("cpu ["), "{page}");
}
