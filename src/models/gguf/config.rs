//! A GGUF file's metadata as a configuration: what it asks for is computed, or refused by name.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::architectures::{self, Architecture};
use super::{Described, Header, Tokenizer, Value};
use crate::Error;
use crate::config::raw::LAYERS_MAX;

/// Keys that change the computation to something else, unless they are zero or the architecture
/// has them.
const NOT_COMPUTED: [&str; 18] = [
    "expert_count",
    "expert_shared_count",
    "expert_shared_feed_forward_length",
    "expert_group_count",
    "expert_weights_scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.freq_base_swa",
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

/// Control tokens that end an answer in the usual chat formats, whatever the file names.
const ENDINGS: [&str; 7] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
];
/// A control token's type in `tokenizer.ggml.token_type`.
const CONTROL: f64 = 3.0;

/// Metadata with the file's name for errors, and the architecture's for keys.
pub(super) struct Keys<'a> {
    pub(super) file: &'a str,
    architecture: &'static str,
    header: &'a Header<'a>,
}

impl Keys<'_> {
    pub(super) fn refuse<T>(&self, reason: impl Into<String>) -> Result<T, Error> {
        Err(Error::config(self.file, reason))
    }

    /// Whether the file has that tensor.
    pub(super) fn has(&self, name: &str) -> bool {
        self.header.tensors.iter().any(|tensor| tensor.name == name)
    }

    pub(super) fn get(&self, key: &str) -> Option<Value<'_>> {
        self.header.metadata.get(format!("{}.{key}", self.architecture).as_str()).copied()
    }

    pub(super) fn count(&self, key: &str) -> Result<Option<usize>, Error> {
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

    pub(super) fn needed(&self, key: &str) -> Result<usize, Error> {
        match self.count(key)? {
            Some(number) => Ok(number),
            None => self.refuse(format!("it has no {}.{key}", self.architecture)),
        }
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f32>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) if number.is_finite() && number > 0.0 => {
                Ok(Some(number as f32))
            }
            Some(_) => self.wrong(key),
        }
    }

    /// The keys that architectures share, as `config.json` has them.
    pub(super) fn shared(&self, architecture: &Architecture) -> Result<Map<String, Json>, Error> {
        for key in NOT_COMPUTED.iter().filter(|key| !architecture.computes.contains(key)) {
            if self.get(key).is_some_and(|value| !is_off(value)) {
                return self.refuse(format!("{}.{key} is not computed", self.architecture));
            }
        }
        if self.get("attention.causal") == Some(Value::Bool(false)) {
            return self.refuse("attention that is not causal is not computed");
        }
        let mut tensors = self.header.tensors.iter();
        let embeddings = tensors.find(|tensor| tensor.name == "token_embd.weight");
        let Some([vocab, _]) = embeddings.map(|tensor| tensor.shape.as_slice()) else {
            return self.refuse("it has no tensor 'token_embd.weight' of two dimensions");
        };
        let Some(epsilon) = self.float("attention.layer_norm_rms_epsilon")? else {
            let key = format!("{}.attention.layer_norm_rms_epsilon", self.architecture);
            return self.refuse(format!("it has no {key}"));
        };
        let (hidden, heads) =
            (self.needed("embedding_length")?, self.needed("attention.head_count")?);
        let head_dim = match self.count("attention.key_length")? {
            Some(length) => length,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => return self.refuse(format!("{hidden} is not a multiple of {heads} heads")),
        };
        if self.count("attention.value_length")?.is_some_and(|length| length != head_dim) {
            let reason = format!("its attention.value_length is not that of the keys ({head_dim})");
            return self.refuse(format!("{reason}, which is not computed"));
        }
        let rotated = self.count("rope.dimension_count")?.unwrap_or(head_dim);
        let rotated = rotated as f64 / head_dim as f64;
        let layers = self.needed("block_count")?;
        if layers > LAYERS_MAX {
            return self.refuse(format!("its {}.block_count is {layers}", self.architecture));
        }
        let json = json!({
            "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers,
            "intermediate_size": self.needed("feed_forward_length")?,
            "num_attention_heads": heads, "head_dim": head_dim,
            "num_key_value_heads": self.count("attention.head_count_kv")?.unwrap_or(heads),
            "max_position_embeddings": self.needed("context_length")?, "rms_norm_eps": epsilon,
            "rope_theta": self.float("rope.freq_base")?.unwrap_or(10_000.0),
            "rope_scaling": self.scaling()?, "partial_rotary_factor": rotated,
            "tie_word_embeddings": !self.has("output.weight"),
        });
        match json {
            Json::Object(json) => Ok(json),
            _ => self.refuse("it has no keys"),
        }
    }

    /// How rotations are stretched, as `config.json` says it.
    fn scaling(&self) -> Result<Json, Error> {
        let kind = match self.get("rope.scaling.type") {
            Some(Value::Text(kind)) => String::from_utf8_lossy(kind).into_owned(),
            None => match self.float("rope.scale_linear")? {
                Some(factor) if factor != 1.0 => {
                    return Ok(json!({ "rope_type": "linear", "factor": factor }));
                }
                _ => return Ok(Json::Null),
            },
            Some(_) => return self.wrong("rope.scaling.type"),
        };
        if kind == "none" {
            return Ok(Json::Null);
        }
        if !["linear", "yarn"].contains(&kind.as_str()) {
            let known = "none, linear, yarn and the factors of rope_freqs.weight are";
            let kind = kind.escape_debug();
            return self.refuse(format!("rope scaling '{kind}' is not computed; {known}"));
        }
        let Some(factor) = self.float("rope.scaling.factor")? else {
            return self.refuse("it has no rope.scaling.factor");
        };
        for key in ["rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"] {
            if self.number(key)?.is_some_and(|number| number != 1.0) {
                return self.refuse(format!("{}.{key} is not computed", self.architecture));
            }
        }
        let mut json = json!({ "rope_type": kind, "factor": factor });
        for (theirs, ours) in [
            ("original_context_length", "original_max_position_embeddings"),
            ("yarn_beta_fast", "beta_fast"),
            ("yarn_beta_slow", "beta_slow"),
        ] {
            if let Some(number) = self.number(&format!("rope.scaling.{theirs}"))? {
                json[ours] = number.into();
            }
        }
        if let Some(by) = self.float("rope.scaling.attn_factor")? {
            json["attention_factor"] =
                (f64::from(by) * (1.0 + 0.1 * f64::from(factor).ln())).into();
        }
        Ok(json)
    }

    /// A number of either kind.
    fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.get(key) {
            Some(Value::Float(_)) => Ok(self.float(key)?.map(f64::from)),
            _ => Ok(self.count(key)?.map(|number| number as f64)),
        }
    }

    fn wrong<T>(&self, key: &str) -> Result<T, Error> {
        let value = self.get(key);
        let shown = match value {
            Some(Value::Text(text)) => {
                let text = &text[..text.len().min(64)];
                format!("'{}'", String::from_utf8_lossy(text).escape_debug())
            }
            Some(Value::Array(array)) => format!("a list of {}", array.count()),
            other => format!("{other:?}"),
        };
        self.refuse(format!("its {}.{key} is {shown}", self.architecture))
    }
}

/// Whether a value says that something is not wanted.
pub(super) fn is_off(value: Value<'_>) -> bool {
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
    let experts = metadata.get(format!("{architecture}.expert_count").as_str());
    let has_experts = experts.is_some_and(|count| !is_off(*count));
    let Some(architecture) = architectures::find(&architecture, has_experts) else {
        return Err(Error::NotServed {
            what: format!("a GGUF file of architecture '{architecture}' is"),
            advice: architectures::SERVED,
        });
    };
    if metadata
        .get("split.count")
        .is_some_and(|count| *count != Value::Unsigned(1) && !is_off(*count))
    {
        return Err(Error::NotServed {
            what: format!("a GGUF model in several parts ({file}) is"),
            advice: "; merge it (llama-gguf-split --merge)",
        });
    }
    let keys = Keys { file, architecture: architecture.name, header };
    let config = architecture.read(&keys)?;
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
