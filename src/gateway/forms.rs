//! What an answer must look like, in the words of OpenAI, vLLM and TGI.

use std::cell::Cell;

use roundhouse_serving::{FormKind, OutputForm};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::fields::{Fields, Neutral, neutral, strings};
use crate::json;

/// Ways to say it that nothing here honours.
const UNSUPPORTED: [Neutral; 1] = [("guided_whitespace_pattern", neutral::absent)];
/// The same of `structured_outputs`, where nothing but this may stand beside what is asked.
const UNSUPPORTED_PARTS: [Neutral; 4] = [
    ("disable_additional_properties", neutral::off),
    ("disable_any_whitespace", neutral::off),
    ("disable_fallback", |value| value.is_boolean()),
    ("whitespace_pattern", neutral::absent),
];

/// Reads one field's value; `None` where it asks for nothing.
type Reader = fn(&Fields, Value) -> Result<Option<FormKind>, Error>;
/// The same of a part of one, which errors call by its place.
type PartReader = fn(&Fields, &str, Value) -> Result<FormKind, Error>;

/// Takes `response_format` (OpenAI), `structured_outputs`, `guided_json`, `guided_regex`, `guided_choice`,
/// `guided_grammar` and `structural_tag` (vLLM) and `grammar` (TGI), of which one may be there.
///
/// # Errors
/// `Field`, with the path of what is wrong.
pub(crate) fn read(fields: &mut Fields) -> Result<Option<OutputForm>, Error> {
    fields.refuse(&UNSUPPORTED)?;
    let mut asked: Option<OutputForm> = None;
    let readers: [(&'static str, Reader); 8] = [
        ("response_format", response_format),
        ("structured_outputs", structured_outputs),
        ("guided_json", |fields, value| schema(fields, "guided_json", value).map(Some)),
        ("guided_regex", |fields, value| regex(fields, "guided_regex", value).map(Some)),
        ("guided_choice", |fields, value| choice(fields, "guided_choice", value).map(Some)),
        ("guided_grammar", |fields, value| grammar(fields, "guided_grammar", value).map(Some)),
        ("structural_tag", |fields, value| tags(fields, "structural_tag", value).map(Some)),
        ("grammar", |fields, value| tagged(fields, "grammar", value).map(Some)),
    ];
    for (field, reader) in readers {
        let Some(value) = fields.take(field) else { continue };
        let Some(kind) = reader(fields, value)? else { continue };
        if let Some(other) = &asked {
            let expected =
                format!("says what the answer must look like, and so does {}", other.field);
            return Err(fields.wrong(field, &expected));
        }
        asked = Some(OutputForm { field: fields.named(field), kind });
    }
    Ok(asked)
}

/// `{"type": "text" | "json_object" | "json_schema", "json_schema": {"schema": …}}`; with `value`
/// as TGI has it.
fn response_format(fields: &Fields, value: Value) -> Result<Option<FormKind>, Error> {
    let object = object(fields, "response_format", value)?;
    match object.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") if !object.contains_key("value") => Ok(Some(FormKind::JsonObject)),
        Some("json_schema") if object.contains_key("json_schema") => {
            let schema = object["json_schema"].get("schema").filter(|schema| schema.is_object());
            let schema = schema.ok_or_else(|| {
                fields.wrong("response_format.json_schema.schema", "must be an object")
            })?;
            Ok(Some(FormKind::JsonSchema(schema.clone())))
        }
        Some("json_schema") if !object.contains_key("value") => {
            Err(fields.wrong("response_format.json_schema", "must be an object with a schema"))
        }
        Some("structural_tag") => tags(fields, "response_format", Value::Object(object)).map(Some),
        _ => tagged(fields, "response_format", Value::Object(object)).map(Some),
    }
}

/// `text.format` of the Responses API: a schema stands beside its type.
///
/// # Errors
/// `Field`, with the path of what is wrong.
pub(crate) fn of_text(fields: &Fields, value: Value) -> Result<Option<OutputForm>, Error> {
    const NAME: &str = "text.format";
    let mut format = object(fields, NAME, value)?;
    let kind = match format.get("type").and_then(Value::as_str) {
        Some("text") => return Ok(None),
        Some("json_object") => FormKind::JsonObject,
        Some("json_schema") => {
            let of = format.remove("schema").unwrap_or_default();
            schema(fields, "text.format.schema", of)?
        }
        _ => {
            let expected = "must be text, json_object or json_schema";
            return Err(fields.wrong("text.format.type", expected));
        }
    };
    Ok(Some(OutputForm { field: fields.named(NAME), kind }))
}

/// `{"type": "json" | "regex", "value": …}`.
fn tagged(fields: &Fields, name: &str, value: Value) -> Result<FormKind, Error> {
    let mut object = object(fields, name, value)?;
    let inner = object.remove("value").unwrap_or_default();
    let place = format!("{name}.value");
    match object.get("type").and_then(Value::as_str) {
        Some("json" | "json_object") => schema(fields, &place, inner),
        Some("json_schema") => {
            let of = inner.get("schema").cloned().unwrap_or_default();
            schema(fields, &format!("{place}.schema"), of)
        }
        Some("regex") => regex(fields, &place, inner),
        _ => {
            let types = match name {
                "grammar" => "json, json_schema or regex",
                _ => "text, json_object, json_schema or structural_tag",
            };
            Err(fields.wrong(&format!("{name}.type"), &format!("must be {types}")))
        }
    }
}

/// One of `json`, `regex`, `choice`, `grammar`, `structural_tag` and `json_object`.
fn structured_outputs(fields: &Fields, value: Value) -> Result<Option<FormKind>, Error> {
    const NAME: &str = "structured_outputs";
    let mut object = object(fields, NAME, value)?;
    let place = |name: &str| format!("{NAME}.{name}");
    let mut part = |name: &str| object.swap_remove(name).filter(|value| !value.is_null());
    for (name, is_neutral) in UNSUPPORTED_PARTS {
        if part(name).is_some_and(|value| !is_neutral(&value)) {
            return Err(fields.wrong(&place(name), "is not supported with this value"));
        }
    }
    let readers: [(&str, PartReader); 6] = [
        ("json", schema),
        ("regex", regex),
        ("choice", choice),
        ("grammar", grammar),
        ("structural_tag", tags),
        ("json_object", |fields, place, value| match value {
            Value::Bool(true) => Ok(FormKind::JsonObject),
            _ => Err(fields.wrong(place, "must be true, where it is there")),
        }),
    ];
    let mut kinds = Vec::new();
    for (name, reader) in readers {
        let asks_nothing = |value: &Value| name == "json_object" && neutral::off(value);
        if let Some(value) = part(name).filter(|value| !asks_nothing(value)) {
            kinds.push(reader(fields, &place(name), value)?);
        }
    }
    if let Some((name, _)) = object.iter().find(|(_, value)| !value.is_null()) {
        return Err(fields.wrong(&place(name), "is not supported"));
    }
    match kinds.len() {
        1 => Ok(kinds.pop()),
        _ => {
            let expected =
                "must have one of json, regex, choice, grammar, structural_tag and json_object";
            Err(fields.wrong(NAME, expected))
        }
    }
}

fn object(fields: &Fields, name: &str, value: Value) -> Result<Map<String, Value>, Error> {
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(fields.wrong(name, "must be an object")),
    }
}

/// A schema, or one as text.
fn schema(fields: &Fields, name: &str, value: Value) -> Result<FormKind, Error> {
    let value = match value {
        Value::String(text) => json::in_text(&text, &Cell::new(json::VALUES_MAX))
            .map_err(|error| fields.wrong(name, &format!("must be a JSON schema: {error}")))?,
        value => value,
    };
    match value {
        Value::Object(_) => Ok(FormKind::JsonSchema(value)),
        _ => Err(fields.wrong(name, "must be a JSON schema, as an object or as text")),
    }
}

/// A structural tag, or one as text: vLLM takes it as text beside the other kinds.
fn tags(fields: &Fields, name: &str, value: Value) -> Result<FormKind, Error> {
    let value = match value {
        Value::String(text) => json::in_text(&text, &Cell::new(json::VALUES_MAX))
            .map_err(|error| fields.wrong(name, &format!("must be a structural tag: {error}")))?,
        value => value,
    };
    object(fields, name, value).map(|tag| FormKind::StructuralTag(Value::Object(tag)))
}

fn regex(fields: &Fields, name: &str, value: Value) -> Result<FormKind, Error> {
    match value {
        Value::String(text) => Ok(FormKind::Regex(text)),
        _ => Err(fields.wrong(name, "must be a regular expression, as a string")),
    }
}

fn grammar(fields: &Fields, name: &str, value: Value) -> Result<FormKind, Error> {
    match value {
        Value::String(text) => Ok(FormKind::Grammar(text)),
        _ => Err(fields.wrong(name, "must be a grammar in Lark's words or GBNF, as a string")),
    }
}

fn choice(fields: &Fields, name: &str, value: Value) -> Result<FormKind, Error> {
    let texts = match value {
        Value::Array(items) => strings(items),
        _ => None,
    };
    texts.map(FormKind::Choice).ok_or_else(|| fields.wrong(name, "must be a list of strings"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_all(value: Value) -> Result<Option<OutputForm>, Error> {
        match value {
            Value::Object(map) => read(&mut Fields::new(map)),
            other => panic!("not an object: {other}"),
        }
    }

    #[test]
    fn every_dialects_words_mean_the_same() {
        let schema = json!({"type": "array"});
        let json = FormKind::JsonSchema(schema.clone());
        let regex = FormKind::Regex("a+".into());
        let choice = FormKind::Choice(vec!["a".into(), "b".into()]);
        let grammar = FormKind::Grammar("root ::= \"a\"".into());
        let tag = json!({"type": "structural_tag", "format": {"type": "any_text"}});
        let tags = FormKind::StructuralTag(tag.clone());
        let cases = [
            (json!({"response_format": {"type": "json_object"}}), FormKind::JsonObject),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}}}),
                json.clone(),
            ),
            (json!({"response_format": {"type": "json_object", "value": schema}}), json.clone()),
            (json!({"response_format": {"type": "regex", "value": "a+"}}), regex.clone()),
            (json!({"guided_json": schema}), json.clone()),
            (json!({"guided_json": schema.to_string()}), json.clone()),
            (json!({"guided_regex": "a+"}), regex.clone()),
            (json!({"guided_choice": ["a", "b"]}), choice.clone()),
            (json!({"guided_grammar": "root ::= \"a\""}), grammar.clone()),
            (json!({"response_format": tag}), tags.clone()),
            (json!({"structural_tag": tag.to_string()}), tags.clone()),
            (json!({"structured_outputs": {"structural_tag": tag.to_string()}}), tags),
            (
                json!({"structured_outputs": {"json_object": true, "disable_fallback": true,
                    "disable_any_whitespace": false, "whitespace_pattern": null}}),
                FormKind::JsonObject,
            ),
            (json!({"structured_outputs": {"grammar": "root ::= \"a\""}}), grammar),
            (json!({"structured_outputs": {"json": schema}}), json.clone()),
            (json!({"structured_outputs": {"regex": "a+", "json": null}}), regex.clone()),
            (json!({"structured_outputs": {"choice": ["a", "b"]}}), choice),
            (json!({"structured_outputs": {"json_object": true}}), FormKind::JsonObject),
            (json!({"grammar": {"type": "json", "value": schema}}), json.clone()),
            (json!({"grammar": {"type": "json_schema", "value": {"schema": schema}}}), json),
            (json!({"grammar": {"type": "regex", "value": "a+"}}), regex),
        ];
        for (body, kind) in cases {
            assert_eq!(read_all(body.clone()).unwrap().unwrap().kind, kind, "{body}");
        }
        assert_eq!(read_all(json!({"response_format": {"type": "text"}})).unwrap(), None);
        assert_eq!(read_all(json!({"guided_json": null})).unwrap(), None);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        let cases = [
            (json!({"response_format": "json"}), "response_format must be an object"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type must be text"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
                "response_format.json_schema.schema must",
            ),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema must be an object with a schema",
            ),
            (
                json!({"response_format": {"type": "json_schema", "value": {}}}),
                "response_format.value.schema must",
            ),
            (json!({"guided_json": "{"}), "guided_json must be a JSON schema: EOF"),
            (json!({"guided_json": [1]}), "guided_json must be a JSON schema"),
            (json!({"guided_regex": 1}), "guided_regex must be"),
            (json!({"guided_choice": ["a", 1]}), "guided_choice must be a list of strings"),
            (json!({"guided_grammar": 1}), "guided_grammar must be a grammar"),
            (json!({"structural_tag": "{"}), "structural_tag must be a structural tag: EOF"),
            (json!({"structural_tag": 5}), "structural_tag must be an object"),
            (json!({"structured_outputs": {}}), "structured_outputs must have one of"),
            (
                json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}),
                "structured_outputs must have one of",
            ),
            (
                json!({"structured_outputs": {"regex": "a", "disable_any_whitespace": true}}),
                "structured_outputs.disable_any_whitespace is not supported",
            ),
            (
                json!({"structured_outputs": {"regex": "a", "jsn": {}}}),
                "structured_outputs.jsn is not supported",
            ),
            (json!({"grammar": {"type": "ebnf", "value": ""}}), "grammar.type must be json"),
            (json!({"grammar": {"type": "regex"}}), "grammar.value must be a regular"),
            (
                json!({"guided_regex": "a", "grammar": {"type": "regex", "value": "a"}}),
                "grammar says what the answer must look like, and so does guided_regex",
            ),
        ];
        for (body, start) in cases {
            let error = read_all(body.clone()).unwrap_err().to_string();
            assert!(error.starts_with(start), "{body}: {error}");
        }
    }
}
