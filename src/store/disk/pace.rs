//! How many bytes a second tenants' fetches may bring: a token bucket for each that has a ceiling.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roundhouse_types::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::DiskCache;
use crate::metrics;

/// On whose behalf a fetch runs, and who is told what it brings.
#[derive(Clone, Default)]
pub struct Payer {
    /// The tenant's name; nobody's where it is empty.
    pub tenant: String,
    /// Called with each part that has arrived.
    pub meter: Option<Arc<dyn Fn(Bytes) + Send + Sync>>,
}

/// The smallest part of a file that is asked for at once, however slow its tenant's fetches are.
const PART_LEAST: u64 = 64 * 1024;

/// The buckets, by tenant. Owned by the cache; fetches take from them.
///
/// In any span of time a tenant takes no more than its bandwidth over that span, a second's worth
/// beside it, and one part.
#[derive(Debug, Default)]
pub(super) struct Paces {
    by_tenant: Mutex<HashMap<String, Arc<Pace>>>,
}

#[derive(Debug)]
struct Pace {
    /// Bytes a second; zero once there is no ceiling any more.
    rate: AtomicU64,
    changed: Notify,
    /// Who holds it is next; others wait behind in their order.
    bucket: tokio::sync::Mutex<Bucket>,
}

/// What may be taken at once. Below zero it is a debt, which time pays.
#[derive(Debug)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl DiskCache {
    /// Says how many bytes a second fetches on behalf of these tenants may bring, in place of what
    /// was said before; those of others are held to nothing. Fetches under way keep to it from now on.
    pub fn set_load_bandwidths(&self, bandwidths: &BTreeMap<String, Bytes>) {
        self.inner.paces.set(bandwidths);
    }

    /// Whether fetches of some tenants are held to a pace.
    pub(crate) fn holds_to_paces(&self) -> bool {
        !self.inner.paces.lock().is_empty()
    }
}

impl Paces {
    /// Puts these ceilings in the place of those so far. Who waits for one waits by the new one.
    pub(super) fn set(&self, rates: &BTreeMap<String, Bytes>) {
        let mut by_tenant = self.lock();
        for (tenant, rate) in rates {
            let pace =
                by_tenant.entry(tenant.clone()).or_insert_with(|| Arc::new(Pace::new(rate.0)));
            pace.set(rate.0);
        }
        by_tenant.retain(|tenant, pace| {
            let stays = rates.contains_key(tenant);
            if !stays {
                pace.set(0);
            }
            stays
        });
    }

    /// The size of one ranged read on behalf of a tenant, where `part` is everybody's: what it may
    /// bring in a second at most.
    pub(super) fn part(&self, tenant: &str, part: u64) -> u64 {
        let rate = self.lock().get(tenant).map(|pace| pace.rate.load(Ordering::Acquire));
        rate.map_or(part, |rate| part.min(rate.max(PART_LEAST)))
    }

    /// Returns when a tenant may fetch so much more. Dropped before, nothing is taken.
    pub(super) async fn take(&self, tenant: &str, bytes: u64) {
        let pace = self.lock().get(tenant).map(Arc::clone);
        if let Some(pace) = pace {
            let began = Instant::now();
            pace.take(bytes).await;
            metrics::paced(tenant, bytes, began.elapsed());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Pace>>> {
        self.by_tenant.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pace {
    fn new(rate: u64) -> Self {
        let bucket = Bucket { level: float(rate), at: Instant::now() };
        Self { rate: AtomicU64::new(rate), changed: Notify::new(), bucket: bucket.into() }
    }

    fn set(&self, rate: u64) {
        if self.rate.swap(rate, Ordering::AcqRel) != rate {
            self.changed.notify_waiters();
        }
    }

    async fn take(&self, bytes: u64) {
        let mut bucket = self.bucket.lock().await;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Before the rate is read, so that no change falls between.
            changed.as_mut().enable();
            let rate = self.rate.load(Ordering::Acquire);
            if rate == 0 {
                return;
            }
            match bucket.take(bytes, rate, Instant::now()) {
                None => return,
                Some(wait) => {
                    tokio::select! {
                        () = sleep(wait) => {}
                        () = changed => {}
                    }
                }
            }
        }
    }
}

impl Bucket {
    /// Takes so much as soon as nothing is owed; says how long that is, where something is.
    fn take(&mut self, bytes: u64, rate: u64, now: Instant) -> Option<Duration> {
        let rate = float(rate);
        let passed = now.saturating_duration_since(std::mem::replace(&mut self.at, now));
        self.level = (self.level + rate * passed.as_secs_f64()).min(rate);
        if self.level < 0.0 {
            // Rounded up, lest it be asked again in no time.
            return Some(Duration::from_secs_f64(-self.level / rate) + Duration::from_micros(1));
        }
        self.level -= float(bytes);
        None
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes of seconds, far below 2^53")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(tenant: &str, rate: u64) -> BTreeMap<String, Bytes> {
        BTreeMap::from([(tenant.to_owned(), Bytes(rate))])
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_takes_its_bandwidth_and_others_wait_for_nothing() {
        let paces = Paces::default();
        paces.set(&rates("slow", 1000));
        let began = Instant::now();
        for _ in 0..20 {
            paces.take("slow", 500).await;
        }
        // A second's worth and one part come at once; of ten thousand bytes the rest takes its time.
        let took = began.elapsed();
        assert!(took > Duration::from_millis(8_400), "{took:?}");
        assert!(took < Duration::from_millis(8_600), "{took:?}");
        for _ in 0..20 {
            paces.take("other", 1 << 30).await;
        }
        assert_eq!(began.elapsed(), took);
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_take_at_once_are_held_to_one_bucket() {
        let paces = Arc::new(Paces::default());
        paces.set(&rates("slow", 1000));
        let began = Instant::now();
        let takes = (0..50).map(|_| {
            let paces = Arc::clone(&paces);
            async move { paces.take("slow", 200).await }
        });
        futures_util::future::join_all(takes).await;
        let took = began.elapsed();
        assert!(took > Duration::from_millis(8_700), "{took:?}");
        assert!(took < Duration::from_millis(8_900), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_waits_by_the_new_ceiling_and_by_none_once_there_is_none() {
        let paces = Arc::new(Paces::default());
        paces.set(&rates("slow", 100));
        paces.take("slow", 1_000_000).await;
        let waiting = tokio::spawn({
            let paces = Arc::clone(&paces);
            async move { paces.take("slow", 1).await }
        });
        let began = Instant::now();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished(), "it waits for hours at a hundred bytes a second");
        paces.set(&rates("slow", 1_000_000));
        waiting.await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());

        paces.set(&rates("slow", 100));
        paces.take("slow", 1_000_000).await;
        let waiting = tokio::spawn({
            let paces = Arc::clone(&paces);
            async move { paces.take("slow", 1).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        paces.set(&BTreeMap::new());
        waiting.await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_dropped_while_it_waits_has_taken_nothing() {
        let paces = Paces::default();
        paces.set(&rates("slow", 1000));
        paces.take("slow", 3000).await;
        let began = Instant::now();
        let waits = tokio::time::timeout(Duration::from_secs(1), paces.take("slow", 1_000_000));
        waits.await.unwrap_err();
        paces.take("slow", 1).await;
        assert!(began.elapsed() < Duration::from_millis(2_100), "{:?}", began.elapsed());
    }

    #[test]
    fn parts_are_no_more_than_a_second_brings() {
        let paces = Paces::default();
        paces.set(&BTreeMap::from([
            ("slow".to_owned(), Bytes::mib(1)),
            ("slower".to_owned(), Bytes(1)),
        ]));
        let part = 8 << 20;
        assert_eq!(paces.part("slow", part), 1 << 20);
        assert_eq!(paces.part("slower", part), PART_LEAST);
        assert_eq!(paces.part("other", part), part);
    }
}
