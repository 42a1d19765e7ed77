//! A server that runs Python handlers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::processes::{cmdline, processes_of};
use crate::server::{Answer, Server, binary, built, root};

/// An answer with its bytes as they came.
#[derive(Debug, Clone)]
pub struct RawAnswer {
    /// Its status.
    pub status: u16,
    /// Its headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Its body.
    pub body: Vec<u8>,
}

impl RawAnswer {
    /// A header's value, empty where absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The body as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What a server is started with: a store of handlers and its settings.
pub struct Stage {
    dir: TempDir,
    settings: Vec<(String, String)>,
    args: Vec<String>,
}

impl Default for Stage {
    fn default() -> Self {
        Self::new()
    }
}

impl Stage {
    /// An empty store in a folder that everybody may enter, and that is not below `/tmp`:
    /// there handlers see a folder of their own.
    pub fn new() -> Self {
        let parent = built().parent().expect("target/<profile>").with_file_name("handlers-tests");
        fs::create_dir_all(&parent).unwrap();
        let dir = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(parent)
            .unwrap();
        fs::create_dir(dir.path().join("store")).unwrap();
        let mut stage = Self { dir, settings: Vec::new(), args: Vec::new() };
        // Nobody uploads while the server looks.
        stage.setting("STORE_SETTLE", "0s").setting("STORE_UPDATE_SETTLE", "0s");
        // Processes are counted, and idle interpreters come when they like.
        stage.setting("HANDLERS_WARM", "false");
        stage
    }

    /// The stage's own folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The store's URI.
    pub fn uri(&self) -> String {
        format!("file://{}/", self.path().join("store").display())
    }

    /// Puts a file into the store.
    pub fn file(&mut self, path: &str, body: impl AsRef<[u8]>) -> &mut Self {
        let path = self.path().join("store").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, body).unwrap();
        self
    }

    /// Puts a handler into the store.
    pub fn script(&mut self, target: &str, text: &str) -> &mut Self {
        self.file(&format!("{target}/code/inference.py"), text)
    }

    /// A handler's `[handler]` settings.
    pub fn asks(&mut self, target: &str, settings: &str) -> &mut Self {
        self.file(&format!("{target}/roundhouse.toml"), format!("[handler]\n{settings}\n"))
    }

    /// Puts one of `tests/models/handlers/hostile` into the store, under its own name.
    pub fn hostile(&mut self, name: &str) -> &mut Self {
        let path = root().join("tests/models/handlers/hostile").join(name);
        self.script(name, &fs::read_to_string(path.join("code/inference.py")).unwrap())
    }

    /// One setting, by its name in the environment without `ROUNDHOUSE_`.
    pub fn setting(&mut self, name: &str, value: &str) -> &mut Self {
        self.settings.push((format!("ROUNDHOUSE_{name}"), value.to_owned()));
        self
    }

    /// One variable of the server's environment.
    pub fn variable(&mut self, name: &str, value: &str) -> &mut Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// One more argument of the server's command line.
    pub fn arg(&mut self, text: &str) -> &mut Self {
        self.args.push(text.to_owned());
        self
    }

    /// Starts a server with `--handlers` over the store. The cache lives as long as the stage.
    pub async fn serve(&self) -> Running {
        let uri = self.uri();
        self.start(&["--store", &uri, "--handlers"]).await
    }

    /// Starts a server with these arguments beside the stage's.
    pub async fn start(&self, args: &[&str]) -> Running {
        let cache = self.path().join("cache");
        let log = self.path().join("server.log");
        let mut command = Command::new(binary());
        command.arg("serve").args(args).args(&self.args);
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        command.args(["--access-log", "off", "--cache-dir"]).arg(&cache);
        if !self.args.iter().any(|arg| arg == "--memory") {
            command.args(["--memory", "4GiB"]);
        }
        command.stderr(File::create(&log).unwrap());
        let settings: Vec<(&str, &str)> =
            self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let server = Server::spawn(command, &settings).await;
        Running { server, log, cache }
    }
}

/// A server that was started by a [`Stage`].
pub struct Running {
    server: Server,
    log: PathBuf,
    cache: PathBuf,
}

impl Deref for Running {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Running {
    /// The server, to be killed or waited for.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// Its cache folder.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// `InvokeEndpoint` with these bytes as `application/octet-stream`.
    pub async fn ask(&self, target: &str, body: impl AsRef<[u8]>) -> RawAnswer {
        self.ask_with(target, body, &[("content-type", "application/octet-stream")]).await
    }

    /// `InvokeEndpoint` with these bytes and headers.
    pub async fn ask_with(
        &self,
        target: &str,
        body: impl AsRef<[u8]>,
        headers: &[(&str, &str)],
    ) -> RawAnswer {
        self.send_raw(self.invocation("invocations", target, body, headers)).await
    }

    /// `InvokeEndpointWithResponseStream`; the answer is read by whoever asks.
    pub async fn ask_stream(&self, target: &str, body: impl AsRef<[u8]>) -> reqwest::Response {
        let headers = [("content-type", "application/json")];
        let request = self.invocation("invocations-response-stream", target, body, &headers);
        request.send().await.expect("the server answers")
    }

    fn invocation(
        &self,
        operation: &str,
        target: &str,
        body: impl AsRef<[u8]>,
        headers: &[(&str, &str)],
    ) -> reqwest::RequestBuilder {
        let url = format!("{}/endpoints/default/{operation}", self.data);
        let request = self.http().post(url).header("x-amzn-sagemaker-target-model", target);
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(body.as_ref().to_vec())
    }

    /// A prepared request, its answer as bytes.
    pub async fn send_raw(&self, request: reqwest::RequestBuilder) -> RawAnswer {
        let response = request.send().await.expect("the server answers");
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("").to_owned()))
            .collect();
        let status = response.status().as_u16();
        RawAnswer { status, headers, body: response.bytes().await.expect("all of it").to_vec() }
    }

    /// The operator's load.
    pub async fn load(&self, target: &str) -> Answer {
        self.admin_post("load", "default", target).await
    }

    /// The operator's unload, which must succeed.
    pub async fn unload(&self, target: &str) {
        let answer = self.admin_post("unload", "default", target).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }

    /// What `/admin/v1/residency` says of the device.
    pub async fn device(&self) -> Value {
        self.admin_get("/admin/v1/residency").await.json()["devices"][0].clone()
    }

    /// The targets that are loaded, and what each is charged.
    pub async fn residents(&self) -> BTreeMap<String, u64> {
        let device = self.device().await;
        let residents = device["residents"].as_array().unwrap();
        let charged = |one: &Value| {
            let parts = one["bytes"].as_object().unwrap().values();
            parts.filter_map(Value::as_u64).sum()
        };
        residents
            .iter()
            .map(|one| (one["target"].as_str().unwrap().to_owned(), charged(one)))
            .collect()
    }

    /// Requests that hold a target now.
    pub async fn leases(&self, target: &str) -> u64 {
        let device = self.device().await;
        let residents = device["residents"].as_array().unwrap();
        let resident = residents.iter().find(|one| one["target"] == target);
        resident.map_or(0, |one| one["leases"].as_u64().unwrap())
    }

    /// What `explain` says of a target.
    pub async fn explain(&self, target: &str) -> String {
        self.admin_get(&format!("/admin/v1/explain?target={target}")).await.body
    }

    /// Worker processes started so far.
    pub async fn started(&self) -> u64 {
        self.metric("roundhouse_workers_started_total").await as u64
    }

    /// The processes of its handlers, whoever their parent and group are.
    pub fn processes(&self) -> BTreeSet<u32> {
        processes_of(&self.cache)
    }

    /// The processes that serve one target.
    pub fn processes_of(&self, target: &str) -> BTreeSet<u32> {
        let named = format!("\"name\":\"default:{target}\"");
        self.processes().into_iter().filter(|process| cmdline(*process).contains(&named)).collect()
    }
}

/// Waits until something is so; panics with `what` when it is not within `limit`.
pub async fn until(what: &str, limit: Duration, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A message of an event stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `PayloadPart`, or the name of an exception.
    pub name: String,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Takes the whole messages off the front of what has come of an event stream.
pub fn events(received: &mut Vec<u8>) -> Vec<Event> {
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
    let mut events = Vec::new();
    while received.len() >= 12 && received.len() >= number(received) {
        let message: Vec<u8> = received.drain(..number(received)).collect();
        let headers_end = 12 + number(&message[4..]);
        let (mut headers, mut at) = (BTreeMap::new(), 12);
        while at < headers_end {
            let name_end = at + 1 + usize::from(message[at]);
            let name = String::from_utf8_lossy(&message[at + 1..name_end]).into_owned();
            let size =
                usize::from(u16::from_be_bytes([message[name_end + 1], message[name_end + 2]]));
            let value_at = name_end + 3;
            let value = String::from_utf8_lossy(&message[value_at..value_at + size]).into_owned();
            headers.insert(name, value);
            at = value_at + size;
        }
        let name = headers.get(":event-type").or_else(|| headers.get(":exception-type"));
        let payload = message[headers_end..message.len() - 4].to_vec();
        events.push(Event { name: name.cloned().unwrap_or_default(), payload });
    }
    events
}
