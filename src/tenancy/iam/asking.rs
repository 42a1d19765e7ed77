//! Who may have AWS asked beside others: a bound for each source, so that one that makes tokens up
//! keeps nobody else out.
//!
//! A token says nothing that can be believed before AWS has been asked, so what is bounded is where
//! it came from: an address, of IPv6 the network that one subscriber has. An access key of a tenant's that
//! AWS has confirmed before is known by its id: whoever brings a token of it takes places of another pool,
//! few for each key, and no flood of strangers stands before it, also where all come from one
//! address, as from behind a balancer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests to AWS at a time, of strangers and as many of those that are known.
const AT_ONCE: usize = 16;
/// Of these, those of one source or key.
const OF_ONE: usize = 4;
/// Sources that are remembered without having a place; each costs less than a hundred bytes.
const IDLE_SOURCES: usize = 1024;
/// Access keys that are known; those of sessions live for hours, and their tokens for minutes.
const KNOWN: NonZeroUsize = NonZeroUsize::new(8192).expect("not zero");

/// Where a token comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// Nobody knows.
    Unknown,
    /// An address, or the first half of one of IPv6.
    Network(IpAddr),
    /// A key that AWS knows, from wherever.
    Key(String),
}

impl Source {
    fn of(address: Option<IpAddr>) -> Self {
        match address.map(|address| address.to_canonical()) {
            None => Self::Unknown,
            Some(IpAddr::V4(address)) => Self::Network(address.into()),
            Some(IpAddr::V6(address)) => {
                let network = u128::from(address) & !u128::from(u64::MAX);
                Self::Network(IpAddr::V6(network.into()))
            }
        }
    }
}

/// The places. Shared by all who wait.
#[derive(Debug)]
pub(super) struct Asking {
    strangers: Arc<Semaphore>,
    known: Arc<Semaphore>,
    of_sources: Mutex<HashMap<Source, Arc<Semaphore>>>,
    known_keys: Mutex<LruCache<String, ()>>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _of_source: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Default for Asking {
    fn default() -> Self {
        let pool = || Arc::new(Semaphore::new(AT_ONCE));
        Self {
            strangers: pool(),
            known: pool(),
            of_sources: Mutex::default(),
            known_keys: Mutex::new(LruCache::new(KNOWN)),
        }
    }
}

impl Asking {
    /// Waits for a place: first behind others of its source, then beside those of other sources.
    /// `None` where no place is given any more.
    pub(super) async fn place(&self, address: Option<IpAddr>, key: &str) -> Option<Place> {
        let is_known = held(&self.known_keys).get(key).is_some();
        let source = if is_known { Source::Key(key.to_owned()) } else { Source::of(address) };
        let pool = if is_known { &self.known } else { &self.strangers };
        let of_source = self.of_source(source).acquire_owned().await.ok()?;
        let of_all = Arc::clone(pool).acquire_owned().await.ok()?;
        Some(Place { _of_source: of_source, _of_all: of_all })
    }

    #[cfg(test)]
    pub(super) fn knows(&self, key: &str) -> bool {
        held(&self.known_keys).contains(key)
    }

    /// AWS has confirmed a signature by this key, whose owner is a tenant's.
    pub(super) fn know(&self, key: &str) {
        held(&self.known_keys).put(key.to_owned(), ());
    }

    fn of_source(&self, source: Source) -> Arc<Semaphore> {
        let mut of_sources = held(&self.of_sources);
        if of_sources.len() > IDLE_SOURCES {
            // Who waits or has a place holds another reference.
            of_sources.retain(|_, places| Arc::strong_count(places) > 1);
        }
        Arc::clone(of_sources.entry(source).or_insert_with(|| Arc::new(Semaphore::new(OF_ONE))))
    }
}

/// What a panicking holder left behind is whole: entries are replaced at once.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn at(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    async fn get(asking: &Asking, address: Option<IpAddr>, key: &str) -> Option<Place> {
        timeout(Duration::from_secs(1), asking.place(address, key)).await.ok().flatten()
    }

    #[tokio::test(start_paused = true)]
    async fn one_source_has_some_places_and_others_have_the_rest() {
        let asking = Asking::default();
        let mut taken = Vec::new();
        while let Some(place) = get(&asking, at("203.0.113.7"), "A").await {
            taken.push(place);
        }
        assert_eq!(taken.len(), OF_ONE);
        assert!(get(&asking, at("::ffff:203.0.113.7"), "A").await.is_none(), "the same address");
        assert!(get(&asking, at("203.0.113.8"), "A").await.is_some());
        taken.pop();
        assert!(get(&asking, at("203.0.113.7"), "B").await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_of_one_subscriber_is_one_source() {
        let asking = Asking::default();
        let mut taken = Vec::new();
        for host in 0..100 {
            taken.extend(get(&asking, at(&format!("2001:db8:0:1::{host:x}")), "A").await);
        }
        assert_eq!(taken.len(), OF_ONE);
        assert!(get(&asking, at("2001:db8:0:2::1"), "A").await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_known_waits_behind_no_stranger_wherever_it_comes_from() {
        let asking = Asking::default();
        asking.know("AKIAKNOWN");
        let mut taken = Vec::new();
        for host in 0..100 {
            for _ in 0..3 {
                taken.extend(get(&asking, at(&format!("198.51.100.{host}")), "A").await);
            }
        }
        assert_eq!(taken.len(), AT_ONCE, "strangers from many addresses have all of theirs");
        let known = get(&asking, at("198.51.100.1"), "AKIAKNOWN").await;
        assert!(known.is_some());
        // Who learns the id of a known key takes places of that key alone.
        asking.know("AKIAOTHER");
        let mut made_up = Vec::new();
        while let Some(place) = get(&asking, at("198.51.100.1"), "AKIAKNOWN").await {
            made_up.push(place);
        }
        assert_eq!(made_up.len(), OF_ONE - 1);
        assert!(get(&asking, None, "AKIAOTHER").await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn sources_that_have_no_place_are_forgotten() {
        let asking = Asking::default();
        let kept = get(&asking, at("203.0.113.7"), "A").await;
        for number in 0..5000_u32 {
            let address = IpAddr::V4((0x0a00_0000 + number).into());
            assert!(get(&asking, Some(address), "A").await.is_some());
        }
        assert!(held(&asking.of_sources).len() <= IDLE_SOURCES + 2);
        assert!(held(&asking.of_sources).contains_key(&Source::of(at("203.0.113.7"))));
        drop(kept);
    }
}
