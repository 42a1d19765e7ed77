//! Templates that ended their processes or took long, and are not rendered for a while: processes are
//! started again, and kept busy, only as much as that costs nobody anything.
//!
//! What a large request comes to says nothing of the template: it is not counted, so no client pauses a
//! template for all others of its tenant by what it sends.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::frame::Digest;
use super::turns::Who;

/// Whose templates: what one tenant makes of a template that many use stays its own.
pub(super) type Key = (Who, Digest);

/// The longest order that counts, in bytes: a template that takes too much for so little is at fault.
pub(super) const SMALL: usize = 64 * 1024;
/// A rendering that takes longer counts as one that ended its process; usual ones take a thousandth.
pub(super) const LONG: Duration = Duration::from_secs(1);
/// So many in a row have no consequence: somebody else may have ended one of them.
const FREE: u32 = 1;
/// The first pause; each further one is twice as long.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A death is forgotten when it is so long ago.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Templates that are remembered; beyond that the one that died first is not.
const MOST: usize = 1024;

/// Deaths in a row, by whose template it was. A rendering that ends well clears its own.
#[derive(Debug, Default)]
pub(super) struct Deaths(HashMap<Key, (u32, Instant)>);

impl Deaths {
    /// How many times it died and how long it is not rendered yet.
    pub(super) fn pause(&self, key: &Key, now: Instant) -> Option<(u32, Duration)> {
        let (times, last) = self.0.get(key)?;
        let over = times.checked_sub(FREE + 1)?;
        let pause = PAUSE.saturating_mul(1 << over.min(16)).min(PAUSE_MAX);
        let left = pause.saturating_sub(now.saturating_duration_since(*last));
        (!left.is_zero()).then_some((*times, left))
    }

    /// It ended its process, or took long.
    pub(super) fn died(&mut self, key: Key, now: Instant) {
        self.0.retain(|_, (_, last)| now.saturating_duration_since(*last) < REMEMBERED);
        if self.0.len() >= MOST && !self.0.contains_key(&key) {
            let first = self.0.iter().min_by_key(|(_, (_, last))| *last);
            if let Some(first) = first.map(|(key, _)| key.clone()) {
                self.0.remove(&first);
            }
        }
        let (times, last) = self.0.entry(key).or_insert((0, now));
        *times = times.saturating_add(1);
        *last = now;
    }

    /// It was rendered soon, or refused by its own words.
    pub(super) fn survived(&mut self, key: &Key) {
        if !self.0.is_empty() {
            self.0.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tenant: &str, digest: u8) -> Key {
        (Some(tenant.parse().unwrap()), [digest; 32])
    }

    #[test]
    fn deaths_in_a_row_make_longer_pauses_for_one_tenants_template_alone() {
        let (now, mut deaths) = (Instant::now(), Deaths::default());
        let seconds = Duration::from_secs;
        deaths.died(key("a", 1), now);
        assert_eq!(deaths.pause(&key("a", 1), now), None, "one has no consequence");
        deaths.died(key("a", 1), now);
        assert_eq!(deaths.pause(&key("a", 1), now), Some((2, seconds(1))));
        assert_eq!(deaths.pause(&key("a", 1), now + seconds(1)), None);
        deaths.died(key("a", 1), now);
        assert_eq!(deaths.pause(&key("a", 1), now), Some((3, seconds(2))));
        for _ in 0..99 {
            deaths.died(key("a", 1), now);
        }
        assert_eq!(deaths.pause(&key("a", 1), now), Some((102, PAUSE_MAX)));
        for other in [key("b", 1), key("a", 2)] {
            assert_eq!(deaths.pause(&other, now), None, "{other:?}");
        }
        deaths.survived(&key("a", 1));
        assert_eq!(deaths.pause(&key("a", 1), now), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_in_number_and_time() {
        let (now, mut deaths) = (Instant::now(), Deaths::default());
        for number in 0..2 * MOST {
            let at = now + Duration::from_millis(number as u64);
            let digest = std::array::from_fn(|byte| (number >> (8 * byte.min(4))) as u8);
            deaths.died((None, digest), at);
            deaths.died((None, digest), at);
        }
        assert_eq!(deaths.0.len(), MOST);
        deaths.died(key("a", 1), now + REMEMBERED * 2);
        assert_eq!(deaths.0.len(), 1);
    }
}
