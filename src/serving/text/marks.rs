//! Texts and pairs of texts as encoders take them: tokens that know where they come from, cut to
//! what a model takes.

use tokenizers::{Decoder, Encoding, ModelWrapper};

use super::TextCodec;
use crate::Error;

/// One token of a text or of a pair of texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) id: u32,
    /// The segment that the post-processor puts it in.
    type_id: u32,
    /// Which of the two texts it is of; the post-processor's own tokens are of none.
    pub(crate) text: Option<usize>,
    /// Where it begins in its text, in characters.
    pub(crate) start: usize,
    /// Where it ends, in characters.
    pub(crate) end: usize,
    /// Which word of its text it belongs to.
    pub(crate) word: Option<u32>,
    /// Whether the post-processor added it.
    pub(crate) special: bool,
}

/// The tokens of a text or of a pair of texts, with those that the post-processor adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marked(pub(crate) Vec<Mark>);

/// What is cut where a pair is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shorten {
    /// The longer one, then both.
    Longest,
    /// The first alone.
    First,
}

impl Marked {
    fn of(encoding: &Encoding) -> Self {
        let texts = encoding.get_sequence_ids();
        let special = encoding.get_special_tokens_mask();
        let (offsets, words) = (encoding.get_offsets(), encoding.get_word_ids());
        let of_token = |(at, id): (usize, &u32)| {
            let (start, end) = offsets[at];
            Mark {
                id: *id,
                type_id: encoding.get_type_ids()[at],
                text: texts[at],
                start,
                end,
                word: words[at],
                special: special[at] == 1,
            }
        };
        Self(encoding.get_ids().iter().enumerate().map(of_token).collect())
    }

    pub(crate) fn ids(&self) -> Vec<u32> {
        self.0.iter().map(|mark| mark.id).collect()
    }

    /// Where the second segment begins, for models that tell them apart.
    pub(crate) fn second(&self) -> Option<usize> {
        self.0.iter().position(|mark| mark.type_id == 1)
    }

    /// Tokens of one of the texts.
    fn length_of(&self, text: usize) -> usize {
        self.0.iter().filter(|mark| mark.text == Some(text)).count()
    }

    /// The same with only those tokens of a text whose place among them is in `kept`.
    fn part(&self, text: usize, kept: std::ops::Range<usize>) -> Self {
        let mut place = 0;
        let is_kept = |mark: &&Mark| {
            if mark.text != Some(text) {
                return true;
            }
            place += 1;
            kept.contains(&(place - 1))
        };
        Self(self.0.iter().filter(is_kept).copied().collect())
    }

    /// The first tokens of a text, or the last.
    fn cut(&self, text: usize, length: usize, left: bool) -> Self {
        let own = self.length_of(text);
        if left { self.part(text, own - length..own) } else { self.part(text, 0..length) }
    }

    /// Cut to `limit` tokens; `None` where what may be cut is too short for that.
    fn fitted(self, limit: usize, shorten: Shorten, left: bool) -> Option<Self> {
        let excess = self.0.len().saturating_sub(limit);
        if excess == 0 {
            return Some(self);
        }
        let (first, second) = (self.length_of(0), self.length_of(1));
        match shorten {
            Shorten::First => (first > excess).then(|| self.cut(0, first - excess, left)),
            Shorten::Longest => {
                let room = (first + second).checked_sub(excess)?;
                let (first, second) = longest_first(first, second, room);
                Some(self.cut(0, first, left).cut(1, second, left))
            }
        }
    }

    /// The same in windows of `limit` tokens: each has what is not of `text` and a part of it,
    /// which shares `overlap` tokens with the part before. How many there would be, if there
    /// would be more than `most`.
    pub(crate) fn windows(self, text: usize, limit: usize, overlap: usize, most: usize) -> Windows {
        let own = self.length_of(text);
        let around = self.0.len() - own;
        if self.0.len() <= limit {
            return match most {
                0 => Windows::TooMany(1),
                _ => Windows::These(vec![self]),
            };
        }
        let Some(room) = limit.checked_sub(around).filter(|room| *room > overlap) else {
            return Windows::NoRoom { around };
        };
        let step = room - overlap;
        let count = 1 + (own - room).div_ceil(step);
        if count > most {
            return Windows::TooMany(count);
        }
        let starts = (0..count).map(|at| at * step);
        Windows::These(starts.map(|at| self.part(text, at..own.min(at + room))).collect())
    }

    /// The characters of the word that a token belongs to; the token's own where it is of none.
    pub(crate) fn word_of(&self, token: usize, text: usize) -> (usize, usize) {
        let mark = self.0[token];
        let Some(word) = mark.word.filter(|_| mark.text == Some(text)) else {
            return (mark.start, mark.end);
        };
        let is_of_it = |other: &&Mark| other.text == Some(text) && other.word == Some(word);
        let mut of_word = self.0.iter().filter(is_of_it);
        let start = of_word.next().map_or(mark.start, |first| first.start);
        (start, of_word.next_back().map_or(mark.end, |last| last.end))
    }
}

/// A text in windows.
pub(crate) enum Windows {
    These(Vec<Marked>),
    /// What goes around a part of the text leaves no room for more than the overlap.
    NoRoom {
        around: usize,
    },
    TooMany(usize),
}

/// How much two texts keep of their lengths to fit into `room`: as the tokenizers' own
/// `longest_first` has it.
fn longest_first(first: usize, second: usize, room: usize) -> (usize, usize) {
    let (short, long) = (first.min(second), first.max(second));
    let left = if short > room { short } else { short.max(room - short) };
    let (short, long) =
        if short + left > room { (room / 2, room / 2 + room % 2) } else { (short, left.min(long)) };
    if first > second { (long, short) } else { (short, long) }
}

impl TextCodec {
    /// The tokens of a text, or of a pair, whole. Takes time in the texts' length: belongs on a
    /// blocking thread.
    ///
    /// # Errors
    /// `ModelInvalid` where the vocabulary cannot express the text and has no unknown token.
    pub(crate) fn mark(&self, text: &str, second: Option<&str>) -> Result<Marked, Error> {
        let encoding = match second {
            None => self.tokenizer.encode_char_offsets(text, true),
            Some(second) => self.tokenizer.encode_char_offsets((text, second), true),
        };
        Ok(Marked::of(&encoding.map_err(Error::Tokenise)?))
    }

    /// The same, cut to what the model takes; `None` where what may be cut is too short for that.
    ///
    /// # Errors
    /// As [`mark`](Self::mark).
    pub(crate) fn mark_fitted(
        &self,
        text: &str,
        second: Option<&str>,
        shorten: Shorten,
    ) -> Result<Option<Marked>, Error> {
        let marked = self.mark(text, second)?;
        Ok(marked.fitted(self.limit(), shorten, self.facts.truncate_left))
    }

    /// Tokens of an encoder's input at most.
    pub(crate) fn limit(&self) -> usize {
        self.limit.unwrap_or(usize::MAX)
    }

    /// The tokens of a text, `most` at most: the last ones where it `keeps_end`, else the first. Special
    /// tokens around it stay; `None` where they alone are more. Takes time in the text's length: belongs
    /// on a blocking thread.
    ///
    /// # Errors
    /// `ModelInvalid` where the vocabulary cannot express the text and has no unknown token.
    pub(crate) fn encode_within(
        &self,
        text: &str,
        add_special: bool,
        (most, keeps_end): (usize, bool),
    ) -> Result<Option<Vec<u32>>, Error> {
        let encoding = self.tokenizer.encode_fast(text, add_special).map_err(Error::Tokenise)?;
        if encoding.len() <= most {
            return Ok(Some(encoding.get_ids().to_vec()));
        }
        let fitted = Marked::of(&encoding).fitted(most, Shorten::Longest, keeps_end);
        Ok(fitted.map(|marked| marked.ids()))
    }

    /// An encoding's tokens, cut to what the model takes.
    pub(super) fn fitted_ids(&self, encoding: &Encoding) -> Vec<u32> {
        if encoding.len() <= self.limit() {
            return encoding.get_ids().to_vec();
        }
        let marked = Marked::of(encoding);
        let fitted = marked.fitted(self.limit(), Shorten::Longest, self.facts.truncate_left);
        fitted.map(|marked| marked.ids()).unwrap_or_default()
    }

    /// A token as the vocabulary writes it, with its marks of words.
    pub(crate) fn word(&self, id: u32) -> String {
        self.tokenizer.id_to_token(id).unwrap_or_default()
    }

    /// The text that words of the vocabulary stand for.
    ///
    /// # Errors
    /// `ModelInvalid` where the artefact's decoder fails.
    pub(crate) fn joined(&self, words: Vec<String>) -> Result<String, Error> {
        match self.tokenizer.get_decoder() {
            Some(decoder) => decoder.decode(words).map_err(Error::Tokenise),
            None => Ok(words.join(" ")),
        }
    }

    /// The text of tokens, special ones too where they are wanted.
    ///
    /// # Errors
    /// `ModelInvalid` where the artefact's decoder fails.
    pub(crate) fn decoded(&self, ids: &[u32], special: bool) -> Result<String, Error> {
        self.tokenizer.decode(ids, !special).map_err(Error::Tokenise)
    }

    /// Whether tokens that go on in a word are marked as such.
    pub(crate) fn marks_subwords(&self) -> bool {
        match self.tokenizer.get_model() {
            ModelWrapper::WordPiece(model) => !model.continuing_subword_prefix.is_empty(),
            ModelWrapper::BPE(model) => {
                model.continuing_subword_prefix.as_ref().is_some_and(|prefix| !prefix.is_empty())
            }
            ModelWrapper::Unigram(_) | ModelWrapper::WordLevel(_) => false,
        }
    }

    /// The token that stands for a word to be guessed.
    pub(crate) fn mask_token(&self) -> Option<u32> {
        self.role("mask_token", ["[MASK]", "<mask>"])
    }

    /// The token for what the vocabulary does not have.
    pub(crate) fn unknown_token(&self) -> Option<u32> {
        self.role("unk_token", ["[UNK]", "<unk>"])
    }

    /// The token that stands for the whole text.
    pub(crate) fn class_token(&self) -> Option<u32> {
        self.role("cls_token", ["[CLS]", "<s>"])
    }

    /// The token that fills up batches.
    pub(crate) fn padding_token(&self) -> Option<u32> {
        self.role("pad_token", ["[PAD]", "<pad>"])
    }

    /// The token that the artefact gives a role; what such tokens are mostly called where it does
    /// not say, as older artefacts do not.
    fn role(&self, role: &str, usual: [&str; 2]) -> Option<u32> {
        let named = self.facts.templates.special().get(role).map(String::as_str);
        named.into_iter().chain(usual).find_map(|token| self.tokenizer.token_to_id(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[CLS] a… [SEP] b… [SEP]` with so many tokens of each text.
    fn pair(first: usize, second: usize) -> Marked {
        let mark = |id: usize, text: Option<usize>, type_id| Mark {
            id: u32::try_from(id).unwrap(),
            type_id,
            text,
            start: id,
            end: id + 1,
            word: text.map(|_| u32::try_from(id / 2).unwrap()),
            special: text.is_none(),
        };
        let mut marks = vec![mark(900, None, 0)];
        marks.extend((0..first).map(|at| mark(at, Some(0), 0)));
        marks.push(mark(901, None, 0));
        marks.extend((0..second).map(|at| mark(100 + at, Some(1), 1)));
        marks.push(mark(901, None, 1));
        Marked(marks)
    }

    #[test]
    fn the_longer_text_is_cut_first_and_then_both() {
        let lengths = |first, second, limit| {
            let fitted = pair(first, second).fitted(limit, Shorten::Longest, false).unwrap();
            assert!(fitted.0.len() <= limit);
            (fitted.length_of(0), fitted.length_of(1))
        };
        assert_eq!(lengths(4, 5, 12), (4, 5));
        assert_eq!(lengths(2, 9, 9), (2, 4));
        assert_eq!(lengths(9, 2, 9), (4, 2));
        assert_eq!(lengths(9, 8, 10), (4, 3));
        assert_eq!(lengths(8, 9, 10), (3, 4));
    }

    #[test]
    fn tokens_are_cut_at_the_end_that_the_artefact_names() {
        let right = pair(5, 1).fitted(7, Shorten::First, false).unwrap();
        assert_eq!(right.ids(), [900, 0, 1, 2, 901, 100, 901]);
        assert_eq!(right.second(), Some(5));
        let left = pair(5, 1).fitted(7, Shorten::First, true).unwrap();
        assert_eq!(left.ids(), [900, 2, 3, 4, 901, 100, 901]);
        assert!(pair(2, 5).fitted(7, Shorten::First, false).is_none());
    }

    #[test]
    fn windows_overlap_and_cover_the_whole_text() {
        let Windows::These(windows) = pair(2, 10).windows(1, 9, 1, 99) else { panic!() };
        let second = |window: &Marked| {
            window.ids()[4..window.0.len() - 1].iter().map(|id| id - 100).collect()
        };
        let parts: Vec<Vec<u32>> = windows.iter().map(second).collect();
        assert_eq!(parts, [vec![0, 1, 2, 3], vec![3, 4, 5, 6], vec![6, 7, 8, 9]]);
        assert!(matches!(pair(2, 10).windows(1, 9, 1, 2), Windows::TooMany(3)));
        assert!(matches!(pair(2, 10).windows(1, 9, 4, 99), Windows::NoRoom { around: 5 }));
        assert!(matches!(pair(6, 10).windows(1, 9, 0, 99), Windows::NoRoom { around: 9 }));
        let Windows::These(one) = pair(2, 3).windows(1, 9, 1, 99) else { panic!() };
        assert_eq!(one, [pair(2, 3)]);
        assert!(matches!(pair(2, 3).windows(1, 9, 1, 0), Windows::TooMany(1)));
    }

    #[test]
    fn a_word_has_the_characters_of_all_its_tokens() {
        let marked = pair(3, 3);
        assert_eq!(marked.word_of(1, 0), (0, 2));
        assert_eq!(marked.word_of(2, 0), (0, 2));
        assert_eq!(marked.word_of(6, 1), (100, 102));
        assert_eq!(marked.word_of(0, 1), (900, 901));
    }
}
