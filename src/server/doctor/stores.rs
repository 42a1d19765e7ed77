//! Whether each mount's store can be listed, and what to do if not.

use std::time::Duration;

use roundhouse_store::{Catalog, CatalogConfig, Error, RetryConfig, StoreUri};
use roundhouse_types::EndpointName;

use super::Finding;
use crate::config::{Config, Fault, Mount};
use crate::error::count;

/// One page tells whether a store can be read.
const LISTED: usize = 1000;
/// Someone is waiting: a store that needs longer is worth a word.
const PATIENCE: Duration = Duration::from_secs(20);

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
            findings.push(match tokio::time::timeout(PATIENCE, list(&endpoint.name, mount)).await {
                Ok(Ok((0, _))) => Finding::odd(
                    check,
                    "can be listed, and holds no model",
                    "a model is an archive, or a folder with config.json; check bucket and prefix",
                ),
                Ok(Ok((number, more))) => {
                    let more = if more { " or more" } else { "" };
                    Finding::ok(check, format!("can be listed: {}{more}", count(number, "target")))
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

async fn list(endpoint: &EndpointName, mount: &Mount) -> Result<(usize, bool), Error> {
    let config = CatalogConfig {
        max_listed: LISTED,
        retry: RetryConfig { attempts: 2, ..RetryConfig::default() },
        ..CatalogConfig::default()
    };
    let catalog = Catalog::connect(endpoint.clone(), vec![mount.to_store()], config).await?;
    let page = catalog.list(None, LISTED).await?;
    Ok((page.targets.len(), page.truncated || page.next.is_some()))
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
}
