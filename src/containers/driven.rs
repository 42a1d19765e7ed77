//! Engines that we drive: started by command for one target, put to sleep and woken where they can
//! be, and given adapters.
//!
//! Files in reading order: `spec` (what the operator says of an engine, and how its command is made
//! of that), `engine` (one that runs), `sleeping` (its sleep), `adapters` (what is loaded into it),
//! `call` (what it is asked), `rewrite` (the body that it is sent), `memory` (what it takes).

mod adapters;
mod call;
mod engine;
mod memory;
mod rewrite;
mod sleeping;
mod spec;

pub use adapters::{Driven, Seat};
pub use call::{Answer, Call, CallError, Pieces, Route};
pub use engine::{Engine, News, NewsFn, Start};
pub use spec::{AdapterRoutes, Adapters, EngineSpec, Fill, SleepLevel, UnknownPlaceholder};
