use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use roundhouse_types::{Bytes, ErrorKind};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::testing::{contract, contract_objects, contract_of_writes};
use crate::{
    CacheConfig, Catalog, CatalogConfig, DiskCache, Freshness, Progress, RetryConfig, StoreUri,
};

const KEY: &str = "AKEXAMPLE";
const SECRET: &str = "secret";

/// An S3 server on loopback with one bucket, `models`.
struct Server {
    url: String,
    task: JoinHandle<()>,
    _folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("models")).unwrap();
        let files = s3s_fs::FileSystem::new(folder.path()).unwrap();
        let mut builder = s3s::service::S3ServiceBuilder::new(files);
        builder.set_auth(s3s::auth::SimpleAuth::from_single(KEY, SECRET));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            while let Ok((socket, _)) = listener.accept().await {
                let connection =
                    http.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
                tokio::spawn(async move {
                    let _ = connection.await;
                });
            }
        });
        Self { url, task, _folder: folder }
    }

    fn mount(&self, uri: &str) -> MountConfig {
        MountConfig {
            endpoint_url: Some(self.url.clone()),
            ..MountConfig::new(uri.parse::<StoreUri>().unwrap())
        }
    }

    async fn store(&self, uri: &str) -> S3Store {
        S3Store::connect_with_keys(&self.mount(uri), KEY, SECRET).await.unwrap()
    }
}

async fn put(client: &Client, key: &str, contents: Vec<u8>) {
    let body = ByteStream::from(contents);
    client.put_object().bucket("models").key(key).body(body).send().await.unwrap();
}

fn catalog(store: S3Store) -> Catalog {
    let config = CatalogConfig {
        settle: Duration::ZERO,
        retry: RetryConfig {
            attempts: 2,
            pause: Duration::from_millis(1),
            ..RetryConfig::default()
        },
        ..CatalogConfig::default()
    };
    Catalog::over("ep".parse().unwrap(), vec![(None, Arc::new(store))], config).unwrap()
}

async fn resolve_error(store: S3Store) -> Error {
    let target = "m".parse().unwrap();
    catalog(store).resolve(&target, Freshness::Cached).await.unwrap_err()
}

#[tokio::test]
async fn an_s3_store_keeps_the_contract_below_a_prefix() {
    let server = Server::start().await;
    let store = server.store("s3://models/some/prefix").await;
    for (key, contents) in contract_objects() {
        put(&store.client, &format!("some/prefix/{key}"), contents).await;
    }
    put(&store.client, "some/other", b"outside".to_vec()).await;
    contract(&store).await;
}

#[tokio::test]
async fn an_s3_store_keeps_the_contract_of_writes_below_a_prefix() {
    let server = Server::start().await;
    let store = server.store("s3://models/written/here").await;
    contract_of_writes(&store).await;
    store.put("typed.out", "1,2".into(), Some("text/csv")).await.unwrap();
    let head = store.client.head_object().bucket("models").key("written/here/typed.out");
    assert_eq!(head.send().await.unwrap().content_type(), Some("text/csv"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_on_s3_is_resolved_listed_and_fetched() {
    let server = Server::start().await;
    let store = server.store("s3://models/").await;
    let weights: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
    put(&store.client, "t/a model+1/config.json", b"{}".to_vec()).await;
    put(&store.client, "t/a model+1/weights.bin", weights.clone()).await;
    let catalog = catalog(store);
    let page = catalog.list(None, 10).await.unwrap();
    assert_eq!(page.targets[0].name.as_str(), "t/a model+1");
    let artefact = catalog.resolve(&page.targets[0].name, Freshness::Cached).await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let config =
        CacheConfig { part: Bytes::mib(1), ..CacheConfig::new(folder.path(), Bytes::mib(64)) };
    let disk = DiskCache::open(config).await.unwrap();
    let cached = disk.fetch(&catalog, &artefact, &Progress::new()).await.unwrap();
    assert!(std::fs::read(cached.dir().join("weights.bin")).unwrap() == weights);
    assert_eq!(disk.latest(&artefact.id.model), Some(artefact.id.clone()));
}

#[test]
fn only_checksums_over_the_whole_object_are_used() {
    let head = || HeadObjectOutput::builder().checksum_crc32_c("4waSgw==");
    let wanted = Checksum { algorithm: ChecksumAlgorithm::Crc32c, base64: "4waSgw==".into() };
    let full = head().checksum_type(ChecksumType::FullObject).build();
    assert_eq!(checksum(&full), Some(wanted));
    assert_eq!(checksum(&head().checksum_type(ChecksumType::Composite).build()), None);
    assert_eq!(checksum(&head().e_tag("\"0123-2\"").build()), None);
    assert_eq!(checksum(&HeadObjectOutput::builder().build()), None);
}

#[tokio::test]
async fn wrong_keys_are_denied() {
    let server = Server::start().await;
    let mount = server.mount("s3://models/");
    let store = S3Store::connect_with_keys(&mount, KEY, "wrong").await.unwrap();
    let error = resolve_error(store).await;
    assert!(matches!(error, Error::AccessDenied { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::StoreDenied);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let mut mount = MountConfig::new("s3://models/".parse().unwrap());
    mount.endpoint_url = Some(url);
    let store = S3Store::connect_with_keys(&mount, KEY, SECRET).await.unwrap();
    let error = resolve_error(store).await;
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
}

#[tokio::test]
async fn missing_credentials_are_said_and_do_not_hang() {
    #[derive(Debug)]
    struct Nothing;
    impl aws_credential_types::provider::ProvideCredentials for Nothing {
        fn provide_credentials<'a>(
            &'a self,
        ) -> aws_credential_types::provider::future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            use aws_credential_types::provider::error::CredentialsError;
            let error = CredentialsError::not_loaded("no providers in chain provided credentials");
            aws_credential_types::provider::future::ProvideCredentials::ready(Err(error))
        }
    }
    let server = Server::start().await;
    let mount = server.mount("s3://models/");
    let given = SharedCredentialsProvider::new(Nothing);
    let store = connect::connect(&mount, Some(given)).await.unwrap();
    let error = resolve_error(store).await;
    assert!(matches!(error, Error::NoCredentials { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::StoreDenied);
}

#[tokio::test]
async fn a_store_is_told_apart_by_address_bucket_and_prefix_and_not_by_who_asks() {
    let identity = async |uri: &str, url: &str| {
        let endpoint_url = Some(url.to_owned());
        let mount = MountConfig { endpoint_url, ..MountConfig::new(uri.parse().unwrap()) };
        S3Store::connect_with_keys(&mount, KEY, SECRET).await.unwrap().identity()
    };
    let one = identity("s3://models/a", "http://host:9000").await;
    assert_eq!(one, "http://host:9000 s3://models/a/");
    assert_eq!(identity("s3://models/a/", "HTTP://me:hush@Host:9000/").await, one);
    for (with, without) in [("http://h:80/x", "http://h/x"), ("https://h:443", "https://h")] {
        assert_eq!(identity("s3://b", with).await, identity("s3://b", without).await);
    }
    assert_ne!(identity("s3://b", "http://h:443").await, identity("s3://b", "http://h").await);
    assert_eq!(identity("s3://models", "http://host:9000").await, "http://host:9000 s3://models/");
    for other in [("s3://models/b", "http://host:9000"), ("s3://models/a", "http://host:9001")] {
        assert_ne!(identity(other.0, other.1).await, one);
    }
}

/// What a profile says of S3 alone.
#[derive(Debug)]
struct OfService(Option<&'static str>);

impl aws_types::service_config::LoadServiceConfig for OfService {
    fn load_config(&self, key: aws_types::service_config::ServiceConfigKey<'_>) -> Option<String> {
        let asked = (key.service_id(), key.env(), key.profile());
        assert_eq!(asked, ("S3", "AWS_ENDPOINT_URL", "endpoint_url"), "as the client asks");
        self.0.map(str::to_owned)
    }
}

#[test]
fn a_store_is_where_its_mount_says_else_where_s3_is_else_where_all_services_are() {
    let of = |mount: Option<&str>, service, all: Option<&str>| {
        let endpoint_url = mount.map(str::to_owned);
        let mount = MountConfig { endpoint_url, ..MountConfig::new("s3://b".parse().unwrap()) };
        let mut shared = aws_config::SdkConfig::builder().service_config(OfService(service));
        shared.set_endpoint_url(all.map(str::to_owned));
        connect::address(&mount, &shared.build())
    };
    let (mount, service, all) = ("http://mount", "http://service", "http://all");
    assert_eq!(of(Some(mount), Some(service), Some(all)).as_deref(), Some(mount));
    assert_eq!(of(None, Some(service), Some(all)).as_deref(), Some(service));
    assert_eq!(of(None, None, Some(all)).as_deref(), Some(all));
    assert_eq!(of(None, None, None), None, "AWS");
}
