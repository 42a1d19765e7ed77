//! Chat messages as clients send them, made into what a template expects.

use std::cell::Cell;

use serde_json::{Map, Value, json};

use crate::Error;

/// Bytes of calls' arguments that are read of one chat's texts at most: a value may be forty times what
/// it was as text. What is beyond is shown to the template as text.
const ARGUMENTS_BYTES_MAX: usize = 1 << 20;

/// How a template reads a message's `content`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentForm {
    /// As one string.
    Text,
    /// As a list of parts with a `type`.
    Parts,
}

impl ContentForm {
    /// Found from the template's own words: one that loops over `content` and never asks
    /// whether it is a string can read parts only.
    pub(super) fn of(template: &str) -> Self {
        let loops = template.split("{%").skip(1).any(|rest| {
            let tag = rest.split("%}").next().unwrap_or_default();
            let tag = tag.trim_matches(['-', '+']).trim();
            let Some(iterated) = tag.strip_prefix("for ").and_then(|tag| tag.split_once(" in "))
            else {
                return false;
            };
            let subject = iterated.1.split(['|', ' ']).next().unwrap_or_default();
            let subject = subject.trim_end_matches(['\'', '"', ']', ')']);
            subject == "content"
                || [".content", "['content", "[\"content"].iter().any(|end| subject.ends_with(end))
        });
        if loops && !template.contains("is string") { Self::Parts } else { Self::Text }
    }
}

/// What a template makes of messages, found from its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    content: ContentForm,
    /// Whether it knows OpenAI's newer name of who instructs the model.
    knows_developers: bool,
}

impl Reading {
    pub(super) fn of(template: &str) -> Self {
        let knows_developers = template.contains("developer");
        Self { content: ContentForm::of(template), knows_developers }
    }
}

/// Checks the messages and puts them into the form that a template reads.
pub(super) fn prepare(messages: &[Value], reading: Reading) -> Result<Vec<Value>, Error> {
    if messages.is_empty() {
        return Err(Error::field("messages", "at least one message is needed"));
    }
    let left = Cell::new(ARGUMENTS_BYTES_MAX);
    let numbered = messages.iter().enumerate();
    numbered.map(|(index, message)| one(index, message, reading, &left)).collect()
}

fn one(
    index: usize,
    message: &Value,
    reading: Reading,
    left: &Cell<usize>,
) -> Result<Value, Error> {
    let form = reading.content;
    let place = |field: &str| format!("messages[{index}]{field}");
    let Some(object) = message.as_object() else {
        return Err(Error::field(place(""), "a message is an object with role and content"));
    };
    match object.get("role") {
        Some(Value::String(role)) if !role.is_empty() => {}
        _ => {
            return Err(Error::field(place(".role"), "a role is needed, as a string"));
        }
    }
    let mut object = object.clone();
    if object["role"] == "developer" && !reading.knows_developers {
        object.insert("role".to_owned(), "system".into());
    }
    let calls_tools =
        matches!(object.get("tool_calls"), Some(Value::Array(calls)) if !calls.is_empty());
    match object.get("content") {
        Some(Value::String(text)) => {
            if form == ContentForm::Parts {
                let parts = json!([{"type": "text", "text": text}]);
                object.insert("content".to_owned(), parts);
            }
        }
        Some(Value::Array(parts)) => {
            let texts = text_parts(parts, &place(".content"))?;
            if form == ContentForm::Text {
                object.insert("content".to_owned(), Value::String(texts.join("\n")));
            }
        }
        // A message that calls tools may say nothing beside.
        None | Some(Value::Null) if calls_tools => {}
        _ => {
            return Err(Error::field(
                place(".content"),
                "content is needed, as a string or a list of text parts",
            ));
        }
    }
    if calls_tools {
        parse_arguments(&mut object, left);
    }
    Ok(Value::Object(object))
}

/// Puts a mark behind the last message's text.
///
/// # Errors
/// `InvalidInput` where it has none.
pub(super) fn mark_end(messages: &mut [Value], mark: &str) -> Result<(), Error> {
    let last = messages.last_mut().and_then(|message| message.get_mut("content"));
    let text = match last {
        Some(Value::Array(parts)) => parts.last_mut().and_then(|part| part.get_mut("text")),
        content => content,
    };
    match text {
        Some(Value::String(text)) => text.push_str(mark),
        _ => {
            let message = "the last message has no text that could be continued";
            return Err(Error::field("continue_final_message", message));
        }
    }
    Ok(())
}

/// The texts of parts; `refusal`s and the like are text in no template.
fn text_parts<'a>(parts: &'a [Value], place: &str) -> Result<Vec<&'a str>, Error> {
    let text = |(index, part): (usize, &'a Value)| {
        let place = format!("{place}[{index}]");
        match part.get("type").and_then(Value::as_str) {
            Some("text") => part
                .get("text")
                .and_then(Value::as_str)
                .ok_or_else(|| Error::field(place, "a text part needs text, as a string")),
            Some(other) => Err(Error::field(
                place,
                format!("a part of type '{other}' is not supported, only text"),
            )),
            None => Err(Error::field(place, "a part needs a type")),
        }
    };
    parts.iter().enumerate().map(text).collect()
}

/// On the wire a tool call's arguments are JSON in a string; templates expect the object.
fn parse_arguments(message: &mut Map<String, Value>, left: &Cell<usize>) {
    let Some(Value::Array(calls)) = message.get_mut("tool_calls") else {
        return;
    };
    for call in calls {
        let Some(arguments) = call.pointer_mut("/function/arguments") else {
            continue;
        };
        let text = arguments.as_str();
        let Some((text, rest)) = text.and_then(|it| Some((it, left.get().checked_sub(it.len())?)))
        else {
            continue;
        };
        left.set(rest);
        let parsed = serde_json::from_str::<Value>(text).ok();
        if let Some(object @ Value::Object(_)) = parsed {
            *arguments = object;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Reading = Reading { content: ContentForm::Text, knows_developers: false };
    const PARTS: Reading = Reading { content: ContentForm::Parts, ..PLAIN };

    #[test]
    fn arguments_are_read_as_far_as_their_length_is_bounded() {
        let arguments = format!("{{\"a\": \"{}\"}}", "x".repeat(ARGUMENTS_BYTES_MAX / 3 * 2));
        let call = json!({"function": {"name": "f", "arguments": arguments}});
        let messages = vec![json!({"role": "assistant", "tool_calls": [call]}); 2];
        let got = prepare(&messages, PLAIN).unwrap();
        let is_read =
            [0, 1].map(|at| got[at]["tool_calls"][0]["function"]["arguments"].is_object());
        assert_eq!(is_read, [true, false]);
    }

    #[test]
    fn developers_are_the_system_to_templates_that_do_not_know_them() {
        let role = |template: &str| {
            let message = json!({"role": "developer", "content": "be brief"});
            prepare(&[message], Reading::of(template)).unwrap()[0]["role"].clone()
        };
        assert_eq!(role("{{ messages[0].role }}"), "system");
        assert_eq!(role("{% if message.role == 'developer' %}"), "developer");
    }

    #[test]
    fn text_parts_become_one_string_where_the_template_wants_one() {
        let parts = json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
        let text = prepare(std::slice::from_ref(&parts), PLAIN).unwrap();
        assert_eq!(text[0]["content"], "a\nb");
        assert_eq!(prepare(std::slice::from_ref(&parts), PARTS).unwrap()[0], parts);
        let string = json!({"role": "user", "content": "a"});
        let listed = prepare(&[string], PARTS).unwrap();
        assert_eq!(listed[0]["content"], json!([{"type": "text", "text": "a"}]));
    }

    #[test]
    fn a_faulty_message_is_named_with_its_place() {
        let cases = [
            (json!("hello"), "messages[0]: "),
            (json!({"content": "a"}), "messages[0].role: "),
            (json!({"role": "user"}), "messages[0].content: "),
            (
                json!({"role": "assistant", "content": null, "tool_calls": []}),
                "messages[0].content: ",
            ),
            (
                json!({"role": "user", "content": [{"type": "image_url"}]}),
                "messages[0].content[0]: a part of type 'image_url'",
            ),
        ];
        for (message, start) in cases {
            let error = prepare(&[message], PLAIN).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
        assert!(prepare(&[], PLAIN).is_err());
    }

    #[test]
    fn tool_call_arguments_are_objects_for_the_template() {
        let message = json!({"role": "assistant", "content": null, "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}
        ]});
        let prepared = prepare(&[message], PLAIN).unwrap();
        assert_eq!(prepared[0]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
    }

    #[test]
    fn a_template_that_can_only_loop_over_content_gets_parts() {
        for (template, form) in [
            ("{{ message.content }}", ContentForm::Text),
            ("{%- for part in message['content'] -%}", ContentForm::Parts),
            ("{% for part in m.content | selectattr('type') %}", ContentForm::Parts),
            ("{% if c is string %}{% for part in message.content %}", ContentForm::Text),
            ("{% for message in messages %}", ContentForm::Text),
        ] {
            assert_eq!(ContentForm::of(template), form, "{template}");
        }
    }
}
