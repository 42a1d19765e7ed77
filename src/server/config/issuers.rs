//! Whose word on callers is taken: issuers of tokens (`auth.oidc_…`, `[[issuer]]`), and AWS for its own
//! credentials (`auth.aws_…`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use roundhouse_tenancy::{IamConfig, Jwks, Named, OidcConfig, Principals, is_near_or_encrypted};
use roundhouse_types::TenantName;

use super::auth::word;
use super::keys::{self, ISSUER_KEYS};
use super::parse_duration;
use super::raw::Sources;
use super::{Fault, defaults};

/// By how much an issuer's clock may differ at most.
const LEEWAY_MOST: Duration = Duration::from_secs(600);
/// Issuers that there may be; each has a task that keeps its keys.
const ISSUERS_MAX: usize = 64;
/// Patterns of AWS's principals; each new caller is held against them one by one.
const PRINCIPALS_MAX: usize = 4096;
/// Characters of this server's name that callers sign.
const SERVER_ID_CHARACTERS: usize = 128;

/// What one issuer's keys say, before they are held against each other.
#[derive(Default)]
struct Written {
    issuer: Option<String>,
    audience: Option<String>,
    jwks: Option<Jwks>,
    claim: Option<String>,
    tenants: Option<Named>,
    leeway: Option<Duration>,
}

/// All issuers of tokens.
pub(super) fn oidc(sources: &mut Sources<'_>) -> Vec<OidcConfig> {
    let written = Written {
        issuer: sources.optional("auth.oidc_issuer", word),
        audience: sources.optional("auth.oidc_audience", word),
        jwks: sources.optional("auth.oidc_jwks", jwks),
        claim: sources.optional("auth.oidc_claim", word),
        tenants: sources.optional("auth.oidc_tenants", tenants),
        leeway: sources.duration("auth.oidc_leeway", Duration::ZERO..=LEEWAY_MOST),
    };
    let mut faults = Vec::new();
    let is_none = written.issuer.is_none() && written.audience.is_none() && written.jwks.is_none();
    let mut issuers = Vec::new();
    if !is_none {
        issuers.extend(whole(written, "auth.oidc_", &mut faults));
    }
    let listed = sources.file.get("issuer").cloned();
    let tables = listed.as_ref().map(|value| {
        let list = value.as_array().filter(|list| list.len() <= ISSUERS_MAX);
        list.and_then(|list| list.iter().map(toml::Value::as_table).collect::<Option<Vec<_>>>())
    });
    match tables {
        None => {}
        Some(None) => {
            let message =
                format!("is a list of {ISSUERS_MAX} at most: write [[issuer]] and its keys below");
            faults.push(Fault::new("issuer", message));
        }
        Some(Some(tables)) => {
            for (index, table) in tables.into_iter().enumerate() {
                let at = format!("issuer[{index}]");
                faults.extend(keys::unknown_in(table, ISSUER_KEYS, &at));
                let Some(found) = listed_issuer(table, &at, &mut faults) else { continue };
                if issuers.iter().any(|other: &OidcConfig| other.issuer == found.issuer) {
                    let message = format!("'{}' is the name of another issuer", found.issuer);
                    faults.push(Fault::new(format!("{at}.issuer"), message));
                } else {
                    issuers.push(found);
                }
            }
        }
    }
    sources.faults(faults);
    issuers
}

fn listed_issuer(table: &toml::Table, at: &str, faults: &mut Vec<Fault>) -> Option<OidcConfig> {
    let before = faults.len();
    let mut reader = Reader { table, at, faults };
    let written = Written {
        issuer: reader.read("issuer", word),
        audience: reader.read("audience", word),
        jwks: reader.read("jwks", jwks),
        claim: reader.read("claim", word),
        tenants: reader.read("tenants", tenants),
        leeway: reader.read("leeway", |text| match parse_duration(text)? {
            leeway if leeway <= LEEWAY_MOST => Ok(leeway),
            _ => Err("is out of range: 0s to 10m".to_owned()),
        }),
    };
    // What cannot be read is not missing, too.
    if faults.len() > before {
        return None;
    }
    whole(written, &format!("{at}."), faults)
}

/// Reads the texts of one table.
struct Reader<'a> {
    table: &'a toml::Table,
    at: &'a str,
    faults: &'a mut Vec<Fault>,
}

impl Reader<'_> {
    fn read<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let value = self.table.get(key)?;
        let text = value.as_str().ok_or_else(|| "expected a text in quotes".to_owned());
        match text.and_then(parse) {
            Ok(value) => Some(value),
            Err(why) => {
                self.faults.push(Fault::new(format!("{}.{key}", self.at), why));
                None
            }
        }
    }
}

/// An issuer with all that it needs; `at` is what its keys begin with.
fn whole(written: Written, at: &str, faults: &mut Vec<Fault>) -> Option<OidcConfig> {
    let Written { issuer, audience, jwks, claim, tenants, leeway } = written;
    let (Some(issuer), Some(audience)) = (&issuer, &audience) else {
        for (key, is_missing) in [("issuer", issuer.is_none()), ("audience", audience.is_none())] {
            if is_missing {
                let message = "is missing: issuer and audience are believed together only";
                faults.push(Fault::new(format!("{at}{key}"), message));
            }
        }
        return None;
    };
    let Some(tenants) = tenants else {
        let message = "is missing: write which tenants the issuer may name, as \"VALUE=TENANT …\" by \
                       values of its claim, or \"*\" to let it name any, where the issuer is yours";
        faults.push(Fault::new(format!("{at}tenants"), message));
        return None;
    };
    let jwks = jwks.unwrap_or_else(|| Jwks::Discovered(issuer.clone()));
    if matches!(jwks, Jwks::Discovered(_)) && !is_near_or_encrypted(issuer) {
        let message =
            "is missing, and cannot be found by an issuer that is not an https:// address";
        faults.push(Fault::new(format!("{at}jwks"), message));
        return None;
    }
    Some(OidcConfig {
        issuer: issuer.clone(),
        audience: audience.clone(),
        jwks,
        claim: claim.unwrap_or_else(|| defaults::OIDC_CLAIM.to_owned()),
        tenants,
        leeway: leeway.unwrap_or(defaults::OIDC_LEEWAY),
    })
}

/// Whether and how callers with AWS's own credentials are known.
pub(super) fn iam(sources: &mut Sources<'_>) -> Option<IamConfig> {
    let sts = sources.optional("auth.aws_sts", |text| {
        word(text)?.split_whitespace().map(origin).collect::<Result<Vec<_>, _>>()
    });
    let server_id = sources.optional("auth.aws_server_id", server_id);
    let tenants = sources.optional("auth.aws_tenants", principals);
    match (sts, server_id, tenants) {
        (Some(sts), Some(server_id), Some(tenants)) => Some(IamConfig { sts, server_id, tenants }),
        (None, None, None) => None,
        (sts, server_id, tenants) => {
            let missing = [
                ("auth.aws_sts", sts.is_none()),
                ("auth.aws_server_id", server_id.is_none()),
                ("auth.aws_tenants", tenants.is_none()),
            ];
            for (key, _) in missing.into_iter().filter(|(_, is_missing)| *is_missing) {
                let message = "is missing: aws_sts, aws_server_id and aws_tenants go together";
                sources.fault(key, message);
            }
            None
        }
    }
}

/// Where STS is: whoever could take its place could say that anybody signed.
fn origin(text: &str) -> Result<String, String> {
    let trimmed = text.strip_suffix('/').unwrap_or(text);
    let is_origin =
        trimmed.split_once("://").is_some_and(|(_, rest)| !rest.contains(['/', '?', '#', '@']));
    match is_origin && is_near_or_encrypted(trimmed) {
        true => Ok(trimmed.to_owned()),
        false => Err(format!(
            "'{text}' is not the address of an STS, like https://sts.eu-central-1.amazonaws.com"
        )),
    }
}

fn server_id(text: &str) -> Result<String, String> {
    let is_plain = (1..=SERVER_ID_CHARACTERS).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    match is_plain {
        true => Ok(text.to_owned()),
        false => {
            Err(format!("is 1 to {SERVER_ID_CHARACTERS} visible ASCII characters, without blanks"))
        }
    }
}

/// `PRINCIPALS=TENANT`, separated by blanks; the order counts.
fn principals(text: &str) -> Result<Vec<(Principals, TenantName)>, String> {
    let mut rules: Vec<(Principals, TenantName)> = Vec::new();
    for (principals, tenant) in pairs(text)? {
        let read = principals.parse::<Principals>();
        let principals_read = read.map_err(|why| format!("'{principals}' {why}"))?;
        if rules.iter().any(|(other, _)| *other == principals_read) {
            return Err(format!("'{principals}' is given twice"));
        }
        rules.push((principals_read, tenant));
    }
    match rules.len() {
        0 => Err("names nobody".to_owned()),
        number if number > PRINCIPALS_MAX => {
            Err(format!("names {number}, and {PRINCIPALS_MAX} are the most"))
        }
        _ => Ok(rules),
    }
}

/// An address or a file. Keys that anybody on the way could replace are no keys.
fn jwks(text: &str) -> Result<Jwks, String> {
    if !text.contains("://") {
        return word(text).map(PathBuf::from).map(Jwks::File);
    }
    match is_near_or_encrypted(text) {
        true => Ok(Jwks::Url(text.to_owned())),
        false => Err(format!("'{text}' is neither https://, nor http:// on loopback, nor a file")),
    }
}

/// `VALUE=TENANT`, separated by spaces, or a star.
fn tenants(text: &str) -> Result<Named, String> {
    if text.trim() == "*" {
        return Ok(Named::Any);
    }
    let mut tenants = BTreeMap::new();
    for (value, name) in pairs(text)? {
        if tenants.insert(value.to_owned(), name).is_some() {
            return Err(format!("'{value}' is given twice"));
        }
    }
    match tenants.is_empty() {
        true => Err("names nobody: VALUE=TENANT, or * for any tenant".to_owned()),
        false => Ok(Named::Listed(tenants)),
    }
}

fn pairs(text: &str) -> Result<Vec<(&str, TenantName)>, String> {
    let pairs = text.split_whitespace().map(|pair| {
        // What stands before may hold a `=`, a tenant's name hardly.
        let (value, name) =
            pair.rsplit_once('=').ok_or_else(|| format!("'{pair}' is not VALUE=TENANT"))?;
        let name = name.parse().map_err(|why| format!("'{name}' is not a tenant's name: {why}"))?;
        Ok((value, name))
    });
    pairs.collect()
}
