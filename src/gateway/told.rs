//! The tokens that a server behind us says a request took.

mod said;

use std::mem;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};

use crate::layers::Notes;
use crate::meter::text_tokens;
use said::Said;

/// Larger events, and answers that are not gathered, are not read: what they took is not known.
const READ_MAX: usize = 1 << 20;
/// Larger answers take longer to read than other requests should wait.
const INLINE_MAX: usize = 64 << 10;
/// What answers are written in that may say it.
const JSON: &[u8] = b"application/json";
const EVENTS: &[u8] = b"text/event-stream";
const LINES: [&[u8]; 3] = [b"application/jsonlines", b"application/jsonl", b"application/x-ndjson"];

/// What is counted of an answer that says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsaid {
    /// Every event is a token, but for those that say how a response gets on, and the prompt a text of the body's length.
    Guessed,
    /// Nothing: it need not be a language model that answers.
    Nothing,
}

/// Counts what an answer took, as it goes by: at most a line of it is kept.
pub(crate) struct Counter {
    /// Absent where nobody says.
    notes: Option<Notes>,
    unsaid: Unsaid,
    /// Whether the body may say it.
    reads: bool,
    /// Whether a line is an event without `data:` before it.
    is_lines: bool,
    /// What there is of the next line; absent where it is too long.
    line: Option<Vec<u8>>,
    /// All that there is so far, until the first event; absent where it is too long.
    whole: Option<Vec<u8>>,
    /// Events that count as a token.
    events: usize,
    /// When the first of them came, since the request did.
    first: Option<Duration>,
    said: Said,
}

impl Counter {
    /// Counts nothing.
    pub(crate) fn nothing() -> Self {
        Self::of(None, Unsaid::Nothing, false)
    }

    /// Counts what an engine answers with success.
    pub(crate) fn of_engine(notes: &Notes) -> Self {
        Self::of(Some(notes), Unsaid::Guessed, true)
    }

    fn of(notes: Option<&Notes>, unsaid: Unsaid, reads: bool) -> Self {
        Self {
            notes: notes.cloned(),
            unsaid,
            reads,
            is_lines: false,
            line: Some(Vec::new()),
            whole: Some(Vec::new()),
            events: 0,
            first: None,
            said: Said::default(),
        }
    }

    /// Counts what a container answers with success, where its headers allow to read it.
    pub(crate) fn of_container(notes: &Notes, headers: &HeaderMap, unsaid: Unsaid) -> Self {
        let said = Said::of_headers(headers);
        let media = headers.get(header::CONTENT_TYPE).map(|it| it.as_bytes()).unwrap_or_default();
        let media = media.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let is = |kind: &&[u8]| media.eq_ignore_ascii_case(kind);
        let is_plain = !headers.contains_key(header::CONTENT_ENCODING);
        let is_lines = LINES.iter().any(&is);
        let reads = is_plain && (is_lines || is(&JSON) || is(&EVENTS));
        let tells = reads || !said.is_empty();
        let mut counter = Self::of(tells.then_some(notes), unsaid, reads);
        (counter.is_lines, counter.said) = (is_lines, said);
        counter
    }

    /// A whole answer, or all events of one that was gathered. A large one is read on a blocking
    /// thread.
    pub(crate) async fn read_whole(&mut self, body: &Bytes) {
        self.whole = None;
        if !self.reads {
            return self.ended();
        }
        let said = if body.len() <= INLINE_MAX {
            Said::read(body)
        } else {
            let body = body.clone();
            tokio::task::spawn_blocking(move || Said::read(&body)).await.ok().flatten()
        };
        match said {
            Some(said) => self.hear(said),
            None => {
                self.read(body);
                self.read(b"\n");
            }
        }
        self.ended();
    }

    /// The next piece of a stream.
    pub(crate) fn read(&mut self, piece: &[u8]) {
        if !self.reads {
            return;
        }
        if let Some(whole) = &mut self.whole {
            match whole.len() + piece.len() > READ_MAX {
                true => self.whole = None,
                false => whole.extend_from_slice(piece),
            }
        }
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            if let Some(line) = &mut self.line {
                match line.len() + part.len() > READ_MAX {
                    true => self.line = None,
                    false => line.extend_from_slice(part),
                }
            }
            if part.ends_with(b"\n") {
                let line = self.line.replace(Vec::new());
                self.event(line.as_deref().unwrap_or_default());
            }
        }
    }

    fn event(&mut self, line: &[u8]) {
        let event = match line.strip_prefix(b"data:") {
            Some(event) => event,
            None if self.is_lines => line,
            None => return,
        };
        let Some((said, brings_token)) = Said::of_event(event.trim_ascii()) else { return };
        self.hear(said);
        self.whole = None;
        self.events += usize::from(brings_token);
        if brings_token && self.events == 1 {
            self.first = self.notes.as_ref().map(Notes::elapsed);
        }
    }

    /// What is said later holds.
    fn hear(&mut self, said: Said) {
        if !said.is_empty() {
            self.said = said;
        }
    }

    /// Nothing comes any more. Further calls count nothing.
    pub(crate) fn ended(&mut self) {
        let Some(notes) = self.notes.take() else { return };
        if self.is_lines
            && let Some(line) = self.line.take()
        {
            // The last line need not end.
            self.hear(Said::read(&line).unwrap_or_default());
        }
        if let Some(whole) = self.whole.take() {
            self.hear(Said::read(&whole).unwrap_or_default());
        }
        let said = mem::take(&mut self.said);
        if let (false, Some(first)) =
            (said.is_empty() && self.unsaid == Unsaid::Nothing, self.first)
        {
            notes.first_token(first);
        }
        match (said.is_empty(), self.unsaid) {
            (true, Unsaid::Nothing) => {}
            (true, Unsaid::Guessed) => {
                notes.add_prompt(text_tokens(notes.bytes_in()));
                notes.generated(self.events);
            }
            (false, _) => {
                if let Some(tokens) = said.prompt {
                    notes.add_prompt(tokens);
                }
                notes.generated(said.generated.unwrap_or_default());
            }
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.ended();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn notes() -> Notes {
        let request = axum::extract::Request::new(axum::body::Body::empty());
        let route = std::sync::Arc::new(crate::metrics::OfRoute::new("unmatched"));
        Notes::new(Uuid::nil(), &request, None, &route)
    }

    /// What is counted of an answer in pieces.
    fn counted(pieces: &[&str]) -> (Option<usize>, Option<usize>) {
        let notes = notes();
        let mut counter = Counter::of_engine(&notes);
        pieces.iter().for_each(|piece| counter.read(piece.as_bytes()));
        drop(counter);
        notes.tokens()
    }

    /// The same of a container's answer in this form, that is no language model's for all we know.
    fn of_container(media: &str, pieces: &[&str]) -> (Option<usize>, Option<usize>) {
        let notes = notes();
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, media.parse().unwrap())]);
        let mut counter = Counter::of_container(&notes, &headers, Unsaid::Nothing);
        pieces.iter().for_each(|piece| counter.read(piece.as_bytes()));
        drop(counter);
        notes.tokens()
    }

    #[test]
    fn what_a_container_says_is_counted_and_nothing_is_guessed() {
        let details = r#"{"details": {"generated_tokens": 7, "input_length": 5}}"#;
        let usage = r#"{"usage": {"prompt_tokens": 5, "completion_tokens": 7}}"#;
        let (some, none) = ((Some(5), Some(7)), (None, None));
        let event = format!("data:{details}\n\n");
        let (list, rest) = (format!("{details}]"), format!("{}\n", &details[1..]));
        let (event, list, rest) = (event.as_str(), list.as_str(), rest.as_str());
        for (media, pieces, counted) in [
            ("application/json", [&usage[..9], &usage[9..]], some),
            ("application/json; charset=utf-8", ["[", list], some),
            ("text/event-stream", ["data: {\"token\": 1}\n\n", event], some),
            ("text/event-stream", ["data: {}\n\n", "data: {}\n\n"], none),
            ("application/jsonlines", ["{\"token\": 1}\n", details], some),
            ("application/jsonlines", ["{\"token\": 1}\n{", rest], some),
            ("application/json", ["{\"token\": 1}\n", details], none),
            ("text/csv", ["", usage], none),
            ("application/json", ["[[0.1]", ", [0.2]]"], none),
        ] {
            assert_eq!(of_container(media, &pieces), counted, "{media}: {pieces:?}");
        }
    }

    #[test]
    fn of_a_response_that_breaks_off_its_deltas_are_tokens_and_nothing_else() {
        let notes = notes();
        let mut counter = Counter::of_engine(&notes);
        let created = r#"{"type": "response.created", "response": {"usage": null}}"#;
        let added = r#"{"type": "response.output_item.added", "item": {"type": "message"}}"#;
        let delta = r#"{"type": "response.output_text.delta", "delta": "x"}"#;
        for (event, count) in [(created, 0), (added, 0), (delta, 1)] {
            counter.read(format!("event: x\ndata: {event}\n\n").as_bytes());
            assert_eq!((counter.events, counter.first.is_some()), (count, count > 0), "{event}");
        }
        drop(counter);
        assert_eq!(notes.tokens(), (Some(0), Some(1)));
    }

    #[test]
    fn what_a_whole_answer_in_pieces_says_is_counted_as_that_of_events_is() {
        let long = "x".repeat(READ_MAX);
        let usage = r#"{"usage": {"prompt_tokens": 5, "completion_tokens": 7}}"#;
        let (some, none) = ((Some(5), Some(7)), (Some(0), None));
        assert_eq!(counted(&[&usage[..20], &usage[20..]]), some);
        assert_eq!(counted(&["{\n", &usage[1..], "\n"]), some);
        assert_eq!(counted(&["data: {}\n\ndata: ", usage, "\n\ndata: [DONE]\n\n"]), some);
        assert_eq!(counted(&["data: {}\n\n", "data: {}\n\n"]), (Some(0), Some(2)));
        assert_eq!(counted(&[r#"{"x": ""#, &long, r#"","#, &usage[1..]]), none);
        assert_eq!(counted(&[&long, "\n\ndata: ", usage, "\n\n"]), some);
        assert_eq!(counted(&[]), none);
    }
}
