//! Files that somebody else reads by their paths: an engine finds all their bytes there.

use roundhouse_store::{CachedArtefact, Catalog, DiskCache};
use roundhouse_types::{ArtefactId, Failure};
use tracing::info;

use super::ModelLoader;

impl ModelLoader {
    /// A version's files as who loads it may read them. What our own reader has had shares bytes with
    /// other versions, and has holes there: for an engine it is fetched again.
    pub(super) async fn readable(
        &self,
        catalog: &Catalog,
        cache: &DiskCache,
        id: &ArtefactId,
        cached: CachedArtefact,
    ) -> Result<CachedArtefact, Failure> {
        if self.external(&id.model).is_none() || cache.keep_apart(&cached).await {
            return Ok(cached);
        }
        info!(model = %id.model, version = %id.version, "fetched again, to be read by its engine");
        let artefact = cached.artefact().clone();
        drop(cached);
        cache.purge(id).await?;
        let (payer, progress) = (self.payer_unpaced(id), self.recall(id).progress);
        let cached = cache.fetch_for(payer, catalog, &artefact, &progress).await?;
        cache.keep_apart(&cached).await;
        Ok(cached)
    }
}
