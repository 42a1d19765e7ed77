//! What platforms and the clients of other servers ask of a container: the checks of Triton's and
//! multi-model-server's own suites as far as they do not depend on their wording, one model alone,
//! `serving.properties`, and the description of the port.

mod described;
mod peers;
mod properties;
mod single;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use roundhouse_tests::models::File;
use roundhouse_tests::server::{Answer, Server, binary};

fn place(folder: &Path, files: &[File]) {
    for (path, body) in files {
        let file = folder.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, body).unwrap();
    }
}

/// A server whose log goes to a file.
async fn logging(args: &[&str], env: &[(&str, &str)], log: &Path) -> Server {
    let mut command = Command::new(binary());
    command.args(args).args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command.stderr(std::fs::File::create(log).unwrap());
    Server::spawn(command, env).await
}

/// `/ping` as soon as it is as wanted.
async fn ping_once(server: &Server, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(240);
    loop {
        let answer = server.get("/ping").await;
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "it stays as it is: {}", answer.body);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
