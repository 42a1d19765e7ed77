//! Connections between requests: used again wherever the next request is, and closed in time.

use tokio::runtime::{Builder, Runtime};
use tokio::task::spawn_blocking;

use super::*;

/// One that answers as often as it is asked.
async fn patient() -> (BaseUrl, Arc<AtomicUsize>) {
    container(|mut peer| async move {
        while !peer.head().await.is_empty() {
            peer.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    })
    .await
}

fn runtimes() -> [Arc<Runtime>; 2] {
    [(); 2].map(|()| Arc::new(Builder::new_current_thread().enable_all().build().unwrap()))
}

async fn ask_on(runtime: &Arc<Runtime>, backend: &Backend) -> Bytes {
    let (runtime, backend) = (Arc::clone(runtime), backend.clone());
    spawn_blocking(move || runtime.block_on(ask(&backend)).unwrap().2).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_at_a_time_takes_one_connection_on_whatever_runtime_it_is() {
    let (url, connections) = patient().await;
    let backend = Backend::new(BackendConfig { keep_connections: PATIENCE, ..config(url) });
    let runtimes = runtimes();
    for turn in 0..9 {
        let answer = match turn % 3 {
            2 => ask(&backend).await.unwrap().2,
            at => ask_on(&runtimes[at], &backend).await,
        };
        assert_eq!(answer, "ok");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    spawn_blocking(move || drop((backend, runtimes))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_runtime_has_ended_fails_no_request() {
    let (url, _) = patient().await;
    let backend = Backend::new(config(url));
    for runtime in runtimes() {
        assert_eq!(ask_on(&runtime, &backend).await, "ok");
        spawn_blocking(move || drop(runtime)).await.unwrap();
    }
    assert_eq!(ask(&backend).await.unwrap().2, "ok");
}

#[tokio::test]
async fn a_connection_that_nothing_uses_is_closed_after_a_while() {
    let (told, mut closed) = tokio::sync::mpsc::channel(1);
    let (url, connections) = container(move |mut peer| {
        let told = told.clone();
        async move {
            while !peer.head().await.is_empty() {
                peer.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
            told.send(()).await.unwrap();
        }
    })
    .await;
    let backend = Backend::new(BackendConfig { keep_connections: SOON, ..config(url) });
    for round in 1..=2 {
        ask(&backend).await.unwrap();
        closed.recv().await.unwrap();
        assert_eq!(connections.load(Ordering::SeqCst), round);
    }
}

#[tokio::test]
async fn connections_close_with_the_last_who_knows_the_container() {
    let (told, mut closed) = tokio::sync::mpsc::channel(1);
    let (url, _) = container(move |mut peer| {
        let told = told.clone();
        async move {
            peer.head().await;
            peer.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            peer.until_closed().await;
            told.send(()).await.unwrap();
        }
    })
    .await;
    let backend = Backend::new(BackendConfig { keep_connections: PATIENCE, ..config(url) });
    ask(&backend).await.unwrap();
    drop(backend);
    closed.recv().await.unwrap();
}

#[tokio::test]
async fn many_answers_at_once_come_on_connections_of_their_own() {
    let (url, connections) = patient().await;
    let backend = Backend::new(BackendConfig { keep_connections: PATIENCE, ..config(url) });
    for _ in 0..4 {
        let answers = futures_util::future::join_all((0..16).map(|_| ask(&backend))).await;
        assert!(answers.into_iter().all(|answer| answer.unwrap().2 == "ok"));
    }
    assert!(connections.load(Ordering::SeqCst) <= 16);
}
