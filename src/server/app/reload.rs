//! Reads the settings' file again when it has changed, and applies what can change while the server
//! runs.
//!
//! One task owns the settings in force. It looks at the file every second, when told by SIGHUP, and
//! when an operator asks. What cannot be read or applied changes nothing.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use roundhouse_tenancy::Current;
use roundhouse_types::{ErrorKind, Failure};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::live::Live;
use crate::cli::{ServeFlags, environment};
use crate::config::{Config, Fault};
use crate::error::Error;
use crate::{doctor, limits};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Operators that may wait for a reading.
const ASKING: usize = 16;

const RELOADS: &str = "roundhouse_server_reloads_total";
const REFUSED: &str = "roundhouse_server_settings_refused";

/// Registers the metrics' help.
pub(super) fn describe() {
    let help =
        "Readings of the settings' file after the start, by outcome: applied, unchanged, refused.";
    describe_counter!(RELOADS, Unit::Count, help);
    let help = "1 while the settings' file has faults and older settings are in force, else 0.";
    describe_gauge!(REFUSED, Unit::Count, help);
}

/// Where settings come from, beside the environment.
pub(crate) struct Origin {
    /// The file.
    pub(crate) file: PathBuf,
    /// What the server was started with.
    pub(crate) flags: ServeFlags,
}

/// How a reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// What the file says is in force, what needs a restart aside.
    Applied,
    /// The file says what is in force already.
    Unchanged,
    /// The file has faults: what was in force is.
    Refused,
}

/// A reading of the file.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Reading {
    pub(crate) file: PathBuf,
    pub(crate) outcome: Outcome,
    /// In seconds since 1970.
    pub(crate) at: u64,
    pub(crate) faults: Vec<String>,
    /// Sections that say something else than the server was started with, and are not in force
    /// before it is started again.
    pub(crate) restart: Vec<&'static str>,
    /// What is odd about the settings in force, though nothing refuses it.
    pub(crate) warnings: Vec<String>,
}

/// What a reading without faults found.
struct Found {
    outcome: Outcome,
    restart: Vec<&'static str>,
    warnings: Vec<String>,
}

/// Asks for readings, and knows the last. Clones are the same.
#[derive(Clone)]
pub(crate) struct Reload {
    asking: mpsc::Sender<oneshot::Sender<Reading>>,
    last: Arc<Current<Reading>>,
}

impl Reload {
    /// Watches a file whose settings `config` are in force.
    ///
    /// # Errors
    /// When signals cannot be listened for.
    pub(super) fn start(origin: Origin, config: Config, live: Live) -> Result<Self, Error> {
        let hangups = signal(SignalKind::hangup())
            .map_err(|source| Error::io("cannot listen for signals", source))?;
        let (asking, asked) = mpsc::channel(ASKING);
        let last = Arc::new(Current::new(Reading {
            file: origin.file.clone(),
            outcome: Outcome::Applied,
            at: now(),
            faults: Vec::new(),
            restart: Vec::new(),
            warnings: Vec::new(),
        }));
        let booted = config.clone();
        let (read, pending) = (None, None);
        let reloader =
            Reloader { origin, live, booted, current: config, read, pending, last: last.clone() };
        tokio::spawn(reloader.run(hangups, asked));
        Ok(Self { asking, last })
    }

    /// Reads the file now, and says how that ended when new requests see what it says.
    ///
    /// # Errors
    /// `Internal` where the watch has ended.
    pub(crate) async fn now(&self) -> Result<Reading, Failure> {
        let ended = || Failure::new(ErrorKind::Internal, "nobody watches the settings any more");
        let (reply, answer) = oneshot::channel();
        self.asking.send(reply).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }

    /// The last reading, else the start.
    pub(crate) fn last(&self) -> Arc<Reading> {
        self.last.get()
    }
}

/// What tells one state of a file from another; absent where there is no file.
type Look = Option<(i64, i64, u64, u64)>;

/// The owner of the settings in force.
struct Reloader {
    origin: Origin,
    live: Live,
    /// What the server was started with; of folders that it did not open, what was said last.
    booted: Config,
    /// What is in force, what needs a restart aside.
    current: Config,
    /// How the file looked when it was read.
    read: Option<Look>,
    /// How it looked last, where that is something else: it may still be written.
    pending: Option<Look>,
    last: Arc<Current<Reading>>,
}

impl Reloader {
    async fn run(
        mut self,
        mut hangups: Signal,
        mut asked: mpsc::Receiver<oneshot::Sender<Reading>>,
    ) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let look = self.look().await;
                    if self.read == Some(look) {
                        self.pending = None;
                    } else if self.pending == Some(look) {
                        self.read().await;
                    } else {
                        self.pending = Some(look);
                    }
                }
                Some(()) = hangups.recv() => drop(self.read().await),
                reply = asked.recv() => {
                    let Some(reply) = reply else { return };
                    let reading = self.read().await;
                    // Who asked may have left.
                    let _ = reply.send(reading);
                }
            }
        }
    }

    async fn look(&self) -> Look {
        let found = tokio::fs::metadata(&self.origin.file).await.ok()?;
        Some((found.mtime(), found.mtime_nsec(), found.ino(), found.len()))
    }

    /// Reads the file and applies it.
    async fn read(&mut self) -> Reading {
        let is_first = self.read.is_none();
        // Before the content: what is written meanwhile is seen by the next look.
        self.read = Some(self.look().await);
        self.pending = None;
        let (found, faults) = match self.applied().await {
            Ok(found) => (found, Vec::new()),
            Err(faults) => {
                let Reading { restart, warnings, .. } = (*self.last.get()).clone();
                (Found { outcome: Outcome::Refused, restart, warnings }, faults)
            }
        };
        let Found { outcome, restart, warnings } = found;
        let reading = Reading {
            file: self.origin.file.clone(),
            outcome,
            at: now(),
            faults: faults.iter().map(ToString::to_string).collect(),
            restart,
            warnings,
        };
        self.tell(&reading, is_first);
        reading
    }

    async fn applied(&mut self) -> Result<Found, Vec<Fault>> {
        let (file, flags) = (self.origin.file.clone(), self.origin.flags.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let config = Config::load(Some(&file), &environment, &flags)?;
            let warnings = warnings(&config);
            Ok::<_, Vec<Fault>>((config, warnings))
        });
        let broken = |error: tokio::task::JoinError| vec![Fault::new("config", error.to_string())];
        let (config, mut warnings) = reading.await.map_err(broken)??;
        config.check_floors(Some(self.live.budget)).map_err(|fault| vec![fault])?;
        // What is not open yet is opened by these, if at all.
        let (has_cache, has_queue) = self.live.has_open(&self.booted);
        if !has_cache {
            self.booted.cache = config.cache.clone();
        }
        if !has_queue {
            self.booted.async_dir.clone_from(&config.async_dir);
        }
        let new = config.clone().applied_to(&self.booted);
        self.booted.check_stays_shut(&new).map_err(|fault| vec![fault])?;
        new.check_disk_floors().map_err(|fault| vec![fault])?;
        let mut restart = self.booted.fixed_beside(&config);
        if self.live.lacks_handlers(&config) && !restart.contains(&"handlers") {
            restart.push("handlers");
        }
        warnings.extend(has_queue.then(|| left_behind(&self.booted, &config)).flatten());
        if config == self.current {
            return Ok(Found { outcome: Outcome::Unchanged, restart, warnings });
        }
        let old = self.current.clone().applied_to(&self.booted);
        let applied = self.live.apply(&old, &new).await;
        applied.map_err(|failure| vec![Fault::new("config", failure.to_string())])?;
        self.current = config;
        Ok(Found { outcome: Outcome::Applied, restart, warnings })
    }

    fn tell(&self, reading: &Reading, is_first: bool) {
        let file = self.origin.file.display();
        let outcome = match reading.outcome {
            // The reading that finds what the server was started with is none: it tells more of the start.
            Outcome::Unchanged if is_first => {
                let Reading { outcome, at, .. } = *self.last.get();
                return self.last.set(Reading { outcome, at, ..reading.clone() });
            }
            Outcome::Applied => {
                info!(%file, "the settings were read again and applied");
                "applied"
            }
            Outcome::Unchanged => "unchanged",
            Outcome::Refused => {
                let faults = reading.faults.join("; ");
                error!(%file, %faults, "the settings have faults: those before stay in force");
                "refused"
            }
        };
        if reading.outcome == Outcome::Applied && !reading.restart.is_empty() {
            warn!(sections = ?reading.restart, "what these sections say needs a restart");
        }
        if reading.outcome == Outcome::Applied && !reading.warnings.is_empty() {
            warn!(warnings = ?reading.warnings, "the settings can be applied, and are odd");
        }
        counter!(RELOADS, "outcome" => outcome).increment(1);
        gauge!(REFUSED).set(f64::from(u8::from(reading.outcome == Outcome::Refused)));
        self.last.set(reading.clone());
    }
}

/// What `check-config` tells of settings without a fault. Blocking.
fn warnings(config: &Config) -> Vec<String> {
    let mut missing = doctor::missing_folders(config);
    missing.extend(doctor::behind::missing(config, &limits::Memory::read()));
    let missing = missing.iter().map(|fault| format!("not on this machine: {fault}"));
    missing.chain(config.idle_grants()).collect()
}

/// Requests wait in a folder, and after a restart would be looked for in another.
fn left_behind(booted: &Config, new: &Config) -> Option<String> {
    let (now, then) = (booted.queue_dir(), new.queue_dir());
    (now != then).then(|| {
        format!(
            "asynchronous requests wait in {}, and after a restart are looked for in {}: move the folder \
             while the server is down, or set async.dir to where it is",
            now.display(),
            then.display()
        )
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
