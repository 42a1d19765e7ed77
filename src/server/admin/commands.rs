//! An operator's wishes. Each answers when it is done, or says why not.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use roundhouse_residency::{LeftWith, LoadOptions};
use roundhouse_store::Freshness;
use roundhouse_types::{ArtefactId, ErrorKind, Failure, ModelId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::asked::Fields;
use super::spelling::explained;
use super::{Admin, Meant, Refusal};

// What is flattened cannot refuse what it does not know, so each names its model itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Load {
    endpoint: Option<String>,
    target: String,
    /// Load it although it is quarantined or failed lately.
    #[serde(default)]
    force: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unload {
    endpoint: Option<String>,
    target: String,
    /// Delete every version's files from the disk cache as well, and lift its choice.
    #[serde(default)]
    purge: bool,
}

pub(super) async fn load(
    State(admin): State<Arc<Admin>>,
    Json(Fields(asked)): Json<Fields<Load>>,
) -> Result<Json<Value>, Refusal> {
    let Load { endpoint, target, force } = asked;
    let model = admin.model(&Meant { endpoint, target })?;
    let options = LoadOptions { force, ..LoadOptions::default() };
    let report = match admin.residency.load(&model, options).await {
        Ok(report) => report,
        Err(failure) => return Err(explained(&admin, &model, failure).await.into()),
    };
    Ok(Json(json!({
        "endpoint": model.endpoint, "target": model.target, "state": "ready",
        "version": report.version, "device": report.device, "tier": report.tier,
    })))
}

pub(super) async fn unload(
    State(admin): State<Arc<Admin>>,
    Json(Fields(asked)): Json<Fields<Unload>>,
) -> Result<Json<Value>, Refusal> {
    let Unload { endpoint, target, purge } = asked;
    let model = admin.model(&Meant { endpoint, target })?;
    let (versions, adapters) = match admin.residency.unload(&model).await {
        Ok(report) => (report.versions, report.adapters),
        // To purge what is on disk alone is a fair wish.
        Err(failure) if purge && failure.kind() == ErrorKind::ModelNotFound => {
            (Vec::new(), Vec::new())
        }
        Err(failure) => return Err(failure.into()),
    };
    let (mut freed, mut lifted) = (Vec::new(), false);
    if purge {
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
    let adapters: Vec<_> = adapters
        .iter()
        .map(|LeftWith { artefact: ArtefactId { model, version }, kept }| {
            json!({
                "endpoint": model.endpoint, "target": model.target, "version": version,
                "kept": kept,
            })
        })
        .collect();
    Ok(Json(json!({
        "endpoint": model.endpoint, "target": model.target, "state": "absent",
        "versions": versions, "adapters": adapters, "purged": purged, "freed": freed,
        "choice_lifted": lifted,
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
    Json(Fields(meant)): Json<Fields<Meant>>,
) -> Result<Json<Value>, Refusal> {
    let model = admin.model(&meant)?;
    if let Err(failure) = must_exist(&admin, &model).await {
        return Err(explained(&admin, &model, failure).await.into());
    }
    admin.residency.keep(&model).await?;
    Ok(Json(json!({"endpoint": model.endpoint, "target": model.target, "kept": true})))
}

pub(super) async fn release(
    State(admin): State<Arc<Admin>>,
    Json(Fields(meant)): Json<Fields<Meant>>,
) -> Result<Json<Value>, Refusal> {
    let model = admin.model(&meant)?;
    if let Err(failure) = must_exist(&admin, &model).await {
        return Err(explained(&admin, &model, failure).await.into());
    }
    admin.residency.release(&model).await?;
    Ok(Json(json!({"endpoint": model.endpoint, "target": model.target, "kept": false})))
}
