//! Who is calling: every source of identities behind one question.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, Method, Uri, header};
use metrics::{Unit, counter, describe_counter};
use roundhouse_types::TenantName;

use crate::caller::{ANONYMOUS, Caller, Peer};
use crate::config::AuthConfig;
use crate::denied::Denied;
use crate::error::Error;
use crate::fetch::Fetch;
use crate::iam::{self, Iam};
use crate::jwt::{self, Issuers};
use crate::keys::{KeyFile, Keys};
use crate::sigv4::{Message, Presented, Signed};

/// Requests by how they said who they are (`method`) and what came of it (`outcome`).
const DECISIONS: &str = "roundhouse_identity_decisions_total";
/// What SageMaker's bearer form begins with.
const SAGEMAKER_BEARER: &str = "sagemaker-api-key-";

/// Tells who calls. Shared by everybody who asks; owns what it asks, and replaces it whole.
pub struct Identity {
    sources: RwLock<Arc<Sources>>,
    fetch: Fetch,
    clock: fn() -> SystemTime,
}

/// What one setting of `[auth]` comes to.
struct Sources {
    config: AuthConfig,
    keys: Option<Arc<KeyFile>>,
    oidc: Issuers,
    iam: Option<Arc<Iam>>,
}

/// What a request shows of itself before its body.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path and query, as they were sent.
    pub uri: &'a Uri,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Where it comes from; absent where nobody knows.
    pub peer: Option<&'a Peer>,
}

/// What is known of a caller when the headers have been read.
#[derive(Debug)]
pub enum Identified {
    /// Who it is.
    Caller(Caller),
    /// Who it is if the signature fits the body, too.
    IfBody(Box<Signed>),
}

impl Identity {
    /// Opens every source. Call inside a runtime: tokens' keys are fetched by a task.
    ///
    /// # Errors
    /// When the file of keys cannot be read.
    pub fn new(config: &AuthConfig, fetch: Fetch) -> Result<Self, Error> {
        let sources = Sources::open(config, &fetch, None)?;
        Ok(Self { sources: RwLock::new(Arc::new(sources)), fetch, clock: SystemTime::now })
    }

    /// Lets everybody in and asks nobody.
    pub fn nobody_is_asked() -> Self {
        let (config, oidc) = (AuthConfig::default(), Issuers::default());
        let sources = Sources { config, keys: None, oidc, iam: None };
        let fetch: Fetch =
            Arc::new(|_| Box::pin(async { Err("nothing is fetched".to_owned().into()) }));
        Self { sources: RwLock::new(Arc::new(sources)), fetch, clock: SystemTime::now }
    }

    /// The same by another clock.
    #[must_use]
    pub fn with_clock(self, clock: fn() -> SystemTime) -> Self {
        Self { clock, ..self }
    }

    /// Goes over to other settings at once, for all requests that begin from now on. What stays
    /// the same is kept, fetched keys included.
    ///
    /// # Errors
    /// As [`Identity::new`]; then nothing has changed.
    pub fn apply(&self, config: &AuthConfig) -> Result<(), Error> {
        let before = self.sources();
        if before.config == *config {
            return Ok(());
        }
        let sources = Arc::new(Sources::open(config, &self.fetch, Some(&before))?);
        *self.sources.write().unwrap_or_else(PoisonError::into_inner) = sources;
        Ok(())
    }

    /// Reads the file of keys again if it has changed; `true` where other keys are in force now.
    /// Reads files: not for a thread that serves requests.
    ///
    /// # Errors
    /// When it cannot be read; the keys in force stay.
    pub fn refresh(&self) -> Result<bool, Error> {
        self.sources().keys.as_ref().map_or(Ok(false), |keys| keys.refresh())
    }

    /// Whether callers are asked who they are.
    pub fn asks(&self) -> bool {
        self.sources().config.asks()
    }

    /// The header in which trusted proxies name tenants.
    pub fn proxy_header(&self) -> Option<HeaderName> {
        self.sources().config.proxy.as_ref().map(|proxy| proxy.header.clone())
    }

    /// Whether any operator has a key.
    pub fn has_operators(&self) -> bool {
        self.sources().keys().is_some_and(|keys| keys.has_operators())
    }

    /// The id of an operator's key.
    ///
    /// # Errors
    /// `Unknown`, also for a tenant's key; `Expired`.
    pub fn operator(&self, key: &str) -> Result<Arc<str>, Denied> {
        let outcome = self.sources().operator(key, self.now());
        count("operator", &outcome);
        outcome
    }

    /// Who sends a request, as far as its headers say. Waits only for keys of a token's issuer
    /// and for AWS, for three seconds at most.
    ///
    /// # Errors
    /// Why it is not let in.
    pub async fn identify(&self, asked: &Asked<'_>) -> Result<Identified, Denied> {
        let sources = self.sources();
        if !sources.config.asks() {
            return Ok(Identified::Caller(Caller::anonymous()));
        }
        let (method, outcome) = sources.identify(asked, self.now()).await;
        // A signature is counted when it has been verified, or refused before.
        if !matches!(outcome, Ok(Identified::IfBody(_))) {
            count(method, &outcome);
        }
        outcome
    }

    /// Who sends a request whose body is known now.
    ///
    /// # Errors
    /// [`Denied::Signature`].
    pub fn verify(&self, signed: Signed, body: &[u8]) -> Result<Caller, Denied> {
        let outcome = signed.verify(body);
        count("sigv4", &outcome);
        outcome
    }

    fn sources(&self) -> Arc<Sources> {
        self.sources.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn now(&self) -> u64 {
        let since = (self.clock)().duration_since(SystemTime::UNIX_EPOCH);
        since.map(|since| since.as_secs()).unwrap_or_default()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("config", &self.sources().config).finish_non_exhaustive()
    }
}

impl Sources {
    fn open(config: &AuthConfig, fetch: &Fetch, before: Option<&Self>) -> Result<Self, Error> {
        let keys = match &config.keys {
            None => None,
            Some(path) => {
                let held = before.and_then(|before| before.keys.clone());
                match held.filter(|keys| keys.path() == path) {
                    Some(keys) => Some(keys),
                    None => Some(Arc::new(KeyFile::open(path)?)),
                }
            }
        };
        let oidc = Issuers::start(&config.oidc, fetch, before.map(|before| &before.oidc));
        let iam = config.iam.as_ref().map(|config| {
            let held = before.and_then(|before| before.iam.clone());
            let held = held.filter(|iam| iam.config() == config);
            held.unwrap_or_else(|| Arc::new(Iam::new(config.clone(), fetch.clone())))
        });
        Ok(Self { config: config.clone(), keys, oidc, iam })
    }

    fn operator(&self, key: &str, now: u64) -> Result<Arc<str>, Denied> {
        let keys = self.keys().ok_or(Denied::Unknown)?;
        let held = keys.bearer(key, now)?;
        match held.tenant {
            None => Ok(held.id.clone()),
            Some(_) => Err(Denied::Unknown),
        }
    }

    fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.as_ref().map(|keys| keys.current())
    }

    /// The proxy's word goes before what its client sent; a credential of the request before its
    /// connection's.
    async fn identify(
        &self,
        asked: &Asked<'_>,
        now: u64,
    ) -> (&'static str, Result<Identified, Denied>) {
        let proxied = self.config.proxy.as_ref();
        match proxied.map(|proxy| proxy.caller(asked.peer, asked.headers)).transpose() {
            Ok(None | Some(None)) => {}
            Ok(Some(Some(caller))) => return ("proxy", Ok(Identified::Caller(caller))),
            Err(denied) => return ("proxy", Err(denied)),
        }
        let mut shown = asked.headers.get_all(header::AUTHORIZATION).iter();
        match (shown.next(), shown.next()) {
            (Some(_), Some(_)) => {
                let message = "a request has one Authorization header".to_owned();
                ("header", Err(Denied::Incomplete(message)))
            }
            (Some(value), None) => match value.to_str() {
                Ok(value) => self.by_header(value, asked, now).await,
                Err(_) => ("header", Err(Denied::Unknown)),
            },
            (None, _) if Presented::is_in(asked.uri) => {
                let presented = Presented::query(asked.uri);
                ("presigned", presented.and_then(|it| self.signed(it, asked, now)))
            }
            (None, _) => self.by_connection(asked),
        }
    }

    async fn by_header(
        &self,
        value: &str,
        asked: &Asked<'_>,
        now: u64,
    ) -> (&'static str, Result<Identified, Denied>) {
        let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
        if scheme == "AWS4-HMAC-SHA256" {
            let presented = Presented::header(value, asked.uri, asked.headers);
            return ("sigv4", presented.and_then(|it| self.signed(it, asked, now)));
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            let message = "the Authorization header is neither AWS4-HMAC-SHA256 nor Bearer";
            return ("header", Err(Denied::Incomplete(message.to_owned())));
        }
        let token = rest.trim();
        if let Some(token) = token.strip_prefix(SAGEMAKER_BEARER) {
            return ("sagemaker-bearer", self.sagemaker_bearer(token, now));
        }
        if let (Some(iam), Some(token)) = (&self.iam, token.strip_prefix(iam::PREFIX)) {
            let from = asked.peer.map(|peer| peer.address);
            return ("iam", iam.caller(token, from, now).await.map(Identified::Caller));
        }
        if !self.oidc.is_empty() && jwt::is_token(token) {
            return ("jwt", self.oidc.caller(token).await.map(Identified::Caller));
        }
        ("bearer", self.bearer(token, now))
    }

    fn bearer(&self, token: &str, now: u64) -> Result<Identified, Denied> {
        let keys = self.keys().ok_or(Denied::Unknown)?;
        let held = keys.bearer(token, now)?;
        let Some(tenant) = held.tenant.clone() else {
            let message = "an operator's key is for the admin port".to_owned();
            return Err(Denied::Forbidden(message));
        };
        let caller = Caller { tenant: Some(tenant), credential: Some(held.id.clone()) };
        Ok(Identified::Caller(caller))
    }

    fn signed(
        &self,
        presented: Presented<'_>,
        asked: &Asked<'_>,
        now: u64,
    ) -> Result<Identified, Denied> {
        let keys = self.keys().ok_or(Denied::Unknown)?;
        let message = Message { method: asked.method, uri: asked.uri, headers: asked.headers };
        let signed = Signed::look(presented, &message, keys, self.config.unsigned_payload, now)?;
        Ok(Identified::IfBody(Box::new(signed)))
    }

    /// A signed request to somewhere else, whose signature says who its bearer is.
    fn sagemaker_bearer(&self, token: &str, now: u64) -> Result<Identified, Denied> {
        let keys = self.keys().ok_or(Denied::Unknown)?;
        let presented = Presented::bearer(token)?;
        let headers = Presented::bearer_headers();
        let message = Message { method: &Method::POST, uri: &Uri::default(), headers: &headers };
        let signed = Signed::look(presented, &message, keys, false, now)?;
        signed.verify(&[]).map(Identified::Caller)
    }

    fn by_connection(&self, asked: &Asked<'_>) -> (&'static str, Result<Identified, Denied>) {
        let named = asked.peer.and_then(|peer| peer.certificate.as_ref());
        match named.filter(|_| self.config.certificates) {
            Some(name) => {
                let tenant = name.parse::<TenantName>().ok();
                let caller = tenant.filter(|it| it.as_str() != ANONYMOUS).ok_or_else(|| {
                    Denied::Forbidden("the certificate's name is not a tenant's".to_owned())
                });
                let known = |tenant| Identified::Caller(Caller::known(tenant, "certificate"));
                ("certificate", caller.map(known))
            }
            None if self.config.anonymous => {
                ("anonymous", Ok(Identified::Caller(Caller::without_credential())))
            }
            None => ("anonymous", Err(Denied::Missing)),
        }
    }
}

fn count<T>(method: &'static str, outcome: &Result<T, Denied>) {
    let outcome = outcome.as_ref().err().map_or("accepted", Denied::outcome);
    counter!(DECISIONS, "method" => method, "outcome" => outcome).increment(1);
}

/// Registers units and help with the recorder. Call once, after installing it.
pub fn describe_metrics() {
    let help = "requests by how they said who they are and what came of it";
    describe_counter!(DECISIONS, Unit::Count, help);
}

#[cfg(test)]
mod tests;
