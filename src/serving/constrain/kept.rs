//! Compiled forms that are likely to be asked for again, within bounds.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use roundhouse_types::TenantName;

/// What a compiled form takes, by the length of its text: a measured 87 KiB for any JSON object, 163
/// for five properties in 550 bytes, 1.1 MiB for 300 in 12,000.
const BYTES_EACH: u64 = 128 << 10;
const BYTES_PER_BYTE: u64 = 64;
/// More than this is kept of no tokenizer, and no more than so much per token of it: what is charged for
/// it is little beside such a model.
const BYTES_MAX: u64 = 1 << 20;
const BYTES_PER_TOKEN: u64 = 64;

/// What nobody has asked for in so long is not likely to be asked for again: it leaves first.
const UNUSED: Duration = Duration::from_secs(300);

/// Values by what they were made of, those asked for last. Immutable but for its order.
///
/// 1. What one tenant asked for answers no other: how long an answer takes tells nobody what others ask.
/// 2. The values are charged with at most `most` bytes together.
/// 3. A named tenant is charged with more than half of them only for a single value. Where all do not fit, the
///    tenant that holds most loses its least recently used one. So another's requests evict what a
///    tenant keeps only while nobody holds more than it, and of two tenants with small forms neither's.
/// 4. Before 3 evicts one that was used within [`UNUSED`], those that were not leave, whosever they are.
#[derive(Debug)]
pub(super) struct Kept<T> {
    most: u64,
    /// The one used last comes first.
    entries: Mutex<VecDeque<Entry<T>>>,
}

#[derive(Debug)]
struct Entry<T> {
    tenant: Option<TenantName>,
    text: String,
    value: T,
    used: Instant,
}

/// What is kept for a tokenizer of so many tokens, at most; nothing where not even one form fits.
pub(super) fn room(tokens: usize) -> u64 {
    let room = BYTES_PER_TOKEN.saturating_mul(tokens as u64).min(BYTES_MAX);
    if room < BYTES_EACH { 0 } else { room }
}

fn charge(text: &str) -> u64 {
    BYTES_EACH + BYTES_PER_BYTE.saturating_mul(text.len() as u64)
}

impl<T> Kept<T> {
    pub(super) fn new(most: u64) -> Self {
        Self { most, entries: Mutex::default() }
    }

    /// What `copy` makes of the value for this tenant and text, or of the one that `make` makes and that
    /// is kept then. Two at once make it twice: nobody waits on another.
    ///
    /// # Errors
    /// Those of `make`; they are not kept.
    pub(super) fn get_or<E>(
        &self,
        tenant: Option<&TenantName>,
        text: String,
        copy: impl Fn(&T) -> T,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        self.get_or_at(Instant::now(), (tenant, text), copy, make)
    }

    fn get_or_at<E>(
        &self,
        now: Instant,
        (tenant, text): (Option<&TenantName>, String),
        copy: impl Fn(&T) -> T,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if let Some(found) = self.find(now, (tenant, &text), &copy) {
            return Ok(found);
        }
        let made = make()?;
        let own = copy(&made);
        self.keep(Entry { tenant: tenant.cloned(), text, value: made, used: now });
        Ok(own)
    }

    fn find(
        &self,
        now: Instant,
        (tenant, text): (Option<&TenantName>, &str),
        copy: impl Fn(&T) -> T,
    ) -> Option<T> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |entry: &Entry<T>| entry.tenant.as_ref() == tenant && entry.text == text;
        let mut entry = entries.iter().position(is_it).and_then(|at| entries.remove(at))?;
        entry.used = now;
        let value = copy(&entry.value);
        entries.push_front(entry);
        Some(value)
    }

    fn keep(&self, entry: Entry<T>) {
        if charge(&entry.text) > self.most {
            return;
        }
        let mut gone = Vec::new();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |old: &Entry<T>| old.tenant == entry.tenant && old.text == entry.text;
        if let Some(at) = entries.iter().position(is_it) {
            gone.extend(entries.remove(at));
        }
        entries.push_front(entry);
        while let Some(at) = leaves(&entries, self.most) {
            gone.extend(entries.remove(at));
        }
        drop(entries);
    }
}

/// Which of these, the one used last first, leaves next: the oldest of the tenant that has just kept one
/// where it holds too much by itself, else the one that was not used for longest where that is long, else
/// the oldest of who holds most; of several the newcomer's.
fn leaves<T>(entries: &VecDeque<Entry<T>>, most: u64) -> Option<usize> {
    let held = |tenant: &Option<TenantName>| -> u64 {
        let theirs = entries.iter().filter(|entry| entry.tenant == *tenant);
        theirs.map(|entry| charge(&entry.text)).sum()
    };
    let oldest =
        |tenant: &Option<TenantName>| entries.iter().rposition(|entry| entry.tenant == *tenant);
    let newest = &entries.front()?.tenant;
    let own = oldest(newest).filter(|at| *at > 0);
    if newest.is_some() && own.is_some() && held(newest) > most / 2 {
        return own;
    }
    if entries.iter().map(|entry| charge(&entry.text)).sum::<u64>() <= most {
        return None;
    }
    let (now, last) = (entries.front()?.used, entries.len() - 1);
    if last > 0 && now.saturating_duration_since(entries[last].used) >= UNUSED {
        return Some(last);
    }
    // Of equals the last one counts: the newest is looked at last.
    oldest(&entries.iter().rev().max_by_key(|entry| held(&entry.tenant))?.tenant)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Asks for a text; what it answers with, and whether it was made for that.
    fn ask(kept: &Kept<String>, tenant: Option<&str>, text: &str) -> (String, bool) {
        ask_at(Instant::now(), kept, tenant, text)
    }

    fn ask_at(
        now: Instant,
        kept: &Kept<String>,
        tenant: Option<&str>,
        text: &str,
    ) -> (String, bool) {
        let tenant = tenant.map(|name| name.parse().unwrap());
        let made = Cell::new(false);
        let asked = (tenant.as_ref(), text.to_owned());
        let value = kept.get_or_at(now, asked, String::clone, || {
            made.set(true);
            Ok::<_, ()>(text.to_uppercase())
        });
        (value.unwrap(), made.get())
    }

    #[test]
    fn what_was_asked_for_before_is_not_made_again() {
        let kept = Kept::new(BYTES_MAX);
        assert_eq!(ask(&kept, None, "a"), ("A".into(), true));
        assert_eq!(ask(&kept, None, "a"), ("A".into(), false));
        assert_eq!(ask(&kept, None, "b"), ("B".into(), true));
        assert_eq!(ask(&kept, None, "a"), ("A".into(), false));
    }

    #[test]
    fn nobody_is_answered_with_what_another_tenant_asked_for() {
        let kept = Kept::new(BYTES_MAX);
        for tenant in [None, Some("one"), Some("two")] {
            assert!(ask(&kept, tenant, "a").1, "{tenant:?}");
            assert!(!ask(&kept, tenant, "a").1, "{tenant:?}");
        }
    }

    #[test]
    fn the_longest_unasked_leaves_for_others_and_the_too_long_is_not_kept() {
        let kept = Kept::new(3 * charge("a"));
        for text in ["a", "b", "c", "a", "d"] {
            ask(&kept, None, text);
        }
        assert!(!ask(&kept, None, "a").1 && ask(&kept, None, "b").1);
        let long = "x".repeat(100_000);
        assert!(ask(&kept, None, &long).1 && ask(&kept, None, &long).1);
        assert!(!ask(&kept, None, "a").1, "and nothing left for it");
    }

    #[test]
    fn what_a_tenant_keeps_says_nothing_of_how_much_another_asks() {
        let kept = Kept::new(8 * charge("99"));
        let theirs = ["a", "b", "c", "d"];
        for text in theirs {
            ask(&kept, Some("calm"), text);
        }
        for number in 0..100 {
            ask(&kept, Some("busy"), &number.to_string());
        }
        assert!(theirs.iter().all(|text| !ask(&kept, Some("calm"), text).1));
        let last: Vec<_> =
            (96..100).map(|it| ask(&kept, Some("busy"), &it.to_string()).1).collect();
        assert_eq!(last, [false; 4], "and half is the other's");
    }

    #[test]
    fn who_holds_most_makes_room_for_another() {
        let kept = Kept::new(8 * charge("a"));
        for (tenant, texts) in [("one", "abcd"), ("two", "abc"), ("three", "ab")] {
            for text in texts.chars() {
                ask(&kept, Some(tenant), &text.to_string());
            }
        }
        // The ninth took the place of the first one's oldest.
        let made = |tenant, text: &str| ask(&kept, Some(tenant), text).1;
        assert!(["a", "b"].iter().all(|text| !made("three", text)));
        assert!(["a", "b", "c"].iter().all(|text| !made("two", text)));
        assert!(["b", "c", "d"].iter().all(|text| !made("one", text)));
        // The first holds as much as the second now: who comes with a fourth gives one of its own.
        assert!(made("one", "a"));
        assert!(["a", "b", "c"].iter().all(|text| !made("two", text)));
        assert!(made("one", "b"));
    }

    #[test]
    fn one_long_form_of_a_tenant_is_kept_and_leaves_before_others_short_ones() {
        let kept = Kept::new(8 * charge("a"));
        let long = "x".repeat(10_000);
        assert!(charge(&long) > 4 * charge("a"));
        assert!(ask(&kept, Some("one"), &long).1);
        assert!(!ask(&kept, Some("one"), &long).1);
        for text in ["a", "b", "c"] {
            ask(&kept, Some("two"), text);
        }
        assert!(["a", "b", "c"].iter().all(|text| !ask(&kept, Some("two"), text).1));
        assert!(ask(&kept, Some("one"), &long).1);
        assert!(["a", "b", "c"].iter().all(|text| !ask(&kept, Some("two"), text).1));
    }

    #[test]
    fn what_nobody_asks_for_any_more_leaves_room_for_whoever_comes() {
        let (kept, now) = (Kept::new(7 * charge("a")), Instant::now());
        let made = |now, tenant: &str| ask_at(now, &kept, Some(tenant), "a").1;
        let all = ["a", "b", "c", "d", "e", "f", "g"];
        assert!(all.iter().all(|tenant| made(now, tenant)));
        assert!(made(now, "late") && made(now, "late"), "all others' are in use");
        let later = now + UNUSED;
        let used = all.iter().filter(|tenant| **tenant != "c");
        assert!(used.clone().all(|tenant| !made(later - Duration::from_secs(1), tenant)));
        assert!(made(later, "late") && !made(later, "late"), "one was not in use for long");
        assert!(used.clone().all(|tenant| !made(later, tenant)), "and it was that one which left");
        assert!(made(later, "c"));
    }

    #[test]
    fn what_cannot_be_made_is_asked_for_again() {
        let kept = Kept::new(BYTES_MAX);
        let fails = || Err::<String, _>("no");
        assert_eq!(kept.get_or(None, "a".into(), String::clone, fails), Err("no"));
        assert!(ask(&kept, None, "a").1);
    }

    #[test]
    fn a_small_vocabulary_keeps_nothing_and_a_large_one_a_mebibyte() {
        assert_eq!((room(1000), room(4096), room(150_000)), (0, 4096 * 64, BYTES_MAX));
    }
}
