//! AWS event-stream messages.
//!
//! A message is: total length and header length (u32 each, big-endian), the CRC-32 of these
//! eight bytes, headers, payload, the CRC-32 of everything before it. A header is: name
//! length (u8), name, value type 7 (a string), value length (u16), value.

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderValue;
use roundhouse_types::ErrorKind;
use serde_json::json;

use crate::error::{Error, Face};

/// The stream's media type.
pub(crate) const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/vnd.amazon.eventstream");

/// The type of a message that brings a piece of the answer.
const PART: &str = "PayloadPart";
/// Payload of one message at most; botocore refuses those of 24 MiB.
const PART_MAX: usize = 16 * 1024 * 1024;
/// The only header value type we write.
const STRING: u8 = 7;
/// Lengths and checksums around headers and payload.
const OVERHEAD: usize = 16;

/// A `PayloadPart` with these bytes.
pub(crate) fn part(payload: &[u8]) -> Bytes {
    let headers = [
        (":message-type", "event"),
        (":event-type", PART),
        (":content-type", "application/octet-stream"),
    ];
    message(&headers, payload)
}

/// What a message of ours holds, where it is a part.
pub(crate) fn payload(message: &Bytes) -> Option<Bytes> {
    let headers = u32::from_be_bytes(message.get(4..8)?.try_into().ok()?);
    let (start, end) = (12 + usize::try_from(headers).ok()?, message.len().checked_sub(4)?);
    let is_part = message.get(12..start)?.windows(PART.len()).any(|at| at == PART.as_bytes());
    (is_part && start <= end).then(|| message.slice(start..end))
}

/// The same in as few parts as may be; a character of UTF-8 is in one of them.
pub(crate) fn parts(mut payload: &[u8]) -> Vec<Bytes> {
    let mut parts = Vec::with_capacity(payload.len() / PART_MAX + 1);
    loop {
        let mut end = payload.len().min(PART_MAX);
        if end < payload.len() {
            // A character has three bytes behind its first at most; in other bytes nothing is lost.
            let inner = |at: &usize| payload[*at] & 0b1100_0000 == 0b1000_0000;
            end = (end - 3..=end).rev().find(|at| !inner(at)).unwrap_or(end);
        }
        parts.push(part(&payload[..end]));
        payload = &payload[end..];
        if payload.is_empty() {
            return parts;
        }
    }
}

/// The message that ends a failed stream. Its types are the only two that boto3 knows.
pub(crate) fn exception(error: &Error) -> Bytes {
    // The text, cut to its limit, as every other face says it.
    let said = error.object(Face::Container);
    let text = said["message"].as_str().unwrap_or_default();
    let (name, payload) = match error.kind() {
        ErrorKind::Internal => ("InternalStreamFailure", json!({"Message": text})),
        ErrorKind::TimedOut => (
            "ModelStreamError",
            json!({"Message": text, "ErrorCode": "ModelInvocationTimeExceeded"}),
        ),
        _ => ("ModelStreamError", json!({"Message": text, "ErrorCode": "StreamBroken"})),
    };
    exception_message(name, payload.to_string().as_bytes())
}

fn exception_message(name: &str, payload: &[u8]) -> Bytes {
    let headers = [
        (":message-type", "exception"),
        (":exception-type", name),
        (":content-type", "application/json"),
    ];
    message(&headers, payload)
}

fn message(headers: &[(&str, &str)], payload: &[u8]) -> Bytes {
    let header_length: usize =
        headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    let total = OVERHEAD + header_length + payload.len();
    let length = |count: usize| u32::try_from(count).expect("events are far below 4 GiB");
    let mut out = BytesMut::with_capacity(total);
    out.put_u32(length(total));
    out.put_u32(length(header_length));
    out.put_u32(crc32fast::hash(&out));
    for (name, value) in headers {
        out.put_u8(u8::try_from(name.len()).expect("our header names are short"));
        out.put_slice(name.as_bytes());
        out.put_u8(STRING);
        out.put_u16(u16::try_from(value.len()).expect("our header values are short"));
        out.put_slice(value.as_bytes());
    }
    out.put_slice(payload);
    out.put_u32(crc32fast::hash(&out));
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn only_parts_have_a_payload() {
        assert_eq!(payload(&part("é".as_bytes())).unwrap(), "é");
        let error = Error::internal("PayloadPart");
        assert_eq!(payload(&exception(&error)), None);
        assert_eq!(payload(&Bytes::from_static(b"none")), None);
    }

    #[test]
    fn long_payloads_are_cut_between_characters() {
        for before in 0..4 {
            let text = format!("{}{}", "a".repeat(PART_MAX - before), "€𝄞".repeat(9));
            let parts = parts(text.as_bytes());
            assert_eq!(parts.len(), 2);
            let payload = |message: &Bytes| {
                let headers = u32::from_be_bytes(message[4..8].try_into().unwrap()) as usize;
                String::from_utf8(message[12 + headers..message.len() - 4].to_vec()).unwrap()
            };
            assert_eq!(payload(&parts[0]) + &payload(&parts[1]), text);
        }
        assert_eq!(parts(b"").len(), 1);
        assert_eq!(parts(&vec![0x80; PART_MAX + 1]).len(), 2);
    }

    #[test]
    fn messages_are_those_that_botocore_reads() {
        // Both were fed to botocore and read back as intended.
        assert_eq!(
            hex(&part(b"{\"t\":1}\n")),
            "0000007100000059b327ff460d3a6d6573736167652d747970650700056576656e740b3a6576656e74\
             2d7479706507000b5061796c6f6164506172740d3a636f6e74656e742d747970650700186170706c69\
             636174696f6e2f6f637465742d73747265616d7b2274223a317d0ae12b324b"
                .replace(' ', "")
        );
        let payload = br#"{"Message": "worker died", "ErrorCode": "ModelInvocationTimeExceeded"}"#;
        assert_eq!(
            hex(&exception_message("ModelStreamError", payload)),
            "000000b40000005e0cb60d4e0d3a6d6573736167652d74797065070009657863657074696f6e0f3a65\
             7863657074696f6e2d747970650700104d6f64656c53747265616d4572726f720d3a636f6e74656e74\
             2d747970650700106170706c69636174696f6e2f6a736f6e7b224d657373616765223a2022776f726b\
             65722064696564222c20224572726f72436f6465223a20224d6f64656c496e766f636174696f6e5469\
             6d654578636565646564227de0140fd3"
        );
    }
}
