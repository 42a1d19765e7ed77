use std::collections::HashMap;

use super::*;
use crate::Regret;
use crate::simulate::reference::{Admission, Ask, Sequence, belady};

/// What the ring remembers.
const WINDOW: usize = 10_000;

/// Numbers below `models`, lower ones more often.
fn skewed(requests: usize, models: u64) -> Vec<u64> {
    let mut state = 11_u64;
    let mut dice = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % models
    };
    (0..requests).map(|_| dice().min(dice()).min(dice())).collect()
}

/// A loader of models of these sizes.
fn of_sizes(sizes: impl Fn(usize) -> u64) -> Arc<ScriptedLoader> {
    let script = |(number, name)| (name, Script::of(sizes(number)));
    ScriptedLoader::new(NAMES.into_iter().enumerate().map(script))
}

/// Asks for the regret with the clock running: it is calculated on a thread.
async fn regret(residency: &Residency<String>) -> Regret {
    tokio::time::resume();
    let regret = residency.regret().await.unwrap();
    tokio::time::pause();
    regret
}

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

#[tokio::test(start_paused = true)]
async fn the_online_optimum_is_the_offline_one_over_the_same_window() {
    const BEFORE: usize = 700;
    let loader = of_sizes(|_| 10);
    let residency = start(40, &loader, Config::default());
    let asked = skewed(BEFORE + WINDOW, NAMES.len() as u64);
    let (mut loads_before, mut residents) = (0, Vec::new());
    for (turn, number) in asked.iter().enumerate() {
        if turn == BEFORE {
            loads_before = count(&loader.calls.loads);
            let snapshot = residency.snapshot().await.unwrap();
            let names = snapshot.devices[0].residents.iter().map(|it| it.target.to_string());
            residents = names.collect();
        }
        let name = model(NAMES[usize::try_from(*number).unwrap()]);
        drop(residency.acquire(&name, soon()).await.unwrap());
    }
    let online = regret(&residency).await;

    let numbers: HashMap<&str, u32> = NAMES.into_iter().zip(0..).collect();
    let ask = |model: u32| Ask { model, bytes: Bytes(10) };
    let offline = Sequence {
        asks: asked[BEFORE..].iter().map(|it| ask(u32::try_from(*it).unwrap())).collect(),
        residents: residents.iter().map(|name| ask(numbers[name.as_str()])).collect(),
    };
    let offline = belady(&offline, 4, Admission::MustTakeRoom);
    assert_eq!((online.requests, online.optimal_loads.by), (WINDOW as u64, "belady"));
    assert_eq!(online.optimal_loads.lower, offline.loads);
    assert_eq!(online.loads, (count(&loader.calls.loads) - loads_before) as u64);
    assert_eq!(online.residents_before, 4);
    assert!(online.ratio.lower.unwrap() > 1.0, "{online:?}");
}

#[tokio::test(start_paused = true)]
async fn with_mixed_sizes_the_optimum_is_shown_between_its_bounds() {
    let loader = of_sizes(|number| [21, 43, 69, 129][number % 4]);
    let residency = start(260, &loader, Config::default());
    for number in skewed(600, NAMES.len() as u64) {
        let name = model(NAMES[usize::try_from(number).unwrap()]);
        drop(residency.acquire(&name, soon()).await.unwrap());
    }
    let online = regret(&residency).await;
    let optimum = online.optimal_loads;
    assert_eq!((online.requests, optimum.by), (600, "bounds"));
    assert!(8 <= optimum.lower && optimum.lower <= optimum.upper, "{optimum:?}");
    assert!(optimum.upper <= online.loads, "{online:?}");
}

#[tokio::test(start_paused = true)]
async fn refused_requests_are_not_in_the_window_and_an_answer_is_kept_for_a_while() {
    let loader = of_sizes(|_| 10);
    let residency = start(40, &loader, Config::default());
    residency.acquire_loaded(&model("a")).await.unwrap_err();
    drop(residency.acquire(&model("a"), soon()).await.unwrap());
    let wanted = residency.load(&model("c"), crate::LoadOptions::default()).await;
    wanted.unwrap();
    let first = regret(&residency).await;
    assert_eq!((first.requests, first.loads, first.optimal_loads.upper), (1, 1, 1));
    assert_eq!(first.unasked_loads, 1, "what an operator has loaded is told beside");
    drop(residency.acquire(&model("b"), soon()).await.unwrap());
    assert_eq!(residency.regret().await.unwrap(), first, "younger than ten seconds");
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(regret(&residency).await.requests, 2);
}
