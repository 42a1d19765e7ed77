//! Checkpoints that read images, too: the part of them that reads and writes text. Tensors of the others are
//! passed over.

use serde_json::{Value, json};

use super::decoder::{DecoderConfig, LLAMA_NAMES, Names};
use super::{CONFIG, gemma, llama, mistral, qwen};
use crate::Error;

/// As transformers names modules, and as it saves them.
const PREFIXES: [&str; 2] = ["model.language_model.", "language_model.model."];

const GEMMA3_NAMES: Names = Names { prefixes: PREFIXES, ..gemma::GEMMA3_NAMES };

const NAMES: Names =
    Names { prefixes: PREFIXES, head_beside: Some("language_model.lm_head"), ..LLAMA_NAMES };

/// The text part's keys, with what it is where they do not say.
fn text(json: &Value, absent: &Value) -> Result<Value, Error> {
    let mut keys = absent.clone();
    match (keys.as_object_mut(), json.get("text_config").and_then(Value::as_object)) {
        (Some(keys), Some(own)) => {
            keys.extend(own.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        _ => return Err(Error::config(CONFIG, "it has no text_config")),
    }
    Ok(keys)
}

/// Gemma 3 from 4B on.
pub(super) fn gemma3(json: &Value) -> Result<DecoderConfig, Error> {
    let absent = json!({
        "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8
    });
    let config = gemma::gemma3(&text(json, &absent)?)?;
    Ok(DecoderConfig { names: &GEMMA3_NAMES, ..config })
}

/// LLaVA: around a Llama, a Mistral or a Qwen2.
pub(super) fn llava(json: &Value) -> Result<DecoderConfig, Error> {
    around(json, "llama")
}

/// Mistral Small from 3.1 on.
pub(super) fn mistral3(json: &Value) -> Result<DecoderConfig, Error> {
    around(json, "mistral")
}

/// What is around a decoder of the type that it says, or of the `usual` one.
fn around(json: &Value, usual: &str) -> Result<DecoderConfig, Error> {
    let kind = json.pointer("/text_config/model_type").and_then(Value::as_str).unwrap_or(usual);
    let (read, inner): (super::families::Read, usize) = match kind {
        "llama" => (llama::llama, 11_008),
        "mistral" => (mistral::mistral, 14_336),
        "qwen2" => (qwen::qwen2, 22_016),
        other => {
            let reason = format!(
                "text_config's model_type '{}' is not computed beside images; llama, mistral and \
                 qwen2 are",
                other.escape_debug()
            );
            return Err(Error::config(CONFIG, reason));
        }
    };
    let vocab = if kind == "qwen2" { 151_936 } else { 32_000 };
    let absent = json!({
        "vocab_size": vocab, "hidden_size": 4096, "intermediate_size": inner,
        "num_hidden_layers": 32, "num_attention_heads": 32
    });
    Ok(DecoderConfig { names: &NAMES, ..read(&text(json, &absent)?)? })
}
