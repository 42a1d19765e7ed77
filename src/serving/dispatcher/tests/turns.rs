//! Whose turns to render chats are asked for, and what becomes of them.

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::*;

/// Renders one at a time, and knows who asked.
struct Recorded {
    asked: Mutex<Vec<(ModelId, Option<TenantName>)>>,
    turns: Arc<Semaphore>,
}

impl Renderer for Recorded {
    fn turn(&self, model: &ModelId, tenant: Option<TenantName>) -> BoxFuture<'static, Render> {
        self.asked.lock().unwrap().push((model.clone(), tenant));
        let turns = Arc::clone(&self.turns);
        Box::pin(async move {
            let turn = turns.acquire_owned().await.unwrap();
            let render: Render = Box::new(move |rendering| {
                let _until_done = turn;
                crate::InProcess::default().render()(rendering)
            });
            render
        })
    }
}

fn server() -> (Server, Arc<Recorded>) {
    let payer = || Claim { tenant: Some("payer".parse().unwrap()), ..Claim::default() };
    let claims: ClaimFn = Arc::new(move |_, _| payer());
    let (asked, turns) = (Mutex::default(), Arc::new(Semaphore::new(1)));
    let recorded = Arc::new(Recorded { asked, turns });
    let parts = (Config::default(), claims, recorded.clone() as Arc<dyn Renderer>);
    (Server::on(EchoRunner::new(GENERATIVE), generative(), parts, false), recorded)
}

#[tokio::test]
async fn a_chat_asks_once_for_its_payers_turn_and_a_completion_for_none() {
    let (server, recorded) = server();
    collect(server.generate(completion(&["hi"], 2, greedy(2))).await).await.unwrap();
    assert_eq!(*recorded.asked.lock().unwrap(), []);
    for chats in 1..3 {
        collect(server.generate(chat("hi")).await).await.unwrap();
        let payers = vec![(model(), Some("payer".parse().unwrap())); chats];
        assert_eq!(*recorded.asked.lock().unwrap(), payers);
    }
    assert_eq!(recorded.turns.available_permits(), 1, "turns are given back");
    server.let_go().await;
}

#[tokio::test]
async fn a_chat_that_is_dropped_while_it_waits_leaves_its_turn_to_the_next() {
    let (server, recorded) = server();
    let others = Arc::clone(&recorded.turns).acquire_owned().await.unwrap();
    let dispatcher = Arc::clone(&server.dispatcher);
    let waits =
        tokio::spawn(async move { dispatcher.invoke(invocation(chat("hi"))).await.is_ok() });
    while recorded.asked.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(!waits.is_finished(), "it has no turn yet");
    waits.abort();
    assert!(waits.await.unwrap_err().is_cancelled());
    drop(others);
    assert_eq!(recorded.turns.available_permits(), 1);
    collect(server.generate(chat("hi")).await).await.unwrap();
    server.let_go().await;
}
