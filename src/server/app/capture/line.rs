//! One captured request as a line of JSON, in SageMaker's words.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use roundhouse_gateway::{Captured, Payload};
use roundhouse_tenancy::rfc3339_seconds;
use serde_json::{Map, Value, json};

use crate::config::CaptureConfig;

/// The line, with its end.
pub(super) fn write(captured: &Captured, config: &CaptureConfig) -> Vec<u8> {
    let mut data = Map::new();
    if let Some(input) = &captured.input {
        data.insert("endpointInput".into(), side(input, "INPUT", config));
    }
    if let Some(output) = &captured.output {
        data.insert("endpointOutput".into(), side(output, "OUTPUT", config));
    }
    let mut event = json!({
        "eventId": captured.id.to_string(),
        "inferenceTime": rfc3339_seconds(captured.time),
    });
    if let Some(id) = &captured.inference_id {
        event["inferenceId"] = id.as_str().into();
    }
    let line = json!({"captureData": data, "eventMetadata": event, "eventVersion": "0"});
    let mut line = line.to_string().into_bytes();
    line.push(b'\n');
    line
}

fn side(payload: &Payload, mode: &str, config: &CaptureConfig) -> Value {
    let declared = payload.content_type.as_deref().unwrap_or_default();
    let essence = declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let mut side = json!({"observedContentType": declared, "mode": mode});
    let named = if config.csv_content_types.contains(&essence) {
        Some("CSV")
    } else if config.json_content_types.contains(&essence) {
        Some("JSON")
    } else {
        None
    };
    let Some(data) = &payload.data else {
        side["encoding"] = named.unwrap_or("BASE64").into();
        side["redacted"] = true.into();
        return side;
    };
    let text = named.and_then(|name| Some((name, text(data, payload.is_cut)?)));
    let (encoding, data) = match text {
        Some((name, text)) => (name, text.to_owned()),
        None => ("BASE64", STANDARD.encode(data)),
    };
    side["data"] = data.into();
    side["encoding"] = encoding.into();
    if payload.is_cut {
        side["truncated"] = true.into();
    }
    side
}

/// The bytes as text; where they were cut, without the beginning of a last character.
fn text(data: &[u8], is_cut: bool) -> Option<&str> {
    match std::str::from_utf8(data) {
        Ok(text) => Some(text),
        Err(error) if is_cut && error.error_len().is_none() => {
            std::str::from_utf8(&data[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::config::Config;

    fn config() -> CaptureConfig {
        let text = "version = 1\n[[endpoint]]\nname = \"e\"\n[endpoint.capture]\n\
                    destination = \"s3://b/\"\n[[endpoint.mount]]\nuri = \"s3://m/\"\n";
        let config = Config::parse(Some(text), &|_| None, &Default::default()).unwrap();
        config.endpoints[0].capture.clone().unwrap()
    }

    fn payload(content_type: &str, data: &'static [u8], is_cut: bool) -> Payload {
        let data = Some(Bytes::from_static(data));
        Payload { content_type: Some(content_type.into()), data, is_cut }
    }

    #[test]
    fn texts_are_text_and_all_else_is_base64() {
        let config = config();
        let said = |payload: &Payload| {
            let side = side(payload, "INPUT", &config);
            (side["encoding"].as_str().unwrap().to_owned(), side["data"].clone())
        };
        let json = payload("Application/JSON; charset=utf-8", b"{\"a\":1}", false);
        assert_eq!(said(&json), ("JSON".into(), "{\"a\":1}".into()));
        assert_eq!(said(&payload("text/csv", b"1,2\n", false)), ("CSV".into(), "1,2\n".into()));
        assert_eq!(said(&payload("image/png", b"\x89P", false)), ("BASE64".into(), "iVA=".into()));
        // What says it is text and is not is not written as such; what was cut within a character is.
        assert_eq!(said(&payload("text/csv", b"\xff", false)), ("BASE64".into(), "/w==".into()));
        assert_eq!(said(&payload("text/csv", b"a\xc3", true)), ("CSV".into(), "a".into()));
        assert_eq!(said(&payload("text/csv", b"a\xc3", false)), ("BASE64".into(), "YcM=".into()));
    }

    #[test]
    fn what_is_redacted_says_only_that_it_was() {
        let redacted = Payload { data: None, ..payload("text/csv", b"", false) };
        let side = side(&redacted, "OUTPUT", &config());
        let want = json!({
            "observedContentType": "text/csv", "mode": "OUTPUT", "encoding": "CSV", "redacted": true,
        });
        assert_eq!(side, want);
    }
}
