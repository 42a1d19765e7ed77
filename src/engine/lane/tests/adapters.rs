//! Adapters on a lane: attached and detached between steps.

use std::any::Any;
use std::sync::mpsc::channel;

use roundhouse_types::Bytes;

use super::*;
use crate::plan::{AdapterId, HeadSpec, RunnerError, StepOutput, StepPlan};
use crate::testing::{EchoAdapter, EchoHead, echo_logits_with, echo_tokens_with};

/// An adapter's weights that say when they are freed.
struct Weights(EchoAdapter, Sender<()>);
impl Drop for Weights {
    fn drop(&mut self) {
        let _ = self.1.send(());
    }
}
/// A runner that keeps them while they are attached.
struct Keeper(EchoRunner, Option<Box<Weights>>);
impl ModelRunner for Keeper {
    fn spec(&self) -> RunnerSpec {
        self.0.spec()
    }
    fn forward(&mut self, plan: &StepPlan) -> Result<StepOutput, RunnerError> {
        self.0.forward(plan)
    }
    fn touched(&self) -> Bytes {
        self.0.touched()
    }
    fn give_back(&mut self, chunk: usize) -> Option<Box<dyn Any + Send>> {
        self.0.give_back(chunk)
    }
    fn attach(
        &mut self,
        id: AdapterId,
        weights: Box<dyn Any + Send>,
    ) -> Result<Option<HeadSpec>, RunnerError> {
        let weights = weights.downcast::<Weights>().unwrap();
        self.0.attach(id, Box::new(weights.0))?;
        self.1 = Some(weights);
        Ok(None)
    }
    fn detach(&mut self, id: AdapterId) -> Option<Box<dyn Any + Send>> {
        self.0.detach(id)?;
        self.1.take().map(|weights| weights as Box<dyn Any + Send>)
    }
}

#[tokio::test]
async fn an_attached_adapter_answers_until_it_is_detached_and_the_model_goes_on() {
    let lane = lane();
    let placed = place(&lane, generative()).await;
    let adapter = placed.handle.attach(Box::new(EchoAdapter(5)), [5; 32]).await.unwrap();
    let other = placed.handle.attach(Box::new(EchoAdapter(6)), [6; 32]).await.unwrap();
    assert_ne!(adapter.id(), other.id());
    let [with, without] = [&adapter.handle, &placed.handle]
        .map(|handle| handle.generate(greedy(&[1, 2], 6)).unwrap());
    assert_eq!(ids(with).await, echo_tokens_with(Some(EchoAdapter(5)), &[1, 2], 6, WIDTH));
    assert_eq!(ids(without).await, echo_tokens(&[1, 2], 6, WIDTH));
    let handle = adapter.handle.clone();
    adapter.detach().await;
    let late = failure(handle.generate(greedy(&[1], 3)).unwrap()).await;
    assert_eq!(late.message(), "the adapter was unloaded before it answered");
    let stays = other.handle.generate(greedy(&[1], 3)).unwrap();
    assert_eq!(ids(stays).await, echo_tokens_with(Some(EchoAdapter(6)), &[1], 3, WIDTH));
}

#[tokio::test]
async fn detaching_ends_a_running_sequence_with_an_error_and_frees_the_weights() {
    let lane = lane();
    let (runner, gate) = generative().held_at(SIGNAL);
    let config = EngineConfig::default();
    let placed = lane.place("tenant/model", Box::new(Keeper(runner, None)), config).await.unwrap();
    let (sender, freed) = channel();
    let weights = Box::new(Weights(EchoAdapter(1), sender));
    let adapter = placed.handle.attach(weights, [1; 32]).await.unwrap();
    // The lane is inside a step with the adapter while its removal is asked for.
    let running = hold(&adapter.handle, &gate);
    let leaving = tokio::spawn(adapter.detach());
    tokio::task::yield_now().await;
    assert!(freed.try_recv().is_err(), "freed under a running step");
    drop(gate);
    leaving.await.unwrap();
    assert!(freed.try_recv().is_ok(), "detached means freed");
    let items: Vec<_> = running.collect().await;
    assert!(!items.is_empty());
}

#[tokio::test]
async fn an_adapter_whose_caller_left_is_not_kept() {
    let lane = lane();
    let (runner, gate) = generative().held_at(SIGNAL);
    let config = EngineConfig::default();
    let placed = lane.place("tenant/model", Box::new(Keeper(runner, None)), config).await.unwrap();
    let held = hold(&placed.handle, &gate);
    let (sender, freed) = channel();
    let weights = Box::new(Weights(EchoAdapter(1), sender));
    let mut attaching = Box::pin(placed.handle.attach(weights, [1; 32]));
    assert!(poll!(&mut attaching).is_pending());
    drop(attaching);
    assert!(freed.try_recv().is_err(), "the lane has not come to it");
    drop(gate);
    assert_eq!(ids(held).await.len(), 1);
    freed.recv_timeout(Duration::from_secs(30)).unwrap();
}

#[tokio::test]
async fn weights_of_another_kind_are_refused() {
    let lane = lane();
    let placed = place(&lane, generative()).await;
    let refused = placed.handle.attach(Box::new(()), [1; 32]).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::ModelInvalid);
    assert!(refused.message().starts_with("model tenant/model cannot take the adapter: "));
}

#[tokio::test]
async fn an_adapter_of_a_model_that_is_gone_is_refused() {
    let lane = lane();
    let placed = place(&lane, generative()).await;
    let handle = placed.handle.clone();
    let adapter = handle.attach(Box::new(EchoAdapter(1)), [1; 32]).await.unwrap();
    placed.remove().await;
    let gone = handle.attach(Box::new(EchoAdapter(1)), [1; 32]).await.err().unwrap();
    assert_eq!(gone.kind(), ErrorKind::ModelFailed);
    assert!(
        failure(adapter.handle.generate(greedy(&[1], 1)).unwrap()).await.kind()
            == ErrorKind::ModelFailed
    );
    adapter.detach().await;
}

/// An adapter whose own head answers with three numbers; its token 0 only fills.
fn headed(number: u64) -> Box<EchoHead> {
    Box::new(EchoHead(EchoAdapter(number), HeadSpec { width: 3, padding: Some(0) }))
}

fn answer_of(number: u64, tokens: &[u32]) -> Vec<f32> {
    let mut answer = echo_logits_with(Some(EchoAdapter(number)), tokens, WIDTH);
    answer.truncate(3);
    answer
}

#[tokio::test]
async fn an_adapter_s_own_head_answers_texts_beside_sequences_of_the_model() {
    let lane = lane();
    let placed = place(&lane, generative()).await;
    let adapter = placed.handle.attach(headed(5), [5; 32]).await.unwrap();
    let plain = placed.handle.attach(Box::new(EchoAdapter(6)), [6; 32]).await.unwrap();
    assert_eq!(adapter.handle.spec().output_width, 3);
    let stream = placed.handle.generate(greedy(&[1, 2], 30)).unwrap();
    // More than one call hands over at a time, of all lengths up to the whole context.
    let texts: Vec<Vec<u32>> = (0..50).map(|text| (1..=1 + text * 63 / 49).collect()).collect();
    assert_eq!(texts.last().unwrap().len(), 64);
    let answers = adapter.handle.encode(texts.clone()).await.unwrap();
    let wanted: Vec<Vec<f32>> = texts.iter().map(|text| answer_of(5, text)).collect();
    assert_eq!(answers, wanted);
    assert_eq!(ids(stream).await, echo_tokens(&[1, 2], 30, WIDTH));
    let filled = adapter.handle.encode(vec![vec![7, 0, 8, 0, 0], vec![0, 0]]).await.unwrap();
    assert_eq!(filled, [answer_of(5, &[7, 0, 8]), answer_of(5, &[0])]);
    // Each is asked for what it does.
    let refused = adapter.handle.generate(greedy(&[1], 1)).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    for handle in [&plain.handle, &placed.handle] {
        let refused = handle.encode(vec![vec![1]]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    }
    let each = EncodeSpec { tokens: vec![1], second: None, want: Want::Each };
    assert_eq!(
        adapter.handle.encode(vec![each]).await.unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let long = adapter.handle.encode(vec![vec![1; 65]]).await.unwrap_err();
    assert_eq!(long.message(), "input 0 has 65 tokens, 1 more than the 64 that the model takes");
}

#[tokio::test]
async fn a_call_that_its_client_leaves_takes_its_texts_with_it() {
    let lane = lane();
    let (runner, gate) = generative().held_at(SIGNAL);
    let log = runner.log();
    let placed = place(&lane, runner).await;
    let adapter = placed.handle.attach(headed(5), [5; 32]).await.unwrap();
    let held = hold(&placed.handle, &gate);
    let mut call = Box::pin(adapter.handle.encode(vec![vec![41], vec![42]]));
    assert!(poll!(&mut call).is_pending());
    assert_eq!(adapter.handle.load().waiting, 1, "a call has one place");
    drop(call);
    drop(gate);
    assert_eq!(ids(held).await.len(), 1);
    let after = placed.handle.generate(greedy(&[3], 2)).unwrap();
    assert_eq!(ids(after).await, echo_tokens(&[3], 2, WIDTH));
    assert!(!log.saw(41) && !log.saw(42));
    assert_eq!(placed.handle.load().waiting, 0);
}

#[tokio::test]
async fn a_call_whose_texts_all_run_waits_no_more() {
    let lane = lane();
    let (runner, gate) = generative().held_at(SIGNAL);
    let placed = place(&lane, runner).await;
    let adapter = placed.handle.attach(headed(5), [5; 32]).await.unwrap();
    let mut call = Box::pin(adapter.handle.encode(vec![vec![SIGNAL]]));
    assert!(poll!(&mut call).is_pending());
    gate.entered.recv().unwrap();
    assert_eq!(adapter.handle.load(), Load { running: 1, waiting: 0 });
    drop(gate);
    assert_eq!(call.await.unwrap(), [answer_of(5, &[SIGNAL])]);
}

#[tokio::test]
async fn texts_of_an_adapter_that_leaves_end_with_an_error() {
    let lane = lane();
    let (runner, gate) = generative().held_at(SIGNAL);
    let placed = place(&lane, runner).await;
    let adapter = placed.handle.attach(headed(5), [5; 32]).await.unwrap();
    let handle = adapter.handle.clone();
    let held = hold(&placed.handle, &gate);
    let mut call = Box::pin(handle.encode(vec![vec![41]; 20]));
    assert!(poll!(&mut call).is_pending());
    let leaving = tokio::spawn(adapter.detach());
    tokio::task::yield_now().await;
    drop(gate);
    leaving.await.unwrap();
    let ended = call.await.unwrap_err();
    assert_eq!(ended.message(), "the adapter was unloaded before it answered");
    assert_eq!(ids(held).await.len(), 1);
}
