//! A short child that is asked one thing.

use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Longer than an interpreter takes to start on a cold disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a child said, and how it ended.
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs it without input until both its outputs are closed; kills it when that takes too long.
pub(crate) fn ask(command: &mut Command) -> io::Result<Answer> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("child without pipes"));
    };
    let (stdout, stderr) = (read(stdout), read(stderr));
    let said =
        stdout.recv_timeout(PATIENCE).and_then(|out| Ok((out, stderr.recv_timeout(PATIENCE)?)));
    if said.is_err() {
        // It may have ended by itself meanwhile.
        let _ = child.kill();
    }
    let status = child.wait()?;
    let (stdout, stderr) = said.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
    Ok(Answer { success: status.success(), stdout, stderr })
}

fn read(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A broken pipe ends the answer; what is missing shows when it is read.
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}
