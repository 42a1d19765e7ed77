//! Requests whose callers do not wait: between the gateway, which takes and answers them, and the
//! queue, which keeps them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use reqwest::Client;
use roundhouse_asynchronous::{
    EndpointConfig, Error, Input, Queue, Ran, Run, RunFn, Services, StoreFn, Submission,
    given_credentials, machine_credentials, system_resolver,
};
use roundhouse_gateway::{DeferFn, Deferral, Deferred, DeferredInput, Done, Due, Later};
use roundhouse_store::{FileStore, MountConfig, S3Store, StoreUri, WritableStore};
use roundhouse_tenancy::Caller;
use roundhouse_types::{EndpointName, ErrorKind, Failure};
use tokio::sync::OnceCell;

use super::build::Credentials;
use super::settings;
use crate::config::Config;
use crate::trust;

/// The queue, opened when an endpoint first takes such requests: at the start, or when the settings
/// change. Clones are the same.
#[derive(Clone)]
pub(super) struct Deferrals(Arc<Shared>);

struct Shared {
    services: Services,
    queue: OnceCell<Queue>,
    /// How requests are answered, once that can be.
    run: OnceLock<RunFn>,
    is_stopped: AtomicBool,
}

impl Deferrals {
    /// Nothing is opened yet.
    pub(super) fn of(config: &Config, credentials: Option<&Credentials>) -> Self {
        Self(Arc::new(Shared {
            services: services(config, credentials),
            queue: OnceCell::new(),
            run: OnceLock::new(),
            is_stopped: AtomicBool::new(false),
        }))
    }

    /// Whether the queue is open. Then its folder holds until the server ends.
    pub(super) fn is_open(&self) -> bool {
        self.0.queue.initialized()
    }

    /// Puts settings in force, and opens the queue where an endpoint needs it.
    ///
    /// # Errors
    /// When the folder or a store cannot be opened.
    pub(super) async fn apply(&self, config: &Config) -> Result<(), Failure> {
        let endpoints = endpoints(config)?;
        let shared = &self.0;
        if endpoints.is_empty() && !self.is_open() {
            return Ok(());
        }
        let queue = shared.queue.get_or_try_init(|| shared.open(config)).await?;
        // It may have been opened while the server was told to stop.
        if shared.is_stopped.load(Ordering::SeqCst) {
            queue.stop();
        }
        Ok(queue.configure(&endpoints).await?)
    }

    /// Begins to run what is in the queue, now and once it is opened. Called once, before the settings can
    /// change.
    pub(super) fn start(&self, later: Later) {
        let run = self.0.run.get_or_init(|| run(later));
        if let Some(queue) = self.0.queue.get() {
            queue.start(run.clone());
        }
    }

    /// How the gateway hands requests on.
    pub(super) fn taking(&self) -> DeferFn {
        let shared = self.0.clone();
        Arc::new(move |deferral: Deferral| {
            let shared = shared.clone();
            Box::pin(async move {
                let Some(queue) = shared.queue.get() else {
                    return Err(Error::NotAsynchronous(deferral.endpoint).into());
                };
                let accepted = queue.accept(submission(deferral)).await?;
                Ok(Deferred {
                    inference_id: accepted.inference_id,
                    output: accepted.output,
                    failure: accepted.failure,
                })
            })
        })
    }

    /// Takes and begins nothing any more. What runs goes on.
    pub(super) fn stop(&self) {
        self.0.is_stopped.store(true, Ordering::SeqCst);
        if let Some(queue) = self.0.queue.get() {
            queue.stop();
        }
    }

    /// The same; returns when what runs has ended.
    pub(super) async fn drain(&self) {
        self.stop();
        if let Some(queue) = self.0.queue.get() {
            queue.drain().await;
        }
    }

    /// Drops what runs: it stays in the queue. Returns when all is dropped.
    pub(super) async fn abort(&self) {
        self.stop();
        if let Some(queue) = self.0.queue.get() {
            queue.abort().await;
        }
    }
}

impl Shared {
    async fn open(&self, config: &Config) -> Result<Queue, Failure> {
        let queue = Queue::open(&config.queue_dir(), self.services.clone()).await?;
        if let Some(run) = self.run.get() {
            queue.start(run.clone());
        }
        Ok(queue)
    }
}

fn services(config: &Config, credentials: Option<&Credentials>) -> Services {
    Services {
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
    }
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
fn run(later: Later) -> RunFn {
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
