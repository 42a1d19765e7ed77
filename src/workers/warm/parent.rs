//! One interpreter that has imported beforehand, and its forks.
//!
//! It is confined as a worker is, by the same steps, with a user and a temporary folder of its own.
//! A fork is as confined as it is, so all that one model is to be kept from is settled before: the
//! interpreter serves one model at a time, which has its user and its folder to itself. What the
//! model alone may read is mounted on folders that the rules allow, when it is known.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use roundhouse_confine::Launch;
use roundhouse_types::Bytes;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{PidfdFlags, pidfd_open, setpgid};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::time::timeout;
use tracing::warn;

use super::Key;
use super::fork::{Fork, pid};
use crate::environment::Environment;
use crate::logs;
use crate::process::Process;
use crate::scratch::{self, Corner};
use crate::watch::pss;
use crate::{Base, Error};

/// A fork takes a few milliseconds; an interpreter that takes longer hangs.
const FORK_PATIENCE: Duration = Duration::from_secs(5);
/// What the kernel tells a process of itself in `/proc/self`, beside three links.
const FACTS: [&str; 25] = [
    "attr",
    "auxv",
    "cgroup",
    "cmdline",
    "comm",
    "environ",
    "fd",
    "fdinfo",
    "io",
    "limits",
    "loginuid",
    "maps",
    "mountinfo",
    "mounts",
    "net",
    "ns",
    "numa_maps",
    "oom_score",
    "oom_score_adj",
    "smaps",
    "smaps_rollup",
    "stat",
    "statm",
    "status",
    "task",
];
/// What its output is logged as.
const NAME: &str = "(warm interpreter)";

/// See the module's text. Owned by the pool while it is idle, by a group while that lives.
#[derive(Debug)]
pub(crate) struct Parent {
    process: Process,
    /// Opened when nobody could have taken its end.
    opened: OwnedFd,
    corner: Corner,
    shown: Shown,
    /// A fork that waits for the next order.
    ahead: Option<Waiting>,
    /// Process groups of what it forked for its model.
    forks: Vec<u32>,
    /// Whose it is.
    pub(super) key: Key,
    /// What it was asked to import.
    pub(super) imports: Vec<String>,
    /// Of the packages that it has imported from.
    stamp: Option<Stamp>,
    pub(super) born: Instant,
    pub(super) idle_since: Instant,
    /// What it took when it was last looked at.
    pub(super) bytes: Bytes,
}

/// A fork without an order.
#[derive(Debug)]
struct Waiting {
    process: Process,
    out: OwnedFd,
    err: OwnedFd,
}

/// The folders on which it is shown what its model alone may read.
#[derive(Debug)]
struct Shown {
    root: PathBuf,
    /// The artefact.
    model: PathBuf,
    /// What the kernel tells a fork of itself, by way of this.
    own: PathBuf,
    /// Something is mounted on `model`.
    has_model: bool,
}

/// One installation of packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64);

/// What a fork is to load.
pub(crate) struct Order {
    pub(crate) settings: serde_json::Value,
    pub(crate) variables: BTreeMap<String, String>,
    /// The most writable memory, in bytes: what the fork limits itself to before the handler's code
    /// runs, at most what its interpreter has.
    pub(crate) memory: u64,
    /// The artefact's folder.
    pub(crate) dir: PathBuf,
}

impl Parent {
    /// Starts an interpreter and returns when it has imported.
    ///
    /// # Errors
    /// Where it cannot be started, or cannot be forked with what it has imported.
    pub(super) async fn start(
        base: &Base,
        key: Key,
        imports: Vec<String>,
        environment: Option<&Arc<Environment>>,
    ) -> Result<Self, Error> {
        let scratch = Arc::clone(&base.scratch);
        let python = environment.map_or(&base.config.python, |it| &it.python);
        let executable = python.clone();
        let (corner, shown) = crate::blocking(move || {
            let corner = scratch.take()?;
            let shown = Shown::beside(&corner.dir, &executable)?;
            Ok((corner, shown))
        })
        .await?;
        let mut read = base.system.clone();
        read.extend([base.runtime.clone(), shown.root.clone(), shown.own.clone()]);
        read.extend(environment.map(|it| it.root.clone()));
        let confinement = base.confinement(read, &corner.dir, corner.uid, base.config.max_memory);
        let variables = crate::variables(&key.variables, &corner.dir, python);
        let launch = Launch {
            confinement,
            program: python.clone(),
            args: base.arguments("roundhouse_warm", &json!({ "imports": imports })),
            env: variables.into_iter().collect(),
            dir: corner.dir.clone(),
        };
        let stamp = environment.and_then(|it| Stamp::of(&it.root));
        let spawned = base.spawner.spawn(&launch).await?;
        let group = spawned.group;
        let mut process = Process::new(spawned, NAME, 0).uncounted();
        let opened = pid(group)
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?))
            .map_err(Error::Spawn)?;
        let limit = base.config.start_limit;
        let ready = timeout(limit, process.ready(NAME)).await;
        ready.unwrap_or(Err(Error::StartTimedOut(limit)))?;
        let now = Instant::now();
        Ok(Self {
            process,
            opened,
            corner,
            shown,
            ahead: None,
            forks: Vec::new(),
            key,
            imports,
            stamp,
            born: now,
            idle_since: now,
            bytes: Bytes::ZERO,
        })
    }

    /// Its process group.
    pub(crate) fn group(&self) -> u32 {
        self.process.group
    }

    /// Its user and temporary folder, which are its model's.
    pub(crate) fn corner(&self) -> &Corner {
        &self.corner
    }

    /// Where its model finds its files.
    pub(crate) fn model_dir(&self) -> &Path {
        &self.shown.model
    }

    /// Whether it can be forked: it is neither dead nor stopped, and its packages are those on
    /// disk.
    pub(super) fn is_fit(&self) -> bool {
        let ahead = self.ahead.iter().map(|waiting| waiting.process.group);
        let environment = self.key.environment.as_deref();
        ahead.chain([self.group()]).all(runs) && self.stamp == environment.and_then(Stamp::of)
    }

    /// Looks at what it takes. Blocking.
    pub(super) fn weigh(&mut self) {
        let ahead = self.ahead.iter().map(|waiting| waiting.process.group);
        let weights =
            ahead.chain([self.group()]).map(|process| pss(process).unwrap_or(Bytes::ZERO));
        self.bytes = weights.sum();
    }

    /// Forks a worker that loads what the order says. The first order since the last
    /// [`Self::clear`] decides which artefact is read.
    ///
    /// # Errors
    /// Where the interpreter is gone, hangs, or what it forked is not what it should be. It is
    /// not to be used again then.
    pub(crate) async fn fork(
        &mut self,
        order: &Order,
        model: &str,
        worker: usize,
    ) -> Result<Process, Error> {
        let forked = timeout(FORK_PATIENCE, self.try_fork(order, model, worker)).await;
        forked
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
            .map_err(Error::Spawn)
    }

    /// Forks the worker of the next order, which waits for it.
    ///
    /// # Errors
    /// As [`Self::fork`].
    pub(super) async fn fork_ahead(&mut self) -> io::Result<()> {
        let split = timeout(FORK_PATIENCE, self.split()).await;
        self.ahead = Some(split.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??);
        Ok(())
    }

    async fn try_fork(&mut self, order: &Order, model: &str, worker: usize) -> io::Result<Process> {
        let Waiting { mut process, out, err } = match self.ahead.take() {
            Some(waiting) => waiting,
            None => self.split().await?,
        };
        process = process.counted();
        self.forks.push(process.group);
        for pipe in [out, err] {
            let pipe = pipe::Receiver::from_owned_fd(pipe)?;
            tokio::spawn(logs::pump(pipe, model.to_owned(), worker));
        }
        if !std::mem::replace(&mut self.shown.has_model, true) {
            self.show(vec![(order.dir.clone(), self.shown.model.clone())]).await?;
        }
        let text = json!({
            "settings": order.settings, "variables": order.variables, "memory": order.memory,
        })
        .to_string();
        let length = u32::try_from(text.len()).map_err(io::Error::other)?.to_le_bytes();
        process.socket.write_all(&[&length, text.as_bytes()].concat()).await?;
        Ok(process)
    }

    /// Forks, and makes the fork a process group of its own that sees itself.
    async fn split(&mut self) -> io::Result<Waiting> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (out, out_theirs) = io::pipe()?;
        let (err, err_theirs) = io::pipe()?;
        self.hand_over([theirs.as_fd(), out_theirs.as_fd(), err_theirs.as_fd()]).await?;
        drop((theirs, out_theirs, err_theirs));
        let mut said = [0];
        self.process.socket.read_exact(&mut said).await?;
        let mut socket = UnixStream::from_std(ours)?;
        let mut number = [0; 4];
        socket.read_exact(&mut number).await?;
        let fork = Fork::open(u32::from_le_bytes(number))?;
        self.check(fork.process())?;
        setpgid(Some(fork.pid()), Some(fork.pid()))?;
        // From here on it is ended with its group, whatever happens.
        let process = Process::forked(fork, socket).uncounted();
        self.show(self.shown.facts(process.group)).await?;
        Ok(Waiting { process, out: out.into(), err: err.into() })
    }

    /// Hands descriptors to the interpreter.
    async fn hand_over(&self, handed: [BorrowedFd<'_>; 3]) -> io::Result<()> {
        let socket = &self.process.socket;
        let sent = socket
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(&handed));
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                Ok(sendmsg(socket, &[IoSlice::new(b"+")], &mut control, flags)?)
            })
            .await?;
        if sent != 1 {
            return Err(io::Error::other("the interpreter takes no orders"));
        }
        Ok(())
    }

    /// Refuses what is not a child of ours that this interpreter has just forked: its packages are
    /// a tenant's, and could name any process.
    fn check(&self, process: u32) -> io::Result<()> {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let numbers = |text: &str| -> Vec<u32> {
            text.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect()
        };
        let ours = field("PPid:").map(numbers) == Some(vec![std::process::id()]);
        let users = self.corner.uid.map(|uid| vec![uid; 4]);
        let own = users.is_some() && field("Uid:").map(numbers) == users;
        let group = rustix::process::getpgid(Some(pid(process)?))?;
        if ours && own && group == pid(self.group())? && process != self.group() {
            return Ok(());
        }
        Err(io::Error::other(format!("{process} is no fork of the interpreter")))
    }

    /// Mounts trees in the view of the interpreter and its forks.
    async fn show(&self, trees: Vec<(PathBuf, PathBuf)>) -> io::Result<()> {
        let opened = self.opened.try_clone()?;
        let shown = tokio::task::spawn_blocking(move || {
            let trees: Vec<(&Path, &Path)> =
                trees.iter().map(|(tree, at)| (tree.as_path(), at.as_path())).collect();
            roundhouse_confine::show(opened.as_fd(), &trees)
        });
        shown.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    /// Takes away all that was its model's. Its forks must be gone. Blocking.
    ///
    /// # Errors
    /// Where something stays: then it is not to be used again.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        for group in self.forks.drain(..) {
            // Nothing that they started can have left their groups.
            if rustix::process::test_kill_process_group(pid(group)?).is_ok() {
                return Err(io::Error::other("its model's processes do not go away"));
            }
        }
        if std::mem::take(&mut self.shown.has_model) {
            roundhouse_confine::hide(self.opened.as_fd(), &self.shown.model)
                .map_err(io::Error::other)?;
        }
        self.corner.clear()
    }

    /// Ends it, and waits until its memory is free.
    pub(crate) async fn end(self) {
        let mut parent = self;
        if let Some(mut waiting) = parent.ahead.take() {
            waiting.process.end().await;
        }
        parent.process.end().await;
        let _ = tokio::task::spawn_blocking(move || drop(parent)).await;
    }
}

/// Whether a process is neither dead nor stopped.
fn runs(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest);
    let state = after_name.and_then(|rest| rest.split_ascii_whitespace().next());
    matches!(state, Some("S" | "R"))
}

impl Shown {
    /// Empty folders of ours, and places for what the kernel tells of a fork. Blocking.
    fn beside(dir: &Path, python: &Path) -> Result<Self, Error> {
        let root = dir.with_extension("shown");
        let shown =
            Self { model: root.join("model"), own: root.join("own"), root, has_model: false };
        shown.make(dir, python).map_err(|source| Error::file("create", &shown.root, source))?;
        Ok(shown)
    }

    fn make(&self, dir: &Path, python: &Path) -> io::Result<()> {
        for folder in [&self.root, &self.model, &self.own] {
            DirBuilder::new().mode(0o755).create(folder)?;
        }
        for (name, target) in [("exe", python), ("cwd", dir), ("root", Path::new("/"))] {
            symlink(target, self.own.join(name))?;
        }
        for name in FACTS {
            match fs::metadata(Path::new("/proc/self").join(name)) {
                Ok(found) if found.is_dir() => {
                    DirBuilder::new().mode(0o755).create(self.own.join(name))?;
                }
                Ok(_) => drop(File::create(self.own.join(name))?),
                // Another kernel's.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// What is mounted, and where, so that a fork sees itself. Blocking.
    ///
    /// The rules hold for a folder and what is mounted below it, and the folder that the kernel makes
    /// for the fork is known to none of them: so one that is covers it, and each part of it is
    /// mounted there again.
    fn facts(&self, fork: u32) -> Vec<(PathBuf, PathBuf)> {
        let folder = PathBuf::from(format!("/proc/{fork}"));
        let there = FACTS.iter().filter(|name| self.own.join(name).exists());
        let parts = there.map(|name| (folder.join(name), folder.join(name)));
        std::iter::once((self.own.clone(), folder.clone())).chain(parts).collect()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // Nothing is mounted there to us, only in another view.
        if let Err(error) = scratch::remove(&self.root)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(path = %self.root.display(), %error, "a folder was not deleted");
        }
    }
}

impl Stamp {
    /// Of an environment that is there.
    fn of(root: &Path) -> Option<Self> {
        let found = fs::metadata(root.join("pyvenv.cfg")).ok()?;
        Some(Self(found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
    }
}
