//! What the operator decides about all handlers.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use roundhouse_confine::Isolation;
use roundhouse_types::Bytes;

use crate::Warming;

/// Settings and bounds of all handlers of a process.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our own binary, which a worker starts as.
    pub exe: PathBuf,
    /// A folder of our own: the runtime, environments, private temporary folders.
    pub dir: PathBuf,
    /// The interpreter, by path or by a name on the server's `PATH`.
    pub python: PathBuf,
    /// How strictly workers are confined.
    pub isolation: Isolation,
    /// Users that workers become, one per handler loaded, where the server is root.
    pub uids: RangeInclusive<u32>,
    /// What a handler is taken to need that was never loaded and declares nothing.
    pub assumed_memory: Bytes,
    /// The most any handler may use, all its processes together.
    pub max_memory: Bytes,
    /// Worker processes of a handler that does not say how many it wants.
    pub workers: usize,
    /// The most any handler gets.
    pub max_workers: usize,
    /// How long one call may run; between the pieces of a streamed answer, each piece.
    pub time_limit: Duration,
    /// How long a handler may take to import and load.
    pub start_limit: Duration,
    /// The largest answer in one piece.
    pub max_response: Bytes,
    /// What a handler may keep in its temporary folder.
    pub max_temp: Bytes,
    /// Processes and threads that a handler may have.
    pub processes: u32,
    /// Calls that may wait for one handler.
    pub max_queue: usize,
    /// Where packages come from.
    pub packages: Packages,
    /// Interpreters that are kept to be forked; absent: none.
    pub warm: Option<Warming>,
}

/// How `requirements.txt` is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packages {
    /// The package index; absent: what the installer's own configuration says.
    pub index: Option<String>,
    /// Further indexes that requirements may name.
    pub allowed_indexes: Vec<String>,
    /// Settings of the installer from the server's environment: certificates, proxies.
    pub variables: Vec<(String, String)>,
    /// Whether packages may be built from source, which runs their code with network access.
    pub source_builds: bool,
    /// Whether tenants share environments of equal requirements.
    pub shared: bool,
    /// What all environments may take on disk.
    pub max_size: Bytes,
    /// How long one installation may take.
    pub time_limit: Duration,
}

impl Default for Packages {
    fn default() -> Self {
        Self {
            index: None,
            allowed_indexes: Vec::new(),
            variables: Vec::new(),
            source_builds: false,
            shared: false,
            // Some dozens of scikit-learn environments, or a few with PyTorch.
            max_size: Bytes::gib(10),
            // PyTorch and its libraries are 3 GB to fetch and unpack.
            time_limit: Duration::from_secs(300),
        }
    }
}

/// The users that systemd hands out to services for as long as they run; nobody's own.
pub const DYNAMIC_USERS: RangeInclusive<u32> = 61_184..=65_519;
