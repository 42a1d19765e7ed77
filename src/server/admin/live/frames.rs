//! What is sent to readers, and the latest decisions by number.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use axum::response::sse::Event;
use roundhouse_residency::Decision;
use serde::Serialize;
use uuid::Uuid;

/// Decisions that are remembered for readers that come again.
const REMEMBERED: usize = 1024;

/// One event of a stream. Clones share the text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Frame {
    pub(super) event: &'static str,
    /// Of decisions.
    pub(super) id: Option<Id>,
    pub(super) data: Arc<str>,
}

/// Which decision it is: the start of the process and a number that grows by one with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id {
    start: u32,
    pub(super) number: u64,
}

impl Frame {
    pub(super) fn of(event: &'static str, data: &impl Serialize) -> Self {
        let text = serde_json::to_string(data).expect("our values have string keys only");
        Self { event, id: None, data: text.into() }
    }
}

impl From<Frame> for Result<Event, Infallible> {
    fn from(frame: Frame) -> Self {
        let event = Event::default().event(frame.event).data(&*frame.data);
        Ok(match frame.id {
            Some(id) => event.id(id.to_string()),
            None => event,
        })
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{}", self.start, self.number)
    }
}

impl FromStr for Id {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (start, number) = text.split_once('-').ok_or(())?;
        let start = u32::from_str_radix(start, 16).map_err(|_| ())?;
        Ok(Self { start, number: number.parse().map_err(|_| ())? })
    }
}

/// The latest decisions, the oldest first, without a gap in their numbers.
pub(super) struct Log {
    start: u32,
    /// The number of the next one.
    next: u64,
    frames: VecDeque<Frame>,
}

impl Log {
    pub(super) fn new() -> Self {
        let (start, ..) = Uuid::new_v4().as_fields();
        Self { start, next: 1, frames: VecDeque::new() }
    }

    /// Which process this is.
    pub(super) fn start(&self) -> String {
        format!("{:08x}", self.start)
    }

    /// Numbers a decision and remembers it.
    pub(super) fn add(&mut self, decision: &Decision) -> Frame {
        let id = Id { start: self.start, number: self.next };
        let frame = Frame { id: Some(id), ..Frame::of("decision", decision) };
        self.next += 1;
        if self.frames.len() == REMEMBERED {
            self.frames.pop_front();
        }
        self.frames.push_back(frame.clone());
        frame
    }

    /// This many were made too fast to be seen: what was remembered before them is no help.
    pub(super) fn miss(&mut self, count: u64) {
        self.frames.clear();
        self.next += count;
    }

    /// The number of the last decision; 0 before the first.
    pub(super) fn at(&self) -> u64 {
        self.next - 1
    }

    /// What a reader is told who saw this one last: those since, with the number of those that are
    /// not remembered any more. One who saw none, or those of another process, is told the
    /// `latest`.
    pub(super) fn since(&self, seen: Option<&str>, latest: usize) -> Vec<Frame> {
        let ours = seen.and_then(|seen| seen.parse::<Id>().ok());
        let Some(seen) = ours.filter(|id| id.start == self.start && id.number < self.next) else {
            let skipped = self.frames.len().saturating_sub(latest);
            return self.frames.iter().skip(skipped).cloned().collect();
        };
        let wanted = self.next - 1 - seen.number;
        let known = (self.frames.len() as u64).min(wanted);
        let gone = (wanted > known).then(|| missed(wanted - known));
        let skipped = self.frames.len() - usize::try_from(known).unwrap_or(usize::MAX);
        gone.into_iter().chain(self.frames.iter().skip(skipped).cloned()).collect()
    }
}

/// Says how many decisions a reader was not told.
pub(super) fn missed(count: u64) -> Frame {
    Frame::of("missed", &count)
}
