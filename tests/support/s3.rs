//! An S3-compatible server in this process, over a temporary folder.

use std::net::SocketAddr;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What the server accepts.
pub const ACCESS_KEY: &str = "test-access";
/// Its secret.
pub const SECRET_KEY: &str = "test-secret";

/// A running server with one bucket, `models`.
pub struct S3 {
    address: SocketAddr,
    accepting: JoinHandle<()>,
    client: Client,
    _root: tempfile::TempDir,
}

impl S3 {
    /// Starts it on a free loopback port.
    pub async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("models")).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let connection =
                    http.serve_connection(TokioIo::new(stream), service.clone()).into_owned();
                tokio::spawn(async move {
                    // A client that leaves is none of our concern.
                    let _ = connection.await;
                });
            }
        });
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(format!("http://{address}"))
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test"))
            .force_path_style(true)
            .build();
        Self { address, accepting, client: Client::from_conf(config), _root: root }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The environment with which the server under test reaches `address`: this server's, or
    /// a proxy's before it.
    pub fn env(address: SocketAddr) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL_S3", format!("http://{address}")),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_EC2_METADATA_DISABLED", "true".into()),
        ]
    }

    /// Puts one object.
    pub async fn put(&self, key: &str, body: Vec<u8>) {
        self.client
            .put_object()
            .bucket("models")
            .key(key)
            .body(body.into())
            .send()
            .await
            .expect("the S3 server takes an object");
    }

    /// Puts files under a prefix, in the order given.
    pub async fn put_folder(&self, prefix: &str, files: &[(String, Vec<u8>)]) {
        for (path, body) in files {
            self.put(&format!("{prefix}/{path}"), body.clone()).await;
        }
    }

    /// The keys of all objects below a prefix, of a thousand at most.
    pub async fn keys(&self, prefix: &str) -> Vec<String> {
        let listed = self.client.list_objects_v2().bucket("models").prefix(prefix).send().await;
        let listed = listed.expect("the S3 server lists objects");
        listed.contents().iter().filter_map(|object| object.key().map(str::to_owned)).collect()
    }

    /// One object's content type and bytes.
    pub async fn get(&self, key: &str) -> (Option<String>, Vec<u8>) {
        let got = self.client.get_object().bucket("models").key(key).send().await;
        let got = got.expect("the S3 server has the object");
        let kind = got.content_type().map(str::to_owned);
        (kind, got.body.collect().await.expect("a whole object").to_vec())
    }

    /// Deletes one object.
    pub async fn delete(&self, key: &str) {
        self.client.delete_object().bucket("models").key(key).send().await.unwrap();
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
