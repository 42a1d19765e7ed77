//! What models may take on each device, and copies of them in the host's memory.

use std::fmt;

use roundhouse_types::{Bytes, DeviceId};

use crate::config::{Config, Device, Fault};
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
    /// A card's is automatic, and the card has not been opened.
    Card(DeviceId),
    /// The others leave nothing for the automatic one.
    NothingLeft {
        /// What they take.
        taken: Bytes,
        /// What can safely be had in all.
        most: Bytes,
    },
}

impl Budgets {
    /// Of these settings, cards' budgets found already, on a machine where so much can safely be had; `None` where it does
    /// not say.
    pub(crate) fn of(
        devices: &[Device],
        host: Option<Bytes>,
        most: Option<Bytes>,
    ) -> Result<Self, NoBudget> {
        let has_own = devices.iter().any(|device| !device.id.is_host());
        let in_host = devices.iter().filter(|device| !device.id.is_card());
        let written: Bytes = in_host.filter_map(|device| device.budget).sum();
        let mut taken = written + host.unwrap_or_default();
        let left = most.unwrap_or_default().saturating_sub(taken);
        // Half of what those leave that say what they take. The other half is a cpu's without a
        // budget, else the page cache's.
        let copies = host.unwrap_or(if has_own { Bytes(left.0 / 2) } else { Bytes::ZERO });
        let for_cpu = if host.is_none() { left.saturating_sub(copies) } else { left };
        let mut found = Vec::with_capacity(devices.len());
        for device in devices {
            let budget = match device.budget {
                Some(budget) => budget,
                None if device.id.is_card() => return Err(NoBudget::Card(device.id)),
                None => {
                    let most = most.ok_or(NoBudget::Unknown)?;
                    if for_cpu < LEAST {
                        return Err(NoBudget::NothingLeft { taken, most });
                    }
                    taken += for_cpu;
                    for_cpu
                }
            };
            found.push((device.id, budget));
        }
        let beyond = most.map_or(Bytes::ZERO, |most| taken.saturating_sub(most));
        Ok(Self { devices: found, host: copies, beyond })
    }

    /// Whether all of them are lowered to this because they were beyond what there was from the
    /// start, and nobody has taken anything since.
    pub(crate) fn were_never_there(&self, lowered: Bytes) -> bool {
        let at_start = (self.in_host_memory() + self.host).saturating_sub(self.beyond);
        self.beyond > Bytes::ZERO && lowered >= at_start
    }

    /// The largest device's: what no model can exceed.
    pub(crate) fn largest(&self) -> Bytes {
        self.devices.iter().map(|(_, budget)| *budget).max().unwrap_or_default()
    }

    /// What no handler can exceed: the host's processor's, where it is a device.
    pub(crate) fn of_handlers(&self) -> Bytes {
        let mut hosts = self.devices.iter().filter(|(device, _)| device.is_host());
        hosts.next().map_or_else(|| self.largest(), |(_, budget)| *budget)
    }

    /// Of all devices together.
    pub(crate) fn on_devices(&self) -> Bytes {
        self.devices.iter().map(|(_, budget)| *budget).sum()
    }

    /// Of all devices whose memory is the host's.
    pub(crate) fn in_host_memory(&self) -> Bytes {
        let in_host = self.devices.iter().filter(|(device, _)| !device.is_card());
        in_host.map(|(_, budget)| *budget).sum()
    }
}

/// What these settings come to on this machine.
///
/// # Errors
/// When a budget is automatic and the machine does not say what it has or has nothing left.
pub(crate) fn budgets(config: &Config) -> Result<Budgets, Error> {
    let most = limits::Memory::read().automatic_budget();
    Budgets::of(&config.devices, config.memory.host, most)
        .map_err(|why| Error::Usage(why.to_string()))
}

/// Budgets that this machine can never hold, whatever else runs, and promises to tenants that
/// the budgets cannot.
pub(crate) fn faults(config: &Config, seen: &limits::Memory) -> Vec<Fault> {
    let mut faults = Vec::new();
    let in_host = || config.devices.iter().filter(|it| !it.id.is_card());
    let written = || in_host().filter_map(|it| Some((it.id, it.budget?)));
    let sum: Bytes = written().map(|(_, budget)| budget).sum();
    let host = config.memory.host.unwrap_or_default();
    if let Some(whole) = seen.whole() {
        let limit =
            if seen.cgroup == Some(whole) { "its control group's limit" } else { "its memory" };
        let there = format!("the {whole} that this machine has ({limit})");
        let too_large: Vec<_> = written().filter(|(_, budget)| *budget > whole).collect();
        for (device, budget) in &too_large {
            let message = format!("{budget} on {device} is more than {there}");
            faults.push(Fault::new("memory.budget", message));
        }
        if too_large.is_empty() && sum > whole {
            let message = format!("the budgets sum up to {sum}, more than {there}");
            faults.push(Fault::new("device", message));
        } else if too_large.is_empty() && sum + host > whole {
            let message = format!("{host} beside {sum} on devices is more than {there}");
            faults.push(Fault::new("memory.host", message));
        }
    }
    if !faults.is_empty() {
        return faults;
    }
    match Budgets::of(&config.devices, config.memory.host, seen.automatic_budget()) {
        Ok(budgets) => faults.extend(config.check_floors(Some(budgets.on_devices())).err()),
        // Known when the server starts.
        Err(NoBudget::Card(_)) => {}
        Err(why) => faults.push(Fault::new("memory.budget", why.to_string())),
    }
    faults
}

impl fmt::Display for NoBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => {
                f.write_str("the machine does not say how much memory it has: give --memory")
            }
            Self::Card(device) => write!(
                f,
                "the budget of {device} is what its driver says is free when a server starts: \
                 give it one (--memory, or budget below [[device]])"
            ),
            Self::NothingLeft { taken, most } => write!(
                f,
                "nothing is left for the device without a budget: other devices and memory.host \
                 take {taken} of the {most} that can safely be had"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ServeFlags;

    fn device(id: DeviceId, budget: Option<u64>) -> Device {
        let budget = budget.map(Bytes::mib);
        Device { id, budget, copy_bandwidth: None, is_automatic: false }
    }

    const SIMULATED: DeviceId = DeviceId::Simulated(0);

    #[test]
    fn copies_and_a_processor_without_a_budget_have_half_each_of_what_others_leave() {
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
        assert_eq!(of(&[cpu.clone(), simulated.clone()], None), (vec![350, 300], 350, 0));
        assert_eq!(of(&[cpu.clone(), simulated.clone()], Some(0)), (vec![700, 300], 0, 0));
        assert_eq!(of(std::slice::from_ref(&simulated), None), (vec![300], 350, 0));
        assert_eq!(of(std::slice::from_ref(&simulated), Some(0)), (vec![300], 0, 0));
        assert_eq!(of(&[device(SIMULATED, Some(1500))], Some(100)), (vec![1500], 100, 600));
        let full = [cpu.clone(), device(SIMULATED, Some(1000))];
        let nothing = NoBudget::NothingLeft { taken: Bytes::mib(1000), most: Bytes::mib(1000) };
        assert_eq!(Budgets::of(&full, None, most), Err(nothing));
        assert_eq!(Budgets::of(&[cpu], None, None), Err(NoBudget::Unknown));
        let card = |budget| [device(DeviceId::Cuda(0), budget), device(DeviceId::Cpu, None)];
        let (of_card, host, beyond) = of(&card(Some(80_000)), None);
        assert_eq!(
            (of_card, host, beyond),
            (vec![80_000, 500], 500, 0),
            "it takes none of the host's"
        );
        let unopened = Budgets::of(&card(None), None, most);
        assert_eq!(unopened, Err(NoBudget::Card(DeviceId::Cuda(0))));
        let unknown = Budgets::of(&[simulated], None, None).unwrap();
        assert_eq!((unknown.host, unknown.beyond), (Bytes::ZERO, Bytes::ZERO));
    }

    #[test]
    fn budgets_beyond_the_machine_are_told_from_what_others_take() {
        let of = |budget| {
            let cpu = device(DeviceId::Cpu, Some(budget));
            Budgets::of(&[cpu], None, Some(Bytes::mib(1000))).unwrap()
        };
        let beyond = of(1500);
        assert!(beyond.were_never_there(Bytes::mib(1050)), "all that there was");
        assert!(!beyond.were_never_there(Bytes::mib(900)), "somebody has come");
        assert!(!of(1000).were_never_there(Bytes::mib(1000)));
    }

    #[test]
    fn what_no_machine_of_this_size_can_hold_is_a_fault_and_what_others_have_now_is_none() {
        let seen = limits::Memory {
            total: Some(Bytes::gib(8)),
            available: Some(Bytes::gib(2)),
            cgroup: None,
            resident: Some(Bytes::ZERO),
        };
        let told = |text: &str| -> Vec<String> {
            let text = format!("version = 1\n{text}");
            let flags = ServeFlags { store: vec!["file:///m/".into()], ..ServeFlags::default() };
            let config = Config::parse(Some(&text), &|_| None, &flags).unwrap();
            faults(&config, &seen).iter().map(ToString::to_string).collect()
        };
        let simulated = |ordinal: u8, gib: u8| {
            format!("[[device]]\nid = \"simulated:{ordinal}\"\nbudget = \"{gib}GiB\"\n")
        };
        assert!(told("[memory]\nbudget = \"7GiB\"").is_empty(), "others may leave");
        assert_eq!(
            told("[memory]\nbudget = \"9GiB\""),
            ["memory.budget: 9.0 GiB on cpu is more than the 8.0 GiB that this machine has (its \
              memory)"]
        );
        let two = told(&format!("{}{}", simulated(0, 5), simulated(1, 5)));
        assert!(two[0].starts_with("device: the budgets sum up to 10.0 GiB, more than"), "{two:?}");
        let host = told(&format!("[memory]\nhost = \"4GiB\"\n{}", simulated(0, 5)));
        assert!(host[0].starts_with("memory.host: 4.0 GiB beside 5.0 GiB on devices"), "{host:?}");
        let floors = told("[[tenant]]\nname = \"a\"\nfloor = \"3GiB\"");
        assert!(floors[0].starts_with("tenant: the floors sum up to 3.0 GiB"), "{floors:?}");
        let nothing = told(&format!("{}[[device]]\nid = \"cpu\"", simulated(0, 3)));
        assert!(nothing[0].starts_with("memory.budget: nothing is left for"), "{nothing:?}");
    }
}
