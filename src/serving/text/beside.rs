//! An adapter's text: its base's, and what files of its own say otherwise.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::files::{Prints, TOKENIZER, TextFiles};
use super::template::ChatTemplates;
use super::{TextCodec, TextParts, parsed};
use crate::Error;

/// An adapter's text as far as it is not its base's: of that one's tokenizer it holds nothing.
#[derive(Debug, Clone)]
pub struct AdapterText(Own);

#[derive(Debug, Clone)]
enum Own {
    /// Its base's.
    Nothing,
    /// What small files say otherwise.
    Files {
        eos: Option<u32>,
        templates: Option<Arc<ChatTemplates>>,
    },
    Tokenizer(Arc<TextCodec>),
}

impl AdapterText {
    /// The adapter's codec beside its base's, which it shares what it can with.
    pub fn on(&self, base: &Arc<TextCodec>) -> Arc<TextCodec> {
        match &self.0 {
            Own::Nothing => Arc::clone(base),
            Own::Files { eos, templates } => Arc::new(base.with_files(*eos, templates.as_ref())),
            Own::Tokenizer(codec) => Arc::clone(codec),
        }
    }

    /// Whether it holds anything.
    pub fn is_own(&self) -> bool {
        !matches!(self.0, Own::Nothing)
    }
}

impl TextCodec {
    /// The text of an adapter whose files lie in `dir`, beside `self`, its base's: nothing of its own
    /// where they hold no text files or the base's again. A chat template of its own is used with
    /// the base's tokenizer. A tokenizer of its own may have at most the base's `vocabulary`, in tokens,
    /// and is cut to `context` where that is given ([`truncated_to`](Self::truncated_to)). Blocks on the
    /// disk.
    ///
    /// # Errors
    /// `ModelInvalid` for broken files, and for tokens beyond the vocabulary.
    pub fn of_adapter(
        &self,
        dir: &Path,
        vocabulary: usize,
        context: Option<usize>,
    ) -> Result<AdapterText, Error> {
        let prints = Prints::of(dir)?;
        if prints.are_in(&self.facts.prints) {
            return Ok(AdapterText(Own::Nothing));
        }
        let files = TextFiles::read(dir)?;
        if !prints.has(TOKENIZER) || prints.agree(&self.facts.prints, TOKENIZER) {
            let eos = files.special.get("eos_token").and_then(|it| self.tokenizer.token_to_id(it));
            let templates = self.own_templates(files);
            return Ok(AdapterText(Own::Files { eos, templates }));
        }
        let path = dir.join(TOKENIZER);
        let bytes = fs::read(&path).map_err(|source| Error::Read { path, source })?;
        let (tokenizer, cuts_left) = parsed(&bytes)?;
        drop(bytes);
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= vocabulary {
            return Err(Error::Tokens { largest, vocabulary });
        }
        let own_eos = files.special.get("eos_token").and_then(|it| tokenizer.token_to_id(it));
        let codec = Self::assemble(TextParts {
            tokenizer,
            eos: own_eos.or(self.facts.eos),
            encoder_limit: files
                .max_seq_length
                .or(files.model_max_length)
                .or(self.facts.encoder_limit),
            truncate_left: files.truncate_left || cuts_left,
            templates: self
                .own_templates(files)
                .unwrap_or_else(|| Arc::clone(&self.facts.templates)),
            prints,
        });
        let codec = match context {
            Some(context) => codec.truncated_to(context)?,
            None => codec,
        };
        Ok(AdapterText(Own::Tokenizer(Arc::new(codec))))
    }

    /// The same tokenizer with what an adapter's small files say.
    fn with_files(&self, eos: Option<u32>, templates: Option<&Arc<ChatTemplates>>) -> Self {
        let facts = super::Facts {
            special: self.facts.special.clone(),
            neighbour: self.facts.neighbour.clone(),
            eos: eos.or(self.facts.eos),
            encoder_limit: self.facts.encoder_limit,
            truncate_left: self.facts.truncate_left,
            templates: Arc::clone(templates.unwrap_or(&self.facts.templates)),
            speller: Arc::clone(&self.facts.speller),
            prints: self.facts.prints.clone(),
        };
        let tokenizer = Arc::clone(&self.tokenizer);
        Self { tokenizer, facts: Arc::new(facts), limit: self.limit }
    }

    /// The files' templates if there are any, with their special tokens where they name some.
    fn own_templates(&self, files: TextFiles) -> Option<Arc<ChatTemplates>> {
        if files.templates.is_empty() {
            return None;
        }
        let mut special = self.facts.templates.special().clone();
        special.extend(files.special);
        Some(Arc::new(ChatTemplates::new(files.templates, special)))
    }
}
