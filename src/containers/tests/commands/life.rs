//! From a command's start to the end of its last process.

use std::io::{BufRead, BufReader, Write};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use http::Request;
use roundhouse_containers::{
    Backend, BackendConfig, BaseUrl, Command, Condition, Error, HealthConfig, Outgoing, Standing,
    Supervised,
};
use roundhouse_types::Bytes;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::time::Instant;

use super::Test;

/// Longer than any of this takes on the slowest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(5);

pub(crate) const TESTS: &[Test] = &[
    ("a_started_container_has_its_port_and_answers", started),
    ("what_dies_at_its_start_says_how", dies_at_start),
    ("what_is_never_well_is_ended", never_well),
    ("what_is_deaf_to_the_first_signal_is_killed_with_all_its_processes", deaf),
    ("what_a_container_started_ends_with_it", children),
    ("what_left_a_containers_group_ends_with_it", strays),
    ("a_stranger_that_listens_at_a_containers_port_is_not_taken_for_it", stranger),
    ("who_says_that_somebody_else_runs_it_is_believed", somebody_else),
    ("how_a_container_stands_is_seen", seen),
    ("a_container_that_is_stopped_while_it_starts_is_gone_then", stopped_at_start),
    ("a_port_passes_on_when_the_process_that_had_it_is_gone", port_passes_on),
    ("a_container_that_is_killed_comes_back", comes_back),
    ("what_does_not_start_says_so_while_it_is_tried_again", does_not_start),
    ("a_container_ends_with_a_server_that_is_killed", with_its_server),
    ("a_container_ends_with_its_keeper", with_its_keeper),
];

pub(crate) fn wait(what: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, what).await.unwrap() });
}

fn command(words: &[&str]) -> Command {
    let exe = std::env::current_exe().unwrap();
    let health = HealthConfig { interval: LOOK_EVERY, ..HealthConfig::default() };
    let backend = BackendConfig::new("of-tests", BaseUrl::local(1));
    Command {
        program: exe.clone(),
        exe,
        args: ["stand-in"].iter().chain(words).map(ToString::to_string).collect(),
        env: std::env::vars().filter(|(name, _)| name == "PATH").collect(),
        dir: None,
        port: None,
        start_timeout: PATIENCE,
        grace: PATIENCE,
        own_processes: true,
        backend: BackendConfig { health: Some(health), ..backend },
    }
}

/// What the stand-in says: its process, its child's, and its word.
async fn said(backend: &Backend) -> (Pid, Option<Pid>, String) {
    let request = Request::post("/invocations").body(Outgoing::empty()).unwrap();
    let answer = backend.send(request, Instant::now() + PATIENCE).await.unwrap();
    let body = answer.into_body().collect(Bytes::kib(1)).await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    let mut words = text.split(' ');
    let mut id = || Pid::from_raw(words.next().unwrap().parse().unwrap());
    let (own, child) = (id().unwrap(), id());
    (own, child, words.next().unwrap().to_owned())
}

async fn gone(id: Pid) {
    let deadline = Instant::now() + PATIENCE;
    while test_kill_process(id).is_ok() {
        assert!(Instant::now() < deadline, "{id:?} is still there");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn started() {
    wait(async {
        let running = command(&["says=at-{port}"]).start().await.unwrap();
        let (process, _, word) = said(running.backend()).await;
        assert_eq!(word, format!("at-{}", running.port()));
        running.stop().await;
        gone(process).await;
    });
}

fn dies_at_start() {
    wait(async {
        let error = command(&["dies"]).start().await.unwrap_err();
        let text = error.to_string();
        assert!(text.ends_with("ended with exit status 3 before it was healthy"), "{text}");
        let Error::DiedAtStart { said, .. } = error else { panic!("{error}") };
        assert_eq!(said, "cannot find the model");
        let absent = Command { program: "/nowhere/serve".into(), ..command(&[]) };
        let error = absent.start().await.unwrap_err();
        assert!(matches!(&error, Error::DiedAtStart { how, .. } if how.contains("126")), "{error}");
    });
}

fn never_well() {
    wait(async {
        let command = Command {
            start_timeout: Duration::from_millis(300),
            port: None,
            ..command(&["never-well", "child"])
        };
        let error = command.start().await.unwrap_err();
        assert!(matches!(error, Error::NeverHealthy { .. }), "{error}");
    });
}

fn deaf() {
    wait(async {
        let command = Command { grace: Duration::from_millis(50), ..command(&["deaf"]) };
        let running = command.start().await.unwrap();
        let (process, _, _) = said(running.backend()).await;
        running.stop().await;
        gone(process).await;
    });
}

fn children() {
    wait(async {
        let mut running = command(&["child"]).start().await.unwrap();
        let (process, child, _) = said(running.backend()).await;
        kill_process(process, Signal::KILL).unwrap();
        assert_eq!(running.ended().await, "was ended by signal 9");
        gone(child.unwrap()).await;
    });
}

fn strays() {
    wait(async {
        for is_killed in [false, true] {
            let mut running = command(&["child", "away"]).start().await.unwrap();
            let (process, child, _) = said(running.backend()).await;
            if is_killed {
                kill_process(process, Signal::KILL).unwrap();
                running.ended().await;
            } else {
                running.stop().await;
            }
            assert!(test_kill_process(child.unwrap()).is_err());
        }
    });
}

/// A command that says when it runs, and never listens.
fn idler(folder: &std::path::Path, port: u16) -> Command {
    let mut sleeps = command(&["sleeps"]);
    let script = format!("touch {}; exec \"$0\" stand-in sleeps", folder.join("runs").display());
    sleeps.args = vec!["-c".into(), script, sleeps.program.display().to_string()];
    Command { program: "/bin/sh".into(), port: Some(port), grace: Duration::ZERO, ..sleeps }
}

/// Listens at a port and says that all is well, once a command runs.
async fn intrude(folder: &std::path::Path, port: u16) {
    while !folder.join("runs").exists() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = BufReader::new(stream.try_clone().unwrap()).lines();
            while head.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        }
    });
}

fn stranger() {
    wait(async {
        let (folder, port) = (folder("stranger"), port());
        let command = idler(&folder, port);
        let (started, ()) = tokio::join!(command.start(), intrude(&folder, port));
        let error = started.unwrap_err();
        let text = error.to_string();
        let who = format!("(process {})", std::process::id());
        assert!(text.contains(&format!("at port {port}, where container of-tests")), "{text}");
        assert!(text.contains(&who) && text.contains("none of its processes"), "{text}");
        assert!(matches!(error, Error::Stranger { .. }));
        std::fs::remove_dir_all(folder).unwrap();
    });
}

fn somebody_else() {
    wait(async {
        let (folder, port) = (folder("somebody-else"), port());
        let command = Command { own_processes: false, ..idler(&folder, port) };
        let (started, ()) = tokio::join!(command.start(), intrude(&folder, port));
        started.unwrap().stop().await;
        std::fs::remove_dir_all(folder).unwrap();
    });
}

fn folder(name: &str) -> std::path::PathBuf {
    let name = format!("roundhouse-{name}-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn seen() {
    wait(async {
        let supervised = Supervised::start(command(&["child"]));
        assert_eq!(supervised.seen().condition, Condition::Starting);
        let until = Instant::now() + PATIENCE;
        let backend = supervised.backend(until).await.unwrap();
        let (process, _, _) = said(&backend).await;
        while supervised.seen().condition != Condition::Healthy {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let first = supervised.seen();
        let own = u32::try_from(process.as_raw_pid()).unwrap();
        assert_eq!((first.process, first.restarts, first.last), (Some(own), 0, None));
        assert_eq!(first.address, Some(backend.config().url.to_string()));
        kill_process(process, Signal::KILL).unwrap();
        while supervised.seen().restarts == 0 || supervised.seen().process.is_none() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let again = supervised.seen();
        assert_ne!(again.process, Some(own));
        assert!(again.last.unwrap().message.contains("signal 9"));
        supervised.stop().await;
    });
}

/// A port that nobody has.
fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn stopped_at_start() {
    wait(async {
        let port = port();
        let supervised =
            Supervised::start(Command { port: Some(port), ..command(&["never-well"]) });
        let config = BackendConfig::new("of-tests", BaseUrl::local(port));
        let asked = Backend::new(BackendConfig { health: None, ..config });
        while !matches!(asked.check(&HealthConfig::default()).await, Err(Error::Unwell { .. })) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let (process, _, _) = said(&asked).await;
        assert!(matches!(supervised.standing(), Standing::Starting));
        supervised.stop().await;
        assert!(test_kill_process(process).is_err());
    });
}

fn port_passes_on() {
    wait(async {
        let port = Some(port());
        let first = Supervised::start(Command { port, ..command(&["says=first"]) });
        let until = Instant::now() + PATIENCE;
        first.backend(until).await.unwrap();
        let second = Supervised::start(Command { port, ..command(&["says=second"]) });
        let (asked, ()) = tokio::join!(second.backend(until), first.stop());
        assert_eq!(said(&asked.unwrap()).await.2, "second");
        second.stop().await;
    });
}

fn comes_back() {
    wait(async {
        let supervised = Supervised::start(command(&[]));
        let until = Instant::now() + PATIENCE;
        let first = said(&supervised.backend(until).await.unwrap()).await.0;
        kill_process(first, Signal::KILL).unwrap();
        let second = loop {
            match supervised.backend(until).await {
                // Until its end is seen it is asked as before.
                Ok(backend) if backend.check(&HealthConfig::default()).await.is_err() => {}
                Ok(backend) => break said(&backend).await.0,
                Err(Error::Down { how, .. }) => {
                    assert_eq!(how, "its process was ended by signal 9")
                }
                Err(other) => panic!("{other}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        assert_ne!(first, second);
        supervised.stop().await;
        gone(second).await;
    });
}

fn does_not_start() {
    wait(async {
        let supervised = Supervised::start(command(&["dies"]));
        let until = Instant::now() + PATIENCE;
        for _ in 0..2 {
            let error = supervised.backend(until).await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains("of-tests is down") && text.contains("exit status 3"), "{text}");
            while matches!(supervised.standing(), Standing::Down { .. }) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        supervised.stop().await;
    });
}

/// A server that starts a container, says which processes it has, and waits to be killed.
pub(crate) fn be_server() -> ExitCode {
    wait(async {
        let running = command(&["child"]).start().await.unwrap();
        let (process, child, _) = said(running.backend()).await;
        println!("{} {}", process.as_raw_pid(), child.unwrap().as_raw_pid());
        std::future::pending().await
    });
    ExitCode::SUCCESS
}

fn with_its_server() {
    let mut server = std::process::Command::new(std::env::current_exe().unwrap())
        .arg("server")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    for id in line.split_whitespace() {
        let id = Pid::from_raw(id.parse().unwrap()).unwrap();
        wait(gone(id));
    }
}

fn with_its_keeper() {
    wait(async {
        let running = command(&[]).start().await.unwrap();
        let (process, _, _) = said(running.backend()).await;
        let keeper = Pid::from_raw(running.keeper_id().unwrap().try_into().unwrap()).unwrap();
        kill_process(keeper, Signal::KILL).unwrap();
        gone(process).await;
    });
}
