//! What tenants and models have on disk.

use roundhouse_store::{DiskCache, TenantOnDisk};
use roundhouse_types::ModelId;
use serde_json::{Value, json};

/// One tenant, as it is shown.
pub(super) fn tenant(found: &TenantOnDisk) -> Value {
    json!({
        "tenant": found.tenant, "bytes": found.bytes,
        "floor_bytes": found.limits.floor, "ceiling_bytes": found.limits.ceiling,
    })
}

/// What a model has there, beside its tenant.
pub(super) fn of_model(cache: &DiskCache, model: &ModelId) -> Value {
    let versions = cache.versions(model);
    let bytes = cache.shares(&model.endpoint).remove(&model.target).unwrap_or_default();
    json!({
        "bytes": bytes, "versions": versions.len(),
        "tenant": tenant(&cache.tenant(model.target.tenant())),
    })
}
