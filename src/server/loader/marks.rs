//! Markers on disk of the loads that run: a model that kills the process is known by its own.

use std::sync::Arc;
use std::time::Instant;

use roundhouse_engine::{Lane, LaneHealth};
use roundhouse_residency::Loaded;
use roundhouse_serving::ServedModel;
use roundhouse_store::DiskCache;
use roundhouse_types::{ArtefactId, Failure};
use tracing::warn;

use super::load::{Onto, Origin};
use super::{ModelLoader, locked, named, unmark};

impl ModelLoader {
    /// Loads with a marker on disk meanwhile, so that a model that kills the process is known
    /// by it.
    pub(super) async fn load_marked(
        &self,
        cache: &DiskCache,
        id: &ArtefactId,
        origin: Origin,
        onto: Onto,
    ) -> Result<Loaded<ServedModel>, Failure> {
        let device = onto.device;
        let origin = match origin {
            Origin::Arriving(files, plan) => {
                let began = Instant::now();
                let read = self.read_arriving(cache, id, files, &plan, device).await;
                let read = read.map_err(|failure| named(id, &failure));
                let read = read.map_err(|failure| self.failed_behind(cache, id, failure))?;
                Origin::Read(Box::new(read), plan, began)
            }
            origin => origin,
        };
        self.mark(cache, id).await;
        let loaded = self.load_from(id, origin, onto).await;
        let has_failed = |lane: &Arc<Lane>| matches!(lane.health(), LaneHealth::Failed { .. });
        if loaded.is_err() && self.lanes.get(&device).is_some_and(has_failed) {
            // The device failed under it and the process ends: a death like any other.
            locked(&self.loading).remove(id);
        } else {
            self.unmark(cache, id).await;
        }
        loaded
    }

    /// Marks a load on disk.
    pub(super) async fn mark(&self, cache: &DiskCache, id: &ArtefactId) {
        if self.begins_loading(id)
            && let Err(error) = cache.begin_load(id).await
        {
            // A full disk must not keep models from memory.
            warn!(%error, model = %id, "a load could not be marked on disk");
        }
    }

    /// The load is over, or goes on with what can harm nobody.
    pub(super) async fn unmark(&self, cache: &DiskCache, id: &ArtefactId) {
        if self.ends_loading(id) {
            unmark(cache, id).await;
        }
    }

    /// Whether it is the first of the version's loads that run now.
    pub(super) fn begins_loading(&self, id: &ArtefactId) -> bool {
        let mut loading = locked(&self.loading);
        let running = loading.entry(id.clone()).or_default();
        *running += 1;
        *running == 1
    }

    /// Whether it was the last of the version's loads that ran, and not taken out meanwhile.
    pub(super) fn ends_loading(&self, id: &ArtefactId) -> bool {
        let mut loading = locked(&self.loading);
        let Some(running) = loading.get_mut(id) else { return false };
        *running -= 1;
        let was_last = *running == 0;
        if was_last {
            loading.remove(id);
        }
        was_last
    }
}
