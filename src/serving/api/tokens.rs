//! What a model's tokenizer is asked, and says.

use roundhouse_types::ModelKind;
use serde_json::{Map, Value};

use crate::room::Taken;

/// What is asked of a model's tokenizer; the model itself computes nothing.
#[derive(Debug, Clone)]
pub enum Tokens {
    /// Texts as tokens.
    Cut {
        /// The texts, at least one.
        texts: Vec<String>,
        /// Whether the tokens that go around a text are among them.
        special: bool,
    },
    /// A chat, as its template writes it, as tokens.
    Chat {
        /// The messages as the template will see them.
        messages: Vec<Value>,
        /// Further variables for the template.
        template_kwargs: Map<String, Value>,
        /// Whether tokens go around what the template has written.
        special: bool,
    },
    /// Lists of tokens as texts.
    Join {
        /// The lists, at least one.
        lists: Vec<Vec<u32>>,
        /// Whether special tokens are left out.
        skip_special: bool,
    },
}

/// What a tokenizer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokensReply {
    /// The tokens of each text; none where tokens were given.
    pub lists: Vec<Vec<CutToken>>,
    /// The text of each list of tokens.
    pub texts: Vec<String>,
    /// What kind of model the tokenizer is of.
    pub kind: ModelKind,
    /// The longest sequence that is served, in tokens.
    pub context: usize,
    /// The memory that this takes: to be held until it has gone out.
    pub taken: Taken,
}

/// A token of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutToken {
    /// Its id.
    pub id: u32,
    /// As the vocabulary writes it.
    pub name: String,
    /// The part of the text that it stands for; empty where it goes around the text.
    pub text: String,
    /// Whether it goes around the text.
    pub special: bool,
    /// Where it begins in the text, in characters.
    pub start: usize,
    /// Where it ends, in characters.
    pub end: usize,
}
