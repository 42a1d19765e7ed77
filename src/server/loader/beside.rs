//! From an adapter's files, or its copy in the host's memory, to weights beside its base's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics::{Unit, describe_histogram, histogram};
use roundhouse_models::{AdapterPlan, Cancel, Folder, LoadedAdapter, load_adapter};
use roundhouse_residency::{Base, Loaded};
use roundhouse_serving::{AdapterText, EngineModel, Purpose, ServedModel, TextCodec};
use roundhouse_types::{ArtefactId, Bytes, DeviceId, ErrorKind, Failure, Footprint, ModelId};
use sha2::{Digest, Sha256};

use super::host::{AdapterParts, Demotable};
use super::load::{Files, least_ttl};
use super::placed::Beside;
use super::sharing::Stored;
use super::stages::{Stage, Stages};
use super::{ModelLoader, blocking, named, purpose};
use crate::allocator;

/// Seconds from an adapter's files on disk to its place beside its base.
const LOAD_SECONDS: &str = "roundhouse_adapter_load_seconds";

/// Registers the metric's help.
pub(super) fn describe() {
    let help = "Duration of loading an adapter from the disk onto its loaded base.";
    describe_histogram!(LOAD_SECONDS, Unit::Seconds, help);
}

/// An adapter on its device.
struct Read {
    adapter: LoadedAdapter,
    text: AdapterText,
    purpose: Purpose,
    /// What texts of its own take.
    taken: Bytes,
    idle_ttl: Option<Duration>,
}

impl ModelLoader {
    /// Reads an adapter and attaches it to its base, which is on the device.
    pub(super) async fn load_adapter(
        &self,
        id: &ArtefactId,
        plan: &AdapterPlan,
        files: Files,
        device: DeviceId,
        base: Option<Base<ServedModel>>,
    ) -> Result<Loaded<ServedModel>, Failure> {
        let internal = |what: &str| {
            Failure::new(ErrorKind::Internal, format!("{id} is loaded without its base: {what}"))
        };
        let base = base.ok_or_else(|| internal("none was given"))?;
        if let ServedModel::External(driven) = &*base.model {
            let into = (Arc::clone(driven.runs_in()), base.artefact.model);
            return self.load_into_engine(id, plan, files, device, into).await;
        }
        let on = self.placed.base(&base.artefact, device);
        let on = on.ok_or_else(|| internal("it is not on the device"))?;
        let began = Instant::now();
        let is_verified = files.held.is_some();
        let (reading, beside) = (plan.clone(), on.clone());
        let read = blocking(move || read(files, &reading, &beside));
        let read = read.await.map_err(|failure| named(id, &failure))?;
        let mut stages = self.take_stages(id);
        stages.set(Stage::Read, began.elapsed());
        if read.taken > Bytes::ZERO {
            // The next load is promised it.
            let mut known = self.recall(id);
            known.texts = read.taken;
            self.remember(id, known);
        }
        let loaded = self.attach(id, device, (&base.artefact, &on), read, is_verified).await?;
        histogram!(LOAD_SECONDS).record(began.elapsed());
        stages.report(id, loaded.footprint.total(), &self.recent);
        Ok(loaded)
    }

    /// Attaches an adapter to its base from its copy in the host's memory, which stays.
    pub(super) async fn promote_adapter(
        &self,
        id: &ArtefactId,
        copy: &AdapterParts,
        device: DeviceId,
        base: &Base<ServedModel>,
    ) -> Result<Loaded<ServedModel>, Failure> {
        let on = self.placed.base(&base.artefact, device).ok_or_else(|| {
            let message = format!("{id} is loaded without its base: it is not on the device");
            Failure::new(ErrorKind::Internal, message)
        })?;
        let (mut stages, began) = (Stages::default(), Instant::now());
        self.recent.reached(&id.model, Stage::Copy);
        let (weights, beside, memory) =
            (copy.weights.clone(), on.base.clone(), self.memory(device));
        let adapter = blocking(move || {
            Ok(roundhouse_models::promote_adapter(&weights, &beside, &memory, &Cancel::default())?)
        });
        let adapter = adapter.await.map_err(|failure| named(id, &failure))?;
        stages.set(Stage::Copy, began.elapsed());
        let AdapterParts { text, purpose, taken, idle_ttl, is_verified, .. } = copy.clone();
        let read = Read { adapter, text, purpose, taken, idle_ttl };
        let loaded = self.attach(id, device, (&base.artefact, &on), read, is_verified).await?;
        stages.report(id, loaded.footprint.total(), &self.recent);
        Ok(loaded)
    }

    /// Hands an adapter to its base's engine.
    async fn attach(
        &self,
        id: &ArtefactId,
        device: DeviceId,
        (base, on): (&ArtefactId, &Beside),
        read: Read,
        is_verified: bool,
    ) -> Result<Loaded<ServedModel>, Failure> {
        let Read { adapter, text, purpose, taken, idle_ttl } = read;
        let LoadedAdapter { weights, footprint, kept, .. } = adapter;
        let mut texts = text.on(&on.parts.text);
        if let Some(context) = purpose::cut_beside(&purpose, &on.parts.plan) {
            texts = Arc::new(TextCodec::clone(&texts).truncated_to(context)?);
        }
        let attached = on.engine.attach(weights, prefix_name(id, is_verified)).await;
        let attached = attached.map_err(|failure| named(id, &failure))?;
        let footprint = Footprint { host: footprint.host + taken, ..footprint };
        let (plan, of) = (&on.parts.plan, base.model.clone());
        let model = EngineModel::attached(texts, attached, purpose.clone(), of.clone());
        let model = ServedModel::Engine(model.answering(purpose::style(&plan.asked)));
        let on = base.clone();
        let parts = AdapterParts { weights: kept, text, purpose, taken, idle_ttl, on, is_verified };
        let demotable = (!device.is_host()).then_some(Demotable::Adapter(parts));
        if let Err(failure) = self.stand(id, device, of, demotable) {
            model.remove().await;
            return Err(failure);
        }
        let idle_ttl = least_ttl(self.settings.idle_ttl, idle_ttl);
        Ok(Loaded { model, footprint, shared: Vec::new(), once: Duration::ZERO, idle_ttl })
    }

    /// Counts an adapter as standing on its base, where the policy lets it: that may have changed
    /// since the load began. Counted first, so that a change of the policy that is not seen here
    /// sees the adapter.
    pub(super) fn stand(
        &self,
        id: &ArtefactId,
        device: DeviceId,
        base: ModelId,
        demotable: Option<Demotable>,
    ) -> Result<(), Failure> {
        self.placed.add_adapter(id, device, base.clone(), demotable);
        if self.policy.get().may_build_on(&id.model, &base) {
            return Ok(());
        }
        self.placed.remove(id, device);
        let what = "not everybody who may use it may use its base any more";
        Err(Failure::new(ErrorKind::ModelInvalid, format!("{}: {what}", id.model)))
    }

    /// The model that a loaded adapter is on; `None` for all others. Never waits.
    pub(crate) fn adapted(&self, model: &ModelId) -> Option<ModelId> {
        self.placed.adapted(model)
    }
}

/// Reads an adapter's weights and what it has of texts. Blocking.
fn read(files: Files, plan: &AdapterPlan, on: &Beside) -> Result<Read, Failure> {
    let Files { dir, held } = files;
    let base = &on.parts.plan;
    let (plan, idle_ttl) = (plan.on(base)?, plan.idle_ttl);
    let cancel = Cancel::default();
    let adapter = match &held {
        Some(cached) => load_adapter(&Stored(cached), &plan, &on.base, &cancel)?,
        None => load_adapter(&Folder::new(&dir), &plan, &on.base, &cancel)?,
    };
    let cut = purpose::cut(base);
    let text = &on.parts.text;
    let (own, taken) = allocator::counted(|| {
        let own = text.of_adapter(&dir, base.vocab, cut)?;
        let codec = own.on(text);
        Ok::<_, Failure>((own, codec))
    });
    let (own, codec) = own?;
    let forms = || purpose::room_for_forms(base, &codec);
    let taken = if own.is_own() { taken + forms() } else { Bytes::ZERO };
    let purpose = purpose::beside(&plan, base);
    Ok(Read { adapter, text: own, purpose, taken, idle_ttl })
}

/// What sequences of an adapter call what was computed of their prefixes: nobody else's, be the
/// files the same. Of a folder that somebody else keeps only this load's own, as such folders may
/// change under a version.
fn prefix_name(id: &ArtefactId, is_verified: bool) -> [u8; 32] {
    static LOADS: AtomicU64 = AtomicU64::new(0);
    let mut digest = Sha256::new();
    let texts = [id.model.endpoint.as_str(), id.model.target.as_str(), id.version.as_str()];
    for text in texts {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    if !is_verified {
        digest.update(LOADS.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use roundhouse_engine::EngineConfig;
    use roundhouse_models::LoadSettings;
    use roundhouse_tenancy::{Current, Policy};
    use roundhouse_types::Version;

    use super::*;
    use crate::loader::Handlers;

    #[test]
    fn nobody_shares_prefixes_but_loads_of_one_verified_version() {
        let id = |target: &str, version: &str| ArtefactId {
            model: ModelId { endpoint: "e".parse().unwrap(), target: target.parse().unwrap() },
            version: Version::from_digest(version),
        };
        let one = prefix_name(&id("a", "0b"), true);
        assert_eq!(one, prefix_name(&id("a", "0b"), true));
        for other in [id("b", "0b"), id("a", "0c"), id("a0", "b")] {
            assert_ne!(one, prefix_name(&other, true));
        }
        assert_ne!(prefix_name(&id("a", "0b"), false), prefix_name(&id("a", "0b"), false));
    }
    #[test]
    fn an_adapter_that_loads_while_its_base_is_taken_from_it_does_not_stay() {
        let (settings, engine) = (LoadSettings::default(), EngineConfig::default());
        let none = Handlers::default();
        let loader = ModelLoader::new(BTreeMap::new(), BTreeMap::new(), settings, engine, none);
        let policy = Policy::new(std::iter::empty(), true);
        let loader = loader.under(Arc::new(Current::new(policy)));
        let model = |target: &str| ModelId {
            endpoint: "e".parse().unwrap(),
            target: target.parse().unwrap(),
        };
        let id = ArtefactId { model: model("acme/a"), version: Version::from_digest("0b") };
        let refused = loader.stand(&id, DeviceId::Cpu, model("other/b"), None).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ModelInvalid);
        assert_eq!(loader.adapted(&id.model), None);
        loader.stand(&id, DeviceId::Cpu, model("acme/b"), None).unwrap();
        assert_eq!(loader.adapted(&id.model), Some(model("acme/b")));
    }
}
