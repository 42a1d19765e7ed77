//! From a folder and a plan to a runner.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use roundhouse_engine::{
    AdapterId, HeadSpec, ModelRunner, RunnerError, RunnerSpec, StepOutput, StepPlan,
};
use roundhouse_types::{Bytes, Footprint, SharedPart};

use crate::Error;
use crate::adapter::{AdapterBase, Adapters, BaseWeights, Modules};
use crate::card::load_failure;
use crate::decoder::{Decoder, DecoderWeights, Portable};
use crate::device::DeviceMemory;
use crate::encoder::{Build, Encoder, EncoderWeights, Parts};
use crate::files::{Folder, ModelFiles, read_wanted};
use crate::held::Weights;
use crate::inspect::{Family, ModelPlan};
use crate::linear;
use crate::pool::{Digests, Pooled, Sharing, TensorPool};
use crate::reader::{Cancel, Parameter, Reader};
use crate::tensors::TensorTable;
use crate::threads;

/// A model ready to compute steps.
pub struct LoadedRunner {
    /// What computes them.
    pub runner: Box<dyn ModelRunner>,
    /// The plan's footprint with weights and the KV pool's floor as they were really made.
    pub footprint: Footprint,
    /// The parts of the footprint's weights that it holds together with whoever has the same
    /// content, each content once.
    pub shared: Vec<SharedPart>,
    /// The bytes of shared parts that another model had, and that were not read.
    pub found: Bytes,
    /// What adapters for it are loaded with.
    pub base: AdapterBase,
    /// Its parameters, for copies of them; absent where the device's memory is the host's.
    pub weights: Option<Weights>,
    /// Time spent reading and converting weights.
    pub read: Duration,
}

impl std::fmt::Debug for LoadedRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedRunner")
            .field("footprint", &self.footprint)
            .field("shared", &self.shared.len())
            .field("found", &self.found)
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

/// Loads the model that `plan` describes from the files in `dir`. Blocking: reads all
/// weights. `cancel` ends it from another thread, within one piece of a tensor. Beside the
/// weights on the device, pieces of one tensor are in the host's memory.
///
/// # Errors
/// When the files are no longer those that were planned for, cannot be read, the load was
/// cancelled, or this build has no support for the device.
pub fn load(
    dir: &Path,
    plan: &ModelPlan,
    device: impl Into<DeviceMemory>,
    cancel: &Cancel,
) -> Result<LoadedRunner, Error> {
    load_files(&Folder::new(dir), plan, &device.into(), cancel, None)
}

/// As [`load`], but parameters that a loaded model has are not loaded a second time.
///
/// # Errors
/// As [`load`].
pub fn load_shared(
    dir: &Path,
    plan: &ModelPlan,
    device: impl Into<DeviceMemory>,
    cancel: &Cancel,
    sharing: &Sharing,
) -> Result<LoadedRunner, Error> {
    load_files(&Folder::new(dir), plan, &device.into(), cancel, Some(sharing))
}

/// As [`load`], from files wherever they come from, and as [`load_shared`] with `sharing`. They
/// are read once, from the first to the last, as they lie: so it can follow files that arrive.
///
/// # Errors
/// As [`load`].
pub fn load_files(
    files: &dyn ModelFiles,
    plan: &ModelPlan,
    device: &DeviceMemory,
    cancel: &Cancel,
    sharing: Option<&Sharing>,
) -> Result<LoadedRunner, Error> {
    if let Some(sharing) = sharing {
        sharing.pool.sweep();
    }
    device.check(plan)?;
    let started = Instant::now();
    // The headers are read again: these files need not be the ones that were inspected.
    let table = plan.tensors(&read_wanted(files)?)?;
    let mut reader = Reader::new(files, &table, &plan.formats, cancel, sharing);
    let mut taken = Vec::new();
    let mut read = read_in_order(plan, &table, device, &mut reader)?;
    let modules = Arc::new(Modules::of(plan));
    let (runner, kv) = build(plan, &modules, device, &mut |parameter| {
        let tensor = read(parameter.clone())?;
        taken.push((parameter, tensor.clone()));
        Ok(tensor)
    })?;
    drop(read);
    let Reader { own, held, found, .. } = reader;
    let used = Arc::new(BaseWeights::of(&taken));
    let weights = (!device.id().is_host()).then(|| Weights::of(taken, &held));
    let built = Built { runner, kv, own, held, found, modules, used, weights };
    Ok(built.loaded(plan, started))
}

/// Loads the model that `plan` describes from a copy of its weights in the host's memory, which
/// stays. No file is read. What `pool` holds on the device is not copied. Blocking.
///
/// # Errors
/// When the copy is not of this plan, it was cancelled, or this build has no support for the
/// device.
pub fn promote(
    plan: &ModelPlan,
    copy: &Weights,
    device: &DeviceMemory,
    pool: Option<&TensorPool>,
    cancel: &Cancel,
) -> Result<LoadedRunner, Error> {
    device.check(plan)?;
    if let Some(pool) = pool {
        pool.sweep();
    }
    let started = Instant::now();
    let (mut taken, mut held, mut found) = (Vec::new(), Vec::<Arc<Pooled>>::new(), Bytes::ZERO);
    let modules = Arc::new(Modules::of(plan));
    let (runner, kv) = build(plan, &modules, device, &mut |parameter| {
        let (tensor, shared, was_there) = copy.to_device(&parameter, device, pool, cancel)?;
        found += was_there;
        held.extend(shared);
        taken.push((parameter, tensor.clone()));
        Ok(tensor)
    })?;
    let used = Arc::new(BaseWeights::of(&taken));
    let weights = Weights::of(taken, &held);
    let held = weights.pooled();
    let own = weights.bytes().saturating_sub(held.iter().map(|pooled| pooled.part.bytes).sum());
    let built = Built { runner, kv, own, held, found, modules, used, weights: Some(weights) };
    Ok(built.loaded(plan, started))
}

/// A runner whose parameters are on its device.
struct Built {
    runner: Box<dyn ModelRunner>,
    kv: Bytes,
    own: Bytes,
    held: Vec<Arc<Pooled>>,
    found: Bytes,
    modules: Arc<Modules>,
    used: Arc<BaseWeights>,
    weights: Option<Weights>,
}

impl Built {
    fn loaded(self, plan: &ModelPlan, started: Instant) -> LoadedRunner {
        let Self { runner, kv, own, held, found, modules, used, weights: record } = self;
        let base = AdapterBase::new(modules, &used);
        let shared: Vec<SharedPart> = held.iter().map(|pooled| pooled.part).collect();
        let weights = own + shared.iter().map(|part| part.bytes).sum();
        let footprint = Footprint { weights, kv, ..plan.footprint };
        // Tables that it has from now on are no activations.
        let workspace = footprint.workspace.saturating_sub(runner.touched());
        let rounds = plan.formats.round();
        let runner = Box::new(Holder { runner, workspace, rounds, _used: used, _held: held });
        let read = started.elapsed();
        if !plan.fallbacks.is_empty() {
            let wanted = plan.quantize.map_or("none", crate::Quantize::name);
            let got = plan.fallbacks.join("; ");
            tracing::info!(wanted, got, "some weights cannot be quantised so");
        }
        tracing::debug!(architecture = plan.architecture, bytes = %footprint.total(), %found, elapsed = ?read, "weights in place");
        LoadedRunner { runner, footprint, shared, found, base, weights: record, read }
    }
}

/// Reads all parameters in the order in which they lie in the files, each when its last
/// byte comes by, and returns what hands them out in the order of the model.
fn read_in_order(
    plan: &ModelPlan,
    table: &TensorTable,
    device: &DeviceMemory,
    reader: &mut Reader<'_>,
) -> Result<impl FnMut(Parameter) -> Result<Tensor, Error>, Error> {
    let mut wanted = Vec::new();
    walk(plan, &mut |parameter| wanted.push(parameter));
    let mut order: Vec<_> = wanted.iter().map(|wanted| wanted.last_byte(table)).zip(0..).collect();
    order.sort_unstable();
    let mut read: Vec<Option<Tensor>> = vec![None; wanted.len()];
    for (_, index) in order {
        read[index] = Some(reader.read_to(device, &wanted[index])?);
    }
    let mut read = read.into_iter();
    let mut next = move || read.next().flatten().expect("the model is built by the same walk");
    Ok(move |_: Parameter| Ok(next()))
}

/// Puts the runner together from what `take` gives, and says what its KV pool takes at least.
fn build(
    plan: &ModelPlan,
    modules: &Arc<Modules>,
    device: &DeviceMemory,
    take: &mut dyn FnMut(Parameter) -> Result<Tensor, Error>,
) -> Result<(Box<dyn ModelRunner>, Bytes), Error> {
    let adapters = Adapters::new(Arc::clone(modules));
    match &plan.family {
        Family::Decoder { config, prefix, answers } => {
            let weights = DecoderWeights::gather(config, prefix, take)?;
            let sizes = (plan.context, plan.step_tokens, *answers);
            if device.is_of_tensors() {
                let decoder = Portable::new(config.clone(), weights, sizes)
                    .map_err(|error| load_failure(device.id(), error.into()))?;
                let kv = Bytes(decoder.kv_floor_bytes());
                return Ok((Box::new(decoder), kv));
            }
            let decoder = Decoder::new(config.clone(), weights, sizes, adapters)?;
            let kv = Bytes(decoder.kv_floor_bytes());
            Ok((Box::new(decoder), kv))
        }
        Family::Encoder { config, spelling, sentence, head, spare } => {
            let dense = sentence.dense.as_slice();
            let pooler = spare.as_ref().and_then(|spare| spare.pooler.as_ref());
            let parts = Parts { config, spelling: *spelling, head: head.as_ref(), dense, pooler };
            let weights = EncoderWeights::gather(parts, take)?;
            let spec = RunnerSpec {
                output_width: plan.output_width,
                context: plan.context,
                step_tokens: plan.step_tokens,
                kv: None,
            };
            let (config, head) = (config.clone(), head.clone());
            let build = Build { config, head, sentence: sentence.clone(), spec, adapters };
            Ok((Box::new(Encoder::new(build, weights)?), Bytes::ZERO))
        }
    }
}

/// The shared parts of a load of these files, as far as it is known what they hold;
/// each content once.
pub fn known_parts(plan: &ModelPlan, known: &Digests, scope: &str) -> Vec<SharedPart> {
    let mut parts: Vec<SharedPart> = Vec::new();
    walk(plan, &mut |parameter| parts.extend(known.part(&parameter, &plan.formats, scope)));
    parts.sort_unstable_by_key(|part| part.content);
    parts.dedup();
    parts
}

/// Shows a model's parameters, in the order in which it is built of them.
pub(crate) fn walk(plan: &ModelPlan, look: &mut dyn FnMut(Parameter)) {
    let mut take = |parameter: Parameter| {
        look(parameter);
        Ok::<_, Error>(())
    };
    let walked = match &plan.family {
        Family::Decoder { config, prefix, .. } => {
            DecoderWeights::gather(config, prefix, &mut take).map(drop)
        }
        Family::Encoder { config, spelling, sentence, head, spare } => {
            let dense = sentence.dense.as_slice();
            let pooler = spare.as_ref().and_then(|spare| spare.pooler.as_ref());
            let parts = Parts { config, spelling: *spelling, head: head.as_ref(), dense, pooler };
            EncoderWeights::gather(parts, &mut take).map(drop)
        }
    };
    debug_assert!(walked.is_ok(), "taking nothing cannot fail");
}

/// A runner with what adapters may ask of its weights, and the shared buffers that it uses.
/// Fields are dropped in order: the pool knows a buffer for as long as tensors keep it.
struct Holder {
    runner: Box<dyn ModelRunner>,
    /// What its largest step is charged with.
    workspace: Bytes,
    /// Whether its steps round what they multiply by bf16 weights.
    rounds: bool,
    _used: Arc<BaseWeights>,
    _held: Vec<Arc<Pooled>>,
}

impl ModelRunner for Holder {
    fn spec(&self) -> RunnerSpec {
        self.runner.spec()
    }

    fn forward(&mut self, plan: &StepPlan) -> Result<StepOutput, RunnerError> {
        threads::charge(self.workspace);
        linear::rounding(self.rounds, || self.runner.forward(plan))
    }

    fn prepares_shapes(&self) -> bool {
        self.runner.prepares_shapes()
    }

    fn touched(&self) -> Bytes {
        self.runner.touched()
    }

    fn give_back(&mut self, chunk: usize) -> Option<Box<dyn Any + Send>> {
        self.runner.give_back(chunk)
    }

    fn attach(
        &mut self,
        id: AdapterId,
        weights: Box<dyn Any + Send>,
    ) -> Result<Option<HeadSpec>, RunnerError> {
        self.runner.attach(id, weights)
    }

    fn detach(&mut self, id: AdapterId) -> Option<Box<dyn Any + Send>> {
        self.runner.detach(id)
    }
}
