//! Several devices: where loads go, one sentence each.

use std::time::{Duration, Instant};

use roundhouse_types::{ArtefactId, Bytes, ContentId, DeviceId, Grade, ModelKind, SharedPart};

use super::bench::footprint;
use crate::config::{Config, Replicas, TenantLimits};
use crate::decision::Obstacle;
use crate::loader::{Fetched, Loaded, Resolution, Standing};
use crate::table::{Effect, Event, Key, Table, WaiterId};
use crate::testing::{artefact, model};

pub(super) const FIRST: DeviceId = DeviceId::Simulated(0);
pub(super) const SECOND: DeviceId = DeviceId::Simulated(1);
pub(super) const A_SECOND: Duration = Duration::from_secs(1);

/// A table with two simulated devices, and a clock that stands still.
pub(super) struct Rig {
    pub(super) table: Table,
    pub(super) now: Instant,
    waiters: u64,
}

/// With devices of these budgets; a model is hot at two leases.
pub(super) fn rig(first: u64, second: u64) -> Rig {
    rig_with(first, second, Config::default())
}

pub(super) fn rig_with(first: u64, second: u64, mut config: Config) -> Rig {
    let now = Instant::now();
    config.replicas = Some(Replicas { at_leases: 2, at_most: 2 });
    let devices = vec![(FIRST, Bytes(first)), (SECOND, Bytes(second))];
    Rig { table: Table::new(config, devices, now), now, waiters: 0 }
}

pub(super) fn on(name: &str, device: DeviceId) -> Key {
    Key { artefact: artefact(name, 1), device }
}

/// The devices on which loads of this model begin.
pub(super) fn loads_of(effects: &[Effect], name: &str) -> Vec<DeviceId> {
    let loads = effects.iter().filter_map(|effect| match effect {
        Effect::Load { key, .. } if key.artefact.model == model(name) => Some(key.device),
        _ => None,
    });
    loads.collect()
}

pub(super) fn leaving(effects: &[Effect]) -> Vec<Key> {
    let unloads = effects.iter().filter_map(|effect| match effect {
        Effect::Unload { key, .. } => Some(key.clone()),
        _ => None,
    });
    unloads.collect()
}

pub(super) fn grants(effects: &[Effect]) -> Vec<Key> {
    let grants = effects.iter().filter_map(|effect| match effect {
        Effect::Grant(grant) => Some(grant.key.clone()),
        _ => None,
    });
    grants.collect()
}

impl Rig {
    pub(super) fn on(&mut self, event: Event) -> Vec<Effect> {
        self.table.on(event, self.now)
    }

    pub(super) fn waiter(&mut self) -> (WaiterId, Instant) {
        self.waiters += 1;
        (WaiterId(self.waiters), self.now + Duration::from_secs(3600))
    }

    pub(super) fn ask(&mut self, name: &str) -> Vec<Effect> {
        let (waiter, hold_until) = self.waiter();
        let model = model(name);
        self.on(Event::AcquireRequested {
            waiter,
            model,
            hold_until,
            only_loaded: false,
            payer: None,
        })
    }

    pub(super) fn release(&mut self, key: &Key) -> Vec<Effect> {
        self.on(Event::Released { key: key.clone() })
    }

    /// The store's answer, of a version that is whole on disk, and its fetch.
    pub(super) fn found(
        &mut self,
        id: &ArtefactId,
        bytes: u64,
        shared: &[SharedPart],
    ) -> Vec<Effect> {
        let (footprint, kind) = (footprint(bytes), ModelKind::Embedding);
        let resolution = Resolution {
            version: id.version.clone(),
            fetch_bytes: Bytes::ZERO,
            footprint: Some((footprint, Grade::Exact)),
            shared: shared.to_vec(),
            kind: Some(kind),
            off_cards: false,
            base: None,
            streams: false,
            quarantined: false,
            standing: Standing::default(),
        };
        let model = id.model.clone();
        let mut effects = self.on(Event::Resolved { model, result: Ok(resolution) });
        if effects.iter().any(|it| matches!(it, Effect::Fetch { artefact, .. } if artefact == id)) {
            let fetched = Fetched {
                footprint,
                shared: shared.to_vec(),
                kind,
                off_cards: false,
                base: None,
                once: Duration::ZERO,
            };
            effects.extend(self.on(Event::Fetched { artefact: id.clone(), result: Ok(fetched) }));
        }
        effects
    }

    pub(super) fn loaded(&mut self, key: &Key, bytes: u64, shared: &[SharedPart]) -> Vec<Effect> {
        let loaded = Loaded {
            model: (),
            footprint: footprint(bytes),
            shared: shared.to_vec(),
            once: Duration::ZERO,
            idle_ttl: None,
        };
        self.on(Event::Loaded { key: key.clone(), result: Ok(loaded) })
    }

    /// Asks for a model up to where its load begins, or waits for others to leave.
    pub(super) fn begin(&mut self, name: &str, bytes: u64) -> Vec<Effect> {
        self.ask(name);
        self.found(&artefact(name, 1), bytes, &[])
    }

    /// A resident that nobody uses and that took a second to load; says where.
    pub(super) fn resident(&mut self, name: &str, bytes: u64) -> DeviceId {
        let effects = self.begin(name, bytes);
        let key = on(name, loads_of(&effects, name)[0]);
        self.now += A_SECOND;
        self.loaded(&key, bytes, &[]);
        self.release(&key);
        key.device
    }

    pub(super) fn unloaded(&mut self, key: &Key) -> Vec<Effect> {
        self.on(Event::Unloaded { key: key.clone(), copy: None })
    }

    pub(super) fn use_often(&mut self, name: &str, times: usize) {
        for _ in 0..times {
            let key = grants(&self.ask(name)).remove(0);
            self.release(&key);
        }
    }

    fn charged(&self, device: DeviceId) -> u64 {
        let levels = self.table.levels().devices;
        levels.into_iter().find(|level| level.id == device).unwrap().charged.0
    }
}

#[test]
fn a_load_goes_where_most_is_left() {
    let mut rig = rig(100, 120);
    assert_eq!(rig.resident("a", 50), SECOND);
    assert_eq!(rig.resident("b", 50), FIRST, "50 are left there, 20 on the other");
    assert_eq!(rig.resident("c", 60), SECOND, "the only one where it fits what is free");
    assert_eq!((rig.charged(FIRST), rig.charged(SECOND)), (50, 110));
}

#[test]
fn loads_under_way_spread() {
    let mut rig = rig(100, 100);
    assert_eq!(loads_of(&rig.begin("a", 30), "a"), vec![FIRST]);
    assert_eq!(loads_of(&rig.begin("b", 30), "b"), vec![SECOND]);
}

#[test]
fn among_equal_devices_the_one_with_fewer_loads_under_way_is_chosen() {
    let mut rig = rig(100, 60);
    // 60 are left on each; one load is under way on the first.
    assert_eq!(loads_of(&rig.begin("a", 40), "a"), vec![FIRST]);
    assert_eq!(loads_of(&rig.begin("b", 30), "b"), vec![SECOND]);
}

#[test]
fn where_room_must_be_made_those_leave_who_are_worth_least() {
    for (popular, unpopular) in [("a", "b"), ("b", "a")] {
        let mut rig = rig(100, 90);
        let places = [("a", rig.resident("a", 80)), ("b", rig.resident("b", 80))];
        rig.use_often(popular, 5);
        let effects = rig.begin("new", 85);
        let place = places.iter().find(|(name, _)| *name == unpopular).unwrap().1;
        assert_eq!(leaving(&effects), vec![on(unpopular, place)]);
    }
}

#[test]
fn many_that_are_worth_little_leave_before_one_that_is_worth_more() {
    let mut rig = rig(100, 100);
    assert_eq!(rig.resident("popular", 100), FIRST);
    let small = ["s0", "s1", "s2"];
    for name in small {
        assert_eq!(rig.resident(name, 30), SECOND);
    }
    rig.use_often("popular", 5);
    let effects = rig.begin("new", 90);
    assert_eq!(leaving(&effects), small.map(|name| on(name, SECOND)).to_vec());
}

#[test]
fn an_idle_one_leaves_before_one_in_use_elsewhere() {
    let mut rig = rig(100, 90);
    assert_eq!(rig.resident("used", 80), FIRST);
    assert_eq!(rig.resident("idle", 80), SECOND);
    rig.use_often("idle", 5);
    rig.ask("used");
    assert_eq!(leaving(&rig.begin("new", 85)), vec![on("idle", SECOND)]);
}

#[test]
fn a_device_that_holds_the_content_needs_no_room_made() {
    let base = [SharedPart { content: ContentId::from_digest([1; 32]), bytes: Bytes(50) }];
    let mut rig = rig(90, 100);
    rig.ask("base");
    let effects = rig.found(&artefact("base", 1), 60, &base);
    assert_eq!(loads_of(&effects, "base"), vec![SECOND]);
    rig.loaded(&on("base", SECOND), 60, &base);
    rig.resident("other", 30);
    assert_eq!((rig.charged(FIRST), rig.charged(SECOND)), (30, 60));
    rig.ask("tuned");
    let effects = rig.found(&artefact("tuned", 1), 70, &base);
    assert_eq!(
        loads_of(&effects, "tuned"),
        vec![SECOND],
        "20 are new there, 60 are free elsewhere"
    );
    assert_eq!(leaving(&effects), vec![]);
}

#[test]
fn what_fits_the_larger_device_alone_makes_room_there() {
    let mut rig = rig(60, 100);
    assert_eq!(rig.resident("a", 50), SECOND);
    rig.use_often("a", 9);
    let effects = rig.begin("large", 80);
    assert_eq!(leaving(&effects), vec![on("a", SECOND)], "nothing on the other is of use");
}

#[test]
fn what_is_larger_than_any_device_is_refused_with_every_device_by_name() {
    let mut rig = rig(60, 100);
    rig.resident("a", 50);
    let effects = rig.begin("huge", 101);
    let message = effects.iter().find_map(|effect| match effect {
        Effect::Refuse { failure, .. } => Some(failure.message().to_owned()),
        _ => None,
    });
    let message = message.unwrap();
    assert!(message.contains("test:huge needs 101 B"), "{message}");
    assert!(message.ends_with("simulated:0 60 B, simulated:1 100 B"), "{message}");
    assert_eq!(leaving(&effects), vec![], "invariant 6");
    rig.on(Event::BudgetChanged { device: SECOND, budget: Bytes(70) });
    let effects = rig.begin("large", 80);
    let refused = effects.iter().any(|effect| {
        matches!(effect, Effect::Refuse { failure, .. } if failure.message()
            .ends_with("60 B of 60 B on simulated:0, 70 B of 100 B on simulated:1"))
    });
    assert!(refused, "{effects:?}");
}

#[test]
fn a_floor_elsewhere_is_not_in_the_way_here() {
    let floor = TenantLimits { floor: Bytes(60), ..TenantLimits::default() };
    let tenants = [("t".to_owned(), floor)].into_iter().collect();
    let mut rig = rig_with(100, 100, Config { tenants, ..Config::default() });
    assert_eq!(rig.resident("t/a", 60), FIRST);
    assert_eq!(rig.resident("u/b", 70), SECOND);
    // In use, and young: only time is in the way.
    rig.table.config.minimum_residence = Duration::from_secs(60);
    rig.begin("u/new", 80);
    let artefact = artefact("u/new", 1);
    assert_eq!(rig.table.jobs[&artefact].obstacle, Some(Obstacle::InUse));
    assert_eq!(rig.charged(FIRST), 60, "the floor stays");
}

#[test]
fn a_tenants_ceiling_is_made_room_below_on_whatever_device_its_models_are() {
    let ceiling = TenantLimits { ceiling: Some(Bytes(60)), ..TenantLimits::default() };
    let tenants = [("t".to_owned(), ceiling)].into_iter().collect();
    let mut rig = rig_with(100, 100, Config { tenants, ..Config::default() });
    assert_eq!((rig.resident("t/a", 30), rig.resident("t/b", 30)), (FIRST, SECOND));
    let effects = rig.begin("t/c", 50);
    let mut gone = leaving(&effects);
    gone.sort_unstable();
    assert_eq!(gone, vec![on("t/a", FIRST), on("t/b", SECOND)]);
    let [there] = loads_of(&effects, "t/c")[..] else { panic!("it does not load: {effects:?}") };
    for key in &gone {
        rig.unloaded(key);
    }
    assert_eq!(grants(&rig.loaded(&on("t/c", there), 50, &[])), vec![on("t/c", there)]);
}

#[test]
fn one_that_leaves_for_its_tenants_ceiling_need_not_be_the_one_that_makes_room() {
    let ceiling = TenantLimits { ceiling: Some(Bytes(80)), ..TenantLimits::default() };
    let tenants = [("t".to_owned(), ceiling)].into_iter().collect();
    let mut rig = rig_with(100, 1, Config { tenants, ..Config::default() });
    rig.resident("u/a", 30);
    rig.on(Event::KeepChanged { model: model("u/a"), kept: true });
    rig.resident("t/small", 10);
    rig.resident("t/large", 50);
    assert_eq!(leaving(&rig.begin("t/c", 30)), vec![on("t/large", FIRST)]);
}

#[test]
fn a_handler_is_loaded_where_its_processes_live() {
    let devices = vec![(FIRST, Bytes(100)), (DeviceId::Cpu, Bytes(40))];
    let now = Instant::now();
    let mut rig = Rig { table: Table::new(Config::default(), devices, now), now, waiters: 0 };
    let handler = |rig: &mut Rig, name: &str, bytes: u64| {
        rig.ask(name);
        let resolution = Resolution {
            version: artefact(name, 1).version,
            fetch_bytes: Bytes::ZERO,
            footprint: Some((footprint(bytes), Grade::Declared)),
            shared: Vec::new(),
            kind: Some(ModelKind::Handler),
            off_cards: false,
            base: None,
            streams: false,
            quarantined: false,
            standing: Standing::default(),
        };
        let model = model(name);
        let mut effects = rig.on(Event::Resolved { model, result: Ok(resolution) });
        let (footprint, kind) = (footprint(bytes), ModelKind::Handler);
        let fetched = Fetched {
            footprint,
            shared: Vec::new(),
            kind,
            off_cards: false,
            base: None,
            once: Duration::ZERO,
        };
        let artefact = artefact(name, 1);
        effects.extend(rig.on(Event::Fetched { artefact, result: Ok(fetched) }));
        effects
    };
    let effects = handler(&mut rig, "h", 30);
    assert_eq!(loads_of(&effects, "h"), vec![DeviceId::Cpu], "the other has more left over");
    let effects = handler(&mut rig, "large", 50);
    let refusal = effects.iter().find_map(|effect| match effect {
        Effect::Refuse { failure, .. } => Some(failure.message().to_owned()),
        _ => None,
    });
    let refusal = refusal.expect("the processor's memory is too small for it");
    assert!(refusal.ends_with("no device may use as much: cpu 40 B"), "{refusal}");
}

#[test]
fn what_cards_compute_goes_to_cards_alone_and_the_rest_elsewhere() {
    let card = DeviceId::Cuda(0);
    let devices = vec![(card, Bytes(50)), (DeviceId::Cpu, Bytes(400)), (FIRST, Bytes(100))];
    let now = Instant::now();
    let mut rig = Rig { table: Table::new(Config::default(), devices, now), now, waiters: 0 };
    let asked = |rig: &mut Rig, name: &str, kind: ModelKind, off_cards: bool, bytes: u64| {
        rig.ask(name);
        let resolution = Resolution {
            version: artefact(name, 1).version,
            fetch_bytes: Bytes(1),
            footprint: Some((footprint(bytes), Grade::Exact)),
            shared: Vec::new(),
            kind: Some(kind),
            off_cards,
            base: None,
            streams: false,
            quarantined: false,
            standing: Standing::default(),
        };
        let (model, footprint) = (model(name), footprint(bytes));
        let mut effects = rig.on(Event::Resolved { model, result: Ok(resolution) });
        let fetched = Fetched {
            footprint,
            shared: Vec::new(),
            kind,
            off_cards,
            base: None,
            once: Duration::ZERO,
        };
        effects.extend(rig.on(Event::Fetched { artefact: artefact(name, 1), result: Ok(fetched) }));
        effects
    };
    use ModelKind::{Embedding, External, Generative};
    let effects = asked(&mut rig, "decoder", Generative, false, 30);
    assert_eq!(loads_of(&effects, "decoder"), [card], "though elsewhere more is left");
    let effects = asked(&mut rig, "encoder", Embedding, true, 30);
    assert_eq!(loads_of(&effects, "encoder"), [DeviceId::Cpu]);
    let effects = asked(&mut rig, "quantised", Generative, true, 380);
    assert_eq!(loads_of(&effects, "quantised"), Vec::<DeviceId>::new(), "it waits for room");
    let effects = asked(&mut rig, "engine", External, false, 15);
    assert_eq!(loads_of(&effects, "engine"), [DeviceId::Cpu], "the most left over");
    let effects = asked(&mut rig, "large", Generative, false, 60);
    let refused = effects.iter().any(|effect| match effect {
        Effect::Refuse { failure, .. } => failure.message().contains("cuda:0"),
        _ => false,
    });
    assert!(refused, "no card can take it: {effects:?}");
}

#[test]
fn a_model_whose_files_tell_that_cards_do_not_compute_it_is_promised_room_elsewhere() {
    let card = DeviceId::Cuda(0);
    let devices = vec![(card, Bytes(100)), (DeviceId::Cpu, Bytes(60))];
    let now = Instant::now();
    let mut rig = Rig { table: Table::new(Config::default(), devices, now), now, waiters: 0 };
    rig.ask("a");
    let resolution = Resolution {
        version: artefact("a", 1).version,
        fetch_bytes: Bytes(1),
        footprint: Some((footprint(40), Grade::Remembered)),
        shared: Vec::new(),
        kind: None,
        off_cards: false,
        base: None,
        streams: false,
        quarantined: false,
        standing: Standing::default(),
    };
    rig.on(Event::Resolved { model: model("a"), result: Ok(resolution) });
    let (footprint, kind) = (footprint(40), ModelKind::Generative);
    let fetched = Fetched {
        footprint,
        shared: Vec::new(),
        kind,
        off_cards: true,
        base: None,
        once: Duration::ZERO,
    };
    let effects = rig.on(Event::Fetched { artefact: artefact("a", 1), result: Ok(fetched) });
    assert_eq!(loads_of(&effects, "a"), [DeviceId::Cpu]);
}
