//! The connections to one container that no request uses now.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::{Request, Response, Uri};
use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, sleep_until};
use tower::ServiceExt;

use super::body::Outgoing;
use super::connect::Connector;
use super::connection::{Connection, Lost};

/// Keeps idle connections by the runtimes that they are at home on, and makes new ones.
///
/// 1. A request takes one of its own runtime's, the last one used; else one of another's, which moves;
///    else a new one. So a container whose requests come one at a time has one connection, whoever
///    sends them.
/// 2. None is kept for longer than `keep`, and no more than `most` are.
pub(super) struct Pool {
    connector: Connector,
    /// What a connection is made to.
    to: Uri,
    keep: Duration,
    most: usize,
    /// Where old ones are closed: runtimes of requests may end before us.
    runtime: Handle,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    shelves: Vec<Shelf>,
    count: usize,
    /// Whether somebody closes what grows old.
    is_swept: bool,
}

/// Those of one runtime, the last one used last.
struct Shelf {
    home: Id,
    connections: VecDeque<Resting>,
}

struct Resting {
    since: Instant,
    connection: Box<Connection>,
}

impl Pool {
    /// Within a runtime.
    pub(super) fn new(connector: Connector, to: Uri, (keep, most): (Duration, usize)) -> Arc<Self> {
        let (runtime, idle) = (Handle::current(), Mutex::default());
        Arc::new(Self { connector, to, keep, most, runtime, idle })
    }

    /// Sends a request and returns when its answer begins, with the connection that it comes on. It is
    /// sent again only where a connection had ended before anything was sent.
    ///
    /// # Errors
    /// Where no connection can be made, or it ends before the answer begins.
    pub(super) async fn ask(
        &self,
        mut request: Request<Outgoing>,
    ) -> Result<(Response<hyper::body::Incoming>, Box<Connection>), Lost> {
        loop {
            let (mut connection, is_new) = match self.rested().await {
                Some(connection) => (connection, false),
                None => (self.connected().await?, true),
            };
            match connection.ask(request).await {
                Ok(answer) => return Ok((answer, connection)),
                Err(mut error) => match error.take_message() {
                    Some(again) if !is_new => request = again,
                    _ => return Err(Lost::Ended(error.into_error())),
                },
            }
        }
    }

    async fn connected(&self) -> Result<Box<Connection>, Lost> {
        let io = self.connector.clone().oneshot(self.to.clone()).await.map_err(Lost::Unmade)?;
        Connection::begin(io).await.map_err(Lost::Ended)
    }

    /// One that was idle.
    async fn rested(&self) -> Option<Box<Connection>> {
        let here = Handle::current().id();
        loop {
            let connection = self.idle().take(here, self.keep)?;
            if connection.home() == here {
                return Some(connection);
            }
            if let Some(connection) = connection.moved().await {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection whose answer has been read to its end, where it can take another request.
    pub(super) fn put(self: &Arc<Self>, mut connection: Box<Connection>) {
        if !connection.is_free() {
            return;
        }
        let mut idle = self.idle();
        if idle.count >= self.most {
            return;
        }
        idle.put(connection);
        let is_swept = std::mem::replace(&mut idle.is_swept, true);
        drop(idle);
        if !is_swept {
            self.runtime.spawn(sweep(Arc::downgrade(self), Instant::now() + self.keep));
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        // A panic while it was held leaves whole entries behind.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn put(&mut self, connection: Box<Connection>) {
        let home = connection.home();
        let at = match self.shelves.iter().position(|it| it.home == home) {
            Some(at) => at,
            None => {
                self.shelves.push(Shelf { home, connections: VecDeque::new() });
                self.shelves.len() - 1
            }
        };
        self.shelves[at].connections.push_back(Resting { since: Instant::now(), connection });
        self.count += 1;
    }

    /// One of this runtime's, else the one of another's that is used least.
    fn take(&mut self, here: Id, keep: Duration) -> Option<Box<Connection>> {
        let old = Instant::now().checked_sub(keep);
        let is_fresh = |it: &Resting| old.is_none_or(|old| it.since > old);
        let own = self.shelves.iter_mut().find(|it| it.home == here);
        let last = own.and_then(|own| own.connections.pop_back_if(|it| is_fresh(it)));
        let taken = last.or_else(|| {
            let others = self.shelves.iter_mut().filter(|it| it.home != here);
            let fullest = others.max_by_key(|it| it.connections.len())?;
            let fresh = fullest.connections.iter().position(is_fresh)?;
            fullest.connections.remove(fresh)
        })?;
        self.count -= 1;
        Some(taken.connection)
    }

    /// Takes out those idle for so long; when the next one will have been.
    fn sweep(&mut self, keep: Duration) -> (Vec<Resting>, Option<Instant>) {
        let mut gone = Vec::new();
        let now = Instant::now();
        for shelf in &mut self.shelves {
            while let Some(old) = shelf.connections.pop_front_if(|it| it.since + keep <= now) {
                gone.push(old);
            }
        }
        self.count -= gone.len();
        self.shelves.retain(|it| !it.connections.is_empty());
        let first = self.shelves.iter().filter_map(|it| it.connections.front()).map(|it| it.since);
        let next = first.min().map(|since| since + keep);
        self.is_swept = next.is_some();
        (gone, next)
    }
}

/// Closes connections that have been idle for long, until there are none, or nobody needs the container.
async fn sweep(pool: Weak<Pool>, first: Instant) {
    let mut next = Some(first);
    while let Some(at) = next {
        sleep_until(at).await;
        let Some(pool) = pool.upgrade() else { return };
        // They are closed when the lock is free.
        let gone;
        (gone, next) = pool.idle().sweep(pool.keep);
        drop(gone);
    }
}
