//! Reads the fields of a JSON object and says which one is wrong.

use std::ops::RangeInclusive;

use roundhouse_serving::{BIASES_MAX, STOP_BYTES_MAX, STOPS_MAX};
use serde_json::{Map, Value};

use crate::error::Error;

/// A field, and which of its values ask for nothing special.
pub(crate) type Neutral = (&'static str, fn(&Value) -> bool);

/// An object whose fields are taken one by one. `null` counts as absent.
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Goes before each name in messages, as `parameters.`.
    prefix: &'static str,
}

impl Fields {
    /// The body itself.
    pub(crate) fn new(map: Map<String, Value>) -> Self {
        Self { map, prefix: "" }
    }

    /// An object inside it.
    pub(crate) fn nested(map: Map<String, Value>, prefix: &'static str) -> Self {
        Self { map, prefix }
    }

    /// A field's name as its client knows it.
    pub(crate) fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// An error about one field.
    pub(crate) fn wrong(&self, name: &str, expected: &str) -> Error {
        Error::field(&self.named(name), expected)
    }

    /// Whether the field is there, `null` included.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// Whether the field is there and `null`.
    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    /// The field as it is.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        // Order does not matter any more, so the cheap removal does.
        self.map.swap_remove(name).filter(|value| !value.is_null())
    }

    /// The field where it is a whole number of at least 0; it stays.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        let value = self.map.get(name)?;
        value.as_u64().or_else(|| u64::try_from(whole(value)?).ok())
    }

    /// How many texts the field has, as strings or lists of tokens; 0 where it is no list of such. It
    /// stays.
    pub(crate) fn texts(&self, name: &str) -> usize {
        let texts = self.map.get(name).and_then(Value::as_array);
        let texts = texts.filter(|all| !all.first().is_some_and(Value::is_number));
        texts.map_or(0, Vec::len)
    }

    pub(crate) fn bool(&mut self, name: &str) -> Result<Option<bool>, Error> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(name, "must be true or false")),
        }
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, Error> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(name, "must be a string")),
        }
    }

    /// A whole number; `5.0` is one too, as some clients write it.
    pub(crate) fn int(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, Error> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match whole(&value).filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None if *range.end() == i64::MAX => {
                let expected = format!("must be a whole number of at least {}", range.start());
                Err(self.wrong(name, &expected))
            }
            None => {
                let expected =
                    format!("must be a whole number from {} to {}", range.start(), range.end());
                Err(self.wrong(name, &expected))
            }
        }
    }

    /// A count in a range.
    pub(crate) fn count(
        &mut self,
        name: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, Error> {
        let edge = |edge: &usize| i64::try_from(*edge).unwrap_or(i64::MAX);
        let number = self.int(name, edge(range.start())..=edge(range.end()))?;
        Ok(number.map(|number| usize::try_from(number).unwrap_or(usize::MAX)))
    }

    /// A finite number in a range.
    pub(crate) fn float(
        &mut self,
        name: &str,
        range: RangeInclusive<f32>,
    ) -> Result<Option<f32>, Error> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        #[expect(clippy::cast_possible_truncation, reason = "sampling works in single precision")]
        let number = value.as_f64().map(|number| number as f32);
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let expected =
                    format!("must be a number from {} to {}", range.start(), range.end());
                Err(self.wrong(name, &expected))
            }
        }
    }

    /// Any whole number of 64 bits; negative ones are seeds like others.
    pub(crate) fn seed(&mut self, name: &str) -> Result<Option<u64>, Error> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match value.as_u64().or_else(|| whole(&value).map(i64::cast_unsigned)) {
            Some(seed) => Ok(Some(seed)),
            None => Err(self.wrong(name, "must be a whole number of at most 64 bits")),
        }
    }

    /// One string or a list of them; none may be empty.
    pub(crate) fn stop(&mut self, name: &str) -> Result<Vec<String>, Error> {
        let texts = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::String(text)) => Some(vec![text]),
            Some(Value::Array(items)) => strings(items),
            Some(_) => None,
        };
        let fits = |text: &String| (1..=STOP_BYTES_MAX).contains(&text.len());
        match texts {
            Some(texts) if texts.len() <= STOPS_MAX && texts.iter().all(fits) => Ok(texts),
            _ => {
                let expected = format!(
                    "must be a string or a list of at most {STOPS_MAX} strings, none empty or longer \
                     than {STOP_BYTES_MAX} bytes"
                );
                Err(self.wrong(name, &expected))
            }
        }
    }

    /// Biases of tokens' logits: an object from ids, as strings, to numbers.
    pub(crate) fn logit_bias(&mut self, name: &str) -> Result<Vec<(u32, f32)>, Error> {
        let map = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::Object(map)) if map.len() <= BIASES_MAX => map,
            Some(_) => {
                let expected = format!("must be an object of at most {BIASES_MAX} token ids");
                return Err(self.wrong(name, &expected));
            }
        };
        let bias = |(id, bias): (&String, &Value)| {
            #[expect(clippy::cast_possible_truncation, reason = "logits are in single precision")]
            let number = bias.as_f64().filter(|bias| bias.abs() <= 100.0)? as f32;
            Some((id.parse().ok()?, number))
        };
        let biases: Option<Vec<(u32, f32)>> = map.iter().map(bias).collect();
        biases.ok_or_else(|| {
            self.wrong(name, "must be an object from token ids to numbers from -100 to 100")
        })
    }

    /// A list of token ids.
    pub(crate) fn stop_tokens(&mut self, name: &str) -> Result<Vec<u32>, Error> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) if items.len() <= STOPS_MAX => {
                tokens(&items).ok_or_else(|| self.wrong(name, "must be a list of token ids"))
            }
            Some(_) => {
                Err(self.wrong(name, &format!("must be a list of at most {STOPS_MAX} token ids")))
            }
        }
    }

    /// The names of the fields that nobody has taken, but for those that are `null`.
    pub(crate) fn left(&self) -> Vec<String> {
        let said = self.map.iter().filter(|(_, value)| !value.is_null());
        said.map(|(name, _)| self.named(name)).collect()
    }

    /// Refuses fields that would change the answer and that nothing here can honour, unless
    /// they say what would happen anyway.
    pub(crate) fn refuse(&mut self, unsupported: &[Neutral]) -> Result<(), Error> {
        for (name, is_neutral) in unsupported {
            if let Some(value) = self.take(name)
                && !is_neutral(&value)
            {
                return Err(self.wrong(name, "is not supported with this value"));
            }
        }
        Ok(())
    }
}

/// Values that ask for nothing special, for [`Fields::refuse`].
pub(crate) mod neutral {
    use serde_json::Value;

    /// Nothing but absence.
    pub(crate) fn absent(_: &Value) -> bool {
        false
    }

    /// `false`.
    pub(crate) fn off(value: &Value) -> bool {
        value == &Value::Bool(false)
    }

    /// What the older way of calling functions says where there are none.
    pub(crate) fn uncalled(value: &Value) -> bool {
        matches!(value.as_str(), Some("none" | "auto"))
    }

    /// Text alone.
    pub(crate) fn text(value: &Value) -> bool {
        value.as_array().is_some_and(|all| all.iter().all(|one| one == "text"))
    }

    /// `true`.
    pub(crate) fn on(value: &Value) -> bool {
        value == &Value::Bool(true)
    }

    /// The number 0.
    pub(crate) fn zero(value: &Value) -> bool {
        value.as_f64() == Some(0.0)
    }

    /// The number 1.
    pub(crate) fn one(value: &Value) -> bool {
        value.as_f64() == Some(1.0)
    }

    /// An empty list, object or string.
    pub(crate) fn empty(value: &Value) -> bool {
        match value {
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::String(text) => text.is_empty(),
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
    }
}

/// All items, where each is a string.
pub(crate) fn strings(items: Vec<Value>) -> Option<Vec<String>> {
    items
        .into_iter()
        .map(|item| match item {
            Value::String(text) => Some(text),
            _ => None,
        })
        .collect()
}

/// All items, where each is a token id.
pub(crate) fn tokens(items: &[Value]) -> Option<Vec<u32>> {
    items.iter().map(|item| item.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

fn whole(value: &Value) -> Option<i64> {
    /// Where doubles stop telling neighbouring integers apart.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if let Some(number) = value.as_i64() {
        return Some(number);
    }
    let number = value.as_f64()?;
    #[expect(clippy::cast_possible_truncation, reason = "whole and within 53 bits")]
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        match value {
            Value::Object(map) => Fields::nested(map, "parameters."),
            other => panic!("not an object: {other}"),
        }
    }

    #[test]
    fn a_wrong_field_is_named_with_what_was_expected() {
        let mut sent = fields(json!({"top_p": 2, "top_k": -2, "stop": ["a", ""], "seed": 1.5}));
        assert_eq!(
            sent.float("top_p", 0.0..=1.0).unwrap_err().to_string(),
            "parameters.top_p must be a number from 0 to 1"
        );
        assert_eq!(
            sent.int("top_k", -1..=i64::MAX).unwrap_err().to_string(),
            "parameters.top_k must be a whole number of at least -1"
        );
        assert!(sent.stop("stop").is_err());
        assert!(sent.seed("seed").is_err());
    }

    #[test]
    fn whole_numbers_written_as_floats_are_taken() {
        let mut sent = fields(json!({"a": 5.0, "b": 5.5, "c": 1e300, "seed": -1, "big": u64::MAX}));
        assert_eq!(sent.count("a", 1..=9).unwrap(), Some(5));
        assert!(sent.count("b", 1..=9).is_err());
        assert!(sent.count("c", 1..=usize::MAX).is_err());
        assert_eq!(sent.seed("seed").unwrap(), Some(u64::MAX));
        assert_eq!(sent.seed("big").unwrap(), Some(u64::MAX));
    }

    #[test]
    fn an_unsupported_field_is_refused_unless_it_asks_for_nothing() {
        let list: [Neutral; 2] = [("num_beams", neutral::one), ("grammar", neutral::absent)];
        assert!(fields(json!({"num_beams": 1, "grammar": null})).refuse(&list).is_ok());
        assert!(fields(json!({"num_beams": 2})).refuse(&list).is_err());
        assert!(fields(json!({"grammar": {}})).refuse(&list).is_err());
    }
}
