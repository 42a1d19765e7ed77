//! What the system says that this process and everybody else use.

use std::path::Path;
use std::time::{Duration, Instant};

use roundhouse_types::Bytes;

use crate::limits::{self, kib_field};

/// Reads a file of the system; tests answer for it.
pub(super) type ReadFile<'a> = &'a dyn Fn(&Path) -> Option<String>;

/// What was seen at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// Anonymous memory of this process, swapped-out pages included: neither page cache nor
    /// the binary. Children are not in it.
    pub(super) own: Bytes,
    /// What could still be taken before our control group or the machine has no more. Page
    /// cache that would be dropped for it counts as free. `None` where nothing says.
    pub(super) available: Option<Bytes>,
}

/// How exactly this process is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Care {
    /// The kernel's running tally: 20 microseconds, off by some hundred KiB per processor.
    Tally,
    /// Every page is counted: 6 ms per GiB, during which the process cannot map memory.
    Pages,
}

/// Reads both; `None` where the system has no such files.
pub(super) fn read(care: Care, file: ReadFile<'_>) -> Option<Seen> {
    let own = match care {
        Care::Pages => pages(file).or_else(|| tally(file)),
        Care::Tally => tally(file),
    };
    Some(Seen { own: own?, available: limits::left(file) })
}

/// Kernels since 4.14 have it.
fn pages(file: ReadFile<'_>) -> Option<Bytes> {
    let text = file(Path::new("/proc/self/smaps_rollup"))?;
    let swapped = kib_field(&text, "Swap:").unwrap_or(Bytes::ZERO);
    Some(kib_field(&text, "Anonymous:")? + swapped)
}

fn tally(file: ReadFile<'_>) -> Option<Bytes> {
    let text = file(Path::new("/proc/self/status"))?;
    let swapped = kib_field(&text, "VmSwap:").unwrap_or(Bytes::ZERO);
    Some(kib_field(&text, "RssAnon:")? + swapped)
}

/// Lets the pages be counted for at most a hundredth of the time.
#[derive(Debug, Default)]
pub(super) struct Thrift {
    not_before: Option<Instant>,
}

impl Thrift {
    /// How to look at `now`, where the pages are wanted.
    pub(super) fn care(&self, now: Instant) -> Care {
        match self.not_before {
            Some(then) if now < then => Care::Tally,
            _ => Care::Pages,
        }
    }

    /// Counting the pages took this long until `now`.
    pub(super) fn took(&mut self, now: Instant, elapsed: Duration) {
        self.not_before = now.checked_add(elapsed.saturating_mul(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tx\nRssAnon:\t    1000 kB\nVmSwap:\t      24 kB\n";
    const ROLLUP: &str = "55d-7ff ---p 0 00:00 0 [rollup]\nRss:  4000 kB\nAnonymous:  2000 kB\n\
                          AnonHugePages:  0 kB\nSwap:  48 kB\nSwapPss:  1 kB\n";

    fn machine(with_rollup: bool) -> impl Fn(&Path) -> Option<String> {
        move |path| match path.to_str()? {
            "/proc/self/status" => Some(STATUS.into()),
            "/proc/self/smaps_rollup" if with_rollup => Some(ROLLUP.into()),
            "/proc/meminfo" => Some("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n".into()),
            _ => None,
        }
    }

    #[test]
    fn pages_in_swap_are_still_ours_and_old_kernels_have_a_tally() {
        let available = Some(Bytes(5000 << 10));
        let seen = |own: u64| Some(Seen { own: Bytes(own << 10), available });
        assert_eq!(read(Care::Pages, &machine(true)), seen(2048));
        assert_eq!(read(Care::Tally, &machine(true)), seen(1024));
        assert_eq!(read(Care::Pages, &machine(false)), seen(1024));
        assert_eq!(read(Care::Pages, &|_| None), None);
    }

    #[test]
    fn pages_are_not_counted_again_before_a_hundred_times_as_long_is_over() {
        let (start, millisecond) = (Instant::now(), Duration::from_millis(1));
        let mut thrift = Thrift::default();
        assert_eq!(thrift.care(start), Care::Pages);
        thrift.took(start, 5 * millisecond);
        assert_eq!(thrift.care(start + 499 * millisecond), Care::Tally);
        assert_eq!(thrift.care(start + 500 * millisecond), Care::Pages);
    }
}
