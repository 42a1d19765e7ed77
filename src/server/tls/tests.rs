use std::fs;
use std::path::PathBuf;

use axum::extract::Extension;
use axum::routing::get;
use roundhouse_tenancy::Peer;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::*;

#[test]
fn a_common_name_is_found_among_others() {
    // C=DE, O=Umbrella, CN=acme
    let subject = b"\x31\x0b\x30\x09\x06\x03\x55\x04\x06\x13\x02DE\
                    \x31\x11\x30\x0f\x06\x03\x55\x04\x0a\x0c\x08Umbrella\
                    \x31\x0d\x30\x0b\x06\x03\x55\x04\x03\x0c\x04acme";
    assert_eq!(common_name(subject), Some("acme"));
    assert_eq!(common_name(&subject[..32]), None, "without one");
    for cut in 33..subject.len() {
        assert_eq!(common_name(&subject[..cut]), None, "{cut}");
    }
    assert_eq!(common_name(b""), None);
    assert_eq!(common_name(b"\x31\x85\xff\xff\xff\xff"), None);
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

/// A port with certificates in a folder of its own, which answers with its peer's name.
struct Port {
    folder: tempfile::TempDir,
    tls: Arc<Tls>,
    address: std::net::SocketAddr,
}

impl Port {
    async fn open(client_name: ClientName) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = |name: &str| folder.path().join(name);
        fs::copy(fixture("ca.crt"), port("ca.crt")).unwrap();
        fs::copy(fixture("server.crt"), port("tls.crt")).unwrap();
        fs::copy(fixture("server.key"), port("tls.key")).unwrap();
        let files = TlsFiles {
            certificate: port("tls.crt"),
            key: port("tls.key"),
            client_ca: Some(port("ca.crt")),
            client_name,
        };
        let tls = Arc::new(Tls::open(&files).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let who = |Extension(peer): Extension<Peer>| async move {
            peer.certificate.map_or_else(|| "nobody".to_owned(), |name| name.to_string())
        };
        let router = axum::Router::new().route("/", get(who));
        let stop = CancellationToken::new();
        let connections =
            crate::connections::Connections::new(64, std::time::Duration::from_secs(300));
        let threads = Some(Arc::new(crate::threads::Threads::start().unwrap()));
        let port = crate::http::Port { router, tls: Some(tls.clone()), connections, threads };
        tokio::spawn(crate::http::serve(listener, port, stop));
        Self { folder, tls, address }
    }

    fn replace(&self, name: &str, content: &[u8]) {
        let new = self.folder.path().join("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, self.folder.path().join(name)).unwrap();
    }

    async fn connect(&self, shown: Option<&str>) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(&fixture("ca.crt")).unwrap() {
            roots.add(authority).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match shown {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = certificates(&fixture(&format!("{name}.crt"))).unwrap();
                let key = fixture(&format!("{name}.key"));
                let key = PrivateKeyDer::from_pem_file(key).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

async fn ask(stream: &mut TlsStream<TcpStream>) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
    let mut answer = Vec::new();
    while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let text = String::from_utf8(answer).unwrap();
    Ok(text.rsplit("\r\n").next().unwrap().to_owned())
}

fn served(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn der(name: &str) -> Vec<u8> {
    certificates(&fixture(name)).unwrap()[0].to_vec()
}

#[tokio::test]
async fn a_clients_certificate_names_it_where_our_authority_signed_it() {
    for name in [ClientName::San, ClientName::Cn] {
        let port = Port::open(name).await;
        let mut known = port.connect(Some("client")).await.unwrap();
        assert_eq!(ask(&mut known).await.unwrap(), "acme", "{name:?}");
        let mut nobody = port.connect(None).await.unwrap();
        assert_eq!(ask(&mut nobody).await.unwrap(), "nobody");
        // In TLS 1.3 the refusal comes after the client's side of the handshake.
        let refused = match port.connect(Some("stranger")).await {
            Ok(mut stream) => ask(&mut stream).await.map(|_| ()),
            Err(error) => Err(error),
        };
        assert!(refused.is_err(), "another authority's");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_served_to_new_connections_and_cuts_no_old_one() {
    let port = Port::open(ClientName::San).await;
    let mut old = port.connect(None).await.unwrap();
    assert_eq!(served(&old), der("server.crt"));
    assert!(!port.tls.refresh().unwrap());
    let text = |name: &str| fs::read(fixture(name)).unwrap();
    // Half of a renewal changes nothing.
    port.replace("tls.crt", &text("renewed.crt"));
    assert!(port.tls.refresh().is_err());
    assert_eq!(served(&port.connect(None).await.unwrap()), der("server.crt"));
    port.replace("tls.key", &text("renewed.key"));
    assert!(port.tls.refresh().unwrap());
    assert_eq!(served(&port.connect(None).await.unwrap()), der("renewed.crt"));
    assert_eq!(ask(&mut old).await.unwrap(), "nobody", "it goes on");
    for broken in [&b""[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        port.replace("tls.crt", broken);
        assert!(port.tls.refresh().is_err());
        assert!(!port.tls.refresh().unwrap(), "it is told once");
    }
    assert_eq!(ask(&mut old).await.unwrap(), "nobody");
}

#[tokio::test]
async fn plain_http_at_an_encrypted_port_is_let_go() {
    let port = Port::open(ClientName::San).await;
    let mut stream = TcpStream::connect(port.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // An alert, or nothing: no HTTP.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"));
}
