//! What a GGUF file's tokenizer is made of, as it is written there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{Header, Value};
use crate::Error;
use crate::files::{Folder, io_error, read_gguf_header};

/// A tokenizer and the chat templates beside it, by what the file calls them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufText {
    /// `gpt2` (byte pairs) or `llama` (pieces with scores), or what we do not know.
    pub model: String,
    /// How texts are cut before tokens are merged.
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
    /// Whether a text begins with the first token.
    pub add_bos: Option<bool>,
    /// Whether a text ends with the last one.
    pub add_eos: Option<bool>,
    /// Whether a space is put before texts.
    pub add_space_prefix: Option<bool>,
    /// Templates by name; the one for chats is `default`.
    pub templates: BTreeMap<String, String>,
}

/// Reads what a GGUF file's tokenizer is made of. Blocking.
///
/// # Errors
/// When the file cannot be read or its header is unsound.
pub fn gguf_text(dir: &Path, file: &str) -> Result<GgufText, Error> {
    let size = fs::metadata(dir.join(file)).map_err(|source| io_error(file, source))?.len();
    let first = read_gguf_header(&Folder::new(dir), file, size)?;
    match Header::parse(file, size, &first)? {
        Some(header) => Ok(GgufText::of(&header.metadata)),
        None => Err(Error::header(file, "it ends inside its header")),
    }
}

impl GgufText {
    fn of(metadata: &BTreeMap<&str, Value<'_>>) -> Self {
        let get = |key: &str| metadata.get(format!("tokenizer.{key}").as_str()).copied();
        let text = |key: &str| match get(key) {
            Some(Value::Text(text)) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        };
        let switch = |key: &str| match get(key) {
            Some(Value::Bool(is_on)) => Some(is_on),
            _ => None,
        };
        let texts = |key: &str| match get(key) {
            Some(Value::Array(array)) => array.texts().collect(),
            _ => Vec::new(),
        };
        let numbers = |key: &str| match get(key) {
            Some(Value::Array(array)) => array.numbers().collect(),
            _ => Vec::new(),
        };
        Self {
            model: text("ggml.model").unwrap_or_default(),
            pre: text("ggml.pre"),
            tokens: texts("ggml.tokens"),
            scores: numbers("ggml.scores").into_iter().map(|score| score as f32).collect(),
            kinds: numbers("ggml.token_type").into_iter().map(kind).collect(),
            merges: texts("ggml.merges"),
            special: special(metadata),
            add_bos: switch("ggml.add_bos_token"),
            add_eos: switch("ggml.add_eos_token"),
            add_space_prefix: switch("ggml.add_space_prefix"),
            templates: templates(metadata),
        }
    }
}

fn kind(number: f64) -> u8 {
    (1..=6).find(|kind| f64::from(*kind) == number).unwrap_or(0)
}

/// Every `tokenizer.ggml.…_token_id`.
fn special(metadata: &BTreeMap<&str, Value<'_>>) -> BTreeMap<String, u32> {
    let named = |(key, value): (&&str, &Value<'_>)| {
        let role = key.strip_prefix("tokenizer.ggml.")?.strip_suffix("_token_id")?;
        let id = match value {
            Value::Unsigned(id) => u32::try_from(*id).ok()?,
            Value::Signed(id) => u32::try_from(*id).ok()?,
            _ => return None,
        };
        Some((role.to_owned(), id))
    };
    metadata.iter().filter_map(named).collect()
}

fn templates(metadata: &BTreeMap<&str, Value<'_>>) -> BTreeMap<String, String> {
    const KEY: &str = "tokenizer.chat_template";
    let named = |(key, value): (&&str, &Value<'_>)| {
        let name = match key.strip_prefix(KEY)? {
            "" => "default",
            name => name.strip_prefix('.')?,
        };
        let Value::Text(text) = value else { return None };
        Some((name.to_owned(), String::from_utf8_lossy(text).into_owned()))
    };
    metadata.iter().filter_map(named).collect()
}
