//! What the machine allows: memory of host and cgroup, free disk, and the budgets that
//! follow where the settings name none.
//!
//! On Linux from `/proc` and `/sys/fs/cgroup` (both versions); elsewhere the memory is
//! unknown and a budget must be set.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use roundhouse_types::Bytes;

/// The largest cache that is taken without being told to.
const CACHE_MOST: Bytes = Bytes::gib(50);
/// Of the free disk, in percent: the rest is for logs and neighbours.
const CACHE_SHARE: u64 = 70;
/// Of the memory, in percent: what allocators, page tables and bursts take on top of what
/// is charged.
const MEMORY_MARGIN: u64 = 10;

/// The memory that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// What the host has.
    pub total: Option<Bytes>,
    /// What could be taken now without swapping.
    pub available: Option<Bytes>,
    /// The tightest limit of our cgroup and those above it.
    pub cgroup: Option<Bytes>,
    /// What this process holds now.
    pub resident: Option<Bytes>,
}

impl Memory {
    /// Reads what there is now. Blocks for some microseconds.
    pub fn read() -> Self {
        Self::read_with(&|path| std::fs::read_to_string(path).ok())
    }

    fn read_with(read: &dyn Fn(&Path) -> Option<String>) -> Self {
        let meminfo = read(Path::new("/proc/meminfo")).unwrap_or_default();
        let status = read(Path::new("/proc/self/status")).unwrap_or_default();
        Self {
            total: kib_field(&meminfo, "MemTotal:"),
            available: kib_field(&meminfo, "MemAvailable:"),
            cgroup: cgroup_limit(read),
            resident: kib_field(&status, "VmRSS:"),
        }
    }

    /// The most this process could ever hold: its cgroup's limit, or what others leave it.
    pub fn limit(&self) -> Option<Bytes> {
        let left_by_others = self
            .available
            .map(|available| available + self.resident.unwrap_or(Bytes::ZERO))
            .or(self.total);
        match (self.cgroup, left_by_others) {
            (Some(cgroup), Some(host)) => Some(cgroup.min(host)),
            (one, other) => one.or(other),
        }
    }

    /// The budget of models where the settings name none: the limit, less what the process
    /// holds now, less a margin of 10 %. `None` where the memory is unknown.
    pub fn automatic_budget(&self) -> Option<Bytes> {
        let left = self.limit()?.saturating_sub(self.resident.unwrap_or(Bytes::ZERO));
        Some(share(left, 100 - MEMORY_MARGIN))
    }
}

/// What is free on the disk that holds this folder or, where it does not exist yet, the
/// nearest folder above it. Blocks for some microseconds.
///
/// # Errors
/// When the system does not say.
pub fn free_disk(folder: &Path) -> io::Result<Bytes> {
    let absolute = std::path::absolute(folder)?;
    let existing = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let name = CString::new(existing.as_os_str().as_bytes())?;
    statvfs(&name)
}

/// The size of the cache where the settings name none: the smaller of 50 GiB and 70 % of
/// what is free, what the cache holds already counted as free.
pub fn automatic_cache_size(free: Bytes, held: Bytes) -> Bytes {
    let room = free.checked_add(held).unwrap_or(free);
    CACHE_MOST.min(share(room, CACHE_SHARE))
}

/// What the files below a folder take; nothing where it does not exist. Blocks on the disk.
pub fn held_disk(folder: &Path) -> Bytes {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Bytes::ZERO;
    };
    let size = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => held_disk(&entry.path()),
        Ok(kind) if kind.is_file() => Bytes(entry.metadata().map_or(0, |file| file.len())),
        _ => Bytes::ZERO,
    };
    entries.filter_map(Result::ok).map(size).sum()
}

fn share(of: Bytes, percent: u64) -> Bytes {
    // Divided first: a size times a hundred may not fit. At most 99 bytes are lost.
    Bytes(of.0 / 100 * percent)
}

/// A line of `/proc` as in `MemTotal:  24 kB`.
fn kib_field(text: &str, field: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let number = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Bytes(1024).checked_mul(number)
}

/// The tightest limit on the way from our cgroup to the root.
fn cgroup_limit(read: &dyn Fn(&Path) -> Option<String>) -> Option<Bytes> {
    let ours = read(Path::new("/proc/self/cgroup"))?;
    let mut limits = Vec::new();
    for line in ours.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let folder = PathBuf::from(format!("{root}{path}"));
        // In a container the path may name a folder of the host that is not mounted here;
        // the walk up ends at the root, where the container's own limit then stands.
        for ancestor in folder.ancestors().take_while(|ancestor| ancestor.starts_with(root)) {
            let limit = read(&ancestor.join(file)).and_then(|text| text.trim().parse().ok());
            limits.extend(limit.filter(|limit| *limit < UNLIMITED).map(Bytes));
        }
    }
    limits.into_iter().min()
}

/// Version 1 writes "no limit" as the largest multiple of a page.
const UNLIMITED: u64 = 1 << 60;

#[expect(unsafe_code, reason = "the standard library has no statvfs")]
fn statvfs(path: &CString) -> io::Result<Bytes> {
    let mut answer = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `path` ends with a zero byte and outlives the call; `answer` is writable and
    // of the type the call fills; all-zero bytes are a valid value of that plain C struct,
    // so reading it is sound whatever the call wrote.
    let (code, answer) = unsafe {
        let code = libc::statvfs(path.as_ptr(), answer.as_mut_ptr());
        (code, answer.assume_init())
    };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    let block = answer.f_frsize;
    Ok(Bytes(answer.f_bavail).checked_mul(block).unwrap_or(Bytes(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine<'a>(files: &'a [(&'a str, &'a str)]) -> impl Fn(&Path) -> Option<String> + 'a {
        |path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path)?;
            Some(found.1.to_owned())
        }
    }

    const MEMINFO: (&str, &str) =
        ("/proc/meminfo", "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n");
    const STATUS: (&str, &str) = ("/proc/self/status", "Name:\tx\nVmRSS:\t  1048576 kB\n");

    #[test]
    fn the_budget_is_what_others_leave_less_the_baseline_and_a_tenth() {
        let memory = Memory::read_with(&machine(&[MEMINFO, STATUS]));
        assert_eq!(memory.limit(), Some(Bytes::gib(9)));
        assert_eq!(memory.automatic_budget(), Some(Bytes(Bytes::gib(8).0 / 100 * 90)));
    }

    #[test]
    fn the_tightest_cgroup_on_the_way_up_decides() {
        let memory = Memory::read_with(&machine(&[
            MEMINFO,
            STATUS,
            ("/proc/self/cgroup", "0::/pods/ours\n"),
            ("/sys/fs/cgroup/pods/ours/memory.max", "max\n"),
            ("/sys/fs/cgroup/pods/memory.max", "4294967296\n"),
            ("/sys/fs/cgroup/memory.max", "8589934592\n"),
        ]));
        assert_eq!(memory.cgroup, Some(Bytes::gib(4)));
        assert_eq!(memory.limit(), Some(Bytes::gib(4)));
    }

    #[test]
    fn a_version_one_cgroup_without_a_limit_does_not_limit() {
        let cgroup = ("/proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/a\n");
        let file = "/sys/fs/cgroup/memory/a/memory.limit_in_bytes";
        let unlimited = [MEMINFO, cgroup, (file, "9223372036854771712\n")];
        assert_eq!(Memory::read_with(&machine(&unlimited)).cgroup, None);
        let limited = [MEMINFO, cgroup, (file, "1073741824\n")];
        assert_eq!(Memory::read_with(&machine(&limited)).cgroup, Some(Bytes::gib(1)));
    }

    #[test]
    fn the_cache_takes_seventy_percent_of_a_small_disk_and_fifty_gib_of_a_large_one() {
        assert_eq!(automatic_cache_size(Bytes::gib(1000), Bytes::ZERO), Bytes::gib(50));
        assert_eq!(automatic_cache_size(Bytes(600), Bytes(400)), Bytes(700));
    }

    #[test]
    fn free_disk_is_known_for_a_folder_that_does_not_exist_yet() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("a/b/c");
        assert!(free_disk(&missing).unwrap() > Bytes::ZERO);
    }
}
