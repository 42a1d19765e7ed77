//! What does a forward pass compute, and how many bytes does it need?
//!
//! Reading order: `files` (what is looked at), `inspect` (what it is and what it takes:
//! `config`, `tensors`, `footprint`), `load` (`reader`: from files into final buffers,
//! `pool`: those that several models hold together), then
//! the computation: `linear` and `attention` are the two seams, `decoder` and `encoder` the
//! models over them, `packed` the step's rows, `kv` the pool.
//!
//! What holds:
//! 1. [`inspect`] and [`load`] walk the same list of parameters, so the weights and KV of
//!    a plan's footprint are the bytes that a load allocates, or holds together with others.
//! 2. The number of matmul calls in a step does not depend on the number of sequences.
//! 3. A plan that breaks the contract is refused before anything is written.
//! 4. What a configuration asks for is computed, or refused by name.

mod activation;
mod attention;
mod config;
mod decoder;
mod encoder;
mod error;
mod files;
mod footprint;
mod inspect;
mod kv;
mod linear;
mod load;
mod packed;
mod pool;
mod pooling;
mod primer;
mod reader;
mod rope;
mod simd;
mod tensors;

pub use config::{GenerationDefaults, Labels, ScoreFunction};
pub use error::Error;
pub use files::{
    Files, Folder, HEADER_MAX, ModelFiles, Want, header_bytes, list_local, read_local, wanted,
};
pub use footprint::host_measured;
pub use inspect::{DtypeSetting, LoadSettings, ModelPlan, WeightShare, inspect};
pub use linear::matmul_calls;
pub use load::{LoadedRunner, known_parts, load, load_files, load_shared};
pub use pool::{Digests, Sharing, TensorPool};
pub use primer::primer;
pub use reader::Cancel;
