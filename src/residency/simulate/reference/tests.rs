use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

const A: u32 = 0;
const B: u32 = 1;
const C: u32 = 2;
const D: u32 = 3;

fn equal(models: &[u32]) -> Sequence {
    Sequence::of_equal(models.iter().copied())
}

fn sized(asks: &[(u32, u64)]) -> Sequence {
    let ask = |(model, bytes): &(u32, u64)| Ask { model: *model, bytes: Bytes(*bytes) };
    Sequence { asks: asks.iter().map(ask).collect(), residents: Vec::new() }
}

#[test]
fn the_least_recently_used_leaves() {
    // A B | A hits | C for B | B for A | A for C | A hits
    let tally = lru(&equal(&[A, B, A, C, B, A, A]), Bytes(2));
    assert_eq!((tally.requests, tally.loads), (7, 5));
    // 3 + 2 bytes; then 4 sends both away, then 2 fits again beside neither.
    let tally = lru(&sized(&[(A, 3), (B, 2), (A, 3), (C, 4), (B, 2), (D, 9)]), Bytes(5));
    assert_eq!((tally.loads, tally.loaded_bytes, tally.refused), (4, Bytes(11), 1));
}

#[test]
fn greedy_dual_keeps_what_is_used_often_and_lets_it_age() {
    // A twice: H = 2. B: 1. C for B, L = 1, H = 2. D for A, the longest unused of two equals.
    let sequence = equal(&[A, A, B, C, D, C, A]);
    let kept = gdsf(&sequence, Bytes(2), Frequency::Kept, Cost::Bytes);
    // L = 2, D: 3, C hits: 2 + 2 = 4, then A for D.
    assert_eq!(kept.loads, 5);
    // A: 4. B (1) leaves for C (2), and C for B again: 2 + 2 where the first use counts, then A
    // leaves for C as the longer unused; 2 + 1 where not, then B does.
    let sequence = equal(&[A, A, A, A, B, C, B, C, A]);
    let kept = gdsf(&sequence, Bytes(2), Frequency::Kept, Cost::Bytes);
    let fresh = gdsf(&sequence, Bytes(2), Frequency::Fresh, Cost::Bytes);
    assert_eq!((kept.loads, fresh.loads), (6, 5));
}

#[test]
fn greedy_dual_by_loads_prefers_small_models_and_by_bytes_does_not() {
    // Two uses of 4 bytes are worth 2 / 4 of a load, one use of 1 byte 1 / 1.
    let sequence = sized(&[(A, 4), (A, 4), (B, 1), (C, 1), (A, 4)]);
    assert_eq!(gdsf(&sequence, Bytes(5), Frequency::Kept, Cost::Load).loads, 4);
    assert_eq!(gdsf(&sequence, Bytes(5), Frequency::Kept, Cost::Bytes).loads, 3);
}

#[test]
fn collation_answers_all_who_wait_for_one_model_with_one_load() {
    let bounds = Collation { pending: 3, passed: 32 };
    // A, B, A wait; A has two of three: one load for both. C joins B; D makes three: B first.
    let tally = collation(&equal(&[A, B, A, C, D]), Bytes(1), bounds, Cost::Bytes);
    assert_eq!((tally.requests, tally.loads), (5, 4));
    let tally = collation(&equal(&[A, B, A, B, A, B]), Bytes(1), bounds, Cost::Bytes);
    assert_eq!(tally.loads, 2, "A B A loads A; A hits; B B wait to the end");
}

#[test]
fn collation_passes_nobody_more_often_than_its_bound() {
    let bounds = Collation { pending: 100, passed: 2 };
    // B has been passed twice at the second C, and C at the second B, for which B leaves.
    let tally = collation(&equal(&[B, C, C, B, B]), Bytes(1), bounds, Cost::Bytes);
    assert_eq!(tally.loads, 3);
    let tally = collation(&equal(&[B, C, C, D, B]), Bytes(1), bounds, Cost::Bytes);
    // B at the second C, C at D passed twice, D and B at the end.
    assert_eq!(tally.loads, 4);
}

#[test]
fn the_optimum_lets_the_farthest_next_use_go() {
    let sequence = equal(&[A, B, C, A, B, C, A]);
    assert_eq!(belady(&sequence, 2, Admission::MustTakeRoom).loads, 5);
    assert_eq!(belady(&sequence, 2, Admission::MayPassThrough).loads, 4);
    let sequence = equal(&[A, B, A, C, A, D, A]);
    assert_eq!(belady(&sequence, 1, Admission::MustTakeRoom).loads, 7);
    assert_eq!(belady(&sequence, 1, Admission::MayPassThrough).loads, 4);
    assert_eq!(belady(&sequence, 0, Admission::MustTakeRoom).refused, 7);
}

#[test]
fn what_is_there_before_the_first_request_is_used() {
    let mut sequence = equal(&[A, B, A]);
    sequence.residents = vec![Ask { model: A, bytes: Bytes(1) }, Ask { model: C, bytes: Bytes(1) }];
    assert_eq!(belady(&sequence, 2, Admission::MustTakeRoom).loads, 1);
    assert_eq!(lru(&sequence, Bytes(2)).loads, 1);
    let found = bounds(&sequence, Bytes(2), Objective::Loads);
    assert_eq!((found.lower(), found.upper()), (1, 1));
}

#[test]
fn bounds_of_mixed_sizes_by_hand() {
    // 5 bytes of room. A (3) is asked again after B (2): both fit. C (4) needs either gone.
    let sequence = sized(&[(A, 3), (B, 2), (A, 3), (C, 4), (A, 3), (B, 2)]);
    let found = bounds(&sequence, Bytes(5), Objective::Loads);
    // Loads: A, B, C, and after C neither A (3) nor B (2) can have stayed beside it.
    assert_eq!((found.requests, found.lower(), found.upper()), (6, 5, 5));
    assert_eq!(bounds(&sequence, Bytes(5), Objective::Bytes).upper(), 3 + 2 + 4 + 3 + 2);
    assert_eq!(bounds(&sequence, Bytes(3), Objective::Loads).requests, 5, "C never fits");
    let nothing = bounds(&Sequence::default(), Bytes(5), Objective::Loads);
    assert_eq!((nothing.lower(), nothing.upper()), (0, 0));
}

/// The fewest loads, or bytes loaded, over every way to choose who leaves.
fn exhaustive(sequence: &Sequence, budget: Bytes, objective: Objective) -> u64 {
    let sizes: HashMap<u32, u64> =
        sequence.asks.iter().chain(&sequence.residents).map(|a| (a.model, a.bytes.0)).collect();
    let total = |set: &BTreeSet<u32>| set.iter().map(|model| sizes[model]).sum::<u64>();
    let start: BTreeSet<u32> = sequence.residents.iter().map(|ask| ask.model).collect();
    let mut least: BTreeMap<BTreeSet<u32>, u64> = BTreeMap::from([(start, 0)]);
    for ask in sequence.asks.iter().filter(|ask| ask.bytes <= budget) {
        let mut after: BTreeMap<BTreeSet<u32>, u64> = BTreeMap::new();
        for (set, spent) in &least {
            let cost = match objective {
                _ if set.contains(&ask.model) => 0,
                Objective::Loads => 1,
                Objective::Bytes => ask.bytes.0,
            };
            let others: Vec<u32> = set.iter().copied().filter(|m| *m != ask.model).collect();
            for choice in 0..1_u32 << others.len() {
                let stays = others.iter().enumerate().filter(|(at, _)| choice >> at & 1 == 1);
                let mut next: BTreeSet<u32> = stays.map(|(_, model)| *model).collect();
                next.insert(ask.model);
                if total(&next) <= budget.0 {
                    let known = after.entry(next).or_insert(u64::MAX);
                    *known = (*known).min(spent + cost);
                }
            }
        }
        least = after;
    }
    least.values().copied().min().unwrap_or(0)
}

/// Up to four models, each with a size of its own, some of which are there before.
fn tiny() -> impl Strategy<Value = (Sequence, Bytes)> {
    let sizes = prop::collection::vec(1..6_u64, 4);
    let asks = prop::collection::vec(0..4_u32, 0..12);
    (sizes, asks, prop::collection::btree_set(0..4_u32, 0..2), 5..10_u64).prop_map(
        |(sizes, asks, residents, budget)| {
            let ask = |model: u32| Ask { model, bytes: Bytes(sizes[model as usize]) };
            let mut left = budget;
            let fits = |resident: &Ask| {
                let is_room = resident.bytes.0 <= left;
                left -= if is_room { resident.bytes.0 } else { 0 };
                is_room
            };
            let residents = residents.into_iter().map(ask).filter(fits).collect();
            (Sequence { asks: asks.into_iter().map(ask).collect(), residents }, Bytes(budget))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_optimum_lies_between_its_bounds((sequence, budget) in tiny()) {
        for objective in [Objective::Loads, Objective::Bytes] {
            let optimum = exhaustive(&sequence, budget, objective);
            let found = bounds(&sequence, budget, objective);
            prop_assert!(found.pfoo_lower <= found.dual_lower, "{found:?}");
            prop_assert!(found.lower() <= optimum, "{found:?} of {optimum}");
            prop_assert!(optimum <= found.upper(), "{found:?} of {optimum}");
        }
    }

    #[test]
    fn no_rule_loads_less_than_the_optimum((sequence, budget) in tiny()) {
        let optimum = exhaustive(&sequence, budget, Objective::Loads);
        let greedy = gdsf(&sequence, budget, Frequency::Kept, Cost::Load);
        prop_assert!(lru(&sequence, budget).loads >= optimum && greedy.loads >= optimum);
    }

    #[test]
    fn with_equal_sizes_the_farthest_next_use_is_optimal(
        models in prop::collection::vec(0..5_u32, 0..12), slots in 1..4_usize,
    ) {
        let sequence = Sequence::of_equal(models);
        let optimum = exhaustive(&sequence, Bytes(slots as u64), Objective::Loads);
        prop_assert_eq!(belady(&sequence, slots, Admission::MustTakeRoom).loads, optimum);
        let found = bounds(&sequence, Bytes(slots as u64), Objective::Loads);
        prop_assert!(found.lower() <= optimum && optimum <= found.upper());
    }
}

/// The base models of the Alibaba trace in the order of arrival, where the trace is there.
fn alibaba() -> Option<Sequence> {
    let folder = std::env::var_os("ROUNDHOUSE_TRACES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traces"),
        PathBuf::from,
    );
    let file = folder.join("alibaba_gentd26_lora_requests.csv");
    let Ok(text) = std::fs::read_to_string(&file) else {
        println!("skipped: no trace at {}", file.display());
        return None;
    };
    let mut lines = text.lines();
    let column = lines.next()?.split(',').position(|it| it == "checkpoint_model_version_id")?;
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let models: Vec<u32> = lines
        .map(|line| {
            let fresh = u32::try_from(numbers.len()).unwrap();
            *numbers.entry(line.split(',').nth(column).unwrap()).or_insert(fresh)
        })
        .collect();
    Some(Sequence::of_equal(models))
}

#[test]
fn the_alibaba_trace_gives_the_known_miss_ratios() {
    let Some(sequence) = alibaba() else { return };
    let known = [
        (3, [0.440, 0.400, 0.301, 0.261, 0.167]),
        (5, [0.268, 0.242, 0.166, 0.152, 0.126]),
        (10, [0.106, 0.089, 0.060, 0.057, 0.066]),
        (20, [0.039, 0.032, 0.022, 0.021, 0.030]),
    ];
    for (slots, want) in known {
        let budget = Bytes(slots as u64);
        let bounds = Collation { pending: 16, passed: 32 };
        let tallies = [
            lru(&sequence, budget),
            gdsf(&sequence, budget, Frequency::Kept, Cost::Bytes),
            belady(&sequence, slots, Admission::MustTakeRoom),
            belady(&sequence, slots, Admission::MayPassThrough),
            collation(&sequence, budget, bounds, Cost::Bytes),
        ];
        for (tally, want) in tallies.iter().zip(want) {
            assert!((tally.miss_ratio() - want).abs() < 0.0006, "{slots}: {tally:?}, not {want}");
        }
        let optimum = tallies[2].loads;
        let found = super::bounds(&sequence, budget, Objective::Loads);
        assert!(found.lower() <= optimum && optimum <= found.upper(), "{found:?} of {optimum}");
        println!("{slots} slots: optimum {optimum}, {found:?}");
    }
}
