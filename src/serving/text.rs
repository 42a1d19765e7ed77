//! An artefact's text: tokenizer, special tokens, chat template.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use roundhouse_types::Bytes;
use serde_json::{Map, Value};
use tokenizers::tokenizer::{PostProcessor, TruncationDirection};
use tokenizers::{ModelWrapper, Tokenizer};

use crate::constrain::Speller;
use crate::rendering::Render;
use crate::tools::CallFormat;
use crate::{Error, Opening};
use files::{Prints, TextFiles};
use template::ChatTemplates;

mod beside;
mod bounds;
mod charsmap;
mod cut;
mod detokenise;
mod files;
mod marks;
mod messages;
mod stop;
mod template;
#[cfg(test)]
pub(crate) mod tests;
mod vocabulary;

pub use beside::AdapterText;
pub(crate) use detokenise::Detokeniser;
pub(crate) use marks::{Marked, Shorten, Windows};
pub(crate) use stop::{Scan, StopMatcher, overlap};
pub use vocabulary::Vocabulary;

/// What a tokenizer is read from.
const TOKENIZER: &str = "tokenizer.json";

/// Turns an artefact's texts into tokens and back. Immutable; clones share everything.
#[derive(Debug, Clone)]
pub struct TextCodec {
    tokenizer: Arc<Tokenizer>,
    facts: Arc<Facts>,
    /// Tokens of an input at most; longer ones are cut.
    limit: Option<usize>,
}

#[derive(Debug)]
struct Facts {
    /// Ids that [`TextCodec::decode`] leaves out.
    special: HashSet<u32>,
    /// An ordinary token, to see what another looks like behind it.
    neighbour: Option<(u32, String)>,
    eos: Option<u32>,
    /// The artefact's own limit for encoders.
    encoder_limit: Option<usize>,
    truncate_left: bool,
    templates: Arc<ChatTemplates>,
    /// What forms are spelt with; shared by those that share the tokenizer.
    speller: Arc<OnceLock<Speller>>,
    /// What it was read from; empty where that was no folder.
    prints: Prints,
}

/// What a codec is made of, wherever it was read from.
struct TextParts {
    tokenizer: Tokenizer,
    eos: Option<u32>,
    encoder_limit: Option<usize>,
    truncate_left: bool,
    templates: Arc<ChatTemplates>,
    prints: Prints,
}

impl TextCodec {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `chat_template.jinja` and `sentence_bert_config.json` from an artefact's folder. All but
    /// the first may be missing. Blocks on the disk.
    ///
    /// Truncation and padding stored in `tokenizer.json` are switched off: a prompt is never
    /// shortened in silence, and batches are packed, not padded.
    ///
    /// # Errors
    /// `ModelInvalid` where `tokenizer.json` is missing, a file is broken, or a tokenizer would take
    /// far more memory than its file. Chat templates are not looked into: one that cannot be parsed
    /// is reported when a chat needs it.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(TOKENIZER);
        let bytes = match std::fs::metadata(&path) {
            Ok(file) if file.len() > bounds::FILE_MAX => {
                let most = bounds::FILE_MAX;
                let reason = format!("it has {} bytes, and {most} are the most", file.len());
                return Err(Error::Tokenizer(reason.into()));
            }
            _ => std::fs::read(&path),
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoTokenizer { seen: files::names(dir)? });
            }
            Err(source) => return Err(Error::Read { path, source }),
        };
        let (tokenizer, cuts_left) = parsed(&bytes)?;
        let (prints, files) = (Prints::of(dir)?, TextFiles::read(dir)?);
        let eos = files.special.get("eos_token").and_then(|token| tokenizer.token_to_id(token));
        Ok(Self::assemble(TextParts {
            tokenizer,
            eos,
            encoder_limit: files.max_seq_length.or(files.model_max_length),
            truncate_left: files.truncate_left || cuts_left,
            templates: Arc::new(ChatTemplates::new(files.templates, files.special)),
            prints,
        }))
    }

    /// Whether [`TextCodec::open`] could find what it needs in a folder of these files, by their
    /// paths in it.
    ///
    /// # Errors
    /// `ModelInvalid` where `tokenizer.json` is missing.
    pub fn check<'a>(paths: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        let mut names: Vec<String> =
            paths.filter(|path| !path.contains('/')).map(str::to_owned).collect();
        match names.iter().any(|name| name == TOKENIZER) {
            true => Ok(()),
            false => {
                names.sort();
                Err(Error::NoTokenizer { seen: files::listed(names) })
            }
        }
    }

    fn assemble(mut parts: TextParts) -> Self {
        forget_words(&mut parts.tokenizer);
        let TextParts { tokenizer, eos, encoder_limit, truncate_left, templates, prints } = parts;
        let special = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter_map(|(id, token)| token.special.then_some(id))
            .collect();
        let facts = Facts {
            neighbour: neighbour(&tokenizer, &special),
            special,
            eos,
            encoder_limit,
            truncate_left,
            templates,
            speller: Arc::default(),
            prints,
        };
        Self { tokenizer: Arc::new(tokenizer), facts: Arc::new(facts), limit: None }
    }

    /// The same codec for an encoder: texts are cut so that with their special tokens, the
    /// closing one included, they fit `context` and the artefact's own limit, which is
    /// `max_seq_length` of `sentence_bert_config.json`, else `model_max_length`.
    ///
    /// # Errors
    /// `ModelInvalid` where the special tokens alone fill the limit.
    pub fn truncated_to(self, context: usize) -> Result<Self, Error> {
        let limit = self.facts.encoder_limit.map_or(context, |own| own.min(context));
        let special =
            self.tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(false));
        if limit <= special {
            return Err(Error::Truncation { limit, special });
        }
        Ok(Self { limit: Some(limit), ..self })
    }

    /// The tokens of a text. With `add_special` the artefact's post-processor adds what it adds
    /// (a beginning-of-sequence token, `[CLS]` and `[SEP]`); without, nothing is added. Special
    /// tokens written out in the text count as such either way. Takes time in the text's length:
    /// belongs on a blocking thread.
    ///
    /// # Errors
    /// `ModelInvalid` where the vocabulary cannot express the text and has no unknown token.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Error> {
        let encoding = self.tokenizer.encode_fast(text, add_special).map_err(Error::Tokenise)?;
        Ok(self.fitted_ids(&encoding))
    }

    /// The text of tokens, special tokens and ids outside the vocabulary left out.
    ///
    /// # Errors
    /// `ModelInvalid` where the artefact's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.tokenizer.decode(ids, true).map_err(Error::Tokenise)
    }

    /// One token's text as it reads inside a sentence, so with its leading space; a special
    /// token's name; empty for an id outside the vocabulary. Bytes that are no character by
    /// themselves read as U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        if self.is_special(id) {
            return self.tokenizer.id_to_token(id).unwrap_or_default();
        }
        let behind = self.facts.neighbour.as_ref().and_then(|(neighbour, text)| {
            let both = self.decode(&[*neighbour, id]).ok()?;
            both.strip_prefix(text).map(str::to_owned)
        });
        behind.or_else(|| self.decode(&[id]).ok()).unwrap_or_default()
    }

    /// Whether the id is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.facts.special.contains(&id)
    }

    /// All special tokens by name, the longest name first.
    pub(crate) fn special_tokens(&self) -> Vec<(String, u32)> {
        let added = self.tokenizer.get_added_tokens_decoder().into_iter();
        let special = added.filter(|(_, token)| token.special && !token.content.is_empty());
        let mut special: Vec<_> = special.map(|(id, token)| (token.content, id)).collect();
        special.sort_by(|(one, _), (other, _)| other.len().cmp(&one.len()).then(one.cmp(other)));
        special
    }

    /// Whether the id has no part in decoded text: special, or outside the vocabulary.
    pub(crate) fn is_silent(&self, id: u32) -> bool {
        self.is_special(id) || self.tokenizer.id_to_token(id).is_none()
    }

    /// How the template for chats with tools shows the model to call them, where that is known.
    pub(crate) fn call_format(&self) -> Option<CallFormat> {
        self.facts.templates.call_format()
    }

    /// The library's tokenizer, to be looked at.
    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What forms are compiled with, built at the first call. Takes time: belongs on a blocking
    /// thread.
    ///
    /// # Errors
    /// `ModelInvalid` for a vocabulary that is larger than any real one.
    pub(crate) fn speller(&self) -> Result<&Speller, Error> {
        let speller = &self.facts.speller;
        if let Some(known) = speller.get() {
            return Ok(known);
        }
        // Two at once build it twice, and one of them is dropped: nobody waits on another.
        let built = Speller::new(self)?;
        Ok(speller.get_or_init(|| built))
    }

    /// What the first answer of a given form adds to the memory that this takes, at most; it stays
    /// as long as this does.
    pub fn room_for_forms(&self) -> Bytes {
        Bytes(Speller::bytes_of(self.tokenizer.get_vocab_size(true)))
    }

    /// What of that has not been taken.
    pub fn untouched_room(&self) -> Bytes {
        if self.facts.speller.get().is_some() { Bytes::ZERO } else { self.room_for_forms() }
    }

    /// The end-of-sequence token that `tokenizer_config.json` names.
    pub fn eos_token(&self) -> Option<u32> {
        self.facts.eos
    }

    /// Whether the artefact has a chat template.
    pub fn has_chat_template(&self) -> bool {
        !self.facts.templates.is_empty()
    }

    /// The prompt of a chat, by the artefact's template, that ends with its `opening`
    /// (`add_generation_prompt`, unless the variables beside it say otherwise). The template holds the
    /// special tokens: encode the result without adding any. Blocks for as long as `render` does.
    ///
    /// # Errors
    /// `InvalidInput` for a message without role or content, content that is not text, an
    /// artefact without a template, and whatever the template raises, with its line; and what
    /// `render` says.
    pub fn render_chat(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        (kwargs, opening): (&Map<String, Value>, Opening),
        render: Render,
    ) -> Result<String, Error> {
        self.facts.templates.render(messages, tools, (kwargs, opening), render)
    }
}

/// A tokenizer of a file, without the truncation and padding that it stores, and whether that
/// truncation cuts at the left.
fn parsed(bytes: &[u8]) -> Result<(Tokenizer, bool), Error> {
    bounds::check(bytes).map_err(Error::Tokenizer)?;
    // The library panics where it has not thought of what a file says.
    let read = std::panic::catch_unwind(|| Tokenizer::from_bytes(bytes));
    let gave_up = |_| Err("the library that reads tokenizers gave up".into());
    let mut tokenizer = read.unwrap_or_else(gave_up).map_err(Error::Tokenizer)?;
    let stored = tokenizer.get_truncation();
    let cuts_left = stored.is_some_and(|stored| stored.direction == TruncationDirection::Left);
    tokenizer.with_truncation(None).map_err(Error::Tokenizer)?;
    tokenizer.with_padding(None);
    Ok((tokenizer, cuts_left))
}

/// Takes away the caches of words that the library keeps for speed: 10,000 words per model and,
/// for byte pairs, per thread, which outlive the tokenizer. A model would grow with every
/// text after it was charged, and its threads would remember models that left long ago.
/// Costs a microsecond per word of a text.
fn forget_words(tokenizer: &mut Tokenizer) {
    match tokenizer.get_model() {
        ModelWrapper::BPE(model) => {
            let mut model = model.clone();
            model.resize_cache(0);
            tokenizer.with_model(model);
        }
        ModelWrapper::Unigram(model) => {
            let mut model = model.clone();
            model.resize_cache(0);
            tokenizer.with_model(model);
        }
        ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) => {}
    }
}

/// An ordinary token whose text is known to be non-empty.
fn neighbour(tokenizer: &Tokenizer, special: &HashSet<u32>) -> Option<(u32, String)> {
    let encoding = tokenizer.encode_fast("a", false).ok()?;
    let id = *encoding.get_ids().last()?;
    let text = tokenizer.decode(&[id], true).ok()?;
    (!special.contains(&id) && !text.is_empty() && !text.contains('\u{FFFD}')).then_some((id, text))
}
