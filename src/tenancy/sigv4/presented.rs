//! What a request carries of a signature, and whether its time and scope hold.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, Uri};

use super::{ALGORITHM, SERVICE, TERMINATOR, UNSIGNED, canonical, time};
use crate::denied::Denied;
use crate::text::unhex;

/// How far the date of a signed request may be off, in seconds: AWS's five minutes.
const WINDOW: i64 = 300;
/// The longest a presigned request holds: AWS's week.
const PRESIGNED_MOST: i64 = 604_800;
/// The longest a bearer form holds: AWS's twelve hours.
const BEARER_MOST: i64 = 43_200;
/// What the bearer form is a presigned request to.
const BEARER_HOST: &str = "sagemaker.amazonaws.com";
const BEARER_ACTION: &str = "CallWithBearerToken";
/// Bytes of a bearer form at most; one with a long session token has two thousand.
const BEARER_BYTES: usize = 8192;
/// Bytes of a credential scope at most, the key's id included: it is derived from and kept.
const CREDENTIAL_BYTES: usize = 256;

/// A signature as it was presented, its parts not yet believed.
pub(crate) struct Presented<'a> {
    /// `id/date/region/service/aws4_request`.
    pub(super) credential: Cow<'a, str>,
    /// `YYYYMMDDThhmmssZ`.
    pub(super) date: Cow<'a, str>,
    /// Names of headers, as in `host;x-amz-date`.
    pub(super) signed: Cow<'a, str>,
    pub(super) signature: [u8; 32],
    /// How long it holds, in seconds; absent in the header form, which has the window alone.
    expires: Option<i64>,
    /// Whether its signer left the body out.
    pub(super) unsigned_payload: bool,
    has_token: bool,
    pub(super) path: Cow<'a, str>,
    /// In canonical form, without the signature.
    pub(super) query: String,
}

impl<'a> Presented<'a> {
    /// The header form: `AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…`.
    pub(crate) fn header(
        value: &'a str,
        uri: &'a Uri,
        headers: &'a HeaderMap,
    ) -> Result<Self, Denied> {
        let rest = value.strip_prefix(ALGORITHM).unwrap_or_default();
        let (mut credential, mut signed, mut signature) = (None, None, None);
        for part in rest.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| {
                let message =
                    "a part is not a valid key=value pair (missing equal-sign) in Authorization header";
                Denied::Incomplete(message.to_owned())
            })?;
            match name {
                "Credential" => credential = Some(value),
                "SignedHeaders" => signed = Some(value),
                "Signature" => signature = Some(value),
                _ => {}
            }
        }
        let date = headers.get("x-amz-date").and_then(|date| date.to_str().ok());
        let (Some(credential), Some(signed), Some(signature), Some(date)) =
            (credential, signed, signature, date)
        else {
            let parts = [
                (credential.is_none(), "'Credential' parameter"),
                (signature.is_none(), "'Signature' parameter"),
                (signed.is_none(), "'SignedHeaders' parameter"),
                (date.is_none(), "existence of either a 'X-Amz-Date' or a 'Date' header"),
            ];
            let missing = parts.iter().filter(|(is_missing, _)| *is_missing);
            let words: Vec<String> =
                missing.map(|(_, part)| format!("Authorization header requires {part}.")).collect();
            return Err(Denied::Incomplete(words.join(" ")));
        };
        let payload = headers.get("x-amz-content-sha256");
        Ok(Self {
            credential: credential.into(),
            date: date.into(),
            signed: signed.into(),
            signature: unhex(signature).ok_or_else(Denied::mismatch)?,
            expires: None,
            unsigned_payload: payload.is_some_and(|value| value == UNSIGNED),
            has_token: false,
            path: uri.path().into(),
            query: canonical::query(canonical::parameters(uri.query().unwrap_or_default())),
        })
    }

    /// Whether a query is that of a presigned request.
    pub(crate) fn is_in(uri: &Uri) -> bool {
        uri.query().is_some_and(|query| query.contains("X-Amz-Signature="))
    }

    /// The presigned form: everything in the query.
    pub(crate) fn query(uri: &'a Uri) -> Result<Self, Denied> {
        Self::presigned(uri.path(), uri.query().unwrap_or_default(), PRESIGNED_MOST, |_| true)
    }

    /// SageMaker's bearer form, less its prefix: a presigned request to `CallWithBearerToken` in
    /// base 64, to whose query `Version` was added when it had been signed.
    pub(crate) fn bearer(token: &str) -> Result<Presented<'static>, Denied> {
        if token.len() > BEARER_BYTES {
            return Err(Denied::Unknown);
        }
        let text = BASE64_STANDARD.decode(token).ok().and_then(|text| String::from_utf8(text).ok());
        let text = text.ok_or(Denied::Unknown)?;
        let query = text.strip_prefix(BEARER_HOST).and_then(|rest| rest.strip_prefix("/?"));
        let query = query.ok_or(Denied::Unknown)?;
        let mut actions = canonical::parameters(query).filter(|(name, _)| **name == *b"Action");
        if !matches!((actions.next(), actions.next()), (Some((_, action)), None) if *action == *BEARER_ACTION.as_bytes())
        {
            return Err(Denied::Unknown);
        }
        let found = Presented::presigned("/", query, BEARER_MOST, |name| name != b"Version")?;
        if found.signed != "host" {
            return Err(Denied::mismatch());
        }
        Ok(found.into_owned())
    }

    /// The headers of the request that the bearer form is.
    pub(crate) fn bearer_headers() -> HeaderMap {
        let host = http::HeaderValue::from_static(BEARER_HOST);
        HeaderMap::from_iter([(http::header::HOST, host)])
    }

    /// A presigned request to another service, whose signature that service verifies.
    pub(crate) fn elsewhere(query: &str, most: i64) -> Result<Presented<'static>, Denied> {
        Presented::presigned("/", query, most, |_| true).map(Presented::into_owned)
    }

    /// Names of signed headers, as in `host;x-amz-date`.
    pub(crate) fn signed(&self) -> &str {
        &self.signed
    }

    /// The id of the key that it claims to be signed with.
    pub(crate) fn access_key(&self) -> &str {
        self.credential.split('/').next().unwrap_or_default()
    }

    /// When it expires, in seconds since 1970; once [`Presented::check_time`] has found that it holds.
    pub(crate) fn until(&self) -> i64 {
        time::parse(&self.date).unwrap_or_default() + self.expires.unwrap_or(WINDOW)
    }

    pub(super) fn presigned(
        path: &'a str,
        query: &'a str,
        most: i64,
        is_signed: impl Fn(&[u8]) -> bool,
    ) -> Result<Self, Denied> {
        let find = |wanted: &'static str| {
            let mut found = canonical::parameters(query)
                .filter(|(name, _)| **name == *wanted.as_bytes())
                .map(|(_, value)| value);
            match (found.next(), found.next()) {
                (Some(value), None) => text(value),
                _ => None,
            }
        };
        let need = |wanted: &'static str| {
            find(wanted).ok_or_else(|| {
                let message = format!("AWS query-string parameters must include '{wanted}' once.");
                Denied::Incomplete(message)
            })
        };
        if need("X-Amz-Algorithm")? != ALGORITHM {
            let message = format!("Unsupported AWS 'algorithm': only {ALGORITHM} is known.");
            return Err(Denied::Incomplete(message));
        }
        let expires = need("X-Amz-Expires")?;
        let expires = expires.parse().ok().filter(|seconds| (1..=most).contains(seconds));
        let expires = expires.ok_or_else(|| {
            Denied::Incomplete(format!("X-Amz-Expires must be a number of seconds, 1 to {most}."))
        })?;
        let payload = find("X-Amz-Content-Sha256");
        let rest = canonical::parameters(query)
            .filter(|(name, _)| **name != *b"X-Amz-Signature" && is_signed(name));
        Ok(Self {
            credential: need("X-Amz-Credential")?,
            date: need("X-Amz-Date")?,
            signed: need("X-Amz-SignedHeaders")?,
            signature: unhex(&need("X-Amz-Signature")?).ok_or_else(Denied::mismatch)?,
            expires: Some(expires),
            unsigned_payload: payload.is_some_and(|payload| payload == UNSIGNED),
            has_token: find("X-Amz-Security-Token").is_some(),
            path: path.into(),
            query: canonical::query(rest),
        })
    }

    fn into_owned(self) -> Presented<'static> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Presented {
            credential: own(self.credential),
            date: own(self.date),
            signed: own(self.signed),
            path: own(self.path),
            query: self.query,
            signature: self.signature,
            expires: self.expires,
            unsigned_payload: self.unsigned_payload,
            has_token: self.has_token,
        }
    }

    /// The access key id.
    pub(crate) fn key_id(&self) -> &str {
        self.credential.split('/').next().unwrap_or_default()
    }

    /// Pairs that we mint have no session token, so one that comes with them is not ours.
    pub(super) fn check_token(&self, headers: &HeaderMap) -> Result<(), Denied> {
        match self.has_token || headers.contains_key("x-amz-security-token") {
            true => Err(Denied::Unknown),
            false => Ok(()),
        }
    }

    /// Whether the credential is as short as they are. To be asked before a key is derived for it.
    pub(super) fn check_length(&self) -> Result<(), Denied> {
        if self.credential.len() <= CREDENTIAL_BYTES {
            return Ok(());
        }
        let message = format!("Credential must have at most {CREDENTIAL_BYTES} bytes.");
        Err(Denied::Incomplete(message))
    }

    /// Whether the credential is meant for us, on the request's date. Any region is ours.
    pub(super) fn check_scope(&self) -> Result<(), Denied> {
        let parts: Vec<&str> = self.credential.split('/').collect();
        let [_, date, _, service, terminator] = parts[..] else {
            let message = "Credential must have exactly 5 slash-delimited elements, e.g. \
                           keyid/date/region/service/term.";
            return Err(Denied::Incomplete(message.to_owned()));
        };
        if terminator != TERMINATOR {
            let message =
                format!("Credential should be scoped with a valid terminator: '{TERMINATOR}'.");
            return Err(Denied::Signature(message));
        }
        if service != SERVICE {
            let message = format!("Credential should be scoped to correct service: '{SERVICE}'.");
            return Err(Denied::Signature(message));
        }
        let day = self.date.get(..8).unwrap_or_default();
        if date != day {
            let message = format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date \
                 from HTTP: '{}' != '{day}', from '{}'.",
                cut(date),
                cut(&self.date)
            );
            return Err(Denied::Signature(message));
        }
        Ok(())
    }

    /// Whether it holds now, in AWS's words where it does not.
    pub(crate) fn check_time(&self, now: i64) -> Result<(), Denied> {
        let signed = time::parse(&self.date).ok_or_else(|| {
            let message = "Date must be in ISO-8601 'basic format'. See http://en.wikipedia.org/wiki/ISO_8601";
            Denied::Incomplete(message.to_owned())
        })?;
        let holds = self.expires.unwrap_or(WINDOW);
        let words = |seconds: i64| match seconds % 60 {
            0 => format!("{} min.", seconds / 60),
            _ => format!("{seconds} sec."),
        };
        if signed < now - holds {
            return Err(Denied::Signature(format!(
                "Signature expired: {} is now earlier than {} ({} - {})",
                self.date,
                time::show(now - holds),
                time::show(now),
                words(holds)
            )));
        }
        if signed > now + WINDOW {
            return Err(Denied::Signature(format!(
                "Signature not yet current: {} is still later than {} ({} + {})",
                self.date,
                time::show(now + WINDOW),
                time::show(now),
                words(WINDOW)
            )));
        }
        Ok(())
    }

    /// Whether what steers us is signed, in a list that has one spelling.
    pub(super) fn check_coverage(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let names: Vec<&str> = self.signed.split(';').collect();
        let is_canonical = names.windows(2).all(|pair| pair[0] < pair[1])
            && !self.signed.bytes().any(|byte| byte.is_ascii_uppercase());
        if !is_canonical {
            return Err(Denied::mismatch());
        }
        if !names.contains(&"host") {
            let message =
                "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.";
            return Err(Denied::Signature(message.to_owned()));
        }
        match canonical::unsigned(headers, &self.signed) {
            Some(name) => Err(Denied::Signature(format!(
                "There were headers present in the request which were not signed: {name}"
            ))),
            None => Ok(()),
        }
    }
}

fn text(bytes: Cow<'_, [u8]>) -> Option<Cow<'_, str>> {
    match bytes {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}

/// Enough to recognise it; its sender may have sent anything.
fn cut(text: &str) -> String {
    text.chars().filter(|it| !it.is_control()).take(24).collect()
}
