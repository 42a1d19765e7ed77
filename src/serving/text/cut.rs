//! Texts cut into tokens that know where they are from, and tokens put together again.

use super::TextCodec;
use crate::{CutToken, Error};

impl TextCodec {
    /// The tokens of a text, whole: nothing is cut to a limit. Takes time in the text's length: belongs
    /// on a blocking thread.
    ///
    /// # Errors
    /// `ModelInvalid` where the vocabulary cannot express the text and has no unknown token.
    pub(crate) fn cut(&self, text: &str, special: bool) -> Result<Vec<CutToken>, Error> {
        let encoding = self.tokenizer.encode_char_offsets(text, special);
        let encoding = encoding.map_err(Error::Tokenise)?;
        // Where each character begins, and where the last one ends.
        let edges: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let part = |start: usize, end: usize| {
            let (start, end) = (edges.get(start)?, edges.get(end)?);
            text.get(*start..*end)
        };
        let (ids, names) = (encoding.get_ids(), encoding.get_tokens());
        let around = encoding.get_special_tokens_mask();
        let offsets = encoding.get_offsets();
        let token = |at: usize| {
            let special = around[at] == 1;
            let (start, end) = if special { (0, 0) } else { offsets[at] };
            let text = part(start, end).unwrap_or_default().to_owned();
            CutToken { id: ids[at], name: names[at].clone(), text, special, start, end }
        };
        Ok((0..ids.len()).map(token).collect())
    }

    /// The bytes of a token's name: about what it adds to a text.
    pub(crate) fn token_bytes(&self, id: u32) -> usize {
        self.tokenizer.id_to_token(id).map_or(0, |name| name.len())
    }

    /// The text of tokens; special ones left out or as their names; ids outside the vocabulary are left
    /// out.
    ///
    /// # Errors
    /// `ModelInvalid` where the artefact's decoder fails.
    pub(crate) fn join(&self, ids: &[u32], skip_special: bool) -> Result<String, Error> {
        self.tokenizer.decode(ids, skip_special).map_err(Error::Tokenise)
    }
}
