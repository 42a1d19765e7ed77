//! Whose turn it is among those that wait.

use std::cmp::Reverse;
use std::sync::Arc;

use roundhouse_types::{Spent, TenantName};

use crate::account::{Account, Claim};

/// What decides who goes first, beside who came first.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    pub(crate) account: Arc<Account>,
    /// Where its part of the steps is added beside.
    pub(crate) spent: Option<Spent>,
    /// Its priority, and what it has risen.
    pub(crate) class: u8,
    /// How often one of a higher class was let in since it rose last.
    overtaken: u32,
    /// Whose prefixes it uses; everybody's where nobody is named.
    pub(crate) prefixes_of: Option<TenantName>,
}

/// Overtaken so often by a higher class, it rises by one.
const RISES_AFTER: u32 = 16;

impl Turn {
    /// The same, with what it takes added to `spent` too.
    pub(crate) fn spending(self, spent: Option<Spent>) -> Self {
        Self { spent, ..self }
    }

    pub(crate) fn new(account: Arc<Account>, priority: u8) -> Self {
        Self { account, spent: None, class: priority, overtaken: 0, prefixes_of: None }
    }

    /// The turn of work on somebody's behalf.
    pub(crate) fn of(account: Arc<Account>, claim: &Claim) -> Self {
        let prefixes_of = claim.tenant.clone().filter(|_| claim.own_prefixes);
        let turn = Self { prefixes_of, ..Self::new(account, claim.priority) };
        turn.spending(claim.spent.clone())
    }

    /// Another one was let in while it waits.
    pub(crate) fn passed_by(&mut self, class: u8) {
        if class <= self.class {
            return;
        }
        self.overtaken += 1;
        if self.overtaken == RISES_AFTER {
            self.overtaken = 0;
            self.class += 1;
        }
    }

    /// The least goes first: the highest class, then whose tenant had the least, with what was
    /// `promised` to it since.
    pub(crate) fn rank(&self, promised: &Promised) -> (Reverse<u8>, u64) {
        let of_it = promised.0.iter().find(|(account, _)| Arc::ptr_eq(account, &self.account));
        let promised = of_it.map_or(0, |(_, time)| *time);
        (Reverse(self.class), self.account.served().saturating_add(promised))
    }
}

/// What tenants will be charged for those who were let in and have not run.
#[derive(Debug, Default)]
pub(crate) struct Promised(Vec<(Arc<Account>, u64)>);

impl Promised {
    /// Adds what one that was let in will take.
    pub(crate) fn add(&mut self, turn: &Turn, nanoseconds: u64) {
        let time = turn.account.weighed(nanoseconds);
        match self.0.iter_mut().find(|(account, _)| Arc::ptr_eq(account, &turn.account)) {
            Some((_, sum)) => *sum = sum.saturating_add(time),
            None => self.0.push((Arc::clone(&turn.account), time)),
        }
    }
}
