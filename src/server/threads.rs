//! The data port's threads.
//!
//! A connection stays on the thread that it is given to: its requests, and those to containers that
//! follow from them, wake no other one. What takes the processor for long is elsewhere, as it must be on
//! any thread that answers: engines and loads have threads of their own, bodies that are long to read
//! or write go to blocking ones.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long file work under way may take after everything else has ended.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// Threads for work that blocks, all together: what tokio gives one runtime. Some for each in any case.
const BLOCKING: usize = 512;
const BLOCKING_LEAST: usize = 16;

/// How often each thread looks up from nothing. A runtime is woken, by a system call, for each timer that is
/// due before all that it waits for, as those of each request would be; none is due before this one.
const LOOK_UP: Duration = Duration::from_secs(5);

/// As many runtimes of one thread each; connections go to the one that has the fewest. Dropped, they
/// end, with what they do.
pub(crate) struct Threads {
    all: Vec<Thread>,
    stop: CancellationToken,
    running: Mutex<Vec<JoinHandle<()>>>,
}

struct Thread {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
}

impl Threads {
    /// One for each processor that we may use.
    ///
    /// # Errors
    /// Where the system starts no more threads.
    pub(crate) fn start() -> io::Result<Self> {
        Self::so_many(thread::available_parallelism().map_or(1, usize::from))
    }

    fn so_many(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        // Dropped half-way, those that run end.
        let mut threads = Self { all: Vec::new(), stop: stop.clone(), running: Mutex::default() };
        for number in 0..count {
            let (told, started) = mpsc::sync_channel(1);
            let stop = stop.clone();
            let run = move || {
                // Made here: dropped within another runtime it would panic.
                let mut builder = Builder::new_current_thread();
                builder.enable_all().max_blocking_threads((BLOCKING / count).max(BLOCKING_LEAST));
                let runtime = match builder.build() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(told.send(Err(error))),
                };
                if told.send(Ok(runtime.handle().clone())).is_ok() {
                    runtime.block_on(until(&stop));
                }
                runtime.shutdown_timeout(LAST_WRITES);
            };
            let running = thread::Builder::new().name(format!("data-{number}")).spawn(run)?;
            threads.running.get_mut().unwrap_or_else(PoisonError::into_inner).push(running);
            let runtime = started.recv().map_err(io::Error::other)??;
            threads.all.push(Thread { runtime, connections: Arc::default() });
        }
        Ok(threads)
    }

    /// Serves a connection on the thread that has the fewest.
    pub(crate) fn serve(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let fewest = self.all.iter().min_by_key(|it| it.connections.load(Ordering::Relaxed));
        let thread = fewest.expect("there is at least one processor");
        let counted = Counted::one(&thread.connections);
        thread.runtime.spawn(async move {
            let _counted = counted;
            connection.await;
        });
    }

    /// Ends them and what they still do; returns when they have.
    pub(crate) async fn end(&self) {
        self.stop.cancel();
        let running =
            std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
        let joined = tokio::task::spawn_blocking(|| {
            running.into_iter().map(JoinHandle::join).filter(Result::is_err).count()
        });
        match timeout(LAST_WRITES * 2, joined).await {
            Ok(Ok(0)) => {}
            Ok(_) => warn!("a thread of the data port ended badly"),
            // What holds it up does not hold up the end.
            Err(_) => warn!("a thread of the data port does not end"),
        }
    }
}

async fn until(stop: &CancellationToken) {
    while timeout(LOOK_UP, stop.cancelled()).await.is_err() {}
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// One of a thread's connections.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn one(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn connections_are_spread_and_what_holds_one_thread_up_holds_no_other() {
        let threads = Threads::so_many(2).unwrap();
        let (end, ended) = mpsc::channel::<()>();
        // It blocks its thread, as none may, until it is told.
        threads.serve(async move {
            let _ = ended.recv();
        });
        let (told, answer) = oneshot::channel();
        threads.serve(async move { drop(told.send(thread::current().name().map(str::to_owned))) });
        assert_eq!(answer.await.unwrap().as_deref(), Some("data-1"));
        drop(end);
        threads.end().await;
    }

    #[tokio::test]
    async fn an_ended_connection_leaves_room_for_the_next() {
        let threads = Threads::so_many(2).unwrap();
        threads.serve(std::future::pending());
        for _ in 0..3 {
            let (told, answer) = oneshot::channel();
            threads
                .serve(async move { drop(told.send(thread::current().name().map(str::to_owned))) });
            assert_eq!(answer.await.unwrap().as_deref(), Some("data-1"));
            while threads.all[1].connections.load(Ordering::Relaxed) > 0 {
                tokio::task::yield_now().await;
            }
        }
        threads.end().await;
    }

    #[tokio::test]
    async fn their_end_cuts_what_is_left() {
        let threads = Threads::so_many(1).unwrap();
        let (held, cut) = oneshot::channel::<()>();
        threads.serve(async move {
            let _held = held;
            std::future::pending().await
        });
        threads.end().await;
        assert!(cut.await.is_err());
    }
}
