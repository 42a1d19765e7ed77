//! From tokens to text as they come, whole characters only.

use super::TextCodec;
use crate::Error;
use crate::constrain::unfinished;

/// No UTF-8 character has more bytes, so no unfinished one has more than three.
const CHARACTER_BYTES: usize = 4;
/// What a decoder puts in the place of bytes that are no character (yet).
const REPLACEMENT: char = '\u{FFFD}';
/// Prompt tokens that a completion's first token is decoded after.
const CONTEXT_TOKENS: usize = 6;
/// A context that begins inside a character reaches back this far at most.
const CONTEXT_TOKENS_MAX: usize = 32;
/// Tokens after which text that never ends in a whole character is given out as it is.
const WINDOW_TOKENS_MAX: usize = 64;

/// Decodes one sequence token by token.
///
/// Decoders look at a token's neighbours (spaces, bytes of one character), so each token is
/// decoded behind the tokens of the piece before it, and the new text is what was not there
/// without it. Replacement characters at the end are held back, three at most: they may be the
/// bytes of a character that is still to come.
///
/// 1. What was given out is never taken back or repeated.
/// 2. All pieces and the rest from [`finish`](Self::finish) are the text of the whole
///    sequence. The one exception are byte tokens of SentencePiece vocabularies that form valid
///    characters followed by bytes that form none: `tokenizers` then declares the whole run
///    invalid, and the characters before have been given out already.
#[derive(Debug)]
pub(crate) struct Detokeniser {
    codec: TextCodec,
    /// The window: the tokens of the last whole piece, and those after it.
    ids: Vec<u32>,
    /// How many of `ids` ended in a whole character that was given out.
    whole: usize,
    /// The window's text as far as it was given out.
    given: String,
    /// Whether bytes are held back that may become a character.
    holds: bool,
}

impl Detokeniser {
    /// Decodes what follows `prompt`, whose own text is not given out.
    pub(crate) fn after(codec: TextCodec, prompt: &[u32]) -> Result<Self, Error> {
        let audible: Vec<u32> = prompt
            .iter()
            .rev()
            .copied()
            .filter(|&id| !codec.is_silent(id))
            .take(CONTEXT_TOKENS_MAX)
            .collect();
        let mut count = audible.len().min(CONTEXT_TOKENS);
        loop {
            let ids: Vec<u32> = audible[..count].iter().rev().copied().collect();
            let given = codec.decode(&ids)?;
            if count == audible.len() || !given.starts_with(REPLACEMENT) {
                return Ok(Self { codec, whole: ids.len(), ids, given, holds: false });
            }
            count += 1;
        }
    }

    /// Takes the next token and gives out what became certain by it; often one word, sometimes
    /// nothing. Special tokens have no text.
    pub(crate) fn push(&mut self, id: u32) -> Result<String, Error> {
        if self.codec.is_silent(id) {
            return Ok(String::new());
        }
        self.ids.push(id);
        let mut text = self.codec.decode(&self.ids)?;
        if !text.starts_with(&self.given) {
            let unfinished = self.ids.len() - self.whole;
            if text.ends_with(REPLACEMENT) && unfinished < CHARACTER_BYTES {
                self.holds = true;
                return Ok(String::new());
            }
            // An invalid byte took the whole run of byte tokens with it: go on behind what was
            // given out.
            self.ids.drain(..self.whole);
            self.whole = 0;
            self.given.clear();
            text = self.codec.decode(&self.ids)?;
        }
        let new = text.split_off(self.given.len());
        let open = new.chars().rev().take_while(|&c| c == REPLACEMENT).count();
        if open > 0 && self.ids.len() < WINDOW_TOKENS_MAX {
            let held = open.min(CHARACTER_BYTES - 1) * REPLACEMENT.len_utf8();
            let certain = &new[..new.len() - held];
            self.holds = true;
            self.given.push_str(certain);
            return Ok(certain.to_owned());
        }
        self.holds = false;
        // A token without text of its own is no place to cut: alone it would swallow the next
        // one's leading space.
        if !new.is_empty() {
            self.ids.drain(..self.whole);
            self.whole = self.ids.len();
            self.given = self.codec.decode(&self.ids)?;
        }
        Ok(new)
    }

    /// Whether bytes are held back that may become a character.
    pub(crate) fn holds(&self) -> bool {
        self.holds
    }

    /// What is held back, when no more tokens come.
    pub(crate) fn finish(&mut self) -> Result<String, Error> {
        let text = self.codec.decode(&self.ids)?;
        let rest = match text.strip_prefix(&self.given) {
            Some(rest) => rest.to_owned(),
            None => self.codec.decode(&self.ids[self.whole..])?,
        };
        self.given = text;
        self.whole = self.ids.len();
        self.holds = false;
        Ok(rest)
    }

    /// The same, when the text ends here: without the bytes of a character that it was cut in, which no
    /// reader can do anything with. Bytes that begin no character stay.
    pub(crate) fn end(&mut self) -> Result<String, Error> {
        let mut rest = self.finish()?;
        if rest.ends_with(REPLACEMENT) {
            for _ in 0..unfinished(&self.codec, &self.ids) {
                if rest.ends_with(REPLACEMENT) {
                    rest.pop();
                }
            }
        }
        Ok(rest)
    }
}

#[cfg(test)]
mod tests;
