//! The documents' commands, run as they are written: each fenced block of `sh`, in order, in one shell
//! per document. Blocks of `console` need a cluster or an account and are not run.

use std::path::Path;
use std::process::{Command, Output};

use roundhouse_tests::server::{Server, binary, root};
use tempfile::TempDir;

use crate::demo::demo;

/// What is defined before a document's commands. `roundhouse` is the binary under test; a server that a
/// document starts takes free ports, and is ended when it is ready.
const PRELUDE: &str = include_str!("documents/prelude.sh");

/// How long one document may take, in seconds.
const WITHIN: &str = "600";

/// The fenced blocks of a language, in order.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}");
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == fence {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            found.push(block.join("\n"));
        }
    }
    found
}

/// What stands in documents for what a test has.
struct Stage {
    folder: TempDir,
    demo: Server,
    container: Server,
}

impl Stage {
    async fn set() -> Self {
        let log = tempfile::tempdir().unwrap();
        let access = log.path().join("access.log").display().to_string();
        let (folder, server) = demo(&[("ROUNDHOUSE_LOG_ACCESS", &access)]).await;
        for target in ["support/base", "search/encoder", "support/aurora"] {
            server.admin_post("load", "demo", target).await;
            let body = serde_json::json!({"inputs": "hello", "parameters": {"max_new_tokens": 2}});
            assert_eq!(server.invoke("demo", target, body).await.status, 200);
        }
        let models = folder.path().join("s3/models/support").display().to_string();
        let args = ["serve", "--container-models-root", &models, "--memory", "64MiB"];
        let container = Server::start(&args, &[("SAGEMAKER_MULTI_MODEL", "true")]).await;
        std::fs::create_dir_all(folder.path().join("work")).unwrap();
        std::fs::rename(&access, folder.path().join("work/access.log")).unwrap();
        Self { folder, demo: server, container }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A document's text with this stage's addresses.
    fn placed(&self, text: &str) -> String {
        let store = self.path().join("s3/models").display().to_string();
        let replaced = [
            ("http://127.0.0.1:8080", self.demo.data.clone()),
            ("http://127.0.0.1:8081", self.demo.admin.clone()),
            ("http://127.0.0.1:8090", self.container.data.clone()),
            ("s3://bucket/prefix/model", format!("file://{store}/support/base")),
            ("s3://bucket/prefix/", format!("file://{store}/")),
            ("s3://models/", format!("file://{store}/")),
            ("/opt/ml/models", format!("{store}/support")),
            ("acme/chat", "support/aurora".to_owned()),
        ];
        replaced.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    fn run(&self, script: &str) -> Output {
        let work = self.path().join("work");
        let mut command = Command::new("timeout");
        command.args(["--signal=TERM", WITHIN, "bash", "-c", script]).current_dir(&work);
        command
            .env("BINARY", binary())
            .env("HOME", &work)
            .env("XDG_CACHE_HOME", work.join("cache"));
        command.env("ROUNDHOUSE_URL", &self.demo.admin).env("ROUNDHOUSE_DATA_URL", &self.demo.data);
        command.env("KEY", "any").env("OPERATOR", "any");
        command.output().unwrap()
    }
}

/// Runs a document's commands; a command that fails fails the test with what was said.
async fn runs(document: &str, blocks_at_least: usize) {
    let _alone = crate::HEAVY.lock().await;
    let stage = Stage::set().await;
    let text = std::fs::read_to_string(root().join(document)).unwrap();
    let blocks = blocks(&text, "sh");
    assert!(blocks.len() >= blocks_at_least, "{document}: {} blocks of sh", blocks.len());
    let mut script = PRELUDE.to_owned();
    for (number, block) in blocks.iter().enumerate() {
        script += &format!("\nblock {}\n{}\n", number + 1, stage.placed(block));
    }
    let output = tokio::task::block_in_place(|| stage.run(&script));
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{document}: {}\n{said}\n{printed}", output.status);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_operations_page_run() {
    runs("deploy/operations.md", 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_tuning_page_run() {
    runs("deploy/tuning.md", 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_migration_page_run() {
    runs("deploy/migration.md", 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_readme_run() {
    runs("README.md", 6).await;
}

#[test]
fn blocks_of_one_language_are_found_in_order() {
    let text = "a\n```sh\none\ntwo\n```\n```console\n$ no\n```\n```sh\nthree\n```\n";
    assert_eq!(blocks(text, "sh"), ["one\ntwo", "three"]);
    assert_eq!(blocks(text, "console"), ["$ no"]);
}
