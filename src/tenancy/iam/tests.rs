use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::json;

use super::*;
use crate::sigv4::show_time;

const NOW: u64 = 1_800_000_000;
const STS: &str = "https://sts.eu-central-1.amazonaws.com";
const ROBOT: &str = "arn:aws:sts::123456789012:assumed-role/robot/one";

/// A token whose parameters a test changes.
fn token(change: impl FnOnce(&mut Vec<(String, String)>)) -> String {
    token_at(STS, change)
}

fn token_at(origin: &str, change: impl FnOnce(&mut Vec<(String, String)>)) -> String {
    let date = show_time(NOW - 5);
    let scope = format!("ASIAEXAMPLE%2F{}%2Feu-central-1%2Fsts%2Faws4_request", &date[..8]);
    let mut parameters: Vec<(String, String)> = [
        ("Action", "GetCallerIdentity"),
        ("Version", "2011-06-15"),
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", &scope),
        ("X-Amz-Date", &date),
        ("X-Amz-Expires", "60"),
        ("X-Amz-SignedHeaders", "host%3Bx-roundhouse-server-id"),
        ("X-Amz-Security-Token", "a%2Bb%3D"),
        ("X-Amz-Signature", &"0f".repeat(32)),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    change(&mut parameters);
    let query: Vec<String> = parameters.iter().map(|(name, it)| format!("{name}={it}")).collect();
    BASE64_URL_SAFE_NO_PAD.encode(format!("{origin}/?{}", query.join("&")))
}

fn set(name: &'static str, value: &'static str) -> impl FnOnce(&mut Vec<(String, String)>) {
    move |parameters| {
        parameters.retain(|(other, _)| other != name);
        parameters.push((name.to_owned(), value.to_owned()));
    }
}

fn plain() -> String {
    token(|_| {})
}

fn config(tenants: &[(&str, &str)]) -> IamConfig {
    IamConfig {
        sts: vec![STS.to_owned()],
        server_id: "house-1".to_owned(),
        tenants: tenants
            .iter()
            .map(|(who, tenant)| (who.parse().unwrap(), tenant.parse().unwrap()))
            .collect(),
    }
}

/// An STS that says what a test says, and counts how often it is asked.
#[derive(Clone)]
struct Sts {
    says: Arc<Mutex<Result<String, Unfetched>>>,
    asked: Arc<AtomicUsize>,
}

impl Sts {
    fn says(arn: &str) -> Self {
        let account = arn.split(':').nth(4).unwrap_or_default();
        let result = json!({"Account": account, "Arn": arn, "UserId": "AROA:one"});
        let text = json!({"GetCallerIdentityResponse": {"GetCallerIdentityResult": result}});
        Self { says: Arc::new(Mutex::new(Ok(text.to_string()))), asked: Arc::default() }
    }

    fn iam(&self, tenants: &[(&str, &str)]) -> Iam {
        let sts = self.clone();
        let fetch: Fetch = Arc::new(move |document: Document| {
            let says = sts.says.lock().unwrap().clone();
            sts.asked.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                assert!(document.url.starts_with(&format!("{STS}/?Action=")), "{}", document.url);
                let (name, value) = document.header.unwrap();
                assert_eq!((name, value.to_str().unwrap()), (SERVER_ID, "house-1"));
                tokio::task::yield_now().await;
                says
            })
        });
        Iam::new(config(tenants), fetch)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn why(outcome: Result<Caller, Denied>) -> String {
    outcome.unwrap_err().to_string()
}

#[tokio::test]
async fn aws_says_who_signed_once_until_the_request_expires() {
    let sts = Sts::says(ROBOT);
    let iam = sts.iam(&[("123456789012", "acme")]);
    let token = plain();
    let all = futures_util::future::join_all((0..20).map(|_| iam.caller(&token, None, NOW))).await;
    for caller in all {
        let caller = caller.unwrap();
        assert_eq!(caller.tenant.unwrap().as_str(), "acme");
        assert_eq!(caller.credential.unwrap().as_ref(), format!("iam:{ROBOT}"));
    }
    assert_eq!(sts.asked(), 1);
    assert!(iam.caller(&token, None, NOW + 54).await.is_ok());
    assert_eq!(sts.asked(), 1);
    assert!(why(iam.caller(&token, None, NOW + 56).await).contains("Signature expired"));
    assert!(why(iam.caller(&token, None, NOW - 400).await).contains("not yet current"));
    // Another's signature, whatever else is equal.
    let other = token_at(STS, set("X-Amz-Security-Token", "other"));
    assert!(iam.caller(&other, None, NOW).await.is_ok());
    assert_eq!(sts.asked(), 2);
}

#[tokio::test]
async fn nothing_but_a_get_caller_identity_is_sent_anywhere() {
    let sts = Sts::says(ROBOT);
    let iam = sts.iam(&[("123456789012", "acme")]);
    let without =
        |name: &'static str| token(move |parameters| parameters.retain(|(other, _)| other != name));
    let odd = [
        token_at("https://sts.eu-central-1.amazonaws.com.evil.example", |_| {}),
        token_at("https://sts.eu-central-1.amazonaws.com@evil.example", |_| {}),
        token_at("http://sts.eu-central-1.amazonaws.com", |_| {}),
        token_at("https://sts.eu-central-1.amazonaws.com/x", |_| {}),
        token(set("Action", "AssumeRole")),
        token(set("Version", "2012-01-01")),
        token(set("RoleArn", "x")),
        token(set("action", "AssumeRole")),
        token(|all| all.push(("Action".to_owned(), "GetCallerIdentity".to_owned()))),
        token(set("X-Amz-Expires", "901")),
        token(set("X-Amz-Expires", "0")),
        token(set("X-Amz-SignedHeaders", "host")),
        token(set("X-Amz-SignedHeaders", "host%3Bx-other%3Bx-roundhouse-server-id")),
        token(set("X-Amz-Signature", "zz")),
        without("Action"),
        without("X-Amz-Date"),
        without("X-Amz-Signature"),
        "not base 64!".to_owned(),
        String::new(),
        BASE64_URL_SAFE_NO_PAD.encode([0xff, 0xfe]),
        "A".repeat(9000),
    ];
    for token in odd {
        assert!(iam.caller(&token, None, NOW).await.is_err(), "{token}");
    }
    assert_eq!(sts.asked(), 0);
}

/// Who signed, the rules, and whose tenant that is.
type Case<'a> = (&'a str, &'a [Rule<'a>], Option<&'a str>);
type Rule<'a> = (&'a str, &'a str);

#[tokio::test]
async fn who_signed_may_be_nobodys_tenant() {
    let robot = ("arn:aws:iam::123456789012:role/path/robot", "acme");
    let cases: [Case<'_>; 10] = [
        (ROBOT, &[robot], Some("acme")),
        ("arn:aws:sts::123456789012:assumed-role/robot-evil/one", &[robot], None),
        ("arn:aws:sts::210987654321:assumed-role/robot/one", &[robot], None),
        (ROBOT, &[robot, ("123456789012", "other")], Some("acme")),
        (ROBOT, &[("123456789012", "other"), robot], Some("other")),
        (ROBOT, &[(ROBOT, "one")], Some("one")),
        (
            "arn:aws:iam::123456789012:user/robots/r1",
            &[("arn:aws:iam::123456789012:user/robots/*", "acme")],
            Some("acme"),
        ),
        (
            "arn:aws:iam::123456789012:user/robots/deep/r1",
            &[("arn:aws:iam::123456789012:user/robots/*", "acme")],
            None,
        ),
        (
            "arn:aws:iam::123456789012:user/robots/deep/r1",
            &[("arn:aws:iam::123456789012:user/robots/**", "acme")],
            Some("acme"),
        ),
        ("arn:aws:iam::123456789012:root", &[robot], None),
    ];
    for (arn, rules, tenant) in cases {
        let got = Sts::says(arn).iam(rules).caller(&plain(), None, NOW).await;
        match tenant {
            Some(tenant) => assert_eq!(got.unwrap().tenant.unwrap().as_str(), tenant, "{arn}"),
            None => assert!(matches!(got, Err(Denied::Forbidden(_))), "{arn}: {got:?}"),
        }
    }
}

#[tokio::test]
async fn a_refusal_is_remembered_and_an_outage_is_none() {
    let sts = Sts::says(ROBOT);
    *sts.says.lock().unwrap() = Err(Unfetched::Refused(403));
    let iam = sts.iam(&[("123456789012", "acme")]);
    let token = plain();
    for _ in 0..5 {
        assert_eq!(iam.caller(&token, None, NOW).await, Err(Denied::Unknown));
    }
    assert_eq!(sts.asked(), 1);
    for answer in [
        Err(Unfetched::Refused(429)),
        Err(Unfetched::Refused(400)),
        Err("is down".to_owned().into()),
        Ok("{}".into()),
    ] {
        let sts = Sts::says(ROBOT);
        let good = std::mem::replace(&mut *sts.says.lock().unwrap(), answer);
        let iam = sts.iam(&[("123456789012", "acme")]);
        assert_eq!(iam.caller(&token, None, NOW).await, Err(Denied::Unavailable));
        assert_eq!(iam.caller(&token, None, NOW).await, Err(Denied::Unavailable));
        assert_eq!(sts.asked(), 1, "not at once again");
        *sts.says.lock().unwrap() = good;
        assert!(iam.caller(&token, None, NOW + 2).await.is_ok());
    }
}

#[tokio::test]
async fn made_up_tokens_push_out_nothing_that_holds() {
    let sts = Sts::says(ROBOT);
    let iam = sts.iam(&[("123456789012", "acme")]);
    let token = plain();
    assert!(iam.caller(&token, None, NOW).await.is_ok());
    *sts.says.lock().unwrap() = Err(Unfetched::Refused(403));
    for number in 0..2000 {
        let made_up = token_at(STS, |all| all[7].1 = format!("t{number}"));
        assert_eq!(iam.caller(&made_up, None, NOW).await, Err(Denied::Unknown));
    }
    assert!(iam.caller(&token, None, NOW).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_an_sts_that_hangs() {
    let fetch: Fetch = Arc::new(|_| Box::pin(std::future::pending()));
    let iam = Iam::new(config(&[("123456789012", "acme")]), fetch);
    assert_eq!(iam.caller(&plain(), None, NOW).await, Err(Denied::Unavailable));
}

#[test]
fn what_sts_says_is_read_strictly() {
    let odd = [
        json!({"Account": "210987654321", "Arn": ROBOT}),
        json!({"Account": "123456789012", "Arn": "arn:aws:s3:::bucket"}),
        json!({"Account": "123456789012", "Arn": "arn:aws:iam::123456789012:user/\u{e9}"}),
        json!({"Account": "1234", "Arn": "arn:aws:iam::1234:user/x"}),
        json!({"Arn": ROBOT}),
    ];
    for result in odd {
        let text = json!({"GetCallerIdentityResponse": {"GetCallerIdentityResult": result}});
        assert!(read(&text.to_string()).is_err(), "{text}");
    }
}

#[test]
fn principals_are_whole_segments() {
    for odd in [
        "",
        "12345678901",
        "arn:aws:s3:::b",
        "arn:aws:iam::123456789012:role/*",
        "arn:aws:iam::123456789012:role/ro*",
        "arn:aws:iam::123456789012:*",
        "arn:aws:iam::*:user/x",
        "arn:aws:iam::123456789012:user/a*b",
        "arn:aws:iam::123456789012:user/*/x",
        "arn:aws:sts::123456789012:assumed-role/*",
        "arn:aws:iam:eu-central-1:123456789012:user/x",
    ] {
        assert!(odd.parse::<Principals>().is_err(), "{odd}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stranger_who_makes_tokens_up_keeps_nobody_out() {
    // An STS that takes a second, as it does while it is asked a lot.
    let fetch: Fetch = Arc::new(|_| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let result = json!({"Account": "123456789012", "Arn": ROBOT, "UserId": "AROA:one"});
            let text = json!({"GetCallerIdentityResponse": {"GetCallerIdentityResult": result}});
            Ok(text.to_string())
        })
    });
    let iam = Arc::new(Iam::new(config(&[("123456789012", "acme")]), fetch));
    let stranger: Option<IpAddr> = Some("203.0.113.66".parse().unwrap());
    for number in 0..400 {
        let iam = Arc::clone(&iam);
        let made_up = token_at(STS, |all| all[7].1 = format!("t{number}"));
        tokio::spawn(async move { drop(iam.caller(&made_up, stranger, NOW).await) });
    }
    tokio::task::yield_now().await;
    let honest = Some("203.0.113.9".parse().unwrap());
    assert!(iam.caller(&plain(), honest, NOW).await.is_ok());
    // Also from the same address, with a key that was known before.
    assert!(iam.asking.knows("ASIAEXAMPLE"));
    let again = token_at(STS, set("X-Amz-Security-Token", "again"));
    assert!(iam.caller(&again, stranger, NOW).await.is_ok());
}

#[tokio::test]
async fn who_is_nobodys_tenant_is_refused_without_asking_again_and_takes_no_place_of_tenants() {
    let stranger = "arn:aws:sts::210987654321:assumed-role/other/one";
    let sts = Sts::says(stranger);
    let iam = sts.iam(&[("123456789012", "acme")]);
    for _ in 0..3 {
        let refused = iam.caller(&plain(), None, NOW).await;
        assert!(matches!(refused, Err(Denied::Forbidden(_))), "{refused:?}");
    }
    assert_eq!(sts.asked(), 1);
    assert!(iam.known.lock().unwrap().is_empty(), "it pushes out no tenant's");
    assert!(!iam.asking.knows("ASIAEXAMPLE"));
}
