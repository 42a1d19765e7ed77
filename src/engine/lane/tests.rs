use std::num::NonZeroUsize;

use futures_util::{StreamExt, poll};
use roundhouse_types::{ErrorKind, RetryHint};

use super::*;
use crate::account::Claim;
use crate::plan::{KvSpec, Want};
use crate::request::{EncodeSpec, GenerateSpec, Sampling};
use crate::testing::{EchoRunner, Gate, echo_logits, echo_pair, echo_tokens};
use crate::{Load, TokenStream};

mod adapters;

const WIDTH: usize = 16;
/// The token at which a gated runner waits, or any runner reacts.
const SIGNAL: u32 = 99;

fn generative() -> EchoRunner {
    let kv = Some(KvSpec::whole(4, 64));
    EchoRunner::new(RunnerSpec { output_width: WIDTH, context: 64, step_tokens: 32, kv })
}

fn encoder() -> EchoRunner {
    EchoRunner::new(RunnerSpec { output_width: WIDTH, context: 8, step_tokens: 6, kv: None })
}

fn lane() -> Lane {
    Lane::start(
        DeviceId::Cpu,
        LaneConfig { idle_beat: Duration::from_millis(1), ..LaneConfig::default() },
    )
    .unwrap()
}

async fn place(lane: &Lane, runner: EchoRunner) -> Placed {
    lane.place("tenant/model", Box::new(runner), EngineConfig::default()).await.unwrap()
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

async fn ids(stream: TokenStream) -> Vec<u32> {
    stream.map(|token| token.unwrap().id).collect().await
}

async fn failure(mut stream: TokenStream) -> Failure {
    let failure = stream.next().await.unwrap().unwrap_err();
    assert!(stream.next().await.is_none(), "something follows the error");
    failure
}

/// Fills the lane with a step that ends when the gate says so.
fn hold(handle: &EngineHandle, gate: &Gate) -> TokenStream {
    let held = handle.generate(greedy(&[SIGNAL], 1)).unwrap();
    gate.entered.recv().unwrap();
    held
}

#[tokio::test]
async fn a_placed_engine_is_warm_and_answers() {
    let lane = lane();
    let runner = generative();
    let log = runner.log();
    let placed = place(&lane, runner).await;
    assert!(log.forwards() >= 3, "a prefill and decodes of one and two sequences");
    assert_eq!(placed.handle.spec().output_width, WIDTH);
    let streams =
        [&[1, 2][..], &[3]].map(|prompt| placed.handle.generate(greedy(prompt, 6)).unwrap());
    for (stream, prompt) in streams.into_iter().zip([&[1, 2][..], &[3]]) {
        assert_eq!(ids(stream).await, echo_tokens(prompt, 6, WIDTH));
    }
}

#[tokio::test]
async fn engines_of_both_kinds_share_a_lane() {
    let lane = lane();
    let (texts, vectors) = (place(&lane, generative()).await, place(&lane, encoder()).await);
    let stream = texts.handle.generate(greedy(&[1], 20)).unwrap();
    let encoded = vectors.handle.encode(vec![vec![1, 2], vec![3]]).await.unwrap();
    assert_eq!(encoded, [echo_logits(&[1, 2], WIDTH), echo_logits(&[3], WIDTH)]);
    assert_eq!(ids(stream).await, echo_tokens(&[1], 20, WIDTH));
}

#[tokio::test]
async fn what_can_never_run_is_refused_at_once_with_its_lengths() {
    let lane = lane();
    let (texts, vectors) = (place(&lane, generative()).await, place(&lane, encoder()).await);
    let refused = |spec| texts.handle.generate(spec).err().unwrap();
    let long = refused(greedy(&[1; 64], 1));
    assert_eq!(long.kind(), ErrorKind::InvalidInput);
    assert_eq!(long.message(), "the prompt has 64 tokens, 1 more than fit a context of 64");
    assert!(texts.handle.generate(greedy(&[1; 63], 1)).is_ok());
    assert_eq!(refused(greedy(&[], 1)).message(), "the prompt has no tokens");
    let sampling = Sampling { top_p: f32::NAN, ..Sampling::GREEDY };
    let wrong = refused(GenerateSpec { sampling, ..greedy(&[1], 1) });
    assert_eq!(wrong.message(), "top_p is NaN, and must be above 0 and at most 1");
    let long = vectors.handle.encode(vec![vec![1], vec![1; 7]]).await.unwrap_err();
    assert_eq!(long.kind(), ErrorKind::InvalidInput);
    assert_eq!(long.message(), "input 1 has 7 tokens, 1 more than the 6 that the model takes");
    assert!(vectors.handle.generate(greedy(&[1], 1)).is_err());
    assert!(texts.handle.encode(vec![vec![1]]).await.is_err());
    assert!(vectors.handle.encode(Vec::<Vec<u32>>::new()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_waiting_sequence_whose_stream_is_dropped_never_runs() {
    let lane = lane();
    let (runner, gate) = generative().held_at(SIGNAL);
    let log = runner.log();
    let placed = place(&lane, runner).await;
    let held = hold(&placed.handle, &gate);
    let left = placed.handle.generate(greedy(&[77], 5)).unwrap();
    let encoded = placed.handle.generate(greedy(&[1], 5)).unwrap();
    assert_eq!(placed.handle.load(), Load { running: 1, waiting: 2 });
    drop(left);
    drop(gate);
    assert_eq!(ids(encoded).await, echo_tokens(&[1], 5, WIDTH));
    assert_eq!(ids(held).await.len(), 1);
    assert!(!log.saw(77));
    assert_eq!(placed.handle.load().waiting, 0);
}

#[tokio::test]
async fn one_tenants_sequences_leave_places_for_anothers() {
    let lane = lane();
    let (runner, gate) = generative().held_at(SIGNAL);
    let max_waiting = NonZeroUsize::new(8).unwrap();
    let config = EngineConfig { max_waiting, ..EngineConfig::default() };
    let placed = lane.place("tenant/model", Box::new(runner), config).await.unwrap();
    let held = hold(&placed.handle, &gate);
    let of = |tenant: &str| {
        placed.handle.on_behalf(Claim { tenant: tenant.parse().ok(), ..Claim::default() })
    };
    let flood = of("flood");
    let taken: Vec<_> =
        std::iter::repeat_with(|| flood.generate(greedy(&[1], 2))).map_while(Result::ok).collect();
    assert_eq!(taken.len(), 6);
    let calm = of("calm").generate(greedy(&[3], 2)).unwrap();
    drop((gate, taken));
    assert_eq!(ids(calm).await.len(), 2);
    assert_eq!(ids(held).await.len(), 1);
}

#[tokio::test]
async fn a_full_queue_refuses_with_a_hint() {
    let lane = lane();
    let (runner, gate) = generative().held_at(SIGNAL);
    let config = EngineConfig { max_waiting: NonZeroUsize::MIN, ..EngineConfig::default() };
    let placed = lane.place("tenant/model", Box::new(runner), config).await.unwrap();
    let held = hold(&placed.handle, &gate);
    let waits = placed.handle.generate(greedy(&[1], 2)).unwrap();
    let refused = placed.handle.generate(greedy(&[2], 2)).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert!(matches!(refused.retry(), RetryHint::After(hint) if hint >= Duration::from_secs(1)));
    drop(gate);
    assert_eq!(ids(waits).await.len(), 2);
    assert_eq!(ids(held).await.len(), 1);
    assert!(placed.handle.generate(greedy(&[2], 2)).is_ok());
}

#[tokio::test]
async fn an_encoder_answers_with_the_vectors_that_are_wanted() {
    let lane = lane();
    let placed = place(&lane, encoder()).await;
    let of = |second, want| EncodeSpec { tokens: vec![1, 2, 3], second, want };
    let inputs = vec![
        of(None, Want::Each),
        of(Some(2), Want::Pooled),
        of(None, Want::At(vec![2, 0])),
        of(None, Want::At(Vec::new())),
    ];
    let got = placed.handle.encode(inputs).await.unwrap();
    let vector = |tokens: &[u32]| echo_logits(tokens, WIDTH);
    assert_eq!(got[0], [vector(&[1]), vector(&[1, 2]), vector(&[1, 2, 3])].concat());
    assert_eq!(got[1], vector(&echo_pair(&[1, 2, 3], 2)));
    assert_eq!(got[2], [vector(&[1, 2, 3]), vector(&[1])].concat());
    assert!(got[3].is_empty());
}

#[tokio::test]
async fn wants_that_cannot_be_met_are_refused_at_once() {
    let lane = lane();
    let placed = place(&lane, encoder()).await;
    let many = vec![0; crate::RESULT_BYTES / 4 / WIDTH + 1];
    for (second, want, says) in [
        (None, Want::At(vec![0, 3]), "none at place 3"),
        (Some(4), Want::Pooled, "none at place 4"),
        (None, Want::At(many), "bytes together"),
    ] {
        let refused =
            placed.handle.encode(vec![EncodeSpec { tokens: vec![1, 2, 3], second, want }]);
        let failure = refused.await.unwrap_err();
        assert_eq!(failure.kind(), ErrorKind::InvalidInput);
        assert!(failure.message().contains(says), "{}", failure.message());
    }
    // A second text may be empty.
    let empty = EncodeSpec { tokens: vec![1, 2], second: Some(2), want: Want::Pooled };
    assert!(placed.handle.encode(vec![empty]).await.is_ok());
}

#[tokio::test]
async fn a_device_failure_ends_everything_on_the_lane() {
    for broken in [generative().panicking(SIGNAL), generative().failing(SIGNAL)] {
        let lane = lane();
        let (runner, gate) = encoder().held_at(SIGNAL);
        let (log, other_log) = (runner.log(), broken.log());
        let vectors = place(&lane, runner).await;
        let texts = place(&lane, broken).await;
        // All is queued before the step that fails, and the encoder has more to do.
        let inputs = vec![vec![SIGNAL], vec![SIGNAL; 6], vec![SIGNAL; 6]];
        let mut encoding = Box::pin(vectors.handle.encode(inputs));
        assert!(poll!(&mut encoding).is_pending());
        gate.entered.recv().unwrap();
        let fails = texts.handle.generate(greedy(&[SIGNAL], 3)).unwrap();
        let beside = texts.handle.generate(greedy(&[1], 3)).unwrap();
        gate.release.send(()).unwrap();
        let failures = [failure(fails).await, failure(beside).await];
        assert!(
            failures.iter().all(|failure| failure.kind() == ErrorKind::ModelFailed),
            "{failures:?}"
        );
        drop(gate);
        assert_eq!(encoding.await.unwrap_err().kind(), ErrorKind::ModelFailed);
        assert!(
            matches!(lane.health(), LaneHealth::Failed { failure } if failure.message().contains("token 99"))
        );
        assert_eq!(
            texts.handle.generate(greedy(&[1], 1)).err().unwrap().kind(),
            ErrorKind::ModelFailed
        );
        assert!(vectors.handle.encode(vec![vec![1]]).await.is_err());
        assert!(lane.place("next", Box::new(encoder()), EngineConfig::default()).await.is_err());
        vectors.remove().await;
        texts.remove().await;
        assert_eq!((Arc::strong_count(&log), Arc::strong_count(&other_log)), (1, 1));
    }
}

#[tokio::test]
async fn a_device_failure_while_warming_up_fails_the_lane() {
    let lane = lane();
    let failed = lane
        .place("tenant/model", Box::new(generative().failing(0)), EngineConfig::default())
        .await;
    assert_eq!(failed.err().unwrap().kind(), ErrorKind::ModelFailed);
    assert!(matches!(lane.health(), LaneHealth::Failed { .. }));
}

#[tokio::test]
async fn a_runner_that_refuses_its_shapes_is_invalid_and_the_lane_goes_on() {
    let lane = lane();
    let bad_shape = RunnerSpec { context: 0, ..encoder().spec() };
    for runner in [encoder().refusing(0), EchoRunner::new(bad_shape)] {
        let refused = lane.place("tenant/model", Box::new(runner), EngineConfig::default()).await;
        let refused = refused.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::ModelInvalid);
        assert!(refused.message().starts_with("model tenant/model cannot be served"), "{refused}");
    }
    assert!(place(&lane, encoder()).await.handle.encode(vec![vec![1]]).await.is_ok());
}

#[tokio::test]
async fn a_model_that_computes_no_numbers_is_invalid_before_anybody_asks_it() {
    let lane = lane();
    for runner in [generative().garbling(0), encoder().garbling(0)] {
        let refused = lane.place("tenant/model", Box::new(runner), EngineConfig::default()).await;
        let refused = refused.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::ModelInvalid);
        assert!(refused.message().contains("not finite"), "{refused}");
    }
    assert!(matches!(lane.health(), LaneHealth::Alive));
}

#[tokio::test]
async fn a_lane_that_hangs_in_a_step_is_wedged_until_the_step_ends() {
    let lane = lane();
    let (runner, gate) = generative().held_at(SIGNAL);
    let placed = place(&lane, runner).await;
    let held = hold(&placed.handle, &gate);
    let last = lane.heartbeat.last();
    let limit = lane.config.wedged_after;
    assert!(matches!(lane.health_at(last + limit), LaneHealth::Alive));
    let late = last + limit + Duration::from_millis(1);
    assert!(matches!(lane.health_at(late), LaneHealth::Wedged { since } if since == last));
    drop(gate);
    assert_eq!(ids(held).await.len(), 1);
    assert!(matches!(lane.health(), LaneHealth::Alive));
}

#[tokio::test]
async fn an_idle_lane_keeps_beating() {
    let lane = lane();
    let first = lane.heartbeat.last();
    while lane.heartbeat.last() <= first + Duration::from_millis(3) {
        tokio::task::yield_now().await;
    }
    assert!(matches!(lane.health(), LaneHealth::Alive));
}

#[tokio::test]
async fn a_removal_ends_what_is_left_and_frees_the_runner() {
    let lane = lane();
    let (runner, gate) = generative().held_at(SIGNAL);
    let log = runner.log();
    let placed = place(&lane, runner).await;
    let handle = placed.handle.clone();
    let held = handle.generate(greedy(&[SIGNAL], 50)).unwrap();
    gate.entered.recv().unwrap();
    let waits = handle.generate(greedy(&[1], 50)).unwrap();
    let removal = placed.remove();
    tokio::pin!(removal);
    assert!(poll!(&mut removal).is_pending());
    drop(gate);
    removal.await;
    assert_eq!(Arc::strong_count(&log), 1, "the runner is still there");
    let items: Vec<_> = held.collect().await;
    assert!(items[0].is_ok() && items[1].is_err() && items.len() == 2);
    assert_eq!(failure(waits).await.kind(), ErrorKind::ModelFailed);
    let late = failure(handle.generate(greedy(&[1], 1)).unwrap()).await;
    assert_eq!(late.message(), "model tenant/model was unloaded before it answered");
    assert_eq!(late.retry(), RetryHint::Later);
    assert!(handle.encode(vec![vec![1]]).await.is_err());
}

#[tokio::test]
async fn dropping_an_engine_or_its_placing_removes_it() {
    let lane = lane();
    let (dropped, abandoned) = (generative(), encoder());
    let logs = [dropped.log(), abandoned.log()];
    drop(place(&lane, dropped).await);
    {
        let placing = lane.place("abandoned", Box::new(abandoned), EngineConfig::default());
        tokio::pin!(placing);
        // Warm by now or not: either way the caller is about to leave.
        let _ = poll!(&mut placing);
    }
    while logs.iter().any(|log| Arc::strong_count(log) > 1) {
        tokio::task::yield_now().await;
    }
    let other = place(&lane, encoder()).await;
    other.handle.encode(vec![vec![1]]).await.unwrap();
}

#[tokio::test]
async fn an_engine_that_gets_warm_takes_turns_with_those_that_serve() {
    let lane = lane();
    let (serving, (large, gate)) = (generative(), generative().held_at(0));
    let log = serving.log();
    let placed = place(&lane, serving).await;
    let placing = lane.place("large", Box::new(large), EngineConfig::default());
    tokio::pin!(placing);
    assert!(poll!(&mut placing).is_pending());
    gate.entered.recv().unwrap();
    let before = log.forwards();
    // It goes before the next shape, because it begins where this one began.
    let stream = placed.handle.generate(greedy(&[1], 2)).unwrap();
    gate.release.send(()).unwrap();
    gate.entered.recv().unwrap();
    assert!(log.forwards() > before, "nothing ran between two shapes of another engine");
    drop(gate);
    assert_eq!(ids(stream).await, echo_tokens(&[1], 2, WIDTH));
    assert!(placing.await.is_ok());
}

#[tokio::test]
async fn the_thread_ends_when_everybody_is_gone() {
    let lane = lane();
    let heartbeat = Arc::downgrade(&lane.heartbeat);
    drop(place(&lane, generative()).await);
    drop(lane);
    while heartbeat.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
}
