//! What a tokenizer answers by itself: texts as tokens, tokens as texts.

use crate::task::counted;
use crate::text::TextCodec;
use crate::{CutToken, Error, Tokens};

/// Bytes of all texts of a request at most: more than any context holds.
const TEXT_MAX: usize = 1024 * 1024;
/// Tokens that are told at most: each is some seventy bytes of an answer.
const TOLD_MAX: usize = 256 * 1024;

/// Tokens of each text, and a text of each list of tokens. Takes time in their length: belongs on a
/// blocking thread.
///
/// # Errors
/// `InvalidInput` for none or more than `most` of them, texts or lists that are too long, and a chat
/// that the template refuses.
pub(crate) fn answer(
    codec: &TextCodec,
    asked: Tokens,
    most: usize,
) -> Result<(Vec<Vec<CutToken>>, Vec<String>), Error> {
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
            let joined = lists.iter().map(|list| codec.join(list, skip_special));
            return Ok((Vec::new(), joined.collect::<Result<_, _>>()?));
        }
        Tokens::Chat { messages, template_kwargs, special } => {
            (vec![codec.render_chat(&messages, None, &template_kwargs)?], special)
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
    Ok((lists, Vec::new()))
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
            answer(&codec, Tokens::Join { lists, skip_special: true }, 8)
        };
        let told = |outcome: Result<_, Error>| outcome.map(drop).unwrap_err().to_string();
        for (count, most) in [(TOLD_MAX + 1, TOLD_MAX), (TEXT_MAX / bytes + 1, TEXT_MAX)] {
            let told = told(join(longest, count));
            assert!(told.contains(&format!("{most} are the most")), "{told}");
        }
        assert_eq!(join(longest, 10).unwrap().1.len(), 2);
    }
}
