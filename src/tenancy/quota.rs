//! How much a tenant may ask for: limits, and who has come how near to them.
//!
//! Reading order: this file (limits and refusals), `standing` (one tenant's account, a pure
//! machine), `table` (whose account is whose).

mod standing;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use roundhouse_types::TenantName;

pub use table::{Quotas, Ticket};

/// Limits of one tenant; what is absent is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// Requests per second, as a token bucket.
    pub requests: Option<Rate>,
    /// Tokens of prompts and inputs per minute, and at once.
    pub tokens_in_per_minute: Option<u64>,
    /// Generated tokens per minute, and at once.
    pub tokens_out_per_minute: Option<u64>,
    /// Requests under way.
    pub concurrent_requests: Option<u32>,
    /// Requests per day, UTC.
    pub requests_per_day: Option<u64>,
    /// Tokens per day, read and generated together.
    pub tokens_per_day: Option<u64>,
    /// Time in which devices and workers compute, per day.
    pub compute_per_day: Option<Duration>,
}

/// So many per second on average, and a burst of so many at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// On average, above zero.
    pub per_second: f64,
    /// At once, one at least.
    pub burst: u32,
}

/// Limits of all tenants.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QuotaRules {
    /// Of those that are named.
    pub named: BTreeMap<TenantName, Limits>,
    /// Of each of the others.
    pub others: Limits,
}

/// What a request is expected to take, for its admission.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Tokens of its prompts.
    pub tokens_in: u64,
    /// Tokens of its answers.
    pub tokens_out: u64,
}

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Requests per second.
    Requests,
    /// Tokens of prompts per minute.
    TokensIn,
    /// Generated tokens per minute.
    TokensOut,
    /// Requests under way.
    Concurrency,
    /// Requests per day.
    RequestsPerDay,
    /// Tokens per day.
    TokensPerDay,
    /// Computing time per day.
    ComputePerDay,
}

impl Limit {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Requests,
        Self::TokensIn,
        Self::TokensOut,
        Self::Concurrency,
        Self::RequestsPerDay,
        Self::TokensPerDay,
        Self::ComputePerDay,
    ];

    /// Its name in settings, metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests_per_second",
            Self::TokensIn => "tokens_in_per_minute",
            Self::TokensOut => "tokens_out_per_minute",
            Self::Concurrency => "concurrent_requests",
            Self::RequestsPerDay => "requests_per_day",
            Self::TokensPerDay => "tokens_per_day",
            Self::ComputePerDay => "compute_per_day",
        }
    }
}

/// A request that is one too many.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// The limit that frees last of those it met.
    pub limit: Limit,
    /// What that limit is, in its unit.
    pub allowed: String,
    /// When the same request is within its limits again, if nobody else of the tenant asks. Of
    /// requests under way nobody knows; then it is a second.
    pub after: Duration,
    /// How the tenant stands.
    pub levels: Levels,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (limit, allowed) = (self.limit.as_str(), &self.allowed);
        write!(f, "the limit {limit} = {allowed} is reached; ")?;
        match self.limit {
            Limit::Concurrency => f.write_str("it frees when one of the requests under way ends"),
            _ => write!(f, "it frees in {}", told(self.after)),
        }
    }
}

impl std::error::Error for Refused {}

/// A wait in the unit that people would take: nobody counts hours in seconds.
fn told(wait: Duration) -> String {
    let seconds = wait.as_secs_f64();
    let minutes = (seconds / 60.0).ceil() as u64;
    match minutes {
        0..=2 => format!("{seconds:.1} s"),
        3..120 => format!("{minutes} min"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

/// How near a tenant is to its limits, as rate headers say it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Levels {
    /// Of requests per second; absent without such a limit.
    pub requests: Option<Level>,
    /// Of tokens per minute, read or generated: that of which less is left.
    pub tokens: Option<Level>,
}

/// How near a tenant is to one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// What may be taken at once.
    pub limit: u64,
    /// What of it is left.
    pub remaining: u64,
    /// When all of it will be.
    pub reset: Duration,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}
