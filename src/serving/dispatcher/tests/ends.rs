//! How requests end before their answer is complete, and what they let go of.

use super::*;

#[tokio::test]
async fn a_client_that_leaves_frees_its_sequence_and_its_lease() {
    let (prompt, token) = held_answer();
    let (runner, gate) = EchoRunner::new(GENERATIVE).held_at(token);
    let server = Server::generative(runner);
    let engine = server.engine().await;
    let reply = server.generate(completion(&[prompt], 1, greedy(400))).await;
    gate.entered.recv().unwrap();
    let forwards = server.log.forwards();
    assert_eq!(engine.load().running, 1);

    drop(reply);
    drop(gate);
    server.let_go().await;
    assert_eq!(engine.load().running, 0);
    assert!(server.log.forwards() <= forwards + 1, "the sequence went on");
}

#[tokio::test]
async fn the_stream_ends_at_the_deadline_and_lets_go() {
    let (prompt, token) = held_answer();
    let (runner, gate) = EchoRunner::new(GENERATIVE).held_at(token);
    let server = Server::generative(runner);
    let mut reply = server.generate(completion(&[prompt], 1, greedy(400))).await;
    gate.entered.recv().unwrap();
    assert!(reply.pieces.next().await.unwrap().is_ok());

    tokio::time::pause();
    tokio::time::advance(MINUTE).await;
    // What the lane sent before it was held may still come, in as many pieces as it was read in.
    let failure = loop {
        if let Err(failure) = reply.pieces.next().await.unwrap() {
            break failure;
        }
    };
    assert_eq!(failure.kind(), ErrorKind::TimedOut);
    assert!(reply.pieces.next().await.is_none());
    tokio::time::resume();
    drop(gate);
    // The stream is still in our hands, what it held is not.
    server.let_go().await;
}

#[tokio::test]
async fn an_encoder_that_does_not_answer_is_given_up_at_the_deadline() {
    let text = codec().encode("slow", true).unwrap();
    let (runner, gate) = EchoRunner::new(encoder(4)).held_at(*text.last().unwrap());
    let server = Server::start(
        runner,
        Purpose::Embedding { normalize: false, prompts: EmbeddingPrompts::default() },
    );
    drop(server.engine().await);
    let dispatcher = Arc::clone(&server.dispatcher);
    let asked =
        tokio::spawn(async move { dispatcher.invoke(invocation(embeddings(&["slow"]))).await });
    let gate = tokio::task::spawn_blocking(move || {
        gate.entered.recv().unwrap();
        gate
    });
    let gate = gate.await.unwrap();
    tokio::time::pause();
    tokio::time::advance(MINUTE).await;
    let failure = asked.await.unwrap().err().unwrap();
    assert_eq!(failure.kind(), ErrorKind::TimedOut);
    tokio::time::resume();
    drop(gate);
    server.let_go().await;
}

#[tokio::test(start_paused = true)]
async fn a_load_that_takes_too_long_is_not_ready_and_leaves_no_place_taken() {
    let config = Config { max_in_flight: 1, ..Config::default() };
    let server = Server::with(EchoRunner::new(GENERATIVE), generative(), config, true);
    for _ in 0..2 {
        let failure = server.ask(chat("hi")).await.err().unwrap();
        assert_eq!(failure.kind(), ErrorKind::NotReady);
    }
}

#[tokio::test]
async fn a_full_server_refuses_until_a_stream_ends() {
    let config = Config { max_in_flight: 1, ..Config::default() };
    let server = Server::with(EchoRunner::new(GENERATIVE), generative(), config, false);
    let reply = server.generate(completion(&["a"], 1, greedy(4))).await;
    let failure = server.ask(chat("hi")).await.err().unwrap();
    assert_eq!(failure.kind(), ErrorKind::Overloaded);
    // The end of the stream makes room, also while the reply is still held.
    let mut reply = reply;
    while reply.pieces.next().await.is_some() {}
    assert!(server.ask(chat("hi")).await.is_ok());
}

#[tokio::test]
async fn a_request_that_never_gets_its_turn_to_be_prepared_ends_at_the_deadline() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    drop(server.engine().await);
    let preparing = Arc::clone(&server.dispatcher.preparing);
    let places = preparing.available_permits();
    let busy = preparing.acquire_many(u32::try_from(places).unwrap()).await.unwrap();
    tokio::time::pause();
    let failure = server.ask(chat("hi")).await.err().unwrap();
    assert_eq!(failure.kind(), ErrorKind::TimedOut);
    tokio::time::resume();
    drop(busy);
    let reply = server.generate(chat("hi")).await;
    assert_eq!(preparing.available_permits(), places);
    drop(reply);
    server.let_go().await;
}

#[tokio::test]
async fn a_device_failure_ends_the_stream_with_an_error() {
    let (prompt, token) = held_answer();
    let server = Server::generative(EchoRunner::new(GENERATIVE).failing(token));
    // One choice: a second might find the device failed already.
    let reply = server.generate(completion(&[prompt], 1, greedy(400))).await;
    let failure = collect(reply).await.unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::ModelFailed);
}
