//! Compiles forms for one tokenizer.

use std::sync::Arc;

use llguidance::api::ParserLimits;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use roundhouse_types::TenantName;

use super::follower::Follower;
use super::form::Grammar;
use super::kept::{self, Kept};
use super::vocabulary::{last_token, token_bytes};
use crate::{Error, TextCodec};

/// Bytes of all tokens at most: the library's trie has 22 bits for its nodes. The largest
/// vocabularies we know have a third of it.
const VOCABULARY_BYTES_MAX: usize = (1 << 22) - 1;
/// Tokens at most: their ids have 24 bits, of which all ones mean none.
const TOKENS_MAX: usize = (1 << 24) - 2;
/// Ids that may be missing, beside as many as there are tokens.
const SPARE: usize = 4096;
/// What a speller takes per token, rounded up: 118 with 128,000 byte pairs, 44 with 32,000 pieces.
const BYTES_PER_TOKEN: u64 = 128;
/// What most tokens are inside a JSON string. Where all of them may come, they are not looked at one
/// by one. More of such classes cost more memory than they save time.
const INSIDE_STRINGS: &str = r#"[^"\\\x00-\x1F\x7F]+"#;

/// As the lane's, where forms are followed: the worst of the tests needs 8 MiB. Only what is touched
/// takes memory.
const STACK_BYTES: usize = 64 << 20;

/// What compiling a form and following it may take, in the library's own counts. Beside each the
/// time that it takes on the machine of `loadtest/results`.
fn limits() -> ParserLimits {
    ParserLimits {
        // At most a third of a second to compile.
        initial_lexer_fuel: 1_000_000,
        max_grammar_size: 100_000,
        // Some milliseconds per token.
        step_lexer_fuel: 60_000,
        step_max_items: 50_000,
        max_items_in_row: 2_000,
        // One or two kilobytes each.
        max_lexer_states: 8_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// Knows a tokenizer's tokens byte by byte, and makes constraints of forms. Immutable, but for the forms
/// that it keeps; built once per tokenizer.
pub(crate) struct Speller {
    factory: ParserFactory,
    kept: Kept<Matcher>,
    /// Stands for the end of the text where the library wants a token for it. Past all real ones.
    end: u32,
}

/// A form that was compiled, to be followed by any number of sequences of one request.
pub(crate) struct Compiled {
    matcher: Matcher,
    end: u32,
}

impl std::fmt::Debug for Speller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Speller").field("end", &self.end).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compiled")
    }
}

impl Speller {
    /// Takes a tokenizer apart. Takes a second for a large one: belongs on a blocking thread.
    ///
    /// # Errors
    /// `ModelInvalid` for a vocabulary larger than any real one.
    pub(crate) fn new(codec: &TextCodec) -> Result<Self, Error> {
        let refused = |what: String| Error::Vocabulary(format!("answers of a form: {what}"));
        // By the largest id, which an artefact's author may choose as he likes.
        let (count, known) = (last_token(codec), codec.tokenizer().get_vocab_size(true));
        if count > TOKENS_MAX || count > 2 * known + SPARE {
            return Err(refused(format!("ids of tokens up to {count} for {known} tokens")));
        }
        let mut tokens = token_bytes(codec, TokTrie::SPECIAL_TOKEN_MARKER);
        let bytes: usize = tokens.iter().map(Vec::len).sum();
        if tokens.len() > TOKENS_MAX || bytes > VOCABULARY_BYTES_MAX {
            return Err(refused(format!("{} tokens of {bytes} bytes are too many", tokens.len())));
        }
        let end = u32::try_from(tokens.len()).expect("fewer than 2^24");
        tokens.push([&[TokTrie::SPECIAL_TOKEN_MARKER][..], b"<end of text>"].concat());
        let trie = TokTrie::from(&TokRxInfo::new(end + 1, end), &tokens);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = [INSIDE_STRINGS.to_owned()];
        let mut factory =
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
                .map_err(|error| refused(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory, kept: Kept::new(kept::room(known)), end })
    }

    /// What a speller of so many tokens takes, at most, with the forms that it keeps.
    pub(crate) fn bytes_of(tokens: usize) -> u64 {
        BYTES_PER_TOKEN.saturating_mul(tokens as u64) + kept::room(tokens)
    }

    /// Compiles a form, on a thread of its own with a large stack, unless it is kept from an earlier
    /// request of the same tenant. Takes time within the limits: belongs on a blocking thread.
    ///
    /// # Errors
    /// `InvalidInput` that names the field, and what in the form cannot be followed.
    pub(crate) fn compile(
        &self,
        grammar: Grammar,
        tenant: Option<&TenantName>,
    ) -> Result<Compiled, Error> {
        let Grammar { field, top } = grammar;
        let text = serde_json::to_string(&top).map_err(|_| Error::Interrupted)?;
        // What a request's sequences learn of the form stays theirs: a form that is kept does not grow.
        let matcher = self.kept.get_or(tenant, text, Matcher::deep_clone, || {
            let compile = || {
                let mut matcher = Matcher::new(self.factory.create_parser(top));
                // What does not even begin is told now rather than in the stream.
                matcher.compute_mask().map(|_| matcher)
            };
            on_large_stack(compile)?.map_err(|error| Error::field(field, said(&error.to_string())))
        })?;
        Ok(Compiled { matcher, end: self.end })
    }
}

/// Does work that may recurse as deep as a form is nested. A stack that overflows ends the process.
///
/// # Errors
/// Where the system gives no thread, or the work panicked.
pub(super) fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("form".to_owned()).stack_size(STACK_BYTES);
        let thread = builder.spawn_scoped(scope, work).map_err(|_| Error::Interrupted)?;
        thread.join().map_err(|_| Error::Interrupted)
    })
}

impl Compiled {
    /// For one sequence.
    pub(crate) fn follower(&self) -> Follower {
        // All sequences of a request share the lexer's states.
        Follower::new(self.matcher.clone(), self.end)
    }
}

/// What the library says, without what is for its makers.
pub(super) fn said(message: &str) -> String {
    const CHARACTERS_MAX: usize = 500;
    let told = message.split("\n<").next().unwrap_or_default();
    if told.starts_with("panic") {
        return "the form cannot be compiled".to_owned();
    }
    told.chars().take(CHARACTERS_MAX).collect()
}
