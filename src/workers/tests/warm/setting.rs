//! Handlers on disk, and workers that run them.

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use roundhouse_confine::Isolation;
use roundhouse_types::Bytes;
use roundhouse_workers::{
    Body, Call, Config, DYNAMIC_USERS, Group, Handler, Layout, Packages, Settings, WarmState,
    Warming, Workers,
};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than an interpreter takes on a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Answers with what the expression in its body is, as JSON.
pub(crate) const EVALUATES: &str = "
import json, os, sys
def model_fn(model_dir):
    return {'dir': model_dir}
def transform_fn(model, body, content_type, accept):
    if isinstance(body, bytes):
        body = body.decode()
    space = {'model': model, 'os': os, 'sys': sys}
    try:
        exec(body, space)
        said = space.get('said')
    except BaseException as error:
        said = 'refused: ' + type(error).__name__
    return json.dumps(said), 'application/json'
";

/// Users that no other setting of this process has.
const USERS: u32 = 32;
static SETTINGS: AtomicU32 = AtomicU32::new(0);

fn users() -> RangeInclusive<u32> {
    let first = DYNAMIC_USERS.start() + USERS * SETTINGS.fetch_add(1, Ordering::Relaxed);
    first..=first + USERS - 1
}

pub(crate) struct Setting {
    folder: TempDir,
    pub(crate) workers: Workers,
}

impl Setting {
    /// Why no interpreters are kept here.
    pub(crate) fn missing() -> Option<String> {
        let found = roundhouse_confine::probe(&std::env::current_exe().unwrap());
        let there = found.own_uid && found.mount_namespace && found.missing().is_empty();
        (!there).then(|| found.summary())
    }

    /// Within a runtime.
    pub(crate) fn new(warming: Warming) -> Self {
        let folder = tempfile::tempdir().unwrap();
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let config = Config {
            exe: std::env::current_exe().unwrap(),
            dir: folder.path().join("handlers"),
            python: "python3".into(),
            isolation: Isolation::Required,
            uids: users(),
            assumed_memory: Bytes::mib(64),
            max_memory: Bytes::gib(1),
            workers: 1,
            max_workers: 4,
            time_limit: PATIENCE,
            start_limit: PATIENCE,
            max_response: Bytes::mib(4),
            max_temp: Bytes::mib(64),
            processes: 64,
            max_queue: 64,
            packages: Packages::default(),
            warm: Some(warming),
        };
        let workers = Workers::start(config).unwrap();
        Self { folder, workers }
    }

    /// With modules of the standard library for what takes long to import.
    pub(crate) fn importing() -> Self {
        let imports = Some(vec!["decimal".to_owned(), "xml.dom".to_owned()]);
        Self::new(Warming { imports, ..Warming::default() })
    }

    pub(crate) fn handler(&self, name: &str, tenant: &str, files: &[(&str, &str)]) -> Handler {
        let dir = self.folder.path().join("models").join(name);
        let mut sizes = BTreeMap::new();
        let mut settings = None;
        for (path, text) in files {
            let file = dir.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, text).unwrap();
            sizes.insert((*path).to_owned(), text.len() as u64);
            settings = settings.or((*path == "roundhouse.toml").then_some(*text));
        }
        Handler {
            name: name.to_owned(),
            version: name.to_owned(),
            tenant: tenant.to_owned(),
            dir,
            layout: Layout::of(&sizes).unwrap(),
            settings: Settings::read(settings, self.workers.config()).unwrap(),
        }
    }

    pub(crate) fn evaluates(&self, name: &str, tenant: &str) -> Handler {
        self.handler(name, tenant, &[("code/inference.py", EVALUATES), ("weights", name)])
    }

    pub(crate) async fn launch(&self, handler: &Handler) -> Group {
        self.workers.launch(handler, Arc::new(|_| ())).await.unwrap()
    }

    /// Starts a handler as it is started where nothing is idle, and waits until an interpreter
    /// is.
    pub(crate) async fn warm_by(&self, handler: &Handler) {
        let group = self.launch(handler).await;
        assert_eq!(said(&group, FORKED).await, Value::Bool(false));
        self.wait("an interpreter to be idle", |state| state.interpreters == 1).await;
        group.stop().await;
    }

    pub(crate) async fn wait(&self, what: &str, met: impl Fn(WarmState) -> bool) {
        let began = Instant::now();
        while !met(self.workers.warm().unwrap()) {
            assert!(began.elapsed() < PATIENCE, "waited for {what} in vain");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Whether the worker was forked: the module that forks is there.
pub(crate) const FORKED: &str = "said = 'roundhouse_warm' in sys.modules";

/// What the handler says to a script.
pub(crate) async fn said(group: &Group, script: &str) -> Value {
    let call = Call { body: script.to_owned().into(), ..Call::default() };
    let reply = group.call(call).await.unwrap();
    let Body::Whole(body) = reply.body else { panic!("it streams") };
    serde_json::from_slice(&body).unwrap()
}
