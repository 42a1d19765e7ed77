//! Tool calls: how a model writes them, and what clients get of them.
//!
//! `format` (the ways in which families write calls), `reader` (finds them in an answer), `extent`
//! (tells it where the first ends), `grammar` (holds a model to them where a call is demanded).

mod extent;
mod format;
mod grammar;
mod reader;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

pub(crate) use format::CallFormat;
pub(crate) use grammar::{Demand, calls};
pub(crate) use reader::CallReader;

use crate::Error;

/// Tools of one request at most.
const TOOLS_MAX: usize = 128;
/// A tool's name at most, in bytes; OpenAI has 64.
const NAME_BYTES_MAX: usize = 256;

/// Whether an answer calls tools.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolChoice {
    /// As the model likes.
    #[default]
    Auto,
    /// One call at least.
    Required,
    /// One call of this tool.
    Named(String),
}

/// A call that a model makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Unique; templates that want ids of a certain shape get them.
    pub id: String,
    /// Which tool.
    pub name: String,
    /// A JSON object, as text.
    pub arguments: String,
}

/// A tool as a request describes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// The schema of its arguments.
    pub(crate) parameters: Value,
}

/// Reads `tools` as OpenAI has them: `{"type": "function", "function": {"name", "parameters"}}`. Faults are
/// told by what stands between a tool and its function's fields (`inside`), as the client has them there.
///
/// # Errors
/// `InvalidInput` with the place of what is wrong.
pub(crate) fn described(tools: &[Value], inside: &str) -> Result<Vec<Tool>, Error> {
    if tools.len() > TOOLS_MAX {
        let message = format!("{} tools are more than the {TOOLS_MAX} at most", tools.len());
        return Err(Error::field("tools", message));
    }
    let mut known: Vec<Tool> = Vec::with_capacity(tools.len());
    for (index, tool) in tools.iter().enumerate() {
        let place = |field: &str| format!("tools[{index}]{inside}{field}");
        let function = tool
            .get("function")
            .and_then(Value::as_object)
            .ok_or_else(|| Error::field(place(""), "a tool needs a function, as an object"))?;
        let name = function
            .get("name")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty() && name.len() <= NAME_BYTES_MAX)
            .ok_or_else(|| {
                let message = format!("a name of 1 to {NAME_BYTES_MAX} bytes is needed");
                Error::field(place(".name"), message)
            })?;
        if known.iter().any(|tool| tool.name == name) {
            return Err(Error::field(place(".name"), "two tools have this name"));
        }
        let parameters = match function.get("parameters") {
            // Arguments are an object, whether or not the schema says so.
            Some(Value::Object(schema)) => {
                let mut schema = schema.clone();
                let kind = schema.entry("type").or_insert_with(|| "object".into());
                if *kind != "object" {
                    let message = "arguments are of type object";
                    return Err(Error::field(place(".parameters.type"), message));
                }
                Value::Object(schema)
            }
            Some(Value::Bool(true)) => json!({"type": "object"}),
            None | Some(Value::Null) => json!({"type": "object", "additionalProperties": false}),
            Some(_) => {
                return Err(Error::field(place(".parameters"), "a schema is an object"));
            }
        };
        known.push(Tool { name: name.to_owned(), parameters });
    }
    Ok(known)
}
