#![doc = include_str!("DESIGN.md")]

mod config;
mod decision;
mod described;
mod error;
mod handle;
mod holdings;
mod lease;
mod loader;
mod manager;
mod metrics;
mod regret;
mod reporter;
pub mod simulate;
mod snapshot;
mod sync;
mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use config::{Collation, Config, Policy, Replicas, TenantLimits, tenant};
pub use decision::{Action, Decision, Departure, Obstacle, Stage};
pub use described::describe_metrics;
pub use error::{Error, Progress};
pub use handle::{Explanation, Residency};
pub use holdings::{DeviceHoldings, Held, Holdings, HostHoldings};
pub use lease::Lease;
pub use loader::{
    Authority, Base, Fetched, HostCopy, InStore, LoadSource, Loaded, Loader, Resolution, Standing,
};
pub use regret::{OptimalLoads, Regret, RegretRatio};
pub use reporter::Reporter;
pub use snapshot::{
    AfterResident, CopiesPart, CopySnapshot, CopyState, DeviceSnapshot, FailedSnapshot,
    FailedState, HostSnapshot, LoadSnapshot, LoadState, Part, ResidentSnapshot, ResidentState,
    ResidentsPart, Snapshot, UnfitSnapshot, rfc3339,
};
pub use table::{
    Among, Demand, LeftWith, LoadOptions, LoadReport, PlaceWanted, RefreshReport, UnloadReport,
    may_go,
};
