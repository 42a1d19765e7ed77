//! An S3-compatible server on loopback, over a folder.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The keys the embedded server accepts. It listens on loopback only, and holds nothing secret.
pub(crate) const ACCESS_KEY: &str = "roundhouse-demo";
pub(crate) const SECRET_KEY: &str = "roundhouse-demo-secret";

/// A running server; dropping it stops accepting.
pub(crate) struct EmbeddedS3 {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl EmbeddedS3 {
    /// Starts a server on a free loopback port over the buckets (folders) in `root`.
    ///
    /// # Errors
    /// When `root` is no folder or no port can be had.
    pub(crate) async fn start(root: &Path) -> io::Result<Self> {
        let files = s3s_fs::FileSystem::new(root)
            .map_err(|error| io::Error::other(format!("{}: {error:?}", root.display())))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(accept(listener, builder.build()));
        Ok(Self { address, accepting })
    }

    /// The endpoint URL for S3 clients.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for EmbeddedS3 {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, service: S3Service) {
    let http = auto::Builder::new(TokioExecutor::new());
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let connection = http.serve_connection(TokioIo::new(stream), service.clone()).into_owned();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "embedded S3 connection ended");
            }
        });
    }
}
