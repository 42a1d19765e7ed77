//! Requests whose callers do not wait: between the gateway, which takes and answers them, and the
//! queue, which keeps them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use reqwest::Client;
use roundhouse_asynchronous::{
    EndpointConfig, Input, Queue, Ran, Run, RunFn, Services, StoreFn, Submission,
    given_credentials, machine_credentials, system_resolver,
};
use roundhouse_gateway::{DeferFn, Deferral, Deferred, DeferredInput, Done, Due, Later};
use roundhouse_store::{FileStore, MountConfig, S3Store, StoreUri, WritableStore};
use roundhouse_tenancy::Caller;
use roundhouse_types::{EndpointName, ErrorKind, Failure};

use super::build::Credentials;
use super::settings;
use crate::config::Config;
use crate::trust;

/// The folder in the disk cache's, where no other is named.
const FOLDER: &str = "async";

/// The queue, where an endpoint takes such requests. Nothing runs yet.
///
/// # Errors
/// When its folder or a store cannot be opened.
pub(super) async fn open(
    config: &Config,
    credentials: Option<&Credentials>,
) -> Result<Option<Queue>, Failure> {
    let endpoints = endpoints(config)?;
    if endpoints.is_empty() {
        return Ok(None);
    }
    let services = Services {
        store: stores(credentials.cloned()),
        retry: settings::catalogue(config).retry,
        client: Arc::new(|| {
            let trusted = trust::ours_and(None).map_err(|error| error.to_string())?;
            Ok(Client::builder().tls_backend_preconfigured(trusted))
        }),
        resolve: system_resolver(),
        credentials: match credentials {
            Some(Credentials { access_key, secret_key }) => {
                given_credentials(access_key, secret_key)
            }
            None => machine_credentials(),
        },
    };
    let queue = Queue::open(&folder(config), services).await?;
    queue.configure(&endpoints).await?;
    Ok(Some(queue))
}

fn folder(config: &Config) -> PathBuf {
    config.async_dir.clone().unwrap_or_else(|| config.cache.dir.join(FOLDER))
}

/// What each endpoint says that takes such requests.
///
/// # Errors
/// Where a place cannot be used.
fn endpoints(config: &Config) -> Result<BTreeMap<EndpointName, EndpointConfig>, Failure> {
    let mut endpoints = BTreeMap::new();
    for endpoint in &config.endpoints {
        let Some(of) = &endpoint.asynchronous else { continue };
        let told = |why: &str| {
            Failure::new(ErrorKind::InvalidRequest, format!("endpoint {}: {why}", endpoint.name))
        };
        endpoints.insert(endpoint.name.clone(), of.to_queue().map_err(told)?);
    }
    Ok(endpoints)
}

/// Puts other settings in force.
///
/// # Errors
/// When a store cannot be connected, or the server was started without such an endpoint.
pub(super) async fn apply(queue: Option<&Queue>, config: &Config) -> Result<(), Failure> {
    let endpoints = endpoints(config)?;
    match queue {
        Some(queue) => Ok(queue.configure(&endpoints).await?),
        None if endpoints.is_empty() => Ok(()),
        None => {
            let why = "the server was started without an [endpoint.async], and has no queue: \
                       restart it";
            Err(Failure::new(ErrorKind::InvalidRequest, why))
        }
    }
}

fn stores(credentials: Option<Credentials>) -> StoreFn {
    Arc::new(move |mount: MountConfig| {
        let credentials = credentials.clone();
        Box::pin(async move {
            let store: Arc<dyn WritableStore> = match (&mount.uri, credentials) {
                (StoreUri::File { root }, _) => Arc::new(FileStore::new(root)),
                (StoreUri::S3 { .. }, None) => Arc::new(S3Store::connect(&mount).await?),
                (StoreUri::S3 { .. }, Some(Credentials { access_key, secret_key })) => {
                    let keyed = S3Store::connect_with_keys(&mount, &access_key, &secret_key);
                    Arc::new(keyed.await?)
                }
            };
            Ok(store)
        })
    })
}

/// How the gateway hands requests on.
pub(super) fn defer(queue: Queue) -> DeferFn {
    Arc::new(move |deferral: Deferral| {
        let queue = queue.clone();
        Box::pin(async move {
            let accepted = queue.accept(submission(deferral)).await?;
            Ok(Deferred {
                inference_id: accepted.inference_id,
                output: accepted.output,
                failure: accepted.failure,
            })
        })
    })
}

fn submission(deferral: Deferral) -> Submission {
    Submission {
        endpoint: deferral.endpoint,
        tenant: deferral.caller.tenant,
        credential: deferral.caller.credential,
        inference_id: deferral.inference_id,
        input: match deferral.input {
            DeferredInput::At(location) => Input::At(location),
            DeferredInput::Inline(body) => Input::Inline(body),
        },
        headers: deferral.headers,
        content_type: deferral.content_type,
        ttl: deferral.ttl,
        timeout: deferral.timeout,
        extension: deferral.extension,
        filename: deferral.filename,
    }
}

/// How the queue has them answered.
pub(super) fn run(later: Later) -> RunFn {
    Arc::new(move |run: Run| {
        let later = later.clone();
        Box::pin(async move {
            let due = Due {
                endpoint: run.endpoint,
                caller: Caller { tenant: run.tenant, credential: run.credential },
                headers: run.headers,
                body: run.body,
                most: run.most,
            };
            match later.answer(due).await {
                Done::Answered { content_type, body } => Ran::Answered { content_type, body },
                Done::Failed { status, content_type, body } => {
                    Ran::Failed { status, content_type, body }
                }
                Done::NotNow { why, after } => Ran::NotNow { why, after },
            }
        })
    })
}
