//! What is told of prompts beside the answers to them.

use super::*;
use crate::{Piece, TokenInfo};

/// The prompt's tokens as each choice has them.
async fn scored(mut reply: GenerationReply) -> Vec<Vec<TokenInfo>> {
    let mut prompts = vec![Vec::new(); reply.prompt_tokens.len()];
    while let Some(piece) = reply.pieces.next().await {
        let Piece { choice, prompt, .. } = piece.unwrap();
        prompts[choice].extend(prompt);
    }
    prompts
}

/// The log-probabilities of what may follow `tokens`, likeliest first.
fn expected(tokens: &[u32]) -> Vec<(u32, f32)> {
    let logits = echo_logits(tokens, VOCAB);
    let whole: f32 = logits.iter().map(|logit| logit.exp()).sum();
    let of = |(id, logit): (u32, f32)| (id, logit - whole.ln());
    let mut all: Vec<(u32, f32)> = (0..).zip(logits).map(of).collect();
    all.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(&other.0)));
    all
}

#[tokio::test]
async fn a_prompts_tokens_have_ranks_also_where_its_beginning_was_computed_before() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let text = "When does the shop open, and when does it close again on Sundays? ".repeat(2);
    let prompt = codec().encode(&text, true).unwrap();
    assert!(prompt.len() > 32, "some blocks of keys and values");
    let asked = Generation { ranked_prompt: Some(2), logprobs: Some(1), ..greedy(2) };
    // Another computes it, and leaves its keys and values.
    collect(server.generate(completion(&[&text], 1, greedy(2))).await).await.unwrap();
    let reply = server.generate(completion(&[&text], 2, asked)).await;
    let prompts = scored(reply).await;
    assert!(prompts[1].is_empty(), "told once for all answers");
    assert_eq!(prompts[0].iter().map(|token| token.id).collect::<Vec<_>>(), prompt);
    assert_eq!((prompts[0][0].logprob, prompts[0][0].rank), (None, None));
    for (at, token) in prompts[0].iter().enumerate().skip(1) {
        let expected = expected(&prompt[..at]);
        let rank = 1 + expected.iter().position(|(id, _)| *id == token.id).unwrap();
        assert_eq!(token.rank, Some(rank), "{at}");
        assert!((token.logprob.unwrap() - expected[rank - 1].1).abs() < 1e-4, "{at}: {token:?}");
        let top: Vec<u32> = token.top.iter().map(|(id, ..)| *id).collect();
        assert_eq!(top, [expected[0].0, expected[1].0], "{at}");
    }
    server.let_go().await;
}

#[tokio::test]
async fn echoed_scores_and_ranked_ones_are_of_one_computation() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let both = Generation {
        prompt_logprobs: true,
        logprobs: Some(3),
        ranked_prompt: Some(1),
        ..greedy(1)
    };
    let prompts = scored(server.generate(completion(&["hello you"], 2, both)).await).await;
    assert_eq!(prompts[0], prompts[1], "each answer repeats it");
    assert!(prompts[0][1..].iter().all(|token| token.top.len() == 3 && token.rank.is_some()));
    server.let_go().await;
}

#[tokio::test]
async fn prompts_are_told_as_tokens_where_that_is_asked_for() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let texts = ["hello", "and a longer one"];
    let told = async |prompt_ids| {
        let asked = Generation { prompt_ids, ..greedy(1) };
        server.generate(completion(&texts, 2, asked)).await.prompts
    };
    assert_eq!(told(true).await, texts.map(|text| codec().encode(text, true).unwrap()));
    assert_eq!(told(false).await, Vec::<Vec<u32>>::new());
    let chat = |prompt_ids| {
        let Request::Chat(chat) = chat("hi") else { panic!("not a chat") };
        let generation = Generation { prompt_ids, ..greedy(1) };
        Request::Chat(Chat { generation, n: 2, ..chat })
    };
    let reply = server.generate(chat(true)).await;
    assert_eq!(reply.prompts.len(), 1);
    assert_eq!(reply.prompts[0].len(), reply.prompt_tokens[0]);
    drop(reply);
    server.let_go().await;
}

#[tokio::test]
async fn a_prompt_among_several_that_is_wrong_is_named_by_its_place() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let strange = Prompt::Tokens(vec![1, 9999]);
    let good = Prompt::Text("hello".to_owned());
    for (prompts, place) in [
        (vec![strange.clone()], "prompt[1]: 9999 is not"),
        (vec![good.clone(), strange], "prompt[1][1]: 9999 is not"),
        (vec![good, Prompt::Tokens(Vec::new())], "prompt[1]: it has no tokens"),
    ] {
        let asked = Completion { prompts, generation: greedy(1), n: 1, echo: false };
        let failure = server.ask(Request::Completion(asked)).await.err().unwrap();
        assert!(failure.message().starts_with(place), "{failure}");
    }
    server.let_go().await;
}

#[tokio::test]
async fn prompts_are_not_scored_while_others_scores_take_the_room() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    // More than a third of the room, and less than one answer may take of it.
    let text = vec![Prompt::Tokens(vec![7; 300])];
    let asked = |prompt_logprobs| {
        let generation = Generation { prompt_logprobs, logprobs: Some(20), ..greedy(1) };
        let prompts = text.clone();
        Request::Completion(Completion { prompts, generation, n: 30, echo: prompt_logprobs })
    };
    let first = server.generate(asked(true)).await;
    let second = server.generate(asked(true)).await;
    let refused = server.ask(asked(true)).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Overloaded, "{refused}");
    assert!(server.ask(asked(false)).await.is_ok(), "it tells nothing of its prompt");
    // What has been computed is still to be sent.
    let GenerationReply { pieces, taken, .. } = first;
    drop(pieces);
    assert!(server.ask(asked(true)).await.is_err());
    drop(taken);
    assert!(server.ask(asked(true)).await.is_ok());
    drop(second);
    server.let_go().await;
}
