//! One process that renders, as the server sees it.

use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use roundhouse_serving::{Error, TemplateSources};
use roundhouse_types::Bytes;
use tracing::warn;

use super::frame::{self, ANSWER_BYTES_MAX, Answer};
use super::{PROCESSOR_SECONDS, SUBCOMMAND};

/// What it is started by.
const CALLED: &str = "roundhouse";
/// How long one may take to start on a busy machine with a cold disk.
pub(super) const START_WITHIN: Duration = Duration::from_secs(20);
/// How long a rendering may take by the clock. Its limit of processor time is shorter; this is for
/// machines where it gets little of that, and for processes that hang.
const RENDER_WITHIN: Duration = Duration::from_secs(20);
/// How long one may take to end that was killed, or finds its line closed: where it is another user's by
/// now and we may not signal that, its limit of processor time ends it.
const END_WITHIN: Duration = Duration::from_secs(5);
/// Where libraries are that our binary may be linked against: CUDA's driver.
const LIBRARIES: &str = "LD_LIBRARY_PATH";

/// A process that waits for orders. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    stream: UnixStream,
    memory: Bytes,
    orders: u64,
}

/// A process that has ended in the middle of an order.
#[derive(Debug)]
pub(super) struct Ended {
    /// How, as the rest of a sentence.
    pub(super) how: String,
    pub(super) why: Why,
}

/// What ended a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Memory,
    Time,
    /// Somebody else, or the kernel where the machine's memory ran out.
    Killed,
    Other,
}

impl Why {
    /// As metrics call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Time => "time",
            Self::Killed => "killed",
            Self::Other => "other",
        }
    }
}

impl Process {
    /// Starts one and waits until it is sealed. Blocking. It ends with the thread that calls this.
    ///
    /// # Errors
    /// What the system or the process says.
    pub(super) fn start(exe: &Path, memory: Bytes) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = command(exe, memory);
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        let child = command.spawn()?;
        // The command keeps its copy of the other end: an end of file must be seen.
        drop(command);
        let mut process = Self { child, stream: ours, memory, orders: 0 };
        let until = Instant::now() + START_WITHIN;
        match process.answer(until) {
            Ok(Answer::Ready(missing)) => {
                if !missing.is_empty() {
                    warn!(missing, "chat templates are confined in part");
                }
                Ok(process)
            }
            Ok(Answer::Unsealed(why)) => Err(io::Error::other(why)),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(error) => {
                let how = process.ended(until, &error).how;
                Err(io::Error::other(format!("it {how}")))
            }
        }
    }

    /// Whether it is there still.
    pub(super) fn is_there(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Orders that it was given.
    pub(super) fn orders(&self) -> u64 {
        self.orders
    }

    /// Renders one template. Blocking, for a bounded time. `told`: what its order's frame is.
    ///
    /// # Errors
    /// How the process ended; then it is of no more use.
    pub(super) fn render(
        &mut self,
        sources: &TemplateSources,
        told: &[u8],
    ) -> Result<Result<String, Error>, Ended> {
        let until = Instant::now() + RENDER_WITHIN;
        self.orders += 1;
        let outcome = self.exchange(sources, told, until);
        outcome.map_err(|error| self.ended(until, &error))
    }

    fn exchange(
        &mut self,
        sources: &TemplateSources,
        told: &[u8],
        until: Instant,
    ) -> io::Result<Result<String, Error>> {
        frame::send(&mut Timed { stream: &self.stream, until }, told)?;
        let mut answer = self.answer(until)?;
        if answer == Answer::Unknown {
            let sources = frame::sources(sources.by_name());
            frame::send(&mut Timed { stream: &self.stream, until }, &sources)?;
            answer = self.answer(until)?;
        }
        answer.outcome().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn answer(&mut self, until: Instant) -> io::Result<Answer> {
        // One answer at a time, so nothing is left in the buffer.
        let mut from = BufReader::new(Timed { stream: &self.stream, until });
        let frame = frame::next(&mut from, ANSWER_BYTES_MAX)?;
        let frame = frame.ok_or(io::ErrorKind::UnexpectedEof)?;
        Answer::read(&frame).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Ends it, where it has not ended, and says how it did.
    fn ended(&mut self, until: Instant, error: &io::Error) -> Ended {
        let is_slow = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        let is_late = is_slow || Instant::now() >= until;
        let is_gone = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
        );
        let status = self.end(END_WITHIN);
        if is_late {
            let how = format!("took longer than {} s", RENDER_WITHIN.as_secs());
            return Ended { how, why: Why::Time };
        }
        match status {
            Ok(Some(status)) if is_gone => described(status, self.memory),
            Ok(_) => Ended { how: format!("is not understood: {error}"), why: Why::Other },
            Err(error) => Ended { how: format!("was lost: {error}"), why: Why::Other },
        }
    }
}

impl Process {
    /// Ends it, and says how it did; `None` where it has not for so long.
    fn end(&mut self, within: Duration) -> io::Result<Option<ExitStatus>> {
        // One that ends by itself keeps the status that it had before.
        let _ = self.child.kill();
        self.let_go(within)
    }

    /// Closes its line, which ends it between orders, and waits until it has ended.
    fn let_go(&mut self, within: Duration) -> io::Result<Option<ExitStatus>> {
        let _ = self.stream.shutdown(Shutdown::Both);
        let (until, mut pause) = (Instant::now() + within, Duration::from_micros(50));
        loop {
            let status = self.child.try_wait()?;
            if status.is_some() || Instant::now() >= until {
                return Ok(status);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended and been waited for.
        if !matches!(self.end(END_WITHIN), Ok(Some(_))) {
            warn!(process = self.child.id(), "a process that renders chat templates does not end");
        }
    }
}

/// How one is started: with nothing of our environment but where its libraries are.
fn command(exe: &Path, memory: Bytes) -> Command {
    let mut command = Command::new(exe);
    command
        .arg0(CALLED)
        .arg(SUBCOMMAND)
        .args([u64::from(std::process::id()), memory.0].map(|number| number.to_string()))
        .env_clear()
        .envs(std::env::var_os(LIBRARIES).map(|path| (LIBRARIES, path)))
        // A group of its own: what a terminal sends to ours is for us.
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// How it ended by itself.
fn described(status: ExitStatus, memory: Bytes) -> Ended {
    let (how, why) = match status.signal() {
        // Memory that is not given ends our allocator; a stack's end is told in the same way.
        Some(libc::SIGABRT | libc::SIGSEGV | libc::SIGBUS) => {
            (format!("ran out of its memory of {memory}, or of its stack"), Why::Memory)
        }
        Some(libc::SIGXCPU) => {
            (format!("took more than {PROCESSOR_SECONDS} s of a processor"), Why::Time)
        }
        Some(libc::SIGKILL) => ("was killed".to_owned(), Why::Killed),
        _ => (format!("ended with {status}"), Why::Other),
    };
    Ended { how, why }
}

/// A stream whose every call ends at an instant.
struct Timed<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            self.stream.set_read_timeout(self.left()?)?;
            match self.stream.read(bytes) {
                // By a signal that was for the server.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(program: &str, args: &[&str]) -> Process {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::from(OwnedFd::from(theirs)));
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        Process { child, stream, memory: Bytes::mib(1), orders: 0 }
    }

    #[test]
    fn one_that_cannot_be_signalled_ends_with_its_line_and_is_not_waited_for_for_ever() {
        let reads = process("cat", &[]).let_go(Duration::from_secs(60));
        assert_eq!(reads.unwrap().and_then(|status| status.code()), Some(0));
        let began = Instant::now();
        let mut stays = process("sleep", &["120"]);
        assert_eq!(stays.let_go(Duration::from_millis(50)).unwrap(), None);
        drop(stays);
        assert!(began.elapsed() < Duration::from_secs(60), "its end was waited for");
    }

    #[test]
    fn of_our_environment_it_has_where_libraries_are_and_nothing_else() {
        let command = command(Path::new("/proc/self/exe"), Bytes::mib(1));
        let ours = std::env::var_os(LIBRARIES);
        let given: Vec<_> = command.get_envs().collect();
        let same: Vec<_> = ours.iter().map(|it| (LIBRARIES.as_ref(), Some(&**it))).collect();
        assert_eq!(given, same, "cargo sets it for tests");
    }
}
