//! `requirements.txt`: what it brings, to whom, and what it may not ask for.

use std::path::Path;
use std::process::Command;

use roundhouse_tests::handlers::{Running, Stage};

use super::RUN;

/// Writes a package index with two versions of the package `shade`.
const MAKE_INDEX: &str = "
import os, sys, zipfile
root = os.path.join(sys.argv[1], 'shade')
os.makedirs(root)
links = ''
for version in ('1.0', '2.0'):
    name = 'shade-%s-py3-none-any.whl' % version
    info = 'shade-%s.dist-info/' % version
    with zipfile.ZipFile(os.path.join(root, name), 'w') as wheel:
        wheel.writestr('shade.py', 'VERSION = %r\\n' % version)
        wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: shade\\nVersion: %s\\n' % version)
        wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
        wheel.writestr(info + 'RECORD', 'shade.py,,\\n%sMETADATA,,\\n%sWHEEL,,\\n%sRECORD,,\\n' % (info, info, info))
    links += '<a href=\"%s\">%s</a>\\n' % (name, name)
with open(os.path.join(root, 'index.html'), 'w') as page:
    page.write('<!DOCTYPE html><html><body>' + links + '</body></html>')
";

/// A stage whose handlers install from an index of its own.
fn stage() -> Stage {
    let mut stage = Stage::new();
    let index = stage.path().join("index");
    let made = Command::new("python3").args(["-c", MAKE_INDEX]).arg(&index).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    stage.setting("HANDLERS_INDEX", &format!("file://{}", index.display()));
    stage
}

fn wants(stage: &mut Stage, target: &str, requirements: &str) {
    stage.script(target, RUN).file(&format!("{target}/code/requirements.txt"), requirements);
}

async fn version(server: &Running, target: &str) -> String {
    let answer = server.ask(target, "import shade; answer = shade.VERSION").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

fn installations(server: &Running) -> usize {
    server.log().lines().filter(|line| line.contains("requirements installed")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicting_requirements_live_side_by_side_and_are_installed_once() {
    let mut stage = stage();
    wants(&mut stage, "shop/one", "shade==1.0\n");
    wants(&mut stage, "shop/two", "# the newer one\nshade >= 2.0  # at least\n");
    wants(&mut stage, "shop/same", "shade==1.0");
    stage.script("none", RUN);
    let server = stage.serve().await;
    let (one, two) = tokio::join!(version(&server, "shop/one"), version(&server, "shop/two"));
    assert_eq!((one.as_str(), two.as_str()), ("1.0", "2.0"));
    let (one, two) = tokio::join!(version(&server, "shop/one"), version(&server, "shop/two"));
    assert_eq!((one.as_str(), two.as_str()), ("1.0", "2.0"));
    assert_eq!(installations(&server), 2);
    let without = server.ask("none", "import shade").await;
    assert!(without.text().contains("No module named 'shade'"), "{}", without.text());

    // Equal requirements of one tenant are one environment; another load installs nothing.
    assert_eq!(version(&server, "shop/same").await, "1.0");
    server.unload("shop/one").await;
    assert_eq!(version(&server, "shop/one").await, "1.0");
    assert_eq!(installations(&server), 2);
    // Nor does another process.
    drop(server);
    let server = stage.serve().await;
    assert_eq!(version(&server, "shop/two").await, "2.0");
    assert_eq!(installations(&server), 0);

    // They are everybody's to read and nobody's to write.
    let write = "
import shade
folder = os.path.dirname(shade.__file__)
tried = []
for path in (shade.__file__, os.path.join(folder, 'planted.py'), os.path.join(sys.prefix, 'x')):
    try:
        open(path, 'a').close()
        tried.append(path)
    except OSError as error:
        pass
answer = tried";
    let answer = server.ask("shop/two", write).await;
    assert_eq!(answer.text(), "[]");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_leaves_before_the_packages_are_there() {
    let mut stage = stage();
    stage.script("here", RUN);
    wants(&mut stage, "shop/one", "shade==1.0");
    // Room for one of them.
    stage.arg("--memory").arg("48MiB").setting("HANDLERS_MEMORY", "40MiB");
    let server = stage.serve().await;
    assert_eq!(server.ask("here", "answer = 1").await.text(), "1");
    assert_eq!(version(&server, "shop/one").await, "1.0");
    let log = server.log();
    let line = |what: &str| {
        let found = log.lines().position(|line| what.split('&').all(|part| line.contains(part)));
        found.unwrap_or_else(|| panic!("no line with {what} in {log}"))
    };
    assert!(line("requirements installed") < line("model leaves&here"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_share_an_environment_only_where_the_operator_says_so() {
    for (shared, installed) in [("false", 3), ("true", 1)] {
        let mut stage = stage();
        wants(&mut stage, "red/model", "shade==1.0");
        wants(&mut stage, "blue/model", "shade==1.0");
        wants(&mut stage, "lone", "shade==1.0");
        stage.setting("HANDLERS_SHARE_ENVIRONMENTS", shared);
        let server = stage.serve().await;
        let (red, blue) =
            tokio::join!(version(&server, "red/model"), version(&server, "blue/model"));
        assert_eq!((red.as_str(), blue.as_str()), ("1.0", "1.0"));
        assert_eq!(version(&server, "lone").await, "1.0");
        assert_eq!(installations(&server), installed, "shared: {shared}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_installed_is_said_to_the_client() {
    let mut stage = stage();
    wants(&mut stage, "elsewhere", "shade\n--index-url https://packages.example/simple\n");
    wants(&mut stage, "repository", "git+https://code.example/shade.git\n");
    wants(&mut stage, "file", "shade @ file:///etc/passwd\n");
    wants(&mut stage, "absent", "no-such-package-of-ours==3.1\n");
    wants(&mut stage, "version", "shade==9.9\n");
    let server = stage.serve().await;
    let cases = [
        ("elsewhere", "requirements.txt: line 2: the index https://packages.example/simple"),
        ("repository", "requirements.txt: line 1: 'git+https://code.example/shade.git'"),
        ("file", "requirements.txt: line 1:"),
        ("absent", "No matching distribution found for no-such-package-of-ours==3.1"),
        ("version", "No matching distribution found for shade==9.9"),
    ];
    for (target, says) in cases {
        let answer = server.ask(target, "answer = 1").await;
        assert_eq!(answer.status, 424, "{target}: {}", answer.text());
        assert_eq!(answer.json()["OriginalStatusCode"], 400, "{}", answer.text());
        let message = answer.json()["OriginalMessage"].as_str().unwrap().to_owned();
        assert!(message.contains(says), "{target}: {message}");
    }
    assert_eq!(server.started().await, 0, "a worker was started");
    // Half an environment is none, and does not stay on disk.
    let left: Vec<_> = std::fs::read_dir(environments(&server)).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn environments(server: &Running) -> std::path::PathBuf {
    Path::new(server.cache()).join("handlers/environments")
}
