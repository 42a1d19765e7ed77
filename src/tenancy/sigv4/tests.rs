use std::time::Duration;

use serde::Deserialize;

use super::*;
use crate::keys::{KeyFile, Wanted};

/// Those of AWS's published signing test suite that normalise paths, as all services but S3 do
/// (awslabs/aws-c-auth, `tests/aws-signing-test-suite/v4`).
const VECTORS: &str = include_str!("tests/vectors.json");
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const SCOPE: &str = "AKIDEXAMPLE/20150830/us-east-1/service/aws4_request";

#[derive(Deserialize)]
struct Vector {
    name: String,
    method: String,
    header: Option<Form>,
    query: Option<Form>,
}

#[derive(Deserialize)]
struct Form {
    target: String,
    headers: Vec<(String, String)>,
    body: String,
    canonical: String,
    signature: String,
}

impl Form {
    fn headers(&self) -> HeaderMap {
        let pair = |(name, value): &(String, String)| {
            let name: http::HeaderName = name.parse().unwrap();
            (name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        let mut headers = HeaderMap::new();
        for (name, value) in self.headers.iter().map(pair) {
            headers.append(name, value);
        }
        headers
    }

    /// Compares what both sides sign, and the signature itself.
    fn check(&self, name: &str, method: &str, presented: &Presented<'_>) {
        let (method, uri, headers) = (method.parse().unwrap(), Uri::default(), self.headers());
        let message = Message { method: &method, uri: &uri, headers: &headers };
        let mut canonical = canonical::request(
            &method,
            &presented.path,
            &presented.query,
            &message,
            &presented.signed,
        )
        .unwrap();
        canonical.extend_from_slice(hash(self.body.as_bytes()).as_bytes());
        assert_eq!(String::from_utf8(canonical.clone()).unwrap(), self.canonical, "{name}");
        assert_eq!(presented.credential, SCOPE, "{name}");
        let scope = SCOPE.split_once('/').unwrap().1;
        let text = to_sign(&presented.date, scope, &canonical);
        let signature = hmac::sign(&signing_key(SECRET, SCOPE), text.as_bytes());
        assert_eq!(hex(signature.as_ref()), self.signature, "{name}");
        assert_eq!(hex(&presented.signature), self.signature, "{name}");
    }
}

#[test]
fn aws_test_vectors_hold_in_both_forms() {
    let vectors: Vec<Vector> = serde_json::from_str(VECTORS).unwrap();
    let (mut in_headers, mut in_queries) = (0, 0);
    for vector in &vectors {
        if let Some(form) = &vector.header {
            let headers = form.headers();
            let shown = headers["authorization"].to_str().unwrap().to_owned();
            // A target with a bare blank is no URI, so its parts are put in place.
            let (path, query) = form.target.split_once('?').unwrap_or((&form.target, ""));
            let uri = Uri::default();
            let mut presented = Presented::header(&shown, &uri, &headers).unwrap();
            presented.path = path.into();
            presented.query = canonical::query(canonical::parameters(query));
            form.check(&vector.name, &vector.method, &presented);
            in_headers += 1;
        }
        if let Some(form) = &vector.query {
            let (path, query) = form.target.split_once('?').unwrap();
            let presented = Presented::presigned(path, query, 604_800, |_| true).unwrap();
            form.check(&vector.name, &vector.method, &presented);
            in_queries += 1;
        }
    }
    assert_eq!((in_headers, in_queries), (31, 30));
}

#[test]
fn a_path_that_is_encoded_already_is_encoded_once_more() {
    let cases = [
        ("/test/@connections/JBDvjfGEIAMCERw%3D", "/test/%40connections/JBDvjfGEIAMCERw%253D"),
        ("/endpoints/a%2Fb%20c/invocations", "/endpoints/a%252Fb%2520c/invocations"),
        ("/a/%2e%2e/b", "/a/%252e%252e/b"),
        ("", "/"),
        ("/../..", "/"),
    ];
    for (path, want) in cases {
        let (method, uri) = (Method::GET, Uri::default());
        let headers = HeaderMap::from_iter([(http::header::HOST, "h".parse().unwrap())]);
        let message = Message { method: &method, uri: &uri, headers: &headers };
        let text = canonical::request(&method, path, "", &message, "host").unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().nth(1), Some(want), "{path}");
    }
}

const NOW: &str = "20261121T130500Z";
const TARGET: &str = "/endpoints/demo/invocations";
const BODY: &[u8] = br#"{"inputs":"hello"}"#;

/// A request of a minted pair, which a test changes before or after it is signed.
struct Sent {
    id: String,
    secret: String,
    service: &'static str,
    date: &'static str,
    scope_date: &'static str,
    signed: &'static str,
    method: Method,
    target: &'static str,
    headers: HeaderMap,
    keys: Arc<Keys>,
    _folder: tempfile::TempDir,
}

fn sent() -> Sent {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let wanted = Wanted::Sigv4("acme".parse().unwrap());
    let lifetime = Duration::from_secs(365 * 86_400 * 10);
    let minted = KeyFile::create(&path, wanted, Some(lifetime)).unwrap();
    let headers = [("host", "localhost:8080"), ("x-amzn-sagemaker-target-model", "acme/chat")];
    let header = |(name, value): (&'static str, &'static str)| {
        (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
    };
    Sent {
        id: minted.record.id.clone(),
        secret: minted.secret.reveal().to_owned(),
        service: "sagemaker",
        date: NOW,
        scope_date: "20261121",
        signed: "host;x-amz-date;x-amzn-sagemaker-target-model",
        method: Method::POST,
        target: TARGET,
        headers: headers.into_iter().map(header).collect(),
        keys: KeyFile::open(&path).unwrap().current(),
        _folder: folder,
    }
}

impl Sent {
    /// Signs, as a client does.
    fn sign(&mut self, body: &[u8]) {
        let credential =
            format!("{}/{}/eu-central-1/{}/aws4_request", self.id, self.scope_date, self.service);
        self.headers.insert("x-amz-date", self.date.parse().unwrap());
        let uri: Uri = self.target.parse().unwrap();
        let message = Message { method: &self.method, uri: &uri, headers: &self.headers };
        let query = canonical::query(canonical::parameters(uri.query().unwrap_or_default()));
        let mut text =
            canonical::request(&self.method, uri.path(), &query, &message, self.signed).unwrap();
        text.extend_from_slice(hash(body).as_bytes());
        let scope = credential.split_once('/').unwrap().1;
        let key = signing_key(&self.secret, &credential);
        let signature = hmac::sign(&key, to_sign(self.date, scope, &text).as_bytes());
        let value = format!(
            "{ALGORITHM} Credential={credential}, SignedHeaders={}, Signature={}",
            self.signed,
            hex(signature.as_ref())
        );
        self.headers.insert("authorization", value.parse().unwrap());
    }

    fn verify_at(&self, now: &str, body: &[u8]) -> Result<Caller, Denied> {
        let uri: Uri = self.target.parse().unwrap();
        let message = Message { method: &self.method, uri: &uri, headers: &self.headers };
        let shown = self.headers["authorization"].to_str().unwrap();
        let presented = Presented::header(shown, &uri, &self.headers)?;
        let now = u64::try_from(time::parse(now).unwrap()).unwrap();
        Signed::look(presented, &message, self.keys.clone(), false, now)?.verify(body)
    }

    fn verify(&self, body: &[u8]) -> Result<Caller, Denied> {
        self.verify_at(NOW, body)
    }
}

#[test]
fn a_right_signature_says_whose_it_is() {
    let mut sent = sent();
    sent.sign(BODY);
    // The second time the signing key comes from the cache.
    for _ in 0..2 {
        let caller = sent.verify(BODY).unwrap();
        assert_eq!(caller.tenant.unwrap().as_str(), "acme");
        assert_eq!(caller.credential.unwrap().as_ref(), sent.id);
    }
}

#[test]
fn what_was_changed_on_the_way_is_refused() {
    type Change = fn(&mut Sent);
    let changes: [(&str, Change); 6] = [
        ("the method", |it| it.method = Method::PUT),
        ("the path", |it| it.target = "/endpoints/demo/invocations/"),
        ("the query", |it| it.target = "/endpoints/demo/invocations?a=b"),
        ("a header", |it| {
            it.headers.insert("x-amzn-sagemaker-target-model", "evil".parse().unwrap());
        }),
        ("one more value", |it| {
            it.headers.append("x-amzn-sagemaker-target-model", "evil".parse().unwrap());
        }),
        ("the host", |it| {
            it.headers.insert("host", "elsewhere".parse().unwrap());
        }),
    ];
    for (what, change) in changes {
        let mut sent = sent();
        sent.sign(BODY);
        change(&mut sent);
        assert_eq!(sent.verify(BODY), Err(Denied::mismatch()), "{what}");
    }
    let mut sent = sent();
    sent.sign(BODY);
    for body in [&b""[..], b"{}", br#"{"inputs":"hellp"}"#] {
        assert_eq!(sent.verify(body), Err(Denied::mismatch()), "{body:?}");
    }
}

#[test]
fn a_wrong_secret_is_refused_and_leaves_nothing_behind() {
    let mut sent = sent();
    let right = std::mem::replace(&mut sent.secret, "another".to_owned());
    sent.sign(BODY);
    assert_eq!(sent.verify(BODY), Err(Denied::mismatch()));
    sent.secret = right;
    sent.sign(BODY);
    assert!(sent.verify(BODY).is_ok());
}

#[test]
fn clocks_may_differ_by_five_minutes() {
    let mut sent = sent();
    sent.sign(BODY);
    for now in ["20261121T131000Z", "20261121T130000Z"] {
        assert!(sent.verify_at(now, BODY).is_ok(), "{now}");
    }
    let words = |now| match sent.verify_at(now, BODY) {
        Err(Denied::Signature(words)) => words,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        words("20261121T131001Z"),
        "Signature expired: 20261121T130500Z is now earlier than 20261121T130501Z \
         (20261121T131001Z - 5 min.)"
    );
    assert_eq!(
        words("20261121T125959Z"),
        "Signature not yet current: 20261121T130500Z is still later than 20261121T130459Z \
         (20261121T125959Z + 5 min.)"
    );
}

#[test]
fn a_scope_is_ours_and_of_the_day() {
    let mut other = sent();
    other.service = "s3";
    other.sign(BODY);
    let Err(Denied::Signature(words)) = other.verify(BODY) else { panic!() };
    assert_eq!(words, "Credential should be scoped to correct service: 'sagemaker'.");
    let mut other = sent();
    other.scope_date = "20261120";
    other.sign(BODY);
    let Err(Denied::Signature(words)) = other.verify(BODY) else { panic!() };
    assert!(words.contains("'20261120' != '20261121', from '20261121T130500Z'"), "{words}");
}

#[test]
fn what_steers_us_must_be_signed() {
    for (name, is_refused) in [
        ("x-amzn-sagemaker-custom-attributes", true),
        ("x-amz-meta", true),
        ("x-amzn-trace-id", false),
        ("x-forwarded-for", false),
    ] {
        let mut sent = sent();
        sent.sign(BODY);
        sent.headers.insert(name, "endpoint=other".parse().unwrap());
        assert_eq!(sent.verify(BODY).is_err(), is_refused, "{name}");
    }
    for signed in ["x-amz-date;x-amzn-sagemaker-target-model", "x-amzn-sagemaker-target-model;host"]
    {
        let mut sent = sent();
        sent.signed = signed;
        sent.sign(BODY);
        assert!(matches!(sent.verify(BODY), Err(Denied::Signature(_))), "{signed}");
    }
}

#[test]
fn tokens_and_ids_that_are_not_ours_are_unknown() {
    let mut other = sent();
    other.id = "AKIAIOSFODNN7EXAMPLE".to_owned();
    other.sign(BODY);
    assert_eq!(other.verify(BODY), Err(Denied::Unknown));
    let mut other = sent();
    other.sign(BODY);
    other.headers.insert("x-amz-security-token", "any".parse().unwrap());
    assert_eq!(other.verify(BODY), Err(Denied::Unknown));
    let mut other = sent();
    other.sign(BODY);
    assert_eq!(other.verify_at("20361201T000000Z", BODY), Err(Denied::Expired));
}

#[test]
fn malformed_headers_are_named_and_cost_nothing() {
    let (uri, mut headers) = (Uri::default(), HeaderMap::new());
    let parts = |value: &str, headers: &HeaderMap| match Presented::header(value, &uri, headers) {
        Err(denied) => denied.to_string(),
        Ok(_) => panic!("{value} was taken"),
    };
    assert_eq!(
        parts("AWS4-HMAC-SHA256 Credential=a/b, Signature=00", &headers),
        "Authorization header requires 'SignedHeaders' parameter. Authorization header requires \
         existence of either a 'X-Amz-Date' or a 'Date' header."
    );
    headers.insert("x-amz-date", NOW.parse().unwrap());
    assert!(parts("AWS4-HMAC-SHA256 Credential", &headers).contains("missing equal-sign"));
    for signature in ["", "00", "zz", &"0".repeat(63), &"é".repeat(32), &"A".repeat(64)] {
        let value =
            format!("AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host, Signature={signature}");
        assert_eq!(parts(&value, &headers), Denied::mismatch().to_string());
    }
}

#[test]
fn what_steers_us_by_our_own_names_is_signed() {
    let mut sent = sent();
    sent.sign(BODY);
    sent.headers.insert("x-roundhouse-route-key", "another".parse().unwrap());
    assert!(sent.verify(BODY).unwrap_err().to_string().contains("x-roundhouse-route-key"));
    sent.signed = "host;x-amz-date;x-amzn-sagemaker-target-model;x-roundhouse-route-key";
    sent.sign(BODY);
    assert!(sent.verify(BODY).is_ok());
}

#[test]
fn a_credential_that_is_longer_than_any_is_refused() {
    let mut sent = sent();
    sent.sign(BODY);
    let shown = sent.headers["authorization"].to_str().unwrap();
    let long = shown.replace("eu-central-1", &"x".repeat(300));
    sent.headers.insert("authorization", long.parse().unwrap());
    assert!(matches!(sent.verify(BODY), Err(Denied::Incomplete(_))));
}
