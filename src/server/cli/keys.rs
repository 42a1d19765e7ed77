//! `roundhouse keys`: mints, lists and revokes keys in a file that servers watch.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand, ValueEnum};
use roundhouse_tenancy::{KeyFile, KeyKind, KeyRecord, Minted, Wanted};
use roundhouse_types::TenantName;
use serde_json::json;

use super::environment;
use super::output::{self, Table};
use crate::config::parse_duration;
use crate::error::Error;

/// Where the file is when nobody says: beside other settings of the user's.
const USUAL: &str = "roundhouse/keys.json";

/// Arguments of `keys`.
#[derive(Debug, Clone, Args)]
pub struct KeysArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: KeysAction,
}

impl KeysArgs {
    /// Whether JSON is to be printed.
    pub(super) fn json(&self) -> bool {
        match &self.action {
            KeysAction::Create(args) => args.file.json,
            KeysAction::List(args) => args.json,
            KeysAction::Revoke(args) => args.file.json,
        }
    }
}

/// What to do with keys.
#[derive(Debug, Clone, Subcommand)]
pub enum KeysAction {
    /// Mint a key and show it, this once.
    Create(CreateArgs),
    /// List the keys: ids, tenants and times, no secrets.
    List(FileArgs),
    /// End a key; servers that watch the file refuse it within a second or two.
    Revoke(RevokeArgs),
}

/// Which file, and how to print.
#[derive(Debug, Clone, Args)]
pub struct FileArgs {
    /// The file of keys [default: roundhouse/keys.json in the user's configuration folder].
    #[arg(long, value_name = "FILE", env = "ROUNDHOUSE_KEYS", hide_env_values = true)]
    pub keys: Option<PathBuf>,
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `keys create`.
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// Whose key it is.
    #[arg(long, value_name = "NAME", required_unless_present = "operator")]
    pub tenant: Option<String>,
    /// For the admin port instead of a tenant.
    #[arg(long, conflicts_with_all = ["tenant", "kind"])]
    pub operator: bool,
    /// bearer: one text, for OpenAI's and Hugging Face's clients; sigv4: a pair, for AWS's.
    #[arg(long, value_name = "KIND", default_value = "bearer")]
    pub kind: Kind,
    /// How long it holds, as in 12h or 90d [default: until it is revoked].
    #[arg(long, value_name = "DURATION")]
    pub expires: Option<String>,
    /// Which file, and how to print.
    #[command(flatten)]
    pub file: FileArgs,
}

/// A tenant's kinds of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// `Authorization: Bearer rh-…`.
    Bearer,
    /// An access key id and a secret access key.
    Sigv4,
}

/// Arguments of `keys revoke`.
#[derive(Debug, Clone, Args)]
pub struct RevokeArgs {
    /// The key's id, as `keys list` shows it.
    pub id: String,
    /// Which file, and how to print.
    #[command(flatten)]
    pub file: FileArgs,
}

/// Carries the command out.
pub(super) fn run(args: &KeysArgs) -> Result<(), Error> {
    match &args.action {
        KeysAction::Create(args) => create(args),
        KeysAction::List(args) => list(args),
        KeysAction::Revoke(args) => revoke(args),
    }
}

fn create(args: &CreateArgs) -> Result<(), Error> {
    let path = path(&args.file)?;
    let tenant = || {
        let name = args.tenant.as_deref().unwrap_or_default();
        name.parse::<TenantName>()
            .map_err(|why| Error::Usage(format!("'{name}' cannot be a tenant's name: {why}")))
    };
    let wanted = match (args.operator, args.kind) {
        (true, _) => Wanted::Operator,
        (false, Kind::Bearer) => Wanted::Bearer(tenant()?),
        (false, Kind::Sigv4) => Wanted::Sigv4(tenant()?),
    };
    let lifetime = args.expires.as_deref().map(lifetime).transpose()?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|source| Error::io(format!("cannot create {}", folder.display()), source))?;
    }
    let Minted { record, secret } = KeyFile::create(&path, wanted, lifetime)?;
    let is_pair = record.kind() == KeyKind::Sigv4;
    if args.file.json {
        let mut shown = described(&record);
        match is_pair {
            true => {
                shown["access_key_id"] = json!(record.id);
                shown["secret_access_key"] = json!(secret.reveal());
            }
            false => shown["key"] = json!(secret.reveal()),
        }
        shown["file"] = json!(path.display().to_string());
        return output::print_json(&shown);
    }
    let shown = match is_pair {
        true => {
            format!("AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY={}\n", record.id, secret.reveal())
        }
        false => format!("{}\n", secret.reveal()),
    };
    output::print(&shown)?;
    note(&format!(
        "This is shown once. It is in force wherever `roundhouse serve --keys {}` runs.",
        path.display()
    ));
    Ok(())
}

fn list(args: &FileArgs) -> Result<(), Error> {
    let records = KeyFile::list(&path(args)?)?;
    if args.json {
        let listed: Vec<_> = records.iter().map(described).collect();
        return output::print_json(&json!({ "keys": listed }));
    }
    let mut table = Table::new(&["ID", "KIND", "TENANT", "CREATED", "EXPIRES"]);
    for record in &records {
        let tenant = record.tenant.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        table.row(vec![
            record.id.clone(),
            record.kind().as_str().to_owned(),
            tenant,
            ago(record.created),
            record.expires.map_or_else(|| "never".to_owned(), until),
        ]);
    }
    output::print(&table.render())
}

fn revoke(args: &RevokeArgs) -> Result<(), Error> {
    let record = KeyFile::revoke(&path(&args.file)?, &args.id)?;
    match args.file.json {
        true => output::print_json(&described(&record)),
        false => output::print(&format!("revoked {}\n", record.id)),
    }
}

fn described(record: &KeyRecord) -> serde_json::Value {
    json!({
        "id": record.id, "kind": record.kind().as_str(), "tenant": record.tenant,
        "created": record.created, "expires": record.expires,
    })
}

fn path(args: &FileArgs) -> Result<PathBuf, Error> {
    let folder = |name| environment(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let named = args.keys.clone().or_else(|| environment("ROUNDHOUSE_AUTH_KEYS").map(Into::into));
    let usual = || {
        let folder =
            folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|it| it.join(".config")));
        folder.map(|folder| folder.join(USUAL))
    };
    named.or_else(usual).ok_or_else(|| Error::Usage("say which file of keys: --keys FILE".into()))
}

/// A duration as elsewhere, and days, which keys live for.
fn lifetime(text: &str) -> Result<Duration, Error> {
    let days = text.trim().strip_suffix('d').and_then(|days| days.parse::<u64>().ok());
    let seconds = days.map(|days| days.checked_mul(86_400).map(Duration::from_secs));
    let lifetime = match seconds {
        Some(Some(lifetime)) => lifetime,
        Some(None) => return Err(Error::Usage(format!("--expires {text} is too long"))),
        None => {
            parse_duration(text).map_err(|why| Error::Usage(format!("--expires: {why}, or 90d")))?
        }
    };
    match lifetime < Duration::from_secs(1) {
        true => Err(Error::Usage(format!("--expires {text} is over at once"))),
        false => Ok(lifetime),
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map(|since| since.as_secs()).unwrap_or_default()
}

fn ago(then: u64) -> String {
    format!("{} ago", span(now().saturating_sub(then)))
}

fn until(then: u64) -> String {
    match then.checked_sub(now()) {
        Some(left) if left > 0 => format!("in {}", span(left)),
        _ => "expired".to_owned(),
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// For people, beside what is printed for programs.
fn note(text: &str) {
    use std::io::Write as _;
    // Nobody is left to be told when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_live_for_days_too() {
        assert_eq!(lifetime("90d").unwrap(), Duration::from_secs(90 * 86_400));
        assert_eq!(lifetime("12h").unwrap(), Duration::from_secs(12 * 3600));
        for text in ["", "0d", "0s", "500ms", "-1d", "1w", "300000000000000000d"] {
            assert!(matches!(lifetime(text), Err(Error::Usage(_))), "{text}");
        }
    }
}
