//! A GGUF file's metadata as a configuration: what it asks for is computed, or refused by name.

use std::collections::BTreeMap;

use super::{Described, Header, ROPE_FACTORS, Tokenizer, Value};
use crate::Error;
use crate::activation::Activation;
use crate::attention::Heads;
use crate::config::decoder::{DecoderConfig, LLAMA_NAMES, LayerKind, NormKind};
use crate::rope::{RopeConfig, RopeScaling};

/// Keys of the architecture that change the computation to something else, unless they are
/// zero.
const NOT_COMPUTED: [&str; 12] = [
    "expert_count",
    "attention.sliding_window",
    "attention.scale",
    "attention.max_alibi_bias",
    "attention.clamp_kqv",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "use_parallel_residual",
    "rope.dimension_sections",
];

/// Control tokens that end an answer in the chat formats of Llamas, whatever the file names.
const ENDINGS: [&str; 6] =
    ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>"];
/// A control token's type in `tokenizer.ggml.token_type`.
const CONTROL: f64 = 3.0;

/// Metadata with the file's name for errors, and the architecture's for keys.
struct Keys<'a> {
    file: &'a str,
    architecture: &'a str,
    metadata: &'a BTreeMap<&'a str, Value<'a>>,
}

impl Keys<'_> {
    fn refuse<T>(&self, reason: impl Into<String>) -> Result<T, Error> {
        Err(Error::config(self.file, reason))
    }

    fn get(&self, key: &str) -> Option<Value<'_>> {
        self.metadata.get(format!("{}.{key}", self.architecture).as_str()).copied()
    }

    fn count(&self, key: &str) -> Result<Option<usize>, Error> {
        let number = match self.get(key) {
            None => return Ok(None),
            Some(Value::Unsigned(number)) => usize::try_from(number).ok(),
            Some(Value::Signed(number)) => usize::try_from(number).ok(),
            Some(Value::Array(_)) => {
                let key = format!("{}.{key}", self.architecture);
                return self.refuse(format!("{key} differs by layer, which is not computed"));
            }
            Some(_) => None,
        };
        match number.filter(|number| *number > 0 && *number <= u32::MAX as usize) {
            Some(number) => Ok(Some(number)),
            None => self.wrong(key),
        }
    }

    fn needed(&self, key: &str) -> Result<usize, Error> {
        match self.count(key)? {
            Some(number) => Ok(number),
            None => self.refuse(format!("it has no {}.{key}", self.architecture)),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f32>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) if number.is_finite() && number > 0.0 => {
                Ok(Some(number as f32))
            }
            Some(_) => self.wrong(key),
        }
    }

    fn wrong<T>(&self, key: &str) -> Result<T, Error> {
        let value = self.get(key);
        self.refuse(format!("its {}.{key} is {value:?}", self.architecture))
    }
}

/// Whether a value says that something is not wanted.
fn is_off(value: Value<'_>) -> bool {
    match value {
        Value::Unsigned(number) => number == 0,
        Value::Signed(number) => number == 0,
        Value::Float(number) => number == 0.0,
        Value::Bool(is_on) => !is_on,
        Value::Text(_) => false,
        Value::Array(array) => array.numbers().all(|number| number == 0.0),
    }
}

pub(super) fn describe(file: &str, header: &Header<'_>) -> Result<Described, Error> {
    let metadata = &header.metadata;
    let text = |key: &str| match metadata.get(key) {
        Some(Value::Text(text)) => Some(String::from_utf8_lossy(text).into_owned()),
        _ => None,
    };
    let Some(architecture) = text("general.architecture") else {
        return Err(Error::config(file, "it has no general.architecture"));
    };
    if architecture != "llama" {
        return Err(Error::NotServed {
            what: format!("a GGUF file of architecture '{architecture}' is"),
            advice: "; 'llama' is",
        });
    }
    if metadata
        .get("split.count")
        .is_some_and(|count| *count != Value::Unsigned(1) && !is_off(*count))
    {
        return Err(Error::NotServed {
            what: format!("a GGUF model in several parts ({file}) is"),
            advice: "; merge it (llama-gguf-split --merge)",
        });
    }
    let keys = Keys { file, architecture: &architecture, metadata };
    let config = llama(&keys, header)?;
    let Some(model) = text("tokenizer.ggml.model") else {
        return keys.refuse("it has no tokenizer (tokenizer.ggml.model)");
    };
    if let Some(Value::Array(tokens)) = metadata.get("tokenizer.ggml.tokens")
        && tokens.count() != config.vocab as u64
    {
        let reason = format!("it has {} tokens and embeddings of {}", tokens.count(), config.vocab);
        return keys.refuse(reason);
    }
    let tokenizer = Tokenizer { file: file.into(), model, pre: text("tokenizer.ggml.pre") };
    Ok(Described {
        eos_tokens: eos_tokens(metadata),
        architecture,
        config,
        metadata_bytes: header.metadata_bytes,
        tokenizer,
    })
}

fn llama(keys: &Keys<'_>, header: &Header<'_>) -> Result<DecoderConfig, Error> {
    for key in NOT_COMPUTED {
        if keys.get(key).is_some_and(|value| !is_off(value)) {
            return keys.refuse(format!("{}.{key} is not computed", keys.architecture));
        }
    }
    if keys.get("attention.causal") == Some(Value::Bool(false)) {
        return keys.refuse("attention that is not causal is not computed");
    }
    let hidden = keys.needed("embedding_length")?;
    let has = |name: &str| header.tensors.iter().any(|tensor| tensor.name == name);
    let embeddings = header.tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
    let Some([vocab, _]) = embeddings.map(|tensor| tensor.shape.as_slice()) else {
        return keys.refuse("it has no tensor 'token_embd.weight' of two dimensions");
    };
    let Some(norm_epsilon) = keys.float("attention.layer_norm_rms_epsilon")? else {
        return keys.refuse("it has no llama.attention.layer_norm_rms_epsilon");
    };
    let heads = heads(keys, hidden)?;
    let rope = RopeConfig {
        theta: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
        dims: heads.head_dim,
        scaling: scaling(keys)?,
        factor: 1.0,
    };
    let attention_bias = has("blk.0.attn_q.bias");
    Ok(DecoderConfig {
        hidden,
        intermediate: keys.needed("feed_forward_length")?,
        layers: keys.needed("block_count")?,
        heads,
        vocab: *vocab,
        context: keys.needed("context_length")?,
        kinds: vec![LayerKind { window: None, rope: Some(0) }],
        ropes: vec![rope],
        rope_factors: has(ROPE_FACTORS),
        norm: NormKind::Rms,
        norm_epsilon,
        parallel: false,
        embedding_scale: None,
        query_scale: 1.0 / (heads.head_dim as f32).sqrt(),
        score_cap: None,
        logit_cap: None,
        qkv_bias: attention_bias,
        attention_out_bias: attention_bias,
        mlp_bias: has("blk.0.ffn_gate.bias"),
        interleaved: false,
        gated: true,
        activation: Activation::Silu,
        tied: !has("output.weight"),
        names: &LLAMA_NAMES,
    })
}

fn heads(keys: &Keys<'_>, hidden: usize) -> Result<Heads, Error> {
    let heads = keys.needed("attention.head_count")?;
    let kv_heads = keys.count("attention.head_count_kv")?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        let reason = format!("{heads} attention heads do not share {kv_heads} key-value heads");
        return keys.refuse(reason);
    }
    let head_dim = match keys.count("attention.key_length")? {
        Some(length) => length,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return keys.refuse(format!("{hidden} is not a multiple of {heads} heads")),
    };
    if !head_dim.is_multiple_of(2) {
        return keys.refuse(format!("heads of {head_dim} cannot be rotated in pairs"));
    }
    for key in ["attention.value_length", "rope.dimension_count"] {
        if keys.count(key)?.is_some_and(|length| length != head_dim) {
            let reason = format!("its {key} is not that of the keys ({head_dim})");
            return keys.refuse(format!("{reason}, which is not computed"));
        }
    }
    let found = Heads { heads, kv_heads, head_dim };
    if !found.fit() {
        return keys.refuse(format!("{heads} heads of {head_dim} are no model's"));
    }
    Ok(found)
}

fn scaling(keys: &Keys<'_>) -> Result<RopeScaling, Error> {
    let kind = match keys.get("rope.scaling.type") {
        Some(Value::Text(kind)) => String::from_utf8_lossy(kind).into_owned(),
        None => match keys.float("rope.scale_linear")? {
            Some(factor) if factor != 1.0 => return Ok(RopeScaling::Linear(factor)),
            _ => return Ok(RopeScaling::None),
        },
        Some(_) => return keys.wrong("rope.scaling.type"),
    };
    match kind.as_str() {
        "none" => Ok(RopeScaling::None),
        "linear" => match keys.float("rope.scaling.factor")? {
            Some(factor) => Ok(RopeScaling::Linear(factor)),
            None => keys.refuse("it has no rope.scaling.factor"),
        },
        other => {
            let known = "none, linear and the factors of rope_freqs.weight are";
            keys.refuse(format!("rope scaling '{}' is not computed; {known}", other.escape_debug()))
        }
    }
}

/// Tokens that end an answer: those that the file names, and its control tokens that always do.
fn eos_tokens(metadata: &BTreeMap<&str, Value<'_>>) -> Vec<u32> {
    let named = ["eos_token_id", "eot_token_id", "eom_token_id"].iter().filter_map(|key| {
        match metadata.get(format!("tokenizer.ggml.{key}").as_str())? {
            Value::Unsigned(id) => u32::try_from(*id).ok(),
            Value::Signed(id) => u32::try_from(*id).ok(),
            _ => None,
        }
    });
    let mut ids: Vec<u32> = named.collect();
    if let (Some(Value::Array(tokens)), Some(Value::Array(kinds))) =
        (metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type"))
    {
        let ends = |text: &str, kind: f64| kind == CONTROL && ENDINGS.contains(&text);
        let found = (0..).zip(tokens.texts().zip(kinds.numbers()));
        ids.extend(found.filter(|(_, (text, kind))| ends(text, *kind)).map(|(id, _)| id));
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}
