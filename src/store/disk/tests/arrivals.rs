//! Files that are read while they arrive. Readers block, so the clock runs here.

use futures_util::poll;

use super::*;
use crate::testing::{Fault, Operation};

type Fetching = tokio::task::JoinHandle<Result<CachedArtefact, Error>>;

impl Fixture {
    /// Begins a fetch and returns when it can be read behind.
    async fn begin(&self, disk: &DiskCache, target: &str) -> (Fetching, Arc<ArrivingFiles>) {
        let (artefact, disk) = (self.resolve(target).await, disk.clone());
        assert!(disk.arriving(&artefact.id).is_none(), "nobody fetches it yet");
        let (catalog, id, fetched) = (self.catalog.clone(), artefact.id.clone(), disk.clone());
        let mut fetching =
            Box::pin(async move { fetched.fetch(&catalog, &artefact, &Progress::new()).await });
        loop {
            // By this task until it is seen: by another it might end between two looks.
            assert!(poll!(&mut fetching).is_pending(), "it ended before it was seen");
            match disk.arriving(&id) {
                Some(arriving) => return (tokio::spawn(fetching), Arc::new(arriving)),
                None => tokio::task::yield_now().await,
            }
        }
    }

    /// The store hands out so many parts of a file and then never answers.
    fn hang_after(&self, parts: usize, key: &str) {
        for _ in 0..parts {
            self.faulty.plan(Operation::Get, key, Fault::BreakAfter(u64::MAX));
        }
        self.faulty.plan(Operation::Get, key, Fault::Hang);
    }
}

/// Reads on a thread of its own, as a load does.
fn read(
    files: &Arc<ArrivingFiles>,
    path: &'static str,
    range: std::ops::Range<usize>,
) -> tokio::task::JoinHandle<Result<Vec<u8>, Error>> {
    let files = Arc::clone(files);
    tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; range.len()];
        files.read_at(path, range.start as u64, &mut buffer).map(|()| buffer)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_arrived_is_read_while_the_rest_is_still_to_come() {
    let f = Fixture::new(Bytes::mib(16));
    let weights = noise(1_000_000, 1);
    f.put("m/w.bin", weights.clone());
    f.hang_after(5, "w.bin");
    let disk = f.open().await;
    let (fetching, files) = f.begin(&disk, "m").await;
    // Across the border of two parts, the later one first.
    assert!(
        read(&files, "w.bin", 350_000..500_000).await.unwrap().unwrap()
            == weights[350_000..500_000]
    );
    assert!(
        read(&files, "w.bin", 50_000..150_000).await.unwrap().unwrap() == weights[50_000..150_000]
    );
    assert!(!fetching.is_finished(), "the sixth part never comes");
    let waits = read(&files, "w.bin", 450_000..550_000);
    fetching.abort();
    assert!(matches!(waits.await.unwrap(), Err(Error::Abandoned { .. })));
    let id = files.artefact().id.clone();
    let ended = tokio::task::spawn_blocking(move || files.whole().err());
    assert!(matches!(ended.await.unwrap(), Some(Error::Abandoned { .. })));
    assert!(disk.arriving(&id).is_none(), "nobody holds it any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_fetch_left_is_read_at_once() {
    let f = Fixture::new(Bytes::mib(16));
    let weights = noise(1_000_000, 2);
    f.put("m/w.bin", weights.clone());
    f.hang_after(5, "w.bin");
    let disk = f.open().await;
    let (fetching, files) = f.begin(&disk, "m").await;
    read(&files, "w.bin", 0..500_000).await.unwrap().unwrap();
    fetching.abort();
    assert!(fetching.await.unwrap_err().is_cancelled());
    f.faulty.plan(Operation::Get, "w.bin", Fault::Hang);
    let (fetching, files) = f.begin(&disk, "m").await;
    assert!(read(&files, "w.bin", 0..500_000).await.unwrap().unwrap() == weights[..500_000]);
    assert_eq!(once(f.faulty.delivered("m/w.bin")), 500_000, "none was fetched again");
    fetching.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_are_told_what_a_fetch_fails_with() {
    let f = Fixture::new(Bytes::mib(16));
    f.put("m/w.bin", noise(1_000_000, 3));
    f.faulty.plan(Operation::Get, "w.bin", Fault::BreakAfter(u64::MAX));
    let denied =
        Error::AccessDenied { store: "memory".into(), key: "m/w.bin".into(), cause: "no".into() };
    f.faulty.plan(Operation::Get, "w.bin", Fault::Fail(denied));
    let disk = f.open().await;
    let (fetching, files) = f.begin(&disk, "m").await;
    let read = read(&files, "w.bin", 0..1_000_000).await.unwrap();
    assert!(matches!(read, Err(Error::AccessDenied { .. })), "{read:?}");
    assert!(matches!(fetching.await.unwrap(), Err(Error::AccessDenied { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_come_first() {
    let f = Fixture::new(Bytes::mib(16));
    f.put("m/a/weights.bin", noise(1_000_000, 4));
    f.put("m/config.json", "{}");
    f.put("m/tokenizer.json", "[]");
    f.hang_after(0, "weights.bin");
    let disk = f.open().await;
    let (fetching, files) = f.begin(&disk, "m").await;
    let folder = tokio::task::spawn_blocking(move || {
        files.folder_with(["config.json", "tokenizer.json"]).unwrap()
    });
    let folder = folder.await.unwrap();
    assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), b"{}");
    assert_eq!(std::fs::read(folder.join("tokenizer.json")).unwrap(), b"[]");
    fetching.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_stay_readable_when_the_fetch_has_ended() {
    let f = Fixture::new(Bytes::mib(16));
    let (first, second) = (noise(1_000_000, 5), noise(300_000, 6));
    f.put("m/first.bin", first.clone());
    f.put("m/second.bin", second.clone());
    let disk = f.open().await;
    let (fetching, files) = f.begin(&disk, "m").await;
    assert!(read(&files, "first.bin", 0..1_000_000).await.unwrap().unwrap() == first);
    fetching.await.unwrap().unwrap();
    // One was opened before the folder was renamed, the other was not.
    assert!(read(&files, "first.bin", 7..1_000).await.unwrap().unwrap() == first[7..1_000]);
    assert!(read(&files, "second.bin", 0..300_000).await.unwrap().unwrap() == second);
    let beyond = read(&files, "second.bin", 299_999..300_001).await.unwrap();
    assert!(matches!(beyond, Err(Error::Io { .. })));
    assert!(matches!(read(&files, "third.bin", 0..1).await.unwrap(), Err(Error::Io { .. })));
    let whole = tokio::task::spawn_blocking(move || files.whole().unwrap());
    assert!(
        tree(whole.await.unwrap().dir())
            == [("first.bin".into(), first), ("second.bin".into(), second)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_was_read_and_is_not_whole() {
    let f = Fixture::new(Bytes::mib(16));
    f.put("m/w.bin", "123456789");
    let checksum = crate::Checksum {
        algorithm: crate::ChecksumAlgorithm::Crc64Nvme,
        base64: "rosUhgp5mIg=".into(),
    };
    f.memory.set_checksum("m/w.bin", checksum);
    f.faulty.plan(Operation::Get, "w.bin", Fault::FlipByte);
    let disk = f.open().await;
    let (fetching, files) = f.begin(&disk, "m").await;
    let whole = tokio::task::spawn_blocking(move || files.whole().err());
    assert!(matches!(whole.await.unwrap(), Some(Error::Corrupt { .. })));
    assert!(fetching.await.unwrap().is_err());
}
