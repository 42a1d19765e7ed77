//! How requests are counted when they have ended.

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    set_default_local_recorder,
};

use super::*;

/// The outcomes of the invocations that this thread has counted.
#[derive(Debug, Default)]
struct Outcomes(Mutex<Vec<String>>);

impl Outcomes {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Recorder for Outcomes {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        if key.name() == "roundhouse_serving_invocations_total" {
            let outcome = key.labels().find(|label| label.key() == "outcome").unwrap();
            self.0.lock().unwrap().push(outcome.value().to_owned());
        }
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test]
async fn an_answer_counts_as_ok_once_every_choice_has_ended() {
    let outcomes = Outcomes::default();
    let _counting = set_default_local_recorder(&outcomes);
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let mut reply = server.generate(completion(&["a", "b"], 2, greedy(4))).await;
    let mut unfinished = reply.prompt_tokens.len();
    assert_eq!(unfinished, 4);
    // As who gathers an answer does: it has all, and never sees the end of the stream.
    while unfinished > 0 {
        let piece = reply.pieces.next().await.unwrap().unwrap();
        unfinished -= usize::from(piece.finished.is_some());
    }
    drop(reply);
    assert_eq!(outcomes.take(), ["ok"]);

    collect(server.generate(chat("hi")).await).await.unwrap();
    assert_eq!(outcomes.take(), ["ok"], "to the end of the stream");
}

#[tokio::test]
async fn an_answer_that_is_dropped_before_all_choices_have_ended_counts_as_cancelled() {
    let outcomes = Outcomes::default();
    let _counting = set_default_local_recorder(&outcomes);
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    drop(server.generate(chat("hi")).await);
    assert_eq!(outcomes.take(), ["cancelled"], "before the first piece");

    let mut reply = server.generate(completion(&["a"], 2, greedy(4))).await;
    while reply.pieces.next().await.unwrap().unwrap().finished.is_none() {}
    drop(reply);
    assert_eq!(outcomes.take(), ["cancelled"], "after the first of two ends");
}
