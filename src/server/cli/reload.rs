//! `roundhouse reload`: has a running server read its settings again.

use clap::Args;
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::operate::ANSWER_TIMEOUT;
use super::{AdminArgs, output};
use crate::config::Fault;
use crate::error::Error;

/// Arguments of `reload`.
#[derive(Debug, Clone, Args)]
pub struct ReloadArgs {
    /// Which server.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// The answer of `POST /admin/v1/reload`.
#[derive(Debug, Serialize, Deserialize)]
struct Reading {
    file: String,
    outcome: String,
    at: u64,
    faults: Vec<String>,
    restart: Vec<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

/// Has the settings read, and tells faults as `check-config` does.
pub(super) async fn run(args: &ReloadArgs) -> Result<(), Error> {
    let client = Client::admin(&args.admin)?;
    let request = client.request(Method::POST, "/admin/v1/reload").timeout(ANSWER_TIMEOUT);
    let reading: Reading = client.shaped(client.json(request).await?)?;
    if args.admin.json {
        output::print_json(&reading)?;
    }
    if !reading.faults.is_empty() {
        let split = |text: &String| {
            let (key, message) = text.split_once(": ").unwrap_or(("config", text));
            Fault::new(key, message)
        };
        return Err(Error::Settings(reading.faults.iter().map(split).collect()));
    }
    if args.admin.json {
        return Ok(());
    }
    output::print(&lines(&reading))
}

/// The outcome, and a line for each section that waits for a restart and each thing that is odd about what
/// is in force.
fn lines(reading: &Reading) -> String {
    let head = output::printable(&format!("{}: {}", reading.file, reading.outcome));
    let mut lines = format!("{head}\n");
    for section in &reading.restart {
        lines.push_str(&format!("  {} needs a restart\n", output::printable(section)));
    }
    for warning in &reading.warnings {
        lines.push_str(&format!("  warning: {}\n", output::printable(warning)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_stays_in_its_lines() {
        let reading = Reading {
            file: "a\u{1b}[2J\nb".into(),
            outcome: "taken".into(),
            at: 0,
            faults: Vec::new(),
            restart: vec!["x\ny\u{9b}".into()],
            warnings: vec!["z\n".into()],
        };
        let want = "a\u{fffd}[2J\u{fffd}b: taken\n  x\u{fffd}y\u{fffd} needs a restart\n  warning: z\u{fffd}\n";
        assert_eq!(lines(&reading), want);
    }
}
