//! Tokenizers that are written as a list of tokens, as GGUF files have them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::utils::Sequence as Normalizers;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use super::bounds::ADDED_MAX;
use super::files::Prints;
use super::template::ChatTemplates;
use super::{TextCodec, TextParts};
use crate::Error;

/// A tokenizer as a list of tokens, and the chat templates beside it.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// `gpt2`: byte-level pairs, merged in order; `llama`: pieces, merged by score.
    pub model: String,
    /// How texts are cut before bytes are merged, by the name that GGUF files use.
    pub pre: Option<String>,
    /// All tokens, by id.
    pub tokens: Vec<String>,
    /// The pieces' scores, by id.
    pub scores: Vec<f32>,
    /// What each token is: 1 ordinary, 2 unknown, 3 control, 4 added by a user, 5 unused, 6 a byte.
    pub kinds: Vec<u8>,
    /// Pairs to merge, the first first, each with a space between.
    pub merges: Vec<String>,
    /// Special tokens' ids by role: `bos`, `eos`, `unknown`, `padding` and so on.
    pub special: BTreeMap<String, u32>,
    /// Whether a text begins with the first token; `None`: as the kind usually does.
    pub add_bos: Option<bool>,
    /// Whether a text ends with the last one.
    pub add_eos: Option<bool>,
    /// Whether a space is put before texts of pieces; `None`: yes.
    pub add_space_prefix: Option<bool>,
    /// Templates by name; the one for chats is `default`.
    pub templates: BTreeMap<String, String>,
}

/// The longest piece that is put together from others, in bytes. Real ones have some dozens;
/// each way to cut one in two is looked at.
const PIECE_MAX: usize = 512;
/// All merges have at most so many times the bytes of all pieces. Real ones have thrice as many;
/// repetitions of one character have a multiple that grows with their length.
const MERGES_MAX: usize = 16;
/// A small vocabulary may have as many bytes of merges whatever its pieces.
const MERGES_AT_LEAST: usize = 1 << 20;

const UNKNOWN: u8 = 2;
const CONTROL: u8 = 3;
const USER: u8 = 4;

/// Stands for a space in pieces.
const SPACE: &str = "\u{2581}";

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As Mistral's own files have it: llama.cpp's stands in for it where it has no classes of letters,
/// and cuts between letters and marks.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How texts are cut before bytes are merged.
struct Cutting {
    /// Applied one after the other, each to what the ones before left.
    patterns: &'static [&'static str],
    /// A cut that is a token is not merged from its bytes.
    takes_words_whole: bool,
    /// Whether a text begins with the first token unless the file says otherwise.
    begins: bool,
    composes: bool,
}

/// The ways that are known, by the name that GGUF files use; without a name, the oldest.
fn cutting(pre: Option<&str>) -> Option<Cutting> {
    let plain =
        |patterns| Cutting { patterns, takes_words_whole: false, begins: false, composes: false };
    Some(match pre {
        Some("llama-bpe" | "llama3" | "llama-v3") => {
            Cutting { takes_words_whole: true, begins: true, ..plain(&[LLAMA3]) }
        }
        // Phi-4 and SmolLM3 among others.
        Some("dbrx" | "smaug-bpe") => plain(&[LLAMA3]),
        Some("tekken") => Cutting { takes_words_whole: true, begins: true, ..plain(&[TEKKEN]) },
        Some("qwen2" | "deepseek-r1-qwen") => Cutting { composes: true, ..plain(&[QWEN2]) },
        Some("gpt-2") => plain(&[GPT2]),
        Some("smollm") => plain(&[r"\p{N}", GPT2]),
        Some("default") | None => {
            plain(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"])
        }
        Some(_) => return None,
    })
}

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

impl Vocabulary {
    /// Whether a tokenizer of that kind can be built, whatever its tokens.
    ///
    /// # Errors
    /// `ModelInvalid` with the name of what is not known.
    pub fn check(model: &str, pre: Option<&str>) -> Result<(), Error> {
        let what = match (model, pre) {
            ("llama", _) => return Ok(()),
            ("gpt2", _) if cutting(pre).is_some() => return Ok(()),
            ("gpt2", pre) => format!(
                "pre-tokenizer '{}' is not known; llama-bpe, smaug-bpe, dbrx, tekken, gpt-2, qwen2, \
                 deepseek-r1-qwen, smollm and default are",
                pre.unwrap_or_default().escape_debug()
            ),
            (other, _) => {
                format!("tokenizer '{}' is not known; gpt2 and llama are", other.escape_debug())
            }
        };
        Err(Error::Vocabulary(what))
    }

    fn token(&self, role: &str) -> Option<(&str, u32)> {
        let id = *self.special.get(role)?;
        Some((self.tokens.get(id as usize)?, id))
    }

    fn vocab(&self) -> Vocab {
        self.tokens.iter().cloned().zip(0..).collect()
    }

    fn tokenizer(&self) -> Outcome<Tokenizer> {
        let mut tokenizer = match self.model.as_str() {
            "llama" => self.pieces()?,
            _ => self.byte_pairs()?,
        };
        let is_added = |kind: u8| matches!(kind, UNKNOWN | CONTROL | USER);
        let named = self.tokens.iter().zip(&self.kinds);
        let bytes: usize = named.filter(|(_, kind)| is_added(**kind)).map(|(t, _)| t.len()).sum();
        if bytes > ADDED_MAX {
            let reason =
                format!("its control tokens have {bytes} bytes, and {ADDED_MAX} are the most");
            return Err(reason.into());
        }
        let added = self.tokens.iter().zip(&self.kinds).filter_map(|(text, kind)| match *kind {
            UNKNOWN | CONTROL => Some(AddedToken::from(text.clone(), true)),
            USER => Some(AddedToken::from(text.clone(), false).normalized(false)),
            _ => None,
        });
        tokenizer.add_tokens(added.collect::<Vec<_>>())?;
        let begins = match self.model.as_str() {
            "llama" => true,
            _ => cutting(self.pre.as_deref()).is_some_and(|cutting| cutting.begins),
        };
        let bos = self.token("bos").filter(|_| self.add_bos.unwrap_or(begins));
        let eos = self.token("eos").filter(|_| self.add_eos.unwrap_or(false));
        if bos.is_some() || eos.is_some() {
            let mut single: Vec<String> = Vec::new();
            single.extend(bos.map(|(text, _)| text.to_owned()));
            single.push("$A".to_owned());
            single.extend(eos.map(|(text, _)| text.to_owned()));
            let special: Vec<(String, u32)> =
                bos.into_iter().chain(eos).map(|(text, id)| (text.to_owned(), id)).collect();
            let post = TemplateProcessing::builder()
                .try_single(single)?
                .special_tokens(special)
                .build()?;
            tokenizer.with_post_processor(Some(post));
        }
        Ok(tokenizer)
    }

    /// Bytes as characters, merged in the order of the merges.
    fn byte_pairs(&self) -> Outcome<Tokenizer> {
        let cutting = cutting(self.pre.as_deref()).ok_or("its pre-tokenizer is not known")?;
        let merges = self.merges.iter().map(|merge| {
            let (first, second) = merge.split_once(' ').ok_or("a merge has no space")?;
            Ok((first.to_owned(), second.to_owned()))
        });
        let model = BPE::builder()
            .vocab_and_merges(self.vocab(), merges.collect::<Outcome<Vec<_>>>()?)
            .ignore_merges(cutting.takes_words_whole)
            .build()?;
        let mut tokenizer = Tokenizer::new(model);
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        for pattern in cutting.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
        }
        steps.push(ByteLevel::new(false, false, false).into());
        tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
        tokenizer.with_decoder(Some(ByteLevelDecoder::new(false, false, false)));
        if cutting.composes {
            tokenizer.with_normalizer(Some(NFC))?;
        }
        Ok(tokenizer)
    }

    /// Characters, merged by the scores of what they become; bytes where there is no token.
    fn pieces(&self) -> Outcome<Tokenizer> {
        let mut builder = BPE::builder()
            .vocab_and_merges(self.vocab(), self.merges_by_score()?)
            .fuse_unk(true)
            .byte_fallback(true);
        let unknown = self.kinds.iter().position(|kind| *kind == UNKNOWN);
        let unknown = self
            .token("unknown")
            .map(|(text, _)| text.to_owned())
            .or_else(|| unknown.and_then(|id| self.tokens.get(id).cloned()));
        if let Some(unknown) = unknown {
            builder = builder.unk_token(unknown);
        }
        let mut tokenizer = Tokenizer::new(builder.build()?);
        let begins_with_space = self.add_space_prefix.unwrap_or(true);
        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        let mut decoders: Vec<DecoderWrapper> = vec![
            Replace::new(SPACE, " ")?.into(),
            ByteFallback::default().into(),
            Fuse::default().into(),
        ];
        if begins_with_space {
            normalizers.push(Prepend::new(SPACE.to_owned()).into());
            decoders.push(Strip::new(' ', 1, 0).into());
        }
        normalizers.push(Replace::new(" ", SPACE)?.into());
        tokenizer.with_normalizer(Some(Normalizers::new(normalizers)))?;
        tokenizer.with_decoder(Some(Decoders::new(decoders)));
        Ok(tokenizer)
    }

    /// Every way to put a piece together from two, the pieces of the best scores first.
    fn merges_by_score(&self) -> Outcome<Vec<(String, String)>> {
        let ids: std::collections::HashMap<&str, usize> =
            self.tokens.iter().map(String::as_str).zip(0..).collect();
        let all: usize = self.tokens.iter().map(String::len).sum();
        let most = all.saturating_mul(MERGES_MAX).max(MERGES_AT_LEAST);
        let mut bytes = 0;
        let mut merges: Vec<(f32, usize, usize)> = Vec::new();
        for (id, text) in self.tokens.iter().enumerate() {
            if self.kinds.get(id).is_some_and(|kind| !matches!(*kind, 1 | USER)) {
                continue;
            }
            if text.len() > PIECE_MAX {
                let length = text.len();
                return Err(
                    format!("piece {id} has {length} bytes, and {PIECE_MAX} are the most").into()
                );
            }
            let score = self.scores.get(id).copied().unwrap_or(0.0);
            for (at, _) in text.char_indices().skip(1) {
                let (first, second) = text.split_at(at);
                if let (Some(first), Some(second)) = (ids.get(first), ids.get(second)) {
                    merges.push((score, *first, *second));
                    bytes += text.len();
                }
            }
            if bytes > most {
                return Err("its pieces are put together in more ways than any vocabulary's".into());
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let text = |id: usize| self.tokens[id].clone();
        Ok(merges.into_iter().map(|(_, first, second)| (text(first), text(second))).collect())
    }
}

impl TextCodec {
    /// Builds a codec from a list of tokens. Takes time in its length: belongs on a blocking
    /// thread.
    ///
    /// # Errors
    /// `ModelInvalid` where the tokenizer is of a kind that is not known, or contradicts itself.
    pub fn from_vocabulary(vocabulary: Vocabulary) -> Result<Self, Error> {
        Vocabulary::check(&vocabulary.model, vocabulary.pre.as_deref())?;
        if vocabulary.tokens.is_empty() {
            return Err(Error::Vocabulary("it has no tokens".into()));
        }
        let tokenizer =
            vocabulary.tokenizer().map_err(|error| Error::Vocabulary(error.to_string()))?;
        let special = vocabulary.special.keys().filter_map(|role| {
            let role_of_template = match role.as_str() {
                "unknown" => "unk",
                "padding" => "pad",
                other => other,
            };
            Some((format!("{role_of_template}_token"), vocabulary.token(role)?.0.to_owned()))
        });
        let special = special.collect();
        Ok(Self::assemble(TextParts {
            tokenizer,
            eos: vocabulary.token("eos").map(|(_, id)| id),
            encoder_limit: None,
            truncate_left: false,
            templates: Arc::new(ChatTemplates::new(vocabulary.templates, special)),
            prints: Prints::default(),
        }))
    }
}

#[cfg(test)]
mod tests;
