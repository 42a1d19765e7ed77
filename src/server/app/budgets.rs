//! What models may take on each device, and copies of them in the host's memory.

use roundhouse_types::{Bytes, DeviceId};

use crate::config::{Config, Device};
use crate::error::Error;
use crate::limits;

/// What an automatic budget must come to: less would hold no model.
const LEAST: Bytes = Bytes::mib(1);

/// Every account of memory that residency keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Budgets {
    /// Each device's, in the order of the settings; one at least.
    pub(crate) devices: Vec<(DeviceId, Bytes)>,
    /// That of copies in the host's memory.
    pub(crate) host: Bytes,
    /// By how much all of them are more than what can safely be had.
    pub(crate) beyond: Bytes,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoBudget {
    /// One is automatic, and the machine does not say what it has.
    Unknown,
    /// The others leave nothing for the automatic one.
    NothingLeft {
        /// What they take.
        taken: Bytes,
        /// What can safely be had in all.
        most: Bytes,
    },
}

impl Budgets {
    /// Of these settings on a machine where so much can safely be had; `None` where it does
    /// not say.
    pub(crate) fn of(
        devices: &[Device],
        host: Option<Bytes>,
        most: Option<Bytes>,
    ) -> Result<Self, NoBudget> {
        let has_own = devices.iter().any(|device| !device.id.is_host());
        let written: Bytes = devices.iter().filter_map(|device| device.budget).sum();
        let mut taken = written + host.unwrap_or_default();
        let mut found = Vec::with_capacity(devices.len());
        for device in devices {
            let budget = match device.budget {
                Some(budget) => budget,
                None => {
                    let most = most.ok_or(NoBudget::Unknown)?;
                    let left = most.saturating_sub(taken);
                    if left < LEAST {
                        return Err(NoBudget::NothingLeft { taken, most });
                    }
                    taken += left;
                    left
                }
            };
            found.push((device.id, budget));
        }
        let left = most.unwrap_or_default().saturating_sub(taken);
        let host = host.unwrap_or(if has_own { Bytes(left.0 / 2) } else { Bytes::ZERO });
        let beyond = most.map_or(Bytes::ZERO, |most| taken.saturating_sub(most));
        Ok(Self { devices: found, host, beyond })
    }

    /// The largest device's: what no model can exceed.
    pub(crate) fn largest(&self) -> Bytes {
        self.devices.iter().map(|(_, budget)| *budget).max().unwrap_or_default()
    }

    /// Of all devices together.
    pub(crate) fn on_devices(&self) -> Bytes {
        self.devices.iter().map(|(_, budget)| *budget).sum()
    }
}

/// What these settings come to on this machine.
///
/// # Errors
/// When a budget is automatic and the machine does not say what it has or has nothing left.
pub(crate) fn budgets(config: &Config) -> Result<Budgets, Error> {
    let most = limits::Memory::read().automatic_budget();
    Budgets::of(&config.devices, config.memory.host, most).map_err(|why| match why {
        NoBudget::Unknown => {
            Error::Usage("the machine does not say how much memory it has: give --memory".into())
        }
        NoBudget::NothingLeft { taken, most } => Error::Usage(format!(
            "nothing is left for the device without a budget: other devices and memory.host take \
             {taken} of the {most} that can safely be had"
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: DeviceId, budget: Option<u64>) -> Device {
        Device { id, budget: budget.map(Bytes::mib), copy_bandwidth: None }
    }

    const SIMULATED: DeviceId = DeviceId::Simulated(0);

    #[test]
    fn the_processor_takes_what_others_leave_and_copies_half_of_the_rest() {
        let most = Some(Bytes::mib(1000));
        let of = |devices: &[Device], host: Option<u64>| {
            let found = Budgets::of(devices, host.map(Bytes::mib), most).unwrap();
            let devices: Vec<u64> = found.devices.iter().map(|(_, it)| it.0 >> 20).collect();
            (devices, found.host.0 >> 20, found.beyond.0 >> 20)
        };
        let cpu = device(DeviceId::Cpu, None);
        let simulated = device(SIMULATED, Some(300));
        assert_eq!(of(std::slice::from_ref(&cpu), None), (vec![1000], 0, 0));
        assert_eq!(of(&[cpu.clone(), simulated.clone()], Some(200)), (vec![500, 300], 200, 0));
        assert_eq!(of(&[cpu.clone(), simulated.clone()], None), (vec![700, 300], 0, 0));
        assert_eq!(of(std::slice::from_ref(&simulated), None), (vec![300], 350, 0));
        assert_eq!(of(std::slice::from_ref(&simulated), Some(0)), (vec![300], 0, 0));
        assert_eq!(of(&[device(SIMULATED, Some(1500))], Some(100)), (vec![1500], 100, 600));
        let full = [cpu.clone(), device(SIMULATED, Some(1000))];
        let nothing = NoBudget::NothingLeft { taken: Bytes::mib(1000), most: Bytes::mib(1000) };
        assert_eq!(Budgets::of(&full, None, most), Err(nothing));
        assert_eq!(Budgets::of(&[cpu], None, None), Err(NoBudget::Unknown));
        let unknown = Budgets::of(&[simulated], None, None).unwrap();
        assert_eq!((unknown.host, unknown.beyond), (Bytes::ZERO, Bytes::ZERO));
    }
}
