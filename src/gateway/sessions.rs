//! Stateful sessions: ids that outlive a request.
//!
//! A session holds nothing of a model. It is a promise that its requests go to the target and variant that
//! it was opened at; what was said before comes with each request, and is not computed again where the
//! prompt's beginning is still in the model's memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use roundhouse_types::{ErrorKind, Failure, ModelId, RetryHint, TenantName};
use tokio::time::Instant;

use crate::metrics;

/// Bounds of sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionLimits {
    /// How long a session lasts from its opening.
    pub expiration: Duration,
    /// Sessions that may be open, in all.
    pub most: usize,
    /// Of one tenant.
    pub most_per_tenant: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            // What SageMaker's containers take where nothing is said.
            expiration: Duration::from_secs(1200),
            most: 65_536,
            most_per_tenant: 16_384,
        }
    }
}

/// All open sessions of a server. Owned by the gateway's state.
///
/// 1. At most [`SessionLimits::most`] are open, and [`SessionLimits::most_per_tenant`] of a tenant.
/// 2. Every session is in `by_id` and `in_order`, and counted in `of_tenants`, or in none of them.
/// 3. A session is found by the tenant that opened it alone: for all others there is none.
pub struct Sessions {
    limits: Option<SessionLimits>,
    /// Held for look-ups and additions.
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    by_id: HashMap<Arc<str>, Entry>,
    /// Ids in the order of their opening, which is that of their ends.
    in_order: BTreeMap<u64, Arc<str>>,
    of_tenants: HashMap<TenantName, usize>,
    opened: u64,
}

struct Entry {
    number: u64,
    until: Instant,
    tenant: Option<TenantName>,
    bound: Bound,
}

/// What a session is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bound {
    /// As its opener named it: maybe an alias.
    pub(crate) model: ModelId,
    /// The variant that answers.
    pub(crate) variant: Arc<str>,
}

impl Sessions {
    /// Sessions within these limits; `None` where there shall be none.
    pub fn new(limits: Option<SessionLimits>) -> Self {
        Self { limits, table: Mutex::default() }
    }

    /// Whether there are any to be had.
    pub(crate) fn are_on(&self) -> bool {
        self.limits.is_some()
    }

    /// Opens a session under an id that nobody has; says when it ends.
    ///
    /// # Errors
    /// `Throttled` where the tenant has too many, `Overloaded` where all have.
    pub(crate) fn open(
        &self,
        id: &str,
        tenant: Option<&TenantName>,
        bound: Bound,
    ) -> Result<SystemTime, Failure> {
        let limits = self.limits.as_ref().ok_or_else(unknown)?;
        let mut table = self.table();
        let now = Instant::now();
        table.expire(now);
        let later = |kind, message: String, first: Option<Instant>| {
            let wait = first.map_or(limits.expiration, |until| until - now);
            Err(Failure::new(kind, message).with_retry(RetryHint::After(wait)))
        };
        let of_tenant = tenant.and_then(|tenant| table.of_tenants.get(tenant)).copied();
        if of_tenant.is_some_and(|open| open >= limits.most_per_tenant) {
            let message =
                format!("{} sessions are open: the most of a tenant", limits.most_per_tenant);
            return later(ErrorKind::Throttled, message, None);
        }
        if table.by_id.len() >= limits.most {
            let first = table.in_order.values().next().and_then(|id| table.by_id.get(id));
            let first = first.map(|entry| entry.until);
            return later(ErrorKind::Overloaded, "too many sessions are open".to_owned(), first);
        }
        table.opened += 1;
        let (number, id): (_, Arc<str>) = (table.opened, id.into());
        let until = now + limits.expiration;
        table.in_order.insert(number, id.clone());
        table.by_id.insert(id, Entry { number, until, tenant: tenant.cloned(), bound });
        if let Some(tenant) = tenant {
            *table.of_tenants.entry(tenant.clone()).or_default() += 1;
        }
        metrics::session_opened();
        Ok(SystemTime::now() + limits.expiration)
    }

    /// What a tenant's session is bound to.
    ///
    /// # Errors
    /// `InvalidRequest` where it has none of this id.
    pub(crate) fn find(&self, id: &str, tenant: Option<&TenantName>) -> Result<Bound, Failure> {
        let mut table = self.table();
        table.expire(Instant::now());
        let entry = table.by_id.get(id).filter(|entry| entry.tenant.as_ref() == tenant);
        entry.map(|entry| entry.bound.clone()).ok_or_else(unknown)
    }

    /// Closes a tenant's session.
    ///
    /// # Errors
    /// `InvalidRequest` where it has none of this id.
    pub(crate) fn close(&self, id: &str, tenant: Option<&TenantName>) -> Result<(), Failure> {
        let mut table = self.table();
        table.expire(Instant::now());
        let is_own = table.by_id.get(id).is_some_and(|entry| entry.tenant.as_ref() == tenant);
        if !is_own {
            return Err(unknown());
        }
        table.remove(id);
        metrics::sessions_ended("closed", 1);
        Ok(())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing that is done under it can leave it half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn expire(&mut self, now: Instant) {
        let mut expired = 0;
        while let Some(id) = self.in_order.values().next().cloned() {
            if self.by_id.get(&id).is_some_and(|entry| entry.until > now) {
                break;
            }
            self.remove(&id);
            expired += 1;
        }
        if expired > 0 {
            metrics::sessions_ended("expired", expired);
        }
    }

    fn remove(&mut self, id: &str) {
        let Some(entry) = self.by_id.remove(id) else { return };
        self.in_order.remove(&entry.number);
        if let Some(tenant) = &entry.tenant
            && let Some(open) = self.of_tenants.get_mut(tenant)
        {
            *open -= 1;
            if *open == 0 {
                self.of_tenants.remove(tenant);
            }
        }
        debug_assert_eq!(self.by_id.len(), self.in_order.len(), "a session is in both or in none");
    }
}

/// What is said of a session that is not there, or another's.
pub(crate) fn unknown() -> Failure {
    let message = "the session is not known: it has expired, was closed, or was never opened for \
                   this caller, endpoint and target";
    Failure::new(ErrorKind::InvalidRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(target: &str) -> Bound {
        let model = ModelId { endpoint: "e".parse().unwrap(), target: target.parse().unwrap() };
        Bound { model, variant: "AllTraffic".into() }
    }

    fn sessions(most: usize, most_per_tenant: usize) -> Sessions {
        let limits = SessionLimits { most, most_per_tenant, ..SessionLimits::default() };
        Sessions::new(Some(limits))
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_when_its_time_is_over_and_leaves_nothing() {
        let (sessions, acme) = (sessions(10, 10), "acme".parse().unwrap());
        sessions.open("a", Some(&acme), bound("t")).unwrap();
        tokio::time::advance(Duration::from_secs(1199)).await;
        assert_eq!(sessions.find("a", Some(&acme)).unwrap(), bound("t"));
        sessions.open("b", Some(&acme), bound("t")).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let error = sessions.find("a", Some(&acme)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(sessions.find("b", Some(&acme)).is_ok());
        sessions.close("b", Some(&acme)).unwrap();
        assert!(sessions.close("b", Some(&acme)).is_err());
        let table = sessions.table();
        assert!(table.by_id.is_empty() && table.in_order.is_empty() && table.of_tenants.is_empty());
    }

    #[tokio::test]
    async fn another_tenants_session_is_none() {
        let (sessions, acme) = (sessions(10, 10), "acme".parse().unwrap());
        sessions.open("a", Some(&acme), bound("t")).unwrap();
        for other in [None, Some(&"evil".parse().unwrap())] {
            let error = sessions.find("a", other).unwrap_err();
            assert_eq!(error.message(), sessions.find("never", other).unwrap_err().message());
            assert!(sessions.close("a", other).is_err());
        }
        assert!(sessions.find("a", Some(&acme)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_and_all_together_have_their_bounds() {
        let sessions = sessions(3, 2);
        let (acme, evil) = ("acme".parse().unwrap(), "evil".parse().unwrap());
        let kind = |id: &str, tenant| {
            sessions.open(id, Some(tenant), bound("t")).map_err(|it| it.kind()).err()
        };
        assert_eq!(kind("1", &acme), None);
        assert_eq!(kind("2", &acme), None);
        assert_eq!(kind("3", &acme), Some(ErrorKind::Throttled));
        assert_eq!(kind("3", &evil), None);
        assert_eq!(kind("4", &evil), Some(ErrorKind::Overloaded));
        sessions.close("1", Some(&acme)).unwrap();
        assert_eq!(kind("4", &evil), None);
        tokio::time::advance(Duration::from_secs(1200)).await;
        assert_eq!(kind("5", &acme), None);
    }
}
