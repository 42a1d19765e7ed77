//! What an answer of S3 means.

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::Error;

/// What was asked, for messages.
pub(super) struct Context<'a> {
    pub(super) store: &'a str,
    pub(super) region: &'a str,
    pub(super) key: &'a str,
}

impl Context<'_> {
    /// Names what went wrong with a request for one object.
    pub(super) fn error<E>(&self, error: &SdkError<E, HttpResponse>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let code = error.code().unwrap_or_default();
        let text = error.message().unwrap_or_default();
        match error {
            SdkError::ServiceError(_) => {}
            SdkError::ResponseError(_) if status.is_some_and(|s| !(200..300).contains(&s)) => {}
            SdkError::TimeoutError(_) => {
                return self.unavailable("it did not answer in time".into());
            }
            _ => return self.no_answer(&chain(error)),
        }
        let header = |name| error.raw_response().and_then(|r| r.headers().get(name));
        let said = Said {
            status: status.unwrap_or_default(),
            code,
            text,
            region: header("x-amz-bucket-region"),
        };
        self.classify(&said)
    }

    /// The same for a listing, of which "not found" can only mean the bucket.
    pub(super) fn list_error<E>(&self, error: &SdkError<E, HttpResponse>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        match self.error(error) {
            Error::ObjectNotFound { store, .. } => {
                Error::NoSuchBucket { store, cause: error.code().unwrap_or("not found").to_owned() }
            }
            other => other,
        }
    }

    pub(super) fn classify(&self, said: &Said<'_>) -> Error {
        let (store, key) = (self.store.to_owned(), self.key.to_owned());
        let cause = said.cause();
        match (said.status, said.code) {
            (_, "NoSuchBucket") => Error::NoSuchBucket { store, cause },
            (
                _,
                "PermanentRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException",
            )
            | (301 | 307, _) => self.wrong_region(said),
            // A head has no body: the region beside a refusal is all it can say.
            (400, _) if said.region.is_some_and(|region| region != self.region) => {
                self.wrong_region(said)
            }
            (_, "InvalidObjectState") => Error::Archived { store, key },
            (_, code) if code.starts_with("KMS") => Error::KmsDenied { store, key, cause },
            (403, _) if said.text.to_ascii_lowercase().contains("kms") => {
                Error::KmsDenied { store, key, cause }
            }
            (
                _,
                "SlowDown"
                | "Throttling"
                | "ThrottlingException"
                | "RequestLimitExceeded"
                | "TooManyRequests",
            )
            | (429 | 503, _) => Error::Throttled { store, key },
            (_, "ExpiredToken" | "TokenRefreshRequired") => Error::NoCredentials { store, cause },
            (_, "NoSuchKey" | "NotFound") | (404, _) => Error::ObjectNotFound { store, key },
            (412 | 416, _) | (_, "PreconditionFailed" | "InvalidRange") => {
                Error::Changed { store, key }
            }
            (401 | 403, _) | (_, "NotSignedUp") => Error::AccessDenied { store, key, cause },
            (408 | 500.., _) | (_, "RequestTimeout" | "InternalError") => self.unavailable(cause),
            _ => Error::Refused { store, key, cause },
        }
    }

    fn wrong_region(&self, said: &Said<'_>) -> Error {
        // "...the region 'us-east-1' is wrong; expecting 'eu-west-1'"
        let in_text =
            said.text.split_once("expecting '").and_then(|(_, rest)| rest.split_once('\''));
        Error::WrongRegion {
            store: self.store.into(),
            configured: self.region.into(),
            expected: said.region.or(in_text.map(|(region, _)| region)).map(str::to_owned),
        }
    }

    /// Names what went wrong before there was an answer.
    fn no_answer(&self, text: &str) -> Error {
        let lower = text.to_ascii_lowercase();
        // The chain's errors have no public type at this height.
        if lower.contains("credentials") || lower.contains("failed to select an auth scheme") {
            return Error::NoCredentials { store: self.store.into(), cause: text.into() };
        }
        self.unavailable(text.into())
    }

    fn unavailable(&self, cause: String) -> Error {
        Error::Unavailable { store: self.store.into(), key: self.key.into(), cause }
    }

    pub(super) fn refused(&self, cause: &str) -> Error {
        Error::Refused { store: self.store.into(), key: self.key.into(), cause: cause.into() }
    }

    /// A size that an answer must carry.
    pub(super) fn size(&self, size: Option<i64>) -> Result<u64, Error> {
        size.and_then(|size| u64::try_from(size).ok())
            .ok_or_else(|| self.refused("it told no size"))
    }

    /// A tag that an answer must carry, without its quotes.
    pub(super) fn etag(&self, etag: Option<&str>) -> Result<String, Error> {
        etag.map(|etag| etag.trim_matches('"').to_owned())
            .filter(|etag| !etag.is_empty())
            .ok_or_else(|| self.refused("it told no etag"))
    }
}

/// An error's text and those of its sources, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// An error answer, taken apart.
pub(super) struct Said<'a> {
    pub(super) status: u16,
    pub(super) code: &'a str,
    pub(super) text: &'a str,
    pub(super) region: Option<&'a str>,
}

impl Said<'_> {
    fn cause(&self) -> String {
        match (self.code, self.text) {
            ("", "") => format!("status {}", self.status),
            (code, "") => format!("status {}, {code}", self.status),
            (code, text) => format!("status {}, {code}: {text}", self.status),
        }
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_types::ErrorKind;

    use super::*;

    fn classified(status: u16, code: &str, text: &str, region: Option<&str>) -> Error {
        let context = Context { store: "s3://bucket/", region: "us-east-1", key: "m/a" };
        context.classify(&Said { status, code, text, region })
    }

    #[test]
    fn each_refusal_has_an_error_of_its_own() {
        use Error as E;
        let denied = classified(403, "AccessDenied", "no s3:GetObject", None);
        assert!(
            matches!(denied, E::AccessDenied { .. }) && denied.kind() == ErrorKind::StoreDenied
        );
        let kms = "not authorized to perform: kms:Decrypt on resource";
        assert!(matches!(classified(403, "AccessDenied", kms, None), E::KmsDenied { .. }));
        assert!(matches!(classified(400, "KMS.DisabledException", "", None), E::KmsDenied { .. }));
        assert!(matches!(classified(404, "NoSuchBucket", "", None), E::NoSuchBucket { .. }));
        assert!(matches!(classified(403, "InvalidObjectState", "", None), E::Archived { .. }));
        assert!(matches!(classified(404, "", "", None), E::ObjectNotFound { .. }));
        assert!(matches!(classified(412, "", "", None), E::Changed { .. }));
        assert!(matches!(classified(503, "SlowDown", "", None), E::Throttled { .. }));
        assert!(matches!(classified(500, "InternalError", "", None), E::Unavailable { .. }));
        assert!(matches!(classified(400, "InvalidArgument", "", None), E::Refused { .. }));
    }

    #[test]
    fn a_wrong_region_names_the_right_one() {
        let expecting = "the region 'us-east-1' is wrong; expecting 'eu-west-1'";
        let cases = [
            (301, "PermanentRedirect", "", Some("eu-west-1")),
            (400, "AuthorizationHeaderMalformed", expecting, None),
            (400, "", "", Some("eu-west-1")),
            (301, "", "", Some("eu-west-1")),
        ];
        for (status, code, text, region) in cases {
            let error = classified(status, code, text, region);
            assert!(error.to_string().ends_with("it is in 'eu-west-1'"), "{error}");
        }
    }
}
