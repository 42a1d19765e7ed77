//! Whether Python handlers can run here.

use std::path::Path;

use roundhouse_confine::Interpreter;
use roundhouse_workers::{Isolation, Warming};

use super::Finding;
use crate::config::Config;

/// Looks only where an endpoint serves handlers. Blocking.
pub(super) fn look(config: &Config) -> Vec<Finding> {
    let by_endpoint = |endpoint: &crate::config::Endpoint| endpoint.handlers == Some(true);
    if !config.handlers.enabled && !config.endpoints.iter().any(by_endpoint) {
        return Vec::new();
    }
    vec![
        interpreter(&config.handlers.python),
        isolation(config.handlers.isolation),
        warm(config.handlers.warm.as_ref()),
    ]
}

fn interpreter(python: &Path) -> Finding {
    const CHECK: &str = "handlers.python";
    match Interpreter::ask(python) {
        Ok(found) => Finding::ok(
            CHECK,
            format!("Python {} at {}", found.version, found.executable.display()),
        ),
        Err(error) => Finding::bad(
            CHECK,
            format!("{} does not run: {error}", python.display()),
            "install Python 3.8 or later, or name one with --handlers-python",
        ),
    }
}

fn warm(wanted: Option<&Warming>) -> Finding {
    const CHECK: &str = "handlers.warm";
    let Some(wanted) = wanted else {
        return Finding::ok(CHECK, "off: every handler starts an interpreter".to_owned());
    };
    let found = std::env::current_exe().map(|exe| roundhouse_confine::probe(&exe));
    match found {
        Ok(found) if found.own_uid && found.mount_namespace => Finding::ok(
            CHECK,
            format!("idle interpreters take up to {} of what is free on cpu", wanted.memory),
        ),
        _ => Finding::ok(
            CHECK,
            "none can be kept here, as that needs root and mount namespaces: every handler starts \
             an interpreter"
                .to_owned(),
        ),
    }
}

fn isolation(wanted: Isolation) -> Finding {
    const CHECK: &str = "handlers.isolation";
    let exe = match std::env::current_exe() {
        Ok(exe) => exe,
        Err(error) => {
            return Finding::odd(CHECK, format!("our own binary is not found: {error}"), "");
        }
    };
    let found = roundhouse_confine::probe(&exe);
    let missing = found.missing().join(", ");
    match wanted {
        _ if missing.is_empty() => Finding::ok(CHECK, found.summary()),
        Isolation::Required => Finding::bad(
            CHECK,
            format!("handlers cannot be isolated here: {missing}"),
            "allow what is missing, or --handlers-isolation best-effort where all are trusted",
        ),
        Isolation::BestEffort => Finding::odd(
            CHECK,
            format!("handlers are not fully isolated here: {missing}"),
            "serve only handlers that you trust with each other's files",
        ),
    }
}
