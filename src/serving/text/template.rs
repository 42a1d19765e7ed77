//! Chat templates: what they are shown of a chat, and what is known of them by their text alone.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::messages::{self, Reading};
use crate::rendering::{Render, Rendering, TemplateSources};
use crate::tools::CallFormat;
use crate::{Error, Opening};

/// The template for chats, and the one for chats with tools where there is one.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
/// Marks the end of a message that is to be continued, while it is rendered: private characters, and a
/// space that shows whether the template keeps such.
const END: &str = "\u{F0EF1}\u{F0EF2}\u{F0EF3} ";

/// An artefact's chat templates. They are strangers' programs: here they are texts, and parsed only
/// where they are rendered.
#[derive(Debug)]
pub(super) struct ChatTemplates {
    sources: TemplateSources,
    readings: BTreeMap<String, Reading>,
    /// `bos_token`, `eos_token` and so on.
    special: BTreeMap<String, String>,
    /// How the template for tools shows calls.
    calls: Option<CallFormat>,
}

impl ChatTemplates {
    /// Templates by name, and special tokens by role.
    pub(super) fn new(
        sources: BTreeMap<String, String>,
        special: BTreeMap<String, String>,
    ) -> Self {
        let calls = sources.get(TOOL_USE).or(sources.get(DEFAULT));
        let calls = calls.and_then(|source| CallFormat::of(source));
        let readings =
            sources.iter().map(|(name, source)| (name.clone(), Reading::of(source))).collect();
        Self { sources: TemplateSources::new(sources), readings, special, calls }
    }

    /// How the template for chats with tools shows the model to call them.
    pub(super) fn call_format(&self) -> Option<CallFormat> {
        self.calls
    }

    /// Special tokens by role.
    pub(super) fn special(&self) -> &BTreeMap<String, String> {
        &self.special
    }

    pub(super) fn is_empty(&self) -> bool {
        self.readings.is_empty()
    }

    /// Renders a chat.
    pub(super) fn render(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        (kwargs, opening): (&Map<String, Value>, Opening),
        render: Render,
    ) -> Result<String, Error> {
        let has_one = tools.is_some() && self.readings.contains_key(TOOL_USE);
        let name = if has_one { TOOL_USE } else { DEFAULT };
        let reading = *self.readings.get(name).ok_or(Error::NoTemplate)?;
        let mut messages = messages::prepare(messages, reading)?;
        if opening == Opening::Message {
            messages::mark_end(&mut messages, END)?;
        }

        let mut context = Map::new();
        for (token, text) in &self.special {
            context.insert(token.clone(), Value::String(text.clone()));
        }
        context.insert("add_generation_prompt".to_owned(), (opening == Opening::Answer).into());
        context.insert("documents".to_owned(), Value::Null);
        context.extend(kwargs.clone());
        context.insert("messages".to_owned(), Value::Array(messages));
        context.insert("tools".to_owned(), tools.map_or(Value::Null, |tools| tools.into()));

        let rendered = render(Rendering { sources: &self.sources, name, context })?;
        if opening == Opening::Message { open_ended(rendered) } else { Ok(rendered) }
    }
}

/// A prompt up to the end of its last message. As in `transformers`: of a template that cuts white space
/// off its messages, without what was before the mark.
fn open_ended(mut rendered: String) -> Result<String, Error> {
    let mark = END.trim_end();
    let Some(at) = rendered.rfind(mark) else {
        let message = "the chat template does not write the last message as it is";
        return Err(Error::field("continue_final_message", message));
    };
    let is_cut = !rendered[at..].starts_with(END);
    rendered.truncate(at);
    if is_cut {
        rendered.truncate(rendered.trim_end().len());
    }
    Ok(rendered)
}
