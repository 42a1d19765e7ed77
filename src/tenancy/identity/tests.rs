use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::*;
use crate::keys::Wanted;
use crate::proxy::ProxyConfig;

fn tenant() -> TenantName {
    "acme".parse().unwrap()
}

fn no_fetch() -> Fetch {
    Arc::new(|_| Box::pin(async { Err("nothing is there".to_owned().into()) }))
}

/// A file with one bearer key, one pair and one operator's key.
struct Keyed {
    _folder: tempfile::TempDir,
    config: AuthConfig,
    bearer: String,
    pair: (String, String),
    operator: String,
}

fn keyed() -> Keyed {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let bearer = KeyFile::create(&path, Wanted::Bearer(tenant()), None).unwrap();
    let pair = KeyFile::create(&path, Wanted::Sigv4(tenant()), None).unwrap();
    let operator = KeyFile::create(&path, Wanted::Operator, None).unwrap();
    let config = AuthConfig { keys: Some(path), anonymous: false, ..AuthConfig::default() };
    Keyed {
        _folder: folder,
        config,
        bearer: bearer.secret.reveal().to_owned(),
        pair: (pair.record.id, pair.secret.reveal().to_owned()),
        operator: operator.secret.reveal().to_owned(),
    }
}

async fn ask(
    identity: &Identity,
    uri: &str,
    shown: &[(&'static str, &str)],
    peer: Option<&Peer>,
) -> Result<Identified, Denied> {
    let mut headers = HeaderMap::new();
    for (name, value) in shown {
        headers.append(*name, value.parse().unwrap());
    }
    let uri: Uri = uri.parse().unwrap();
    let asked = Asked { method: &Method::POST, uri: &uri, headers: &headers, peer };
    identity.identify(&asked).await
}

async fn denied(identity: &Identity, authorization: &str) -> Denied {
    ask(identity, "/", &[("authorization", authorization)], None).await.unwrap_err()
}

fn known(identified: Result<Identified, Denied>) -> Option<TenantName> {
    match identified {
        Ok(Identified::Caller(caller)) => caller.tenant,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nobody_is_asked_without_a_source() {
    let identity = Identity::nobody_is_asked();
    let shown = [("authorization", "AWS4-HMAC-SHA256 anything")];
    assert_eq!(known(ask(&identity, "/", &shown, None).await), None);
    assert!(!identity.asks());
}

#[tokio::test]
async fn with_keys_everybody_is_asked() {
    let Keyed { config, bearer, operator, _folder, .. } = keyed();
    let identity = Identity::new(&config, no_fetch()).unwrap();
    let shown = format!("Bearer {bearer}");
    let got = ask(&identity, "/", &[("authorization", shown.as_str())], None).await;
    assert_eq!(known(got), Some(tenant()));
    assert_eq!(ask(&identity, "/", &[], None).await.unwrap_err(), Denied::Missing);
    assert_eq!(denied(&identity, "Bearer rh-none-none").await, Denied::Unknown);
    assert_eq!(denied(&identity, "bearer").await, Denied::Unknown);
    assert!(matches!(denied(&identity, "Basic eDp5").await, Denied::Incomplete(_)));
    let operator = format!("Bearer {operator}");
    assert!(matches!(denied(&identity, &operator).await, Denied::Forbidden(_)));
    let twice = [("authorization", shown.as_str()), ("authorization", shown.as_str())];
    let got = ask(&identity, "/", &twice, None).await.unwrap_err();
    assert!(matches!(got, Denied::Incomplete(_)));
}

#[tokio::test]
async fn an_operators_key_is_an_operators() {
    let Keyed { config, bearer, operator, _folder, .. } = keyed();
    let identity = Identity::new(&config, no_fetch()).unwrap();
    assert!(identity.has_operators());
    assert!(identity.operator(&operator).is_ok());
    assert_eq!(identity.operator(&bearer), Err(Denied::Unknown));
    assert_eq!(Identity::nobody_is_asked().operator(&operator), Err(Denied::Unknown));
}

#[tokio::test]
async fn settings_change_at_once_or_not_at_all() {
    let Keyed { mut config, bearer, _folder, .. } = keyed();
    let identity = Identity::nobody_is_asked();
    identity.apply(&config).unwrap();
    assert_eq!(ask(&identity, "/", &[], None).await.unwrap_err(), Denied::Missing);
    let good = config.clone();
    config.keys = Some("/nowhere/keys.json".into());
    assert!(identity.apply(&config).is_err());
    let shown = format!("Bearer {bearer}");
    let got = ask(&identity, "/", &[("authorization", shown.as_str())], None).await;
    assert_eq!(known(got), Some(tenant()));
    identity.apply(&AuthConfig { anonymous: true, ..good }).unwrap();
    // A tenant of its own, or it would be taken for the owner of what it names.
    let nobody = known(ask(&identity, "/", &[], None).await);
    assert_eq!(nobody.unwrap().as_str(), "anonymous");
    // Who shows a wrong credential is not let in as nobody.
    assert_eq!(denied(&identity, "Bearer rh-none-none").await, Denied::Unknown);
}

#[tokio::test]
async fn a_proxys_word_counts_before_its_clients_and_a_certificate_last() {
    let Keyed { mut config, bearer, _folder, .. } = keyed();
    let networks = vec!["10.0.0.0/8".parse().unwrap()];
    config.proxy = Some(ProxyConfig { networks, header: http::HeaderName::from_static("x-who") });
    config.certificates = true;
    let identity = Identity::new(&config, no_fetch()).unwrap();
    let from = |address: &str, certificate: Option<&str>| Peer {
        address: address.parse::<IpAddr>().unwrap(),
        certificate: certificate.map(Into::into),
    };
    let near = from("10.0.0.1", None);
    let named = [("x-who", "umbrella"), ("authorization", "Bearer any")];
    let got = known(ask(&identity, "/", &named, Some(&near)).await);
    assert_eq!(got.unwrap().as_str(), "umbrella");
    let far = from("11.0.0.1", Some("initech"));
    assert_eq!(ask(&identity, "/", &named, Some(&far)).await.unwrap_err(), Denied::Unknown);
    let shown = format!("Bearer {bearer}");
    let got = ask(&identity, "/", &[("authorization", shown.as_str())], Some(&far)).await;
    assert_eq!(known(got), Some(tenant()));
    let got = known(ask(&identity, "/", &[("x-who", "umbrella")], Some(&far)).await);
    assert_eq!(got.unwrap().as_str(), "initech");
    for odd in ["../a", "anonymous"] {
        let got = ask(&identity, "/", &[], Some(&from("11.0.0.1", Some(odd)))).await.unwrap_err();
        assert!(matches!(got, Denied::Forbidden(_)), "{odd}");
    }
}

/// A presigned request as botocore's `SigV4QueryAuth` makes it.
fn presign(pair: &(String, String), at: u64, expires: u64, host: &str, first: &str) -> String {
    use aws_lc_rs::{digest, hmac};
    let date = crate::sigv4::show_time(at);
    let scope = format!("{}/{}/eu-west-1/sagemaker/aws4_request", pair.0, &date[..8]);
    let query = format!(
        "{first}X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}&X-Amz-Date={date}\
         &X-Amz-Expires={expires}&X-Amz-SignedHeaders=host",
        scope.replace('/', "%2F")
    );
    let hash =
        |text: &str| crate::text::hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    let canonical = format!("POST\n/\n{query}\nhost:{host}\n\nhost\n{}", hash(""));
    let rest = scope.split_once('/').unwrap().1;
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{rest}\n{}", hash(&canonical));
    let key = crate::sigv4::signing_key(&pair.1, &scope);
    let signature = crate::text::hex(hmac::sign(&key, text.as_bytes()).as_ref());
    format!("{query}&X-Amz-Signature={signature}")
}

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOON)
}

const NOON: u64 = 1_795_262_400;

#[tokio::test]
async fn a_presigned_request_holds_as_long_as_it_says() {
    let Keyed { config, pair, _folder, .. } = keyed();
    let identity = Identity::new(&config, no_fetch()).unwrap().with_clock(noon);
    for (age, expires, want) in [
        (0, 60, Ok(())),
        (3600, 3600, Ok(())),
        (3601, 3600, Err("earlier")),
        (0, 604_801, Err("X-Amz-Expires")),
    ] {
        let uri = format!("/?{}", presign(&pair, NOON - age, expires, "here", ""));
        let got = match ask(&identity, &uri, &[("host", "here")], None).await {
            Ok(Identified::IfBody(signed)) => identity.verify(*signed, b"").map(|_| ()),
            Ok(other) => panic!("{other:?}"),
            Err(denied) => Err(denied),
        };
        match want {
            Ok(()) => assert_eq!(got, Ok(()), "{age}"),
            Err(part) => assert!(got.unwrap_err().to_string().contains(part), "{age}"),
        }
    }
}

#[tokio::test]
async fn sagemakers_bearer_form_holds_for_its_action_alone() {
    let Keyed { config, pair, _folder, .. } = keyed();
    let identity = Identity::new(&config, no_fetch()).unwrap().with_clock(noon);
    let host = "sagemaker.amazonaws.com";
    let token = |url: String| format!("Bearer sagemaker-api-key-{}", BASE64_STANDARD.encode(url));
    let action = "Action=CallWithBearerToken&";
    let query = |at, expires, first| presign(&pair, at, expires, host, first);
    let right = token(format!("{host}/?{}&Version=1", query(NOON - 43_200, 43_200, action)));
    let got = ask(&identity, "/v1/chat/completions", &[("authorization", &right)], None).await;
    assert_eq!(known(got), Some(tenant()));
    let old = token(format!("{host}/?{}&Version=1", query(NOON - 61, 60, action)));
    assert!(denied(&identity, &old).await.to_string().starts_with("Signature expired"));
    let long = token(format!("{host}/?{}&Version=1", query(NOON, 43_201, action)));
    assert!(matches!(denied(&identity, &long).await, Denied::Incomplete(_)));
    let other = token(format!("{host}/?{}", query(NOON, 60, "Action=GetCallerIdentity&")));
    assert_eq!(denied(&identity, &other).await, Denied::Unknown);
    let changed = token(format!("{host}/?{}&More=1", query(NOON, 60, action)));
    assert_eq!(denied(&identity, &changed).await, Denied::mismatch());
    for nothing in ["", "%%%", &BASE64_STANDARD.encode("elsewhere/?a=b")] {
        let shown = format!("Bearer sagemaker-api-key-{nothing}");
        assert_eq!(denied(&identity, &shown).await, Denied::Unknown);
    }
}
