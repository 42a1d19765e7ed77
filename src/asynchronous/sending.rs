//! How a notice is sent until somebody takes it: a few times, and few at once.

use std::time::Duration;

use rand::Rng;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

/// How often a notice is sent before it is given up.
const ATTEMPTS: u32 = 4;
/// The first pause between two; it doubles.
const PAUSE: Duration = Duration::from_millis(500);
/// How long one attempt may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// Notices of one endpoint on their way at once: who is slow to listen holds up no other endpoint.
const PLACES: usize = 32;
/// How long a notice waits for a place. Its request is in the queue until then.
const WAIT: Duration = Duration::from_secs(60);

/// Why an attempt failed, and whether another would too.
pub(crate) struct Refusal {
    pub(crate) why: String,
    pub(crate) is_final: bool,
}

impl Refusal {
    /// What an answer that is none of success says: whoever is busy or broken is asked again.
    pub(crate) fn of(status: reqwest::StatusCode, why: String) -> Self {
        Self { why, is_final: !status.is_server_error() && ![408, 429].contains(&status.as_u16()) }
    }
}

/// The places of one endpoint's notices on one way.
#[derive(Debug)]
pub(crate) struct Places(Semaphore);

impl Default for Places {
    fn default() -> Self {
        Self(Semaphore::new(PLACES))
    }
}

impl Places {
    /// All of them, as if so many notices were on their way.
    #[cfg(test)]
    pub(crate) async fn all(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.0.acquire_many(u32::try_from(PLACES).unwrap()).await.unwrap()
    }

    /// Attempts until one succeeds, when there is a place.
    ///
    /// # Errors
    /// With why the last attempt failed; where no place is free for a minute.
    pub(crate) async fn insist<F>(&self, mut attempt: impl FnMut() -> F) -> Result<(), String>
    where
        F: Future<Output = Result<(), Refusal>>,
    {
        let Ok(Ok(_place)) = timeout(WAIT, self.0.acquire()).await else {
            return Err(format!("{PLACES} earlier ones are on their way still"));
        };
        let (mut pause, mut attempts) = (PAUSE, 1);
        loop {
            match attempt().await {
                Ok(()) => return Ok(()),
                Err(Refusal { why, is_final }) if is_final || attempts == ATTEMPTS => {
                    return Err(why);
                }
                Err(Refusal { why, .. }) => debug!(%why, attempts, "a notice is sent again"),
            }
            let spread = pause.mul_f64(rand::rng().random_range(0.5..=1.0));
            tokio::time::sleep(spread).await;
            (pause, attempts) = (pause * 2, attempts + 1);
        }
    }
}

/// An error with its causes: the outermost says little.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
