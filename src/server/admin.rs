//! The admin port: what is resident and why, an operator's wishes, health and metrics.
//!
//! Health is answered from atomics alone, so that a busy server is not taken for a dead one.

mod adapters;
mod asked;
mod commands;
mod containers;
mod disk;
mod facts;
mod guard;
mod health;
pub(crate) mod live;
mod models;
mod page;
mod plain;
mod reload;
mod spelling;
mod standing;
mod usage;
mod versions;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use roundhouse_residency::{Regret, Residency, Snapshot, rfc3339};
use roundhouse_serving::ServedModel;
use roundhouse_tenancy::{Accounts, Current};
use roundhouse_types::{EndpointName, ErrorKind, Failure, ModelId, TargetModel};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::{Catalogs, Disk, Reload};
use crate::loader::{ModelLoader, lacking};
use crate::witness::Witness;
use asked::Nothing;
pub(crate) use containers::{ContainersFn, Kind, Shown};
pub(crate) use guard::{AuditFn, Guard, Pass, host, is_foreign, is_ours};
pub(crate) use health::Vitals;
pub(crate) use usage::row as usage_row;

/// What the routes work with.
pub(crate) struct Admin {
    pub(crate) residency: Residency<ServedModel>,
    pub(crate) loader: Arc<ModelLoader>,
    /// Replaced when the settings change.
    pub(crate) catalogs: Arc<Current<Catalogs>>,
    /// Not opened before there is a store.
    pub(crate) disk: Disk,
    pub(crate) vitals: Arc<Vitals>,
    pub(crate) witness: Arc<Witness>,
    pub(crate) accounts: Arc<Accounts>,
    pub(crate) metrics: PrometheusHandle,
    /// Containers and engines of the operator's.
    pub(crate) containers: ContainersFn,
    /// Reads the settings again; absent where they come from no file.
    pub(crate) reload: Option<Reload>,
}

/// The admin port's routes. Whether the process lives and is ready is told to everybody, all else
/// to whom the guard lets through.
pub(crate) fn router(admin: Arc<Admin>, guard: Guard) -> Router {
    let vitals = vitals_router(&admin.vitals);
    let guard = Arc::new(guard);
    let streams = Router::new()
        .route("/admin/v1/events", get(live::routes::events))
        .route("/admin/v1/live", get(live::routes::live))
        .with_state(Arc::new(live::of(&admin)));
    Router::new()
        .route("/metrics", get(adapters::metrics))
        .route("/admin/v1/residency", get(residency))
        .route("/admin/v1/models", get(models::models))
        .route("/admin/v1/explain", get(explain))
        .route("/admin/v1/regret", get(regret))
        .route("/admin/v1/usage", get(usage::usage))
        .route("/admin/v1/load", post(commands::load))
        .route("/admin/v1/unload", post(commands::unload))
        .route("/admin/v1/keep", post(commands::keep))
        .route("/admin/v1/release", post(commands::release))
        .route("/admin/v1/refresh", post(versions::refresh))
        .route("/admin/v1/use", post(versions::use_version))
        .route("/admin/v1/reload", get(reload::last).post(reload::reload))
        .route("/admin/v1/versions", get(versions::versions))
        .with_state(admin)
        .merge(streams)
        .fallback(plain::nothing_here)
        .layer(map_response(plain::as_json))
        .layer(from_fn_with_state(guard.clone(), guard::guard))
        .merge(page::router(guard))
        .merge(vitals)
}

/// `/livez`, `/readyz`, `/healthz` and `/metrics` alone, for kubelets and scrapers.
pub(crate) fn health_router(vitals: &Arc<Vitals>, metrics: &PrometheusHandle) -> Router {
    let metrics = metrics.clone();
    vitals_router(vitals).route("/metrics", get(move || async move { metrics.render() }))
}

fn vitals_router(vitals: &Arc<Vitals>) -> Router {
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/healthz", get(health::both))
        .with_state(vitals.clone())
}

/// A failure as the admin port says it.
struct Refusal(Failure);

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.0.kind() {
            ErrorKind::InvalidRequest | ErrorKind::InvalidInput | ErrorKind::ModelInvalid => {
                StatusCode::BAD_REQUEST
            }
            ErrorKind::EndpointNotFound | ErrorKind::ModelNotFound => StatusCode::NOT_FOUND,
            ErrorKind::StoreDenied => StatusCode::FORBIDDEN,
            ErrorKind::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorKind::TooLarge => StatusCode::INSUFFICIENT_STORAGE,
            ErrorKind::Throttled => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::NotReady | ErrorKind::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::StoreUnavailable => StatusCode::BAD_GATEWAY,
            ErrorKind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::ModelFailed | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let kind = self.0.kind().as_str();
        (status, Json(json!({"error": {"kind": kind, "message": self.0.message()}})))
            .into_response()
    }
}

/// Which model an operator means. Without an endpoint the only one, or `default`, is meant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meant {
    endpoint: Option<String>,
    target: String,
}

impl Admin {
    /// The endpoint that is meant, of those with models and those with containers.
    fn any_endpoint(&self, name: Option<&str>) -> Result<EndpointName, Failure> {
        let names = self.endpoints();
        let found = match name {
            Some(name) => names.get(name),
            None if names.len() == 1 => names.first(),
            None => names.get("default"),
        };
        found.cloned().ok_or_else(|| {
            let known: Vec<&str> = names.iter().map(EndpointName::as_str).collect();
            let message = match (name, known.join(", ")) {
                (Some(name), known) if known.is_empty() => {
                    format!("no endpoint is called '{name}'; there is none")
                }
                (None, known) if known.is_empty() => "there is no endpoint".to_owned(),
                (Some(name), known) => {
                    format!("no endpoint is called '{name}'; there are: {known}")
                }
                (None, known) => format!("name an endpoint; there are: {known}"),
            };
            Failure::new(ErrorKind::EndpointNotFound, message)
        })
    }

    /// The endpoint that is meant, where models are loaded for it.
    fn endpoint(&self, name: Option<&str>) -> Result<EndpointName, Failure> {
        let catalogs = self.catalogs.get();
        // Without a name: of those that hold models.
        let only = catalogs.keys().next().filter(|_| catalogs.len() == 1);
        let name = name.or(only.map(EndpointName::as_str));
        let found = self.any_endpoint(name)?;
        if catalogs.contains_key(&found) {
            return Ok(found);
        }
        let message = format!("endpoint '{found}' has containers, and loads no models");
        Err(Failure::new(ErrorKind::InvalidRequest, message))
    }

    /// All endpoints.
    fn endpoints(&self) -> BTreeSet<EndpointName> {
        let mut names: BTreeSet<EndpointName> = self.catalogs.get().keys().cloned().collect();
        let shown = (self.containers)().into_iter();
        names.extend(shown.filter(|it| it.kind == Kind::Container).map(|it| it.endpoint));
        names
    }

    fn model(&self, meant: &Meant) -> Result<ModelId, Failure> {
        let endpoint = self.endpoint(meant.endpoint.as_deref())?;
        let target = TargetModel::new(meant.target.as_bytes()).check().map_err(|why| {
            Failure::new(ErrorKind::InvalidRequest, format!("the target cannot be used: {why}"))
        })?;
        Ok(ModelId { endpoint, target })
    }
}

/// All that is known of the table. Where there is much of it, it is looked at part by part, and put into
/// words where nobody waits for that.
async fn residency(
    State(admin): State<Arc<Admin>>,
    Query(_): Query<Nothing>,
) -> Result<Response, Refusal> {
    let snapshot = admin.residency.gathered().await?;
    let said = tokio::task::spawn_blocking(move || {
        serde_json::to_vec(&dressed(&admin, snapshot)?).map_err(unsayable)
    });
    let said = said.await.map_err(|error| Failure::from_error(ErrorKind::Internal, &error))??;
    Ok(([(CONTENT_TYPE, "application/json")], said).into_response())
}

/// What readers of the live state are told beside residents and copies.
async fn standing_now(admin: &Admin) -> Result<Value, Failure> {
    let mut shown = dressed(admin, admin.residency.outline().await?)?;
    shown["time"] = json!(rfc3339(SystemTime::now()));
    shown["build"] = json!(env!("CARGO_PKG_VERSION"));
    shown["unready"] = json!(admin.vitals.unready());
    shown["endpoints"] = admin.endpoints().iter().map(|name| json!(name)).collect();
    Ok(shown)
}

/// A snapshot with what else is known, as it is shown.
fn dressed(admin: &Admin, snapshot: Snapshot) -> Result<Value, Failure> {
    let facts = facts::of(&snapshot, &admin.loader);
    let mut shown = serde_json::to_value(snapshot).map_err(unsayable)?;
    facts::show(&mut shown, facts)?;
    shown["disk"] = match admin.disk.opened() {
        Some(cache) => {
            let usage = cache.usage();
            json!({
                "budget_bytes": usage.budget, "used_bytes": usage.used,
                "partial_bytes": usage.partial, "shared_bytes": usage.shared,
                "artefacts": usage.artefacts,
                "tenants": cache.tenants().iter().map(disk::tenant).collect::<Vec<_>>(),
            })
        }
        None => Value::Null,
    };
    shown["memory"] = serde_json::to_value(admin.witness.last()).map_err(unsayable)?;
    shown["warm"] = warm_now(admin);
    shown["containers"] = (admin.containers)().iter().map(Shown::row).collect();
    shown["beyond_bytes"] = json!(admin.witness.configured().beyond);
    for found in shown["devices"].as_array_mut().into_iter().flatten() {
        let mut configured = admin.witness.configured().devices.iter();
        if let Some((_, budget)) = configured.find(|(device, _)| found["id"] == json!(device)) {
            found["configured_bytes"] = json!(budget);
        }
    }
    if let Some(host) = shown["host"].as_object_mut() {
        host.insert("configured_bytes".to_owned(), json!(admin.witness.configured().host));
    }
    Ok(shown)
}

/// Of interpreters that are kept for handlers; they take what is free of the device cpu.
fn warm_now(admin: &Admin) -> Value {
    admin.loader.warm().map_or(Value::Null, |warm| {
        json!({
            "interpreters": warm.interpreters, "bytes": warm.bytes, "limit_bytes": warm.limit,
        })
    })
}

fn unsayable(error: serde_json::Error) -> Failure {
    Failure::from_error(ErrorKind::Internal, &error)
}

async fn explain(
    State(admin): State<Arc<Admin>>,
    Query(meant): Query<Meant>,
) -> Result<Json<Value>, Refusal> {
    if let Some(shown) = container_meant(&admin, &meant) {
        return Ok(Json(json!({
            "endpoint": shown.endpoint, "target": shown.name, "now": shown.sentence(),
            "ready_in_ms": null, "decisions": [], "container": shown.row(),
        })));
    }
    let model = admin.model(&meant)?;
    let explanation = admin.residency.explain(&model).await?;
    let near = match commands::must_exist(&admin, &model).await {
        Err(failure) if failure.kind() == ErrorKind::ModelNotFound => {
            Some(spelling::near(&admin, &model).await)
        }
        _ => None,
    };
    // What is damaged is told where failures of newer versions are.
    let upload = admin.loader.passed_over(&model).await.filter(|passed| !passed.stale);
    // Of what may be a handler: those of ours that are loaded are none.
    let warm = (near.is_none() && admin.loader.facts(&model).is_none()).then(|| warm_now(&admin));
    Ok(Json(json!({
        "endpoint": model.endpoint,
        "target": model.target,
        "now": explanation.now,
        "ready_in_ms": explanation.ready_in_ms,
        "decisions": explanation.decisions,
        "runs": containers::of_model((admin.containers)(), &model)
            .iter()
            .map(Shown::sentence)
            .collect::<Vec<_>>(),
        // Of a name that nobody has: those that may have been meant.
        "near": near,
        "upload": upload.map(|passed| lacking(&model, &passed)),
        "warm": warm,
        "disk": admin.disk.opened().map(|cache| disk::of_model(cache, &model)),
    })))
}

/// The container that an operator means.
fn container_meant(admin: &Admin, meant: &Meant) -> Option<Shown> {
    let endpoint = admin.any_endpoint(meant.endpoint.as_deref()).ok()?;
    let of_endpoint = containers::of_endpoint((admin.containers)(), &endpoint);
    of_endpoint.into_iter().find(|it| it.name == meant.target)
}

/// Loads during the latest requests, beside those of the offline optimum.
async fn regret(
    State(admin): State<Arc<Admin>>,
    Query(_): Query<Nothing>,
) -> Result<Json<Regret>, Refusal> {
    Ok(Json(admin.residency.regret().await?))
}
