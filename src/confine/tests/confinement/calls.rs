//! Which system calls a confined process makes, and to whom.

use std::os::unix::process::ExitStatusExt;

use crate::setting::{Setting, assert_told, require};
use crate::{Outcome, Test};

pub(crate) const TESTS: &[Test] = &[
    ("others_are_not_signalled_or_changed", others_are_not_signalled_or_changed),
    ("its_own_children_are", its_own_children_are),
    ("refused_calls_are_refused", refused_calls_are_refused),
    ("flags_decide_about_clone", flags_decide_about_clone),
    ("the_calls_of_another_architecture_kill", the_calls_of_another_architecture_kill),
];

fn others_are_not_signalled_or_changed() -> Outcome {
    require!();
    let code = "
import resource
parent = os.getppid()
tell('signal', lambda: os.kill(parent, 0))
tell('group', lambda: os.killpg(os.getpgid(parent), 0))
tell('limit', lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE))
tell('processors', lambda: os.sched_setaffinity(parent, os.sched_getaffinity(0)))
tell('nice', lambda: os.setpriority(os.PRIO_PROCESS, parent, 19))
tell('user-nice', lambda: os.setpriority(os.PRIO_USER, 0, 19))
tell('read', lambda: open('/proc/%d/mem' % parent, 'rb').close())
";
    let mut setting = Setting::new();
    let told = setting.told(code);
    for (name, value) in &told {
        assert!(value == "EPERM" || value == "EACCES", "{name} {value}");
    }
    assert_eq!(told.len(), 7);
    assert_eq!(
        setting.told_unconfined("tell('signal', lambda: os.kill(os.getppid(), 0))")["signal"],
        "done"
    );
    None
}

fn its_own_children_are() -> Outcome {
    require!();
    let mut setting = Setting::new();
    let told = setting.told(
        "
import resource, subprocess, threading
def stop():
    child = subprocess.Popen(['/bin/sh', '-c', 'read x'], stdin=subprocess.PIPE)
    child.kill()
    return child.wait()
tell('killed', stop)
tell('output', lambda: subprocess.check_output(['/bin/echo', 'x']).decode().strip())
tell('limit', lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)))
tell('processors', lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)))
def thread():
    seen = []
    worker = threading.Thread(target=lambda: seen.append(1))
    worker.start(); worker.join()
    return len(seen)
tell('thread', thread)
",
    );
    assert_told(
        &told,
        &[
            ("killed", "-9"),
            ("output", "x"),
            ("limit", "done"),
            ("processors", "done"),
            ("thread", "1"),
        ],
    );
    None
}

/// Name, number and arguments of calls that, when not refused, succeed or fail otherwise.
fn refused() -> Vec<(&'static str, libc::c_long, &'static str)> {
    vec![
        ("ptrace", libc::SYS_ptrace, "0, 0, 0, 0"),
        ("process_vm_readv", libc::SYS_process_vm_readv, "os.getpid(), 0, 0, 0, 0, 0"),
        ("process_vm_writev", libc::SYS_process_vm_writev, "os.getpid(), 0, 0, 0, 0, 0"),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, "-1, 0, 0"),
        ("kcmp", libc::SYS_kcmp, "os.getpid(), os.getpid(), 0, 0, 0"),
        ("setpgid", libc::SYS_setpgid, "0, 0"),
        ("unshare-files", libc::SYS_unshare, "0x400"),
        ("unshare-user", libc::SYS_unshare, "0x10000000"),
        ("setns", libc::SYS_setns, "-1, 0"),
        ("io_uring_setup", libc::SYS_io_uring_setup, "1, 0"),
        ("add_key", libc::SYS_add_key, "0, 0, 0, 0, 0"),
        ("keyctl", libc::SYS_keyctl, "0, -3, 0, 0, 0"),
        ("shmget", libc::SYS_shmget, "0, 4096, 0o1600"),
        ("mq_open", libc::SYS_mq_open, "b'q', 0, 0, 0"),
        ("prctl-parent-death", libc::SYS_prctl, "1, 0, 0, 0, 0"),
        ("prctl-dumpable", libc::SYS_prctl, "4, 0, 0, 0, 0"),
        ("personality", libc::SYS_personality, "0x0040000"),
    ]
}

/// Those that are refused to some users without confinement too.
fn refused_to_all() -> Vec<(&'static str, libc::c_long, &'static str)> {
    vec![
        ("mount", libc::SYS_mount, "0, 0, 0, 0, 0"),
        ("umount2", libc::SYS_umount2, "0, 0"),
        ("pivot_root", libc::SYS_pivot_root, "0, 0"),
        ("chroot", libc::SYS_chroot, "0"),
        ("bpf", libc::SYS_bpf, "0, 0, 0"),
        ("perf_event_open", libc::SYS_perf_event_open, "0, 0, 0, 0, 0"),
        ("userfaultfd", libc::SYS_userfaultfd, "0"),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, "-1, 0, 0"),
        ("reboot", libc::SYS_reboot, "0, 0, 0, 0"),
        ("swapon", libc::SYS_swapon, "0, 0"),
        ("init_module", libc::SYS_init_module, "0, 0, 0"),
        ("kexec_load", libc::SYS_kexec_load, "0, 0, 0, 0"),
        ("settimeofday", libc::SYS_settimeofday, "0, 0"),
        ("acct", libc::SYS_acct, "0"),
        // Refused to a group's leader.
        ("setsid", libc::SYS_setsid, ""),
    ]
}

fn refused_calls_are_refused() -> Outcome {
    require!();
    let script = |calls: &[(&str, libc::c_long, &str)]| -> String {
        let line = |(name, number, arguments): &(&str, libc::c_long, &str)| {
            format!("tell('{name}', lambda: call({number}, {arguments}))\n")
        };
        calls.iter().map(line).collect()
    };
    let mut setting = Setting::new();
    let told = setting.told(&script(&[refused(), refused_to_all()].concat()));
    assert_eq!(told.len(), refused().len() + refused_to_all().len());
    for (name, value) in &told {
        assert_eq!(value, "EPERM", "{name}");
    }
    // Not one of them is refused by something else.
    let code = script(&refused());
    let unconfined = setting.told_unconfined(&code);
    for (name, value) in &unconfined {
        let is_odd_kernel = value == "ENOSYS" || (name == "io_uring_setup" && value == "EPERM");
        assert!(is_odd_kernel || value != "EPERM", "{name} {value}");
    }
    None
}

fn flags_decide_about_clone() -> Outcome {
    require!();
    let clone = libc::SYS_clone;
    let clone3 = libc::SYS_clone3;
    let mut code = format!(
        "
def fork(flags):
    pid = libc.syscall(ctypes.c_long({clone}), ctypes.c_long(flags | 17), 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise OSError(ctypes.get_errno(), 'clone')
    return os.waitpid(pid, 0)[1]
tell('plain', lambda: fork(0))
tell('clone3', lambda: call({clone3}, 0, 0))
for name, flag in dict(mounts=0x20000, cgroups=0x2000000, names=0x4000000, messages=0x8000000,
                       users=0x10000000, processes=0x20000000, network=0x40000000,
                       sibling=0x8000).items():
    tell(name, lambda: fork(flag))
"
    );
    if cfg!(target_arch = "x86_64") {
        code.push_str("tell('x32', lambda: call(0x40000000 + 39))\n");
    } else {
        code.push_str("print('x32 ENOSYS')\n");
    }
    let mut setting = Setting::new();
    assert_told(
        &setting.told(&code),
        &[
            ("plain", "0"),
            ("clone3", "ENOSYS"),
            ("mounts", "EPERM"),
            ("cgroups", "EPERM"),
            ("names", "EPERM"),
            ("messages", "EPERM"),
            ("users", "EPERM"),
            ("processes", "EPERM"),
            ("network", "EPERM"),
            ("sibling", "EPERM"),
            ("x32", "ENOSYS"),
        ],
    );
    None
}

fn the_calls_of_another_architecture_kill() -> Outcome {
    require!();
    if !cfg!(target_arch = "x86_64") {
        return Some("the machine code is for x86-64".to_owned());
    }
    // getpid by the 32-bit interface: mov eax, 20; int 0x80; ret.
    let code = "
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex('b814000000cd80c3'))
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
print('number', ctypes.CFUNCTYPE(ctypes.c_int)(address)())
";
    let mut setting = Setting::new();
    let status = setting.python(code).output().unwrap().status;
    match status.signal() {
        Some(libc::SIGSYS) => None,
        Some(libc::SIGSEGV) => Some("the kernel has no 32-bit interface".to_owned()),
        _ => panic!("{status}"),
    }
}
