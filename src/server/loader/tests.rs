//! What the loader does when the store or the disk is not as it was.

use roundhouse_store::testing::{Fault, Faulty, MemoryStore, Operation};
use roundhouse_store::{ArtifactStore, CacheConfig, CatalogConfig};
use tempfile::TempDir;

use super::*;

mod elastic;
mod host;
mod versions;

const LONG_AGO: Duration = Duration::from_secs(7200);

/// A loader without devices, over a store in memory and a disk cache with room for a few
/// versions of one small file.
struct Bench {
    memory: Arc<MemoryStore>,
    faulty: Arc<Faulty>,
    catalog: Arc<Catalog>,
    cache: DiskCache,
    loader: ModelLoader,
    folder: TempDir,
}

async fn bench() -> Bench {
    bench_settling(Duration::ZERO).await
}

/// With a store whose uploads have so long to end.
async fn bench_settling(settle: Duration) -> Bench {
    let memory = Arc::new(MemoryStore::new("memory"));
    let faulty = Arc::new(Faulty::new(memory.clone()));
    let stores: Vec<(_, Arc<dyn ArtifactStore>)> = vec![(None, faulty.clone())];
    let endpoint: EndpointName = "ep".parse().unwrap();
    let config = CatalogConfig { settle, update_settle: settle, ..CatalogConfig::default() };
    let catalog = Catalog::over(endpoint.clone(), stores, config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(CacheConfig::new(folder.path().join("c"), Bytes::mib(1)));
    let cache = cache.await.unwrap();
    let catalog = Arc::new(catalog.with_disk(cache.clone()));
    let sources = BTreeMap::from([(endpoint, Source::Store(catalog.clone(), cache.clone()))]);
    let (settings, engine) = (LoadSettings::default(), EngineConfig::default());
    let loader = ModelLoader::new(sources, BTreeMap::new(), settings, engine, Handlers::default());
    Bench { memory, faulty, catalog, cache, loader, folder }
}

fn model() -> ModelId {
    ModelId { endpoint: "ep".parse().unwrap(), target: "m".parse().unwrap() }
}

impl Bench {
    fn upload(&self, config: &'static str) {
        self.memory.put_aged("m/config.json", config, LONG_AGO);
    }

    fn stand_in(&self, failure: &Failure) -> Option<ArtefactId> {
        self.loader.stand_in(&self.catalog, &self.cache, &model(), failure)
    }

    /// Asks the store itself.
    async fn named(&self) -> ArtefactId {
        // An answer of this very instant would count as fresh.
        tokio::time::advance(Duration::from_secs(1)).await;
        let asked = self.loader.ask(&self.catalog, &self.cache, &model(), true).await;
        let artefact = asked.unwrap();
        let id = artefact.id.clone();
        let known = Known { artefact: Some(artefact), ..Known::default() };
        self.loader.remember(&id, known);
        id
    }

    /// The same, and brings what it names to disk.
    async fn fetched(&self) -> ArtefactId {
        let id = self.named().await;
        self.loader.bring(&self.catalog, &self.cache, &id).await.unwrap();
        id
    }
}

fn down() -> Failure {
    Failure::new(ErrorKind::StoreUnavailable, "gone")
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_does_not_hold_up_a_model_that_is_on_disk() {
    let bench = bench().await;
    bench.upload("{}");
    let id = bench.fetched().await;
    tokio::time::advance(Duration::from_secs(1)).await;
    for operation in [Operation::List, Operation::Head] {
        bench.faulty.plan(operation, "", Fault::Hang);
    }
    let model = model();
    let asked = bench.loader.ask(&bench.catalog, &bench.cache, &model, true);
    let asked = tokio::time::timeout(STORE_PATIENCE + Duration::from_secs(1), asked).await;
    let failure = asked.unwrap().unwrap_err();
    assert_eq!(bench.stand_in(&failure), Some(id));
}

#[tokio::test(start_paused = true)]
async fn a_version_that_was_taken_back_does_not_return_with_the_store_down() {
    let bench = bench().await;
    bench.upload("{}");
    let first = bench.fetched().await;
    bench.upload(r#"{"worse": true}"#);
    let second = bench.fetched().await;
    assert_ne!(first, second);
    for named_last in [second, first] {
        locked(&bench.loader.current).put(model(), named_last.clone());
        let stand_in = bench.stand_in(&down());
        assert_eq!(stand_in, Some(named_last));
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_store_that_is_down_is_stood_in_for() {
    let bench = bench().await;
    bench.upload("{}");
    bench.fetched().await;
    let denied = Failure::new(ErrorKind::StoreDenied, "no");
    assert_eq!(bench.stand_in(&denied), None);
}

#[tokio::test(start_paused = true)]
async fn files_that_left_the_disk_before_their_load_are_fetched_again() {
    let bench = bench().await;
    bench.upload("{}");
    let id = bench.fetched().await;
    bench.cache.purge(&id).await.unwrap();
    let brought = bench.loader.bring(&bench.catalog, &bench.cache, &id).await.unwrap();
    assert!(brought.dir().join("config.json").exists());
}

#[tokio::test(start_paused = true)]
async fn what_a_load_fetches_again_is_not_held_to_its_tenants_bandwidth() {
    let bench = bench().await;
    bench.upload("{}");
    let id = bench.fetched().await;
    bench.loader.charge_to(&id, "slow");
    bench.cache.set_load_bandwidths(&BTreeMap::from([("slow".to_owned(), Bytes(1))]));
    // What a second brings is had at once; then two bytes are two seconds.
    let again = async |payer| {
        bench.cache.purge(&id).await.unwrap();
        let began = tokio::time::Instant::now();
        bench.loader.bring_for(payer, &bench.catalog, &bench.cache, &id).await.unwrap();
        began.elapsed()
    };
    again(bench.loader.payer(&id)).await;
    assert!(again(bench.loader.payer_unpaced(&id)).await < Duration::from_millis(500));
    assert!(again(bench.loader.payer(&id)).await > Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn an_orderly_end_is_no_death_of_the_models_it_cuts_off() {
    let bench = bench().await;
    bench.upload("{}");
    let id = bench.fetched().await;
    let markers = bench.folder.path().join("c/attempts");
    bench.cache.begin_load(&id).await.unwrap();
    assert!(bench.loader.begins_loading(&id));
    assert_eq!(std::fs::read_dir(&markers).unwrap().count(), 1);
    bench.loader.forgive_loads().await;
    assert_eq!(std::fs::read_dir(&markers).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_failed_of_unverified_files_has_the_next_one_wait_for_them() {
    let bench = bench().await;
    bench.upload("{}");
    let asked = bench.loader.ask(&bench.catalog, &bench.cache, &model(), false).await;
    let id = asked.unwrap().id.clone();
    let failed = |kind| Failure::new(kind, "a tensor is odd");
    let told = bench.loader.failed_behind(&bench.cache, &id, down());
    assert!(
        !bench.loader.recall(&id).failed_unverified,
        "the store's failure is none of the files'"
    );
    assert_eq!(told.message(), "gone");
    let told = bench.loader.failed_behind(&bench.cache, &id, failed(ErrorKind::ModelInvalid));
    assert!(bench.loader.recall(&id).failed_unverified);
    assert!(told.message().ends_with("the next load does that first"), "{told}");
    let whole = bench.fetched().await;
    let told = bench.loader.failed_behind(&bench.cache, &whole, failed(ErrorKind::ModelInvalid));
    assert_eq!(told.message(), "a tensor is odd", "of verified files it is the last word");
}
