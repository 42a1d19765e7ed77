//! What a fork can reach: what a worker that was started can, and no more.

use std::collections::BTreeMap;

use serde_json::Value;
use tokio::runtime::Runtime;

use crate::Test;
use crate::setting::{FORKED, Setting, said};

pub(crate) const TESTS: &[Test] = &[
    ("a_fork_is_refused_what_a_started_worker_is_refused", refused_the_same),
    ("a_fork_has_a_process_group_a_user_and_files_of_its_own", its_own),
    ("nothing_of_one_model_is_left_for_the_next", nothing_is_left),
    ("forks_draw_other_random_numbers", random_numbers),
    ("a_fork_dies_with_the_server_like_a_worker", dies_with_the_server),
];

/// Attempts, each of which says what came of it.
const ATTEMPTS: &[(&str, &str)] = &[
    ("socket", "import _socket; said = _socket.socket(2, 1) and 'open'"),
    ("unix", "import _socket; said = _socket.socket(1, 1) and 'open'"),
    ("passwd of the machine", "said = open('/etc/shadow').read() and 'read'"),
    ("setsid", "said = os.setsid()"),
    ("setpgid", "os.setpgid(0, 0); said = 'moved'"),
    ("setuid", "os.setuid(0); said = 'root'"),
    ("setgroups", "os.setgroups([0]); said = 'in'"),
    ("chroot", "os.chroot('/'); said = 'changed'"),
    ("kill the server", "os.kill(os.getppid(), 0); said = 'allowed'"),
    ("the server's memory", "said = open('/proc/%d/status' % os.getppid()).read() and 'read'"),
    ("the first process", "said = open('/proc/1/cmdline').read() and 'read'"),
    ("all processes", "said = os.listdir('/proc') and 'read'"),
    ("home", "said = os.listdir('/root')"),
    ("write /usr", "open('/usr/x', 'w'); said = 'written'"),
    ("write its artefact", "open(model['dir'] + '/x', 'w'); said = 'written'"),
    ("outlive", "import ctypes; said = ctypes.CDLL(None).prctl(1, 0)"),
    ("hide", "import ctypes; said = ctypes.CDLL(None).prctl(4, 0)"),
    ("ptrace", "import ctypes; said = ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)"),
    ("mount", "import ctypes; said = ctypes.CDLL(None).mount(b'/usr', b'/tmp', None, 4096, None)"),
    ("unshare", "import ctypes; said = ctypes.CDLL(None).unshare(0x10000000)"),
    ("limits", "import resource; said = [resource.getrlimit(x) for x in range(16)]"),
    ("raise a limit", "import resource; resource.setrlimit(7, (4096, 4096)); said = 'raised'"),
    ("nice", "said = os.nice(0)"),
    ("lower nice", "said = os.nice(-1)"),
    ("new privileges", "import ctypes; said = ctypes.CDLL(None).prctl(39, 0, 0, 0, 0)"),
    (
        "capabilities",
        "said = [l for l in open('/proc/self/status') if l[:3] in ('Cap', 'NoN', 'Sec')]",
    ),
    ("score", "said = open('/proc/self/oom_score_adj').read()"),
    ("lower score", "open('/proc/self/oom_score_adj', 'w').write('0'); said = 'lowered'"),
    ("itself", "said = [bool(os.listdir('/proc/self/fd')), bool(open('/proc/self/maps').read())]"),
    (
        "its open files",
        "said = sorted(os.readlink('/proc/self/fd/%d' % n)[:5] for n in range(64) \
      if os.path.islink('/proc/self/fd/%d' % n))",
    ),
    ("umask", "m = os.umask(0); os.umask(m); said = m"),
    ("variables", "said = sorted(os.environ)"),
    ("network", "said = open('/proc/self/net/dev').read().count('\\n')"),
    (
        "its temporary folder",
        "open(os.environ['TMPDIR'] + '/t', 'w').write('x'); said = os.listdir(os.environ['TMPDIR'])",
    ),
    ("folder", "said = os.getcwd() == os.environ['HOME'] == os.environ['TMPDIR']"),
    ("where it imports from", "said = [p.replace(model['dir'], '') for p in sys.path]"),
    ("arguments", "said = len(sys.argv)"),
    ("its artefact", "said = open(model['dir'] + '/weights').read()"),
];

fn refused_the_same(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        let handler = setting.evaluates("snoop", "a");
        let mut seen = Vec::new();
        for forked in [false, true] {
            let group = setting.launch(&handler).await;
            assert_eq!(said(&group, FORKED).await, Value::Bool(forked));
            let mut all = BTreeMap::new();
            for (name, attempt) in ATTEMPTS {
                all.insert(*name, said(&group, attempt).await);
            }
            seen.push(all);
            setting.wait("an interpreter to be idle", |state| state.interpreters > 0).await;
            group.stop().await;
        }
        for (name, _) in ATTEMPTS {
            assert_eq!(seen[0][name], seen[1][name], "{name}: started, forked");
        }
        let refused =
            |name: &str| seen[1][name].as_str().is_some_and(|it| it.starts_with("refused"));
        for name in ["socket", "unix", "setsid", "setpgid", "setuid", "kill the server", "home"] {
            assert!(refused(name), "{name}: {}", seen[1][name]);
        }
        for name in ["outlive", "hide", "ptrace", "mount", "unshare"] {
            assert_eq!(seen[1][name], -1, "{name}");
        }
        assert_eq!(seen[1]["its artefact"], "snoop");
        assert_eq!(seen[1]["itself"], serde_json::json!([true, true]));
    });
}

fn its_own(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        let (one, two) = (setting.evaluates("one", "a"), setting.evaluates("two", "a"));
        setting.warm_by(&one).await;
        let first = setting.launch(&one).await;
        setting.wait("another", |state| state.interpreters == 1).await;
        let second = setting.launch(&two).await;
        let who = "said = [os.getpid() == os.getpgrp(), os.getpid(), os.getuid(), os.environ['TMPDIR'], \
                   os.getppid()]";
        let (of_first, of_second) = (said(&first, who).await, said(&second, who).await);
        for own in [&of_first, &of_second] {
            assert_eq!(own[0], true);
            assert_eq!(own[4], std::process::id());
        }
        for index in 1..4 {
            assert_ne!(of_first[index], of_second[index]);
        }
        let path = said(&first, "said = model['dir'] + '/weights'").await;
        let others = format!("said = open({path}).read()");
        assert_eq!(said(&first, &others).await, "one");
        let refused = said(&second, &others).await;
        assert!(refused.as_str().unwrap().starts_with("refused"), "{refused}");
        // Neither does it see the artefact where it lies for us.
        let real = format!("said = open({:?}).read()", one.dir.join("weights"));
        assert!(said(&first, &real).await.as_str().unwrap().starts_with("refused"));
        first.stop().await;
        second.stop().await;
    });
}

fn nothing_is_left(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        let (one, two) = (setting.evaluates("one", "a"), setting.evaluates("two", "a"));
        setting.warm_by(&one).await;
        let first = setting.launch(&one).await;
        assert_eq!(said(&first, FORKED).await, true);
        let leave = "
tmp = os.environ['TMPDIR']
os.makedirs(tmp + '/deep/er'); open(tmp + '/deep/er/secret', 'w').write('x')
open('/tmp/secret', 'w').write('x') if not tmp.startswith('/tmp') else None
os.environ['SECRET'] = 'x'
sys.modules['decimal'].SECRET = 'x'
if os.fork() == 0:
    import time
    time.sleep(600)
said = tmp";
        let folder = said(&first, leave).await;
        first.stop().await;
        let second = setting.launch(&two).await;
        let found = "
import decimal
tmp = os.environ['TMPDIR']
said = [tmp, os.listdir(tmp), 'SECRET' in os.environ, hasattr(decimal, 'SECRET'),
        open(model['dir'] + '/weights').read(), 'roundhouse_warm' in sys.modules]";
        let found = said(&second, found).await;
        // It is the same interpreter, or the test says nothing.
        assert_eq!(found, serde_json::json!([folder, [], false, false, "two", true]));
        second.stop().await;
    });
}

fn random_numbers(runtime: &Runtime) {
    runtime.block_on(async {
        let imports = Some(vec!["random".to_owned(), "numpy.random".to_owned()]);
        let setting = Setting::new(roundhouse_workers::Warming { imports, ..Default::default() });
        let handler = setting.evaluates("random", "a");
        setting.warm_by(&handler).await;
        let draw = "
import random
numbers = [random.random()]
if 'numpy' in sys.modules:
    numbers.append(float(sys.modules['numpy'].random.random()))
said = numbers";
        let mut drawn = Vec::new();
        for _ in 0..2 {
            let group = setting.launch(&handler).await;
            assert_eq!(said(&group, FORKED).await, true);
            drawn.push(said(&group, draw).await);
            group.stop().await;
        }
        for (one, other) in drawn[0].as_array().unwrap().iter().zip(drawn[1].as_array().unwrap()) {
            assert_ne!(one, other);
        }
    });
}

fn dies_with_the_server(runtime: &Runtime) {
    runtime.block_on(async {
        let setting = Setting::importing();
        let handler = setting.evaluates("one", "a");
        let death = "
import ctypes
signal = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(signal))
said = signal.value";
        let group = setting.launch(&handler).await;
        assert_eq!(said(&group, death).await, 9);
        setting.wait("an interpreter to be idle", |state| state.interpreters == 1).await;
        group.stop().await;
        let group = setting.launch(&handler).await;
        assert_eq!(said(&group, FORKED).await, true);
        assert_eq!(said(&group, death).await, 9);
        group.stop().await;
    });
}
