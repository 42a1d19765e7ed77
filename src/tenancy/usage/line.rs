//! One line of the ledger.

use roundhouse_types::{EndpointName, ModelId, TargetName, TenantName};
use serde::{Deserialize, Serialize};

use super::{Key, Totals};

/// The version of the lines' format.
pub(super) const VERSION: u32 = 1;

/// What a line is about. All lines of a ledger add up, whatever their kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// What a tenant used of a model from one instant to another and no other line has.
    Interval,
    /// One request, from its arrival to its end.
    Request,
}

/// One line, as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    /// The format's version.
    pub(super) v: u32,
    /// The process that wrote it.
    pub(super) instance: String,
    /// Counts that process's lines. A number that was there before is the same line again.
    pub(super) seq: u64,
    pub(super) kind: Kind,
    /// RFC 3339, UTC.
    pub(super) from: String,
    pub(super) to: String,
    pub(super) tenant: Option<TenantName>,
    pub(super) endpoint: Option<EndpointName>,
    pub(super) target: Option<TargetName>,
    /// Of a request: what its answer said in `x-amzn-RequestId`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) request_id: Option<String>,
    /// Of a request: by which of the tenant's credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) credential: Option<String>,
    #[serde(flatten)]
    pub(super) totals: Totals,
}

impl Line {
    pub(super) fn key(&self) -> Key {
        let (endpoint, target) = (self.endpoint.clone(), self.target.clone());
        let model = endpoint.zip(target).map(|(endpoint, target)| ModelId { endpoint, target });
        Key { tenant: self.tenant.clone(), model }
    }

    /// Reads a line; `None` where it is none, or of another format.
    pub(super) fn read(text: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(text).ok().filter(|line| line.v == VERSION)
    }
}
