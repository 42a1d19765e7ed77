//! What a tokenizer answers by itself: texts as tokens, tokens as texts.

use std::sync::Arc;

use roundhouse_types::TenantName;

use crate::rendering::Render;
use crate::room::{Room, Taken};
use crate::task::counted;
use crate::text::TextCodec;
use crate::{CutToken, Error, Opening, Tokens};

/// Bytes of all texts of a request at most: more than any context holds.
const TEXT_MAX: usize = 1024 * 1024;
/// Tokens that are told at most: each is some seventy bytes of an answer.
const TOLD_MAX: usize = 128 * 1024;
/// What a token takes while it is told: the library's word of it, ours, and the five fields of JSON
/// before they are text.
const TOKEN_BYTES: u64 = 1024;
/// Tokens that go around a text, and more than any tokenizer has.
const EDGES: usize = 4;
/// What a byte of text takes beside its tokens: the text as it came, normalised, and in its parts.
const TEXT_BYTES: u64 = 8;

/// Tokens of each text, a text of each list, and what they take.
type Answered = (Vec<Vec<CutToken>>, Vec<String>, Taken);

/// Tokens of each text, and a text of each list of tokens. Takes time in their length: belongs on a
/// blocking thread. `render`: the turn of a chat's template.
///
/// # Errors
/// `Overloaded` where what it takes is not free in `room`, `InvalidInput` for none or more than `most` of them, texts or lists that are too long, and a chat
/// that the template refuses.
pub(crate) fn answer(
    codec: &TextCodec,
    asked: Tokens,
    most: usize,
    render: Option<Render>,
    (room, tenant): (&Arc<Room>, Option<&TenantName>),
) -> Result<Answered, Error> {
    let (texts, special) = match asked {
        Tokens::Join { lists, skip_special } => {
            counted("ids", lists.len(), most)?;
            let tokens: usize = lists.iter().map(Vec::len).sum();
            if tokens > TOLD_MAX {
                let message = format!("they are {tokens}, {TOLD_MAX} are the most");
                return Err(Error::field("ids", message));
            }
            let bytes = lists.iter().flatten().map(|id| codec.token_bytes(*id)).sum::<usize>();
            if bytes > TEXT_MAX {
                let message = format!("their text has {bytes} bytes, {TEXT_MAX} are the most");
                return Err(Error::field("ids", message));
            }
            let taken = room.take(tenant, bytes as u64 * TEXT_BYTES)?;
            let joined = lists.iter().map(|list| codec.join(list, skip_special));
            return Ok((Vec::new(), joined.collect::<Result<_, _>>()?, taken));
        }
        Tokens::Chat { messages, template_kwargs, special } => {
            let render = render.ok_or(Error::Interrupted)?;
            let asked = (&template_kwargs, Opening::Answer);
            (vec![codec.render_chat(&messages, None, asked, render)?], special)
        }
        Tokens::Cut { texts, special } => {
            counted("inputs", texts.len(), most)?;
            (texts, special)
        }
    };
    let bytes: usize = texts.iter().map(String::len).sum();
    if bytes > TEXT_MAX {
        let message = format!("they have {bytes} bytes, {TEXT_MAX} are the most");
        return Err(Error::field("inputs", message));
    }
    let taken = room.take(tenant, cost(bytes, texts.len()))?;
    let mut lists = Vec::with_capacity(texts.len());
    let mut told = 0;
    for text in &texts {
        let list = codec.cut(text, special)?;
        told += list.len();
        if told > TOLD_MAX {
            let message = format!("more than {TOLD_MAX} tokens would be told");
            return Err(Error::field("inputs", message));
        }
        lists.push(list);
    }
    Ok((lists, Vec::new(), taken))
}

/// What the tokens of so many bytes in so many texts take at most: a byte is one at most, and what is
/// told has a bound.
fn cost(bytes: usize, texts: usize) -> u64 {
    let tokens = bytes.saturating_add(texts.saturating_mul(EDGES)).min(TOLD_MAX);
    tokens as u64 * TOKEN_BYTES + bytes as u64 * TEXT_BYTES
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const REFERENCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/references/bpe");

    #[test]
    fn lists_of_tokens_are_bounded_in_number_and_in_the_text_they_make() {
        let codec = TextCodec::open(Path::new(REFERENCES)).unwrap();
        let longest = (0..500).max_by_key(|id| codec.token_bytes(*id)).unwrap();
        let bytes = codec.token_bytes(longest);
        assert!(TEXT_MAX / bytes < TOLD_MAX, "{bytes}");
        let join = |id, count| {
            let lists = vec![vec![id; count / 2], vec![id; count - count / 2]];
            let room = Arc::default();
            answer(&codec, Tokens::Join { lists, skip_special: true }, 8, None, (&room, None))
        };
        let told = |outcome: Result<_, Error>| outcome.map(drop).unwrap_err().to_string();
        for (count, most) in [(TOLD_MAX + 1, TOLD_MAX), (TEXT_MAX / bytes + 1, TEXT_MAX)] {
            let told = told(join(longest, count));
            assert!(told.contains(&format!("{most} are the most")), "{told}");
        }
        assert_eq!(join(longest, 10).unwrap().1.len(), 2);
    }

    #[test]
    fn texts_are_refused_while_others_tokens_take_the_room() {
        let codec = TextCodec::open(Path::new(REFERENCES)).unwrap();
        let (room, tenant) = (Arc::default(), "flood".parse().unwrap());
        let cut = |tenant| {
            let asked = Tokens::Cut { texts: vec!["hello ".repeat(20_000)], special: true };
            answer(&codec, asked, 8, None, (&room, tenant))
        };
        let first = cut(Some(&tenant)).unwrap();
        assert!(first.0[0].len() as u64 * TOKEN_BYTES < cost(120_000, 1));
        let told = cut(Some(&tenant)).unwrap_err();
        assert_eq!(told.kind(), roundhouse_types::ErrorKind::Overloaded, "{told}");
        assert!(cut(None).is_ok(), "a tenant leaves some for others");
        drop(first);
        assert!(cut(Some(&tenant)).is_ok());
    }
}
