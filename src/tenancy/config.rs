//! Who may call, as it was configured.

use std::path::PathBuf;

use crate::iam::IamConfig;
use crate::jwt::OidcConfig;
use crate::proxy::ProxyConfig;

/// The sources of identities and what holds without one. Nobody is asked by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// The file of keys that we mint.
    pub keys: Option<PathBuf>,
    /// Issuers of JSON web tokens, each with another name.
    pub oidc: Vec<OidcConfig>,
    /// Callers with AWS's own credentials.
    pub iam: Option<IamConfig>,
    /// Proxies that ask for us.
    pub proxy: Option<ProxyConfig>,
    /// Whether the name in a verified client certificate is a tenant's.
    pub certificates: bool,
    /// Whether callers without a credential are let in.
    pub anonymous: bool,
    /// Whether a signature may leave the body out (`UNSIGNED-PAYLOAD`).
    pub unsigned_payload: bool,
}

impl AuthConfig {
    /// Whether there is any source of identities.
    pub fn asks(&self) -> bool {
        self.keys.is_some()
            || !self.oidc.is_empty()
            || self.iam.is_some()
            || self.proxy.is_some()
            || self.certificates
    }
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            keys: None,
            oidc: Vec::new(),
            iam: None,
            proxy: None,
            certificates: false,
            anonymous: true,
            unsigned_payload: false,
        }
    }
}
