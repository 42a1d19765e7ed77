//! What the configuration wants on the device from the start.

use roundhouse_residency::{LoadOptions, Residency};
use roundhouse_serving::ServedModel;
use roundhouse_types::{Failure, ModelId};
use tracing::{info, warn};

use crate::config::Endpoint;

/// What one endpoint wants.
pub(super) struct Wishes {
    keep: Vec<ModelId>,
    load: Vec<ModelId>,
}

impl Wishes {
    /// The lists of all endpoints.
    pub(super) fn of(endpoints: &[Endpoint]) -> Self {
        let mut wishes = Self { keep: Vec::new(), load: Vec::new() };
        for endpoint in endpoints {
            let model = |target: &roundhouse_types::TargetName| ModelId {
                endpoint: endpoint.name.clone(),
                target: target.clone(),
            };
            wishes.keep.extend(endpoint.keep.iter().map(model));
            wishes.load.extend(endpoint.preload.iter().map(model));
        }
        wishes
    }

    /// What these wish to be kept that others do not.
    pub(super) fn keeps_beyond(self, others: &Self) -> Vec<ModelId> {
        self.keep.into_iter().filter(|model| !others.keep.contains(model)).collect()
    }

    /// What these wish that endpoints did not wish before.
    pub(super) fn beyond(mut self, before: &[Endpoint]) -> Self {
        let before = Self::of(before);
        self.keep.retain(|model| !before.keep.contains(model));
        self.load.retain(|model| !before.load.contains(model));
        self
    }

    /// Sets the keeps, then loads one after the other what is to be there. Requests are served
    /// meanwhile. What does not fit or fails is left out and told.
    pub(super) async fn fulfil(self, residency: Residency<ServedModel>) {
        for model in &self.keep {
            if let Err(failure) = residency.keep(model).await {
                return gone(&failure);
            }
        }
        for model in &self.load {
            let options = LoadOptions { evict: false, force: false };
            match residency.load(model, options).await {
                Ok(report) => info!(%model, version = %report.version, "preloaded"),
                Err(failure) => warn!(%model, %failure, "not preloaded"),
            }
        }
    }
}

fn gone(failure: &Failure) {
    warn!(%failure, "nothing was preloaded");
}
