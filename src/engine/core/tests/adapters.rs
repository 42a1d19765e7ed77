//! Adapters beside an engine's model: what is computed with which, and what ends when they go.

use std::collections::BTreeMap;

use super::*;
use crate::kv;
use crate::plan::{AdapterId, HeadSpec};
use crate::testing::{EchoAdapter, EchoHead, echo_logits_with, echo_tokens_with};

/// Attaches an echo's adapter under an id of its own.
fn attach(bench: &mut Bench, id: u64, number: u64) -> Adapter {
    let adapter = Adapter { id: AdapterId(id), root: kv::root(&[number as u8; 32]) };
    bench.engine.attach(adapter.id, Box::new(EchoAdapter(number))).unwrap();
    adapter
}

#[test]
fn one_step_mixes_the_base_and_its_adapters() {
    let mut bench = Bench::new(EchoRunner::new(generative(64)), 8);
    let [one, two] = [1, 2].map(|number| attach(&mut bench, number, number));
    let base = bench.generate(0, greedy(&[1, 2], 5));
    let first = bench.generate_with(1, greedy(&[1, 2], 5), Some(one));
    let second = bench.generate_with(2, greedy(&[1, 2], 5), Some(two));
    bench.finish();
    assert_eq!((bench.steps, bench.log.most_rows()), (5, 3));
    assert_eq!(ids(base), echo_tokens(&[1, 2], 5, WIDTH));
    for (stream, number) in [(first, 1), (second, 2)] {
        assert_eq!(ids(stream), echo_tokens_with(Some(EchoAdapter(number)), &[1, 2], 5, WIDTH));
    }
}

#[test]
fn encoder_calls_carry_their_adapter() {
    let mut bench = Bench::new(EchoRunner::new(shapes(6, None)), 8);
    let one = attach(&mut bench, 1, 7);
    let (answer, with) = oneshot::channel();
    let account = bench.account.clone();
    bench.engine.encode(
        EncodeJob {
            id: SequenceId(0),
            inputs: vec![vec![1, 2].into()],
            adapter: Some(one.id),
            answer,
            place: None,
            claim: Arc::default(),
        },
        account,
    );
    let base = bench.encode(1, &[&[1, 2]]);
    bench.finish();
    assert_eq!(bench.steps, 1);
    let expected = echo_logits_with(Some(EchoAdapter(7)), &[1, 2], WIDTH);
    assert_eq!(with.blocking_recv().unwrap().unwrap(), [expected]);
    assert_eq!(base.blocking_recv().unwrap().unwrap(), [echo_logits(&[1, 2], WIDTH)]);
}

const NARROW: usize = 3;
const HEAD: HeadSpec = HeadSpec { width: NARROW, padding: None };

#[test]
fn an_adapter_may_answer_with_another_number_of_numbers_than_its_model() {
    let config = EngineConfig::default();
    let runner = Box::new(EchoRunner::new(shapes(6, None)));
    let mut engine = Engine::new(runner, shapes(6, None), &config, Arc::default());
    let head = engine.attach(AdapterId(1), Box::new(EchoHead(EchoAdapter(7), HEAD))).unwrap();
    assert_eq!(head, Some(HEAD));
    let mut encode = |id: u64, adapter| {
        let (answer, answered) = oneshot::channel();
        let job = EncodeJob {
            id: SequenceId(id),
            inputs: vec![vec![1, 2].into()],
            adapter,
            answer,
            place: None,
            claim: Arc::default(),
        };
        engine.encode(job, Account::idle());
        answered
    };
    let (with, base) = (encode(0, Some(AdapterId(1))), encode(1, None));
    engine.step(false).unwrap();
    let expected = echo_logits_with(Some(EchoAdapter(7)), &[1, 2], WIDTH);
    assert_eq!(with.blocking_recv().unwrap().unwrap(), [expected[..NARROW].to_vec()]);
    assert_eq!(base.blocking_recv().unwrap().unwrap(), [echo_logits(&[1, 2], WIDTH)]);
}

#[test]
fn what_is_left_of_an_adapter_s_sequences_ends_when_it_goes_and_nothing_else_does() {
    let mut bench = Bench::new(EchoRunner::new(generative(64)), 2);
    let [one, two] = [1, 2].map(|number| attach(&mut bench, number, number));
    let running = bench.generate_with(0, greedy(&[1], 30), Some(one));
    let stays = bench.generate_with(1, greedy(&[1], 5), Some(two));
    let waiting = bench.generate_with(2, greedy(&[1], 30), Some(one));
    bench.step();
    let weights = bench.engine.detach(one.id).unwrap();
    assert_eq!(*weights.downcast::<EchoAdapter>().unwrap(), EchoAdapter(1));
    assert!(bench.engine.detach(one.id).is_none());
    let late = bench.generate_with(3, greedy(&[1], 30), Some(one));
    bench.finish();
    for stream in [running, waiting, late] {
        assert_eq!(failure(stream), ErrorKind::ModelFailed);
    }
    assert_eq!(ids(stays), echo_tokens_with(Some(EchoAdapter(2)), &[1], 5, WIDTH));
}

#[test]
fn calls_of_an_encoder_s_adapter_end_when_it_goes() {
    let mut bench = Bench::new(EchoRunner::new(shapes(4, None)), 8);
    let one = attach(&mut bench, 1, 7);
    let (answer, left) = oneshot::channel();
    let inputs = vec![vec![1, 2, 3].into(), vec![4, 5, 6].into()];
    let account = bench.account.clone();
    bench.engine.encode(
        EncodeJob {
            id: SequenceId(0),
            inputs,
            adapter: Some(one.id),
            answer,
            place: None,
            claim: Arc::default(),
        },
        account,
    );
    let stays = bench.encode(1, &[&[3]]);
    bench.step();
    assert!(bench.engine.detach(one.id).is_some());
    bench.finish();
    assert!(left.blocking_recv().unwrap().is_err());
    assert_eq!(stays.blocking_recv().unwrap().unwrap(), [echo_logits(&[3], WIDTH)]);
}

#[test]
fn a_runner_that_refuses_an_adapter_serves_on() {
    let mut bench = Bench::new(EchoRunner::new(generative(64)), 8);
    assert!(bench.engine.attach(AdapterId(1), Box::new("not one")).is_err());
    assert!(bench.engine.detach(AdapterId(1)).is_none());
    let stream = bench.generate(0, greedy(&[1], 3));
    bench.finish();
    assert_eq!(ids(stream), echo_tokens(&[1], 3, WIDTH));
}

#[derive(Debug, Clone)]
enum Act {
    /// A sequence of so many prompt and new tokens, with an adapter or without.
    Submit(usize, usize, Option<usize>),
    Attach(usize),
    Detach(usize),
    Step,
}

/// Few versions, so that they come back.
const VERSIONS: usize = 3;

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (1..20_usize, 1..6_usize, prop::option::weighted(0.8, 0..VERSIONS))
            .prop_map(|(prompt, tokens, with)| Act::Submit(prompt, tokens, with)),
        2 => (0..VERSIONS).prop_map(Act::Attach),
        1 => (0..VERSIONS).prop_map(Act::Detach),
        6 => Just(Act::Step),
    ]
}

proptest! {
    /// All prompts begin alike, so that prefixes are found wherever they may be. The runner
    /// fails the step when KV is read that another adapter wrote, and when a row names an
    /// adapter that has left. What ends well is what its own adapter answers alone; what ends
    /// otherwise lost its adapter.
    #[test]
    fn prefixes_never_cross_adapters_and_none_outlives_its_detaching(
        acts in prop::collection::vec(act(), 1..80),
        blocks in 7..20_usize,
        block_tokens in 1..5_usize,
        step_tokens in 1..24_usize,
    ) {
        let spec = shapes(step_tokens, Some(KvSpec::whole(block_tokens, blocks)));
        let mut bench = Bench::new(EchoRunner::new(spec), 4);
        let mut attached: BTreeMap<usize, Adapter> = BTreeMap::new();
        let mut streams = Vec::new();
        let mut ids = 0;
        let mut detached = Vec::new();
        for act in acts {
            match act {
                Act::Submit(prompt, tokens, with) => {
                    let longest = blocks * block_tokens;
                    let adapter = with.and_then(|version| attached.get(&version).copied());
                    if prompt >= longest || (with.is_some() && adapter.is_none()) {
                        continue;
                    }
                    let prompt: Vec<u32> = (0..prompt as u32).collect();
                    let id = streams.len() as u64;
                    let stream = bench.generate_with(id, greedy(&prompt, tokens), adapter);
                    streams.push((stream, prompt, with, adapter));
                }
                Act::Attach(version) => {
                    ids += 1;
                    let next = attach(&mut bench, ids, version as u64 + 1);
                    if let Some(before) = attached.insert(version, next) {
                        prop_assert!(bench.engine.detach(before.id).is_some());
                        detached.push(before.id);
                    }
                }
                Act::Detach(version) => {
                    if let Some(adapter) = attached.remove(&version) {
                        prop_assert!(bench.engine.detach(adapter.id).is_some());
                        detached.push(adapter.id);
                    }
                }
                Act::Step => {
                    if bench.engine.has_work() {
                        bench.step();
                    }
                }
            }
        }
        bench.finish();
        prop_assert_eq!(bench.running(), 0);
        for (stream, prompt, version, adapter) in streams {
            let seen = items(stream);
            let number = version.map(|version| EchoAdapter(version as u64 + 1));
            let expected = echo_tokens_with(number, &prompt, seen.len(), WIDTH);
            let left = adapter.is_some_and(|adapter| detached.contains(&adapter.id));
            for (index, item) in seen.iter().enumerate() {
                match item {
                    Ok(token) => prop_assert_eq!(token.id, expected[index]),
                    Err(_) => prop_assert!(left && index + 1 == seen.len()),
                }
            }
            let ended = |item: &TokenResult| item.as_ref().map_or(true, |it| it.finish.is_some());
            prop_assert!(seen.last().is_some_and(ended));
        }
    }
}
