//! At least 100,000 random worlds, the same ones each time; `WORLDS_SEED=N` makes others, for
//! whoever looks for what these do not show. A failure prints the shortest list of numbers that
//! still fails; it can be played again with `play`.

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::world::{Dice, World};

/// Worlds per test; six tests make the 100,000, and run side by side.
const WORLDS: u32 = 17_000;

/// The first number makes the world; each further one is something that happens in it.
fn play(devices: usize, numbers: &[u32]) {
    let (first, rest) = numbers.split_first().expect("the strategy makes at least one");
    let mut world = World::new(devices, &mut Dice(u64::from(*first)));
    for number in rest {
        // Shrinking ends at zeros; they are nothing, so that the shortest list is read easily.
        if *number != 0 {
            world.step(&mut Dice(u64::from(*number)));
        }
    }
    if !world.is_stopping() {
        world.come_to_rest();
        world.serve_everybody();
    }
    world.end();
}

fn play_many(devices: usize, steps: std::ops::Range<usize>) {
    let config = Config { cases: WORLDS, failure_persistence: None, ..Config::default() };
    let mut seed = [0; 32];
    let number: u64 = std::env::var("WORLDS_SEED").map_or(1, |it| it.parse().expect("a number"));
    seed[..8].copy_from_slice(&number.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let result =
        TestRunner::new_with_rng(config, random).run(&vec(any::<u32>(), steps), |numbers| {
            play(devices, &numbers);
            Ok(())
        });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

#[test]
fn invariants_1_to_8_hold_on_one_device() {
    play_many(1, 20..40);
}

#[test]
fn invariants_1_to_8_hold_on_one_device_for_long() {
    play_many(1, 40..80);
}

#[test]
fn invariants_1_to_8_hold_on_two_devices() {
    play_many(2, 20..40);
}

#[test]
fn invariants_1_to_8_hold_on_two_devices_for_long() {
    play_many(2, 40..80);
}

#[test]
fn invariants_1_to_8_hold_on_three_devices() {
    play_many(3, 20..40);
}

#[test]
fn invariants_1_to_8_hold_on_three_devices_for_long() {
    play_many(3, 40..80);
}
