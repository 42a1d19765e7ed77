//! A worker that was forked, not started: its end is awaited all the same.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process that was left to us when the one between it and its interpreter ended.
#[derive(Debug)]
pub(crate) struct Fork {
    process: Pid,
    /// Readable when it has ended.
    opened: AsyncFd<OwnedFd>,
    status: Option<ExitStatus>,
}

impl Fork {
    /// Opens a process, so that what is looked at next is what is awaited later. Within a runtime.
    ///
    /// # Errors
    /// Where there is no such process.
    pub(crate) fn open(process: u32) -> io::Result<Self> {
        let process = pid(process)?;
        let opened = pidfd_open(process, PidfdFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "what it asks for holds of an OwnedFd; its successor is unsafe"
        )]
        let opened = AsyncFd::with_interest(opened, Interest::READABLE)?;
        Ok(Self { process, opened, status: None })
    }

    pub(crate) fn process(&self) -> u32 {
        self.process.as_raw_nonzero().get().unsigned_abs()
    }

    pub(crate) fn pid(&self) -> Pid {
        self.process
    }

    /// Waits for its end; may be dropped and called again.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.status {
                return Ok(status);
            }
            match waitpid(Some(self.process), WaitOptions::NOHANG)? {
                Some((_, status)) => self.status = Some(ExitStatus::from_raw(status.as_raw())),
                None => self.opened.readable().await?.clear_ready(),
            }
        }
    }
}

impl AsFd for Fork {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.opened.get_ref().as_fd()
    }
}

/// A number as the kernel's.
pub(crate) fn pid(process: u32) -> io::Result<Pid> {
    let number = i32::try_from(process).ok().and_then(Pid::from_raw);
    number.ok_or_else(|| io::Error::other(format!("{process} is no process")))
}
