//! Containers that hold many models: SageMaker's multi-model contract, asked by us.
//!
//! `POST /models` loads a model from a folder that both see, `DELETE /models/{name}` takes it out,
//! `POST /models/{name}/invoke` asks it, `GET /models` lists what is loaded; 507 says that there is no
//! memory for it. (SageMaker developer guide, "Custom Containers Contract for Multi-Model Endpoints".)
//! Files in reading order: `spec` (what the operator says of one), `container` (one that is open:
//! which models of ours are in it), `ask` (its routes), `watch` (what it holds against what we know),
//! `model` (a model in it, as requests use it).
//!
//! Invariants:
//! 1. Only models whose names begin with our prefix are ever deleted.
//! 2. A model that was found not to be in its container any more is told so, once, before the request
//!    that found it is answered.

mod ask;
mod container;
mod model;
mod spec;
mod watch;

pub use container::{ModelContainer, Open, WeakContainer};
pub use model::{ContainedModel, Load, LoadError, RoomFn};
pub use spec::{ContainerOrigin, ContainerSpec, PathMap, StartedContainer};

#[cfg(test)]
mod tests;
