//! Memory that answers take while they are made and sent that tell of texts' tokens, a tokenizer's or a
//! model's of its prompts: bounded for all together, as it stands in no ledger.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roundhouse_types::{Bytes, TenantName};

use crate::Error;

/// What all of them may take. The largest that is let pass takes half of it.
const ALL: u64 = 256 * 1024 * 1024;

/// Counts the bytes. Shared by all that took some, whose drops give them back.
///
/// 1. No more are taken than there are, and of known tenants none has more than three quarters.
/// 2. A tenant that has none takes no memory.
#[derive(Debug)]
pub(crate) struct Room {
    all: u64,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    taken: u64,
    of_tenants: HashMap<TenantName, u64>,
}

/// Bytes that an answer takes, until all clones of this are dropped. Two of them are equal: it is no
/// part of what is told.
#[derive(Clone, Default)]
pub struct Taken(Option<Arc<Held>>);

struct Held {
    room: Arc<Room>,
    tenant: Option<TenantName>,
    bytes: u64,
}

impl fmt::Debug for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Taken").field(&self.0.as_ref().map(|held| held.bytes)).finish()
    }
}

impl Taken {
    /// Whether it is nothing, so that nobody needs to keep it.
    pub fn is_nothing(&self) -> bool {
        self.0.is_none()
    }
}

impl PartialEq for Taken {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Taken {}

impl Default for Room {
    fn default() -> Self {
        Self { all: ALL, counts: Mutex::default() }
    }
}

impl Room {
    /// Takes so many on behalf of a tenant.
    ///
    /// # Errors
    /// `Overloaded` where they are not free.
    pub(crate) fn take(
        self: &Arc<Self>,
        tenant: Option<&TenantName>,
        bytes: u64,
    ) -> Result<Taken, Error> {
        let mut counts = self.counts();
        let held = tenant.and_then(|tenant| counts.of_tenants.get(tenant)).copied();
        let held = held.unwrap_or_default();
        let is_full = counts.taken.saturating_add(bytes) > self.all;
        let is_greedy = tenant.is_some() && held.saturating_add(bytes) > self.all / 4 * 3;
        if is_full || is_greedy {
            let (needed, taken) = (Bytes(bytes), Bytes(counts.taken));
            return Err(Error::TokensFull { needed, taken, all: Bytes(self.all) });
        }
        counts.taken += bytes;
        if let Some(tenant) = tenant {
            *counts.of_tenants.entry(tenant.clone()).or_default() += bytes;
        }
        let (room, tenant) = (Arc::clone(self), tenant.cloned());
        Ok(Taken(Some(Arc::new(Held { room, tenant, bytes }))))
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counts = self.room.counts();
        counts.taken = counts.taken.saturating_sub(self.bytes);
        let Some(tenant) = &self.tenant else { return };
        if let Some(held) = counts.of_tenants.get_mut(tenant) {
            *held = held.saturating_sub(self.bytes);
            if *held == 0 {
                counts.of_tenants.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_types::ErrorKind;

    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is_and_a_tenant_leaves_some_for_others() {
        let room = Arc::new(Room { all: 100, counts: Mutex::default() });
        let (flood, calm) = ("flood".parse().unwrap(), "calm".parse().unwrap());
        let held: Vec<Taken> = (0..3).map(|_| room.take(Some(&flood), 25).unwrap()).collect();
        let error = room.take(Some(&flood), 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Overloaded);
        let other = room.take(Some(&calm), 25).unwrap();
        assert!(room.take(None, 1).is_err(), "all is taken");
        let again = other.clone();
        drop(other);
        assert!(room.take(Some(&calm), 1).is_err(), "its answer is still being sent");
        drop((held, again));
        let counts = room.counts();
        assert!(counts.taken == 0 && counts.of_tenants.is_empty(), "{counts:?}");
    }
}
