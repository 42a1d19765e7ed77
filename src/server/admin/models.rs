//! The list of what requests can name: what stores hold, with how it stands, and containers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use roundhouse_residency::Snapshot;
use roundhouse_store::{Catalog, Target, TargetForm, TargetPage};
use roundhouse_types::{EndpointName, ErrorKind, Failure, ModelId, RetryHint, TargetName};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, Refusal, Shown, containers, standing};
use crate::loader::doubt;

/// Rows of one page, where it is not said, and at most.
const PAGE: usize = 1000;
/// How long a store may take to list its targets where other endpoints are listed beside it.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    /// Whose; all endpoints', in the order of their names, where it is not said.
    endpoint: Option<String>,
    /// What the page before gave as `next`.
    after: Option<String>,
    limit: Option<usize>,
}

/// Rows of one endpoint.
struct Part {
    rows: Vec<Value>,
    /// The name behind which others follow.
    next: Option<String>,
    truncated: bool,
}

/// What the stores hold, with the state of what is loaded, and containers. Of all endpoints those that can
/// be listed, and why the others cannot.
pub(super) async fn models(
    State(admin): State<Arc<Admin>>,
    Query(page): Query<Page>,
) -> Result<Json<Value>, Refusal> {
    let limit = page.limit.unwrap_or(PAGE).clamp(1, PAGE);
    let all: Vec<EndpointName> = admin.endpoints().into_iter().collect();
    let are_several = page.endpoint.is_none() && all.len() > 1;
    let (endpoints, mut after) = match are_several {
        true => place(all, page.after.as_deref())?,
        false => (vec![admin.any_endpoint(page.endpoint.as_deref())?], page.after),
    };
    let snapshot = admin.residency.gathered().await?;
    let (mut rows, mut failed, mut next, mut truncated) = (Vec::new(), Vec::new(), None, false);
    for endpoint in endpoints {
        let room = limit - rows.len();
        if room == 0 {
            next = Some(format!("{endpoint}:"));
            break;
        }
        let wanted = (after.take(), room, are_several);
        let part = match part(&admin, &endpoint, wanted, &snapshot).await {
            Ok(part) => part,
            Err(failure) if are_several => {
                let (kind, message) = (failure.kind().as_str(), failure.message());
                failed.push(json!({"endpoint": endpoint, "kind": kind, "message": message}));
                continue;
            }
            Err(failure) => return Err(failure.into()),
        };
        rows.extend(part.rows);
        truncated |= part.truncated;
        if let Some(name) = part.next {
            next = Some(if are_several { format!("{endpoint}:{name}") } else { name });
            break;
        }
    }
    let answer = json!({"models": rows, "failed": failed, "next": next, "truncated": truncated});
    Ok(Json(answer))
}

/// The endpoints that a page of several has still to list, and the name in the first behind which it
/// begins. `after`: `endpoint:name`.
fn place(
    all: Vec<EndpointName>,
    after: Option<&str>,
) -> Result<(Vec<EndpointName>, Option<String>), Failure> {
    let Some(after) = after else { return Ok((all, None)) };
    let Some((endpoint, name)) = after.split_once(':') else {
        let message = format!(
            "after is '{after}', and must be what the page before gave as next, as in ENDPOINT:TARGET, \
             unless an endpoint is named"
        );
        return Err(Failure::new(ErrorKind::InvalidRequest, message));
    };
    let rest: Vec<EndpointName> = all.into_iter().filter(|it| it.as_str() >= endpoint).collect();
    // It may have left since.
    let is_there = rest.first().is_some_and(|first| first.as_str() == endpoint);
    let name = Some(name.to_owned()).filter(|name| is_there && !name.is_empty());
    Ok((rest, name))
}

async fn part(
    admin: &Admin,
    endpoint: &EndpointName,
    (after, limit, is_bounded): (Option<String>, usize, bool),
    snapshot: &Snapshot,
) -> Result<Part, Failure> {
    let found = containers::of_endpoint((admin.containers)(), endpoint);
    if !found.is_empty() {
        return Ok(of_containers(&found, after.as_deref(), limit));
    }
    let catalog = admin.catalogs.get().get(endpoint).cloned();
    // The settings have changed since it was found.
    let gone = || Failure::new(ErrorKind::EndpointNotFound, format!("endpoint '{endpoint}' left"));
    let catalog = catalog.ok_or_else(gone)?;
    let listed = list(Arc::clone(&catalog), (after, limit), is_bounded).await?;
    let uploads = uploads(&catalog, &listed.targets).await;
    let standings = standing::of(endpoint, snapshot);
    let on_disk = admin.disk.opened().map(|cache| cache.shares(endpoint)).unwrap_or_default();
    let row = |target: &Target| {
        let standing = standings.get(&target.name).cloned().unwrap_or_default();
        let model = ModelId { endpoint: endpoint.clone(), target: target.name.clone() };
        json!({
            "endpoint": endpoint, "target": target.name, "bytes": target.bytes,
            "serves": admin.loader.facts(&model),
            "archive": target.form == TargetForm::Archive, "state": standing.state,
            "disk_bytes": on_disk.get(&target.name),
            "devices": standing.devices, "copy": standing.copy, "failure": standing.failure,
            "upload": uploads.get(&target.name),
        })
    };
    let rows = listed.targets.iter().map(row).collect();
    Ok(Part { rows, next: listed.next, truncated: listed.truncated })
}

/// The uploads that versions answer in place of and that may still be under way, as their store was last
/// looked at. One that is damaged is a failure, and told as that.
async fn uploads(catalog: &Catalog, targets: &[Target]) -> BTreeMap<TargetName, String> {
    let mut uploads = BTreeMap::new();
    for target in targets {
        if let Some(passed) = catalog.passed_over(&target.name).await.filter(|it| !it.stale) {
            let version = passed.version.as_str();
            let short = version.get(..12).unwrap_or(version);
            let told = format!("version {short} {}: {}", doubt(&passed), passed.why);
            uploads.insert(target.name.clone(), told);
        }
    }
    uploads
}

/// What a store holds. Bounded, one that is slow is not waited for, and goes on: it is sooner asked again.
async fn list(
    catalog: Arc<Catalog>,
    (after, limit): (Option<String>, usize),
    is_bounded: bool,
) -> Result<TargetPage, Failure> {
    let look = async move { catalog.list(after.as_deref(), limit).await };
    if !is_bounded {
        return Ok(look.await?);
    }
    let Ok(looked) = tokio::time::timeout(PATIENCE, tokio::spawn(look)).await else {
        let message = format!(
            "its store did not list its targets within {PATIENCE:?}: name the endpoint to wait for it"
        );
        return Err(Failure::new(ErrorKind::StoreUnavailable, message).with_retry(RetryHint::Later));
    };
    Ok(looked.map_err(|error| Failure::from_error(ErrorKind::Internal, &error))??)
}

fn of_containers(found: &[Shown], after: Option<&str>, limit: usize) -> Part {
    let mut rest = found.iter().filter(|it| after.is_none_or(|after| it.name.as_str() > after));
    let page: Vec<&Shown> = rest.by_ref().take(limit).collect();
    let next = rest.next().and(page.last()).map(|last| last.name.clone());
    Part { rows: page.into_iter().map(Shown::as_model).collect(), next, truncated: false }
}

#[cfg(test)]
mod tests {
    use roundhouse_store::testing::{Fault, Faulty, MemoryStore, Operation};
    use roundhouse_store::{ArtifactStore, CatalogConfig, Freshness};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_is_not_waited_for_beside_others() {
        let faulty = Arc::new(Faulty::new(Arc::new(MemoryStore::new("memory"))));
        faulty.plan(Operation::List, "", Fault::Hang);
        let stores: Vec<(_, Arc<dyn ArtifactStore>)> = vec![(None, faulty)];
        let catalog = Catalog::over("e".parse().unwrap(), stores, CatalogConfig::default());
        let refused = list(Arc::new(catalog.unwrap()), (None, 1), true).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StoreUnavailable);
        assert!(refused.message().contains("within 10s: name the endpoint"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_is_not_whole_is_told_beside_the_version_that_answers() {
        let memory = Arc::new(MemoryStore::new("memory"));
        let stores: Vec<(_, Arc<dyn ArtifactStore>)> = vec![(None, memory.clone())];
        let catalog = Catalog::over("e".parse().unwrap(), stores, CatalogConfig::default());
        let catalog = Arc::new(catalog.unwrap());
        let long_ago = Duration::from_secs(7200);
        let look = async || {
            tokio::time::advance(Duration::from_secs(1)).await;
            let looked = catalog.resolve(&"m".parse().unwrap(), Freshness::Fresh).await;
            let targets = list(Arc::clone(&catalog), (None, 10), false).await.unwrap().targets;
            (looked.unwrap().id.version.clone(), uploads(&catalog, &targets).await)
        };
        memory.put_aged("m/model.pt", "1234", long_ago);
        let (first, told) = look().await;
        assert_eq!(told, BTreeMap::new());
        memory.put("m/model.safetensors", "cut off");
        let (version, told) = look().await;
        assert_eq!(version, first);
        let told = &told["m"];
        assert!(told.starts_with("version ") && told.contains(" is not whole yet: "), "{told}");
        memory.remove("m/model.safetensors");
        assert_eq!(look().await, (first, BTreeMap::new()));
    }

    fn names(rest: &[EndpointName]) -> Vec<&str> {
        rest.iter().map(EndpointName::as_str).collect()
    }

    #[test]
    fn a_page_of_all_endpoints_begins_where_the_one_before_ended() {
        let all = || ["default", "pipe", "z"].map(|it| it.parse().unwrap()).to_vec();
        let (rest, name) = place(all(), None).unwrap();
        assert_eq!((names(&rest), name), (vec!["default", "pipe", "z"], None));
        let (rest, name) = place(all(), Some("pipe:a:b/c")).unwrap();
        assert_eq!((names(&rest), name.as_deref()), (vec!["pipe", "z"], Some("a:b/c")));
        let (rest, name) = place(all(), Some("pipe:")).unwrap();
        assert_eq!((names(&rest), name), (vec!["pipe", "z"], None));
        // The endpoint left between two pages.
        let (rest, name) = place(all(), Some("gone:x")).unwrap();
        assert_eq!((names(&rest), name), (vec!["pipe", "z"], None));
        let refused = place(all(), Some("x")).unwrap_err();
        assert!(refused.message().contains("ENDPOINT:TARGET"), "{refused}");
    }
}
