//! Processes of this machine, and who started whom, as `/proc` says it. All of it blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// All descendants of a process, without itself; none where it has none.
pub(crate) fn below(process: u32) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for child in all() {
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
    members
}

/// The processes whose parent this one is.
pub(crate) fn children_of(process: u32) -> Vec<u32> {
    all().into_iter().filter(|child| parent_of(*child) == Some(process)).collect()
}

/// All that there are.
pub(crate) fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|it| it.file_name().to_str()?.parse().ok()).collect()
}

/// What a process is called, for people.
pub(crate) fn name_of(process: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

fn parent_of(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name before may hold anything, brackets and spaces too.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}
