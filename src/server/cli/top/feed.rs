//! What the server tells: events off the stream, and the state that they make.

use std::collections::VecDeque;

use reqwest::Response;
use serde_json::Value;

use crate::admin::live::patch;

/// Decisions that are remembered.
const DECISIONS: usize = 64;
/// Samples that are remembered: a quarter of an hour.
const SAMPLES: usize = 180;

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Frame {
    event: String,
    id: Option<String>,
    data: String,
}

/// Events as they come off an answer.
pub(super) struct Frames {
    answer: Response,
    /// What came of lines that are not whole yet.
    rest: Vec<u8>,
    frame: Frame,
}

impl Frames {
    pub(super) fn new(answer: Response) -> Self {
        Self { answer, rest: Vec::new(), frame: Frame::default() }
    }

    /// The next event; `None` where the stream has ended. A dropped call loses nothing but what
    /// arrives meanwhile: call it again only where it was not dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, reqwest::Error> {
        loop {
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                if let Some(frame) = self.line(String::from_utf8_lossy(&line).trim_end()) {
                    return Ok(Some(frame));
                }
            }
            match self.answer.chunk().await? {
                Some(bytes) => self.rest.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }

    /// Takes a line; an empty one ends an event.
    fn line(&mut self, line: &str) -> Option<Frame> {
        take_line(&mut self.frame, line)
    }
}

fn take_line(frame: &mut Frame, line: &str) -> Option<Frame> {
    if line.is_empty() {
        let whole = std::mem::take(frame);
        return (!whole.data.is_empty()).then_some(whole);
    }
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    let value = value.strip_prefix(' ').unwrap_or(value);
    match name {
        "event" => frame.event = value.to_owned(),
        "id" => frame.id = Some(value.to_owned()),
        "data" => frame.data.push_str(value),
        _ => {}
    }
    None
}

/// The state, samples and decisions as the server told them.
#[derive(Debug, Default)]
pub(super) struct Feed {
    state: Option<Value>,
    samples: VecDeque<Value>,
    /// Milliseconds from one sample to the next.
    every: Option<f64>,
    decisions: VecDeque<Value>,
    seen: Option<String>,
    /// Whether a pulse has come since the state did: what was decided before is told then.
    settled: bool,
    lost: Option<String>,
}

impl Feed {
    /// Takes an event in. Those of other names are left for later servers.
    ///
    /// # Errors
    /// When it is not the JSON that it should be.
    pub(super) fn take(&mut self, frame: Frame) -> Result<(), serde_json::Error> {
        let data: Value = serde_json::from_str(&frame.data)?;
        self.seen = frame.id.or(self.seen.take());
        match frame.event.as_str() {
            "state" => self.begin(data),
            "change" => {
                self.settled = true;
                patch::apply(self.state.get_or_insert(Value::Null), data);
            }
            "sample" => push(&mut self.samples, SAMPLES, data),
            "decision" => push(&mut self.decisions, DECISIONS, data),
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, mut whole: Value) {
        (self.lost, self.settled) = (None, false);
        self.samples.clear();
        self.every = whole["samples"]["every_ms"].as_f64().filter(|every| *every > 0.0);
        for sample in whole["samples"]["samples"].as_array_mut().into_iter().flatten() {
            push(&mut self.samples, SAMPLES, sample.take());
        }
        self.state = Some(whole["state"].take());
    }

    #[cfg(test)]
    pub(super) fn begin_with(&mut self, state: Value, samples: Value) {
        self.begin(serde_json::json!({"state": state, "samples": samples}));
    }

    /// The connection is gone; what is known stays.
    pub(super) fn lost(&mut self, why: &str) {
        self.lost = Some(why.to_owned());
    }

    pub(super) fn why_lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Whether nothing was told yet.
    pub(super) fn is_empty(&self) -> bool {
        self.state.is_none()
    }

    /// Whether the state and the decisions before it are known.
    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }

    /// The id of the last decision.
    pub(super) fn seen(&self) -> Option<&str> {
        self.seen.as_deref()
    }

    /// The state; null where there is none.
    pub(super) fn state(&self) -> &Value {
        self.state.as_ref().unwrap_or(&Value::Null)
    }

    /// The oldest first.
    pub(super) fn samples(&self) -> Vec<&Value> {
        self.samples.iter().collect()
    }

    /// A count of the last sample as so many a second; `None` where the server has not said how
    /// long a sample is.
    pub(super) fn per_second(&self, name: &str) -> Option<f64> {
        let count = self.samples.back().and_then(|sample| sample[name].as_f64());
        self.every.map(|every| count.unwrap_or_default() * 1000.0 / every)
    }

    /// The oldest first.
    pub(super) fn decisions(&self) -> Vec<&Value> {
        self.decisions.iter().collect()
    }
}

fn push(list: &mut VecDeque<Value>, most: usize, value: Value) {
    if list.len() == most {
        list.pop_front();
    }
    list.push_back(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(text: &str) -> Vec<Frame> {
        let mut frame = Frame::default();
        text.lines().filter_map(|line| take_line(&mut frame, line)).collect()
    }

    #[test]
    fn events_make_the_state() {
        let text = "event: state\ndata: {\"state\":{\"waiters\":1,\"devices\":{}},\n\
                    data: \"samples\":{\"samples\":[{\"requests\":1}]}}\n\n: a comment\n\n\
                    event: decision\nid: 0a-1\ndata: {\"target\":\"m\"}\n\n\
                    event: tomorrow\ndata: 1\n\nevent: change\ndata: {\"waiters\":2}\n\n";
        let mut feed = Feed::default();
        for (index, frame) in frames(text).into_iter().enumerate() {
            assert_eq!(feed.is_settled(), index > 3);
            feed.take(frame).unwrap();
        }
        assert!(feed.is_settled() && feed.seen() == Some("0a-1"));
        assert_eq!(feed.state()["waiters"], 2);
        assert_eq!((feed.samples().len(), feed.decisions().len()), (1, 1));
        feed.lost("gone");
        let again = frames("event: state\ndata: {\"state\":{},\"samples\":{\"samples\":[]}}\n\n");
        feed.take(again.into_iter().next().unwrap()).unwrap();
        assert!(feed.why_lost().is_none() && !feed.is_settled());
        assert!(feed.samples().is_empty() && feed.seen().is_some());
        let broken = Frame { data: "{".into(), ..Frame::default() };
        assert!(feed.take(broken).is_err());
    }
}
