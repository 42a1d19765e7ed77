//! A loaded model's parameters, by name: what its runner computes with, kept so that they can
//! be copied to the host's memory and from there back to a device.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use roundhouse_types::{Bytes, SharedPart};

use crate::Error;
use crate::device::DeviceMemory;
use crate::pool::{self, Pooled, Taken, TensorPool};
use crate::reader::{Cancel, Parameter};

/// A model's parameters in one memory, in the format in which it computes with them. Their
/// buffers are free when neither this nor a runner holds them.
#[derive(Debug, Default)]
pub struct Weights(BTreeMap<String, Held>);

#[derive(Debug, Clone)]
enum Held {
    /// With whoever has the same content in this memory.
    Shared(Arc<Pooled>),
    Own(Tensor),
}

impl Held {
    fn tensor(&self) -> &Tensor {
        match self {
            Self::Shared(pooled) => &pooled.tensor,
            Self::Own(tensor) => tensor,
        }
    }

    /// The same parameter in another memory: what `pool` has there, else a copy.
    fn copied(
        &self,
        pool: Option<&TensorPool>,
        cancel: &Cancel,
        copy: &dyn Fn(&Tensor) -> Result<Tensor, Error>,
    ) -> Result<(Self, Bytes), Error> {
        let (Self::Shared(pooled), Some(pool)) = (self, pool) else {
            return Ok((Self::Own(copy(self.tensor())?), Bytes::ZERO));
        };
        match pool.take(pooled.part.content, cancel)? {
            Taken::Found(found) => Ok((Self::Shared(found), pooled.part.bytes)),
            Taken::Absent(turn) => {
                let added = pool.add(pooled.part, copy(&pooled.tensor)?);
                drop(turn);
                Ok((Self::Shared(added), Bytes::ZERO))
            }
        }
    }
}

impl Weights {
    /// What a load took, in any order, and which of it is shared.
    pub(crate) fn of(taken: Vec<(Parameter, Tensor)>, held: &[Arc<Pooled>]) -> Self {
        let named = taken.into_iter().map(|(parameter, tensor)| {
            let pooled = held.iter().find(|pooled| pooled.tensor.id() == tensor.id());
            let held = pooled.map_or(Held::Own(tensor), |pooled| Held::Shared(Arc::clone(pooled)));
            (pool::name(&parameter), held)
        });
        Self(named.collect())
    }

    /// What they take, shared parts included, each content once.
    pub fn bytes(&self) -> Bytes {
        let own = self.0.values().filter_map(|held| match held {
            Held::Own(tensor) => Some(tensor_bytes(tensor)),
            Held::Shared(_) => None,
        });
        let own: Bytes = own.sum();
        own + self.shared().iter().map(|part| part.bytes).sum()
    }

    /// The parts that are held together with whoever has the same content in the same memory,
    /// each content once.
    pub fn shared(&self) -> Vec<SharedPart> {
        self.pooled().iter().map(|pooled| pooled.part).collect()
    }

    pub(crate) fn pooled(&self) -> Vec<Arc<Pooled>> {
        let mut pooled: Vec<Arc<Pooled>> = self
            .0
            .values()
            .filter_map(|held| match held {
                Held::Shared(pooled) => Some(Arc::clone(pooled)),
                Held::Own(_) => None,
            })
            .collect();
        pooled.sort_unstable_by_key(|pooled| pooled.part.content);
        pooled.dedup_by_key(|pooled| pooled.part.content);
        pooled
    }

    /// Copies them from `device` to the host's memory. What `pool` holds there is not copied.
    /// Blocking.
    ///
    /// # Errors
    /// When it was cancelled, or a parameter is in no format that can be copied. What was
    /// copied so far is freed.
    pub fn to_host(
        &self,
        device: &DeviceMemory,
        pool: Option<&TensorPool>,
        cancel: &Cancel,
    ) -> Result<Self, Error> {
        if let Some(pool) = pool {
            pool.sweep();
        }
        let copy = |tensor: &Tensor| device.take_out(tensor, cancel);
        let mut copied = BTreeMap::new();
        for (name, held) in &self.0 {
            copied.insert(name.clone(), held.copied(pool, cancel, &copy)?.0);
        }
        Ok(Self(copied))
    }

    /// Copies one of them from the host's memory to `device`, where `pool` does not hold it
    /// already; also says how many bytes it did hold.
    pub(crate) fn to_device(
        &self,
        parameter: &Parameter,
        device: &DeviceMemory,
        pool: Option<&TensorPool>,
        cancel: &Cancel,
    ) -> Result<(Tensor, Option<Arc<Pooled>>, Bytes), Error> {
        let name = pool::name(parameter);
        let Some(held) = self.0.get(&name) else {
            return Err(Error::MissingTensor { name, expected: parameter.shape() });
        };
        let copy = |tensor: &Tensor| device.bring(tensor, cancel);
        let (copied, found) = held.copied(pool, cancel, &copy)?;
        let tensor = copied.tensor().clone();
        let pooled = match copied {
            Held::Shared(pooled) => Some(pooled),
            Held::Own(_) => None,
        };
        Ok((tensor, pooled, found))
    }
}

fn tensor_bytes(tensor: &Tensor) -> Bytes {
    Bytes((tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64)
}
