//! How the server's state is written: figures, devices as bars to scale, loads, models,
//! decisions.

use std::cmp::Reverse;

use roundhouse_types::Bytes;
use serde_json::Value;

use super::feed::Feed;
use super::lines::{flowed, wrapped};
use super::width::fitting;
use crate::cli::output::{Table, printable};

/// Lines of loads, and of decisions.
const FEW: usize = 6;
/// Letters of why a container failed.
const MESSAGE: usize = 48;
/// Lines of why a model failed, and of a decision; `explain` tells the whole.
const WRAPPED: usize = 2;
/// A terminal below this is not shown versions.
const VERSIONS_FROM: usize = 110;
/// Lines of models where no terminal says how many it shows.
const MODELS: usize = 50;
/// States of containers in which nothing is to be done.
const WELL: [&str; 4] = ["healthy", "running", "unchecked", "asleep"];
/// A bar's parts: what is drawn, in the order of the bar.
const PARTS: [(char, &str); 6] = [
    ('#', "weights"),
    ('=', "workspace, texts"),
    ('k', "KV in use"),
    ('-', "KV free"),
    ('r', "reserved"),
    ('x', "used by others"),
];

/// How much is shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) columns: usize,
    /// `None` is no terminal: lines are not counted.
    pub(super) rows: Option<usize>,
    pub(super) colours: bool,
}

impl Room {
    /// Where no terminal is: as wide as it is read well, without an end.
    pub(super) const PAPER: Self = Self { columns: 120, rows: None, colours: false };
}

/// One page.
pub(super) struct Page<'a> {
    feed: &'a Feed,
    state: &'a Value,
    url: &'a str,
    room: Room,
}

impl<'a> Page<'a> {
    pub(super) fn new(feed: &'a Feed, url: &'a str, room: Room) -> Self {
        Self { feed, state: feed.state(), url, room }
    }

    /// The page with a line's end behind each line.
    pub(super) fn render(&self) -> String {
        let mut lines = self.figures();
        lines.push(String::new());
        lines.extend(self.devices());
        lines.extend(self.loads());
        lines.extend(self.containers());
        lines.extend(self.failed());
        let decisions = self.decisions();
        let taken = lines.len() + decisions.len() + 3;
        let left = self.room.rows.map_or(MODELS, |rows| rows.saturating_sub(taken));
        lines.extend(self.models(left));
        lines.extend(decisions);
        if let Some(rows) = self.room.rows {
            lines.truncate(rows);
        }
        let mut text = String::new();
        for line in lines {
            text.push_str(fitting(&line, self.room.columns));
            text.push('\n');
        }
        self.coloured(text)
    }

    fn figures(&self) -> Vec<String> {
        let last = self.feed.samples().last().copied().unwrap_or(&Value::Null);
        let sums = |name: &str| -> f64 {
            self.feed.samples().iter().map(|sample| number(&sample[name])).sum()
        };
        let standing = match (self.feed.why_lost(), self.state["unready"].as_str()) {
            (Some(why), _) => format!("DISCONNECTED: {}", printable(why)),
            (None, Some(why)) => format!("NOT READY: {}", printable(why)),
            (None, None) => "ready".to_owned(),
        };
        let (build, time) = (text(&self.state["build"]), text(&self.state["time"]));
        let residents = self.residents().count();
        let head = [format!("roundhouse {build}"), printable(self.url), time, standing];
        let regret = match (last["regret_lower"].as_f64(), last["regret_upper"].as_f64()) {
            (Some(lower), Some(upper)) if number(&last["regret_requests"]) > 0.0 => {
                format!("{lower:.2} to {upper:.2}")
            }
            _ => "-".to_owned(),
        };
        let rate = self.feed.per_second("requests");
        let counts = [
            format!("models {residents}"),
            format!("loading {}", entries(&self.state["loads"]).count()),
            format!("waiting {}", number(&self.state["waiters"])),
            format!("failed {}", entries(&self.state["failed"]).count()),
            format!("hits {}", share(sums("hits"), sums("grants"))),
            format!("regret {regret}"),
            format!("evictions {}", sums("evictions")),
            format!("requests {}", rate.map_or("-".to_owned(), |rate| format!("{rate:.1}/s"))),
        ];
        let latency = |label: &str, name: &str| {
            let told = self.feed.samples().into_iter().rev().find(|it| it[name].is_object());
            let at = |part: &str| told.map_or(Value::Null, |it| it[name][part].clone());
            format!("{label} {} (95 % {})", seconds(&at("p50")), seconds(&at("p95")))
        };
        let disk = &self.state["disk"];
        let disk = match disk.is_object() {
            true => {
                format!("disk {} of {}", bytes(&disk["used_bytes"]), bytes(&disk["budget_bytes"]))
            }
            false => "no disk cache".to_owned(),
        };
        let latencies = [
            latency("first token", "first_token"),
            latency("per token", "per_token"),
            latency("queue", "queue"),
            disk,
        ];
        [&head[..], &counts, &latencies].map(|it| flowed(it, self.room.columns)).concat()
    }

    fn devices(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for device in entries(&self.state["devices"]) {
            let (budget, taken) = (
                number(&device["budget_bytes"]),
                number(&device["charged_bytes"]) + number(&device["reserved_bytes"]),
            );
            let name = text(&device["id"]);
            let told = format!("{}  {} of {}", share(taken, budget), size(taken), size(budget));
            let wide = self.room.columns.saturating_sub(name.len() + told.chars().count() + 6);
            lines.push(format!("{name} [{}]  {told}", bar(device, wide.clamp(10, 100))));
        }
        let legend: Vec<_> = PARTS.iter().map(|(drawn, part)| format!("{drawn} {part}")).collect();
        let narrower = self.room.columns.saturating_sub(2);
        lines.extend(flowed(&legend, narrower).into_iter().map(|line| format!("  {line}")));
        lines
    }

    fn loads(&self) -> Vec<String> {
        let mut table =
            Table::new(&["ON THEIR WAY", "STATE", ">FETCHED", ">OF", ">WAITING", "DEVICE"]);
        let all: Vec<_> = entries(&self.state["loads"]).collect();
        for load in all.iter().take(FEW) {
            table.row(vec![
                model(load),
                text(&load["state"]).replace('_', " "),
                bytes(&load["fetched_bytes"]),
                bytes(&load["fetch_bytes"]),
                number(&load["waiters"]).to_string(),
                or_dash(text(&load["device"])),
            ]);
        }
        section(&table, all.len(), FEW)
    }

    /// Containers and engines: what is not well first.
    fn containers(&self) -> Vec<String> {
        let mut table = Table::new(&[
            "CONTAINER",
            "STATE",
            ">IN FLIGHT",
            ">PID",
            ">RESTARTS",
            "ADDRESS",
            "LAST FAILURE",
        ]);
        let mut all: Vec<_> = entries(&self.state["containers"]).collect();
        all.sort_by_key(|it| WELL.contains(&it["state"].as_str().unwrap_or_default()));
        for it in all.iter().take(FEW) {
            let failure: String = text(&it["failure"]).chars().take(MESSAGE).collect();
            table.row(vec![
                format!("{}:{}", text(&it["endpoint"]), text(&it["name"])),
                text(&it["state"]).replace('_', " "),
                format!("{}/{}", number(&it["in_flight"]), number(&it["max_in_flight"])),
                it["pid"].as_u64().map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                number(&it["restarts"]).to_string(),
                or_dash(text(&it["address"])),
                or_dash(failure),
            ]);
        }
        section(&table, all.len(), FEW)
    }

    /// What failed, and why.
    fn failed(&self) -> Vec<String> {
        let all: Vec<_> = entries(&self.state["failed"]).collect();
        if all.is_empty() {
            return Vec::new();
        }
        let mut lines = vec![String::new(), "FAILED".to_owned()];
        for it in all.iter().take(FEW) {
            let (state, why) = (text(&it["state"]), text(&it["message"]));
            let told = format!("{}  {state}: {why}", model(it));
            lines.extend(wrapped(&told, self.room.columns).into_iter().take(WRAPPED));
        }
        if all.len() > FEW {
            lines.push(format!("... and {} more", all.len() - FEW));
        }
        lines
    }

    /// What is loaded: in use first, then the latest.
    fn models(&self, most: usize) -> Vec<String> {
        let mut heads = vec!["MODEL", "STATE", "DEVICE", ">SIZE", ">KV TOKENS", ">IN USE"];
        heads.extend((self.room.columns >= VERSIONS_FROM).then_some("VERSION"));
        let mut table = Table::new(&heads);
        let mut residents: Vec<_> = self.residents().collect();
        residents.sort_by_key(|(_, it)| {
            let leases = it["leases"].as_u64().unwrap_or_default();
            (Reverse(leases), Reverse(text(&it["last_used"])), model(it))
        });
        for (device, it) in residents.iter().take(most) {
            let kept = if it["kept"] == true { ", kept" } else { "" };
            let kv = &it["serves"]["kv"];
            let tokens = |part: &str| number(&kv[part]["tokens"]);
            let mut cells = vec![
                model(it),
                format!("{}{kept}", text(&it["state"])),
                text(device),
                bytes(&it["share_bytes"]),
                if kv.is_object() {
                    format!("{}/{}", tokens("used"), tokens("now"))
                } else {
                    "-".into()
                },
                number(&it["leases"]).to_string(),
                text(&it["version"]).chars().take(12).collect(),
            ];
            cells.truncate(heads.len());
            table.row(cells);
        }
        section(&table, residents.len(), most)
    }

    fn decisions(&self) -> Vec<String> {
        let mut lines = vec![String::new(), "DECISIONS".to_owned()];
        for decision in self.feed.decisions().iter().rev().take(FEW) {
            let time = text(&decision["time"]);
            let time = time.get(11..19).unwrap_or(&time).to_owned();
            let told = format!("{time}  {}  {}", model(decision), text(&decision["message"]));
            lines.extend(wrapped(&told, self.room.columns).into_iter().take(WRAPPED));
            if lines.len() >= 2 + FEW {
                break;
            }
        }
        if lines.len() == 2 {
            lines.push("none yet".to_owned());
        }
        lines
    }

    fn residents(&self) -> impl Iterator<Item = (&'a Value, &'a Value)> {
        let devices = entries(&self.state["devices"]);
        devices.flat_map(|device| entries(&device["residents"]).map(|it| (&device["id"], it)))
    }

    /// The first line stands out, as do headings.
    fn coloured(&self, text: String) -> String {
        if !self.room.colours {
            return text;
        }
        let is_head = |line: &str| {
            ["roundhouse ", "ON THEIR WAY", "CONTAINER ", "FAILED", "MODEL ", "DECISIONS"]
                .iter()
                .any(|it| line.starts_with(it))
        };
        text.lines()
            .map(|line| match is_head(line) {
                true => format!("\x1b[1m{line}\x1b[0m\n"),
                false => format!("{line}\n"),
            })
            .collect()
    }
}

/// A heading with rows below an empty line, and how many more there are; nothing without rows.
fn section(table: &Table, all: usize, shown: usize) -> Vec<String> {
    if all == 0 {
        return Vec::new();
    }
    let mut lines = vec![String::new()];
    lines.extend(table.render().lines().map(str::to_owned));
    if all > shown {
        lines.push(format!("... and {} more", all - shown));
    }
    lines
}

/// A device's bytes to scale, in cells.
fn bar(device: &Value, cells: usize) -> String {
    let budget = number(&device["budget_bytes"]);
    let foreign = (number(&device["configured_bytes"]) - budget).max(0.0);
    let mut sums = [0.0; PARTS.len()];
    for resident in entries(&device["residents"]) {
        let part = |name: &str| number(&resident["bytes"][name]);
        let all = part("weights") + part("kv") + part("workspace") + part("host");
        let scale = if all > 0.0 { number(&resident["share_bytes"]) / all } else { 0.0 };
        let pool = &resident["serves"]["kv"];
        let used = number(&pool["used"]["tokens"]) * number(&pool["token_bytes"]);
        let used = used.min(part("kv"));
        let parts = [part("weights"), part("workspace") + part("host"), used, part("kv") - used];
        sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part * scale);
    }
    (sums[4], sums[5]) = (number(&device["reserved_bytes"]), foreign);
    let whole = (sums.iter().sum::<f64>()).max(budget + foreign).max(1.0);
    let mut drawn = String::new();
    let mut until = 0.0;
    for ((letter, _), sum) in PARTS.iter().zip(sums).take(5) {
        until += sum;
        fill(&mut drawn, *letter, until / whole * cells_of(cells));
    }
    fill(&mut drawn, ' ', (whole - foreign) / whole * cells_of(cells));
    fill(&mut drawn, 'x', cells_of(cells));
    drawn
}

/// Draws until so many cells are full.
fn fill(drawn: &mut String, letter: char, until: f64) {
    // The rounding of sums, not of parts: the bar has its length whatever they are.
    while cells_of(drawn.chars().count()) + 0.5 <= until {
        drawn.push(letter);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a terminal is narrow")]
fn cells_of(count: usize) -> f64 {
    count as f64
}

fn entries(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_object().into_iter().flat_map(serde_json::Map::values)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

fn text(value: &Value) -> String {
    printable(value.as_str().unwrap_or_default())
}

fn model(value: &Value) -> String {
    format!("{}:{}", text(&value["endpoint"]), text(&value["target"]))
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn bytes(value: &Value) -> String {
    Bytes(value.as_u64().unwrap_or_default()).to_string()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes are whole")]
fn size(bytes: f64) -> String {
    Bytes(bytes.max(0.0) as u64).to_string()
}

fn share(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.0} %", 100.0 * part / whole) } else { "-".to_owned() }
}

fn seconds(value: &Value) -> String {
    match value.as_f64() {
        None => "-".to_owned(),
        Some(value) if value >= 1.0 => format!("{value:.2} s"),
        Some(value) => format!("{:.1} ms", value * 1e3),
    }
}

#[cfg(test)]
mod tests;
