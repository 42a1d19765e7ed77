//! An operator's wishes. Each answers when it is done, or says why not.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use roundhouse_residency::LoadOptions;
use roundhouse_store::Freshness;
use roundhouse_types::{ErrorKind, Failure, ModelId};
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
    /// Delete every version's files from the disk cache as well, and lift its choice.
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
    let versions = match admin.residency.unload(&model).await {
        Ok(report) => report.versions,
        // To purge what is on disk alone is a fair wish.
        Err(failure) if asked.purge && failure.kind() == ErrorKind::ModelNotFound => Vec::new(),
        Err(failure) => return Err(failure.into()),
    };
    let (mut freed, mut lifted) = (Vec::new(), false);
    if asked.purge {
        // What an operator purges is forgotten: the next load begins with what the store holds.
        lifted = admin.loader.lift(&model).await?;
        if lifted {
            admin.residency.note_choice(&model, None).await?;
        }
        freed = admin.loader.purge(&model).await?;
        if freed.is_empty() && versions.is_empty() && !lifted {
            let message = format!("{model} is neither loaded nor on disk");
            return Err(Failure::new(ErrorKind::ModelNotFound, message).into());
        }
    }
    let purged: Vec<_> = freed.iter().map(|it| it.version.clone()).collect();
    let freed: Vec<_> = freed
        .iter()
        .map(|it| json!({"version": it.version, "bytes": it.bytes, "in_use": it.in_use}))
        .collect();
    Ok(Json(json!({
        "endpoint": model.endpoint, "target": model.target, "state": "absent",
        "versions": versions, "purged": purged, "freed": freed, "choice_lifted": lifted,
    })))
}

/// Fails where neither we nor the store know the name. A store that cannot be asked is no
/// reason to: an operator's wish counts with the store down, too.
pub(super) async fn must_exist(admin: &Admin, model: &ModelId) -> Result<(), Failure> {
    if admin.residency.is_known(model).await? || !admin.loader.on_disk(model).is_empty() {
        return Ok(());
    }
    match admin.loader.look(model, Freshness::Cached).await {
        Err(failure) if failure.kind() == ErrorKind::ModelNotFound => Err(failure),
        Ok(_) | Err(_) => Ok(()),
    }
}

pub(super) async fn keep(
    State(admin): State<Arc<Admin>>,
    Json(meant): Json<Meant>,
) -> Result<Json<Value>, Refusal> {
    let model = admin.model(&meant)?;
    must_exist(&admin, &model).await?;
    admin.residency.keep(&model).await?;
    Ok(Json(json!({"endpoint": model.endpoint, "target": model.target, "kept": true})))
}

pub(super) async fn release(
    State(admin): State<Arc<Admin>>,
    Json(meant): Json<Meant>,
) -> Result<Json<Value>, Refusal> {
    let model = admin.model(&meant)?;
    must_exist(&admin, &model).await?;
    admin.residency.release(&model).await?;
    Ok(Json(json!({"endpoint": model.endpoint, "target": model.target, "kept": false})))
}
