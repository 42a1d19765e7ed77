//! Holds a model to calling tools where a request demands it.

use serde_json::{Value, json};

use super::{CallFormat, Tool, ToolChoice};
use crate::constrain::{Grammar, affordable, laid_out, literal, texts_within};
use crate::{Error, TextCodec};

/// What a request demands of its answer's calls.
pub(crate) struct Demand<'a> {
    pub(crate) format: CallFormat,
    pub(crate) choice: &'a ToolChoice,
    pub(crate) tools: &'a [Tool],
    /// Whether one answer may make several calls.
    pub(crate) parallel: bool,
    /// What the answer must be where it calls nothing; `None`: it must call something.
    pub(crate) otherwise: Option<&'a Value>,
}

/// The grammar of an answer that makes the calls demanded.
///
/// # Errors
/// `InvalidInput` where the tool that is named is none of the request's.
pub(crate) fn calls(demand: &Demand<'_>, codec: &TextCodec) -> Result<Grammar, Error> {
    let tools: Vec<&Tool> = match demand.choice {
        ToolChoice::Auto | ToolChoice::Required => demand.tools.iter().collect(),
        ToolChoice::Named(name) => {
            let tool = demand.tools.iter().find(|tool| tool.name == *name).ok_or_else(|| {
                Error::field("tool_choice", format!("there is no tool called {name:?}"))
            })?;
            vec![tool]
        }
    };
    if tools.is_empty() {
        return Err(Error::field("tool_choice", "there are no tools to call"));
    }
    let bytes = tools.iter().map(|tool| tool.parameters.to_string().len()).sum();
    for tool in &tools {
        texts_within("tools", &tool.parameters)?;
        affordable("tools", &tool.parameters, bytes)?;
    }
    let several = demand.parallel && !matches!(demand.choice, ToolChoice::Named(_));
    let mark = |text: &str| marker(codec, text);
    let mut rules = match demand.format {
        CallFormat::Hermes => {
            let (open, close) = (mark("<tool_call>"), mark("</tool_call>"));
            let more = if several { " (\"\\n\" call)*" } else { "" };
            format!(
                "calls: call{more}\ncall: {open} \"\\n\" body \"\\n\" {close}\nbody: %json {}\n",
                any(&tools, demand.format)
            )
        }
        CallFormat::Llama | CallFormat::Plain => {
            format!("calls: %json {}\n", any(&tools, demand.format))
        }
        CallFormat::MistralList => {
            let open = mark("[TOOL_CALLS]");
            format!(
                "calls: {open} \" \"? body\nbody: %json {}\n",
                list(&tools, demand.format, several)
            )
        }
        CallFormat::MistralArguments => {
            let more = if several { "+" } else { "" };
            let mut rules = format!("calls: call{more}\n");
            let each: Vec<String> = (0..tools.len()).map(|index| format!("call{index}")).collect();
            rules.push_str(&format!("call: {}\n", each.join(" | ")));
            for (index, tool) in tools.iter().enumerate() {
                let name = literal(&tool.name);
                let (open, between) = (mark("[TOOL_CALLS]"), mark("[ARGS]"));
                let schema = laid_out(tool.parameters.clone());
                rules.push_str(&format!("call{index}: {open} {name} {between} args{index}\n"));
                rules.push_str(&format!("args{index}: %json {schema}\n"));
            }
            rules
        }
    };
    match demand.otherwise {
        Some(schema) => {
            let schema = laid_out(schema.clone());
            rules.push_str(&format!("start: calls | answer\nanswer: %json {schema}\n"));
        }
        None => rules.push_str("start: calls\n"),
    }
    Grammar::of_rules(rules, "tools")
}

/// A marker as a grammar writes it: by its token where it is a special one.
fn marker(codec: &TextCodec, text: &str) -> String {
    match codec.tokenizer().token_to_id(text) {
        Some(id) if codec.is_special(id) => format!("<[{id}]>"),
        _ => literal(text),
    }
}

/// One call of any of the tools.
fn any(tools: &[&Tool], format: CallFormat) -> Value {
    let mut schema = one_of(tools, format);
    schema["$defs"] = definitions(tools);
    laid_out(schema)
}

/// A list of calls.
fn list(tools: &[&Tool], format: CallFormat, several: bool) -> Value {
    let mut schema = json!({"type": "array", "minItems": 1, "items": one_of(tools, format)});
    if !several {
        schema["maxItems"] = 1.into();
    }
    schema["$defs"] = definitions(tools);
    laid_out(schema)
}

fn one_of(tools: &[&Tool], format: CallFormat) -> Value {
    let calls = tools.iter().enumerate().map(|(index, tool)| {
        json!({
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                (format.arguments()): {"$ref": format!("#/$defs/tool{index}")},
            },
            "required": ["name", format.arguments()],
            "additionalProperties": false,
        })
    });
    json!({"anyOf": calls.collect::<Vec<_>>()})
}

/// Every tool's schema as a definition, its own references moved with it.
fn definitions(tools: &[&Tool]) -> Value {
    let moved = tools.iter().enumerate().map(|(index, tool)| {
        let mut schema = tool.parameters.clone();
        move_references(&mut schema, &format!("#/$defs/tool{index}"));
        (format!("tool{index}"), schema)
    });
    Value::Object(moved.collect())
}

fn move_references(schema: &mut Value, to: &str) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| move_references(item, to)),
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value {
                    Value::String(target) if key == "$ref" => {
                        if let Some(path) = target.strip_prefix('#') {
                            *target = format!("{to}{path}");
                        }
                    }
                    value => move_references(value, to),
                }
            }
        }
        _ => {}
    }
}
