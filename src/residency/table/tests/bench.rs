//! A small table for sentences about it.

use std::time::{Duration, Instant};

use roundhouse_types::{Bytes, DeviceId, ErrorKind, Failure, Footprint, Grade, ModelKind};

use crate::config::{Config, Policy};
use crate::loader::{Fetched, Loaded, Resolution, Standing};
use crate::table::{Effect, Event, Key, Table, WaiterId};
use crate::testing::{artefact, model, version};

/// A table with one device of 100 bytes, and a clock that stands still.
pub(super) struct Bench {
    pub(super) table: Table,
    pub(super) now: Instant,
    pub(super) waiters: u64,
}

/// By least recent use, so that a sentence need not say how often and how long.
pub(super) fn bench() -> Bench {
    bench_with(Config { policy: Policy::LeastRecentlyUsed, ..Config::default() })
}

pub(super) fn bench_with(config: Config) -> Bench {
    let now = Instant::now();
    let devices = vec![(DeviceId::Cpu, Bytes(100))];
    Bench { table: Table::new(config, devices, now), now, waiters: 0 }
}

pub(super) fn key(name: &str) -> Key {
    key_of(name, 1)
}

pub(super) fn key_of(name: &str, number: u64) -> Key {
    Key { artefact: artefact(name, number), device: DeviceId::Cpu }
}

pub(super) fn footprint(bytes: u64) -> Footprint {
    Footprint { weights: Bytes(bytes), ..Footprint::default() }
}

pub(super) fn loads(effects: &[Effect], key: &Key) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Load { key: other, .. } if other == key))
}

pub(super) fn unloads(effects: &[Effect], key: &Key) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Unload { key: other, .. } if other == key))
}

pub(super) fn granted(effects: &[Effect]) -> Vec<u64> {
    let grants = effects.iter().filter_map(|effect| match effect {
        Effect::Grant(grant) => Some(grant.waiter.0),
        _ => None,
    });
    grants.collect()
}

impl Bench {
    pub(super) fn on(&mut self, event: Event) -> Vec<Effect> {
        self.table.on(event, self.now)
    }

    pub(super) fn acquire(&mut self, name: &str) -> Vec<Effect> {
        self.waiters += 1;
        let waiter = WaiterId(self.waiters);
        let hold_until = self.now + Duration::from_secs(30);
        let model = model(name);
        self.on(Event::AcquireRequested {
            waiter,
            model,
            hold_until,
            only_loaded: false,
            payer: None,
        })
    }

    pub(super) fn resolved(&mut self, name: &str, bytes: u64) -> Vec<Effect> {
        self.resolved_version(name, 1, bytes)
    }

    pub(super) fn resolved_version(&mut self, name: &str, number: u64, bytes: u64) -> Vec<Effect> {
        self.resolved_with(name, number, bytes, Standing::default())
    }

    pub(super) fn resolved_with(
        &mut self,
        name: &str,
        number: u64,
        bytes: u64,
        standing: Standing,
    ) -> Vec<Effect> {
        let resolution = Resolution {
            version: version(number),
            fetch_bytes: Bytes(bytes),
            footprint: Some((footprint(bytes), Grade::Exact)),
            shared: Vec::new(),
            kind: None,
            off_cards: false,
            base: None,
            streams: false,
            quarantined: false,
            standing,
        };
        self.on(Event::Resolved { model: model(name), result: Ok(resolution) })
    }

    pub(super) fn fetched(&mut self, name: &str, bytes: u64) -> Vec<Effect> {
        self.fetched_as(ModelKind::Embedding, name, bytes)
    }

    pub(super) fn fetched_as(&mut self, kind: ModelKind, name: &str, bytes: u64) -> Vec<Effect> {
        let fetched = Fetched {
            footprint: footprint(bytes),
            shared: Vec::new(),
            kind,
            off_cards: false,
            base: None,
            once: Duration::ZERO,
        };
        self.on(Event::Fetched { artefact: artefact(name, 1), result: Ok(fetched) })
    }

    pub(super) fn fetched_version(&mut self, name: &str, number: u64, bytes: u64) -> Vec<Effect> {
        let (footprint, kind) = (footprint(bytes), ModelKind::Embedding);
        let fetched = Fetched {
            footprint,
            shared: Vec::new(),
            kind,
            off_cards: false,
            base: None,
            once: Duration::ZERO,
        };
        self.on(Event::Fetched { artefact: artefact(name, number), result: Ok(fetched) })
    }

    pub(super) fn loaded_version(&mut self, name: &str, number: u64, bytes: u64) -> Vec<Effect> {
        let loaded = Loaded {
            model: (),
            footprint: footprint(bytes),
            shared: Vec::new(),
            once: Duration::ZERO,
            idle_ttl: None,
        };
        self.on(Event::Loaded { key: key_of(name, number), result: Ok(loaded) })
    }

    pub(super) fn died_version(&mut self, name: &str, number: u64) -> Vec<Effect> {
        let failure = Failure::new(ErrorKind::ModelFailed, "the workers are gone");
        self.on(Event::Died { key: key_of(name, number), failure })
    }

    pub(super) fn loaded(&mut self, name: &str, bytes: u64) -> Vec<Effect> {
        self.loaded_version(name, 1, bytes)
    }

    pub(super) fn released(&mut self, name: &str) -> Vec<Effect> {
        self.on(Event::Released { key: key(name) })
    }

    pub(super) fn measured(&mut self, name: &str, bytes: u64) -> Vec<Effect> {
        self.on(Event::Measured { key: key(name), footprint: footprint(bytes) })
    }

    pub(super) fn died(&mut self, name: &str) -> Vec<Effect> {
        self.died_version(name, 1)
    }

    pub(super) fn unloaded(&mut self, name: &str) -> Vec<Effect> {
        self.on(Event::Unloaded { key: key(name), copy: None })
    }

    /// A resident that nobody uses.
    pub(super) fn resident(&mut self, name: &str, bytes: u64) {
        self.acquire(name);
        self.resolved(name, bytes);
        self.fetched(name, bytes);
        self.loaded(name, bytes);
        self.released(name);
    }
}
