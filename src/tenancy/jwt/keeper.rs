//! An issuer's keys, kept fresh beside the requests.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::Jwks;
use crate::denied::Denied;
use crate::fetch::{Document, Fetch};

/// When fetched keys are fetched again: issuers announce new ones hours before they use them.
const AGE_MOST: Duration = Duration::from_secs(600);
/// The same for a file, which costs nothing to read.
const FILE_AGE_MOST: Duration = Duration::from_secs(5);
/// Tokens with made-up key ids cannot have the issuer asked more often than this.
const PAUSE: Duration = Duration::from_secs(10);
/// How long a request waits for keys.
const PATIENCE: Duration = Duration::from_secs(2);
/// Keys in a set at most; issuers have two to five.
const KEYS_MOST: usize = 100;

/// A key of the issuer's.
#[derive(Clone)]
pub(super) struct IssuerKey {
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: Arc<DecodingKey>,
}

/// What is known of the issuer's keys. Replaced whole by the keeper's task.
#[derive(Clone)]
struct Known {
    /// Absent until some were had.
    keys: Option<Arc<[IssuerKey]>>,
    /// When the last attempt ended, well or badly.
    attempted: Option<Instant>,
}

/// Where requests find the keys. The task behind it alone fetches, one fetch at a time.
pub(super) struct Keeper {
    known: watch::Receiver<Known>,
    wanted: mpsc::Sender<()>,
    task: AbortHandle,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Keeper {
    pub(super) fn start(source: Jwks, fetch: Fetch) -> Self {
        let (publish, known) = watch::channel(Known { keys: None, attempted: None });
        let (wanted, asked) = mpsc::channel(1);
        let task = tokio::spawn(keep(source, fetch, publish, asked)).abort_handle();
        Self { known, wanted, task }
    }

    /// A key that `choose` finds; where it finds none, in the keys that the issuer has now, as far
    /// as it was not asked just before.
    ///
    /// # Errors
    /// `Token` where the issuer has no such key, `Unavailable` where nothing is known of its keys.
    pub(super) async fn find(
        &self,
        choose: impl Fn(&[IssuerKey]) -> Option<IssuerKey>,
    ) -> Result<IssuerKey, Denied> {
        let mut known = self.known.clone();
        let looked = known.borrow_and_update().clone();
        if let Some(found) = looked.keys.as_deref().and_then(&choose) {
            return Ok(found);
        }
        if looked.attempted.is_none_or(|at| at.elapsed() >= PAUSE) {
            // A full queue means that somebody else has asked.
            let _ = self.wanted.try_send(());
            // Past the time, what is known counts.
            let _ = timeout(PATIENCE, known.changed()).await;
        }
        let keys = known.borrow().keys.clone().ok_or(Denied::Unavailable)?;
        let unknown = || Denied::Token("is signed with a key that its issuer does not have".into());
        choose(&keys).ok_or_else(unknown)
    }
}

async fn keep(
    source: Jwks,
    fetch: Fetch,
    publish: watch::Sender<Known>,
    mut asked: mpsc::Receiver<()>,
) {
    let age = match source {
        Jwks::Url(_) | Jwks::Discovered(_) => AGE_MOST,
        Jwks::File(_) => FILE_AGE_MOST,
    };
    loop {
        let keys = match read(&source, &fetch).await {
            Ok(keys) => Some(keys),
            Err(why) => {
                warn!(?source, %why, "the token issuer's keys could not be had; the earlier ones stay");
                None
            }
        };
        publish.send_modify(|known| {
            if let Some(keys) = keys {
                debug!(count = keys.len(), "the token issuer's keys");
                known.keys = Some(keys);
            }
            known.attempted = Some(Instant::now());
        });
        tokio::time::sleep(PAUSE.min(age)).await;
        let rest = age.saturating_sub(PAUSE);
        // Without keys nobody can be let in, so the next attempt does not wait to be asked for.
        if publish.borrow().keys.is_some()
            && let Ok(None) = timeout(rest, asked.recv()).await
        {
            return;
        }
    }
}

async fn read(source: &Jwks, fetch: &Fetch) -> Result<Arc<[IssuerKey]>, String> {
    let text = match source {
        Jwks::Url(url) => get(fetch, url).await?,
        Jwks::Discovered(issuer) => {
            let url = discovered(issuer, &get(fetch, &discovery(issuer)).await?)?;
            get(fetch, &url).await?
        }
        Jwks::File(path) => {
            tokio::fs::read_to_string(path).await.map_err(|error| error.to_string())?
        }
    };
    parse(&text)
}

async fn get(fetch: &Fetch, url: &str) -> Result<String, String> {
    fetch(Document::at(url)).await.map_err(|why| format!("{url}: {why}"))
}

/// Where an issuer says what it is.
fn discovery(issuer: &str) -> String {
    format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
}

/// Where the keys are, by an issuer's document about itself. One that names another issuer is
/// somebody else's, who must not be believed under this name.
pub(super) fn discovered(issuer: &str, text: &str) -> Result<String, String> {
    let document: Value =
        serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
    let say = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
    if say("issuer") != issuer {
        let said: String = say("issuer").chars().take(100).collect();
        return Err(format!("its document is that of the issuer '{said}'"));
    }
    let url = say("jwks_uri");
    match is_near_or_encrypted(url) {
        true => Ok(url.to_owned()),
        false => Err("its document says no https:// address of keys".to_owned()),
    }
}

/// Whether what lies at an address can be replaced by nobody on the way: `https://`, or `http://` on
/// this machine.
pub fn is_near_or_encrypted(text: &str) -> bool {
    let Ok(url) = text.parse::<Uri>() else { return false };
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_near =
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match url.scheme_str() {
        Some("https") => true,
        Some("http") => is_near,
        _ => false,
    }
}

/// The keys of a set that we can verify with; others are left out, as RFC 7517 wants it.
pub(super) fn parse(text: &str) -> Result<Arc<[IssuerKey]>, String> {
    let set: Value = serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
    let keys = set.get("keys").and_then(Value::as_array).ok_or("no list of keys")?;
    if keys.len() > KEYS_MOST {
        return Err(format!("{} keys, and {KEYS_MOST} at most are read", keys.len()));
    }
    let usable: Arc<[IssuerKey]> = keys.iter().filter_map(usable).collect();
    match usable.is_empty() {
        true => Err(format!("none of its {} keys can be used", keys.len())),
        false => Ok(usable),
    }
}

fn usable(value: &Value) -> Option<IssuerKey> {
    let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        _ => return None,
    };
    let said = value.get("alg").and_then(Value::as_str);
    let is_meant = match algorithm {
        Algorithm::RS256 => matches!(said, None | Some("RS256")),
        Algorithm::ES256 => matches!(said, None | Some("ES256")),
        _ => matches!(said, None | Some("EdDSA" | "Ed25519")),
    };
    let key = DecodingKey::from_jwk(&jwk).ok().filter(|_| is_meant)?;
    Some(IssuerKey { id: jwk.common.key_id, algorithm, key: Arc::new(key) })
}
