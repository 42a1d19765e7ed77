//! Which files a confined process reaches.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use roundhouse_confine::Interpreter;

use crate::setting::{Setting, assert_told, is_root, mechanisms, python, require};
use crate::{Outcome, Test};

pub(crate) const TESTS: &[Test] = &[
    ("only_its_own_trees_can_be_read_and_written", only_its_own_trees_can_be_read_and_written),
    ("links_do_not_lead_out", links_do_not_lead_out),
    ("other_processes_are_not_readable", other_processes_are_not_readable),
    (
        "devices_and_facts_about_the_machine_are_there",
        devices_and_facts_about_the_machine_are_there,
    ),
    (
        "its_own_facts_are_held_and_tell_nothing_of_the_network",
        its_own_facts_are_held_and_tell_nothing_of_the_network,
    ),
    ("the_temporary_folders_are_private", the_temporary_folders_are_private),
    (
        "a_tree_in_a_folder_closed_to_the_user_is_reached",
        a_tree_in_a_folder_closed_to_the_user_is_reached,
    ),
    ("missing_trees_are_skipped", missing_trees_are_skipped),
    ("programs_of_its_trees_run", programs_of_its_trees_run),
    ("numpy_computes", numpy_computes),
];

fn only_its_own_trees_can_be_read_and_written() -> Outcome {
    require!();
    let code = "
trees = os.environ['TREES']
tell('read-outside', lambda: open(trees + '/outside/file').read())
tell('list-outside', lambda: len(os.listdir(trees + '/outside')))
tell('write-outside', lambda: open(trees + '/outside/file', 'a').close())
tell('create-outside', lambda: open(trees + '/outside/new', 'w').close())
tell('truncate-outside', lambda: os.truncate(trees + '/outside/file', 7))
tell('remove-outside', lambda: os.rmdir(trees + '/outside/folder'))
tell('list-root', lambda: len(os.listdir('/')) > 0)
tell('read-read', lambda: open(trees + '/read/file').read())
tell('write-read', lambda: open(trees + '/read/file', 'a').close())
tell('truncate-read', lambda: os.truncate(trees + '/read/file', 4))
tell('create-read', lambda: open(trees + '/read/new', 'w').close())
tell('read-write', lambda: open(trees + '/write/file').read())
tell('create-write', lambda: open(trees + '/write/new', 'w').close())
tell('folder-write', lambda: os.mkdir(trees + '/write/a'))
tell('rename-write', lambda: os.rename(trees + '/write/new', trees + '/write/a/moved'))
tell('remove-write', lambda: os.remove(trees + '/write/a/moved'))
";
    let mut setting = Setting::new();
    fs::create_dir(setting.path("outside/folder")).unwrap();
    assert_told(
        &setting.told(code),
        &[
            ("read-outside", "EACCES"),
            ("list-outside", "EACCES"),
            ("write-outside", "EACCES"),
            ("create-outside", "EACCES"),
            ("truncate-outside", "EACCES"),
            ("remove-outside", "EACCES"),
            ("list-root", "EACCES"),
            ("read-read", "read"),
            ("write-read", "EACCES"),
            ("truncate-read", "EACCES"),
            ("create-read", "EACCES"),
            ("read-write", "write"),
            ("create-write", "done"),
            ("folder-write", "done"),
            ("rename-write", "done"),
            ("remove-write", "done"),
        ],
    );
    fs::remove_dir(setting.path("write/a")).unwrap();
    // Nothing but the confinement stood in the way.
    let unconfined = setting.told_unconfined(code);
    assert!(!unconfined.values().any(|value| value == "EACCES"), "{unconfined:?}");
    None
}

fn links_do_not_lead_out() -> Outcome {
    require!();
    let mut setting = Setting::new();
    let told = setting.told(
        "
trees = os.environ['TREES']
os.symlink(trees + '/outside/file', 'symbolic')
tell('symbolic', lambda: open('symbolic').read())
tell('hard', lambda: os.link(trees + '/outside/file', 'hard'))
tell('by-root', lambda: open('/proc/self/root' + trees + '/outside/file').read())
tell('by-cwd', lambda: open('/proc/self/cwd/../outside/file').read())
",
    );
    let denied =
        |name: &str| told[name] == "EACCES" || told[name] == "EXDEV" || told[name] == "EPERM";
    assert_eq!(told.len(), 4);
    assert!(told.keys().all(|name| denied(name)), "{told:?}");
    None
}

fn other_processes_are_not_readable() -> Outcome {
    require!();
    let code = "
for name in ('environ', 'maps', 'mem', 'status', 'cmdline'):
    tell('parent-' + name, lambda: len(open('/proc/%d/%s' % (os.getppid(), name), 'rb').read(0)))
    tell('first-' + name, lambda: len(open('/proc/1/%s' % name, 'rb').read(0)))
tell('list', lambda: len(os.listdir('/proc')))
tell('own-environ', lambda: b'TREES' in open('/proc/self/environ', 'rb').read())
";
    let mut setting = Setting::new();
    let told = setting.told(code);
    for (name, value) in &told {
        let expected = if name == "own-environ" { "True" } else { "EACCES" };
        assert_eq!(value, expected, "{name}");
    }
    assert_eq!(told.len(), 12);
    let unconfined = setting.told_unconfined(code);
    assert_eq!(unconfined["parent-environ"], "0");
    None
}

fn devices_and_facts_about_the_machine_are_there() -> Outcome {
    require!();
    let mut setting = Setting::new();
    let told = setting.told(
        "
tell('null', lambda: open('/dev/null', 'w').write('x'))
tell('random', lambda: len(open('/dev/urandom', 'rb').read(4)))
tell('processors', lambda: 'processor' in open('/proc/cpuinfo').read() or 'CPU' in open('/proc/cpuinfo').read())
tell('memory', lambda: 'MemTotal' in open('/proc/meminfo').read())
tell('online', lambda: len(open('/sys/devices/system/cpu/online').read()) > 0)
tell('maps', lambda: 'python' in open('/proc/self/maps').read())
tell('raise-priority-over-others', lambda: open('/proc/self/oom_score_adj', 'w').write('0'))
tell('terminal', lambda: open('/dev/tty').close())
tell('disk', lambda: open('/dev/kmsg').close())
",
    );
    assert_told(
        &told,
        &[
            ("null", "1"),
            ("random", "4"),
            ("processors", "True"),
            ("memory", "True"),
            ("online", "True"),
            ("maps", "True"),
            ("raise-priority-over-others", "EACCES"),
            ("terminal", &told["terminal"]),
            ("disk", &told["disk"]),
        ],
    );
    for device in ["terminal", "disk"] {
        assert_ne!(told[device], "done");
    }
    None
}

fn its_own_facts_are_held_and_tell_nothing_of_the_network() -> Outcome {
    require!();
    if !mechanisms().mount_namespace {
        return Some("no mount namespace".to_owned());
    }
    let code = "
tell('sockets', lambda: sum(len(open('/proc/self/net/' + name).readlines()) - 1 for name in ('tcp', 'udp', 'unix')))
tell('held', lambda: ' /proc/%d ' % os.getpid() in open('/proc/self/mountinfo').read())
";
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut setting = Setting::new();
    assert_told(&setting.told(code), &[("sockets", "0"), ("held", "True")]);
    assert_ne!(setting.told_unconfined(code)["sockets"], "0");
    drop(listener);
    None
}

fn the_temporary_folders_are_private() -> Outcome {
    require!();
    let own = std::env::current_exe().unwrap();
    if ["/tmp", "/var/tmp", "/dev/shm"].iter().any(|folder| own.starts_with(folder)) {
        return Some("what must be read lies below one of them".to_owned());
    }
    let mut setting = Setting::new();
    let told = setting.told(
        "
import multiprocessing
for folder in ('/tmp', '/var/tmp', '/dev/shm'):
    tell(folder, lambda: open(folder + '/of-the-child' + folder.replace('/', '-'), 'w').close())
tell('lock', lambda: multiprocessing.Lock().acquire())
",
    );
    let folders = ["/tmp", "/var/tmp", "/dev/shm"];
    if !mechanisms().mount_namespace {
        assert!(folders.iter().all(|folder| told[*folder] == "EACCES"), "{told:?}");
        return Some("no mount namespace; the folders are closed".to_owned());
    }
    assert_eq!(told["lock"], "True");
    for folder in folders {
        assert_eq!(told[folder], "done", "{folder}");
        let name = format!("of-the-child{}", folder.replace('/', "-"));
        assert!(setting.path("write").join(&name).exists());
        assert!(!Path::new(folder).join(&name).exists());
    }
    None
}

fn a_tree_in_a_folder_closed_to_the_user_is_reached() -> Outcome {
    require!();
    if !is_root() || !mechanisms().mount_namespace {
        return Some("only root can, and only with a mount namespace".to_owned());
    }
    let mut setting = Setting::new();
    fs::set_permissions(setting.folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let single = setting.path("outside/single");
    fs::write(&single, "single").unwrap();
    fs::set_permissions(&single, fs::Permissions::from_mode(0o644)).unwrap();
    setting.launch.confinement.read.push(single);
    let told = setting.told(
        "
trees = os.environ['TREES']
tell('read', lambda: open(trees + '/read/file').read())
tell('single', lambda: open(trees + '/outside/single').read())
tell('outside', lambda: open(trees + '/outside/file').read())
tell('write', lambda: open(trees + '/write/made', 'w').close())
tell('beside', lambda: os.mkdir(trees + '/beside'))
",
    );
    assert_told(
        &told,
        &[
            ("read", "read"),
            ("single", "single"),
            // Not there at all.
            ("outside", "ENOENT"),
            ("write", "done"),
            ("beside", "EACCES"),
        ],
    );
    assert!(setting.path("write/made").exists());
    assert!(setting.path("outside/file").exists());
    None
}

fn missing_trees_are_skipped() -> Outcome {
    require!();
    let mut setting = Setting::new();
    setting.launch.confinement.read.push("/no/such/tree".into());
    let output = setting.shell("echo works").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "works\n");
    None
}

fn programs_of_its_trees_run() -> Outcome {
    require!();
    let mut setting = Setting::new();
    let script = "
printf '#!/bin/sh\\necho made' > made && chmod 700 made && ./made
cp made $TREES/outside/made 2>/dev/null || echo refused";
    let output = setting.shell(script).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "made\nrefused\n");
    None
}

fn numpy_computes() -> Outcome {
    require!();
    let named =
        std::env::var_os("CONFINE_TEST_NUMPY").map_or(python().executable.clone(), PathBuf::from);
    let Ok(python) = Interpreter::ask(&named) else {
        return Some(format!("{} does not run", named.display()));
    };
    let mut setting = Setting::new();
    setting.launch.confinement.read.extend(python.read);
    let code = "
try:
    import numpy
except ModuleNotFoundError:
    print('none')
else:
    print((numpy.ones((256, 256)) @ numpy.ones((256, 256))).sum())";
    let program = python.executable.display().to_string();
    let output = setting.program(&program, &["-s", "-B", "-c", code]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    match String::from_utf8_lossy(&output.stdout).trim() {
        "none" => Some("CONFINE_TEST_NUMPY names no interpreter with numpy".to_owned()),
        sum => {
            assert_eq!(sum, "16777216.0", "{stderr}");
            assert!(stderr.is_empty(), "{stderr}");
            None
        }
    }
}
