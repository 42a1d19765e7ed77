#![doc = include_str!("DESIGN.md")]

mod account;
mod attached;
mod check;
mod constraint;
mod core;
mod elastic;
mod error;
mod fair;
mod free;
mod handle;
mod heartbeat;
mod kv;
mod lane;
mod metrics;
mod plan;
mod queue;
mod request;
mod sampler;
mod scheduler;
mod share;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use account::Claim;
pub use attached::Attached;
pub use check::RESULT_BYTES;
pub use constraint::{Allowed, Constraint, Progress, Unmet};
pub use elastic::{KvReporter, KvRoom};
pub use handle::{EngineConfig, EngineHandle, Load, TokenStream};
pub use heartbeat::LaneHealth;
pub use lane::{Lane, LaneConfig, Placed};
pub use metrics::describe as describe_metrics;
pub use plan::{
    AdapterId, BlockId, HeadSpec, KvSpec, ModelRunner, Row, RunnerError, RunnerSpec, StepOutput,
    StepPlan, Want,
};
pub use request::{
    EncodeSpec, FinishReason, GenerateSpec, PromptToken, Sampling, TokenOut, TokenResult,
};
