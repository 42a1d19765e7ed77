//! An answer that comes in pieces, in whatever it is wrapped.

/// What an answer's pieces are wrapped in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Server-sent events, the last of which says `[DONE]`.
    Events,
    /// SageMaker's event stream: frames that hold lines.
    Frames,
    /// Lines, until the body ends.
    Lines,
}

/// What a line says.
#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    End,
    Failure(String),
    Nothing,
}

/// The bytes of a frame around its headers and its payload: lengths and sums.
const FRAME: usize = 16;
/// Before its headers: lengths and their sum.
const PRELUDE: usize = 12;

/// Takes an answer in as it comes.
pub(crate) struct Reader {
    framing: Framing,
    /// Of a frame that is not whole yet.
    frame: Vec<u8>,
    /// Of a line that is not whole yet.
    line: Vec<u8>,
    done: bool,
}

impl Reader {
    pub(crate) fn new(framing: Framing) -> Self {
        Self { framing, frame: Vec::new(), line: Vec::new(), done: false }
    }

    /// The texts that have come whole with these bytes.
    ///
    /// # Errors
    /// What the server says went wrong.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<Vec<String>, String> {
        if self.framing == Framing::Frames {
            self.frame.extend_from_slice(bytes);
            while let Some(payload) = next_frame(&mut self.frame)? {
                self.line.extend_from_slice(&payload);
            }
        } else {
            self.line.extend_from_slice(bytes);
        }
        let mut texts = Vec::new();
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            texts.extend(self.text(&line)?);
        }
        Ok(texts)
    }

    /// What was left when the body ended.
    ///
    /// # Errors
    /// Where it was not the end.
    pub(crate) fn end(mut self) -> Result<Option<String>, String> {
        let last = std::mem::take(&mut self.line);
        let last = if last.is_empty() { None } else { self.text(&last)? };
        let is_whole = match self.framing {
            Framing::Events => self.done,
            Framing::Frames => self.frame.is_empty(),
            Framing::Lines => true,
        };
        if is_whole { Ok(last) } else { Err("the stream stopped before its end".into()) }
    }

    fn text(&mut self, line: &[u8]) -> Result<Option<String>, String> {
        match piece(&String::from_utf8_lossy(line), self.framing) {
            Piece::Text(text) => Ok(Some(text)),
            Piece::Failure(message) => Err(message),
            Piece::End => {
                self.done = true;
                Ok(None)
            }
            Piece::Nothing => Ok(None),
        }
    }
}

/// The payload of a whole frame, which is taken off; an exception is an error. Sums are the
/// business of other tests.
fn next_frame(bytes: &mut Vec<u8>) -> Result<Option<Vec<u8>>, String> {
    let number = |at: usize| {
        let field: Option<[u8; 4]> = bytes.get(at..at + 4).and_then(|it| it.try_into().ok());
        field.map(|it| u32::from_be_bytes(it) as usize)
    };
    let (Some(whole), Some(headers)) = (number(0), number(4)) else { return Ok(None) };
    if whole < FRAME + headers {
        return Err(format!("a frame of {whole} bytes with {headers} of headers"));
    }
    if bytes.len() < whole {
        return Ok(None);
    }
    let frame: Vec<u8> = bytes.drain(..whole).collect();
    let (names, payload) = frame[PRELUDE..whole - 4].split_at(headers);
    let names = String::from_utf8_lossy(names);
    if names.contains(":exception-type") || names.contains(":error-code") {
        return Err(String::from_utf8_lossy(payload).into_owned());
    }
    Ok(Some(payload.to_vec()))
}

fn piece(line: &str, framing: Framing) -> Piece {
    let line = line.trim();
    let data = match (line.strip_prefix("data:"), framing) {
        (Some(data), _) => data.trim(),
        // A comment, or another field of an event.
        (None, Framing::Events) => return Piece::Nothing,
        (None, _) => line,
    };
    if data == "[DONE]" {
        return Piece::End;
    }
    if data.is_empty() || data.starts_with(':') {
        return Piece::Nothing;
    }
    let Ok(event) = serde_json::from_str::<serde_json::Value>(data) else {
        return Piece::Text(data.to_owned());
    };
    if let Some(error) = event.get("error") {
        return Piece::Failure(error.to_string());
    }
    if let Some(text) = event["token"]["text"].as_str() {
        return Piece::Text(text.to_owned());
    }
    let choice = &event["choices"][0];
    let text = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str());
    // A token may be no text, or half a character: it counts as long as it is no end.
    match text {
        Some("") if choice["delta"].get("role").is_some() => Piece::Nothing,
        Some(text) if !text.is_empty() || choice["finish_reason"].is_null() => {
            Piece::Text(text.to_owned())
        }
        None if event.get("choices").is_none() && framing != Framing::Events => {
            Piece::Text(data.to_owned())
        }
        _ => Piece::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_both_kinds_of_completions_are_text() {
        let piece = |line: &str| piece(line, Framing::Events);
        let text = |it: &str| Piece::Text(it.into());
        assert_eq!(
            piece("data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":null}]}\n"),
            text("a")
        );
        assert_eq!(piece("data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\r\n"), text("b"));
        let role = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}";
        assert_eq!(piece(role), Piece::Nothing);
        let last = "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}]}";
        assert_eq!(piece(last), Piece::Nothing);
        assert_eq!(piece("data: [DONE]"), Piece::End);
        assert_eq!(piece(": a comment"), Piece::Nothing);
        assert!(matches!(piece("data: {\"error\":{\"message\":\"no\"}}"), Piece::Failure(_)));
    }

    /// A frame with one header of text; its sums are zero.
    fn frame(header: &str, payload: &str) -> Vec<u8> {
        let mut names = vec![u8::try_from(header.len()).unwrap()];
        names.extend(header.bytes());
        names.extend([7, 0, 1, b'x']);
        let whole = u32::try_from(FRAME + names.len() + payload.len()).unwrap();
        let mut bytes = whole.to_be_bytes().to_vec();
        bytes.extend(u32::try_from(names.len()).unwrap().to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(names);
        bytes.extend(payload.bytes());
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn frames_are_put_together_however_they_come() {
        let mut all = frame(":event-type", "{\"token\":{\"text\":\"a\"}}\n");
        all.extend(frame(
            ":event-type",
            "{\"token\":{\"text\":\"b\"},\"generated_text\":\"ab\"}\n",
        ));
        for size in [1, 7, all.len()] {
            let (mut reader, mut texts) = (Reader::new(Framing::Frames), Vec::new());
            for part in all.chunks(size) {
                texts.extend(reader.take(part).unwrap());
            }
            assert_eq!((texts.concat(), reader.end()), ("ab".to_owned(), Ok(None)));
        }
        let mut reader = Reader::new(Framing::Frames);
        reader.take(&all[..all.len() - 3]).unwrap();
        assert!(reader.end().is_err(), "it was cut");
        let failed = frame(":exception-type", "{\"Message\":\"no\"}");
        assert!(Reader::new(Framing::Frames).take(&failed).unwrap_err().contains("no"));
    }

    #[test]
    fn lines_end_with_the_body_and_events_with_their_word() {
        let mut reader = Reader::new(Framing::Lines);
        assert_eq!(reader.take(b"{\"token\":{\"text\":\"a\"}}\nplai").unwrap(), ["a"]);
        assert_eq!(reader.end(), Ok(Some("plai".into())));
        let mut reader = Reader::new(Framing::Events);
        let event = b"data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":null}]}\n\n";
        assert_eq!(reader.take(event).unwrap(), ["a"]);
        assert!(reader.end().is_err());
        let mut reader = Reader::new(Framing::Events);
        reader.take(event).unwrap();
        reader.take(b"data: [DONE]\n\n").unwrap();
        assert_eq!(reader.end(), Ok(None));
    }
}
