//! What workers really use: the memory of all processes of each group, and its files.
//!
//! Memory is PSS (proportional set size): pages that processes share are split among them,
//! so that the sum over all is what the machine has given.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use roundhouse_types::Bytes;

use crate::Error;
use crate::process::{kill, reap_one};
use crate::scratch;

/// How often working groups are looked at: a leak of 1 GiB/s overshoots its limit by a fifth of that.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often groups that do nothing are: what they take changes as those who share pages with
/// them come and go. A look costs about a millisecond per worker.
const LOOK_IDLE_EVERY: Duration = Duration::from_secs(10);
/// How often the files of a working group are added up.
const LOOK_FILES_EVERY: Duration = Duration::from_secs(1);

/// How long a group rests after a look, against what the look took: one group costs at most a
/// twentieth of a core.
const REST: u32 = 19;

/// Tells of a group's memory.
pub(crate) type Told = Box<dyn Fn(Bytes) + Send + Sync>;

/// What a group may use and what it was seen to.
pub(crate) struct Watched {
    /// Its temporary folder.
    pub(crate) dir: PathBuf,
    pub(crate) memory_limit: Bytes,
    pub(crate) files_limit: Bytes,
    /// Process groups of its workers.
    pub(crate) workers: Mutex<BTreeSet<u32>>,
    /// A worker runs a call, or has since the last look.
    pub(crate) busy: AtomicBool,
    /// Workers that are importing and loading.
    pub(crate) starting: AtomicUsize,
    pub(crate) peak: AtomicU64,
    /// Not looked at before: a group of many processes takes long to look at, at the cost of all.
    pub(crate) rests_until: Mutex<Option<Instant>>,
    /// Set before a worker is killed for a limit; taken by whoever explains its end.
    pub(crate) verdict: Mutex<Option<Verdict>>,
    pub(crate) told: Told,
}

/// Which limit a worker was killed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Memory { used: Bytes, limit: Bytes },
    Files { used: Bytes, limit: Bytes },
}

impl Watched {
    fn workers(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, group: u32) {
        self.workers().insert(group);
    }

    pub(crate) fn remove(&self, group: u32) {
        self.workers().remove(&group);
    }

    pub(crate) fn take_verdict(&self) -> Option<Verdict> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn peak(&self) -> Bytes {
        Bytes(self.peak.load(Ordering::Relaxed))
    }

    /// Adds up the memory now. Blocking.
    pub(crate) fn measure(&self) -> Bytes {
        let groups = self.workers().clone();
        let members = members(&groups);
        self.measured(&members)
    }

    fn measured(&self, members: &BTreeMap<u32, Vec<u32>>) -> Bytes {
        let groups = self.workers().clone();
        let of_each: Vec<(u32, Bytes)> = groups
            .iter()
            .map(|group| {
                let processes = members.get(group).map(Vec::as_slice).unwrap_or_default();
                (*group, processes.iter().filter_map(|process| pss(*process).ok()).sum())
            })
            .collect();
        let used: Bytes = of_each.iter().map(|(_, used)| *used).sum();
        self.peak.fetch_max(used.0, Ordering::Relaxed);
        if used > self.memory_limit
            && let Some((largest, _)) = of_each.iter().max_by_key(|(_, used)| *used)
        {
            self.condemn(Verdict::Memory { used, limit: self.memory_limit }, *largest);
        }
        used
    }

    fn rests(&self, now: Instant) -> bool {
        let until = self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| now < until)
    }

    /// A look that began then is over.
    fn rest(&self, began: Instant) {
        let until = Instant::now() + began.elapsed() * REST;
        *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    fn look_at_files(&self) {
        let used = scratch::used(&self.dir);
        if used > self.files_limit {
            let all = self.workers().clone();
            for group in all {
                self.condemn(Verdict::Files { used, limit: self.files_limit }, group);
            }
        }
    }

    fn condemn(&self, verdict: Verdict, group: u32) {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
        kill(group);
    }
}

/// Looks at all groups from a thread of its own. Groups leave when they are dropped.
#[derive(Default)]
pub(crate) struct Watch {
    groups: Mutex<Vec<std::sync::Weak<Watched>>>,
}

impl Watch {
    /// Starts looking.
    pub(crate) fn start() -> Result<Arc<Self>, Error> {
        let watch = Arc::new(Self::default());
        let watching = Arc::downgrade(&watch);
        let run = move || {
            let mut looked = Looked::default();
            while let Some(watch) = watching.upgrade() {
                watch.look(&mut looked);
                drop(watch);
                std::thread::sleep(LOOK_EVERY);
            }
        };
        let thread = std::thread::Builder::new().name("worker-watch".into());
        thread.spawn(run).map_err(|source| Error::Spawn(io::Error::other(source)))?;
        Ok(watch)
    }

    /// Looks at a group from now on, for as long as it lives.
    pub(crate) fn add(&self, group: &Arc<Watched>) {
        self.groups().push(Arc::downgrade(group));
    }

    fn groups(&self) -> MutexGuard<'_, Vec<std::sync::Weak<Watched>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, looked: &mut Looked) {
        let groups: Vec<Arc<Watched>> = {
            let mut groups = self.groups();
            groups.retain(|group| group.strong_count() > 0);
            groups.iter().filter_map(std::sync::Weak::upgrade).collect()
        };
        let now = Instant::now();
        let with_idle = looked.is_due(now, LOOK_IDLE_EVERY, |looked| &mut looked.idle);
        let with_files = looked.is_due(now, LOOK_FILES_EVERY, |looked| &mut looked.files);
        let due: Vec<Arc<Watched>> = groups
            .into_iter()
            .filter(|group| {
                if group.rests(now) {
                    return false;
                }
                let starts = group.starting.load(Ordering::Relaxed) > 0;
                group.busy.swap(false, Ordering::Relaxed) || starts || with_idle
            })
            .collect();
        if due.is_empty() {
            return;
        }
        let all = due.iter().flat_map(|group| group.workers().clone()).collect();
        let members = members(&all);
        for group in due {
            let began = Instant::now();
            let used = group.measured(&members);
            if with_files || with_idle {
                group.look_at_files();
            }
            group.rest(began);
            (group.told)(used);
        }
    }
}

#[derive(Default)]
struct Looked {
    idle: Option<Instant>,
    files: Option<Instant>,
}

impl Looked {
    fn is_due(
        &mut self,
        now: Instant,
        every: Duration,
        which: impl Fn(&mut Self) -> &mut Option<Instant>,
    ) -> bool {
        let last = which(self);
        let due = last.is_none_or(|last| now.duration_since(last) >= every);
        if due {
            *last = Some(now);
        }
        due
    }
}

/// The processes of each of these process groups.
fn members(groups: &BTreeSet<u32>) -> BTreeMap<u32, Vec<u32>> {
    let mut members: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return members };
    for entry in entries.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may be gone by now.
        let Some((state, group)) = state_and_group(&entry.path()) else { continue };
        if !groups.contains(&group) {
            continue;
        }
        if state == "Z" && process != group {
            // Its parent left it to us. Leaders' ends are awaited elsewhere.
            reap_one(process);
            continue;
        }
        members.entry(group).or_default().push(process);
    }
    members
}

/// The third and fifth fields of `stat`; the second is a name in brackets that may hold
/// anything.
fn state_and_group(proc: &Path) -> Option<(String, u32)> {
    let stat = fs::read(proc.join("stat")).ok()?;
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.to_owned();
    Some((state, fields.nth(1)?.parse().ok()?))
}

/// A process's proportional set size. Where the kernel tells only its own user or a tracer
/// (as it does root in a container without SYS_PTRACE), its resident set: what is shared counts
/// in full then.
pub(crate) fn pss(process: u32) -> io::Result<Bytes> {
    let Ok(text) = fs::read_to_string(format!("/proc/{process}/smaps_rollup")) else {
        return resident(process);
    };
    let kibibytes = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    Ok(Bytes(kibibytes.unwrap_or(0_u64) * 1024))
}

/// The second field of `statm`, in pages.
fn resident(process: u32) -> io::Result<Bytes> {
    let text = fs::read_to_string(format!("/proc/{process}/statm"))?;
    let pages = text.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok());
    Ok(Bytes(pages.unwrap_or(0_u64) * rustix::param::page_size() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_memory_is_seen() {
        let before = pss(std::process::id()).unwrap();
        let block = vec![1_u8; 32 << 20];
        let after = pss(std::process::id()).unwrap();
        assert!(after.0 >= before.0 + (30 << 20), "{before} {after}");
        let own = resident(std::process::id()).unwrap();
        assert!(own.0 >= 32 << 20, "{own}");
        drop(block);
        let (_, group) = state_and_group(Path::new("/proc/self")).unwrap();
        let members = members(&BTreeSet::from([group]));
        assert!(members[&group].contains(&std::process::id()));
    }
}
