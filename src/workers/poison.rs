//! Which requests have killed workers: a third worker is not given to them.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;

/// Deaths after which the same request is refused.
const DEATHS: u32 = 2;
/// How long that lasts: what killed it may have been the machine.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// Requests remembered, of all handlers.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// What makes two requests the same.
#[derive(Debug, Clone)]
pub(crate) struct Fingerprinted {
    /// The handler's version.
    pub(crate) handler: String,
    pub(crate) content_type: Option<String>,
    pub(crate) body: Bytes,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    deaths: u32,
    latest: Instant,
}

/// Shared by all groups of a process; held for a look-up, never across an await.
#[derive(Debug)]
pub(crate) struct Poison {
    hasher: RandomState,
    records: Mutex<LruCache<u64, Record>>,
}

impl Default for Poison {
    fn default() -> Self {
        Self { hasher: RandomState::new(), records: Mutex::new(LruCache::new(REMEMBERED)) }
    }
}

impl Poison {
    /// A worker died while it ran the request.
    pub(crate) fn killed(&self, request: &Fingerprinted, now: Instant) {
        let key = self.key(request);
        let mut records = self.records();
        let deaths =
            records.peek(&key).filter(|record| record.holds(now)).map_or(0, |it| it.deaths);
        records.put(key, Record { deaths: deaths + 1, latest: now });
    }

    /// Whether the request has killed as many workers as it may. Reads the body only where
    /// some request has killed one.
    pub(crate) fn refuses(&self, request: &Fingerprinted, now: Instant) -> bool {
        if self.records().is_empty() {
            return false;
        }
        let key = self.key(request);
        let record = self.records().peek(&key).copied();
        record.is_some_and(|record| record.holds(now) && record.deaths >= DEATHS)
    }

    fn key(&self, request: &Fingerprinted) -> u64 {
        self.hasher.hash_one((&request.handler, &request.content_type, &request.body))
    }

    fn records(&self) -> MutexGuard<'_, LruCache<u64, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn holds(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.latest) < REMEMBERED_FOR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: &'static [u8]) -> Fingerprinted {
        Fingerprinted {
            handler: "e:a@1".into(),
            content_type: Some("text/csv".into()),
            body: Bytes::from_static(body),
        }
    }

    #[test]
    fn the_second_death_closes_the_door_for_a_while() {
        let poison = Poison::default();
        let start = Instant::now();
        poison.killed(&request(b"bad"), start);
        assert!(!poison.refuses(&request(b"bad"), start));
        poison.killed(&request(b"bad"), start);
        assert!(poison.refuses(&request(b"bad"), start));
        assert!(!poison.refuses(&request(b"good"), start));
        let other = Fingerprinted { handler: "e:b@1".into(), ..request(b"bad") };
        assert!(!poison.refuses(&other, start));
        assert!(!poison.refuses(&request(b"bad"), start + REMEMBERED_FOR));
    }
}
