//! What the container contract's `/adapters` works with.

use std::path::PathBuf;

use futures_util::future::BoxFuture;
use roundhouse_types::{Failure, ModelId};

use super::LoadOutcome;

/// An adapter to be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// What the platform calls it.
    pub name: String,
    /// Where it lies, as it was given.
    pub src: String,
    /// The folder, checked and canonical.
    pub path: PathBuf,
    /// Whether it is loaded now rather than for its first request.
    pub preload: bool,
    /// Whether it stays once it is loaded.
    pub pin: bool,
    /// What it must be an adapter of, where the platform says so.
    pub base: Option<ModelId>,
}

/// What shall be other than it is with an adapter that is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Which.
    pub name: String,
    /// Where it lies now, as it was given and checked; absent: where it lay.
    pub place: Option<(String, PathBuf)>,
    /// Whether it is loaded now.
    pub preload: bool,
    /// Whether it stays once it is loaded; absent: as before.
    pub pin: Option<bool>,
}

/// An adapter that is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerAdapter {
    /// Its name.
    pub name: String,
    /// Where it lies, as it was given.
    pub src: String,
    /// Whether it stays once it is loaded.
    pub pin: bool,
    /// What invocations call it.
    pub model: ModelId,
    /// What it builds on, where that is known: it is loaded, or was registered with it.
    pub base: Option<ModelId>,
}

/// The adapters that the container contract registers. Implemented by the server; tests
/// replace it.
pub trait ContainerAdapters: Send + Sync {
    /// Registers an adapter, and loads it with its base where that is asked for; one whose load fails
    /// is not registered. `AlreadyLoaded` where the name is taken. Dropping the future does not abandon
    /// the load.
    fn register(
        &self,
        registration: Registration,
    ) -> BoxFuture<'static, Result<LoadOutcome, Failure>>;

    /// Changes a registered adapter; `None` where there is none. One that lies elsewhere now is
    /// unregistered and registered again: where that fails it is gone.
    fn update(&self, update: Update) -> BoxFuture<'static, Result<Option<LoadOutcome>, Failure>>;

    /// At most `limit` registered adapters in name order, those after a name and, where a base is
    /// named, known to build on it; and whether others follow. Never waits.
    fn page(
        &self,
        after: Option<&str>,
        limit: usize,
        base: Option<&ModelId>,
    ) -> (Vec<ContainerAdapter>, bool);

    /// One of them. Never waits.
    fn get(&self, name: &str) -> Option<ContainerAdapter>;

    /// Forgets an adapter and returns when its memory is free; `false` where it was not
    /// registered.
    fn unregister(&self, name: &str) -> BoxFuture<'static, Result<bool, Failure>>;
}
