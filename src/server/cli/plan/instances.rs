//! Machines to rent, by what they hold.

use roundhouse_types::Bytes;
use serde::Serialize;

use crate::limits;

/// Where an instance has its memory for models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Device {
    /// The host's own.
    Cpu,
    /// One of its GPUs; for builds with CUDA support.
    Cuda,
}

/// A kind of machine.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Instance {
    name: &'static str,
    device: Device,
    /// Of the host, or of one GPU: a model lies on one device.
    memory_bytes: Bytes,
    /// How many such devices it has.
    devices: u32,
}

const fn cpu(name: &'static str, gib: u64) -> Instance {
    Instance { name, device: Device::Cpu, memory_bytes: Bytes::gib(gib), devices: 1 }
}

const fn gpu(name: &'static str, devices: u32, gib: u64) -> Instance {
    Instance { name, device: Device::Cuda, memory_bytes: Bytes::gib(gib), devices }
}

/// Hosting instances of SageMaker: memory of the host (current Intel generations, compute,
/// general and memory optimised) or of one GPU, as their documentation has it. Smallest
/// first; of equal memory the cheaper kind.
static INSTANCES: [Instance; 33] = [
    cpu("ml.c7i.large", 4),
    cpu("ml.c7i.xlarge", 8),
    cpu("ml.m7i.large", 8),
    cpu("ml.c7i.2xlarge", 16),
    cpu("ml.m7i.xlarge", 16),
    cpu("ml.r7i.large", 16),
    cpu("ml.c7i.4xlarge", 32),
    cpu("ml.m7i.2xlarge", 32),
    cpu("ml.r7i.xlarge", 32),
    cpu("ml.c7i.8xlarge", 64),
    cpu("ml.m7i.4xlarge", 64),
    cpu("ml.r7i.2xlarge", 64),
    cpu("ml.c7i.12xlarge", 96),
    cpu("ml.m7i.8xlarge", 128),
    cpu("ml.r7i.4xlarge", 128),
    cpu("ml.m7i.12xlarge", 192),
    cpu("ml.m7i.16xlarge", 256),
    cpu("ml.r7i.8xlarge", 256),
    cpu("ml.m7i.24xlarge", 384),
    cpu("ml.r7i.12xlarge", 384),
    cpu("ml.r7i.16xlarge", 512),
    cpu("ml.m7i.48xlarge", 768),
    cpu("ml.r7i.24xlarge", 768),
    cpu("ml.r7i.48xlarge", 1536),
    gpu("ml.g4dn.xlarge", 1, 16),
    gpu("ml.g5.xlarge", 1, 24),
    gpu("ml.g6.xlarge", 1, 24),
    gpu("ml.g5.12xlarge", 4, 24),
    gpu("ml.p4d.24xlarge", 8, 40),
    gpu("ml.g6e.xlarge", 1, 48),
    gpu("ml.p4de.24xlarge", 8, 80),
    gpu("ml.p5.48xlarge", 8, 80),
    gpu("ml.p5e.48xlarge", 8, 141),
];

impl Instance {
    /// What models may take there: on a host what `serve` would choose, with the process's own
    /// overhead taken off; of a GPU the same share.
    fn budget(&self) -> Bytes {
        let overhead = match self.device {
            Device::Cpu => super::overhead(),
            Device::Cuda => Bytes::ZERO,
        };
        limits::budget_of(self.memory_bytes.saturating_sub(overhead))
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn device(&self) -> Device {
        self.device
    }

    pub(super) fn memory(&self) -> Bytes {
        self.memory_bytes
    }
}

/// The kinds of the smallest memory that holds this much, of hosts and of GPUs.
pub(super) fn smallest_for(bytes: Bytes) -> Vec<&'static Instance> {
    let smallest = |device: Device| {
        let fits = |it: &&Instance| it.device == device && bytes <= it.budget();
        let least = INSTANCES.iter().filter(fits).map(|it| it.memory_bytes).min();
        let same = move |it: &&Instance| it.device == device && Some(it.memory_bytes) == least;
        INSTANCES.iter().filter(same)
    };
    smallest(Device::Cpu).chain(smallest(Device::Cuda)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(bytes: Bytes) -> Vec<&'static str> {
        smallest_for(bytes).iter().map(|it| it.name).collect()
    }

    #[test]
    fn the_smallest_machines_that_hold_it_with_a_margin_are_named() {
        assert_eq!(names(Bytes::gib(3)), ["ml.c7i.large", "ml.g4dn.xlarge"]);
        let eight = ["ml.c7i.xlarge", "ml.m7i.large", "ml.g4dn.xlarge"];
        assert_eq!(names(Bytes::gib(4)), eight);
        assert_eq!(names(Bytes::gib(1000)), ["ml.r7i.48xlarge"]);
        assert!(names(Bytes::gib(1500)).is_empty());
    }
}
