//! Load tests of a running server: open loop with Zipf-distributed targets, or a
//! fixed number of clients. Speaks HTTP only, so that it can drive anything that
//! answers the same routes.
//!
//! Reading order: `schedule` (when and what), `client` (one request),
//! `run` (the scenario), `watch` (what the server says of itself meanwhile),
//! `report` and `chart` (what came of it).
#![allow(clippy::print_stdout, reason = "a command-line tool: its report goes to standard output")]
#![allow(clippy::print_stderr, reason = "and its complaints to standard error")]

mod chart;
mod client;
mod echo;
mod report;
mod run;
mod schedule;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Load tests of a running Roundhouse.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Open loop: requests are sent at planned (Poisson) times whatever the server does, and
    /// latency counts from the planned time. Targets are Zipf-distributed.
    Zipf {
        #[command(flatten)]
        common: Common,
        /// Requests per second.
        #[arg(long, default_value_t = 20.0)]
        rate: f64,
        /// Exponent of the Zipf distribution: 0 is uniform, 1 the classic.
        #[arg(long, default_value_t = 1.0)]
        skew: f64,
    },
    /// Closed loop: so many clients, each sending its next request when the last is answered;
    /// targets uniformly distributed.
    Clients {
        #[command(flatten)]
        common: Common,
        /// How many.
        #[arg(long, default_value_t = 64)]
        clients: usize,
    },
    /// No load at all: a bare server that sends every body back, to compare others with.
    Echo {
        /// Where it listens.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: String,
    },
}

/// What every scenario takes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Common {
    /// The data port.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The admin port: sampled for the budget, read for metrics.
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    admin: String,
    /// The endpoint to invoke.
    #[arg(long, default_value = "demo")]
    endpoint: String,
    /// Seconds to send for.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// A request is failed when its answer takes longer than this many seconds.
    #[arg(long, default_value_t = 10.0)]
    deadline: f64,
    /// Seeds arrivals, targets and texts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Requests with what each answer must contain: a JSON list of `{"target", "body" or
    /// "messages" or "prompt" or "inputs", "text" or "label" or "contains": […]}`. Without it a generic text goes to every
    /// target that `/v1/models` lists and that answers a first probe.
    #[arg(long)]
    expect: Option<PathBuf>,
    /// Where to write `report.txt`, `report.json`, `requests.csv` and the picture.
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Common {
    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.scenario {
        Scenario::Zipf { common, rate, skew } => run::open_loop(common, *rate, *skew).await,
        Scenario::Clients { common, clients } => run::closed_loop(common, *clients).await,
        Scenario::Echo { listen } => echo::serve(listen).await.map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(outcome) => outcome,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
