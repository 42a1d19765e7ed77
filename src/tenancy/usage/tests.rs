use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use roundhouse_types::Bytes;
use uuid::Uuid;

use super::read::{Filter, Report, report};
use super::*;
use crate::error::Error;
use crate::quota::{Estimate, Limits, QuotaRules};
use crate::{Accounts, Caller, Facts};

fn model(target: &str) -> ModelId {
    ModelId { endpoint: "e".parse().unwrap(), target: target.parse().unwrap() }
}

fn config(path: &Path) -> LedgerConfig {
    LedgerConfig {
        path: path.to_owned(),
        detail: Detail::Interval,
        interval: Duration::from_secs(3600),
        sync: Sync::Interval,
        rotate_size: Bytes::mib(1),
        rotate_daily: true,
    }
}

fn each(path: &Path) -> LedgerConfig {
    LedgerConfig { detail: Detail::Request, sync: Sync::Each, ..config(path) }
}

fn open(config: LedgerConfig) -> Arc<Accounts> {
    Arc::new(Accounts::open(QuotaRules::default(), config).unwrap())
}

fn facts(target: &str, tokens: u64) -> Facts {
    Facts { model: Some(model(target)), complete: true, tokens_out: tokens, ..Facts::default() }
}

fn ask(accounts: &Arc<Accounts>, target: &str, tokens: u64) -> Durable {
    let admitted =
        accounts.admit(&Caller::anonymous(), &model(target), Uuid::new_v4(), Estimate::default());
    admitted.unwrap().settle(facts(target, tokens))
}

fn read(path: &Path) -> Report {
    report(path, &Filter::default()).unwrap()
}

fn ledger() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/usage.jsonl");
    (folder, path)
}

#[test]
fn what_tenants_used_is_the_operators_to_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_folder, path) = ledger();
    let accounts = open(each(&path));
    drop(ask(&accounts, "a/x", 1));
    accounts.close();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn sums_are_written_per_tenant_and_model_and_once() {
    let (_folder, path) = ledger();
    let accounts = open(config(&path));
    for _ in 0..100 {
        drop(ask(&accounts, "a/x", 3));
        drop(ask(&accounts, "a/y", 1));
    }
    accounts.resident(&model("a/x"), Residence::Device, 77);
    accounts.close();
    let report = read(&path);
    assert_eq!((report.sums.len(), report.lines), (2, 2));
    let x = Key { tenant: "a".parse().ok(), model: Some(model("a/x")) };
    let wanted =
        Totals { requests: 100, tokens_out: 300, device_byte_seconds: 77, ..Totals::default() };
    assert_eq!(report.sums[&x], wanted);
    assert_eq!(accounts.totals().iter().find(|(key, _)| *key == x).unwrap().1, wanted);
    // The next process adds to it.
    let next = open(config(&path));
    drop(ask(&next, "a/x", 5));
    next.close();
    assert_eq!(read(&path).total().tokens_out, 405);
    let of_nobody = Filter { tenant: Some("b".into()), ..Filter::default() };
    assert_eq!(report_of(&path, &of_nobody).lines, 0);
    let later = Filter { from: Some(SystemTime::now() + Duration::from_secs(9)), ..of_nobody };
    assert_eq!(report_of(&path, &Filter { tenant: None, ..later }).lines, 0);
}

fn report_of(path: &Path, filter: &Filter) -> Report {
    report(path, filter).unwrap()
}

#[tokio::test]
async fn an_answer_that_waited_has_its_line() {
    let (_folder, path) = ledger();
    let accounts = open(each(&path));
    for count in 1..=20 {
        ask(&accounts, "a/x", 1).wait().await;
        let lines = fs::read_to_string(&path).unwrap();
        assert_eq!(lines.lines().count(), count);
        assert!(lines.lines().all(|line| line.contains("\"request_id\":")));
    }
    accounts.close();
    assert_eq!(read(&path).total(), Totals { requests: 20, tokens_out: 20, ..Totals::default() });
}

#[test]
fn a_torn_line_is_cut_off_and_a_whole_one_without_its_end_is_kept() {
    for cut in 1..40 {
        let (_folder, path) = ledger();
        let accounts = open(each(&path));
        for _ in 0..3 {
            drop(ask(&accounts, "a/x", 1));
        }
        accounts.close();
        let length = fs::metadata(&path).unwrap().len();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length - cut).unwrap();
        let next = open(each(&path));
        drop(ask(&next, "a/x", 10));
        next.close();
        let report = read(&path);
        assert_eq!(report.damaged, 0, "{cut}");
        let wanted = if cut == 1 { 13 } else { 12 };
        assert_eq!(report.total().tokens_out, wanted, "{cut}");
    }
}

#[test]
fn lines_that_nobody_can_read_are_told_and_those_that_repeat_count_once() {
    let (_folder, path) = ledger();
    let accounts = open(each(&path));
    drop(ask(&accounts, "a/x", 1));
    accounts.close();
    let line = fs::read_to_string(&path).unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let other = line.replace("\"v\":1", "\"v\":9");
    let long = "x".repeat(200_000);
    write!(file, "{line}garbage\n{{}}\n{other}\0\0\0\n{long}\n{line}").unwrap();
    let report = read(&path);
    assert_eq!((report.lines, report.repeated, report.damaged), (1, 2, 5));
    assert_eq!(report.total().tokens_out, 1);
}

#[tokio::test]
async fn a_full_file_is_put_aside_and_all_of_them_are_read() {
    let (_folder, path) = ledger();
    let accounts = open(LedgerConfig { rotate_size: Bytes(2000), ..each(&path) });
    for _ in 0..50 {
        // One at a time: files turn between two writes.
        ask(&accounts, "a/x", 1).wait().await;
    }
    accounts.close();
    let files = file::files(&path).unwrap();
    assert!(files.len() > 1, "{files:?}");
    assert_eq!(files.last(), Some(&path));
    assert_eq!(read(&path).total().requests, 50);
    // Files of others are none of ours.
    fs::write(path.with_file_name("usage.notes.jsonl"), "x\n").unwrap();
    assert_eq!(read(&path).damaged, 0);
}

#[test]
fn one_process_writes_a_ledger() {
    let (_folder, path) = ledger();
    let first = open(config(&path));
    let second = Accounts::open(QuotaRules::default(), config(&path));
    assert!(matches!(second, Err(Error::LedgerInUse { .. })));
    first.close();
    drop(first);
    open(config(&path)).close();
}

#[test]
fn what_was_used_today_counts_against_the_budget_of_the_next_process() {
    let (_folder, path) = ledger();
    let first = open(config(&path));
    for _ in 0..3 {
        drop(ask(&first, "a/x", 30));
    }
    first.close();
    drop(first);
    let others = Limits { tokens_per_day: Some(100), ..Limits::default() };
    let rules = QuotaRules { others, ..QuotaRules::default() };
    let next = Arc::new(Accounts::open(rules, config(&path)).unwrap());
    let admit = |tokens_out| {
        let estimate = Estimate { tokens_in: 0, tokens_out };
        next.admit(&Caller::anonymous(), &model("a/x"), Uuid::new_v4(), estimate).is_ok()
    };
    assert_eq!([admit(11), admit(10)], [false, true]);
}

#[test]
fn names_that_somebody_made_up_are_not_kept() {
    let (_folder, path) = ledger();
    let accounts = open(config(&path));
    for number in 0..1000 {
        let target = format!("made-up-{number}/x");
        let visit = accounts.admit(
            &Caller::anonymous(),
            &model(&target),
            Uuid::new_v4(),
            Estimate::default(),
        );
        drop(visit.unwrap().settle(Facts::default()));
    }
    accounts.close();
    let nobody = Key { tenant: None, model: None };
    let report = read(&path);
    assert_eq!(report.sums.keys().collect::<Vec<_>>(), [&nobody]);
    assert_eq!((report.total().requests, report.total().failed), (1000, 1000));
}

#[test]
fn pairs_beyond_the_bound_are_summed_up() {
    let usage = Usage::new();
    let one = Totals { requests: 1, ..Totals::default() };
    for number in 0..100_000 {
        let key = Key { tenant: None, model: Some(model(&format!("m{number}"))) };
        usage.add(&key, one, false);
    }
    let sums = usage.sums();
    assert!(sums.len() <= SHARDS * (PAIRS + TENANTS) + 1, "{}", sums.len());
    assert_eq!(sums.iter().map(|(_, totals)| totals.requests).sum::<u64>(), 100_000);
}

#[test]
fn what_is_beyond_the_bound_stays_its_tenants_and_can_be_taken_back() {
    let usage = Usage::new();
    let one = Totals { requests: 1, ..Totals::default() };
    let of = |tenant: &str, target: &str| Key {
        tenant: tenant.parse().ok(),
        model: Some(model(target)),
    };
    for number in 0..100_000 {
        usage.add(&of("flood", &format!("m{number}")), one, true);
    }
    for number in 0..1000 {
        usage.add(&of("acme", &format!("m{number}")), one, true);
        usage.take_back(&of("acme", &format!("m{number}")), one);
    }
    let sums = usage.sums();
    let by = |tenant: &str| {
        let of_tenant = sums.iter().filter(|(key, _)| key.tenant == tenant.parse().ok());
        of_tenant.map(|(_, totals)| totals.requests).sum::<u64>()
    };
    assert_eq!((by("flood"), by("acme")), (100_000, 1000));
    let again: Vec<_> =
        usage.give().into_iter().map(|(key, it)| (key.tenant, it.requests)).collect();
    assert!(again.iter().all(|(tenant, _)| *tenant == "acme".parse().ok()), "{again:?}");
    assert_eq!(again.iter().map(|(_, requests)| requests).sum::<u64>(), 1000);
}

#[test]
fn whoever_shows_no_credential_is_not_charged_as_the_owner_of_what_it_names() {
    let rate = Some(crate::Rate { per_second: 0.001, burst: 1 });
    let others = Limits { requests: rate, ..Limits::default() };
    let accounts = Arc::new(Accounts::new(QuotaRules { others, ..QuotaRules::default() }));
    let ask = |caller: &Caller, target: &str| {
        accounts.admit(caller, &model(target), Uuid::new_v4(), Estimate::default())
    };
    let stranger = Caller::without_credential();
    drop(ask(&stranger, "acme/x").unwrap().settle(facts("acme/x", 1)));
    assert!(ask(&stranger, "beta/x").is_err(), "it has one account, whatever it names");
    let acme = Caller { tenant: "acme".parse().ok(), credential: None };
    assert!(ask(&acme, "acme/x").is_ok());
    assert_eq!(accounts.totals()[0].0.tenant, "anonymous".parse().ok());
}
