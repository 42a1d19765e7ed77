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

#[tokio::test]
async fn what_an_engine_works_is_counted_until_its_answer_ends_or_nobody_wants_it() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let second = Duration::from_secs(1);
    let relayed = async |answer: fn() -> Result<driven::Answer, driven::CallError>| {
        let until = std::time::Instant::now() + MINUTE;
        let lease = server.residency.acquire(&model(), until).await.unwrap();
        let permit = server.dispatcher.admission.enter(&model(), &Caller::anonymous()).unwrap();
        let hold = Hold { lease, permit };
        let spent = Spent::default();
        let mut record = Record::start(model().endpoint, spent.clone());
        let read: crate::ReadFn = Arc::new(|_| Box::pin(async { panic!("it is read") }));
        let body = crate::RawBody::default();
        let request = Request::Raw(RawRequest { body, route: Route::Chat, read });
        tokio::time::pause();
        let to = |_| async {
            tokio::time::advance(Duration::from_secs(1)).await;
            answer()
        };
        let done = relay(&model(), to, request, &hold, &mut record).await;
        let body = match done {
            Ok((Work::Relayed(answer, _), _)) => Some(answer.body),
            Ok(_) => panic!("it is no engine's"),
            Err(_) => None,
        };
        (body, spent)
    };
    fn good() -> Result<driven::Answer, driven::CallError> {
        let pieces = futures_util::stream::iter([Ok("a".into()), Ok("b".into())]);
        let (headers, body) = (Vec::new(), Box::pin(pieces));
        Ok(driven::Answer { status: 200, content_type: None, headers, body })
    }

    let (body, spent) = relayed(good).await;
    let mut body = body.unwrap();
    while body.next().await.is_some() {
        assert_eq!(spent.compute(), Duration::ZERO, "it goes on");
        tokio::time::advance(second).await;
    }
    assert_eq!(spent.compute(), 3 * second, "before the end is told");
    tokio::time::advance(second).await;
    drop(body);
    assert_eq!(spent.compute(), 3 * second, "once");

    tokio::time::resume();
    let (body, spent) = relayed(good).await;
    tokio::time::advance(second).await;
    drop(body.unwrap());
    assert_eq!(spent.compute(), 2 * second, "a client that left");

    tokio::time::resume();
    let failed = || Err(driven::CallError::Failed(Failure::new(ErrorKind::ModelFailed, "gone")));
    let (_, spent) = relayed(failed).await;
    assert_eq!(spent.compute(), second, "it has worked for a failure, too");

    tokio::time::resume();
    let not_begun =
        || Err(driven::CallError::NotBegun(Failure::new(ErrorKind::NotReady, "not now")));
    let (_, spent) = relayed(not_begun).await;
    assert_eq!(spent.compute(), Duration::ZERO, "it has not begun");
}
