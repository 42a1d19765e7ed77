//! What an endpoint's requests can name beside target models.

use std::collections::BTreeMap;
use std::sync::Arc;

use roundhouse_types::{ModelId, TargetName};

/// The variant of an endpoint that has only one.
pub const ALL_TRAFFIC: &str = "AllTraffic";

/// What an endpoint's requests can name beside target models, and what they mean that name nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Naming {
    /// Inference components: targets by names.
    pub components: BTreeMap<String, TargetName>,
    /// Production variants, one at least, with names that differ. Either all serve one target each,
    /// or none does.
    pub variants: Vec<Variant>,
}

/// A production variant: a part of the endpoint's requests, and what answers them.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// What `X-Amzn-SageMaker-Target-Variant` calls it.
    pub name: Arc<str>,
    /// Its part of the requests, beside the weights of the others. Above zero.
    pub weight: f64,
    /// What answers.
    pub serves: Serves,
}

/// What a variant answers by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serves {
    /// The target that the request names.
    Named,
    /// The one that it names, below this folder.
    Below(TargetName),
    /// This target: a request cannot name another.
    One(TargetName),
}

impl Default for Naming {
    /// Requests name their targets.
    fn default() -> Self {
        Self::of(Serves::Named)
    }
}

impl Naming {
    /// One variant that takes all requests.
    pub fn of(serves: Serves) -> Self {
        let variant = Variant { name: ALL_TRAFFIC.into(), weight: 1.0, serves };
        Self { components: BTreeMap::new(), variants: vec![variant] }
    }

    /// Whether a request may have come to this target without naming it: by a component, or a variant
    /// that serves it or a folder it lies in.
    pub(crate) fn stands_for(&self, model: &ModelId) -> bool {
        let by_variant = |variant: &Variant| match &variant.serves {
            Serves::Named => false,
            Serves::Below(_) => true,
            Serves::One(target) => *target == model.target,
        };
        self.variants.iter().any(by_variant)
            || self.components.values().any(|target| *target == model.target)
    }

    /// Whether requests name their target models, as at SageMaker's multi-model endpoints.
    pub fn is_multi_model(&self) -> bool {
        !self.variants.iter().any(|it| matches!(it.serves, Serves::One(_)))
    }
}
