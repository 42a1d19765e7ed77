//! Who is let in at the ports: opened before they are bound, watched while they are open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use roundhouse_tenancy::Identity;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::config::{Config, Fault, Tls as TlsConfig};
use crate::error::Error;
use crate::fetch;
use crate::tls::Tls;

/// How often files of keys and certificates are looked at: a revoked key is refused that soon.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the ports ask before they answer.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) identity: Arc<Identity>,
    pub(crate) operators: Arc<Operators>,
    /// Absent is plain HTTP.
    pub(crate) data: Option<Arc<Tls>>,
    pub(crate) admin: Option<Arc<Tls>>,
}

/// Whether operators have keys, or ever had while this process ran: whoever revokes the last key
/// means to lock the door.
#[derive(Default)]
pub(crate) struct Operators {
    seen: AtomicBool,
}

impl Operators {
    /// Looks whether there are any now, and says whether there ever were.
    pub(crate) fn were_seen(&self, identity: &Identity) -> bool {
        if identity.has_operators() {
            self.seen.store(true, Ordering::Relaxed);
        }
        self.seen.load(Ordering::Relaxed)
    }
}

impl Door {
    /// Reads keys and certificates. Call inside a runtime.
    ///
    /// # Errors
    /// When one of the files is no good.
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        let identity = Identity::new(&config.auth, fetch::client())?;
        let TlsConfig { data, admin } = &config.tls;
        let port = |files: &Option<_>| files.as_ref().map(Tls::open).transpose();
        let door = Self {
            identity: Arc::new(identity),
            operators: Arc::default(),
            data: port(data)?.map(Arc::new),
            admin: port(admin)?.map(Arc::new),
        };
        door.operators.were_seen(&door.identity);
        door.warn(config);
        Ok(door)
    }

    fn warn(&self, config: &Config) {
        let outside = |address: std::net::SocketAddr| !address.ip().is_loopback();
        let (data, admin) = (config.listen.data, config.listen.admin);
        if outside(data) && self.identity.asks() && self.data.is_none() {
            warn!(address = %data, "keys and prompts come in without TLS: whoever is on the way can read them");
        }
        if let Some(why) = config.idle_grants() {
            warn!("{why}");
        }
        if !outside(admin) {
            return;
        }
        if !config.listen.insecure_no_auth && !self.identity.has_operators() {
            warn!(address = %admin, "nobody is let in at the admin port: mint a key with `roundhouse keys create --operator`");
        }
        if self.admin.is_none() {
            warn!(address = %admin, "operators' keys come in without TLS: whoever is on the way can read them");
        }
    }

    /// Looks at the files until the task is aborted. What is in force stays where they are no good.
    pub(crate) fn watch(&self) -> JoinHandle<()> {
        let door = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let looked = door.clone();
                // A file system may hang; then so does this task, and nothing else.
                if tokio::task::spawn_blocking(move || looked.look()).await.is_err() {
                    error!("the files of keys and certificates could not be looked at");
                }
            }
        })
    }

    fn look(&self) {
        match self.identity.refresh() {
            Ok(true) => info!("other keys are in force"),
            Ok(false) => {}
            Err(why) => error!(error = %Chain(&why), "the keys in force stay"),
        }
        self.operators.were_seen(&self.identity);
        for (port, tls) in [("data", &self.data), ("admin", &self.admin)] {
            match tls.as_ref().map_or(Ok(false), |tls| tls.refresh()) {
                Ok(true) => info!(port, "another certificate is in force"),
                Ok(false) => {}
                Err(why) => error!(port, error = %Chain(&why), "the certificate in force stays"),
            }
        }
    }
}

/// Faults of the files that the settings name, for `check-config`.
pub(crate) fn faults(config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    if let Some(path) = &config.auth.keys
        && let Err(why) = roundhouse_tenancy::KeyFile::open(path)
    {
        faults.push(Fault::new("auth.keys", Chain(&why).to_string()));
    }
    let ports =
        [("tls.certificate", &config.tls.data), ("tls.admin_certificate", &config.tls.admin)];
    for (key, files) in ports {
        if let Some(Err(why)) = files.as_ref().map(Tls::open) {
            faults.push(Fault::new(key, Chain(&why).to_string()));
        }
    }
    faults
}

/// An error with its causes.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
