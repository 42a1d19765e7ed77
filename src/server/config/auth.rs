//! `[auth]`: who may call. `[tls]`: how connections are encrypted, and whose certificates count.

use std::net::IpAddr;
use std::path::PathBuf;

use axum::http::HeaderName;
use ipnet::IpNet;
use roundhouse_tenancy::{AuthConfig, ProxyConfig};

use super::raw::Sources;
use super::{defaults, issuers};

/// `[tls]`: how connections are encrypted. Absent parts are plain HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The data port's.
    pub data: Option<TlsFiles>,
    /// The admin port's.
    pub admin: Option<TlsFiles>,
}

/// One port's certificate; the files are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain, in PEM, the server's own first.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// Authorities that sign clients' certificates, in PEM; absent: none is asked for.
    pub client_ca: Option<PathBuf>,
    /// Which name in a client's certificate is its tenant's.
    pub client_name: ClientName,
}

/// Which name in a client's certificate is its tenant's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientName {
    /// The first DNS name among its alternative names.
    #[default]
    San,
    /// The common name of its subject.
    Cn,
}

pub(super) fn resolve(sources: &mut Sources<'_>, contract: bool, tls: &Tls) -> AuthConfig {
    let keys = sources.optional("auth.keys", file);
    let oidc = issuers::oidc(sources);
    let iam = issuers::iam(sources);
    let networks = sources.optional("auth.proxy_networks", |text| {
        text.split_whitespace().map(network).collect::<Result<Vec<_>, _>>()
    });
    let header = sources.optional("auth.proxy_header", |text| {
        let reserved = ["authorization", "host", "content-length", "cookie"];
        match text.parse::<HeaderName>() {
            Ok(name) if !reserved.contains(&name.as_str()) => Ok(name),
            _ => Err(format!("'{text}' cannot be a header for a tenant's name")),
        }
    });
    let header = header.unwrap_or(HeaderName::from_static(defaults::PROXY_HEADER));
    let proxy = networks.filter(|networks| !networks.is_empty());
    let auth = AuthConfig {
        keys,
        oidc,
        iam,
        proxy: proxy.map(|networks| ProxyConfig { networks, header }),
        certificates: tls.data.as_ref().is_some_and(|data| data.client_ca.is_some()),
        anonymous: true,
        unsigned_payload: sources.switch("auth.unsigned_payload").unwrap_or(false),
    };
    let said = sources.switch("auth.anonymous");
    let anonymous = said.unwrap_or(!auth.asks());
    if !anonymous && !auth.asks() {
        let message = "is false, and nothing says who callers are: set auth.keys, auth.oidc_issuer, \
                       auth.aws_sts, auth.proxy_networks or tls.client_ca";
        sources.fault("auth.anonymous", message);
    }
    if contract && !anonymous {
        let message = "SageMaker sends a container no credentials: under the container contract, \
                       set auth.anonymous = true";
        sources.fault("auth.anonymous", message);
    }
    AuthConfig { anonymous, ..auth }
}

pub(super) fn tls(sources: &mut Sources<'_>) -> Tls {
    let certificate = sources.optional("tls.certificate", file);
    let key = sources.optional("tls.key", file);
    let client_ca = sources.optional("tls.client_ca", file);
    let client_name = sources.optional("tls.client_name", |text| match text {
        "san" => Ok(ClientName::San),
        "cn" => Ok(ClientName::Cn),
        _ => Err(format!("'{text}' is neither san nor cn")),
    });
    let client_name = client_name.unwrap_or_default();
    if client_ca.is_some() && certificate.is_none() {
        sources.fault("tls.client_ca", "is of no use without tls.certificate");
    }
    let data = pair(sources, ["tls.certificate", "tls.key"], certificate, key);
    let certificate = sources.optional("tls.admin_certificate", file);
    let key = sources.optional("tls.admin_key", file);
    let names = ["tls.admin_certificate", "tls.admin_key"];
    let admin = pair(sources, names, certificate, key);
    Tls { data: data.map(|files| TlsFiles { client_ca, client_name, ..files }), admin }
}

fn pair(
    sources: &mut Sources<'_>,
    names: [&'static str; 2],
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Option<TlsFiles> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => {
            let client_name = ClientName::default();
            Some(TlsFiles { certificate, key, client_ca: None, client_name })
        }
        (None, None) => None,
        (Some(_), None) => {
            sources.fault(names[1], format!("is missing beside {}", names[0]));
            None
        }
        (None, Some(_)) => {
            sources.fault(names[0], format!("is missing beside {}", names[1]));
            None
        }
    }
}

/// Names by which browsers may reach the admin port.
pub(super) fn admin_hosts(sources: &mut Sources<'_>) -> Vec<String> {
    let hosts = sources.optional("listen.admin_hosts", |text| {
        let is_name = |word: &&str| {
            word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
        };
        match text.split_whitespace().find(|word| !is_name(word)) {
            Some(word) => Err(format!("'{word}' is not a host's name without a port")),
            None => Ok(text.split_whitespace().map(str::to_ascii_lowercase).collect()),
        }
    });
    hosts.unwrap_or_default()
}

/// A network, or one address.
fn network(word: &str) -> Result<IpNet, String> {
    let one = || word.parse::<IpAddr>().map(IpNet::from);
    let network = word.parse::<IpNet>().or_else(|_| one());
    let network = network
        .map_err(|_| format!("'{word}' is not a network, like 10.1.0.0/16, or an address"))?;
    match network.prefix_len() {
        0 => Err(format!("'{word}' is everybody: list the proxies alone")),
        _ => Ok(network),
    }
}

fn file(text: &str) -> Result<PathBuf, String> {
    word(text).map(PathBuf::from)
}

pub(super) fn word(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("is empty".to_owned()),
        word if word.chars().any(char::is_control) => Err("holds control characters".to_owned()),
        word => Ok(word.to_owned()),
    }
}
