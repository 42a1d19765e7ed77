//! What it costs to know who calls: everything between the headers and the caller.

#![expect(missing_docs, reason = "the group that criterion makes is public")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::FutureExt;
use http::{HeaderMap, Method, Uri};
use roundhouse_tenancy::{Asked, AuthConfig, Fetch, Identified, Identity, KeyFile, Wanted};
use signed::{clock, signed};

#[path = "support/signed.rs"]
mod signed;

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
