//! One worker process: its start, its end, and what becomes of its output.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpgid, waitpid};
use tokio::net::UnixStream;
use tracing::warn;

use crate::Error;
use crate::frame::{self, Frame, Ready};
use crate::logs;
use crate::metrics::{self, End};
use crate::spawn::Spawned;
use crate::warm::Fork;

/// The kernel frees a killed process's memory before its group is gone; this is for a
/// process that hangs in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long the status of a worker that hung up is waited for.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// A worker process and all that it starts. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) group: u32,
    pub(crate) socket: UnixStream,
    pub(crate) read: BytesMut,
    ended: bool,
    /// Counted among the workers.
    counts: bool,
}

/// A process of ours whose end is awaited.
#[derive(Debug)]
pub(crate) enum Child {
    /// Started by us.
    Started(tokio::process::Child),
    /// Forked by a process that has imported for it, and left to us.
    Forked(Fork),
}

impl Child {
    /// Waits for its end; may be dropped and called again.
    pub(crate) async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        match self {
            Self::Started(child) => child.wait().await,
            Self::Forked(fork) => fork.wait().await,
        }
    }
}

impl Process {
    /// Takes charge of what was just started.
    pub(crate) fn new(spawned: Spawned, model: &str, worker: usize) -> Self {
        let Spawned { child, group, socket, stdout, stderr } = spawned;
        // They end when the last process that could write is gone.
        tokio::spawn(logs::pump(stdout, model.to_owned(), worker));
        tokio::spawn(logs::pump(stderr, model.to_owned(), worker));
        let child = Child::Started(child);
        Self { child, group, socket, read: BytesMut::new(), ended: false, counts: true }
    }

    /// Takes charge of what was just forked.
    pub(crate) fn forked(fork: Fork, socket: UnixStream) -> Self {
        let (group, child) = (fork.process(), Child::Forked(fork));
        Self { child, group, socket, read: BytesMut::new(), ended: false, counts: true }
    }

    /// The same, where it is no worker, or not yet.
    pub(crate) fn uncounted(self) -> Self {
        let mut process = self;
        process.counts = false;
        process
    }

    /// It is a worker from now on.
    pub(crate) fn counted(self) -> Self {
        metrics::started();
        let mut process = self;
        process.counts = true;
        process
    }

    /// Waits until the handler is loaded.
    ///
    /// # Errors
    /// What the handler says, or how the process ended.
    pub(crate) async fn ready(&mut self, model: &str) -> Result<Ready, Error> {
        loop {
            match frame::next(&mut self.read, 0).map_err(|garbled| Error::Garbled(garbled.0))? {
                Some(Frame::Ready(ready)) => return Ok(ready),
                Some(Frame::Failed(trace)) => {
                    if let Some(traceback) = trace.traceback {
                        warn!(model, traceback, "handler cannot be loaded");
                    }
                    return Err(Error::Unloadable(trace.message));
                }
                Some(_) => return Err(Error::Garbled("an answer before it was ready")),
                None => {}
            }
            if self.receive().await? == 0 {
                let how = self.ended().await;
                return Err(Error::Unloadable(format!("its worker {how} while it started")));
            }
        }
    }

    /// Reads what there is; zero at the end.
    async fn receive(&mut self) -> Result<usize, Error> {
        loop {
            let gone = tokio::select! {
                biased;
                ready = self.socket.readable() => ready.map(|()| false).map_err(Error::Spawn)?,
                _ = self.child.wait() => true,
            };
            self.read.reserve(4096);
            match self.socket.try_read_buf(&mut self.read) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !gone => {}
                // A worker that is killed with calls unread resets the connection.
                Err(_) => return Ok(0),
            }
        }
    }

    /// Waits for the status of a worker that seems to have ended by itself, ends the rest of its
    /// group, and says how it ended.
    pub(crate) async fn ended(&mut self) -> String {
        let by_itself = tokio::time::timeout(LAST_WORDS, self.child.wait()).await;
        let killed = self.end().await;
        match by_itself {
            Ok(Ok(status)) => described(status),
            Ok(Err(_)) | Err(_) => killed,
        }
    }

    /// Kills the whole group, waits until it is gone, and says how the worker ended.
    pub(crate) async fn end(&mut self) -> String {
        kill(self.group);
        let status = self.child.wait().await;
        end_group(self.group).await;
        self.ended = true;
        status.map_or_else(|error| format!("was lost ({error})"), described)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended {
            if self.counts {
                metrics::ended(End::FailedStart);
            }
            abandon(self.group);
        }
    }
}

/// Ends what is left of a group whose leader's end was taken, and waits until it is gone.
pub(crate) async fn end_group(group: u32) {
    let began = Instant::now();
    // What it started may outlive it for a moment.
    loop {
        reap(group);
        if !kill(group) {
            return;
        }
        if began.elapsed() > KILL_PATIENCE {
            warn!(group, "a worker's processes do not go away");
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Ends a group that nobody waits for.
pub(crate) fn abandon(group: u32) {
    kill(group);
    // Without a runtime the process ends, and with it all its children.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(end_group(group));
    }
}

/// Kills a process group; `false` where nobody is in it any more.
pub(crate) fn kill(group: u32) -> bool {
    let group = i32::try_from(group).ok().and_then(Pid::from_raw);
    group.is_some_and(|group| kill_process_group(group, Signal::KILL).is_ok())
}

/// Takes the ends of what a group's processes have left to us. Its leader's end must have been
/// taken before: it is not to be lost here.
fn reap(group: u32) {
    let group = i32::try_from(group).ok().and_then(Pid::from_raw);
    let Some(group) = group else { return };
    while let Ok(Some(_)) = waitpgid(group, WaitOptions::NOHANG) {}
}

/// Takes the end of one process that was left to us.
pub(crate) fn reap_one(process: u32) {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    // It may be somebody else's to take.
    let _ = process.map(|process| waitpid(Some(process), WaitOptions::NOHANG));
}

/// How a process ended, as the rest of a sentence.
pub(crate) fn described(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(126), _) => "could not be confined (its log lines say why)".into(),
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, Some(signal)) => format!("was ended by {}", signal_name(signal)),
        (None, None) => "ended".into(),
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    name.into()
}
