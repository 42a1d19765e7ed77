//! Handler load, first answer, unload: started, and forked from a warm interpreter, by turns.
//!
//! `cargo bench -p roundhouse-workers --bench warm -- MODEL_FOLDER BODY ROUNDS [PYTHON]` writes a line
//! of CSV per life of the handler, in milliseconds, and medians at the end. Root, and the package
//! index where the model has a `requirements.txt`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what a benchmark is for")]
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use roundhouse_confine::Isolation;
use roundhouse_types::Bytes;
use roundhouse_workers::{
    Body, Call, Config, DYNAMIC_USERS, Handler, Layout, Packages, Settings, Warming, Workers,
};

const CONTENT_TYPE: &str = "text/csv";

/// The times of one life: until it is ready, answers, is gone.
#[derive(Debug, Clone, Copy)]
struct Life([Duration; 3], Bytes);

impl Life {
    fn total(&self) -> Duration {
        self.0.iter().sum()
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|it| it != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [roundhouse_confine::SUBCOMMAND] => {
            let error = roundhouse_confine::exec();
            eprintln!("{error}");
            ExitCode::from(126)
        }
        [model, body, rounds, rest @ ..] => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            let python = rest.first().unwrap_or(&"python3");
            runtime.block_on(run(Path::new(model), body, rounds.parse().unwrap(), python));
            ExitCode::SUCCESS
        }
        // As the test runner calls it.
        _ => ExitCode::SUCCESS,
    }
}

async fn run(model: &Path, body: &str, rounds: usize, python: &str) {
    let folder = tempfile::tempdir().unwrap();
    use std::os::unix::fs::PermissionsExt;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let workers = Workers::start(config(&folder.path().join("handlers"), python)).unwrap();
    assert!(workers.warm().is_some(), "no interpreters are kept here");
    let handler = handler(&workers, model);
    // Packages are installed and in the page cache.
    live(&workers, &handler, body).await;
    println!("start,load,answer,unload,total,charged_mib");
    let (mut cold, mut warm, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        workers.set_warm_room(Bytes::ZERO);
        cold.push(shown("started", live(&workers, &handler, body).await));
        workers.set_warm_room(Bytes(u64::MAX));
        idle(&workers).await;
        warm.push(shown("forked", live(&workers, &handler, body).await));
        // The same interpreter, at once.
        again.push(shown("forked-again", live(&workers, &handler, body).await));
    }
    for (name, lives) in [("started", cold), ("forked", warm), ("forked-again", again)] {
        shown(&format!("median {name}"), median(&lives));
    }
}

fn config(dir: &Path, python: &str) -> Config {
    Config {
        exe: std::env::current_exe().unwrap(),
        dir: dir.to_owned(),
        python: python.into(),
        isolation: Isolation::Required,
        uids: DYNAMIC_USERS,
        assumed_memory: Bytes::mib(256),
        max_memory: Bytes::gib(4),
        workers: 1,
        max_workers: 1,
        time_limit: Duration::from_secs(60),
        start_limit: Duration::from_secs(300),
        max_response: Bytes::mib(32),
        max_temp: Bytes::gib(1),
        processes: 256,
        max_queue: 64,
        packages: Packages::default(),
        warm: Some(Warming { memory: Bytes::gib(2), ..Warming::default() }),
    }
}

fn handler(workers: &Workers, model: &Path) -> Handler {
    let dir = model.canonicalize().unwrap();
    let mut sizes = BTreeMap::new();
    let mut open = vec![dir.clone()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
                continue;
            }
            let name = entry.path().strip_prefix(&dir).unwrap().to_str().unwrap().to_owned();
            sizes.insert(name, entry.metadata().unwrap().len());
        }
    }
    let text = std::fs::read_to_string(dir.join("roundhouse.toml")).ok();
    Handler {
        name: "bench".into(),
        version: "1".into(),
        tenant: "bench".into(),
        layout: Layout::of(&sizes).unwrap(),
        settings: Settings::read(text.as_deref(), workers.config()).unwrap(),
        dir,
    }
}

async fn idle(workers: &Workers) {
    while workers.warm().unwrap().interpreters == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn live(workers: &Workers, handler: &Handler, body: &str) -> Life {
    let began = Instant::now();
    let group = workers.launch(handler, Arc::new(|_| ())).await.unwrap();
    let loaded = began.elapsed();
    let call = Call {
        content_type: Some(CONTENT_TYPE.to_owned()),
        body: body.to_owned().into(),
        ..Call::default()
    };
    let reply = group.call(call).await.unwrap();
    let answered = began.elapsed();
    assert!(matches!(reply.body, Body::Whole(_)) && reply.status == 200, "{reply:?}");
    // Not of what is measured: the server charges it beside.
    let charged = group.measure();
    let weighed = Instant::now();
    group.stop().await;
    Life([loaded, answered.checked_sub(loaded).unwrap(), weighed.elapsed()], charged)
}

fn shown(name: &str, life: Life) -> Life {
    let [load, answer, unload] = life.0.map(|it| it.as_secs_f64() * 1e3);
    let total = life.total().as_secs_f64() * 1e3;
    let charged = life.1.0 as f64 / f64::from(1 << 20);
    println!("{name},{load:.1},{answer:.1},{unload:.1},{total:.1},{charged:.1}");
    life
}

fn median(lives: &[Life]) -> Life {
    let middle = |mut all: Vec<Duration>| {
        all.sort();
        all[all.len() / 2]
    };
    let mut sorted = lives.to_vec();
    sorted.sort_by_key(Life::total);
    let parts = [0, 1, 2].map(|part| middle(lives.iter().map(|life| life.0[part]).collect()));
    // The parts' medians need not add up: the total is that of the life in the middle.
    let all = sorted[sorted.len() / 2];
    println!("middle total of {}: {:.1}", lives.len(), all.total().as_secs_f64() * 1e3);
    Life(parts, all.1)
}
