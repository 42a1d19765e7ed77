//! What the whole chain in front of a model adds to a request: its signature and its body's hash, its
//! tenant's policy, its limits, and the settlement of what it took.
//!
//! `cargo bench --workspace --bench chain`

#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use http::{HeaderMap, Method, Uri};
use roundhouse_tenancy::{
    Accounts, Asked, AuthConfig, Caller, Estimate, Facts, Fetch, Grants, Identified, Identity,
    KeyFile, Limits, Policy, QuotaRules, Rate, Verdict, Wanted,
};
use roundhouse_types::{ModelId, TenantName};
use signed::{clock, hash, signed};
use uuid::Uuid;

#[path = "support/signed.rs"]
mod signed;

/// Tenants in policy and limits.
const TENANTS: usize = 100;
const GOAL: Duration = Duration::from_micros(30);

struct Chain {
    identity: Identity,
    policy: Policy,
    accounts: Arc<Accounts>,
    model: ModelId,
}

impl Chain {
    fn identified(&self, headers: &HeaderMap, body: &[u8]) -> Caller {
        let uri = Uri::from_static("/endpoints/demo/invocations");
        let asked = Asked { method: &Method::POST, uri: &uri, headers, peer: None };
        let identified = self.identity.identify(&asked).now_or_never().expect("nothing is awaited");
        match identified.expect("the headers hold") {
            Identified::Caller(caller) => caller,
            Identified::IfBody(signed) => {
                self.identity.verify(*signed, body).expect("the signature holds")
            }
        }
    }

    /// One request from its headers to its settlement.
    fn pass(&self, headers: &HeaderMap, body: &[u8], id: Uuid) {
        let caller = self.identified(headers, body);
        assert_eq!(self.policy.verdict(&caller, &self.model), Verdict::Allowed);
        let estimate = Estimate { tokens_in: 256, tokens_out: 256 };
        let visit = self.accounts.admit(&caller, &self.model, id, estimate).expect("within limits");
        let model = Some(self.model.clone());
        let facts = Facts { model, complete: true, tokens_in: 250, ..Facts::default() };
        drop(black_box(visit.settle(facts)));
    }
}

fn tenant(number: usize) -> TenantName {
    format!("tenant-{number}").parse().expect("a tenant's name")
}

fn policy() -> Policy {
    let patterns = |number: usize| {
        let own = format!("tenant-{number}/**");
        [own.as_str(), "shared/base", "demo:shared/*"].map(|it| it.parse().expect("a pattern"))
    };
    let grants = |number| {
        let all = patterns(number).to_vec();
        Grants { invoke: all.clone(), load: all.clone(), see: all, ..Grants::default() }
    };
    Policy::new((0..TENANTS).map(|number| (tenant(number), grants(number))), true)
}

fn rules() -> QuotaRules {
    let limits = Limits {
        requests: Some(Rate { per_second: 1e6, burst: 1_000_000_000 }),
        tokens_in_per_minute: Some(1 << 50),
        tokens_out_per_minute: Some(1 << 50),
        concurrent_requests: Some(1000),
        requests_per_day: Some(1 << 50),
        tokens_per_day: Some(1 << 50),
        compute_per_day: Some(Duration::from_secs(1 << 40)),
    };
    let named = (0..TENANTS).map(|number| (tenant(number), limits)).collect();
    QuotaRules { named, others: limits }
}

/// Times of single runs, in order.
fn times(runs: usize, mut run: impl FnMut()) -> Vec<Duration> {
    (0..runs / 10).for_each(|_| run());
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            let began = Instant::now();
            run();
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    times
}

fn tell(name: &str, times: &[Duration]) -> Duration {
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!("{name}: p50 {:.2?}, p99 {:.2?} of {}", at(0.5), at(0.99), times.len());
    at(0.5)
}

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    let pair = KeyFile::create(&path, Wanted::Sigv4(tenant(7)), None).expect("a pair");
    for number in 0..TENANTS {
        KeyFile::create(&path, Wanted::Bearer(tenant(number)), None).expect("one of many");
    }
    let config = AuthConfig { keys: Some(path), anonymous: false, ..AuthConfig::default() };
    let fetch: Fetch = Arc::new(|_| Box::pin(async { Err(String::new().into()) }));
    let identity = Identity::new(&config, fetch).expect("the file is read").with_clock(clock);
    let target = "tenant-7/chat".parse().expect("a target");
    let chain = Chain {
        identity,
        policy: policy(),
        accounts: Arc::new(Accounts::new(rules())),
        model: ModelId { endpoint: "demo".parse().expect("an endpoint"), target },
    };
    let id = Uuid::from_u128(7);
    for (name, size, runs) in
        [("1 KiB", 1 << 10, 200_000), ("64 KiB", 64 << 10, 20_000), ("6 MB", 6_000_000, 300)]
    {
        let body = vec![b'x'; size];
        let headers = signed(&pair.record.id, pair.secret.reveal(), &body);
        let whole = times(runs, || chain.pass(&headers, &body, id));
        let whole = tell(&format!("whole chain, {name}"), &whole);
        let hashed = times(runs, || drop(black_box(hash(&body))));
        let hashed = tell(&format!("  of it the body's hash, {name}"), &hashed);
        let per_megabyte = hashed.as_secs_f64() * 1e6 / (size as f64 / 1e6);
        println!("  that is {per_megabyte:.0} us per MB");
        if size == 1 << 10 {
            let outcome = if whole < GOAL { "is met" } else { "is MISSED" };
            println!("  the goal of {GOAL:?} at p50 {outcome}");
        }
    }
    let body = vec![b'x'; 1 << 10];
    let headers = signed(&pair.record.id, pair.secret.reveal(), &body);
    let caller = chain.identified(&headers, &body);
    let parts = times(200_000, || drop(black_box(chain.identified(&headers, &body))));
    tell("signature and body, 1 KiB", &parts);
    let parts = times(200_000, || {
        black_box(chain.policy.verdict(&caller, &chain.model));
    });
    tell("policy", &parts);
    let parts = times(200_000, || {
        let visit = chain.accounts.admit(&caller, &chain.model, id, Estimate::default());
        drop(visit.expect("within limits").settle(Facts::default()));
    });
    tell("limits and settlement", &parts);
}
