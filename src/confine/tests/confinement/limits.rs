//! Numbers, and what is not inherited.

use std::fs::File;
use std::time::Instant;

use crate::setting::{Setting, assert_told, is_root, require};
use crate::{Outcome, Test};

pub(crate) const TESTS: &[Test] = &[
    ("limits_hold", limits_hold),
    ("processes_are_counted", processes_are_counted),
    ("it_yields_to_others", it_yields_to_others),
    ("only_the_named_environment_is_there", only_the_named_environment_is_there),
    ("inherited_files_are_closed", inherited_files_are_closed),
    ("starting_is_quick", starting_is_quick),
];

fn limits_hold() -> Outcome {
    require!();
    let mut setting = Setting::new();
    setting.launch.confinement.memory = Some(256 << 20);
    let told = setting.told(
        "
import resource
def fill():
    with open('large', 'wb') as file:
        file.write(bytes(1 << 20))
        file.write(b'x')
def open_many():
    files = [open('/dev/null') for _ in range(300)]
def allocate(size):
    try:
        return len(bytearray(size))
    except MemoryError:
        return 'refused'
tell('file', fill)
tell('files', open_many)
tell('much', lambda: allocate(512 << 20))
tell('little', lambda: allocate(32 << 20))
tell('core', lambda: resource.getrlimit(resource.RLIMIT_CORE))
tell('raised', lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)))
",
    );
    assert_told(
        &told,
        &[
            ("file", "EFBIG"),
            ("files", "EMFILE"),
            ("much", "refused"),
            ("little", "33554432"),
            ("core", "(0, 0)"),
            ("raised", "done"),
        ],
    );
    None
}

fn processes_are_counted() -> Outcome {
    require!();
    if !is_root() {
        return Some("needs a user of its own".to_owned());
    }
    let mut setting = Setting::new();
    setting.launch.confinement.processes = Some(8);
    let told = setting.told(
        "
count = 1
def multiply():
    global count
    while count < 100:
        if os.fork() == 0:
            signal.pause()
        count += 1
tell('fork', multiply)
print('count', count, flush=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.killpg(0, signal.SIGTERM)
",
    );
    assert_told(&told, &[("fork", "EAGAIN"), ("count", "8")]);
    None
}

fn it_yields_to_others() -> Outcome {
    require!();
    let before = rustix::process::getpriority_process(None).unwrap();
    let mut setting = Setting::new();
    let told = setting.told(
        "
tell('nice', lambda: os.nice(0))
tell('score', lambda: open('/proc/self/oom_score_adj').read().strip())
tell('mask', lambda: oct(os.umask(0)))
tell('group', lambda: os.getpgid(0) == os.getpid())
",
    );
    let nice = (before + 5).min(19).to_string();
    let expected =
        [("nice", nice.as_str()), ("score", "1000"), ("mask", "0o77"), ("group", "True")];
    assert_told(&told, &expected);
    None
}

fn only_the_named_environment_is_there() -> Outcome {
    require!();
    let mut setting = Setting::new();
    setting.launch.env = vec![("ONE".to_owned(), "1".to_owned())];
    let output = setting.program("/usr/bin/env", &[]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ONE=1\n");
    None
}

fn inherited_files_are_closed() -> Outcome {
    require!();
    let secret = File::open("/proc/self/status").unwrap();
    // Unlike the standard library's, a plain duplicate is kept over exec.
    let inherited = nix::unistd::dup(&secret).unwrap();
    let mut setting = Setting::new();
    let told = setting.told("tell('open', lambda: [n for n in range(3, 256) if os.path.lexists('/proc/self/fd/%d' % n)])");
    drop(inherited);
    assert_told(&told, &[("open", "[]")]);
    None
}

fn starting_is_quick() -> Outcome {
    require!();
    let mut setting = Setting::new();
    let mut confined = setting.program("/bin/true", &[]);
    let mut plain = std::process::Command::new("/bin/true");
    let median = |command: &mut std::process::Command| {
        let mut times: Vec<_> = (0..101)
            .map(|_| {
                let start = Instant::now();
                assert!(command.status().unwrap().success());
                start.elapsed()
            })
            .collect();
        times.sort();
        times[times.len() / 2]
    };
    let (confined, plain) = (median(&mut confined), median(&mut plain));
    // A figure for the reader; machines differ too much for a bound.
    println!("confined {confined:?}, plain {plain:?}");
    None
}
