//! Models that leave a copy in the host's memory and come back from it.

use roundhouse_engine::LaneConfig;
use roundhouse_residency::testing::reporter;
use roundhouse_types::{Footprint, TargetName};

use super::*;

const ENCODER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/models/search/encoder");
const NEAR: DeviceId = DeviceId::Simulated(0);
const FAR: DeviceId = DeviceId::Simulated(1);

/// A loader for one announced encoder whose files lie in a folder of their own.
struct Yard {
    loader: ModelLoader,
    folder: TempDir,
    id: ArtefactId,
}

async fn yard() -> Yard {
    let folder = tempfile::tempdir().unwrap();
    copy_files(Path::new(ENCODER), folder.path());
    let (endpoint, target): (EndpointName, TargetName) =
        ("ep".parse().unwrap(), "encoder".parse().unwrap());
    let models = Arc::new(LocalModels::default());
    let announced = Announced { url: String::new(), folder: folder.path().to_owned() };
    assert!(models.announce(target.clone(), announced));
    let lane = |device| Arc::new(Lane::start(device, LaneConfig::default()).unwrap());
    let lanes = [DeviceId::Cpu, NEAR, FAR].map(|device| (device, lane(device)));
    let loader = ModelLoader::new(
        BTreeMap::from([(endpoint.clone(), Source::Local(models))]),
        BTreeMap::from(lanes),
        LoadSettings::default(),
        EngineConfig::default(),
        Handlers::default(),
    );
    let loader = loader.with_memories([DeviceMemory::new(NEAR, None)].into_iter());
    let model = ModelId { endpoint, target };
    let version = loader.resolve(&model, true).await.unwrap().version;
    Yard { loader, folder, id: ArtefactId { model, version } }
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, copy) = (file.path(), to.join(file.file_name()));
        match path.is_dir() {
            true => copy_files(&path, &copy),
            false => drop(std::fs::copy(&path, &copy).unwrap()),
        }
    }
}

impl Yard {
    async fn load(
        &self,
        device: DeviceId,
        source: LoadSource,
    ) -> Result<Loaded<ServedModel>, Failure> {
        self.loader.load(&self.id, device, source, None, reporter().0).await
    }

    async fn unload(
        &self,
        device: DeviceId,
        loaded: Loaded<ServedModel>,
        demote: bool,
    ) -> Option<HostCopy> {
        self.loader.unload(&self.id, device, Arc::new(loaded.model), demote).await
    }
}

async fn answer(loaded: &Loaded<ServedModel>) -> Vec<Vec<f32>> {
    let ServedModel::Engine(model) = &loaded.model else { panic!("it is a model of ours") };
    model.engine().encode(vec![(5..30).collect::<Vec<u32>>(), vec![7]]).await.unwrap()
}

#[tokio::test]
async fn a_model_comes_back_from_the_hosts_memory_without_its_files_and_answers_the_same() {
    let yard = yard().await;
    let loaded = yard.load(NEAR, LoadSource::Files).await.unwrap();
    let (want, whole) = (answer(&loaded).await, loaded.footprint);
    assert!(yard.loader.touched(&yard.id, NEAR).is_some());
    let copy = yard.unload(NEAR, loaded, true).await.expect("a copy was asked for");
    let Footprint { weights, host, .. } = whole;
    assert_eq!(copy.footprint, Footprint { weights, host, ..Footprint::default() });
    assert!(yard.loader.touched(&yard.id, NEAR).is_none());

    std::fs::remove_dir_all(yard.folder.path()).unwrap();
    let near = yard.load(NEAR, LoadSource::Host).await.unwrap();
    let far = yard.load(FAR, LoadSource::Host).await.unwrap();
    assert_eq!((near.footprint, far.footprint), (whole, whole));
    assert_eq!((answer(&near).await, answer(&far).await), (want.clone(), want.clone()));
    // What is there is not made a second time, and stays over an unload that asks for none.
    assert_eq!(yard.unload(NEAR, near, true).await.as_ref(), Some(&copy));
    assert_eq!(yard.unload(FAR, far, false).await, None);
    let again = yard.load(FAR, LoadSource::Host).await.unwrap();
    assert_eq!(answer(&again).await, want);
    yard.unload(FAR, again, false).await;
}

#[tokio::test]
async fn a_discarded_copy_is_gone_and_what_never_had_one_is_refused() {
    let yard = yard().await;
    assert!(yard.load(NEAR, LoadSource::Host).await.is_err());
    let loaded = yard.load(NEAR, LoadSource::Files).await.unwrap();
    assert!(yard.unload(NEAR, loaded, true).await.is_some());
    yard.loader.discard(&yard.id).await;
    assert_eq!(yard.loader.copies.bytes(), Bytes::ZERO);
    let failure = yard.load(NEAR, LoadSource::Host).await.err().expect("there is no copy");
    assert!(failure.message().contains("no copy in the host's memory"), "{failure}");
    yard.loader.discard(&yard.id).await;
}

#[tokio::test]
async fn what_leaves_the_hosts_own_memory_leaves_no_copy_there() {
    let yard = yard().await;
    let loaded = yard.load(DeviceId::Cpu, LoadSource::Files).await.unwrap();
    assert_eq!(yard.unload(DeviceId::Cpu, loaded, true).await, None);
}

#[tokio::test(start_paused = true)]
async fn loads_of_one_version_on_two_devices_are_one_death() {
    let bench = bench().await;
    bench.upload("{}");
    let id = bench.fetched().await;
    assert!(bench.loader.begins_loading(&id));
    assert!(!bench.loader.begins_loading(&id));
    assert!(!bench.loader.ends_loading(&id));
    assert!(bench.loader.ends_loading(&id));
    // An orderly end took its marker back meanwhile.
    assert!(bench.loader.begins_loading(&id));
    bench.loader.forgive_loads().await;
    assert!(!bench.loader.ends_loading(&id));
}
