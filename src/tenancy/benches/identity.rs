//! What it costs to know who calls: everything between the headers and the caller.

#![expect(missing_docs, reason = "the group that criterion makes is public")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::{digest, hmac};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method, Uri};
use roundhouse_tenancy::{Asked, AuthConfig, Fetch, Identified, Identity, KeyFile, Wanted};

const NOW: u64 = 1_795_262_700;
const DATE: &str = "20261121T120500Z";
const SIGNED: &str = "accept;content-type;host;x-amz-date;x-amzn-sagemaker-target-model";

fn clock() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hash(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Headers as boto3 sends them, signed over a body.
fn signed(id: &str, secret: &str, body: &[u8]) -> HeaderMap {
    let headers = [
        ("accept", "application/json"),
        ("content-type", "application/json"),
        ("host", "127.0.0.1:8080"),
        ("x-amz-date", DATE),
        ("x-amzn-sagemaker-target-model", "acme/chat-v7/"),
    ];
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let canonical =
        format!("POST\n/endpoints/demo/invocations\n\n{lines}\n{SIGNED}\n{}", hash(body));
    let scope = "20261121/eu-central-1/sagemaker/aws4_request";
    let text = format!("AWS4-HMAC-SHA256\n{DATE}\n{scope}\n{}", hash(canonical.as_bytes()));
    let key = scope.split('/').fold(format!("AWS4{secret}").into_bytes(), |key, part| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        hmac::sign(&key, part.as_bytes()).as_ref().to_vec()
    });
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), text.as_bytes());
    let value = format!(
        "AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={SIGNED}, Signature={}",
        hex(signature.as_ref())
    );
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(name, HeaderValue::from_static(value));
    }
    map.insert("authorization", value.parse().expect("a header's value"));
    map
}

fn let_in(identity: &Identity, headers: &HeaderMap, body: &[u8]) {
    let uri = Uri::from_static("/endpoints/demo/invocations");
    let asked = Asked { method: &Method::POST, uri: &uri, headers, peer: None };
    let identified = identity.identify(&asked).now_or_never().expect("nothing is waited for");
    let caller = match identified.expect("the headers hold") {
        Identified::Caller(caller) => caller,
        Identified::IfBody(signed) => identity.verify(*signed, body).expect("the signature holds"),
    };
    black_box(caller);
}

fn identity(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    let acme = || "acme".parse().expect("a tenant's name");
    let pair = KeyFile::create(&path, Wanted::Sigv4(acme()), None).expect("a pair");
    let bearer = KeyFile::create(&path, Wanted::Bearer(acme()), None).expect("a key");
    for _ in 0..100 {
        KeyFile::create(&path, Wanted::Bearer(acme()), None).expect("one of many");
    }
    let config = AuthConfig { keys: Some(path), anonymous: false, ..AuthConfig::default() };
    let fetch: Fetch = Arc::new(|_| Box::pin(async { Err(String::new().into()) }));
    let identity = Identity::new(&config, fetch).expect("the file is read").with_clock(clock);
    let mut group = c.benchmark_group("identity");
    for (name, size) in [("1 KiB", 1 << 10), ("64 KiB", 64 << 10), ("6 MB", 6_000_000)] {
        let body = vec![b'x'; size];
        let headers = signed(&pair.record.id, pair.secret.reveal(), &body);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("sigv4, {name}"), |bencher| {
            bencher.iter(|| let_in(&identity, &headers, &body));
        });
    }
    group.throughput(Throughput::Elements(1));
    let mut headers = HeaderMap::new();
    let value = format!("Bearer {}", bearer.secret.reveal());
    headers.insert("authorization", value.parse().expect("a header's value"));
    group.bench_function("bearer", |bencher| {
        bencher.iter(|| let_in(&identity, &headers, b""));
    });
    group.finish();
}

criterion_group!(benches, identity);
criterion_main!(benches);
