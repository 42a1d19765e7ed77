//! Who is calling, what may they use, how much.
//!
//! Reading order: [`caller`] (who a request is from), `config` (the sources of identities as they
//! were configured), [`identity`] (all of them behind one question), `keys` (bearer keys and SigV4
//! pairs that we mint), `sigv4` (AWS's signatures, verified), `jwt` (tokens of OIDC issuers),
//! `iam` (callers with AWS's own credentials, whom AWS names), `fetch` (what these ask of others),
//! `proxy` (who asks on others' behalf), `denied` (why somebody is not let in); [`pattern`] (which
//! targets a rule means), [`routes`] (names that stand for targets), [`policy`] (who may use what),
//! [`current`] (what is replaced while it is read); [`quota`] (how much a tenant may ask for),
//! [`usage`] (what tenants have used, and the ledger that keeps it), [`accounts`] (admission and
//! settlement of a request), `calendar` (times as files write them).

pub mod accounts;
mod calendar;
pub mod caller;
mod config;
pub mod current;
mod denied;
mod error;
mod fetch;
mod iam;
pub mod identity;
mod jwt;
mod keys;
mod metrics;
pub mod pattern;
pub mod policy;
mod proxy;
pub mod quota;
pub mod routes;
mod secret;
mod sigv4;
mod stamp;
mod text;
pub mod usage;

pub use accounts::{Accounts, Facts, Visit};
pub use calendar::{parse_instant, rfc3339_seconds};
pub use caller::{Caller, Peer};
pub use config::AuthConfig;
pub use current::Current;
pub use denied::Denied;
pub use error::Error;
pub use fetch::{Document, Fetch, Unfetched};
pub use iam::{IamConfig, InvalidPrincipals, Principals};
pub use identity::{Asked, Identified, Identity};
pub use jwt::{Jwks, Named, OidcConfig, is_near_or_encrypted};
pub use keys::{KeyFile, KeyKind, KeyRecord, Minted, Wanted};
pub use metrics::describe_metrics;
pub use pattern::{InvalidPattern, Pattern, Place, Reach, place};
pub use policy::{Grants, Policy, Standing, Verdict};
pub use proxy::ProxyConfig;
pub use quota::{Estimate, Level, Levels, Limit, Limits, QuotaRules, Rate, Refused};
pub use routes::{Alias, Aliases, Route, draw};
pub use secret::Secret;
pub use sigv4::Signed;
pub use stamp::Stamp;
pub use usage::{Detail, Durable, Key, LedgerConfig, Residence, Sync, Totals};
