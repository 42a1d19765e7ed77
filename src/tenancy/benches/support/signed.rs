//! A request as boto3 signs it, at a time that stands still.

use std::time::{Duration, SystemTime};

use aws_lc_rs::{digest, hmac};
use http::{HeaderMap, HeaderValue};

const NOW: u64 = 1_795_262_700;
const DATE: &str = "20261121T120500Z";
const SIGNED: &str = "accept;content-type;host;x-amz-date;x-amzn-sagemaker-target-model";

/// The time at which it was signed.
pub(crate) fn clock() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A body's digest, as it is signed.
pub(crate) fn hash(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Headers as boto3 sends them, signed over a body.
pub(crate) fn signed(id: &str, secret: &str, body: &[u8]) -> HeaderMap {
    let headers = [
        ("accept", "application/json"),
        ("content-type", "application/json"),
        ("host", "127.0.0.1:8080"),
        ("x-amz-date", DATE),
        ("x-amzn-sagemaker-target-model", "acme/chat-v7/"),
    ];
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let canonical =
        format!("POST\n/endpoints/demo/invocations\n\n{lines}\n{SIGNED}\n{}", hash(body));
    let scope = "20261121/eu-central-1/sagemaker/aws4_request";
    let text = format!("AWS4-HMAC-SHA256\n{DATE}\n{scope}\n{}", hash(canonical.as_bytes()));
    let key = scope.split('/').fold(format!("AWS4{secret}").into_bytes(), |key, part| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        hmac::sign(&key, part.as_bytes()).as_ref().to_vec()
    });
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), text.as_bytes());
    let value = format!(
        "AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={SIGNED}, Signature={}",
        hex(signature.as_ref())
    );
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(name, HeaderValue::from_static(value));
    }
    map.insert("authorization", value.parse().expect("a header's value"));
    map
}
