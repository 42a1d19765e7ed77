//! A look at something that may hang, from a task that must go on.

use std::time::{Duration, Instant};

use roundhouse_types::{ErrorKind, Failure};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// One look at a time, on a blocking thread. Where one hangs no other is begun until it ends.
#[derive(Debug)]
pub(super) struct Limited<T> {
    hangs: Option<JoinHandle<T>>,
    told_at: Option<Instant>,
}

impl<T> Default for Limited<T> {
    fn default() -> Self {
        Self { hangs: None, told_at: None }
    }
}

impl<T: Send + 'static> Limited<T> {
    /// What is seen; `None` where that takes longer, or one before it hangs still.
    ///
    /// # Errors
    /// When the look panics, or no thread can be had for it.
    pub(super) async fn look(
        &mut self,
        within: Duration,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>, Failure> {
        // What one saw that hung is of another time.
        if self.hangs.as_ref().is_some_and(|hangs| !hangs.is_finished()) {
            return Ok(None);
        }
        let mut looking = tokio::task::spawn_blocking(look);
        let seen = timeout(within, &mut looking).await;
        self.hangs = seen.is_err().then_some(looking);
        seen.ok().transpose().map_err(|error| Failure::from_error(ErrorKind::Internal, &error))
    }

    /// Whether that is to be told now: it was not within so long before.
    pub(super) fn is_news(&mut self, each: Duration, now: Instant) -> bool {
        let is_news = self.told_at.is_none_or(|at| now.saturating_duration_since(at) >= each);
        if is_news {
            self.told_at = Some(now);
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const LATE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_look_that_hangs_is_left_and_none_is_begun_beside_it() {
        let mut limited = Limited::default();
        assert_eq!(limited.look(LATE, || 1).await.unwrap(), Some(1));
        let (let_go, hangs) = channel::<()>();
        let hung = move || hangs.recv().map_or(2, |()| 2);
        assert_eq!(limited.look(SOON, hung).await.unwrap(), None);
        let began = Instant::now();
        assert_eq!(limited.look(LATE, || panic!("it was begun")).await.unwrap(), None);
        assert!(began.elapsed() < LATE / 2, "it was waited for");
        let_go.send(()).unwrap();
        let seen = loop {
            if let Some(seen) = limited.look(LATE, || 3).await.unwrap() {
                break seen;
            }
            tokio::time::sleep(SOON).await;
        };
        assert_eq!(seen, 3);
    }

    #[test]
    fn what_lasts_is_told_once_a_while() {
        let (mut limited, now) = (Limited::<()>::default(), Instant::now());
        let told = [0, 1, 59, 60, 61, 120]
            .map(|after| limited.is_news(LATE, now + Duration::from_secs(after)));
        assert_eq!(told, [true, false, false, true, false, true]);
    }
}
