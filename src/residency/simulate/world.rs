//! How long things take: the store, the disk, the device, and the requests themselves.

use std::collections::VecDeque;
use std::time::Duration;

use roundhouse_types::Bytes;

/// What stands in place of stores and devices.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    /// Bytes per second from the store; fetches under way share it.
    pub store_bandwidth: Bytes,
    /// What a fetch takes beside that.
    pub store_latency: Duration,
    /// Whether the files of all models are on disk at the beginning, as far as it holds them.
    pub on_disk: bool,
    /// What the disk holds; files that were not loaded for the longest time make way. Absent: all.
    pub disk: Option<Bytes>,
    /// Bytes per second from disk to the device; loads under way share it.
    pub load_bandwidth: Bytes,
    /// What a load takes beside that.
    pub load_latency: Duration,
    /// What an unload takes.
    pub unload: Duration,
    /// How long a request holds its lease.
    pub service: Duration,
}

impl Default for World {
    /// One 10 Gbit/s network, one fast disk, small requests.
    fn default() -> Self {
        Self {
            store_bandwidth: Bytes(1_000_000_000),
            store_latency: Duration::from_millis(50),
            on_disk: false,
            disk: None,
            load_bandwidth: Bytes(4_000_000_000),
            load_latency: Duration::from_millis(20),
            unload: Duration::from_millis(5),
            service: Duration::from_millis(50),
        }
    }
}

/// The files on disk, those longest not loaded first.
#[derive(Debug)]
pub(super) struct Disk {
    bound: Option<Bytes>,
    used: Bytes,
    files: VecDeque<(u32, Bytes)>,
}

impl Disk {
    pub(super) fn new(bound: Option<Bytes>) -> Self {
        Self { bound, used: Bytes::ZERO, files: VecDeque::new() }
    }

    pub(super) fn holds(&self, model: u32) -> bool {
        self.files.iter().any(|(file, _)| *file == model)
    }

    /// A model's files are whole on disk and about to be loaded; others make way for them, but
    /// for those that are `in_use`. Where that does not suffice the bound is exceeded meanwhile.
    pub(super) fn used(&mut self, model: u32, bytes: Bytes, in_use: impl Fn(u32) -> bool) {
        if let Some(at) = self.files.iter().position(|(file, _)| *file == model) {
            self.files.remove(at);
        } else {
            self.used += bytes;
        }
        self.files.push_back((model, bytes));
        let Some(bound) = self.bound else {
            return;
        };
        let mut at = 0;
        while self.used > bound && at < self.files.len() {
            let (file, bytes) = self.files[at];
            if file == model || in_use(file) {
                at += 1;
            } else {
                self.files.remove(at);
                self.used = self.used.saturating_sub(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_longest_not_loaded_make_way_unless_they_are_in_use() {
        let mut disk = Disk::new(Some(Bytes(10)));
        disk.used(1, Bytes(4), |_| false);
        disk.used(2, Bytes(4), |_| false);
        disk.used(1, Bytes(4), |_| false);
        disk.used(3, Bytes(4), |_| false);
        assert_eq!([1, 2, 3].map(|model| disk.holds(model)), [true, false, true]);
        disk.used(4, Bytes(4), |model| model == 1);
        assert_eq!([1, 3, 4].map(|model| disk.holds(model)), [true, false, true]);
    }
}
