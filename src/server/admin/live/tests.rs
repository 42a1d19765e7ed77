use std::sync::Mutex;

use roundhouse_residency::{Action, Decision, ResidentSnapshot, ResidentState};
use roundhouse_types::{Bytes, DeviceId, Footprint, ModelKind};
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::routes::Reader;
use super::*;

/// A server whose state the test writes.
struct Stage {
    live: Live,
    shown: Arc<Mutex<Value>>,
    rows: Arc<Mutex<Vec<Row>>>,
    decisions: broadcast::Sender<Decision>,
    looks: Arc<Mutex<u32>>,
}

impl Stage {
    fn new() -> Self {
        let shown = Arc::new(Mutex::new(json!({"waiters": 0, "devices": [], "disk": null})));
        let looks = Arc::new(Mutex::new(0));
        let (decisions, inbox) = broadcast::channel(4096);
        let rows = Arc::<Mutex<Vec<Row>>>::default();
        let (looked, counted, held) = (shown.clone(), looks.clone(), rows.clone());
        let live = Live::start(Sources {
            outline: Box::new(move || {
                *counted.lock().unwrap() += 1;
                let state = looked.lock().unwrap().clone();
                Box::pin(async { Ok(state) })
            }),
            part: Box::new(move |from| {
                // Residents, then copies.
                let (rows, rest) = match from {
                    Begin::Residents(_) => {
                        (held.lock().unwrap().clone(), Some(Begin::Copies(None)))
                    }
                    Begin::Copies(_) => (Vec::new(), None),
                };
                Box::pin(async { Ok(Part { rows, rest }) })
            }),
            render: Box::new(String::new),
            decisions: inbox,
        });
        Self { live, shown, rows, decisions, looks }
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
async fn a_pulse_comes_each_second_though_nothing_happens() {
    let stage = Stage::new();
    let began = Instant::now();
    let (_, mut reader) = stage.read(Wants::All, None).await;
    for _ in 0..10 {
        next(&mut reader, "change").await;
    }
    let took = began.elapsed();
    assert!(took <= 10 * BEAT + SOON, "ten took {took:?}");
}

/// A resident on the device cpu.
fn resident(name: &str, leases: u32) -> Row {
    let resident = ResidentSnapshot {
        endpoint: "e".parse().unwrap(),
        target: name.parse().unwrap(),
        version: roundhouse_types::Version::from_digest("1"),
        kind: ModelKind::Generative,
        base: None,
        adapters: 0,
        state: ResidentState::Ready,
        bytes: Footprint::default(),
        shared_bytes: Bytes::ZERO,
        share_bytes: Bytes::ZERO,
        leases,
        kept: false,
        offered: None,
        unfit: None,
        last_used: String::new(),
    };
    Row::Resident(DeviceId::Cpu, Box::new(resident), None)
}

#[tokio::test(start_paused = true)]
async fn of_a_thousand_residents_only_those_that_changed_are_told() {
    let stage = Stage::new();
    *stage.shown.lock().unwrap() = json!({"devices": [{"id": "cpu", "residents": []}]});
    let names: Vec<_> = (0..1000).map(|number| format!("acme/m{number}")).collect();
    *stage.rows.lock().unwrap() = names.iter().map(|name| resident(name, 0)).collect();
    let (first, mut reader) = stage.read(Wants::All, None).await;
    let mut state = data(&first[0])["state"].clone();
    let held = |state: &Value| state["devices"]["cpu"]["residents"].as_object().unwrap().len();
    assert_eq!(held(&state), 1000);
    {
        let mut rows = stage.rows.lock().unwrap();
        rows[7] = resident("acme/m7", 3);
        rows.remove(8);
        rows.push(resident("acme/fresh", 0));
    }
    let mut change = json!({});
    while change == json!({}) {
        change = data(&next(&mut reader, "change").await);
    }
    let told = change["devices"]["cpu"]["residents"].as_object().unwrap();
    assert_eq!(told.len(), 3, "{change}");
    assert_eq!(change["devices"].as_object().unwrap().len(), 1);
    let row = |name: &str| {
        let found = told.iter().find(|(key, _)| key.starts_with(&format!("e/acme/{name}@")));
        found.unwrap_or_else(|| panic!("{name} in {change}")).1.clone()
    };
    assert_eq!(row("m7"), json!({"leases": 3}), "and of those only what changed");
    assert_eq!(row("m8"), Value::Null);
    assert_eq!(row("fresh")["tenant"], "acme");
    patch::apply(&mut state, change.clone());
    assert_eq!(held(&state), 1000);
    let (first, _) = stage.read(Wants::All, None).await;
    assert_eq!(data(&first[0])["state"], state, "who comes later is told the same");
    assert_eq!(data(&next(&mut reader, "change").await), json!({}), "nothing more");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_gone_takes_its_residents_along_and_brings_them_back() {
    let stage = Stage::new();
    let there = json!({"devices": [{"id": "cpu", "residents": []}]});
    *stage.shown.lock().unwrap() = there.clone();
    *stage.rows.lock().unwrap() = vec![resident("a", 0)];
    let (first, mut reader) = stage.read(Wants::All, None).await;
    let mut state = data(&first[0])["state"].clone();
    for (shown, count) in [(json!({"devices": []}), 0), (there, 1)] {
        *stage.shown.lock().unwrap() = shown;
        let devices = |state: &Value| state["devices"].as_object().unwrap().len();
        while devices(&state) != count {
            patch::apply(&mut state, data(&next(&mut reader, "change").await));
        }
        if count == 1 {
            assert!(state["devices"]["cpu"]["residents"].as_object().unwrap().len() == 1);
        }
    }
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
