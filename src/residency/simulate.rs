//! Replays arrivals against the table under a virtual clock, and against plain models of caching.
//!
//! [`run`] drives the very table that serves requests, with a scripted [`World`] in place of stores
//! and devices: nothing waits, no thread is started, and the same trace and setup always give the same
//! [`Outcome`]. [`mod@reference`] holds what the outcome is to be measured by.
//!
//! Read `trace.rs` (who asked for what when), `world.rs` (how long things take), `pipe.rs`
//! (bandwidth that is shared), `run.rs` (the clock and the two drives), `outcome.rs` (what came of
//! it), `target.rs` (the least budget for a hit ratio), then `reference.rs`.

mod outcome;
mod pipe;
pub mod reference;
mod run;
mod target;
mod trace;
mod world;

pub use outcome::{Outcome, Waits};
pub use run::{Drive, Setup, run};
pub use target::{LeastBudget, least_budget};
pub use trace::{Request, Trace, TracedModel};
pub use world::World;

#[cfg(test)]
mod tests;
