//! A proxy that has asked already: its word is a header, believed from its own address only.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use roundhouse_types::TenantName;

use crate::caller::{ANONYMOUS, Caller, Peer};
use crate::denied::Denied;

/// Which peers say in which header on whose behalf they ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// The networks from which the header is believed: as narrow as the proxies themselves.
    pub networks: Vec<IpNet>,
    /// The header with the tenant's name. A trusted proxy must overwrite what clients send in it.
    pub header: HeaderName,
}

impl ProxyConfig {
    /// The caller that a trusted peer names. Whoever else sends the header is not listened to.
    ///
    /// # Errors
    /// `Incomplete` where a trusted peer names no tenant, two, or that of callers without a
    /// credential.
    pub(crate) fn caller(
        &self,
        peer: Option<&Peer>,
        headers: &HeaderMap,
    ) -> Result<Option<Caller>, Denied> {
        let Some(peer) = peer.filter(|peer| self.trusts(peer.address)) else { return Ok(None) };
        let mut values = headers.get_all(&self.header).iter();
        let Some(value) = values.next() else { return Ok(None) };
        let name = value.to_str().ok().filter(|name| *name != ANONYMOUS);
        let name = name.and_then(|name| name.parse::<TenantName>().ok());
        match (name, values.next()) {
            (Some(tenant), None) => {
                Ok(Some(Caller::known(tenant, format!("proxy:{}", peer.address))))
            }
            _ => {
                let message =
                    format!("the proxy's header {} is not one tenant's name", self.header);
                Err(Denied::Incomplete(message))
            }
        }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        // A socket for both families shows IPv4 peers as mapped addresses.
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy() -> ProxyConfig {
        ProxyConfig {
            networks: vec!["10.1.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()],
            header: HeaderName::from_static("x-tenant"),
        }
    }

    fn asked(from: &str, values: &[&str]) -> Result<Option<Caller>, Denied> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-tenant", value.parse().unwrap());
        }
        let peer = Peer { address: from.parse().unwrap(), certificate: None };
        proxy().caller(Some(&peer), &headers)
    }

    #[test]
    fn the_header_counts_from_listed_networks_only() {
        for from in ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"] {
            let caller = asked(from, &["acme"]).unwrap().unwrap();
            assert_eq!(caller.tenant.unwrap().as_str(), "acme", "{from}");
        }
        for from in ["10.2.0.1", "127.0.0.1", "::1", "::ffff:10.2.0.1"] {
            assert_eq!(asked(from, &["acme"]), Ok(None), "{from}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("x-tenant", "acme".parse().unwrap());
        assert_eq!(proxy().caller(None, &headers), Ok(None));
    }

    #[test]
    fn a_proxy_names_one_tenant() {
        assert_eq!(asked("10.1.0.1", &[]), Ok(None));
        for values in [&["a", "b"][..], &["anonymous"], &["a/b"], &[""], &["../a"], &["a,b\u{9}"]] {
            let got = asked("10.1.0.1", values);
            assert!(matches!(got, Err(Denied::Incomplete(_))), "{values:?}: {got:?}");
        }
    }
}
