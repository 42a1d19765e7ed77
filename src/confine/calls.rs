//! System calls: those that no model needs and that reach beyond the process are refused.
//!
//! A list of refusals, not of permissions: what NumPy, PyTorch and a C library call changes
//! with each release, and a forgotten permission is a crash in production. Files and TCP are
//! Landlock's matter; this closes the ways around it and around the process group.
//!
//! A process that runs our own code alone gets a list of permissions ([`allow_computing`]).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use crate::Network;

/// Refused whatever the arguments.
const REFUSED: &[i64] = &[
    // Other processes' memory and files.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_ioprio_set,
    // Out of the process group, which is how all of them are killed.
    libc::SYS_setsid,
    libc::SYS_setpgid,
    // Other roots, mounts and namespaces.
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    // Large kernel interfaces; io_uring would also open sockets past this filter.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    // Memory that is in no process, and so in nobody's account.
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    // They tell of files that may not be read.
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_init,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    // Memory and messages that outlive their processes, and belong to all of one user's.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    // The machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    // Which libc does not name everywhere.
    #[cfg(any(target_arch = "x86_64", target_env = "gnu"))]
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
];

/// The first argument names a process. For oneself it is zero; that of another of the same
/// user, such as the server, would be another.
const REFUSED_FOR_OTHERS: &[i64] = &[
    libc::SYS_prlimit64,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
];

/// New namespaces; and a child that would be the server's own.
const REFUSED_CLONE_FLAGS: &[libc::c_int] = &[
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
    libc::CLONE_PARENT,
];

/// Hiding one's memory from the server.
const REFUSED_PRCTLS: &[libc::c_int] = &[libc::PR_SET_DUMPABLE];

/// A socket's type without the flags that travel with it.
const TYPE_MASK: u64 = 0xf;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What a process calls that reads, writes and computes: memory, time, randomness, its own end.
const COMPUTING: &[i64] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_getrusage,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Of the same, those that make memory writable; programs are not made.
const MAPPING: &[i64] = &[libc::SYS_mmap, libc::SYS_mprotect];

/// Refuses the calls, for this process and all it starts, for good.
pub(crate) fn restrict(network: &Network) -> Result<(), String> {
    let rules = rules(network).map_err(|error| error.to_string())?;
    let filter = filter(rules, SeccompAction::Allow, REFUSED_BY)?;
    seccompiler::apply_filter(&absent()).map_err(|error| describe(&error))?;
    seccompiler::apply_filter(&filter).map_err(|error| describe(&error))
}

/// Allows this process to read, write and compute, and nothing else, for good.
pub(crate) fn allow_computing() -> Result<(), String> {
    let rules = computing().map_err(|error| error.to_string())?;
    let filter = filter(rules, REFUSED_BY, SeccompAction::Allow)?;
    seccompiler::apply_filter(&filter).map_err(|error| describe(&error))
}

const REFUSED_BY: SeccompAction = SeccompAction::Errno(libc::EPERM.unsigned_abs());

/// What becomes of the calls that no rule names, and of those that one does.
fn filter(rules: Rules, others: SeccompAction, named: SeccompAction) -> Result<BpfProgram, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
    SeccompFilter::new(rules, others, named, arch)
        .and_then(BpfProgram::try_from)
        .map_err(|error| error.to_string())
}

fn computing() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = COMPUTING.iter().map(|call| (*call, Vec::new())).collect();
    let program = libc::PROT_EXEC as u64;
    for call in MAPPING {
        rules.insert(*call, vec![all([masked(2, program, 0)?])?]);
    }
    // To oneself: how an abort ends a process, and limits.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![all([is(0, own)?])?]);
    rules.insert(libc::SYS_prlimit64, vec![all([is(0, 0)?])?]);
    Ok(rules)
}

fn describe(error: &seccompiler::Error) -> String {
    match error {
        seccompiler::Error::Seccomp(source) | seccompiler::Error::Prctl(source) => {
            source.to_string()
        }
        other => other.to_string(),
    }
}

fn rules(network: &Network) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    for call in REFUSED_FOR_OTHERS {
        rules.insert(*call, vec![all([is_not(0, 0)?])?]);
    }
    let mut clone = Vec::new();
    for flag in REFUSED_CLONE_FLAGS {
        let flag = u64::from(flag.unsigned_abs());
        clone.push(all([masked(0, flag, flag)?])?);
    }
    rules.insert(libc::SYS_clone, clone);
    let mut prctl = Vec::new();
    for option in REFUSED_PRCTLS {
        prctl.push(all([is(0, u64::from(option.unsigned_abs()))?])?);
    }
    // Outliving the server. To ask for the death that is due anyway is allowed: a fork does
    // not inherit it.
    let on_death = is(0, u64::from(libc::PR_SET_PDEATHSIG.unsigned_abs()))?;
    prctl.push(all([on_death, is_not(1, u64::from(libc::SIGKILL.unsigned_abs()))?])?);
    rules.insert(libc::SYS_prctl, prctl);
    // The second argument is the process, and zero of a user is the user.
    let others = all([is_not(1, 0)?])?;
    let user = all([is(0, 2)?])?;
    rules.insert(libc::SYS_setpriority, vec![others, user]);
    // Asking, and the usual persona; the others take hardening away.
    let odd = all([is_not(0, 0)?, is_not(0, u64::from(u32::MAX))?])?;
    rules.insert(libc::SYS_personality, vec![odd]);
    sockets(network, &mut rules)?;
    Ok(rules)
}

fn sockets(network: &Network, rules: &mut Rules) -> Result<(), seccompiler::BackendError> {
    let unix = libc::AF_UNIX as u64;
    let stream = libc::SOCK_STREAM as u64;
    let datagram = libc::SOCK_DGRAM as u64;
    // A pair of datagram sockets could still send to any other socket by its name.
    let mut pair = vec![all([is_not(0, unix)?])?];
    for kind in (0..=TYPE_MASK).filter(|kind| *kind != stream) {
        pair.push(all([masked(1, TYPE_MASK, kind)?])?);
    }
    rules.insert(libc::SYS_socketpair, pair);
    if *network == Network::None {
        rules.insert(libc::SYS_socket, Vec::new());
        return Ok(());
    }
    let mut socket =
        vec![all([is_not(0, libc::AF_INET as u64)?, is_not(0, libc::AF_INET6 as u64)?])?];
    for kind in (0..=TYPE_MASK).filter(|kind| ![stream, datagram].contains(kind)) {
        socket.push(all([masked(1, TYPE_MASK, kind)?])?);
    }
    // Landlock's port rules know plain TCP, not its relatives such as MPTCP and SCTP.
    for (kind, protocol) in [(stream, libc::IPPROTO_TCP), (datagram, libc::IPPROTO_UDP)] {
        let kind = masked(1, TYPE_MASK, kind)?;
        socket.push(all([kind, is_not(2, 0)?, is_not(2, protocol as u64)?])?);
    }
    rules.insert(libc::SYS_socket, socket);
    // Connecting by sending does not ask Landlock.
    let fast_open = libc::MSG_FASTOPEN as u64;
    for (call, argument) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)]
    {
        rules.insert(call, vec![all([masked(argument, fast_open, fast_open)?])?]);
    }
    Ok(())
}

/// Calls that are answered as if the kernel did not know them: `clone3`, whose flags lie in
/// memory where no filter sees them (C libraries then use `clone`), and on x86-64 the numbers
/// of the x32 interface, which name the same calls a second time.
fn absent() -> BpfProgram {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // The first number of x32; no other architecture has as many calls.
    const X32: u32 = 0x4000_0000;
    let clone3 = libc::SYS_clone3.unsigned_abs() as u32;
    let errno = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    vec![
        // The call's number is the first word that a filter sees.
        sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 },
        sock_filter { code: EQUAL, jt: 1, jf: 0, k: clone3 },
        sock_filter { code: AT_LEAST, jt: 0, jf: 1, k: X32 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: errno },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ]
}

type Built<T> = Result<T, seccompiler::BackendError>;

fn all<const N: usize>(conditions: [SeccompCondition; N]) -> Built<SeccompRule> {
    SeccompRule::new(conditions.into())
}

fn is(argument: u8, value: u64) -> Built<SeccompCondition> {
    condition(argument, SeccompCmpOp::Eq, value)
}

fn is_not(argument: u8, value: u64) -> Built<SeccompCondition> {
    condition(argument, SeccompCmpOp::Ne, value)
}

fn masked(argument: u8, mask: u64, value: u64) -> Built<SeccompCondition> {
    condition(argument, SeccompCmpOp::MaskedEq(mask), value)
}

/// All of these arguments are 32 bits wide for the kernel; what stands above is not looked at.
fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Built<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}
