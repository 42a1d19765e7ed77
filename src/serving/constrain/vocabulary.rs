//! What bytes each token of a tokenizer adds to a text.

use std::collections::HashMap;

use tokenizers::DecoderWrapper;
use tokenizers::normalizers::replace::Replace;

use crate::TextCodec;

/// Longer tokens stand for nothing here: they are runs of one character, which shorter ones spell
/// as well, and the library's trie ends at depth 1,024.
const TOKEN_BYTES_MAX: usize = 512;

/// How a tokenizer writes bytes.
enum Writing {
    /// Each byte as a character of its own, as GPT-2 began it.
    ByteLevel(HashMap<char, u8>),
    /// As they are, a stand-in for the space, and `<0x41>` for single bytes.
    Pieces { space: String },
    /// Some other way: what the decoder makes of a token between others.
    Decoded,
}

/// One more than the largest id of a token.
pub(super) fn last_token(codec: &TextCodec) -> usize {
    let ids = codec.tokenizer().get_vocab(true).into_values();
    ids.max().map_or(0, |id| id as usize + 1)
}

/// The bytes of every token, by id; none for those that may never come in an answer of a form.
/// Special tokens stand for no text: they are their names behind `mark`, which is in no text.
pub(super) fn token_bytes(codec: &TextCodec, mark: u8) -> Vec<Vec<u8>> {
    let tokenizer = codec.tokenizer();
    let writing = tokenizer.get_decoder().map_or(Writing::Decoded, Writing::of);
    let mut tokens = vec![Vec::new(); last_token(codec)];
    for (id, bytes) in (0..).zip(&mut tokens) {
        let Some(name) = tokenizer.id_to_token(id) else { continue };
        if codec.is_special(id) {
            bytes.push(mark);
            bytes.extend_from_slice(name.as_bytes());
        } else {
            *bytes = writing.bytes(&name).unwrap_or_else(|| decoded(codec, id));
        }
        if bytes.len() > TOKEN_BYTES_MAX {
            *bytes = Vec::new();
        }
    }
    tokens
}

/// How many replacement characters end the text of tokens in the place of a character that was cut: none
/// where their last bytes are a whole one, or begin none.
pub(crate) fn unfinished(codec: &TextCodec, ids: &[u32]) -> usize {
    let tokenizer = codec.tokenizer();
    let writing = tokenizer.get_decoder().map_or(Writing::Decoded, Writing::of);
    let names = ids.iter().filter_map(|id| tokenizer.id_to_token(*id));
    let bytes: Option<Vec<Vec<u8>>> = names.map(|name| writing.bytes(&name)).collect();
    let open = open_bytes(&bytes.unwrap_or_default().concat());
    match writing {
        Writing::ByteLevel(_) => usize::from(open > 0),
        // Each byte by itself.
        Writing::Pieces { .. } => open,
        Writing::Decoded => 0,
    }
}

/// How many bytes at the end begin a character whose others are missing.
fn open_bytes(bytes: &[u8]) -> usize {
    let begins = |count: &usize| {
        let end = bytes.len().checked_sub(*count).map(|from| std::str::from_utf8(&bytes[from..]));
        let wrong = end.and_then(Result::err);
        wrong.is_some_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=3).find(begins).unwrap_or(0)
}

impl Writing {
    fn of(decoder: &DecoderWrapper) -> Self {
        let mut space = None;
        let mut bytes = false;
        let parts = match decoder {
            DecoderWrapper::Sequence(parts) => parts.get_decoders(),
            one => std::slice::from_ref(one),
        };
        for part in parts {
            match part {
                DecoderWrapper::ByteLevel(_) => return Self::ByteLevel(characters()),
                DecoderWrapper::ByteFallback(_) => bytes = true,
                DecoderWrapper::Metaspace(metaspace) => {
                    space = Some(metaspace.get_replacement().to_string());
                }
                DecoderWrapper::Replace(replace) => space = space.or(stand_in(replace)),
                _ => {}
            }
        }
        match space {
            Some(space) => Self::Pieces { space },
            None if bytes => Self::Pieces { space: "\u{2581}".to_owned() },
            None => Self::Decoded,
        }
    }

    /// `None` where only decoding tells.
    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        match self {
            Self::ByteLevel(characters) => {
                let bytes: Option<Vec<u8>> =
                    name.chars().map(|c| characters.get(&c).copied()).collect();
                // As the decoder does: a token with any other character is text as it stands.
                Some(bytes.unwrap_or_else(|| name.as_bytes().to_vec()))
            }
            Self::Pieces { space } => {
                let byte = name
                    .strip_prefix("<0x")
                    .and_then(|rest| rest.strip_suffix('>'))
                    .filter(|digits| digits.len() == 2)
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok());
                Some(match byte {
                    Some(byte) => vec![byte],
                    None => name.replace(space.as_str(), " ").into_bytes(),
                })
            }
            Self::Decoded => None,
        }
    }
}

/// A token between others; nothing where it is no text by itself.
fn decoded(codec: &TextCodec, id: u32) -> Vec<u8> {
    let text = codec.token_text(id);
    if text.contains('\u{FFFD}') { Vec::new() } else { text.into_bytes() }
}

/// What a decoder replaces by a space. Its pattern is private: only written out it can be read.
fn stand_in(replace: &Replace) -> Option<String> {
    let written = serde_json::to_value(replace).ok()?;
    if written["content"] != " " {
        return None;
    }
    written["pattern"]["String"].as_str().map(str::to_owned)
}

/// The character of each byte: printable ones their own, all others from U+0100 on.
fn characters() -> HashMap<char, u8> {
    let mut others = 0x100..;
    (0..=u8::MAX)
        .filter_map(|byte| {
            let own = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let character =
                if own { Some(char::from(byte)) } else { others.next().and_then(char::from_u32) };
            Some((character?, byte))
        })
        .collect()
}
