//! From a folder and a plan to a runner.

use std::path::Path;
use std::time::{Duration, Instant};

use roundhouse_engine::{ModelRunner, RunnerSpec};
use roundhouse_types::{Bytes, DeviceId, Footprint};

use crate::Error;
use crate::decoder::{Decoder, DecoderWeights};
use crate::encoder::{Encoder, EncoderWeights};
use crate::files::read_local;
use crate::inspect::{Family, ModelPlan};
use crate::reader::{Cancel, Reader};
use crate::tensors::TensorTable;

/// A model ready to compute steps.
pub struct LoadedRunner {
    /// What computes them.
    pub runner: Box<dyn ModelRunner>,
    /// The plan's footprint with weights and KV as they were really allocated.
    pub footprint: Footprint,
    /// Time spent reading and converting weights.
    pub read: Duration,
}

impl std::fmt::Debug for LoadedRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedRunner")
            .field("footprint", &self.footprint)
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

/// Loads the model that `plan` describes from the files in `dir`. Blocking: reads all
/// weights. `cancel` ends it from another thread, within one piece of a tensor.
///
/// # Errors
/// When the files are no longer those that were planned for, cannot be read, the load was
/// cancelled, or this build has no support for the device.
pub fn load(
    dir: &Path,
    plan: &ModelPlan,
    device: DeviceId,
    cancel: &Cancel,
) -> Result<LoadedRunner, Error> {
    if device != DeviceId::Cpu {
        return Err(Error::NoDevice { device });
    }
    let started = Instant::now();
    // The headers are read again: these files need not be the ones that were inspected.
    let table = TensorTable::new(&read_local(dir)?)?;
    let mut reader = Reader::new(dir, &table, plan.format, cancel);
    let (runner, kv) = build(plan, &mut reader)?;
    let footprint = Footprint { weights: reader.allocated, kv, ..plan.footprint };
    let read = started.elapsed();
    tracing::debug!(architecture = plan.architecture, bytes = %footprint.total(), elapsed = ?read, "weights read");
    Ok(LoadedRunner { runner, footprint, read })
}

fn build(
    plan: &ModelPlan,
    reader: &mut Reader<'_>,
) -> Result<(Box<dyn ModelRunner>, Bytes), Error> {
    let mut take = |parameter| reader.read(&parameter);
    match &plan.family {
        Family::Decoder { config, prefix, blocks } => {
            let weights = DecoderWeights::gather(config, prefix, &mut take)?;
            let decoder =
                Decoder::new(config.clone(), weights, plan.context, plan.step_tokens, *blocks);
            let kv = Bytes(decoder.kv_bytes());
            Ok((Box::new(decoder), kv))
        }
        Family::Encoder { config, names, pooling, labels } => {
            let weights = EncoderWeights::gather(config, *names, *labels, &mut take)?;
            let spec = RunnerSpec {
                output_width: plan.output_width,
                context: plan.context,
                step_tokens: plan.step_tokens,
                kv: None,
            };
            let encoder = Encoder::new(config.clone(), weights, *pooling, spec);
            Ok((Box::new(encoder), Bytes::ZERO))
        }
    }
}
