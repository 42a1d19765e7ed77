//! A device's memory, and the way between it and the host's.
//!
//! A simulated device computes where the host does, but what lies on it are buffers of its
//! own, filled through a link of bounded bandwidth. A card has the same three ways: weights that are
//! read and brought into it, copies into it, and copies out of it.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use roundhouse_types::{Bytes, DeviceId};

use crate::Error;
use crate::activation::with_numbers;
use crate::card::{Card, load_failure};
use crate::inspect::ModelPlan;
use crate::reader::Cancel;

/// Bytes copied at a time: between two pieces a copy looks whether it was cancelled, and others
/// of the same link get their turn.
const PIECE: usize = 2 << 20;
/// A copy that comes later than this after the one before it begins anew; one that comes sooner,
/// because a thread slept too long or allocated, makes up for it.
const CATCH_UP: Duration = Duration::from_millis(20);

/// The memory of one device. Clones are the same memory: their copies share its bandwidth.
#[derive(Debug, Clone)]
pub struct DeviceMemory {
    id: DeviceId,
    link: Option<Arc<Link>>,
    /// Where what lies in it is computed with by operations of tensors alone.
    tensors: Option<Device>,
}

/// Both ways at once, as a bus has them.
#[derive(Debug)]
struct Link {
    inward: Pace,
    outward: Pace,
}

/// Lets bytes pass at a bounded rate.
#[derive(Debug)]
struct Pace {
    bytes_per_second: NonZeroU64,
    /// When all that was let in so far will have passed.
    free_at: Mutex<Option<Instant>>,
}

impl From<DeviceId> for DeviceMemory {
    /// Without a bound on its bandwidth.
    fn from(id: DeviceId) -> Self {
        Self { id, link: None, tensors: None }
    }
}

impl DeviceMemory {
    /// A device's memory with a copy bandwidth, each way, in bytes per second; `None` is as
    /// fast as the machine copies.
    pub fn new(id: DeviceId, copy_bandwidth: Option<NonZeroU64>) -> Self {
        let pace = |bytes_per_second| Pace { bytes_per_second, free_at: Mutex::default() };
        let link = |rate| Arc::new(Link { inward: pace(rate), outward: pace(rate) });
        Self { id, link: copy_bandwidth.map(link), tensors: None }
    }

    /// A card's.
    pub fn of_card(card: &Card) -> Self {
        Self { id: card.id(), link: None, tensors: Some(card.device().clone()) }
    }

    /// The host's, but what lies in it is computed with as it would be on a card. For tests: it
    /// shows that what cards compute is right, and is slower than what the host has for itself.
    pub fn rehearsal(id: DeviceId) -> Self {
        Self { tensors: Some(Device::Cpu), ..Self::from(id) }
    }

    /// Whether models in it are computed by operations of tensors alone.
    pub(crate) fn is_of_tensors(&self) -> bool {
        self.tensors.is_some()
    }

    /// Refuses what cannot be computed there.
    pub(crate) fn check(&self, plan: &ModelPlan) -> Result<(), Error> {
        if self.id.is_card() && !self.is_of_tensors() {
            return Err(Error::NoDevice { device: self.id });
        }
        match plan.host_only().filter(|_| self.is_of_tensors()) {
            Some(what) => {
                let advice = plan.off_host().unwrap_or_default();
                Err(Error::HostOnly { what, device: self.id, advice })
            }
            None => Ok(()),
        }
    }

    /// The card, where it is one's.
    fn card(&self) -> Option<&Device> {
        self.tensors.as_ref().filter(|device| !device.is_cpu())
    }

    /// Brings a tensor that was just read into the host's memory to where it stays.
    pub(crate) fn settle(&self, tensor: Tensor) -> Result<Tensor, Error> {
        match self.card() {
            Some(card) => self.moved(&tensor, card),
            None => Ok(tensor),
        }
    }

    fn moved(&self, tensor: &Tensor, to: &Device) -> Result<Tensor, Error> {
        tensor.to_device(to).map_err(|error| load_failure(self.id, error.into()))
    }

    /// Whose memory it is.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// Waits until bytes that were read straight into it would have passed the link.
    pub(crate) fn was_filled(&self, bytes: Bytes) {
        if let Some(link) = &self.link {
            link.inward.pass(bytes.0);
        }
    }

    /// The same of bytes that were copied from it to the host's memory.
    pub(crate) fn was_emptied(&self, bytes: Bytes) {
        if let Some(link) = &self.link {
            link.outward.pass(bytes.0);
        }
    }

    /// Copies a tensor from the host's memory into a buffer of its own.
    pub(crate) fn bring(&self, tensor: &Tensor, cancel: &Cancel) -> Result<Tensor, Error> {
        if let Some(card) = self.card() {
            cancel.check()?;
            return self.moved(tensor, card);
        }
        copy(tensor, self.link.as_ref().map(|link| &link.inward), cancel)
    }

    /// Copies a tensor of its own into the host's memory.
    pub(crate) fn take_out(&self, tensor: &Tensor, cancel: &Cancel) -> Result<Tensor, Error> {
        if self.card().is_some() {
            cancel.check()?;
            return self.moved(tensor, &Device::Cpu);
        }
        copy(tensor, self.link.as_ref().map(|link| &link.outward), cancel)
    }
}

fn copy(tensor: &Tensor, pace: Option<&Pace>, cancel: &Cancel) -> Result<Tensor, Error> {
    match tensor.dtype() {
        DType::F32 => copy_numbers::<f32>(tensor, pace, cancel),
        DType::F16 => copy_numbers::<f16>(tensor, pace, cancel),
        DType::BF16 => copy_numbers::<bf16>(tensor, pace, cancel),
        // Blocks of quantised weights.
        DType::U8 => copy_numbers::<u8>(tensor, pace, cancel),
        other => {
            let message = format!("weights of {other:?} are not copied between memories");
            Err(candle_core::Error::Msg(message).into())
        }
    }
}

fn copy_numbers<T: WithDType>(
    tensor: &Tensor,
    pace: Option<&Pace>,
    cancel: &Cancel,
) -> Result<Tensor, Error> {
    with_numbers::<T, _>(tensor, |numbers| {
        let mut buffer = Vec::with_capacity(numbers.len());
        for piece in numbers.chunks(PIECE / size_of::<T>()) {
            cancel.check()?;
            buffer.extend_from_slice(piece);
            if let Some(pace) = pace {
                pace.pass(size_of_val(piece) as u64);
            }
        }
        Ok(Tensor::from_vec(buffer, tensor.shape(), &Device::Cpu)?)
    })?
}

impl Pace {
    /// Blocks until so many more bytes will have passed.
    fn pass(&self, bytes: u64) {
        let now = Instant::now();
        let passed = self.book(bytes, now);
        std::thread::sleep(passed.saturating_duration_since(now));
    }

    /// When so many more bytes will have passed that are let in at `now`.
    fn book(&self, bytes: u64, now: Instant) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let in_line = free_at.filter(|then| now.saturating_duration_since(*then) <= CATCH_UP);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.get());
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let began = in_line.unwrap_or(now);
        let passed = began.checked_add(takes).unwrap_or(began);
        *free_at = Some(passed);
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn copies_of_one_link_share_its_bandwidth_and_make_up_for_short_delays_only() {
        let rate = NonZeroU64::new(1_000_000).unwrap();
        let pace = Pace { bytes_per_second: rate, free_at: Mutex::default() };
        let start = Instant::now();
        assert_eq!(pace.book(10_000, start), start + milliseconds(10));
        // Another copy that begins at the same time waits for the first one's bytes.
        assert_eq!(pace.book(5_000, start), start + milliseconds(15));
        // A thread that woke up ten milliseconds too late has lost nothing.
        assert_eq!(pace.book(20_000, start + milliseconds(25)), start + milliseconds(35));
        // But an idle link saves nothing up.
        let later = start + milliseconds(1_000);
        assert_eq!(pace.book(1_000, later), later + milliseconds(1));
    }

    #[test]
    fn a_copy_is_a_buffer_of_its_own_with_the_same_numbers() {
        let numbers: Vec<f32> = (0..1_000).map(|i| i as f32 / 7.0).collect();
        let tensor = Tensor::from_vec(numbers, (10, 100), &Device::Cpu).unwrap();
        let memory = DeviceMemory::new(DeviceId::Simulated(0), NonZeroU64::new(1 << 40));
        let halves = [DType::F16, DType::BF16].map(|dtype| tensor.to_dtype(dtype).unwrap());
        for tensor in [tensor.clone()].into_iter().chain(halves) {
            let copied = memory.bring(&tensor, &Cancel::new()).unwrap();
            let back = memory.take_out(&copied, &Cancel::new()).unwrap();
            assert_eq!((copied.dims(), back.dims()), (tensor.dims(), tensor.dims()));
            let numbers =
                |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(numbers(&back), numbers(&tensor));
            assert!(copied.id() != tensor.id() && back.id() != copied.id());
        }
        let cancel = Cancel::new();
        cancel.cancel();
        assert!(matches!(memory.bring(&tensor, &cancel), Err(Error::Cancelled)));
    }
}
