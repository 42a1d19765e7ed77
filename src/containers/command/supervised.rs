//! A command that is to run always: it is started again when it has ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Command, Running};
use crate::seen::{Condition, LastFailure, Seen};
use crate::{Backend, Error};

/// Pauses before a process that ended is started again.
const RESTART_FIRST: Duration = Duration::from_millis(200);
const RESTART_LONGEST: Duration = Duration::from_secs(30);
/// A process that lived this long died of something new.
const LIVED: Duration = Duration::from_secs(60);

/// Where a supervised command stands.
#[derive(Debug, Clone)]
pub enum Standing {
    /// Its process is not healthy yet.
    Starting,
    /// It answers here.
    Up(Backend),
    /// Its process has ended and is started again after a pause.
    Down {
        /// How it ended, or why it does not start.
        how: String,
        /// The end of the pause.
        until: Instant,
    },
}

/// What is told of a command that is kept up.
#[derive(Debug, Clone)]
struct Life {
    standing: Standing,
    /// Its first process, while it is up.
    process: Option<u32>,
    /// How often it was started.
    starts: u64,
    /// How it ended last, or why it did not start.
    last: Option<LastFailure>,
}

/// A command that runs until it is stopped. Dropped, its processes are ended.
#[derive(Debug)]
pub struct Supervised {
    name: Arc<str>,
    life: watch::Receiver<Life>,
    max_in_flight: usize,
    stop: CancellationToken,
}

impl Supervised {
    /// Starts it in the background. Within a runtime.
    pub fn start(command: Command) -> Self {
        let life = Life { standing: Standing::Starting, process: None, starts: 0, last: None };
        let (tell, life) = watch::channel(life);
        let stop = CancellationToken::new();
        let name = Arc::clone(&command.backend.name);
        let max_in_flight = command.backend.max_in_flight;
        tokio::spawn(keep_up(command, tell, stop.clone()));
        Self { name, life, max_in_flight, stop }
    }

    /// Where it stands now.
    pub fn standing(&self) -> Standing {
        self.life.borrow().standing.clone()
    }

    /// How it stands now, for those who operate it. What its process did wrong outlives the process.
    pub fn seen(&self) -> Seen {
        let Life { standing, process, starts, last } = self.life.borrow().clone();
        let restarts = starts.saturating_sub(1);
        let condition = match standing {
            Standing::Up(backend) => {
                let seen = backend.seen();
                let last = seen.last.clone().or(last);
                return Seen { process, restarts, last, ..seen };
            }
            Standing::Starting => Condition::Starting,
            Standing::Down { .. } => Condition::Down,
        };
        let max_in_flight = self.max_in_flight;
        let (address, in_flight) = (None, 0);
        Seen { condition, address, process, restarts, in_flight, max_in_flight, last }
    }

    /// The way to it. One that starts is waited for, until then at the longest.
    ///
    /// # Errors
    /// `Starting` where it is not healthy by then, and `Down` while it is not there.
    pub async fn backend(&self, until: Instant) -> Result<Backend, Error> {
        let mut life = self.life.clone();
        let is_known = |life: &Life| !matches!(life.standing, Standing::Starting);
        let known = match timeout_at(until, life.wait_for(is_known)).await {
            Ok(Ok(known)) => known.standing.clone(),
            Ok(Err(_)) | Err(_) => Standing::Starting,
        };
        let container = Arc::clone(&self.name);
        match known {
            Standing::Up(backend) => Ok(backend),
            Standing::Starting => Err(Error::Starting { container }),
            Standing::Down { how, until } => {
                let after = until.saturating_duration_since(Instant::now());
                Err(Error::Down { container, how, after })
            }
        }
    }

    /// Ends its processes and returns when they are gone.
    pub async fn stop(&self) {
        self.stop.cancel();
        let mut life = self.life.clone();
        // What tells it ends when all is done.
        while life.changed().await.is_ok() {}
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Runs the command again and again until it is told to stop, or nobody could tell it any more.
async fn keep_up(command: Command, tell: watch::Sender<Life>, stop: CancellationToken) {
    let name = &command.backend.name;
    let mut pause = RESTART_FIRST;
    loop {
        tell.send_modify(|life| {
            (life.standing, life.process) = (Standing::Starting, None);
            life.starts += 1;
        });
        let began = Instant::now();
        let how = match command.start_unless(stop.cancelled()).await {
            Ok(running) => match stand(running, &tell, &stop).await {
                Some(how) => format!("its process {how}"),
                None => return,
            },
            Err(_) if stop.is_cancelled() => return,
            Err(error) => error.to_string(),
        };
        if began.elapsed() > LIVED {
            pause = RESTART_FIRST;
        }
        warn!(container = %name, why = how, again_in = ?pause, "container ended");
        tell.send_modify(|life| {
            life.last = Some(LastFailure::now(how.as_str()));
            life.standing = Standing::Down { how, until: Instant::now() + pause };
            life.process = None;
        });
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
        pause = (pause * 2).min(RESTART_LONGEST);
    }
}

/// Lets requests through until the process has ended, and says how; `None` where it was stopped.
async fn stand(
    mut running: Running,
    tell: &watch::Sender<Life>,
    stop: &CancellationToken,
) -> Option<String> {
    tell.send_modify(|life| {
        life.standing = Standing::Up(running.backend().clone());
        life.process = running.process_id();
    });
    let how = tokio::select! {
        () = stop.cancelled() => None,
        how = running.ended() => Some(how),
    };
    if how.is_none() {
        info!(container = %running.backend().config().name, "container is stopped");
        running.stop().await;
    }
    how
}
