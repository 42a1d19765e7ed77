//! Divides what is left for models among the accounts of memory.

use roundhouse_types::{Bytes, DeviceId};

/// What each device may take where all of them together may take `total`: each the same share
/// of what it was configured with.
pub(super) fn divide(configured: &[(DeviceId, Bytes)], total: Bytes) -> Vec<(DeviceId, Bytes)> {
    let all: Bytes = configured.iter().map(|(_, budget)| *budget).sum();
    let share = |budget: Bytes| {
        let part = u128::from(budget.0) * u128::from(total.0) / u128::from(all.0.max(1));
        Bytes(u64::try_from(part).unwrap_or(u64::MAX)).min(budget)
    };
    configured.iter().map(|(device, budget)| (*device, share(*budget))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_give_way_by_the_same_share_and_get_back_what_they_had() {
        let configured =
            [(DeviceId::Cpu, Bytes::gib(1 << 20)), (DeviceId::Simulated(0), Bytes::gib(3 << 20))];
        let all = Bytes::gib(4 << 20);
        assert_eq!(divide(&configured, all), configured);
        let halves: Vec<u64> =
            divide(&configured, Bytes(all.0 / 2)).iter().map(|(_, half)| half.0).collect();
        assert_eq!(halves, [1 << 49, 3 << 49]);
        let one = [(DeviceId::Cpu, Bytes(1000))];
        assert_eq!(divide(&one, Bytes(333)), [(DeviceId::Cpu, Bytes(333))]);
    }
}
