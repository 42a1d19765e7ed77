//! `config_sentence_transformers.json`: texts that go before what is embedded.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::parse;
use super::sentence::Sentence;
use crate::Error;
use crate::files::Files;

pub(crate) const FILE: &str = "config_sentence_transformers.json";
/// Bytes of all of a model's prompts and their names: they stay in memory with it.
const BYTES_MAX: usize = 64 << 10;
/// Bytes of one prompt: before each text of the largest usual request (2048) they are 16 MiB, which
/// is what serving writes before texts at most.
const PROMPT_MAX: usize = 8 << 10;

/// Texts that an embedding model wants before its inputs, as sentence-transformers has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EmbeddingPrompts {
    /// By name.
    pub texts: BTreeMap<String, String>,
    /// Which one goes before an input where a request names none: one of them.
    pub default: Option<String>,
}

impl EmbeddingPrompts {
    /// Reads the file; without it there are none. Prompts that cannot be computed are left out, unless
    /// one of them goes before every input.
    pub(crate) fn read(files: &Files, sentence: &Sentence) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Raw {
            #[serde(default)]
            prompts: Option<BTreeMap<String, String>>,
            #[serde(default)]
            default_prompt_name: Option<String>,
        }
        if !files.sizes.contains_key(FILE) {
            return Ok(Self::default());
        }
        let raw: Raw = parse(files, FILE)?;
        let mut texts = raw.prompts.unwrap_or_default();
        let bytes: usize = texts.iter().map(|(name, text)| name.len() + text.len()).sum();
        if bytes > BYTES_MAX {
            let reason = format!("its prompts have {bytes} bytes, {BYTES_MAX} are the most");
            return Err(Error::config(FILE, reason));
        }
        if let Some(name) = raw.default_prompt_name.as_ref().filter(|it| !texts.contains_key(*it)) {
            let reason = format!("default_prompt_name '{name}' is none of its prompts");
            return Err(Error::config(FILE, reason));
        }
        if let Some((name, text)) = texts.iter().find(|(_, text)| text.len() > PROMPT_MAX) {
            let reason =
                format!("prompt '{name}' has {} bytes, {PROMPT_MAX} are the most", text.len());
            return Err(Error::config(FILE, reason));
        }
        if !sentence.pools_prompts {
            let usual = raw.default_prompt_name.as_ref().and_then(|name| texts.get(name));
            if usual.is_some_and(|text| !text.is_empty()) {
                let reason = "a default prompt that is not pooled (include_prompt false) is not \
                              computed";
                return Err(Error::config(FILE, reason));
            }
            // Without them the model serves what sentence-transformers computes where none is
            // named; a request that names one is refused.
            texts.retain(|_, text| text.is_empty());
        }
        Ok(Self { texts, default: raw.default_prompt_name })
    }
}
