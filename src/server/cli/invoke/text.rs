//! Finds what a model said in an answer, whole or streamed.

use serde_json::Value;

use crate::cli::client::error_body;
use crate::error::Error;

/// The generated text of a whole answer: `{"generated_text"}` or a list with one.
pub(super) fn of_answer(answer: &Value) -> Option<String> {
    let object = match answer {
        Value::Array(answers) if answers.len() == 1 => &answers[0],
        other => other,
    };
    object.get("generated_text")?.as_str().map(str::to_owned)
}

/// Splits a streamed answer into lines and finds the text in each: server-sent events
/// (`data: {…}`) and bare JSON lines, as LMI, TGI and OpenAI spell them.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<u8>);

impl Lines {
    /// Adds bytes as they come; gives the text, or the error, of every line that ended.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Result<String, Error>> {
        self.0.extend_from_slice(bytes);
        let Some(end) = self.0.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let whole: Vec<u8> = self.0.drain(..=end).collect();
        whole.split(|byte| *byte == b'\n').filter_map(of_line).collect()
    }

    /// The text of a last line without an end.
    pub(super) fn finish(&mut self) -> Option<Result<String, Error>> {
        of_line(&std::mem::take(&mut self.0))
    }
}

fn of_line(line: &[u8]) -> Option<Result<String, Error>> {
    let line = line.trim_ascii();
    let line = line.strip_prefix(b"data:").unwrap_or(line);
    let event: Value = serde_json::from_slice(line).ok()?;
    if event.get("error").is_some_and(|error| !error.is_null()) {
        let (kind, message) = error_body(&event.to_string());
        // Once a stream has begun, its status was 200; this is what SageMaker means by it.
        return Some(Err(Error::Refused { status: 424, kind, message }));
    }
    let choice = &event["choices"][0];
    let said = [&event["token"]["text"], &choice["delta"]["content"], &choice["text"]];
    // Special tokens are marks of the model's, not part of what it says.
    if event["token"]["special"] == Value::Bool(true) {
        return Some(Ok(String::new()));
    }
    let text = said.into_iter().find_map(Value::as_str);
    let is_event = ["token", "choices"].iter().any(|key| event.get(key).is_some());
    // A whole answer: the model does not stream.
    let text = text.map(str::to_owned).or_else(|| of_answer(&event));
    text.or_else(|| is_event.then(String::new)).map(Ok)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_is_found_whole_and_streamed_in_every_spelling() {
        assert_eq!(of_answer(&json!([{"generated_text": "a"}])).as_deref(), Some("a"));
        assert_eq!(of_answer(&json!({"generated_text": "b"})).as_deref(), Some("b"));
        assert_eq!(of_answer(&json!([[0.1]])), None);
        let stream = "data: {\"token\":{\"text\":\"a\",\"special\":false}}\n\n\
            : comment\n\
            {\"token\":{\"id\":1,\"text\":\"b\"}}\n\
            data:{\"token\":{\"text\":\"</s>\",\"special\":true},\"generated_text\":\"ab\"}\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"é\"}}]}\n\
            data: {\"choices\":[{\"text\":\"d\"}]}\ndata: [DONE]";
        for size in 1..20 {
            let mut lines = Lines::default();
            let mut said = String::new();
            for piece in stream.as_bytes().chunks(size) {
                lines.push(piece).into_iter().for_each(|text| said.push_str(&text.unwrap()));
            }
            assert!(lines.finish().is_none());
            assert_eq!(said, "abéd");
        }
    }

    #[test]
    fn what_is_no_text_is_not_understood_and_an_event_without_one_is() {
        let told = |line: &str| Lines::default().push(line.as_bytes()).len();
        assert_eq!([told("[0.5, 0.25]\n"), told("{\"label\": \"a\"}\n"), told(": \n\n")], [0; 3]);
        let event = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n";
        assert_eq!((told(event), told("{\"token\":{\"special\":true}}\n")), (1, 1));
    }

    #[test]
    fn an_error_in_a_stream_is_an_error() {
        let mut lines = Lines::default();
        let said =
            lines.push(b"data: {\"error\":{\"message\":\"gone\",\"kind\":\"ModelFailed\"}}\n");
        assert_eq!(said.len(), 1);
        assert!(said[0].as_ref().unwrap_err().to_string().contains("gone"));
    }
}
