//! Who goes first where calls compete for a step.

use super::*;

#[test]
fn a_call_of_few_inputs_does_not_wait_for_one_of_many() {
    let mut bench = Bench::new(EchoRunner::new(shapes(8, None)), 64);
    let many: Vec<&[u32]> = vec![&[1, 2, 3, 4]; 20];
    let long = bench.encode(1, &many);
    let mut short = bench.encode(2, &[&[1, 2]]);
    bench.step();
    assert_eq!(short.try_recv().unwrap().unwrap(), [echo_logits(&[1, 2], WIDTH)]);
    bench.finish();
    assert_eq!(long.blocking_recv().unwrap().unwrap().len(), 20);
    // Eight tokens a step: the long one lost the room of one row only.
    assert_eq!(bench.steps, 11);
}
