//! An adapter's text: its base's, and what files of its own say otherwise.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::files::{Prints, TOKENIZER, TextFiles};
use super::template::ChatTemplates;
use super::{TextCodec, TextParts, parsed};
use crate::Error;

impl TextCodec {
    /// The codec of an adapter whose files lie in `dir`: `self`, its base's, where they hold no text
    /// files or the base's again; then nothing is held twice. A chat template of its own is used with
    /// the base's tokenizer. A tokenizer of its own may have at most the base's `vocabulary`, in tokens,
    /// and is cut to `context` where that is given ([`truncated_to`](Self::truncated_to)). Blocks on the
    /// disk.
    ///
    /// # Errors
    /// `ModelInvalid` for broken files, and for tokens beyond the vocabulary.
    pub fn of_adapter(
        self: &Arc<Self>,
        dir: &Path,
        vocabulary: usize,
        context: Option<usize>,
    ) -> Result<Arc<Self>, Error> {
        let prints = Prints::of(dir)?;
        if prints.are_in(&self.facts.prints) {
            return Ok(Arc::clone(self));
        }
        let files = TextFiles::read(dir)?;
        if !prints.has(TOKENIZER) || prints.agree(&self.facts.prints, TOKENIZER) {
            return Ok(Arc::new(self.with_files(files)));
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
            templates: self.templates(files),
            prints,
        });
        match context {
            Some(context) => codec.truncated_to(context).map(Arc::new),
            None => Ok(Arc::new(codec)),
        }
    }

    /// The same tokenizer with what an adapter's small files say.
    fn with_files(&self, files: TextFiles) -> Self {
        let eos = files.special.get("eos_token").and_then(|it| self.tokenizer.token_to_id(it));
        let facts = super::Facts {
            special: self.facts.special.clone(),
            neighbour: self.facts.neighbour.clone(),
            eos: eos.or(self.facts.eos),
            encoder_limit: self.facts.encoder_limit,
            truncate_left: self.facts.truncate_left,
            templates: self.templates(files),
            speller: Arc::clone(&self.facts.speller),
            prints: self.facts.prints.clone(),
        };
        let tokenizer = Arc::clone(&self.tokenizer);
        Self { tokenizer, facts: Arc::new(facts), limit: self.limit }
    }

    /// The files' templates, with their special tokens where they name any; else the base's.
    fn templates(&self, files: TextFiles) -> Arc<ChatTemplates> {
        if files.templates.is_empty() {
            return Arc::clone(&self.facts.templates);
        }
        let mut special = self.facts.templates.special().clone();
        special.extend(files.special);
        Arc::new(ChatTemplates::new(files.templates, special))
    }
}
