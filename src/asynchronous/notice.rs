//! What those who are told of a request's end are sent: SageMaker's message, in the envelope in which
//! SNS delivers it over HTTP.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::spool::{Decided, Entry};

/// The most of an object that a notice carries: SageMaker's 128 KB. In base64 it is 171 KiB, and SNS
/// takes messages of up to 256 KiB.
pub(crate) const INCLUDED_MOST: usize = 128 * 1024;
/// The header of a request that says what its answer shall be written in.
const ACCEPT: &str = "accept";

/// A notice that is ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Notice {
    /// What SNS calls the message: the same each time that it is sent.
    pub(crate) id: Uuid,
    /// SageMaker's message, which SNS puts into an envelope.
    pub(crate) message: String,
    /// The whole body, with an envelope like it.
    pub(crate) body: Value,
}

/// The notice of a request's end, with what its object holds where that is to be told. `at` is when it
/// is told.
pub(crate) fn notice(
    entry: &Entry,
    decided: &Decided,
    object: Option<&[u8]>,
    at: SystemTime,
) -> Notice {
    let message = message(entry, decided, object).to_string();
    let body = json!({
        "Type": "Notification",
        "MessageId": entry.id.to_string(),
        "TopicArn": format!(
            "arn:roundhouse:sns:::{}-{}",
            entry.endpoint,
            if decided.failure.is_none() { "success" } else { "error" },
        ),
        "Message": message,
        "Timestamp": iso(at),
    });
    Notice { id: entry.id, message, body }
}

/// SageMaker's own words, as its guide to asynchronous inference shows them, and what it sends for
/// `IncludeInferenceResponseIn`, which is in no guide: those who read it look for these members.
fn message(entry: &Entry, decided: &Decided, object: Option<&[u8]>) -> Value {
    let mut request = json!({"endpointName": entry.endpoint});
    let accept = entry.headers.iter().find(|(name, _)| name == ACCEPT);
    if let Some(Ok(accept)) = accept.map(|(_, value)| std::str::from_utf8(value)) {
        request["accept"] = json!(accept);
    }
    if let Some(content_type) = &entry.content_type {
        request["contentType"] = json!(content_type);
    }
    if let Some(location) = &entry.input {
        request["inputLocation"] = json!(location);
    }
    let mut message = json!({
        "eventTime": iso(since(decided.at)),
        "receivedTime": iso(since(entry.accepted_at)),
        "invocationStatus": if decided.failure.is_none() { "Completed" } else { "Failed" },
        "requestParameters": request,
        "inferenceId": entry.inference_id,
        "eventVersion": "1.0",
        "eventSource": "aws:sagemaker",
        "eventName": "InferenceResult",
    });
    if let Some(region) = &entry.region {
        message["awsRegion"] = json!(region);
    }
    match &decided.failure {
        Some(reason) => message["failureReason"] = json!(reason),
        None => {
            message["responseParameters"] = json!({
                "contentType": decided.content_type,
                "outputLocation": entry.output,
            });
        }
    }
    if let Some(object) = object.filter(|object| object.len() <= INCLUDED_MOST) {
        message["responseBody"] = json!({
            "content": BASE64_STANDARD.encode(object),
            "message": "This is the whole object that is in the store.",
            "encoding": "BASE64",
        });
    }
    message
}

/// Milliseconds since 1970 as a time.
pub(crate) fn since(milliseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(milliseconds)
}

/// As in `2026-01-31T23:59:59.123Z`.
fn iso(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let milliseconds = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

/// The day of the Gregorian calendar so many days after 1970-01-01: years are counted from March, so
/// that the day that is added stands at the end (H. Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms").
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::entry;

    #[test]
    fn times_are_written_as_sagemaker_writes_them() {
        for (milliseconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_767_225_600_001, "2026-01-01T00:00:00.001Z"),
        ] {
            assert_eq!(iso(since(milliseconds)), text);
        }
    }

    #[test]
    fn a_notice_carries_sagemakers_message_as_a_string() {
        let entry = Entry {
            content_type: Some("text/csv".into()),
            input: Some("s3://b/in/x".into()),
            region: Some("eu-west-1".into()),
            headers: vec![("accept".into(), b"text/csv".to_vec())],
            ..entry("ep")
        };
        let answered = Decided {
            failure: None,
            expired: false,
            content_type: Some("application/json".into()),
            at: 1_000,
        };
        let notice = notice(&entry, &answered, None, since(2_000));
        assert_eq!(notice.body["Type"], "Notification");
        assert_eq!(notice.body["MessageId"], entry.id.to_string());
        let message: Value =
            serde_json::from_str(notice.body["Message"].as_str().unwrap()).unwrap();
        let expected = json!({
            "awsRegion": "eu-west-1",
            "eventTime": "1970-01-01T00:00:01.000Z",
            "receivedTime": iso(since(entry.accepted_at)),
            "invocationStatus": "Completed",
            "requestParameters": {
                "accept": "text/csv", "contentType": "text/csv", "endpointName": "ep",
                "inputLocation": "s3://b/in/x",
            },
            "responseParameters": {
                "contentType": "application/json", "outputLocation": entry.output,
            },
            "inferenceId": entry.inference_id,
            "eventVersion": "1.0",
            "eventSource": "aws:sagemaker",
            "eventName": "InferenceResult",
        });
        assert_eq!(message, expected);

        let failed = Decided { failure: Some("ClientError: no".into()), ..answered };
        let told = super::message(&entry, &failed, None);
        assert_eq!(told["invocationStatus"], "Failed");
        assert_eq!(told["failureReason"], "ClientError: no");
        assert!(told.get("responseParameters").is_none());
    }

    #[test]
    fn what_the_object_holds_is_told_where_it_is_small() {
        let decided = Decided { failure: None, expired: false, content_type: None, at: 0 };
        let told = |object: &[u8]| super::message(&entry("ep"), &decided, Some(object));
        let small = told(b"\xff\x00no text");
        assert_eq!(small["responseBody"]["encoding"], "BASE64");
        let content = small["responseBody"]["content"].as_str().unwrap();
        assert_eq!(BASE64_STANDARD.decode(content).unwrap(), b"\xff\x00no text");
        let most = told(&vec![b'x'; INCLUDED_MOST]);
        assert!(most["responseBody"].is_object());
        assert!(most.to_string().len() < 256 * 1024, "SNS takes it");
        assert!(told(&vec![b'x'; INCLUDED_MOST + 1]).get("responseBody").is_none());
    }
}
