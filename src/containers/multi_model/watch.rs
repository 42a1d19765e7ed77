//! What a container holds, against what we know.

use std::sync::{Arc, Weak};
use std::time::Duration;

use roundhouse_types::{ErrorKind, Failure};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::ask;
use super::container::{Inner, Phase};
use crate::{Backend, Error};

/// As often as SageMaker asks containers how they are.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks again and again, until the container is closed.
pub(super) async fn run(container: Weak<Inner>) {
    loop {
        {
            let Some(container) = container.upgrade() else { return };
            container.look().await;
        }
        sleep(LOOK_EVERY).await;
    }
}

impl Inner {
    /// Compares once. Models of ours that it does not hold any more have died; those that it holds and
    /// nobody knows of, of an earlier run or a load that was given up, are deleted.
    async fn look(self: &Arc<Self>) {
        let before = self.entries();
        let backend = match self.backend_now().await {
            Ok(backend) => backend,
            Err(error) => return self.all_died(&gone(&error)),
        };
        let listed = match ask::list(&backend).await {
            Ok(Some(listed)) => listed,
            Ok(None) => return,
            Err(error @ Error::Unreachable { .. }) => return self.all_died(&gone(&error)),
            Err(error) => {
                // Its health checks tell an operator.
                debug!(container = %self.name, %error, "a container does not list its models");
                return;
            }
        };
        for (name, (generation, is_live)) in &before {
            if *is_live && !listed.contains(name) {
                // A list of several pages may miss what moved from one to the other meanwhile.
                self.check(&backend, name, *generation).await;
            }
        }
        for name in listed.iter().filter(|name| name.starts_with(&*self.prefix)) {
            if !before.contains_key(name) {
                self.delete(&backend, name).await;
            }
        }
        // Whatever could not be deleted is tried again at the next look.
        let _ = self.cleaned.set(());
    }

    /// Deletes what an earlier run of ours has left, once; a load that comes first waits for it.
    ///
    /// # Errors
    /// Where the container does not answer.
    pub(super) async fn clean(&self, backend: &Backend) -> Result<(), Error> {
        let cleaning = async {
            let before = self.entries();
            let listed = ask::list(backend).await?.unwrap_or_default();
            for name in listed.iter().filter(|name| name.starts_with(&*self.prefix)) {
                if !before.contains_key(name) {
                    self.delete(backend, name).await;
                }
            }
            Ok(())
        };
        self.cleaned.get_or_try_init(|| cleaning).await?;
        Ok(())
    }

    /// Finds out whether a model is still in it, and says so where it is not.
    pub(super) async fn check(&self, backend: &Backend, name: &str, generation: u64) -> bool {
        let is_there = match ask::has(backend, name).await {
            Ok(is_there) => is_there != Some(false),
            Err(Error::Unreachable { .. }) => false,
            Err(_) => true,
        };
        if !is_there {
            self.died(name, generation, &lost(&self.name));
        }
        is_there
    }

    /// Takes out what nobody knows of.
    async fn delete(&self, backend: &Backend, name: &str) {
        // A load of the same name waits, or this waits for it.
        let Some(generation) = self.enter(name, Phase::Leaving, None) else { return };
        let left = ask::unload(backend, (name, None), self.spec.load_timeout).await;
        self.take(name, generation);
        match left {
            Ok(said) => {
                info!(container = %self.name, model = name, status = said.status.as_u16(),
                    "deleted a model that was left in a container");
            }
            Err(error) => {
                warn!(container = %self.name, model = name, %error,
                    "a model that was left in a container was not deleted");
            }
        }
    }
}

/// Its models are gone with it.
pub(super) fn gone(error: &Error) -> Failure {
    let failure: Failure = error.clone().into();
    Failure::new(ErrorKind::NotReady, failure.to_string()).with_retry(failure.retry())
}

fn lost(container: &str) -> Failure {
    Failure::new(ErrorKind::NotReady, format!("container {container} does not hold it any more"))
}
