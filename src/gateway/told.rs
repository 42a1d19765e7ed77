//! The tokens that an external engine says a request took: OpenAI's `usage`.

use serde::Deserialize;

use crate::layers::Notes;

/// Larger answers, and events, are not read: what they took is not known.
const READ_MAX: usize = 1 << 20;

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

/// Counts what an answer took. Of a stream without `usage` every event counts as a token.
pub(crate) struct Counter {
    /// Absent where nobody says.
    notes: Option<Notes>,
    /// What there is of the next line; absent where it is too long.
    line: Option<Vec<u8>>,
    events: usize,
    told: Option<Usage>,
}

impl Counter {
    /// Counts where an engine answers.
    pub(crate) fn new(notes: &Notes, is_engine: bool) -> Self {
        let notes = is_engine.then(|| notes.clone());
        Self { notes, line: Some(Vec::new()), events: 0, told: None }
    }

    /// A whole answer, or all events of one that was gathered.
    pub(crate) fn read_whole(&mut self, body: &[u8]) {
        if self.notes.is_none() || body.len() > READ_MAX {
            return;
        }
        match serde_json::from_slice::<Told>(body) {
            Ok(told) => self.told = told.usage,
            Err(_) => self.read(body),
        }
        self.ended();
    }

    /// The next piece of a stream.
    pub(crate) fn read(&mut self, piece: &[u8]) {
        if self.notes.is_none() {
            return;
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
        match &self.told {
            Some(usage) => {
                notes.prompt(usage.prompt_tokens);
                notes.generated(usage.completion_tokens.saturating_sub(counted));
            }
            None => notes.generated(self.events.saturating_sub(counted)),
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.ended();
    }
}
