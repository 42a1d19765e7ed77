//! Items of `input` as the messages of a chat.

use std::cell::Cell;
use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::error::Error;
use crate::fields::Fields;
use crate::json::VALUES_MAX;
use crate::openai::messages::{MESSAGES_MAX, open_arguments};

/// Who may say a message.
const ROLES: [&str; 4] = ["assistant", "developer", "system", "user"];

/// Takes `input`: a text, or items. Calls that follow each other, and what the assistant said before
/// them, are one message, as it wrote them. `instructions` come first.
///
/// # Errors
/// `Field`, with the item's place.
pub(super) fn messages(
    fields: &mut Fields,
    instructions: Option<&str>,
) -> Result<Vec<Value>, Error> {
    let system = |text: &str| json!({"role": "system", "content": text});
    let mut messages: Vec<Value> = instructions.map(system).into_iter().collect();
    match fields.take("input") {
        Some(Value::String(text)) => messages.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) if !items.is_empty() && items.len() <= MESSAGES_MAX => {
            let (left, mut called) = (Cell::new(VALUES_MAX), BTreeSet::new());
            for (index, item) in items.iter().enumerate() {
                let at = format!("input[{index}]");
                add(&mut messages, (item, &at), &mut called, &left)?;
            }
        }
        _ => {
            let expected = format!("must be a string or a list of 1 to {MESSAGES_MAX} items");
            return Err(fields.wrong("input", &expected));
        }
    }
    if messages.is_empty() {
        return Err(fields.wrong("input", "must have an item that is more than reasoning"));
    }
    Ok(messages)
}

/// Adds what an item says. `called` are the ids of the calls so far: no other has an output.
fn add<'a>(
    messages: &mut Vec<Value>,
    (item, at): (&'a Value, &str),
    called: &mut BTreeSet<&'a str>,
    left: &Cell<usize>,
) -> Result<(), Error> {
    let string = |name: &str| {
        let wrong = || Error::field(&format!("{at}.{name}"), "must be a string");
        item[name].as_str().ok_or_else(wrong)
    };
    if !item.is_object() {
        return Err(Error::field(at, "must be an object"));
    }
    match item.get("type").and_then(Value::as_str).unwrap_or("message") {
        "message" => {
            let content = text(&item["content"], &format!("{at}.content"))?;
            let role = string("role")?;
            if !ROLES.contains(&role) {
                let expected = format!("must be one of {}", ROLES.join(", "));
                return Err(Error::field(&format!("{at}.role"), &expected));
            }
            messages.push(json!({"role": role, "content": content}));
        }
        "function_call" => {
            let function = json!({"name": string("name")?, "arguments": string("arguments")?});
            let id = string("call_id")?;
            called.insert(id);
            let mut call = json!({"id": id, "type": "function", "function": function});
            open_arguments(&mut call, &format!("{at}.arguments"), left)?;
            let last = messages.last_mut().filter(|last| last["role"] == "assistant");
            match last.map(|last| &mut last["tool_calls"]) {
                Some(Value::Array(calls)) => calls.push(call),
                Some(none) => *none = json!([call]),
                None => {
                    let calls = json!([call]);
                    messages.push(json!({"role": "assistant", "content": "", "tool_calls": calls}));
                }
            }
        }
        "function_call_output" => {
            let output = text(&item["output"], &format!("{at}.output"))?;
            let id = string("call_id")?;
            if !called.contains(id) {
                let expected = "must be that of a function_call before it";
                return Err(Error::field(&format!("{at}.call_id"), expected));
            }
            messages.push(json!({"role": "tool", "tool_call_id": id, "content": output}));
        }
        // What a model thought elsewhere is not said again.
        "reasoning" => {}
        "item_reference" => {
            let expected = "is not supported: nothing is stored here, send the item itself";
            return Err(Error::field(at, expected));
        }
        _ => {
            let expected = "must be message, function_call, function_call_output or reasoning";
            return Err(Error::field(&format!("{at}.type"), expected));
        }
    }
    Ok(())
}

/// A text, or parts that are text.
fn text(content: &Value, at: &str) -> Result<String, Error> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        _ => return Err(Error::field(at, "must be a string or a list of parts")),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        let name = match part["type"].as_str() {
            Some("input_text" | "output_text" | "text") => "text",
            Some("refusal") => "refusal",
            _ => {
                let expected = "must be input_text, output_text or refusal";
                return Err(Error::field(&format!("{at}[{index}].type"), expected));
            }
        };
        let wrong = || Error::field(&format!("{at}[{index}].{name}"), "must be a string");
        texts.push(part[name].as_str().ok_or_else(wrong)?);
    }
    Ok(texts.join("\n"))
}
