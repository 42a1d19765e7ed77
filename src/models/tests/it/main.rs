//! Models against their references, and against what must not be loaded.

mod inspection;
mod matmuls;
mod numbers;
mod plans;
mod support;
mod weights;
