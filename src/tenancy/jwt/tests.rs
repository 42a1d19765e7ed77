use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::json;

use super::*;
use crate::fetch::Document;

/// An issuer's key pair.
enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

fn text(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

impl Pair {
    fn all() -> [Self; 3] {
        [
            Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
            Self::ec(),
            Self::Ed(Ed25519KeyPair::generate().unwrap()),
        ]
    }

    fn ec() -> Self {
        Self::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::Ec(_) => "ES256",
            Self::Ed(_) => "EdDSA",
        }
    }

    fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Rsa(pair) => {
                let key = pair.public_key();
                let (n, e) = (key.modulus(), key.exponent());
                let n = text(n.big_endian_without_leading_zero());
                let e = text(e.big_endian_without_leading_zero());
                json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": n, "e": e})
            }
            Self::Ec(pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = (text(&point[..32]), text(&point[32..]));
                json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y})
            }
            Self::Ed(pair) => {
                let x = text(pair.public_key().as_ref());
                json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x})
            }
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Self::Ec(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    fn token(&self, kid: &str, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm(), "typ": "JWT", "kid": kid});
        let signed = format!(
            "{}.{}",
            text(header.to_string().as_bytes()),
            text(claims.to_string().as_bytes())
        );
        let signature = text(&self.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn claims() -> Value {
    json!({
        "iss": "https://issuer.example/", "aud": ["other", "roundhouse"], "sub": "robot-7",
        "exp": now() + 600, "nbf": now() - 600, "tenant": "acme",
    })
}

fn config() -> OidcConfig {
    OidcConfig {
        issuer: "https://issuer.example/".to_owned(),
        audience: "roundhouse".to_owned(),
        jwks: Jwks::Url("https://issuer.example/keys".to_owned()),
        claim: "tenant".to_owned(),
        tenants: Named::Any,
        leeway: Duration::from_secs(60),
    }
}

/// An issuer whose set of keys a test changes; counts how often it is asked.
#[derive(Clone, Default)]
struct Issuer {
    keys: Arc<Mutex<Vec<Value>>>,
    asked: Arc<AtomicUsize>,
    is_down: Arc<Mutex<bool>>,
}

impl Issuer {
    fn with(keys: Vec<Value>) -> Self {
        Self { keys: Arc::new(Mutex::new(keys)), ..Self::default() }
    }

    fn fetch(&self) -> Fetch {
        let issuer = self.clone();
        Arc::new(move |_: Document| {
            issuer.asked.fetch_add(1, Ordering::SeqCst);
            let answer = match *issuer.is_down.lock().unwrap() {
                true => Err("is down".to_owned().into()),
                false => Ok(json!({"keys": *issuer.keys.lock().unwrap()}).to_string()),
            };
            Box::pin(async move { answer })
        })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn why(outcome: Result<Caller, Denied>) -> String {
    outcome.unwrap_err().to_string()
}

#[tokio::test]
async fn tokens_of_each_algorithm_say_whose_they_are() {
    for pair in Pair::all() {
        let issuer = Issuer::with(vec![pair.jwk("k1")]);
        let oidc = Oidc::start(config(), issuer.fetch());
        let token = pair.token("k1", &claims());
        assert!(is_token(&token));
        let caller = oidc.caller(&token).await.unwrap();
        assert_eq!(caller.tenant.unwrap().as_str(), "acme", "{}", pair.algorithm());
        assert_eq!(caller.credential.as_deref(), Some("jwt:https://issuer.example/|robot-7"));
        // Another's claims under this signature.
        let other = json!({"tenant": "umbrella", "exp": now() + 60});
        let parts: Vec<&str> = token.split('.').collect();
        let forged = format!("{}.{}.{}", parts[0], text(other.to_string().as_bytes()), parts[2]);
        assert_eq!(why(oidc.caller(&forged).await), "the bearer token has a wrong signature");
        assert_eq!(issuer.asked(), 1);
    }
}

#[tokio::test]
async fn a_token_chooses_no_weaker_algorithm() {
    let pair = Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
    let public = pair.jwk("k1");
    let oidc = Oidc::start(config(), Issuer::with(vec![public.clone()]).fetch());
    // The public key as a shared secret, and no signature at all.
    let secret = jsonwebtoken::EncodingKey::from_secret(public["n"].as_str().unwrap().as_bytes());
    for algorithm in [Algorithm::HS256, Algorithm::HS512] {
        let header = Header { kid: Some("k1".to_owned()), ..Header::new(algorithm) };
        let token = jsonwebtoken::encode(&header, &claims(), &secret).unwrap();
        assert!(why(oidc.caller(&token).await).contains("not RS256, ES256 or EdDSA"));
    }
    let bare = text(br#"{"alg":"none","kid":"k1"}"#);
    let token = format!("{bare}.{}.", text(claims().to_string().as_bytes()));
    assert!(why(oidc.caller(&token).await).contains("malformed"));
    // A key of one family does not verify another's tokens.
    let other = Pair::ec();
    let unknown = "the bearer token is signed with a key that its issuer does not have";
    assert_eq!(why(oidc.caller(&other.token("k1", &claims())).await), unknown);
    let long = format!("eyJ{}", "x".repeat(TOKEN_BYTES));
    assert!(why(oidc.caller(&long).await).contains("bytes"));
}

#[tokio::test]
async fn what_a_token_says_must_hold() {
    let pair = Pair::ec();
    let oidc = Oidc::start(config(), Issuer::with(vec![pair.jwk("k1")]).fetch());
    let cases = [
        ("iss", json!("https://evil.example/"), "is not from the issuer"),
        ("aud", json!("other"), "is not for the audience"),
        ("exp", json!(now() - 120), "expired"),
        ("nbf", json!(now() + 120), "is not valid yet"),
        ("exp", Value::Null, "has no claim exp"),
        ("tenant", json!("a/b"), "is not a tenant's name"),
        ("tenant", json!(7), "is missing or no text"),
        ("tenant", json!(["a", "b"]), "is not one text"),
    ];
    for (claim, value, part) in cases {
        let mut claims = claims();
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(claim)),
            value => claims[claim] = value,
        }
        let told = why(oidc.caller(&pair.token("k1", &claims)).await);
        assert!(told.contains(part), "{claim}: {told}");
    }
    // Within the leeway.
    let mut late = claims();
    late["exp"] = json!(now() - 30);
    assert!(oidc.caller(&pair.token("k1", &late)).await.is_ok());
}

#[tokio::test]
async fn values_of_a_claim_are_mapped_to_tenants() {
    let pair = Pair::ec();
    let tenants = [("g-1", "acme"), ("g-2", "acme"), ("g-3", "umbrella")];
    let tenants = tenants.map(|(value, name)| (value.to_owned(), name.parse().unwrap()));
    let mapped = OidcConfig {
        claim: "org.groups".to_owned(),
        tenants: Named::Listed(tenants.into()),
        ..config()
    };
    let oidc = Oidc::start(mapped, Issuer::with(vec![pair.jwk("k1")]).fetch());
    let ask = async |groups: Value| {
        let mut claims = claims();
        claims["org"] = json!({ "groups": groups });
        oidc.caller(&pair.token("k1", &claims)).await
    };
    assert_eq!(ask(json!("g-3")).await.unwrap().tenant.unwrap().as_str(), "umbrella");
    let two = ask(json!(["x", "g-1", "g-2"])).await.unwrap();
    assert_eq!(two.tenant.unwrap().as_str(), "acme");
    assert!(why(ask(json!(["g-1", "g-3"])).await).contains("several"));
    assert!(why(ask(json!("acme")).await).contains("no tenant of ours"));
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_found_and_made_up_ones_do_not_bother_the_issuer() {
    let (old, new) = (Pair::ec(), Pair::ec());
    let issuer = Issuer::with(vec![old.jwk("k1")]);
    let oidc = Oidc::start(config(), issuer.fetch());
    assert!(oidc.caller(&old.token("k1", &claims())).await.is_ok());
    *issuer.keys.lock().unwrap() = vec![old.jwk("k1"), new.jwk("k2")];
    let token = new.token("k2", &claims());
    // Just asked: not again so soon.
    assert!(oidc.caller(&token).await.is_err());
    assert_eq!(issuer.asked(), 1);
    tokio::time::sleep(Duration::from_secs(11)).await;
    let both = futures_util::future::join(oidc.caller(&token), oidc.caller(&token)).await;
    assert!(both.0.is_ok() && both.1.is_ok());
    assert_eq!(issuer.asked(), 2, "one fetch for all who wait");
    for made_up in 0..100 {
        assert!(oidc.caller(&new.token(&format!("m{made_up}"), &claims())).await.is_err());
    }
    assert_eq!(issuer.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn earlier_keys_stay_while_the_issuer_is_down() {
    let pair = Pair::ec();
    let issuer = Issuer::with(vec![pair.jwk("k1")]);
    *issuer.is_down.lock().unwrap() = true;
    let oidc = Oidc::start(config(), issuer.fetch());
    let token = pair.token("k1", &claims());
    assert_eq!(oidc.caller(&token).await, Err(Denied::Unavailable));
    *issuer.is_down.lock().unwrap() = false;
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(oidc.caller(&token).await.is_ok());
    *issuer.is_down.lock().unwrap() = true;
    let before = issuer.asked();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(issuer.asked() > before, "it is asked again");
    assert!(oidc.caller(&token).await.is_ok());
}

#[test]
fn keys_that_are_of_no_use_are_left_out() {
    let pair = Pair::ec();
    let mut for_encryption = pair.jwk("enc");
    for_encryption["use"] = json!("enc");
    let mut for_other = pair.jwk("other");
    for_other["alg"] = json!("ES384");
    let odd = json!({"kty": "new", "kid": "odd"});
    let shared = json!({"kty": "oct", "kid": "shared", "k": "c2VjcmV0"});
    let set = json!({"keys": [for_encryption, for_other, odd, shared, 7, pair.jwk("k1")]});
    let keys = keeper::parse(&set.to_string()).unwrap();
    let ids: Vec<_> = keys.iter().map(|key| key.id.as_deref()).collect();
    assert_eq!(ids, [Some("k1")]);
    for text in ["", "[]", "{}", r#"{"keys":{}}"#] {
        assert!(keeper::parse(text).is_err(), "{text}");
    }
}

#[tokio::test]
async fn no_token_says_that_its_bearer_has_none() {
    let pair = Pair::ec();
    let oidc = Oidc::start(config(), Issuer::with(vec![pair.jwk("k1")]).fetch());
    let mut claims = claims();
    claims["tenant"] = json!("anonymous");
    assert!(why(oidc.caller(&pair.token("k1", &claims)).await).contains("without a credential"));
}

#[tokio::test]
async fn of_several_issuers_the_one_that_a_token_names_counts() {
    let (ours, theirs) = (Pair::ec(), Pair::ec());
    let theirs_config = OidcConfig {
        issuer: "https://other.example".to_owned(),
        jwks: Jwks::Discovered("https://other.example".to_owned()),
        tenants: Named::Listed([("acme".to_owned(), "umbrella".parse().unwrap())].into()),
        ..config()
    };
    let (our_key, their_key) = (ours.jwk("k1"), theirs.jwk("k1"));
    let fetch: Fetch = Arc::new(move |document: Document| {
        let answer = match document.url.as_str() {
            "https://issuer.example/keys" => json!({"keys": [our_key]}),
            "https://other.example/.well-known/openid-configuration" => {
                json!({"issuer": "https://other.example", "jwks_uri": "https://keys.example/k"})
            }
            "https://keys.example/k" => json!({"keys": [their_key]}),
            other => panic!("{other}"),
        };
        Box::pin(async move { Ok(answer.to_string()) })
    });
    let issuers = Issuers::start(&[config(), theirs_config], &fetch, None);
    let mut from_them = claims();
    from_them["iss"] = json!("https://other.example");
    let tenant = async |token: String| issuers.caller(&token).await.map(|it| it.tenant.unwrap());
    assert_eq!(tenant(ours.token("k1", &claims())).await.unwrap().as_str(), "acme");
    assert_eq!(tenant(theirs.token("k1", &from_them)).await.unwrap().as_str(), "umbrella");
    // One issuer's key under the other's name, and nobody's name.
    let told = "the bearer token has a wrong signature";
    assert_eq!(why(issuers.caller(&theirs.token("k1", &claims())).await), told);
    assert_eq!(why(issuers.caller(&ours.token("k1", &from_them)).await), told);
    for iss in [json!("https://issuer.example"), json!(7)] {
        let mut claims = claims();
        claims["iss"] = iss;
        assert!(matches!(issuers.caller(&ours.token("k1", &claims)).await, Err(Denied::Token(_))));
    }
    assert!(issuers.caller("eyJ.!!.x").await.is_err());
}

#[test]
fn an_issuers_document_is_about_itself() {
    let document =
        |issuer: &str, keys: &str| json!({"issuer": issuer, "jwks_uri": keys}).to_string();
    let found = |text: &str| keeper::discovered("https://a/x", text);
    assert_eq!(found(&document("https://a/x", "https://k/y")).unwrap(), "https://k/y");
    for (issuer, keys) in [
        ("https://a/x/", "https://k/y"),
        ("https://evil", "https://k/y"),
        ("https://a/x", "http://k/y"),
        ("https://a/x", "file:///etc/passwd"),
        ("https://a/x", ""),
    ] {
        assert!(found(&document(issuer, keys)).is_err(), "{issuer} {keys}");
    }
    for text in ["", "[]", "{}"] {
        assert!(found(text).is_err(), "{text}");
    }
}
