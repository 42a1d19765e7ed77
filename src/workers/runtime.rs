//! The worker's side of the protocol: Python files that travel in the binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use include_dir::{Dir, include_dir};
use sha2::{Digest, Sha256};

use crate::Error;

static FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/runtime");

/// Writes the files into a folder named by what is in them, and compiles them, so that a
/// worker starts without doing it again. Blocking.
///
/// # Errors
/// Where the folder cannot be written, or the interpreter does not run.
pub(crate) fn install(dir: &Path, python: &Path) -> Result<PathBuf, Error> {
    let mut digest = Sha256::new();
    for file in FILES.files() {
        digest.update(file.path().as_os_str().as_encoded_bytes());
        digest.update(file.contents());
    }
    let name: String = digest.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let folder = dir.join(name);
    fs::create_dir_all(&folder).map_err(|source| Error::file("create", &folder, source))?;
    for file in FILES.files() {
        let path = folder.join(file.path());
        if fs::read(&path).is_ok_and(|present| present == file.contents()) {
            continue;
        }
        fs::write(&path, file.contents()).map_err(|source| Error::file("write", &path, source))?;
    }
    let compiled =
        Command::new(python).args(["-I", "-m", "compileall", "-q"]).arg(&folder).output().map_err(
            |error| Error::Interpreter { python: python.into(), message: error.to_string() },
        )?;
    if !compiled.status.success() {
        let message = String::from_utf8_lossy(&compiled.stderr).trim().to_owned();
        return Err(Error::Interpreter { python: python.into(), message });
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workers_side_keeps_to_the_protocol_and_the_toolkits_conventions() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime/tests/test_runtime.py");
        let output = Command::new("python3").arg(script).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("\nOK"), "{said}");
    }

    #[test]
    fn the_runtime_is_written_once_and_compiled() {
        let dir = tempfile::tempdir().unwrap();
        let first = install(dir.path(), Path::new("python3")).unwrap();
        assert!(first.join("roundhouse_worker.py").exists());
        assert!(first.join("__pycache__").exists());
        assert_eq!(install(dir.path(), Path::new("python3")).unwrap(), first);
    }
}
