//! Loader calls under way, each a task; a panic in one becomes its failure.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use roundhouse_types::{ArtefactId, Bytes, ErrorKind, Failure, ModelId, RetryHint};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::{now, panicked};
use crate::loader::{Base, Fetched, HostCopy, LoadSource, Loaded, Loader, Resolution};
use crate::reporter::Slot;
use crate::table::Key;

/// What a call brought.
pub(crate) struct Finished<M> {
    pub(crate) outcome: Outcome<M>,
    /// How long it ran.
    pub(crate) took: Duration,
}

/// The results by call.
pub(crate) enum Outcome<M> {
    Resolved { model: ModelId, result: Result<Resolution, Failure> },
    Fetched { artefact: ArtefactId, result: Result<Fetched, Failure> },
    Loaded { key: Key, result: Result<Loaded<M>, Failure> },
    Unloaded { key: Key, copy: Option<HostCopy> },
    Discarded { artefact: ArtefactId },
}

/// Which call a task makes.
enum Call {
    Resolve(ModelId),
    Fetch(ArtefactId),
    Load(Key),
    Unload(Key),
    Discard(ArtefactId),
}

/// Owned by the residency owner. A task whose id is not listed was abandoned: its result
/// is nobody's.
pub(super) struct Tasks<L: Loader> {
    loader: Arc<L>,
    running: JoinSet<Outcome<L::Model>>,
    calls: HashMap<Id, (Call, Instant)>,
    fetches: HashMap<ArtefactId, Fetching>,
}

/// A fetch under way.
struct Fetching {
    task: AbortHandle,
    /// Says that the loader has begun with it; closed when it never will.
    begun: Option<oneshot::Receiver<()>>,
}

impl<L: Loader> Tasks<L> {
    pub(super) fn new(loader: Arc<L>) -> Self {
        Self { loader, running: JoinSet::new(), calls: HashMap::new(), fetches: HashMap::new() }
    }

    pub(super) fn resolve(&mut self, model: ModelId, refresh: bool) {
        let (loader, subject) = (Arc::clone(&self.loader), model.clone());
        let handle = self.running.spawn(async move {
            let result = loader.resolve(&model, refresh).await;
            Outcome::Resolved { model, result }
        });
        self.calls.insert(handle.id(), (Call::Resolve(subject), now()));
    }

    pub(super) fn fetch(&mut self, artefact: ArtefactId, payer: String) {
        let (loader, subject) = (Arc::clone(&self.loader), artefact.clone());
        let (begins, begun) = oneshot::channel();
        let task = self.running.spawn(async move {
            let result = beginning(loader.fetch(&artefact, &payer), begins).await;
            Outcome::Fetched { artefact, result }
        });
        self.calls.insert(task.id(), (Call::Fetch(subject.clone()), now()));
        self.fetches.insert(subject, Fetching { task, begun: Some(begun) });
    }

    pub(super) fn abandon_fetch(&mut self, artefact: &ArtefactId) {
        if let Some(Fetching { task, .. }) = self.fetches.remove(artefact) {
            self.calls.remove(&task.id());
            task.abort();
        }
    }

    /// A load of what arrives is begun when its fetch has been.
    pub(super) fn load(
        &mut self,
        key: Key,
        source: LoadSource,
        base: Option<Base<L::Model>>,
        slot: Arc<Slot>,
    ) {
        let (loader, subject) = (Arc::clone(&self.loader), key.clone());
        let fetching =
            self.fetches.get_mut(&key.artefact).filter(|_| source == LoadSource::Arriving);
        let begun = fetching.and_then(|fetching| fetching.begun.take());
        let handle = self.running.spawn(async move {
            let is_abandoned = match begun {
                Some(begun) => begun.await.is_err(),
                None => false,
            };
            let result = match is_abandoned {
                true => Err(abandoned(&key.artefact)),
                false => {
                    loader.load(&key.artefact, key.device, source, base, slot.reporter()).await
                }
            };
            slot.load_returned();
            Outcome::Loaded { key, result }
        });
        self.calls.insert(handle.id(), (Call::Load(subject), now()));
    }

    pub(super) fn unload(&mut self, key: Key, model: Arc<L::Model>, demote: bool) {
        let (loader, subject) = (Arc::clone(&self.loader), key.clone());
        let handle = self.running.spawn(async move {
            let copy = loader.unload(&key.artefact, key.device, model, demote).await;
            Outcome::Unloaded { key, copy: copy.filter(|_| demote) }
        });
        self.calls.insert(handle.id(), (Call::Unload(subject), now()));
    }

    pub(super) fn discard(&mut self, artefact: ArtefactId) {
        let (loader, subject) = (Arc::clone(&self.loader), artefact.clone());
        let handle = self.running.spawn(async move {
            loader.discard(&artefact).await;
            Outcome::Discarded { artefact }
        });
        self.calls.insert(handle.id(), (Call::Discard(subject), now()));
    }

    /// How much each fetch under way has brought.
    pub(super) fn progress(&self) -> Vec<(ArtefactId, Bytes)> {
        let artefacts = self.fetches.keys();
        artefacts.map(|id| (id.clone(), self.loader.fetched_bytes(id))).collect()
    }

    /// The next call that ends; `None` while none runs. Nothing is lost if dropped.
    pub(super) async fn next(&mut self) -> Option<Finished<L::Model>> {
        loop {
            let joined = self.running.join_next_with_id().await?;
            let id = match &joined {
                Ok((id, _)) => *id,
                Err(error) => error.id(),
            };
            let Some((call, begun)) = self.calls.remove(&id) else {
                continue;
            };
            if let Call::Fetch(artefact) = &call {
                self.fetches.remove(artefact);
            }
            let outcome = match joined {
                Ok((_, outcome)) => outcome,
                Err(error) => broken(call, &error),
            };
            return Some(Finished { outcome, took: now().saturating_duration_since(begun) });
        }
    }
}

/// Runs a fetch and says when it has been begun, or has ended at once.
async fn beginning<T>(fetch: impl Future<Output = T>, begins: oneshot::Sender<()>) -> T {
    let mut fetch = pin!(fetch);
    let first = poll_fn(|context| Poll::Ready(fetch.as_mut().poll(context))).await;
    // Nobody has to wait for it.
    let _ = begins.send(());
    match first {
        Poll::Ready(result) => result,
        Poll::Pending => fetch.await,
    }
}

/// What a load ends with whose fetch was abandoned before the loader had begun with it.
fn abandoned(artefact: &ArtefactId) -> Failure {
    let message = format!("the fetch of {artefact} was given up before it began");
    Failure::new(ErrorKind::NotReady, message).with_retry(RetryHint::Later)
}

/// The outcome of a call whose task did not end by itself.
fn broken<M>(call: Call, error: &JoinError) -> Outcome<M> {
    tracing::error!(%error, "a loader call panicked");
    match call {
        Call::Resolve(model) => {
            let result = Err(panicked("resolve", &model));
            Outcome::Resolved { model, result }
        }
        Call::Fetch(artefact) => {
            let result = Err(panicked("fetch", &artefact));
            Outcome::Fetched { artefact, result }
        }
        Call::Load(key) => {
            let result = Err(panicked("load", &key.artefact));
            Outcome::Loaded { key, result }
        }
        // The model was dropped with the task, so its memory is gone as far as we can know.
        Call::Unload(key) => Outcome::Unloaded { key, copy: None },
        // Nobody will use what is left of it, and nobody can free more of it.
        Call::Discard(artefact) => Outcome::Discarded { artefact },
    }
}
