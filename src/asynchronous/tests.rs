//! The queue as a whole: over stores in memory, with answers by a script.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use roundhouse_store::testing::{FaultyWrites, MemoryStore};
use roundhouse_store::{
    ArtifactStore, Error as StoreError, ListRequest, MountConfig, RetryConfig, WritableStore,
};
use roundhouse_types::{Bytes as Size, EndpointName, ErrorKind};
use tempfile::TempDir;
use uuid::Uuid;

use crate::queue::{Queue, Services};
use crate::request::{Accepted, Input, Ran, Run, RunFn, Submission};
use crate::sns::given_credentials;
use crate::spool::{Entry, Ticket};
use crate::webhook::system_resolver;
use crate::{EndpointConfig, Error, Included, PlaceConfig, Topics, Webhooks};

/// A request as it is kept, for tests of what keeps it.
pub(crate) fn entry(endpoint: &str) -> Entry {
    let id = Uuid::new_v4();
    Entry {
        id,
        endpoint: endpoint.parse().unwrap(),
        tenant: None,
        credential: None,
        inference_id: id.to_string(),
        accepted_at: 1,
        ttl_seconds: 60,
        timeout_seconds: 1,
        headers: vec![("x".into(), vec![0xff, 1])],
        content_type: None,
        input: None,
        output: format!("s3://b/out/{id}.out"),
        failure: format!("s3://b/out/{id}-error.out"),
        region: None,
    }
}

/// One that waits.
pub(crate) fn ticket(number: u64, tenant: Option<&str>) -> Ticket {
    Ticket {
        number,
        id: Uuid::from_u128(number.into()),
        endpoint: "ep".parse().unwrap(),
        tenant: tenant.map(|name| name.parse().unwrap()),
        accepted_at: number,
        expires_at: u64::MAX,
        bytes: 0,
        is_decided: false,
        tries: 0,
    }
}

/// A queue's folder and the store behind it.
struct Stage {
    folder: TempDir,
    store: Arc<FaultyWrites>,
    memory: Arc<MemoryStore>,
}

impl Stage {
    fn new() -> Self {
        let memory = Arc::new(MemoryStore::new("s3://b/"));
        let store = Arc::new(FaultyWrites::new(memory.clone()));
        Self { folder: tempfile::tempdir().unwrap(), store, memory }
    }

    async fn queue(&self, config: EndpointConfig) -> Queue {
        let queue = loop {
            // One that was aborted lets go when its last work on the disk has ended.
            match open(self.folder.path(), &self.store).await {
                Err(Error::Locked(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                opened => break opened.unwrap(),
            }
        };
        queue.configure(&BTreeMap::from([(name(), config)])).await.unwrap();
        queue
    }

    /// The keys of all objects below a prefix.
    async fn keys(&self, prefix: &str) -> Vec<String> {
        let request = ListRequest { prefix: prefix.into(), token: None, limit: 1000 };
        let page = self.memory.list(&request).await.unwrap();
        page.objects.into_iter().map(|object| object.key).collect()
    }

    async fn read(&self, key: &str) -> Bytes {
        let meta = self.memory.head(key).await.unwrap();
        let store: Arc<dyn WritableStore> = self.memory.clone();
        let writer = roundhouse_store::ObjectWriter::over(store, name(), RetryConfig::default());
        writer.get(key, meta.size).await.unwrap()
    }

    /// Waits until so many objects are there.
    async fn until(&self, count: usize) -> Vec<String> {
        for _ in 0..100_000 {
            let keys = self.keys("out/").await;
            if keys.len() >= count {
                return keys;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{count} objects do not come: {:?}", self.keys("").await);
    }
}

async fn open(folder: &Path, store: &Arc<FaultyWrites>) -> Result<Queue, Error> {
    let store: Arc<dyn WritableStore> = store.clone();
    let services = Services {
        store: Arc::new(move |_| {
            let store = store.clone();
            Box::pin(async move { Ok(store) })
        }),
        retry: RetryConfig { attempts: 1, ..RetryConfig::default() },
        client: Arc::new(|| Ok(reqwest::Client::builder())),
        resolve: system_resolver(),
        credentials: given_credentials("nobody", "is told"),
    };
    Queue::open(folder, services).await
}

fn name() -> EndpointName {
    "ep".parse().unwrap()
}

/// Over the memory store, whose keys are those below the bucket.
fn config() -> EndpointConfig {
    let place = |below: &str| PlaceConfig {
        root: MountConfig::new("s3://b/".parse().unwrap()),
        below: below.into(),
    };
    EndpointConfig {
        inputs: vec![place("in/")],
        output: place("out/"),
        failure: place("out/"),
        max_concurrent: 2,
        queue_requests: 10,
        queue_bytes: Size(10_000),
        max_input: Size(100),
        max_output: Size(100),
        give_up_after: None,
        webhooks: Webhooks::default(),
        topics: Topics::default(),
        included: Included::default(),
    }
}

fn submission(input: Input) -> Submission {
    Submission {
        endpoint: name(),
        tenant: None,
        credential: None,
        inference_id: None,
        input,
        headers: Vec::new(),
        content_type: None,
        ttl: Duration::from_secs(60),
        timeout: Duration::from_secs(900),
        extension: None,
        filename: None,
    }
}

fn inline(text: &'static str) -> Submission {
    submission(Input::Inline(Bytes::from_static(text.as_bytes())))
}

fn at(key: &str) -> Submission {
    submission(Input::At(format!("s3://b/{key}")))
}

/// Answers what it is given, in capitals.
fn shouting() -> RunFn {
    Arc::new(|run: Run| {
        Box::pin(async move {
            let body = run.body.to_ascii_uppercase().into();
            Ran::Answered { content_type: Some("text/plain".into()), body }
        })
    })
}

/// Answers by a script, the last line again and again; counts the turns.
fn scripted(script: Vec<Ran>) -> (RunFn, Arc<AtomicUsize>) {
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = turns.clone();
    let run: RunFn = Arc::new(move |_| {
        let at = counted.fetch_add(1, Ordering::SeqCst).min(script.len() - 1);
        let ran = script[at].clone();
        Box::pin(async move { ran })
    });
    (run, turns)
}

fn answered(text: &'static str) -> Ran {
    Ran::Answered { content_type: None, body: text.into() }
}

fn key(uri: &str) -> &str {
    uri.strip_prefix("s3://b/").unwrap()
}

#[tokio::test]
async fn inputs_sent_along_and_inputs_in_the_store_become_outputs() {
    let stage = Stage::new();
    stage.memory.put("in/deep/a", "from the store");
    let queue = stage.queue(config()).await;
    queue.start(shouting());
    let first = queue.accept(inline("sent along")).await.unwrap();
    let second = queue.accept(at("in/deep/a")).await.unwrap();
    stage.until(2).await;
    assert_eq!(stage.read(key(&first.output)).await, "SENT ALONG");
    assert_eq!(stage.read(key(&second.output)).await, "FROM THE STORE");
    queue.drain().await;
    let left = std::fs::read_dir(stage.folder.path()).unwrap().count();
    assert_eq!(left, 1, "nothing but the lock is left");
}

#[tokio::test]
async fn objects_are_named_as_the_caller_wishes() {
    let stage = Stage::new();
    let queue = stage.queue(config()).await;
    let ask = |extension: Option<&str>, filename: Option<&str>| Submission {
        extension: extension.map(str::to_owned),
        filename: filename.map(str::to_owned),
        inference_id: Some("mine".into()),
        ..inline("x")
    };
    let Accepted { inference_id, output, failure } =
        queue.accept(ask(Some("/a/b/"), Some("c.csv"))).await.unwrap();
    assert_eq!(inference_id, "mine");
    assert_eq!(output, "s3://b/out/a/b/c.csv");
    assert_eq!(failure, "s3://b/out/a/b/c-error.csv");
    let plain = queue.accept(ask(None, Some("c"))).await.unwrap();
    assert_eq!(plain.output, "s3://b/out/c.out");
    assert_eq!(plain.failure, "s3://b/out/c-error.out");
    for extension in ["..", "a/../../b", "a//b", "./a"] {
        let error = queue.accept(ask(Some(extension), None)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{extension}");
    }
}

#[tokio::test]
async fn what_may_not_be_read_is_refused_and_what_is_not_there_is_a_failure() {
    let stage = Stage::new();
    stage.memory.put("in/large", vec![0; 101]);
    let queue = stage.queue(config()).await;
    queue.start(shouting());
    for location in ["elsewhere/x", "in/", "in/../out/x", "in"] {
        let error = queue.accept(at(location)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{location}");
    }
    for (location, told) in [("in/none", "no object"), ("in/large", "larger than")] {
        let accepted = queue.accept(at(location)).await.unwrap();
        let failure = key(&accepted.failure).to_owned();
        while stage.memory.head(&failure).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let text = String::from_utf8(stage.read(&failure).await.to_vec()).unwrap();
        assert!(text.contains(told), "{text}");
        assert!(stage.memory.head(key(&accepted.output)).await.is_err());
    }
}

#[tokio::test]
async fn a_full_queue_refuses_and_leaves_room_for_other_tenants() {
    let stage = Stage::new();
    // Nothing runs.
    let queue = stage.queue(config()).await;
    let of = |tenant: &str| Submission { tenant: Some(tenant.parse().unwrap()), ..inline("x") };
    let mut flood = 0;
    while queue.accept(of("flood")).await.is_ok() {
        flood += 1;
    }
    assert!((5..10).contains(&flood), "{flood}");
    queue.accept(of("other")).await.unwrap();
    let large = submission(Input::Inline(vec![0; 9_900].into()));
    let error = queue.accept(large).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
}

#[tokio::test]
async fn headers_take_room_in_the_queue_as_bodies_do() {
    let stage = Stage::new();
    // Nothing runs. Each takes two thirds of the room, by what it says and not by what it asks.
    let queue = stage.queue(config()).await;
    let header = ("x-amzn-sagemaker-custom-attributes".to_owned(), vec![b'x'; 1500]);
    let talkative = || Submission { headers: vec![header.clone()], ..inline("x") };
    queue.accept(talkative()).await.unwrap();
    let error = queue.accept(talkative()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    queue.accept(inline("x")).await.unwrap();
}

#[tokio::test]
async fn what_was_accepted_runs_after_a_start() {
    let stage = Stage::new();
    let queue = stage.queue(config()).await;
    let accepted = queue.accept(inline("kept")).await.unwrap();
    queue.abort().await;
    drop(queue);
    let queue = stage.queue(config()).await;
    queue.start(shouting());
    stage.until(1).await;
    assert_eq!(stage.read(key(&accepted.output)).await, "KEPT");
}

#[tokio::test]
async fn what_was_decided_is_written_again_and_not_decided_again() {
    let stage = Stage::new();
    let queue = stage.queue(config()).await;
    let gone = StoreError::AccessDenied {
        store: "s3://b/".into(),
        key: String::new(),
        cause: "not now".into(),
    };
    stage.store.plan("out/", gone);
    let (run, turns) = scripted(vec![answered("first")]);
    queue.start(run);
    let accepted = queue.accept(inline("x")).await.unwrap();
    while stage.store.puts().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // It dies before the store takes it, and would fail the next time.
    queue.abort().await;
    drop(queue);
    let failing = Ran::Failed { status: 500, content_type: None, body: "second".into() };
    let (run, again) = scripted(vec![failing]);
    let queue = stage.queue(config()).await;
    queue.start(run);
    let keys = stage.until(1).await;
    assert_eq!(keys, [key(&accepted.output)]);
    assert_eq!(stage.read(key(&accepted.output)).await, "first");
    assert_eq!((turns.load(Ordering::SeqCst), again.load(Ordering::SeqCst)), (1, 0));
}

#[tokio::test]
async fn an_object_that_no_store_takes_is_given_up_when_patience_is_over_and_not_before() {
    for (patience, ends) in
        [(Some(Duration::ZERO), true), (Some(Duration::MAX), false), (None, false)]
    {
        let stage = Stage::new();
        let queue = stage.queue(EndpointConfig { give_up_after: patience, ..config() }).await;
        let denied = || StoreError::AccessDenied {
            store: "s3://b/".into(),
            key: String::new(),
            cause: "the bucket is another's".into(),
        };
        for _ in 0..100 {
            stage.store.plan("out/", denied());
        }
        queue.start(shouting());
        queue.accept(inline("x")).await.unwrap();
        let left = || std::fs::read_dir(stage.folder.path()).unwrap().count();
        while stage.store.puts().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if ends {
            while left() > 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        queue.drain().await;
        // What is not given up is on disk, decided.
        assert_eq!(left(), if ends { 1 } else { 3 }, "{patience:?}");
        assert!(stage.keys("out/").await.is_empty());
    }
}

#[tokio::test]
async fn a_failure_is_the_models_words_and_what_is_not_its_turn_waits() {
    let stage = Stage::new();
    let queue = stage.queue(EndpointConfig { max_concurrent: 1, ..config() }).await;
    let busy = Ran::NotNow { why: "busy".into(), after: Some(Duration::from_millis(1)) };
    let no = Ran::Failed { status: 400, content_type: None, body: "no".into() };
    let (run, turns) = scripted(vec![busy.clone(), busy, no]);
    queue.start(run);
    let accepted = queue.accept(inline("x")).await.unwrap();
    assert_eq!(stage.until(1).await, [key(&accepted.failure)]);
    assert_eq!(stage.read(key(&accepted.failure)).await, "no");
    assert_eq!(turns.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_request_that_waited_too_long_or_runs_too_long_fails() {
    let stage = Stage::new();
    let queue = stage.queue(config()).await;
    let expired = Submission { ttl: Duration::ZERO, ..inline("x") };
    let late = Submission { timeout: Duration::ZERO, ..inline("x") };
    let expired = queue.accept(expired).await.unwrap();
    let late = queue.accept(late).await.unwrap();
    queue.start(Arc::new(|_| Box::pin(std::future::pending())));
    stage.until(2).await;
    for (accepted, told) in [(expired, "expired"), (late, "did not answer")] {
        let text = stage.read(key(&accepted.failure)).await;
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(text.contains(told), "{text}");
    }
}

#[tokio::test]
async fn no_more_run_at_once_than_may() {
    let stage = Stage::new();
    let queue = stage.queue(config()).await;
    let running = Arc::new(Mutex::new((0_usize, 0_usize)));
    let counted = running.clone();
    queue.start(Arc::new(move |_| {
        let counted = counted.clone();
        Box::pin(async move {
            {
                let mut counts = counted.lock().unwrap();
                counts.0 += 1;
                counts.1 = counts.1.max(counts.0);
            }
            tokio::task::yield_now().await;
            counted.lock().unwrap().0 -= 1;
            Ran::Answered { content_type: None, body: Bytes::new() }
        })
    }));
    for _ in 0..8 {
        queue.accept(inline("x")).await.unwrap();
    }
    stage.until(8).await;
    let most = running.lock().unwrap().1;
    assert!((1..=2).contains(&most), "{most}");
}

#[tokio::test]
async fn an_endpoint_that_is_not_asynchronous_says_so() {
    let stage = Stage::new();
    let queue = stage.queue(config()).await;
    let other = Submission { endpoint: "other".parse().unwrap(), ..inline("x") };
    let error = queue.accept(other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    // And one whose settings are gone keeps what was accepted.
    let accepted = queue.accept(inline("kept")).await.unwrap();
    queue.configure(&BTreeMap::new()).await.unwrap();
    queue.start(shouting());
    let error = queue.accept(inline("x")).await.unwrap_err();
    assert!(matches!(error, Error::NotAsynchronous(_)), "{error}");
    queue.configure(&BTreeMap::from([(name(), config())])).await.unwrap();
    stage.until(1).await;
    assert_eq!(stage.read(key(&accepted.output)).await, "KEPT");
}
