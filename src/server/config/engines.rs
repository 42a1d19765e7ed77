//! `[[endpoint.engine]]`: engines that are started by command for targets of the endpoint, and
//! containers that hold many of them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use roundhouse_containers::driven::{AdapterRoutes, Adapters, EngineSpec, SleepLevel};
use roundhouse_tenancy::Pattern;
use roundhouse_types::{Bytes, TargetName};

use super::keys::{self, ENGINE_KEYS};
use super::{Config, Fault, defaults};
use super::{parse_duration, show_duration};

mod contained;

pub use contained::{ContainerRule, ModelMemory};

const MEMORY: RangeInclusive<Bytes> = Bytes::mib(1)..=Bytes::gib(1 << 20);
const STARTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const STOPS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);
/// What engines are given of the server's environment: where programs and libraries are found.
/// Nothing else of it, as the store's credentials are in it.
const INHERITED: [&str; 5] = ["PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH"];
const IDLE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 86_400);
const SLOTS: RangeInclusive<i64> = 1..=10_000;

/// Targets of an endpoint, and the engine that is started for each of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineRule {
    /// The targets.
    pub target: Pattern,
    /// The engine.
    pub kind: EngineKind,
    /// Variables of the server's own environment that it is given.
    pub inherited: Vec<(String, String)>,
    /// How long what serves them may be unused; absent: as long as any model.
    pub idle_ttl: Option<Duration>,
    /// Whether targets are handed over whose weights are pickles.
    pub pickles: bool,
}

/// How an engine serves the targets of its rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineKind {
    /// One is started for each.
    Started(Arc<EngineSpec>),
    /// One container holds them all.
    Contained(Arc<ContainerRule>),
}

/// The first rule that covers a target.
pub(crate) fn engine_of<'a>(
    rules: &'a [EngineRule],
    target: &TargetName,
) -> Option<&'a EngineRule> {
    rules.iter().find(|rule| rule.target.covers(target))
}

/// Reads what an `[[endpoint]]` says of them; `variable` is the server's own environment.
pub(super) fn read(
    entry: &toml::Table,
    at: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> (Vec<EngineRule>, Vec<Fault>) {
    let Some(value) = entry.get("engine") else { return (Vec::new(), Vec::new()) };
    let at = format!("{at}.engine");
    let entries = value.as_array().map(|all| all.iter().map(toml::Value::as_table));
    let Some(Some(entries)) = entries.map(Iterator::collect::<Option<Vec<_>>>) else {
        let expected = "is a list: write [[endpoint.engine]] and its keys below";
        return (Vec::new(), vec![Fault::new(at, expected)]);
    };
    let (mut rules, mut faults) = (Vec::<EngineRule>::new(), Vec::new());
    for (index, entry) in entries.into_iter().enumerate() {
        let at = format!("{at}[{index}]");
        let unknown = keys::unknown_in(entry, ENGINE_KEYS, &at);
        let mut reader = Reader { entry, at: &at, faults: unknown };
        let rule = reader.read();
        faults.append(&mut reader.faults);
        let Some(mut rule) = rule else { continue };
        let inherited = INHERITED.iter().map(|name| ((*name).to_owned(), variable(name)));
        rule.inherited = inherited.filter_map(|(name, value)| Some((name, value?))).collect();
        if rules.iter().any(|other| other.target == rule.target) {
            faults.push(Fault::new(format!("{at}.target"), "is another engine's as well"));
        }
        rules.push(rule);
    }
    (rules, faults)
}

/// What is wrong with engines beside the devices that there are.
pub(super) fn faults(config: &Config) -> Vec<Fault> {
    let budgets = config.devices.iter().map(|device| device.budget);
    // An automatic one is known where the server starts.
    let largest = budgets.collect::<Option<Vec<Bytes>>>().and_then(|all| all.into_iter().max());
    let has_own = config.devices.iter().any(|device| !device.id.is_host());
    let mut faults = Vec::new();
    for (endpoint, index) in config.endpoints.iter().zip(0..) {
        for (rule, engine) in endpoint.engines.iter().zip(0..) {
            let at = format!("endpoint[{index}].engine[{engine}]");
            let (memory, sleeps) = match &rule.kind {
                EngineKind::Started(spec) => (spec.memory, spec.sleep.is_some()),
                // Nothing is known of files here.
                EngineKind::Contained(rule) => (rule.memory.of(Bytes::ZERO) + rule.process, false),
            };
            if let Some(largest) = largest.filter(|largest| memory > *largest) {
                let why = format!("is more than the largest budget of a device, {largest}");
                faults.push(Fault::new(format!("{at}.memory"), why));
            }
            if sleeps && !has_own {
                let why = "is for engines on a device with a memory of its own, and there is none";
                faults.push(Fault::new(format!("{at}.sleep"), why));
            }
        }
    }
    faults
}

/// Endings of files that commands name: they say what is served, and not by whom.
const FILES: [&str; 7] = [".gguf", ".safetensors", ".bin", ".json", ".jinja", ".yaml", ".yml"];

/// Whether a part of a command is or holds vLLM's program, module or image, or a variable of its own. A
/// shell's has several words; options, files and the folders of absolute paths do not count. What is
/// taken for it and is another is told its prompts' salt for nothing; the other way round nobody would see.
fn is_vllm(part: &str) -> bool {
    let is_end = |it: char| it.is_whitespace() || "'\"`;&|()".contains(it);
    part.split(is_end).any(|word| {
        let word = word.to_ascii_lowercase();
        let name = match word.starts_with('/') {
            true => word.rsplit('/').next().unwrap_or_default(),
            false => word.as_str(),
        };
        let is_name = !word.starts_with('-') && !FILES.iter().any(|end| word.ends_with(end));
        is_name && name.contains("vllm")
    })
}

struct Reader<'a> {
    entry: &'a toml::Table,
    at: &'a str,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn read(&mut self) -> Option<EngineRule> {
        if self.is_contained() {
            return self.contained();
        }
        let target = self.target();
        let command = self.command();
        let memory = self.size("memory");
        let adapters = self.adapters();
        let sleep = self.sleep();
        let measure = self.switch("measure", true);
        let is_vllm = sleep.is_some()
            || adapters.is_some_and(|it| it.routes == AdapterRoutes::Vllm)
            || command.iter().flatten().any(|part| is_vllm(part));
        let spec = EngineSpec {
            command: command.clone().unwrap_or_default(),
            environment: self.environment(),
            memory: memory.unwrap_or_default(),
            measure,
            // What is not of the command's own processes is not measured, and listens all the same.
            own_processes: self.switch("own_processes", measure),
            name: self.text("name").unwrap_or_else(|| "{target}".to_owned()),
            health: self.path("health").unwrap_or_else(|| "/health".to_owned()),
            start_timeout: self.duration("start_timeout", STARTS, defaults::ENGINE_START_TIMEOUT),
            stop_timeout: self.duration("stop_timeout", STOPS, defaults::ENGINE_STOP_TIMEOUT),
            invocations: self.path("invocations"),
            sleep,
            adapters,
            cache_salt: self.switch("cache_salt", is_vllm),
        };
        if let Err(unknown) = spec.check() {
            self.fault("command", unknown.to_string());
        }
        let (target, _) = (target?, command.zip(memory)?);
        let kind = EngineKind::Started(Arc::new(spec));
        let idle_ttl = self.idle_ttl();
        let pickles = self.switch("pickles", false);
        Some(EngineRule { target, kind, inherited: Vec::new(), idle_ttl, pickles })
    }

    fn target(&mut self) -> Option<Pattern> {
        let what = "name a target, or some with a '*' as last segment: \"bases/llama\", \"vllm/*\"";
        let pattern: Pattern = self.parsed("target", what)?;
        if pattern.endpoint().is_some() {
            self.fault("target", "is one of this endpoint: leave the endpoint's name out");
        }
        Some(pattern)
    }

    fn command(&mut self) -> Option<Vec<String>> {
        let expected = "expected the program and its arguments, each in quotes: \
                        [\"llama-server\", \"--port\", \"{port}\", \"-m\", \"{model}\"]";
        let words = self.entry.get("command").map(|value| {
            let words = value.as_array()?.iter().map(|it| it.as_str().map(str::to_owned));
            words.collect::<Option<Vec<_>>>().filter(|words| !words.is_empty())
        });
        let Some(Some(words)) = words else {
            self.fault("command", expected);
            return None;
        };
        let is_named = |word: &String| !word.is_empty() && !word.contains('{');
        if !words.first().is_some_and(is_named) {
            self.fault("command", "the program comes first, and is no placeholder");
        }
        if words.iter().any(|word| word.contains('\0')) {
            self.fault("command", "has an argument with a zero in it");
        }
        if !words.iter().any(|word| word.contains("{port}")) {
            self.fault("command", "has no {port}, where it is to listen on 127.0.0.1");
        }
        Some(words)
    }

    fn idle_ttl(&mut self) -> Option<Duration> {
        let is_there = self.entry.contains_key("idle_ttl");
        is_there.then(|| self.duration("idle_ttl", IDLE, *IDLE.end()))
    }

    fn environment(&mut self) -> BTreeMap<String, String> {
        let Some(value) = self.entry.get("environment") else { return BTreeMap::new() };
        let pairs = value.as_table().and_then(|table| {
            let pair = |(name, value): (&String, &toml::Value)| {
                let is_name = !name.is_empty() && !name.contains(['=', '\0']);
                let value = value.as_str().filter(|it| is_name && !it.contains('\0'))?;
                Some((name.clone(), value.to_owned()))
            };
            table.iter().map(pair).collect::<Option<BTreeMap<_, _>>>()
        });
        pairs.unwrap_or_else(|| {
            self.fault("environment", "expected names with texts: { NAME = \"value\" }");
            BTreeMap::new()
        })
    }

    fn sleep(&mut self) -> Option<SleepLevel> {
        match self.entry.get("sleep")?.as_integer() {
            Some(1) => Some(SleepLevel::Keep),
            Some(2) => Some(SleepLevel::Drop),
            _ => {
                self.fault("sleep", "expected 1 (its weights stay in memory) or 2 (they do not)");
                None
            }
        }
    }

    fn adapters(&mut self) -> Option<Adapters> {
        let slots = self.entry.get("slots").map(|value| {
            let slots = value.as_integer().filter(|slots| SLOTS.contains(slots));
            slots.and_then(|slots| NonZeroUsize::new(usize::try_from(slots).ok()?))
        });
        let Some(value) = self.entry.get("adapters") else {
            if slots.is_some() {
                self.fault("slots", "is of no use without adapters = \"vllm\" or \"sglang\"");
            }
            return None;
        };
        let routes = match value.as_str() {
            Some("vllm") => AdapterRoutes::Vllm,
            Some("sglang") => AdapterRoutes::Sglang,
            _ => {
                self.fault(
                    "adapters",
                    "expected \"vllm\" or \"sglang\": by whose routes they come",
                );
                return None;
            }
        };
        match slots {
            Some(Some(slots)) => Some(Adapters { routes, slots }),
            Some(None) => {
                self.fault("slots", "expected how many adapters it may hold, 1 to 10000");
                None
            }
            None => {
                self.fault("slots", "is missing: how many adapters the engine may hold at a time");
                None
            }
        }
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let text = self.entry.get(key)?.as_str().filter(|text| !text.is_empty());
        if text.is_none() {
            self.fault(key, "expected a text in quotes");
        }
        text.map(str::to_owned)
    }

    fn path(&mut self, key: &str) -> Option<String> {
        let path = self.text(key)?;
        let is_path = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_path {
            self.fault(key, "expected a path with a slash first, like \"/health\"");
        }
        is_path.then_some(path)
    }

    fn switch(&mut self, key: &str, default: bool) -> bool {
        let Some(value) = self.entry.get(key) else { return default };
        value.as_bool().unwrap_or_else(|| {
            self.fault(key, "expected true or false");
            default
        })
    }

    fn size(&mut self, key: &str) -> Option<Bytes> {
        let size: Bytes =
            self.parsed(key, "what the engine takes on its device, like \"24GiB\"")?;
        if !MEMORY.contains(&size) {
            let (least, most) = (MEMORY.start(), MEMORY.end());
            self.fault(key, format!("{size} is out of range: {least} to {most}"));
        }
        Some(size)
    }

    fn duration(
        &mut self,
        key: &str,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(text) = self.text(key) else { return default };
        match parse_duration(&text) {
            Ok(duration) if range.contains(&duration) => return duration,
            Ok(_) => {
                let (least, most) = (show_duration(*range.start()), show_duration(*range.end()));
                self.fault(key, format!("{text} is out of range: {least} to {most}"));
            }
            Err(why) => self.fault(key, why),
        }
        default
    }

    /// A text that must be there.
    fn parsed<T>(&mut self, key: &str, what: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        if !self.entry.contains_key(key) {
            self.fault(key, format!("is missing: {what}"));
            return None;
        }
        match self.text(key)?.parse() {
            Ok(value) => Some(value),
            Err(why) => {
                self.fault(key, why.to_string());
                None
            }
        }
    }

    fn fault(&mut self, key: &str, why: impl Into<String>) {
        self.faults.push(Fault::new(format!("{}.{key}", self.at), why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "target = \"a/*\"\nmemory = \"1GiB\"\ncommand = [\"x\", \"{port}\"]";

    fn parsed(text: &str) -> (Vec<EngineRule>, Vec<String>) {
        let text = format!("[[engine]]\n{text}");
        let variable =
            |name: &str| (name == "PATH" || name == "AWS_SECRET_ACCESS_KEY").then(|| "x".into());
        let (rules, faults) = read(&text.parse().unwrap(), "endpoint[0]", &variable);
        (rules, faults.into_iter().map(|fault| fault.key).collect())
    }

    #[test]
    fn targets_memory_and_a_command_are_enough() {
        let (rules, faults) = parsed(LEAST);
        assert!(faults.is_empty(), "{faults:?}");
        let rule = engine_of(&rules, &"a/b".parse().unwrap()).unwrap();
        assert_eq!(rule.inherited, [("PATH".to_owned(), "x".to_owned())], "nothing secret");
        let EngineKind::Started(spec) = &rule.kind else { panic!("{rule:?}") };
        assert_eq!((spec.name.as_str(), spec.health.as_str()), ("{target}", "/health"));
        assert!(spec.measure && spec.sleep.is_none() && spec.adapters.is_none());
        assert!(engine_of(&rules, &"b".parse().unwrap()).is_none());
        assert_eq!(rule.idle_ttl, None);
        let (rules, _) = parsed(&format!("{LEAST}\nidle_ttl = \"5m\""));
        assert_eq!(rules[0].idle_ttl, Some(Duration::from_secs(300)));
        assert!(!rules[0].pickles && parsed(&format!("{LEAST}\npickles = true")).0[0].pickles);
    }

    #[test]
    fn what_is_vllm_is_told_whose_prompts_it_reads_unless_the_rule_says_otherwise() {
        let salted = |rule: &str| {
            let (rules, faults) = parsed(rule);
            assert!(faults.is_empty(), "{faults:?}");
            let EngineKind::Started(spec) = &rules[0].kind else { panic!("{rules:?}") };
            spec.cache_salt
        };
        let run = |words: &str| LEAST.replace("\"x\"", words);
        assert!(!salted(LEAST));
        for words in [
            r#""llama-server""#,
            r#""llama-server", "-m", "/m/vllm-q4.gguf""#,
            r#""llama-server", "-m", "vllm/q4.gguf""#,
            r#""sh", "-c", "exec llama-server -m /m/vllm-q4.gguf""#,
            r#""/home/vllm/bin/llama-server", "--alias=vllm""#,
        ] {
            assert!(!salted(&run(words)), "{words}");
        }
        for words in [
            r#""/opt/bin/vllm", "serve""#,
            r#""python", "-m", "vllm.entrypoints.openai.api_server""#,
            r#""docker", "run", "--rm", "vllm/vllm-openai:latest""#,
            r#""docker", "run", "my/serving-vllm""#,
            r#""docker", "run", "registry.example:5000/vllm/serving:1""#,
            r#""docker", "run", "-e", "VLLM_USE_V1=1", "my/serving:1""#,
            r#""sh", "-c", "exec vllm serve /m""#,
            r#""sh", "-c", "cd /m;vllm serve .""#,
            r#""/srv/start-vllm.sh""#,
        ] {
            assert!(salted(&run(words)), "{words}");
        }
        assert!(salted(&format!("{LEAST}\nadapters = \"vllm\"\nslots = 1")));
        assert!(salted(&format!("{LEAST}\ncache_salt = true")));
        assert!(!salted(&format!("{}\ncache_salt = false", run("\"vllm\""))));
    }

    #[test]
    fn each_fault_is_told_with_its_key() {
        let with = |line: &str| format!("{LEAST}\n{line}");
        let without = |key: &str| {
            let lines = LEAST.lines().filter(|line| !line.starts_with(key));
            lines.collect::<Vec<_>>().join("\n")
        };
        let other = |key: &str, value: &str| format!("{}\n{key} = {value}", without(key));
        for (text, key) in [
            (without("target"), "target"),
            (without("memory"), "memory"),
            (without("command"), "command"),
            (other("target", "\"a/*/b\""), "target"),
            (other("target", "\"ep:a\""), "target"),
            (other("memory", "\"lots\""), "memory"),
            (other("memory", "\"1KiB\""), "memory"),
            (other("command", "\"x {port}\""), "command"),
            (other("command", "[\"x\"]"), "command"),
            (other("command", "[\"{port}\"]"), "command"),
            (other("command", "[\"x\", \"{port}\", \"{modell}\"]"), "command"),
            (with("name = 1"), "name"),
            (with("health = \"health\""), "health"),
            (with("start_timeout = \"2h\""), "start_timeout"),
            (with("stop_timeout = \"soon\""), "stop_timeout"),
            (with("idle_ttl = \"0s\""), "idle_ttl"),
            (with("idle_ttl = 7"), "idle_ttl"),
            (with("sleep = 3"), "sleep"),
            (with("slots = 2"), "slots"),
            (with("adapters = \"vllm\""), "slots"),
            (with("adapters = \"vllm\"\nslots = 0"), "slots"),
            (with("adapters = \"tgi\"\nslots = 1"), "adapters"),
            (with("environment = [\"A=b\"]"), "environment"),
            (with("pickles = 1"), "pickles"),
            (with("cache_salt = \"mine\""), "cache_salt"),
            (with("measure = 1"), "measure"),
            (with("own_processes = 1"), "own_processes"),
            (with("shell = true"), "shell"),
        ] {
            assert_eq!(parsed(&text).1, [format!("endpoint[0].engine[0].{key}")], "{text}");
        }
    }

    #[test]
    fn two_engines_cannot_have_the_same_targets() {
        let (_, faults) = parsed(&format!("{LEAST}\n[[engine]]\n{LEAST}"));
        assert_eq!(faults, ["endpoint[0].engine[1].target"]);
    }
}
