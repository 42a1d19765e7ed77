//! Handlers that crash, hang, leak and flood, at nobody else's cost.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use roundhouse_tests::handlers::{RawAnswer, Stage, until};
use roundhouse_tests::processes::{processes_of_group, processes_of_user, pss, resident, user};

use super::RUN;

const MIB: u64 = 1 << 20;

fn message_of(answer: &RawAnswer) -> String {
    assert_eq!(answer.status, 424, "{}", answer.text());
    assert_eq!(answer.header("x-amzn-errortype"), "ModelError");
    answer.json()["OriginalMessage"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_kills_its_worker_twice_is_refused_and_others_are_answered() {
    let mut stage = Stage::new();
    stage.hostile("crash");
    let server = stage.serve().await;
    assert_eq!(server.ask("crash", "fine").await.text(), "fine");

    let waiting: Vec<String> = (0..8).map(|index| format!("waiting {index}")).collect();
    let others = async {
        let mut answers = Vec::new();
        for body in &waiting {
            answers.push((body, server.ask("crash", body).await));
        }
        answers
    };
    let (killed, answers) = tokio::join!(server.ask("crash", "crash"), others);
    let message = message_of(&killed);
    assert!(message.contains("was ended by SIGSEGV"), "{message}");
    assert_eq!(killed.json()["OriginalStatusCode"], 500);
    for (body, answer) in answers {
        assert_eq!((answer.status, answer.text()), (200, body.clone()));
    }
    assert_eq!(server.started().await, 2);
    let explained = server.explain("crash").await;
    assert!(
        explained.contains("died: a worker of the handler was ended by SIGSEGV"),
        "{explained}"
    );

    let again = message_of(&server.ask("crash", "crash").await);
    assert!(again.contains("SIGSEGV"), "{again}");
    let page = server.admin_get("/admin/v1/residency").await.json();
    assert_eq!(page["failed"][0]["target"], "crash", "{page}");
    assert_eq!(page["failed"][0]["attempts"], 2, "{page}");
    assert!(server.explain("crash").await.contains("died 2 times"));
    // It is back for everybody else before the third attempt.
    until("it serves again", Duration::from_secs(60), async || {
        server.ask("crash", "fine").await.status == 200
    })
    .await;
    let (processes, started) = (server.processes(), server.started().await);
    assert_eq!(started, 3);
    let third = message_of(&server.ask("crash", "crash").await);
    assert!(third.contains("killed its worker twice"), "{third}");
    assert_eq!(server.ask("crash", "fine").await.text(), "fine");
    assert_eq!(server.processes(), processes);
    assert_eq!(server.started().await, started);
    assert!(server.metric("roundhouse_workers_refused_requests_total").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_behind_a_crash_are_answered_by_a_new_process() {
    let mut stage = Stage::new();
    stage.script("run", RUN);
    let server = stage.serve().await;
    let own = server.ask("run", "answer = os.getpid()").await.text();
    // The process is in the first request's hands until the others stand behind it.
    let gate = stage.path().join("cache/handlers/scratch");
    let first = |folder: &Path| std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let folder = first(&first(&gate));
    let crash = "
while not os.path.exists('go'): time.sleep(0.005)
os.abort()";
    let ask = || server.ask("run", "answer = os.getpid()");
    let waiting = async |count| {
        until("they are there", Duration::from_secs(50), async || {
            server.leases("run").await == count
        })
        .await;
    };
    let others = async {
        waiting(1).await;
        let opened = async {
            waiting(5).await;
            std::fs::write(folder.join("go"), "").unwrap();
        };
        tokio::join!(ask(), ask(), ask(), ask(), opened)
    };
    let (crashed, (a, b, c, d, ())) = tokio::join!(server.ask("run", crash), others);
    let message = message_of(&crashed);
    assert!(message.contains("SIGABRT"), "{message}");
    for answer in [a, b, c, d] {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_ne!(answer.text(), own);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_past_its_time_limit_ends_with_its_worker_and_the_next_is_answered() {
    let mut stage = Stage::new();
    stage.hostile("hang").setting("HANDLERS_TIME_LIMIT", "5s");
    let server = stage.serve().await;
    assert_eq!(server.ask("hang", "fine").await.text(), "fine");
    let hung = server.processes();
    let began = Instant::now();
    let answer = server.ask("hang", "hang").await;
    let took = began.elapsed();
    // It would take an hour to the end.
    assert!((4.9..30.0).contains(&took.as_secs_f64()), "{took:?}");
    let message = message_of(&answer);
    assert!(message.contains("time limit of 5s"), "{message}");
    assert_eq!(answer.json()["OriginalStatusCode"], 0);
    assert!(server.processes().is_disjoint(&hung), "{hung:?} is still there");
    assert_eq!(server.ask("hang", "fine").await.text(), "fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leak_is_stopped_at_the_limit_and_its_memory_is_back_after_the_unload() {
    let _alone = crate::HEAVY.lock().await;
    let mut stage = Stage::new();
    stage.hostile("leak").setting("HANDLERS_MAX_MEMORY", "300MiB");
    let server = stage.serve().await;
    // What the server needs for any load and unload is there before it is looked at.
    assert_eq!(server.ask("leak", "fine").await.text(), "fine");
    server.unload("leak").await;
    let own = resident(server.pid());
    let all = || pss(&server.processes());
    assert_eq!(all(), 0);

    let message = message_of(&server.ask("leak", "leak").await);
    assert!(message.contains("memory"), "{message}");
    assert!(message.contains("300"), "{message}");
    assert_eq!(server.ask("leak", "fine").await.text(), "fine");
    server.unload("leak").await;
    assert!(all() <= 5 * MIB, "{} bytes are left", all());
    let grown = resident(server.pid()).saturating_sub(own);
    assert!(grown < 20 * MIB, "the server takes {grown} bytes more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leak_faster_than_the_watch_cannot_take_much_more_than_its_limit() {
    let _alone = crate::HEAVY.lock().await;
    let mut stage = Stage::new();
    stage.script("run", RUN).setting("HANDLERS_MAX_MEMORY", "300MiB");
    let server = stage.serve().await;
    // One allocation above what the kernel lets it reserve: an error like any other.
    let answer = server.ask("run", "kept.append(bytearray(3 << 30))").await;
    let message = message_of(&answer);
    assert!(message.contains("MemoryError") || message.contains("limit"), "{message}");
    assert_eq!(server.ask("run", "answer = 1").await.text(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leak_while_it_loads_is_stopped_at_the_limit_too() {
    let _alone = crate::HEAVY.lock().await;
    let mut stage = Stage::new();
    let leak = "
kept = []
while True:
    kept.append(b'\\1' * (4 << 20))
";
    stage.script("leak", leak);
    stage.setting("HANDLERS_MEMORY", "64MiB").setting("HANDLERS_MAX_MEMORY", "100MiB");
    let server = stage.serve().await;
    let began = Instant::now();
    let message = message_of(&server.ask("leak", "x").await);
    assert!(message.contains("memory") || message.contains("MemoryError"), "{message}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(server.processes().is_empty(), "{:?}", server.processes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_writes_into_the_server_s_socket_harms_itself_alone() {
    let mut stage = Stage::new();
    stage.script("run", RUN);
    let server = stage.serve().await;
    let first = server.ask("run", "answer = os.getpid()").await.text();
    let garbage = "
for number in range(3, 64):
    try:
        os.write(number, b'\\xff' * 64)
    except OSError:
        pass";
    let message = message_of(&server.ask("run", garbage).await);
    assert!(message.contains("broke the protocol"), "{message}");
    let answer = server.ask("run", "answer = os.getpid()").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_ne!(answer.text(), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_lines_slows_its_handler_down_and_nobody_else() {
    let _alone = crate::HEAVY.lock().await;
    let mut stage = Stage::new();
    stage.hostile("flood").hostile("crash").setting("HANDLERS_TIME_LIMIT", "8s");
    let server = stage.serve().await;
    assert_eq!(server.ask("crash", "fine").await.text(), "fine");
    let own = resident(server.pid());
    let flood = server.ask("flood", "flood");
    let others = async {
        let mut took = Vec::new();
        until("lines are left out", Duration::from_secs(60), async || {
            let began = Instant::now();
            assert_eq!(server.ask("crash", "fine").await.text(), "fine");
            assert_eq!(server.get("/ping").await.status, 200);
            took.push(began.elapsed());
            let said = server.log().lines().filter(|line| line.contains("handler says")).count();
            said > 300 && took.len() >= 20
        })
        .await;
        took.sort_unstable();
        // Who is held up by the flood is so each time; a busy machine is slow now and then.
        took[took.len() / 2]
    };
    // It writes faster than it is read, and so it is its own time that runs out.
    let (answer, others_took) = tokio::join!(flood, others);
    assert!(answer.status == 200 || answer.text().contains("time limit"), "{}", answer.text());
    assert!(others_took < Duration::from_secs(1), "{others_took:?}");
    let log = server.log();
    assert!(log.lines().count() < 5_000, "{} lines", log.lines().count());
    let said: Vec<&str> = log.lines().filter(|line| line.contains("handler says")).collect();
    assert!(said.len() > 100, "{} lines", said.len());
    assert!(said.iter().all(|line| line.contains("default:flood")), "{}", said[0]);
    let grown = resident(server.pid()).saturating_sub(own);
    assert!(grown < 20 * MIB, "the server takes {grown} bytes more");
}

#[tokio::test(flavor = "multi_thread")]
async fn forks_are_bounded_and_none_outlives_the_unload() {
    let _alone = crate::HEAVY.lock().await;
    let mut stage = Stage::new();
    stage.hostile("fork").setting("HANDLERS_PROCESSES", "64");
    let server = stage.serve().await;
    let answer = server.ask("fork", "fork").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let started = answer.json()["started"].as_u64().unwrap();
    assert!((10..64).contains(&started), "{started} processes");
    let processes = server.processes();
    assert_eq!(processes.len() as u64, started + 1);
    let users: BTreeSet<u32> = processes.iter().filter_map(|process| user(*process)).collect();
    assert_eq!(users.len(), 1, "{users:?}");
    let own = users.into_iter().next().unwrap();
    assert_ne!(own, 0, "handlers run as root");
    server.unload("fork").await;
    assert!(server.processes().is_empty(), "{:?}", server.processes());
    let left: Vec<u32> = processes_of_user(own);
    let ours = |process: &&u32| processes.contains(process);
    assert_eq!(left.iter().filter(ours).count(), 0, "{left:?}");
    for process in processes {
        assert!(processes_of_group(process).is_empty(), "group {process} is not empty");
    }
}
