//! What admission and settlement add to a request, in time of the processor: `cargo bench -p roundhouse-tenancy --bench
//! accounts`.

#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::sync::Arc;
use std::time::Duration;

use roundhouse_tenancy::usage::Sync;
use roundhouse_tenancy::{
    Accounts, Caller, Detail, Estimate, Facts, LedgerConfig, Limits, QuotaRules, Rate,
};
use roundhouse_types::{Bytes, ModelId};
use uuid::Uuid;

const VISITS: usize = 300_000;
const RUNS: usize = 5;

fn limits() -> Limits {
    Limits {
        requests: Some(Rate { per_second: 1e6, burst: 1_000_000_000 }),
        tokens_in_per_minute: Some(1 << 50),
        tokens_out_per_minute: Some(1 << 50),
        concurrent_requests: Some(1000),
        requests_per_day: Some(1 << 50),
        tokens_per_day: Some(1 << 50),
        compute_per_day: Some(Duration::from_secs(1 << 40)),
    }
}

fn visit(accounts: &Arc<Accounts>, model: &ModelId, id: Uuid) {
    let estimate = Estimate { tokens_in: 100, tokens_out: 100 };
    let visit = accounts.admit(&Caller::anonymous(), model, id, estimate).expect("within limits");
    let facts = Facts {
        model: Some(model.clone()),
        complete: true,
        tokens_in: 90,
        tokens_out: 70,
        ..Facts::default()
    };
    drop(visit.settle(facts));
}

/// Of this thread: what a busy machine gives to others does not count.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    let first = stat.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok());
    Duration::from_nanos(first.expect("a number"))
}

fn main() {
    let id = Uuid::from_u128(7);
    let models: Vec<ModelId> = (0..1000)
        .map(|number| ModelId {
            endpoint: "default".parse().expect("a name"),
            target: format!("tenant-{}/chat", number % 100).parse().expect("a name"),
        })
        .collect();
    let rules = |others| QuotaRules { others, ..QuotaRules::default() };
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = |name: &str, detail| LedgerConfig {
        path: folder.path().join(name),
        detail,
        interval: Duration::from_secs(1),
        sync: Sync::Interval,
        rotate_size: Bytes::mib(64),
        rotate_daily: true,
    };
    let with = |config| Arc::new(Accounts::open(rules(limits()), config).expect("a ledger"));
    let cases = [
        ("nothing limited", Arc::new(Accounts::new(QuotaRules::default()))),
        ("all limits", Arc::new(Accounts::new(rules(limits())))),
        ("all limits, sums in a ledger", with(ledger("sums.jsonl", Detail::Interval))),
        ("all limits, a line each", with(ledger("lines.jsonl", Detail::Request))),
    ];
    for (name, accounts) in cases {
        let mut runs: Vec<Duration> = (0..RUNS)
            .map(|_| {
                let began = processor_time();
                for turn in 0..VISITS {
                    visit(&accounts, &models[turn % models.len()], id);
                }
                processor_time() - began
            })
            .collect();
        runs.sort();
        let each = runs[RUNS / 2].as_nanos() / VISITS as u128;
        println!("{name}: {each} ns of this thread per request");
        accounts.close();
    }
}
