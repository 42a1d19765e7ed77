//! An engine's sleep, by vLLM's routes: its device is free, its process stays.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use roundhouse_types::{ErrorKind, Failure};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::engine::{Engine, Refusal, post};
use super::spec::SleepLevel;
use crate::Outgoing;

/// Weights go to the host's memory, or come from files.
const LIMIT: Duration = Duration::from_secs(300);
/// An engine of several processes answers before all of them sleep.
const ASK_EVERY: Duration = Duration::from_millis(20);

#[derive(Deserialize)]
struct IsSleeping {
    is_sleeping: bool,
}

impl Engine {
    /// Puts it to sleep, and returns when it sleeps.
    ///
    /// # Errors
    /// Where it does not. Nothing is known of it then: it is to be stopped.
    pub async fn sleep(&self, level: SleepLevel) -> Result<(), Failure> {
        self.tell(&format!("/sleep?level={}", level.number()), Bytes::new()).await?;
        self.until(true).await
    }

    /// Wakes it, and returns when it can be asked again.
    ///
    /// # Errors
    /// Where it does not. Nothing is known of it then: it is to be stopped.
    pub async fn wake(&self, level: SleepLevel) -> Result<(), Failure> {
        match level {
            SleepLevel::Keep => self.tell("/wake_up", Bytes::new()).await?,
            SleepLevel::Drop => {
                self.tell("/wake_up?tags=weights", Bytes::new()).await?;
                let reload = Bytes::from_static(br#"{"method": "reload_weights"}"#);
                self.tell("/collective_rpc", reload).await?;
                self.tell("/wake_up?tags=kv_cache", Bytes::new()).await?;
                // Blocks that it remembers belong to the memory that it gave back.
                self.tell("/reset_prefix_cache", Bytes::new()).await?;
            }
        }
        self.until(false).await
    }

    async fn tell(&self, path: &str, body: Bytes) -> Result<(), Failure> {
        let told = self.ask(post(path, body), LIMIT).await;
        told.map(drop).map_err(|refusal| failure(path, refusal))
    }

    async fn until(&self, sleeps: bool) -> Result<(), Failure> {
        const PATH: &str = "/is_sleeping";
        let limit = Instant::now() + LIMIT;
        while Instant::now() < limit {
            let mut request = Request::new(Outgoing::empty());
            *request.uri_mut() = http::Uri::from_static(PATH);
            let said = self.ask(request, LIMIT).await.map_err(|why| failure(PATH, why))?;
            let said: IsSleeping = serde_json::from_slice(&said).map_err(|error| {
                Failure::new(ErrorKind::ModelFailed, format!("the engine's {PATH}: {error}"))
            })?;
            if said.is_sleeping == sleeps {
                return Ok(());
            }
            sleep(ASK_EVERY).await;
        }
        Err(Failure::new(ErrorKind::ModelFailed, format!("the engine's {PATH} stays the same")))
    }
}

fn failure(path: &str, refusal: Refusal) -> Failure {
    match refusal {
        Refusal::Failed(failure) => failure,
        Refusal::Said(status, said) => {
            let what = format!("the engine answers {path} with status {status}: {said}");
            Failure::new(ErrorKind::ModelFailed, what)
        }
    }
}
