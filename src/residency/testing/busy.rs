//! A table with many residents, for measuring what it costs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, ErrorKind, Failure, Grade, ModelId, ModelKind,
};

use super::{artefact, footprint, model};
use crate::config::{Config, TenantLimits};
use crate::loader::{Fetched, Loaded, Resolution, Standing};
use crate::table::{Effect, Event, Key, Table, WaiterId};

/// What the busy table's adapters are on.
const BASE: &str = "bases/base";

/// What the busy table's models are said to be: ten bytes each.
fn resolution(artefact: &ArtefactId, fetch_bytes: Bytes) -> Resolution {
    resolution_on(artefact, fetch_bytes, None)
}

fn resolution_on(artefact: &ArtefactId, fetch_bytes: Bytes, base: Option<ModelId>) -> Resolution {
    Resolution {
        version: artefact.version.clone(),
        fetch_bytes,
        footprint: Some((footprint(10), Grade::Exact)),
        kind: None,
        off_cards: false,
        shared: Vec::new(),
        base,
        streams: false,
        quarantined: false,
        standing: Standing::default(),
    }
}

/// A table with residents that nobody but the caller uses: for measuring what a request on
/// a resident costs it.
#[derive(Debug)]
pub struct BusyTable {
    table: Table,
    keys: Vec<Key>,
    now: Instant,
    waiters: u64,
}

impl BusyTable {
    /// A table that knows `known` models, of which `residents` are loaded.
    pub fn new(known: usize, residents: usize) -> Self {
        let mut this = Self::empty(known, Bytes(residents as u64 * 10));
        for index in 0..known {
            let name = format!("tenant-{}/models/variant-{index}", index % 100);
            if index < residents {
                this.load(&name);
            } else {
                this.miss(&name);
            }
        }
        this
    }

    /// The same with adapters of two tenants: one has a floor that it exceeds, and the other, for which
    /// the late ones come, a ceiling that it has reached.
    pub fn with_limits(adapters: usize) -> Self {
        let half = Bytes(adapters as u64 * 5);
        let mut this = Self::empty(2 * adapters + 100, Bytes((adapters as u64 + 1) * 10));
        let limits = |floor, ceiling| TenantLimits { floor, ceiling, ..TenantLimits::default() };
        let limited =
            [("tenant-x", limits(Bytes::ZERO, Some(half))), ("tenant-y", limits(Bytes(10), None))];
        let tenants = limited.map(|(name, limits)| (name.to_owned(), limits)).into();
        this.on(Event::TermsChanged { tenants, drain_deleted: BTreeSet::new() });
        this.load(BASE);
        this.keys.clear();
        for index in 0..adapters {
            let tenant = if index % 2 == 0 { "x" } else { "y" };
            this.bring(&format!("tenant-{tenant}/adapters/variant-{index}"));
        }
        this
    }

    fn empty(known: usize, budget: Bytes) -> Self {
        let now = Instant::now();
        let config = Config { max_known_models: known, max_loads: 1, ..Default::default() };
        let table = Table::new(config, vec![(DeviceId::Cpu, budget)], now);
        Self { table, keys: Vec::new(), now, waiters: 0 }
    }

    /// A table with one base and so many adapters on it, which fill the device.
    pub fn with_adapters(adapters: usize) -> Self {
        // Those that come later are known as well.
        let known = 2 * adapters + 100;
        let mut this = Self::empty(known, Bytes((adapters as u64 + 1) * 10));
        this.load(BASE);
        this.keys.clear();
        for index in 0..adapters {
            this.bring(&format!("tenant-{}/adapters/variant-{index}", index % 100));
        }
        this
    }

    /// An adapter that is not there is asked for, comes in the place of another, and is used once.
    /// From then on nobody may ask for "the `index`-th".
    ///
    /// # Panics
    /// Where none leaves for it.
    pub fn replace(&mut self) {
        self.waiters += 1;
        let victim = self.bring(&format!("tenant-x/adapters/late-{}", self.waiters));
        victim.expect("the device is full");
    }

    /// Brings an adapter; who left for it.
    fn bring(&mut self, name: &str) -> Option<Key> {
        let (artefact, base) = (artefact(name, 1), model(BASE));
        let key = Key { artefact: artefact.clone(), device: DeviceId::Cpu };
        let footprint = footprint(10);
        self.ask(&artefact.model);
        let resolution = resolution_on(&artefact, Bytes::ZERO, Some(base.clone()));
        self.on(Event::Resolved { model: artefact.model.clone(), result: Ok(resolution) });
        let (shared, kind, base) = (Vec::new(), ModelKind::Embedding, Some(base));
        let fetched =
            Fetched { footprint, shared, kind, off_cards: false, base, once: Duration::ZERO };
        let effects = self.table.on(Event::Fetched { artefact, result: Ok(fetched) }, self.now);
        let victim = effects.into_iter().find_map(|effect| match effect {
            Effect::Unload { key, .. } => Some(key),
            _ => None,
        });
        if let Some(key) = victim.clone() {
            self.on(Event::Unloaded { key, copy: None });
        }
        let loaded = Loaded {
            model: (),
            footprint,
            shared: Vec::new(),
            once: Duration::ZERO,
            idle_ttl: None,
        };
        self.on(Event::Loaded { key: key.clone(), result: Ok(loaded) });
        self.on(Event::Released { key: key.clone() });
        self.keys.push(key);
        victim
    }

    fn on(&mut self, event: Event) {
        drop(self.table.on(event, self.now));
    }

    fn ask(&mut self, model: &ModelId) {
        self.waiters += 1;
        let hold_until = self.now + Duration::from_secs(60);
        let waiter = WaiterId(self.waiters);
        let model = model.clone();
        self.on(Event::AcquireRequested {
            waiter,
            model,
            hold_until,
            only_loaded: false,
            payer: None,
        });
    }

    fn load(&mut self, name: &str) {
        let artefact = artefact(name, 1);
        let key = Key { artefact: artefact.clone(), device: DeviceId::Cpu };
        let footprint = footprint(10);
        self.ask(&artefact.model);
        let resolution = resolution(&artefact, Bytes::ZERO);
        self.on(Event::Resolved { model: artefact.model.clone(), result: Ok(resolution) });
        let fetched = Fetched {
            footprint,
            shared: Vec::new(),
            kind: ModelKind::Embedding,
            off_cards: false,
            base: None,
            once: Duration::ZERO,
        };
        self.on(Event::Fetched { artefact, result: Ok(fetched) });
        let loaded = Loaded {
            model: (),
            footprint,
            shared: Vec::new(),
            once: Duration::ZERO,
            idle_ttl: None,
        };
        self.on(Event::Loaded { key: key.clone(), result: Ok(loaded) });
        self.on(Event::Released { key: key.clone() });
        self.keys.push(key);
    }

    /// From now on so many loads are under way: one on its way to the device, the others'
    /// files on their way to disk, with a request that waits for each.
    pub fn begin_loads(&mut self, loads: usize) {
        let room = Bytes((self.keys.len() + loads) as u64 * 10);
        self.on(Event::BudgetChanged { device: DeviceId::Cpu, budget: room });
        for index in 0..loads {
            let artefact = artefact(&format!("tenant-{}/models/cold-{index}", index % 100), 1);
            self.ask(&artefact.model);
            let resolution = resolution(&artefact, Bytes(if index == 0 { 0 } else { 10 }));
            self.on(Event::Resolved { model: artefact.model.clone(), result: Ok(resolution) });
            if index == 0 {
                let footprint = footprint(10);
                let fetched = Fetched {
                    footprint,
                    shared: Vec::new(),
                    kind: ModelKind::Embedding,
                    off_cards: false,
                    base: None,
                    once: Duration::ZERO,
                };
                self.on(Event::Fetched { artefact, result: Ok(fetched) });
            }
        }
    }

    fn miss(&mut self, name: &str) {
        let model = model(name);
        self.ask(&model);
        let failure = Failure::new(ErrorKind::ModelInvalid, "broken files");
        self.on(Event::Resolved { model, result: Err(failure) });
    }

    /// What asks for the `index`-th resident, modulo their number: its name as it is read off the
    /// wire, in memory of its own.
    pub fn request(&mut self, index: usize) -> Request {
        let artefact = &self.keys[index % self.keys.len()].artefact;
        let model = ModelId {
            endpoint: artefact.model.endpoint.as_str().parse().expect("a legal endpoint name"),
            target: artefact.model.target.as_str().parse().expect("a legal target name"),
        };
        self.waiters += 1;
        let (waiter, hold_until) = (WaiterId(self.waiters), self.now + Duration::from_secs(60));
        let event =
            Event::AcquireRequested { waiter, model, hold_until, only_loaded: false, payer: None };
        Request { event }
    }

    /// A request comes; what it is granted.
    ///
    /// # Panics
    /// Where it is not granted at once.
    pub fn acquire(&mut self, request: Request) -> Granted {
        let effects = self.table.on(request.event, self.now);
        let key = effects.into_iter().find_map(|effect| match effect {
            Effect::Grant(grant) => Some(grant.key),
            _ => None,
        });
        Granted { key: key.expect("the model is loaded") }
    }

    /// A request ends.
    pub fn release(&mut self, granted: Granted) {
        self.on(Event::Released { key: granted.key });
    }
}

/// A request that has not come yet.
#[derive(Debug)]
pub struct Request {
    event: Event,
}

/// A request that holds a resident.
#[derive(Debug)]
pub struct Granted {
    key: Key,
}
