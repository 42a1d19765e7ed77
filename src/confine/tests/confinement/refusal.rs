//! What happens where a mechanism is missing.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Output};

use roundhouse_confine::{Isolation, probe};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::setting::{Setting, exe, is_root, mechanisms, require};
use crate::{Outcome, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "required_refuses_what_is_missing_and_best_effort_goes_on",
        required_refuses_what_is_missing_and_best_effort_goes_on,
    ),
    ("without_a_mount_namespace_the_rest_holds", without_a_mount_namespace_the_rest_holds),
    ("root_without_a_user_for_the_child_is_refused", root_without_a_user_for_the_child_is_refused),
    ("the_probe_says_what_is_missing", the_probe_says_what_is_missing),
    ("a_program_that_is_not_there_is_named", a_program_that_is_not_there_is_named),
    ("a_process_without_a_launch_is_refused", a_process_without_a_launch_is_refused),
];

/// Becomes `program` (or the probe), with some calls as an older kernel would answer them.
pub(crate) fn run_without(what: &str, program: &str, rest: &[&str]) -> ExitCode {
    let call = match what {
        "landlock" => libc::SYS_landlock_create_ruleset,
        "seccomp" => libc::SYS_seccomp,
        "namespaces" => libc::SYS_unshare,
        "users" => libc::SYS_setresuid,
        other => panic!("{other}"),
    };
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let filter: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&filter).unwrap();
    if program == "probe" {
        println!("{}", probe(&exe()).missing().join("\n"));
        return ExitCode::SUCCESS;
    }
    panic!("{}", Command::new(program).args(rest).exec())
}

/// Runs `script` confined where `what` is missing.
fn shell_without(setting: &mut Setting, what: &str, script: &str) -> Output {
    let launch = setting.shell(script);
    let mut command = Command::new(exe());
    command.args(["without", what]).arg(launch.get_program()).args(launch.get_args());
    for (name, value) in launch.get_envs() {
        command.env(name, value.unwrap());
    }
    command.output().unwrap()
}

fn required_refuses_what_is_missing_and_best_effort_goes_on() -> Outcome {
    require!();
    let mut cases = vec![("landlock", "file rules"), ("seccomp", "system call filter")];
    if is_root() {
        cases.push(("users", "a user of its own"));
    }
    for (what, named) in cases {
        let mut setting = Setting::new();
        let output = shell_without(&mut setting, what, "echo ran");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(126), "{what} {stderr}");
        assert!(
            stderr.starts_with("isolation is required, but ") && stderr.contains(named),
            "{stderr}"
        );
        assert!(output.stdout.is_empty());

        setting.launch.confinement.isolation = Isolation::BestEffort;
        let output = shell_without(&mut setting, what, "ulimit -c; echo \"$HOME\"; echo ran");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n\nran\n", "{what}");
    }
    None
}

fn without_a_mount_namespace_the_rest_holds() -> Outcome {
    require!();
    let mut setting = Setting::new();
    let script = "
echo x > $TREES/write/made && echo written
(echo x > /tmp/roundhouse-made) 2>/dev/null || echo refused
cat $TREES/outside/file 2>/dev/null || echo hidden";
    let output = shell_without(&mut setting, "namespaces", script);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "written\nrefused\nhidden\n");
    None
}

fn root_without_a_user_for_the_child_is_refused() -> Outcome {
    if !is_root() {
        return Some("not root".to_owned());
    }
    require!();
    for uid in [None, Some(0)] {
        let mut setting = Setting::new();
        setting.launch.confinement.uid = uid;
        let output = setting.shell("echo ran").output().unwrap();
        assert_eq!(output.status.code(), Some(126));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("a user of its own"), "{stderr}");
    }
    None
}

fn the_probe_says_what_is_missing() -> Outcome {
    require!();
    assert_eq!(mechanisms().own_uid, is_root());
    for (what, named) in [("landlock", "file rules"), ("seccomp", "system call filter")] {
        let output = Command::new(exe()).args(["without", what, "probe"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.lines().next().unwrap().contains(named), "{what}: {said}");
    }
    let nothing = probe("/bin/false".as_ref());
    assert!(nothing.missing().len() >= 2 && nothing.summary().contains("probe"), "{nothing:?}");
    None
}

fn a_program_that_is_not_there_is_named() -> Outcome {
    require!();
    let mut setting = Setting::new();
    let output = setting.program("/usr/bin/no-such-program", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(126));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("cannot use /usr/bin/no-such-program: No such file"), "{stderr}");
    None
}

fn a_process_without_a_launch_is_refused() -> Outcome {
    let output = Command::new(exe()).arg(roundhouse_confine::SUBCOMMAND).output().unwrap();
    assert_eq!(output.status.code(), Some(126));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "no launch in the environment\n");
    None
}
