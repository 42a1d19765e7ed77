//! Places of those that wait for an engine, shared by tenants.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roundhouse_types::{Places, TenantName};

/// The places of one engine's waiting queue.
#[derive(Debug)]
pub(crate) struct Queue {
    most: usize,
    /// Held for a look-up and an addition.
    places: Mutex<Places<TenantName>>,
}

/// One of them. Dropped, it is another's.
#[derive(Debug)]
pub(crate) struct Place {
    queue: Arc<Queue>,
    tenant: Option<TenantName>,
}

impl Queue {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, places: Mutex::default() })
    }

    /// A place for a tenant's work; `None` where there is none, or the rest is for others.
    pub(crate) fn take(self: &Arc<Self>, tenant: Option<&TenantName>) -> Option<Place> {
        let is_taken = self.places().take(self.most, tenant);
        is_taken.then(|| Place { queue: Arc::clone(self), tenant: tenant.cloned() })
    }

    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.places().taken()
    }

    fn places(&self) -> MutexGuard<'_, Places<TenantName>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.places().give(self.tenant.as_ref());
    }
}
