//! A container of the tests: a small server with faults on request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(3600);

/// Serves as its words say: `dies` at once, is `never-well`, is `deaf` to SIGTERM, has a `child`,
/// which may go `away` from its group,
/// or is an engine with `loras`.
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
        let mut command = Command::new(me());
        if words.contains(&"away") {
            command.process_group(0);
        }
        child = command.args(["stand-in", "sleeps"]).spawn().unwrap().id();
    }
    let port: u16 = std::env::var("SAGEMAKER_BIND_TO_PORT").unwrap().parse().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut loras = Loras { clings: words.contains(&"clings"), ..Loras::default() };
    let status = if words.contains(&"never-well") { 503 } else { 200 };
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        if words.contains(&"loras") {
            loras.answer(&mut stream);
            continue;
        }
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

/// The adapters of an engine.
#[derive(Default)]
struct Loras {
    names: Vec<String>,
    /// The next one does not leave.
    clings: bool,
}

impl Loras {
    fn answer(&mut self, stream: &mut TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut path, mut length) = (String::new(), 0);
        for line in reader.by_ref().lines().map_while(Result::ok).take_while(|it| !it.is_empty()) {
            if path.is_empty() {
                path = line.split(' ').nth(1).unwrap().to_owned();
            }
            if let Some(said) = line.to_lowercase().strip_prefix("content-length:") {
                length = said.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        let name = body["lora_name"].as_str().unwrap_or_default().to_owned();
        let at = self.names.iter().position(|it| *it == name);
        let status = match (path.as_str(), at) {
            ("/v1/load_lora_adapter", None) if name != "refused" => {
                self.names.push(name);
                200
            }
            ("/v1/load_lora_adapter", _) => 400,
            ("/v1/unload_lora_adapter", _) if std::mem::take(&mut self.clings) => 500,
            ("/v1/unload_lora_adapter", None) => 404,
            ("/v1/unload_lora_adapter", Some(at)) => {
                self.names.remove(at);
                200
            }
            _ => 200,
        };
        let said = "no ".repeat(10_000);
        let _ = write!(
            stream,
            "HTTP/1.1 {status} Said\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{said}",
            said.len()
        );
    }
}

fn me() -> std::path::PathBuf {
    std::env::current_exe().unwrap()
}
