//! A process of our own that may compute, and nothing else.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use roundhouse_confine::{allow_processor_time, seal};

use crate::setting::exe;
use crate::{Outcome, Test};

pub(crate) const TESTS: &[Test] = &[
    ("a_sealed_process_reaches_nothing", a_sealed_process_reaches_nothing),
    ("a_sealed_process_reads_computes_and_writes", a_sealed_process_reads_computes_and_writes),
    ("a_sealed_process_ends_where_its_memory_does", a_sealed_process_ends_where_its_memory_does),
    ("a_sealed_process_ends_where_its_time_does", a_sealed_process_ends_where_its_time_does),
    (
        "the_memory_of_a_sealed_process_is_roots_alone",
        the_memory_of_a_sealed_process_is_roots_alone,
    ),
];

const MEMORY: u64 = 64 << 20;

/// Seals itself and tries something.
pub(crate) fn be_sealed(attempt: &str) -> ExitCode {
    let parent = Pid::parent();
    let missing = seal(parent.as_raw().unsigned_abs(), MEMORY).unwrap();
    if !missing.is_empty() {
        println!("missing {}", missing.join(", "));
        return ExitCode::SUCCESS;
    }
    let told = |outcome: io::Result<()>| match outcome {
        Ok(()) => println!("done"),
        Err(error) => println!("{}", Errno::from_raw(error.raw_os_error().unwrap_or(0))),
    };
    let busy = || loop {
        std::hint::spin_loop();
    };
    match attempt {
        "read" => told(File::open("/proc/self/status").map(drop)),
        "write" => told(File::create("/tmp/sealed").map(drop)),
        "listen" => told(TcpListener::bind("127.0.0.1:0").map(drop)),
        "name" => told(UdpSocket::bind("127.0.0.1:0").map(drop)),
        "pair" => told(UnixStream::pair().map(drop)),
        "process" => told(Command::new("/bin/true").spawn().map(drop)),
        "program" => told(Err(Command::new("/bin/true").exec())),
        "thread" => told(thread::Builder::new().spawn(|| ()).map(drop)),
        "signal" => told(kill(parent, None).map_err(io::Error::from)),
        "compute" => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).unwrap();
            let much = vec![1_u8; 16 << 20];
            println!("{text} {}", much.iter().map(|byte| u64::from(*byte)).sum::<u64>());
        }
        "wait" => {
            println!("sealed");
            let _ = io::stdin().read(&mut [0]);
        }
        "memory" => {
            let much = vec![1_u8; 2 * MEMORY as usize];
            println!("{}", much.iter().map(|byte| u64::from(*byte)).sum::<u64>());
        }
        "time" => {
            allow_processor_time(1).unwrap();
            busy()
        }
        other => panic!("{other}"),
    }
    ExitCode::SUCCESS
}

/// What a sealed process says that reads `text`, and how it ends.
fn sealed(attempt: &str, text: &str) -> (String, ExitStatus) {
    let mut child = Command::new(exe())
        .args(["sealed", attempt])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (String::from_utf8_lossy(&output.stdout).trim().to_owned(), output.status)
}

/// Skips a test where this machine filters no calls.
macro_rules! unless_missing {
    ($told:expr) => {
        if let Some(missing) = $told.strip_prefix("missing ") {
            return Some(missing.to_owned());
        }
    };
}

fn a_sealed_process_reaches_nothing() -> Outcome {
    for attempt in
        ["read", "write", "listen", "name", "pair", "process", "program", "thread", "signal"]
    {
        let (told, status) = sealed(attempt, "");
        unless_missing!(told);
        assert!(told.starts_with("EPERM"), "{attempt}: {told} {status}");
    }
    None
}

fn a_sealed_process_reads_computes_and_writes() -> Outcome {
    let (told, status) = sealed("compute", "words");
    unless_missing!(told);
    assert_eq!(told, format!("words {}", 16 << 20), "{status}");
    assert!(status.success());
    None
}

fn a_sealed_process_ends_where_its_memory_does() -> Outcome {
    let (told, status) = sealed("memory", "");
    unless_missing!(told);
    assert_eq!((told.as_str(), status.signal()), ("", Some(nix::libc::SIGABRT)), "{status}");
    None
}

fn a_sealed_process_ends_where_its_time_does() -> Outcome {
    let (told, status) = sealed("time", "");
    unless_missing!(told);
    assert_eq!((told.as_str(), status.signal()), ("", Some(nix::libc::SIGXCPU)), "{status}");
    None
}

fn the_memory_of_a_sealed_process_is_roots_alone() -> Outcome {
    let mut command = Command::new(exe());
    command.args(["sealed", "wait"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let mut told = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut told).unwrap();
    let owner = fs::metadata(format!("/proc/{}/mem", child.id())).unwrap().uid();
    drop(child.stdin.take());
    child.wait().unwrap();
    unless_missing!(told.trim());
    assert_eq!((told.trim(), owner), ("sealed", 0));
    None
}
