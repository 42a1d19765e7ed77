//! What the live page, `top` and readers of events are told: the state at one instant, then what
//! changes in it, the decisions by number, and a sample of latencies every few seconds.
//!
//! One task owns all of it: the table is looked at once for all readers, part by part, and only
//! while there are any; the less often the longer a look takes. A reader is given the whole state when it comes,
//! and from then on each change, in order. One that falls behind is cut off: it comes again with
//! the id of the last decision that it saw, and is told the state anew and the decisions since.
//!
//! Reading order: this file (the task), `frames` (what is sent), `shape` (the state as maps by
//! name), `view` (looks, and what has changed since), `patch` (changes), `stats` (samples), `taken` (who reads
//! on), `routes`.

mod frames;
pub(crate) mod patch;
pub(super) mod routes;
mod shape;
mod stats;
mod taken;
#[cfg(test)]
mod tests;
mod view;

use std::sync::{Arc, Weak};
use std::time::Duration;

use roundhouse_residency::Decision;
use roundhouse_types::{ArtefactId, ErrorKind, Failure, ModelId};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

pub(crate) use self::frames::Frame;
use self::frames::Log;
use self::stats::Stats;
use self::taken::Taken;
use self::view::{Begin, OutlineFn, Part, PartFn, Row, View};

/// How often the state is looked at while somebody reads. Also the pulse by which a reader knows
/// that the server lives.
const BEAT: Duration = Duration::from_secs(1);
/// How soon after a decision it is looked at, at the earliest.
const SOON: Duration = Duration::from_millis(200);
/// A pause is this many times as long as the look before it: looking takes 5 % of a core at most.
const RESTS: u32 = 20;
/// How often latencies are sampled.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Frames that a reader may be behind; all readers share them. More than the task handles in one go
/// (128 by tokio's budget), so that a burst of decisions alone cuts nobody off.
const BEHIND: usize = 256;
/// Readers that come at the same moment.
const COMING: usize = 64;
/// Decisions that one is told who comes for the first time.
const LATEST: usize = 100;

/// Renders the process's metrics.
type RenderFn = Box<dyn Fn() -> String + Send + Sync>;

/// What the task works with.
pub(crate) struct Sources {
    pub(crate) outline: OutlineFn,
    pub(crate) part: PartFn,
    pub(crate) render: RenderFn,
    pub(crate) decisions: broadcast::Receiver<Decision>,
}

/// What a reader wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wants {
    /// The state, what changes in it, samples and decisions.
    All,
    /// Decisions from now on, or since the one that it names.
    Decisions,
}

/// A reader that comes.
struct Coming {
    wants: Wants,
    /// The last decision that it saw, as it says.
    seen: Option<String>,
    reply: oneshot::Sender<Result<Reading, Failure>>,
}

/// What a reader is given: frames that are for it alone, then those for all.
struct Reading {
    first: Vec<Frame>,
    /// The number of the last decision before the rest.
    at: u64,
    rest: broadcast::Receiver<Frame>,
    taken: Arc<Taken>,
}

/// A handle on the task, which ends when the last handle is dropped.
#[derive(Clone)]
pub(crate) struct Live {
    coming: mpsc::Sender<Coming>,
}

impl Live {
    /// Starts the task. Call inside a runtime.
    pub(crate) fn start(sources: Sources) -> Self {
        let (coming, inbox) = mpsc::channel(COMING);
        let (frames, _) = broadcast::channel(BEHIND);
        let task = Task {
            view: View::new(sources.outline, sources.part),
            render: sources.render,
            frames,
            log: Log::new(),
            stats: Stats::new(),
            readers: Vec::new(),
            looked: None,
            pause: SOON,
        };
        tokio::spawn(task.run(inbox, sources.decisions));
        Self { coming }
    }

    /// Lets a reader in.
    ///
    /// # Errors
    /// When the state cannot be looked at, because the server ends.
    async fn read(&self, wants: Wants, seen: Option<String>) -> Result<Reading, Failure> {
        let (reply, answer) = oneshot::channel();
        let gone = || Failure::new(ErrorKind::NotReady, "the server is shutting down");
        self.coming.send(Coming { wants, seen, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// What a reader is told first.
#[derive(Serialize)]
struct Whole<'a> {
    start: String,
    beat_ms: u128,
    state: &'a Value,
    samples: Value,
}

/// Owns the state that readers were told last, the latest decisions and samples.
struct Task {
    /// What every reader of the state knows by now.
    view: View,
    render: RenderFn,
    frames: broadcast::Sender<Frame>,
    log: Log,
    stats: Stats,
    /// Those of the state.
    readers: Vec<Weak<Taken>>,
    looked: Option<Instant>,
    /// How long to wait after a look.
    pause: Duration,
}

impl Task {
    async fn run(
        mut self,
        mut coming: mpsc::Receiver<Coming>,
        mut decisions: broadcast::Receiver<Decision>,
    ) {
        let mut samples = tokio::time::interval(SAMPLE_EVERY);
        samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Whether a look is due: something was decided since the last one, or a second has passed.
        let mut is_stale = false;
        loop {
            let soon = self.looked.map_or_else(Instant::now, |at| at + self.pause);
            tokio::select! {
                decision = decisions.recv() => {
                    match decision {
                        Ok(decision) => {
                            let frame = self.log.add(&decision);
                            self.tell(frame);
                        }
                        Err(RecvError::Lagged(count)) => self.log.miss(count),
                        Err(RecvError::Closed) => return,
                    }
                    is_stale = true;
                }
                reader = coming.recv() => match reader {
                    Some(reader) => self.admit(reader).await,
                    None => return,
                },
                _ = samples.tick() => {
                    let sample = self.stats.sample(&(self.render)());
                    self.tell(Frame::of("sample", &sample));
                }
                // A beat that comes while looks rest is late, and not left out.
                _ = beats.tick(), if self.is_read() => is_stale = true,
                () = tokio::time::sleep_until(soon), if is_stale && self.is_read() => {
                    is_stale = false;
                    // A look that fails is a beat left out: the server ends, and its readers find
                    // that out by themselves.
                    let _ = self.refresh().await;
                }
            }
        }
    }

    /// Whether anybody takes what is told of the state.
    fn is_read(&self) -> bool {
        let goes_on = |it: &Weak<Taken>| it.upgrade().is_some_and(|it| it.goes_on());
        self.view.is_known() && self.readers.iter().any(goes_on)
    }

    fn tell(&self, frame: Frame) {
        // Nobody listens: then nobody is told.
        let _ = self.frames.send(frame);
    }

    /// Looks, and tells everybody what has changed: also those who do not take it just now, so that
    /// what they know has no hole.
    async fn refresh(&mut self) -> Result<(), Failure> {
        let (is_first, began) = (!self.view.is_known(), Instant::now());
        let change = self.view.look().await;
        self.looked = Some(Instant::now());
        self.pause = SOON.max(began.elapsed() * RESTS);
        if !is_first {
            self.tell(Frame::of("change", change.as_ref().map_err(Clone::clone)?));
        }
        change.map(drop)
    }

    async fn admit(&mut self, reader: Coming) {
        let first = match reader.wants {
            Wants::All => self.greeting(reader.seen.as_deref()).await,
            Wants::Decisions => Ok(self.log.since(reader.seen.as_deref(), 0)),
        };
        let taken = Arc::new(Taken::default());
        // What it is greeted with.
        taken.is_given();
        self.readers.retain(|it| it.strong_count() > 0);
        if reader.wants == Wants::All && first.is_ok() {
            self.readers.push(Arc::downgrade(&taken));
        }
        let (at, rest) = (self.log.at(), self.frames.subscribe());
        let reading = first.map(|first| Reading { first, at, rest, taken });
        // One that has left meanwhile needs no answer.
        let _ = reader.reply.send(reading);
    }

    /// The state as everybody knows it from now on, the samples so far, and decisions.
    async fn greeting(&mut self, seen: Option<&str>) -> Result<Vec<Frame>, Failure> {
        // However many come and go, looks take no more of the machine than they may.
        let rests = self.looked.is_some_and(|at| Instant::now() < at + self.pause);
        if !self.view.is_known() || !rests {
            // Those who read already are told what they do not know yet.
            self.refresh().await?;
        }
        let whole = Whole {
            start: self.log.start(),
            beat_ms: BEAT.as_millis(),
            state: self.view.state(),
            samples: self.stats.shown(SAMPLE_EVERY),
        };
        let mut frames = vec![Frame::of("state", &whole)];
        frames.extend(self.log.since(seen, LATEST));
        Ok(frames)
    }
}

/// The task of a running server.
pub(super) fn of(admin: &Arc<super::Admin>) -> Live {
    let (drawing, looking, metrics) = (admin.clone(), admin.clone(), admin.metrics.clone());
    Live::start(Sources {
        outline: Box::new(move || {
            let admin = drawing.clone();
            Box::pin(async move { super::standing_now(&admin).await })
        }),
        part: Box::new(move |from| {
            let admin = looking.clone();
            Box::pin(async move { part(&admin, from).await })
        }),
        render: Box::new(move || metrics.render()),
        decisions: admin.residency.events(),
    })
}

/// The next part of what devices and the host's memory hold.
async fn part(admin: &super::Admin, from: Begin) -> Result<Part, Failure> {
    match from {
        Begin::Residents(after) => {
            let found = admin.residency.residents(after).await?;
            let rows = found.rows.into_iter().map(|(device, resident)| {
                let model = ModelId {
                    endpoint: resident.endpoint.clone(),
                    target: resident.target.clone(),
                };
                let id = ArtefactId { model, version: resident.version.clone() };
                Row::Resident(device, Box::new(resident), admin.loader.facts_of(&id, device))
            });
            let rest = match found.rest {
                Some(after) => Begin::Residents(Some(after)),
                None => Begin::Copies(None),
            };
            Ok(Part { rows: rows.collect(), rest: Some(rest) })
        }
        Begin::Copies(after) => {
            let found = admin.residency.copies(after).await?;
            let rows = found.rows.into_iter().map(|copy| Row::Copy(Box::new(copy)));
            Ok(Part { rows: rows.collect(), rest: found.rest.map(|it| Begin::Copies(Some(it))) })
        }
    }
}
