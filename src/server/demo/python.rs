//! Whether this machine has what the demo's Python handlers need.

use std::path::PathBuf;
use std::process::Command;

use roundhouse_confine::Interpreter;
use roundhouse_types::{ErrorKind, Failure};

use crate::config::Handlers;

/// The handlers' environments are made by the one, their packages installed by the other.
const NEEDED: &str = "import venv, pip";

/// The version of the interpreter that will run them; else why they cannot run. Takes a fraction of a second, twenty at most where Python hangs.
pub(super) async fn find(handlers: &Handlers) -> Result<String, String> {
    if !handlers.enabled {
        return Err("handlers.enabled is false".into());
    }
    let python = handlers.python.clone();
    let asked = tokio::task::spawn_blocking(move || ask(python)).await;
    asked.unwrap_or_else(|error| Err(error.to_string()))
}

fn ask(python: PathBuf) -> Result<String, String> {
    let Interpreter { executable, version, .. } = Interpreter::ask(&python)
        .map_err(|error| Failure::from_error(ErrorKind::Internal, &error).to_string())?;
    let tried = Command::new(&executable).args(["-I", "-B", "-c", NEEDED]).output();
    match tried {
        Ok(tried) if tried.status.success() => Ok(version),
        _ => Err(format!("{} lacks pip or venv", executable.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_python_is_a_reason_and_no_failure() {
        let missing = ask("/nowhere/python3".into()).unwrap_err();
        assert!(missing.contains("/nowhere/python3"), "{missing}");
        assert!(ask("false".into()).is_err());
    }
}
