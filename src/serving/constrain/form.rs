//! What clients ask of an answer's form, and how it is written for the library.

use llguidance::api::TopLevelGrammar;
use llguidance::{JsonCompileOptions, regex_to_lark};
use serde_json::{Value, json};

use super::size::affordable;
use super::{rules, tags};
use crate::{Error, TextCodec};

/// A schema's longest text, in bytes. Some large public ones have a few hundred kilobytes.
pub(super) const SCHEMA_BYTES_MAX: usize = 256 * 1024;
/// The longest text of a regular expression, or of any text in a schema, in bytes: the library
/// recurses as deep as an expression is long.
pub(super) const REGEX_BYTES_MAX: usize = 8 * 1024;
/// Texts to choose from at most, and their bytes in all.
const CHOICES_MAX: usize = 1024;
const CHOICE_BYTES_MAX: usize = 64 * 1024;
/// White space between two parts of a JSON text: a space, or a line end with an indentation. More
/// says nothing, and some models would never end it.
const WHITE_SPACE: &str = r"\x20|\x0A[\x20\x09]{0,24}";

/// The form that an answer must have, and the field that asked for it.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputForm {
    /// As messages about it name it.
    pub field: String,
    /// What is asked.
    pub kind: FormKind,
}

/// What an answer must be, from its first character to its last.
#[derive(Debug, Clone, PartialEq)]
pub enum FormKind {
    /// Any JSON object.
    JsonObject,
    /// A JSON text that a schema accepts. Properties come in the schema's order.
    JsonSchema(Value),
    /// A text that a regular expression matches from start to end. No look-around, no
    /// back-references.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of a grammar, in Lark's words or in llama.cpp's (GBNF).
    Grammar(String),
    /// A text in which some parts have a form, as xgrammar and vLLM describe it: with `format`, or
    /// with `structures` and `triggers`.
    StructuralTag(Value),
}

/// A form as the library reads it.
pub(crate) struct Grammar {
    /// The field that asked for it, for messages.
    pub(crate) field: String,
    pub(crate) top: TopLevelGrammar,
}

impl Grammar {
    /// Writes a form down, for the tokenizer whose special tokens it may name.
    ///
    /// # Errors
    /// `InvalidInput` that names `field`, for a form that is too long or empty.
    pub(crate) fn of(form: &OutputForm, codec: &TextCodec) -> Result<Self, Error> {
        let field = form.field.as_str();
        let top = match &form.kind {
            FormKind::JsonObject => {
                TopLevelGrammar::from_json_schema(laid_out(json!({"type": "object"})))
            }
            FormKind::JsonSchema(schema) => {
                if !(schema.is_object() || schema.is_boolean()) {
                    return Err(Error::field(field, "a schema is an object, true or false"));
                }
                let length = schema.to_string().len();
                within(field, "schema", length, SCHEMA_BYTES_MAX)?;
                texts_within(field, schema)?;
                affordable(field, schema, length)?;
                TopLevelGrammar::from_json_schema(laid_out(schema.clone()))
            }
            FormKind::Regex(regex) => {
                within(field, "regular expression", regex.len(), REGEX_BYTES_MAX)?;
                TopLevelGrammar::from_lark(format!("start: /{}/", body(field, regex)?))
            }
            FormKind::Grammar(rules) => TopLevelGrammar::from_lark(rules::lark(field, rules)?),
            FormKind::StructuralTag(tag) => {
                return Self::of_rules(tags::lark(field, tag, codec)?, field);
            }
            FormKind::Choice(choices) => {
                if choices.is_empty() || choices.iter().any(String::is_empty) {
                    return Err(Error::field(
                        field,
                        "the choices are one text or more, none empty",
                    ));
                }
                if choices.len() > CHOICES_MAX {
                    let message = format!(
                        "{} choices are more than the {CHOICES_MAX} at most",
                        choices.len()
                    );
                    return Err(Error::field(field, message));
                }
                let bytes = choices.iter().map(String::len).sum();
                within(field, "list of choices", bytes, CHOICE_BYTES_MAX)?;
                let choices: Vec<String> = choices.iter().map(|text| literal(text)).collect();
                TopLevelGrammar::from_lark(format!("start: {}", choices.join(" | ")))
            }
        };
        Ok(Self { field: field.to_owned(), top })
    }

    /// Takes a grammar that was written for the library.
    ///
    /// # Errors
    /// `InvalidInput` that names `field`, for one that is too long.
    pub(crate) fn of_rules(rules: String, field: &str) -> Result<Self, Error> {
        within(field, "grammar", rules.len(), SCHEMA_BYTES_MAX)?;
        Ok(Self { field: field.to_owned(), top: TopLevelGrammar::from_lark(rules) })
    }
}

/// A schema with our white space instead of what its sender may have written about it.
pub(crate) fn laid_out(schema: Value) -> Value {
    let options = JsonCompileOptions {
        whitespace_pattern: Some(WHITE_SPACE.to_owned()),
        ..JsonCompileOptions::default()
    };
    let mut schema = match schema {
        Value::Object(_) => schema,
        // The library takes options in objects only.
        other => json!({"allOf": [other]}),
    };
    options.apply_to(&mut schema);
    schema
}

/// Refuses a schema with a text, its keys included, that is longer than an expression may be.
///
/// # Errors
/// `InvalidInput` that names `field`.
pub(crate) fn texts_within(field: &str, schema: &Value) -> Result<(), Error> {
    match schema {
        Value::String(text) => within(field, "text in a schema", text.len(), REGEX_BYTES_MAX),
        Value::Array(items) => items.iter().try_for_each(|item| texts_within(field, item)),
        Value::Object(map) => map.iter().try_for_each(|(key, value)| {
            within(field, "key in a schema", key.len(), REGEX_BYTES_MAX)?;
            texts_within(field, value)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

pub(super) fn within(field: &str, what: &str, length: usize, most: usize) -> Result<(), Error> {
    if length > most {
        let message = format!("a {what} of {length} bytes is longer than the {most} at most");
        return Err(Error::field(field, message));
    }
    Ok(())
}

/// A text between quotes, as grammars write it.
pub(crate) fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A regular expression as it stands between slashes. Anchors at its ends say what holds anyway.
pub(super) fn body(field: &str, regex: &str) -> Result<String, Error> {
    let ends_open = |text: &str| text.chars().rev().take_while(|c| *c == '\\').count() % 2 == 1;
    let mut inner = regex.strip_prefix('^').unwrap_or(regex);
    if let Some(before) = inner.strip_suffix('$')
        && !ends_open(before)
    {
        inner = before;
    }
    if inner.is_empty() {
        return Err(Error::field(field, "the regular expression is empty"));
    }
    if ends_open(inner) {
        return Err(Error::field(field, "the regular expression ends in a backslash"));
    }
    // Classes as in JSON Schema and most clients' minds: `\d` is one of ten digits.
    Ok(regex_to_lark(inner, "dws"))
}
