//! Whose account is whose.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use roundhouse_types::TenantName;

use super::standing::{Charge, Fact, Now, Standing, Today};
use super::{Estimate, Levels, Limits, QuotaRules, Refused};
use crate::metrics::Meters;

/// Parts of the table that are locked apart.
const SHARDS: usize = 16;
/// Accounts of tenants that are not named, in each of them: a million names that somebody makes up
/// take some megabytes in all.
const ACCOUNTS: usize = 4096;
/// How many accounts are looked at for one that may be forgotten.
const LOOKED_AT: usize = 8;

/// The accounts of all tenants. Shared by the requests; each locks one account for some tens of
/// nanoseconds, twice.
///
/// 1. A tenant with a name in the rules keeps its account as long as it is named; after that it is
///    one of the others.
/// 2. Of the others 65,536 have one; where one more comes, that goes of a
///    few which has taken least today, and none with requests under way. If all have, the newcomer shares
///    one account with those like it.
/// 3. An admission is settled exactly once, also where its request is dropped.
pub struct Quotas {
    rules: RwLock<Arc<Rules>>,
    shards: Vec<Mutex<Shard>>,
    /// Keyed by chance, so that nobody can make names that meet.
    hasher: RandomState,
    /// Of those for whom there was no place.
    crowd: Arc<Account>,
    began: Instant,
}

/// What holds now; replaced as a whole.
#[derive(Default)]
struct Rules {
    named: HashMap<TenantName, Named>,
    others: Limits,
    meters: Arc<Meters>,
}

struct Named {
    limits: Limits,
    account: Arc<Account>,
    meters: Arc<Meters>,
}

#[derive(Default)]
struct Account(Mutex<Standing>);

#[derive(Default)]
struct Shard {
    accounts: HashMap<u64, Arc<Account>>,
    /// The same keys, for the hand that goes round.
    keys: Vec<u64>,
    hand: usize,
}

/// An admitted request's claim. Dropped, it is settled as one that took nothing.
pub struct Ticket {
    claim: Option<Claim>,
    meters: Arc<Meters>,
    began: Instant,
    levels: Levels,
}

struct Claim {
    account: Arc<Account>,
    charge: Charge,
}

impl Quotas {
    /// A table where nobody has taken anything.
    pub fn new(rules: QuotaRules) -> Self {
        let quotas = Self {
            rules: RwLock::default(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            crowd: Arc::default(),
            began: Instant::now(),
        };
        quotas.apply(rules);
        quotas
    }

    /// Changes the limits. What tenants have taken stays; requests under way are not touched.
    pub fn apply(&self, rules: QuotaRules) {
        let mut held = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        let named = rules.named.into_iter().map(|(name, limits)| {
            let before = held.named.get(&name).map(|named| named.account.clone());
            let account = before.or_else(|| self.forget(&name)).unwrap_or_default();
            let meters = Arc::new(Meters::of(name.as_str()));
            (name, Named { limits, account, meters })
        });
        let named: HashMap<_, _> = named.collect();
        for (name, gone) in held.named.iter().filter(|(name, _)| !named.contains_key(*name)) {
            self.remember(name, &gone.account);
        }
        *held =
            Arc::new(Rules { named, others: rules.others, meters: Arc::new(Meters::of("other")) });
    }

    /// Whether a tenant is one that the rules name.
    pub fn names(&self, tenant: &TenantName) -> bool {
        self.rules().named.contains_key(tenant)
    }

    /// Charges a tenant's request by estimate. Tenants without a name are one.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn admit(
        &self,
        tenant: Option<&TenantName>,
        estimate: Estimate,
    ) -> Result<Ticket, Box<Refused>> {
        let rules = self.rules();
        let (limits, account, meters) = match tenant.and_then(|name| rules.named.get(name)) {
            Some(named) => (&named.limits, Some(named.account.clone()), &named.meters),
            None if rules.others.is_none() => (&rules.others, None, &rules.meters),
            None => (&rules.others, Some(self.account(tenant)), &rules.meters),
        };
        let (meters, began) = (meters.clone(), self.began);
        let Some(account) = account else {
            meters.admitted();
            return Ok(Ticket { claim: None, meters, began, levels: Levels::default() });
        };
        let now = now(began);
        let (charge, levels) = {
            let mut standing = account.lock();
            let charge = standing.admit(limits, estimate, now).inspect_err(|refused| {
                meters.refused(refused.limit);
            })?;
            (charge, standing.levels(limits, now))
        };
        meters.admitted();
        Ok(Ticket { claim: Some(Claim { account, charge }), meters, began, levels })
    }

    /// Adds what a tenant took earlier today, before this process began.
    pub fn restore(
        &self,
        tenant: Option<&TenantName>,
        requests: u64,
        tokens: u64,
        compute: Duration,
    ) {
        let rules = self.rules();
        let account = match tenant.and_then(|name| rules.named.get(name)) {
            Some(named) => named.account.clone(),
            None if rules.others.is_none() => return,
            None => self.account(tenant),
        };
        account.lock().restore(Today::new(requests, tokens, compute), now(self.began));
    }

    fn rules(&self) -> Arc<Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn key(&self, tenant: Option<&TenantName>) -> u64 {
        self.hasher.hash_one(tenant.map(TenantName::as_str))
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Shard> {
        let index = usize::try_from(key % SHARDS as u64).unwrap_or_default();
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The account of a tenant that is not named.
    fn account(&self, tenant: Option<&TenantName>) -> Arc<Account> {
        let key = self.key(tenant);
        let mut shard = self.shard(key);
        if let Some(account) = shard.accounts.get(&key) {
            return account.clone();
        }
        if shard.accounts.len() >= ACCOUNTS && !shard.make_room() {
            return self.crowd.clone();
        }
        let account = Arc::<Account>::default();
        shard.accounts.insert(key, account.clone());
        shard.keys.push(key);
        account
    }

    /// Takes a tenant's account out of those that are not named.
    fn forget(&self, tenant: &TenantName) -> Option<Arc<Account>> {
        let key = self.key(Some(tenant));
        let mut shard = self.shard(key);
        let account = shard.accounts.remove(&key)?;
        shard.keys.retain(|other| *other != key);
        Some(account)
    }

    /// Keeps the account of a tenant that is not named any more: it may be again, on the same day.
    fn remember(&self, tenant: &TenantName, account: &Arc<Account>) {
        let key = self.key(Some(tenant));
        let mut shard = self.shard(key);
        if shard.accounts.len() >= ACCOUNTS && !shard.make_room() {
            return;
        }
        if shard.accounts.insert(key, account.clone()).is_none() {
            shard.keys.push(key);
        }
    }

    /// Accounts of tenants that are not named.
    #[cfg(test)]
    pub(super) fn accounts(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().accounts.len()).sum()
    }
}

impl Shard {
    /// Forgets one account of the next few: the one that has taken least today.
    fn make_room(&mut self) -> bool {
        let count = self.keys.len();
        let places = (0..LOOKED_AT.min(count)).map(|step| (self.hand + step) % count);
        let candidates = places.filter_map(|place| {
            let account = &self.accounts[&self.keys[place]];
            // Somebody who is just being admitted holds it.
            let is_held = Arc::strong_count(account) > 1;
            account.lock().worth().filter(|_| !is_held).map(|worth| (worth, place))
        });
        let least = candidates.min();
        self.hand = (self.hand + LOOKED_AT) % count.max(1);
        let Some((_, place)) = least else {
            return false;
        };
        let key = self.keys.swap_remove(place);
        self.accounts.remove(&key);
        true
    }
}

impl Account {
    fn lock(&self) -> MutexGuard<'_, Standing> {
        // A panic while it was held leaves sums behind, which are still good.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// How its tenant stands with it.
    pub fn levels(&self) -> Levels {
        self.levels
    }

    /// Puts fact in the place of the estimate.
    pub fn settle(mut self, tokens_in: u64, tokens_out: u64, compute: Duration) {
        self.meters.took(tokens_in, tokens_out, compute);
        self.end(Fact { tokens_in, tokens_out, compute });
    }

    /// Takes it back, as if its request had not come.
    pub fn withdraw(mut self) {
        if let Some(Claim { account, charge }) = self.claim.take() {
            account.lock().withdraw(charge, now(self.began));
        }
    }

    fn end(&mut self, fact: Fact) {
        if let Some(Claim { account, charge }) = self.claim.take() {
            account.lock().settle(charge, fact, now(self.began));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.end(Fact::default());
    }
}

fn now(began: Instant) -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { since: began.elapsed(), wall }
}
