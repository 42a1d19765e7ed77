//! What the table promises about content that several hold, one sentence each.

use std::time::Duration;

use roundhouse_types::{Bytes, ContentId, Footprint, Grade, ModelKind, SharedPart};

use super::bench::{Bench, bench, footprint, key, loads, unloads};
use crate::decision::Action;
use crate::loader::{Fetched, Loaded, Resolution, Standing};
use crate::table::{Effect, Event};
use crate::testing::{artefact, model, version};

/// The content that all of these share.
fn base(bytes: u64) -> Vec<SharedPart> {
    vec![SharedPart { content: ContentId::from_digest([1; 32]), bytes: Bytes(bytes) }]
}

impl Bench {
    /// The store's answer for a model whose content was noted by an earlier load.
    fn resolved_known(&mut self, name: &str, bytes: u64, shared: Vec<SharedPart>) -> Vec<Effect> {
        let footprint = Some((footprint(bytes), Grade::Exact));
        let (version, kind) = (version(1), Some(ModelKind::Embedding));
        let resolution = Resolution {
            version,
            fetch_bytes: Bytes(bytes),
            footprint,
            shared,
            kind,
            off_cards: false,
            base: None,
            streams: false,
            quarantined: false,
            standing: Standing::default(),
        };
        self.on(Event::Resolved { model: model(name), result: Ok(resolution) })
    }

    fn fetched_known(&mut self, name: &str, bytes: u64, shared: Vec<SharedPart>) -> Vec<Effect> {
        let (footprint, kind) = (footprint(bytes), ModelKind::Embedding);
        let fetched =
            Fetched { footprint, shared, kind, off_cards: false, base: None, once: Duration::ZERO };
        self.on(Event::Fetched { artefact: artefact(name, 1), result: Ok(fetched) })
    }

    fn loaded_sharing(&mut self, name: &str, bytes: u64, shared: Vec<SharedPart>) -> Vec<Effect> {
        let loaded = Loaded {
            model: (),
            footprint: footprint(bytes),
            shared,
            once: Duration::ZERO,
            idle_ttl: None,
        };
        self.on(Event::Loaded { key: key(name), result: Ok(loaded) })
    }

    /// A resident that nobody uses, whose content was not known before.
    fn sharer(&mut self, name: &str, bytes: u64, shared: Vec<SharedPart>) {
        self.acquire(name);
        self.resolved(name, bytes);
        self.fetched(name, bytes);
        self.loaded_sharing(name, bytes, shared);
        self.released(name);
    }

    /// Charged and reserved bytes of the device.
    fn accounts(&self) -> (u64, u64) {
        let level = self.table.levels().devices.remove(0);
        (level.charged.0, level.reserved.0)
    }
}

#[test]
fn a_load_is_promised_what_is_not_there_yet_and_no_more() {
    let mut bench = bench();
    bench.sharer("one", 70, base(60));
    bench.acquire("two");
    let effects = bench.resolved_known("two", 75, base(60));
    assert!(!unloads(&effects, &key("one")));
    assert_eq!(bench.accounts(), (70, 15));
    assert!(loads(&bench.fetched_known("two", 75, base(60)), &key("two")));
    bench.loaded_sharing("two", 75, base(60));
    assert_eq!(bench.accounts(), (85, 0));
}

#[test]
fn unknown_content_is_promised_in_full_and_settles_down() {
    let mut bench = bench();
    bench.sharer("one", 40, base(30));
    bench.acquire("two");
    bench.resolved("two", 50);
    assert_eq!(bench.accounts(), (40, 50));
    bench.fetched("two", 50);
    bench.loaded_sharing("two", 50, base(30));
    assert_eq!(bench.accounts(), (60, 0));
}

#[test]
fn content_that_a_load_counts_on_stays_charged_when_its_bringer_leaves() {
    let mut bench = bench();
    bench.sharer("one", 70, base(60));
    bench.acquire("two");
    bench.resolved_known("two", 75, base(60));
    let hold_until = bench.now + Duration::from_secs(9);
    let waiter = crate::table::WaiterId(99);
    bench.on(Event::UnloadRequested { waiter, model: model("one"), hold_until });
    let effects = bench.unloaded("one");
    let freed = effects.iter().find_map(|effect| match effect {
        Effect::Decided(decided) => match decided.action {
            Action::Unloaded { bytes } => Some(bytes),
            _ => None,
        },
        _ => None,
    });
    assert_eq!(freed, Some(Bytes(10)), "what it says is free is free");
    assert_eq!(bench.accounts(), (60, 15));
    assert!(loads(&bench.fetched_known("two", 75, base(60)), &key("two")));
    bench.loaded_sharing("two", 75, base(60));
    assert_eq!(bench.accounts(), (75, 0));
}

#[test]
fn a_promised_load_gives_back_what_another_brought_meanwhile() {
    let mut bench = bench();
    for name in ["one", "two"] {
        bench.acquire(name);
        bench.resolved_known(name, 45, base(40));
    }
    assert_eq!(bench.accounts(), (0, 90));
    bench.fetched_known("one", 45, base(40));
    bench.loaded_sharing("one", 45, base(40));
    assert_eq!(bench.accounts(), (45, 5));
}

#[test]
fn a_claim_stays_covered_when_another_comes_to_hold_what_its_victim_was_to_free() {
    let mut bench = bench();
    bench.sharer("old", 60, base(15));
    // Unknown to share anything, and loading.
    bench.acquire("second");
    bench.resolved("second", 20);
    bench.fetched("second", 20);
    // Came before `first`, and will take whatever is free.
    bench.acquire("small");
    bench.acquire("first");
    bench.resolved("first", 75);
    assert_eq!(bench.accounts(), (60, 40));
    bench.resolved("small", 10);
    assert!(unloads(&bench.fetched("first", 75), &key("old")));
    let effects = bench.loaded_sharing("second", 20, base(15));
    let is_withdrawn = |effect: &Effect| matches!(effect, Effect::Decided(decided) if decided.action == Action::Withdrawn);
    assert!(!effects.iter().any(is_withdrawn), "its victim does not leave in vain");
    assert!(loads(&bench.unloaded("old"), &key("first")));
}

#[test]
fn a_measure_changes_what_is_a_residents_own() {
    let mut bench = bench();
    bench.sharer("one", 40, base(30));
    bench.sharer("two", 35, base(30));
    assert_eq!(bench.accounts(), (45, 0));
    let grown = Footprint { weights: Bytes(50), ..Footprint::default() };
    bench.on(Event::Measured { key: key("one"), footprint: grown });
    assert_eq!(bench.accounts(), (55, 0));
    bench.on(Event::Measured { key: key("one"), footprint: Footprint::default() });
    assert_eq!(bench.accounts(), (35, 0));
}
