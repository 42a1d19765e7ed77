//! Structural tags: text in which some parts have a form. Calls of tools among words, or what a model
//! thinks before it answers, as xgrammar and vLLM describe them; written as a grammar in Lark's words.
//!
//! Every format is written together with the text that ends it: only so one that takes any text is
//! known to end there. Names of special tokens in a text stand for the tokens.

use serde_json::{Map, Value};

use super::form::{SCHEMA_BYTES_MAX, body, laid_out, texts_within, within};
use super::rules;
use super::size::affordable;
use crate::{Error, TextCodec};

mod free;
mod spelt;

use free::Triggers;
use spelt::Spelt;

/// Formats of one structural tag at most, those inside others included.
const FORMATS_MAX: usize = 1024;
/// How deep formats may be nested.
const DEPTH_MAX: usize = 64;
/// The longest text that begins or ends a part, that triggers one or that is excluded, in bytes.
const MARK_BYTES_MAX: usize = 1024;
/// Bytes of all formats' expressions at most, those inside others counted with each: what ends a format
/// stands in every part that it may end, and what several texts may end stands there for each.
const WRITTEN_MAX: usize = 8 * SCHEMA_BYTES_MAX;
/// Texts of one list at most: triggers, exclusions, ends.
const MARKS_MAX: usize = 64;

/// A structural tag as a grammar: `format`, or the older `structures` and `triggers`.
///
/// # Errors
/// `InvalidInput` that names the part, for what is too long, too deep, wrong or not known.
pub(super) fn lark(field: &str, tag: &Value, codec: &TextCodec) -> Result<String, Error> {
    let bytes = tag.to_string().len();
    within(field, "structural tag", bytes, SCHEMA_BYTES_MAX)?;
    let special = codec.special_tokens();
    let tags = if tag.get("format").is_some() { "tags" } else { "structures" };
    let written = String::new();
    let mut rules = Rules { special, tags, bytes, formats: 0, names: 0, written, spent: 0 };
    let nothing = Spelt::default();
    let start = match (tag.get("format"), tag.get("structures")) {
        (Some(format), _) => rules.until(&Place::new(field).field("format"), format, &nothing)?,
        (None, Some(structures)) => {
            let at = Place::new(field);
            let older = older(&at, tag, structures)?;
            rules.until(&at, &older, &nothing)?
        }
        (None, None) => {
            return Err(Error::field(
                field,
                "a structural tag has format, or structures and triggers",
            ));
        }
    };
    Ok(format!("start: {start}\n{}", rules.written))
}

/// The older way of writing triggered tags, in today's words.
fn older(at: &Place, tag: &Value, structures: &Value) -> Result<Value, Error> {
    let wrong = || at.field("structures").wrong("a list of objects is needed");
    let tags = structures.as_array().ok_or_else(wrong)?.iter().map(|structure| {
        let mut tag = structure.as_object().cloned().ok_or_else(wrong)?;
        let schema = tag.shift_remove("schema").unwrap_or(Value::Bool(true));
        let content = serde_json::json!({"type": "json_schema", "json_schema": schema});
        tag.insert("content".to_owned(), content);
        Ok(Value::Object(tag))
    });
    let tags: Vec<Value> = tags.collect::<Result<_, Error>>()?;
    Ok(serde_json::json!({"type": "triggered_tags", "triggers": tag["triggers"], "tags": tags}))
}

/// Where in a request a format stands.
struct Place {
    path: String,
    depth: usize,
}

impl Place {
    fn new(field: &str) -> Self {
        Self { path: field.to_owned(), depth: 0 }
    }

    fn field(&self, name: &str) -> Self {
        Self { path: format!("{}.{name}", self.path), depth: self.depth + 1 }
    }

    fn item(&self, name: &str, index: usize) -> Self {
        Self { path: format!("{}.{name}[{index}]", self.path), depth: self.depth + 1 }
    }

    fn wrong(&self, message: impl Into<String>) -> Error {
        Error::field(self.path.clone(), message)
    }
}

/// Rules of a grammar under way.
struct Rules {
    /// Special tokens by name, the longest first.
    special: Vec<(String, u32)>,
    /// What the client calls a list of tags.
    tags: &'static str,
    /// The structural tag's length.
    bytes: usize,
    formats: usize,
    names: usize,
    written: String,
    /// Bytes of all expressions so far.
    spent: usize,
}

impl Rules {
    /// A format and the text that ends it, as one expression. What is written of them all is bounded
    /// while it is: a few texts and lists, inside each other, multiply.
    fn until(&mut self, at: &Place, format: &Value, end: &Spelt) -> Result<String, Error> {
        let expression = self.expression(at, format, end)?;
        self.spent += expression.len();
        if self.spent > WRITTEN_MAX || self.written.len() > SCHEMA_BYTES_MAX {
            let message = "a structural tag becomes too long a grammar: its formats repeat what ends \
                           them, once for each way to get there";
            return Err(at.wrong(message));
        }
        Ok(expression)
    }

    fn expression(&mut self, at: &Place, format: &Value, end: &Spelt) -> Result<String, Error> {
        self.formats += 1;
        if self.formats > FORMATS_MAX || at.depth > DEPTH_MAX {
            let message = format!("more than {FORMATS_MAX} formats, or deeper than {DEPTH_MAX}");
            return Err(at.wrong(message));
        }
        let Some(format) = format.as_object() else {
            return Err(at.wrong("a format is an object with a type"));
        };
        match format.get("type").and_then(Value::as_str).unwrap_or_default() {
            "const_string" => {
                Ok(format!("{} {}", self.text(at, format, "value")?.expression(), end.expression()))
            }
            "json_schema" => self.schema(&at.field("json_schema"), format, end),
            "grammar" => {
                let text = string(at, format, "grammar")?;
                let rules = rules::lark(&at.field("grammar").path, text)?;
                Ok(format!("%lark {{\n{rules}\n}} {}", end.expression()))
            }
            "regex" => {
                let at = at.field("pattern");
                let regex = format.get("pattern").and_then(Value::as_str);
                let regex = regex.ok_or_else(|| at.wrong("a string is needed"))?;
                within(&at.path, "regular expression", regex.len(), super::form::REGEX_BYTES_MAX)?;
                let regex = format!("/{}/", body(&at.path, regex)?);
                // One with what ends it: it may take any of its characters itself.
                let (text, rest) = end.split();
                Ok(format!("{} {rest}", self.terminal(&format!("{regex} {text}"))))
            }
            "any_text" => self.any_text(at, format, end),
            "sequence" => self.sequence(at, format, end),
            "or" => {
                let each = elements(at, format)?.iter().enumerate();
                let each =
                    each.map(|(index, inner)| self.until(&at.item("elements", index), inner, end));
                Ok(choice(each.collect::<Result<_, _>>()?))
            }
            "tag" => self.tag(at, format, None, end),
            "triggered_tags" => self.triggered(at, format, end),
            "tags_with_separator" => self.separated(at, format, end),
            "" => Err(at.field("type").wrong("a format needs a type, as a string")),
            other => Err(at.field("type").wrong(format!(
                "'{other}' is not supported; const_string, json_schema, regex, grammar, any_text, \
                 sequence, or, tag, triggered_tags and tags_with_separator are"
            ))),
        }
    }

    /// A text of a schema.
    fn schema(
        &mut self,
        at: &Place,
        format: &Map<String, Value>,
        end: &Spelt,
    ) -> Result<String, Error> {
        let wrong = || at.wrong("a JSON schema is needed: an object, true, or either as text");
        let schema = match format.get("json_schema") {
            Some(Value::String(text)) => serde_json::from_str(text).map_err(|_| wrong())?,
            Some(schema) => schema.clone(),
            None => return Err(wrong()),
        };
        if !(schema.is_object() || schema.is_boolean()) {
            return Err(wrong());
        }
        texts_within(&at.path, &schema)?;
        affordable(&at.path, &schema, self.bytes)?;
        Ok(format!("%json {} {}", laid_out(schema), end.expression()))
    }

    /// One after the other. A constant text ends what is before it.
    fn sequence(
        &mut self,
        at: &Place,
        format: &Map<String, Value>,
        end: &Spelt,
    ) -> Result<String, Error> {
        let elements = elements(at, format)?;
        let mut parts = Vec::new();
        let mut index = 0;
        while let Some(element) = elements.get(index) {
            let (at, behind) = (at.item("elements", index), at.item("elements", index + 1));
            index += 1;
            let next = elements.get(index).and_then(Value::as_object);
            let constant = next.filter(|next| next.get("type") == Some(&"const_string".into()));
            let end = match (next, constant) {
                (None, _) => end.clone(),
                (_, Some(constant)) => {
                    index += 1;
                    let text = self.text(&behind, constant, "value")?;
                    if index == elements.len() { text.then(end) } else { text }
                }
                (Some(_), None) => Spelt::default(),
            };
            if end.is_empty() && index < elements.len() && is_endless(element) {
                let message =
                    "what takes any text is the last of a sequence, or a const_string follows";
                return Err(at.wrong(message));
            }
            parts.push(self.until(&at, element, &end)?);
        }
        Ok(format!("({})", parts.join(" ")))
    }

    /// `begin`, without what a trigger has written of it; `content`; `end`, one of several where it is a
    /// list.
    fn tag(
        &mut self,
        at: &Place,
        tag: &Map<String, Value>,
        trigger: Option<&str>,
        end: &Spelt,
    ) -> Result<String, Error> {
        let begin = string(at, tag, "begin")?;
        within(&at.field("begin").path, "text", begin.len(), MARK_BYTES_MAX)?;
        let begin = begin.strip_prefix(trigger.unwrap_or_default()).unwrap_or(begin);
        let begin = Spelt::of(begin, &self.special);
        let place = at.field("end");
        let ends = match tag.get("end") {
            None => vec![""],
            Some(Value::String(end)) => vec![end.as_str()],
            Some(ends) => texts(&place, ends)?,
        };
        let mut each = Vec::with_capacity(ends.len());
        for own in ends {
            within(&place.path, "text", own.len(), MARK_BYTES_MAX)?;
            // Where it ends with nothing of its own, what is around it ends it.
            let whole = Spelt::of(own, &self.special);
            let (inner, outer) = if whole.is_empty() {
                (end.clone(), Spelt::default())
            } else {
                (whole, end.clone())
            };
            let content = tag.get("content").unwrap_or(&Value::Null);
            let content = self.until(&at.field("content"), content, &inner)?;
            each.push(format!("{} {content} {}", begin.expression(), outer.expression()));
        }
        Ok(choice(each))
    }

    /// Tags alone, with a text between them.
    fn separated(
        &mut self,
        at: &Place,
        format: &Map<String, Value>,
        end: &Spelt,
    ) -> Result<String, Error> {
        let between = self.text(at, format, "separator")?;
        let mut each = Vec::new();
        for (index, tag) in objects(at, format, "tags")?.into_iter().enumerate() {
            each.push(self.tag(&at.item("tags", index), tag, None, &Spelt::default())?);
        }
        let one = self.rule(&choice(each));
        let tags = match flag(at, format, "stop_after_first")? {
            true => one,
            false => format!("{one} ({} {one})*", between.expression()),
        };
        let least = if flag(at, format, "at_least_one")? { "" } else { "?" };
        Ok(format!("({tags}){least} {}", end.expression()))
    }

    /// Any text in which triggers begin tags.
    fn triggered(
        &mut self,
        at: &Place,
        format: &Map<String, Value>,
        end: &Spelt,
    ) -> Result<String, Error> {
        let triggers = Triggers::read(at, format, &self.special)?;
        let (mut at_once, mut each) = (Vec::new(), vec![Vec::new(); triggers.len()]);
        for (index, tag) in objects(at, format, "tags")?.into_iter().enumerate() {
            let at = at.item(self.tags, index);
            let (which, trigger) = triggers.of(&at, string(&at, tag, "begin")?)?;
            let rest = self.tag(&at, tag, Some(trigger), &Spelt::default())?;
            let rest = self.rule(&rest);
            at_once.push(format!("{} {rest}", Spelt::of(trigger, &self.special).expression()));
            each[which].push(rest);
        }
        let first = self.rule(&choice(at_once));
        let later = each.into_iter().enumerate().filter(|(_, tags)| !tags.is_empty());
        let later: Vec<String> = later
            .map(|(which, tags)| format!("{} {}", triggers.reached(which, self), choice(tags)))
            .collect();
        let later = self.rule(&choice(later));
        let rest = triggers.rest(end, self);
        let least = flag(at, format, "at_least_one")?;
        Ok(match (least, flag(at, format, "stop_after_first")?) {
            (true, true) => format!("{first} {}", end.expression()),
            (false, true) => format!("({later} {} | {rest})", end.expression()),
            (true, false) => format!("{first} {later}* {rest}"),
            (false, false) => format!("{later}* {rest}"),
        })
    }

    /// A text of the client's, with special tokens where it names them.
    fn text(&self, at: &Place, format: &Map<String, Value>, name: &str) -> Result<Spelt, Error> {
        let text = string(at, format, name)?;
        within(&at.field(name).path, "text", text.len(), super::form::REGEX_BYTES_MAX)?;
        Ok(Spelt::of(text, &self.special))
    }

    /// Gives an expression a name.
    fn rule(&mut self, expression: &str) -> String {
        let name = format!("part{}", self.names);
        self.named(name, expression)
    }

    /// The same for what is one lexeme.
    fn terminal(&mut self, expression: &str) -> String {
        let name = format!("TEXT{}", self.names);
        self.named(name, expression)
    }

    fn named(&mut self, name: String, expression: &str) -> String {
        self.names += 1;
        self.written.push_str(&format!("{name}: {expression}\n"));
        name
    }
}

/// Whether a format takes any text, as far as its end is not known.
fn is_endless(format: &Value) -> bool {
    match format["type"].as_str() {
        Some("any_text") => true,
        Some("triggered_tags") => {
            format["stop_after_first"] != true || format["at_least_one"] != true
        }
        Some("sequence") => {
            format["elements"].as_array().and_then(|all| all.last()).is_some_and(is_endless)
        }
        Some("or") => format["elements"].as_array().is_some_and(|all| all.iter().any(is_endless)),
        Some("tag") => format["end"].as_str() == Some("") && is_endless(&format["content"]),
        _ => false,
    }
}

fn choice(each: Vec<String>) -> String {
    format!("({})", each.join(" | "))
}

fn elements<'a>(at: &Place, format: &'a Map<String, Value>) -> Result<&'a [Value], Error> {
    let elements = format.get("elements").and_then(Value::as_array);
    let elements = elements.filter(|elements| !elements.is_empty());
    elements
        .map(Vec::as_slice)
        .ok_or_else(|| at.field("elements").wrong("a list of formats is needed"))
}

fn objects<'a>(
    at: &Place,
    format: &'a Map<String, Value>,
    name: &str,
) -> Result<Vec<&'a Map<String, Value>>, Error> {
    let all = format.get(name).and_then(Value::as_array).filter(|all| !all.is_empty());
    let all: Option<Vec<_>> = all.and_then(|all| all.iter().map(Value::as_object).collect());
    all.ok_or_else(|| at.field(name).wrong("a list of objects is needed"))
}

fn string<'a>(at: &Place, format: &'a Map<String, Value>, name: &str) -> Result<&'a str, Error> {
    let text = format.get(name).and_then(Value::as_str);
    text.ok_or_else(|| at.field(name).wrong("a string is needed"))
}

/// A list of texts, none too long.
fn texts<'a>(at: &Place, list: &'a Value) -> Result<Vec<&'a str>, Error> {
    let wrong = || at.wrong(format!("a list of 1 to {MARKS_MAX} strings is needed"));
    let all =
        list.as_array().filter(|all| (1..=MARKS_MAX).contains(&all.len())).ok_or_else(wrong)?;
    let all: Option<Vec<&str>> = all.iter().map(Value::as_str).collect();
    let all = all.ok_or_else(wrong)?;
    for text in &all {
        within(&at.path, "text", text.len(), MARK_BYTES_MAX)?;
    }
    Ok(all)
}

fn flag(at: &Place, format: &Map<String, Value>, name: &str) -> Result<bool, Error> {
    match format.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(at.field(name).wrong("it is true or false")),
    }
}
