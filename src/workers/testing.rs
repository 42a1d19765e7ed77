//! Settings for this crate's tests.

use std::time::Duration;

use roundhouse_confine::Isolation;
use roundhouse_types::Bytes;

use crate::{Config, DYNAMIC_USERS, Packages};

pub(crate) fn config() -> Config {
    Config {
        exe: "/proc/self/exe".into(),
        dir: "/nowhere".into(),
        python: "python3".into(),
        isolation: Isolation::Required,
        uids: DYNAMIC_USERS,
        assumed_memory: Bytes::mib(256),
        max_memory: Bytes::gib(1),
        workers: 1,
        max_workers: 4,
        time_limit: Duration::from_secs(60),
        start_limit: Duration::from_secs(60),
        max_response: Bytes::mib(32),
        max_temp: Bytes::mib(64),
        processes: 64,
        max_queue: 64,
        packages: Packages::default(),
        warm: None,
    }
}
