//! What the processes of an engine take of the host's memory.
//!
//! Proportional set size, as for handlers: pages that processes share are split among them.

use std::{fs, io};

use roundhouse_types::Bytes;

use crate::processes;

/// What all descendants of a process take now; zero where it has none. Blocking.
pub(super) fn below(process: u32) -> Bytes {
    processes::below(process).into_iter().filter_map(|member| pss(member).ok()).sum()
}

fn pss(process: u32) -> io::Result<Bytes> {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(Bytes(kib.unwrap_or_default().saturating_mul(1024)))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn descendants_count_and_the_process_itself_does_not() {
        let mut child = Command::new("sh")
            .args(["-c", "sh -c 'echo up; read x' && true; true"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert!(below(child.id()) > Bytes::ZERO);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(below(child.id()), Bytes::ZERO);
    }
}
