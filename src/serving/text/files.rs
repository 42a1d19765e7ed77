//! The artefact's small text files: what they say beside `tokenizer.json`.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::path::Path;
use std::{fs, io};

use serde::Deserialize;
use serde_json::Value;

use super::bounds::FILE_MAX;
use crate::Error;

/// Hugging Face writes 10^30 for "no limit"; nothing real is near this.
const LENGTH_UNSET: f64 = 1e9;
/// The largest file beside the tokenizer: real ones have some kilobytes, templates included.
const SMALL_MAX: u64 = 16 << 20;
/// How many names an error lists of a folder that lacks its tokenizer.
const NAMES_SHOWN: usize = 20;

/// The files that a codec is read from.
const FILES: [&str; 5] = [
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "sentence_bert_config.json",
];
pub(super) const TOKENIZER: &str = "tokenizer.json";

/// Lengths and hashes of the files that a codec was read from, to see whether an adapter's own are
/// its base's again. The hash need not be safe: who makes two files collide fools his own adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Prints(BTreeMap<&'static str, (usize, u64)>);

impl Prints {
    /// Of a folder's files, as far as they are there.
    pub(super) fn of(dir: &Path) -> Result<Self, Error> {
        let mut prints = BTreeMap::new();
        for name in FILES {
            let path = dir.join(name);
            let most = if name == TOKENIZER { FILE_MAX } else { SMALL_MAX };
            let size = fs::metadata(&path).map_or(0, |file| file.len());
            if size > most {
                let reason = format!("{name} has {size} bytes, and {most} are the most");
                return Err(Error::Tokenizer(reason.into()));
            }
            match fs::read(&path) {
                Ok(bytes) => drop(prints.insert(name, print(&bytes))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::Read { path, source }),
            }
        }
        Ok(Self(prints))
    }

    /// Whether each of these files is the same in `other`.
    pub(super) fn are_in(&self, other: &Self) -> bool {
        self.0.iter().all(|(name, print)| other.0.get(name) == Some(print))
    }

    /// Whether one of the files is the same in both.
    pub(super) fn agree(&self, other: &Self, name: &str) -> bool {
        self.0.get(name).is_some_and(|print| other.0.get(name) == Some(print))
    }

    /// Whether the file is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

fn print(bytes: &[u8]) -> (usize, u64) {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    (bytes.len(), hasher.finish())
}

/// What the artefact's files say about its text.
#[derive(Debug, Default)]
pub(super) struct TextFiles {
    /// Templates by name; the one for chats is `default`.
    pub(super) templates: BTreeMap<String, String>,
    /// Special tokens by role: `bos_token`, `eos_token` and so on.
    pub(super) special: BTreeMap<String, String>,
    /// `model_max_length`, where it is a limit.
    pub(super) model_max_length: Option<usize>,
    /// `max_seq_length` of sentence-transformers.
    pub(super) max_seq_length: Option<usize>,
    /// `truncation_side` is `left`.
    pub(super) truncate_left: bool,
}

#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    model_max_length: Option<f64>,
    truncation_side: Option<String>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Debug, Default, Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
}

impl TextFiles {
    /// Reads what is there. A file that is missing says nothing; one that is broken is an error.
    pub(super) fn read(dir: &Path) -> Result<Self, Error> {
        let config: TokenizerConfig = json(dir, "tokenizer_config.json")?.unwrap_or_default();
        let map: BTreeMap<String, Value> =
            json(dir, "special_tokens_map.json")?.unwrap_or_default();
        let sentence: SentenceConfig = json(dir, "sentence_bert_config.json")?.unwrap_or_default();

        let mut special = special_tokens(&map);
        special.extend(special_tokens(&config.other));
        let mut templates: BTreeMap<String, String> = match config.chat_template {
            None => BTreeMap::new(),
            Some(Templates::One(template)) => [("default".to_owned(), template)].into(),
            Some(Templates::Named(list)) => {
                list.into_iter().map(|named| (named.name, named.template)).collect()
            }
        };
        if let Some(template) = text(&dir.join("chat_template.jinja"))? {
            templates.insert("default".to_owned(), template);
        }
        Ok(Self {
            templates,
            special,
            model_max_length: config.model_max_length.and_then(length),
            max_seq_length: sentence.max_seq_length,
            truncate_left: config.truncation_side.as_deref() == Some("left"),
        })
    }
}

/// The names in a folder, for an error that says what was found instead.
pub(super) fn names(dir: &Path) -> Result<String, Error> {
    let read = |source| Error::Read { path: dir.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(read)? {
        names.push(entry.map_err(read)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(listed(names))
}

/// Names in their order, not too many of them.
pub(super) fn listed(mut names: Vec<String>) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let more = names.len().saturating_sub(NAMES_SHOWN);
    names.truncate(NAMES_SHOWN);
    let listed = names.join(", ");
    if more > 0 { format!("{listed} and {more} more") } else { listed }
}

/// A file's text, or `None` where it does not exist.
pub(super) fn text(path: &Path) -> Result<Option<String>, Error> {
    match fs::read(path) {
        // A template or configuration with a stray byte is better served than refused.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

fn json<T: serde::de::DeserializeOwned>(
    dir: &Path,
    file: &'static str,
) -> Result<Option<T>, Error> {
    let Some(text) = text(&dir.join(file))? else {
        return Ok(None);
    };
    serde_json::from_str(&text).map(Some).map_err(|source| Error::Json { file, source })
}

/// Every `…_token` that is a string or an object with `content`.
fn special_tokens(fields: &BTreeMap<String, Value>) -> BTreeMap<String, String> {
    let content = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    };
    fields
        .iter()
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, value)| Some((name.clone(), content(value)?)))
        .collect()
}

fn length(value: f64) -> Option<usize> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and a billion"
    )]
    (1.0..LENGTH_UNSET).contains(&value).then_some(value as usize)
}
