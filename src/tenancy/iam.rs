//! Callers with AWS's own credentials: AWS says who signed, since their secrets are not ours to know.
//!
//! Reading order: this file (asking STS, and what is remembered of its answers), `presigned` (what a
//! caller brings: a request to STS that it has signed and not sent), `asking` (who may have AWS asked
//! beside whom), `arn` (who it turns out to be, and which tenant that is).
//!
//! What holds:
//! 1. Only addresses that the settings list are asked, and only for `GetCallerIdentity`: what a
//!    caller brings gives the values of known parameters, never a host, a path or a header.
//! 2. The name of this server is signed along, so what was brought to another opens nothing here.
//! 3. What AWS said is believed until the request that was brought expires, 15 minutes at most.
//! 4. Concurrent requests with one token ask once; made-up tokens push out nothing that holds, and
//!    keep nobody waiting but those who come from where they do.

mod arn;
mod asking;
mod presigned;

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use http::{HeaderName, HeaderValue};
use lru::LruCache;
use roundhouse_types::TenantName;
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::caller::Caller;
use crate::denied::Denied;
use crate::fetch::{Document, Fetch, Unfetched};
use arn::Arn;
pub use arn::{InvalidPrincipals, Principals};
use asking::Asking;
use presigned::Presigned;

/// What a bearer token of this kind begins with.
pub(crate) const PREFIX: &str = "rh-aws-v1.";
/// The header that callers sign along, with the name of the server that they mean.
pub(crate) const SERVER_ID: HeaderName = HeaderName::from_static("x-roundhouse-server-id");

/// How long a request waits for AWS.
const PATIENCE: Duration = Duration::from_secs(3);
/// Tokens that are remembered; each of a caller's processes has one for a quarter of an hour.
const KNOWN: NonZeroUsize = NonZeroUsize::new(8192).expect("not zero");
/// Tokens that are asked about, or were refused a while ago.
const ASKED: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// For how long a refusal holds, in seconds: the same request cannot become good.
const REFUSED_FOR: u64 = 60;
/// For how long AWS is taken to be out of reach, in seconds, for one token.
const DOWN_FOR: u64 = 1;
/// Characters of an ARN that become part of a credential's name.
const NAME_CHARACTERS: usize = 200;

/// Who may say who signed, and which tenants signers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IamConfig {
    /// Origins of STS that may be asked, like `https://sts.eu-central-1.amazonaws.com`.
    pub sts: Vec<String>,
    /// What callers must have signed as the server that they mean.
    pub server_id: String,
    /// Whose tenant is which; the first that fits counts.
    pub tenants: Vec<(Principals, TenantName)>,
}

/// What AWS said of a token, and until when that holds, in seconds since 1970.
#[derive(Clone)]
struct Answer {
    who: Result<Arc<Arn>, Denied>,
    until: u64,
}

type Digest = [u8; 32];
type Asked = LruCache<Digest, Arc<OnceCell<Answer>>>;

/// Asks AWS who signed. Shared by all requests; owns what it remembers.
pub(crate) struct Iam {
    config: IamConfig,
    server_id: HeaderValue,
    fetch: Fetch,
    known: Mutex<LruCache<Digest, Answer>>,
    asked: Mutex<Asked>,
    asking: Asking,
}

impl Iam {
    /// Asks nobody yet.
    pub(crate) fn new(config: IamConfig, fetch: Fetch) -> Self {
        // What the settings hold was checked to be visible characters.
        let server_id =
            HeaderValue::from_str(&config.server_id).unwrap_or(HeaderValue::from_static(""));
        Self {
            config,
            server_id,
            fetch,
            known: Mutex::new(LruCache::new(KNOWN)),
            asked: Mutex::new(LruCache::new(ASKED)),
            asking: Asking::default(),
        }
    }

    /// What it was made with.
    pub(crate) fn config(&self) -> &IamConfig {
        &self.config
    }

    /// On whose behalf a token is, its prefix taken off, that comes from this address. Waits for AWS,
    /// for three seconds at most.
    ///
    /// # Errors
    /// `Unknown` where AWS does not know the signature, `Signature` where its time is over,
    /// `Forbidden` where who signed is no tenant's, `Unavailable` where AWS does not answer.
    pub(crate) async fn caller(
        &self,
        token: &str,
        from: Option<IpAddr>,
        now: u64,
    ) -> Result<Caller, Denied> {
        let presigned = Presigned::read(token, &self.config.sts)?;
        presigned.check_time(now)?;
        let id = digest_of(token);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let answer = match known.filter(|known| known.until > now) {
            Some(known) => known,
            None => self.ask(&id, &presigned, from, now).await?,
        };
        let arn = answer.who?;
        self.tenant(&arn)
    }

    /// What AWS says, asked once for all who wait for it.
    async fn ask(
        &self,
        id: &Digest,
        presigned: &Presigned,
        from: Option<IpAddr>,
        now: u64,
    ) -> Result<Answer, Denied> {
        let cell = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let held = asked.get(id).cloned();
            let held = held.filter(|cell| cell.get().is_none_or(|answer| answer.until > now));
            held.unwrap_or_else(|| {
                let cell = Arc::new(OnceCell::new());
                asked.put(*id, cell.clone());
                cell
            })
        };
        let answering = cell.get_or_init(|| self.answer(presigned, from, now));
        let answer = timeout(PATIENCE, answering).await.map_err(|_| Denied::Unavailable)?.clone();
        // Whoever has an account at AWS can be confirmed: what is remembered for long, and has places of
        // its own, is who is a tenant's here.
        if answer.who.as_ref().is_ok_and(|arn| self.tenant(arn).is_ok()) {
            self.asking.know(presigned.access_key());
            self.known.lock().unwrap_or_else(PoisonError::into_inner).put(*id, answer.clone());
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).pop(id);
        }
        Ok(answer)
    }

    async fn answer(&self, presigned: &Presigned, from: Option<IpAddr>, now: u64) -> Answer {
        let Some(_place) = self.asking.place(from, presigned.access_key()).await else {
            return Answer { who: Err(Denied::Unavailable), until: now };
        };
        let header = Some((SERVER_ID, self.server_id.clone()));
        match (self.fetch)(Document { url: presigned.url(), header }).await {
            Ok(text) => match read(&text) {
                Ok(arn) => Answer { who: Ok(Arc::new(arn)), until: presigned.until() },
                Err(why) => {
                    warn!(%why, "STS did not say who signed");
                    Answer { who: Err(Denied::Unavailable), until: now + DOWN_FOR }
                }
            },
            // So STS refuses signatures; it throttles by 400 and by 429, which is no answer.
            Err(Unfetched::Refused(403)) => {
                debug!("STS does not know the signature");
                Answer { who: Err(Denied::Unknown), until: now + REFUSED_FOR }
            }
            Err(why) => {
                warn!(%why, "STS could not be asked who signed");
                Answer { who: Err(Denied::Unavailable), until: now + DOWN_FOR }
            }
        }
    }

    fn tenant(&self, arn: &Arn) -> Result<Caller, Denied> {
        let mut rules = self.config.tenants.iter();
        let Some((_, tenant)) = rules.find(|(principals, _)| principals.cover(arn)) else {
            return Err(Denied::Forbidden(format!("{arn} is no tenant of ours")));
        };
        let name: String = arn.to_string().chars().take(NAME_CHARACTERS).collect();
        Ok(Caller::known(tenant.clone(), format!("iam:{name}")))
    }
}

/// STS's answer, as far as it matters.
#[derive(Deserialize)]
struct Said {
    #[serde(rename = "GetCallerIdentityResponse")]
    response: SaidResponse,
}

#[derive(Deserialize)]
struct SaidResponse {
    #[serde(rename = "GetCallerIdentityResult")]
    result: SaidResult,
}

#[derive(Deserialize)]
struct SaidResult {
    #[serde(rename = "Account")]
    account: String,
    #[serde(rename = "Arn")]
    arn: String,
}

fn read(text: &str) -> Result<Arn, String> {
    let said: Said = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let SaidResult { account, arn } = said.response.result;
    let arn: Arn = arn.parse().map_err(|()| "what it names is not an ARN".to_owned())?;
    match arn.account() == account {
        true => Ok(arn),
        false => Err("the ARN is of another account than it says".to_owned()),
    }
}

fn digest_of(token: &str) -> Digest {
    let digest = digest::digest(&digest::SHA256, token.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests;
