//! `[[endpoint.engine]]` with `contract = "multi-model"`: a container that holds many models.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use roundhouse_containers::BaseUrl;
use roundhouse_containers::multi_model::{
    ContainerOrigin, ContainerSpec, PathMap, StartedContainer,
};
use roundhouse_types::Bytes;

use super::{EngineKind, EngineRule, Reader, STARTS, STOPS};
use crate::config::defaults;

/// The contract that there is.
const CONTRACT: &str = "multi-model";
/// Keys that only such a container has.
const OF_CONTAINERS: [&str; 5] =
    ["url", "path_map", "memory_factor", "process_memory", "load_timeout"];
/// Keys that only an engine of one model has.
const OF_ENGINES: [&str; 7] =
    ["measure", "name", "invocations", "sleep", "adapters", "slots", "cache_salt"];
const LOADS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const FACTORS: RangeInclusive<f64> = 0.1..=100.0;

/// A container of many models, and what is charged for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRule {
    /// The container.
    pub spec: Arc<ContainerSpec>,
    /// What each of its models takes.
    pub memory: ModelMemory,
    /// What it takes itself, charged while one of its models is loaded.
    pub process: Bytes,
}

/// What a model in a container is charged with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelMemory {
    /// This much.
    Each(Bytes),
    /// The bytes of its files, times so many thousandths.
    OfFiles {
        /// The factor's thousandths.
        thousandths: u64,
    },
}

impl ModelMemory {
    /// What a model with files of this size is charged with.
    pub(crate) fn of(self, files: Bytes) -> Bytes {
        match self {
            Self::Each(memory) => memory,
            Self::OfFiles { thousandths } => {
                let product = u128::from(files.0) * u128::from(thousandths) / 1000;
                Bytes(u64::try_from(product).unwrap_or(u64::MAX))
            }
        }
    }
}

impl Reader<'_> {
    /// Whether it is such a container; a fault of the contract's name is told.
    pub(super) fn is_contained(&mut self) -> bool {
        let contract = self.entry.get("contract").map(toml::Value::as_str);
        let (others, why) = match contract {
            None => (&OF_CONTAINERS[..], "is for contract = \"multi-model\""),
            Some(Some(CONTRACT)) => (&OF_ENGINES[..], "is not for contract = \"multi-model\""),
            Some(_) => {
                self.fault("contract", "expected \"multi-model\", or nothing");
                (&[][..], "")
            }
        };
        for key in others.iter().filter(|key| self.entry.contains_key(**key)) {
            self.fault(key, why);
        }
        contract.is_some()
    }

    pub(super) fn contained(&mut self) -> Option<EngineRule> {
        let target = self.target();
        let origin = self.origin();
        let memory = self.model_memory();
        let process = match self.entry.contains_key("process_memory") {
            true => self.size("process_memory")?,
            false => Bytes::ZERO,
        };
        let spec = ContainerSpec {
            health: self.path("health").unwrap_or_else(|| "/ping".to_owned()),
            paths: self.path_map(),
            load_timeout: self.duration("load_timeout", LOADS, defaults::CONTAINER_LOAD_TIMEOUT),
            origin: origin?,
        };
        let rule = ContainerRule { spec: Arc::new(spec), memory: memory?, process };
        let kind = EngineKind::Contained(Arc::new(rule));
        let idle_ttl = self.idle_ttl();
        // What such a container takes is its own format, pickles among them.
        let pickles = self.switch("pickles", true);
        Some(EngineRule { target: target?, kind, inherited: Vec::new(), idle_ttl, pickles })
    }

    fn origin(&mut self) -> Option<ContainerOrigin> {
        if !self.entry.contains_key("url") {
            return self.started();
        }
        for key in ["command", "environment", "start_timeout", "stop_timeout", "own_processes"] {
            if self.entry.contains_key(key) {
                self.fault(key, "is for a container that we start; one with a url runs already");
            }
        }
        let url = match self.text("url")?.parse::<BaseUrl>() {
            Ok(url) => url,
            Err(why) => {
                self.fault("url", why.reason());
                return None;
            }
        };
        if url.is_https() {
            // It reads our disk: it is on this machine, or in this pod.
            self.fault("url", "expected http://: the container shares a folder with us");
        }
        Some(ContainerOrigin::Url(url))
    }

    fn started(&mut self) -> Option<ContainerOrigin> {
        let command = self.command()?;
        let environment = self.environment();
        for text in command.iter().chain(environment.values()) {
            if StartedContainer::fill(text, 0).is_err() {
                let why =
                    format!("'{text}': only {{port}} and {{device}} are known when it starts");
                self.fault("command", why);
            }
        }
        Some(ContainerOrigin::Command(StartedContainer {
            command,
            environment,
            own_processes: self.switch("own_processes", true),
            start_timeout: self.duration("start_timeout", STARTS, defaults::ENGINE_START_TIMEOUT),
            stop_timeout: self.duration("stop_timeout", STOPS, defaults::ENGINE_STOP_TIMEOUT),
        }))
    }

    fn model_memory(&mut self) -> Option<ModelMemory> {
        let Some(factor) = self.entry.get("memory_factor") else {
            return self.size("memory").map(ModelMemory::Each);
        };
        if self.entry.contains_key("memory") {
            self.fault("memory_factor", "is of no use beside memory");
        }
        let whole = || i32::try_from(factor.as_integer()?).ok().map(f64::from);
        let Some(factor) = factor.as_float().or_else(whole).filter(|it| FACTORS.contains(it))
        else {
            self.fault("memory_factor", "expected a number from 0.1 to 100");
            return None;
        };
        Some(ModelMemory::OfFiles { thousandths: (factor * 1000.0).round() as u64 })
    }

    fn path_map(&mut self) -> Option<PathMap> {
        let value = self.entry.get("path_map")?;
        let read = || {
            let table = value.as_table().filter(|table| table.len() == 2)?;
            let path = |key: &str| {
                let path = PathBuf::from(table.get(key)?.as_str()?);
                path.is_absolute().then_some(path)
            };
            Some(PathMap { from: path("from")?, to: path("to")? })
        };
        let map = read();
        if map.is_none() {
            self.fault(
                "path_map",
                "expected { from = \"/where/we/see/it\", to = \"/where/it/does\" }",
            );
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;

    const LEAST: &str = "target = \"a/*\"\ncontract = \"multi-model\"\nmemory = \"1GiB\"\n\
                         url = \"http://127.0.0.1:8080\"";

    fn parsed(text: &str) -> (Vec<EngineRule>, Vec<String>) {
        let text = format!("[[engine]]\n{text}");
        let (rules, faults) = read(&text.parse().unwrap(), "e", &|_| None);
        (rules, faults.into_iter().map(|fault| fault.key).collect())
    }

    fn without(key: &str) -> String {
        LEAST.lines().filter(|line| !line.starts_with(key)).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_container_has_an_address_or_a_command_and_memory_for_its_models() {
        let kind = |text: &str| {
            let (mut rules, faults) = parsed(text);
            assert!(faults.is_empty(), "{text}: {faults:?}");
            let EngineKind::Contained(rule) = rules.remove(0).kind else { panic!("{text}") };
            rule
        };
        let rule = kind(LEAST);
        assert_eq!((rule.memory.of(Bytes(7)), rule.process), (Bytes::gib(1), Bytes::ZERO));
        assert_eq!((&*rule.spec.health, &rule.spec.paths), ("/ping", &None));
        let keys = "memory_factor = 1.2\nprocess_memory = \"300MiB\"\nload_timeout = \"10s\"\n\
                    path_map = { from = \"/a\", to = \"/b\" }\nhealth = \"/well\"\n\
                    command = [\"serve\", \"{port}\", \"{device}\"]";
        let rule = kind(&format!("target = \"a\"\ncontract = \"multi-model\"\n{keys}"));
        assert_eq!((rule.memory.of(Bytes(1000)), rule.process), (Bytes(1200), Bytes::mib(300)));
        assert!(matches!(&rule.spec.origin, ContainerOrigin::Command(it) if it.command.len() == 3));
        assert!(rule.spec.paths.is_some());
    }

    #[test]
    fn each_fault_is_told_with_its_key() {
        let with = |line: &str| format!("{LEAST}\n{line}");
        let other = |key: &str, value: &str| format!("{}\n{key} = {value}", without(key));
        let command = |words: &str| format!("{}\ncommand = {words}", without("url"));
        for (text, key) in [
            (without("memory"), "memory"),
            (without("url"), "command"),
            (without("target"), "target"),
            (other("contract", "\"sagemaker\""), "contract"),
            (other("url", "\"https://127.0.0.1\""), "url"),
            (other("url", "\"127.0.0.1:80\""), "url"),
            (command("[\"x\", \"{port}\", \"{model}\"]"), "command"),
            (command("[\"x\"]"), "command"),
            (with("command = [\"x\", \"{port}\"]"), "command"),
            (with("start_timeout = \"3s\""), "start_timeout"),
            (with("memory_factor = 2"), "memory_factor"),
            (other("memory", "\"1KiB\""), "memory"),
            (format!("{}\nmemory_factor = 0", without("memory")), "memory_factor"),
            (with("path_map = { from = \"a\", to = \"/b\" }"), "path_map"),
            (with("path_map = { from = \"/a\" }"), "path_map"),
            (with("load_timeout = \"2h\""), "load_timeout"),
            (with("sleep = 1"), "sleep"),
            (with("measure = true"), "measure"),
        ] {
            assert_eq!(parsed(&text).1, [format!("e.engine[0].{key}")], "{text}");
        }
        let engine = "target = \"a\"\nmemory = \"1GiB\"\ncommand = [\"x\", \"{port}\"]\n";
        let text = format!("{engine}process_memory = \"1GiB\"");
        assert_eq!(parsed(&text).1, ["e.engine[0].process_memory"]);
    }
}
