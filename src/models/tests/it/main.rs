//! Models against their references, and against what must not be loaded.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail and tell as tests do"
)]

mod adapters;
mod arriving;
#[cfg(feature = "cuda")]
mod card;
mod cards;
mod decoders;
mod devices;
mod encoders;
mod extremes;
mod gguf;
mod halves;
mod inspection;
mod kept;
mod matmuls;
mod mxfp4;
mod numbers;
mod plans;
mod quantize;
mod refused;
mod sharing;
mod support;
mod ways;
mod weights;

#[expect(dead_code, reason = "its encoders are for measurements")]
#[path = "../random/mod.rs"]
mod random;

#[path = "../low_rank/mod.rs"]
mod low_rank;
