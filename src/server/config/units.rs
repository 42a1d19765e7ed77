//! Addresses as people write them.

use std::net::SocketAddr;

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
