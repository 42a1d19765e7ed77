//! The clock of a run and its two drives.

mod perform;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use roundhouse_types::{ArtefactId, Bytes, DeviceId, Version};

use super::outcome::{Outcome, Overtakings, Waits, ratio};
use super::pipe::Pipe;
use super::trace::Trace;
use super::world::{Disk, World};
use crate::config::Config;
use crate::table::{Event, Key, Table, WaiterId};

/// The one device of a run.
const DEVICE: DeviceId = DeviceId::Cpu;

/// When requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Drive {
    /// At the times of the trace, whatever is answered.
    Open {
        /// What those times are divided by.
        compress: f64,
    },
    /// The next one when fewer than this many are unanswered: asked for, but not at the end of
    /// their service. The times of the trace do not count.
    Closed {
        /// How many.
        pending: usize,
    },
}

/// What a trace is replayed under.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// What the table is told.
    pub config: Config,
    /// What residents may take.
    pub budget: Bytes,
    /// How long things take.
    pub world: World,
    /// When requests come.
    pub drive: Drive,
    /// How long a request waits for its lease before it is refused.
    pub hold: Duration,
}

/// Replays a trace against the table.
///
/// Deterministic: it depends on the trace and the setup alone.
pub fn run(trace: &Trace, setup: &Setup) -> Outcome {
    let mut run = Run::new(trace, setup);
    while run.step() {}
    run.outcome()
}

/// Something that ends at a known time. Among those of one instant the first to have been begun
/// comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Served { model: u32 },
    Fetched { model: u32, fetch: u64 },
    Loaded { model: u32 },
    Unloaded { model: u32 },
}

/// A run under way. Owns the table and everything it is played to.
struct Run<'a> {
    trace: &'a Trace,
    setup: &'a Setup,
    table: Table,
    /// The instant of the table at which the clock of the run began.
    epoch: Instant,
    now: Duration,
    keys: Vec<Key>,
    happenings: BinaryHeap<Reverse<(Duration, u64, Happening)>>,
    /// Counts happenings and fetches.
    sequence: u64,
    store: Pipe,
    device: Pipe,
    disk: Disk,
    /// The fetch under way, by model.
    fetching: BTreeMap<u32, u64>,
    /// Models whose files are whole and not loaded yet.
    whole: BTreeSet<u32>,
    /// What the world answers at once.
    inbox: VecDeque<Event>,
    /// The next request to come.
    next: usize,
    arrived: Vec<Duration>,
    unanswered: usize,
    waits: Vec<Duration>,
    overtakings: Overtakings,
    last_answer: Duration,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    refused: u64,
    hits: u64,
    loads: u64,
    loaded_bytes: Bytes,
    fetched_bytes: Bytes,
    evictions: u64,
}

impl<'a> Run<'a> {
    fn new(trace: &'a Trace, setup: &'a Setup) -> Self {
        // The clock is read for a beginning only: nothing but differences counts.
        let epoch = Instant::now();
        let version = Version::from_digest("0000000000000000");
        let key = |model: &super::trace::TracedModel| {
            let artefact = ArtefactId { model: model.id.clone(), version: version.clone() };
            Key { artefact, device: DEVICE }
        };
        let mut disk = Disk::new(setup.world.disk);
        if setup.world.on_disk {
            for (number, model) in (0..).zip(trace.models()) {
                disk.used(number, model.bytes, |_| false);
            }
        }
        let requests = trace.requests().len();
        Self {
            trace,
            setup,
            table: Table::new(setup.config.clone(), vec![(DEVICE, setup.budget)], epoch),
            epoch,
            now: Duration::ZERO,
            keys: trace.models().iter().map(key).collect(),
            happenings: BinaryHeap::new(),
            sequence: 0,
            store: Pipe::new(float(setup.world.store_bandwidth)),
            device: Pipe::new(float(setup.world.load_bandwidth)),
            disk,
            fetching: BTreeMap::new(),
            whole: BTreeSet::new(),
            inbox: VecDeque::new(),
            next: 0,
            arrived: Vec::with_capacity(requests),
            unanswered: 0,
            waits: Vec::with_capacity(requests),
            overtakings: Overtakings::new(requests),
            last_answer: Duration::ZERO,
            counts: Counts::default(),
        }
    }

    /// Lets the next thing happen: what was begun ends before new requests come. False when all
    /// requests have been answered.
    fn step(&mut self) -> bool {
        if self.next == self.trace.requests().len() && self.unanswered == 0 {
            return false;
        }
        let happening = self.happenings.peek().map(|Reverse((at, _, _))| *at);
        let world = earliest([happening, self.store.next_end(), self.device.next_end()]);
        let arrival = self.next_arrival();
        let wake = self.table.next_wake().map(|at| at.saturating_duration_since(self.epoch));
        let Some(at) = earliest([world, arrival, wake]) else {
            debug_assert!(false, "{} requests wait and nothing will happen", self.unanswered);
            return false;
        };
        self.now = self.now.max(at);
        if world == Some(at) {
            self.world();
        } else if arrival == Some(at) {
            self.arrive();
        } else {
            self.tell(Event::TimePassed, None);
        }
        true
    }

    fn next_arrival(&self) -> Option<Duration> {
        let request = self.trace.requests().get(self.next)?;
        match self.setup.drive {
            Drive::Closed { pending } => (self.unanswered < pending.max(1)).then_some(self.now),
            Drive::Open { compress } => {
                let first = self.trace.requests().first().map(|first| first.at);
                let since = request.at.saturating_sub(first.unwrap_or_default());
                Some(since.div_f64(compress))
            }
        }
    }

    fn arrive(&mut self) {
        let request = self.next;
        let model = self.trace.requests()[request].model;
        self.next += 1;
        self.unanswered += 1;
        self.arrived.push(self.now);
        let event = Event::AcquireRequested {
            waiter: WaiterId(request as u64),
            model: self.trace.models()[model as usize].id.clone(),
            hold_until: self.epoch + self.now + self.setup.hold,
            only_loaded: false,
            payer: None,
        };
        self.tell(event, Some(request));
    }

    /// What flows have brought by now, and the first thing that ends now.
    fn world(&mut self) {
        for model in self.store.ended(self.now) {
            if let Some(fetch) = self.fetching.get(&model).copied() {
                let latency = self.setup.world.store_latency;
                self.after(latency, Happening::Fetched { model, fetch });
            }
        }
        for model in self.device.ended(self.now) {
            self.after(self.setup.world.load_latency, Happening::Loaded { model });
        }
        match self.happenings.peek() {
            Some(Reverse((at, _, _))) if *at <= self.now => {}
            _ => return,
        }
        if let Some(Reverse((_, _, happening))) = self.happenings.pop() {
            self.happened(happening);
        }
    }

    fn after(&mut self, delay: Duration, happening: Happening) {
        self.sequence += 1;
        self.happenings.push(Reverse((self.now + delay, self.sequence, happening)));
    }

    /// Tells the table, and does what it wants until nothing is answered at once any more.
    /// `asking` is the request that the event is about.
    fn tell(&mut self, event: Event, asking: Option<usize>) {
        let now = self.epoch + self.now;
        for effect in self.table.on(event, now) {
            self.perform(effect, asking);
        }
        while let Some(event) = self.inbox.pop_front() {
            for effect in self.table.on(event, now) {
                self.perform(effect, None);
            }
        }
    }

    fn outcome(self) -> Outcome {
        let requests = self.arrived.len() as u64;
        let answered = self.waits.len() as u64;
        let Counts { refused, hits, loads, loaded_bytes, fetched_bytes, evictions } = self.counts;
        let seconds = self.last_answer.as_secs_f64();
        let share = |count: u64| ratio(float(Bytes(count)), requests);
        Outcome {
            requests,
            answered,
            refused,
            hits,
            hit_ratio: share(hits),
            loads,
            miss_ratio: share(loads),
            loaded_bytes,
            fetched_bytes,
            evictions,
            waits: Waits::of(self.waits),
            seconds,
            goodput: if seconds > 0.0 { float(Bytes(answered)) / seconds } else { 0.0 },
            most_overtakings: self.overtakings.most,
        }
    }
}

fn earliest<const N: usize>(times: [Option<Duration>; N]) -> Option<Duration> {
    times.into_iter().flatten().min()
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
fn float(bytes: Bytes) -> f64 {
    bytes.0 as f64
}
