//! Who a request is from, and over which connection it came.

use std::net::IpAddr;
use std::sync::Arc;

use roundhouse_types::TenantName;

/// The tenant that callers without a credential are, where callers are asked who they are. No
/// credential can say it: what is granted to it is granted to everybody.
pub(crate) const ANONYMOUS: &str = "anonymous";

/// Who a request is from, as far as anybody asked. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// On whose behalf; absent where nobody is asked who they are.
    pub tenant: Option<TenantName>,
    /// By which of the tenant's credentials: its id, never a secret.
    pub credential: Option<Arc<str>>,
}

impl Caller {
    /// Whoever reaches the port, where nobody is asked who they are.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Whoever shows no credential where callers are asked: a tenant of its own, so that it is
    /// never taken for the tenant whose models it names.
    pub(crate) fn without_credential() -> Self {
        Self { tenant: Some(ANONYMOUS.parse().expect("is a name")), credential: None }
    }

    /// A tenant by one of its credentials.
    pub(crate) fn known(tenant: TenantName, credential: impl Into<Arc<str>>) -> Self {
        Self { tenant: Some(tenant), credential: Some(credential.into()) }
    }
}

/// The other end of a connection, as the socket and the handshake say. Set by whoever accepts
/// connections; no header can say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where the connection comes from.
    pub address: IpAddr,
    /// The name in the client's certificate, where one was asked for, shown and verified.
    pub certificate: Option<Arc<str>>,
}
