use std::time::{Duration, Instant};

use roundhouse_residency::{
    CopyState, DeviceHoldings, Held, Holdings, HostHoldings, LoadSnapshot, LoadState, ResidentState,
};
use roundhouse_types::{ArtefactId, Bytes, DeviceId, Footprint, ModelId, ModelKind, Version};

use super::WitnessConfig;
use super::books::Books;
use super::judge::Judge;
use super::readings::Seen;
use crate::loader::Touched;

const BASELINE: Bytes = Bytes::mib(20);
const CONFIGURED: Bytes = Bytes::gib(10);

/// Ticks are 2 s apart: what lasts 6 s lasts.
const CONFIG: WitnessConfig = WitnessConfig {
    every: Duration::from_secs(2),
    tolerance: 10,
    yields: true,
    in_flight: Bytes::ZERO,
    configured: CONFIGURED,
};

fn judge() -> Judge {
    Judge::new(BASELINE, CONFIG)
}

fn seen(own: Bytes, available: Bytes) -> Seen {
    Seen { own, available: Some(available) }
}

/// A model of 1,000 MiB of weights with a pool and a workspace of 600 MiB.
fn books(budget: Bytes) -> Books {
    let (charged, untouched) = (Bytes::mib(1600), Bytes::mib(600));
    Books { charged, untouched, budget, ..Books::default() }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// 95 % of it.
fn less_reserve(room: Bytes) -> Bytes {
    Bytes(room.0 - room.0 / 100 * 5)
}

#[test]
fn a_footprint_formula_that_is_wrong_by_thirty_percent_fires() {
    let (mut judge, now) = (judge(), Instant::now());
    let right = seen(BASELINE + Bytes::mib(1000), Bytes::gib(100));
    let fine = judge.look(&right, &books(CONFIGURED), now);
    assert_eq!((fine.expected, fine.divergence, fine.warn), (Bytes::mib(1020), 0.0, false));

    // The weights take 1,300 MiB where the formula said 1,000.
    let wrong = seen(BASELINE + Bytes::mib(1300), Bytes::gib(100));
    let grave =
        [0, 9, 10].map(|after| judge.is_grave(&wrong, &books(CONFIGURED), now + seconds(after)));
    assert_eq!(grave, [true, false, true]);
    let first = judge.look(&wrong, &books(CONFIGURED), now);
    assert!((0.29..0.30).contains(&first.divergence), "{first:?}");
    let told = [1, 5, 6, 7, 65, 66]
        .map(|after| judge.look(&wrong, &books(CONFIGURED), now + seconds(after)).warn);
    assert_eq!((first.warn, told), (false, [false, false, true, false, false, true]));

    // And the other way round: less is there than was charged.
    let less =
        judge.look(&seen(BASELINE + Bytes::mib(700), Bytes::gib(100)), &books(CONFIGURED), now);
    assert!((-0.30..-0.29).contains(&less.divergence), "{less:?}");
}

#[test]
fn what_loads_steps_fetches_and_unloads_may_take_explains_a_difference() {
    let (mut judge, now) = (judge(), Instant::now());
    let under_way = Books {
        in_steps: Bytes::mib(100),
        arriving: Bytes::mib(50),
        in_flight: Bytes::mib(30),
        leaving: Bytes::mib(400),
        ..books(CONFIGURED)
    };
    let mut divergence = |own| judge.look(&seen(own, Bytes::gib(100)), &under_way, now).divergence;
    assert_eq!(divergence(Bytes::mib(1020 + 180)), 0.0);
    assert_eq!(divergence(Bytes::mib(1020 - 400)), 0.0);
    assert_eq!(divergence(Bytes::mib(1020 + 180 + 102)), 0.1);
    assert_eq!(divergence(Bytes::mib(1020 - 400 - 102)), -0.1);
}

#[test]
fn memory_that_others_take_lowers_the_budget_at_once_and_raises_it_late() {
    let (mut judge, now) = (judge(), Instant::now());
    let own = BASELINE + Bytes::mib(1000);
    let mut look = |after, available, budget| {
        judge.look(&seen(own, available), &books(budget), now + seconds(after)).budget
    };
    assert_eq!(look(0, Bytes::gib(12), CONFIGURED), None);
    // 1,000 MiB are held and 3 GiB are left: 95 % of that can be had.
    let lowered = look(0, Bytes::gib(3), CONFIGURED).expect("others took what was counted on");
    assert_eq!(lowered, less_reserve(Bytes::mib(1000 + 3072)));
    // What hardly changes changes nothing.
    assert_eq!(look(0, Bytes::gib(3) + Bytes::mib(100), lowered), None);
    // It comes back; however many looks there are, it must stay for three ticks.
    let early = [0, 0, 0, 1, 5].map(|after| look(after, Bytes::gib(100), lowered));
    assert_eq!(early, [None; 5]);
    assert_eq!(look(6, Bytes::gib(100), lowered), Some(CONFIGURED));
    // Everything gone: a tenth of what was configured stays.
    let floor = look(7, Bytes::ZERO, CONFIGURED);
    assert_eq!(floor.map(|it| it.0 / 100), Some(CONFIGURED.0 / 1000));
}

#[test]
fn the_budget_does_not_follow_a_neighbour_that_comes_and_goes() {
    let (mut judge, now) = (judge(), Instant::now());
    let own = BASELINE + Bytes::mib(1000);
    let mut look = |after, available, budget| {
        judge.look(&seen(own, available), &books(budget), now + seconds(after)).budget
    };
    let lowered = look(0, Bytes::gib(3), CONFIGURED).expect("others took what was counted on");
    // Away for 5 s of every 6.
    for after in 1..60 {
        let left = if after % 6 == 0 { Bytes::gib(3) } else { Bytes::gib(100) };
        assert_eq!(look(after, left, lowered), None, "after {after} s");
    }
    // It stays away, and takes half as much meanwhile: the least that was left is given.
    assert_eq!(look(60, Bytes::gib(3), lowered), None);
    assert_eq!(look(61, Bytes::gib(100), lowered), None);
    assert_eq!(look(64, Bytes::gib(6), lowered), None);
    let raised = look(67, Bytes::gib(100), lowered);
    assert_eq!(raised, Some(less_reserve(Bytes::mib(1000 + 6144))));
}

/// A handler that was promised 6 GiB of 10, on a machine with 11 GiB for models: `took` is what
/// its processes hold, `others` what others do.
fn while_a_handler_loads(took: Bytes, others: Bytes, budget: Bytes) -> (Seen, Books) {
    let available = Bytes::gib(11).saturating_sub(took + others);
    (seen(BASELINE, available), Books { arriving: Bytes::gib(6), budget, ..Books::default() })
}

#[test]
fn what_a_loading_handler_takes_in_its_own_processes_is_not_taken_for_others() {
    let (mut judge, now) = (judge(), Instant::now());
    for gib in 0..=6 {
        let (seen, books) = while_a_handler_loads(Bytes::gib(gib), Bytes::ZERO, CONFIGURED);
        assert!(!judge.is_grave(&seen, &books, now), "{gib} GiB taken");
        assert_eq!(judge.look(&seen, &books, now).budget, None, "{gib} GiB taken");
    }
    // Beside it a model of 2 GiB loads in this process and has 1 of them.
    let (mut seen, mut books) = while_a_handler_loads(Bytes::gib(7), Bytes::ZERO, CONFIGURED);
    seen.own += Bytes::gib(1);
    books.arriving += Bytes::gib(2);
    assert_eq!(judge.look(&seen, &books, now).budget, None);
}

#[test]
fn a_neighbour_is_seen_while_a_handler_loads_or_when_it_has_loaded() {
    let (mut judge, now) = (judge(), Instant::now());
    let mut look = |(seen, books): (Seen, Books)| judge.look(&seen, &books, now).budget;
    let (four, two) = (Bytes::gib(4), Bytes::gib(2));
    // More than what the handler has still to take.
    let large = while_a_handler_loads(four, Bytes::gib(6), CONFIGURED);
    assert_eq!(look(large), Some(less_reserve(Bytes::gib(7))));
    // As much as that may be the handler's, until it has all of it,
    let (seen, books) = while_a_handler_loads(four, two, CONFIGURED);
    assert_eq!(look((seen, books)), None);
    let whole = while_a_handler_loads(Bytes::gib(6), two, CONFIGURED);
    assert_eq!(look(whole), Some(less_reserve(Bytes::gib(9))));
    // or has loaded and takes less than it was promised.
    let loaded = Books { charged: four, elsewhere: four, arriving: Bytes::ZERO, ..books };
    assert_eq!(look((seen, loaded)), Some(less_reserve(Bytes::gib(9))));
}

#[test]
fn the_budget_is_not_raised_by_what_a_load_has_yet_to_take() {
    let (mut judge, now) = (judge(), Instant::now());
    // 5 GiB are left by others, and nothing of the 6 that were promised is taken.
    let lowered = less_reserve(Bytes::gib(5));
    for after in 0..20 {
        let (seen, books) = while_a_handler_loads(Bytes::ZERO, Bytes::gib(6), lowered);
        assert_eq!(judge.look(&seen, &books, now + seconds(after)).budget, None);
    }
}

#[test]
fn an_own_leak_shrinks_the_budget_and_untouched_charges_do_not() {
    let (mut judge, now) = (judge(), Instant::now());
    // 9 GiB are charged, of which the pools' 8 were never touched and still lie free.
    let pools = Books { charged: Bytes::gib(9), untouched: Bytes::gib(8), ..books(CONFIGURED) };
    let fits = seen(BASELINE + Bytes::gib(1), Bytes::gib(10));
    assert_eq!(judge.look(&fits, &pools, now).budget, None);
    // The process holds 5 GiB more than anything explains, and so much less is left.
    let leaks = seen(BASELINE + Bytes::gib(6), Bytes::gib(5));
    let budget = judge.look(&leaks, &pools, now).budget.expect("it is lost to models");
    assert_eq!(budget.0 / 1000, Bytes::gib(6).0 / 100 * 95 / 1000);
    // Handlers hold theirs in other processes.
    let handlers = Books { charged: Bytes::gib(5), elsewhere: Bytes::gib(5), ..books(CONFIGURED) };
    let handlers = Books { untouched: Bytes::ZERO, ..handlers };
    let held = seen(BASELINE, Bytes::gib(6));
    assert_eq!(judge.look(&held, &handlers, now).budget, None);
    // An operator who does not want it is not second-guessed.
    let mut fixed = Judge::new(BASELINE, WitnessConfig { yields: false, ..CONFIG });
    assert_eq!(fixed.look(&leaks, &pools, now).budget, None);
}

fn held<S>(target: &str, kind: ModelKind, state: S, bytes: Footprint) -> Held<S> {
    let model = ModelId { endpoint: "default".parse().unwrap(), target: target.parse().unwrap() };
    let artefact = ArtefactId { model, version: Version::from_digest("0123456789abcdef") };
    Held { artefact, kind, state, bytes }
}

const BYTES: Footprint =
    Footprint { weights: Bytes(1000), kv: Bytes(200), workspace: Bytes(100), host: Bytes(10) };

fn resident(target: &str, kind: ModelKind, state: ResidentState) -> Held<ResidentState> {
    held(target, kind, state, BYTES)
}

fn copy(target: &str, state: CopyState) -> Held<CopyState> {
    let bytes = Footprint { kv: Bytes::ZERO, workspace: Bytes::ZERO, ..BYTES };
    held(target, ModelKind::Generative, state, bytes)
}

const NO_HOST: HostHoldings = HostHoldings {
    budget: Bytes::ZERO,
    charged: Bytes::ZERO,
    reserved: Bytes::ZERO,
    copies: Vec::new(),
};

fn load(state: LoadState) -> LoadSnapshot {
    LoadSnapshot {
        endpoint: "default".parse().unwrap(),
        target: "coming".parse().unwrap(),
        version: Version::from_digest("0123456789abcdef"),
        state,
        base: None,
        device: Some(DeviceId::Cpu),
        fetch_bytes: Bytes::ZERO,
        fetched_bytes: Bytes::ZERO,
        footprint_bytes: None,
        reserved_bytes: Bytes(70),
        waiters: 0,
        paced_for: None,
        replica: false,
    }
}

#[test]
fn the_books_say_what_is_in_this_process_and_what_is_on_its_way() {
    let residents = vec![
        resident("idle", ModelKind::Generative, ResidentState::Ready),
        resident("busy", ModelKind::Embedding, ResidentState::Draining),
        resident("script", ModelKind::Handler, ResidentState::Ready),
        resident("going", ModelKind::Generative, ResidentState::Unloading),
        resident("going-too", ModelKind::Adapter, ResidentState::Unloading),
    ];
    let device = DeviceHoldings {
        id: DeviceId::Cpu,
        budget: Bytes(9000),
        charged: Bytes(6 * 1310),
        adapters: BYTES,
        residents,
    };
    // One that is on the device as well, and one that leaves.
    let copies = vec![copy("idle", CopyState::Ready), copy("old", CopyState::Leaving)];
    let host =
        HostHoldings { budget: Bytes(3000), charged: Bytes(2 * 1010), reserved: Bytes(30), copies };
    let apart = vec![load(LoadState::Loading), load(LoadState::Fetching)];
    for loads in [apart, vec![load(LoadState::Arriving)]] {
        let holdings = Holdings { devices: vec![device.clone()], host: host.clone(), loads };
        let books = Books::of(&holdings, Bytes(256), &|id, device| {
            assert_eq!(device, DeviceId::Cpu);
            let stepping = id.model.target.as_str() == "busy";
            Some(Touched { between_steps: Bytes(40), stepping, forms: Bytes(3) })
        });
        let want = Books {
            charged: Bytes(6 * 1310 + 2 * 1010),
            elsewhere: Bytes(1310),
            // The tokenizer of the one that is there twice is there once.
            untouched: Bytes(2 * 263 + 10),
            in_steps: Bytes(100),
            arriving: Bytes(70 + 30),
            leaving: Bytes(2 * 1310 + 1010),
            in_flight: Bytes(256),
            budget: Bytes(9000 + 3000),
        };
        assert_eq!(books, want);
        // Idle and busy with weights, host and what they touched, all of what goes, the adapter that stays, and copies.
        let copied = 1000 + 1010;
        assert_eq!(books.expected(Bytes(5)), Bytes(5 + 2 * 1047 + 3 * 1310 + copied));
    }
}

#[test]
fn of_what_replicas_and_their_copy_hold_together_one_is_there() {
    let device = |ordinal| DeviceHoldings {
        id: DeviceId::Simulated(ordinal),
        budget: Bytes(9000),
        charged: Bytes(1310),
        adapters: Footprint::default(),
        residents: vec![resident("hot", ModelKind::Embedding, ResidentState::Ready)],
    };
    let host = HostHoldings {
        budget: Bytes(3000),
        charged: Bytes(1010),
        copies: vec![copy("hot", CopyState::Ready)],
        ..NO_HOST
    };
    let holdings = Holdings { devices: vec![device(0), device(1)], host, loads: Vec::new() };
    let all_touched =
        |_: &_, _| Some(Touched { between_steps: Bytes(300), stepping: false, forms: Bytes::ZERO });
    let books = Books::of(&holdings, Bytes::ZERO, &all_touched);
    assert_eq!(books.expected(Bytes::ZERO), Bytes(2 * 1300 + 1000 + 10));
}

#[test]
fn what_lies_on_a_card_is_in_its_books_and_host_parts_are_in_the_processs() {
    use ModelKind::{External, Generative};
    use ResidentState::{Ready, Unloading};
    let card = DeviceId::Cuda(0);
    let residents = vec![
        resident("idle", Generative, Ready),
        resident("busy", Generative, Ready),
        resident("gone", Generative, Unloading),
        resident("engine", External, Ready),
    ];
    let device = DeviceHoldings {
        id: card,
        budget: Bytes(9000),
        charged: Bytes(5 * 1310),
        adapters: BYTES,
        residents,
    };
    let on_card = LoadSnapshot { device: Some(card), ..load(LoadState::Loading) };
    // Nothing of it is there yet.
    let promised = LoadSnapshot { device: Some(card), ..load(LoadState::WaitingToLoad) };
    let loads = vec![on_card, promised, load(LoadState::Fetching)];
    let holdings = Holdings { devices: vec![device], host: NO_HOST, loads };
    let touched = |id: &ArtefactId| {
        let stepping = id.model.target.as_str() == "busy";
        Some(Touched { between_steps: Bytes(40), stepping, forms: Bytes(3) })
    };
    let reserved = holdings.loads[0].reserved_bytes;
    let want = Books {
        // All that is there, an engine's processes too, without host parts.
        charged: Bytes(5 * 1300),
        // Pools and workspaces of two, but for what they touched.
        untouched: Bytes(2 * 260),
        in_steps: Bytes(100),
        arriving: reserved,
        leaving: Bytes(1300),
        budget: Bytes(9000),
        ..Books::default()
    };
    assert_eq!(super::cards::books(&holdings, card, &touched), Some(want));
    assert_eq!(super::cards::books(&holdings, DeviceId::Cuda(1), &touched), None);

    let here = Books::of(&holdings, Bytes(256), &|id, _| touched(id));
    assert_eq!((here.charged, here.elsewhere, here.leaving), (Bytes(50), Bytes(10), Bytes(10)));
    assert_eq!((here.untouched, here.budget), (Bytes(2 * 3), Bytes::ZERO));
    assert_eq!((here.arriving, here.in_flight), (Bytes::ZERO, Bytes(256)));
}
