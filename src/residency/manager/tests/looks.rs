//! Looks that hold up nobody for long.

use std::collections::BTreeSet;

use roundhouse_types::ArtefactId;

use super::*;
use crate::holdings::{Held, Holdings};
use crate::snapshot::{AfterResident, Snapshot};

/// More than a part has, and no whole number of parts.
const MANY: usize = 300;

async fn many() -> (Arc<ScriptedLoader>, Residency<String>) {
    let name = |number| &*String::leak(format!("m{number:03}"));
    let names: Vec<&'static str> = (0..MANY).map(name).collect();
    let loader = ScriptedLoader::new(names.iter().map(|name| (*name, Script::of(10))));
    let residency = start(10 * MANY as u64, &loader, Config::default());
    for name in names {
        drop(residency.acquire(&model(name), within(Duration::from_secs(3600))).await.unwrap());
    }
    (loader, residency)
}

/// The names of a part and where it goes on. No part visits more than a few.
async fn part(
    residency: &Residency<String>,
    after: Option<AfterResident>,
) -> (Vec<String>, Option<AfterResident>) {
    let part = residency.residents(after).await.unwrap();
    assert!(part.rows.len() <= 64, "{} at once", part.rows.len());
    (part.rows.iter().map(|(_, it)| it.target.to_string()).collect(), part.rest)
}

#[tokio::test(start_paused = true)]
async fn parts_and_the_outline_say_together_what_the_whole_says() {
    let (_loader, residency) = many().await;
    let whole = residency.snapshot().await.unwrap();
    let outline = residency.outline().await.unwrap();
    assert!(outline.devices[0].residents.is_empty());
    assert_eq!(outline.devices[0].charged_bytes, whole.devices[0].charged_bytes);
    let (mut found, mut rest) = (Vec::new(), None);
    loop {
        let part = residency.residents(rest).await.unwrap();
        found.extend(part.rows);
        rest = part.rest;
        if rest.is_none() {
            break;
        }
    }
    let mut residents = whole.devices[0].residents.clone();
    residents.sort_by(|one, other| one.target.cmp(&other.target));
    assert!(found.iter().all(|(device, _)| *device == DeviceId::Cpu));
    assert_eq!(found.into_iter().map(|(_, it)| it).collect::<Vec<_>>(), residents);
}

#[tokio::test(start_paused = true)]
async fn what_is_gathered_is_what_the_whole_says() {
    let (_loader, residency) = many().await;
    let sorted = |mut snapshot: Snapshot| {
        for device in &mut snapshot.devices {
            device.residents.sort_by(|one, other| one.target.cmp(&other.target));
        }
        serde_json::to_value(snapshot).unwrap()
    };
    let whole = sorted(residency.snapshot().await.unwrap());
    let gathered = residency.gathered().await.unwrap();
    assert_eq!(gathered.devices[0].residents.len(), MANY);
    assert_eq!(sorted(gathered), whole);
    // Few are seen at one instant.
    for number in 10..MANY {
        residency.unload(&model(&format!("m{number:03}"))).await.unwrap();
    }
    let few = residency.gathered().await.unwrap();
    assert_eq!(few.devices[0].residents.len(), 10);
    assert_eq!(few.devices[0].charged_bytes, Bytes(100));
}

#[tokio::test(start_paused = true)]
async fn a_look_at_one_model_says_what_the_whole_says_of_it_and_nothing_of_others() {
    let (_loader, residency) = many().await;
    let whole = residency.snapshot().await.unwrap();
    let one = residency.snapshot_of(&model("m123")).await.unwrap();
    let of_whole = whole.devices[0].residents.iter().find(|it| it.target.as_str() == "m123");
    assert_eq!(one.devices[0].residents.iter().collect::<Vec<_>>(), Vec::from_iter(of_whole));
    assert_eq!(one.devices[0].charged_bytes, whole.devices[0].charged_bytes);
    let none = residency.snapshot_of(&model("nobody")).await.unwrap();
    assert!(none.devices[0].residents.is_empty());
}

/// What a snapshot says of the memory, in order.
fn in_memory(snapshot: &Snapshot) -> Vec<String> {
    let mut told = Vec::new();
    for it in &snapshot.devices {
        told.push(format!("{} {} of {}", it.id, it.charged_bytes.0, it.budget_bytes.0));
        let of = |its: &crate::snapshot::ResidentSnapshot| {
            let version = its.version.as_str();
            format!(
                "{} {} {version} {:?} {:?} {:?}",
                it.id, its.target, its.kind, its.state, its.bytes
            )
        };
        told.extend(it.residents.iter().map(of));
    }
    let host = snapshot.host.as_ref().expect("it has a budget");
    let [charged, reserved] = [host.charged_bytes, host.reserved_bytes];
    told.push(format!("host {} and {} of {}", charged.0, reserved.0, host.budget_bytes.0));
    told.extend(host.copies.iter().map(|it| {
        let version = it.version.as_str();
        format!("host {} {version} {:?} {:?} {:?}", it.target, it.kind, it.state, it.bytes)
    }));
    told.extend(snapshot.loads.iter().map(|it| format!("{} {:?}", it.target, it.state)));
    told.sort();
    told
}

/// The same of what it is held against.
fn held(holdings: &Holdings) -> Vec<String> {
    let mut told = Vec::new();
    for it in &holdings.devices {
        told.push(format!("{} {} of {}", it.id, it.charged.0, it.budget.0));
        told.extend(it.residents.iter().map(|its| format!("{} {}", it.id, words(its))));
    }
    let host = &holdings.host;
    told.push(format!("host {} and {} of {}", host.charged.0, host.reserved.0, host.budget.0));
    told.extend(host.copies.iter().map(|it| format!("host {}", words(it))));
    told.extend(holdings.loads.iter().map(|it| format!("{} {:?}", it.target, it.state)));
    told.sort();
    told
}

fn words<S: std::fmt::Debug>(held: &Held<S>) -> String {
    let ArtefactId { model, version } = &held.artefact;
    let (target, version) = (&model.target, version.as_str());
    format!("{target} {version} {:?} {:?} {:?}", held.kind, held.state, held.bytes)
}

#[tokio::test(start_paused = true)]
async fn what_lies_in_memory_is_what_the_whole_says_at_every_instant() {
    let slow = Script { unload: Duration::from_secs(3), ..Script::of(80) };
    let names = ["a", "b", "c", "d"];
    let loader = ScriptedLoader::new(names.map(|name| (name, slow.clone())));
    let config = Config { host_budget: Bytes(170), ..Config::default() };
    let devices = [0, 1].map(|ordinal| (DeviceId::Simulated(ordinal), Bytes(100)));
    let residency = Residency::start(config, devices.to_vec(), Arc::clone(&loader));
    let mut seen = BTreeSet::new();
    for name in names.iter().cycle().take(9) {
        let asked = tokio::spawn({
            let (residency, model) = (residency.clone(), model(name));
            async move { residency.acquire(&model, within(Duration::from_secs(600))).await }
        });
        while !asked.is_finished() {
            let whole = in_memory(&residency.snapshot().await.unwrap());
            let holdings = held(&residency.holdings().await.unwrap());
            // What changed between them is no difference.
            if whole != in_memory(&residency.snapshot().await.unwrap()) {
                continue;
            }
            assert_eq!(holdings, whole);
            for word in ["Ready", "Draining", "Unloading", "Leaving", "Loading"] {
                let is_there = |line: &String| line.contains(word);
                seen.extend(whole.iter().any(is_there).then_some(word));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    assert!(seen.len() >= 4, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn who_stays_is_seen_once_whoever_comes_and_leaves_between_two_parts() {
    let (_loader, residency) = many().await;
    let (mut seen, mut rest) = part(&residency, None).await;
    let mut left = BTreeSet::new();
    // What leaves has its place taken by the one that came last, as the table keeps them.
    for number in (0..MANY).step_by(7) {
        if rest.is_none() {
            break;
        }
        let name = format!("m{number:03}");
        residency.unload(&model(&name)).await.unwrap();
        left.insert(name);
        let (more, next) = part(&residency, rest).await;
        seen.extend(more);
        rest = next;
    }
    let stayed = seen.iter().filter(|name| !left.contains(*name));
    let distinct: BTreeSet<_> = stayed.clone().collect();
    assert_eq!(stayed.count(), distinct.len(), "none twice");
    assert_eq!(distinct.len(), MANY - left.len(), "and none is missed");
}

#[tokio::test(start_paused = true)]
async fn what_failed_is_found_without_a_walk_and_is_gone_when_it_serves() {
    let broken = Failure::new(ErrorKind::ModelInvalid, "broken");
    let script = Script { load_fails: Some(broken), ..Script::of(10) };
    let loader = ScriptedLoader::new([("a", script)]);
    let residency = start(100, &loader, Config::default());
    residency.acquire(&model("a"), soon()).await.unwrap_err();
    let failed = residency.outline().await.unwrap().failed;
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].target.as_str(), "a");
    loader.change("a", |script| script.load_fails = None);
    tokio::time::sleep(Duration::from_secs(120)).await;
    residency.acquire(&model("a"), soon()).await.unwrap();
    assert!(residency.outline().await.unwrap().failed.is_empty());
}
