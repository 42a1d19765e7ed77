//! The end of the server: whoever is still being answered then is told, instead of cut off.

use roundhouse_types::{ErrorKind, Failure};
use tokio::sync::watch;

/// Says that what is under way must end.
#[derive(Debug, Clone)]
pub struct CutOff(watch::Sender<bool>);

/// Hears of it. Clones are the same.
#[derive(Debug, Clone)]
pub struct Cut(watch::Receiver<bool>);

impl Cut {
    /// The two sides. Where the first is gone, nothing is ever cut off.
    pub fn pair() -> (CutOff, Self) {
        let (sender, receiver) = watch::channel(false);
        (CutOff(sender), Self(receiver))
    }

    /// Waits until it is said. Can be dropped and asked for again at any time.
    pub(crate) async fn wait(&self) {
        let mut told = self.0.clone();
        if told.wait_for(|told| *told).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl CutOff {
    /// Ends every answer that is under way with an error, as soon as somebody looks at it.
    pub fn now(&self) {
        self.0.send_replace(true);
    }
}

/// What is told to those that are cut off.
pub(crate) fn cut_off() -> Failure {
    Failure::new(ErrorKind::Overloaded, "the server is shutting down and the answer is not whole")
}
