//! Reads request bodies within bounds of size, time and number of pieces.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, header};
use roundhouse_types::{ErrorKind, Failure};

use crate::error::Error;
use crate::layers::Notes;
use crate::state::GatewayConfig;

/// Pieces of one body at most. Six mebibytes over the smallest usual packets are some 4,500;
/// a million one-byte chunks are an attack.
const PIECES_MAX: usize = 65_536;
/// Room taken before the first byte is here, whatever `Content-Length` promises.
const FIRST_ROOM: usize = 64 * 1024;
/// How much of an oversized body is read and thrown away, as a multiple of the limit: a
/// client that is still sending when the connection closes never sees the 413.
const DRAIN_FACTOR: usize = 4;
/// How long that may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What a request's body is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Media {
    /// JSON, or nothing said.
    Json,
    /// JSON texts on lines of their own.
    Lines,
    /// A table with a header.
    Csv,
    /// An array as numpy stores it.
    Npy,
    /// The whole body is one text.
    Text,
}

/// What the `Content-Type` says the body is.
///
/// # Errors
/// `UnsupportedMediaType`, with the type; also for any content coding.
pub(crate) fn media(headers: &HeaderMap) -> Result<Media, Error> {
    let unsupported = |what: &str, value: &HeaderValue| {
        let shown = String::from_utf8_lossy(value.as_bytes());
        let message = format!(
            "{what} {shown} is not what this model reads: send application/json, \
             application/jsonlines, text/csv, text/plain or application/x-npy without a coding \
             (only Python handlers take other bodies)"
        );
        Error::Failed(Failure::new(ErrorKind::UnsupportedMediaType, message))
    };
    if let Some(coding) = coding(headers) {
        return Err(unsupported("content encoding", coding));
    }
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(Media::Json);
    };
    let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
    let essence = text.split(';').next().unwrap_or_default().trim();
    match essence {
        "" if value.is_empty() => Ok(Media::Json),
        "application/json" => Ok(Media::Json),
        "application/jsonlines"
        | "application/x-jsonlines"
        | "application/jsonl"
        | "application/x-ndjson"
        | "application/ndjson" => Ok(Media::Lines),
        "text/csv" => Ok(Media::Csv),
        "text/plain" => Ok(Media::Text),
        "application/x-npy" => Ok(Media::Npy),
        other if other.starts_with("application/") && other.ends_with("+json") => Ok(Media::Json),
        _ => Err(unsupported("content type", value)),
    }
}

/// Refuses what is not JSON, where a route's bodies are nothing else.
///
/// # Errors
/// `UnsupportedMediaType`, with the type.
pub(crate) fn only_json(headers: &HeaderMap) -> Result<(), Error> {
    let said = match coding(headers) {
        Some(coding) => ("content encoding", coding),
        None if media(headers).is_ok_and(|media| media == Media::Json) => return Ok(()),
        None => match headers.get(header::CONTENT_TYPE) {
            Some(value) => ("content type", value),
            None => return Ok(()),
        },
    };
    let (what, value) = (said.0, String::from_utf8_lossy(said.1.as_bytes()));
    let message =
        format!("{what} {value} is not read on this route: send application/json without a coding");
    Err(Failure::new(ErrorKind::UnsupportedMediaType, message).into())
}

/// What the body is coded with beside its type.
fn coding(headers: &HeaderMap) -> Option<&HeaderValue> {
    let coding = headers.get(header::CONTENT_ENCODING)?;
    (!coding.as_bytes().eq_ignore_ascii_case(b"identity")).then_some(coding)
}

/// Reads the whole body.
///
/// # Errors
/// `PayloadTooLarge` above the limit, `SlowBody` past the time, `InvalidRequest` where the
/// client left or sent it in absurdly many pieces.
pub(crate) async fn read(
    request: Request,
    config: &GatewayConfig,
    notes: &Notes,
) -> Result<Bytes, Error> {
    let (parts, body) = request.into_parts();
    take(&parts.headers, body, config, notes).await
}

/// As [`read`], with the request in parts.
///
/// # Errors
/// As [`read`].
pub(crate) async fn take(
    headers: &HeaderMap,
    body: Body,
    config: &GatewayConfig,
    notes: &Notes,
) -> Result<Bytes, Error> {
    let limit = config.body_limit.as_usize();
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > config.body_limit.0) {
        discard(body, limit).await;
        return Err(too_large(limit));
    }
    match tokio::time::timeout(config.body_timeout, gather(body, limit, declared)).await {
        Err(_) => Err(Error::SlowBody(config.body_timeout)),
        Ok(Err(error)) => Err(error),
        Ok(Ok(bytes)) => {
            notes.read(bytes.len() as u64);
            Ok(bytes)
        }
    }
}

async fn gather(body: Body, limit: usize, declared: Option<u64>) -> Result<Bytes, Error> {
    let mut pieces = body.into_data_stream();
    let told = declared.map_or(FIRST_ROOM, |length| usize::try_from(length).unwrap_or(FIRST_ROOM));
    let mut whole = BytesMut::new();
    // A body in one piece, as one that was read for its signature, is not copied.
    let mut only: Option<Bytes> = None;
    let (mut count, mut length) = (0_usize, 0_usize);
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| Error::request("the request body was cut off"))?;
        length = length.saturating_add(piece.len());
        if length > limit {
            drop((whole, only));
            discard(Body::from_stream(pieces), limit).await;
            return Err(too_large(limit));
        }
        count += 1;
        if count > PIECES_MAX {
            let message = format!("the request body came in more than {PIECES_MAX} pieces");
            return Err(Error::request(message));
        }
        if count == 1 {
            only = Some(piece);
            continue;
        }
        if let Some(first) = only.take() {
            whole.reserve(FIRST_ROOM.min(limit).min(told).max(first.len()));
            whole.extend_from_slice(&first);
        }
        whole.extend_from_slice(&piece);
    }
    Ok(only.unwrap_or_else(|| whole.freeze()))
}

/// Reads on and throws away, within bounds, so that the answer can reach the client.
pub(crate) async fn discard(body: Body, limit: usize) {
    let allowance = limit.saturating_mul(DRAIN_FACTOR);
    let mut pieces = body.into_data_stream();
    let reading = async {
        let mut total = 0_usize;
        while let Some(Ok(piece)) = pieces.next().await {
            total = total.saturating_add(piece.len());
            if total > allowance {
                break;
            }
        }
    };
    // Past the time the connection is closed with what it holds.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, reading).await;
}

fn too_large(limit: usize) -> Error {
    let message = format!("the request body is larger than {limit} bytes");
    Error::Failed(Failure::new(ErrorKind::PayloadTooLarge, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media_of(value: &'static str) -> Result<Media, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
        media(&headers)
    }

    #[test]
    fn media_types_are_read_without_their_parameters() {
        assert_eq!(media(&HeaderMap::new()).unwrap(), Media::Json);
        assert_eq!(media_of("Application/JSON; charset=utf-8").unwrap(), Media::Json);
        assert_eq!(media_of("application/vnd.x+json").unwrap(), Media::Json);
        assert_eq!(media_of("text/plain;charset=utf-8").unwrap(), Media::Text);
        assert_eq!(media_of("text/csv; header=present").unwrap(), Media::Csv);
        assert_eq!(media_of("application/jsonlines").unwrap(), Media::Lines);
        assert_eq!(media_of("application/x-npy").unwrap(), Media::Npy);
        for other in ["image/png", "application/octet-stream", "multipart/form-data"] {
            let error = media_of(other).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsupportedMediaType, "{other}");
        }
    }

    #[test]
    fn a_route_of_json_alone_recommends_nothing_else() {
        for other in ["application/x-www-form-urlencoded", "text/csv"] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(other));
            let error = only_json(&headers).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsupportedMediaType, "{other}");
            let want = format!(
                "content type {other} is not read on this route: send application/json without a coding"
            );
            assert_eq!(error.to_string(), want);
        }
        let mut headers = HeaderMap::new();
        assert!(only_json(&headers).is_ok());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        assert!(only_json(&headers).is_ok());
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(only_json(&headers).is_err());
    }

    #[test]
    fn a_compressed_body_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert_eq!(media(&headers).unwrap_err().kind(), ErrorKind::UnsupportedMediaType);
    }
}
