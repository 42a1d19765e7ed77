//! A container of the tests: a small server with faults on request.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(3600);

/// Serves as its words say: `dies` at once, is `never-well`, is `deaf` to SIGTERM, has a `child`.
pub(crate) fn run(words: &[&str]) -> ExitCode {
    if words.contains(&"dies") {
        eprintln!("cannot find the model");
        return ExitCode::from(3);
    }
    if words.contains(&"sleeps") {
        thread::sleep(LONG);
    }
    if words.contains(&"deaf") {
        // Only a shell can be told so without a signal handler of ours.
        let script = "trap '' TERM; \"$0\" stand-in & while :; do wait; done";
        let _ = Command::new("sh").arg("-c").arg(script).arg(me()).status();
        return ExitCode::SUCCESS;
    }
    let mut child = 0;
    if words.contains(&"child") {
        child = Command::new(me()).args(["stand-in", "sleeps"]).spawn().unwrap().id();
    }
    let port: u16 = std::env::var("SAGEMAKER_BIND_TO_PORT").unwrap().parse().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let status = if words.contains(&"never-well") { 503 } else { 200 };
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut head = BufReader::new(stream.try_clone().unwrap()).lines();
        while head.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        let said = words.iter().find_map(|word| word.strip_prefix("says=")).unwrap_or("");
        let body = format!("{} {child} {said}", std::process::id());
        let _ = write!(
            stream,
            "HTTP/1.1 {status} Said\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    ExitCode::SUCCESS
}

fn me() -> std::path::PathBuf {
    std::env::current_exe().unwrap()
}
