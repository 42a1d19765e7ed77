//! Replicas of hot models on two simulated devices, one sentence each.

use std::time::Duration;

use roundhouse_types::{Bytes, DeviceId, ErrorKind, Failure, Grade, ModelKind};

use super::bench::footprint;
use super::devices::{A_SECOND, FIRST, Rig, SECOND, grants, leaving, loads_of, on, rig, rig_with};
use crate::config::{Config, TenantLimits};
use crate::decision::{Action, Departure};
use crate::loader::{Resolution, Standing};
use crate::table::{Effect, Event, Key, LoadOptions, Report};
use crate::testing::{artefact, model, version};

const LONG: Duration = Duration::from_secs(11);

fn asks_for_a_version(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Resolve { refresh: false, .. }))
}

fn decided(effects: &[Effect], wanted: impl Fn(&Action) -> bool) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Decided(it) if wanted(&it.action)))
}

impl Rig {
    /// Two leases on each resident, held for long enough; the last answer shows what came of it.
    fn heat(&mut self, name: &str, leases: usize) -> (Vec<Key>, Vec<Effect>) {
        let mut held = Vec::new();
        for _ in 1..leases {
            held.extend(grants(&self.ask(name)));
        }
        self.now += 3 * A_SECOND;
        let effects = self.ask(name);
        held.extend(grants(&effects));
        (held, effects)
    }

    /// A hot model on both devices; says which leases are held.
    fn replicated(&mut self, name: &str, bytes: u64) -> Vec<Key> {
        let home = self.resident(name, bytes);
        let (held, effects) = self.heat(name, 3);
        assert!(asks_for_a_version(&effects), "{name} is hot");
        let other = if home == FIRST { SECOND } else { FIRST };
        assert_eq!(loads_of(&self.found(&artefact(name, 1), bytes, &[]), name), vec![other]);
        self.loaded(&on(name, other), bytes, &[]);
        held
    }

    /// The store's answer, of a version whose load may begin while it arrives.
    fn arriving(&mut self, name: &str, bytes: u64) -> Vec<Effect> {
        let resolution = Resolution {
            version: version(1),
            fetch_bytes: Bytes(bytes),
            footprint: Some((footprint(bytes), Grade::Exact)),
            shared: Vec::new(),
            kind: Some(ModelKind::Embedding),
            off_cards: false,
            base: None,
            streams: true,
            quarantined: false,
            standing: Standing::default(),
        };
        self.on(Event::Resolved { model: model(name), result: Ok(resolution) })
    }

    fn serving(&self, name: &str) -> Vec<DeviceId> {
        let mut keys = self.table.ready_keys(&model(name));
        keys.sort_unstable();
        keys.into_iter().map(|key| key.device).collect()
    }

    /// A replicated model whose requests have ended, for long enough to have cooled down.
    fn cooled(&mut self, name: &str, bytes: u64) {
        for key in self.replicated(name, bytes) {
            self.release(&key);
        }
        self.now += LONG;
    }
}

#[test]
fn a_burst_loads_no_replica_and_lasting_use_does() {
    let mut rig = rig(100, 100);
    rig.resident("a", 30);
    let burst: Vec<Key> = (0..20).flat_map(|_| grants(&rig.ask("a"))).collect();
    rig.now += A_SECOND;
    for key in &burst {
        rig.release(key);
    }
    rig.now += 3 * A_SECOND;
    assert!(!asks_for_a_version(&rig.ask("a")), "its use fell below half");
    let (_, effects) = rig.heat("a", 2);
    assert!(asks_for_a_version(&effects));
    let effects = rig.found(&artefact("a", 1), 30, &[]);
    assert!(decided(&effects, |it| *it == Action::Replicating { leases: 3, devices: 1 }));
    assert_eq!(loads_of(&effects, "a"), vec![SECOND]);
    let (_, effects) = rig.heat("a", 2);
    assert!(!asks_for_a_version(&effects), "one job per artefact");
}

#[test]
fn the_resident_with_the_fewest_leases_takes_the_next_request() {
    let mut rig = rig(100, 100);
    let held = rig.replicated("a", 30);
    assert_eq!(held, vec![on("a", FIRST); 3]);
    let next: Vec<DeviceId> = (0..5).map(|_| grants(&rig.ask("a"))[0].device).collect();
    assert_eq!(next, vec![SECOND, SECOND, SECOND, FIRST, SECOND]);
    let (sentence, _) = rig.table.standing(&model("a"));
    assert!(sentence.contains("also on simulated:1, 4 leases held"), "{sentence}");
}

#[test]
fn there_are_no_more_replicas_than_devices_may_serve_it() {
    let mut rig = rig(100, 100);
    rig.table.config.replicas.as_mut().unwrap().at_most = 1;
    rig.resident("a", 30);
    assert!(!asks_for_a_version(&rig.heat("a", 5).1));
}

#[test]
fn one_worth_less_leaves_for_a_replica_and_one_worth_more_stays() {
    for (uses, leaves) in [(0, true), (30, false)] {
        let mut rig = rig(50, 50);
        assert_eq!((rig.resident("hot", 40), rig.resident("b", 40)), (FIRST, SECOND));
        rig.use_often("b", uses);
        rig.use_often("hot", 10);
        let (_, effects) = rig.heat("hot", 4);
        assert_eq!(asks_for_a_version(&effects), leaves, "b was asked for {uses} times");
        if leaves {
            let effects = rig.found(&artefact("hot", 1), 40, &[]);
            assert_eq!(leaving(&effects), vec![on("b", SECOND)]);
            assert_eq!(loads_of(&rig.unloaded(&on("b", SECOND)), "hot"), vec![SECOND]);
        }
    }
}

#[test]
fn one_in_use_or_kept_does_not_leave_for_a_replica() {
    for kept in [true, false] {
        let mut rig = rig(50, 50);
        rig.resident("hot", 40);
        rig.resident("b", 40);
        rig.use_often("hot", 50);
        if kept {
            rig.on(Event::KeepChanged { model: model("b"), kept });
        } else {
            rig.ask("b");
        }
        assert!(!asks_for_a_version(&rig.heat("hot", 4).1));
    }
}

#[test]
fn a_replica_gives_its_room_to_a_load_that_somebody_waits_for() {
    let mut rig = rig(50, 50);
    rig.resident("hot", 40);
    rig.resident("b", 40);
    rig.use_often("hot", 10);
    rig.heat("hot", 4);
    assert_eq!(leaving(&rig.found(&artefact("hot", 1), 40, &[])), vec![on("b", SECOND)]);
    let effects = rig.begin("new", 45);
    assert!(decided(&effects, |it| *it == Action::Abandoned), "{effects:?}");
    assert_eq!(loads_of(&rig.unloaded(&on("b", SECOND)), "new"), vec![SECOND]);
    assert_eq!(rig.serving("hot"), vec![FIRST]);
}

#[test]
fn no_replica_is_looked_up_while_another_load_waits_for_room() {
    for kept in [false, true] {
        let mut rig = rig(50, 100);
        assert_eq!(rig.resident("hot", 40), SECOND);
        rig.on(Event::KeepChanged { model: model("hot"), kept: true });
        assert_eq!(rig.resident("b", 20), SECOND);
        rig.on(Event::KeepChanged { model: model("b"), kept });
        let effects = rig.begin("waits", 55);
        assert_eq!(leaving(&effects).is_empty(), kept, "it needs more than the 50 elsewhere");
        assert_eq!(asks_for_a_version(&rig.heat("hot", 4).1), !kept);
    }
}

#[test]
fn a_ceiling_holds_for_replicas() {
    let ceiling = TenantLimits { ceiling: Some(Bytes(70)), ..TenantLimits::default() };
    let tenants = [("t".to_owned(), ceiling)].into_iter().collect();
    let mut rig = rig_with(100, 100, Config { tenants, ..Config::default() });
    rig.resident("t/a", 40);
    rig.resident("u/a", 40);
    assert!(!asks_for_a_version(&rig.heat("t/a", 4).1));
    assert!(asks_for_a_version(&rig.heat("u/a", 4).1));
}

#[test]
fn a_dead_replica_leaves_the_others_serving() {
    let mut rig = rig(100, 100);
    rig.replicated("a", 30);
    let failure = Failure::new(ErrorKind::ModelFailed, "the workers are gone");
    let effects = rig.on(Event::Died { key: on("a", SECOND), failure });
    assert_eq!(leaving(&effects), vec![on("a", SECOND)]);
    assert_eq!(grants(&rig.ask("a")), vec![on("a", FIRST)]);
    rig.unloaded(&on("a", SECOND));
    assert_eq!(grants(&rig.ask("a")), vec![on("a", FIRST)]);
}

#[test]
fn a_replica_that_fails_to_load_is_no_trouble_of_its_model() {
    let mut rig = rig(100, 100);
    rig.resident("a", 30);
    let (held, _) = rig.heat("a", 3);
    rig.found(&artefact("a", 1), 30, &[]);
    let failure = Failure::new(ErrorKind::ModelInvalid, "a bad device");
    let effects = rig.on(Event::Loaded { key: on("a", SECOND), result: Err(failure) });
    assert!(decided(&effects, |it| matches!(it, Action::Failed { retry_ms: 1000, .. })));
    assert!(!asks_for_a_version(&rig.ask("a")), "a pause");
    for key in held.iter().chain(&[on("a", FIRST)]) {
        rig.release(key);
    }
    let (waiter, hold_until) = rig.waiter();
    rig.on(Event::UnloadRequested { waiter, model: model("a"), hold_until });
    rig.unloaded(&on("a", FIRST));
    assert!(asks_for_a_version(&rig.ask("a")), "a load of the model itself is not paused");
}

#[test]
fn a_new_version_loads_once_and_all_residents_of_the_old_one_leave() {
    let mut rig = rig(100, 100);
    let held = rig.replicated("a", 30);
    rig.now += Duration::from_secs(40);
    rig.ask("a");
    let newer = artefact("a", 2);
    let effects = rig.found(&newer, 30, &[]);
    let places = loads_of(&effects, "a");
    assert_eq!(places.len(), 1);
    assert_eq!(rig.serving("a"), vec![FIRST, SECOND], "the old one serves until it is ready");
    let key = Key { artefact: newer, device: places[0] };
    let effects = rig.loaded(&key, 30, &[]);
    let superseded =
        |it: &Action| matches!(it, Action::Draining { why: Departure::Superseded, .. });
    let draining = effects
        .iter()
        .filter(|effect| matches!(effect, Effect::Decided(it) if superseded(&it.action)));
    assert_eq!(draining.count(), 2);
    assert!(decided(&effects, |it| matches!(it, Action::Switched { .. })));
    assert_eq!(grants(&rig.ask("a")), vec![key.clone()]);
    assert_eq!(held[0].artefact.version, version(1));
    let (_, effects) = rig.heat("a", 3);
    assert!(asks_for_a_version(&effects), "replicas of the new one follow");
    let effects = rig.found(&key.artefact, 30, &[]);
    assert!(loads_of(&effects, "a").iter().all(|device| *device != key.device));
    assert_eq!(loads_of(&effects, "a").len(), 1);
}

#[test]
fn a_return_to_the_old_version_brings_all_its_residents_back() {
    let mut rig = rig(100, 100);
    rig.replicated("a", 30);
    let second = grants(&rig.ask("a"));
    assert_eq!(second, vec![on("a", SECOND)]);
    rig.now += Duration::from_secs(40);
    rig.ask("a");
    let newer = artefact("a", 2);
    let effects = rig.found(&newer, 30, &[]);
    let key = Key { artefact: newer, device: loads_of(&effects, "a")[0] };
    rig.loaded(&key, 30, &[]);
    rig.now += Duration::from_secs(40);
    rig.ask("a");
    rig.found(&artefact("a", 1), 30, &[]);
    assert_eq!(rig.serving("a"), vec![FIRST, SECOND]);
    assert!(rig.table.ready_keys(&model("a")).iter().all(|key| key.artefact.version == version(1)));
}

#[test]
fn a_cooled_replica_is_the_first_to_leave_and_its_model_goes_on() {
    let mut rig = rig(100, 42);
    rig.cooled("a", 40);
    assert_eq!(rig.serving("a"), vec![FIRST, SECOND]);
    assert_eq!(rig.resident("rare", 45), FIRST);
    rig.use_often("a", 20);
    let gone = leaving(&rig.begin("new", 50));
    assert_eq!(gone, vec![on("a", FIRST)], "worth more than rare, but it loads nothing again");
    assert_eq!(grants(&rig.ask("a")), vec![on("a", SECOND)]);
}

#[test]
fn a_cooled_model_is_served_by_one_resident_so_that_the_other_may_go() {
    let mut rig = rig(100, 100);
    rig.cooled("a", 30);
    let one: Vec<DeviceId> = (0..2).map(|_| grants(&rig.ask("a"))[0].device).collect();
    assert_eq!(one[0], one[1]);
    rig.ask("a");
    let next: Vec<DeviceId> = (0..3).map(|_| grants(&rig.ask("a"))[0].device).collect();
    assert!(next.iter().any(|device| *device != one[0]), "in use again, both serve");
}

#[test]
fn a_cooled_replica_leaves_for_anothers_replica() {
    let mut rig = rig(40, 80);
    assert_eq!(rig.resident("b", 40), SECOND);
    rig.cooled("a", 40);
    rig.use_often("b", 10);
    let (_, effects) = rig.heat("b", 4);
    assert!(asks_for_a_version(&effects));
    let effects = rig.found(&artefact("b", 1), 40, &[]);
    assert_eq!(leaving(&effects), vec![on("a", FIRST)]);
}

#[test]
fn a_keep_holds_one_of_two() {
    let mut rig = rig(60, 50);
    rig.on(Event::KeepChanged { model: model("a"), kept: true });
    rig.cooled("a", 50);
    let effects = rig.begin("new", 45);
    assert_eq!(leaving(&effects).len(), 1);
    rig.unloaded(&leaving(&effects)[0]);
    let effects = rig.begin("another", 48);
    assert!(leaving(&effects).iter().all(|key| key.artefact.model != model("a")));
    assert_eq!(rig.serving("a").len(), 1);
}

#[test]
fn of_a_kept_models_idle_residents_one_stays() {
    let mut rig = rig(100, 100);
    rig.table.config.idle_ttl = Some(Duration::from_secs(60));
    rig.on(Event::KeepChanged { model: model("a"), kept: true });
    rig.cooled("a", 30);
    rig.now += Duration::from_secs(60);
    assert_eq!(leaving(&rig.on(Event::TimePassed)).len(), 1);
    assert_eq!(rig.serving("a").len(), 1);
}

#[test]
fn an_operators_unload_takes_every_resident_and_the_replica_under_way() {
    let mut rig = rig(100, 100);
    rig.resident("a", 30);
    let (held, _) = rig.heat("a", 3);
    rig.found(&artefact("a", 1), 30, &[]);
    let (waiter, hold_until) = rig.waiter();
    rig.on(Event::UnloadRequested { waiter, model: model("a"), hold_until });
    assert_eq!(leaving(&rig.loaded(&on("a", SECOND), 30, &[])), vec![on("a", SECOND)]);
    for key in &held {
        rig.release(key);
    }
    rig.unloaded(&on("a", SECOND));
    let effects = rig.unloaded(&on("a", FIRST));
    let is_report = |effect: &Effect| {
        matches!(effect, Effect::Report { waiter: id, report: Report::Unloaded(it) }
            if *id == waiter && it.versions == vec![version(1)])
    };
    assert!(effects.iter().any(is_report), "told when the last one is gone");
}

#[test]
fn operators_do_not_wait_for_a_replica() {
    let mut rig = rig(100, 100);
    rig.resident("a", 30);
    rig.heat("a", 3);
    rig.found(&artefact("a", 1), 30, &[]);
    let (waiter, hold_until) = rig.waiter();
    rig.on(Event::RefreshRequested { waiter, model: model("a"), hold_until });
    let effects = rig.found(&artefact("a", 1), 30, &[]);
    let is_told =
        |effect: &Effect| matches!(effect, Effect::Report { waiter: id, .. } if *id == waiter);
    assert!(effects.iter().any(is_told), "the version serves");
    let (waiter, hold_until) = rig.waiter();
    let options = LoadOptions::default();
    let effects = rig.on(Event::LoadRequested { waiter, model: model("a"), hold_until, options });
    assert!(matches!(effects[0], Effect::Report { report: Report::Loaded(_), .. }));
}

#[test]
fn requests_wait_for_the_replica_that_is_loading_when_the_first_one_dies() {
    let mut rig = rig(100, 100);
    rig.resident("a", 30);
    rig.heat("a", 3);
    rig.found(&artefact("a", 1), 30, &[]);
    let failure = Failure::new(ErrorKind::ModelFailed, "the workers are gone");
    rig.on(Event::Died { key: on("a", FIRST), failure });
    assert_eq!(grants(&rig.ask("a")), vec![]);
    assert_eq!(grants(&rig.loaded(&on("a", SECOND), 30, &[])), vec![on("a", SECOND)]);
}

#[test]
fn a_replica_that_keeps_dying_pauses_replicas_and_not_its_model() {
    let mut rig = rig(100, 100);
    let mut held = rig.replicated("a", 30);
    let death = || Failure::new(ErrorKind::ModelFailed, "the workers are gone");
    rig.on(Event::Died { key: on("a", SECOND), failure: death() });
    rig.unloaded(&on("a", SECOND));
    let (more, effects) = rig.heat("a", 2);
    assert!(asks_for_a_version(&effects), "a first death pauses nothing");
    held.extend(more);
    rig.found(&artefact("a", 1), 30, &[]);
    rig.loaded(&on("a", SECOND), 30, &[]);
    let effects = rig.on(Event::Died { key: on("a", SECOND), failure: death() });
    assert!(decided(&effects, |it| matches!(it, Action::Died { deaths: 2, retry_ms: 1000, .. })));
    rig.unloaded(&on("a", SECOND));
    assert_eq!(grants(&rig.ask("a")), vec![on("a", FIRST)]);
    held.push(on("a", FIRST));
    rig.on(Event::Died { key: on("a", FIRST), failure: death() });
    for key in &held {
        rig.release(key);
    }
    rig.unloaded(&on("a", FIRST));
    assert!(asks_for_a_version(&rig.ask("a")), "its own first death pauses nothing either");
}

#[test]
fn a_replica_whose_files_are_coming_gives_the_slot_of_its_fetch_to_who_waits() {
    let config = Config { max_fetches: 1, ..Config::default() };
    let mut rig = rig_with(100, 100, config);
    rig.resident("hot", 30);
    rig.heat("hot", 3);
    let effects = rig.arriving("hot", 30);
    assert_eq!(loads_of(&effects, "hot"), vec![SECOND], "while its files come");
    rig.ask("b");
    let effects = rig.arriving("b", 40);
    let hot = artefact("hot", 1);
    let is_given =
        |it: &Effect| matches!(it, Effect::AbandonFetch { artefact } if *artefact == hot);
    assert!(effects.iter().any(is_given));
    let gone = Failure::new(ErrorKind::NotReady, "abandoned");
    let effects = rig.on(Event::Loaded { key: on("hot", SECOND), result: Err(gone) });
    let is_fetch =
        |it: &Effect| matches!(it, Effect::Fetch { artefact: id, .. } if *id == artefact("b", 1));
    assert!(effects.iter().any(is_fetch), "b has the slot");
    assert_eq!(grants(&rig.ask("hot")), vec![on("hot", FIRST)]);
}
