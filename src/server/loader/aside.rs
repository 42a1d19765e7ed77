//! Loads beside requests: on threads of their own that give way.
//!
//! A load receives, digests, reads and converts gigabytes. On the threads that answer requests,
//! and at their priority, that is what a resident's slowest answers would wait for.

use std::future::poll_fn;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::task::Poll;

use roundhouse_residency::{
    Base, Fetched, HostCopy, LoadSource, Loaded, Loader, Reporter, Resolution,
};
use roundhouse_serving::ServedModel;
use roundhouse_types::{ArtefactId, Bytes, DeviceId, ErrorKind, Failure, ModelId};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tracing::{Instrument, warn};

use super::ModelLoader;
use super::plan::Plan;
use crate::error::Error;

/// What a nice value can be at most.
const NICEST: i32 = 19;

/// A loader that works on a runtime of its own. Its threads, those for blocking work and the
/// connections to stores included, have a higher nice value than the server's.
pub(crate) struct Aside {
    loader: Arc<ModelLoader>,
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
}

impl Aside {
    /// Starts the threads, so much nicer than this one; 0 is as nice.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub(crate) fn start(loader: Arc<ModelLoader>, niceness: usize) -> Result<Self, Error> {
        let niceness = i32::try_from(niceness).unwrap_or(NICEST);
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .thread_name("loading")
            .on_thread_start(move || give_way(niceness))
            .build()
            .map_err(|source| Error::io("cannot start threads for loads", source))?;
        Ok(Self { loader, runtime: Some(runtime) })
    }

    /// Does the work on those threads, once it has been begun on this one: residency counts a
    /// fetch as begun when it was polled. When this is dropped, the work is.
    async fn run<T, W>(&self, work: impl FnOnce(Arc<ModelLoader>) -> W) -> Result<T, Failure>
    where
        T: Send + 'static,
        W: Future<Output = T> + Send + 'static,
    {
        let ended = || Failure::new(ErrorKind::Internal, "the threads of loads have ended");
        let runtime = self.runtime.as_ref().ok_or_else(ended)?;
        let mut work = Box::pin(work(self.loader.clone()).in_current_span());
        let begun = poll_fn(|context| {
            // What it starts belongs there from the beginning.
            let _within = runtime.enter();
            Poll::Ready(work.as_mut().poll(context))
        });
        if let Poll::Ready(done) = begun.await {
            return Ok(done);
        }
        let mut tasks = JoinSet::new();
        tasks.spawn_on(work, runtime.handle());
        match tasks.join_next().await {
            Some(Ok(done)) => Ok(done),
            Some(Err(error)) if error.is_panic() => resume_unwind(error.into_panic()),
            Some(Err(_)) | None => Err(ended()),
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Waiting for its threads is not allowed where we may be dropped.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Raises the nice value of this thread, and of what it starts.
fn give_way(niceness: i32) {
    let raised = rustix::process::getpriority_process(None).and_then(|now| {
        rustix::process::setpriority_process(None, now.saturating_add(niceness).min(NICEST))
    });
    if let Err(error) = raised {
        warn!(%error, "a thread of loads does not give way");
    }
}

impl Loader for Aside {
    type Model = ServedModel;

    async fn resolve(&self, model: &ModelId, refresh: bool) -> Result<Resolution, Failure> {
        let model = model.clone();
        self.run(move |loader| async move { loader.resolve(&model, refresh).await }).await?
    }

    async fn fetch(&self, id: &ArtefactId, payer: &str) -> Result<Fetched, Failure> {
        let (id, payer) = (id.clone(), payer.to_owned());
        self.run(move |loader| async move { loader.fetch(&id, &payer).await }).await?
    }

    fn fetched_bytes(&self, id: &ArtefactId) -> Bytes {
        self.loader.fetched_bytes(id)
    }

    async fn load(
        &self,
        id: &ArtefactId,
        device: DeviceId,
        source: LoadSource,
        base: Option<Base<Self::Model>>,
        reporter: Reporter,
    ) -> Result<Loaded<ServedModel>, Failure> {
        let is_driven = |base: &Base<ServedModel>| matches!(*base.model, ServedModel::External(_));
        if matches!(self.loader.recall(id).plan, Some(Plan::Handler(_)))
            || self.loader.external(&id.model).is_some()
            || base.as_ref().is_some_and(is_driven)
        {
            // What a handler's or an engine's load starts goes on to answer requests.
            return self.loader.load(id, device, source, base, reporter).await;
        }
        let id = id.clone();
        self.run(
            move |loader| async move { loader.load(&id, device, source, base, reporter).await },
        )
        .await?
    }

    async fn unload(
        &self,
        id: &ArtefactId,
        device: DeviceId,
        model: Arc<ServedModel>,
        demote: bool,
    ) -> Option<HostCopy> {
        if matches!(*model, ServedModel::External(_) | ServedModel::Contained(_)) {
            // Connections to engines are shared with requests.
            return self.loader.unload(id, device, model, demote).await;
        }
        let artefact = id.clone();
        let unloaded =
            self.run(
                move |loader| async move { loader.unload(&artefact, device, model, demote).await },
            );
        unloaded.await.unwrap_or_else(|failure| {
            warn!(%failure, model = %id, "an unload was cut off");
            None
        })
    }

    async fn discard(&self, id: &ArtefactId) {
        let id = id.clone();
        let discarded = self.run(move |loader| async move { loader.discard(&id).await }).await;
        if let Err(failure) = discarded {
            warn!(%failure, "a copy was not discarded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_loads_and_what_they_start_are_nicer_than_others() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let raised = std::thread::spawn(move || {
            give_way(3);
            (nice(), std::thread::spawn(nice).join().unwrap())
        });
        let expected = (before + 3).min(NICEST);
        assert_eq!(raised.join().unwrap(), (expected, expected));
        assert_eq!(nice(), before, "this thread is as it was");
    }
}
