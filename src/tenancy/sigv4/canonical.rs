//! The canonical request: one text for all spellings of a request.

use std::borrow::Cow;

use http::{HeaderMap, Method};

use super::Message;
use crate::denied::Denied;

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// The canonical request with everything but the hash of the body, which follows it. `query` is
/// canonical already.
pub(super) fn request(
    method: &Method,
    uri_path: &str,
    query: &str,
    message: &Message<'_>,
    signed: &str,
) -> Result<Vec<u8>, Denied> {
    let mut text = Vec::with_capacity(512);
    text.extend_from_slice(method.as_str().as_bytes());
    text.push(b'\n');
    path(uri_path, &mut text);
    text.push(b'\n');
    text.extend_from_slice(query.as_bytes());
    text.push(b'\n');
    for name in signed.split(';') {
        header(message, name, &mut text)?;
    }
    text.push(b'\n');
    text.extend_from_slice(signed.as_bytes());
    text.push(b'\n');
    Ok(text)
}

/// The path without empty, `.` and `..` segments, percent-encoded although it is already.
fn path(path: &str, into: &mut Vec<u8>) {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            segment => kept.push(segment),
        }
    }
    for segment in &kept {
        into.push(b'/');
        encode(segment.as_bytes(), into);
    }
    if kept.is_empty() || path.ends_with('/') {
        into.push(b'/');
    }
}

/// One header: its name, and its values as they were sent, with blanks trimmed and joined.
fn header(message: &Message<'_>, name: &str, into: &mut Vec<u8>) -> Result<(), Denied> {
    into.extend_from_slice(name.as_bytes());
    let mut values = message.headers.get_all(name).iter();
    let first = match (values.next(), name) {
        (Some(value), _) => value.as_bytes(),
        // HTTP/2 says it in the address.
        (None, "host") => match message.uri.authority() {
            Some(authority) => authority.as_str().as_bytes(),
            None => return Err(Denied::mismatch()),
        },
        (None, _) => return Err(Denied::mismatch()),
    };
    into.push(b':');
    squeeze(first, into);
    for value in values {
        into.push(b',');
        squeeze(value.as_bytes(), into);
    }
    into.push(b'\n');
    Ok(())
}

/// Blanks within become one space, those around none.
fn squeeze(value: &[u8], into: &mut Vec<u8>) {
    let words = value.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    for (index, word) in words.enumerate() {
        if index > 0 {
            into.push(b' ');
        }
        into.extend_from_slice(word);
    }
}

/// The parameters of a query, decoded, in the order in which they came. A `+` is a plus.
pub(crate) fn parameters(query: &str) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

/// Parameters in canonical order and spelling.
pub(super) fn query<'a>(
    parameters: impl Iterator<Item = (Cow<'a, [u8]>, Cow<'a, [u8]>)>,
) -> String {
    let spelt = |bytes: &[u8]| {
        let mut text = Vec::with_capacity(bytes.len());
        encode(bytes, &mut text);
        String::from_utf8(text).expect("what is percent-encoded is ASCII")
    };
    let mut pairs: Vec<(String, String)> =
        parameters.map(|(name, value)| (spelt(&name), spelt(&value))).collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
fn encode(bytes: &[u8], into: &mut Vec<u8>) {
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                into.push(*byte);
            }
            _ => into.extend_from_slice(&[
                b'%',
                HEX[usize::from(byte >> 4)],
                HEX[usize::from(byte & 15)],
            ]),
        }
    }
}

/// Undoes percent-encoding; a `%` that begins none stays.
fn decode(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let (bytes, mut decoded, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| Some((digit(bytes.get(at + 1))?, digit(bytes.get(at + 2))?)))
            .flatten();
        match escaped {
            Some((high, low)) => {
                decoded.push(u8::try_from(high << 4 | low).unwrap_or_default());
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    Cow::Owned(decoded)
}

/// Whether each header that steers us is among the signed ones. `x-amzn-trace-id` is not one of
/// them: load balancers add it, and SDKs leave it out.
pub(super) fn unsigned<'h>(headers: &'h HeaderMap, signed: &str) -> Option<&'h str> {
    let steers = |name: &str| {
        ["x-amz-", "x-amzn-sagemaker-", "x-roundhouse-"].iter().any(|it| name.starts_with(it))
    };
    headers
        .keys()
        .map(http::HeaderName::as_str)
        .find(|name| steers(name) && !signed.split(';').any(|it| it == *name))
}
