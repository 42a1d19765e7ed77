//! TLS of a port: certificates that are read again when their files change, and the names in
//! clients' certificates.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use roundhouse_tenancy::Stamp;
use roundhouse_types::{ErrorKind, Failure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::config::{ClientName, TlsFiles};
use crate::error::Error;

/// What handshakes offer: HTTP/2 where the client knows it.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// `id-at-commonName`, 2.5.4.3, as DER has it.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// One port's certificate in force. Connections keep what they began with.
#[derive(Debug)]
pub(crate) struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<ServerConfig>>,
    /// What the files looked like when they were read last, well or badly.
    seen: Mutex<Stamp>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read, or certificate and key do not belong together.
    pub(crate) fn open(files: &TlsFiles) -> Result<Self, Error> {
        let seen = stamp(files);
        let current = RwLock::new(Arc::new(read(files)?));
        Ok(Self { files: files.clone(), current, seen: Mutex::new(seen) })
    }

    /// For the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone().into()
    }

    /// Reads the files again if one has changed; `true` where another certificate is in force now.
    /// What was in force stays where they are no good, and a fault is told once per change.
    ///
    /// # Errors
    /// As [`Tls::open`].
    pub(crate) fn refresh(&self) -> Result<bool, Error> {
        let stamp = stamp(&self.files);
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if *seen == stamp {
                return Ok(false);
            }
            *seen = stamp;
        }
        let read = Arc::new(read(&self.files)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(true)
    }

    /// The name in a client's certificate that has been verified.
    pub(crate) fn name(&self, certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
        let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
        match self.files.client_name {
            ClientName::San => certificate.valid_dns_names().next().map(Arc::from),
            ClientName::Cn => common_name(certificate.subject()).map(Arc::from),
        }
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    let mut paths: Vec<&Path> = vec![&files.certificate, &files.key];
    paths.extend(files.client_ca.as_deref());
    Stamp::of(&paths)
}

fn read(files: &TlsFiles) -> Result<ServerConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = certificates(&files.certificate)?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| unreadable(&files.key, &error))?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(&files.certificate, &error))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority).map_err(|error| refused(path, &error))?;
            }
            // Who shows none may have a key; who has neither is refused with an answer.
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| refused(path, &error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| refused(&files.certificate, &error))?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

/// All certificates of a file; one at least.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read.map_err(|error| unreadable(path, &error))? {
        none if none.is_empty() => Err(Error::io(
            format!("{} holds no certificate", path.display()),
            io::ErrorKind::InvalidData.into(),
        )),
        some => Ok(some),
    }
}

fn unreadable(path: &Path, error: &rustls::pki_types::pem::Error) -> Error {
    let why = io::Error::other(error.to_string());
    Error::io(format!("cannot read {} as PEM", path.display()), why)
}

/// What rustls does not take, and why.
pub(crate) fn refused(path: &Path, error: &dyn std::fmt::Display) -> Error {
    let message = format!("{} cannot be used for TLS: {error}", path.display());
    Failure::new(ErrorKind::InvalidRequest, message).into()
}

/// The last common name in a subject: sets of pairs of an object id and a string (RFC 5280,
/// 4.1.2.4), without the outer sequence.
fn common_name(subject: &[u8]) -> Option<&str> {
    let (mut rest, mut found) = (subject, None);
    while !rest.is_empty() {
        let (set, after) = element(rest, 0x31)?;
        rest = after;
        let (pair, _) = element(set, 0x30)?;
        let (kind, value) = element(pair, 0x06)?;
        if kind == COMMON_NAME {
            let (text, _) = [0x0c, 0x13].iter().find_map(|tag| element(value, *tag))?;
            found = Some(std::str::from_utf8(text).ok()?);
        }
    }
    found
}

/// The content of a DER element with this tag, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => rest.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
        _ => return None,
    };
    (found == tag && rest.len() >= length).then(|| rest.split_at(length))
}

#[cfg(test)]
mod tests;
