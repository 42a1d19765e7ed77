//! What tenants have of an account: sums that are kept, so that nobody walks over ten thousand residents
//! to add them up.

use std::collections::BTreeMap;

use roundhouse_types::{Bytes, ContentId};

use super::HoldingId;

/// What each tenant's residents take, bytes that several residents hold split among them. Owned by an
/// account, told of each holding that a resident takes or gives back.
#[derive(Debug, Default)]
pub(super) struct Shares {
    by_tenant: BTreeMap<String, u64>,
    sharers: BTreeMap<ContentId, Sharers>,
}

/// The residents that hold a content.
#[derive(Debug, Default)]
struct Sharers {
    all: u64,
    by_tenant: BTreeMap<String, u64>,
}

impl Shares {
    pub(super) fn of(&self, tenant: &str) -> Bytes {
        Bytes(self.by_tenant.get(tenant).copied().unwrap_or_default())
    }

    /// A resident of this tenant holds it from now on.
    pub(super) fn took(&mut self, tenant: &str, id: HoldingId, bytes: Bytes) {
        match id {
            HoldingId::Own(_) => self.give(tenant, bytes.0),
            HoldingId::Content(content) => self.split_anew(content, bytes, |sharers| {
                sharers.all += 1;
                *sharers.by_tenant.entry(tenant.to_owned()).or_default() += 1;
            }),
        }
    }

    /// One holds it no more.
    pub(super) fn left(&mut self, tenant: &str, id: HoldingId, bytes: Bytes) {
        match id {
            HoldingId::Own(_) => self.take(tenant, bytes.0),
            HoldingId::Content(content) => self.split_anew(content, bytes, |sharers| {
                sharers.all -= 1;
                let theirs = sharers.by_tenant.get_mut(tenant).expect("it was told when it came");
                *theirs -= 1;
                if *theirs == 0 {
                    sharers.by_tenant.remove(tenant);
                }
            }),
        }
    }

    fn split_anew(&mut self, content: ContentId, bytes: Bytes, change: impl FnOnce(&mut Sharers)) {
        let mut sharers = self.sharers.remove(&content).unwrap_or_default();
        for (tenant, residents) in &sharers.by_tenant {
            self.take(tenant, residents * (bytes.0 / sharers.all));
        }
        change(&mut sharers);
        for (tenant, residents) in &sharers.by_tenant {
            self.give(tenant, residents * (bytes.0 / sharers.all));
        }
        if sharers.all > 0 {
            self.sharers.insert(content, sharers);
        }
    }

    fn give(&mut self, tenant: &str, bytes: u64) {
        match self.by_tenant.get_mut(tenant) {
            Some(theirs) => *theirs += bytes,
            None => drop(self.by_tenant.insert(tenant.to_owned(), bytes)),
        }
    }

    fn take(&mut self, tenant: &str, bytes: u64) {
        let theirs = self.by_tenant.get_mut(tenant);
        let left = theirs.map_or(0, |theirs| {
            *theirs = theirs.checked_sub(bytes).expect("no more leaves than came");
            *theirs
        });
        if left == 0 {
            self.by_tenant.remove(tenant);
        }
    }
}
