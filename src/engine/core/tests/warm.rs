//! Warm means: each shape has run, or one that mixes them.

use super::*;

#[test]
fn every_shape_warms_up() {
    for step_tokens in [1, 2, 3, 64] {
        for (block_tokens, blocks) in [(1, 2), (2, 1), (1, 3), (1, 4), (2, 2), (3, 3), (16, 8)] {
            let spec = shapes(step_tokens, Some(KvSpec::whole(block_tokens, blocks)));
            assert_eq!(warm_up(&mut EchoRunner::new(spec), &spec), Ok(()), "{spec:?}");
        }
        let spec = shapes(step_tokens, None);
        assert_eq!(warm_up(&mut EchoRunner::new(spec), &spec), Ok(()), "{spec:?}");
    }
}

#[test]
fn shapes_that_need_no_preparation_warm_up_in_one_step() {
    struct Plain(RunnerSpec, Vec<StepPlan>);
    impl ModelRunner for Plain {
        fn spec(&self) -> RunnerSpec {
            self.0
        }
        fn forward(&mut self, plan: &StepPlan) -> Result<StepOutput, RunnerError> {
            self.1.push(plan.clone());
            Ok(StepOutput { rows: vec![vec![0.0; self.0.output_width]; plan.rows.len()] })
        }
        fn prepares_shapes(&self) -> bool {
            false
        }
        fn touched(&self) -> Bytes {
            Bytes::ZERO
        }
        fn give_back(&mut self, _: usize) -> Option<Box<dyn Any + Send>> {
            None
        }
    }
    for spec in [generative(8), shapes(8, None)] {
        let mut runner = Plain(spec, Vec::new());
        warm_up(&mut runner, &spec).unwrap();
        let [plan] = &runner.1[..] else { panic!("{} steps", runner.1.len()) };
        let mut lengths: Vec<usize> = plan.rows.iter().map(|row| row.tokens.len()).collect();
        lengths.sort_unstable();
        assert!(lengths.len() == 2 && lengths[0] == 1 && lengths[1] > 1, "{lengths:?}");
    }
    let cramped = shapes(1, Some(KvSpec::whole(1, 2)));
    let mut runner = Plain(cramped, Vec::new());
    warm_up(&mut runner, &cramped).unwrap();
    assert_eq!(runner.1.len(), 2, "no step holds both");
}
