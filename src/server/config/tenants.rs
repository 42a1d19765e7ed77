//! `[[tenant]]`: what is promised to a tenant and asked of it.

use std::ops::RangeInclusive;

use roundhouse_tenancy::Grants;
use roundhouse_types::{Bytes, InvalidName, TenantName};

use super::devices::bandwidth;
use super::keys::{self, TENANT_KEYS};
use super::quotas::{self, WrittenLimits};
use super::raw::Sources;
use super::{Fault, policy};

/// Less brings no model within a load's time; more than the upper end no link carries.
const LOAD_BANDWIDTHS: RangeInclusive<Bytes> = Bytes::kib(64)..=Bytes::gib(1024);

/// One tenant's limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenant {
    /// The first segment of its targets' names.
    pub name: String,
    /// Bytes of its models that other tenants' loads leave where they are.
    pub floor: Bytes,
    /// The most its models may take; absent is all there is.
    pub ceiling: Option<Bytes>,
    /// Its weight where several tenants wait for loads.
    pub share: f64,
    /// Bytes of its versions on disk that other tenants' fetches leave where they are.
    pub disk_floor: Bytes,
    /// The most that its versions may take on disk; absent is all there is.
    pub disk_ceiling: Option<Bytes>,
    /// Bytes a second that loads begun for it may fetch; absent is what store and machine allow.
    pub load_bandwidth: Option<Bytes>,
    /// What it may use.
    pub grants: Grants,
    /// The keys of that which the file has.
    pub written_grants: Vec<&'static str>,
    /// What it may ask for, as far as it is written here.
    pub limits: WrittenLimits,
}

/// The tenants that the file names.
pub(super) fn resolve(sources: &mut Sources<'_>) -> Vec<Tenant> {
    let Some(value) = sources.file.get("tenant").cloned() else {
        return Vec::new();
    };
    let entries: Option<Vec<&toml::Table>> =
        value.as_array().and_then(|list| list.iter().map(toml::Value::as_table).collect());
    let Some(entries) = entries else {
        sources.fault("tenant", "is a list: write [[tenant]] and its keys below");
        return Vec::new();
    };
    let mut tenants: Vec<Tenant> = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let at = format!("tenant[{index}]");
        let mut faults = keys::unknown_in(entry, TENANT_KEYS, &at);
        let tenant = read(entry, &at, &mut faults);
        if let Some(tenant) = tenant {
            if tenants.iter().any(|other| other.name == tenant.name) {
                let message = format!("'{}' is the name of another tenant", tenant.name);
                faults.push(Fault::new(format!("{at}.name"), message));
            } else {
                tenants.push(tenant);
            }
        }
        sources.faults(faults);
    }
    tenants
}

fn read(entry: &toml::Table, at: &str, faults: &mut Vec<Fault>) -> Option<Tenant> {
    let name = name(entry, at, faults);
    let floor = size(entry, "floor", at, faults).unwrap_or(Bytes::ZERO);
    let ceiling = size(entry, "ceiling", at, faults);
    if ceiling.is_some_and(|ceiling| ceiling < floor) {
        faults.push(Fault::new(format!("{at}.ceiling"), "is less than floor"));
    }
    let disk_floor = size(entry, "disk_floor", at, faults).unwrap_or(Bytes::ZERO);
    let disk_ceiling = size(entry, "disk_ceiling", at, faults);
    if disk_ceiling.is_some_and(|ceiling| ceiling < disk_floor) {
        faults.push(Fault::new(format!("{at}.disk_ceiling"), "is less than disk_floor"));
    }
    let load_bandwidth = rate(entry, "load_bandwidth", at, faults);
    let share = match entry.get("share") {
        None => 1.0,
        Some(value) => {
            let number = value.as_float().or_else(|| value.as_integer().map(whole));
            match number.filter(|number| (0.01..=100.0).contains(number)) {
                Some(number) => number,
                None => {
                    let expected = "expected a number, 0.01 to 100";
                    faults.push(Fault::new(format!("{at}.share"), expected));
                    1.0
                }
            }
        }
    };
    let grants = policy::grants(entry, at, (name.as_ref(), share), faults);
    let written_grants =
        ["invoke", "load", "see"].into_iter().filter(|key| entry.contains_key(*key)).collect();
    let limits = quotas::read(entry, at, faults);
    let name = name?.to_string();
    Some(Tenant {
        name,
        floor,
        ceiling,
        share,
        disk_floor,
        disk_ceiling,
        load_bandwidth,
        grants,
        written_grants,
        limits,
    })
}

fn name(entry: &toml::Table, at: &str, faults: &mut Vec<Fault>) -> Option<TenantName> {
    let message = match entry.get("name").map(toml::Value::as_str) {
        None => "is missing: the first segment of the tenant's targets".to_owned(),
        Some(None) => "expected a string in quotes".to_owned(),
        Some(Some(name)) => match name.parse::<TenantName>() {
            Ok(name) => return Some(name),
            Err(InvalidName::Segments) => "is one segment, without a /".to_owned(),
            Err(why) => format!("is not the first segment of a target's name: {why}"),
        },
    };
    faults.push(Fault::new(format!("{at}.name"), message));
    None
}

fn size(entry: &toml::Table, key: &str, at: &str, faults: &mut Vec<Fault>) -> Option<Bytes> {
    let value = entry.get(key)?;
    let read = match value {
        toml::Value::String(text) => {
            text.parse().map_err(|error| format!("{error}")).and_then(|size| unlike_gib(size, text))
        }
        toml::Value::Integer(bytes) => {
            let size = u64::try_from(*bytes).map(Bytes).map_err(|_| "expected a size".to_owned());
            size.and_then(|size| unlike_gib(size, &bytes.to_string()))
        }
        _ => Err("expected a string with a unit, like \"24GiB\"".to_owned()),
    };
    match read {
        Ok(size) => Some(size),
        Err(message) => {
            faults.push(Fault::new(format!("{at}.{key}"), message));
            None
        }
    }
}

fn rate(entry: &toml::Table, key: &str, at: &str, faults: &mut Vec<Fault>) -> Option<Bytes> {
    let read = match entry.get(key)? {
        toml::Value::String(text) => bandwidth(text, &LOAD_BANDWIDTHS),
        _ => Err("expected a string with a unit, like \"100MB/s\"".to_owned()),
    };
    read.map_err(|message| faults.push(Fault::new(format!("{at}.{key}"), message))).ok()
}

/// A number alone is one of bytes. As few as that hold no model: a unit was meant.
fn unlike_gib(size: Bytes, written: &str) -> Result<Bytes, String> {
    let is_bare = written.trim().bytes().all(|digit| digit.is_ascii_digit());
    match is_bare && size > Bytes::ZERO && size < Bytes::mib(1) {
        true => Err(format!("{written} is as many bytes: write a unit, like \"24GiB\"")),
        false => Ok(size),
    }
}

#[expect(clippy::cast_precision_loss, reason = "bounded by a hundred right after")]
pub(super) fn whole(number: i64) -> f64 {
    number as f64
}
