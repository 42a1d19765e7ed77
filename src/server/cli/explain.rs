//! Why a model stands as it does, as a running server explains it.

use reqwest::Method;
use roundhouse_types::{Bytes, ErrorKind, Failure};
use serde::Deserialize;

use super::client::Client;
use super::operate::{ANSWER_TIMEOUT, ExplainArgs, short};
use super::output::{self, Table};
use super::target::Target;
use crate::error::{Error, count};

/// What was decided about a model, oldest first.
#[derive(Debug, Deserialize)]
struct Explanation {
    now: String,
    ready_in_ms: Option<u64>,
    decisions: Vec<Decision>,
    /// How its engines stand.
    #[serde(default)]
    runs: Vec<String>,
    /// Of a name that nobody has: those that may have been meant.
    near: Option<Vec<String>>,
    /// What the store holds in place of a newer version and may not be whole.
    upload: Option<String>,
    warm: Option<Warm>,
    disk: Option<Disk>,
}

/// What it has on disk, beside its tenant.
#[derive(Debug, Deserialize)]
struct Disk {
    bytes: u64,
    versions: usize,
    tenant: DiskOfTenant,
}

#[derive(Debug, Deserialize)]
struct DiskOfTenant {
    tenant: String,
    bytes: u64,
    floor_bytes: u64,
    ceiling_bytes: Option<u64>,
}

/// Idle interpreters that the next handlers are forked from.
#[derive(Debug, Deserialize)]
struct Warm {
    interpreters: usize,
    bytes: u64,
    limit_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Decision {
    time: String,
    action: String,
    message: String,
    version: Option<String>,
    device: Option<String>,
    #[serde(default)]
    times: u64,
}

/// Prints how a model stands, what was decided about it, and why.
pub(super) async fn explain(args: &ExplainArgs) -> Result<(), Error> {
    let target = args.target.check()?;
    let client = Client::admin(&args.admin)?;
    let mut query = vec![("target", target.target.as_str())];
    query.extend(target.endpoint.as_ref().map(|endpoint| ("endpoint", endpoint.as_str())));
    let request = client.request(Method::GET, "/admin/v1/explain").query(&query);
    let answer = client.json(request.timeout(ANSWER_TIMEOUT)).await?;
    if args.admin.json {
        output::print_json(&answer)?;
        let is_unknown = answer.get("near").is_some_and(|near| !near.is_null());
        return if is_unknown { Err(nobody(&target)) } else { Ok(()) };
    }
    let found: Explanation = client.shaped(answer)?;
    output::print(&standing(&target, &found.now))?;
    for run in &found.runs {
        output::print(&format!("{}\n", output::printable(run)))?;
    }
    if let Some(near) = &found.near {
        output::print(&unknown(near))?;
    }
    if let Some(upload) = &found.upload {
        output::print(&format!("{}\n", output::printable(upload)))?;
    }
    if let Some(disk) = found.disk.as_ref().filter(|_| found.near.is_none()) {
        output::print(&disk_line(disk))?;
    }
    if let Some(warm) = &found.warm {
        output::print(&warm_line(warm))?;
    }
    if let Some(milliseconds) = found.ready_in_ms {
        let seconds = milliseconds.div_ceil(1000);
        output::print(&format!("may be tried again in {seconds} s\n"))?;
    }
    match found.decisions.is_empty() {
        true => output::print("nothing was decided about it yet\n")?,
        false => output::print(&decisions_table(found.decisions))?,
    }
    if found.near.is_some() { Err(nobody(&target)) } else { Ok(()) }
}

/// A name that nobody has is a failure, as it is of the commands that change something.
fn nobody(target: &Target) -> Error {
    let message = format!("the store has no target {}", target.name());
    Error::Failed(Failure::new(ErrorKind::ModelNotFound, message))
        .with_hint("`roundhouse models` lists what the store holds")
}

/// What is said of a name that nobody has.
fn unknown(near: &[String]) -> String {
    let names: Vec<_> = near.iter().map(|name| output::printable(name)).collect();
    match names.is_empty() {
        true => "the store has no such target\n".to_owned(),
        false => format!("the store has no such target; near it: {}\n", names.join(", ")),
    }
}

/// What is on disk of it, and how its tenant stands there.
fn disk_line(disk: &Disk) -> String {
    let own = match disk.versions {
        0 => "nothing of it is on disk".to_owned(),
        versions => format!("on disk: {}, {}", count(versions, "version"), Bytes(disk.bytes)),
    };
    let tenant = &disk.tenant;
    let floor = Some(tenant.floor_bytes).filter(|floor| *floor > 0);
    let floor = floor.map(|floor| format!(", {} promised", Bytes(floor)));
    let ceiling = tenant.ceiling_bytes.map(|ceiling| format!(", at most {}", Bytes(ceiling)));
    if floor.is_none() && ceiling.is_none() {
        return format!("{own}\n");
    }
    let (floor, ceiling) = (floor.unwrap_or_default(), ceiling.unwrap_or_default());
    let (name, bytes) = (output::printable(&tenant.tenant), Bytes(tenant.bytes));
    format!("{own}; its tenant {name} has {bytes} there{floor}{ceiling}\n")
}

/// Why a handler's load may be short, or is not.
fn warm_line(warm: &Warm) -> String {
    let idle = match warm.interpreters {
        0 => "no interpreter is".to_owned(),
        1 => "1 interpreter is".to_owned(),
        count => format!("{count} interpreters are"),
    };
    format!(
        "{idle} kept warm for handlers ({} of {})\n",
        Bytes(warm.bytes),
        Bytes(warm.limit_bytes)
    )
}

/// One line: what a handler said may have had several.
fn standing(target: &Target, now: &str) -> String {
    format!("{}\n", output::printable(&format!("{}: {now}", target.name())))
}

fn decisions_table(decisions: Vec<Decision>) -> String {
    let mut table = Table::new(&["AT", "VERSION", "DEVICE", "WHAT", "WHY"]);
    let dash = || "-".to_owned();
    for decision in decisions {
        let repeated = match decision.times {
            0 | 1 => String::new(),
            times => format!(" ({times} times)"),
        };
        table.row(vec![
            decision.time,
            decision.version.map_or_else(dash, |version| short(&version).to_owned()),
            decision.device.unwrap_or_else(dash),
            decision.action.replace('_', " "),
            decision.message + &repeated,
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_uploader_wrote_steers_no_terminal_and_makes_no_line_of_its_own() {
        let target = Target { endpoint: None, target: "a/b".parse().unwrap() };
        let now = "failed: no architecture '\u{1b}]0;x\u{7}\u{9b}2J'\nhint: run this";
        assert_eq!(
            standing(&target, now),
            "a/b: failed: no architecture '\u{fffd}]0;x\u{fffd}\u{fffd}2J'\u{fffd}hint: run this\n"
        );
    }

    #[test]
    fn what_is_on_disk_is_told_with_its_tenants_limits_where_there_are_some() {
        let line = |versions, floor, ceiling: Option<u64>| {
            let tenant = json!({
                "tenant": "acme", "bytes": 3 << 20, "floor_bytes": floor, "ceiling_bytes": ceiling,
            });
            let disk = json!({"bytes": 1 << 20, "versions": versions, "tenant": tenant});
            disk_line(&serde_json::from_value(disk).unwrap())
        };
        assert_eq!(line(0, 0, None), "nothing of it is on disk\n");
        assert_eq!(
            line(2, 1 << 20, Some(4 << 20)),
            "on disk: 2 versions, 1.0 MiB; its tenant acme has 3.0 MiB there, 1.0 MiB promised, \
             at most 4.0 MiB\n"
        );
    }

    #[test]
    fn decisions_are_read_with_more_than_is_shown() {
        let answer = json!({"endpoint": "e", "target": "t", "now": "not loaded", "decisions": [{
            "time": "2026-01-01T00:00:00.000Z", "endpoint": "e", "target": "t", "version": null,
            "device": "cpu", "times": 3, "message": "no room", "action": "blocked", "bytes": 1,
        }]});
        let found: Explanation = serde_json::from_value(answer).unwrap();
        assert_eq!((found.decisions[0].times, found.ready_in_ms), (3, None));
        assert_eq!(
            decisions_table(found.decisions),
            "AT                        VERSION  DEVICE  WHAT     WHY\n\
             2026-01-01T00:00:00.000Z  -        cpu     blocked  no room (3 times)\n"
        );
    }
}
