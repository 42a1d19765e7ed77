//! Ports of this machine that our processes have, so that no two of them are given the same.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// How often another free port is looked for. The kernel rarely names one twice.
const TRIES: usize = 100;

static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
static FREED: Notify = Notify::const_new();

/// A port that is one process's, until this is dropped.
#[derive(Debug)]
pub(super) struct Port(u16);

impl Port {
    /// One that nothing listens at now, and that none of ours was given. A stranger may take it before
    /// ours does; then that does not start, and the next start has another one.
    pub(super) fn free() -> io::Result<Self> {
        for _ in 0..TRIES {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            if taken().insert(port) {
                return Ok(Self(port));
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// This one, once no other of our processes has it.
    ///
    /// # Errors
    /// Where somebody else listens there: that would be taken for our process.
    pub(super) async fn fixed(number: u16) -> io::Result<Self> {
        loop {
            let mut freed = std::pin::pin!(FREED.notified());
            // Told from here on, also of what is freed before it is waited for.
            freed.as_mut().enable();
            if taken().insert(number) {
                break;
            }
            freed.await;
        }
        let port = Self(number);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, number)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
            // What we may not do the process may.
            Ok(_) | Err(_) => Ok(port),
        }
    }

    pub(super) fn number(&self) -> u16 {
        self.0
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        taken().remove(&self.0);
        FREED.notify_waiters();
    }
}

fn taken() -> MutexGuard<'static, BTreeSet<u16>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_is_that_of_one_process_at_a_time() {
        let port = Port::free().unwrap();
        let number = port.number();
        let mut next = Box::pin(Port::fixed(number));
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(port);
        assert_eq!(next.await.unwrap().number(), number);
        assert!(!taken().contains(&number));
    }

    #[tokio::test]
    async fn a_port_that_somebody_else_listens_at_is_not_ours() {
        let theirs = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let number = theirs.local_addr().unwrap().port();
        let error = Port::fixed(number).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(theirs);
        assert_eq!(Port::fixed(number).await.unwrap().number(), number);
    }
}
