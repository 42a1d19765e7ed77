//! Sequences with constraints, and several of one prompt.

use super::*;
use crate::constraint::{Allowed, Progress, Unmet};

#[test]
fn several_answers_to_one_prompt_read_it_once() {
    let mut bench = Bench::new(EchoRunner::new(generative(64)), 8);
    let prompt: Vec<u32> = (0..11).collect();
    let streams: Vec<_> = (0..4).map(|id| bench.generate(id, greedy(&prompt, 3))).collect();
    bench.step();
    assert_eq!(bench.running(), 1);
    bench.step();
    assert_eq!((bench.running(), bench.log.most_rows()), (4, 4));
    bench.finish();
    let reused: Vec<_> = streams.into_iter().map(|stream| tokens(stream)[2].reused).collect();
    // Two full blocks of four; the last token is computed in any case.
    assert_eq!(reused, [0, 8, 8, 8]);
}

#[test]
fn a_constrained_sequence_ends_with_the_token_that_completes_it() {
    let mut bench = Bench::new(EchoRunner::new(generative(64)), 8);
    let complete = bench.generate_within(0, greedy(&[6], 30), Some(5));
    let long = bench.generate_within(1, greedy(&[6], 4), Some(5));
    bench.finish();
    let complete = tokens(complete);
    assert_eq!(complete.len(), 5);
    assert_eq!(complete[4].finish, Some(FinishReason::Complete));
    assert!(complete.windows(2).all(|pair| (pair[1].id + 16 - pair[0].id) % 16 <= 2));
    assert_eq!(tokens(long)[3].finish, Some(FinishReason::Length));
}

#[test]
fn a_constraint_that_fails_ends_its_own_sequence_alone() {
    #[derive(Debug)]
    struct Fails;
    impl Constraint for Fails {
        fn allowed(&mut self) -> Result<Allowed<'_>, Unmet> {
            Err(Unmet("too much work".into()))
        }
        fn accept(&mut self, _: u32) -> Result<Progress, Unmet> {
            Ok(Progress::Open)
        }
    }
    let mut bench = Bench::new(EchoRunner::new(generative(64)), 8);
    let (tokens, failing) = mpsc::channel(4);
    let account = bench.account.clone();
    bench.engine.generate(
        GenerateJob {
            id: SequenceId(0),
            spec: greedy(&[1], 3),
            adapter: None,
            constraint: Some(Box::new(Fails)),
            tokens,
            place: None,
            submitted: Instant::now(),
            claim: Arc::default(),
        },
        account,
    );
    let good = bench.generate(1, greedy(&[6], 3));
    bench.finish();
    let error = items(failing).pop().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("too much work"), "{error}");
    assert_eq!(ids(good), echo_tokens(&[6], 3, WIDTH));
}
