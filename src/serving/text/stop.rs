//! Stop strings over a stream of text.

/// Finds the first stop string in text that comes in pieces.
///
/// The match that ends first wins, the longest of those that end together: which is
/// where a model that is looked at after every character would be stopped. Text that may
/// be the beginning of a stop string is held back; all other text passes at once.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    /// Whether a stop string is part of the text that it ends.
    included: bool,
    /// The longest end of the text so far that is the beginning of a stop string.
    held: String,
}

/// What a piece of text turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// Text that is part of no stop string.
    Pass(String),
    /// The text before a stop string, or up to its end where it is included; it ends the answer.
    Stop(String),
}

impl StopMatcher {
    /// Takes the stop strings, none of them empty.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()), "an empty stop string");
        Self { stops, included: false, held: String::new() }
    }

    /// The same, with the stop string as part of the text or not.
    pub(crate) fn including(self, included: bool) -> Self {
        Self { included, ..self }
    }

    /// Takes the next piece of text. After a `Stop` no more may come.
    pub(crate) fn push(&mut self, text: &str) -> Scan {
        if self.stops.is_empty() {
            return Scan::Pass(text.to_owned());
        }
        self.held.push_str(text);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| {
                self.held.find(stop.as_str()).map(|start| (start + stop.len(), start))
            })
            .min();
        if let Some((end, start)) = first {
            self.held.truncate(if self.included { end } else { start });
            return Scan::Stop(std::mem::take(&mut self.held));
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - keep);
        Scan::Pass(std::mem::replace(&mut self.held, kept))
    }

    /// Whether text is held back.
    pub(crate) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// The text held back, when no more comes.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The length of the longest end of `text` that begins `stop` without being all of it.
pub(crate) fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(at, _)| at)
        .rev()
        .find(|&at| at <= text.len() && text.ends_with(&stop[..at]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Looks at the whole text after every character.
    fn naive(text: &str, stops: &[String]) -> (String, bool) {
        for (at, character) in text.char_indices() {
            let seen = &text[..at + character.len_utf8()];
            let hit = stops.iter().filter(|stop| seen.ends_with(stop.as_str())).map(String::len);
            if let Some(length) = hit.max() {
                return (seen[..seen.len() - length].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    fn run<'a>(pieces: impl Iterator<Item = &'a str>, stops: &[String]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.to_vec());
        let mut passed = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                Scan::Pass(text) => passed.push_str(&text),
                Scan::Stop(text) => return (passed + &text, true),
            }
        }
        let rest = matcher.finish();
        (passed + &rest, false)
    }

    proptest! {
        #[test]
        fn any_split_of_a_text_stops_where_the_whole_text_does(
            text in "[abé🚂]{0,24}",
            stops in prop::collection::vec("[abé🚂]{1,4}", 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let boundaries: Vec<usize> =
                text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let mut cuts: Vec<usize> =
                cuts.iter().map(|cut| boundaries[cut.index(boundaries.len())]).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]);
            prop_assert_eq!(run(pieces, &stops), naive(&text, &stops));
        }

        #[test]
        fn only_what_may_begin_a_stop_string_is_held(text in "[ab]{0,16}", stop in "[ab]{1,5}") {
            let mut matcher = StopMatcher::new(vec![stop.clone()]);
            if let Scan::Pass(_) = matcher.push(&text) {
                prop_assert!(matcher.held.len() < stop.len());
                prop_assert!(stop.starts_with(&matcher.held));
            }
        }
    }

    #[test]
    fn a_stop_string_is_part_of_the_text_where_it_is_asked_for() {
        let mut matcher = StopMatcher::new(vec!["b".into(), "ab".into()]).including(true);
        assert_eq!(matcher.push("xa"), Scan::Pass("x".into()));
        assert_eq!(matcher.push("bc"), Scan::Stop("ab".into()));
    }

    #[test]
    fn text_passes_at_once_when_it_cannot_begin_a_stop_string() {
        let mut matcher = StopMatcher::new(vec!["\n\nUser:".into()]);
        assert_eq!(matcher.push("one\n"), Scan::Pass("one".into()));
        assert!(matcher.holds());
        assert_eq!(matcher.push("two"), Scan::Pass("\ntwo".into()));
        assert!(!matcher.holds());
        assert_eq!(matcher.push("\n\nUs"), Scan::Pass(String::new()));
        assert_eq!(matcher.push("er: x"), Scan::Stop(String::new()));
    }
}
