//! Addresses and files as people write them.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Reads `127.0.0.1:8080`, `[::1]:8080` or `localhost:8080`.
pub(super) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    numeric.parse().map_err(|_| {
        format!("'{text}' is not an address: write an IP address and a port, like 127.0.0.1:8080")
    })
}

/// Reads a file's name, where words (`or`) could stand in its place: one that is misspelt is no file.
pub(super) fn parse_file(text: &str, or: &str) -> Result<PathBuf, String> {
    if text.contains("://") || !text.contains(['/', '.']) {
        return Err(format!("'{text}' is neither {or} nor a file: write a path, with a / or a ."));
    }
    Ok(text.into())
}
