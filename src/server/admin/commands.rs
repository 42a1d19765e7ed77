//! An operator's wishes. Each answers when it is done, or says why not.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use roundhouse_residency::LoadOptions;
use roundhouse_types::{ArtefactId, ErrorKind, Failure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, Meant, Refusal};

#[derive(Debug, Deserialize)]
pub(super) struct Load {
    #[serde(flatten)]
    meant: Meant,
    /// Load it although it is quarantined or failed lately.
    #[serde(default)]
    force: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct Unload {
    #[serde(flatten)]
    meant: Meant,
    /// Delete its files from the disk cache as well.
    #[serde(default)]
    purge: bool,
}

pub(super) async fn load(
    State(admin): State<Arc<Admin>>,
    Json(asked): Json<Load>,
) -> Result<Json<Value>, Refusal> {
    let model = admin.model(&asked.meant)?;
    let options = LoadOptions { force: asked.force, ..LoadOptions::default() };
    let report = admin.residency.load(&model, options).await?;
    Ok(Json(json!({
        "endpoint": model.endpoint, "target": model.target, "state": "ready",
        "version": report.version, "device": report.device, "tier": report.tier,
    })))
}

pub(super) async fn unload(
    State(admin): State<Arc<Admin>>,
    Json(asked): Json<Unload>,
) -> Result<Json<Value>, Refusal> {
    let model = admin.model(&asked.meant)?;
    let mut versions = match admin.residency.unload(&model).await {
        Ok(report) => report.versions,
        // To purge what is on disk alone is a fair wish.
        Err(failure) if asked.purge && failure.kind() == ErrorKind::ModelNotFound => Vec::new(),
        Err(failure) => return Err(failure.into()),
    };
    let mut purged = Vec::new();
    if asked.purge {
        if let Some(id) = admin.cache.as_ref().and_then(|cache| cache.latest(&model))
            && !versions.contains(&id.version)
        {
            versions.push(id.version);
        }
        for version in &versions {
            let id = ArtefactId { model: model.clone(), version: version.clone() };
            admin.loader.purge(&id).await?;
            purged.push(version.clone());
        }
        if purged.is_empty() {
            let message = format!("{model} is neither loaded nor on disk");
            return Err(Failure::new(ErrorKind::ModelNotFound, message).into());
        }
    }
    Ok(Json(json!({
        "endpoint": model.endpoint, "target": model.target, "state": "absent",
        "versions": versions, "purged": purged,
    })))
}

pub(super) async fn keep(
    State(admin): State<Arc<Admin>>,
    Json(meant): Json<Meant>,
) -> Result<Json<Value>, Refusal> {
    let model = admin.model(&meant)?;
    admin.residency.keep(&model).await?;
    Ok(Json(json!({"endpoint": model.endpoint, "target": model.target, "kept": true})))
}

pub(super) async fn release(
    State(admin): State<Arc<Admin>>,
    Json(meant): Json<Meant>,
) -> Result<Json<Value>, Refusal> {
    let model = admin.model(&meant)?;
    admin.residency.release(&model).await?;
    Ok(Json(json!({"endpoint": model.endpoint, "target": model.target, "kept": false})))
}

pub(super) async fn refresh(
    State(admin): State<Arc<Admin>>,
    Json(meant): Json<Meant>,
) -> Result<Json<Value>, Refusal> {
    let model = admin.model(&meant)?;
    let report = admin.residency.refresh(&model).await?;
    Ok(Json(json!({
        "endpoint": model.endpoint, "target": model.target,
        "version": report.version, "updated": report.updated,
    })))
}
