//! What tenants have used, per model, and the ledger that keeps it.
//!
//! Reading order: this file (what is counted), `line` (how the ledger writes it), `file` (the
//! files), `ledger` (who writes and when), `read` (what a ledger adds up to).

mod file;
mod ledger;
mod line;
pub mod read;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::{AddAssign, Sub};
use std::sync::{Mutex, MutexGuard, PoisonError};

use roundhouse_types::{ModelId, TenantName};
use serde::{Deserialize, Serialize};

pub use ledger::{Detail, Durable, LedgerConfig, Sync};
pub(crate) use ledger::{Ledger, RequestFacts};

/// Parts of the map that are locked apart.
const SHARDS: usize = 16;
/// Pairs of tenant and model in each of them; what comes on top is counted for its tenant and no
/// model.
const PAIRS: usize = 4096;
/// Tenants for which that is done in each of them; what comes on top is counted for nobody, so that
/// no flood of names takes memory without end.
const TENANTS: usize = 1024;

/// Sums of what was used. All of them only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Requests that were admitted.
    pub requests: u64,
    /// Those of them that failed or whose answer did not go out to its end.
    pub failed: u64,
    /// Tokens of prompts and inputs.
    pub tokens_in: u64,
    /// Of these, tokens that were not computed, since an earlier prompt had begun alike.
    pub tokens_cached: u64,
    /// Tokens generated.
    pub tokens_out: u64,
    /// Bytes of request bodies.
    pub bytes_in: u64,
    /// Bytes of response bodies.
    pub bytes_out: u64,
    /// Time in which devices and workers computed, in microseconds: of a step that several share,
    /// each its part by tokens.
    pub compute_us: u64,
    /// Time that requests waited for loads, in milliseconds.
    pub load_ms: u64,
    /// Bytes that loads begun for it brought from stores.
    pub bytes_fetched: u64,
    /// Bytes resident on devices times seconds; what several models hold is split among them.
    pub device_byte_seconds: u64,
    /// The same of copies in the host's memory.
    pub host_byte_seconds: u64,
}

/// Whose usage, and of what.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The tenant; absent where nobody was asked and the target names none.
    pub tenant: Option<TenantName>,
    /// The model; absent where none was reached.
    pub model: Option<ModelId>,
}

/// Where something is resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residence {
    /// On a device.
    Device,
    /// In the host's memory, as a copy.
    Host,
}

/// What was used since the process began. Shared by requests and the ledger; each locks one
/// part of it for as long as a sum takes.
///
/// Of every pair, what the ledger was given is never more than what was used, and the ledger's lines
/// together are what it was given.
pub(crate) struct Usage {
    shards: Vec<Mutex<HashMap<Key, Sums>>>,
    hasher: RandomState,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    used: Totals,
    /// What of it is in lines of the ledger, or on its way into one.
    given: Totals,
}

impl Usage {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    /// Adds to a pair's sums; `given` says whether a line of the ledger's own has it.
    pub(crate) fn add(&self, key: &Key, totals: Totals, given: bool) {
        let index = self.index(key);
        let mut shard = self.shard(index);
        if let Some(sums) = shard.get_mut(key) {
            return sums.add(totals, given);
        }
        let of_tenant = Key { tenant: key.tenant.clone(), model: None };
        let key = if shard.len() < PAIRS {
            key.clone()
        } else if shard.len() < PAIRS + TENANTS || shard.contains_key(&of_tenant) {
            of_tenant
        } else {
            Key { tenant: None, model: None }
        };
        shard.entry(key).or_default().add(totals, given);
    }

    /// Takes back that a line has it: the line will not be written.
    pub(crate) fn take_back(&self, key: &Key, totals: Totals) {
        let of_tenant = Key { tenant: key.tenant.clone(), model: None };
        let nobody = Key { tenant: None, model: None };
        let index = self.index(key);
        let mut shard = self.shard(index);
        // Nothing is ever removed, so the first of them that is there is the one that it was added to.
        let key = [key, &of_tenant].into_iter().find(|key| shard.contains_key(key));
        let key = key.unwrap_or(&nobody);
        if let Some(sums) = shard.get_mut(key) {
            sums.given = sums.given - totals;
        }
    }

    /// What of all pairs the ledger has not been given; from now on it has.
    pub(crate) fn give(&self) -> Vec<(Key, Totals)> {
        let mut news = Vec::new();
        for index in 0..SHARDS {
            for (key, sums) in &mut *self.shard(index) {
                let new = sums.used - sums.given;
                if new != Totals::default() {
                    sums.given = sums.used;
                    news.push((key.clone(), new));
                }
            }
        }
        news
    }

    /// All sums, by tenant and model.
    pub(crate) fn sums(&self) -> Vec<(Key, Totals)> {
        let mut all: HashMap<Key, Totals> = HashMap::new();
        for index in 0..SHARDS {
            for (key, sums) in &*self.shard(index) {
                // Nobody's are in several parts.
                *all.entry(key.clone()).or_default() += sums.used;
            }
        }
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    fn index(&self, key: &Key) -> usize {
        usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default()
    }

    fn shard(&self, index: usize) -> MutexGuard<'_, HashMap<Key, Sums>> {
        // A panic while it was held leaves sums behind, which are still good.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sums {
    fn add(&mut self, totals: Totals, given: bool) {
        self.used += totals;
        if given {
            self.given += totals;
        }
    }
}

impl Totals {
    /// Resident bytes for some time.
    pub fn resident(residence: Residence, byte_seconds: u64) -> Self {
        match residence {
            Residence::Device => Self { device_byte_seconds: byte_seconds, ..Self::default() },
            Residence::Host => Self { host_byte_seconds: byte_seconds, ..Self::default() },
        }
    }

    /// Both, field by field.
    fn with(self, other: Self, each: fn(u64, u64) -> u64) -> Self {
        Self {
            requests: each(self.requests, other.requests),
            failed: each(self.failed, other.failed),
            tokens_in: each(self.tokens_in, other.tokens_in),
            tokens_cached: each(self.tokens_cached, other.tokens_cached),
            tokens_out: each(self.tokens_out, other.tokens_out),
            bytes_in: each(self.bytes_in, other.bytes_in),
            bytes_out: each(self.bytes_out, other.bytes_out),
            compute_us: each(self.compute_us, other.compute_us),
            load_ms: each(self.load_ms, other.load_ms),
            bytes_fetched: each(self.bytes_fetched, other.bytes_fetched),
            device_byte_seconds: each(self.device_byte_seconds, other.device_byte_seconds),
            host_byte_seconds: each(self.host_byte_seconds, other.host_byte_seconds),
        }
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        *self = self.with(other, u64::saturating_add);
    }
}

impl Sub for Totals {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub)
    }
}
