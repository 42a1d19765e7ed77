//! The devices that this process computes on: those of the settings, with the cards among them
//! opened. Where the settings leave it open, a card if there is one.

use roundhouse_models::{Card, CardMemory, cards};
use roundhouse_types::{Bytes, DeviceId, ErrorKind, Failure};
use tracing::info;

use crate::config::{Device, Fault};
use crate::error::Error;
use crate::limits;

/// Puts what these devices come to here in their place, and returns the cards among them.
///
/// # Errors
/// When a card that was asked for cannot be used, or has less memory than its budget.
pub(super) async fn open(devices: &mut Vec<Device>) -> Result<Vec<Card>, Error> {
    let written = std::mem::take(devices);
    // A driver takes its time, and a card's context some hundred milliseconds.
    let opened = tokio::task::spawn_blocking(move || open_now(written)).await;
    let opened = opened.map_err(|error| Failure::from_error(ErrorKind::Internal, &error))?;
    let (settled, cards) = opened?;
    *devices = settled;
    Ok(cards)
}

fn open_now(written: Vec<Device>) -> Result<(Vec<Device>, Vec<Card>), Error> {
    let mut devices = chosen(written, &cards);
    let mut opened = Vec::new();
    for device in &mut devices {
        let DeviceId::Cuda(ordinal) = device.id else { continue };
        let card = Card::open(ordinal).map_err(Failure::from)?;
        let memory = card.memory().map_err(Failure::from)?;
        let name = card.name();
        info!(device = %device.id, name, free = %memory.free, total = %memory.total, "card opened");
        device.budget =
            Some(budget_of(device, memory).map_err(|fault| Error::Settings(vec![fault]))?);
        opened.push(card);
    }
    Ok((devices, opened))
}

/// Instead of a device that nobody named, the first card, with the host's processor beside it for what
/// cards do not compute; or that processor alone, and why.
fn chosen(written: Vec<Device>, cards: &dyn Fn() -> Result<u16, String>) -> Vec<Device> {
    let [device] = &written[..] else { return written };
    if !device.is_automatic {
        return written;
    }
    match cards() {
        Ok(count) => {
            info!(device = %DeviceId::Cuda(0), cards = count, "device chosen: the first card; the cpu for what cards do not compute");
            let card = Device { id: DeviceId::Cuda(0), ..device.clone() };
            vec![card, Device { budget: None, ..device.clone() }]
        }
        Err(why) => {
            info!(device = %device.id, why, "device chosen: the cpu, as there is no card");
            written
        }
    }
}

/// What models may have of a card: what was asked for, else all that is free beside its context and
/// what others use but a margin.
fn budget_of(device: &Device, memory: CardMemory) -> Result<Bytes, Fault> {
    match device.budget {
        Some(budget) if budget > memory.total => {
            let (id, total) = (device.id, memory.total);
            let message = format!("{budget} on {id} is more than the {total} that the card has");
            Err(Fault::new("memory.budget", message))
        }
        Some(budget) => Ok(budget),
        None => Ok(limits::budget_of(memory.free)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: DeviceId, budget: Option<Bytes>, is_automatic: bool) -> Device {
        Device { id, budget, copy_bandwidth: None, is_automatic }
    }

    #[test]
    fn a_card_takes_the_place_of_a_device_that_nobody_named() {
        let ids = |devices: Vec<Device>| -> Vec<(DeviceId, Option<Bytes>)> {
            devices.into_iter().map(|device| (device.id, device.budget)).collect()
        };
        let (there, absent) = (|| Ok(2), || Err("no driver".to_owned()));
        let budget = Some(Bytes::gib(4));
        let open = || vec![device(DeviceId::Cpu, budget, true)];
        let both = [(DeviceId::Cuda(0), budget), (DeviceId::Cpu, None)];
        assert_eq!(ids(chosen(open(), &there)), both);
        assert_eq!(ids(chosen(open(), &absent)), [(DeviceId::Cpu, budget)]);
        let named = vec![device(DeviceId::Cpu, budget, false)];
        assert_eq!(ids(chosen(named, &there)), [(DeviceId::Cpu, budget)]);
        let listed = vec![device(DeviceId::Simulated(0), budget, false); 2];
        assert_eq!(chosen(listed.clone(), &there), listed);
    }

    #[test]
    fn a_cards_budget_is_what_is_free_but_a_margin_and_never_more_than_it_has() {
        let memory = CardMemory { free: Bytes(70_000), total: Bytes(80_000) };
        let of = |budget| budget_of(&device(DeviceId::Cuda(1), budget, false), memory);
        assert_eq!(of(None).unwrap(), Bytes(63_000));
        // Others may leave.
        assert_eq!(of(Some(Bytes(75_000))).unwrap(), Bytes(75_000));
        let fault = of(Some(Bytes(90_000))).unwrap_err().to_string();
        assert!(fault.starts_with("memory.budget: 87.9 KiB on cuda:1 is more than the"), "{fault}");
    }

    #[cfg(not(feature = "cuda"))]
    #[tokio::test]
    async fn without_cuda_a_server_computes_on_the_cpu_and_a_card_is_refused_by_name() {
        let mut devices = vec![device(DeviceId::Cpu, None, true)];
        assert!(open(&mut devices).await.unwrap().is_empty());
        assert_eq!(devices, [device(DeviceId::Cpu, None, true)]);
        let mut devices = vec![device(DeviceId::Cuda(1), None, false)];
        let told = open(&mut devices).await.unwrap_err().to_string();
        assert_eq!(told, "cuda:1 cannot be used: this build has no CUDA support");
    }
}
