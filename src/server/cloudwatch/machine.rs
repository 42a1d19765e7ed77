//! How busy the container is that this process runs in, or the machine where it is in none.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::book::Figures;
use super::figures::Figure;
use crate::app::Disk;
use crate::limits::{self, Memory};

/// What the processes of our container, or all of the machine, have computed since they began.
const CPU: &str = "/sys/fs/cgroup/cpu.stat";

/// Reads it, and knows what it read last.
pub(super) struct Machine {
    /// Where models' files are kept.
    disk: Disk,
    /// Whose disk is looked at before there is a store.
    folder: PathBuf,
    last: Option<(Instant, Duration)>,
}

impl Machine {
    pub(super) fn new(disk: Disk, folder: PathBuf) -> Self {
        Self { disk, folder, last: Some(Instant::now()).zip(computed(&read)) }
    }

    /// What it is now; what the system does not tell is left out. Blocks for some microseconds.
    pub(super) fn figures(&mut self) -> Figures {
        let mut figures = Figures::new();
        let mut percent = |figure: Figure, part: Option<f64>| {
            if let Some(part) = part {
                figures.entry(figure).or_default().add(100.0 * part);
            }
        };
        percent(Figure::CpuUtilization, self.cores());
        percent(Figure::MemoryUtilization, memory(limits::left(&read), Memory::read()));
        let folder = self.disk.folder().unwrap_or(&self.folder);
        percent(Figure::DiskUtilization, limits::disk_taken(folder).ok());
        figures
    }

    /// Cores that computed since the last time.
    fn cores(&mut self) -> Option<f64> {
        let now = Some(Instant::now()).zip(computed(&read));
        let before = std::mem::replace(&mut self.last, now);
        let ((at, computed), (since, known)) = now.zip(before)?;
        let passed = at.saturating_duration_since(since);
        let computed = computed.saturating_sub(known);
        (!passed.is_zero()).then(|| computed.as_secs_f64() / passed.as_secs_f64())
    }
}

/// The part of what may be had that is taken.
#[expect(clippy::cast_precision_loss, reason = "a part needs no more digits")]
fn memory(left: Option<roundhouse_types::Bytes>, memory: Memory) -> Option<f64> {
    let (left, whole) = (left?, memory.whole().filter(|whole| whole.0 > 0)?);
    Some(1.0 - left.min(whole).0 as f64 / whole.0 as f64)
}

/// Of control groups as of 2016; where there are none, what all cores of the machine did.
fn computed(read: &dyn Fn(&Path) -> Option<String>) -> Option<Duration> {
    let of_group = read(Path::new(CPU)).and_then(|text| {
        let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        Some(Duration::from_micros(micros.trim().parse().ok()?))
    });
    of_group.or_else(|| {
        let stat = read(Path::new("/proc/stat"))?;
        let fields = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = fields.split_whitespace().map_while(|it| it.parse().ok()).collect();
        // User, nice, system; then idle and waiting; then interrupts and what was stolen.
        let busy: u64 = ticks
            .iter()
            .enumerate()
            .filter(|(at, _)| ![3, 4].contains(at))
            .take(6)
            .map(|(_, ticks)| ticks)
            .sum();
        // Linux tells user space hundredths of a second on all its platforms.
        Some(Duration::from_millis(10 * busy))
    })
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use roundhouse_types::Bytes;

    use super::*;

    #[test]
    fn what_a_container_computed_counts_before_what_the_machine_did() {
        let machine = |path: &Path| {
            (path == Path::new("/proc/stat")).then(|| {
                "cpu  100 20 30 4000 50 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n".to_owned()
            })
        };
        assert_eq!(
            computed(&machine),
            Some(Duration::from_millis(10 * (100 + 20 + 30 + 6 + 7 + 8)))
        );
        let group = |path: &Path| {
            (path == Path::new(CPU)).then(|| "usage_usec 2500000\nuser_usec 1\n".to_owned())
        };
        assert_eq!(computed(&group), Some(Duration::from_micros(2_500_000)));
        assert_eq!(computed(&|_| None), None);
    }

    #[test]
    fn parts_are_of_what_may_be_had() {
        let of = |cgroup| Memory { total: Some(Bytes(1000)), cgroup, ..Memory::default() };
        assert_eq!(memory(Some(Bytes(250)), of(None)), Some(0.75));
        assert_eq!(memory(Some(Bytes(250)), of(Some(Bytes(500)))), Some(0.5));
        assert_eq!(memory(None, of(None)), None);
        let told = Machine::new(Disk::default(), "/nowhere/at/all".into()).figures();
        let disk = told[&Figure::DiskUtilization].shown().unwrap()["Max"].as_f64().unwrap();
        assert!((0.0..=100.0).contains(&disk), "{disk}");
    }
}
