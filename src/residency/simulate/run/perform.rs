//! What the table wants done, and what the world answers.

use std::time::Duration;

use roundhouse_types::{ArtefactId, Bytes, Footprint, Grade, ModelId, ModelKind, Version};

use super::{Happening, Run};
use crate::loader::{Fetched, Loaded, Resolution, Standing};
use crate::table::{Effect, Event, Grant, WaiterId};

impl Run<'_> {
    pub(super) fn perform(&mut self, effect: Effect, asking: Option<usize>) {
        match effect {
            Effect::Resolve { model, .. } => self.resolve(model),
            Effect::Fetch { artefact, .. } => self.fetch(&artefact),
            Effect::AbandonFetch { artefact } => {
                let model = self.number(&artefact.model);
                self.fetching.remove(&model);
                self.store.abandon(model, self.now);
            }
            Effect::Load { key, .. } => self.load(self.number(&key.artefact.model)),
            Effect::Unload { key, .. } => {
                let model = self.number(&key.artefact.model);
                self.counts.evictions += 1;
                self.after(self.setup.world.unload, Happening::Unloaded { model });
            }
            Effect::Grant(grant) => self.granted(&grant, asking),
            Effect::Refuse { waiter, .. } => {
                let request = index(waiter);
                self.counts.refused += 1;
                self.overtakings.over(request, false);
                self.answered();
            }
            // No operator takes part, nobody asks why, nothing is demoted, for the one device is the
            // host, and no pool says anything.
            Effect::Report { .. }
            | Effect::Decided(_)
            | Effect::Discard { .. }
            | Effect::OrderKv { .. } => {}
        }
    }

    /// Something that was begun has ended.
    pub(super) fn happened(&mut self, happening: Happening) {
        let event = match happening {
            Happening::Served { model } => {
                self.answered();
                Event::Released { key: self.keys[model as usize].clone() }
            }
            Happening::Fetched { model, fetch } => {
                // A fetch that was abandoned meanwhile answers nobody.
                if self.fetching.get(&model) != Some(&fetch) {
                    return;
                }
                self.fetching.remove(&model);
                self.counts.fetched_bytes += self.bytes(model);
                self.fetched(model)
            }
            Happening::Loaded { model } => {
                let footprint = footprint(self.bytes(model));
                let result = Ok(Loaded {
                    model: (),
                    footprint,
                    shared: Vec::new(),
                    once: Duration::ZERO,
                    idle_ttl: None,
                });
                Event::Loaded { key: self.keys[model as usize].clone(), result }
            }
            Happening::Unloaded { model } => {
                Event::Unloaded { key: self.keys[model as usize].clone(), copy: None }
            }
        };
        self.tell(event, None);
    }

    fn resolve(&mut self, model: ModelId) {
        let number = self.number(&model);
        let bytes = self.bytes(number);
        let resolution = Resolution {
            version: self.version(number),
            fetch_bytes: if self.disk.holds(number) { Bytes::ZERO } else { bytes },
            footprint: Some((footprint(bytes), Grade::Exact)),
            shared: Vec::new(),
            kind: Some(ModelKind::Generative),
            off_cards: false,
            base: None,
            streams: false,
            quarantined: false,
            standing: Standing::default(),
        };
        self.inbox.push_back(Event::Resolved { model, result: Ok(resolution) });
    }

    fn fetch(&mut self, artefact: &ArtefactId) {
        let model = self.number(&artefact.model);
        if self.disk.holds(model) {
            let event = self.fetched(model);
            self.inbox.push_back(event);
            return;
        }
        self.sequence += 1;
        self.fetching.insert(model, self.sequence);
        self.store.begin(model, super::float(self.bytes(model)), self.now);
    }

    /// The files are whole on disk.
    fn fetched(&mut self, model: u32) -> Event {
        let bytes = self.bytes(model);
        self.whole.insert(model);
        let whole = &self.whole;
        self.disk.used(model, bytes, |file| whole.contains(&file));
        let (footprint, kind) = (footprint(bytes), ModelKind::Generative);
        let fetched = Fetched {
            footprint,
            shared: Vec::new(),
            kind,
            off_cards: false,
            base: None,
            once: Duration::ZERO,
        };
        let artefact = self.keys[model as usize].artefact.clone();
        Event::Fetched { artefact, result: Ok(fetched) }
    }

    fn load(&mut self, model: u32) {
        let bytes = self.bytes(model);
        self.counts.loads += 1;
        self.counts.loaded_bytes += bytes;
        self.whole.remove(&model);
        self.device.begin(model, super::float(bytes), self.now);
    }

    fn granted(&mut self, grant: &Grant, asking: Option<usize>) {
        let request = index(grant.waiter);
        if asking == Some(request) {
            self.counts.hits += 1;
        }
        self.waits.push(self.now.saturating_sub(self.arrived[request]));
        self.overtakings.over(request, true);
        let model = self.trace.requests()[request].model;
        self.after(self.setup.world.service, Happening::Served { model });
    }

    /// One request fewer is under way.
    fn answered(&mut self) {
        self.unanswered -= 1;
        self.last_answer = self.now;
    }

    fn number(&self, model: &ModelId) -> u32 {
        self.trace.number(model).expect("the table knows models of the trace only")
    }

    fn bytes(&self, model: u32) -> Bytes {
        self.trace.models()[model as usize].bytes
    }

    fn version(&self, model: u32) -> Version {
        self.keys[model as usize].artefact.version.clone()
    }
}

/// Waiters are numbered as requests.
fn index(waiter: WaiterId) -> usize {
    usize::try_from(waiter.0).expect("it was the index of a request")
}

fn footprint(bytes: Bytes) -> Footprint {
    Footprint { weights: bytes, ..Footprint::default() }
}
