//! Environments of packages: one for each list of requirements, interpreter and tenant.
//!
//! An environment is a virtual environment over the interpreter's own packages. It is made in
//! its final place and counts when its marker is there; without one it is deleted at the next
//! start. It belongs to us and is read only to handlers.

mod install;
mod requirements;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use roundhouse_types::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::scratch;
use crate::{Config, Error, metrics};
pub(crate) use install::Installer;

/// The ending of the file beside an environment that says that it is whole, and its size in
/// bytes. It lies where an installer cannot write.
const MARKER: &str = "ready";
/// Files and folders of one environment; PyTorch and its friends have some tens of thousands.
pub(crate) const ENTRIES: usize = 1_000_000;
/// Installations at a time: they are bound by the network and the disk.
const AT_A_TIME: usize = 2;

/// Where a handler's packages are. While one lives, they stay on disk.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) root: PathBuf,
    pub(crate) python: PathBuf,
}

/// Makes, finds and deletes environments.
pub(crate) struct Environments {
    root: PathBuf,
    installer: Installer,
    turns: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// One turn for each environment that somebody waits for.
    flights: BTreeMap<String, Weak<Semaphore>>,
    used: BTreeMap<String, Weak<Environment>>,
    /// Those that were installed by this process: to install one again is no exception.
    made: BTreeSet<String>,
}

impl Environments {
    /// Deletes what an earlier process left half made. Blocking.
    pub(crate) fn open(config: &Config, installer: Installer) -> Result<Self, Error> {
        let root = config.dir.join("environments");
        fs::create_dir_all(&root).map_err(|source| Error::file("create", &root, source))?;
        let entries = fs::read_dir(&root).map_err(|source| Error::file("read", &root, source))?;
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() && !path.with_extension(MARKER).exists() {
                delete(&path);
            }
        }
        let turns = Semaphore::new(AT_A_TIME);
        Ok(Self { root, installer, turns, state: Mutex::default() })
    }

    /// The environment of a `requirements.txt`, installed if it is not there; and how much of the time
    /// until then no later call will take. One that was installed before, and deleted for want of room,
    /// may have to be installed time and again. An installation goes on when nobody waits for it any
    /// more: whoever comes again finds it, and nothing half made is left.
    ///
    /// # Errors
    /// `Requirements` for what may not be asked for and for what the installer says.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        file: &Path,
        tenant: &str,
        name: &str,
    ) -> Result<(Arc<Environment>, Duration), Error> {
        let asked = Instant::now();
        let path = file.to_owned();
        let read = move || requirements::read(&path);
        let text = requirements::checked(&crate::blocking(read).await?, self.installer.packages())?;
        let (this, key, name) = (Arc::clone(self), self.key(&text, tenant), name.to_owned());
        let brought = tokio::spawn(async move { this.bring(&key, &text, &name).await });
        let (environment, is_new) = brought.await.map_err(|_| Error::Gone)??;
        let once = if is_new { asked.elapsed() } else { Duration::ZERO };
        Ok((environment, once))
    }

    /// Finds an environment or installs it; says whether it is there for the first time.
    async fn bring(
        &self,
        key: &str,
        text: &str,
        name: &str,
    ) -> Result<(Arc<Environment>, bool), Error> {
        // The first who comes installs; the others wait and find it.
        let flight = self.flight(key);
        let _turn = flight.acquire().await.map_err(|_| Error::Gone)?;
        if let Some(present) = self.present(key) {
            return Ok((present, true));
        }
        let _slot = self.turns.acquire().await.map_err(|_| Error::Gone)?;
        let began = Instant::now();
        info!(model = name, environment = key, "installing requirements");
        let folder = self.root.join(key);
        let installed = self.installer.install(&folder, text, name).await;
        let sized = match installed {
            Ok(()) => self.finish(folder.clone()).await,
            Err(error) => Err(error),
        };
        match sized {
            Ok(size) => {
                let took = began.elapsed();
                metrics::installed(took);
                info!(model = name, environment = key, %size, ?took, "requirements installed");
            }
            Err(error) => {
                crate::blocking(move || {
                    delete(&folder);
                    Ok(())
                })
                .await?;
                return Err(error);
            }
        }
        let is_first = self.state().made.insert(key.to_owned());
        Ok((self.present(key).ok_or(Error::Gone)?, is_first))
    }

    /// What decides which packages an environment has, and who may see it.
    fn key(&self, text: &str, tenant: &str) -> String {
        let mut digest = Sha256::new();
        let whose = if self.installer.packages().shared { "" } else { tenant };
        for part in [whose, &self.installer.described(), text] {
            digest.update(part.len().to_le_bytes());
            digest.update(part);
        }
        digest.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn flight(&self, key: &str) -> Arc<Semaphore> {
        let mut state = self.state();
        state.flights.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = state.flights.get(key).and_then(Weak::upgrade) {
            return flight;
        }
        let flight = Arc::new(Semaphore::new(1));
        state.flights.insert(key.to_owned(), Arc::downgrade(&flight));
        flight
    }

    fn present(&self, key: &str) -> Option<Arc<Environment>> {
        let root = self.root.join(key);
        let marker = fs::File::options().append(true).open(root.with_extension(MARKER)).ok()?;
        // When it was used last decides who is deleted first.
        if let Err(error) = marker.set_modified(SystemTime::now()) {
            warn!(path = %root.display(), %error, "an environment's use was not written down");
        }
        let mut state = self.state();
        if let Some(environment) = state.used.get(key).and_then(Weak::upgrade) {
            return Some(environment);
        }
        let environment = Arc::new(Environment { python: root.join("bin/python"), root });
        state.used.retain(|_, used| used.strong_count() > 0);
        state.used.insert(key.to_owned(), Arc::downgrade(&environment));
        Some(environment)
    }

    /// Makes room, and writes the marker.
    async fn finish(&self, folder: PathBuf) -> Result<Bytes, Error> {
        let limit = self.installer.packages().max_size;
        let in_use: Vec<PathBuf> = {
            let state = self.state();
            let alive = state.used.iter().filter(|(_, used)| used.strong_count() > 0);
            alive.map(|(key, _)| self.root.join(key)).collect()
        };
        let root = self.root.clone();
        crate::blocking(move || {
            let size = scratch::size(&folder, ENTRIES);
            make_room(&root, &in_use, size, limit)?;
            let marker = folder.with_extension(MARKER);
            fs::write(&marker, size.0.to_string())
                .map_err(|source| Error::file("write", &marker, source))?;
            Ok(size)
        })
        .await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Deletes what nobody uses, longest unused first, until `size` more fits.
fn make_room(root: &Path, in_use: &[PathBuf], size: Bytes, limit: Bytes) -> Result<(), Error> {
    let mut others: Vec<(SystemTime, PathBuf, Bytes)> = Vec::new();
    let entries = fs::read_dir(root).map_err(|source| Error::file("read", root, source))?;
    for entry in entries.flatten() {
        let marker = entry.path().with_extension(MARKER);
        if !entry.path().is_dir() {
            continue;
        }
        let Ok(text) = fs::read_to_string(&marker) else { continue };
        let used = fs::metadata(&marker).and_then(|metadata| metadata.modified());
        let bytes = Bytes(text.trim().parse().unwrap_or(0));
        others.push((used.unwrap_or(SystemTime::UNIX_EPOCH), entry.path(), bytes));
    }
    others.sort();
    if size > limit {
        return Err(Error::EnvironmentTooLarge { need: size, limit });
    }
    let mut total: Bytes = others.iter().map(|(_, _, bytes)| *bytes).sum::<Bytes>() + size;
    for (_, path, bytes) in others {
        if total <= limit {
            break;
        }
        if !in_use.contains(&path) {
            info!(path = %path.display(), %bytes, "deleting an unused environment");
            delete(&path);
            total = total.saturating_sub(bytes);
        }
    }
    if total > limit {
        return Err(Error::EnvironmentTooLarge { need: size, limit });
    }
    Ok(())
}

fn delete(path: &Path) {
    // Without its marker it does not count, however far the deletion comes.
    let _ = fs::remove_file(path.with_extension(MARKER));
    if let Err(error) = scratch::remove(path) {
        warn!(path = %path.display(), %error, "an environment could not be deleted");
    }
}
