//! Callers whom others vouch for: STS, issuers of tokens, certificate authorities; each a stand-in on
//! loopback that does what the real one does.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use roundhouse_tests::models::signed_classifier;
use roundhouse_tests::python;
use roundhouse_tests::server::{Answer, Server, root};
use roundhouse_tests::site::{Site, until};
use serde_json::{Value, json};

const TARGET: &str = "acme/sort";

/// A process that says its port first; ended with the test.
struct StandIn {
    child: Child,
    port: u16,
}

impl StandIn {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(python::interpreter())
            .args(args)
            .current_dir(root())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().rsplit(' ').next().and_then(|port| port.parse().ok());
        Self { child, port: port.unwrap_or_else(|| panic!("no port: {line}")) }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn site(auth: &str) -> Site {
    let site = Site::default();
    site.put(TARGET, &signed_classifier(TARGET, 1, 100));
    site.configure(auth, "", "");
    site
}

async fn with_token(server: &Server, token: &str) -> Answer {
    let url = format!("{}/endpoints/default/invocations", server.data);
    let request = server.http().post(url).header("x-amzn-sagemaker-target-model", TARGET);
    server.send(request.json(&json!({"inputs": "hello"})).bearer_auth(token)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_with_awss_credentials_are_who_sts_says() {
    let arn = |role: &str| format!("arn:aws:sts::123456789012:assumed-role/{role}/one");
    let principals = json!({
        "acme": ["secret-a", "a session+token/=", arn("robot")],
        "stranger": ["secret-s", Value::Null, arn("robot-evil")],
    });
    let sts = StandIn::start(&["tests/clients/sts_stand_in.py", &principals.to_string()]);
    let sts_url = format!("http://127.0.0.1:{}", sts.port);
    let auth = format!(
        "[auth]\naws_sts = \"{sts_url}\"\naws_server_id = \"house-1\"\n\
         aws_tenants = \"arn:aws:iam::123456789012:role/robot=acme\"\n"
    );
    let site = site(&auth);
    let server = site.start().await;
    let data = server.data.clone();
    tokio::task::spawn_blocking(move || {
        let args = [&data, "default", TARGET, &sts_url, "house-1", &principals.to_string()];
        python::client("boto3_iam.py", &args);
    })
    .await
    .unwrap();
    let metrics = server.admin_get("/metrics").await.body;
    for outcome in ["accepted", "unknown", "forbidden", "incomplete"] {
        let labels = format!("{{method=\"iam\",outcome=\"{outcome}\"}}");
        assert!(metrics.contains(&labels), "{labels}");
    }
}

/// A folder that is served as an issuer's, and a key pair of its.
struct Issuer {
    folder: PathBuf,
    url: String,
    pair: Ed25519KeyPair,
    kid: String,
}

impl Issuer {
    fn new(root: &Path, at: &StandIn, name: &str) -> Self {
        let folder = root.join(name);
        std::fs::create_dir_all(folder.join(".well-known")).unwrap();
        let url = format!("http://127.0.0.1:{}/{name}", at.port);
        let document = json!({"issuer": url, "jwks_uri": format!("{url}/keys")});
        let well_known = folder.join(".well-known/openid-configuration");
        std::fs::write(well_known, document.to_string()).unwrap();
        let mut issuer =
            Self { folder, url, pair: Ed25519KeyPair::generate().unwrap(), kid: String::new() };
        issuer.rotate("k1");
        issuer
    }

    /// From now on it signs with a new key, and its set holds only that.
    fn rotate(&mut self, kid: &str) {
        self.pair = Ed25519KeyPair::generate().unwrap();
        kid.clone_into(&mut self.kid);
        let x = BASE64_URL_SAFE_NO_PAD.encode(self.pair.public_key());
        let set = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x}]});
        std::fs::write(self.folder.join("keys"), set.to_string()).unwrap();
    }

    fn token(&self, iss: &str, tenant: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let header = json!({"alg": "EdDSA", "kid": self.kid});
        let claims = json!({"iss": iss, "aud": "roundhouse", "exp": now + 600, "tenant": tenant});
        let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(self.pair.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_several_issuers_count_and_their_keys_are_found_and_rotate() {
    let folder = tempfile::tempdir().unwrap();
    let served = folder.path().to_str().unwrap();
    let script = "import functools,http.server as h,sys\n\
                  s=h.ThreadingHTTPServer(('127.0.0.1',0),functools.partial(h.SimpleHTTPRequestHandler,directory=sys.argv[1]))\n\
                  print(s.server_address[1],flush=True)\ns.serve_forever()";
    let web = StandIn::start(&["-c", script, served]);
    let mut ours = Issuer::new(folder.path(), &web, "ours");
    let theirs = Issuer::new(folder.path(), &web, "theirs");
    let auth = format!(
        "[auth]\noidc_issuer = \"{}\"\noidc_audience = \"roundhouse\"\noidc_tenants = \"*\"\n\
         [[issuer]]\nissuer = \"{}\"\naudience = \"roundhouse\"\ntenants = \"robots=acme\"\n",
        ours.url, theirs.url
    );
    let site = site(&auth);
    let server = site.start().await;
    let status = async |token: String| with_token(&server, &token).await.status;
    assert_eq!(status(ours.token(&ours.url, "acme")).await, 200);
    assert_eq!(status(theirs.token(&theirs.url, "robots")).await, 200);
    // Theirs may name only whom we listed, and nobody speaks under another's name.
    assert_eq!(status(theirs.token(&theirs.url, "acme")).await, 403);
    assert_eq!(status(theirs.token(&ours.url, "acme")).await, 403);
    assert_eq!(status(ours.token("http://127.0.0.1:1/none", "acme")).await, 403);
    let old = ours.token(&ours.url, "acme");
    ours.rotate("k2");
    let new = ours.token(&ours.url, "acme");
    until("the new key is found", || async { status(new.clone()).await == 200 }).await;
    assert_eq!(status(old).await, 403, "the issuer has that key no longer");
    // An issuer that leaves the settings is believed no longer; the other's keys stay.
    site.configure(&auth[..auth.find("[[issuer]]").unwrap()], "", "");
    until("theirs has left", || async { status(theirs.token(&theirs.url, "robots")).await == 403 })
        .await;
    assert_eq!(status(ours.token(&ours.url, "acme")).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_credentials_and_are_renewed_while_the_server_runs() {
    let fixture = |name: &str| root().join("src/server/tests/tls").join(name);
    let site = Site::default();
    let copy = |from: &str, to: &str| {
        std::fs::copy(fixture(from), site.at("new.pem")).unwrap();
        std::fs::rename(site.at("new.pem"), site.at(to)).unwrap();
    };
    copy("server.crt", "tls.crt");
    copy("server.key", "tls.key");
    copy("ca.crt", "ca.crt");
    let at = |name: &str| site.at(name).display().to_string();
    let tls = format!(
        "[tls]\ncertificate = \"{}\"\nkey = \"{}\"\nclient_ca = \"{}\"\n",
        at("tls.crt"),
        at("tls.key"),
        at("ca.crt")
    );
    site.put(TARGET, &signed_classifier(TARGET, 1, 100));
    site.configure(&tls, "", "");
    let server = site.start().await;
    let folder = root().join("src/server/tests/tls").display().to_string();
    let asked = |serial: String| {
        let (data, folder) = (server.data.clone(), folder.clone());
        tokio::task::spawn_blocking(move || {
            python::client("tls_clients.py", &[&data, TARGET, &folder, &serial]);
        })
    };
    asked(serial(&fixture("server.crt"))).await.unwrap();
    copy("renewed.crt", "tls.crt");
    copy("renewed.key", "tls.key");
    until("the renewed certificate is shown", || {
        let asking = asked(serial(&fixture("renewed.crt")));
        async { asking.await.is_ok() }
    })
    .await;
}

/// The serial number of a certificate, as Python reads it.
fn serial(certificate: &Path) -> String {
    let script = "import ssl,sys; print(ssl._ssl._test_decode_cert(sys.argv[1])['serialNumber'])";
    let output =
        Command::new(python::interpreter()).args(["-c", script]).arg(certificate).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
