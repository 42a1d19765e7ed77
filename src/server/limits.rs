//! What the machine allows: memory of host and cgroup, free disk, and the budgets that
//! follow where the settings name none.
//!
//! On Linux from `/proc` and `/sys/fs/cgroup` (both versions); elsewhere the memory is
//! unknown and a budget must be set.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
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

    /// What the machine and our cgroup allow when nobody else takes anything.
    pub fn whole(&self) -> Option<Bytes> {
        match (self.cgroup, self.total) {
            (Some(cgroup), Some(total)) => Some(cgroup.min(total)),
            (one, other) => one.or(other),
        }
    }

    /// The budget of models where the settings name none: the limit, less what the process
    /// holds now, less a margin of 10 %. `None` where the memory is unknown.
    pub fn automatic_budget(&self) -> Option<Bytes> {
        let left = self.limit()?.saturating_sub(self.resident.unwrap_or(Bytes::ZERO));
        Some(budget_of(left))
    }
}

/// What models may take of the memory that is left beside everything else: all but the margin.
pub(crate) fn budget_of(left: Bytes) -> Bytes {
    share(left, 100 - MEMORY_MARGIN)
}

/// What is free on the disk that holds this folder or, where it does not exist yet, the
/// nearest folder above it. Blocks for some microseconds.
///
/// # Errors
/// When the system does not say.
pub fn free_disk(folder: &Path) -> io::Result<Bytes> {
    Ok(statvfs(folder)?.free)
}

/// The size of the cache where the settings name none: the smaller of 50 GiB and 70 % of
/// what is free, what the cache holds already counted as free.
pub fn automatic_cache_size(free: Bytes, held: Bytes) -> Bytes {
    let room = free.checked_add(held).unwrap_or(free);
    CACHE_MOST.min(share(room, CACHE_SHARE))
}

/// What the files below a folder take, those with several names once and without their holes;
/// nothing where it does not exist. Blocks on the disk.
pub fn held_disk(folder: &Path) -> Bytes {
    Bytes(held_below(folder, &mut HashSet::new()))
}

fn held_below(folder: &Path, seen: &mut HashSet<(u64, u64)>) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => held_below(&entry.path(), seen),
        Ok(file) if file.is_file() && seen.insert((file.dev(), file.ino())) => file.blocks() * 512,
        _ => 0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}

fn share(of: Bytes, percent: u64) -> Bytes {
    // Divided first: a size times a hundred may not fit. At most 99 bytes are lost.
    Bytes(of.0 / 100 * percent)
}

/// What could still be taken before our control group, one above it or the machine has no
/// more: page cache that would be dropped for it counts as free. `read` answers for the files
/// of the system; `None` where none of them says.
pub(crate) fn left(read: &dyn Fn(&Path) -> Option<String>) -> Option<Bytes> {
    let meminfo = read(Path::new("/proc/meminfo")).unwrap_or_default();
    let in_groups = memory_groups(read).into_iter().filter_map(|group| group.left(read));
    in_groups.chain(kib_field(&meminfo, "MemAvailable:")).min()
}

/// A line of `/proc` as in `MemTotal:  24 kB`.
pub(crate) fn kib_field(text: &str, field: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let number = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Bytes(1024).checked_mul(number)
}

/// A control group that may limit our memory.
struct MemoryGroup {
    folder: PathBuf,
    files: &'static GroupFiles,
}

/// What the two versions call the same things.
struct GroupFiles {
    limit: &'static str,
    usage: &'static str,
    /// What the system would drop before it says that there is no more. With what is below.
    reclaimable: [&'static str; 3],
}

const VERSION_TWO: GroupFiles = GroupFiles {
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: ["inactive_file ", "active_file ", "slab_reclaimable "],
};
const VERSION_ONE: GroupFiles = GroupFiles {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    // Its slab is counted elsewhere.
    reclaimable: ["total_inactive_file ", "total_active_file ", "total_slab_reclaimable "],
};

impl MemoryGroup {
    fn number(&self, file: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
        read(&self.folder.join(file))?.trim().parse().ok()
    }

    fn limit(&self, read: &dyn Fn(&Path) -> Option<String>) -> Option<Bytes> {
        self.number(self.files.limit, read).filter(|limit| *limit < UNLIMITED).map(Bytes)
    }

    fn left(&self, read: &dyn Fn(&Path) -> Option<String>) -> Option<Bytes> {
        let limit = self.limit(read)?;
        let usage = Bytes(self.number(self.files.usage, read)?);
        let stat = read(&self.folder.join("memory.stat")).unwrap_or_default();
        let field = |name: &str| {
            let number = stat.lines().find_map(|line| line.strip_prefix(name))?;
            number.trim().parse().ok().map(Bytes)
        };
        let reclaimable: Bytes = self.files.reclaimable.iter().filter_map(|name| field(name)).sum();
        Some(limit.saturating_sub(usage.saturating_sub(reclaimable)))
    }
}

/// The tightest limit on the way from our cgroup to the root.
fn cgroup_limit(read: &dyn Fn(&Path) -> Option<String>) -> Option<Bytes> {
    memory_groups(read).iter().filter_map(|group| group.limit(read)).min()
}

/// Our cgroup and all above it, of both versions.
fn memory_groups(read: &dyn Fn(&Path) -> Option<String>) -> Vec<MemoryGroup> {
    let ours = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let mut groups = Vec::new();
    for line in ours.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (root, files) = match controllers {
            "" => ("/sys/fs/cgroup", &VERSION_TWO),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", &VERSION_ONE)
            }
            _ => continue,
        };
        let folder = PathBuf::from(format!("{root}{path}"));
        // In a container the path may name a folder of the host that is not mounted here;
        // the walk up ends at the root, where the container's own limit then stands.
        let within = folder.ancestors().take_while(|ancestor| ancestor.starts_with(root));
        groups.extend(within.map(|folder| MemoryGroup { folder: folder.into(), files }));
    }
    groups
}

/// Version 1 writes "no limit" as the largest multiple of a page.
const UNLIMITED: u64 = 1 << 60;

/// The part of the disk that holds this folder which is taken, from 0 to 1; likewise.
///
/// # Errors
/// When the system does not say.
pub(crate) fn disk_taken(folder: &Path) -> io::Result<f64> {
    let Disk { free, taken } = statvfs(folder)?;
    // Of what may be had, as df says it: some of the disk is kept for others.
    let whole = free.checked_add(taken).unwrap_or(free).0.max(1);
    Ok(float(taken.0) / float(whole))
}

#[expect(clippy::cast_precision_loss, reason = "a part needs no more digits")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

/// A disk's bytes.
struct Disk {
    /// What may be taken.
    free: Bytes,
    taken: Bytes,
}

/// The disk where a folder is or will be.
#[expect(unsafe_code, reason = "the standard library has no statvfs")]
fn statvfs(folder: &Path) -> io::Result<Disk> {
    let absolute = std::path::absolute(folder)?;
    let existing = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let path = CString::new(existing.as_os_str().as_bytes())?;
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
    let bytes = |blocks| Bytes(blocks).checked_mul(answer.f_frsize).unwrap_or(Bytes(u64::MAX));
    let taken = answer.f_blocks.saturating_sub(answer.f_bfree);
    Ok(Disk { free: bytes(answer.f_bavail), taken: bytes(taken) })
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
    fn what_files_hold_together_and_their_holes_are_no_room_to_be_had() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("below");
        std::fs::create_dir(&below).unwrap();
        std::fs::write(folder.path().join("file"), [1; 100_000]).unwrap();
        let alone = held_disk(folder.path());
        assert!((100_000..200_000).contains(&alone.0), "{alone}");
        std::fs::hard_link(folder.path().join("file"), below.join("again")).unwrap();
        std::fs::File::create(below.join("hole")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(held_disk(folder.path()), alone);
        assert_eq!(held_disk(&folder.path().join("absent")), Bytes::ZERO);
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
    fn what_is_left_in_a_cgroup_has_page_cache_in_it() {
        let stat = "anon 1\nfile 900\ninactive_file 300\nactive_file 100\nslab_reclaimable 50\n";
        let two = [
            MEMINFO,
            ("/proc/self/cgroup", "0::/ours\n"),
            ("/sys/fs/cgroup/ours/memory.max", "2000\n"),
            ("/sys/fs/cgroup/ours/memory.current", "1500\n"),
            ("/sys/fs/cgroup/ours/memory.stat", stat),
        ];
        assert_eq!(left(&machine(&two)), Some(Bytes(950)));
        let one = [
            MEMINFO,
            ("/proc/self/cgroup", "4:memory:/a\n"),
            ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2000\n"),
            ("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "1500\n"),
            ("/sys/fs/cgroup/memory/a/memory.stat", "inactive_file 1\ntotal_inactive_file 20\n"),
        ];
        assert_eq!(left(&machine(&one)), Some(Bytes(520)));
        assert_eq!(left(&machine(&[MEMINFO])), Some(Bytes::gib(8)));
        assert_eq!(left(&machine(&[])), None);
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
