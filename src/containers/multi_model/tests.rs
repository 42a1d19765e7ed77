//! Against a container of a few lines.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use roundhouse_types::{ErrorKind, Failure, ModelId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::BaseUrl;
use crate::driven::{Answer, Call, CallError, News, Route};

/// A container of many models: what is loaded, what it was asked, and how many it takes.
#[derive(Default)]
struct Fake {
    models: BTreeMap<String, String>,
    asked: Vec<String>,
    /// The methods by which models came and went, with the target that was said.
    targets: Vec<String>,
    /// The target that it knows each model by, where it is Triton.
    known_by: Option<BTreeMap<String, String>>,
    most: usize,
}

type Shared = Arc<Mutex<Fake>>;

impl Fake {
    fn answer(&mut self, line: &str, head: &str, body: &str) -> (u16, String) {
        let (method, path) = line.split_once(' ').unwrap();
        let mut parts = path.split(' ').next().unwrap().trim_start_matches('/').split('/');
        let (first, name, last) = (parts.next(), parts.next().unwrap_or(""), parts.next());
        if first == Some("ping") {
            return (200, String::new());
        }
        if !name.is_empty() || method == "POST" {
            self.asked
                .push(format!("{method} /{}", path.split(' ').next().unwrap()[1..].to_owned()));
        }
        if last.is_none() && ["POST", "DELETE"].contains(&method) {
            let target =
                head.lines().find_map(|it| it.strip_prefix("x-amzn-sagemaker-target-model: "));
            self.targets.push(format!("{method} {}", target.unwrap_or("none")));
        }
        let is_there = self.models.contains_key(name);
        match (method, is_there, last) {
            ("POST", _, None) => {
                let asked: serde_json::Value = serde_json::from_str(body).unwrap();
                let (name, url) = (asked["model_name"].as_str(), asked["url"].as_str());
                let (name, url) = (name.unwrap().to_owned(), url.unwrap().to_owned());
                if self.models.contains_key(&name) {
                    return (409, "{\"message\":\"it is there\"}".into());
                }
                let target = self.targets.last().unwrap().replace("POST ", "");
                if let Some(known_by) = &mut self.known_by {
                    if known_by.values().any(|it| *it == target) {
                        return (409, "{\"message\":\"a conflicting mapping\"}".into());
                    }
                    known_by.insert(name.clone(), target);
                }
                if url.ends_with("broken") {
                    return (400, "{\"code\":400,\"message\":\"no MANIFEST\"}".into());
                }
                if self.models.len() >= self.most {
                    return (507, "{\"message\":\"out of memory\"}".into());
                }
                self.models.insert(name, url);
                (200, String::new())
            }
            ("GET", _, None) if name.is_empty() => {
                // One on each page.
                let token = path.split(['=', ' ']).nth(1).and_then(|it| it.parse::<usize>().ok());
                let at = token.unwrap_or(0);
                let name = self.models.keys().nth(at);
                let models: Vec<_> =
                    name.map(|it| serde_json::json!({"modelName": it})).into_iter().collect();
                let next = (at + 1 < self.models.len()).then(|| (at + 1).to_string());
                (200, serde_json::json!({"models": models, "nextPageToken": next}).to_string())
            }
            (_, false, _) => (404, "{\"message\":\"no such model\"}".into()),
            ("DELETE", true, None) => {
                self.models.remove(name);
                (200, String::new())
            }
            ("POST", true, Some("invoke")) if body == "full" && self.models.len() > 1 => {
                (507, String::new())
            }
            ("POST", true, Some("invoke")) if body == "absent" => (404, "own".into()),
            ("POST", true, Some("invoke")) => (200, format!("{body}|{head}")),
            _ => (200, "{}".into()),
        }
    }
}

async fn serve(mut stream: TcpStream, fake: Shared) {
    let mut read = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8(read[..end].to_vec()).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |text| text.parse().unwrap());
        while read.len() < end + length {
            assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
        }
        let line = std::str::from_utf8(&read[..end]).unwrap().lines().next().unwrap().to_owned();
        let body = String::from_utf8(read[end..end + length].to_vec()).unwrap();
        read.drain(..end + length);
        let (status, said) = fake.lock().unwrap().answer(&line, &head, &body);
        let headers = format!(
            "content-length: {}\r\nx-amzn-sagemaker-custom-attributes: back\r\n",
            said.len()
        );
        let text = format!("HTTP/1.1 {status} X\r\n{headers}x-own: no\r\n\r\n{said}");
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn container(most: usize, left: &[&str]) -> (ModelContainer, Shared) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = BaseUrl::local(listener.local_addr().unwrap().port());
    let models = left.iter().map(|name| ((*name).to_owned(), String::new())).collect();
    let fake = Arc::new(Mutex::new(Fake { models, most, ..Fake::default() }));
    let served = Arc::clone(&fake);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, Arc::clone(&served)));
        }
    });
    let spec = ContainerSpec {
        origin: ContainerOrigin::Url(url),
        health: "/ping".into(),
        paths: Some(PathMap { from: "/ours".into(), to: "/theirs".into() }),
        load_timeout: Duration::from_secs(60),
    };
    let open = Open {
        spec: Arc::new(spec),
        name: "of-tests".into(),
        prefix: "rh-1-".into(),
        exe: "/no/such/program".into(),
        inherited: Vec::new(),
        device: 0,
    };
    (ModelContainer::open(open).unwrap(), fake)
}

/// A load of a model, and what its owner is told.
fn load(name: &str) -> (Load, Arc<Mutex<Vec<News>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let load = Load {
        name: name.to_owned(),
        model: ModelId {
            endpoint: "e".parse().unwrap(),
            target: format!("t/{name}").parse().unwrap(),
        },
        folder: format!("/ours/{name}").into(),
        news: Arc::new(move |news| tell.lock().unwrap().push(news)),
        room: Arc::new(|| Box::pin(async { false })),
    };
    (load, told)
}

fn call(body: &'static str) -> Call {
    Call {
        route: Route::Invocations,
        content_type: Some("text/csv".into()),
        accept: Some("a/b".into()),
        headers: vec![
            ("x-amzn-sagemaker-custom-attributes".into(), "mine".into()),
            ("x-amzn-sagemaker-target-model".into(), "an-alias".into()),
            ("authorization".into(), "hush".into()),
        ],
        request_id: "id-1".into(),
        prefixes_of: None,
        trace: Vec::new(),
        body: Bytes::from(body),
    }
}

async fn text(answer: Answer) -> String {
    let pieces: Vec<_> = answer.body.map(Result::unwrap).collect().await;
    String::from_utf8(pieces.concat()).unwrap()
}

#[tokio::test]
async fn a_model_is_loaded_asked_and_unloaded_by_the_contract() {
    let (container, fake) = container(2, &[]).await;
    let model = container.load(&load("a").0).await.unwrap();
    assert_eq!(fake.lock().unwrap().models["rh-1-a"], "/theirs/a", "where the container sees it");
    assert_eq!(container.models()[0].target.as_str(), "t/a");
    let answer = model.call(call("1,2")).await.unwrap();
    assert_eq!(answer.status, 200);
    let own = [("x-amzn-sagemaker-custom-attributes".to_owned(), "back".to_owned())];
    assert_eq!(answer.headers, own);
    let said = text(answer).await;
    for sent in [
        "1,2|post /models/rh-1-a/invoke",
        "content-type: text/csv",
        "accept: a/b",
        "x-amzn-requestid: id-1",
        "x-amzn-sagemaker-custom-attributes: mine",
        "x-amzn-sagemaker-target-model: t/a",
    ] {
        assert!(said.contains(sent), "{sent}: {said}");
    }
    assert!(!said.contains("hush") && !said.contains("an-alias"), "{said}");
    let answer = model.call(call("absent")).await.unwrap();
    assert_eq!((answer.status, text(answer).await.as_str()), (404, "own"), "its own answer");
    let chat = Call { route: Route::Chat, ..call("{}") };
    let refused = model.call(chat).await;
    assert!(matches!(refused, Err(CallError::Failed(it)) if it.kind() == ErrorKind::InvalidInput));
    model.leave().await;
    model.leave().await;
    assert!(fake.lock().unwrap().models.is_empty() && container.models().is_empty());
    let deletes = fake.lock().unwrap().asked.iter().filter(|it| it.starts_with("DELETE")).count();
    assert_eq!(deletes, 1);
    // Triton knows it by that name, and no other.
    assert_eq!(fake.lock().unwrap().targets, ["POST t/a", "DELETE t/a"]);
}

#[tokio::test]
async fn two_versions_of_a_target_are_side_by_side_where_the_target_is_the_models_name() {
    let (container, fake) = container(9, &[]).await;
    fake.lock().unwrap().known_by = Some(BTreeMap::new());
    let old = container.load(&load("a").0).await.unwrap();
    let mut newer = load("b").0;
    newer.model = load("a").0.model;
    let new = container.load(&newer).await.unwrap();
    for (model, target) in [(&old, "t/a"), (&new, "rh-1-b")] {
        let said = text(model.call(call("x")).await.unwrap()).await;
        assert!(said.contains(&format!("target-model: {target}\r\n")), "{said}");
    }
    old.leave().await;
    new.leave().await;
    let targets = fake.lock().unwrap().targets.clone();
    assert_eq!(targets[targets.len() - 2..], ["DELETE t/a", "DELETE rh-1-b"]);
}

#[tokio::test]
async fn a_full_container_and_a_refusing_one_are_told_apart() {
    let (container, _) = container(1, &[]).await;
    let _first = container.load(&load("a").0).await.unwrap();
    let full = container.load(&load("b").0).await.map(|_| ()).unwrap_err();
    assert!(matches!(full, LoadError::Full(it) if it.to_string().contains("out of memory")));
    let refused = container.load(&load("broken").0).await.map(|_| ()).unwrap_err();
    let LoadError::Failed(refused) = refused else { panic!("{refused:?}") };
    assert_eq!(refused.kind(), ErrorKind::ModelInvalid);
    assert!(refused.to_string().contains("refuses it (400): no MANIFEST"), "{refused}");
    let mut outside = load("c").0;
    outside.folder = "/elsewhere/c".into();
    let outside = container.load(&outside).await.map(|_| ()).unwrap_err();
    assert!(
        matches!(outside, LoadError::Failed(it) if it.to_string().contains("is not below /ours"))
    );
    assert_eq!(container.models().len(), 1, "what failed is not in it");
}

#[tokio::test]
async fn what_an_earlier_run_left_is_deleted_and_what_others_have_stays() {
    let (container, fake) = container(9, &["rh-1-a", "rh-1-old", "rh-2-a", "theirs"]).await;
    let _model = container.load(&load("a").0).await.unwrap();
    let names: Vec<_> = fake.lock().unwrap().models.keys().cloned().collect();
    assert_eq!(names, ["rh-1-a", "rh-2-a", "theirs"]);
    assert_eq!(fake.lock().unwrap().models["rh-1-a"], "/theirs/a", "loaded anew");
}

#[tokio::test]
async fn a_model_that_is_there_unknown_to_us_is_loaded_anew() {
    let (container, fake) = container(9, &[]).await;
    let _first = container.load(&load("a").0).await.unwrap();
    // The end of a load that we gave up.
    fake.lock().unwrap().models.insert("rh-1-b".into(), "half".into());
    let _model = container.load(&load("b").0).await.unwrap();
    assert_eq!(fake.lock().unwrap().models["rh-1-b"], "/theirs/b");
}

#[tokio::test]
async fn a_container_that_has_forgotten_a_model_says_so_before_the_request_is_given_back() {
    let (container, fake) = container(9, &[]).await;
    let (asked, told) = load("a");
    let model = container.load(&asked).await.unwrap();
    fake.lock().unwrap().models.clear();
    let given_back = model.call(call("x")).await;
    assert!(matches!(given_back, Err(CallError::NotBegun(_))));
    assert!(matches!(&told.lock().unwrap()[..], [News::Died(_)]));
    model.leave().await;
    let again = container.load(&asked).await.unwrap();
    assert_eq!(again.call(call("x")).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_request_that_finds_no_memory_is_sent_again_once_room_was_made() {
    let (container, fake) = container(9, &["theirs"]).await;
    let (mut asked, _) = load("a");
    let model = container.load(&asked).await.unwrap();
    let refused = model.call(call("full")).await.unwrap();
    assert_eq!(refused.status, 507, "nobody could leave");
    model.leave().await;
    let leaves = Arc::clone(&fake);
    asked.room = Arc::new(move || {
        let left = leaves.lock().unwrap().models.remove("theirs").is_some();
        Box::pin(async move { left })
    });
    let model = container.load(&asked).await.unwrap();
    assert_eq!(model.call(call("full")).await.unwrap().status, 200);
}

#[tokio::test]
async fn no_container_is_a_failure_of_the_load() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let spec = ContainerSpec {
        origin: ContainerOrigin::Url(BaseUrl::local(port)),
        health: "/ping".into(),
        paths: None,
        load_timeout: Duration::from_secs(60),
    };
    let (name, prefix, exe) = ("of-tests".into(), "rh-1-".into(), "/no/such/program".into());
    let inherited = Vec::new();
    let open = Open { spec: Arc::new(spec), name, prefix, exe, inherited, device: 0 };
    let container = ModelContainer::open(open).unwrap();
    let failed = container.load(&load("a").0).await.map(|_| ()).unwrap_err();
    let LoadError::Failed(failure) = failed else { panic!("{failed:?}") };
    let failure: Failure = failure;
    assert!(failure.to_string().contains("no connection to container of-tests"), "{failure}");
}
