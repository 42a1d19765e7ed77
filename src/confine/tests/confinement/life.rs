//! Whose death ends a confined process, and who may look at it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use crate::setting::{Setting, exe, require};
use crate::{Outcome, Test};

pub(crate) const TESTS: &[Test] = &[
    ("it_dies_with_its_parent", it_dies_with_its_parent),
    ("it_dies_with_the_thread_that_started_it", it_dies_with_the_thread_that_started_it),
    ("the_parent_reads_how_much_memory_it_uses", the_parent_reads_how_much_memory_it_uses),
];

/// Lives on unless it is killed.
const LINGER: &str = "
import time
print('started', flush=True)
time.sleep(20)
print('survived', flush=True)
";

/// Starts a confined process and ends.
pub(crate) fn be_parent() -> ExitCode {
    let mut setting = Setting::new();
    let mut child = setting.python(LINGER).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    print!("{line}");
    drop(setting);
    // By no way that would tidy up.
    std::process::abort()
}

fn it_dies_with_its_parent() -> Outcome {
    require!();
    // The confined process's standard error is this pipe, which ends when it does.
    let mut parent = Command::new(exe())
        .arg("parent")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    parent.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let start = std::time::Instant::now();
    parent.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    parent.wait().unwrap();
    assert_eq!(said.trim(), "started");
    // Its own end would have come later.
    assert!(start.elapsed().as_secs() < 15);
    None
}

fn it_dies_with_the_thread_that_started_it() -> Outcome {
    require!();
    let mut setting = Setting::new();
    let mut command = setting.python(LINGER);
    command.stdout(Stdio::piped());
    let (mut child, mut stdout) = thread::spawn(move || {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "started\n");
        (child, stdout)
    })
    .join()
    .unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    assert!(!child.wait().unwrap().success());
    None
}

fn the_parent_reads_how_much_memory_it_uses() -> Outcome {
    require!();
    let mut setting = Setting::new();
    let code = "print('started', flush=True)\nsys.stdin.read()";
    let mut child =
        setting.python(code).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let memory = fs::read_to_string(format!("/proc/{}/smaps_rollup", child.id()));
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(memory.unwrap().contains("Pss:"));
    None
}
