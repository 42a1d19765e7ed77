//! What does a forward pass compute, and how many bytes does it need?
//!
//! Reading order: `files` (what is looked at), `inspect` (what it is and what it takes:
//! `config`, whose `families` map each architecture to the one decoder or encoder, `tensors`, `gguf`,
//! `format`, `weigh`, `footprint`), `load` (`reader` and `convert`: from files into final buffers,
//! `pool`: those that several models hold together, `device`: where they are, `card`: CUDA's, `held`: copies of
//! them in another memory), then
//! the computation: `linear` (over `blocks` where weights are quantised, and `adapter` for rows
//! with adapters) and `attention` are the two seams, `decoder` and `encoder` the
//! models over them, `packed` the step's rows, `kv` the pool; `decoder::portable` is the decoder of devices
//! with memories that the host cannot address.
//!
//! What holds:
//! 1. [`inspect`] and [`load`] walk the same list of parameters, so the weights and KV of
//!    a plan's footprint are the bytes that a load allocates, or holds together with others.
//! 2. The number of matmul calls in a step does not depend on the number of sequences; of experts,
//!    each that some token uses is multiplied with once.
//! 3. A plan that breaks the contract is refused before anything is written.
//! 4. What a configuration asks for is computed, or refused by name.

mod activation;
mod adapter;
mod attention;
mod blocks;
mod card;
mod config;
mod convert;
mod decoder;
mod device;
mod encoder;
mod error;
mod files;
mod footprint;
mod format;
mod gguf;
mod held;
mod in_place;
mod inspect;
mod kv;
mod linear;
mod load;
mod norm;
mod packed;
mod pool;
mod pooling;
mod primer;
mod properties;
mod reader;
mod rope;
mod settings;
mod simd;
mod tensors;
mod threads;
mod weigh;

pub use adapter::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterBase, AdapterPlan, AdapterWeights, LoadedAdapter,
    load_adapter, promote_adapter,
};
pub use card::{Card, CardMemory, NO_CUDA, cards};
pub use config::prompts::EmbeddingPrompts;
pub use config::{GenerationDefaults, Labels, ScoreFunction};
pub use device::DeviceMemory;
pub use error::Error;
pub use files::{
    Files, Folder, HEADER_MAX, ModelFiles, Want, header_bytes, list_local, read_file, read_local,
    wanted, wanted_gguf,
};
pub use footprint::host_measured;
pub use gguf::{GgufText, Tokenizer as GgufTokenizer, gguf_bytes, gguf_text};
pub use held::Weights;
pub use inspect::{DtypeSetting, LoadSettings, ModelPlan, Quantize, inspect};
pub use kv::KvDtype;
pub use linear::matmul_calls;
pub use load::{LoadedRunner, known_parts, load, load_files, load_shared, promote};
pub use pool::{Digests, FindTensor, Sharing, TensorPool};
pub use primer::primer;
pub use properties::{Asked, PROPERTIES, PROPERTIES_MAX, pairs as property_pairs};
pub use reader::Cancel;
pub use threads::around_steps;
pub use weigh::WeightShare;
