//! Compiled forms that are likely to be asked for again, within bounds.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use roundhouse_types::TenantName;

/// What a compiled form takes, by the length of its text: a measured 87 KiB for any JSON object, 163
/// for five properties in 550 bytes, 1.1 MiB for 300 in 12,000.
const BYTES_EACH: u64 = 128 << 10;
const BYTES_PER_BYTE: u64 = 64;
/// More than this is kept of no tokenizer, and no more than so much per token of it: what is charged for
/// it is little beside such a model.
const BYTES_MAX: u64 = 1 << 20;
const BYTES_PER_TOKEN: u64 = 64;

/// Values by what they were made of, those asked for last. Immutable but for its order.
///
/// 1. What one tenant asked for answers no other: how long an answer takes tells nobody what others ask.
/// 2. The values are charged with at most `most` bytes together.
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
        if let Some(found) = self.find(tenant, &text, &copy) {
            return Ok(found);
        }
        let made = make()?;
        let own = copy(&made);
        self.keep(Entry { tenant: tenant.cloned(), text, value: made });
        Ok(own)
    }

    fn find(&self, tenant: Option<&TenantName>, text: &str, copy: impl Fn(&T) -> T) -> Option<T> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |entry: &Entry<T>| entry.tenant.as_ref() == tenant && entry.text == text;
        let entry = entries.iter().position(is_it).and_then(|at| entries.remove(at))?;
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
        while entries.iter().map(|entry| charge(&entry.text)).sum::<u64>() > self.most {
            gone.extend(entries.pop_back());
        }
        drop(entries);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Asks for a text; what it answers with, and whether it was made for that.
    fn ask(kept: &Kept<String>, tenant: Option<&str>, text: &str) -> (String, bool) {
        let tenant = tenant.map(|name| name.parse().unwrap());
        let made = Cell::new(false);
        let value = kept.get_or(tenant.as_ref(), text.to_owned(), String::clone, || {
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
