//! The commands that ask a running server's admin port.

use std::time::Duration;

use clap::Args;
use reqwest::Method;
use roundhouse_types::{Bytes, ErrorKind, Failure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::client::Client;
use super::containers::ContainerRow;
use super::output::{self, Table};
use super::target::{Target, endpoint_name};
use super::{AdminArgs, TargetArgs, progress};
use crate::error::{Error, count};

/// Everything but a load is answered at once.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// An unload waits for the model's requests, which a stream may draw out.
const UNLOAD_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// The server's own `residency.load_timeout` ends a load long before, unless it was raised.
pub(super) const LOAD_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Adapters that an unload of their base names; `--json` names all.
const ADAPTERS_NAMED: usize = 20;
/// Rows of one page; the server may send fewer.
const PAGE: usize = 500;

/// Arguments of the commands about one model.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Which model.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Which server.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Arguments of `models`.
#[derive(Debug, Clone, Args)]
pub struct ModelsArgs {
    /// Only this endpoint's.
    #[arg(long, value_name = "NAME")]
    pub endpoint: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Which server.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Arguments of `load`.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// Which model, which server.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Try again though it failed before or was quarantined.
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `unload`.
#[derive(Debug, Clone, Args)]
pub struct UnloadArgs {
    /// Which model, which server.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Delete the files of all its versions from the disk cache too, and forget a chosen one.
    #[arg(long)]
    pub purge: bool,
}

/// Arguments of `explain`.
pub type ExplainArgs = ModelArgs;

/// A page of `GET /admin/v1/models`.
#[derive(Debug, Deserialize)]
struct ModelsPage {
    models: Vec<ModelRow>,
    /// Endpoints that could not be listed.
    #[serde(default)]
    failed: Vec<Unlisted>,
    #[serde(default)]
    next: Option<String>,
}

/// Why an endpoint could not be listed.
#[derive(Debug, Serialize, Deserialize)]
struct Unlisted {
    endpoint: String,
    kind: String,
    message: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct ModelRow {
    endpoint: String,
    target: String,
    bytes: Option<u64>,
    #[serde(default)]
    archive: bool,
    state: Option<String>,
    /// Where it is loaded.
    #[serde(default)]
    devices: Vec<String>,
    /// What its versions take on disk, with their part of what they share.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes: Option<u64>,
    /// Whether a copy is in the host's memory.
    #[serde(default)]
    copy: bool,
    /// What it serves, while it is loaded.
    serves: Option<Serves>,
    /// Why the last attempt failed.
    failure: Option<String>,
    /// What the store holds of a newer version, which may still be on its way there.
    upload: Option<String>,
    /// Where it is a container that answers for its endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<ContainerRow>,
}

/// What a loaded model serves.
#[derive(Debug, Serialize, Deserialize)]
struct Serves {
    context: usize,
    dtype: String,
    quantize: Option<String>,
    kv: Option<ServesKv>,
}

/// The room of its KV pool.
#[derive(Debug, Serialize, Deserialize)]
struct ServesKv {
    floor: Room,
    now: Room,
    most: Room,
    used: Room,
}

#[derive(Debug, Serialize, Deserialize)]
struct Room {
    blocks: usize,
    tokens: usize,
}

/// Lists what the stores hold.
pub(super) async fn models(args: &ModelsArgs) -> Result<(), Error> {
    let client = Client::admin(&args.admin)?;
    if let Some(endpoint) = &args.endpoint {
        endpoint_name(endpoint)?;
    }
    let limit = args.limit as usize;
    let (mut rows, mut failed): (Vec<ModelRow>, Vec<Unlisted>) = (Vec::new(), Vec::new());
    let mut next: Option<String> = None;
    loop {
        let wanted = (limit - rows.len()).min(PAGE).to_string();
        let mut query = vec![("limit", wanted.as_str())];
        query.extend(args.endpoint.as_deref().map(|endpoint| ("endpoint", endpoint)));
        query.extend(next.as_deref().map(|next| ("after", next)));
        let request = client.request(Method::GET, "/admin/v1/models").query(&query);
        let page: ModelsPage =
            client.shaped(client.json(request.timeout(ANSWER_TIMEOUT)).await?)?;
        rows.extend(page.models);
        failed.extend(page.failed);
        let again = page.next.is_some() && page.next != next && rows.len() < limit;
        next = page.next;
        if !again {
            break;
        }
    }
    rows.truncate(limit);
    if args.admin.json {
        let mut answer = Map::new();
        answer.insert("models".into(), serde_json::to_value(&rows).expect("rows are plain"));
        answer.insert("failed".into(), serde_json::to_value(&failed).expect("rows are plain"));
        answer.insert("next".into(), next.into());
        output::print_json(&answer)?;
        return all_listed(&failed);
    }
    output::print(&models_table(&rows))?;
    if next.is_some() {
        output::print(&format!("... and more: raise --limit (now {limit})\n"))?;
    }
    all_listed(&failed)
}

/// Fails where endpoints could not be listed, which those that could are printed before.
fn all_listed(failed: &[Unlisted]) -> Result<(), Error> {
    if failed.is_empty() {
        return Ok(());
    }
    let one = |it: &Unlisted| format!("{}: {}", it.endpoint, it.message);
    let told = failed.iter().map(one).collect::<Vec<_>>().join("; ");
    let message = format!("{} not listed: {told}", count(failed.len(), "endpoint"));
    Err(Error::Rest(Failure::new(ErrorKind::StoreUnavailable, message)))
}

fn models_table(rows: &[ModelRow]) -> String {
    let mut table = Table::new(&[
        "ENDPOINT",
        "TARGET",
        ">SIZE",
        "FORM",
        "STATE",
        "WHERE",
        ">CONTEXT",
        "WEIGHTS",
        "KV TOKENS",
        "NOTE",
    ]);
    for row in rows {
        let failure = row.failure.as_deref().unwrap_or_default();
        let told = row.failure.iter().chain(&row.upload);
        let note = told.map(String::as_str).collect::<Vec<_>>().join("; ");
        table.row(vec![
            row.endpoint.clone(),
            row.target.clone(),
            row.bytes.map_or_else(|| "-".into(), |bytes| Bytes(bytes).to_string()),
            form(row).into(),
            row.state.as_ref().map_or_else(|| "-".into(), |state| state.replace('_', " ")),
            place(row),
            of_loaded(row, |it| it.context.to_string()),
            of_loaded(row, |it| it.dtype.clone()),
            of_loaded(row, |it| it.kv.as_ref().map_or_else(|| "-".into(), kv_room)),
            row.container.as_ref().map_or(note, |it| it.note(failure)),
        ]);
    }
    table.render()
}

fn form(row: &ModelRow) -> &'static str {
    match (&row.container, row.archive) {
        (Some(_), _) => "container",
        (None, true) => "archive",
        (None, false) => "files",
    }
}

/// The devices that a model is on, and the host's memory where its copy is.
fn place(row: &ModelRow) -> String {
    if let Some(container) = &row.container {
        return container.place();
    }
    let copy = row.copy.then_some("host copy");
    let named: Vec<&str> = row.devices.iter().map(String::as_str).chain(copy).collect();
    if named.is_empty() { "-".into() } else { named.join(", ") }
}

fn of_loaded(row: &ModelRow, show: impl FnOnce(&Serves) -> String) -> String {
    row.serves.as_ref().map_or_else(|| "-".into(), show)
}

/// What is used of what there is, and how far that may change.
fn kv_room(kv: &ServesKv) -> String {
    let [used, now, floor, most] = [&kv.used, &kv.now, &kv.floor, &kv.most].map(|room| room.tokens);
    match floor == most {
        true => format!("{used} of {now}"),
        false => format!("{used} of {now} ({floor} to {most})"),
    }
}

/// Loads and waits, with a bar on a terminal.
pub(super) async fn load(args: &LoadArgs) -> Result<(), Error> {
    let target = args.model.target.check()?;
    let client = Client::admin(&args.model.admin)?;
    let extra = args.force.then_some("force");
    let asked = post(&client, "load", &target, extra, LOAD_TIMEOUT);
    let answer = tokio::select! {
        answer = asked => answer?,
        never = progress::show(&client, &target) => match never {},
    };
    report(&answer, &target, args.model.admin.json)
}

/// Unloads, and deletes the files if asked.
pub(super) async fn unload(args: &UnloadArgs) -> Result<(), Error> {
    let target = args.model.target.check()?;
    let client = Client::admin(&args.model.admin)?;
    let extra = args.purge.then_some("purge");
    let answer = post(&client, "unload", &target, extra, UNLOAD_TIMEOUT).await?;
    report(&answer, &target, args.model.admin.json)
}

/// `keep`, `release` and `refresh`.
pub(super) async fn change(what: &str, args: &ModelArgs) -> Result<(), Error> {
    let target = args.target.check()?;
    let client = Client::admin(&args.admin)?;
    let answer = post(&client, what, &target, None, UNLOAD_TIMEOUT).await?;
    report(&answer, &target, args.admin.json)
}

async fn post(
    client: &Client,
    what: &str,
    target: &Target,
    extra: Option<&str>,
    timeout: Duration,
) -> Result<Value, Error> {
    let mut body = Map::new();
    if let Some(endpoint) = &target.endpoint {
        body.insert("endpoint".into(), endpoint.as_str().into());
    }
    body.insert("target".into(), target.target.as_str().into());
    if let Some(extra) = extra {
        body.insert(extra.into(), true.into());
    }
    let path = format!("/admin/v1/{what}");
    client.json(client.request(Method::POST, &path).json(&body).timeout(timeout)).await
}

/// Prints the state a model is in after a change.
fn report(answer: &Value, target: &Target, json: bool) -> Result<(), Error> {
    if json {
        return output::print_json(answer);
    }
    output::print(&format!("{}\n", sentence(answer, target)))
}

fn sentence(answer: &Value, target: &Target) -> String {
    let text = |key: &str| answer.get(key).and_then(Value::as_str);
    let switch = |key: &str| answer.get(key).and_then(Value::as_bool);
    let endpoint = text("endpoint").or(target.endpoint.as_ref().map(|it| it.as_str()));
    let name = match endpoint {
        Some(endpoint) => format!("{endpoint}:{}", target.target),
        None => target.target.to_string(),
    };
    let outcome = match (text("state"), switch("kept"), switch("updated")) {
        (Some(state), _, _) => state.replace('_', " "),
        (None, Some(true), _) => "is kept".into(),
        (None, Some(false), _) => "may be evicted".into(),
        (None, None, Some(true)) => "is updated".into(),
        (None, None, Some(false)) => "has not changed".into(),
        (None, None, None) => "done".into(),
    };
    let mut line = format!("{name} {outcome}");
    if let Some(version) = text("version") {
        line.push_str(&format!(", version {}", short(version)));
    }
    if let Some(offered) = text("offered") {
        line.push_str(&format!("; the store holds version {}", short(offered)));
    }
    if let Some(upload) = text("upload") {
        line.push_str(&format!("; {upload}"));
    }
    let purged = answer.get("purged").and_then(Value::as_array).map_or(0, Vec::len);
    if purged > 0 {
        let freed = answer.get("freed").and_then(Value::as_array).into_iter().flatten();
        let bytes = freed.filter_map(|it| it.get("bytes")?.as_u64()).sum();
        let what = count(purged, "version");
        line.push_str(&format!(", {what} deleted from disk ({})", Bytes(bytes)));
    }
    if switch("choice_lifted") == Some(true) {
        line.push_str(", its version is chosen no more");
    }
    line.push_str(&left_with(answer));
    output::printable(&line)
}

/// The adapters that left with a base, those first that are kept: they come back when they are asked
/// for, and bring their base back.
fn left_with(answer: &Value) -> String {
    let adapters = answer.get("adapters").and_then(Value::as_array).into_iter().flatten();
    let is_kept = |it: &&Value| it.get("kept").and_then(Value::as_bool) == Some(true);
    let (kept, others): (Vec<&Value>, Vec<&Value>) = adapters.partition(is_kept);
    let all = kept.len() + others.len();
    if all == 0 {
        return String::new();
    }
    let name = |it: &&Value| it.get("target")?.as_str().map(str::to_owned);
    let kept = kept.iter().filter_map(name).map(|name| format!("{name} (its keep stays)"));
    let named = kept.chain(others.iter().filter_map(name)).take(ADAPTERS_NAMED);
    let named = named.collect::<Vec<_>>().join(", ");
    let more = if all > ADAPTERS_NAMED { ", ..." } else { "" };
    format!(", and with it {}: {named}{more}", count(all, "adapter"))
}

/// The beginning of a version's digest, which tells it from the model's others.
pub(super) fn short(version: &str) -> &str {
    version.get(..12).unwrap_or(version)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn target() -> Target {
        Target { endpoint: None, target: "a/b".parse().unwrap() }
    }

    #[test]
    fn a_change_is_told_in_one_line_with_the_endpoint_the_server_chose() {
        let cases = [
            (
                json!({"endpoint": "demo", "state": "ready", "version": "0123456789abcdef"}),
                "demo:a/b ready, version 0123456789ab",
            ),
            (json!({"endpoint": "demo", "kept": true}), "demo:a/b is kept"),
            (json!({"endpoint": "demo", "kept": false}), "demo:a/b may be evicted"),
            (json!({"updated": false, "version": "00"}), "a/b has not changed, version 00"),
            (
                json!({"state": "absent", "purged": ["00"], "freed": [{"bytes": 2048}]}),
                "a/b absent, 1 version deleted from disk (2.0 KiB)",
            ),
            (
                json!({"updated": false, "version": "00", "offered": "0123456789abcdef"}),
                "a/b has not changed, version 00; the store holds version 0123456789ab",
            ),
            (
                json!({"updated": false, "version": "00", "upload": "version 01 may be written"}),
                "a/b has not changed, version 00; version 01 may be written",
            ),
            (
                json!({"state": "absent", "adapters": [
                    {"target": "x", "kept": false}, {"target": "y", "kept": true},
                ]}),
                "a/b absent, and with it 2 adapters: y (its keep stays), x",
            ),
            (json!({}), "a/b done"),
        ];
        for (answer, want) in cases {
            assert_eq!(sentence(&answer, &target()), want);
        }
    }

    #[test]
    fn what_an_uploader_wrote_steers_no_terminal_and_makes_no_line_of_its_own() {
        let answer = json!({"state": "ready\u{1b}[2J"});
        assert!(!sentence(&answer, &target()).contains('\u{1b}'));
    }

    #[test]
    fn models_are_listed_with_what_is_known_of_them() {
        let page = json!({"models": [
            {"endpoint": "e", "target": "a.tar.gz", "bytes": 2048, "archive": true, "state": "ready"},
            {"endpoint": "e", "target": "b", "bytes": 1, "archive": false, "state": null},
            {"endpoint": "e", "target": "c", "bytes": 1, "archive": false, "state": "ready",
             "devices": ["simulated:0", "simulated:1"], "copy": true, "failure": null,
             "serves": {"context": 2048, "dtype": "q8_0", "quantize": "q8_0", "kv": {
                "block_tokens": 16, "token_bytes": 64, "floor": {"blocks": 128, "tokens": 2048},
                "now": {"blocks": 256, "tokens": 4096}, "most": {"blocks": 512, "tokens": 8192},
                "used": {"blocks": 6, "tokens": 96}}}},
            {"endpoint": "e", "target": "d", "bytes": 1, "archive": false, "state": "failed",
             "devices": [], "copy": false, "failure": "too large", "upload": "version 01 grows"},
        ], "next": null});
        let page: ModelsPage = serde_json::from_value(page).unwrap();
        assert_eq!(
            models_table(&page.models),
            "ENDPOINT  TARGET       SIZE  FORM     STATE   WHERE                                CONTEXT  WEIGHTS  KV TOKENS                  NOTE\n\
             e         a.tar.gz  2.0 KiB  archive  ready   -                                          -  -        -\n\
             e         b             1 B  files    -       -                                          -  -        -\n\
             e         c             1 B  files    ready   simulated:0, simulated:1, host copy     2048  q8_0     96 of 4096 (2048 to 8192)\n\
             e         d             1 B  files    failed  -                                          -  -        -                          too large; version 01 grows\n"
        );
    }
}
