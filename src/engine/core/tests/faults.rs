//! What fails in a step fails as few as it can.

use super::*;

#[test]
fn a_refused_row_fails_its_sequence_alone() {
    let mut bench = Bench::new(EchoRunner::new(generative(64)).refusing(99), 8);
    let good = bench.generate(0, greedy(&[1, 2], 4));
    let bad = bench.generate(1, greedy(&[1, 99], 4));
    let other = bench.generate(2, greedy(&[3], 4));
    bench.finish();
    assert_eq!(ids(good), echo_tokens(&[1, 2], 4, WIDTH));
    assert_eq!(ids(other), echo_tokens(&[3], 4, WIDTH));
    assert_eq!(failure(bad), ErrorKind::InvalidInput);
}

#[test]
fn a_step_without_room_is_tried_row_by_row_and_a_row_without_room_fails_alone() {
    for (rows, fails) in [(1, false), (0, true)] {
        let mut bench = Bench::new(EchoRunner::new(generative(64)).cramped(99, rows), 8);
        let good = bench.generate(0, greedy(&[1, 2], 4));
        let large = bench.generate(1, greedy(&[1, 99], 4));
        bench.finish();
        assert_eq!(ids(good), echo_tokens(&[1, 2], 4, WIDTH));
        let last = items(large).pop().unwrap();
        assert_eq!(last.is_err(), fails);
        let told = last.err().map(|told| (told.kind(), told.retry()));
        assert!(told.is_none_or(|told| told == (ErrorKind::Overloaded, RetryHint::Later)));
    }
}

#[test]
fn logits_that_are_not_numbers_fail_their_sequence_alone() {
    let mut bench = Bench::new(EchoRunner::new(generative(64)).garbling(99), 8);
    let good = bench.generate(0, greedy(&[1, 2], 4));
    let bad = bench.generate(1, greedy(&[1, 99], 4));
    bench.finish();
    assert_eq!(ids(good), echo_tokens(&[1, 2], 4, WIDTH));
    assert_eq!(failure(bad), ErrorKind::ModelFailed);
}

#[test]
fn a_panic_in_a_step_is_a_device_failure() {
    let mut bench = Bench::new(EchoRunner::new(generative(64)).panicking(99), 8);
    let stream = bench.generate(0, greedy(&[99], 4));
    assert_eq!(
        bench.engine.step(false),
        Err(DeviceFailure("panic in a step: token 99".to_owned()))
    );
    bench.engine.end(&Failure::new(ErrorKind::ModelFailed, "over"));
    assert_eq!(items(stream).len(), 1);
}

#[test]
fn a_runner_that_returns_too_little_fails_its_sequences() {
    struct Mute;
    impl ModelRunner for Mute {
        fn spec(&self) -> RunnerSpec {
            generative(8)
        }
        fn forward(&mut self, _: &StepPlan) -> Result<StepOutput, RunnerError> {
            Ok(StepOutput::default())
        }
        fn touched(&self) -> Bytes {
            Bytes::ZERO
        }
        fn give_back(&mut self, _: usize) -> Option<Box<dyn Any + Send>> {
            None
        }
    }
    let row = Row { tokens: vec![1], output: true, ..Row::default() };
    let widths = (generative(8).output_width, &HashMap::new());
    let outcomes = forward(&mut Mute, widths, &StepPlan { rows: vec![row] }).unwrap();
    assert!(matches!(&outcomes[..], [RowOutcome::Failed(f)] if f.kind() == ErrorKind::ModelFailed));
    let refused = warm_up(&mut Mute, &generative(8));
    assert!(matches!(refused, Err(WarmUpError::Refused(_))));
}
