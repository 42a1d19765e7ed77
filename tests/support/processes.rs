//! Witnesses of handlers' processes that do not ask the server, and ends of the server's own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::task::JoinHandle;

/// The processes that were given a folder below `cache`; the server itself was not.
pub fn processes_of(cache: &Path) -> BTreeSet<u32> {
    let scratch = cache.join("handlers/scratch").display().to_string();
    let given = |process: &u32| {
        fs::read(format!("/proc/{process}/environ"))
            .is_ok_and(|text| String::from_utf8_lossy(&text).contains(&scratch))
    };
    all_processes().into_iter().filter(given).collect()
}

/// Every process of the machine.
fn all_processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A process's arguments, in one text.
pub fn cmdline(process: u32) -> String {
    let text = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

/// The real user of a process; none where it is gone.
pub fn user(process: u32) -> Option<u32> {
    field(process, "status", "Uid:")
}

/// Processes of a user.
pub fn processes_of_user(user: u32) -> Vec<u32> {
    all_processes().into_iter().filter(|one| self::user(*one) == Some(user)).collect()
}

/// Processes of a process group.
pub fn processes_of_group(group: u32) -> Vec<u32> {
    let is_in = |process: &u32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        after_name.split_whitespace().nth(2) == Some(&group.to_string())
    };
    all_processes().into_iter().filter(is_in).collect()
}

/// The sum of proportional set sizes, in bytes.
pub fn pss(processes: &BTreeSet<u32>) -> u64 {
    let one = |process: &u32| field(*process, "smaps_rollup", "Pss:").map(u64::from);
    processes.iter().filter_map(one).sum::<u64>() * 1024
}

/// A process's resident memory, in bytes.
pub fn resident(process: u32) -> u64 {
    field(process, "status", "VmRSS:").map_or(0, u64::from) * 1024
}

/// The first number of a line of a file of a process.
fn field(process: u32, file: &str, name: &str) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{process}/{file}")).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Kills a process of a handler.
///
/// # Panics
/// Where it is not there any more.
pub fn kill(process: u32) {
    let process = i32::try_from(process).unwrap();
    #[expect(unsafe_code, reason = "kill(2) has no safe wrapper in std")]
    // SAFETY: a plain system call; the process was just found to be one of our server's.
    let sent = unsafe { libc::kill(process, libc::SIGKILL) };
    assert_eq!(sent, 0, "process {process} is gone");
}

/// The next of a sequence that looks random, such as the instants at which a server dies.
pub fn random(state: &mut u64) -> u64 {
    // Xorshift (Marsaglia, 2003).
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Kills a process without warning, as `kill -9`, when so much time has passed.
pub fn kill_after(pid: u32, after: Duration) -> JoinHandle<()> {
    tokio::spawn(async move {
        tokio::time::sleep(after).await;
        let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
        assert!(killed.unwrap().success(), "{pid} is killed");
    })
}
