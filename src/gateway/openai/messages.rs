//! Chat messages, made ready for templates.

use serde_json::{Map, Value};

use crate::error::Error;
use crate::fields::Fields;

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
    let numbered = items.into_iter().enumerate();
    numbered.map(|(index, item)| message(index, item)).collect()
}

fn message(index: usize, item: Value) -> Result<Value, Error> {
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
        calls.iter_mut().for_each(open_arguments);
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

/// OpenAI sends a call's arguments as JSON in a string.
pub(super) fn open_arguments(call: &mut Value) {
    let Some(arguments) = call.pointer_mut("/function/arguments") else {
        return;
    };
    let opened = arguments.as_str().and_then(|text| serde_json::from_str::<Map<_, _>>(text).ok());
    if let Some(map) = opened {
        *arguments = Value::Object(map);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
