//! Who is kept, for whom, and what becomes of a model when its interpreter ends.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use roundhouse_types::Bytes;
use roundhouse_workers::{Group, Warming};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::Test;
use crate::setting::{EVALUATES, FORKED, PATIENCE, Setting, said};

pub(crate) const TESTS: &[Test] = &[
    ("a_fork_serves_and_its_interpreter_serves_the_next_model", serves),
    ("what_it_has_imported_is_there_before_the_script_runs", imports),
    ("a_killed_interpreter_costs_no_request", killed),
    ("a_stopped_interpreter_is_not_asked", stopped),
    ("tenants_do_not_share", tenants),
    ("other_variables_are_another_kind", variables),
    ("the_room_is_respected", room),
    ("idle_ones_leave", idle),
    ("what_is_not_there_is_left_out_of_the_imports", absent),
    ("a_module_of_the_handlers_own_goes_before_what_is_imported", shadows),
    ("a_handler_that_cannot_be_loaded_says_why", unloadable),
    ("a_fork_that_dies_is_started_again_by_the_next_load", dies),
    ("several_workers_come_of_one_interpreter", several),
];

async fn is_forked(group: &Group) -> bool {
    said(group, FORKED).await == Value::Bool(true)
}

/// Processes of ours of the group's user: its interpreter, and its workers unless they are over.
async fn family(group: &Group) -> BTreeSet<u32> {
    children(&said(group, "said = os.getuid()").await.to_string())
}

fn children(uid: &str) -> BTreeSet<u32> {
    let ours = std::process::id().to_string();
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let first = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_ascii_whitespace().next()).map(str::to_owned)
        };
        if first("PPid:").as_ref() == Some(&ours) && first("Uid:").as_deref() == Some(uid) {
            found.extend(entry.file_name().to_str().unwrap().parse::<u32>());
        }
    }
    found
}

/// The interpreter that a group of one worker was forked from.
async fn interpreter(group: &Group) -> u32 {
    let worker = said(group, "said = os.getpid()").await.as_u64().unwrap();
    let mut family = family(group).await;
    assert!(family.remove(&u32::try_from(worker).unwrap()));
    assert_eq!(family.len(), 1);
    family.pop_first().unwrap()
}

/// Whether the group was forked from this one, and not started or another's.
async fn is_of(group: &Group, parent: u32) -> bool {
    is_forked(group).await && interpreter(group).await == parent
}

/// Waits until a process that was killed is over, its end taken or not.
async fn over(process: u32) {
    let began = Instant::now();
    let state = || std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    while !state().is_empty() && !state().contains(") Z ") {
        assert!(began.elapsed() < PATIENCE, "{process} lives");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn signal(process: u32, signal: Signal) {
    let process = Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    kill_process(process, signal).unwrap();
}

fn serves(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        let (one, two) = (setting.evaluates("one", "a"), setting.evaluates("two", "a"));
        setting.warm_by(&one).await;
        let mut users = Vec::new();
        for handler in [&one, &two, &one] {
            let group = setting.launch(handler).await;
            assert!(is_forked(&group).await);
            assert_eq!(
                said(&group, "said = open(model['dir'] + '/weights').read()").await,
                handler.name.as_str()
            );
            assert!(group.measure() > Bytes::mib(1));
            users.push(interpreter(&group).await);
            group.stop().await;
        }
        assert_eq!(users[0], users[1]);
        assert_eq!(users[0], users[2]);
    });
}

fn imports(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        let script = format!("import sys\nBEFORE = 'xml.dom' in sys.modules\n{EVALUATES}");
        let handler = setting.handler("one", "a", &[("code/inference.py", &script)]);
        let look = "said = sys.modules['inference'].BEFORE";
        let group = setting.launch(&handler).await;
        assert_eq!(said(&group, look).await, false);
        setting.wait("an interpreter to be idle", |state| state.interpreters == 1).await;
        group.stop().await;
        let group = setting.launch(&handler).await;
        assert_eq!(said(&group, look).await, true);
        group.stop().await;
    });
}

fn killed(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        let handler = setting.evaluates("one", "a");
        setting.warm_by(&handler).await;
        let group = setting.launch(&handler).await;
        signal(interpreter(&group).await, Signal::KILL);
        assert!(is_forked(&group).await);
        group.stop().await;
        let group = setting.launch(&handler).await;
        assert_eq!(said(&group, "said = 1").await, 1);
        group.stop().await;
        setting.wait("another to be idle", |state| state.interpreters == 1).await;
        let group = setting.launch(&handler).await;
        let parent = interpreter(&group).await;
        group.stop().await;
        // One that is idle.
        signal(parent, Signal::KILL);
        over(parent).await;
        let group = setting.launch(&handler).await;
        assert!(!is_of(&group, parent).await);
        group.stop().await;
    });
}

fn stopped(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        let handler = setting.evaluates("one", "a");
        setting.warm_by(&handler).await;
        let group = setting.launch(&handler).await;
        // Its model's code has the same user: what it may send, it may send to it.
        let parent = interpreter(&group).await;
        let sent = said(&group, &format!("os.kill({parent}, 19); said = 'sent'")).await;
        assert_eq!(sent, "sent");
        group.stop().await;
        let group = setting.launch(&handler).await;
        assert!(!is_of(&group, parent).await);
        group.stop().await;
    });
}

fn tenants(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        let (one, other) = (setting.evaluates("one", "a"), setting.evaluates("other", "b"));
        setting.warm_by(&one).await;
        let group = setting.launch(&other).await;
        assert!(!is_forked(&group).await);
        group.stop().await;
        let group = setting.launch(&one).await;
        assert!(is_forked(&group).await);
        group.stop().await;
    });
}

fn variables(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        let one = setting.evaluates("one", "a");
        let settings = "[handler.env]\nOMP_NUM_THREADS = \"2\"\n";
        let other = setting.handler(
            "other",
            "a",
            &[("code/inference.py", EVALUATES), ("roundhouse.toml", settings)],
        );
        setting.warm_by(&one).await;
        let group = setting.launch(&other).await;
        assert!(!is_forked(&group).await);
        setting.wait("one of each kind", |state| state.interpreters == 2).await;
        group.stop().await;
        let group = setting.launch(&other).await;
        assert!(is_forked(&group).await);
        assert_eq!(said(&group, "said = os.environ['OMP_NUM_THREADS']").await, "2");
        group.stop().await;
    });
}

fn room(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        let handler = setting.evaluates("one", "a");
        setting.warm_by(&handler).await;
        let state = setting.workers.warm().unwrap();
        assert!(state.bytes > Bytes::mib(1) && state.bytes < state.limit, "{state:?}");
        setting.workers.set_warm_room(Bytes::mib(1));
        let state = setting.workers.warm().unwrap();
        assert_eq!((state.interpreters, state.bytes, state.limit), (0, Bytes::ZERO, Bytes::mib(1)));
        let group = setting.launch(&handler).await;
        assert!(!is_forked(&group).await);
        group.stop().await;
        // With room again, the next model brings it back.
        setting.workers.set_warm_room(Bytes::gib(1));
        setting.warm_by(&handler).await;
    });
}

fn idle(runtime: &Runtime) {
    runtime.block_on(async {
        let idle_after = Duration::ZERO;
        let setting = Setting::new(Warming { idle_after, ..Warming::default() });
        setting.warm_by(&setting.evaluates("one", "a")).await;
        setting.wait("it to leave", |state| state.interpreters == 0).await;
    });
}

fn absent(runtime: &Runtime) {
    runtime.block_on(async {
        let imports = Some(vec!["not_there".to_owned(), "decimal".to_owned()]);
        let setting = Setting::new(Warming { imports, ..Warming::default() });
        let handler = setting.evaluates("one", "a");
        setting.warm_by(&handler).await;
        let group = setting.launch(&handler).await;
        assert_eq!(said(&group, "said = 'decimal' in sys.modules").await, true);
        group.stop().await;
    });
}

fn shadows(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        setting.warm_by(&setting.evaluates("one", "a")).await;
        let script = format!("import decimal\n{EVALUATES}");
        let files = [("code/inference.py", script.as_str()), ("code/decimal.py", "OWN = 1")];
        let group = setting.launch(&setting.handler("own", "a", &files)).await;
        assert_eq!(said(&group, "said = sys.modules['decimal'].OWN").await, 1);
        assert!(!is_forked(&group).await);
        group.stop().await;
    });
}

fn unloadable(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        setting.warm_by(&setting.evaluates("one", "a")).await;
        let files = [("code/inference.py", "raise RuntimeError('no such luck')")];
        let handler = setting.handler("broken", "a", &files);
        let launched = setting.workers.launch(&handler, std::sync::Arc::new(|_| ())).await;
        let error = launched.err().unwrap().to_string();
        assert!(error.contains("no such luck (inference.py, line 1)"), "{error}");
    });
}

fn dies(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        let handler = setting.evaluates("one", "a");
        setting.warm_by(&handler).await;
        let group = setting.launch(&handler).await;
        assert!(is_forked(&group).await);
        let call = roundhouse_workers::Call { body: "os._exit(3)".into(), ..Default::default() };
        let failed = group.call(call).await.err().unwrap();
        assert!(format!("{failed:?}").contains("ended with exit status 3"), "{failed:?}");
        group.stop().await;
        let group = setting.launch(&handler).await;
        assert!(is_forked(&group).await);
        group.stop().await;
    });
}

fn several(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        let files =
            [("code/inference.py", EVALUATES), ("roundhouse.toml", "[handler]\nworkers = 3\n")];
        let handler = setting.handler("three", "a", &files);
        setting.warm_by(&handler).await;
        let group = setting.launch(&handler).await;
        assert!(is_forked(&group).await);
        assert_eq!(family(&group).await.len(), 4);
        group.stop().await;
    });
}
