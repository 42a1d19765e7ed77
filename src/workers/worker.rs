//! The task that gives one worker process its calls and takes its answers.
//!
//! 1. A worker runs calls in the order they were given; the first one unanswered is the one it runs.
//! 2. Every call is answered once: by its worker, by its worker's end, or as not begun.
//! 3. A worker is given nothing after its end was seen.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use roundhouse_types::{Failure, Spent};
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tracing::warn;

use crate::frame::{self, Frame, Head, Invoke, Trace};
use crate::group::Shared;
use crate::metrics;
use crate::pace::Pace;
use crate::poison::Fingerprinted;
use crate::process::Process;
use crate::{Body, Call, CallError, Chunks, Error, Reply};

/// Read at a time.
const READ: usize = 64 * 1024;
/// Calls are not written ahead of a worker that does not read.
const WRITE_AHEAD: usize = 256 * 1024;
/// Pieces of a streamed answer that wait for its client; then the handler waits.
const CHUNKS_AHEAD: usize = 8;
/// A handler that raises at each call tells where once in a while.
const TRACE_EVERY: Duration = Duration::from_secs(1);
/// How often time limits are looked at.
const TICK: Duration = Duration::from_millis(250);

/// A call on its way to a worker.
pub(crate) struct Job {
    pub(crate) call: Call,
    pub(crate) reply: oneshot::Sender<Result<Reply, CallError>>,
}

/// A call in a worker's hands.
struct InFlight {
    id: u64,
    request: Fingerprinted,
    spent: Spent,
    answer: Answer,
}

enum Answer {
    Awaited(oneshot::Sender<Result<Reply, CallError>>),
    Streaming(mpsc::Sender<Result<Bytes, Failure>>),
    /// Nobody wants it any more; what comes is dropped.
    Abandoned,
}

/// Why a worker is over.
pub(crate) enum Over {
    /// The group stops.
    Stopped,
    /// The process is gone, or broke the protocol.
    Gone(Option<&'static str>),
    /// A call ran for too long.
    TimeLimit,
}

/// One worker's state; see the module's text.
pub(crate) struct Worker<'a> {
    shared: &'a Arc<Shared>,
    process: &'a mut Process,
    out: BytesMut,
    flight: VecDeque<InFlight>,
    pace: Pace,
    next: u64,
    /// Since when the first call runs, or yielded its last piece.
    since: Instant,
    /// The process ended before it had read all that was sent to it.
    unread: bool,
    /// When a traceback was last logged.
    traced: Option<Instant>,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(shared: &'a Arc<Shared>, process: &'a mut Process) -> Self {
        Self {
            shared,
            process,
            out: BytesMut::new(),
            flight: VecDeque::new(),
            pace: Pace::default(),
            next: 0,
            since: Instant::now(),
            unread: false,
            traced: None,
        }
    }

    /// Works until the worker or the group is over. What was not answered then is in
    /// [`Worker::into_flight`].
    pub(crate) async fn run(&mut self) -> Over {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shared = Arc::clone(self.shared);
        loop {
            let wants = if self.out.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            let room = self.flight.len() < self.pace.depth() && self.out.len() < WRITE_AHEAD;
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return Over::Stopped,
                ready = self.process.socket.ready(wants) => {
                    let Ok(ready) = ready else { return Over::Gone(None) };
                    if ready.is_writable() && self.write().is_err() {
                        return Over::Gone(None);
                    }
                    if ready.is_readable() || ready.is_read_closed() {
                        match self.read().await {
                            Ok(ControlFlow::Continue(_)) => {}
                            Ok(ControlFlow::Break(())) => return Over::Gone(None),
                            Err(why) => return Over::Gone(Some(why)),
                        }
                    }
                }
                _ = self.process.child.wait() => return self.last_words().await,
                job = shared.queue.recv(), if room => {
                    let Ok(job) = job else { return Over::Stopped };
                    self.take(job);
                    while self.flight.len() < self.pace.depth() && self.out.len() < WRITE_AHEAD {
                        let Ok(job) = shared.queue.try_recv() else { break };
                        self.take(job);
                    }
                    if self.write().is_err() {
                        return Over::Gone(None);
                    }
                }
                _ = tick.tick(), if !self.flight.is_empty() => {
                    if self.since.elapsed() > shared.time_limit {
                        return Over::TimeLimit;
                    }
                    self.look_for_leavers();
                }
            }
        }
    }

    /// Writes the call, unless nobody waits for it any more.
    fn take(&mut self, job: Job) {
        let Job { call, reply } = job;
        if reply.is_closed() {
            return;
        }
        self.shared.watched.busy.store(true, Ordering::Relaxed);
        let id = self.next;
        self.next += 1;
        if self.flight.is_empty() {
            self.since = Instant::now();
        }
        let meta = serde_json::to_string(&call.meta).unwrap_or_default();
        let invoke = Invoke {
            id,
            stream: call.stream,
            content_type: call.content_type.as_deref().unwrap_or_default(),
            accept: call.accept.as_deref().unwrap_or_default(),
            meta: &meta,
            body: &call.body,
        };
        invoke.write(&mut self.out);
        let spent = call.spent.clone();
        let request = self.shared.fingerprinted(call);
        self.flight.push_back(InFlight { id, request, spent, answer: Answer::Awaited(reply) });
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            match self.process.socket.try_write(&self.out) {
                Ok(count) => drop(self.out.split_to(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    self.unread = true;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// What the process has sent before it ended. What it started may hold its socket open, so
    /// that there is no end to be read.
    async fn last_words(&mut self) -> Over {
        loop {
            match self.read().await {
                Ok(ControlFlow::Continue(1..)) => {}
                Ok(_) => return Over::Gone(None),
                Err(why) => return Over::Gone(Some(why)),
            }
        }
    }

    /// Reads what there is, hands on whole frames, and says how many bytes came; `Break` at the
    /// end.
    async fn read(&mut self) -> Result<ControlFlow<(), usize>, &'static str> {
        self.process.read.reserve(READ);
        let mut came = 0;
        match self.process.socket.try_read_buf(&mut self.process.read) {
            Ok(0) => return Ok(ControlFlow::Break(())),
            Ok(count) => came = count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                self.unread = error.kind() == io::ErrorKind::ConnectionReset;
                return Ok(ControlFlow::Break(()));
            }
        }
        let body_max = self.shared.max_response.as_usize();
        while let Some(frame) =
            frame::next(&mut self.process.read, body_max).map_err(|garbled| garbled.0)?
        {
            self.on(frame).await?;
        }
        Ok(ControlFlow::Continue(came))
    }

    async fn on(&mut self, frame: Frame) -> Result<(), &'static str> {
        let id = match &frame {
            Frame::Answer { id, .. }
            | Frame::Begin { id, .. }
            | Frame::Chunk { id, .. }
            | Frame::End { id }
            | Frame::Error { id, .. } => *id,
            Frame::Ready(_) | Frame::Failed(_) => return Err("a start that came twice"),
        };
        let Some(first) = self.flight.front_mut().filter(|first| first.id == id) else {
            return Err("an answer to a call that it does not run");
        };
        // Before the answer goes on: who has it is accounted for.
        first.spent.computed(self.since.elapsed());
        match frame {
            Frame::Answer { head, body, .. } => {
                if let Answer::Awaited(reply) = first.take() {
                    let _ = reply.send(Ok(reply_of(head, Body::Whole(body))));
                }
                self.done(true);
            }
            Frame::Begin { head, .. } => {
                let Answer::Awaited(reply) = first.take() else {
                    return Err("an answer that begins twice");
                };
                let (pieces, waiting) = mpsc::channel(CHUNKS_AHEAD);
                let body = Body::Chunks(Chunks(waiting));
                if reply.send(Ok(reply_of(head, body))).is_ok() {
                    first.answer = Answer::Streaming(pieces);
                } else {
                    frame::write_cancel(id, &mut self.out);
                }
                self.since = Instant::now();
            }
            Frame::Chunk { body, .. } => {
                let Answer::Streaming(pieces) = &first.answer else {
                    return first.answer.unbegun("a piece of an answer that has not begun");
                };
                let limit = self.shared.time_limit;
                let late = tokio::select! {
                    sent = pieces.send(Ok(body)) => sent.is_err().then_some(None),
                    // A client that reads nothing holds up the worker no longer than a call may.
                    () = tokio::time::sleep(limit) => Some(Some(Error::ClientStalled(limit))),
                    () = self.shared.stop.cancelled() => Some(Some(Error::Gone)),
                };
                if let Some(why) = late {
                    if let (Answer::Streaming(pieces), Some(why)) = (first.take(), why) {
                        fail(pieces, why.into());
                    }
                    frame::write_cancel(id, &mut self.out);
                }
                self.shared.watched.busy.store(true, Ordering::Relaxed);
                self.since = Instant::now();
            }
            Frame::End { .. } => {
                first.answer.unbegun("the end of an answer that has not begun")?;
                self.done(true);
            }
            Frame::Error { status, trace, .. } => {
                if let Some(traceback) = &trace.traceback
                    && self.traced.is_none_or(|traced| traced.elapsed() > TRACE_EVERY)
                {
                    warn!(model = %self.shared.name, traceback, "handler raised");
                    self.traced = Some(Instant::now());
                }
                let failure = raised(status, trace);
                match first.take() {
                    Answer::Awaited(reply) => drop(reply.send(Err(CallError::Failed(failure)))),
                    Answer::Streaming(pieces) => fail(pieces, failure),
                    Answer::Abandoned => {}
                }
                self.done(false);
            }
            Frame::Ready(_) | Frame::Failed(_) => {}
        }
        Ok(())
    }

    fn done(&mut self, ok: bool) {
        self.flight.pop_front();
        // What the call took is there to be seen only now.
        self.shared.watched.busy.store(true, Ordering::Relaxed);
        let took = self.since.elapsed();
        self.pace.took(took);
        metrics::answered(ok, took);
        self.since = Instant::now();
    }

    /// Tells the handler to stop where a stream's client has left between two pieces.
    fn look_for_leavers(&mut self) {
        self.shared.watched.busy.store(true, Ordering::Relaxed);
        let Some(first) = self.flight.front_mut() else { return };
        if matches!(&first.answer, Answer::Streaming(pieces) if pieces.is_closed()) {
            first.answer = Answer::Abandoned;
            frame::write_cancel(first.id, &mut self.out);
        }
    }

    /// What it had not answered.
    pub(crate) fn into_flight(self) -> Flight {
        let is_whole = !self.unread || self.flight.len() > 1;
        let began = is_whole
            || !matches!(self.flight.front(), Some(InFlight { answer: Answer::Awaited(_), .. }));
        Flight { calls: self.flight, began }
    }
}

/// Calls that were in the hands of a worker that is over.
pub(crate) struct Flight {
    calls: VecDeque<InFlight>,
    /// The first was running: the only one is not where the process ended before it had read it.
    began: bool,
}

impl Flight {
    /// Answers them: the one that ran has failed and counts against its request, unless the
    /// worker was stopped by us; the others were not begun.
    pub(crate) fn bury(self, shared: &Shared, failure: &Failure, guilty: bool) {
        let mut calls = self.calls.into_iter();
        if guilty
            && self.began
            && let Some(mut first) = calls.next()
        {
            shared.poison.killed(&first.request, Instant::now());
            match first.take() {
                Answer::Awaited(reply) => {
                    drop(reply.send(Err(CallError::Failed(failure.clone()))));
                }
                Answer::Streaming(pieces) => fail(pieces, failure.clone()),
                Answer::Abandoned => {}
            }
        }
        for mut call in calls {
            match call.take() {
                Answer::Awaited(reply) => {
                    drop(reply.send(Err(CallError::NotBegun(failure.clone()))));
                }
                Answer::Streaming(pieces) => fail(pieces, failure.clone()),
                Answer::Abandoned => {}
            }
        }
    }
}

impl Answer {
    /// An error where nothing of the answer may have come yet.
    fn unbegun(&self, what: &'static str) -> Result<(), &'static str> {
        if matches!(self, Self::Awaited(_)) { Err(what) } else { Ok(()) }
    }
}

impl InFlight {
    fn take(&mut self) -> Answer {
        std::mem::replace(&mut self.answer, Answer::Abandoned)
    }
}

/// Ends a stream with a failure, when its client has read what came before: without it what has
/// come would look whole. The client's own deadline bounds the wait.
fn fail(pieces: mpsc::Sender<Result<Bytes, Failure>>, failure: Failure) {
    tokio::spawn(async move { drop(pieces.send(Err(failure)).await) });
}

fn reply_of(head: Head, body: Body) -> Reply {
    let content_type = Some(head.content_type).filter(|text| !text.is_empty());
    Reply { status: head.status, content_type, headers: head.headers, body }
}

fn raised(status: u16, trace: Trace) -> Failure {
    let status = if (400..600).contains(&status) { status } else { 500 };
    Error::Raised { message: trace.message, status }.into()
}
