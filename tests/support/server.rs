//! The real binary as a child process.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long a server may take to print its ready lines.
const START_WITHIN: Duration = Duration::from_secs(60);

/// A running server; dropping it kills it.
pub struct Server {
    child: Child,
    /// `http://…` of the data port.
    pub data: String,
    /// `http://…` of the admin port.
    pub admin: String,
    http: reqwest::Client,
}

/// An answer as it came.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, names in lower case.
    pub headers: std::collections::BTreeMap<String, String>,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// The body as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// A header's value, empty where absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// The binary under test: `ROUNDHOUSE_BINARY`, else the one built with this test.
pub fn binary() -> PathBuf {
    std::env::var_os("ROUNDHOUSE_BINARY").map_or_else(built, PathBuf::from)
}

/// The binary beside this test's own executable.
pub(crate) fn built() -> PathBuf {
    let own = std::env::current_exe().expect("a test has an executable");
    let folder = own.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let path = folder.join("roundhouse");
    assert!(
        path.exists(),
        "{} is not built: run `cargo build` first, or `cargo test --workspace`",
        path.display()
    );
    path
}

impl Server {
    /// Starts `roundhouse` with `args` on free ports and waits until it is ready.
    pub async fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(binary());
        command.args(args).args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        Self::spawn(command, env).await
    }

    /// Starts a prepared command, which must listen on ports of its own choice.
    pub async fn spawn(mut command: Command, env: &[(&str, &str)]) -> Self {
        command.stdout(Stdio::piped()).stdin(Stdio::null());
        command.envs(env.iter().copied());
        let mut child = command.spawn().expect("the binary starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (lines, mut seen) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    // Keep reading: a full pipe would stop the server.
                }
            }
        });
        let (mut data, mut admin) = (None, None);
        let deadline = Instant::now() + START_WITHIN;
        while data.is_none() || admin.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = tokio::time::timeout(left, seen.recv()).await;
            let Ok(Some(line)) = line else {
                let status = child.kill().and_then(|()| child.wait());
                panic!("the server did not become ready: {status:?}");
            };
            if let Some(at) = line.strip_prefix("listening on ") {
                data = Some(at.trim().to_owned());
            }
            if let Some(at) = line.strip_prefix("admin on ") {
                admin = Some(at.trim().to_owned());
            }
        }
        Self {
            child,
            data: data.unwrap_or_default(),
            admin: admin.unwrap_or_default(),
            http: reqwest::Client::new(),
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it without warning, as `kill -9`.
    pub fn kill(&mut self) {
        // It may be dead already, which is what was wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let pid = i32::try_from(self.child.id()).expect("process ids are small");
        #[expect(unsafe_code, reason = "kill(2) has no safe wrapper in std")]
        // SAFETY: the child is ours and not yet reaped, so the id is its own.
        unsafe {
            libc::kill(pid, libc::SIGTERM);
        }
    }

    /// Waits for its end; `None` where it did not come within `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Option<std::process::ExitStatus> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }

    /// `InvokeEndpoint` as a signed client would send it, less the signature.
    pub async fn invoke(&self, endpoint: &str, target: &str, body: Value) -> Answer {
        let url = format!("{}/endpoints/{endpoint}/invocations", self.data);
        self.send(self.http.post(url).header("x-amzn-sagemaker-target-model", target).json(&body))
            .await
    }

    /// Any request to the data port.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(self.http.post(format!("{}{path}", self.data)).json(&body)).await
    }

    /// Any GET of the data port.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.http.get(format!("{}{path}", self.data))).await
    }

    /// Any GET of the admin port.
    pub async fn admin_get(&self, path: &str) -> Answer {
        self.send(self.http.get(format!("{}{path}", self.admin))).await
    }

    /// `/admin/v1/residency`, as soon as it is as wanted.
    ///
    /// # Panics
    /// When it is not within two minutes.
    pub async fn residency_once(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let residency = self.admin_get("/admin/v1/residency").await.json();
            if wanted(&residency) {
                return residency;
            }
            assert!(Instant::now() < deadline, "it stays as it is: {residency}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// An admin command on a target.
    pub async fn admin_post(&self, command: &str, endpoint: &str, target: &str) -> Answer {
        let url = format!("{}/admin/v1/{command}", self.admin);
        self.send(self.http.post(url).json(&json!({"endpoint": endpoint, "target": target}))).await
    }

    /// A prepared request of [`Server::http`].
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.expect("the server answers");
        let status = response.status().as_u16();
        let headers = response
            .headers()
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_str().unwrap_or("").to_owned()))
            .collect();
        let body = response.text().await.expect("a whole answer");
        Answer { status, headers, body }
    }

    /// The HTTP client, for requests of another form.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// The sum of a metric over its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        self.metric_with(name, "").await
    }

    /// The sum of a metric over the series whose labels contain `label`.
    pub async fn metric_with(&self, name: &str, label: &str) -> f64 {
        let text = self.admin_get("/metrics").await.body;
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| series.split('{').next() == Some(name) && series.contains(label))
            .filter_map(|(_, value)| value.parse::<f64>().ok())
            .sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root")
}
