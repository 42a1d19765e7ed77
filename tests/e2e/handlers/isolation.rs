//! What a handler can reach that is not its own: nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use roundhouse_tests::handlers::{Running, Stage};
use roundhouse_tests::processes::{processes_of_group, user};
use serde_json::{Value, json};

use super::{ECHO, RUN};

/// Folders that are private under these names.
const PRIVATE: [&str; 3] = ["write /tmp", "write /var/tmp", "write /dev/shm"];

/// The files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

/// What the snoop could do, and why it could not do the rest.
async fn snoop(server: &Running, asked: &Value) -> (BTreeSet<String>, Value) {
    let headers = [("content-type", "application/json")];
    let answer = server.ask_with("snoop", asked.to_string(), &headers).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut said = answer.json();
    let could = said["could"].as_array().unwrap();
    let could = could.iter().map(|one| one.as_str().unwrap().to_owned()).collect();
    (could, said["refused"].take())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_reads_writes_and_reaches_nothing_but_its_own() {
    let mut stage = Stage::new();
    stage.hostile("snoop").script("other/model", ECHO).file("other/model/weights", "secret");
    let home = stage.path().join("home");
    std::fs::create_dir_all(home.join(".aws")).unwrap();
    std::fs::write(home.join(".aws/credentials"), "[default]").unwrap();
    stage.variable("HOME", home.to_str().unwrap());
    stage.variable("AWS_SECRET_ACCESS_KEY", "canary").variable("MY_TOKEN", "canary");
    stage.setting("HANDLERS_ISOLATION", "required");
    let server = stage.serve().await;
    assert_eq!(server.ask("other/model", "x").await.text(), "x");
    let other = *server.processes().first().unwrap();
    assert_eq!(server.metric("roundhouse_workers_isolated").await, 1.0);

    let (_, refused) = snoop(&server, &json!({})).await;
    assert!(refused["setsid"].is_string(), "{refused}");
    let worker = server.processes_of("snoop").first().copied().unwrap();
    assert_ne!(user(worker), user(server.pid()), "it has the server's user");
    assert_ne!(user(worker), user(other), "two handlers share a user");

    let in_cache = files(server.cache()).into_iter().find(|path| path.ends_with("weights"));
    let in_cache = in_cache.expect("the other tenant's weights are in the cache");
    assert_eq!(std::fs::read_to_string(&in_cache).unwrap(), "secret");
    let paths = [
        in_cache,
        stage.path().join("store/other/model/weights"),
        home.join(".aws/credentials"),
        stage.path().join("server.log"),
        format!("/proc/{other}/environ").into(),
        format!("/proc/{}/cmdline", server.pid()).into(),
        "/etc/hostname".into(),
        "/etc/shadow".into(),
    ];
    let data = server.data.trim_start_matches("http://").to_owned();
    for path in paths {
        assert!(path.exists(), "{} is not there to be read", path.display());
        let asked = json!({"path": path, "connect": data, "pid": server.pid()});
        let (could, refused) = snoop(&server, &asked).await;
        let unexpected: Vec<_> =
            could.iter().filter(|one| !PRIVATE.contains(&one.as_str())).collect();
        assert!(unexpected.is_empty(), "it could {unexpected:?}; not: {refused}");
        let why = |what: String| refused[what.as_str()].as_str().unwrap_or("not tried").to_owned();
        let expected = [
            why(format!("read {}", path.display())),
            why("link out".into()),
            why(format!("read environ of {}", server.pid())),
            why(format!("connect {data}")),
            // At once, not by a timeout.
            why("connect 169.254.169.254:80".into()),
            why("setsid".into()),
            why("setpgid".into()),
            why("ptrace".into()),
            why("unshare user".into()),
            why("mount".into()),
        ];
        for reason in expected {
            let denied = reason.contains("Permission") || reason.contains("not permitted");
            assert!(denied, "{}: {reason}: {refused}", path.display());
        }
    }
    assert!(processes_of_group(worker).contains(&worker));
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_files_are_seen_by_their_handler_alone() {
    let mut stage = Stage::new();
    let folders = ["/tmp", "/var/tmp", "/dev/shm"];
    if folders.iter().any(|folder| stage.path().starts_with(folder)) {
        // A folder that holds what a handler must read is closed instead.
        return;
    }
    stage.script("one", RUN).script("two", RUN);
    let server = stage.serve().await;
    let name = format!("roundhouse-{}", server.pid());
    for folder in folders {
        let write = format!("open('{folder}/{name}', 'w').write('mine')");
        assert_eq!(server.ask("one", write).await.status, 200);
        let look = format!("answer = os.path.exists('{folder}/{name}')");
        assert_eq!(server.ask("one", &look).await.text(), "True", "{folder}");
        assert_eq!(server.ask("two", &look).await.text(), "False", "{folder}");
        assert!(!Path::new(folder).join(&name).exists(), "{folder}");
    }
    // A new process of the same handler begins with an empty one.
    server.unload("one").await;
    assert_eq!(server.ask("one", "answer = os.listdir('/tmp')").await.text(), "[]");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_of_a_handler_holds_nothing_of_the_server_s() {
    let mut stage = Stage::new();
    stage.script("run", RUN).asks("run", "env = { THRESHOLD = \"0.5\" }");
    stage.variable("AWS_SECRET_ACCESS_KEY", "canary").variable("PYTHONPATH", "/nowhere");
    stage.variable("ROUNDHOUSE_LOG_LEVEL", "info").variable("LD_LIBRARY_PATH", "/nowhere");
    let server = stage.serve().await;
    let names = server.ask("run", "answer = ' '.join(sorted(os.environ))").await.text();
    let kept: Vec<&str> = names.split(' ').filter(|name| !name.ends_with("_NUM_THREADS")).collect();
    let expected = [
        "HOME",
        "LANG",
        "PATH",
        "SAGEMAKER_PROGRAM",
        "SAGEMAKER_SUBMIT_DIRECTORY",
        "SM_MODEL_DIR",
        "THRESHOLD",
        "TMPDIR",
    ];
    assert_eq!(kept, expected);
    let values = server.ask("run", "answer = ' '.join(os.environ.values())").await.text();
    assert!(!values.contains("canary") && !values.contains("/nowhere"), "{values}");
    // The server's own variables are not in what the kernel shows of the process either.
    let worker = *server.processes().first().unwrap();
    let shown = std::fs::read(format!("/proc/{worker}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&shown).contains("canary"));
}
