//! `[[device]]`: where models run. Without it the one device of `[memory]`.

use std::num::NonZeroU64;
use std::ops::RangeInclusive;

use roundhouse_models::NO_CUDA;
use roundhouse_types::{Bytes, DeviceId};

use super::Fault;
use super::keys::{self, DEVICE_KEYS};
use super::raw::Sources;

/// What a device's budget can be.
const BUDGETS: RangeInclusive<Bytes> = Bytes::mib(1)..=Bytes::gib(1 << 20);
/// A slower link copies a small model for an hour; a faster one there is nowhere.
const BANDWIDTHS: RangeInclusive<Bytes> = Bytes(1_000_000)..=Bytes(1_000_000_000_000_000);

/// A device that models run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Which one.
    pub id: DeviceId,
    /// What loaded models may take there; absent only of the host's processor and of cards. Of the former it means what
    /// the machine or cgroup has, less the measured baseline, less a margin of 10 % (see
    /// [`crate::limits`]), less what other devices and copies are given; where copies have no
    /// written budget either, both have half of it. Of a card it is what its driver says is free when
    /// the server starts, less the margin.
    pub budget: Option<Bytes>,
    /// Of a simulated device: the bytes per second that pass between its memory and the
    /// host's, each way. Absent: as fast as the machine copies.
    pub copy_bandwidth: Option<NonZeroU64>,
    /// Whether nobody said which: a card takes its place where the server finds one.
    pub is_automatic: bool,
}

/// The devices that the file lists, else the one that `[memory]` describes; one at least.
pub(super) fn resolve(sources: &mut Sources<'_>) -> Vec<Device> {
    let budget = sources.size("memory.budget", BUDGETS);
    let id = sources.optional("memory.device", alone).flatten();
    let Some(value) = sources.file.get("device").cloned() else {
        let (is_automatic, id) = (id.is_none(), id.unwrap_or(DeviceId::Cpu));
        return vec![Device { id, budget, copy_bandwidth: None, is_automatic }];
    };
    let beside = "says of one device what [[device]] says of each; leave one of them out";
    if budget.is_some() {
        sources.fault("memory.budget", format!("{beside} (--memory is the same key)"));
    }
    if id.is_some() {
        sources.fault("memory.device", format!("{beside} (--device is the same key)"));
    }
    let (devices, faults) = listed(&value);
    sources.faults(faults);
    match devices.is_empty() {
        // There is a fault, but what follows may count on a device.
        true => {
            let (budget, copy_bandwidth) = (None, None);
            vec![Device { id: DeviceId::Cpu, budget, copy_bandwidth, is_automatic: false }]
        }
        false => devices,
    }
}

/// The device of `memory.device`; `None` is `auto`.
fn alone(text: &str) -> Result<Option<DeviceId>, String> {
    match text {
        "auto" => Ok(None),
        "cpu" => Ok(Some(DeviceId::Cpu)),
        _ if is_cuda(text) && !HAS_CUDA => Err(format!("'{text}': {NO_CUDA}; use auto or cpu")),
        _ if is_cuda(text) => card(text).map(Some),
        _ if text.starts_with("simulated") => {
            Err(format!("'{text}': a simulated device is written as a [[device]]"))
        }
        _ if HAS_CUDA => Err(format!("'{text}' is not a device: auto, cpu or cuda:0")),
        _ => Err(format!("'{text}' is not a device: auto or cpu")),
    }
}

const HAS_CUDA: bool = cfg!(feature = "cuda");

fn is_cuda(text: &str) -> bool {
    text == "cuda" || text.starts_with("cuda:")
}

/// `cuda` is the first card.
fn card(text: &str) -> Result<DeviceId, String> {
    let ordinal = text.strip_prefix("cuda:").unwrap_or("0").parse();
    ordinal.map(DeviceId::Cuda).map_err(|_| format!("'{text}' is not a card: cuda or cuda:0"))
}

fn listed(value: &toml::Value) -> (Vec<Device>, Vec<Fault>) {
    let entries: Option<Vec<&toml::Table>> =
        value.as_array().and_then(|list| list.iter().map(toml::Value::as_table).collect());
    let Some(entries) = entries.filter(|entries| !entries.is_empty()) else {
        let message = "is a list of one at least: write [[device]] and its keys below";
        return (Vec::new(), vec![Fault::new("device", message)]);
    };
    let (mut devices, mut faults) = (Vec::<Device>::new(), Vec::new());
    for (index, entry) in entries.into_iter().enumerate() {
        let at = format!("device[{index}]");
        faults.extend(keys::unknown_in(entry, DEVICE_KEYS, &at));
        let Some(device) = read(entry, &at, &mut faults) else { continue };
        if devices.iter().any(|other| other.id == device.id) {
            let message = format!("'{}' is another device's id", device.id);
            faults.push(Fault::new(format!("{at}.id"), message));
        } else {
            devices.push(device);
        }
    }
    (devices, faults)
}

fn read(entry: &toml::Table, at: &str, faults: &mut Vec<Fault>) -> Option<Device> {
    let mut fault = |key: &str, message: String| {
        faults.push(Fault::new(format!("{at}.{key}"), message));
    };
    let id = match entry.get("id").map(toml::Value::as_str) {
        Some(Some(text)) => id(text),
        Some(None) => Err("expected a string in quotes, like \"simulated:0\"".to_owned()),
        None => Err("is missing: cpu or simulated:0".to_owned()),
    };
    let id = id.map_err(|message| fault("id", message)).ok();
    let sized = |key: &str, parse: &dyn Fn(&str) -> Result<Bytes, String>| match entry.get(key) {
        None => Ok(None),
        Some(toml::Value::String(text)) => parse(text).map(Some),
        Some(toml::Value::Integer(bytes)) if key == "budget" => parse(&bytes.to_string()).map(Some),
        Some(_) => Err("expected a string with a unit".to_owned()),
    };
    let budget = sized("budget", &|text| within(text, text, &BUDGETS, ""));
    let budget = budget.map_err(|message| fault("budget", message)).ok();
    let rate = sized("copy_bandwidth", &|text| bandwidth(text, &BANDWIDTHS));
    let rate = rate.map_err(|message| fault("copy_bandwidth", message)).ok();
    let (id, budget, rate) = (id?, budget?, rate?);
    match id {
        DeviceId::Simulated(_) if budget.is_none() => {
            let message = "is missing: a simulated device has what it is given, like \"2GiB\"";
            fault("budget", message.to_owned());
            return None;
        }
        DeviceId::Cpu if rate.is_some() => {
            let message = "is a simulated device's: nothing is copied to the cpu's memory";
            fault("copy_bandwidth", message.to_owned());
            return None;
        }
        DeviceId::Cuda(_) if rate.is_some() => {
            let message = "is a simulated device's: a card's bus has its own";
            fault("copy_bandwidth", message.to_owned());
            return None;
        }
        _ => {}
    }
    let copy_bandwidth = rate.and_then(|rate| NonZeroU64::new(rate.0));
    Some(Device { id, budget, copy_bandwidth, is_automatic: false })
}

fn id(text: &str) -> Result<DeviceId, String> {
    if is_cuda(text) {
        return if HAS_CUDA { card(text) } else { Err(format!("'{text}': {NO_CUDA}")) };
    }
    let ordinal = text.strip_prefix("simulated:").and_then(|number| number.parse().ok());
    match (text, ordinal) {
        ("cpu", _) => Ok(DeviceId::Cpu),
        (_, Some(ordinal)) => Ok(DeviceId::Simulated(ordinal)),
        _ => Err(format!("'{text}' is not a device: cpu or simulated:0")),
    }
}

/// A size per second.
pub(super) fn bandwidth(text: &str, range: &RangeInclusive<Bytes>) -> Result<Bytes, String> {
    match text.trim().strip_suffix("/s") {
        Some(size) => within(size, text, range, "/s"),
        None => Err(format!("'{text}' is not a bandwidth: write a size per second, like 12GB/s")),
    }
}

fn within(
    size: &str,
    written: &str,
    range: &RangeInclusive<Bytes>,
    unit: &str,
) -> Result<Bytes, String> {
    let bytes: Bytes = size.parse().map_err(|error| format!("{error}"))?;
    match range.contains(&bytes) {
        true => Ok(bytes),
        false => Err(format!(
            "{written} is out of range: {}{unit} to {}{unit}",
            range.start(),
            range.end()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use crate::cli::ServeFlags;

    const DEFAULT_FILE: &str = include_str!("../../../config/default.toml");

    fn parsed(text: &str, flags: ServeFlags) -> Result<Config, Vec<String>> {
        let flags = ServeFlags { store: vec!["file:///models/".into()], ..flags };
        let parsed = Config::parse(Some(&format!("version = 1\n{text}")), &|_| None, &flags);
        parsed.map_err(|faults| faults.iter().map(ToString::to_string).collect())
    }

    fn faults(text: &str) -> Vec<String> {
        parsed(text, ServeFlags::default()).expect_err("the file has faults")
    }

    #[test]
    fn the_example_in_the_annotated_file_holds() {
        let block = DEFAULT_FILE.split("# [[device]]\n").nth(1).unwrap();
        let lines: Vec<&str> = block.lines().map_while(|line| line.strip_prefix("#   ")).collect();
        let config = parsed(&format!("[[device]]\n{}", lines.join("\n")), ServeFlags::default());
        let want = Device {
            id: DeviceId::Simulated(0),
            budget: Some(Bytes::gib(2)),
            copy_bandwidth: NonZeroU64::new(12_000_000_000),
            is_automatic: false,
        };
        assert_eq!(config.unwrap().devices, [want]);
    }

    #[test]
    fn devices_are_listed_in_order_and_auto_says_nothing_beside_them() {
        let text = "[memory]\ndevice = \"auto\"\nhost = \"1GiB\"\n\
                    [[device]]\nid = \"simulated:7\"\nbudget = 1048576\n[[device]]\nid = \"cpu\"";
        let config = parsed(text, ServeFlags::default()).unwrap();
        let found: Vec<_> = config.devices.iter().map(|it| (it.id, it.budget)).collect();
        let want = [(DeviceId::Simulated(7), Some(Bytes::mib(1))), (DeviceId::Cpu, None)];
        assert_eq!((found.as_slice(), config.memory.host), (&want[..], Some(Bytes::gib(1))));
    }

    #[test]
    fn what_is_wrong_with_a_device_is_told_with_its_key() {
        let cases = [
            ("budget = \"1GiB\"", "device[0].id: is missing"),
            ("id = 1", "device[0].id: expected a string"),
            ("id = \"simulated\"", "device[0].id: 'simulated' is not a device"),
            ("id = \"simulated:70000\"", "device[0].id: 'simulated:70000' is not"),
            ("id = \"simulated:0\"", "device[0].budget: is missing"),
            ("id = \"simulated:0\"\nbudget = \"0B\"", "device[0].budget: 0B is out of range"),
            ("id = \"simulated:0\"\nbudget = true", "device[0].budget: expected a string"),
            ("id = \"cpu\"\ncopy_bandwidth = \"1GB/s\"", "device[0].copy_bandwidth: is a simul"),
            ("id = \"cpu\"\ncopy_bandwidth = \"1GB\"", "device[0].copy_bandwidth: '1GB' is not"),
            ("id = \"cpu\"\ncopy_bandwidth = \"0B/s\"", "device[0].copy_bandwidth: 0B/s is out"),
            ("id = \"cpu\"\nbandwidth = 1", "device[0].bandwidth: is not a key"),
            ("id = \"cpu\"\n[[device]]\nid = \"cpu\"", "device[1].id: 'cpu' is another"),
        ];
        for (keys, want) in cases {
            let found = faults(&format!("[[device]]\n{keys}"));
            assert!(found.len() == 1 && found[0].starts_with(want), "{keys}: {found:?}");
        }
        assert!(faults("device = \"cpu\"")[0].starts_with("device: is a list"));
        assert!(faults("device = []")[0].starts_with("device: is a list of one at least"));
    }

    #[test]
    fn a_card_is_a_device_where_the_build_has_cuda() {
        let listed = "[[device]]\nid = \"cuda:1\"\n[[device]]\nid = \"cpu\"";
        let alone = |text: &str| parsed(text, ServeFlags::default());
        if !HAS_CUDA {
            assert!(
                faults(listed)[0].starts_with("device[0].id: 'cuda:1': this build has no CUDA")
            );
            let told = faults("[memory]\ndevice = \"cuda\"");
            assert!(told[0].contains("no CUDA support; use auto or cpu"), "{told:?}");
            return;
        }
        let config = alone(listed).unwrap();
        let ids: Vec<_> = config.devices.iter().map(|it| (it.id, it.budget)).collect();
        assert_eq!(ids, [(DeviceId::Cuda(1), None), (DeviceId::Cpu, None)]);
        let config = alone("[memory]\ndevice = \"cuda\"\nbudget = \"1GiB\"").unwrap();
        assert_eq!(config.devices[0].id, DeviceId::Cuda(0));
        assert!(!config.devices[0].is_automatic);
        for wrong in ["cuda:", "cuda:x", "cuda:70000"] {
            let told = faults(&format!("[[device]]\nid = \"{wrong}\""));
            assert!(told[0].contains("is not a card"), "{told:?}");
        }
        let told = faults("[[device]]\nid = \"cuda:0\"\ncopy_bandwidth = \"1GB/s\"");
        assert!(told[0].contains("bus has its own"), "{told:?}");
    }

    #[test]
    fn what_nobody_named_is_automatic() {
        let automatic =
            |text: &str| parsed(text, ServeFlags::default()).unwrap().devices[0].is_automatic;
        assert!(automatic("") && automatic("[memory]\ndevice = \"auto\""));
        assert!(!automatic("[memory]\ndevice = \"cpu\"") && !automatic("[[device]]\nid = \"cpu\""));
    }

    #[test]
    fn one_device_is_not_described_beside_a_list() {
        let beside = "[memory]\nbudget = \"1GiB\"\ndevice = \"cpu\"\n[[device]]\nid = \"cpu\"";
        let found = faults(beside);
        assert!(found[0].starts_with("memory.budget: says of one device"), "{found:?}");
        assert!(found[1].starts_with("memory.device: says of one device"), "{found:?}");
        let flags = ServeFlags { memory: Some("1GiB".into()), ..ServeFlags::default() };
        let found = parsed("[[device]]\nid = \"cpu\"", flags).unwrap_err();
        assert!(found[0].contains("--memory"), "{found:?}");
        let found = faults("[memory]\ndevice = \"simulated:0\"");
        assert!(found[0].contains("written as a [[device]]"), "{found:?}");
    }

    #[test]
    fn handlers_need_the_processor_among_the_devices() {
        let simulated = "[[device]]\nid = \"simulated:0\"\nbudget = \"1GiB\"\n";
        let on = format!("[handlers]\nenabled = true\n{simulated}");
        let found = faults(&on);
        assert!(found[0].starts_with("handlers.enabled: Python handlers live in the"), "{found:?}");
        assert!(parsed(&format!("{on}[[device]]\nid = \"cpu\""), ServeFlags::default()).is_ok());
        let own = "[[endpoint]]\nname = \"a\"\nhandlers = true\n[[endpoint.mount]]\nuri = \"file:///m\"\n";
        let text = format!("version = 1\n{own}{simulated}");
        let found = Config::parse(Some(&text), &|_| None, &ServeFlags::default()).unwrap_err();
        assert_eq!(found[0].key, "endpoint[0].handlers");
    }

    #[test]
    fn copies_in_the_hosts_memory_need_a_device_that_models_can_leave() {
        let found = faults("[memory]\nhost = \"1GiB\"");
        assert!(found[0].starts_with("memory.host: is for models that leave"), "{found:?}");
        let promised = "[[tenant]]\nname = \"a\"\nfloor = \"3GiB\"\n\
                        [[device]]\nid = \"simulated:0\"\nbudget = \"1GiB\"\n\
                        [[device]]\nid = \"simulated:1\"\nbudget = \"1GiB\"";
        let found = faults(promised);
        assert_eq!(found, ["tenant: the floors sum up to 3.0 GiB, and models may take 2.0 GiB"]);
    }
}
