//! `tools` and `tool_choice`, and calls as answers have them.

use std::collections::BTreeSet;

use roundhouse_serving::{FormKind, OutputForm, ToolCall, ToolChoice};
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
    let mut tools = tools.filter(|tools| !tools.is_empty());
    let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
    let choice = match fields.take("tool_choice") {
        None => ToolChoice::Auto,
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => return Ok(Tools { tools: None, choice: ToolChoice::Auto, parallel }),
            "required" => ToolChoice::Required,
            _ => return Err(wrong_choice(fields)),
        },
        Some(choice) if choice["type"] == "allowed_tools" => allowed(fields, &choice, &mut tools)?,
        Some(choice) => match name(&choice) {
            Some(name) if choice["type"] == "function" => ToolChoice::Named(name.to_owned()),
            _ => return Err(wrong_choice(fields)),
        },
    };
    if tools.is_none() && choice != ToolChoice::Auto {
        return Err(fields.wrong("tool_choice", "is allowed only where there are tools"));
    }
    Ok(Tools { tools, choice, parallel })
}

/// A function's name, which the Responses API has beside its type.
fn name(tool: &Value) -> Option<&str> {
    tool["function"]["name"].as_str().or_else(|| tool["name"].as_str())
}

/// Leaves the tools that a choice allows: the model is shown no others. `mode` says whether one is called.
fn allowed(
    fields: &Fields,
    choice: &Value,
    tools: &mut Option<Vec<Value>>,
) -> Result<ToolChoice, Error> {
    let (at, choice) = match choice.get("allowed_tools") {
        Some(inner) => ("tool_choice.allowed_tools", inner),
        None => ("tool_choice", choice),
    };
    let listed = choice["tools"].as_array().filter(|listed| !listed.is_empty());
    // Both lists are as long as a body may be.
    let names: Option<BTreeSet<&str>> = listed.and_then(|listed| listed.iter().map(name).collect());
    let names = names.ok_or_else(|| {
        fields.wrong(&format!("{at}.tools"), "must be a list of objects that name functions")
    })?;
    let offered = tools.take().unwrap_or_default();
    let known: BTreeSet<&str> = offered.iter().filter_map(name).collect();
    if let Some(unknown) = names.difference(&known).next() {
        let expected = format!("must name tools of the request, and '{unknown}' is none");
        return Err(fields.wrong(&format!("{at}.tools"), &expected));
    }
    let is_allowed = |tool: &Value| name(tool).is_some_and(|name| names.contains(name));
    *tools = Some(offered.into_iter().filter(is_allowed).collect());
    match choice["mode"].as_str() {
        Some("auto") => Ok(ToolChoice::Auto),
        Some("required") => Ok(ToolChoice::Required),
        _ => Err(fields.wrong(&format!("{at}.mode"), "must be auto or required")),
    }
}

/// Refuses a demand for a call beside a form that the whole answer must have, its calls included. A form
/// in JSON is that of what an answer says where it calls nothing, and holds beside any choice.
///
/// # Errors
/// `Field`: `tool_choice`, with the other's name.
pub(crate) fn agree(
    fields: &Fields,
    choice: &ToolChoice,
    form: Option<&OutputForm>,
) -> Result<(), Error> {
    let Some(OutputForm { field, kind }) = form.filter(|_| *choice != ToolChoice::Auto) else {
        return Ok(());
    };
    match kind {
        FormKind::JsonObject | FormKind::JsonSchema(_) => Ok(()),
        FormKind::Regex(_)
        | FormKind::Choice(_)
        | FormKind::Grammar(_)
        | FormKind::StructuralTag(_) => {
            let expected =
                format!("demands a call, and {field} says what the whole answer must look like");
            Err(fields.wrong("tool_choice", &expected))
        }
    }
}

fn wrong_choice(fields: &Fields) -> Error {
    let expected =
        "must be none, auto, required, allowed_tools, or an object that names a function";
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
