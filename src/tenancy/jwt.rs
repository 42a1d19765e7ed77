//! JSON web tokens of OIDC issuers: whose are they, and do they hold.
//!
//! Reading order: this file (a token's check), `issuers` (which of several a token is from), `keeper`
//! (an issuer's keys, found and fetched beside the requests).
//!
//! Algorithms are RS256, ES256 and EdDSA alone, each with a key of its own family from the
//! issuer's set: a token cannot choose a weaker one, nor pass a public key off as a shared secret.

mod issuers;
mod keeper;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::digest;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header};
use roundhouse_types::TenantName;
use serde_json::{Map, Value};

use crate::caller::{ANONYMOUS, Caller};
use crate::denied::Denied;
use crate::fetch::Fetch;
pub(crate) use issuers::Issuers;
pub use keeper::is_near_or_encrypted;
use keeper::{IssuerKey, Keeper};

/// Bytes of a token at most.
const TOKEN_BYTES: usize = 16 * 1024;
/// Characters of a subject that become part of a credential's name.
const SUBJECT_CHARACTERS: usize = 64;

/// An issuer of tokens, and what of them is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcConfig {
    /// What `iss` must say.
    pub issuer: String,
    /// What `aud` must contain.
    pub audience: String,
    /// Where the issuer's keys are.
    pub jwks: Jwks,
    /// The claim that says the tenant; a dotted name looks inside objects.
    pub claim: String,
    /// Which tenants it may name.
    pub tenants: Named,
    /// By how much the issuer's clock may differ.
    pub leeway: Duration,
}

/// Which tenants an issuer may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// Any: the claim's value is the tenant's name.
    Any,
    /// These, by values of the claim.
    Listed(BTreeMap<String, TenantName>),
}

/// Where an issuer's keys are (RFC 7517).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Jwks {
    /// Fetched when they are ten minutes old, or when a token names one that is not there.
    Url(String),
    /// The same, at the address that the issuer's own document says (OpenID Connect Discovery):
    /// its name with `/.well-known/openid-configuration`.
    Discovered(String),
    /// Read again every few seconds.
    File(PathBuf),
}

/// Checks tokens of one issuer. Owns the task that fetches its keys, and ends it when dropped.
pub(crate) struct Oidc {
    config: OidcConfig,
    /// Its name in credentials' names, which goes before the subject.
    spelled: String,
    keeper: Keeper,
}

impl fmt::Debug for Oidc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oidc").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Oidc {
    /// Begins to fetch keys. Call inside a runtime.
    pub(crate) fn start(config: OidcConfig, fetch: Fetch) -> Self {
        let keeper = Keeper::start(config.jwks.clone(), fetch);
        // So that two issuers' subjects have no name in common.
        let spelled = config.issuer.replace('%', "%25").replace('|', "%7C");
        Self { config, spelled, keeper }
    }

    /// What it was started with.
    pub(crate) fn config(&self) -> &OidcConfig {
        &self.config
    }

    /// On whose behalf a token is. Waits for the issuer's keys for two seconds at most, and only
    /// for a key that was not there.
    ///
    /// # Errors
    /// `Token`, `Expired`, `Forbidden` where it names no tenant, `Unavailable`.
    pub(crate) async fn caller(&self, token: &str) -> Result<Caller, Denied> {
        if token.len() > TOKEN_BYTES {
            return Err(Denied::Token(format!("has more than {TOKEN_BYTES} bytes")));
        }
        let header = decode_header(token).map_err(|_| Denied::Token("is malformed".to_owned()))?;
        if !matches!(header.alg, Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA) {
            let message = format!("is signed with {:?}, not RS256, ES256 or EdDSA", header.alg);
            return Err(Denied::Token(message));
        }
        let key = self.keeper.find(|keys| choose(keys, &header)).await?;
        self.believe(token, &header, &key)
    }

    fn believe(&self, token: &str, header: &Header, key: &IssuerKey) -> Result<Caller, Denied> {
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_audience(&[&self.config.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.validate_nbf = true;
        validation.leeway = self.config.leeway.as_secs();
        let decoded = decode::<Map<String, Value>>(token, &key.key, &validation);
        let claims = decoded.map_err(|error| refused(error.kind(), &self.config))?.claims;
        let tenant = self.tenant(&claims)?;
        if tenant.as_str() == ANONYMOUS {
            let message = "the bearer token names the tenant of callers without a credential";
            return Err(Denied::Forbidden(message.to_owned()));
        }
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        let subject = shortened(subject);
        Ok(Caller::known(tenant, format!("jwt:{}|{subject}", self.spelled)))
    }

    fn tenant(&self, claims: &Map<String, Value>) -> Result<TenantName, Denied> {
        let claim = &self.config.claim;
        let forbidden =
            |what: &str| Err(Denied::Forbidden(format!("the bearer token's claim {claim} {what}")));
        let values: Vec<&str> = match find(claims, claim) {
            Some(Value::String(value)) => vec![value],
            Some(Value::Array(values)) => values.iter().filter_map(Value::as_str).collect(),
            _ => return forbidden("is missing or no text"),
        };
        let listed = match &self.config.tenants {
            Named::Listed(listed) => listed,
            Named::Any => {
                let [value] = values[..] else { return forbidden("is not one text") };
                return value.parse().or_else(|_| forbidden("is not a tenant's name"));
            }
        };
        let known = values.iter().filter_map(|value| listed.get(*value));
        let known: BTreeSet<&TenantName> = known.collect();
        match (known.len(), known.first()) {
            (1, Some(tenant)) => Ok((*tenant).clone()),
            (0, _) => forbidden("names no tenant of ours"),
            _ => forbidden("names several tenants of ours"),
        }
    }
}

/// A subject as part of a credential's name. What is cut ends with a digest of it all, so that two
/// subjects have one name hardly.
fn shortened(subject: &str) -> String {
    let shown = |most| subject.chars().filter(|it| !it.is_control()).take(most).collect();
    if subject.chars().count() <= SUBJECT_CHARACTERS && !subject.contains(char::is_control) {
        return shown(SUBJECT_CHARACTERS);
    }
    let digest = digest::digest(&digest::SHA256, subject.as_bytes());
    let digest: String = digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let shown: String = shown(SUBJECT_CHARACTERS - digest.len() - 1);
    format!("{shown}~{digest}")
}

/// Whether a bearer token looks like one of these: three parts in base 64, the first an object.
pub(crate) fn is_token(text: &str) -> bool {
    text.starts_with("eyJ") && text.split('.').count() == 3
}

/// The key that a token names; where it names none, the only one of its algorithm.
fn choose(keys: &[IssuerKey], header: &Header) -> Option<IssuerKey> {
    let mut fitting = keys.iter().filter(|key| key.algorithm == header.alg);
    match &header.kid {
        Some(kid) => fitting.find(|key| key.id.as_ref() == Some(kid)).cloned(),
        None => match (fitting.next(), fitting.next()) {
            (Some(key), None) => Some(key.clone()),
            _ => None,
        },
    }
}

/// A claim by its name, or by the names on the way to it.
fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    find(claims.get(first)?.as_object()?, rest)
}

fn refused(kind: &ErrorKind, config: &OidcConfig) -> Denied {
    let why = match kind {
        ErrorKind::ExpiredSignature => return Denied::Expired,
        ErrorKind::ImmatureSignature => "is not valid yet".to_owned(),
        ErrorKind::InvalidSignature => "has a wrong signature".to_owned(),
        ErrorKind::InvalidIssuer => format!("is not from the issuer {}", config.issuer),
        ErrorKind::InvalidAudience => format!("is not for the audience {}", config.audience),
        ErrorKind::MissingRequiredClaim(claim) => format!("has no claim {claim}"),
        _ => "is malformed".to_owned(),
    };
    Denied::Token(why)
}

#[cfg(test)]
mod tests;
