//! The orders in which callers, models and the owner may meet, explored: the real owner, its loader
//! calls and its leases run on one thread of a scheduler that decides at each send, receive and
//! lock which thread goes on, and callers and reporters on others.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, ErrorKind, Failure, Footprint, Grade, ModelId, ModelKind,
};
use shuttle::Runner;
use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::thread::{self, JoinHandle};

use crate::loader::{Base, Fetched, HostCopy, LoadSource, Loaded, Loader, Resolution, Standing};
use crate::testing::{model, version};
use crate::{Config, Lease, Reporter, Residency};

/// Orders that each scene is played in, half of them with any thread going on at each point, half
/// with one going on for as long as it can but for a few points.
const ORDERS: usize = 3_000;
/// Those points.
const TURNS: usize = 3;
/// More points than an unload and a load have together.
const LATE: usize = 100;
const SEED: u64 = 20_261_121;
/// What the device holds, and what each model takes: there is room for one.
const SIZE: Bytes = Bytes(10);

/// A model, and which load of all brought it.
struct Engine {
    load: usize,
    is_freed: AtomicBool,
    alive: Arc<AtomicUsize>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A loader whose calls end at once.
#[derive(Default)]
struct Stage {
    loads: AtomicUsize,
    alive: Arc<AtomicUsize>,
    /// Models that somebody held while they were unloaded.
    held: AtomicUsize,
    reporter: std::sync::Mutex<Option<Reporter>>,
}

impl Stage {
    /// The reporter of the latest load.
    fn reporter(&self) -> Reporter {
        self.reporter.lock().expect("nobody panics with it").clone().expect("something was loaded")
    }
}

fn takes(bytes: Bytes) -> Footprint {
    Footprint { weights: bytes, ..Footprint::default() }
}

impl Loader for Stage {
    type Model = Engine;

    async fn resolve(&self, _: &ModelId, _: bool) -> Result<Resolution, Failure> {
        Ok(Resolution {
            version: version(1),
            fetch_bytes: Bytes::ZERO,
            footprint: Some((takes(SIZE), Grade::Exact)),
            shared: Vec::new(),
            kind: Some(ModelKind::Embedding),
            off_cards: false,
            base: None,
            streams: false,
            quarantined: false,
            standing: Standing::default(),
        })
    }

    async fn fetch(&self, _: &ArtefactId, _: &str) -> Result<Fetched, Failure> {
        let (footprint, kind) = (takes(SIZE), ModelKind::Embedding);
        Ok(Fetched {
            footprint,
            shared: Vec::new(),
            kind,
            off_cards: false,
            base: None,
            once: Duration::ZERO,
        })
    }

    fn fetched_bytes(&self, _: &ArtefactId) -> Bytes {
        Bytes::ZERO
    }

    async fn load(
        &self,
        _: &ArtefactId,
        _: DeviceId,
        _: LoadSource,
        _: Option<Base<Engine>>,
        reporter: Reporter,
    ) -> Result<Loaded<Engine>, Failure> {
        let load = self.loads.fetch_add(1, Ordering::SeqCst) + 1;
        *self.reporter.lock().expect("nobody panics with it") = Some(reporter);
        self.alive.fetch_add(1, Ordering::SeqCst);
        let (is_freed, alive) = (AtomicBool::new(false), Arc::clone(&self.alive));
        let model = Engine { load, is_freed, alive };
        Ok(Loaded {
            model,
            footprint: takes(SIZE),
            shared: Vec::new(),
            once: Duration::ZERO,
            idle_ttl: None,
        })
    }

    async fn unload(
        &self,
        _: &ArtefactId,
        _: DeviceId,
        model: Arc<Engine>,
        _: bool,
    ) -> Option<HostCopy> {
        // A failed assertion here would be taken for a loader that panics.
        if Arc::strong_count(&model) != 1 {
            self.held.fetch_add(1, Ordering::SeqCst);
        }
        model.is_freed.store(true, Ordering::SeqCst);
        thread::yield_now();
        None
    }

    async fn discard(&self, _: &ArtefactId) {}
}

type Scene = fn(&Residency<Engine>, &Arc<Stage>);

/// Plays a scene in many orders, and holds each against what must be so in the end.
fn explore(scene: Scene) {
    let mut config = shuttle::Config::new();
    // The owner is deep in a build without optimisation.
    config.stack_size = 4 << 20;
    let any = RandomScheduler::new_from_seed(SEED, ORDERS / 2);
    Runner::new(any, config.clone()).run(move || play(scene));
    let few = PctScheduler::new_from_seed(SEED, TURNS, ORDERS / 2);
    Runner::new(few, config).run(move || play(scene));
}

fn play(scene: Scene) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime for one thread");
    let stage = Arc::new(Stage::default());
    let residency = {
        let _context = runtime.enter();
        let config = Config { refresh_every: Duration::MAX, ..Config::default() };
        Residency::start(config, vec![(DeviceId::Cpu, SIZE)], Arc::clone(&stage))
    };
    let is_over = Arc::new(AtomicBool::new(false));
    let runs_until = Arc::clone(&is_over);
    let owner = thread::spawn(move || {
        while !runs_until.load(Ordering::SeqCst) {
            runtime.block_on(tokio::task::yield_now());
            thread::yield_now();
        }
    });
    scene(&residency, &stage);
    let snapshot = block_on(residency.snapshot()).expect("the owner runs");
    let leases: u32 = snapshot.devices[0].residents.iter().map(|resident| resident.leases).sum();
    assert_eq!((snapshot.waiters, leases), (0, 0), "somebody is gone and still counted");
    block_on(residency.shutdown());
    assert_eq!(stage.alive.load(Ordering::SeqCst), 0, "a model that nobody unloaded");
    assert_eq!(stage.held.load(Ordering::SeqCst), 0, "a model that was unloaded in use");
    is_over.store(true, Ordering::SeqCst);
    owner.join().expect("the owner ends");
}

fn acquire(residency: &Residency<Engine>, name: &str) -> Lease<Engine> {
    let soon = super::now() + Duration::from_secs(3600);
    block_on(residency.acquire(&model(name), soon)).expect("there is room for one at a time")
}

/// Somebody asks for a model, uses it and lets go of it.
fn user(residency: &Residency<Engine>, name: &'static str) -> JoinHandle<()> {
    let residency = residency.clone();
    thread::spawn(move || {
        let lease = acquire(&residency, name);
        thread::yield_now();
        assert!(!lease.is_freed.load(Ordering::SeqCst), "{name} is unloaded under a lease");
    })
}

/// Lets others go first for a while: left to the scheduler, a thread of few steps is done before
/// one of many.
fn sooner_or_later() {
    (0..thread_rng().gen_range(0..LATE)).for_each(|_| thread::yield_now());
}

fn all_end(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().expect("callers do not panic"));
}

#[test]
fn a_lease_that_ends_while_its_model_is_evicted_has_let_go_of_it_before() {
    explore(|residency, _| {
        all_end(["a", "b", "a"].map(|name| user(residency, name)));
    });
}

#[test]
fn a_caller_that_leaves_while_it_is_answered_leaves_no_lease_behind() {
    explore(|residency, _| {
        let other = residency.clone();
        let leaver = thread::spawn(move || {
            let (name, soon) = (model("a"), super::now() + Duration::from_secs(3600));
            let mut asked = pin!(other.acquire(&name, soon));
            let mut looks = 0;
            block_on(poll_fn(|context| {
                looks += 1;
                context.waker().wake_by_ref();
                match asked.as_mut().poll(context) {
                    Poll::Pending if looks < 4 => Poll::Pending,
                    _ => Poll::Ready(()),
                }
            }));
        });
        all_end([leaver, user(residency, "a"), user(residency, "b")]);
    });
}

#[test]
fn the_last_of_several_measures_counts_wherever_the_owner_is() {
    explore(|residency, stage| {
        drop(acquire(residency, "a"));
        let reporter = stage.reporter();
        let grower = thread::spawn(move || {
            (1..=4).for_each(|bytes| reporter.measured(takes(Bytes(bytes))));
        });
        all_end([grower, user(residency, "a")]);
        let snapshot = block_on(residency.snapshot()).expect("the owner runs");
        assert_eq!(snapshot.devices[0].charged_bytes, Bytes(4));
    });
}

#[test]
fn a_death_is_seen_once_and_by_no_later_load() {
    explore(|residency, stage| {
        drop(acquire(residency, "a"));
        let reporter = stage.reporter();
        let killer = thread::spawn(move || {
            sooner_or_later();
            reporter.died(Failure::new(ErrorKind::ModelFailed, "it is gone"));
        });
        let other = residency.clone();
        let operator = thread::spawn(move || {
            // It may be dead and gone by then.
            let _ = block_on(other.unload(&model("a")));
            drop(acquire(&other, "a"));
        });
        all_end([killer, operator]);
        let lease = acquire(residency, "a");
        assert_eq!(lease.load, 2, "what died serves nobody, and what was loaded then lives");
    });
}
