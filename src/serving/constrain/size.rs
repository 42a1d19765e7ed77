//! How much work a schema is, as far as it can be told before the library reads it: where parts of
//! it hold together, the library writes out every combination of their alternatives, each with
//! its texts.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::Error;

/// Combinations of alternatives times the schema's length, in bytes: what writing them out may take.
const WRITTEN_MAX: u64 = 64 << 20;
/// Alternatives in a `oneOf`, those inside them included: each is held against each.
const ONE_OF_MAX: u64 = 2000;
/// How deep a schema may be nested, references followed.
const DEPTH_MAX: usize = 512;

/// Lists of alternatives.
const LISTS: [&str; 4] = ["anyOf", "oneOf", "enum", "type"];
/// Keys that say nothing of a text.
const NOTES: [&str; 6] = ["$defs", "definitions", "title", "description", "default", "examples"];

/// Refuses a schema whose alternatives, combined, are more than can be written out.
///
/// # Errors
/// `InvalidInput` that names `field`.
pub(crate) fn affordable(field: &str, schema: &Value, bytes: usize) -> Result<(), Error> {
    let mut work = Work { root: schema, bytes: bytes as u64, known: HashMap::new() };
    work.look(schema, 0).map_err(|what| Error::field(field, what))
}

struct Work<'a> {
    root: &'a Value,
    bytes: u64,
    /// Alternatives behind a reference; `None` while they are counted.
    known: HashMap<&'a str, Option<u64>>,
}

impl<'a> Work<'a> {
    /// Looks at every part that is a schema, or could be one.
    fn look(&mut self, value: &'a Value, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(format!("a schema is nested deeper than {DEPTH_MAX}"));
        }
        match value {
            Value::Object(map) => {
                self.combined(map)?;
                map.values().try_for_each(|inner| self.look(inner, depth + 1))
            }
            Value::Array(items) => items.iter().try_for_each(|item| self.look(item, depth + 1)),
            _ => Ok(()),
        }
    }

    /// The combinations of what one schema asks for at the same time.
    fn combined(&mut self, map: &'a Map<String, Value>) -> Result<(), String> {
        let mut parts: Vec<u64> = Vec::new();
        let mut own = 1_u64;
        for (key, value) in map {
            match (key.as_str(), value) {
                ("allOf", Value::Array(items)) => {
                    for item in items {
                        parts.push(self.alternatives(item, 0)?);
                    }
                }
                ("$ref", Value::String(target)) => parts.push(self.behind(target, 0)?),
                ("anyOf" | "oneOf", Value::Array(items)) => {
                    let mut sum = 0_u64;
                    for item in items {
                        sum = sum.saturating_add(self.alternatives(item, 0)?);
                    }
                    if key == "oneOf" && sum > ONE_OF_MAX {
                        return Err(format!("a oneOf has more than {ONE_OF_MAX} alternatives"));
                    }
                    parts.push(sum);
                }
                (note, _) if NOTES.contains(&note) => {}
                _ => own = own.saturating_add(self.alternatives(value, 0)? - 1),
            }
        }
        parts.push(own);
        let several = parts.iter().filter(|part| **part > 1).count() > 1;
        let combinations = parts.into_iter().fold(1_u64, u64::saturating_mul);
        if several && combinations.saturating_mul(self.bytes) > WRITTEN_MAX {
            return Err("a schema has too many combinations of alternatives".into());
        }
        Ok(())
    }

    /// The alternatives in a part, however deep; at least one.
    fn alternatives(&mut self, value: &'a Value, depth: usize) -> Result<u64, String> {
        if depth > DEPTH_MAX {
            return Err(format!("a schema is nested deeper than {DEPTH_MAX}"));
        }
        let mut count = 1_u64;
        match value {
            Value::Object(map) => {
                for (key, inner) in map {
                    let more = match (key.as_str(), inner) {
                        ("$ref", Value::String(target)) => self.behind(target, depth + 1)? - 1,
                        (note, _) if NOTES.contains(&note) => 0,
                        (list, Value::Array(items)) if LISTS.contains(&list) => {
                            let mut sum = 0_u64;
                            for item in items {
                                sum = sum.saturating_add(self.alternatives(item, depth + 1)?);
                            }
                            sum.saturating_sub(1)
                        }
                        _ => self.alternatives(inner, depth + 1)? - 1,
                    };
                    count = count.saturating_add(more);
                }
            }
            Value::Array(items) => {
                for item in items {
                    count = count.saturating_add(self.alternatives(item, depth + 1)? - 1);
                }
            }
            _ => {}
        }
        Ok(count)
    }

    /// The alternatives behind a reference. One within itself counts once.
    fn behind(&mut self, target: &'a str, depth: usize) -> Result<u64, String> {
        if let Some(known) = self.known.get(target) {
            return Ok(known.unwrap_or(1));
        }
        let Some(inner) = target.strip_prefix('#').and_then(|path| self.root.pointer(path)) else {
            return Ok(1);
        };
        self.known.insert(target, None);
        let count = self.alternatives(inner, depth)?;
        self.known.insert(target, Some(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(schema: &Value) -> bool {
        affordable("f", schema, schema.to_string().len()).is_err()
    }

    #[test]
    fn what_multiplies_is_refused_and_what_adds_up_is_not() {
        let many = |count: usize| vec![json!({"type": "string"}); count];
        let long = json!({"type": "string", "pattern": "a".repeat(8000)});
        let hidden = json!({
            "$defs": {"a": {"anyOf": many(200)}, "b": {"anyOf": many(200)}},
            "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, long],
        });
        let words: Vec<Value> = (0..215).map(Value::from).collect();
        for schema in [
            json!({"allOf": [long, {"anyOf": many(200)}, {"anyOf": many(200)}]}),
            json!({"anyOf": many(200), "oneOf": many(200), "allOf": [long]}),
            json!({"properties": {"p": {"allOf": [{"anyOf": many(3000)}, {"anyOf": many(30)}]}}}),
            json!({"oneOf": vec![json!({"enum": words}); 200]}),
            hidden,
        ] {
            assert!(refused(&schema));
        }
        let optional: Map<String, Value> = (0..300)
            .map(|at| (format!("p{at}"), json!({"anyOf": [{"type": "string"}, {"type": "null"}]})))
            .collect();
        let of = json!({"$ref": "#/$defs/node"});
        for schema in [
            json!({"type": "object", "properties": optional}),
            json!({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": many(500)}}}),
            json!({"$defs": {"node": {"anyOf": [{"type": "null"}, {"items": of}]}}, "items": of}),
            json!({"anyOf": many(1500)}),
            json!({"enum": (0..5000).collect::<Vec<_>>()}),
        ] {
            assert!(!refused(&schema), "{schema}");
        }
    }
}
