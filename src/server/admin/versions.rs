//! A model's versions: which there are, which one is served, and how that is changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use roundhouse_residency::{
    CopyState, LoadOptions, RefreshReport, ResidentState, Snapshot, UnfitSnapshot, rfc3339,
};
use roundhouse_store::{Artefact, ChosenBy, Freshness, PassedOver};
use roundhouse_types::{ArtefactId, Bytes, ErrorKind, Failure, ModelId, RetryHint, Version};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::asked::Fields;
use super::{Admin, Meant, Refusal};
use crate::config::Update;
use crate::loader::{Wish, damage, doubt, lacking, overtaken};

/// So many digits of a version are taken for it.
const DIGITS_MIN: usize = 6;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Use {
    endpoint: Option<String>,
    target: String,
    /// The first digits of a version, or `latest`.
    version: String,
}

/// One version, wherever it is.
#[derive(Debug, Default, Serialize)]
struct Row {
    version: String,
    /// Whether it is what the store holds now, whole.
    in_store: bool,
    /// Whether the store holds it, and not whole or not known to be.
    in_part: bool,
    /// What the store has of it, in bytes.
    store_bytes: Option<Bytes>,
    /// What it takes on disk, where it is whole there.
    disk_bytes: Option<Bytes>,
    /// `ready`, `draining`, `unloading` or how far its load is; absent where it is not loaded.
    state: Option<Value>,
    #[serde(skip)]
    serves: bool,
    /// The devices that it is on or on its way to.
    devices: Vec<String>,
    /// Whether a copy of it is in the host's memory.
    copy: bool,
    /// Whether the model is held at it.
    held: bool,
    /// Why it is not served: its last load failed, or what the store holds of it is not whole.
    failure: Option<String>,
    /// Since when that is so.
    failed_since: Option<String>,
    first_seen: Option<String>,
    last_used: Option<String>,
}

pub(super) async fn versions(
    State(admin): State<Arc<Admin>>,
    Query(meant): Query<Meant>,
) -> Result<Json<Value>, Refusal> {
    let model = admin.model(&meant)?;
    let rule = admin.loader.rule(&model.endpoint);
    let in_store = admin.loader.look(&model, Freshness::Fresh).await;
    let mut rows: BTreeMap<Version, Row> = BTreeMap::new();
    let on_disk = admin.loader.on_disk(&model);
    let passed = admin.loader.passed_over(&model).await;
    if let Ok(artefact) = &in_store {
        let version = &artefact.id.version;
        let row = rows.entry(version.clone()).or_default();
        // In place of what is passed over one on disk answers, whatever the store has of it.
        if passed.is_none() || on_disk.iter().all(|found| found.version != *version) {
            (row.in_store, row.store_bytes) = (true, Some(artefact.bytes));
        }
    }
    note_seen(&admin, &model, in_store.as_deref(), passed.as_deref()).await?;
    for found in on_disk {
        let row = rows.entry(found.version).or_default();
        row.disk_bytes = Some(found.bytes);
        row.first_seen = Some(rfc3339(found.fetched_at));
        row.last_used = Some(rfc3339(found.used_at));
    }
    let snapshot = admin.residency.snapshot_of(&model).await?;
    add_loaded(&mut rows, &model, &snapshot);
    let named = in_store.as_ref().ok().map(|it| &it.id.version);
    let untold = add_failed(&mut rows, &model, &snapshot, named);
    if let Some(passed) = passed {
        let row = rows.entry(passed.version.clone()).or_default();
        row.in_part = true;
        row.failure = Some(format!("it {}: {}", doubt(&passed), passed.why));
        row.failed_since = Some(rfc3339(passed.since));
    }
    let choice = admin.loader.choice(&model);
    if let Some(choice) = &choice {
        rows.entry(choice.version.clone()).or_default().held = true;
    }
    if let (true, Err(failure)) = (rows.is_empty(), &in_store) {
        return Err(failure.clone().into());
    }
    for (version, row) in &mut rows {
        row.version = version.as_str().to_owned();
        let id = ArtefactId { model: model.clone(), version: version.clone() };
        let seen = admin.loader.first_seen(&id).map(rfc3339);
        // Times of this form sort as texts.
        row.first_seen = seen.into_iter().chain(row.first_seen.take()).min();
    }
    let mut rows: Vec<Row> = rows.into_values().collect();
    rows.sort_by(|a, b| b.first_seen.cmp(&a.first_seen));
    let held = choice.map(|choice| {
        let by = match choice.by {
            ChosenBy::Operator => "operator",
            ChosenBy::Rule => "rule",
        };
        json!({"version": choice.version, "by": by, "since": rfc3339(choice.since)})
    });
    let (in_store, failure) = match in_store {
        Ok(_) => (Some(true), None),
        // The store did answer: it holds nothing of that name.
        Err(failure) if failure.kind() == ErrorKind::ModelNotFound => (Some(false), None),
        Err(failure) => (None, Some(failure.message().to_owned())),
    };
    Ok(Json(json!({
        "endpoint": model.endpoint, "target": model.target, "update": rule.update.as_str(),
        "on_delete": rule.on_delete.as_str(), "held": held, "versions": rows,
        "in_store": in_store, "store_failure": failure,
        "failure": untold.as_ref().map(|it| &it.reason), "failed_since": untold.map(|it| it.since),
    })))
}

/// Has what was found in the store told wherever failures of newer versions are. To an operator who
/// chose a version it is no news.
async fn note_seen(
    admin: &Admin,
    model: &ModelId,
    in_store: Result<&Artefact, &Failure>,
    passed: Option<&PassedOver>,
) -> Result<(), Failure> {
    let named = match in_store {
        Ok(artefact) => Some(artefact.id.version.clone()),
        Err(failure) if failure.kind() == ErrorKind::ModelNotFound => None,
        // Of what a store that does not answer holds nothing is known.
        Err(_) => return Ok(()),
    };
    // Of an upload that may be under way nothing is known until it has settled.
    let is_unsettled = named.is_some() && passed.is_some_and(|passed| !passed.stale);
    if is_unsettled || is_chosen(admin, model) {
        return Ok(());
    }
    let damaged = passed.filter(|_| named.is_some());
    let unfit = damaged.map(|passed| (passed.version.clone(), damage(model, passed)));
    admin.residency.note_seen(model, named, unfit).await
}

fn add_loaded(rows: &mut BTreeMap<Version, Row>, model: &ModelId, snapshot: &Snapshot) {
    let loads = snapshot.loads.iter();
    for load in loads.filter(|it| it.endpoint == model.endpoint && it.target == model.target) {
        let row = rows.entry(load.version.clone()).or_default();
        row.state = Some(json!(load.state));
        row.devices.extend(load.device.map(|device| device.to_string()));
    }
    for device in &snapshot.devices {
        let here = device.residents.iter();
        for it in here.filter(|it| it.endpoint == model.endpoint && it.target == model.target) {
            let row = rows.entry(it.version.clone()).or_default();
            let serves = it.state == ResidentState::Ready;
            if serves || !row.serves {
                row.state = Some(json!(it.state));
            }
            row.serves |= serves;
            row.devices.push(device.id.to_string());
            // Times of this form sort as texts.
            row.last_used = row.last_used.take().max(Some(it.last_used.clone()));
        }
    }
    let copies = snapshot.host.iter().flat_map(|host| &host.copies);
    for copy in copies.filter(|it| it.endpoint == model.endpoint && it.target == model.target) {
        rows.entry(copy.version.clone()).or_default().copy |= copy.state == CopyState::Ready;
    }
}

/// What failed of the model: in place of what serves, or, where nothing does, last of all. A failure
/// that came before it was known which version it is of is that of the version in the store. Where
/// that one serves it is no version's: it is returned.
fn add_failed(
    rows: &mut BTreeMap<Version, Row>,
    model: &ModelId,
    snapshot: &Snapshot,
    in_store: Option<&Version>,
) -> Option<UnfitSnapshot> {
    let mut told = |version: Option<&Version>, reason: &str, since: Option<&str>| {
        let Some(version) = version.or(in_store) else { return false };
        let row = rows.entry(version.clone()).or_default();
        if !row.serves {
            row.failure = Some(reason.to_owned());
            row.failed_since = since.map(str::to_owned);
        }
        row.serves
    };
    let failed = snapshot.failed.iter();
    for it in failed.filter(|it| it.endpoint == model.endpoint && it.target == model.target) {
        told(it.version.as_ref(), &it.message, None);
    }
    let unfit = snapshot.unfit(model)?;
    told(unfit.version.as_ref(), &unfit.reason, Some(&unfit.since)).then(|| unfit.clone())
}

pub(super) async fn refresh(
    State(admin): State<Arc<Admin>>,
    Json(Fields(meant)): Json<Fields<Meant>>,
) -> Result<Json<Value>, Refusal> {
    let model = admin.model(&meant)?;
    let report = match admin.loader.rule(&model.endpoint).update {
        Update::Auto => {
            admin.loader.try_again(&model);
            admin.residency.refresh(&model).await?
        }
        Update::Manual => to_end(update(Arc::clone(&admin), model.clone())).await?,
        Update::Never => {
            let message = format!(
                "endpoint '{}' has update = \"never\", so a refresh changes nothing: \
                 'roundhouse use {model} latest' serves what the store holds",
                model.endpoint
            );
            return Err(Failure::new(ErrorKind::InvalidRequest, message).into());
        }
    };
    let upload = not_taken(&admin, &model, &report).await?;
    Ok(Json(json!({
        "endpoint": model.endpoint, "target": model.target, "version": report.version,
        "updated": report.updated, "offered": report.offered, "upload": upload,
        "serves": report.serving.as_ref() == Some(&report.version),
    })))
}

/// What a refresh found in the store and did not take because its files may still be written.
///
/// # Errors
/// `NotReady` for an upload that is not whole, the version's own failure for one that is damaged or
/// refused: a refresh that leaves what the store holds is none that succeeded.
async fn not_taken(
    admin: &Admin,
    model: &ModelId,
    report: &RefreshReport,
) -> Result<Option<String>, Failure> {
    if is_chosen(admin, model) {
        return Ok(None);
    }
    let passed = admin.loader.passed_over(model).await;
    let failure = match (passed, &report.unfit) {
        (Some(passed), _) if passed.is_whole => return Ok(Some(lacking(model, &passed))),
        (Some(passed), _) => {
            let kind = if passed.stale { ErrorKind::ModelInvalid } else { ErrorKind::NotReady };
            let failure = Failure::new(kind, lacking(model, &passed));
            if passed.stale { failure } else { failure.with_retry(RetryHint::Later) }
        }
        (None, Some((kind, reason))) => return Err(Failure::new(*kind, reason)),
        (None, None) => return Ok(None),
    };
    Err(match &report.serving {
        Some(version) => still_serves(&failure, version),
        None => failure,
    })
}

pub(super) async fn use_version(
    State(admin): State<Arc<Admin>>,
    Json(Fields(asked)): Json<Fields<Use>>,
) -> Result<Json<Value>, Refusal> {
    let Use { endpoint, target, version } = asked;
    let model = admin.model(&Meant { endpoint, target })?;
    let wish = match version.as_str() {
        "latest" => Wish::Latest,
        digits => Wish::Version(find(&admin, &model, digits).await?),
    };
    let (report, held) = to_end(switch(admin, model.clone(), wish)).await?;
    Ok(Json(json!({
        "endpoint": model.endpoint, "target": model.target, "version": report.version,
        "updated": report.updated, "serves": report.serving.is_some(), "held": held.is_some(),
    })))
}

/// Runs to its end though the caller leaves.
async fn to_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let broken = |error: tokio::task::JoinError| Failure::from_error(ErrorKind::Internal, &error);
    tokio::spawn(work).await.map_err(broken)?
}

/// A refresh where an operator's word is waited for: what the store holds is remembered when
/// it serves. Where nothing could show that it serves, and where an operator chose or tries a
/// version, the store is only looked at.
async fn update(admin: Arc<Admin>, model: ModelId) -> Result<RefreshReport, Failure> {
    let is_known = admin.residency.is_known(&model).await?;
    // Asked first: a trial that ends in between has left its choice.
    let is_tried = admin.loader.is_tried(&model);
    if !is_known || is_tried || is_chosen(&admin, &model) {
        return admin.residency.refresh(&model).await;
    }
    let trial = admin.loader.begin_trial(&model, Wish::Latest);
    match attempt(&admin, &model, &Wish::Latest).await {
        Ok(report) if report.serving.is_some() => {
            match admin.loader.commit(trial, &report.version, report.serving.as_ref()).await {
                Ok(_) => Ok(report),
                Err(failure) => Err(take_back(&admin, &model, failure).await),
            }
        }
        Ok(_) => {
            // It left its device meanwhile.
            drop(trial);
            admin.residency.refresh(&model).await
        }
        Err(failure) => {
            drop(trial);
            Err(take_back(&admin, &model, failure).await)
        }
    }
}

fn is_chosen(admin: &Admin, model: &ModelId) -> bool {
    admin.loader.choice(model).is_some_and(|choice| choice.by == ChosenBy::Operator)
}

/// Has a wish tried, and remembered when it has succeeded. Where it fails, what served before
/// serves on.
async fn switch(
    admin: Arc<Admin>,
    model: ModelId,
    wish: Wish,
) -> Result<(RefreshReport, Option<Version>), Failure> {
    let was_chosen = is_chosen(&admin, &model);
    let trial = admin.loader.begin_trial(&model, wish.clone());
    let done = match attempt(&admin, &model, &wish).await {
        Ok(report) => {
            let held = admin.loader.commit(trial, &report.version, report.serving.as_ref()).await;
            held.map(|held| (report, held))
        }
        Err(failure) => {
            drop(trial);
            Err(failure)
        }
    };
    match done {
        Ok((report, held)) => {
            if held.is_some() || was_chosen {
                admin.residency.note_choice(&model, held.clone()).await?;
            }
            Ok((report, held))
        }
        Err(failure) => Err(take_back(&admin, &model, failure).await),
    }
}

/// Has what served before a failed wish serve again; returns the failure, with what it left.
async fn take_back(admin: &Admin, model: &ModelId, failure: Failure) -> Failure {
    // A later wish has taken its place, or there is nothing that could serve on.
    let is_known = admin.residency.is_known(model).await.unwrap_or(false);
    if admin.loader.is_tried(model) || !is_known {
        return failure;
    }
    let back = admin.residency.refresh(model).await;
    match back.ok().and_then(|report| report.serving) {
        Some(version) => still_serves(&failure, &version),
        None => failure,
    }
}

/// The failure of a switch, with what it left.
fn still_serves(failure: &Failure, version: &Version) -> Failure {
    let short = version.as_str().get(..12).unwrap_or(version.as_str());
    let message = format!("{failure}; version {short} serves as before");
    Failure::new(failure.kind(), message).with_retry(failure.retry())
}

/// Brings what is wished for to serve, where the model is loaded or kept.
async fn attempt(admin: &Admin, model: &ModelId, wish: &Wish) -> Result<RefreshReport, Failure> {
    let mut report = admin.residency.refresh(model).await?;
    if report.serving.is_none() && report.kept {
        let loaded = admin.residency.load(model, LoadOptions::default()).await?;
        report.version = loaded.version.clone();
        report.serving = Some(loaded.version);
    }
    let serves_another = report.serving.as_ref().is_some_and(|it| *it != report.version);
    let is_wished = matches!(wish, Wish::Version(version) if *version != report.version);
    if serves_another || is_wished {
        return Err(overtaken(model));
    }
    Ok(report)
}

/// The version that begins with these digits, of those in the store and on disk.
async fn find(admin: &Admin, model: &ModelId, digits: &str) -> Result<Version, Failure> {
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if !is_hex || digits.len() < DIGITS_MIN {
        let message = format!(
            "'{}' is no version: give {DIGITS_MIN} or more of its digits, or 'latest'",
            digits.escape_debug()
        );
        return Err(Failure::new(ErrorKind::InvalidRequest, message));
    }
    let digits = digits.to_ascii_lowercase();
    let mut known: Vec<Version> =
        admin.loader.on_disk(model).into_iter().map(|found| found.version).collect();
    let in_store = admin.loader.look(model, Freshness::Fresh).await;
    known.extend(in_store.iter().map(|artefact| artefact.id.version.clone()));
    known.sort();
    known.dedup();
    let mut meant = known.iter().filter(|version| version.as_str().starts_with(&digits));
    let (first, second) = (meant.next(), meant.next());
    match (first, second, in_store) {
        (Some(version), None, _) => Ok(version.clone()),
        (Some(first), Some(second), _) => {
            let others = meant.map(|version| format!(", {version}")).collect::<String>();
            let message = format!("'{digits}' may be {first}, {second}{others}: give more digits");
            Err(Failure::new(ErrorKind::InvalidRequest, message))
        }
        // Whether the store has it is not known.
        (None, _, Err(failure)) => Err(failure),
        (None, _, Ok(_)) => {
            let names: Vec<&str> = known.iter().map(Version::as_str).collect();
            let message = format!(
                "no version of {model} in the store or whole on disk begins with '{digits}'; \
                 there are: {}",
                names.join(", ")
            );
            Err(Failure::new(ErrorKind::ModelNotFound, message))
        }
    }
}

#[cfg(test)]
mod tests;
