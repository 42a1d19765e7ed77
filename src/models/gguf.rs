//! GGUF files: one file with the weights, the configuration and the tokenizer.
//!
//! What differs from a checkpoint is put right here, so that nothing behind knows of it: names
//! become those of checkpoints, dimensions their order, and rows of queries and keys that were
//! put in pairs are marked to be put back. `header` reads, `config` understands, `text` holds
//! what the tokenizer is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::Error;
use crate::config::decoder::DecoderConfig;
use crate::decoder::DecoderWeights;
use crate::files::{Files, SHARD_INDEX, SINGLE};
use crate::format::Stored;
use crate::reader::Parameter;
use crate::settings::ModelSettings;
use crate::tensors::{Left, Located, TensorTable, unstacked};

mod architectures;
mod config;
mod header;
mod text;

pub(crate) use architectures::Architecture;
pub use header::gguf_bytes;
pub(crate) use header::{Header, Value};
pub use text::{GgufText, gguf_text};

/// What a GGUF file says beside its tensors.
#[derive(Debug, Clone)]
pub(crate) struct Described {
    pub(crate) architecture: &'static Architecture,
    pub(crate) config: DecoderConfig,
    pub(crate) eos_tokens: Vec<u32>,
    /// Bytes of tokenizer and configuration.
    pub(crate) metadata_bytes: u64,
    pub(crate) tokenizer: Tokenizer,
}

/// Which way of making tokens a GGUF file asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokenizer {
    /// The file, relative to the artefact.
    pub file: String,
    /// `tokenizer.ggml.model`.
    pub model: String,
    /// `tokenizer.ggml.pre`: how texts are cut before tokens are merged.
    pub pre: Option<String>,
}

/// The ending of such files.
const ENDING: &str = ".gguf";

/// The GGUF file that holds the model, where there is one and no safetensors checkpoint.
///
/// # Errors
/// When there are several and the artefact's settings choose none, or the one is in parts.
pub(crate) fn chosen(files: &Files) -> Result<Option<String>, Error> {
    if files.sizes.contains_key(SINGLE) || files.sizes.contains_key(SHARD_INDEX) {
        return Ok(None);
    }
    let at_top = |path: &&String| path.ends_with(ENDING) && !path.contains('/');
    let mut found = files.sizes.keys().filter(at_top);
    let path = match (ModelSettings::read(files)?.file, found.next(), found.next()) {
        (_, None, _) => return Ok(None),
        (None, Some(only), None) => only,
        (Some(file), ..) => files.sizes.keys().find(|path| **path == file).ok_or_else(|| {
            Error::config(crate::settings::FILE, format!("its file '{file}' is not there"))
        })?,
        (None, Some(first), Some(second)) => {
            let others = found.count();
            let more = if others > 0 { format!(" and {others} more") } else { String::new() };
            return Err(Error::NotServed {
                what: format!("a folder of several GGUF files ({first}, {second}{more}) is"),
                advice: " without a choice; name one in roundhouse.toml: model.file = \"...\"",
            });
        }
    };
    if is_part(path) {
        return Err(Error::NotServed {
            what: format!("a GGUF model in several parts ({path}) is"),
            advice: "; merge it (llama-gguf-split --merge)",
        });
    }
    Ok(Some(path.clone()))
}

/// Whether a file's name says that it is one of several: `...-00001-of-00003.gguf`.
fn is_part(path: &str) -> bool {
    let Some(stem) = path.strip_suffix(ENDING) else { return false };
    let mut parts = stem.rsplit('-');
    let is_number =
        |part: Option<&str>| part.is_some_and(|part| part.bytes().all(|c| c.is_ascii_digit()));
    is_number(parts.next().filter(|part| part.len() == 5))
        && parts.next() == Some("of")
        && is_number(parts.next().filter(|part| part.len() == 5))
}

fn header<'a>(files: &'a Files, path: &str) -> Result<Header<'a>, Error> {
    let (Some(size), Some(first)) = (files.sizes.get(path), files.headers.get(path)) else {
        return Err(Error::header(path, "its header was not read"));
    };
    let header = Header::parse(path, *size, first)?;
    header.ok_or_else(|| Error::header(path, "it ends inside its header"))
}

/// What the file says of its model.
pub(crate) fn describe(files: &Files, path: &str) -> Result<Described, Error> {
    config::describe(path, &header(files, path)?)
}

/// Where its tensors lie, by the names that checkpoints have.
pub(crate) fn table(files: &Files, path: &str) -> Result<TensorTable, Error> {
    let header = header(files, path)?;
    let described = config::describe(path, &header)?;
    let (architecture, head_dim) = (described.architecture, described.config.heads.head_dim);
    let file: Arc<str> = path.into();
    let mut tensors = BTreeMap::new();
    let mut left = Left::default();
    for info in header.tensors {
        let Some((name, is_paired)) = architecture.checkpoint_name(info.name) else {
            let (name, architecture) = (info.name, architecture.name());
            return Err(Error::NotServed {
                what: format!("{path} with tensor '{name}', which no {architecture} has, is"),
                advice: "",
            });
        };
        let located = Located {
            file: Arc::clone(&file),
            dtype: info.stored,
            shape: info.shape,
            start: info.start,
            paired: is_paired.then_some(head_dim),
            scales: None,
        };
        debug_assert!(!matches!(located.dtype, Stored::Unread(_)), "the header was checked");
        match name.split_once('*') {
            None => drop(tensors.insert(name, located)),
            Some(around) => {
                tensors.extend(unstacked(info.name, around, &located, &mut left)?);
            }
        }
    }
    Ok(TensorTable::of(tensors))
}

/// Refuses a file with tensors that the computation would leave out: it means something else.
pub(crate) fn refuse_unused(
    table: &TensorTable,
    config: &DecoderConfig,
    architecture: &Architecture,
) -> Result<(), Error> {
    let mut unused: BTreeSet<&str> = table.names().collect();
    let used = DecoderWeights::gather(config, "model.", &mut |parameter: Parameter| {
        for (name, _) in &parameter.parts {
            unused.remove(name.as_str());
        }
        Ok::<_, Error>(())
    });
    used.map(drop)?;
    match unused.first() {
        None => Ok(()),
        Some(name) => Err(Error::NotServed {
            what: format!(
                "a GGUF file with tensor '{}', which its own keys leave out, is",
                architecture.own_name(name)
            ),
            advice: "",
        }),
    }
}

/// The tensor that divides the frequencies of rotations, in both.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

impl Architecture {
    /// As files name it.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// What checkpoints call a tensor, and whether its rows lie in pairs.
    fn checkpoint_name(&self, name: &str) -> Option<(String, bool)> {
        match name {
            "token_embd.weight" => return Some(("model.embed_tokens.weight".into(), false)),
            "output_norm.weight" => return Some(("model.norm.weight".into(), false)),
            "output.weight" => return Some(("lm_head.weight".into(), false)),
            ROPE_FACTORS => return Some((ROPE_FACTORS.into(), false)),
            _ => {}
        }
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        // Written in one way only: two tensors of a file never get one name.
        let number: usize = layer.parse().ok()?;
        let (module, kind) = rest.split_once('.')?;
        let (_, ours) = self.modules.iter().find(|(theirs, _)| *theirs == module)?;
        let is_known = number.to_string() == layer
            && (kind == "weight" || (kind == "bias" && !module.ends_with("norm")));
        let is_paired = self.is_paired && matches!(module, "attn_q" | "attn_k");
        is_known.then(|| (format!("model.layers.{layer}.{ours}.{kind}"), is_paired))
    }

    /// An error in the words of the file: its own names of tensors.
    pub(crate) fn in_its_words(&self, error: Error) -> Error {
        match error {
            Error::MissingTensor { name, expected } => {
                Error::MissingTensor { name: self.own_name(&name), expected }
            }
            Error::WrongShape { name, expected, found } => {
                Error::WrongShape { name: self.own_name(&name), expected, found }
            }
            other => other,
        }
    }

    fn own_name(&self, name: &str) -> String {
        match name {
            "model.embed_tokens.weight" => return "token_embd.weight".into(),
            "model.norm.weight" => return "output_norm.weight".into(),
            "lm_head.weight" => return "output.weight".into(),
            _ => {}
        }
        let found = self.modules.iter().find_map(|(theirs, ours)| {
            let (layer, kind) = name.strip_prefix("model.layers.")?.split_once('.')?;
            let kind = match ours.split_once('*') {
                None => kind.strip_prefix(ours)?,
                Some((before, behind)) => {
                    let kind = kind.strip_prefix(before)?;
                    kind.trim_start_matches(|digit: char| digit.is_ascii_digit())
                        .strip_prefix(behind)?
                }
            };
            Some(format!("blk.{layer}.{theirs}.{}", kind.strip_prefix('.')?))
        });
        found.unwrap_or_else(|| name.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_checkpoints_and_back() {
        let mixtral = architectures::find("llama", true).unwrap();
        let (ours, _) = mixtral.checkpoint_name("blk.3.ffn_up_exps.weight").unwrap();
        assert_eq!(ours, "model.layers.3.block_sparse_moe.experts.*.w3.weight");
        let expert = "model.layers.3.block_sparse_moe.experts.11.w3.weight";
        assert_eq!(mixtral.own_name(expert), "blk.3.ffn_up_exps.weight");
        let llama = architectures::find("llama", false).unwrap();
        let names = ["token_embd.weight", "output.weight", "blk.7.attn_q.weight"];
        for name in names.into_iter().chain(["blk.12.ffn_down.bias", "blk.0.attn_norm.weight"]) {
            let (ours, _) = llama.checkpoint_name(name).unwrap();
            assert_eq!(llama.own_name(&ours), name);
        }
        let unknown = ["blk.0.attn_q_norm.weight", "blk.x.attn_q.weight", "blk.0.attn_norm.bias"];
        let other = ["v.patch_embd.weight", "blk.0.ffn_gate_inp.weight"];
        let again = ["blk.00.attn_q.weight", "blk.+0.attn_q.weight"];
        for name in unknown.into_iter().chain(other).chain(again) {
            assert_eq!(llama.checkpoint_name(name), None, "{name}");
        }
    }

    #[test]
    fn parts_are_known_by_their_names() {
        assert!(is_part("big-q4_k-00001-of-00003.gguf"));
        for name in ["big.gguf", "big-00001.gguf", "a-1-of-3.gguf", "00001-of-00003"] {
            assert!(!is_part(name), "{name}");
        }
    }
}
