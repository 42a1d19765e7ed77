//! Whether what containers and engines need is on this machine, and whether they answer.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use roundhouse_containers::multi_model::ContainerOrigin as ModelsOrigin;
use roundhouse_containers::{Backend, BackendConfig, BaseUrl, HealthConfig};
use roundhouse_types::{Bytes, Failure};
use serde_json::Value;

use super::{Finding, local};
use crate::app::budgets::Budgets;
use crate::config::{
    CommandBehind, Config, ContainerBehind, ContainerOrigin, EngineKind, EngineRule, Fault, Listen,
};
use crate::error::count;
use crate::{limits, trust};

/// Where programs are looked for, where no `PATH` is set.
const USUAL_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What settings name of this machine that is not there. Blocking.
pub(crate) fn missing(config: &Config, seen: &limits::Memory) -> Vec<Fault> {
    let most = Budgets::of(&config.devices, config.memory.host, seen.automatic_budget()).ok();
    let most = most.and_then(|it| it.devices.iter().map(|(_, budget)| *budget).max());
    let mut faults = Vec::new();
    for (endpoint, index) in config.endpoints.iter().zip(0..) {
        let containers = endpoint.containers.iter().flat_map(|behind| &behind.containers);
        for (container, number) in containers.zip(0..) {
            let at = format!("endpoint[{index}].container[{number}]");
            of_container(container, &at, &mut faults);
        }
        for (rule, number) in endpoint.engines.iter().zip(0..) {
            of_engine(rule, most, &format!("endpoint[{index}].engine[{number}]"), &mut faults);
        }
    }
    faults
}

fn of_container(container: &ContainerBehind, at: &str, faults: &mut Vec<Fault>) {
    if let Some(file) = &container.ca_file
        && let Err(error) = trust::ours_and(Some(file))
    {
        let failure = Failure::from_error(roundhouse_types::ErrorKind::InvalidRequest, &error);
        faults.push(Fault::new(format!("{at}.ca_file"), failure.message()));
    }
    let ContainerOrigin::Command(CommandBehind { program, env, dir, .. }) = &container.origin
    else {
        return;
    };
    if let Some(dir) = dir.as_ref().filter(|dir| !dir.is_dir()) {
        let why = format!("{} is no folder here", dir.display());
        faults.push(Fault::new(format!("{at}.dir"), why));
    }
    let path = env.get("PATH").map(|path| path.reveal());
    if let Err(why) = find(program, path, dir.as_deref()) {
        faults.push(Fault::new(format!("{at}.command"), why));
    }
}

fn of_engine(rule: &EngineRule, most: Option<Bytes>, at: &str, faults: &mut Vec<Fault>) {
    let inherited = rule.inherited.iter().find(|(name, _)| name == "PATH");
    let inherited = inherited.map(|(_, path)| path.as_str());
    let mut command = |words: &[String], own: Option<&String>| {
        let path = own.map(String::as_str).or(inherited);
        let program = words.first().map(String::as_str).unwrap_or_default();
        if let Err(why) = find(Path::new(program), path, None) {
            faults.push(Fault::new(format!("{at}.command"), why));
        }
    };
    let memory = match &rule.kind {
        EngineKind::Started(spec) => {
            command(&spec.command, spec.environment.get("PATH"));
            spec.memory
        }
        EngineKind::Contained(rule) => {
            if let ModelsOrigin::Command(started) = &rule.spec.origin {
                command(&started.command, started.environment.get("PATH"));
            }
            let from = rule.spec.paths.as_ref().map(|map| &map.from);
            if let Some(from) = from.filter(|from| !from.is_dir()) {
                let why = format!("{} is no folder here", from.display());
                faults.push(Fault::new(format!("{at}.path_map"), why));
            }
            rule.memory.of(Bytes::ZERO) + rule.process
        }
    };
    if let Some(most) = most.filter(|most| memory > *most) {
        let why =
            format!("{memory} is more than the largest budget that a device has here, {most}");
        faults.push(Fault::new(format!("{at}.memory"), why));
    }
}

/// The program that a command means: a path, or a name that is looked up.
fn find(program: &Path, path: Option<&str>, dir: Option<&Path>) -> Result<PathBuf, String> {
    let shown = program.display();
    let may_run = |file: &Path| {
        let found = file.metadata();
        found.is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    };
    if program.components().count() > 1 || program.is_absolute() {
        let file = dir.unwrap_or(Path::new("")).join(program);
        return match (file.exists(), may_run(&file)) {
            (_, true) => Ok(file),
            (true, false) => Err(format!("{shown} is no program that may be run")),
            (false, false) => Err(format!("{shown} does not exist here")),
        };
    }
    let path = path.unwrap_or(USUAL_PATH);
    let mut files = std::env::split_paths(path).map(|folder| folder.join(program));
    files.find(|file| may_run(file)).ok_or_else(|| format!("{shown} is not found in PATH ({path})"))
}

/// What is there of that, for those who operate a server. Blocking.
pub(super) fn look(config: &Config) -> Vec<Finding> {
    let has_any =
        config.endpoints.iter().any(|it| it.containers.is_some() || !it.engines.is_empty());
    if !has_any {
        return Vec::new();
    }
    let faults = missing(config, &limits::Memory::read());
    if faults.is_empty() {
        let what = "programs, folders and memory of containers and engines are here";
        return vec![Finding::ok("containers", what)];
    }
    let next = "install it, or set the key to what is there; without it its targets do not answer";
    faults.into_iter().map(|fault| Finding::bad(fault.key, fault.message, next)).collect()
}

/// Asks containers that run, as the settings say, whether they are well.
pub(super) async fn reach(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for endpoint in &config.endpoints {
        for container in endpoint.containers.iter().flat_map(|behind| &behind.containers) {
            let (ContainerOrigin::Url(url), Some(path)) = (&container.origin, &container.health)
            else {
                continue;
            };
            let name = format!("{}:{}", endpoint.name, container.hostname);
            let asked = (url, path.clone(), container.ca_file.as_deref());
            findings.push(answers(&name, asked).await);
        }
        for rule in &endpoint.engines {
            if let EngineKind::Contained(own) = &rule.kind
                && let ModelsOrigin::Url(url) = &own.spec.origin
                && let Ok(path) = own.spec.health.parse()
            {
                let name = format!("{}:{}", endpoint.name, rule.target);
                findings.push(answers(&name, (url, path, None)).await);
            }
        }
    }
    findings
}

async fn answers(
    name: &str,
    (url, path, ca_file): (&BaseUrl, http::uri::PathAndQuery, Option<&Path>),
) -> Finding {
    let check = format!("container {name}");
    let tls = match trust::ours_and(ca_file) {
        Ok(tls) => Some(Arc::new(tls)),
        // Told where the file is looked at.
        Err(_) => None,
    };
    let health = HealthConfig { path, ..HealthConfig::default() };
    let asked = BackendConfig { health: None, tls, ..BackendConfig::new(name, url.clone()) };
    match Backend::new(asked).check(&health).await {
        Ok(()) => Finding::ok(check, format!("answers {} at {url}", health.path)),
        Err(error) => Finding::odd(
            check,
            Failure::from(error).message(),
            format!(
                "start it, or see whether GET {url}{} is what it answers when well",
                health.path
            ),
        ),
    }
}

/// What the server that runs with these settings says of its containers; nothing where none runs.
pub(super) async fn running(listen: &Listen) -> Vec<Finding> {
    let Some(answer) = local::ask(listen.admin, "/admin/v1/residency").await else {
        return Vec::new();
    };
    let shown: Value = answer.json().await.unwrap_or_default();
    shown["containers"].as_array().into_iter().flatten().filter_map(judge).collect()
}

/// A finding where something is to be done.
fn judge(container: &Value) -> Option<Finding> {
    let text = |key: &str| container[key].as_str().unwrap_or_default();
    let state = text("state");
    if ["healthy", "running", "unchecked", "asleep", "starting"].contains(&state) {
        return None;
    }
    let mut seen = format!("is {} in the server that runs", state.replace('_', " "));
    if let Some(restarts) = container["restarts"].as_u64().filter(|restarts| *restarts > 0) {
        seen.push_str(&format!(", started again {}", count(restarts, "time")));
    }
    if !text("failure").is_empty() {
        seen.push_str(&format!(": {}", text("failure")));
    }
    let check = format!("container {}:{}", text("endpoint"), text("name"));
    Some(Finding::odd(check, seen, "its own log, and the server's, say why"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::ServeFlags;

    fn config(endpoint: &str) -> Config {
        let text = format!(
            "version = 1\n[memory]\nbudget = \"1GiB\"\n[[endpoint]]\nname = \"e\"\n{endpoint}"
        );
        let path = |name: &str| (name == "PATH").then(|| "/usr/bin:/bin".to_owned());
        Config::parse(Some(&text), &path, &ServeFlags::default()).unwrap()
    }

    fn keys(endpoint: &str) -> Vec<String> {
        let faults = missing(&config(endpoint), &limits::Memory::read());
        faults.into_iter().map(|fault| fault.to_string()).collect()
    }

    #[test]
    fn programs_and_folders_that_are_not_here_are_told_with_their_keys() {
        let one = "[[endpoint.container]]\nhostname = \"a\"\n";
        assert!(keys(&format!("{one}command = [\"sh\"]\ndir = \"/tmp\"")).is_empty());
        assert!(keys(&format!("{one}command = [\"/bin/sh\"]")).is_empty());
        for (text, told) in [
            (
                "command = [\"no-such-program\"]",
                "command: no-such-program is not found in PATH (/usr",
            ),
            ("command = [\"/no/such\"]", "command: /no/such does not exist here"),
            ("command = [\"/etc/passwd\"]", "command: /etc/passwd is no program that may be run"),
            ("command = [\"sh\"]\ndir = \"/no\"", "dir: /no is no folder here"),
            ("url = \"https://a\"\nca_file = \"/no/ca.pem\"", "ca_file: "),
        ] {
            let found = keys(&format!("{one}{text}"));
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with(&format!("endpoint[0].container[0].{told}")), "{found:?}");
        }
    }

    #[test]
    fn an_engine_needs_its_program_and_its_folder() {
        let one = "[[endpoint.mount]]\nuri = \"file:///tmp/\"\n[[endpoint.engine]]\ntarget = \"a\"\n\
                   memory = \"1MiB\"\n";
        let found = keys(&format!("{one}command = [\"no-such-program\", \"{{port}}\"]"));
        assert!(
            found[0].starts_with("endpoint[0].engine[0].command: no-such-program"),
            "{found:?}"
        );
        assert!(keys(&format!("{one}command = [\"sh\", \"{{port}}\"]")).is_empty());
        let map = "contract = \"multi-model\"\nurl = \"http://127.0.0.1:1\"\n\
                   path_map = { from = \"/no/such\", to = \"/b\" }";
        let found = keys(&format!("{one}{map}"));
        assert!(found[0].contains("path_map: /no/such is no folder here"), "{found:?}");
    }

    #[test]
    fn only_containers_with_which_something_is_to_be_done_are_told() {
        let container = |state: &str| json!({"endpoint": "e", "name": "c", "state": state, "restarts": 2, "failure": "no"});
        assert_eq!(judge(&container("healthy")), None);
        let found = judge(&container("left_alone")).unwrap();
        assert_eq!(found.check, "container e:c");
        assert_eq!(
            found.message,
            "is left alone in the server that runs, started again 2 times: no"
        );
    }
}
