//! Bodies that are not one JSON object, as what that object would say.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::inputs::INPUTS_MAX;
use crate::accept::{Array, read_csv, read_npy};
use crate::error::Error;
use crate::json;

/// The columns that a table of inputs may have, in any order.
const COLUMNS: [&[&str]; 3] = [&["inputs"], &["question", "context"], &["text", "text_pair"]];

/// The body as text.
///
/// # Errors
/// `InvalidInput` where it is not UTF-8.
pub(crate) fn text(body: Bytes) -> Result<String, Error> {
    String::from_utf8(body.into())
        .map_err(|error| Error::input(format!("the body is not UTF-8: {error}")))
}

/// A table with a header: each row is an input.
///
/// # Errors
/// `InvalidInput`, with what is wrong.
pub(crate) async fn from_csv(body: Bytes) -> Result<Map<String, Value>, Error> {
    on_blocking(move || csv(body)).await
}

/// An array of texts or of token ids.
///
/// # Errors
/// `InvalidInput`, with what is wrong.
pub(crate) async fn from_npy(body: Bytes) -> Result<Array, Error> {
    on_blocking(move || read_npy(&body)).await
}

/// Reads a body where that may take time.
async fn on_blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| Error::internal(format!("reading a body failed: {error}")))?
}

fn csv(body: Bytes) -> Result<Map<String, Value>, Error> {
    let mut rows = read_csv(&text(body)?, INPUTS_MAX)?.into_iter();
    let header = rows.next().unwrap_or_default();
    let names: Vec<&str> = header.iter().map(|name| name.trim()).collect();
    let is_known = |known: &&&[&str]| {
        known.len() == names.len() && known.iter().all(|name| names.contains(name))
    };
    if !COLUMNS.iter().any(|known| is_known(&known)) {
        return Err(Error::input(
            "the first row of the CSV must name its columns: inputs, or question,context, or \
             text,text_pair (anything else is sent as JSON)",
        ));
    }
    let input = |row: Vec<String>| -> Value {
        match names.as_slice() {
            ["inputs"] => row.into_iter().next().unwrap_or_default().into(),
            names => {
                let named = names.iter().map(|name| (*name).to_owned());
                named.zip(row.into_iter().map(Value::from)).collect::<Map<_, _>>().into()
            }
        }
    };
    Ok(Map::from_iter([("inputs".to_owned(), rows.map(input).collect())]))
}

/// JSON lines: each is an input, or an object with `inputs`. What else stands in such an object
/// stands for all of them: in the first line, and in others only if it is the same.
///
/// # Errors
/// `InvalidInput`, with the line that is wrong.
pub(crate) async fn from_lines(body: Bytes) -> Result<Map<String, Value>, Error> {
    let lines = json::lines(body).await?;
    if lines.is_empty() || lines.len() > INPUTS_MAX {
        return Err(Error::input(format!("the body must have 1 to {INPUTS_MAX} lines")));
    }
    let mut shared = Map::new();
    let mut inputs = Vec::with_capacity(lines.len());
    for (at, line) in lines.into_iter().enumerate() {
        let mut map = match line {
            Value::Object(map) if map.contains_key("inputs") => map,
            input => {
                inputs.push(input);
                continue;
            }
        };
        inputs.extend(map.swap_remove("inputs"));
        if at == 0 {
            shared = map;
        } else if !map.is_empty() && map != shared {
            let message = format!("line {} differs from the first in more than its inputs", at + 1);
            return Err(Error::input(message));
        }
    }
    shared.insert("inputs".into(), inputs.into());
    Ok(shared)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table(text: &'static str) -> Result<Value, String> {
        let read = csv(Bytes::from(text));
        read.map(Value::Object).map_err(|error| error.to_string())
    }

    async fn lines(text: &'static str) -> Result<Value, String> {
        let read = from_lines(Bytes::from(text)).await;
        read.map(Value::Object).map_err(|error| error.to_string())
    }

    #[test]
    fn a_table_names_its_columns() {
        assert_eq!(table("inputs\na\n\"b, c\"\n").unwrap(), json!({"inputs": ["a", "b, c"]}));
        assert_eq!(
            table("context,question\nhere,where?").unwrap(),
            json!({"inputs": [{"context": "here", "question": "where?"}]})
        );
        for wrong in ["a\nb", "", "inputs,candidate_labels\na,b"] {
            assert!(table(wrong).unwrap_err().contains("first row"), "{wrong}");
        }
    }

    #[tokio::test]
    async fn lines_are_inputs_of_one_request() {
        assert_eq!(lines("\"a\"\n\n\"b\"").await.unwrap(), json!({"inputs": ["a", "b"]}));
        let pairs = "{\"question\":\"q\",\"context\":\"c\"}\n";
        assert_eq!(
            lines(pairs).await.unwrap(),
            json!({"inputs": [{"question": "q", "context": "c"}]})
        );
        let with = "{\"inputs\":\"a\",\"parameters\":{\"top_k\":2}}\n{\"inputs\":\"b\"}";
        assert_eq!(
            lines(with).await.unwrap(),
            json!({"parameters": {"top_k": 2}, "inputs": ["a", "b"]})
        );
        let other = "{\"inputs\":\"a\"}\n{\"inputs\":\"b\",\"parameters\":{}}";
        assert!(lines(other).await.unwrap_err().contains("line 2 differs"));
        assert!(lines("").await.is_err());
        assert!(lines("{\"a\":1,\"a\":2}").await.unwrap_err().contains("line 1"));
    }
}
