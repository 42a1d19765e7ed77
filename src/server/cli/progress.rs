//! A bar while a model is on its way, where a person watches.

use std::convert::Infallible;
use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::Method;
use serde::Deserialize;

use super::client::Client;
use super::output::printable;
use super::target::Target;

/// Often enough to look alive, seldom enough to cost nothing.
const PERIOD: Duration = Duration::from_millis(250);

/// A load that waits is told this soon, and each new reason of it.
const WAITS_EVERY: Duration = Duration::from_secs(1);
/// How the reasons begin of a load that does not move by itself.
const WAITS: &str = "it waits for ";

/// What the residency page says about loads under way; other fields are not looked at.
#[derive(Debug, Default, Deserialize)]
struct Loads {
    #[serde(default)]
    loads: Vec<Load>,
}

/// One load under way.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Load {
    endpoint: String,
    target: String,
    state: String,
    #[serde(default)]
    fetch_bytes: u64,
    #[serde(default)]
    fetched_bytes: u64,
}

/// Shows how far the load is until it is dropped: with a bar where standard error is a terminal, and
/// with a line for each new reason to wait. A page that cannot be read is skipped: the load itself
/// reports what is wrong.
pub(super) async fn show(client: &Client, target: &Target) -> Infallible {
    let mut waits = Waits::default();
    if !std::io::stderr().is_terminal() {
        loop {
            tokio::time::sleep(WAITS_EVERY).await;
            if let Some(line) = waits.look(client, target).await {
                // Nobody is left to be told when standard error is closed.
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
    }
    let bar = Bar(ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()));
    bar.0.set_style(waiting_style());
    bar.0.set_message(format!("{}: waiting", target.name()));
    let mut ticks = tokio::time::interval(PERIOD);
    let mut next = Instant::now() + WAITS_EVERY;
    loop {
        ticks.tick().await;
        if Instant::now() >= next {
            next = Instant::now() + WAITS_EVERY;
            if let Some(line) = waits.look(client, target).await {
                bar.0.println(line);
            }
        }
        if let Some(load) = look(client, target).await {
            bar.set(target, &load);
        }
        bar.0.tick();
    }
}

/// Tells what a load waits for, each reason once in a row.
#[derive(Debug, Default)]
struct Waits {
    told: Option<String>,
}

impl Waits {
    /// What is new to tell.
    async fn look(&mut self, client: &Client, target: &Target) -> Option<String> {
        let mut query = vec![("target", target.target.as_str())];
        query.extend(target.endpoint.as_ref().map(|endpoint| ("endpoint", endpoint.as_str())));
        let request = client.request(Method::GET, "/admin/v1/explain").query(&query);
        let answer = client.json(request.timeout(PERIOD * 20)).await.ok()?;
        let why = self.fresh(answer.get("now")?.as_str()?)?;
        Some(format!("{}: {}", target.name(), printable(&why)))
    }

    /// The reason, where it is one to wait and was not the last that was told.
    fn fresh(&mut self, now: &str) -> Option<String> {
        let is_new = now.starts_with(WAITS) && self.told.as_deref() != Some(now);
        is_new.then(|| self.told.insert(now.to_owned()).clone())
    }
}

async fn look(client: &Client, target: &Target) -> Option<Load> {
    let request = client.request(Method::GET, "/admin/v1/residency").timeout(PERIOD * 20);
    let page: Loads = serde_json::from_value(client.json(request).await.ok()?).ok()?;
    page.loads.into_iter().find(|load| {
        load.target == target.target.as_str()
            && target.endpoint.as_ref().is_none_or(|endpoint| load.endpoint == endpoint.as_str())
    })
}

/// A bar that leaves nothing behind on the terminal.
struct Bar(ProgressBar);

impl Bar {
    fn set(&self, target: &Target, load: &Load) {
        let state = printable(&load.state.replace('_', " "));
        self.0.set_message(format!("{}: {state}", target.name()));
        if load.fetch_bytes > 0 {
            self.0.set_style(fetching_style());
            self.0.set_length(load.fetch_bytes);
            self.0.set_position(load.fetched_bytes.min(load.fetch_bytes));
        } else {
            self.0.set_style(waiting_style());
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn waiting_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("the template is constant")
}

fn fetching_style() -> ProgressStyle {
    let template = "{spinner} {msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    ProgressStyle::with_template(template).expect("the template is constant")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_to_wait_is_told_once_until_another_comes() {
        let mut waits = Waits::default();
        let kept =
            "it waits for 1.0 GiB of device memory: kept models leave too little of the budget";
        assert_eq!(waits.fresh("still fetching, 1 B of 2 B"), None);
        assert_eq!(waits.fresh(kept).as_deref(), Some(kept));
        assert_eq!(waits.fresh(kept), None);
        assert_eq!(waits.fresh("still loading"), None);
        assert!(waits.fresh("it waits for other loads to end").is_some());
        assert!(waits.fresh(kept).is_some());
    }

    #[test]
    fn both_templates_are_right() {
        waiting_style();
        fetching_style();
    }

    #[test]
    fn loads_are_read_from_the_residency_page_with_more_than_we_look_at() {
        let page = r#"{"devices":[],"waiters":1,"loads":[{"endpoint":"a","target":"t/m",
            "version":"00","state":"waiting_to_load","device":null,"fetch_bytes":10,
            "fetched_bytes":4,"waiters":1}],"failed":[]}"#;
        let loads: Loads = serde_json::from_str(page).unwrap();
        assert_eq!(loads.loads[0].fetched_bytes, 4);
        assert!(serde_json::from_str::<Loads>("{}").unwrap().loads.is_empty());
    }
}
