//! Whether each mount's store can be listed, and what to do if not.

use std::time::Duration;

use roundhouse_store::{Catalog, CatalogConfig, Error, RetryConfig, StoreUri};
use roundhouse_types::{EndpointName, ModelId, TargetName};

use super::Finding;
use crate::config::{Config, Endpoint, Fault, Mount};
use crate::error::count;

/// One page tells whether a store can be read.
const LISTED: usize = 1000;
/// Someone is waiting: a store that needs longer is worth a word.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Stores of this machine whose folders are not there. Blocking.
pub(crate) fn missing(config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (endpoint, index) in config.endpoints.iter().zip(0..) {
        for (mount, number) in endpoint.mounts.iter().zip(0..) {
            let StoreUri::File { root } = &mount.uri else { continue };
            if !root.is_dir() {
                let key = format!("endpoint[{index}].mount[{number}].uri");
                faults.push(Fault::new(key, format!("{} is no folder here", root.display())));
            }
        }
    }
    faults
}

/// Lists one page of each mount.
pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for endpoint in &config.endpoints {
        for mount in &endpoint.mounts {
            let check = format!("store {}", mount.uri);
            let listed = tokio::time::timeout(PATIENCE, list(&endpoint.name, mount)).await;
            if let Ok(Ok((targets, _))) = &listed {
                findings.extend(out_of_reach(config, endpoint, targets));
            }
            findings.push(match listed {
                Ok(Ok((targets, _))) if targets.is_empty() => Finding::odd(
                    check,
                    "can be listed, and holds no model",
                    "a model is an archive, or a folder with config.json; check bucket and prefix",
                ),
                Ok(Ok((targets, more))) => {
                    let more = if more { " or more" } else { "" };
                    let number = count(targets.len(), "target");
                    Finding::ok(check, format!("can be listed: {number}{more}"))
                }
                Ok(Err(error)) => Finding::bad(check, chain(&error), next(&error)),
                Err(_) => Finding::bad(
                    check,
                    format!("did not answer within {} s", PATIENCE.as_secs()),
                    UNREACHABLE,
                ),
            });
        }
    }
    findings
}

/// Targets that no tenant may use, where callers are asked who they are.
fn out_of_reach(config: &Config, endpoint: &Endpoint, targets: &[TargetName]) -> Option<Finding> {
    if !config.asks_callers() {
        return None;
    }
    let is_reached = |target: &&TargetName| {
        let model = ModelId { endpoint: endpoint.name.clone(), target: (*target).clone() };
        let mut patterns = config.tenants.iter().flat_map(|tenant| &tenant.grants.invoke);
        match config.tenants.is_empty() {
            // Each tenant has what lies below its own name.
            true => target.as_str().contains('/'),
            false => patterns.any(|pattern| pattern.matches(&model)),
        }
    };
    let mut hidden = targets.iter().filter(|target| !is_reached(target));
    let first = hidden.find(|target| !endpoint.bases.values().any(|base| base == *target))?;
    Some(Finding::odd(
        format!("tenants of endpoint {}", endpoint.name),
        format!("no tenant may use target '{first}'"),
        "name it in a tenant's invoke, or put it below a tenant's name: a target without a / is below \
         nobody's",
    ))
}

async fn list(endpoint: &EndpointName, mount: &Mount) -> Result<(Vec<TargetName>, bool), Error> {
    let catalog = Catalog::connect(endpoint.clone(), vec![mount.to_store()], quick()).await?;
    let page = catalog.list(None, LISTED).await?;
    let more = page.truncated || page.next.is_some();
    Ok((page.targets.into_iter().map(|target| target.name).collect(), more))
}

/// A look at a store as it is now, that gives up soon.
pub(super) fn quick() -> CatalogConfig {
    CatalogConfig {
        max_listed: LISTED,
        settle: Duration::ZERO,
        update_settle: Duration::ZERO,
        settle_wait: Duration::ZERO,
        retry: RetryConfig { attempts: 2, ..RetryConfig::default() },
        ..CatalogConfig::default()
    }
}

const UNREACHABLE: &str = "check the network, AWS_REGION, and endpoint_url or AWS_ENDPOINT_URL_S3";

/// What whoever runs this can do about it.
fn next(error: &Error) -> &'static str {
    match error {
        Error::NoCredentials { .. } => {
            "log in or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the \
             machine a role"
        }
        Error::AccessDenied { .. } => {
            "allow s3:ListBucket on the bucket and s3:GetObject below the prefix for this identity \
             (`aws sts get-caller-identity` names it)"
        }
        Error::KmsDenied { .. } => "allow kms:Decrypt on the bucket's key for this identity",
        Error::Archived { .. } => {
            "restore the objects, or move the models to another storage class"
        }
        Error::NoSuchBucket { .. } => "check the bucket's or folder's name, and endpoint_url",
        Error::WrongRegion { .. } => "set the mount's region, or AWS_REGION",
        Error::Throttled { .. } => "try again in a moment",
        Error::Unavailable { .. } => UNREACHABLE,
        Error::Config { .. } => "config/default.toml explains the keys of a mount",
        _ => "the message is the store's own; `roundhouse survey URI` tries the same by hand",
    }
}

fn chain(error: &Error) -> String {
    roundhouse_types::Failure::from_error(error.kind(), error).message().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::cli::ServeFlags;

    async fn found(uri: String) -> Finding {
        let flags = ServeFlags { store: vec![uri], ..ServeFlags::default() };
        let config = Config::parse(None, &|_| None, &flags).unwrap();
        let mut findings = look(&config).await;
        assert_eq!(findings.len(), 1);
        findings.remove(0)
    }

    #[tokio::test]
    async fn a_store_is_good_empty_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let uri = format!("file://{}", folder.path().display());
        assert_eq!(found(uri.clone()).await.state, State::Odd);
        std::fs::create_dir(folder.path().join("model")).unwrap();
        std::fs::write(folder.path().join("model/config.json"), "{}").unwrap();
        let good = found(uri.clone()).await;
        assert_eq!((good.state, good.message.as_str()), (State::Ok, "can be listed: 1 target"));
        let missing = found(format!("{uri}/nowhere")).await;
        assert_eq!(missing.state, State::Bad);
        assert!(missing.next.unwrap().contains("folder's name"), "{}", missing.message);
    }

    #[test]
    fn a_target_that_no_tenant_may_use_is_told() {
        let told = |settings: &str, targets: &[&str]| {
            let text =
                format!("version = 1\n[auth]\nproxy_networks = \"127.0.0.1/32\"\n{settings}");
            let flags = ServeFlags { store: vec!["file:///m/".into()], ..ServeFlags::default() };
            let config = Config::parse(Some(&text), &|_| None, &flags).unwrap();
            let targets: Vec<TargetName> = targets.iter().map(|it| it.parse().unwrap()).collect();
            out_of_reach(&config, &config.endpoints[0], &targets).map(|finding| finding.message)
        };
        let hidden = |name: &str| Some(format!("no tenant may use target '{name}'"));
        assert_eq!(told("", &["acme/chat", "chat"]), hidden("chat"));
        assert_eq!(told("", &["acme/chat"]), None);
        let acme = "[[tenant]]\nname = \"acme\"\n";
        assert_eq!(told(acme, &["acme/chat", "acme"]), hidden("acme"));
        let all = format!("{acme}invoke = [\"acme/**\", \"*\"]\n");
        assert_eq!(told(&all, &["acme/chat", "chat"]), None);
        assert_eq!(told(&all, &["other/chat"]), hidden("other/chat"));
    }
}
