//! Containers behind an endpoint: `containers` and `[[endpoint.container]]`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::uri::PathAndQuery;
use roundhouse_containers::BaseUrl;
use roundhouse_gateway::ContainerMode;

use super::keys::{self, CONTAINER_KEYS};
use super::{Fault, Secret};
use super::{parse_duration, show_duration};

/// Containers of an endpoint, as SageMaker has it.
const CONTAINERS_MAX: usize = 15;
/// How long a command may take to start and to end, at the most.
const START_MAX: Duration = Duration::from_secs(3600);
const GRACE_MAX: Duration = Duration::from_secs(600);
/// Bytes of a hostname, as SageMaker has it.
const NAME_MAX: usize = 63;
/// Variables of ours that a command gets beside its own: where programs, homes, languages and devices
/// are. None that holds a credential.
const INHERITED: [&str; 12] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
];
/// Keys of an endpoint that are about models of a store.
const OF_STORES: [&str; 11] = [
    "handlers",
    "target",
    "preload",
    "keep",
    "update",
    "on_delete",
    "bases",
    "component",
    "variant",
    "mount",
    "engine",
];

/// The containers of an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Behind {
    /// How they are asked.
    pub mode: ContainerMode,
    /// One at least, with hostnames that differ.
    pub containers: Vec<ContainerBehind>,
}

/// One container: a server behind us.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerBehind {
    /// What requests call it.
    pub hostname: String,
    /// Where it is.
    pub origin: ContainerOrigin,
    /// How long a connection to it may take.
    pub connect_timeout: Duration,
    /// How long its answer may take to begin.
    pub response_timeout: Duration,
    /// The longest silence within an answer.
    pub idle_timeout: Duration,
    /// Requests under way at once.
    pub max_requests: usize,
    /// What it is asked for to see whether it is well; absent where it is not asked.
    pub health: Option<PathAndQuery>,
    /// How often.
    pub health_every: Duration,
    /// Who vouches for an https address beside the authorities of this machine.
    pub ca_file: Option<PathBuf>,
}

/// Where a container is.
#[derive(Debug, Clone, PartialEq)]
pub enum ContainerOrigin {
    /// It runs, at this address.
    Url(BaseUrl),
    /// We start it.
    Command(CommandBehind),
}

/// What starts a container.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandBehind {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its whole environment but for its port.
    pub env: BTreeMap<String, Secret>,
    /// Where it runs; absent is where we do.
    pub dir: Option<PathBuf>,
    /// Its port; absent is one that is free.
    pub port: Option<u16>,
    /// How long it may take until it is healthy.
    pub start_timeout: Duration,
    /// How long it may take to end by itself.
    pub grace: Duration,
    /// Whether what listens at its port must be one of its processes.
    pub own_processes: bool,
}

/// Reads what an `[[endpoint]]` says of it; `inherited` tells our own variables.
pub(super) fn read(
    entry: &toml::Table,
    at: &str,
    inherited: &dyn Fn(&str) -> Option<String>,
) -> (Option<Behind>, Vec<Fault>) {
    let mut faults = Vec::new();
    let Some(value) = entry.get("container") else {
        if entry.contains_key("containers") {
            let message = "is of no use without containers: write [[endpoint.container]] below";
            faults.push(Fault::new(format!("{at}.containers"), message));
        }
        return (None, faults);
    };
    let mode = match entry.get("containers").map(toml::Value::as_str) {
        None | Some(Some("serial")) => ContainerMode::Serial,
        Some(Some("direct")) => ContainerMode::Direct,
        Some(_) => {
            let expected = "expected \"serial\" or \"direct\"";
            faults.push(Fault::new(format!("{at}.containers"), expected));
            ContainerMode::Serial
        }
    };
    for key in OF_STORES.iter().filter(|key| entry.contains_key(**key)) {
        let message = "is for models of a store, and the endpoint has containers";
        faults.push(Fault::new(format!("{at}.{key}"), message));
    }
    let at = format!("{at}.container");
    let tables: Option<Vec<&toml::Table>> =
        value.as_array().and_then(|list| list.iter().map(toml::Value::as_table).collect());
    let Some(tables) = tables.filter(|tables| !tables.is_empty()) else {
        let message = "is a list: write [[endpoint.container]] and its keys below";
        faults.push(Fault::new(at, message));
        return (None, faults);
    };
    if tables.len() > CONTAINERS_MAX {
        let message = format!("has {} entries, {CONTAINERS_MAX} are the most", tables.len());
        faults.push(Fault::new(&at, message));
    }
    let mut containers: Vec<ContainerBehind> = Vec::new();
    for (index, entry) in tables.into_iter().enumerate() {
        let at = format!("{at}[{index}]");
        faults.extend(keys::unknown_in(entry, CONTAINER_KEYS, &at));
        let mut reader = Reader { entry, at: &at, faults: Vec::new() };
        let read = reader.read(inherited);
        faults.append(&mut reader.faults);
        let Some(container) = read else { continue };
        if containers.iter().any(|it| it.hostname == container.hostname) {
            let message = "is the hostname of another container of the endpoint";
            faults.push(Fault::new(format!("{at}.hostname"), message));
        }
        containers.push(container);
    }
    (Some(Behind { mode, containers }), faults)
}

/// Reads the keys of one `[[endpoint.container]]`.
struct Reader<'a> {
    entry: &'a toml::Table,
    at: &'a str,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn read(&mut self, inherited: &dyn Fn(&str) -> Option<String>) -> Option<ContainerBehind> {
        let hostname = self.hostname();
        let origin = self.origin(inherited);
        let health = match self.entry.get("health") {
            Some(toml::Value::Boolean(false)) => None,
            _ => Some(self.path("health", "/ping")),
        };
        if health.is_none() && matches!(origin, Some(ContainerOrigin::Command(_))) {
            self.fault("health", "a command is ready when it is healthy: name the path to ask for");
        }
        let ca_file = self.ca_file(origin.as_ref());
        let most = Duration::from_secs(3600);
        let container = ContainerBehind {
            connect_timeout: self.duration("connect_timeout", Duration::from_secs(2), most),
            response_timeout: self.duration("response_timeout", Duration::from_secs(60), most),
            idle_timeout: self.duration("idle_timeout", Duration::from_secs(60), most),
            max_requests: self.count("max_requests", 256, 1..=100_000),
            health_every: self.duration("health_every", Duration::from_secs(5), most),
            health,
            ca_file,
            hostname: hostname?,
            origin: origin?,
        };
        Some(container)
    }

    fn hostname(&mut self) -> Option<String> {
        let name = match self.entry.get("hostname") {
            None => {
                self.fault("hostname", "is missing");
                return None;
            }
            Some(name) => name.as_str().unwrap_or_default(),
        };
        let inner = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let ends = !name.starts_with('-') && !name.ends_with('-');
        if name.is_empty() || name.len() > NAME_MAX || !inner || !ends {
            let expected = format!("expected 1 to {NAME_MAX} letters, digits and inner hyphens");
            self.fault("hostname", expected);
            return None;
        }
        Some(name.to_owned())
    }

    fn origin(&mut self, inherited: &dyn Fn(&str) -> Option<String>) -> Option<ContainerOrigin> {
        match (self.entry.contains_key("url"), self.entry.contains_key("command")) {
            (true, true) => {
                self.fault("command", "stands beside url: write one of them");
                None
            }
            (false, false) => {
                self.fault("url", "is missing: where the container answers, or command, its start");
                None
            }
            (true, false) => {
                let ours =
                    ["args", "env", "dir", "port", "start_timeout", "grace", "own_processes"];
                for key in ours.into_iter().filter(|key| self.entry.contains_key(*key)) {
                    self.fault(key, "is for containers that are started by command");
                }
                let text = self.text("url")?;
                let url = text.parse().map_err(|error: roundhouse_containers::InvalidUrl| {
                    self.fault("url", error.reason());
                });
                url.ok().map(ContainerOrigin::Url)
            }
            (false, true) => {
                let (program, args) = self.command()?;
                let start = Duration::from_secs(240);
                let grace = Duration::from_secs(10);
                let command = CommandBehind {
                    program,
                    args,
                    env: self.env(inherited),
                    dir: self.text("dir").map(PathBuf::from),
                    port: self.port(),
                    start_timeout: self.duration("start_timeout", start, START_MAX),
                    grace: self.duration("grace", grace, GRACE_MAX),
                    own_processes: self.switch("own_processes", true),
                };
                Some(ContainerOrigin::Command(command))
            }
        }
    }

    /// The program and its arguments: one list, or the program alone and its arguments in `args`.
    fn command(&mut self) -> Option<(PathBuf, Vec<String>)> {
        let is_program = |text: &String| !text.is_empty() && !text.contains('\0');
        if let Some(program) = self.entry.get("command").and_then(toml::Value::as_str) {
            let program = Some(program.to_owned()).filter(is_program);
            if program.is_none() {
                self.fault("command", "expected a program's path or name");
            }
            let args = match self.entry.contains_key("args") {
                true => self.texts("args"),
                false => Some(Vec::new()),
            };
            return Some((program?.into(), args.unwrap_or_default()));
        }
        if self.entry.contains_key("args") {
            self.fault("args", "stands beside a command that is a list: write them in the list");
        }
        let mut words = self.texts("command")?.into_iter();
        let program = words.next().filter(is_program);
        if program.is_none() {
            self.fault("command", "the program comes first");
        }
        Some((program?.into(), words.collect()))
    }

    fn texts(&mut self, key: &str) -> Option<Vec<String>> {
        let texts = self.entry.get(key)?.as_array().and_then(|list| {
            list.iter().map(|it| it.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>()
        });
        let texts = texts.filter(|list| list.iter().all(|text| !text.contains('\0')));
        if texts.is_none() {
            self.fault(key, "expected a list of texts in quotes");
        }
        texts
    }

    /// Who vouches for it; of use where it is asked by TLS.
    fn ca_file(&mut self, origin: Option<&ContainerOrigin>) -> Option<PathBuf> {
        let file = self.text("ca_file")?;
        if !matches!(origin, Some(ContainerOrigin::Url(url)) if url.is_https()) {
            self.fault("ca_file", "is for a url that begins with https://");
        }
        Some(file.into())
    }

    fn switch(&mut self, key: &str, default: bool) -> bool {
        let Some(value) = self.entry.get(key) else { return default };
        value.as_bool().unwrap_or_else(|| {
            self.fault(key, "expected true or false");
            default
        })
    }

    fn env(&mut self, inherited: &dyn Fn(&str) -> Option<String>) -> BTreeMap<String, Secret> {
        let ours = INHERITED.iter().filter_map(|name| Some((*name, inherited(name)?)));
        let mut env: BTreeMap<String, Secret> =
            ours.map(|(name, value)| (name.to_owned(), Secret::new(value))).collect();
        let Some(value) = self.entry.get("env") else { return env };
        let Some(own) = value.as_table() else {
            self.fault("env", "is a table: write env = { NAME = \"value\" }");
            return env;
        };
        for (name, value) in own {
            let is_name = !name.is_empty() && !name.contains(['=', '\0']);
            match value.as_str().filter(|it| is_name && !it.contains('\0')) {
                Some(value) => drop(env.insert(name.clone(), Secret::new(value.to_owned()))),
                None => self.fault(&format!("env.{name}"), "expected a text in quotes"),
            }
        }
        env
    }

    fn port(&mut self) -> Option<u16> {
        let value = self.entry.get("port")?;
        let port = value.as_integer().and_then(|port| u16::try_from(port).ok());
        let port = port.filter(|port| *port > 0);
        if port.is_none() {
            self.fault("port", "expected a port, 1 to 65535; absent is one that is free");
        }
        port
    }

    fn path(&mut self, key: &str, default: &'static str) -> PathAndQuery {
        let default = PathAndQuery::from_static(default);
        let Some(value) = self.entry.get(key) else { return default };
        let path = value.as_str().filter(|it| it.starts_with('/')).and_then(|it| it.parse().ok());
        path.unwrap_or_else(|| {
            self.fault(key, "expected a path that begins with /, or false");
            default
        })
    }

    fn duration(&mut self, key: &str, default: Duration, most: Duration) -> Duration {
        if !self.entry.contains_key(key) {
            return default;
        }
        let least = Duration::from_millis(1);
        match self.text(key).map(|text| parse_duration(&text)) {
            None => {}
            Some(Ok(duration)) if (least..=most).contains(&duration) => return duration,
            Some(Ok(duration)) => {
                let [duration, least, most] = [duration, least, most].map(show_duration);
                self.fault(key, format!("{duration} is out of range: {least} to {most}"));
            }
            Some(Err(message)) => self.fault(key, message),
        }
        default
    }

    fn count(
        &mut self,
        key: &str,
        default: usize,
        range: std::ops::RangeInclusive<usize>,
    ) -> usize {
        let Some(value) = self.entry.get(key) else { return default };
        let count = value.as_integer().and_then(|count| usize::try_from(count).ok());
        count.filter(|count| range.contains(count)).unwrap_or_else(|| {
            let (least, most) = (range.start(), range.end());
            self.fault(key, format!("expected a whole number, {least} to {most}"));
            default
        })
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let text = self.entry.get(key)?.as_str().map(str::to_owned);
        if text.is_none() {
            self.fault(key, "expected a string in quotes");
        }
        text.filter(|text| !text.contains('\0'))
    }

    fn fault(&mut self, key: &str, message: impl Into<String>) {
        self.faults.push(Fault::new(format!("{}.{key}", self.at), message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Option<Behind>, Vec<String>) {
        let inherited = |name: &str| (name == "PATH").then(|| "/bin".to_owned());
        let (behind, faults) = read(&text.parse().unwrap(), "endpoint[0]", &inherited);
        (behind, faults.into_iter().map(|fault| fault.key).collect())
    }

    #[test]
    fn containers_have_an_address_or_a_command_and_what_is_not_said_is_sagemakers() {
        let text = "containers = \"direct\"\n\
                    [[container]]\nhostname = \"a\"\nurl = \"https://a.example/x/\"\nhealth = false\n\
                    [[container]]\nhostname = \"b-2\"\ncommand = \"serve\"\nargs = [\"{port}\"]\n\
                    env = { TOKEN = \"secret\" }\nresponse_timeout = \"90s\"";
        let (behind, faults) = parsed(text);
        assert!(faults.is_empty(), "{faults:?}");
        let behind = behind.unwrap();
        assert_eq!(behind.mode, ContainerMode::Direct);
        let [one, other] = behind.containers.as_slice() else { panic!("{behind:?}") };
        assert_eq!(one.origin, ContainerOrigin::Url("https://a.example/x".parse().unwrap()));
        assert_eq!((&one.health, one.response_timeout), (&None, Duration::from_secs(60)));
        assert_eq!(other.health.as_ref().unwrap(), "/ping");
        assert_eq!(other.response_timeout, Duration::from_secs(90));
        let ContainerOrigin::Command(command) = &other.origin else { panic!("{other:?}") };
        assert_eq!(command.env.keys().collect::<Vec<_>>(), ["PATH", "TOKEN"]);
        assert!(!format!("{behind:?}").contains("secret"));
        assert!(command.own_processes && one.ca_file.is_none());
        let one = "[[container]]\nhostname = \"a\"\nurl = \"http://a\"";
        assert_eq!(parsed(one).0.unwrap().mode, ContainerMode::Serial);
        assert_eq!(parsed("name = \"x\""), (None, Vec::new()));
    }

    #[test]
    fn a_command_is_one_list_or_a_program_with_args() {
        let command = |text: &str| {
            let (behind, faults) = parsed(&format!("[[container]]\nhostname = \"a\"\n{text}"));
            assert!(faults.is_empty(), "{text}: {faults:?}");
            let mut containers = behind.unwrap().containers;
            let ContainerOrigin::Command(command) = containers.remove(0).origin else {
                panic!("{text}");
            };
            (command.program, command.args)
        };
        let want = (PathBuf::from("serve"), vec!["--port".to_owned(), "{port}".to_owned()]);
        assert_eq!(command("command = [\"serve\", \"--port\", \"{port}\"]"), want);
        assert_eq!(command("command = \"serve\"\nargs = [\"--port\", \"{port}\"]"), want);
        assert_eq!(command("command = [\"serve\"]"), command("command = \"serve\""));
    }

    #[test]
    fn each_fault_is_told_with_its_key() {
        let one = "[[container]]\nhostname = \"a\"\n";
        let url = "url = \"http://a\"\n";
        let run = "command = \"serve\"\n";
        let cases = [
            ("containers = \"direct\"".to_owned(), "containers"),
            (format!("containers = 1\n{one}{url}"), "containers"),
            ("container = []".to_owned(), "container"),
            (format!("target = \"a\"\n{one}{url}"), "target"),
            (format!("{one}{url}[[mount]]\nuri = \"file:///a/\""), "mount"),
            (format!("{one}{url}{one}{url}"), "container[1].hostname"),
            (format!("[[container]]\n{url}"), "container[0].hostname"),
            (format!("[[container]]\nhostname = \"a_b\"\n{url}"), "container[0].hostname"),
            (one.to_owned(), "container[0].url"),
            (format!("{one}url = \"a\""), "container[0].url"),
            (format!("{one}{url}{run}"), "container[0].command"),
            (format!("{one}command = \"\""), "container[0].command"),
            (format!("{one}command = []"), "container[0].command"),
            (format!("{one}command = [1]"), "container[0].command"),
            (format!("{one}command = [\"a\"]\nargs = [\"b\"]"), "container[0].args"),
            (format!("{one}{url}ca_file = \"ca.pem\""), "container[0].ca_file"),
            (format!("{one}{run}own_processes = 1"), "container[0].own_processes"),
            (format!("{one}{url}args = []"), "container[0].args"),
            (format!("{one}{run}args = [1]"), "container[0].args"),
            (format!("{one}{run}env = {{ A = 1 }}"), "container[0].env.A"),
            (format!("{one}{run}port = 0"), "container[0].port"),
            (format!("{one}{run}health = false"), "container[0].health"),
            (format!("{one}{url}health = \"ping\""), "container[0].health"),
            (format!("{one}{url}response_timeout = \"0s\""), "container[0].response_timeout"),
            (format!("{one}{url}idle_timeout = 7"), "container[0].idle_timeout"),
            (format!("{one}{url}max_requests = 0"), "container[0].max_requests"),
            (format!("{one}{url}max_request = 1"), "container[0].max_request"),
        ];
        for (text, key) in cases {
            let (_, faults) = parsed(&text);
            assert_eq!(faults, [format!("endpoint[0].{key}")], "{text}");
        }
        let many: String =
            (0..16).map(|at| format!("[[container]]\nhostname = \"c{at}\"\n{url}")).collect();
        assert_eq!(parsed(&many).1, ["endpoint[0].container"]);
    }
}
