//! Chat templates: Jinja as `transformers` runs it, with limits, as artefacts are not ours.

use std::collections::BTreeMap;
use std::io;

use minijinja::{AutoEscape, Environment, ErrorKind};
use serde_json::{Map, Value};

use super::messages::{self, Reading};
use super::python;
use crate::tools::CallFormat;
use crate::{Error, Opening};

/// Instructions a template may execute: thousands of messages, and less than a second.
const FUEL: u64 = 5_000_000;
/// The longest prompt a template may write, in bytes; several times the largest body we take.
const OUTPUT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The template for chats, and the one for chats with tools where there is one.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
/// Marks the end of a message that is to be continued, while it is rendered: private characters, and a
/// space that shows whether the template keeps such.
const END: &str = "\u{F0EF1}\u{F0EF2}\u{F0EF3} ";

/// An artefact's chat templates, parsed.
#[derive(Debug)]
pub(super) struct ChatTemplates {
    environment: Environment<'static>,
    readings: BTreeMap<String, Reading>,
    /// Templates that cannot be parsed: line and message.
    broken: BTreeMap<String, (usize, String)>,
    /// `bos_token`, `eos_token` and so on.
    special: BTreeMap<String, String>,
    /// How the template for tools shows calls.
    calls: Option<CallFormat>,
}

impl ChatTemplates {
    /// Parses templates by name.
    pub(super) fn new(
        sources: BTreeMap<String, String>,
        special: BTreeMap<String, String>,
    ) -> Self {
        let mut environment = environment();
        let mut readings = BTreeMap::new();
        let mut broken = BTreeMap::new();
        let calls = sources.get(TOOL_USE).or(sources.get(DEFAULT));
        let calls = calls.and_then(|source| CallFormat::of(source));
        for (name, source) in sources {
            let reading = Reading::of(&source);
            match environment.add_template_owned(name.clone(), without_generation_tags(&source)) {
                Ok(()) => drop(readings.insert(name, reading)),
                Err(error) => drop(broken.insert(name, place(&error))),
            }
        }
        Self { environment, readings, broken, special, calls }
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
        self.readings.is_empty() && self.broken.is_empty()
    }

    /// Renders a chat.
    pub(super) fn render(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        kwargs: &Map<String, Value>,
        opening: Opening,
    ) -> Result<String, Error> {
        let known = |name: &str| self.readings.contains_key(name) || self.broken.contains_key(name);
        let name = if tools.is_some() && known(TOOL_USE) { TOOL_USE } else { DEFAULT };
        if let Some((line, message)) = self.broken.get(name) {
            return Err(Error::Template { line: *line, message: message.clone() });
        }
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

        let failed = |error: &minijinja::Error| {
            let (line, message) = place(error);
            Error::Template { line, message }
        };
        let template = self.environment.get_template(name).map_err(|error| failed(&error))?;
        let mut output = Limited { bytes: Vec::new(), full: false };
        let rendered = template.render_captured_to(context, &mut output).map(drop);
        if output.full {
            return Err(Error::TemplateOutput(OUTPUT_BYTES_MAX));
        }
        rendered.map_err(|error| failed(&error))?;
        let rendered = String::from_utf8_lossy(&output.bytes).into_owned();
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

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, _, value| python::write_str(out, value).map_err(Into::into));
    environment.add_filter("tojson", python::tojson);
    environment.add_filter(
        "string",
        |value: &minijinja::Value| -> Result<String, minijinja::Error> {
            let mut out = String::new();
            python::write_str(&mut out, value)?;
            Ok(out)
        },
    );
    // As in Jinja, where `None` cannot be looped over.
    environment.add_test("iterable", |value: &minijinja::Value| {
        !value.is_none() && value.try_iter().is_ok()
    });
    environment.add_function("strftime_now", |format: &str| python::strftime_now(format));
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment
}

/// `{% generation %}` marks the assistant's words for training; for prompts it is a block that
/// does nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        // Behind the opening: of `{%}` the percent sign is not the end's, too.
        let Some(end) = tag[2..].find("%}").map(|at| at + 2) else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end);
        match tag[2..].trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn place(error: &minijinja::Error) -> (usize, String) {
    let message = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => format!("it took more than {FUEL} steps"),
        (_, Some(detail)) => detail.to_owned(),
        (kind, None) => kind.to_string(),
    };
    (error.line().unwrap_or(0), message)
}

/// A buffer that refuses to grow past the limit.
struct Limited {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT_BYTES_MAX {
            self.full = true;
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
