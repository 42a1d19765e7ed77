//! A server over a folder that is its store, with settings that the test writes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::models::File;
use crate::server::Server;

/// A folder with a store, a cache and a file of settings, over which a server may be started again
/// and again. Its one endpoint is `default`.
pub struct Site {
    dir: TempDir,
}

impl Default for Site {
    fn default() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        Self { dir }
    }
}

impl Site {
    /// What lies there under a name.
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the settings: whole sections, keys of `[store]` and keys of the endpoint.
    pub fn configure(&self, sections: &str, store: &str, endpoint: &str) {
        let (cache, folder) = (self.at("cache"), self.at("store"));
        let text = format!(
            "version = 1\n{sections}\n[cache]\ndir = \"{}\"\n[store]\nsettle = \"100ms\"\n{store}\n\
             [[endpoint]]\nname = \"default\"\n{endpoint}\n[[endpoint.mount]]\nuri = \"file://{}/\"\n",
            cache.display(),
            folder.display()
        );
        std::fs::write(self.at("roundhouse.toml"), text).unwrap();
    }

    /// Starts a server with the settings that were written last.
    pub async fn start(&self) -> Server {
        let config = self.at("roundhouse.toml");
        Server::start(&["serve", "--config", config.to_str().unwrap()], &[]).await
    }

    /// Puts a model in the place of the one before, in one step.
    pub fn put(&self, target: &str, files: &[File]) {
        let new = self.at("new");
        std::fs::create_dir(&new).unwrap();
        for (path, body) in files {
            std::fs::write(new.join(path), body).unwrap();
        }
        self.delete(target);
        let place = self.at("store").join(target);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::rename(new, place).unwrap();
    }

    /// Deletes a model from the store, if it is there.
    pub fn delete(&self, target: &str) {
        self.remove(&format!("store/{target}"));
    }

    /// Deletes what lies under a name, if anything does.
    pub fn remove(&self, name: &str) {
        match std::fs::remove_dir_all(self.at(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }
}

/// Looks again and again until it is so.
///
/// # Panics
/// With `what`, when it is not within a minute.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
