//! `tools` and `tool_choice`, and calls as answers have them.

use roundhouse_serving::{ToolCall, ToolChoice};
use serde_json::{Value, json};

use crate::error::Error;
use crate::fields::Fields;

/// What a chat says about tools.
pub(crate) struct Tools {
    /// As the template will see them; none where none are to be called.
    pub(crate) tools: Option<Vec<Value>>,
    pub(crate) choice: ToolChoice,
    pub(crate) parallel: bool,
}

/// Takes `tools`, `tool_choice` and `parallel_tool_calls`.
///
/// # Errors
/// `Field`, with the path of what is wrong.
pub(crate) fn read(fields: &mut Fields) -> Result<Tools, Error> {
    let tools = match fields.take("tools") {
        None => None,
        Some(Value::Array(items)) if items.iter().all(Value::is_object) => Some(items),
        Some(_) => return Err(fields.wrong("tools", "must be a list of objects")),
    };
    let tools = tools.filter(|tools| !tools.is_empty());
    let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
    let choice = match fields.take("tool_choice") {
        None => ToolChoice::Auto,
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => return Ok(Tools { tools: None, choice: ToolChoice::Auto, parallel }),
            "required" => ToolChoice::Required,
            _ => return Err(wrong_choice(fields)),
        },
        Some(choice) => match choice["function"]["name"].as_str() {
            Some(name) if choice["type"] == "function" => ToolChoice::Named(name.to_owned()),
            _ => return Err(wrong_choice(fields)),
        },
    };
    if tools.is_none() && choice != ToolChoice::Auto {
        return Err(fields.wrong("tool_choice", "is allowed only where there are tools"));
    }
    Ok(Tools { tools, choice, parallel })
}

fn wrong_choice(fields: &Fields) -> Error {
    let expected = "must be none, auto, required, or an object that names a function";
    fields.wrong("tool_choice", expected)
}

/// Calls as a whole message has them.
pub(crate) fn calls(calls: &[ToolCall]) -> Value {
    let call = |call: &ToolCall| {
        json!({
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        })
    };
    calls.iter().map(call).collect()
}

/// One call as a stream tells it: who is called, then with what. `index` is its place among the
/// choice's calls.
pub(crate) fn deltas(index: usize, call: &ToolCall) -> [Value; 2] {
    [
        json!({"tool_calls": [{
            "index": index,
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": ""},
        }]}),
        json!({"tool_calls": [{"index": index, "function": {"arguments": call.arguments}}]}),
    ]
}
