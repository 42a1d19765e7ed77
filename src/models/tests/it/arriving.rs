//! Loads from files that are read while they arrive.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Condvar, Mutex};

use roundhouse_models::{Cancel, Error, Folder, ModelFiles, load_files};
use roundhouse_types::{DeviceId, ErrorKind};

use crate::support::{cases, dir, open, plan, row, settings, step, whole};

/// Files whose bytes come one file after the other, each from its begin to its end.
struct Arriving {
    folder: Folder,
    sizes: BTreeMap<String, u64>,
    /// How many bytes of all files in a row are there.
    there: Mutex<u64>,
    more: Condvar,
    reads: Mutex<Vec<(String, u64, u64)>>,
    /// After so many bytes nothing comes any more.
    ends_after: u64,
}

impl Arriving {
    fn new(case: &str, ends_after: u64) -> Self {
        let folder = Folder::new(dir(case));
        let sizes = folder.sizes().unwrap();
        let (there, more) = (Mutex::new(0), Condvar::new());
        Self { folder, sizes, there, more, reads: Mutex::default(), ends_after }
    }

    fn total(&self) -> u64 {
        self.sizes.values().sum()
    }

    /// Lets all bytes come that will come, a few at a time.
    fn arrive(&self) {
        while *self.there.lock().unwrap() < self.total().min(self.ends_after) {
            *self.there.lock().unwrap() += 1000;
            self.more.notify_all();
        }
        *self.there.lock().unwrap() = self.ends_after;
        self.more.notify_all();
    }
}

impl ModelFiles for Arriving {
    fn sizes(&self) -> Result<BTreeMap<String, u64>, Error> {
        Ok(self.sizes.clone())
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let before = self.sizes.iter().take_while(|(name, _)| name.as_str() < path);
        let before: u64 = before.map(|(_, size)| size).sum();
        let end = offset + buffer.len() as u64;
        let mut there = self.there.lock().unwrap();
        while *there < before + end {
            if *there == self.ends_after {
                return Err(io::Error::other("the fetch ended"));
            }
            there = self.more.wait(there).unwrap();
        }
        drop(there);
        self.reads.lock().unwrap().push((path.to_owned(), offset, end));
        self.folder.read_at(path, offset, buffer)
    }
}

#[test]
fn a_model_that_arrives_computes_the_same_bits() {
    for case in cases("llama").into_iter().chain(cases("bert")) {
        let files = Arriving::new(&case, u64::MAX);
        let plan = plan(&case, &settings());
        let cancel = Cancel::new();
        let mut arrived = std::thread::scope(|scope| {
            scope.spawn(|| files.arrive());
            load_files(&files, &plan, &DeviceId::Cpu.into(), &cancel, None).unwrap()
        });
        let mut read = open(&case, &settings());
        assert_eq!(arrived.footprint, read.footprint, "{case}");
        let tokens = [1, 5, 7, 2];
        let rows = match read.runner.spec().kv {
            Some(_) => vec![row(0, 0, &tokens)],
            None => vec![whole(&tokens)],
        };
        let computed = step(&mut *arrived.runner, rows.clone());
        assert_eq!(computed, step(&mut *read.runner, rows), "{case}");
    }
}

#[test]
fn when_the_last_byte_comes_all_others_have_been_read() {
    for case in cases("llama").into_iter().chain(cases("bert")) {
        let files = Arriving::new(&case, u64::MAX);
        *files.there.lock().unwrap() = u64::MAX;
        load_files(&files, &plan(&case, &settings()), &DeviceId::Cpu.into(), &Cancel::new(), None)
            .unwrap();
        let reads = files.reads.into_inner().unwrap();
        let weights = reads.iter().filter(|(file, _, _)| file.ends_with(".safetensors"));
        let (file, end) = weights.map(|(file, _, end)| (file, end)).max().unwrap();
        let last = reads.iter().position(|(at, _, to)| (at, to) == (file, end)).unwrap();
        // The last parameter may be stacked of several tensors, in another order.
        let behind: u64 = reads[last + 1..].iter().map(|(_, from, to)| to - from).sum();
        let largest = reads.iter().map(|(_, from, to)| to - from).max().unwrap();
        assert!(behind <= 2 * largest, "{case}: {behind} bytes are read behind the last one");
    }
}

#[test]
fn a_load_fails_when_its_files_stop_coming() {
    let files = Arriving::new("llama-mha", 30_000);
    assert!(files.total() > 30_000);
    let plan = plan("llama-mha", &settings());
    let error = std::thread::scope(|scope| {
        scope.spawn(|| files.arrive());
        load_files(&files, &plan, &DeviceId::Cpu.into(), &Cancel::new(), None).unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Internal);
}
