//! In what form an answer is wanted, by its `Accept`, and answers written in it.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use roundhouse_types::{ErrorKind, Failure};
use serde_json::Value;

use crate::answer::Delivery;
use crate::error::Error;
use crate::stream;

mod npy;
mod table;

pub(crate) use npy::{Array, read as read_npy};
pub(crate) use table::read as read_csv;

/// A form of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// One JSON text.
    Json,
    /// Each element of a list as JSON on a line of its own.
    Lines,
    /// A table: of numbers, or of objects with a header.
    Csv,
    /// Numbers as numpy stores them.
    Npy,
}

/// How many forms there are.
const FORMS: usize = 4;
/// Streams of events: who wants none of them may want a whole answer.
const EVENTS: &str = "text/event-stream";

impl Form {
    /// What a range with a star stands for, the form first that is taken first for it.
    fn ranged(essence: &str) -> &'static [Self] {
        match essence {
            "*/*" => &[Self::Json, Self::Lines, Self::Csv, Self::Npy],
            "application/*" => &[Self::Json, Self::Lines, Self::Npy],
            "text/*" => &[Self::Csv],
            _ => &[],
        }
    }

    fn named(essence: &str) -> Option<Self> {
        match essence {
            // Streams of events are decided elsewhere: their clients take a whole answer as JSON.
            "application/json" | EVENTS => Some(Self::Json),
            "application/jsonlines"
            | "application/x-jsonlines"
            | "application/jsonl"
            | "application/x-ndjson"
            | "application/ndjson" => Some(Self::Lines),
            "text/csv" => Some(Self::Csv),
            "application/x-npy" => Some(Self::Npy),
            other if other.starts_with("application/") && other.ends_with("+json") => {
                Some(Self::Json)
            }
            _ => None,
        }
    }

    /// Whether every answer can be written so.
    fn holds_all(self) -> bool {
        matches!(self, Self::Json | Self::Lines)
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::Lines => "application/jsonlines",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Npy => "application/x-npy",
        })
    }
}

/// The forms that a client takes, the one it likes best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accept([Option<Form>; FORMS]);

impl Default for Accept {
    /// JSON alone.
    fn default() -> Self {
        Self([Some(Form::Json), None, None, None])
    }
}

impl Accept {
    /// What the header says; JSON where it says nothing.
    ///
    /// # Errors
    /// A 406 where it names types and none of ours is among them.
    pub(crate) fn read(headers: &HeaderMap, name: &HeaderName) -> Result<Self, Error> {
        let values: Vec<&str> =
            headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        let ranges = || values.iter().flat_map(|value| value.split(',')).map(str::trim);
        if ranges().all(str::is_empty) {
            return Ok(Self::default());
        }
        let mut wanted: Vec<(f32, String)> = ranges().filter_map(range).collect();
        // What is refused by name is not let in by a star.
        let refused: Vec<Form> = wanted
            .iter()
            .filter(|(quality, essence)| *quality <= 0.0 && essence != EVENTS)
            .filter_map(|(_, essence)| Form::named(essence))
            .collect();
        wanted.retain(|(quality, _)| *quality > 0.0);
        // Stable: of equal ones the first.
        wanted.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut forms = [None; FORMS];
        let mut count = 0;
        for form in wanted.iter().flat_map(|(_, essence)| taken(essence, &refused)) {
            if !forms.contains(&Some(form)) {
                forms[count] = Some(form);
                count += 1;
            }
        }
        match count {
            0 => Err(not_acceptable("its answers")),
            _ => Ok(Self(forms)),
        }
    }

    fn forms(self) -> impl Iterator<Item = Form> {
        self.0.into_iter().flatten()
    }
}

/// How much a type of the header is liked, and the type.
fn range(text: &str) -> Option<(f32, String)> {
    let mut parts = text.split(';');
    let essence = parts.next()?.trim().to_ascii_lowercase();
    let quality = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().ok())?
    });
    let quality = quality.filter(|quality| quality.is_finite()).unwrap_or(1.0);
    Some((quality, essence))
}

/// The forms that a type of the header lets in: of a range those that are not refused, up to one
/// that every answer can be written in.
fn taken(essence: &str, refused: &[Form]) -> Vec<Form> {
    if let Some(form) = Form::named(essence) {
        return vec![form];
    }
    let mut forms = Vec::new();
    for form in Form::ranged(essence).iter().filter(|form| !refused.contains(form)) {
        forms.push(*form);
        if form.holds_all() {
            break;
        }
    }
    forms
}

/// None of the types that a client takes can hold this.
fn not_acceptable(what: &str) -> Error {
    let message = format!(
        "the Accept header has no type that {what} can be written in: application/json and \
         application/jsonlines hold all of them, text/csv tables, application/x-npy numbers"
    );
    Failure::new(ErrorKind::UnsupportedMediaType, message).with_status(406).into()
}

/// A whole answer in the form that is liked best of those that can hold it.
///
/// # Errors
/// A 406 where none can.
pub(crate) fn written(value: &Value, delivery: Delivery) -> Result<Response, Error> {
    for form in delivery.accept.forms() {
        let body = match form {
            Form::Json => Some(value.to_string().into()),
            Form::Lines => Some(lines(value)),
            Form::Csv => table::write(value),
            Form::Npy => npy::write(value),
        };
        if let Some(body) = body {
            return Ok(whole(body, form, delivery));
        }
    }
    Err(not_acceptable("this answer"))
}

/// Vectors in the form that is liked best; `json` writes them as JSON. One vector alone is a row.
///
/// # Errors
/// What `json` says.
pub(crate) fn written_vectors(
    vectors: &[Vec<f32>],
    single: bool,
    accept: Accept,
    json: impl FnOnce() -> Result<Bytes, Error>,
) -> Result<(Bytes, Form), Error> {
    let form = accept.forms().next().unwrap_or(Form::Json);
    let body = match form {
        Form::Json => json()?,
        Form::Lines => {
            let mut text = Vec::new();
            for vector in vectors {
                serde_json::to_writer(&mut text, vector).map_err(unwritten)?;
                text.push(b'\n');
            }
            text.into()
        }
        Form::Csv => table::write_vectors(vectors),
        Form::Npy => npy::write_vectors(vectors, single),
    };
    Ok((body, form))
}

/// Vectors of tokens in the form that is liked best of those that can hold them.
///
/// # Errors
/// A 406 where none can, and what `json` says.
pub(crate) fn written_tokens(
    inputs: &[Vec<Vec<f32>>],
    accept: Accept,
    json: impl FnOnce() -> Result<Bytes, Error>,
) -> Result<(Bytes, Form), Error> {
    for form in accept.forms() {
        match form {
            Form::Json => return Ok((json()?, form)),
            Form::Lines => {
                let mut text = Vec::new();
                for vectors in inputs {
                    serde_json::to_writer(&mut text, vectors).map_err(unwritten)?;
                    text.push(b'\n');
                }
                return Ok((text.into(), form));
            }
            Form::Csv => {}
            Form::Npy => {
                if let Some(body) = npy::write_tokens(inputs) {
                    return Ok((body, form));
                }
            }
        }
    }
    Err(not_acceptable("this answer"))
}

fn unwritten(error: serde_json::Error) -> Error {
    Error::internal(format!("writing vectors failed: {error}"))
}

fn lines(value: &Value) -> Bytes {
    let line = |value: &Value| format!("{value}\n");
    match value {
        Value::Array(items) => items.iter().map(line).collect::<String>().into(),
        one => line(one).into(),
    }
}

/// A response of one piece.
pub(crate) fn whole(body: Bytes, form: Form, delivery: Delivery) -> Response {
    if delivery.framed {
        // Readers of lines wait for the end of the last one.
        let ends = form == Form::Npy || body.ends_with(b"\n");
        return stream::framed_whole(&body, form.content_type(), !ends);
    }
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, form.content_type());
    response
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn accept(values: &[&'static str]) -> Result<Vec<Form>, u16> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::ACCEPT, HeaderValue::from_static(value));
        }
        match Accept::read(&headers, &header::ACCEPT) {
            Ok(accept) => Ok(accept.forms().collect()),
            Err(Error::Failed(failure)) => Err(failure.status().unwrap()),
            Err(_) => Err(0),
        }
    }

    #[test]
    fn the_type_with_the_most_weight_comes_first() {
        assert_eq!(accept(&[]).unwrap(), [Form::Json]);
        assert_eq!(accept(&["", " "]).unwrap(), [Form::Json]);
        assert_eq!(accept(&["*/*"]).unwrap(), [Form::Json]);
        assert_eq!(accept(&["Text/CSV; charset=utf-8"]).unwrap(), [Form::Csv]);
        assert_eq!(
            accept(&["application/json;q=0.2, text/csv;q=0.9", "application/x-npy"]).unwrap(),
            [Form::Npy, Form::Csv, Form::Json]
        );
        assert_eq!(accept(&["text/html, application/xhtml+xml, */*;q=0.8"]).unwrap(), [Form::Json]);
        assert_eq!(
            accept(&["application/jsonlines, application/x-jsonlines"]).unwrap(),
            [Form::Lines]
        );
    }

    #[test]
    fn types_that_are_all_unknown_or_refused_are_not_acceptable() {
        assert_eq!(accept(&["image/png"]), Err(406));
        assert_eq!(accept(&["application/json;q=0"]), Err(406));
        assert_eq!(accept(&["image/png, text/csv;q=0.1"]).unwrap(), [Form::Csv]);
    }

    #[test]
    fn what_is_refused_by_name_is_not_let_in_by_a_star() {
        assert_eq!(accept(&["application/json;q=0, */*"]).unwrap(), [Form::Lines]);
        let no_json = ["*/*;q=0.5", "application/json;q=0, application/jsonlines;q=0"];
        assert_eq!(accept(&no_json).unwrap(), [Form::Csv, Form::Npy]);
        assert_eq!(accept(&["text/csv;q=0, text/*"]), Err(406));
        assert_eq!(accept(&["text/event-stream;q=0, */*"]).unwrap(), [Form::Json]);
        assert_eq!(accept(&["application/*, application/json;q=0"]).unwrap(), [Form::Lines]);
    }

    #[test]
    fn the_elements_of_a_list_have_a_line_each() {
        assert_eq!(lines(&json!([{"a": 1}, {"a": 2}])), "{\"a\":1}\n{\"a\":2}\n");
        assert_eq!(lines(&json!({"a": "x\ny"})), "{\"a\":\"x\\ny\"}\n");
    }
}
