//! Starts worker processes.
//!
//! All are children of one thread that lives as long as the process: the kernel ends a
//! worker when the thread that started it is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use roundhouse_confine::Launch;
use rustix::process::{getpid, set_child_subreaper};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::warn;

use crate::Error;

/// A process that was just started.
pub(crate) struct Spawned {
    pub(crate) child: Child,
    /// Of the process and of all it starts: nothing confined may leave it.
    pub(crate) group: u32,
    pub(crate) socket: UnixStream,
    pub(crate) stdout: ChildStdout,
    pub(crate) stderr: ChildStderr,
}

type Reply = oneshot::Sender<io::Result<Spawned>>;

/// The way to the thread that starts processes.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    exe: PathBuf,
    requests: mpsc::Sender<(std::process::Command, Reply)>,
}

impl Spawner {
    /// Starts the thread. Within a runtime.
    pub(crate) fn start(exe: PathBuf) -> Result<Self, Error> {
        // Workers' children that outlive them come to us, and not to a first process that in a
        // container may be a server that never takes their ends, or may be us.
        if let Err(error) = set_child_subreaper(Some(getpid())) {
            warn!(%error, "what handlers leave behind is not looked after");
        }
        let (requests, waiting) = mpsc::channel::<(std::process::Command, Reply)>();
        let runtime = Handle::current();
        let serve = move || {
            let _entered = runtime.enter();
            for (command, reply) in waiting {
                // A caller that went away drops what was started, which ends it.
                let _ = reply.send(spawn(command));
            }
        };
        thread::Builder::new()
            .name("spawner".into())
            .spawn(serve)
            .map_err(|source| Error::Spawn(io::Error::other(source)))?;
        Ok(Self { exe, requests })
    }

    /// Starts a process.
    pub(crate) async fn spawn(&self, launch: &Launch) -> Result<Spawned, Error> {
        let command =
            launch.command(&self.exe).map_err(|error| Error::Spawn(io::Error::other(error)))?;
        let (reply, answer) = oneshot::channel();
        let gone = || Error::Spawn(io::Error::other("the thread that starts processes is gone"));
        self.requests.send((command, reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(Error::Spawn)
    }
}

fn spawn(command: std::process::Command) -> io::Result<Spawned> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::from(command);
    command
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    // The command keeps its copy of the worker's end: an end of file must be seen.
    drop(command);
    let group = child.id().ok_or_else(|| io::Error::other("it ended at once"))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("its output is not piped"));
    };
    Ok(Spawned { child, group, socket: UnixStream::from_std(ours)?, stdout, stderr })
}
