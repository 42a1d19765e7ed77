//! Several issuers: which of them a token is from.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::{Oidc, OidcConfig, TOKEN_BYTES};
use crate::caller::Caller;
use crate::denied::Denied;
use crate::fetch::Fetch;

/// All issuers of one setting, each with another name.
#[derive(Default)]
pub(crate) struct Issuers(Vec<Arc<Oidc>>);

impl Issuers {
    /// Begins to fetch keys, less those of issuers that are in `before` as they are now. Call inside
    /// a runtime.
    pub(crate) fn start(configs: &[OidcConfig], fetch: &Fetch, before: Option<&Self>) -> Self {
        let issuers = configs.iter().map(|config| {
            let mut held = before.into_iter().flat_map(|before| &before.0);
            match held.find(|oidc| oidc.config() == config) {
                Some(oidc) => oidc.clone(),
                None => Arc::new(Oidc::start(config.clone(), fetch.clone())),
            }
        });
        Self(issuers.collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// On whose behalf a token is, by the issuer that it names. What it names is not believed before
    /// its signature is: another's name leads to another's keys.
    ///
    /// # Errors
    /// As [`Oidc::caller`]; `Token` where it names none of these.
    pub(crate) async fn caller(&self, token: &str) -> Result<Caller, Denied> {
        if let [only] = &self.0[..] {
            return only.caller(token).await;
        }
        if token.len() > TOKEN_BYTES {
            return Err(Denied::Token(format!("has more than {TOKEN_BYTES} bytes")));
        }
        let named = named(token).ok_or_else(|| Denied::Token("is malformed".to_owned()))?;
        match self.0.iter().find(|oidc| oidc.config().issuer == named) {
            Some(oidc) => oidc.caller(token).await,
            None => Err(Denied::Token("is from no issuer that is believed".to_owned())),
        }
    }
}

#[derive(Deserialize)]
struct Named {
    iss: String,
}

/// The issuer that a token says it is from.
fn named(token: &str) -> Option<String> {
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<Named>(&claims).ok().map(|named| named.iss)
}
