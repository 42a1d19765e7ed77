//! Models that leave a copy in the host's memory and come back from it.

use roundhouse_engine::LaneConfig;
use roundhouse_residency::testing::reporter;
use roundhouse_types::{Footprint, TargetName, Version};

use super::*;

const ENCODER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/models/search/encoder");
const NEAR: DeviceId = DeviceId::Simulated(0);
const FAR: DeviceId = DeviceId::Simulated(1);

/// A loader for one announced encoder whose files lie in a folder of their own.
struct Yard {
    loader: ModelLoader,
    models: Arc<LocalModels>,
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
        BTreeMap::from([(endpoint.clone(), Source::Local(models.clone()))]),
        BTreeMap::from(lanes),
        LoadSettings::default(),
        EngineConfig::default(),
        Handlers::default(),
    );
    let loader = loader.with_memories([DeviceMemory::new(NEAR, None)].into_iter());
    let model = ModelId { endpoint, target };
    let version = loader.resolve(&model, true).await.unwrap().version;
    Yard { loader, models, folder, id: ArtefactId { model, version } }
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
    answer_of(&loaded.model).await
}

async fn answer_of(model: &ServedModel) -> Vec<Vec<f32>> {
    let ServedModel::Engine(model) = model else { panic!("it is a model of ours") };
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

/// Writes an adapter of the encoder that changes a projection of one layer.
fn write_adapter(folder: &Path) {
    let config = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1,
        "base_model_name_or_path": "encoder",
        "target_modules": ["layer.0.attention.self.query"]}"#;
    std::fs::write(folder.join("adapter_config.json"), config).unwrap();
    let module = "base_model.model.encoder.layer.0.attention.self.query";
    let header = format!(
        r#"{{"{module}.lora_A.weight":{{"dtype":"F32","shape":[1,128],"data_offsets":[0,512]}},"{module}.lora_B.weight":{{"dtype":"F32","shape":[128,1],"data_offsets":[512,1024]}}}}"#
    );
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend((0..256u16).flat_map(|number| (f32::from(number % 7) - 3.0).to_le_bytes()));
    std::fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
}

impl Yard {
    /// Announces an adapter of the encoder, in a folder of its own.
    async fn adapter(&self) -> (TempDir, ArtefactId) {
        let folder = tempfile::tempdir().unwrap();
        write_adapter(folder.path());
        let target: TargetName = "adapter".parse().unwrap();
        let announced = Announced { url: String::new(), folder: folder.path().to_owned() };
        assert!(self.models.announce(target.clone(), announced));
        let model = ModelId { target, ..self.id.model.clone() };
        let version = self.loader.resolve(&model, true).await.unwrap().version;
        (folder, ArtefactId { model, version })
    }
}

impl Yard {
    /// The encoder under the name of this version; its files are the same.
    async fn base(&self, version: &Version) -> Base<ServedModel> {
        let artefact = ArtefactId { version: version.clone(), ..self.id.clone() };
        let loaded = self.loader.load(&artefact, NEAR, LoadSource::Files, None, reporter().0).await;
        Base { artefact, model: Arc::new(loaded.unwrap().model) }
    }

    async fn beside(
        &self,
        base: &Base<ServedModel>,
        id: &ArtefactId,
        source: LoadSource,
    ) -> Result<Loaded<ServedModel>, Failure> {
        let base = Base { artefact: base.artefact.clone(), model: Arc::clone(&base.model) };
        self.loader.load(id, NEAR, source, Some(base), reporter().0).await
    }

    /// An adapter leaves a copy, and its base leaves after it.
    async fn leave(
        &self,
        base: Base<ServedModel>,
        id: &ArtefactId,
        adapter: ServedModel,
    ) -> HostCopy {
        let copy = self.loader.unload(id, NEAR, Arc::new(adapter), true).await;
        self.loader.unload(&base.artefact, NEAR, base.model, false).await;
        copy.expect("it was asked for")
    }
}

#[tokio::test]
async fn an_adapter_comes_back_from_the_hosts_memory_beside_its_base_and_no_other_version_of_it() {
    let yard = yard().await;
    let (folder, id) = yard.adapter().await;
    // A base that left and came back is the same, one with other files is not.
    let mut want = Vec::new();
    for source in [LoadSource::Files, LoadSource::Host] {
        let base = yard.base(&yard.id.version).await;
        let Loaded { model, footprint, .. } = yard.beside(&base, &id, source).await.unwrap();
        let answers = answer_of(&model).await;
        assert_ne!(answers, answer_of(&base.model).await);
        want.push((answers, footprint));
        let copy = yard.leave(base, &id, model).await;
        let Footprint { weights, host, .. } = footprint;
        assert_eq!(copy.footprint, Footprint { weights, host, ..Footprint::default() });
        assert!(copy.shared.is_empty() && weights > Bytes::ZERO);
        if source == LoadSource::Files {
            std::fs::remove_file(folder.path().join("adapter_model.safetensors")).unwrap();
        }
    }
    assert_eq!(want[0], want[1]);
    let other = yard.base(&Version::from_digest("0b")).await;
    let refused = yard.beside(&other, &id, LoadSource::Host).await.err();
    let refused = refused.expect("its files are read again, and are gone");
    assert!(refused.message().contains("adapter_model.safetensors"), "{refused}");
    yard.loader.discard(&id).await;
    assert!(yard.loader.copies.is_empty());
}

#[tokio::test]
async fn a_copy_made_beside_another_version_of_the_base_takes_the_older_ones_place() {
    let yard = yard().await;
    let (folder, id) = yard.adapter().await;
    let second = Version::from_digest("0b");
    for version in [&yard.id.version, &second] {
        let base = yard.base(version).await;
        let Loaded { model, .. } = yard.beside(&base, &id, LoadSource::Files).await.unwrap();
        yard.leave(base, &id, model).await;
    }
    std::fs::remove_dir_all(folder.path()).unwrap();
    let base = yard.base(&second).await;
    let Loaded { model, .. } = yard.beside(&base, &id, LoadSource::Host).await.unwrap();
    assert_ne!(answer_of(&model).await, answer_of(&base.model).await);
    yard.leave(base, &id, model).await;
    let first = yard.base(&yard.id.version).await;
    assert!(yard.beside(&first, &id, LoadSource::Host).await.is_err(), "it has one copy");
    yard.loader.discard(&id).await;
    assert!(yard.loader.copies.is_empty());
}
