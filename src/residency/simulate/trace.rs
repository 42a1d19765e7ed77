//! Who asked for what when.

use std::collections::HashMap;
use std::time::Duration;

use roundhouse_types::{Bytes, ModelId};

use super::reference::{Ask, Sequence};

/// Requests in the order of their arrival.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    models: Vec<TracedModel>,
    numbers: HashMap<ModelId, u32>,
    requests: Vec<Request>,
    is_sorted: bool,
}

/// A model that a trace asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedModel {
    /// Which one.
    pub id: ModelId,
    /// What it takes on a device and in the store.
    pub bytes: Bytes,
}

/// One request of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// When it came. Only differences count.
    pub at: Duration,
    /// The model's place in [`Trace::models`].
    pub model: u32,
}

impl Trace {
    /// A trace without requests.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a request. Requests may be added in any order; those of one instant stay in theirs.
    pub fn push(&mut self, at: Duration, model: &ModelId) {
        let number = match self.numbers.get(model) {
            Some(number) => *number,
            None => {
                let fresh = u32::try_from(self.models.len()).expect("fewer than 2^32 models");
                self.models.push(TracedModel { id: model.clone(), bytes: Bytes::ZERO });
                self.numbers.insert(model.clone(), fresh);
                fresh
            }
        };
        self.requests.push(Request { at, model: number });
        self.is_sorted = false;
    }

    /// Says what each model takes.
    pub fn size(&mut self, size: impl Fn(&ModelId) -> Bytes) {
        for model in &mut self.models {
            model.bytes = size(&model.id);
        }
    }

    /// Puts the requests in the order of their arrival. Call it once all are there.
    pub fn sort(&mut self) {
        self.requests.sort_by_key(|request| request.at);
        self.is_sorted = true;
    }

    /// The models asked for, in the order in which they were added.
    pub fn models(&self) -> &[TracedModel] {
        &self.models
    }

    /// The requests.
    pub fn requests(&self) -> &[Request] {
        debug_assert!(self.is_sorted || self.requests.is_empty(), "a trace is sorted before use");
        &self.requests
    }

    /// The size that all models have, where they have one.
    pub fn equal_size(&self) -> Option<Bytes> {
        let first = self.models.first()?.bytes;
        self.models.iter().all(|model| model.bytes == first).then_some(first)
    }

    /// The place of a model in [`Self::models`].
    pub(super) fn number(&self, model: &ModelId) -> Option<u32> {
        self.numbers.get(model).copied()
    }

    /// The requests as the plain models of caching take them, on an empty device.
    pub fn sequence(&self) -> Sequence {
        let bytes = |model: u32| self.models[model as usize].bytes;
        let ask = |request: &Request| Ask { model: request.model, bytes: bytes(request.model) };
        Sequence { asks: self.requests().iter().map(ask).collect(), residents: Vec::new() }
    }
}
