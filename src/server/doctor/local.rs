//! What can be seen on this machine: memory, the cache's folder, ports.

use std::fs::{File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use roundhouse_tenancy::KeyFile;
use roundhouse_types::Bytes;
use tokio::net::TcpListener;

use super::{Finding, State};
use crate::app::budgets::{self, Budgets, NoBudget};
use crate::config::{Cache, Config, Device, Listen};
use crate::error::count;
use crate::limits::{self, automatic_cache_size, free_disk};

/// A server on this machine answers at once or not at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

const CHECK: &str = "memory";

/// Whether the budgets fit what the machine and the cgroup allow.
pub(super) fn memory(config: &Config) -> Finding {
    let seen = limits::Memory::read();
    let found = memory_of(&config.devices, config.memory.host, &seen);
    match budgets::faults(config, &seen).into_iter().next() {
        Some(fault) if found.state != State::Bad => Finding::bad(
            CHECK,
            fault.to_string(),
            "a server does not start so: lower what it names",
        ),
        _ => found,
    }
}

fn memory_of(devices: &[Device], host: Option<Bytes>, seen: &limits::Memory) -> Finding {
    let show = |size: Option<Bytes>| size.map_or_else(|| "unknown".to_owned(), |it| it.to_string());
    let cgroup = seen.cgroup.map_or_else(|| "no limit".to_owned(), |it| it.to_string());
    let machine =
        format!("host {} ({} available), cgroup {cgroup}", show(seen.total), show(seen.available));
    let most = seen.automatic_budget();
    let budgets = match Budgets::of(devices, host, most) {
        Ok(budgets) => budgets,
        Err(NoBudget::Unknown) => {
            return Finding::bad(
                CHECK,
                "the machine does not say how much memory it has",
                "set memory.budget (--memory)",
            );
        }
        Err(why @ NoBudget::Card(_)) => return Finding::ok(CHECK, format!("{why}; {machine}")),
        Err(NoBudget::NothingLeft { taken, most }) => {
            return Finding::bad(
                CHECK,
                format!("{taken} of {most} are given away and leave nothing for cpu; {machine}"),
                "lower the budgets of other devices or memory.host, or give cpu a budget",
            );
        }
    };
    let told = told(devices, host, &budgets);
    if budgets.beyond > Bytes::ZERO {
        return Finding::odd(
            CHECK,
            format!("{told}: {} more than can safely be had; {machine}", budgets.beyond),
            "lower memory.budget (--memory), the devices' or memory.host, or raise the limit: the system ends the process when it runs out",
        );
    }
    Finding::ok(CHECK, format!("{told}; {machine}"))
}

fn told(devices: &[Device], host: Option<Bytes>, budgets: &Budgets) -> String {
    let pairs = devices.iter().zip(&budgets.devices);
    let mut told: Vec<String> = pairs
        .map(|(device, (id, budget))| match device.budget {
            Some(_) => format!("budget {budget} on {id}"),
            None => format!("automatic budget about {budget} on {id}"),
        })
        .collect();
    if budgets.host > Bytes::ZERO {
        let how = if host.is_some() { "" } else { "automatically about " };
        told.push(format!("{how}{} for copies in the host's memory", budgets.host));
    }
    told.join(", ")
}

/// Whether the files that say who is let in are good.
pub(super) fn door(config: &Config) -> Vec<Finding> {
    let next =
        "a server does not start so; `roundhouse keys create --keys FILE` makes a file of keys";
    let faults = crate::app::door::faults(config);
    let bad: Vec<Finding> =
        faults.into_iter().map(|fault| Finding::bad(fault.key, fault.message, next)).collect();
    let Some(path) = config.auth.keys.as_ref().filter(|_| bad.is_empty()) else { return bad };
    const CHECK: &str = "keys";
    let shown = path.display();
    vec![match KeyFile::list(path).map(|keys| keys.len()) {
        Ok(0) => Finding::odd(
            CHECK,
            format!("{shown} holds none: nobody is let in by it"),
            "roundhouse keys create --tenant NAME --keys FILE",
        ),
        Ok(number) => Finding::ok(CHECK, format!("{} in {shown}", count(number, "key"))),
        Err(error) => Finding::bad(CHECK, error.to_string(), next),
    }]
}

/// Whether the cache's folder can be written, is free, and has room.
pub(super) fn cache(settings: &Cache) -> Vec<Finding> {
    const CHECK: &str = "cache";
    let dir = &settings.dir;
    let shown = dir.display();
    let mut findings = Vec::new();
    let existing = dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    match probe(existing) {
        Ok(()) if existing == dir => {
            findings.push(Finding::ok(CHECK, format!("{shown} can be written")))
        }
        Ok(()) => findings.push(Finding::ok(CHECK, format!("{shown} can be created"))),
        Err(error) => findings.push(Finding::bad(
            CHECK,
            format!("cannot write to {}: {error}", existing.display()),
            "give the server's user the folder, or name another one with --cache-dir",
        )),
    }
    if is_locked(dir) {
        findings.push(Finding::odd(
            CHECK,
            format!("{shown} is in use by another process"),
            "fine if that is the server you mean; a second one needs a --cache-dir of its own",
        ));
    }
    findings.push(match free_disk(dir) {
        Err(error) => Finding::odd(
            CHECK,
            format!("free space of {shown} is unknown: {error}"),
            "set cache.size (--cache-size)",
        ),
        Ok(free) => match settings.size {
            Some(size) if size > free => Finding::odd(
                CHECK,
                format!("cache.size {size} is more than the {free} that is free"),
                "fine if the cache holds the difference already; else lower --cache-size",
            ),
            Some(size) => Finding::ok(CHECK, format!("{free} free, size {size}")),
            None => {
                let size = automatic_cache_size(free, Bytes::ZERO);
                Finding::ok(CHECK, format!("{free} free, automatic size {size} or more"))
            }
        },
    });
    findings
}

/// Writes and removes a file of our own.
fn probe(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".roundhouse-doctor-{}", std::process::id()));
    File::create_new(&path)?;
    std::fs::remove_file(&path)
}

fn is_locked(dir: &Path) -> bool {
    let Ok(lock) = File::open(dir.join("lock")) else {
        return false;
    };
    matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
}

/// Whether the ports are free, or a server of ours has them.
pub(super) async fn ports(listen: &Listen) -> Vec<Finding> {
    let named = [
        ("listen.data", Some(listen.data), "/ping"),
        ("listen.admin", Some(listen.admin), "/livez"),
        ("listen.health", listen.health, "/livez"),
    ];
    let mut findings = Vec::new();
    for (key, address, path) in named {
        if let Some(address) = address {
            findings.push(port(key, address, path).await);
        }
    }
    findings
}

async fn port(key: &str, address: SocketAddr, path: &str) -> Finding {
    match TcpListener::bind(address).await {
        Ok(_) => Finding::ok(key, format!("{address} is free: no server runs there")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            match answers(address, path).await {
                Some(status) if status.is_success() => {
                    Finding::ok(key, format!("a server answers at {address}"))
                }
                Some(status) => Finding::odd(
                    key,
                    format!("what listens at {address} answers {status} at {path}"),
                    "a server that is stopping or stuck says so in its log; another program needs another port",
                ),
                None => Finding::bad(
                    key,
                    format!("{address} is taken by something that does not answer"),
                    "stop it, or choose another address",
                ),
            }
        }
        Err(error) => Finding::bad(
            key,
            format!("cannot listen on {address}: {error}"),
            "choose an address of this machine and a port that its user may take",
        ),
    }
}

async fn answers(address: SocketAddr, path: &str) -> Option<reqwest::StatusCode> {
    Some(ask(address, path).await?.status())
}

/// What a server on this machine answers, where one does.
pub(super) async fn ask(address: SocketAddr, path: &str) -> Option<reqwest::Response> {
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).build().ok()?;
    let mut reachable = address;
    if address.ip().is_unspecified() {
        reachable.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    client.get(format!("http://{reachable}{path}")).send().await.ok()
}

#[cfg(test)]
mod tests {
    use roundhouse_types::DeviceId;

    use super::*;

    fn settings(dir: &Path) -> Cache {
        Cache { dir: dir.into(), size: None, max_unpacked: None }
    }

    #[test]
    fn a_budget_beyond_what_can_be_had_is_odd() {
        let seen = limits::Memory {
            total: Some(Bytes::gib(8)),
            available: Some(Bytes::gib(4)),
            cgroup: None,
            resident: Some(Bytes::ZERO),
        };
        let device = |id, budget: Option<u64>| Device {
            id,
            budget: budget.map(Bytes::gib),
            copy_bandwidth: None,
            is_automatic: false,
        };
        let cpu = |budget| [device(DeviceId::Cpu, budget)];
        let state = |devices: &[Device], host: Option<u64>, seen: &limits::Memory| {
            memory_of(devices, host.map(Bytes::gib), seen).state
        };
        assert_eq!(state(&cpu(Some(4)), None, &seen), State::Odd);
        assert_eq!(state(&cpu(Some(3)), None, &seen), State::Ok);
        assert_eq!(state(&cpu(None), None, &seen), State::Ok);
        assert_eq!(state(&cpu(None), None, &limits::Memory::default()), State::Bad);
        let two =
            [device(DeviceId::Simulated(0), Some(1)), device(DeviceId::Simulated(1), Some(1))];
        assert_eq!(state(&two, Some(1), &seen), State::Ok);
        assert_eq!(state(&two, Some(2), &seen), State::Odd);
        let [one, _] = two;
        assert_eq!(state(&[one, device(DeviceId::Cpu, None)], Some(3), &seen), State::Bad);
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_fine_and_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a/b");
        let findings = cache(&settings(&dir));
        assert!(findings.iter().all(|finding| finding.state == State::Ok), "{findings:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_cache_in_use_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let lock = File::create(folder.path().join("lock")).unwrap();
        assert!(!is_locked(folder.path()));
        lock.lock().unwrap();
        let findings = cache(&settings(folder.path()));
        assert!(findings.iter().any(|finding| finding.message.contains("in use")), "{findings:?}");
    }

    #[tokio::test]
    async fn a_port_is_free_or_taken() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        // It accepts nothing and closes: whoever asks gets no answer.
        let closing = tokio::spawn(async move { while taken.accept().await.is_ok() {} });
        assert_eq!(port("listen.data", address, "/ping").await.state, State::Bad);
        closing.abort();
        let free = port("listen.data", "127.0.0.1:0".parse().unwrap(), "/ping").await;
        assert_eq!(free.state, State::Ok);
    }
}
