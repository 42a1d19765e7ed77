//! What a server says that an answer took, in the forms that servers have: OpenAI's `usage`, which events
//! of its Responses API have inside, and the `details` of Text Generation Inference and of LMI. Nothing
//! else of an answer is kept, and a field of another form is nothing said.

use std::fmt;
use std::marker::PhantomData;

use http::HeaderMap;
use serde::de::value::MapAccessDeserializer;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// More tokens than any answer has: what is beyond is no count.
const MOST: u64 = 1 << 32;
/// Text Generation Inference says them here as well.
const HEADERS: [&str; 2] = ["x-prompt-tokens", "x-generated-tokens"];

/// Tokens that were said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) prompt: Option<usize>,
    pub(super) generated: Option<usize>,
}

impl Said {
    /// What a JSON text says, be it an answer, a list of answers or an event; `None` where it is no JSON.
    pub(super) fn read(json: &[u8]) -> Option<Self> {
        Self::of_event(json).map(|(said, _)| said)
    }

    /// The same, and whether the text is an event that may bring a token: those of the Responses API that
    /// tell how an answer gets on do not.
    pub(super) fn of_event(json: &[u8]) -> Option<(Self, bool)> {
        let Answers(said, brings) = serde_json::from_slice(json).ok()?;
        Some((said, brings))
    }

    /// What an answer's headers say.
    pub(super) fn of_headers(headers: &HeaderMap) -> Self {
        let [prompt, generated] = HEADERS.map(|name| {
            let count: u64 = headers.get(name)?.to_str().ok()?.parse().ok()?;
            counted(count)
        });
        Self { prompt, generated }
    }

    /// Whether it says nothing.
    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }

    fn plus(self, other: Self) -> Self {
        let sum = |one: Option<usize>, more: Option<usize>| match (one, more) {
            (Some(one), Some(more)) => Some(one.saturating_add(more)),
            (one, more) => one.or(more),
        };
        let prompt = sum(self.prompt, other.prompt);
        Self { prompt, generated: sum(self.generated, other.generated) }
    }
}

fn counted(count: u64) -> Option<usize> {
    usize::try_from(count).ok().filter(|_| count < MOST)
}

/// One answer.
#[derive(Default, Deserialize)]
struct One {
    #[serde(default)]
    usage: Map<Usage>,
    #[serde(default)]
    details: Map<Details>,
    #[serde(default)]
    response: Map<Whole>,
    #[serde(default, rename = "type")]
    named: Named,
}

/// What events of the Responses API say of the answer that they are of.
#[derive(Default, Deserialize)]
struct Whole {
    #[serde(default)]
    usage: Map<Usage>,
}

/// Some servers say it twice, by both names.
#[derive(Default, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Count,
    #[serde(default)]
    completion_tokens: Count,
    #[serde(default)]
    input_tokens: Count,
    #[serde(default)]
    output_tokens: Count,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default)]
    generated_tokens: Count,
    /// At the end of a stream.
    #[serde(default)]
    input_length: Count,
    /// A token each, where the client asked for them.
    #[serde(default)]
    prefill: Count,
}

impl From<One> for Said {
    fn from(One { usage, details, response, .. }: One) -> Self {
        let usage = usage.0.or_else(|| response.0.and_then(|whole| whole.usage.0)).map(|it| Self {
            prompt: it.prompt_tokens.0.or(it.input_tokens.0),
            generated: it.completion_tokens.0.or(it.output_tokens.0),
        });
        let details = details.0.map(|it| Self {
            prompt: it.input_length.0.or(it.prefill.0.filter(|count| *count > 0)),
            generated: it.generated_tokens.0,
        });
        usage.filter(|said| !said.is_empty()).or(details).unwrap_or_default()
    }
}

/// One answer, or a list of answers, added up as they are read; and whether it may bring a token.
struct Answers(Said, bool);

impl<'de> Deserialize<'de> for Answers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfAnswers)
    }
}

struct OfAnswers;

impl<'de> Visitor<'de> for OfAnswers {
    type Value = Answers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an answer, or a list of answers")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Answers, A::Error> {
        let one = One::deserialize(MapAccessDeserializer::new(map))?;
        let brings = !one.named.is_beside;
        Ok(Answers(one.into(), brings))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut answers: A) -> Result<Answers, A::Error> {
        let mut sum = Said::default();
        while let Some(Map(one)) = answers.next_element::<Map<One>>()? {
            sum = sum.plus(one.map(Said::from).unwrap_or_default());
        }
        Ok(Answers(sum, true))
    }
}

/// A map of that form; absent where anything else stands.
struct Map<T>(Option<T>);

impl<T> Default for Map<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Map<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match deserializer.deserialize_any(OfAny(PhantomData))? {
            Loose::Map(map) => Self(Some(map)),
            Loose::Number(_) | Loose::Items(_) | Loose::Beside | Loose::Other => Self(None),
        })
    }
}

/// What an event of the Responses API calls itself; anything else is none of those.
#[derive(Default)]
struct Named {
    /// It brings no token.
    is_beside: bool,
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = deserializer.deserialize_any(OfAny::<IgnoredAny>(PhantomData))?;
        Ok(Self { is_beside: matches!(value, Loose::Beside) })
    }
}

/// A number of tokens, or the length of a list of them; absent where anything else stands.
#[derive(Default)]
struct Count(Option<usize>);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match deserializer.deserialize_any(OfAny::<IgnoredAny>(PhantomData))? {
            Loose::Number(number) => Self(counted(number)),
            Loose::Items(items) => Self(counted(items)),
            Loose::Map(_) | Loose::Beside | Loose::Other => Self(None),
        })
    }
}

/// A value of whatever form.
enum Loose<T> {
    Map(T),
    Number(u64),
    /// A list of so many.
    Items(u64),
    /// The name of an event of the Responses API that brings no token.
    Beside,
    Other,
}

struct OfAny<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OfAny<T> {
    type Value = Loose<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Loose<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Loose::Map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Loose<T>, A::Error> {
        let mut count = 0;
        while items.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Loose::Items(count))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Loose<T>, E> {
        Ok(Loose::Number(number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Loose<T>, E> {
        Ok(Loose::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Loose<T>, E> {
        Ok(Loose::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Loose<T>, E> {
        Ok(Loose::Other)
    }

    fn visit_str<E>(self, text: &str) -> Result<Loose<T>, E> {
        let is_beside = text.starts_with("response.") && !text.ends_with(".delta");
        Ok(if is_beside { Loose::Beside } else { Loose::Other })
    }

    fn visit_unit<E>(self) -> Result<Loose<T>, E> {
        Ok(Loose::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(json: &str) -> Option<(Option<usize>, Option<usize>)> {
        Said::read(json.as_bytes()).map(|said| (said.prompt, said.generated))
    }

    #[test]
    fn every_form_in_which_servers_say_it_is_read() {
        let both = Some((Some(5), Some(7)));
        for json in [
            r#"{"usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}}"#,
            r#"{"usage": {"input_tokens": 5, "output_tokens": 7}}"#,
            r#"{"usage": {"input_tokens": 5, "prompt_tokens": 5, "completion_tokens": 7}}"#,
            r#"{"details": {"generated_tokens": 7, "prefill": [1, {"id": 2}, 3, 4, "5"]}}"#,
            r#"{"token": {"id": 1}, "details": {"generated_tokens": 7, "input_length": 5}}"#,
            r#"[{"details": {"generated_tokens": 3, "input_length": 5}},
                {"details": {"generated_tokens": 4}}]"#,
            r#"{"usage": null, "details": {"generated_tokens": 7, "input_length": 5}}"#,
            r#"{"type": "response.completed", "response": {"usage": {"input_tokens": 5, "output_tokens": 7}}}"#,
        ] {
            assert_eq!(said(json), both, "{json}");
        }
        assert_eq!(
            said(r#"{"details": {"generated_tokens": 7, "prefill": []}}"#),
            Some((None, Some(7)))
        );
        assert_eq!(
            said(r#"{"usage": {"prompt_tokens": 5, "total_tokens": 5}}"#),
            Some((Some(5), None))
        );
    }

    #[test]
    fn what_is_of_another_form_is_nothing_said_and_spoils_nothing_beside_it() {
        for json in [
            "{}",
            "[0.1, 0.2]",
            r#"{"usage": "much", "details": [1]}"#,
            r#"{"type": "response.created", "response": {"usage": null}}"#,
            r#"{"response": "so"}"#,
            r#"{"usage": {"prompt_tokens": -5, "completion_tokens": 7.5}}"#,
            r#"{"usage": {"prompt_tokens": "5", "completion_tokens": 1e300}}"#,
            r#"{"usage": {"prompt_tokens": 18446744073709551615}}"#,
        ] {
            assert_eq!(said(json), Some((None, None)), "{json}");
        }
        let json =
            r#"{"usage": {"prompt_tokens": {"a": 1}, "completion_tokens": 7}, "details": 1}"#;
        assert_eq!(said(json), Some((None, Some(7))));
        for text in ["", "plain", "{\"usage\"", "0.5,0.7"] {
            assert_eq!(said(text), None, "{text}");
        }
    }

    #[test]
    fn what_headers_say_is_read() {
        let mut headers = HeaderMap::new();
        assert!(Said::of_headers(&headers).is_empty());
        headers.insert("x-prompt-tokens", "5".parse().unwrap());
        headers.insert("x-generated-tokens", "-7".parse().unwrap());
        assert_eq!(Said::of_headers(&headers), Said { prompt: Some(5), generated: None });
    }
}
