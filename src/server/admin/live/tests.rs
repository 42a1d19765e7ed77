use std::sync::Mutex;

use roundhouse_residency::{Action, Decision};
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::routes::Reader;
use super::*;

/// A server whose state the test writes.
struct Stage {
    live: Live,
    shown: Arc<Mutex<Value>>,
    decisions: broadcast::Sender<Decision>,
    looks: Arc<Mutex<u32>>,
}

impl Stage {
    fn new() -> Self {
        let shown = Arc::new(Mutex::new(json!({"waiters": 0, "devices": [], "disk": null})));
        let looks = Arc::new(Mutex::new(0));
        let (decisions, inbox) = broadcast::channel(4096);
        let (looked, counted) = (shown.clone(), looks.clone());
        let live = Live::start(Sources {
            look: Box::new(move || {
                *counted.lock().unwrap() += 1;
                let state = looked.lock().unwrap().clone();
                Box::pin(async { Ok(state) })
            }),
            render: Box::new(String::new),
            decisions: inbox,
        });
        Self { live, shown, decisions, looks }
    }

    fn decide(&self, count: usize) {
        for number in 0..count {
            let decision = Decision {
                time: String::new(),
                endpoint: "e".parse().unwrap(),
                target: format!("m{number}").parse().unwrap(),
                version: None,
                device: None,
                times: 1,
                message: String::new(),
                action: Action::Fetched,
            };
            self.decisions.send(decision).unwrap();
        }
    }

    async fn read(&self, wants: Wants, seen: Option<&str>) -> (Vec<Frame>, Reader) {
        let Reading { first, at, rest, taken } =
            self.live.read(wants, seen.map(str::to_owned)).await.unwrap();
        (first, Reader { rest, at, wants, taken, holds: Box::new(|| true) })
    }
}

fn data(frame: &Frame) -> Value {
    serde_json::from_str(&frame.data).unwrap()
}

async fn next(reader: &mut Reader, event: &str) -> Frame {
    loop {
        let frames = reader.next().await.expect("the stream goes on");
        if let Some(found) = frames.into_iter().find(|frame| frame.event == event) {
            return found;
        }
    }
}

/// Reads decisions until as many have come; returns their ids.
async fn ids(reader: &mut Reader, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        ids.push(next(reader, "decision").await.id.unwrap().to_string());
    }
    ids
}

#[tokio::test(start_paused = true)]
async fn a_reader_has_the_whole_state_first_and_then_what_changes() {
    let stage = Stage::new();
    let (first, mut reader) = stage.read(Wants::All, None).await;
    let mut state = data(&first[0])["state"].clone();
    assert_eq!(state, json!({"waiters": 0, "devices": {}}));
    *stage.shown.lock().unwrap() = json!({"waiters": 3, "devices": [{"id": "cpu"}]});
    while state["waiters"] == 0 {
        patch::apply(&mut state, data(&next(&mut reader, "change").await));
    }
    assert_eq!(state, json!({"waiters": 3, "devices": {"cpu": {"id": "cpu"}}}));
    let (first, _) = stage.read(Wants::All, None).await;
    assert_eq!(data(&first[0])["state"], state, "who comes later is told the same");
    assert_eq!(data(&next(&mut reader, "change").await), json!({}), "the pulse goes on");
}

#[tokio::test(start_paused = true)]
async fn nobody_looks_while_nobody_reads() {
    let stage = Stage::new();
    tokio::time::sleep(BEAT * 100).await;
    assert_eq!(*stage.looks.lock().unwrap(), 0);
    let (_, reader) = stage.read(Wants::All, None).await;
    drop(reader);
    let before = *stage.looks.lock().unwrap();
    tokio::time::sleep(BEAT * 100).await;
    assert!(*stage.looks.lock().unwrap() <= before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_costs_no_looks_and_may_take_up_again() {
    let stage = Stage::new();
    let (first, mut reader) = stage.read(Wants::All, None).await;
    let mut state = data(&first[0])["state"].clone();
    next(&mut reader, "change").await;
    tokio::time::sleep(BEAT * 40).await;
    let stalled = *stage.looks.lock().unwrap();
    *stage.shown.lock().unwrap() = json!({"waiters": 7, "devices": []});
    tokio::time::sleep(BEAT * 100).await;
    assert_eq!(*stage.looks.lock().unwrap(), stalled);
    // Another one that comes has the state looked at; the first has no hole in what it knows.
    let (_, other) = stage.read(Wants::All, None).await;
    drop(other);
    while state["waiters"] != 7 {
        patch::apply(&mut state, data(&next(&mut reader, "change").await));
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_come_and_go_fast_have_the_state_looked_at_no_more_often() {
    let stage = Stage::new();
    for _ in 0..100 {
        stage.read(Wants::All, None).await;
    }
    assert_eq!(*stage.looks.lock().unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reader_whose_key_is_revoked_is_told_nothing_more() {
    let stage = Stage::new();
    let revoked = Arc::new(Mutex::new(false));
    for wants in [Wants::All, Wants::Decisions] {
        let (_, mut reader) = stage.read(wants, None).await;
        let asked = revoked.clone();
        reader.holds = Box::new(move || !*asked.lock().unwrap());
        *revoked.lock().unwrap() = false;
        stage.decide(1);
        next(&mut reader, "decision").await;
        *revoked.lock().unwrap() = true;
        stage.decide(1);
        assert!(reader.next().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_comes_again_is_told_what_it_missed() {
    let stage = Stage::new();
    let (_, mut reader) = stage.read(Wants::Decisions, None).await;
    stage.decide(5);
    let told = ids(&mut reader, 5).await;
    for wants in [Wants::Decisions, Wants::All] {
        let (first, _) = stage.read(wants, Some(&told[2])).await;
        let again: Vec<_> = first.iter().filter_map(|it| it.id).map(|id| id.to_string()).collect();
        assert_eq!(again, told[3..]);
    }
    let foreign = format!("{:08x}-3", 7);
    for seen in [None, Some(foreign.as_str()), Some("no id")] {
        let (first, _) = stage.read(Wants::Decisions, seen).await;
        assert!(first.is_empty(), "decisions from now on");
        let (first, _) = stage.read(Wants::All, seen).await;
        assert_eq!(first.iter().filter(|it| it.event == "decision").count(), 5, "the latest");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_has_a_bound_and_a_gap_is_told() {
    let stage = Stage::new();
    let (_, mut reader) = stage.read(Wants::Decisions, None).await;
    stage.decide(1);
    let told = ids(&mut reader, 1).await;
    stage.decide(3000);
    // The task has seen all of them when one more reader is answered after the last.
    let mut seen = 0;
    while seen < 3001 {
        let (_, other) = stage.read(Wants::Decisions, None).await;
        seen = other.at;
    }
    let (first, _) = stage.read(Wants::Decisions, Some(&told[0])).await;
    assert_eq!((first[0].event, data(&first[0])), ("missed", json!(3000 - 1024)));
    assert_eq!(first.len(), 1 + 1024);
    let frames = reader.next().await.unwrap();
    assert_eq!(frames[0].event, "missed", "it was too slow for this stream");
    let (missed, next) = (data(&frames[0]).as_u64().unwrap(), frames[1].id.unwrap().number);
    assert_eq!(next, 1 + missed + 1, "and is told how many");
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_the_state_that_falls_behind_is_cut_off() {
    let stage = Stage::new();
    let (_, mut reader) = stage.read(Wants::All, None).await;
    stage.decide(3000);
    let mut seen = 0;
    while seen < 3000 {
        let (_, other) = stage.read(Wants::Decisions, None).await;
        seen = other.at;
    }
    assert!(reader.next().await.is_none(), "what it knows has a hole");
}
