//! Divides what is left for models among the accounts of memory.

use roundhouse_types::{Bytes, DeviceId};

use crate::app::budgets::Budgets;

/// What each device in the host's memory may take, and copies in the host's memory, where all of them together may
/// take `total`: copies give way first, because they serve nobody; then devices, each to the
/// same share of what it was configured with.
pub(super) fn divide(configured: &Budgets, total: Bytes) -> (Vec<(DeviceId, Bytes)>, Bytes) {
    let all = configured.in_host_memory();
    let on_devices = all.min(total);
    let share = |budget: Bytes| {
        let part = u128::from(budget.0) * u128::from(on_devices.0) / u128::from(all.0.max(1));
        Bytes(u64::try_from(part).unwrap_or(u64::MAX)).min(budget)
    };
    let here = configured.devices.iter().filter(|(device, _)| !device.is_card());
    let devices = here.map(|(device, budget)| (*device, share(*budget)));
    (devices.collect(), total.saturating_sub(on_devices).min(configured.host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_give_way_first_then_devices_by_the_same_share_and_all_come_back() {
        let devices = vec![
            (DeviceId::Cpu, Bytes::gib(1 << 20)),
            (DeviceId::Simulated(0), Bytes::gib(3 << 20)),
        ];
        let (host, beyond) = (Bytes::gib(2 << 20), Bytes::ZERO);
        let configured = Budgets { devices: devices.clone(), host, beyond };
        let all = Bytes::gib(6 << 20);
        assert_eq!(divide(&configured, all), (devices.clone(), host));
        assert_eq!(
            divide(&configured, Bytes::gib(5 << 20)),
            (devices.clone(), Bytes::gib(1 << 20))
        );
        assert_eq!(divide(&configured, Bytes::gib(4 << 20)), (devices, Bytes::ZERO));
        let (halves, none) = divide(&configured, Bytes::gib(2 << 20));
        let halves: Vec<u64> = halves.iter().map(|(_, half)| half.0).collect();
        assert_eq!((halves.as_slice(), none), (&[1 << 49, 3 << 49][..], Bytes::ZERO));
        // A card's memory is none of the host's.
        let mut with_card = configured.clone();
        with_card.devices.insert(0, (DeviceId::Cuda(0), Bytes::gib(80)));
        assert_eq!(divide(&with_card, all), divide(&configured, all));
    }
}
