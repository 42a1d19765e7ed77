//! Where replicas, streaming loads, versions and limits meet, one sentence each.

use std::time::Duration;

use roundhouse_types::{Bytes, ErrorKind, Failure, Grade, ModelKind};

use super::bench::{bench, footprint, key_of};
use super::devices::{A_SECOND, FIRST, Rig, SECOND, grants, leaving, loads_of, on, rig};
use crate::loader::{LoadSource, Resolution, Standing};
use crate::table::{Effect, Event, Key, WaiterId};
use crate::testing::{artefact, model, version};

fn looks_up(effects: &[Effect], name: &str) -> bool {
    effects.iter().any(|effect| {
        matches!(effect, Effect::Resolve { model: of, refresh: false } if *of == model(name))
    })
}

fn abandons(effects: &[Effect], name: &str) -> bool {
    effects.iter().any(|effect| {
        matches!(effect, Effect::AbandonFetch { artefact: of } if *of == artefact(name, 1))
    })
}

fn refusals(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Refuse { .. })).count()
}

fn in_store(number: u64, bytes: u64) -> Resolution {
    Resolution {
        version: version(number),
        fetch_bytes: Bytes(bytes),
        footprint: Some((footprint(bytes), Grade::Exact)),
        shared: Vec::new(),
        kind: Some(ModelKind::Embedding),
        off_cards: false,
        base: None,
        streams: true,
        quarantined: false,
        standing: Standing::default(),
    }
}

impl Rig {
    /// Three requests that last; what the third one starts.
    fn make_hot(&mut self, name: &str) -> Vec<Effect> {
        self.ask(name);
        self.ask(name);
        self.now += 3 * A_SECOND;
        self.ask(name)
    }

    /// The replica of a hot model on the second device begins with its fetch.
    fn replica_arrives(&mut self, name: &str, bytes: u64) {
        assert_eq!(self.resident(name, bytes), FIRST);
        assert!(looks_up(&self.make_hot(name), name));
        let effects = self.streams(name, bytes);
        assert_eq!(loads_of(&effects, name), vec![SECOND]);
        let arrives = |it: &Effect| matches!(it, Effect::Load { source: LoadSource::Arriving, .. });
        assert!(effects.iter().any(arrives));
    }

    fn streams(&mut self, name: &str, bytes: u64) -> Vec<Effect> {
        self.on(Event::Resolved { model: model(name), result: Ok(in_store(1, bytes)) })
    }

    fn load_fails(&mut self, name: &str) -> Vec<Effect> {
        let failure = Failure::new(ErrorKind::NotReady, "the fetch ended");
        self.on(Event::Loaded { key: on(name, SECOND), result: Err(failure) })
    }
}

#[test]
fn a_look_for_a_replica_that_fails_is_not_put_again_at_once() {
    let mut rig = rig(100, 100);
    rig.resident("a", 30);
    assert!(looks_up(&rig.make_hot("a"), "a"));
    let failure = Failure::new(ErrorKind::StoreUnavailable, "no answer");
    rig.on(Event::Resolved { model: model("a"), result: Err(failure) });
    assert!(!looks_up(&rig.ask("a"), "a"), "each request would ask the store");
    rig.now += 6 * A_SECOND;
    assert!(looks_up(&rig.ask("a"), "a"));
}

#[test]
fn a_replica_that_arrives_is_stopped_before_one_in_use_leaves() {
    let mut rig = rig(50, 50);
    rig.replica_arrives("a", 40);
    let effects = rig.begin("new", 45);
    assert!(abandons(&effects, "a"));
    assert_eq!(rig.table.ready_keys(&model("a")), vec![on("a", FIRST)], "it goes on serving");
    assert_eq!(loads_of(&rig.load_fails("a"), "new"), vec![SECOND]);
    assert_eq!(grants(&rig.ask("a")), vec![on("a", FIRST)]);
}

#[test]
fn a_replica_that_was_stopped_does_not_come_back_at_once() {
    let mut rig = rig(50, 50);
    rig.replica_arrives("a", 40);
    rig.on(Event::BudgetChanged { device: SECOND, budget: Bytes(30) });
    rig.on(Event::BudgetChanged { device: SECOND, budget: Bytes(50) });
    rig.load_fails("a");
    assert!(!looks_up(&rig.ask("a"), "a"));
    rig.now += 6 * A_SECOND;
    assert!(looks_up(&rig.ask("a"), "a"));
}

#[test]
fn a_replica_that_arrives_is_stopped_when_its_version_serves_no_more() {
    let mut rig = rig(100, 100);
    rig.replica_arrives("a", 40);
    let failure = Failure::new(ErrorKind::ModelFailed, "the workers are gone");
    let effects = rig.on(Event::Died { key: on("a", FIRST), failure });
    assert!(abandons(&effects, "a"));
}

#[test]
fn a_replica_that_left_for_another_does_not_push_that_one_out_again_at_once() {
    let mut rig = rig(50, 50);
    rig.table.config.refresh_every = Duration::from_secs(3600);
    assert_eq!((rig.resident("hot", 40), rig.resident("rare", 40)), (FIRST, SECOND));
    rig.use_often("hot", 50);
    (0..3).for_each(|_| drop(rig.ask("hot")));
    rig.now += 3 * A_SECOND;
    assert!(looks_up(&rig.ask("hot"), "hot"));
    assert_eq!(leaving(&rig.found(&artefact("hot", 1), 40, &[])), vec![on("rare", SECOND)]);
    rig.unloaded(&on("rare", SECOND));
    rig.loaded(&on("hot", SECOND), 40, &[]);
    // Somebody asks for the one that left: the replica has to go.
    assert_eq!(leaving(&rig.begin("rare", 40)), vec![on("hot", SECOND)]);
    assert_eq!(loads_of(&rig.unloaded(&on("hot", SECOND)), "rare"), vec![SECOND]);
    rig.loaded(&on("rare", SECOND), 40, &[]);
    rig.release(&on("rare", SECOND));
    for _ in 0..10 {
        rig.now += 3 * A_SECOND;
        assert!(!looks_up(&rig.ask("hot"), "hot"), "rare would be loaded for each request");
    }
    rig.now += 60 * A_SECOND;
    assert!(looks_up(&rig.ask("hot"), "hot"));
}

#[test]
fn the_store_is_not_asked_because_a_replica_is_gone() {
    let mut rig = rig(100, 100);
    rig.replica_arrives("a", 40);
    let failure = Failure::new(ErrorKind::ModelFailed, "the workers are gone");
    rig.loaded(&on("a", SECOND), 40, &[]);
    rig.on(Event::Died { key: on("a", SECOND), failure });
    rig.unloaded(&on("a", SECOND));
    let effects = rig.ask("a");
    assert!(!effects.iter().any(|it| matches!(it, Effect::Resolve { .. })), "its version serves");
}

#[test]
fn that_nobody_is_idle_yet_is_known_with_replicas_too() {
    let mut rig = rig(100, 100);
    rig.table.config.idle_ttl = Some(Duration::from_secs(60));
    rig.on(Event::KeepChanged { model: model("a"), kept: true });
    assert_eq!(rig.resident("a", 30), FIRST);
    rig.on(Event::TimePassed);
    assert!(rig.table.idle_from.is_some(), "or each request walks over all residents");
    rig.make_hot("a");
    rig.found(&artefact("a", 1), 30, &[]);
    rig.loaded(&on("a", SECOND), 30, &[]);
    rig.on(Event::TimePassed);
    assert!(rig.table.idle_from.is_none(), "either of two may be the one that is kept");
    (0..3).for_each(|_| drop(rig.release(&on("a", FIRST))));
    rig.now += Duration::from_secs(61);
    assert_eq!(leaving(&rig.on(Event::TimePassed)).len(), 1);
}

#[test]
fn one_that_was_to_leave_does_not_serve_beside_the_version_that_came_back() {
    let mut rig = rig(100, 100);
    assert_eq!(loads_of(&rig.begin("a", 30), "a"), vec![FIRST]);
    rig.loaded(&on("a", FIRST), 30, &[]);
    rig.now += Duration::from_secs(40);
    rig.ask("a");
    let newer = artefact("a", 2);
    assert_eq!(loads_of(&rig.found(&newer, 30, &[]), "a"), vec![SECOND]);
    rig.loaded(&Key { artefact: newer, device: SECOND }, 30, &[]);
    assert_eq!(grants(&rig.ask("a"))[0].device, SECOND);
    rig.on(Event::BudgetChanged { device: FIRST, budget: Bytes(60) });
    let waits = rig.waiter().0;
    rig.begin("new", 90);
    assert!(rig.table.ready_keys(&model("a")).is_empty(), "it leaves for a load");
    let (waiter, hold_until) = rig.waiter();
    rig.on(Event::RefreshRequested { waiter, model: model("a"), hold_until });
    rig.found(&artefact("a", 1), 30, &[]);
    rig.on(Event::Cancelled { waiter: WaiterId(waits.0 + 1) });
    assert_eq!(rig.table.ready_keys(&model("a")), vec![on("a", FIRST)]);
}

#[test]
fn a_late_load_refuses_nobody_who_waits_for_a_newer_version() {
    let mut bench = bench();
    bench.acquire("a");
    bench.resolved("a", 30);
    bench.fetched("a", 30);
    bench.now += Duration::from_secs(345);
    bench.on(Event::Cancelled { waiter: WaiterId(1) });
    let (waiter, hold_until) = (WaiterId(100), bench.now + Duration::from_secs(60));
    bench.on(Event::RefreshRequested { waiter, model: model("a"), hold_until });
    bench.resolved_version("a", 2, 30);
    bench.waiters = 100;
    bench.acquire("a");
    bench.now += Duration::from_secs(16);
    assert_eq!(refusals(&bench.on(Event::TimePassed)), 0, "the newer one is on its way");
    bench.fetched_version("a", 2, 30);
    let loaded = bench.loaded_version("a", 2, 30);
    let granted = |it: &Effect| matches!(it, Effect::Grant(grant) if grant.key == key_of("a", 2));
    assert!(loaded.iter().any(granted));
}
