//! Chat messages, made ready for templates.

use std::cell::Cell;

use serde_json::Value;

use crate::error::Error;
use crate::fields::Fields;
use crate::json;

/// Messages of one chat at most.
pub(super) const MESSAGES_MAX: usize = 4096;

/// Takes `messages`: objects with a role; content as one string, its parts joined by line ends, where
/// an assistant may have said nothing; arguments of tool calls as objects, since templates iterate
/// over them.
///
/// # Errors
/// `Field`, with the message's place.
pub(crate) fn read(fields: &mut Fields) -> Result<Vec<Value>, Error> {
    let items = match fields.take("messages") {
        Some(Value::Array(items)) if !items.is_empty() && items.len() <= MESSAGES_MAX => items,
        _ => {
            let expected = format!("must be a list of 1 to {MESSAGES_MAX} messages");
            return Err(fields.wrong("messages", &expected));
        }
    };
    let left = Cell::new(json::VALUES_MAX);
    let numbered = items.into_iter().enumerate();
    numbered.map(|(index, item)| message(index, item, &left)).collect()
}

fn message(index: usize, item: Value, left: &Cell<usize>) -> Result<Value, Error> {
    let at = |field: &str| format!("messages[{index}]{field}");
    let Value::Object(mut message) = item else {
        return Err(Error::field(&at(""), "must be an object"));
    };
    let role = message.get("role").and_then(Value::as_str);
    // Some call the assistant `model` or `ai`.
    let is_assistant = role == Some("assistant") || message.contains_key("tool_calls");
    if role.is_none() {
        return Err(Error::field(&at(".role"), "must be a string"));
    }
    match message.get("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            let joined = join(parts, &at(".content"))?;
            message.insert("content".into(), joined.into());
        }
        // It only called tools, refused, or was cut off before its first word.
        Some(Value::Null) | None if is_assistant => {
            message.insert("content".into(), "".into());
        }
        _ => {
            return Err(Error::field(&at(".content"), "must be a string or a list of parts"));
        }
    }
    if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
        for (call, nth) in calls.iter_mut().zip(0..) {
            open_arguments(call, &at(&format!(".tool_calls[{nth}].function.arguments")), left)?;
        }
    }
    Ok(Value::Object(message))
}

fn join(parts: &[Value], at: &str) -> Result<String, Error> {
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        // What an assistant said in place of an answer is under its own name.
        let Some(kind @ ("text" | "refusal")) = part["type"].as_str() else {
            return Err(Error::field(&format!("{at}[{index}].type"), "must be text"));
        };
        let text = part[kind].as_str();
        let wrong = || Error::field(&format!("{at}[{index}].{kind}"), "must be a string");
        texts.push(text.ok_or_else(wrong)?);
    }
    Ok(texts.join("\n"))
}

/// OpenAI sends a call's arguments as JSON in a string. Those of one request have as many values as are
/// `left`.
///
/// # Errors
/// `Field`, with `at`, where they have more.
pub(super) fn open_arguments(call: &mut Value, at: &str, left: &Cell<usize>) -> Result<(), Error> {
    let Some(arguments) = call.pointer_mut("/function/arguments") else { return Ok(()) };
    let is_object = |text: &&str| text.trim_start().starts_with('{');
    let Some(text) = arguments.as_str().filter(is_object) else { return Ok(()) };
    match json::in_text(text, left) {
        Ok(opened) => *arguments = opened,
        Err(_) if left.get() == 0 => {
            let most = json::VALUES_MAX;
            let expected = format!("must have, with those of other calls, at most {most} values");
            return Err(Error::field(at, &expected));
        }
        // A model may have written anything.
        Err(_) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    fn read_all(messages: Value) -> Result<Vec<Value>, Error> {
        read(&mut Fields::new(Map::from_iter([("messages".to_owned(), messages)])))
    }

    #[test]
    fn text_parts_are_joined_and_arguments_opened() {
        let read = read_all(json!([
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
        ]))
        .unwrap();
        assert_eq!(read[0]["content"], "a\nb");
        assert_eq!(read[1]["content"], "");
        assert_eq!(read[1]["tool_calls"][0]["function"]["arguments"]["x"], 1);
    }

    #[test]
    fn what_arguments_become_is_bounded_as_a_body_is() {
        let of = |calls: Vec<Value>| json!([{"role": "assistant", "tool_calls": calls}]);
        let call = |count: usize| {
            let arguments = format!("{{\"a\": [{}0]}}", "0,".repeat(count));
            json!({"id": "1", "function": {"name": "f", "arguments": arguments}})
        };
        let got = read_all(of(vec![call(json::VALUES_MAX / 3); 2])).unwrap();
        assert!(got[0]["tool_calls"][1]["function"]["arguments"].is_object());
        let refused = read_all(of(vec![call(json::VALUES_MAX / 3); 3])).unwrap_err().to_string();
        assert!(
            refused.starts_with("messages[0].tool_calls[2].function.arguments must have"),
            "{refused}"
        );
        let broken = json!({"function": {"name": "f", "arguments": "{\"a\": "}});
        let got = read_all(of(vec![broken.clone()])).unwrap();
        assert_eq!(got[0]["tool_calls"][0], broken);
    }

    #[test]
    fn an_assistant_may_have_said_nothing_or_refused() {
        let calls = json!([{"id": "1", "function": {"name": "f", "arguments": ""}}]);
        for (message, content) in [
            (json!({"role": "assistant"}), ""),
            (json!({"role": "assistant", "content": null}), ""),
            (json!({"role": "assistant", "content": null, "refusal": "no"}), ""),
            (json!({"role": "assistant", "content": null, "tool_calls": null}), ""),
            (json!({"role": "assistant", "tool_calls": calls}), ""),
            (json!({"role": "model", "content": null, "tool_calls": calls}), ""),
            (json!({"role": "ai", "tool_calls": calls}), ""),
            (json!({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}), "no"),
        ] {
            let read = read_all(json!([message])).unwrap();
            assert_eq!(read[0]["content"], content, "{message}");
        }
        for role in ["tool", "user", "model"] {
            assert!(read_all(json!([{"role": role, "content": null}])).is_err(), "{role}");
        }
    }

    #[test]
    fn a_wrong_message_is_named_by_its_place() {
        let cases = [
            (json!([]), "messages must be a list of 1 to 4096 messages"),
            (json!("hi"), "messages must be a list of 1 to 4096 messages"),
            (json!([{"role": "user", "content": "a"}, 1]), "messages[1] must be an object"),
            (json!([{"content": "a"}]), "messages[0].role must be a string"),
            (json!([{"role": "user"}]), "messages[0].content must be a string or a list of parts"),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
                "messages[0].content[0].type must be text",
            ),
        ];
        for (messages, want) in cases {
            assert_eq!(read_all(messages).unwrap_err().to_string(), want);
        }
    }
}
