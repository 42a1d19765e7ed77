//! How much memory an input makes the process take: the peak of what is resident, as the kernel has it.
//! The server's crate brings an allocator of its own, so it cannot be counted there.

use std::fs;

/// What is written to have the peak begin anew at what is resident now.
const FORGET_PEAK: &str = "5";

/// Bytes that `work` took at most beside what was resident before, and what it gave. Zero where the
/// kernel does not say.
pub(crate) fn most_of<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let forgets = fs::write("/proc/self/clear_refs", FORGET_PEAK).is_ok();
    let before = peak();
    let given = work();
    let most = if forgets { peak().saturating_sub(before) } else { 0 };
    (most, given)
}

/// The peak in bytes.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    number.unwrap_or_default() << 10
}
