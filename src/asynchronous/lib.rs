//! How is a request answered whose caller does not wait: a queue on disk, the answers as objects in a
//! store, and who is told of them.
//!
//! Reading order: `request` (what is asked, what comes out), `place` (which objects an endpoint may
//! read and write), `spool` (the queue on disk), `waiting` (whose turn it is), `line` (how much room
//! there is), `submitted` (from what was submitted to what is kept), `queue` (takes requests and runs
//! them), `run` (one request from its input to its object), `notice`, `sending`, `webhook`, `address`
//! and `sns` (who is told).
//!
//! What holds:
//! 1. A request that was accepted is on disk, for good, before its caller hears of it.
//! 2. Each accepted request ends in exactly one object: its answer, or its failure. Their names are
//!    chosen when it is accepted; which of them it is, and its bytes, are on disk for good before the
//!    first byte goes to the store, and are never decided again. So whatever is done again after the
//!    process died writes the same bytes under the same name.
//! 3. A request leaves the queue only when its object is in the store; where the operator says how long
//!    a store may refuse it, also when that time is over, and then it is logged, counted and told.
//! 4. A tenant's requests read and write only below the endpoint's prefixes, with `{tenant}` in them
//!    being its own name.
//! 5. The queue is bounded in requests and in bytes, and no tenant takes all of it.
//! 6. A notice goes to an address that was looked at: the name is resolved once, each address is
//!    checked, and no redirect is followed.

mod address;
mod config;
mod error;
mod line;
mod metrics;
mod notice;
mod place;
mod queue;
mod request;
mod run;
mod sending;
mod sns;
mod spool;
mod submitted;
#[cfg(test)]
mod tests;
mod waiting;
mod webhook;

pub use config::{EndpointConfig, Included, PlaceConfig, Topics, Webhooks};
pub use error::Error;
pub use metrics::describe_metrics;
pub use queue::{Queue, Services, StoreFn};
pub use request::{Accepted, Input, Ran, Run, RunFn, Submission};
pub use sns::{Topic, given_credentials, machine_credentials};
pub use webhook::{ClientFn, Resolve, system_resolver};
