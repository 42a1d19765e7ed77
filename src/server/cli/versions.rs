//! The commands about a model's versions: `versions` and `use`.

use clap::Args;
use reqwest::Method;
use roundhouse_types::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::client::Client;
use super::operate::{ANSWER_TIMEOUT, LOAD_TIMEOUT, ModelArgs, short};
use super::output::{self, Table};
use super::{AdminArgs, TargetArgs, progress};
use crate::error::Error;

/// Arguments of `use`.
#[derive(Debug, Clone, Args)]
pub struct UseArgs {
    /// Which model.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The version: 6 or more of its first digits, or `latest` for what the store holds.
    pub version: String,
    /// Which server.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// The answer of `GET /admin/v1/versions`.
#[derive(Debug, Deserialize)]
struct Versions {
    update: String,
    versions: Vec<Row>,
    held: Option<Held>,
    in_store: Option<bool>,
    store_failure: Option<String>,
    failure: Option<String>,
    failed_since: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Held {
    by: String,
}

#[derive(Debug, Deserialize)]
struct Row {
    version: String,
    in_store: bool,
    #[serde(default)]
    in_part: bool,
    disk_bytes: Option<u64>,
    state: Option<String>,
    #[serde(default)]
    devices: Vec<String>,
    #[serde(default)]
    copy: bool,
    held: bool,
    failure: Option<String>,
    failed_since: Option<String>,
    first_seen: Option<String>,
    last_used: Option<String>,
}

/// Lists a model's versions, the one seen last first.
pub(super) async fn list(args: &ModelArgs) -> Result<(), Error> {
    let target = args.target.check()?;
    let client = Client::admin(&args.admin)?;
    let mut query = vec![("target", target.target.as_str())];
    query.extend(target.endpoint.as_ref().map(|endpoint| ("endpoint", endpoint.as_str())));
    let request = client.request(Method::GET, "/admin/v1/versions").query(&query);
    let answer = client.json(request.timeout(ANSWER_TIMEOUT)).await?;
    if args.admin.json {
        return output::print_json(&answer);
    }
    output::print(&render(&client.shaped(answer)?))
}

fn render(found: &Versions) -> String {
    let headings =
        ["VERSION", "STORE", ">DISK", "STATE", "WHERE", "HELD", "FIRST SEEN", "LAST USED"];
    let mut table = Table::new(&headings);
    let dash = || "-".to_owned();
    for row in &found.versions {
        let by = found.held.as_ref().map_or("", |held| held.by.as_str());
        table.row(vec![
            short(&row.version).to_owned(),
            match (row.in_store, row.in_part) {
                (true, _) => "yes".into(),
                (false, true) => "in part".into(),
                (false, false) => dash(),
            },
            row.disk_bytes.map_or_else(dash, |bytes| Bytes(bytes).to_string()),
            row.state.clone().map_or_else(dash, |state| state.replace('_', " ")),
            place(row).unwrap_or_else(dash),
            if row.held { format!("by {by}") } else { dash() },
            row.first_seen.clone().unwrap_or_else(dash),
            row.last_used.clone().unwrap_or_else(dash),
        ]);
    }
    let mut text = table.render();
    for (row, failure) in found.versions.iter().filter_map(|it| Some((it, it.failure.as_ref()?))) {
        let since = row.failed_since.as_ref().map(|since| format!(" since {since}"));
        let (version, since) = (short(&row.version), since.unwrap_or_default());
        text.push_str(&output::printable(&format!("{version} is not served{since}: {failure}")));
        text.push('\n');
    }
    if let Some(failure) = &found.failure {
        let since = found.failed_since.as_ref().map(|since| format!(" since {since}"));
        let since = since.unwrap_or_default();
        let line = format!("its newest version cannot be told{since}: {failure}");
        text.push_str(&output::printable(&line));
        text.push('\n');
    }
    text.push_str(&format!("update = {}\n", output::printable(&found.update)));
    if let Some(failure) = &found.store_failure {
        text.push_str(&format!("the store names no version: {}\n", output::printable(failure)));
    }
    if found.in_store == Some(false) {
        text.push_str("the store holds no such model\n");
    }
    text
}

/// The devices that a version is on, and the host's memory where its copy is.
fn place(row: &Row) -> Option<String> {
    let copy = row.copy.then_some("host copy");
    let named: Vec<&str> = row.devices.iter().map(String::as_str).chain(copy).collect();
    (!named.is_empty()).then(|| named.join(", "))
}

/// Has a version served from now on, and waits until it is.
pub(super) async fn choose(args: &UseArgs) -> Result<(), Error> {
    let target = args.target.check()?;
    let client = Client::admin(&args.admin)?;
    let mut body = Map::new();
    if let Some(endpoint) = &target.endpoint {
        body.insert("endpoint".into(), endpoint.as_str().into());
    }
    body.insert("target".into(), target.target.as_str().into());
    body.insert("version".into(), args.version.as_str().into());
    let request = client.request(Method::POST, "/admin/v1/use").json(&body);
    let answer = tokio::select! {
        answer = client.json(request.timeout(LOAD_TIMEOUT)) => answer.map_err(advised)?,
        never = progress::show(&client, &target) => match never {},
    };
    if args.admin.json {
        return output::print_json(&answer);
    }
    output::print(&format!("{}\n", sentence(&answer, &target.name())))
}

/// What is not found may be the version, and is found here.
fn advised(error: Error) -> Error {
    match &error {
        Error::Refused { kind: Some(kind), .. }
            if ["model_not_found", "invalid_request"].contains(&kind.as_str()) =>
        {
            error.with_hint(
                "`roundhouse versions TARGET` lists them, and `roundhouse models` the targets",
            )
        }
        _ => error,
    }
}

fn sentence(answer: &Value, name: &str) -> String {
    let text = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or_default();
    let switch = |key: &str| answer.get(key).and_then(Value::as_bool) == Some(true);
    let version = short(text("version"));
    let mut line = match switch("serves") {
        true => format!("{name} serves version {version}"),
        false => format!("{name} is not loaded; its next load is of version {version}"),
    };
    if !switch("held") {
        line.push_str(", and follows the endpoint's rule");
    }
    output::printable(&line)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_listed_with_where_they_are() {
        let mut found = json!({
            "endpoint": "e", "target": "t", "update": "manual", "on_delete": "serve",
            "held": {"version": "aa", "by": "rule", "since": "x"},
            "in_store": null, "store_failure": "no answer",
            "versions": [
                {"version": "bb", "in_store": true, "store_bytes": 1, "disk_bytes": null,
                 "state": null, "devices": [], "copy": false, "held": false, "first_seen": null,
                 "last_used": null},
                {"version": "0123456789abcdef", "in_store": false, "store_bytes": null,
                 "disk_bytes": 2048, "state": "waiting_for_room",
                 "devices": ["simulated:0", "simulated:1"], "copy": true, "held": true,
                 "first_seen": "then", "last_used": "now"},
            ],
        });
        assert_eq!(
            render(&serde_json::from_value(found.clone()).unwrap()),
            "VERSION       STORE     DISK  STATE             WHERE                                HELD     FIRST SEEN  LAST USED\n\
             bb            yes          -  -                 -                                    -        -           -\n\
             0123456789ab  -      2.0 KiB  waiting for room  simulated:0, simulated:1, host copy  by rule  then        now\n\
             update = manual\nthe store names no version: no answer\n"
        );
        found["store_failure"] = Value::Null;
        found["versions"][0]["failure"] = "no tensor 'x'\n".into();
        found["versions"][0]["failed_since"] = "noon".into();
        let text = render(&serde_json::from_value(found.clone()).unwrap());
        assert!(text.contains("\nbb is not served since noon: no tensor 'x'\u{fffd}\n"), "{text}");
        (found["failure"], found["failed_since"]) = ("3 classes".into(), "six".into());
        let text = render(&serde_json::from_value(found.clone()).unwrap());
        assert!(
            text.contains("\nits newest version cannot be told since six: 3 classes\n"),
            "{text}"
        );
        found["in_store"] = false.into();
        let text = render(&serde_json::from_value(found).unwrap());
        assert!(text.ends_with("update = manual\nthe store holds no such model\n"), "{text}");
    }

    #[test]
    fn a_switch_is_told_in_one_line() {
        let cases = [
            (
                json!({"version": "0123456789abcdef", "serves": true, "held": true}),
                "e:t serves version 0123456789ab",
            ),
            (
                json!({"version": "aa", "serves": false, "held": true}),
                "e:t is not loaded; its next load is of version aa",
            ),
            (
                json!({"version": "aa", "serves": true, "held": false}),
                "e:t serves version aa, and follows the endpoint's rule",
            ),
        ];
        for (answer, want) in cases {
            assert_eq!(sentence(&answer, "e:t"), want);
        }
    }
}
