//! What requests are answered with.

use super::*;
use crate::encoded::label_scores;

#[tokio::test]
async fn a_completion_is_the_text_of_the_engines_tokens() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let answer = server.ask(completion(&["hello"], 1, greedy(12))).await.unwrap();
    assert_eq!((answer.served.kind, answer.served.tier), (ModelKind::Generative, Tier::Disk));
    assert_eq!(answer.served.version, Version::from_digest("abc123"));
    let Reply::Generation(reply) = answer.reply else { panic!("not a generation") };

    let prompt = codec().encode("hello", true).unwrap();
    assert_eq!(prompt[0], 0, "the post-processor adds the first token");
    assert_eq!(reply.prompt_tokens, [prompt.len()]);
    let tokens = echo_tokens(&prompt, 12, VOCAB);
    let choices = collect(reply).await.unwrap();
    assert_eq!(choices[0].text, codec().decode(&tokens).unwrap());
    assert_eq!(choices[0].tokens, tokens);
    assert_eq!(choices[0].finish, Some(Finish::Length));
    server.let_go().await;
}

#[tokio::test]
async fn a_stop_string_across_tokens_ends_the_answer_and_its_sequence() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let prompt = codec().encode("hello", true).unwrap();
    let text = codec().decode(&echo_tokens(&prompt, 40, VOCAB)).unwrap();
    let stop: String = text.chars().skip(20).take(6).collect();
    let before = text.find(&stop).unwrap();
    let generation = Generation { stop: vec![stop], ..greedy(400) };
    let choices =
        collect(server.generate(completion(&["hello"], 1, generation)).await).await.unwrap();
    assert_eq!(choices[0].text, text[..before]);
    assert_eq!(choices[0].finish, Some(Finish::StopSequence));
    assert!(choices[0].tokens.len() <= 40);
    server.let_go().await;
}

#[tokio::test]
async fn prompts_and_answers_are_choices_of_one_stream_with_seeds_in_a_row() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let generation = Generation { temperature: Some(1.0), seed: Some(7), ..greedy(8) };
    let ask = |prompts: &'static [&'static str], n, seed| {
        completion(prompts, n, Generation { seed: Some(seed), ..generation.clone() })
    };
    let reply = server.generate(ask(&["one", "two words"], 2, 7)).await;
    assert_eq!(reply.seed, 7);
    let lengths = ["one", "two words"].map(|text| codec().encode(text, true).unwrap().len());
    assert_eq!(reply.prompt_tokens, [lengths[0], lengths[0], lengths[1], lengths[1]]);
    let choices = collect(reply).await.unwrap();
    assert_ne!(choices[0], choices[1]);
    // The fourth choice is the second prompt with the seed 7 + 3.
    let alone = collect(server.generate(ask(&["two words"], 1, 10)).await).await.unwrap();
    assert_eq!(choices[3], alone[0]);
    server.let_go().await;
}

#[tokio::test]
async fn inputs_are_answered_one_by_one_by_the_habits_of_that_face() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let request = Inputs { return_full_text: true, ..inputs(&["one", "two"]) };
    let choices = collect(server.generate(Request::Inputs(request)).await).await.unwrap();
    for (prompt, choice) in ["one", "two"].iter().zip(&choices) {
        // Greedy, 30 tokens, and the prompt in front.
        let tokens = echo_tokens(&codec().encode(prompt, true).unwrap(), 30, VOCAB);
        assert_eq!(choice.tokens, tokens);
        assert_eq!(choice.text, format!("{prompt}{}", codec().decode(&tokens).unwrap()));
    }
}

#[tokio::test]
async fn a_chat_is_rendered_and_gets_no_second_first_token() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    let prompt = codec().encode(rendered, false).unwrap();
    let choices = collect(server.generate(chat("hi")).await).await.unwrap();
    assert_eq!(choices[0].tokens, echo_tokens(&prompt, 4, VOCAB));
}

#[tokio::test]
async fn embeddings_are_normalised_as_the_artefact_or_the_request_says() {
    let server = Server::start(
        EchoRunner::new(encoder(4)),
        Purpose::Embedding { normalize: true, prompts: EmbeddingPrompts::default() },
    );
    let raw = echo_logits(&codec().encode("text", true).unwrap(), 4);
    let vectors = |answer: Answer| match answer.reply {
        Reply::Embeddings(reply) => reply.vectors,
        _ => panic!("not vectors"),
    };
    let unit = vectors(server.ask(embeddings(&["text", "other"])).await.unwrap());
    assert_eq!(unit.len(), 2);
    let length: f32 = unit[0].iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5);
    let request = Inputs { normalize: Some(false), ..inputs(&["text"]) };
    assert_eq!(vectors(server.ask(Request::Inputs(request)).await.unwrap()), [raw]);
    server.let_go().await;
}

#[tokio::test]
async fn a_classifier_names_its_labels_likeliest_first() {
    let names = ["no", "yes", "maybe"].map(Arc::from).to_vec();
    let labels = Labels { names, scores: ScoreFunction::Softmax };
    let server =
        Server::start(EchoRunner::new(encoder(3)), Purpose::Classification(labels.clone()));
    let logits = echo_logits(&codec().encode("text", true).unwrap(), 3);
    for (top_k, count) in [(None, 1), (Some(2), 2), (Some(9), 3)] {
        let request = Inputs { top_k, ..inputs(&["text"]) };
        let answer = server.ask(Request::Inputs(request)).await.unwrap();
        let Reply::Classification(scores) = answer.reply else { panic!("not labels") };
        assert_eq!(scores, [label_scores(&logits, &labels, labels.scores, false, count).unwrap()]);
        assert_eq!(scores[0].len(), count);
    }
    let none = Inputs { top_k: Some(0), ..inputs(&["text"]) };
    let failure = server.ask(Request::Inputs(none)).await.err().unwrap();
    assert_eq!(failure.message(), "top_k: 0 is not at least 1");
}

#[tokio::test]
async fn what_a_model_cannot_do_is_told_with_what_it_can() {
    let labels = Labels { names: vec!["a".into()], scores: ScoreFunction::Sigmoid };
    let generates = Server::generative(EchoRunner::new(GENERATIVE));
    let embeds = Server::start(
        EchoRunner::new(encoder(4)),
        Purpose::Embedding { normalize: true, prompts: EmbeddingPrompts::default() },
    );
    let classifies = Server::start(EchoRunner::new(encoder(1)), Purpose::Classification(labels));
    for (server, request, message) in [
        (
            &generates,
            embeddings(&["a"]),
            "e:t/model is a generative model, not an embedding model, ",
        ),
        (&embeds, chat("a"), "e:t/model is an embedding model, "),
        (&embeds, completion(&["a"], 1, greedy(1)), "e:t/model is an embedding model, "),
        (&classifies, chat("a"), "e:t/model is a classification model, "),
        (&classifies, embeddings(&["a"]), "e:t/model is a classification model, "),
        (&generates, completion(&[], 1, greedy(1)), "prompt: it is empty"),
        (&generates, completion(&["a"], 65, greedy(1)), "n: 65 is not between 1 and 64"),
        (
            &generates,
            completion(&["a"; 33], 2, greedy(1)),
            "n: 2 answers to each of 33 prompts are more than the 64",
        ),
        (&generates, completion(&["a"], 1, greedy(600)), "max_tokens: "),
        (&embeds, embeddings(&["a"; 2049]), "input: 2049 entries are more than the 2048 at most"),
    ] {
        let failure = server.ask(request).await.err().unwrap();
        assert_eq!(failure.kind(), ErrorKind::InvalidInput);
        assert!(failure.message().starts_with(message), "{failure}");
    }
    for server in [&generates, &embeds, &classifies] {
        server.let_go().await;
    }
}

#[tokio::test]
async fn a_model_that_is_no_adapter_of_the_base_named_beside_it_is_refused() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let mut asked = invocation(completion(&["hello"], 1, greedy(4)));
    let base: ModelId = ModelId { target: "other".parse().unwrap(), ..model() };
    asked.base = Some(base);
    let Err(refused) = server.dispatcher.invoke(asked).await else { panic!("it was answered") };
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    assert_eq!(refused.message(), "e:t/model is no adapter");
    assert_eq!(refused.detail(), Some(&roundhouse_types::Detail::OtherBase { is_adapter: false }));
    server.let_go().await;
}

fn ranking(documents: usize) -> Request {
    let documents = (0..documents).map(|at| format!("document {at}")).collect();
    Request::Ranking(Ranking {
        query: "query".into(),
        documents,
        raw: false,
        field: "documents",
        alike: false,
    })
}

fn zero_shot(texts: &[&str], labels: usize) -> Request {
    let labels = (0..labels).map(|at| format!("label {at}")).collect();
    let asked = ZeroShot { labels, template: "This is {}.".into(), multi_label: false };
    let options = TaskOptions { zero_shot: Some(asked), ..TaskOptions::default() };
    Request::Inputs(Inputs { options, ..inputs(texts) })
}

#[tokio::test]
async fn what_a_request_is_turned_into_is_counted() {
    let config = Config { max_inputs: 4, ..Config::default() };
    let labels = Labels {
        names: ["no", "entailment"].map(Arc::from).to_vec(),
        scores: ScoreFunction::Softmax,
    };
    let runner = || EchoRunner::new(encoder(2));
    let classifies = Server::with(runner(), Purpose::Classification(labels), config, false);
    let embeds = Server::with(
        runner(),
        Purpose::Embedding { normalize: true, prompts: EmbeddingPrompts::default() },
        config,
        false,
    );
    for (server, request, message) in [
        (&classifies, zero_shot(&["a", "b"], 3), "candidate_labels: 3 entries are more than the 2"),
        (&classifies, zero_shot(&["a"; 5], 1), "inputs: 5 entries are more than the 4"),
        (&embeds, ranking(4), "documents: 4 entries are more than the 3"),
        (&embeds, zero_shot(&["a"], 1), "candidate_labels: this model is no classifier"),
        (&classifies, ranking(2), "e:t/model is a classification model"),
    ] {
        let failure = server.ask(request).await.err().unwrap();
        assert_eq!(failure.kind(), ErrorKind::InvalidInput);
        assert!(failure.message().starts_with(message), "{}", failure.message());
    }
    let Reply::Classification(scored) =
        classifies.ask(zero_shot(&["a", "b"], 2)).await.unwrap().reply
    else {
        panic!("no labels")
    };
    assert_eq!(scored.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    let answer = embeds.ask(ranking(3)).await.unwrap();
    let Reply::Scores(reply) = answer.reply else { panic!("no scores") };
    assert_eq!(reply.scores.len(), 3);
    assert!(reply.prompt_tokens > 3);
    classifies.let_go().await;
    embeds.let_go().await;
}

#[tokio::test]
async fn a_prompt_that_is_cut_keeps_either_end_or_leaves_room_for_the_answer() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let prompt = "one two three ".repeat(400);
    let tokens = codec().encode(&prompt, true).unwrap();
    let kv = GENERATIVE.kv.unwrap();
    let room = GENERATIVE.context.min(kv.blocks * kv.block_tokens) - 4;
    assert!(tokens.len() > room);
    let of = |most, keeps_end| {
        let truncation = Some(Truncation { most, keeps_end });
        completion(&[&prompt], 1, Generation { truncation, ..greedy(4) })
    };
    for (most, length) in [(Some(7), 7), (None, room)] {
        assert_eq!(server.generate(of(most, true)).await.prompt_tokens, [length]);
    }
    // The token that begins a text stays where its own beginning does not.
    let end = [&tokens[..1], &tokens[tokens.len() - 6..]].concat();
    for (keeps_end, kept) in [(true, end), (false, tokens[..7].to_vec())] {
        let choices = collect(server.generate(of(Some(7), keeps_end)).await).await.unwrap();
        assert_eq!(choices[0].tokens, echo_tokens(&kept, 4, VOCAB), "{keeps_end}");
    }
    server.let_go().await;
}

#[tokio::test]
async fn a_chats_last_message_goes_before_the_answer_of_its_role() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let ask = |role: &str, opening: Opening| {
        let Request::Chat(chat) = chat("hi") else { panic!("not a chat") };
        let messages =
            vec![json!({"role": "user", "content": "hi"}), json!({"role": role, "content": "so"})];
        Request::Chat(Chat { messages, opening, echo: true, ..chat })
    };
    for (role, opening, leads) in [
        ("assistant", Opening::Answer, true),
        ("user", Opening::Answer, false),
        ("assistant", Opening::Message, true),
        ("user", Opening::Closed, true),
    ] {
        let mut reply = server.generate(ask(role, opening)).await;
        let first = reply.pieces.next().await.unwrap().unwrap();
        assert_eq!(first.tokens.is_empty() && first.text == "so", leads, "{role} {opening:?}");
    }
    server.let_go().await;
}

#[tokio::test]
async fn answers_do_not_repeat_a_long_message_many_times() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let of = |n| {
        let Request::Chat(chat) = chat("hi") else { panic!("not a chat") };
        let messages = vec![json!({"role": "assistant", "content": "so ".repeat(1 << 18)})];
        let truncation = Some(Truncation { most: Some(5), keeps_end: true });
        let generation = Generation { truncation, ..greedy(4) };
        Request::Chat(Chat { messages, generation, echo: true, n, ..chat })
    };
    let told = server.ask(of(64)).await.err().unwrap().to_string();
    assert!(told.starts_with("echo: the answers would repeat"), "{told}");
    drop(server.generate(of(1)).await);
    server.let_go().await;
}

#[tokio::test]
async fn a_models_long_prompt_is_told_by_the_field_that_its_texts_came_in() {
    let texts = [("p".to_owned(), "p".repeat(2 << 20))].into_iter().collect();
    let prompts = EmbeddingPrompts { texts, default: Some("p".into()) };
    let server = Server::start(
        EchoRunner::new(encoder(4)),
        Purpose::Embedding { normalize: false, prompts },
    );
    for (request, field) in
        [(embeddings(&["a"; 9]), "input: "), (Request::Inputs(inputs(&["a"; 9])), "inputs: ")]
    {
        let told = server.ask(request).await.err().unwrap().to_string();
        assert!(told.starts_with(field) && told.contains("before 9 texts"), "{told}");
    }
    server.let_go().await;
}
