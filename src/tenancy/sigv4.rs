//! AWS Signature Version 4, the verifying side.
//!
//! Reading order: `presented` (what a request carries: header form, presigned form, bearer form),
//! `canonical` (the text that both sides sign), this file (is the signature the one that the key
//! gives), `time`.
//!
//! What holds:
//! 1. Nothing of a body is read for a key, a time or a scope that does not hold.
//! 2. Signatures are compared in constant time, and a wrong one is told nothing but that.
//! 3. What steers us is signed: the host, and each `x-amz-…`, `x-amzn-sagemaker-…` and
//!    `x-roundhouse-…` header.
//! 4. A request can be sent again while its time holds, as at AWS; it is then the same request.
//!
//! The algorithm is that of AWS's "Create a signed AWS API request", in the form of all services
//! but S3: the path is normalised and encoded once more.

mod canonical;
mod presented;
mod time;

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::{digest, hmac};
use http::{HeaderMap, Method, Uri};

use crate::caller::Caller;
use crate::denied::Denied;
use crate::keys::Keys;
use crate::text::hex;
pub(crate) use canonical::parameters;
pub(crate) use presented::Presented;

/// The only algorithm.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// What AWS's SDKs sign for `sagemaker-runtime`, whatever the host.
const SERVICE: &str = "sagemaker";
/// How a scope ends.
const TERMINATOR: &str = "aws4_request";
/// Stands for the body's hash where the body is not signed.
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// The request as its signer meant it, less its body.
pub(crate) struct Message<'a> {
    pub(crate) method: &'a Method,
    pub(crate) uri: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
}

/// A signature whose key, time and scope hold: all but the body is ready to be verified.
pub struct Signed {
    caller: Caller,
    keys: Arc<Keys>,
    key: hmac::Key,
    is_cached: bool,
    /// The canonical request up to the hash of the body.
    canonical: Vec<u8>,
    date: String,
    /// With the key's id in front, as it was presented.
    credential: String,
    signature: [u8; 32],
    signs_body: bool,
}

impl Signed {
    /// Looks at everything but the body. `now` is in seconds since 1970.
    pub(crate) fn look(
        presented: Presented<'_>,
        message: &Message<'_>,
        keys: Arc<Keys>,
        allows_unsigned: bool,
        now: u64,
    ) -> Result<Self, Denied> {
        presented.check_token(message.headers)?;
        presented.check_length()?;
        let signing = keys.signing(presented.key_id(), &presented.credential, now)?;
        presented.check_scope()?;
        presented.check_time(i64::try_from(now).unwrap_or(i64::MAX))?;
        presented.check_coverage(message.headers)?;
        let Some(tenant) = signing.held.tenant.clone() else { return Err(Denied::Unknown) };
        let caller = Caller { tenant: Some(tenant), credential: Some(signing.held.id.clone()) };
        let (key, is_cached) = (signing.key, signing.is_cached);
        let canonical = canonical::request(
            message.method,
            &presented.path,
            &presented.query,
            message,
            &presented.signed,
        )?;
        Ok(Self {
            caller,
            key,
            is_cached,
            canonical,
            keys,
            date: presented.date.into_owned(),
            credential: presented.credential.into_owned(),
            signature: presented.signature,
            signs_body: !(allows_unsigned && presented.unsigned_payload),
        })
    }

    /// Whether the body must be known.
    pub fn signs_body(&self) -> bool {
        self.signs_body
    }

    /// Whether the signature is the one that the key gives for this body.
    ///
    /// # Errors
    /// [`Denied::Signature`], in AWS's words.
    pub fn verify(mut self, body: &[u8]) -> Result<Caller, Denied> {
        match self.signs_body {
            true => self.canonical.extend_from_slice(hash(body).as_bytes()),
            false => self.canonical.extend_from_slice(UNSIGNED.as_bytes()),
        }
        let scope = self.credential.split_once('/').map_or("", |(_, scope)| scope);
        let text = to_sign(&self.date, scope, &self.canonical);
        hmac::verify(&self.key, text.as_bytes(), &self.signature)
            .map_err(|_| Denied::mismatch())?;
        if !self.is_cached {
            self.keys.proved(&self.credential, &self.key);
        }
        Ok(self.caller)
    }
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").field("caller", &self.caller).finish_non_exhaustive()
    }
}

/// The key that signs for one scope (`id/date/region/service/aws4_request`).
pub(crate) fn signing_key(secret: &str, credential: &str) -> hmac::Key {
    let first = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{secret}").as_bytes());
    credential.split('/').skip(1).fold(first, |key, part| {
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref())
    })
}

/// A query in the one spelling that is signed.
pub(crate) fn canonical_query(query: &str) -> String {
    canonical::query(parameters(query))
}

/// What the signing key signs.
fn to_sign(date: &str, scope: &str, canonical: &[u8]) -> String {
    [ALGORITHM, date, scope, &hash(canonical)].join("\n")
}

fn hash(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

#[cfg(test)]
pub(crate) fn show_time(seconds: u64) -> String {
    time::show(i64::try_from(seconds).unwrap())
}

#[cfg(test)]
mod tests;
