//! What the processes of an engine take of the host's memory.
//!
//! Proportional set size, as for handlers: pages that processes share are split among them.

use std::collections::{BTreeMap, BTreeSet};
use std::{fs, io};

use roundhouse_types::Bytes;

/// What all descendants of a process take now; zero where it has none. Blocking.
pub(super) fn below(process: u32) -> Bytes {
    let Ok(entries) = fs::read_dir("/proc") else { return Bytes::ZERO };
    let processes = entries.flatten().filter_map(|it| it.file_name().to_str()?.parse().ok());
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for child in processes {
        if let Some(parent) = parent_of(child) {
            children.entry(parent).or_default().push(child);
        }
    }
    // Numbers are given anew: a process that is read late could seem to be its own ancestor.
    let (mut members, mut left) = (BTreeSet::new(), vec![process]);
    while let Some(parent) = left.pop() {
        let of_parent = children.get(&parent).into_iter().flatten();
        left.extend(of_parent.filter(|child| **child != process && members.insert(**child)));
    }
    members.into_iter().filter_map(|member| pss(member).ok()).sum()
}

/// The processes whose parent this one is. Blocking.
pub(crate) fn children_of(process: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let processes = entries.flatten().filter_map(|it| it.file_name().to_str()?.parse().ok());
    processes.filter(|child| parent_of(*child) == Some(process)).collect()
}

fn parent_of(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name before may hold anything, brackets and spaces too.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
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
