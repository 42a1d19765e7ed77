//! Sees to it that a container's processes end: a small process of our own between them and us.
//!
//! It holds a pipe from us. When that closes, because we say so or are no more, it ends the
//! container's process group: SIGTERM, a grace time, SIGKILL. It ends as the container's first process
//! did, and leaves nobody of the group behind, nor any of its descendants that left the group. Should the keeper itself be killed, the kernel kills
//! the first process with it.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process, kill_process_group,
    set_child_subreaper, set_parent_process_death_signal, test_kill_process_group, wait, waitpgid,
};

use crate::processes::children_of;

/// The argument by which our executable knows that it is to call [`keep`].
pub const SUBCOMMAND: &str = "keep-container";
/// The second argument of the process that becomes the container's first.
const BECOME: &str = "become";
/// What is said when the program could not be started.
const NOT_STARTED: u8 = 126;
/// For processes that hang in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The command of a keeper; the program's arguments, its environment and stdio are the caller's to add.
pub(super) fn command(exe: &Path, grace: Duration, program: &Path) -> Command {
    let mut command = Command::new(exe);
    // A group of its own: what a terminal sends to ours is for us, and we tell the keeper.
    command.arg(SUBCOMMAND).arg(grace.as_millis().to_string()).arg(program).process_group(0);
    command
}

/// Keeps a container's processes, as the arguments behind [`SUBCOMMAND`] say. To be called first thing
/// in `main`, before any other thread runs.
pub fn keep() -> ExitCode {
    let mut args = std::env::args_os().skip(2);
    let (Some(how), Some(program)) = (args.next(), args.next()) else {
        return fault("it is not called by hand");
    };
    let args: Vec<OsString> = args.collect();
    if how == BECOME {
        let Err(error) = become_program(&program, args);
        return fault(error);
    }
    let grace = how.to_str().and_then(|text| text.parse().ok()).map(Duration::from_millis);
    let Some(grace) = grace else { return fault("it is not called by hand") };
    match hold(&program, &args, grace) {
        Ok(status) => {
            let code = status.code().or(status.signal().map(|signal| 128 + signal));
            ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
        }
        Err(error) => fault(format_args!("{}: {error}", program.display())),
    }
}

fn fault(why: impl std::fmt::Display) -> ExitCode {
    // It is the log's where anybody reads it.
    let _ = writeln!(io::stderr(), "error: {SUBCOMMAND}: {why}");
    ExitCode::from(NOT_STARTED)
}

/// Becomes the container's first process: `program` is its keeper's id, and its program the first of
/// the arguments.
fn become_program(keeper: &OsStr, mut args: Vec<OsString>) -> io::Result<Infallible> {
    if args.is_empty() {
        return Err(io::Error::other("no program is named"));
    }
    let program = args.remove(0);
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before; then nobody would ever send the signal.
    let parent = getppid().map(|it| it.as_raw_pid().to_string());
    if parent.as_deref().map(OsStr::new) != Some(keeper) {
        return Err(io::Error::other("its keeper has gone"));
    }
    let error = Command::new(&program).args(args).exec();
    Err(io::Error::new(error.kind(), format!("{} cannot be started: {error}", program.display())))
}

/// Starts the program, waits for its end, and ends what it leaves.
fn hold(program: &OsStr, args: &[OsString], grace: Duration) -> io::Result<ExitStatus> {
    // What outlives its parent in the group comes to us, to be waited for.
    set_child_subreaper(Some(getpid()))?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg(SUBCOMMAND)
        .arg(BECOME)
        .arg(std::process::id().to_string())
        .arg(program)
        .args(args)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()?;
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let group = group.ok_or_else(|| io::Error::other("it has no id"))?;
    let let_go = Arc::new(OnceLock::new());
    let told = Arc::clone(&let_go);
    thread::Builder::new().name("hold".into()).spawn(move || {
        until_let_go();
        let _ = told.set(Instant::now());
        // Nobody may be left to be told.
        let _ = kill_process_group(group, Signal::TERM);
        thread::sleep(grace);
        let _ = kill_process_group(group, Signal::KILL);
    })?;
    let status = child.wait()?;
    let began = Instant::now();
    while began.elapsed() < grace + KILL_PATIENCE {
        while let Ok(Some(_)) = waitpgid(group, WaitOptions::NOHANG) {}
        // Others of the group have the grace time too, where the first was told to end.
        let has_grace = let_go.get().is_some_and(|told: &Instant| told.elapsed() < grace);
        let is_there = match has_grace {
            true => test_kill_process_group(group).is_ok(),
            false => kill_process_group(group, Signal::KILL).is_ok(),
        };
        if !is_there {
            break;
        }
        thread::sleep(LOOK_EVERY);
    }
    end_strays();
    Ok(status)
}

/// Ends those who left the group. They are our children by now, or become so when their parents end.
fn end_strays() {
    let began = Instant::now();
    while began.elapsed() < KILL_PATIENCE {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => continue,
            // There are none.
            Err(_) => return,
            Ok(None) => {}
        }
        for child in children_of(std::process::id()) {
            if let Some(child) = i32::try_from(child).ok().and_then(Pid::from_raw) {
                let _ = kill_process(child, Signal::KILL);
            }
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Returns when the other end of standard input is closed.
fn until_let_go() {
    let mut bytes = [0; 64];
    loop {
        match io::stdin().read(&mut bytes) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
            _ => {}
        }
    }
}
