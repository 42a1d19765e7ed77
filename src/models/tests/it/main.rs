//! Models against their references, and against what must not be loaded.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod arriving;
mod inspection;
mod matmuls;
mod numbers;
mod plans;
mod sharing;
mod support;
mod weights;
