//! Files, TCP ports, and signals to others: Landlock.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort,
    PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope,
};

use crate::{Confinement, Network};

/// Devices without state of their own. Not `/dev/shm`: all of one user's processes share it.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// What libraries read about the machine and themselves, and some fail without. A file that
/// exists but cannot be opened is worse for them than none, as they look before they open.
const ABOUT: &[&str] = &[
    // Its own maps, limits and threads; by number, so not those of any other process, nor of
    // those it starts.
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/uptime",
    "/proc/version",
    "/proc/sys/kernel/cap_last_cap",
    "/proc/sys/kernel/ngroups_max",
    "/proc/sys/kernel/osrelease",
    "/proc/sys/kernel/pid_max",
    "/proc/sys/kernel/random/boot_id",
    "/proc/sys/vm/max_map_count",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/kernel/mm/hugepages",
    "/sys/kernel/mm/transparent_hugepage",
    // joblib counts processors by these.
    "/sys/fs/cgroup/cpu.max",
    "/sys/fs/cgroup/cpu/cpu.cfs_period_us",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
];

/// Settings of the machine without secrets.
const SETTINGS: &[&str] = &[
    // pip looks at it, as do clients of services that say what they run on.
    "/etc/debian_version",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/locale.alias",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/timezone",
    "/etc/fonts",
    // The names that Python's mimetypes looks for.
    "/etc/mime.types",
    "/etc/apache/mime.types",
    "/etc/apache2/mime.types",
    "/etc/httpd/mime.types",
    "/etc/httpd/conf/mime.types",
    // Clients of other services build a TLS context when they are imported.
    "/etc/crypto-policies",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/openssl.cnf",
];

/// How names become addresses.
const NAMES: &[&str] = &[
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
];

/// The newest version that this crate knows; older kernels enforce what they can of it.
const NEWEST: ABI = ABI::V9;

/// Denies all files but those named, for this process and all it starts, for good. Gives the
/// kernel's Landlock version.
pub(crate) fn restrict(confinement: &Confinement) -> Result<u32, String> {
    let rules = ruleset(confinement).map_err(|error| describe(&error))?;
    let status = rules.restrict_self().map_err(|error| describe(&error))?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => {
            Err("not enabled in the kernel".to_owned())
        }
        (RulesetStatus::NotEnforced, _) => Err("not in the kernel".to_owned()),
        (_, LandlockStatus::Available { effective_abi, .. }) => Ok(effective_abi as u32),
        (_, status) => Err(format!("unknown state {status:?}")),
    }
}

/// Denies all files, ports and signals to others, for this process, for good.
pub(crate) fn deny_all() -> Result<(), String> {
    let rules = none_allowed().and_then(RulesetCreated::restrict_self);
    match rules.map_err(|error| describe(&error))?.ruleset {
        RulesetStatus::NotEnforced => Err("not in the kernel, or not enabled".to_owned()),
        _ => Ok(()),
    }
}

/// All rights that the kernel knows, and nothing that has them.
fn none_allowed() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()
}

fn ruleset(confinement: &Confinement) -> Result<RulesetCreated, RulesetError> {
    let mut rules = none_allowed()?;
    let look = AccessFs::ReadFile | AccessFs::ReadDir;
    let run = AccessFs::from_read(NEWEST);
    // Execution too: an installer builds programs and runs them; data is code in Python anyway.
    let write = AccessFs::from_all(NEWEST)
        & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
    rules = allow(rules, DEVICES.iter(), AccessFs::ReadFile | AccessFs::WriteFile)?;
    rules = allow(rules, ABOUT.iter(), look)?;
    rules = allow(rules, SETTINGS.iter(), look)?;
    rules = allow::<PathBuf>(rules, confinement.read.iter(), run)?;
    rules = allow::<PathBuf>(rules, confinement.write.iter(), write)?;
    if let Network::Tcp { ports } = &confinement.network {
        rules = allow(rules, NAMES.iter(), look)?;
        for port in ports {
            rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
        }
    }
    Ok(rules)
}

/// Allows those of `paths` that exist and that this user can reach.
fn allow<'a, P: AsRef<Path> + 'a>(
    mut rules: RulesetCreated,
    paths: impl Iterator<Item = &'a P>,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    for path in paths {
        let Ok(file) = PathFd::new(path) else { continue };
        let is_folder = path.as_ref().is_dir();
        let access = if is_folder { access } else { access & AccessFs::from_file(NEWEST) };
        rules = rules.add_rule(PathBeneath::new(file, access))?;
    }
    Ok(rules)
}

/// The library's own words hide the kernel's answer in a chain of sources.
fn describe(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
