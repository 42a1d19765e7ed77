//! A request to STS that somebody signed and did not send.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::SERVER_ID;
use crate::denied::Denied;
use crate::sigv4::{Presented, parameters};

/// Bytes of a token at most; one with a long session token has two thousand.
const TOKEN_BYTES: usize = 8192;
/// The longest that a request holds, in seconds: STS believes it no longer.
const MOST: i64 = 900;
/// All parameters that such a request has; the last is of temporary credentials only.
const PARAMETERS: [&str; 9] = [
    "Action",
    "Version",
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
];

/// A presigned `GetCallerIdentity` for an address that may be asked.
pub(super) struct Presigned {
    origin: String,
    /// In canonical spelling, the signature included.
    query: String,
    presented: Presented<'static>,
}

impl Presigned {
    /// Reads a token without its prefix: the URL of the request, in base 64 of the URLs' alphabet.
    pub(super) fn read(token: &str, origins: &[String]) -> Result<Self, Denied> {
        if token.len() > TOKEN_BYTES {
            return Err(Denied::Unknown);
        }
        let url = BASE64_URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).ok();
        let url = url.and_then(|url| String::from_utf8(url).ok());
        let url = url.ok_or_else(|| incomplete("is not a URL in base 64"))?;
        let found = origins.iter().find_map(|origin| {
            let rest = url.strip_prefix(origin.as_str())?;
            Some((origin, rest.strip_prefix('/').unwrap_or(rest).strip_prefix('?')?))
        });
        let (origin, query) = found
            .ok_or_else(|| incomplete("is for another address than the STS of this server"))?;
        Self::of_query(origin, query)
    }

    fn of_query(origin: &str, query: &str) -> Result<Self, Denied> {
        let mut seen: Vec<&str> = Vec::with_capacity(PARAMETERS.len());
        for (name, value) in parameters(query) {
            let known = PARAMETERS.iter().find(|known| known.as_bytes() == name.as_ref());
            let fixed = match known.copied() {
                None => return Err(incomplete("has a parameter that GetCallerIdentity has not")),
                Some(known) if seen.contains(&known) => {
                    return Err(incomplete("has a parameter twice"));
                }
                Some(known) => {
                    seen.push(known);
                    match known {
                        "Action" => Some("GetCallerIdentity"),
                        "Version" => Some("2011-06-15"),
                        _ => None,
                    }
                }
            };
            if fixed.is_some_and(|fixed| fixed.as_bytes() != value.as_ref()) {
                return Err(incomplete("is not a GetCallerIdentity of version 2011-06-15"));
            }
        }
        if !seen.contains(&"Action") || !seen.contains(&"Version") {
            return Err(incomplete("is not a GetCallerIdentity of version 2011-06-15"));
        }
        let presented = Presented::elsewhere(query, MOST)?;
        if presented.signed() != format!("host;{SERVER_ID}") {
            let message = format!("must sign host and {SERVER_ID}, and nothing else");
            return Err(incomplete(&message));
        }
        let query = crate::sigv4::canonical_query(query);
        Ok(Self { origin: origin.to_owned(), query, presented })
    }

    /// Whether it holds now.
    pub(super) fn check_time(&self, now: u64) -> Result<(), Denied> {
        self.presented.check_time(i64::try_from(now).unwrap_or(i64::MAX))
    }

    /// The id of the key that it claims to be signed with.
    pub(super) fn access_key(&self) -> &str {
        self.presented.access_key()
    }

    /// When it expires, in seconds since 1970.
    pub(super) fn until(&self) -> u64 {
        u64::try_from(self.presented.until()).unwrap_or_default()
    }

    /// Where to send it.
    pub(super) fn url(&self) -> String {
        format!("{}/?{}", self.origin, self.query)
    }
}

fn incomplete(what: &str) -> Denied {
    Denied::Incomplete(format!("the presigned request to STS {what}"))
}
