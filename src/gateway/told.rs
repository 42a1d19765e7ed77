//! The tokens that an external engine says a request took: OpenAI's `usage`.

use bytes::Bytes;
use serde::Deserialize;

use crate::layers::Notes;
use crate::meter::text_tokens;

/// Larger events, and answers that are not gathered, are not read: what they took is not known.
const READ_MAX: usize = 1 << 20;
/// Larger answers take longer to read than other requests should wait.
const INLINE_MAX: usize = 64 << 10;

#[derive(Deserialize)]
struct Told {
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: usize,
    #[serde(default)]
    completion_tokens: usize,
}

/// Counts what an answer took. Of a stream without `usage` every event counts as a token, and the
/// prompt as text of the body's length.
pub(crate) struct Counter {
    /// Absent where nobody says.
    notes: Option<Notes>,
    /// What there is of the next line; absent where it is too long.
    line: Option<Vec<u8>>,
    /// All that there is so far, until the first event; absent where it is too long.
    whole: Option<Vec<u8>>,
    events: usize,
    told: Option<Usage>,
}

impl Counter {
    /// Counts where an engine answers, with success.
    pub(crate) fn new(notes: &Notes, is_engine: bool) -> Self {
        let notes = is_engine.then(|| notes.clone());
        let (line, whole) = (Some(Vec::new()), Some(Vec::new()));
        Self { notes, line, whole, events: 0, told: None }
    }

    /// A whole answer, or all events of one that was gathered. A large one is read on a blocking
    /// thread.
    pub(crate) async fn read_whole(&mut self, body: &Bytes) {
        if self.notes.is_none() {
            return;
        }
        let told = if body.len() <= INLINE_MAX {
            serde_json::from_slice::<Told>(body).ok()
        } else {
            let body = body.clone();
            let read = move || serde_json::from_slice::<Told>(&body).ok();
            tokio::task::spawn_blocking(read).await.ok().flatten()
        };
        self.whole = None;
        match told {
            Some(told) => self.told = told.usage,
            None => self.read(body),
        }
        self.ended();
    }

    /// The next piece of a stream.
    pub(crate) fn read(&mut self, piece: &[u8]) {
        if self.notes.is_none() {
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
                line.extend_from_slice(part);
                if line.len() > READ_MAX {
                    self.line = None;
                }
            }
            if part.ends_with(b"\n") {
                let line = self.line.replace(Vec::new());
                self.event(line.as_deref().unwrap_or_default());
            }
        }
    }

    fn event(&mut self, line: &[u8]) {
        let Some(event) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { return };
        let Ok(told) = serde_json::from_slice::<Told>(event) else { return };
        if told.usage.is_some() {
            self.told = told.usage;
        }
        self.events += 1;
        self.whole = None;
        if self.events == 1
            && let Some(notes) = &self.notes
        {
            // The first one stops the first token's clock.
            notes.generated(1);
        }
    }

    /// Nothing comes any more. Further calls count nothing.
    pub(crate) fn ended(&mut self) {
        let Some(notes) = self.notes.take() else { return };
        let counted = self.events.min(1);
        if let Some(whole) = self.whole.take()
            && let Ok(told) = serde_json::from_slice::<Told>(&whole)
        {
            self.told = told.usage;
        }
        match &self.told {
            Some(usage) => {
                notes.prompt(usage.prompt_tokens);
                notes.generated(usage.completion_tokens.saturating_sub(counted));
            }
            None => {
                notes.prompt(text_tokens(notes.bytes_in()) as usize);
                notes.generated(self.events.saturating_sub(counted));
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

    /// What is counted of an answer in pieces.
    fn counted(pieces: &[&str]) -> (Option<usize>, Option<usize>) {
        let request = axum::extract::Request::new(axum::body::Body::empty());
        let route = std::sync::Arc::new(crate::metrics::OfRoute::new("unmatched"));
        let notes = Notes::new(Uuid::nil(), &request, None, &route);
        let mut counter = Counter::new(&notes, true);
        pieces.iter().for_each(|piece| counter.read(piece.as_bytes()));
        drop(counter);
        notes.tokens()
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
