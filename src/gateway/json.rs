//! JSON as we take it from strangers: no duplicate keys, bounded depth, positions in errors.

use std::cell::Cell;
use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::Error;

/// Bodies above this are parsed on a blocking thread: at some 100 MB/s a larger one would
/// hold up its neighbours for longer than half a millisecond.
const INLINE_MAX: usize = 48 * 1024;
/// Values in one body at most. A parsed value takes some 80 bytes and may be written in two:
/// a body of six mebibytes could take 300. This many tokens are more than any model's step.
pub(crate) const VALUES_MAX: usize = 512 * 1024;

/// Parses a body as one JSON object.
///
/// # Errors
/// `InvalidInput` with line and column: not JSON, a duplicate key, nested deeper than 127,
/// a number out of range, more than [`VALUES_MAX`] values, or not an object.
pub(crate) async fn object(body: Bytes) -> Result<Map<String, Value>, Error> {
    let parsed = if body.len() <= INLINE_MAX {
        parse(&body)
    } else {
        tokio::task::spawn_blocking(move || parse(&body))
            .await
            .map_err(|error| Error::internal(format!("parsing a body failed: {error}")))?
    };
    match parsed {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::input("the body must be a JSON object")),
        Err(error) => Err(Error::input(format!("the body is not valid JSON: {error}"))),
    }
}

/// Parses a body as JSON texts on lines of their own; empty lines do not count.
///
/// # Errors
/// As [`object`], with the number of the line.
pub(crate) async fn lines(body: Bytes) -> Result<Vec<Value>, Error> {
    let parse = move || {
        let left = Cell::new(VALUES_MAX);
        let numbered = body.split(|byte| *byte == b'\n').enumerate();
        let said = numbered.filter(|(_, line)| !line.trim_ascii().is_empty());
        said.map(|(at, line)| {
            parse_within(line, &left).map_err(|error| {
                Error::input(format!("line {} is not valid JSON: {error}", at + 1))
            })
        })
        .collect()
    };
    tokio::task::spawn_blocking(parse)
        .await
        .map_err(|error| Error::internal(format!("parsing a body failed: {error}")))?
}

fn parse(body: &[u8]) -> Result<Value, serde_json::Error> {
    parse_within(body, &Cell::new(VALUES_MAX))
}

/// Parses a JSON text that stands in a body's string, of as many values as are `left` of
/// [`VALUES_MAX`]: what such texts become is no less than what the body does.
///
/// # Errors
/// What is wrong with it, and where.
pub(crate) fn in_text(text: &str, left: &Cell<usize>) -> Result<Value, serde_json::Error> {
    parse_within(text.as_bytes(), left)
}

/// The same, of so many values as are left.
fn parse_within(body: &[u8], left: &Cell<usize>) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Strict { left }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Builds a value and refuses duplicate keys: two readers of one body must not be able to
/// see two different models in it.
#[derive(Clone, Copy)]
struct Strict<'a> {
    /// How many values may still come.
    left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Some(left) = self.left.get().checked_sub(1) else {
            let message = format!("there are more than {VALUES_MAX} values");
            return Err(D::Error::custom(message));
        };
        self.left.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("number out of range"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom("a key occurs twice in one object"));
            }
            let value = access.next_value_seed(self)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// A number as short as its type is precise: `0.1`, not `0.10000000149011612`.
pub(crate) fn decimal(value: f32) -> Value {
    value
        .to_string()
        .parse::<f64>()
        .ok()
        .and_then(Number::from_f64)
        .map_or(Value::Null, Value::Number)
}

/// A log-probability; OpenAI's floor where it is not finite.
pub(crate) fn logprob(value: f32) -> Value {
    if value.is_finite() { decimal(value) } else { Value::from(-9999.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refusal(body: &str) -> String {
        object(Bytes::from(body.to_owned())).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_refusal_says_where_the_body_is_wrong() {
        assert!(
            refusal("{\"a\": NaN}").await.ends_with("line 1 column 7"),
            "{}",
            refusal("{\"a\": NaN}").await
        );
        assert!(refusal("{\"a\":1,\n\"a\":2}").await.contains("twice in one object at line 2"));
        assert!(refusal("{\"a\":{\"b\":1,\"b\":2}}").await.contains("twice"));
        assert!(refusal("{\"a\":1e999}").await.contains("number out of range"));
        assert!(refusal("{} {}").await.contains("trailing characters"));
        assert!(refusal("[1]").await.contains("must be a JSON object"));
        assert!(refusal("").await.contains("EOF"));
        assert!(refusal("{\"a\":\"\\ud800\"}").await.contains("not valid JSON"));
    }

    #[tokio::test]
    async fn deep_nesting_is_refused_and_not_followed() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
        assert!(refusal(&deep).await.contains("recursion limit"));
    }

    #[tokio::test]
    async fn a_body_of_countless_small_values_is_refused() {
        let list = |values: usize| format!("{{\"a\":[{}0]}}", "0,".repeat(values - 1));
        // The object and the list are two of them.
        assert!(object(Bytes::from(list(VALUES_MAX - 2))).await.is_ok());
        let said = refusal(&list(VALUES_MAX - 1)).await;
        assert!(said.contains("more than 524288 values at line 1 column"), "{said}");
    }

    #[test]
    fn single_precision_numbers_print_short() {
        assert_eq!(decimal(0.1).to_string(), "0.1");
        assert_eq!(logprob(f32::NEG_INFINITY).to_string(), "-9999.0");
    }
}
