//! Other servers behind us: how does a container answer?
//!
//! A container is an HTTP server that speaks `/ping` and `/invocations`. Its address, or the command
//! that starts it, is the operator's; nothing that a model's files say becomes either. Files in
//! reading order: `backend` (one address: its deadlines and limits; with `connection` and `pool`, what it
//! is asked on, `breaker`, when it is left alone, `body`, what is read and sent, and `health`), `command` (a process of ours that
//! serves at one; with `keeper`, which sees to its end, and `supervised`, which starts it again),
//! `driven` (engines that come and go with the targets that they serve), `multi_model` (containers that
//! hold many models, which come and go in them), `seen` (how one stands, for those who operate it),
//! `share` (its places, as tenants share them), `processes` (who started whom).
//!
//! Invariants:
//! 1. A request has its answer, or an error, at its deadline; nothing is sent or read after it.
//! 2. What a request holds (a place, a connection) is given back when its answer's body is dropped or
//!    at its end. A connection whose answer was not read to its end is closed.
//! 3. A request is sent a second time only where nothing of it can have been heard, or where its method
//!    says that it may be.
//! 4. No process of a command outlives its keeper, and the keeper ends when we do, however that is.

mod backend;
mod command;
pub mod driven;
mod error;
mod metrics;
pub mod multi_model;
mod processes;
mod seen;
mod share;

pub use backend::{
    Backend, BackendConfig, BaseUrl, Breaking, HealthConfig, Incoming, InvalidUrl, Outgoing, State,
    strip_hop_by_hop,
};
pub use command::{Command, Running, SUBCOMMAND, Standing, Supervised, keep};
pub use error::Error;
pub use metrics::describe_metrics;
pub use seen::{Condition, LastFailure, Seen};
pub use share::{Share, TenantPlaces};
