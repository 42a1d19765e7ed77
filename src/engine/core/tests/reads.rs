//! Texts that an adapter's own head answers, beside sequences.

use super::*;
use crate::kv;
use crate::plan::{AdapterId, HeadSpec};
use crate::testing::{EchoAdapter, EchoHead, echo_logits_with};

const HEAD: HeadSpec = HeadSpec { width: 3, padding: None };

type Answer = oneshot::Receiver<Result<Vec<f32>, Failure>>;

/// An adapter with a head of its own.
fn headed(bench: &mut Bench, number: u64) -> Adapter {
    let adapter = Adapter { id: AdapterId(number), root: kv::root(&[number as u8; 32]) };
    let weights = Box::new(EchoHead(EchoAdapter(number), HEAD));
    assert_eq!(bench.engine.attach(adapter.id, weights).unwrap(), Some(HEAD));
    adapter
}

fn read(bench: &mut Bench, id: u64, adapter: Adapter, tokens: &[u32]) -> Answer {
    let (answer, answered) = oneshot::channel();
    let (tokens, claim) = (tokens.to_vec(), Arc::default());
    let job = ReadJob { id: SequenceId(id), tokens, adapter, claim, answer, place: None };
    let account = bench.account.clone();
    bench.engine.read(job, account);
    answered
}

fn wanted(number: u64, tokens: &[u32]) -> Vec<f32> {
    let mut answer = echo_logits_with(Some(EchoAdapter(number)), tokens, WIDTH);
    answer.truncate(HEAD.width);
    answer
}

#[test]
fn texts_are_read_in_chunks_in_the_steps_of_sequences() {
    let mut bench = Bench::new(EchoRunner::new(generative(8)), 8);
    let one = headed(&mut bench, 1);
    let stream = bench.generate(0, greedy(&[1, 2], 6));
    let text: Vec<u32> = (0..20).collect();
    let (long, short) = (read(&mut bench, 1, one, &text), read(&mut bench, 2, one, &[5]));
    bench.finish();
    assert_eq!(long.blocking_recv().unwrap().unwrap(), wanted(1, &text));
    assert_eq!(short.blocking_recv().unwrap().unwrap(), wanted(1, &[5]));
    assert_eq!(ids(stream), echo_tokens(&[1, 2], 6, WIDTH));
    assert_eq!(bench.steps, 6, "none was theirs alone");
    assert_eq!(bench.running(), 0);
}

#[test]
fn a_text_takes_no_room_for_a_token_that_never_comes() {
    // Ten blocks of four positions, and a context of forty.
    let spec = shapes(64, Some(KvSpec::whole(4, 10)));
    let mut bench = Bench::new(EchoRunner::new(spec), 8);
    let one = headed(&mut bench, 1);
    let text: Vec<u32> = (0..CONTEXT as u32).collect();
    let answer = read(&mut bench, 1, one, &text);
    bench.finish();
    assert_eq!(answer.blocking_recv().unwrap().unwrap(), wanted(1, &text));
}

#[test]
fn what_is_known_of_a_text_is_its_own_adapter_s() {
    let mut bench = Bench::new(EchoRunner::new(generative(64)), 8);
    let (one, two) = (headed(&mut bench, 1), headed(&mut bench, 2));
    let text: Vec<u32> = (0..17).collect();
    // The base, and each adapter, of the same tokens one after another.
    let base = bench.generate(0, greedy(&text, 2));
    bench.finish();
    for (id, adapter) in [(1, one), (2, two), (3, one), (4, two)] {
        let answer = read(&mut bench, id, adapter, &text);
        bench.finish();
        assert_eq!(answer.blocking_recv().unwrap().unwrap(), wanted(adapter.id.0, &text));
    }
    assert_eq!(ids(base), echo_tokens(&text, 2, WIDTH));
}

#[test]
fn an_adapter_is_asked_for_what_it_does() {
    let mut bench = Bench::new(EchoRunner::new(generative(64)), 8);
    let one = headed(&mut bench, 1);
    let plain = Adapter { id: AdapterId(2), root: kv::root(&[2; 32]) };
    bench.engine.attach(plain.id, Box::new(EchoAdapter(2))).unwrap();
    let stream = bench.generate_with(0, greedy(&[1], 3), Some(one));
    assert_eq!(failure(stream), ErrorKind::InvalidInput);
    let answer = read(&mut bench, 1, plain, &[1]).blocking_recv().unwrap().unwrap_err();
    assert_eq!(answer.kind(), ErrorKind::InvalidInput);
    bench.engine.detach(one.id).unwrap();
    let answer = read(&mut bench, 2, one, &[1]).blocking_recv().unwrap().unwrap_err();
    assert_eq!(answer.kind(), ErrorKind::ModelFailed);
}

#[test]
fn a_head_that_answers_with_no_number_fails_its_text_alone() {
    let mut bench = Bench::new(EchoRunner::new(generative(64)).garbling(9), 8);
    let one = headed(&mut bench, 1);
    let (bad, good) = (read(&mut bench, 1, one, &[9]), read(&mut bench, 2, one, &[8]));
    bench.finish();
    assert_eq!(bad.blocking_recv().unwrap().unwrap_err().kind(), ErrorKind::ModelFailed);
    assert_eq!(good.blocking_recv().unwrap().unwrap(), wanted(1, &[8]));
}

proptest! {
    /// Texts of several adapters and sequences in pools too small for all of them: each is answered
    /// as if it were alone, however often it gave way.
    #[test]
    fn texts_and_sequences_that_compete_are_answered_as_if_alone(
        texts in prop::collection::vec((1..24_usize, 0..3_u64), 1..24),
        blocks in 7..20_usize,
        block_tokens in 1..5_usize,
        step_tokens in 1..24_usize,
    ) {
        let spec = shapes(step_tokens, Some(KvSpec::whole(block_tokens, blocks)));
        let mut bench = Bench::new(EchoRunner::new(spec), 4);
        let adapters = [headed(&mut bench, 1), headed(&mut bench, 2)];
        let (mut answers, mut streams) = (Vec::new(), Vec::new());
        for (id, (length, with)) in (0..).zip(texts) {
            let text: Vec<u32> = (0..length.min(blocks * block_tokens - 1) as u32).collect();
            match with {
                0 => streams.push((bench.generate(id, greedy(&text, 5)), text)),
                with => {
                    let adapter = adapters[with as usize - 1];
                    answers.push((read(&mut bench, id, adapter, &text), with, text));
                }
            }
            if id % 3 == 0 && bench.engine.has_work() {
                bench.step();
            }
        }
        bench.finish();
        prop_assert_eq!(bench.running(), 0);
        for (answer, number, text) in answers {
            prop_assert_eq!(answer.blocking_recv().unwrap().unwrap(), wanted(number, &text));
        }
        for (stream, text) in streams {
            // To its end, or to that of the pool.
            let wanted = (blocks * block_tokens).min(CONTEXT) - text.len();
            prop_assert_eq!(ids(stream), echo_tokens(&text, wanted.min(5), WIDTH));
        }
    }
}
