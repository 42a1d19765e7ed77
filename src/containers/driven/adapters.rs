//! What is loaded: an engine itself, or an adapter in one.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use roundhouse_types::{ErrorKind, Failure, ModelId};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;

use super::call::{Answer, Call, CallError};
use super::engine::{Engine, Refusal, post};
use super::spec::AdapterRoutes;
use crate::Outgoing;

/// An adapter is read from a disk on this machine.
const LOAD_LIMIT: Duration = Duration::from_secs(120);
const UNLOAD_LIMIT: Duration = Duration::from_secs(30);

/// An engine, or an adapter in one, as requests use it.
pub struct Driven {
    engine: Arc<Engine>,
    adapter: Option<Adapter>,
}

/// An adapter in an engine.
struct Adapter {
    /// What the engine calls it.
    name: String,
    routes: AdapterRoutes,
    base: ModelId,
    /// Gone when it was unloaded.
    seat: Mutex<Option<Seat>>,
}

/// One of the places that an engine has for adapters; given back when it is dropped.
#[derive(Debug)]
pub struct Seat {
    _permit: OwnedSemaphorePermit,
}

impl Engine {
    /// Whether it takes adapters.
    pub fn takes_adapters(&self) -> bool {
        self.spec().adapters.is_some()
    }

    /// Places for adapters that are taken; `None` where it takes none.
    pub fn adapters_in(&self) -> Option<usize> {
        let slots = self.spec().adapters?.slots.get();
        Some(slots.saturating_sub(self.seats.available_permits()))
    }

    /// A place for an adapter, where one is free.
    pub fn seat(&self) -> Option<Seat> {
        let permit = Arc::clone(&self.seats).try_acquire_owned().ok()?;
        Some(Seat { _permit: permit })
    }

    /// Asks it once more to let go of adapters that it was to let go of; their places are free then.
    pub async fn reclaim(&self) {
        let Some(adapters) = self.spec().adapters else { return };
        // A load of the same name waits for it, else this could take out what was loaded just now.
        let mut stuck = self.stuck.lock().await;
        let names: Vec<String> = stuck.keys().cloned().collect();
        for name in names {
            if has_left(self, adapters.routes, &name).await {
                stuck.remove(&name);
            }
        }
    }
}

impl Driven {
    /// An engine.
    pub fn engine(engine: Arc<Engine>) -> Self {
        Self { engine, adapter: None }
    }

    /// Loads an adapter from a folder into an engine, which calls it `name`; `base` is what the
    /// engine serves. An engine that has one of this name already, of a load whose end nobody saw,
    /// lets go of that first.
    ///
    /// # Errors
    /// `ModelInvalid` with what the engine says where it refuses it or takes none; that of an engine
    /// which does not answer.
    pub async fn adapter(
        engine: Arc<Engine>,
        base: ModelId,
        seat: Seat,
        name: String,
        folder: &Path,
    ) -> Result<Self, Failure> {
        let Some(adapters) = engine.spec().adapters else {
            let what = format!("the engine of its base {base} takes no adapters");
            return Err(Failure::new(ErrorKind::ModelInvalid, what));
        };
        let routes = adapters.routes;
        let body = json!({ "lora_name": name, "lora_path": folder });
        let body = Bytes::from(body.to_string());
        // Whatever is left of an earlier one, there is one of this name in the end.
        let earlier = engine.stuck.lock().await.remove(&name);
        let path = match routes {
            AdapterRoutes::Vllm => "/v1/load_lora_adapter",
            AdapterRoutes::Sglang => "/load_lora_adapter",
        };
        let mut loaded = engine.ask(post(path, body.clone()), LOAD_LIMIT).await;
        if matches!(&loaded, Err(Refusal::Said(status, _)) if status.is_client_error())
            && engine.ask(unload(routes, &name), UNLOAD_LIMIT).await.is_ok()
        {
            loaded = engine.ask(post(path, body), LOAD_LIMIT).await;
        }
        let refusal = match loaded {
            Ok(_) => {
                drop(earlier);
                let seat = Mutex::new(Some(seat));
                return Ok(Self { engine, adapter: Some(Adapter { name, routes, base, seat }) });
            }
            Err(refusal) => refusal,
        };
        let may_be_in = match &refusal {
            // It may come to its end yet, also after the engine says that it has none.
            Refusal::Failed(_) => engine.ask(unload(routes, &name), UNLOAD_LIMIT).await.is_err(),
            Refusal::Said(..) => earlier.is_some(),
        };
        if may_be_in && !engine.has_ended() {
            engine.stuck.lock().await.insert(name, seat);
        }
        Err(match refusal {
            Refusal::Failed(failure) => failure,
            Refusal::Said(status, said) => {
                let what = format!("the engine of its base {base} refuses it ({status}): {said}");
                let kind = match status.is_server_error() {
                    true => ErrorKind::ModelFailed,
                    false => ErrorKind::ModelInvalid,
                };
                Failure::new(kind, what)
            }
        })
    }

    /// What it is an adapter of; `None` where it is the engine itself.
    pub fn base(&self) -> Option<&ModelId> {
        self.adapter.as_ref().map(|adapter| &adapter.base)
    }

    /// The engine that it is, or is in.
    pub fn runs_in(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Sends a request on. Returns when the answer begins, whatever its status. If dropped before, or
    /// if the answer's body is dropped, the engine is told to stop.
    ///
    /// # Errors
    /// `NotBegun` where the engine is gone and has not heard of it; `InvalidInput` where it takes no
    /// such body, and how its process ended or what was wrong with its answer.
    pub async fn call(&self, call: Call) -> Result<Answer, CallError> {
        let own = self.engine.name();
        match &self.adapter {
            None => self.engine.call(own, call).await,
            Some(Adapter { name, routes: AdapterRoutes::Vllm, .. }) => {
                self.engine.call(name, call).await
            }
            Some(Adapter { name, routes: AdapterRoutes::Sglang, .. }) => {
                self.engine.call(&format!("{own}:{name}"), call).await
            }
        }
    }

    /// Stops the engine, or takes the adapter out of it; returns when its memory is free. A second call
    /// finds nothing to do.
    pub async fn leave(&self) {
        let Some(adapter) = &self.adapter else { return self.engine.stop().await };
        let seat = adapter.seat.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(seat) = seat else { return };
        if !has_left(&self.engine, adapter.routes, &adapter.name).await {
            // Its place stays taken.
            self.engine.stuck.lock().await.insert(adapter.name.clone(), seat);
        }
    }
}

fn unload(routes: AdapterRoutes, name: &str) -> Request<Outgoing> {
    let path = match routes {
        AdapterRoutes::Vllm => "/v1/unload_lora_adapter",
        AdapterRoutes::Sglang => "/unload_lora_adapter",
    };
    post(path, Bytes::from(json!({ "lora_name": name }).to_string()))
}

/// Has an adapter taken out of an engine; whether it is in there no more.
async fn has_left(engine: &Engine, routes: AdapterRoutes, name: &str) -> bool {
    let Err(refusal) = engine.ask(unload(routes, name), UNLOAD_LIMIT).await else { return true };
    warn!(adapter = name, ?refusal, "an engine did not unload an adapter");
    // One that has ended has forgotten it, and one that blames the request does not know it.
    let knows_none = matches!(&refusal, Refusal::Said(status, _) if status.is_client_error());
    knows_none || engine.has_ended()
}
