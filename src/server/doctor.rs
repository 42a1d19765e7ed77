//! `roundhouse doctor`: is everything that a server needs there, and what to do if not.
//!
//! Changes nothing but for a file that it writes to see whether it can, and removes.

use std::fmt;

use clap::Args;
use serde::Serialize;
use serde_json::json;

pub(crate) mod behind;
mod handlers;
mod local;
mod named;
mod stores;
mod witness;

pub(crate) use stores::missing as missing_folders;

use crate::cli::output::{print, print_json, printable};
use crate::cli::{ServeFlags, environment};
use crate::config::Config;
use crate::error::Error;

/// Arguments of `doctor`: the flags that the server is or will be started with.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// How the server is or will be started.
    #[command(flatten)]
    pub serve: ServeFlags,
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// What one check found.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
struct Finding {
    /// What was looked at.
    check: String,
    state: State,
    /// What was seen.
    message: String,
    /// What to do, where something is to be done.
    next: Option<String>,
}

/// How good that is.
#[derive(Debug, Clone, Copy, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum State {
    /// As it should be.
    Ok,
    /// A server would start, but perhaps not as meant.
    Odd,
    /// A server would not start, or not work.
    Bad,
}

impl Finding {
    fn ok(check: impl Into<String>, message: impl Into<String>) -> Self {
        Self { check: check.into(), state: State::Ok, message: message.into(), next: None }
    }

    fn odd(check: impl Into<String>, message: impl Into<String>, next: impl Into<String>) -> Self {
        let next = Some(next.into());
        Self { check: check.into(), state: State::Odd, message: message.into(), next }
    }

    fn bad(check: impl Into<String>, message: impl Into<String>, next: impl Into<String>) -> Self {
        let next = Some(next.into());
        Self { check: check.into(), state: State::Bad, message: message.into(), next }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.state {
            State::Ok => "ok ",
            State::Odd => "odd",
            State::Bad => "BAD",
        };
        write!(f, "{mark}  {}: {}", printable(&self.check), printable(&self.message))?;
        match &self.next {
            Some(next) => write!(f, "\n     -> {}", printable(next)),
            None => Ok(()),
        }
    }
}

/// Looks at everything, prints what was found, and fails if something is bad.
pub(crate) async fn run(args: &DoctorArgs) -> Result<(), Error> {
    let findings = look(args).await;
    if args.json {
        print_json(&json!({ "checks": findings }))?;
    } else {
        for finding in &findings {
            print(&format!("{finding}\n"))?;
        }
    }
    match findings.iter().filter(|finding| finding.state == State::Bad).count() {
        0 => Ok(()),
        bad => Err(Error::Problems(bad)),
    }
}

async fn look(args: &DoctorArgs) -> Vec<Finding> {
    let flags = &args.serve;
    let config = match Config::load(flags.config.as_deref(), &environment, flags) {
        Ok(config) => config,
        Err(faults) => {
            let next =
                "config/default.toml explains every key; the rest is checked once this is right";
            let bad = |fault: crate::config::Fault| Finding::bad(fault.key, fault.message, next);
            return faults.into_iter().map(bad).collect();
        }
    };
    let mut findings = vec![Finding::ok("settings", "no fault")];
    findings.push(local::memory(&config));
    if !config.endpoints.is_empty() {
        findings.extend(local::cache(&config.cache));
    }
    findings.extend(local::door(&config));
    findings.extend(local::ports(&config.listen).await);
    findings.extend(witness::look(&config.listen, &config.memory).await);
    let looked = config.clone();
    // A probe that was cut off has found nothing.
    let handlers = tokio::task::spawn_blocking(move || handlers::look(&looked)).await;
    findings.extend(handlers.unwrap_or_default());
    let looked = config.clone();
    let behind = tokio::task::spawn_blocking(move || behind::look(&looked)).await;
    findings.extend(behind.unwrap_or_default());
    findings.extend(behind::reach(&config).await);
    findings.extend(behind::running(&config.listen).await);
    findings.extend(stores::look(&config).await);
    findings.extend(named::look(&config).await);
    findings
}
