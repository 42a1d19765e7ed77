//! Whose certificates our own HTTP clients believe.

use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use crate::error::Error;
use crate::tls;

/// The authorities of this machine, where it has any, and those of a file.
///
/// # Errors
/// When the file cannot be read, or holds what is no authority.
pub(crate) fn ours_and(file: Option<&Path>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    // A machine without authorities speaks plain HTTP all the same; a handshake tells.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = file {
        for authority in tls::certificates(path)? {
            roots.add(authority).map_err(|error| tls::refused(path, &error))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has ciphers of both versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
