//! Several processes of one handler, and what becomes of all of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use roundhouse_tests::handlers::{RawAnswer, Stage, until};
use roundhouse_tests::processes::{kill, processes_of, processes_of_group};

use super::RUN;

#[tokio::test(flavor = "multi_thread")]
async fn three_workers_run_three_calls_side_by_side() {
    let mut stage = Stage::new();
    stage.script("run", RUN).asks("run", "workers = 3");
    let server = stage.serve().await;
    assert_eq!(server.load("run").await.status, 200);
    assert_eq!(server.processes_of("run").len(), 3);
    let sleep = "begun = time.time()\n\
                 time.sleep(5)\n\
                 answer = '%d %f %f' % (os.getpid(), begun, time.time())";
    let (a, b, c) =
        tokio::join!(server.ask("run", sleep), server.ask("run", sleep), server.ask("run", sleep));
    let told = |one: &RawAnswer| -> Vec<f64> {
        let text = one.text();
        let numbers = text.split(' ').map(|number| number.parse::<f64>());
        numbers.collect::<Result<_, _>>().unwrap_or_else(|_| panic!("{text}"))
    };
    let told = [&a, &b, &c].map(told);
    let pids: BTreeSet<u32> = told.iter().map(|one| one[0] as u32).collect();
    assert_eq!(pids, server.processes_of("run"));
    let ended_first = told.iter().map(|one| one[2]).fold(f64::INFINITY, f64::min);
    assert!(told.iter().all(|one| one[1] < ended_first), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_from_outside_is_replaced_while_the_others_go_on() {
    let mut stage = Stage::new();
    stage.script("run", RUN).asks("run", "workers = 3");
    let server = stage.serve().await;
    let sleep = "time.sleep(5); answer = os.getpid()";
    let (a, b, ()) = tokio::join!(server.ask("run", sleep), server.ask("run", sleep), async {
        until("two calls run", Duration::from_secs(60), async || server.leases("run").await == 2)
            .await;
    });
    let busy: BTreeSet<u32> = [a, b].iter().map(|one| one.text().parse().unwrap()).collect();
    let before = server.processes_of("run");
    let idle = *before.difference(&busy).next().expect("two workers have run two calls");
    kill(idle);
    for _ in 0..20 {
        assert_eq!(server.ask("run", "answer = 'fine'").await.text(), "fine");
    }
    until("a third is there again", Duration::from_secs(60), async || {
        let now = server.processes_of("run");
        now.len() == 3 && !now.contains(&idle)
    })
    .await;
    let after = server.processes_of("run");
    assert!(after.is_superset(&busy), "{busy:?} {after:?}");
    // The loaded model was never away.
    assert!(!server.explain("run").await.contains("died"));
    assert_eq!(server.metric("roundhouse_workers_started_total").await, 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_worker_survives_a_server_that_is_killed() {
    let mut stage = Stage::new();
    stage.script("run", RUN).asks("run", "workers = 2");
    stage.hostile("ignore_sigterm").hostile("slow_import");
    let mut server = stage.serve().await;
    assert_eq!(server.ask("run", "answer = 1").await.text(), "1");
    assert_eq!(server.ask("ignore_sigterm", "fine").await.text(), "fine");
    let busy = |target: &str, body: &'static str| {
        let request = server
            .http()
            .post(format!("{}/endpoints/default/invocations", server.data))
            .header("x-amzn-sagemaker-target-model", target)
            .body(body);
        tokio::spawn(request.send())
    };
    // One computes without end, one imports, one waits for its next call.
    let requests = [busy("run", "while True: pass"), busy("slow_import", "x")];
    until("they are at it", Duration::from_secs(40), async || {
        server.leases("run").await == 1 && server.processes_of("slow_import").len() == 1
    })
    .await;
    assert_eq!(server.processes().len(), 4);
    server.server().kill();
    let cache = server.cache().to_owned();
    until("all are gone", Duration::from_secs(30), async || processes_of(&cache).is_empty()).await;
    for request in requests {
        request.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_workers_of_a_killed_server_had_started_ends_when_the_next_one_starts() {
    let mut stage = Stage::new();
    stage.hostile("fork");
    let mut server = stage.serve().await;
    assert_eq!(server.ask("fork", "fork").await.status, 200);
    assert!(server.processes().len() > 10);
    server.server().kill();
    let next = stage.serve().await;
    until("they are gone", Duration::from_secs(30), async || next.processes().is_empty()).await;
    assert_eq!(next.ask("fork", "fine").await.text(), "fine");
    assert_eq!(next.processes().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_s_end_is_seen_although_its_children_live_on() {
    let mut stage = Stage::new();
    stage.script("run", RUN).script(
        "import",
        "
import os, time
if os.fork() == 0:
    time.sleep(3600)
os._exit(9)
",
    );
    let server = stage.serve().await;
    let began = Instant::now();
    let fork = "
if os.fork() == 0:
    time.sleep(3600)
os._exit(9)";
    for (target, body) in [("run", fork), ("import", "")] {
        let answer = server.ask(target, body).await;
        assert_eq!(answer.status, 424, "{}", answer.text());
        assert!(answer.text().contains("ended with exit status 9"), "{}", answer.text());
    }
    // Nor is it waited for anybody else to take the children's ends.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    until("the children are gone", Duration::from_secs(30), async || server.processes().is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_leaves_behind_while_it_lives_is_not_left_as_zombies() {
    let mut stage = Stage::new();
    stage.script("run", RUN);
    let server = stage.serve().await;
    let abandon = "
for _ in range(5):
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            time.sleep(0.05)
        os._exit(0)
    os.waitpid(child, 0)
answer = os.getpid()";
    let worker: u32 = server.ask("run", abandon).await.text().parse().unwrap();
    until("it is alone again", Duration::from_secs(60), async || {
        assert_eq!(server.ask("run", "answer = 1").await.text(), "1");
        processes_of_group(worker) == [worker]
    })
    .await;
}
