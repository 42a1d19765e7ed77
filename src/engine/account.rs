//! On whose behalf work is done, and how much of the device that has had.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use roundhouse_types::{Spent, TenantName};

use crate::scheduler::Turn;

/// On whose behalf work is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Whose work it is; all work of nobody in particular is one tenant's.
    pub tenant: Option<TenantName>,
    /// What the tenant is to get of a device, relative to others that want it too, in thousandths.
    pub share: NonZeroU32,
    /// Higher goes first in a model's queue. Work that was overtaken by higher for long enough
    /// rises.
    pub priority: u8,
    /// Whether it uses only what was computed of prefixes on the same tenant's behalf: others'
    /// would tell it, by the time an answer takes, how their prompts begin.
    pub own_prefixes: bool,
    /// Where the work's part of the steps is added, for whoever accounts for its request.
    pub spent: Option<Spent>,
}

/// An ordinary share.
const WHOLE: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");

impl Default for Claim {
    fn default() -> Self {
        Self { tenant: None, share: WHOLE, priority: 0, own_prefixes: false, spent: None }
    }
}

/// What a decoded token counts, in prompt tokens: it is computed in a step of its own, which reads
/// all weights (Sheng et al., "Fairness in Serving Large Language Models", take the same).
pub(crate) const DECODED: u64 = 2;

/// Shares are split this finely.
const FINE: u64 = 1024;

/// Accounts of tenants without work that are remembered.
const REMEMBERED: usize = 1024;

/// What one tenant had of a device. Its work holds it.
#[derive(Debug)]
pub(crate) struct Account {
    share: AtomicU32,
    /// Nanoseconds of the device by the share: virtual time.
    served: AtomicU64,
}

impl Account {
    #[cfg(test)]
    pub(crate) fn idle() -> Arc<Self> {
        Arc::new(Self { share: AtomicU32::new(WHOLE.get()), served: AtomicU64::new(0) })
    }

    /// How much it had, by its share.
    pub(crate) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// In thousandths; never 0.
    pub(crate) fn share(&self) -> u64 {
        u64::from(self.share.load(Ordering::Relaxed)).max(1)
    }

    /// Time of the device as it counts here.
    pub(crate) fn weighed(&self, nanoseconds: u64) -> u64 {
        nanoseconds.saturating_mul(u64::from(WHOLE.get())) / self.share()
    }

    pub(crate) fn charge(&self, nanoseconds: u64) {
        let sum = self.served().saturating_add(self.weighed(nanoseconds));
        self.served.store(sum, Ordering::Relaxed);
    }
}

/// The accounts of all tenants that have work on a device, or had lately. Changed by the lane's
/// thread alone: a virtual token counter over measured time, so that tenants are served by their
/// shares whatever their requests cost, and across all models of the device.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    all: HashMap<Option<TenantName>, Arc<Account>>,
    /// The least that any tenant with work had when one was asked for last: where one that
    /// comes back begins. Idling earns nothing.
    floor: u64,
}

impl Accounts {
    /// The account that work of `claim` is charged to while it holds it.
    pub(crate) fn open(&mut self, claim: &Claim) -> Arc<Account> {
        let busy = |account: &&Arc<Account>| Arc::strong_count(account) > 1;
        match self.all.values().filter(busy).map(|account| account.served()).min() {
            Some(least) => self.floor = self.floor.max(least),
            // The device idles: nobody owes anybody anything.
            None => self.all.clear(),
        }
        if self.all.len() >= REMEMBERED {
            let floor = self.floor;
            self.all.retain(|_, account| busy(&&*account) || account.served() > floor);
        }
        let account = self.all.entry(claim.tenant.clone()).or_insert_with(|| {
            Arc::new(Account { share: AtomicU32::default(), served: AtomicU64::new(self.floor) })
        });
        if Arc::strong_count(account) == 1 {
            account.served.fetch_max(self.floor, Ordering::Relaxed);
        }
        account.share.store(claim.share.get(), Ordering::Relaxed);
        Arc::clone(account)
    }
}

/// Splits what a step took among those whose rows it had, by what each row counts.
pub(crate) fn split(elapsed: Duration, rows: &[(&Turn, u64)]) {
    let whole: u64 = rows.iter().map(|(_, count)| count).sum();
    let nanoseconds = elapsed.as_nanos();
    for (turn, count) in rows {
        let part = nanoseconds * u128::from(*count) / u128::from(whole.max(1));
        let part = u64::try_from(part).unwrap_or(u64::MAX);
        turn.account.charge(part);
        if let Some(spent) = &turn.spent {
            spent.computed(Duration::from_nanos(part));
        }
    }
}

/// How much more of its lane an engine gets than one that works for one tenant alone, in
/// thousandths: its tenants' shares, each split evenly among the engines where the tenant has
/// work. So a tenant with ten models gets no more of a device than one with one.
pub(crate) fn weight<'a>(
    own: &[Arc<Account>],
    all: impl Iterator<Item = &'a [Arc<Account>]> + Clone,
) -> u64 {
    let engines = |account: &Arc<Account>| {
        let works_for = |those: &&[Arc<Account>]| those.iter().any(|it| Arc::ptr_eq(it, account));
        all.clone().filter(works_for).count().max(1) as u64
    };
    let parts = own.iter().map(|account| account.share() * FINE / engines(account));
    (parts.sum::<u64>() / FINE).max(1)
}

/// Adds an account to those that are known, once.
pub(crate) fn add(known: &mut Vec<Arc<Account>>, account: &Arc<Account>) {
    if !known.iter().any(|it| Arc::ptr_eq(it, account)) {
        known.push(Arc::clone(account));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(tenant: &str, share: u32) -> Claim {
        let share = NonZeroU32::new(share).unwrap();
        Claim { tenant: Some(tenant.parse().unwrap()), share, ..Claim::default() }
    }

    #[test]
    fn whoever_comes_back_begins_at_the_present_with_neither_credit_nor_debt() {
        let mut accounts = Accounts::default();
        let busy = accounts.open(&claim("busy", 1000));
        busy.charge(5_000);
        let newcomer = accounts.open(&claim("new", 1000));
        assert_eq!(newcomer.served(), 5_000);
        newcomer.charge(1_000);
        drop(newcomer);
        busy.charge(10_000);
        assert_eq!(accounts.open(&claim("new", 1000)).served(), 15_000);
        // More than the least: that is its own.
        let ahead = accounts.open(&claim("ahead", 1000));
        ahead.charge(7_000);
        drop(ahead);
        assert_eq!(accounts.open(&claim("ahead", 1000)).served(), 22_000);
        drop(busy);
        assert_eq!(accounts.open(&claim("ahead", 1000)).served(), 15_000, "all had idled");
    }

    #[test]
    fn a_step_is_charged_by_what_its_rows_count_and_by_shares() {
        let mut accounts = Accounts::default();
        let (a, b) = (accounts.open(&claim("a", 1000)), accounts.open(&claim("b", 2000)));
        let spent = Spent::default();
        let told = Turn::new(a.clone(), 0).spending(Some(spent.clone()));
        let (other, untold) = (Turn::new(b.clone(), 0), Turn::new(a.clone(), 0));
        split(Duration::from_nanos(900), &[(&told, 2), (&other, 100), (&untold, 198)]);
        assert_eq!((a.served(), b.served()), (600, 150));
        assert_eq!(spent.compute(), Duration::from_nanos(6), "its own part, whatever the share");
    }

    #[test]
    fn a_tenant_with_many_models_gets_no_more_than_one_with_one() {
        let mut accounts = Accounts::default();
        let (a, b) = (accounts.open(&claim("a", 1000)), accounts.open(&claim("b", 1000)));
        let engines = [vec![a.clone(), b.clone()], vec![a.clone()], vec![a.clone()], vec![b]];
        let all = || engines.iter().map(Vec::as_slice);
        let weights: Vec<u64> = engines.iter().map(|own| weight(own, all())).collect();
        assert_eq!(weights, [833, 333, 333, 500]);
    }

    #[test]
    fn accounts_of_many_tenants_are_forgotten_when_they_had_no_more_than_others() {
        let mut accounts = Accounts::default();
        let _busy = accounts.open(&claim("busy", 1000));
        for tenant in 0..3 * REMEMBERED {
            accounts.open(&claim(&tenant.to_string(), 1000));
        }
        assert!(accounts.all.len() <= REMEMBERED);
    }
}
