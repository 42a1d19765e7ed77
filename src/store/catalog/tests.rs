mod absent;

use std::sync::Arc;
use std::time::Duration;

use roundhouse_types::{ErrorKind, RetryHint};
use tokio::time::{advance, sleep};

use super::*;
use crate::ArchiveKind;
use crate::testing::{Fault, Faulty, MemoryStore, Operation};
use crate::{CacheConfig, Progress};

const LONG_AGO: Duration = Duration::from_secs(7200);

struct Fixture {
    memory: Arc<MemoryStore>,
    faulty: Arc<Faulty>,
    catalog: Catalog,
}

fn fixture() -> Fixture {
    fixture_with(CatalogConfig::default())
}

fn fixture_with(config: CatalogConfig) -> Fixture {
    let memory = Arc::new(MemoryStore::new("memory"));
    let faulty = Arc::new(Faulty::new(memory.clone()));
    let stores: Vec<(_, Arc<dyn ArtifactStore>)> = vec![(None, faulty.clone())];
    let catalog = Catalog::over("ep".parse().unwrap(), stores, config).unwrap();
    Fixture { memory, faulty, catalog }
}

impl Fixture {
    async fn resolve(&self, target: &str) -> Result<Arc<Artefact>, Error> {
        self.catalog.resolve(&target.parse().unwrap(), Freshness::Cached).await
    }

    async fn fresh(&self, target: &str) -> Result<Arc<Artefact>, Error> {
        self.catalog.resolve(&target.parse().unwrap(), Freshness::Fresh).await
    }

    fn old(&self, key: &str, contents: impl Into<Bytes>) {
        self.memory.put_aged(key, contents, LONG_AGO);
    }
}

/// A safetensors file with one tensor of so many bytes.
fn safetensors(bytes: usize) -> Vec<u8> {
    let header = format!(
        r#"{{"__metadata__":{{"a":"b"}},"w":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}}}}"#
    );
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.resize(file.len() + bytes, 7);
    file
}

fn paths(artefact: &Artefact) -> Vec<&str> {
    artefact.files.iter().map(|file| file.path.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn an_object_wins_over_a_folder_and_markers_are_no_files() {
    let f = fixture();
    f.old("t/m", "object");
    f.old("t/m/config.json", "{}");
    f.old("t/n/", "");
    f.old("t/n/config.json", "{}");
    f.old("t/n/1_Pooling/config.json", "{}");
    f.old("t/a.tar.gz", "packed");
    assert_eq!(paths(&f.resolve("t/m").await.unwrap()), ["m"]);
    let folder = f.resolve("t/n").await.unwrap();
    assert_eq!(paths(&folder), ["1_Pooling/config.json", "config.json"]);
    assert_eq!(folder.bytes, roundhouse_types::Bytes(4));
    let archive = f.resolve("t/a.tar.gz").await.unwrap();
    assert_eq!(archive.archive, Some(ArchiveKind::TarGz));
    let error = f.resolve("t/none").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelNotFound);
}

#[tokio::test(start_paused = true)]
async fn a_missing_model_is_found_two_seconds_after_its_upload_at_most() {
    let f = fixture_with(CatalogConfig {
        negative_ttl: Duration::from_secs(600),
        ..CatalogConfig::default()
    });
    assert!(f.resolve("m").await.is_err());
    let asked = f.faulty.requests(Operation::List);
    f.old("m/config.json", "{}");
    assert!(f.resolve("m").await.is_err(), "remembered");
    assert_eq!(f.faulty.requests(Operation::List), asked);
    advance(NEGATIVE_MAX).await;
    assert!(f.resolve("m").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn answers_are_remembered_for_their_time_and_fresh_ones_are_not() {
    let f = fixture();
    f.old("m/config.json", "{}");
    let first = f.resolve("m").await.unwrap();
    f.memory.put_aged("m/config.json", "{ }", LONG_AGO);
    assert_eq!(f.resolve("m").await.unwrap().id, first.id);
    advance(Duration::from_millis(1)).await;
    let second = f.fresh("m").await.unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!(f.resolve("m").await.unwrap().id, second.id);
    f.memory.put_aged("m/config.json", "{  }", LONG_AGO);
    advance(CatalogConfig::default().ttl).await;
    assert_ne!(f.resolve("m").await.unwrap().id, second.id);
}

#[tokio::test(start_paused = true)]
async fn concurrent_calls_share_one_check_and_one_may_leave() {
    let f = fixture();
    f.old("m/config.json", "{}");
    let target = "m".parse().unwrap();
    {
        let mut leaver = Box::pin(f.catalog.resolve(&target, Freshness::Cached));
        assert!(
            futures_util::poll!(&mut leaver).is_ready() || f.faulty.requests(Operation::List) == 1
        );
    }
    let calls = (0..20).map(|_| f.catalog.resolve(&target, Freshness::Cached));
    let outcomes = futures_util::future::join_all(calls).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert!(f.faulty.requests(Operation::List) <= 2);
}

#[tokio::test(start_paused = true)]
async fn a_young_folder_waits_for_its_second_listing_and_an_old_one_does_not() {
    let f = fixture();
    f.old("old/config.json", "{}");
    f.memory.put("young/config.json", "{}");
    let begun = Instant::now();
    f.resolve("old").await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    f.resolve("young").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_missing_shard_is_named_and_the_model_is_there_once_it_is() {
    let f = fixture();
    let index = r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    f.memory.put("m/model.safetensors.index.json", index);
    f.memory.put("m/1.safetensors", safetensors(10));
    let error = f.resolve("m").await.unwrap_err();
    assert!(error.to_string().contains("still being uploaded: shard '2.safetensors'"), "{error}");
    assert_eq!((error.kind(), error.retry()), (ErrorKind::ModelInvalid, RetryHint::Later));
    f.memory.put("m/2.safetensors", safetensors(10));
    sleep(NEGATIVE_MAX).await;
    assert_eq!(f.resolve("m").await.unwrap().files.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_has_long_been_short_may_be_damaged() {
    let f = fixture();
    let cut = safetensors(1000)[..500].to_vec();
    f.memory.put("young/model.safetensors", cut.clone());
    f.old("old/model.safetensors", cut);
    let error = f.resolve("old").await.unwrap_err().to_string();
    assert!(
        error.contains("still being uploaded, or damaged: file 'model.safetensors' has 500 of")
    );
    let error = f.resolve("young").await.unwrap_err().to_string();
    assert!(error.contains("still being uploaded: file 'model.safetensors' has 500 of"), "{error}");
    assert!(error.contains("its upload was waited for 12s"), "{error}");
    // A look that would come too late is not waited for.
    let f = fixture_with(CatalogConfig { settle: Duration::from_secs(30), ..Default::default() });
    f.memory.put("young/model.safetensors", safetensors(1000)[..500].to_vec());
    let error = f.resolve("young").await.unwrap_err().to_string();
    assert!(error.contains("has 500 of") && !error.contains("was waited for"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_git_lfs_pointer_is_no_upload_that_may_end() {
    let f = fixture();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    f.memory.put("m/model.safetensors", pointer);
    assert_eq!(f.resolve("m").await.unwrap().bytes.0, pointer.len() as u64);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_ends_while_a_call_waits_is_answered() {
    let f = fixture();
    let whole = safetensors(1000);
    f.memory.put("m/model.safetensors", whole[..500].to_vec());
    let call = f.resolve("m");
    let upload = async {
        sleep(Duration::from_secs(3)).await;
        f.memory.put("m/model.safetensors", whole.clone());
    };
    let (outcome, ()) = futures_util::join!(call, upload);
    assert_eq!(outcome.unwrap().bytes.0, whole.len() as u64);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_upload_fails_at_once_and_says_how_many_bytes_are_there() {
    let f = fixture();
    let whole = safetensors(1000);
    f.old("m/model.safetensors", whole[..500].to_vec());
    let begun = Instant::now();
    let error = f.resolve("m").await.unwrap_err();
    let wanted = format!("file 'model.safetensors' has 500 of {} bytes", whole.len());
    assert!(error.to_string().contains(&wanted), "{error}");
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_folder_replaced_file_by_file_never_yields_a_mixture() {
    let f = fixture();
    let files = ["a.bin", "b.bin", "c.bin", "config.json"];
    for file in files {
        f.old(&format!("m/{file}"), "old");
    }
    f.resolve("m").await.unwrap();
    let upload = async {
        for file in files {
            f.memory.put(&format!("m/{file}"), "new!");
            // A pause shorter than an update's settling time.
            sleep(Duration::from_secs(8)).await;
        }
    };
    let watch = async {
        for _ in 0..60 {
            if let Ok(artefact) = f.fresh("m").await {
                let new = artefact.files.iter().filter(|file| file.size == 4).count();
                assert!(new == 0 || new == 4, "{new} of 4 files are new");
            }
            sleep(Duration::from_secs(1)).await;
        }
    };
    futures_util::join!(upload, watch);
    sleep(Duration::from_secs(30)).await;
    let settled = f.fresh("m").await.unwrap();
    assert!(settled.files.iter().all(|file| file.size == 4));
}

#[tokio::test(start_paused = true)]
async fn while_a_folder_is_replaced_the_version_on_disk_keeps_answering_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let config = CacheConfig::new(folder.path(), roundhouse_types::Bytes::mib(16));
    let disk = DiskCache::open(config).await.unwrap();
    let f = fixture();
    f.old("m/a.bin", "old");
    f.old("m/b.bin", "old");
    let old = f.resolve("m").await.unwrap();
    disk.fetch(&f.catalog, &old, &Progress::new()).await.unwrap();

    f.memory.put("m/a.bin", "new!");
    let stores: Vec<(_, Arc<dyn ArtifactStore>)> = vec![(None, f.memory.clone())];
    let restarted = Catalog::over("ep".parse().unwrap(), stores, CatalogConfig::default());
    let restarted = restarted.unwrap().with_disk(disk.clone());
    let target = "m".parse().unwrap();
    let begun = Instant::now();
    assert_eq!(restarted.resolve(&target, Freshness::Fresh).await.unwrap().id, old.id);
    assert_eq!(begun.elapsed(), Duration::ZERO, "no wait in front of what is on disk");
    sleep(Duration::from_secs(1)).await;
    f.memory.put("m/b.bin", "new!");
    sleep(Duration::from_secs(11)).await;
    assert_ne!(restarted.resolve(&target, Freshness::Fresh).await.unwrap().id, old.id);
}

#[tokio::test(start_paused = true)]
async fn a_version_that_was_deleted_does_not_come_back_when_its_name_does() {
    let folder = tempfile::tempdir().unwrap();
    let config = CacheConfig::new(folder.path(), roundhouse_types::Bytes::mib(16));
    let disk = DiskCache::open(config).await.unwrap();
    let mut f = fixture();
    f.catalog = f.catalog.with_disk(disk.clone());
    f.old("m/model.safetensors", safetensors(10));
    let old = f.resolve("m").await.unwrap();
    disk.fetch(&f.catalog, &old, &Progress::new()).await.unwrap();
    f.memory.remove("m/model.safetensors");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(f.fresh("m").await.unwrap_err().kind(), ErrorKind::ModelNotFound);
    disk.gone(&old.id.model, &f.catalog.origin(&old.id.model.target).unwrap());
    assert!(disk.get(&old.id).is_some());
    // An upload that ended early.
    let whole = safetensors(20);
    f.memory.put("m/model.safetensors", whole[..whole.len() - 1].to_vec());
    sleep(Duration::from_secs(1)).await;
    let error = f.fresh("m").await.unwrap_err();
    assert!(matches!(error, Error::Unsettled { .. }), "{error}");
    f.old("m/model.safetensors", whole);
    sleep(Duration::from_secs(1)).await;
    assert_ne!(f.fresh("m").await.unwrap().id, old.id);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_upload_that_an_older_version_answers_for_is_told_until_it_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let config = CacheConfig::new(folder.path(), roundhouse_types::Bytes::mib(16));
    let disk = DiskCache::open(config).await.unwrap();
    let mut f = fixture();
    f.catalog = f.catalog.with_disk(disk.clone());
    let target = "m".parse().unwrap();
    f.old("m/model.safetensors", safetensors(10));
    let old = f.resolve("m").await.unwrap();
    disk.fetch(&f.catalog, &old, &Progress::new()).await.unwrap();
    assert_eq!(f.catalog.passed_over(&target).await, None);
    let whole = safetensors(20);
    for (is_old, stale) in [(false, false), (true, true)] {
        let short = whole[..whole.len() - 1].to_vec();
        match is_old {
            true => f.old("m/model.safetensors", short),
            false => f.memory.put("m/model.safetensors", short),
        }
        advance(Duration::from_millis(1)).await;
        assert_eq!(f.fresh("m").await.unwrap().id, old.id);
        let passed = f.catalog.passed_over(&target).await.expect("it is told");
        assert!(passed.why.contains("model.safetensors") && passed.version != old.id.version);
        assert_eq!(passed.stale, stale, "{}", passed.why);
    }
    f.old("m/model.safetensors", whole);
    advance(Duration::from_millis(1)).await;
    assert_ne!(f.fresh("m").await.unwrap().id, old.id);
    assert_eq!(f.catalog.passed_over(&target).await, None);
}

#[tokio::test(start_paused = true)]
async fn added_files_do_not_take_the_settled_version_away() {
    let f = fixture();
    f.old("m/a.bin", "old");
    let old = f.resolve("m").await.unwrap();
    f.memory.put("m/b.bin", "more");
    advance(Duration::from_millis(1)).await;
    assert_eq!(f.fresh("m").await.unwrap().id, old.id);
}

#[tokio::test(start_paused = true)]
async fn unsafe_keys_and_too_many_files_are_refused() {
    let f = fixture_with(CatalogConfig { max_files: 3, ..CatalogConfig::default() });
    f.old("m/../../etc/passwd", "x");
    let error = f.resolve("m").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelInvalid);
    assert!(error.to_string().contains("'../../etc/passwd' has a '.' or '..' segment"), "{error}");
    for n in 0..4 {
        f.old(&format!("n/{n}"), "x");
    }
    let error = f.resolve("n").await.unwrap_err();
    assert!(error.to_string().contains("more than 3 files"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn targets_go_to_the_mount_with_the_longest_name() {
    let stores: Vec<_> = ["root", "a", "a/b"].map(|n| Arc::new(MemoryStore::new(n))).into();
    for store in &stores {
        store.put_aged("x/config.json", store.name().to_owned(), LONG_AGO);
    }
    let names = [None, Some("a".to_owned()), Some("a/b".to_owned())];
    let mounts: Vec<(_, Arc<dyn ArtifactStore>)> =
        names.into_iter().zip(stores).map(|(n, s)| (n, s as Arc<dyn ArtifactStore>)).collect();
    let catalog = Catalog::over("ep".parse().unwrap(), mounts, CatalogConfig::default()).unwrap();
    for (target, wanted) in [("x", "root"), ("a/x", "a"), ("a/b/x", "a/b")] {
        let artefact = catalog.resolve(&target.parse().unwrap(), Freshness::Cached).await.unwrap();
        let text = catalog.read(&artefact, "config.json", None).await.unwrap();
        assert_eq!(text, wanted.as_bytes());
    }
    let first = catalog.list(None, 2).await.unwrap();
    let names: Vec<_> = first.targets.iter().map(|t| t.name.as_str()).collect();
    assert_eq!((names, first.next.as_deref()), (vec!["a/b/x", "a/x"], Some("a/x")));
    let second = catalog.list(first.next.as_deref(), 2).await.unwrap();
    assert_eq!((second.targets[0].name.as_str(), second.next), ("x", None));
}

#[tokio::test(start_paused = true)]
async fn the_store_s_failures_are_retried_and_then_told_and_not_remembered() {
    let f = fixture();
    f.old("m/config.json", "{}");
    let down =
        Error::Unavailable { store: "memory".into(), key: "m/".into(), cause: "down".into() };
    for _ in 0..5 {
        f.faulty.plan(Operation::List, "m/", Fault::Fail(down.clone()));
    }
    f.resolve("m").await.unwrap();
    for _ in 0..6 {
        f.faulty.plan(Operation::List, "n/", Fault::Fail(down.clone()));
    }
    let error = f.resolve("n").await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::StoreUnavailable, RetryHint::Later));
    f.old("n/config.json", "{}");
    f.resolve("n").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_is_given_up_after_a_bounded_time() {
    let f = fixture();
    for _ in 0..10 {
        f.faulty.plan(Operation::List, "m/", Fault::Hang);
    }
    let begun = Instant::now();
    let error = f.resolve("m").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    assert!(begun.elapsed() < Duration::from_secs(200), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn slow_down_holds_back_the_whole_mount() {
    let f = fixture();
    f.old("m/config.json", "{}");
    f.old("n/config.json", "{}");
    let slow = Error::Throttled { store: "memory".into(), key: "m/".into() };
    f.faulty.plan(Operation::List, "m/", Fault::Fail(slow));
    let begun = Instant::now();
    let (first, ()) = futures_util::join!(f.resolve("m"), async {
        tokio::task::yield_now().await;
        f.resolve("n").await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
    });
    first.unwrap();
}

#[tokio::test(start_paused = true)]
async fn denied_heads_of_what_is_not_there_do_not_hide_a_folder() {
    let f = fixture();
    f.old("m/config.json", "{}");
    let denied = |key: &str| Error::AccessDenied {
        store: "memory".into(),
        key: key.into(),
        cause: "no".into(),
    };
    f.faulty.plan(Operation::Head, "m", Fault::Fail(denied("m")));
    assert!(f.resolve("m").await.is_ok());
    f.faulty.plan(Operation::Head, "n", Fault::Fail(denied("n")));
    assert_eq!(f.resolve("n").await.unwrap_err().kind(), ErrorKind::StoreDenied);
}

#[tokio::test(start_paused = true)]
async fn a_reread_header_is_not_read_again_and_a_replaced_file_is_told() {
    let f = fixture();
    f.old("m/model.safetensors", safetensors(100));
    let artefact = f.resolve("m").await.unwrap();
    let gets = f.faulty.requests(Operation::Get);
    let prefix = f.catalog.read(&artefact, "model.safetensors", Some(0..8)).await.unwrap();
    assert_eq!(prefix.len(), 8);
    assert_eq!(f.faulty.requests(Operation::Get), gets, "the settling check has read it");
    f.old("m/big.bin", vec![1; 1 << 20]);
    advance(Duration::from_millis(1)).await;
    let artefact = f.fresh("m").await.unwrap();
    f.old("m/big.bin", vec![2; 1 << 20]);
    let error = f.catalog.read(&artefact, "big.bin", Some(0..8)).await.unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    let outside = f.catalog.read(&artefact, "big.bin", Some(0..u64::MAX)).await;
    assert!(outside.is_err());
}

#[tokio::test]
async fn a_file_store_keeps_the_contract_and_stays_in_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    for (key, contents) in crate::testing::contract_objects() {
        let path = root.join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, contents).unwrap();
    }
    let store = FileStore::new(&root);
    crate::testing::contract(&store).await;
    crate::testing::contract(&Faulty::new(Arc::new(store.clone()))).await;
    std::fs::write(folder.path().join("secret"), "x").unwrap();
    std::os::unix::fs::symlink(folder.path().join("secret"), root.join("link")).unwrap();
    assert!(matches!(store.head("link").await, Err(Error::AccessDenied { .. })));
    let none = FileStore::new(folder.path().join("none"));
    assert!(matches!(none.head("x").await, Err(Error::NoSuchBucket { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_memory_store_keeps_the_contract() {
    let store = MemoryStore::new("memory");
    for (key, contents) in crate::testing::contract_objects() {
        store.put(&key, contents);
    }
    crate::testing::contract(&store).await;
}
