//! Admission and settlement of a request: its tenant's limits, and what it used.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use roundhouse_types::{Bytes, ModelId, TenantName};
use uuid::Uuid;

use crate::caller::Caller;
use crate::error::Error;
use crate::quota::{Estimate, Levels, QuotaRules, Quotas, Refused, Ticket};
use crate::usage::{
    Durable, Key, Ledger, LedgerConfig, RequestFacts, Residence, Totals, Usage, read,
};

/// Tenants' limits and usage. Shared by all requests.
pub struct Accounts {
    quotas: Quotas,
    usage: Arc<Usage>,
    ledger: Option<Ledger>,
}

/// An admitted request. Settled once, when it is known what it took; dropped before, it is taken
/// to have taken nothing.
pub struct Visit {
    accounts: Arc<Accounts>,
    ticket: Ticket,
    tenant: Option<TenantName>,
    /// Whether somebody knows the tenant: it said who it is, or the settings name it.
    is_known: bool,
    request_id: Uuid,
    credential: Option<Arc<str>>,
    from: SystemTime,
}

/// What a request took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The model that took it; absent where none did.
    pub model: Option<ModelId>,
    /// Whether it was answered to the end.
    pub complete: bool,
    /// Tokens of prompts and inputs.
    pub tokens_in: u64,
    /// Of these, tokens that were not computed.
    pub tokens_cached: u64,
    /// Tokens generated.
    pub tokens_out: u64,
    /// Bytes of its body.
    pub bytes_in: u64,
    /// Bytes of its answer.
    pub bytes_out: u64,
    /// Time in which devices and workers computed.
    pub compute: Duration,
    /// Time that it waited for a load.
    pub load: Duration,
}

impl Accounts {
    /// Without a ledger.
    pub fn new(rules: QuotaRules) -> Self {
        Self { quotas: Quotas::new(rules), usage: Arc::new(Usage::new()), ledger: None }
    }

    /// With a ledger; what tenants used earlier today by its lines counts against their daily
    /// budgets. Blocks while it reads these.
    ///
    /// # Errors
    /// When the ledger's file cannot be opened, or another process writes it.
    pub fn open(rules: QuotaRules, ledger: LedgerConfig) -> Result<Self, Error> {
        let path = ledger.path.clone();
        let accounts = Self::new(rules);
        let ledger = Ledger::open(ledger, accounts.usage.clone())?;
        for (key, totals) in read::today(&path)?.sums {
            let tokens = totals.tokens_in.saturating_add(totals.tokens_out);
            let compute = Duration::from_micros(totals.compute_us);
            accounts.quotas.restore(key.tenant.as_ref(), totals.requests, tokens, compute);
        }
        Ok(Self { ledger: Some(ledger), ..accounts })
    }

    /// Changes the limits. What tenants have taken stays; requests under way are not touched.
    pub fn apply(&self, rules: QuotaRules) {
        self.quotas.apply(rules);
    }

    /// Admits a request to a model, charged by estimate. Where nobody is asked who they are, the
    /// tenant is the first segment of the target.
    ///
    /// # Errors
    /// The limit that its tenant has reached.
    pub fn admit(
        self: &Arc<Self>,
        caller: &Caller,
        model: &ModelId,
        request_id: Uuid,
        estimate: Estimate,
    ) -> Result<Visit, Box<Refused>> {
        let tenant = caller.tenant.clone().or_else(|| owner(model));
        self.enter(tenant, caller, request_id, estimate)
    }

    /// Admits a request to no model, such as one for a list.
    ///
    /// # Errors
    /// The limit that its tenant has reached.
    pub fn admit_to_none(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: Uuid,
    ) -> Result<Visit, Box<Refused>> {
        self.enter(caller.tenant.clone(), caller, request_id, Estimate::default())
    }

    fn enter(
        self: &Arc<Self>,
        tenant: Option<TenantName>,
        caller: &Caller,
        request_id: Uuid,
        estimate: Estimate,
    ) -> Result<Visit, Box<Refused>> {
        let ticket = self.quotas.admit(tenant.as_ref(), estimate)?;
        let is_named = || tenant.as_ref().is_some_and(|tenant| self.quotas.names(tenant));
        Ok(Visit {
            accounts: self.clone(),
            ticket,
            is_known: caller.tenant.is_some() || is_named(),
            tenant,
            request_id,
            credential: caller.credential.clone(),
            from: SystemTime::now(),
        })
    }

    /// Counts bytes that were resident for some time, for the owner of the model: the first
    /// segment of its target.
    pub fn resident(&self, model: &ModelId, residence: Residence, byte_seconds: u64) {
        let key = Key { tenant: owner(model), model: Some(model.clone()) };
        self.usage.add(&key, Totals::resident(residence, byte_seconds), false);
    }

    /// Counts bytes that a load brought from a store, for whom it was begun.
    pub fn fetched(&self, tenant: Option<&TenantName>, model: &ModelId, bytes: Bytes) {
        let key = Key { tenant: tenant.cloned(), model: Some(model.clone()) };
        let totals = Totals { bytes_fetched: bytes.0, ..Totals::default() };
        self.usage.add(&key, totals, false);
    }

    /// What was used since the process began, by tenant and model.
    pub fn totals(&self) -> Vec<(Key, Totals)> {
        self.usage.sums()
    }

    /// Writes the last lines of the ledger and ends it. What is settled later is lost. Blocks until
    /// they are on the disk.
    pub fn close(&self) {
        if let Some(ledger) = &self.ledger {
            ledger.close();
        }
    }
}

impl Visit {
    /// How the tenant stands with it.
    pub fn levels(&self) -> Levels {
        self.ticket.levels()
    }

    /// Takes the admission back: the request was not begun, and will come again. It counts nowhere.
    pub fn withdraw(self) {
        self.ticket.withdraw();
    }

    /// Puts fact in the place of the estimate and counts it. What is returned is to be waited for
    /// before the end of the answer goes out.
    pub fn settle(self, facts: Facts) -> Durable {
        self.ticket.settle(facts.tokens_in, facts.tokens_out, facts.compute);
        // Names that somebody made up are not kept.
        let tenant = self.tenant.filter(|_| facts.model.is_some() || self.is_known);
        let key = Key { tenant, model: facts.model };
        let totals = Totals {
            requests: 1,
            failed: u64::from(!facts.complete),
            tokens_in: facts.tokens_in,
            tokens_cached: facts.tokens_cached,
            tokens_out: facts.tokens_out,
            bytes_in: facts.bytes_in,
            bytes_out: facts.bytes_out,
            compute_us: u64::try_from(facts.compute.as_micros()).unwrap_or(u64::MAX),
            load_ms: u64::try_from(facts.load.as_millis()).unwrap_or(u64::MAX),
            ..Totals::default()
        };
        let Some(ledger) = &self.accounts.ledger else {
            self.accounts.usage.add(&key, totals, false);
            return Durable::now();
        };
        let facts = RequestFacts {
            key,
            request_id: self.request_id,
            credential: self.credential,
            from: self.from,
            to: SystemTime::now().max(self.from),
            totals,
        };
        ledger.count(&self.accounts.usage, facts)
    }
}

/// Whose model it is: the first segment of its target; nobody's where it has only one.
fn owner(model: &ModelId) -> Option<TenantName> {
    let (first, _) = model.target.as_str().split_once('/')?;
    first.parse().ok()
}
