use proptest::prelude::*;

use super::standing::{Charge, Fact, Now, Standing, Today};
use super::*;

const DAY: u64 = 86_400;

fn at(seconds: f64) -> Now {
    let since = Duration::from_secs_f64(seconds);
    Now { since, wall: Duration::from_secs(20_000 * DAY) + since }
}

fn tokens(tokens_in: u64, tokens_out: u64) -> Estimate {
    Estimate { tokens_in, tokens_out }
}

fn fact(tokens_in: u64, tokens_out: u64) -> Fact {
    Fact { tokens_in, tokens_out, compute: Duration::ZERO }
}

fn tenant(name: &str) -> TenantName {
    name.parse().unwrap()
}

fn rate(per_second: f64, burst: u32) -> Limits {
    Limits { requests: Some(Rate { per_second, burst }), ..Limits::default() }
}

fn refused(result: Result<Charge, Box<Refused>>) -> (Limit, Duration) {
    let refused = result.unwrap_err();
    (refused.limit, refused.after)
}

#[test]
fn a_burst_goes_at_once_and_the_rest_by_the_rate() {
    let (limits, mut standing) = (rate(2.0, 3), Standing::default());
    let mut ask = |seconds| standing.admit(&limits, Estimate::default(), at(seconds));
    for _ in 0..3 {
        ask(10.0).unwrap();
    }
    assert_eq!(refused(ask(10.0)), (Limit::Requests, Duration::from_millis(500)));
    assert_eq!(refused(ask(10.2)), (Limit::Requests, Duration::from_millis(300)));
    ask(10.5).unwrap();
    assert!(ask(10.5).is_err());
    for _ in 0..3 {
        ask(100.0).unwrap();
    }
    assert!(ask(100.0).is_err(), "what was not taken does not pile up beyond the burst");
}

#[test]
fn what_is_taken_back_was_never_asked() {
    let day = Limits { requests_per_day: Some(1), ..rate(1.0, 2) };
    let mut standing = Standing::default();
    for _ in 0..5 {
        let charge = standing.admit(&day, tokens(9, 9), at(0.0)).unwrap();
        standing.withdraw(charge, at(0.0));
    }
    let levels = standing.levels(&day, at(0.0));
    assert_eq!(levels.requests.unwrap().remaining, 2);
    let charge = standing.admit(&day, tokens(9, 9), at(0.0)).unwrap();
    assert_eq!(refused(standing.admit(&day, tokens(0, 0), at(0.0))).0, Limit::RequestsPerDay);
    // What time has made good is not given back again.
    standing.withdraw(charge, at(50.0));
    assert_eq!(standing.levels(&day, at(50.0)).requests.unwrap().remaining, 2);
    // A day that is over is not touched.
    let charge = standing.admit(&day, tokens(9, 9), at(60.0)).unwrap();
    let next = at(60.0 + DAY as f64);
    standing.admit(&day, tokens(9, 9), next).unwrap();
    standing.withdraw(charge, next);
    assert_eq!(refused(standing.admit(&day, tokens(0, 0), next)).0, Limit::RequestsPerDay);
}

#[test]
fn tokens_are_charged_by_estimate_and_settled_by_fact() {
    let limits = Limits { tokens_out_per_minute: Some(600), ..Limits::default() };
    let mut standing = Standing::default();
    let first = standing.admit(&limits, tokens(0, 500), at(0.0)).unwrap();
    let (limit, after) = refused(standing.admit(&limits, tokens(0, 200), at(0.0)));
    assert_eq!((limit, after), (Limit::TokensOut, Duration::from_secs(10)));
    standing.settle(first, fact(0, 100), at(0.0));
    standing.admit(&limits, tokens(0, 200), at(0.0)).unwrap();
    let levels = standing.levels(&limits, at(0.0));
    let level = Level { limit: 600, remaining: 300, reset: Duration::from_secs(30) };
    assert_eq!(levels.tokens, Some(level));
}

#[test]
fn what_takes_more_than_a_whole_bucket_goes_when_it_is_full_and_is_made_good_after() {
    let limits = Limits { tokens_in_per_minute: Some(60), ..Limits::default() };
    let mut standing = Standing::default();
    let large = standing.admit(&limits, tokens(1000, 0), at(0.0)).unwrap();
    standing.settle(large, fact(180, 0), at(0.0));
    let (limit, after) = refused(standing.admit(&limits, tokens(1, 0), at(0.0)));
    assert_eq!((limit, after), (Limit::TokensIn, Duration::from_secs(121)));
    standing.admit(&limits, tokens(1, 0), at(121.0)).unwrap();
}

#[test]
fn what_time_has_made_good_is_not_given_back_again() {
    let limits = Limits { tokens_out_per_minute: Some(600), ..Limits::default() };
    let mut standing = Standing::default();
    // Each promises a whole bucket, holds it for a minute and says nothing.
    let first = standing.admit(&limits, tokens(0, 600), at(0.0)).unwrap();
    let second = standing.admit(&limits, tokens(0, 600), at(60.0)).unwrap();
    standing.settle(first, fact(0, 0), at(60.0));
    let (limit, after) = refused(standing.admit(&limits, tokens(0, 600), at(60.0)));
    assert_eq!((limit, after), (Limit::TokensOut, Duration::from_secs(60)));
    // What is outstanding is given back whole.
    standing.settle(second, fact(0, 0), at(60.0));
    standing.admit(&limits, tokens(0, 600), at(60.0)).unwrap();
}

#[test]
fn requests_side_by_side_get_all_back_that_they_did_not_take() {
    let limits = Limits { tokens_out_per_minute: Some(600), ..Limits::default() };
    let mut standing = Standing::default();
    let charges: Vec<Charge> =
        (0..10).map(|_| standing.admit(&limits, tokens(0, 60), at(0.0)).unwrap()).collect();
    assert!(standing.admit(&limits, tokens(0, 600), at(30.0)).is_err());
    for charge in charges.into_iter().rev() {
        standing.settle(charge, fact(0, 1), at(30.0));
    }
    standing.admit(&limits, tokens(0, 600), at(30.0)).unwrap();
}

#[test]
fn requests_under_way_are_counted_until_they_are_settled() {
    let limits = Limits { concurrent_requests: Some(2), ..Limits::default() };
    let mut standing = Standing::default();
    let first = standing.admit(&limits, Estimate::default(), at(0.0)).unwrap();
    standing.admit(&limits, Estimate::default(), at(0.0)).unwrap();
    let third = standing.admit(&limits, Estimate::default(), at(500.0));
    assert_eq!(refused(third), (Limit::Concurrency, Duration::from_secs(1)));
    standing.settle(first, Fact::default(), at(500.0));
    standing.admit(&limits, Estimate::default(), at(500.0)).unwrap();
}

#[test]
fn daily_budgets_free_at_midnight_and_a_request_counts_for_the_day_it_came() {
    let limits = Limits {
        tokens_per_day: Some(100),
        compute_per_day: Some(Duration::from_secs(5)),
        ..Limits::default()
    };
    let mut standing = Standing::default();
    let hour = 3600.0;
    let overnight = standing.admit(&limits, tokens(40, 50), at(23.0 * hour)).unwrap();
    let (limit, after) = refused(standing.admit(&limits, tokens(11, 0), at(23.0 * hour)));
    assert_eq!((limit, after), (Limit::TokensPerDay, Duration::from_secs(3600)));
    let next_day = at(25.0 * hour);
    let fact = Fact { tokens_in: 1000, tokens_out: 0, compute: Duration::from_secs(9) };
    standing.settle(overnight, fact, next_day);
    let long = standing.admit(&limits, tokens(100, 0), next_day).unwrap();
    let fact = Fact { compute: Duration::from_secs(6), ..Fact::default() };
    standing.settle(long, fact, next_day);
    let told = refused(standing.admit(&limits, Estimate::default(), next_day));
    assert_eq!(told, (Limit::ComputePerDay, Duration::from_secs(23 * 3600)));
    // A clock that is set back gives nobody a second day.
    assert!(standing.admit(&limits, Estimate::default(), at(23.0 * hour)).is_err());
}

#[test]
fn of_several_limits_the_one_that_frees_last_is_told() {
    let limits = Limits { requests_per_day: Some(1), ..rate(1.0, 1) };
    let mut standing = Standing::default();
    standing.admit(&limits, Estimate::default(), at(0.0)).unwrap();
    let told = standing.admit(&limits, Estimate::default(), at(0.0)).unwrap_err();
    assert_eq!(told.limit, Limit::RequestsPerDay);
    assert_eq!(
        told.to_string(),
        "the limit requests_per_day = 1 is reached; it frees in 24 h 0 min"
    );
    assert_eq!(told.levels.requests.unwrap().remaining, 0);
}

#[test]
fn what_was_used_before_the_process_began_counts_for_today() {
    let limits = Limits { requests_per_day: Some(10), ..Limits::default() };
    let mut standing = Standing::default();
    standing.restore(Today::new(9, 0, Duration::ZERO), at(0.0));
    standing.admit(&limits, Estimate::default(), at(0.0)).unwrap();
    assert!(standing.admit(&limits, Estimate::default(), at(0.0)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Over any time, no more is admitted than burst and rate allow, and whoever comes back when
    /// it was told to is let in.
    #[test]
    fn no_more_goes_than_rate_and_burst_allow(
        gaps in proptest::collection::vec(0_u32..3000, 1..200),
        per_second in 0.1_f64..20.0,
        burst in 1_u32..20,
    ) {
        let (limits, mut standing) = (rate(per_second, burst), Standing::default());
        let (mut now, mut admitted) = (0.0, 0.0);
        for gap in gaps {
            now += f64::from(gap) / 1000.0;
            match standing.admit(&limits, Estimate::default(), at(now)) {
                Ok(charge) => {
                    standing.settle(charge, Fact::default(), at(now));
                    admitted += 1.0;
                }
                Err(refused) => {
                    now += refused.after.as_secs_f64() + 1e-6;
                    prop_assert!(standing.admit(&limits, Estimate::default(), at(now)).is_ok());
                    admitted += 1.0;
                }
            }
            prop_assert!(admitted <= f64::from(burst) + now * per_second + 1e-3);
        }
    }
}

fn rules(named: &[(&str, Limits)], others: Limits) -> QuotaRules {
    let named = named.iter().map(|(name, limits)| (tenant(name), *limits));
    QuotaRules { named: named.collect(), others }
}

#[test]
fn each_tenant_has_an_account_of_its_own_and_unnamed_ones_have_the_defaults() {
    let quotas = Quotas::new(rules(&[("a", rate(0.001, 2))], rate(0.001, 1)));
    let ask = |name: &str| quotas.admit(Some(&tenant(name)), Estimate::default()).is_ok();
    assert_eq!([ask("a"), ask("a"), ask("a")], [true, true, false]);
    assert_eq!([ask("b"), ask("b"), ask("c")], [true, false, true]);
    assert!(quotas.admit(None, Estimate::default()).is_ok());
    assert!(quotas.admit(None, Estimate::default()).is_err());
}

#[test]
fn a_dropped_ticket_gives_its_place_and_its_estimate_back() {
    let limits = Limits {
        concurrent_requests: Some(1),
        tokens_out_per_minute: Some(100),
        ..Limits::default()
    };
    let quotas = Quotas::new(rules(&[], limits));
    for _ in 0..3 {
        let ticket = quotas.admit(None, tokens(0, 100)).unwrap();
        assert!(quotas.admit(None, tokens(0, 1)).is_err());
        drop(ticket);
    }
}

#[test]
fn changed_limits_hold_at_once_and_keep_what_was_taken() {
    let quotas = Quotas::new(rules(&[], rate(0.001, 5)));
    let ask = |count: usize| {
        (0..count).filter(|_| quotas.admit(Some(&tenant("a")), Estimate::default()).is_ok()).count()
    };
    assert_eq!(ask(4), 4);
    quotas.apply(rules(&[("a", rate(0.001, 6))], Limits::default()));
    assert_eq!(ask(9), 2, "four of six were taken before it had a name");
    quotas.apply(rules(&[("a", rate(0.001, 3))], Limits::default()));
    assert_eq!(ask(1), 0);
    quotas.apply(rules(&[], Limits::default()));
    assert_eq!(ask(9), 9);
}

#[test]
fn who_is_named_again_on_the_same_day_has_taken_what_it_took() {
    let daily = Limits { requests_per_day: Some(2), ..Limits::default() };
    let quotas = Quotas::new(rules(&[("acme", daily)], Limits::default()));
    let acme = tenant("acme");
    let ask = || quotas.admit(Some(&acme), Estimate::default()).map(drop);
    ask().unwrap();
    ask().unwrap();
    quotas.apply(rules(&[], Limits::default()));
    quotas.apply(rules(&[("acme", daily)], Limits::default()));
    assert_eq!(ask().unwrap_err().limit, Limit::RequestsPerDay);
}

#[test]
fn a_daily_budget_that_comes_later_counts_the_whole_day() {
    let quotas = Quotas::new(rules(&[("acme", Limits::default())], Limits::default()));
    let acme = tenant("acme");
    let ask = || quotas.admit(Some(&acme), Estimate::default()).map(drop);
    ask().unwrap();
    ask().unwrap();
    let daily = Limits { requests_per_day: Some(2), ..Limits::default() };
    quotas.apply(rules(&[("acme", daily)], Limits::default()));
    assert_eq!(ask().unwrap_err().limit, Limit::RequestsPerDay);
}

#[test]
fn a_million_made_up_names_take_bounded_memory_and_forget_nobody_who_uses_much() {
    let day = Limits { tokens_per_day: Some(1000), ..Limits::default() };
    let quotas = Quotas::new(rules(&[], day));
    let real = tenant("real");
    quotas.admit(Some(&real), tokens(900, 0)).unwrap().settle(900, 0, Duration::ZERO);
    for number in 0..1_000_000 {
        let name = tenant(&format!("made-up-{number}"));
        quotas.admit(Some(&name), tokens(1, 0)).unwrap();
    }
    assert_eq!(quotas.accounts(), 16 * 4096);
    assert!(quotas.admit(Some(&real), tokens(101, 0)).is_err(), "its budget is remembered");
}

#[test]
fn where_all_accounts_are_in_use_newcomers_share_one() {
    let quotas =
        Quotas::new(rules(&[], Limits { concurrent_requests: Some(1), ..Limits::default() }));
    let mut held = Vec::new();
    let mut refused = 0;
    for number in 0..80_000 {
        match quotas.admit(Some(&tenant(&format!("t{number}"))), Estimate::default()) {
            Ok(ticket) => held.push(ticket),
            Err(_) => refused += 1,
        }
    }
    assert_eq!(quotas.accounts(), 16 * 4096);
    assert_eq!(held.len(), 16 * 4096 + 1);
    assert!(refused > 10_000);
}

#[test]
fn clocks_that_run_back_give_no_second_day_and_shut_nobody_out() {
    let limits = Limits { requests_per_day: Some(1), ..Limits::default() };
    let on = |day: f64| Now {
        wall: Duration::from_secs_f64((20_000.0 + day) * 86_400.0),
        since: Duration::from_secs(1),
    };
    let mut standing = Standing::default();
    let mut is_let_in = |day: f64| standing.admit(&limits, Estimate::default(), on(day)).is_ok();
    assert!(is_let_in(0.1));
    assert!(!is_let_in(0.2));
    // Over midnight and back, as a clock that is set does.
    assert!(is_let_in(1.0));
    assert!(!is_let_in(0.9));
    assert!(!is_let_in(1.1));
    // A year ahead, and back to what it was.
    assert!(is_let_in(365.0));
    assert!(is_let_in(1.2));
    assert!(!is_let_in(1.3));
}
