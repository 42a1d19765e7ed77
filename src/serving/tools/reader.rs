//! Finds calls of tools in an answer as it comes.

use std::hash::{BuildHasher, RandomState};

use serde_json::{Map, Value};

use super::extent::FirstObject;
use super::{CallFormat, ToolCall};
use crate::text::overlap;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const PYTHON: &str = "<|python_tag|>";
const LIST: &str = "[TOOL_CALLS]";
const ARGUMENTS: &str = "[ARGS]";

/// Takes an answer's text in pieces and gives out what is said and what is called.
///
/// 1. What looks like a call but cannot be read as one is given out as text.
/// 2. White space between what is said and a call belongs to neither.
/// 3. A call is given out whole, and one that is to be the only one as soon as it is.
#[derive(Debug)]
pub(crate) struct CallReader {
    format: CallFormat,
    /// The tools there are: a whole answer of JSON is a call only if it names one of them.
    names: Vec<String>,
    /// Whether the first call is the only one.
    single: bool,
    /// Where it ends, in an answer that is all calls.
    first: FirstObject,
    /// Text that is not decided.
    held: String,
    /// White space before the call under way, in case it is none.
    gap: String,
    state: State,
    /// Whether a call has been given out.
    called: bool,
    /// Whether the last one was cut short.
    cut: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space has come.
    Beginning,
    /// Text, for all that is known.
    Saying,
    /// Between a call's tags, or in an answer that is all calls.
    Calling,
}

/// What a piece of an answer turned out to be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) calls: Vec<ToolCall>,
}

impl CallReader {
    /// Looks for calls of the tools with these names, or for one (`single`).
    pub(crate) fn new(format: CallFormat, names: Vec<String>, single: bool) -> Self {
        let (held, gap) = (String::new(), String::new());
        let (first, state) = (FirstObject::default(), State::Beginning);
        Self { format, names, single, first, held, gap, state, called: false, cut: false }
    }

    /// Whether a call has been given out.
    pub(crate) fn called(&self) -> bool {
        self.called
    }

    /// Whether all calls that are wanted have been given out.
    pub(crate) fn is_done(&self) -> bool {
        self.single && self.called && !self.cut
    }

    /// Whether text is held back.
    pub(crate) fn holds(&self) -> bool {
        !self.held.is_empty() || self.state == State::Calling
    }

    /// Takes the next piece of text.
    pub(crate) fn push(&mut self, text: &str) -> Said {
        let seen = self.held.len();
        self.held.push_str(text);
        let mut said = Said::default();
        match self.format {
            CallFormat::Hermes => self.tagged(seen, &mut said),
            CallFormat::MistralList | CallFormat::MistralArguments => self.listed(&mut said),
            CallFormat::Llama | CallFormat::Plain => self.whole(&mut said),
        }
        if self.single && self.state == State::Calling && self.format != CallFormat::Hermes {
            self.only(&mut said);
        }
        self.called |= !said.calls.is_empty();
        said
    }

    /// Gives out the first of what is all calls, when it is complete.
    fn only(&mut self, said: &mut Said) {
        let Some(end) = self.first.end(&self.held) else { return };
        let begun = self.held[..end].trim();
        let is_list = begun.strip_prefix(PYTHON).unwrap_or(begun).trim_start().starts_with('[');
        let closing = if is_list { "]" } else { "" };
        if let Some([call]) = self.all(&format!("{begun}{closing}")).as_deref() {
            said.calls.push(self.call(call.clone()));
            self.held.clear();
            self.state = State::Saying;
        }
    }

    /// The calls of a text that is all calls.
    fn all(&self, text: &str) -> Option<Vec<(String, String)>> {
        match self.format {
            CallFormat::Hermes => one(text).map(|call| vec![call]),
            CallFormat::MistralList | CallFormat::MistralArguments => several(text),
            CallFormat::Llama | CallFormat::Plain => {
                values(text).filter(|calls| calls.iter().all(|(name, _)| self.names.contains(name)))
            }
        }
    }

    /// What is held back, when no more comes. Of an answer that is a call in any case (`forced`),
    /// one that was cut short is given out as far as it came, as OpenAI does.
    pub(crate) fn finish(&mut self, forced: bool) -> Said {
        let held = std::mem::take(&mut self.held);
        let mut said = Said::default();
        if self.state != State::Calling {
            // White space after a call says nothing.
            said.text = if self.called && held.trim().is_empty() { String::new() } else { held };
            return said;
        }
        self.state = State::Saying;
        let whole = self.all(&held);
        self.cut = whole.is_none();
        let begun = || if forced { begun(&held, self.format) } else { None };
        match whole.or_else(begun) {
            Some(calls) => said.calls = calls.into_iter().map(|call| self.call(call)).collect(),
            None => {
                said.text.push_str(&self.gap);
                match self.format {
                    CallFormat::Hermes => said.text.push_str(OPEN),
                    CallFormat::MistralList | CallFormat::MistralArguments => {
                        said.text.push_str(LIST);
                    }
                    CallFormat::Llama | CallFormat::Plain => {}
                }
                said.text.push_str(&held);
            }
        }
        self.called |= !said.calls.is_empty();
        said
    }

    fn call(&self, (name, arguments): (String, String)) -> ToolCall {
        ToolCall { id: id(self.format), name, arguments }
    }

    /// Calls between tags, among text.
    fn tagged(&mut self, seen: usize, said: &mut Said) {
        let mut seen = seen;
        loop {
            if self.state == State::Calling {
                let from = self.held.floor_char_boundary(seen.saturating_sub(CLOSE.len()));
                let Some(at) = self.held[from..].find(CLOSE) else { return };
                let body = self.held[..from + at].to_owned();
                self.held.drain(..from + at + CLOSE.len());
                match one(&body) {
                    Some(call) => {
                        said.calls.push(self.call(call));
                        if self.single {
                            self.held.clear();
                        }
                    }
                    None => said.text.push_str(&format!("{}{OPEN}{body}{CLOSE}", self.gap)),
                }
                self.state = State::Beginning;
            } else {
                self.say_until(OPEN, said);
                if self.state != State::Calling {
                    return;
                }
            }
            seen = 0;
        }
    }

    /// Text up to a marker, after which all is calls.
    fn listed(&mut self, said: &mut Said) {
        if self.state != State::Calling {
            self.say_until(LIST, said);
        }
    }

    /// Gives out the text before `marker` as far as it is certain, and begins a call behind it.
    fn say_until(&mut self, marker: &str, said: &mut Said) {
        if let Some(at) = self.held.find(marker) {
            let text = self.held[..at].trim_end();
            said.text.push_str(text);
            self.gap = self.held[text.len()..at].to_owned();
            self.held.drain(..at + marker.len());
            self.state = State::Calling;
            return;
        }
        let certain = self.held.len() - overlap(&self.held, marker);
        let certain = self.held[..certain].trim_end().len();
        if certain > 0 {
            said.text.extend(self.held.drain(..certain));
            self.state = State::Saying;
        }
    }

    /// An answer that is either all calls or all text, as its first character tells.
    fn whole(&mut self, said: &mut Said) {
        if self.state == State::Beginning {
            let begun = self.held.trim_start();
            if begun.is_empty() || (begun.len() < PYTHON.len() && PYTHON.starts_with(begun)) {
                return;
            }
            self.state = match begun.starts_with(['{', '[']) || begun.starts_with(PYTHON) {
                true => State::Calling,
                false => State::Saying,
            };
        }
        if self.state == State::Saying {
            said.text.push_str(&std::mem::take(&mut self.held));
        }
    }
}

/// One call: an object with a name and arguments.
fn one(text: &str) -> Option<(String, String)> {
    named(&serde_json::from_str(text.trim()).ok()?)
}

fn named(value: &Value) -> Option<(String, String)> {
    let name = value.get("name")?.as_str().filter(|name| !name.is_empty())?;
    let arguments = value.get("arguments").or_else(|| value.get("parameters"));
    let arguments = match arguments {
        Some(Value::Object(map)) => Value::Object(map.clone()).to_string(),
        // Some models write the object into a string.
        Some(Value::String(text)) => {
            serde_json::from_str::<Map<String, Value>>(text).ok()?;
            text.clone()
        }
        None | Some(Value::Null) => "{}".to_owned(),
        Some(_) => return None,
    };
    Some((name.to_owned(), arguments))
}

/// Objects one after the other, with semicolons between or without.
fn values(text: &str) -> Option<Vec<(String, String)>> {
    let text = text.trim();
    let mut rest = text.strip_prefix(PYTHON).unwrap_or(text).trim_start();
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        match values.next()?.ok()? {
            Value::Array(list) => {
                for value in &list {
                    calls.push(with_both(value)?);
                }
            }
            value => calls.push(with_both(&value)?),
        }
        rest = rest[values.byte_offset()..].trim_start_matches([';', ' ', '\n', '\r', '\t']);
    }
    (!calls.is_empty()).then_some(calls)
}

/// Calls of which the last was cut short: its arguments are what came of them. A list whose end
/// is missing is not told apart.
fn begun(text: &str, format: CallFormat) -> Option<Vec<(String, String)>> {
    let text = text.trim();
    let is_mistral = matches!(format, CallFormat::MistralList | CallFormat::MistralArguments);
    if is_mistral && text.contains(ARGUMENTS) {
        let call = |text: &str| {
            let (name, arguments) = text.split_once(ARGUMENTS)?;
            Some((name.trim().to_owned(), arguments.trim().to_owned()))
        };
        return Some(text.split(LIST).filter_map(call).collect());
    }
    let mut rest = text.strip_prefix(PYTHON).unwrap_or(text).trim_start();
    let mut calls = Vec::new();
    loop {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let Some(Ok(value)) = values.next() else { break };
        calls.push(with_both(&value)?);
        rest = rest[values.byte_offset()..].trim_start_matches([';', ' ', '\n', '\r', '\t']);
    }
    let after = |text: &'_ str, key: &str| -> Option<usize> {
        let at = text.find(key)? + key.len();
        Some(at + text[at..].find(':')? + 1)
    };
    let name = rest.strip_prefix('{').and_then(|rest| {
        let rest = &rest[after(rest, "\"name\"")?..];
        let mut name = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        let called = name.next()?.ok()?;
        Some((called, &rest[name.byte_offset()..]))
    });
    if let Some((name, rest)) = name {
        let at = after(rest, "\"arguments\"").or_else(|| after(rest, "\"parameters\""));
        calls.push((name, at.map_or("", |at| rest[at..].trim_start()).to_owned()));
    }
    (!calls.is_empty()).then_some(calls)
}

/// A call that nothing marks as one must have both of its parts.
fn with_both(value: &Value) -> Option<(String, String)> {
    let complete = value.get("arguments").is_some() || value.get("parameters").is_some();
    if complete { named(value) } else { None }
}

/// What follows `[TOOL_CALLS]`: a list, or a name and an object for each call.
fn several(text: &str) -> Option<Vec<(String, String)>> {
    let text = text.trim();
    if text.starts_with('[') {
        let list: Vec<Value> = serde_json::from_str(text).ok()?;
        return list
            .iter()
            .map(named)
            .collect::<Option<Vec<_>>>()
            .filter(|calls| !calls.is_empty());
    }
    let call = |text: &str| {
        let at = text.find('{')?;
        let name = text[..at].trim();
        let name = name.strip_suffix(ARGUMENTS).unwrap_or(name).trim();
        let arguments = text[at..].trim();
        serde_json::from_str::<Map<String, Value>>(arguments).ok()?;
        (!name.is_empty()).then(|| (name.to_owned(), arguments.to_owned()))
    };
    text.split(LIST).map(call).collect()
}

/// A fresh id. Mistral's templates take those of nine letters and digits only.
fn id(format: CallFormat) -> String {
    const LETTERS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let (prefix, length) = match format {
        CallFormat::MistralList | CallFormat::MistralArguments => ("", 9),
        _ => ("call_", 24),
    };
    let mut id = prefix.to_owned();
    let mut random = 0;
    for place in 0..length {
        if place % 10 == 0 {
            // The standard library's only source of randomness: the keys of a fresh hash map.
            random = RandomState::new().hash_one(place);
        }
        let letters = LETTERS.len() as u64;
        id.push(char::from(LETTERS[usize::try_from(random % letters).unwrap_or(0)]));
        random /= letters;
    }
    id
}
