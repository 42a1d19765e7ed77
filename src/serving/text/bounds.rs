//! What a `tokenizer.json` may hold, seen before anything is built of it.
//!
//! Most of a tokenizer takes some times its file. Two parts take about a hundred times as much,
//! because each of their bytes becomes a state of an automaton: tokens that are found in texts as
//! they are (`added_tokens`), and pieces of the unigram kind. Their bytes are counted in one pass that
//! keeps nothing. The pass reads every number, escape and depth as strictly as those after it: where these
//! meet what they cannot read, the library panics.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::normalizers::Precompiled;

/// The most bytes of all tokens that are found in texts as they are. Finding them takes about a
/// hundred times as many; real ones have some thousands.
pub(super) const ADDED_MAX: usize = 1 << 20;
/// The most bytes of all pieces of a unigram vocabulary; 250,000 real ones have 2 MiB.
const UNIGRAMS_MAX: usize = 4 << 20;
/// The largest file: real ones have up to 40 MB.
pub(super) const FILE_MAX: u64 = 256 << 20;

/// Refuses what would take far more memory than its file.
///
/// # Errors
/// What there is too much of, or where the file is no JSON of that form.
pub(super) fn check(file: &[u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Parts { added, unigrams } = serde_json::from_slice(file)?;
    let most = [("added tokens", added, ADDED_MAX), ("unigrams", unigrams, UNIGRAMS_MAX)];
    for (what, bytes, most) in most {
        if bytes > most {
            return Err(format!("its {what} have {bytes} bytes, and {most} are the most").into());
        }
    }
    Ok(())
}

/// Bytes of the parts that take most.
#[derive(Default)]
struct Parts {
    added: usize,
    unigrams: usize,
}

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Parts::default())
    }
}

impl<'de> Visitor<'de> for Parts {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tokenizer")
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<Self, M::Error> {
        while let Some(key) = map.next_key::<Text>()? {
            match key {
                Text::AddedTokens => {
                    self.added = self.added.saturating_add(map.next_value::<Sum>()?.0)
                }
                Text::Model => {
                    let Model { vocab } = map.next_value()?;
                    self.unigrams = self.unigrams.saturating_add(vocab.0);
                }
                Text::Normalizer => precompiled(&map.next_value()?).map_err(M::Error::custom)?,
                Text::Other(_) => {
                    map.next_value::<Read>()?;
                }
            }
        }
        Ok(self)
    }
}

/// A text, of which only the length and two names are kept.
enum Text {
    AddedTokens,
    Model,
    Normalizer,
    Other(usize),
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(match text {
                    "added_tokens" => Text::AddedTokens,
                    "model" => Text::Model,
                    "normalizer" => Text::Normalizer,
                    other => Text::Other(other.len()),
                })
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

impl Text {
    fn bytes(&self) -> usize {
        match self {
            Self::AddedTokens => "added_tokens".len(),
            Self::Model => "model".len(),
            Self::Normalizer => "normalizer".len(),
            Self::Other(bytes) => *bytes,
        }
    }
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Sum,
}

/// The bytes of a list's texts: of added tokens (`{"content": "…"}`) or unigrams
/// (`["…", -1.5]`). A map, as other vocabularies are, has none.
#[derive(Default)]
struct Sum(usize);

impl<'de> Deserialize<'de> for Sum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Sum::default())
    }
}

impl<'de> Visitor<'de> for Sum {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list or a map of tokens")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<S: SeqAccess<'de>>(mut self, mut list: S) -> Result<Self, S::Error> {
        while let Some(Entry(bytes)) = list.next_element()? {
            self.0 = self.0.saturating_add(bytes);
        }
        Ok(self)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self, M::Error> {
        while map.next_entry::<Read, Read>()?.is_some() {}
        Ok(self)
    }
}

/// Whether the character maps that are written in a normaliser can be read.
fn precompiled(written: &Value) -> Result<(), serde_json::Error> {
    match written {
        Value::Array(all) => all.iter().try_for_each(precompiled),
        Value::Object(map) => {
            if map.get("type").and_then(Value::as_str) == Some("Precompiled") {
                drop(serde_json::from_str::<Precompiled>(&written.to_string())?);
                let map = map.get("precompiled_charsmap").and_then(Value::as_str);
                let checked = super::charsmap::check(map.unwrap_or_default());
                checked.map_err(|why| {
                    serde_json::Error::custom(format!("a normaliser's character map: {why}"))
                })?;
            }
            map.values().try_for_each(precompiled)
        }
        _ => Ok(()),
    }
}

/// Anything, read and not kept.
struct Read;

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Read {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Self, S::Error> {
        while list.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self, M::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// The bytes of one token's text.
struct Entry(usize);

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Entry(0))
    }
}

impl<'de> Visitor<'de> for Entry {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an added token or a unigram with its score")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Self, S::Error> {
        let text: Option<Text> = list.next_element()?;
        while list.next_element::<Read>()?.is_some() {}
        Ok(Self(text.map_or(0, |text| text.bytes())))
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self, M::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Field {
            Content,
            #[serde(other)]
            Other,
        }
        let mut bytes = 0_usize;
        while let Some(field) = map.next_key()? {
            match field {
                Field::Content => bytes = bytes.saturating_add(map.next_value::<Text>()?.bytes()),
                Field::Other => {
                    map.next_value::<Read>()?;
                }
            }
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(added: usize, unigrams: usize) -> String {
        let token = format!(r#"{{"id":1,"special":true,"content":"{}"}}"#, "\u{e9}".repeat(32));
        let piece = format!(r#"["{}",-1.5]"#, "x".repeat(64));
        let [added, unigrams] =
            [vec![token; added / 64], vec![piece; unigrams / 64]].map(|list| list.join(","));
        format!(
            r#"{{"version":"1.0","added_tokens":[{added}],"normalizer":null,
            "model":{{"type":"Unigram","unk_id":0,"vocab":[{unigrams}]}}}}"#
        )
    }

    #[test]
    fn endless_added_tokens_and_unigrams_are_refused_with_their_bytes() {
        for (added, unigrams) in [(0, 0), (ADDED_MAX, UNIGRAMS_MAX)] {
            check(file(added, unigrams).as_bytes()).unwrap();
        }
        let told =
            |added, unigrams| check(file(added, unigrams).as_bytes()).unwrap_err().to_string();
        assert_eq!(
            told(ADDED_MAX + 64, 0),
            "its added tokens have 1048640 bytes, and 1048576 are the most"
        );
        assert!(told(0, UNIGRAMS_MAX + 64).starts_with("its unigrams have 4194368 bytes"));
    }

    #[test]
    fn vocabularies_by_map_and_absent_parts_pass() {
        for file in [
            r#"{"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]},"added_tokens":null}"#,
            r#"{"model":{"type":"WordPiece"}}"#,
            "{}",
        ] {
            check(file.as_bytes()).unwrap();
        }
        assert!(check(b"[]").is_err());
        for odd in ["\"\\ud800\"", "1e999", &"[".repeat(200), "{\"a\":\"\\udc00x\"}"] {
            let closed = format!("{odd}{}", "]".repeat(odd.matches('[').count()));
            for part in ["decoder", "post_processor", "normalizer"] {
                let file = format!("{{\"{part}\":{{\"type\":\"Sequence\",\"x\":{closed}}}}}");
                assert!(check(file.as_bytes()).is_err(), "{file}");
            }
        }
        let map = r#"{"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":"!"}]}"#;
        assert!(check(format!("{{\"normalizer\":{map}}}").as_bytes()).is_err());
        assert!(check(br#"{"added_tokens":["text"]}"#).is_err());
    }
}
