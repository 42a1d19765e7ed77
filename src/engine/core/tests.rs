use std::any::Any;

use proptest::prelude::*;
use roundhouse_types::{Bytes, ErrorKind, RetryHint};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::check::check_generate;
use crate::constraint::Constraint;
use crate::plan::{KvSpec, StepOutput};
use crate::request::{FinishReason, GenerateSpec, Sampling, TokenOut, TokenResult};
use crate::scheduler::Adapter;
use crate::testing::{CountingConstraint, EchoLog, EchoRunner, echo_logits, echo_tokens};

mod adapters;
mod constrained;
mod elastic;
mod faults;
mod reads;
mod turns;
mod warm;

const WIDTH: usize = 16;
const CONTEXT: usize = 40;

fn shapes(step_tokens: usize, kv: Option<KvSpec>) -> RunnerSpec {
    RunnerSpec { output_width: WIDTH, context: CONTEXT, step_tokens, kv }
}

fn generative(step_tokens: usize) -> RunnerSpec {
    shapes(step_tokens, Some(KvSpec::whole(4, 100)))
}

fn greedy(prompt: &[u32], max_tokens: usize) -> GenerateSpec {
    GenerateSpec {
        prompt: prompt.to_vec(),
        max_tokens,
        min_tokens: 0,
        stop_tokens: Vec::new(),
        sampling: Sampling::GREEDY,
        top_logprobs: 0,
        prompt_logprobs: None,
        prompt_ranks: false,
        logit_bias: Vec::new(),
    }
}

/// An engine driven by hand, without a lane.
struct Bench {
    engine: Engine,
    /// Whose all work is.
    account: Arc<Account>,
    log: Arc<EchoLog>,
    steps: usize,
}

impl Bench {
    fn new(runner: EchoRunner, running: usize) -> Self {
        let (log, spec) = (runner.log(), runner.spec());
        let max_running = running.try_into().unwrap();
        let config = EngineConfig { max_running, ..EngineConfig::default() };
        let engine = Engine::new(Box::new(runner), spec, &config, Arc::default());
        Self { engine, account: Account::idle(), log, steps: 0 }
    }

    fn generate(&mut self, id: u64, spec: GenerateSpec) -> mpsc::Receiver<TokenResult> {
        self.generate_as(id, spec, None, None)
    }

    fn generate_with(
        &mut self,
        id: u64,
        spec: GenerateSpec,
        adapter: Option<Adapter>,
    ) -> mpsc::Receiver<TokenResult> {
        self.generate_as(id, spec, adapter, None)
    }

    fn generate_within(
        &mut self,
        id: u64,
        spec: GenerateSpec,
        length: Option<usize>,
    ) -> mpsc::Receiver<TokenResult> {
        self.generate_as(id, spec, None, length)
    }

    fn generate_as(
        &mut self,
        id: u64,
        spec: GenerateSpec,
        adapter: Option<Adapter>,
        length: Option<usize>,
    ) -> mpsc::Receiver<TokenResult> {
        let counting = |length| -> Box<dyn Constraint> {
            Box::new(CountingConstraint::new(spec.prompt[0], WIDTH as u32, length))
        };
        let constraint = length.map(counting);
        check_generate(&spec, &self.engine.spec).unwrap();
        let (tokens, stream) = mpsc::channel(spec.max_tokens + 1);
        let submitted = Instant::now();
        let account = self.account.clone();
        self.engine.generate(
            GenerateJob {
                id: SequenceId(id),
                spec,
                adapter,
                constraint,
                tokens,
                place: None,
                submitted,
                claim: Arc::default(),
            },
            account,
        );
        stream
    }

    fn encode(
        &mut self,
        id: u64,
        inputs: &[&[u32]],
    ) -> oneshot::Receiver<Result<Vec<Vec<f32>>, Failure>> {
        let (answer, vectors) = oneshot::channel();
        let inputs = inputs.iter().map(|input| input.to_vec().into()).collect();
        let account = self.account.clone();
        self.engine.encode(
            EncodeJob {
                id: SequenceId(id),
                inputs,
                adapter: None,
                answer,
                place: None,
                claim: Arc::default(),
            },
            account,
        );
        vectors
    }

    fn step(&mut self) {
        self.engine.step(false).unwrap();
        self.steps += 1;
    }

    fn finish(&mut self) {
        while self.engine.has_work() {
            self.step();
        }
    }

    fn running(&self) -> usize {
        self.engine.published.running.load(Ordering::Relaxed)
    }
}

/// All that a stream yields.
fn items(mut stream: mpsc::Receiver<TokenResult>) -> Vec<TokenResult> {
    std::iter::from_fn(|| stream.try_recv().ok()).collect()
}

/// The tokens of a stream that ended well.
fn tokens(stream: mpsc::Receiver<TokenResult>) -> Vec<TokenOut> {
    let tokens: Vec<_> = items(stream).into_iter().map(Result::unwrap).collect();
    let endings = tokens.iter().filter(|token| token.finish.is_some()).count();
    assert_eq!((endings, tokens.last().unwrap().finish.is_some()), (1, true));
    tokens
}

fn ids(stream: mpsc::Receiver<TokenResult>) -> Vec<u32> {
    tokens(stream).iter().map(|token| token.id).collect()
}

fn failure(stream: mpsc::Receiver<TokenResult>) -> ErrorKind {
    items(stream).pop().unwrap().unwrap_err().kind()
}

/// What one sequence yields alone, in a pool with room for everything.
fn alone(spec: GenerateSpec, length: Option<usize>) -> Vec<TokenOut> {
    let mut bench = Bench::new(EchoRunner::new(generative(1_000)), 1);
    let stream = bench.generate_within(0, spec, length);
    bench.finish();
    tokens(stream)
}

#[test]
fn a_sequence_ends_at_max_tokens_at_the_context_and_at_a_stop_token() {
    let mut bench = Bench::new(EchoRunner::new(generative(64)), 8);
    let counted = bench.generate(0, greedy(&[1, 2, 3], 5));
    let full = bench.generate(1, greedy(&[4, 5], 1_000));
    let expected = echo_tokens(&[6], 9, WIDTH);
    let stop = expected[8];
    let first_stop = expected.iter().position(|id| *id == stop).unwrap();
    let stopped = bench.generate(2, GenerateSpec { stop_tokens: vec![stop], ..greedy(&[6], 30) });
    bench.finish();
    assert_eq!(ids(counted), echo_tokens(&[1, 2, 3], 5, WIDTH));
    assert_eq!(ids(full), echo_tokens(&[4, 5], CONTEXT - 2, WIDTH));
    let stopped = tokens(stopped);
    assert_eq!(stopped.len(), first_stop + 1);
    assert_eq!(stopped.last().unwrap().finish, Some(FinishReason::StopToken));
}

#[test]
fn a_prompt_is_scored_token_by_token_in_chunks_of_what_the_step_has_vectors_for() {
    let prompt = [3, 1, 4, 1, 5, 9, 2, 6];
    let ranked = |prompt_ranks| GenerateSpec {
        prompt_logprobs: Some(2),
        prompt_ranks,
        ..greedy(&prompt, 2)
    };
    let mut bench = Bench::new(EchoRunner::new(generative(64)), 3);
    // What another left in the pool is not used: each of its tokens is asked for.
    let before = bench.generate(0, greedy(&prompt, 1));
    bench.finish();
    let steps = bench.steps;
    let stream = bench.generate(1, ranked(true));
    bench.finish();
    assert_eq!(bench.steps - steps, 4, "three, three and two tokens, and a decode");
    let said = tokens(stream);
    let plain = bench.generate(2, ranked(false));
    bench.finish();
    let plain = tokens(plain);
    assert!(plain[0].prompt.iter().all(|token| token.rank.is_none()), "none asked for its rank");
    assert_eq!(said[0].id, tokens(before)[0].id);
    assert_eq!((said[0].prompt.len(), said[1].prompt.len()), (7, 0));
    for (index, token) in said[0].prompt.iter().enumerate() {
        let logits = echo_logits(&prompt[..=index], WIDTH);
        let whole: f32 = logits.iter().map(|logit| logit.exp()).sum();
        let expected = logits[prompt[index + 1] as usize] - whole.ln();
        assert!((token.logprob - expected).abs() < 1e-5, "{index}: {token:?} for {expected}");
        assert_eq!(token.top.len(), 2);
        assert!(token.top[0].1 >= token.logprob);
        let own = logits[prompt[index + 1] as usize];
        let before = logits.iter().filter(|logit| **logit > own).count();
        assert_eq!(token.rank, Some(1 + before), "{index}");
        assert_eq!(
            (token.logprob, &token.top),
            (plain[0].prompt[index].logprob, &plain[0].prompt[index].top)
        );
        assert_eq!(said[0].top.len(), 0, "the answer's alternatives are counted apart");
    }
}

#[test]
fn a_step_is_one_forward_whatever_the_number_of_sequences() {
    let forwards = |sequences: u64| {
        let mut bench = Bench::new(EchoRunner::new(generative(256)), 64);
        let streams: Vec<_> =
            (0..sequences).map(|id| bench.generate(id, greedy(&[1, 2], 10))).collect();
        bench.finish();
        assert_eq!(bench.log.forwards(), bench.steps);
        assert_eq!(bench.log.most_rows() as u64, sequences);
        drop(streams);
        bench.log.forwards()
    };
    assert_eq!(forwards(1), 10);
    assert_eq!(forwards(32), 10);
}

#[test]
fn a_preempted_sequence_goes_on_as_if_nothing_had_happened() {
    let kv = Some(KvSpec::whole(2, 8));
    let mut bench = Bench::new(EchoRunner::new(shapes(64, kv)), 8);
    let sampling =
        Sampling { temperature: 1.0, seed: 5, frequency_penalty: 0.5, ..Sampling::GREEDY };
    let spec = |first| GenerateSpec { sampling, ..greedy(&[first, 2, 3], 11) };
    let streams = [bench.generate(0, spec(1)), bench.generate(1, spec(9))];
    let mut preempted = 0;
    while bench.engine.has_work() {
        bench.step();
        preempted = preempted.max(bench.engine.published.preempted.load(Ordering::Relaxed));
    }
    assert_eq!(preempted, 1);
    for (first, stream) in [1, 9].into_iter().zip(streams) {
        assert_eq!(tokens(stream), alone(spec(first), None));
    }
}

#[test]
fn a_client_that_disconnects_frees_its_sequence() {
    let mut bench = Bench::new(EchoRunner::new(generative(64)), 8);
    let left = bench.generate(0, greedy(&[1], 30));
    let stays = bench.generate(1, greedy(&[2], 30));
    bench.step();
    assert_eq!(bench.running(), 2);
    drop(left);
    bench.step();
    assert_eq!(bench.running(), 1);
    bench.engine.abort(SequenceId(1));
    assert!(!bench.engine.has_work());
    assert_eq!(items(stays).len(), 2);
}

#[test]
fn encoder_rows_of_many_calls_share_a_step_up_to_its_tokens() {
    let mut bench = Bench::new(EchoRunner::new(shapes(6, None)), 8);
    let first = bench.encode(0, &[&[1, 2, 3], &[4]]);
    let second = bench.encode(1, &[&[5, 6], &[7, 8, 9], &[1]]);
    bench.finish();
    assert_eq!((bench.steps, bench.log.forwards()), (2, 2));
    let vector = |input: &[u32]| echo_logits(input, WIDTH);
    assert_eq!(first.blocking_recv().unwrap().unwrap(), [vector(&[1, 2, 3]), vector(&[4])]);
    let expected = [vector(&[5, 6]), vector(&[7, 8, 9]), vector(&[1])];
    assert_eq!(second.blocking_recv().unwrap().unwrap(), expected);
}

#[test]
fn a_step_s_vectors_are_bounded_by_their_bytes() {
    // So wide that a step has room for the vectors of three tokens.
    let width = crate::RESULT_BYTES / 4 / 3;
    let mut bench =
        Bench::new(EchoRunner::new(RunnerSpec { output_width: width, ..shapes(64, None) }), 8);
    let first = bench.encode(0, &[&[1], &[2]]);
    let second = bench.encode(1, &[&[3], &[4]]);
    bench.finish();
    assert_eq!((bench.steps, bench.log.forwards()), (2, 2));
    for answer in [first, second] {
        let vectors = answer.blocking_recv().unwrap().unwrap();
        assert!(vectors.len() == 2 && vectors.iter().all(|vector| vector.len() == width));
    }
}

#[test]
fn a_failing_input_fails_its_call_alone() {
    for runner in [
        EchoRunner::new(shapes(64, None)).refusing(99),
        EchoRunner::new(shapes(64, None)).garbling(99),
    ] {
        let mut bench = Bench::new(runner, 8);
        let bad = bench.encode(0, &[&[1], &[99], &[2]]);
        let good = bench.encode(1, &[&[3]]);
        bench.finish();
        assert!(bad.blocking_recv().unwrap().is_err());
        assert_eq!(good.blocking_recv().unwrap().unwrap(), [echo_logits(&[3], WIDTH)]);
    }
}

#[test]
fn an_aborted_call_leaves_the_queue() {
    let mut bench = Bench::new(EchoRunner::new(shapes(4, None)), 8);
    let left = bench.encode(0, &[&[1, 2, 3], &[99, 98, 97]]);
    let stays = bench.encode(1, &[&[3]]);
    bench.step();
    bench.engine.abort(SequenceId(0));
    bench.finish();
    assert!(left.blocking_recv().is_err());
    assert_eq!(stays.blocking_recv().unwrap().unwrap().len(), 1);
    assert!(!bench.log.saw(99));
}

fn warm_up(runner: &mut dyn ModelRunner, spec: &RunnerSpec) -> Result<(), WarmUpError> {
    let mut shapes = WarmUp::new(runner, spec);
    while !shapes.step(runner, spec)? {}
    Ok(())
}

#[derive(Debug, Clone)]
struct Request {
    spec: GenerateSpec,
    /// Of its constraint.
    length: Option<usize>,
    submitted: usize,
    aborted: Option<usize>,
}

fn request() -> impl Strategy<Value = Request> {
    let sampling =
        (prop_oneof![Just(0.0_f32), 0.2..2.0_f32], 0..6_usize, 0.3..1.0_f32, any::<u64>(), 0..2_u8)
            .prop_map(|(temperature, top_k, top_p, seed, penalties)| {
                let on = f32::from(penalties);
                Sampling {
                    temperature,
                    top_k,
                    top_p,
                    min_p: 0.0,
                    repetition_penalty: 1.0 + 0.3 * on,
                    presence_penalty: 0.2 * on,
                    frequency_penalty: 0.1 * on,
                    seed,
                }
            });
    // Many begin alike, so that they have a prefix in common.
    let prompt = (0..11_usize, prop::collection::vec(0..WIDTH as u32, 1..12))
        .prop_map(|(common, own)| -> Vec<u32> { (0..common as u32).chain(own).take(11).collect() });
    let stops = prop::collection::vec(0..WIDTH as u32, 0..2);
    (
        prompt,
        1..14_usize,
        (0..3_usize, any::<bool>()),
        stops,
        sampling,
        0..20_usize,
        prop::option::weighted(0.3, 0..30_usize),
        prop::option::weighted(0.4, 1..12_usize),
    )
        .prop_map(
            |(
                prompt,
                max_tokens,
                (min_tokens, prompt_logprobs),
                stop_tokens,
                sampling,
                submitted,
                aborted,
                length,
            )| Request {
                spec: GenerateSpec {
                    prompt,
                    max_tokens,
                    min_tokens,
                    stop_tokens,
                    sampling,
                    top_logprobs: 2,
                    prompt_logprobs: prompt_logprobs.then_some(1),
                    prompt_ranks: prompt_logprobs,
                    logit_bias: Vec::new(),
                },
                length,
                submitted,
                aborted,
            },
        )
}

proptest! {
    /// Whatever shares a step, chunks, waits or is preempted: each sequence yields what it
    /// yields alone, and ends once. The runner itself fails on shared or lost blocks.
    #[test]
    fn company_never_changes_an_answer(
        requests in prop::collection::vec(request(), 1..10),
        blocks in 7..20_usize,
        block_tokens in 4..6_usize,
        step_tokens in 1..24_usize,
        running in 1..8_usize,
    ) {
        let spec = shapes(step_tokens, Some(KvSpec::whole(block_tokens, blocks)));
        let mut bench = Bench::new(EchoRunner::new(spec), running);
        let mut streams: Vec<Option<mpsc::Receiver<TokenResult>>> = requests.iter().map(|_| None).collect();
        for tick in 0.. {
            for (index, request) in requests.iter().enumerate() {
                if request.submitted == tick {
                    streams[index] = Some(bench.generate_within(
                        index as u64,
                        request.spec.clone(),
                        request.length,
                    ));
                }
                if request.aborted == Some(tick) {
                    bench.engine.abort(SequenceId(index as u64));
                }
            }
            if bench.engine.has_work() {
                bench.step();
            } else if tick > 30 {
                break;
            }
        }
        prop_assert_eq!(bench.running(), 0);
        prop_assert_eq!(bench.log.forwards(), bench.steps);
        for (request, stream) in requests.iter().zip(streams) {
            let mut seen: Vec<_> = items(stream.unwrap()).into_iter().map(Result::unwrap).collect();
            let expected = alone(request.spec.clone(), request.length);
            // What the pool held for it differs, and nothing else.
            seen.iter_mut().for_each(|token| token.reused = 0);
            if request.aborted.is_some_and(|tick| tick >= request.submitted) {
                prop_assert_eq!(&seen[..], &expected[..seen.len()]);
            } else {
                prop_assert_eq!(seen, expected);
            }
        }
    }
}
