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

    /// At most `limit` registered adapters in name order, those after a name, and whether others
    /// follow. Never waits.
    fn page(&self, after: Option<&str>, limit: usize) -> (Vec<ContainerAdapter>, bool);

    /// One of them. Never waits.
    fn get(&self, name: &str) -> Option<ContainerAdapter>;

    /// Forgets an adapter and returns when its memory is free; `false` where it was not
    /// registered.
    fn unregister(&self, name: &str) -> BoxFuture<'static, Result<bool, Failure>>;
}
