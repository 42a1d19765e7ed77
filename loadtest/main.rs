//! Load tests of a running server: open loop with Zipf-distributed targets, a recorded trace, or a
//! fixed number of clients. Speaks HTTP only, in the words of several APIs, so that it can drive others
//! too (`compare/`).
//!
//! Reading order: `arrivals` and `trace` (when), `schedule` (when and what), `face` (in which words),
//! `client` (one request), `pieces` (answers that come in pieces),
//! `run` (the scenario), `watch` (what the server says of itself meanwhile),
//! `report` and `chart` (what came of it).
#![allow(clippy::print_stdout, reason = "a command-line tool: its report goes to standard output")]
#![allow(clippy::print_stderr, reason = "and its complaints to standard error")]

mod arrivals;
mod chart;
mod client;
mod echo;
mod face;
mod pieces;
mod report;
mod run;
mod schedule;
mod trace;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use self::arrivals::{Arrivals, Shape};
use self::face::{AdaptersIn, Face};
use self::schedule::Replay;

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
        /// How the rate changes over time.
        #[arg(long, value_enum, default_value_t = Shape::Steady)]
        shape: Shape,
        /// Seconds from burst to burst, or of a day.
        #[arg(long, default_value_t = 60.0)]
        period: f64,
        /// By what a burst, or the noon of a day, multiplies the rate.
        #[arg(long, default_value_t = 2.0)]
        factor: f64,
    },
    /// Open loop at the times of a recorded trace: the CSV of Alibaba's GenAI trace of 2026 or of Azure's
    /// LLM inference trace of 2023, or one with the columns time, target and, where there is one, tenant.
    /// The trace's most popular model is the first target, and so on around.
    Replay {
        #[command(flatten)]
        common: Common,
        /// The trace.
        #[arg(long)]
        trace: PathBuf,
        /// Time passes so many times faster.
        #[arg(long, default_value_t = 1000.0)]
        speed: f64,
        /// Where the trace names no models: the exponent by which targets are drawn.
        #[arg(long, default_value_t = 1.0)]
        skew: f64,
        /// Tokens of a prompt at most, where the trace has lengths.
        #[arg(long, default_value_t = 256)]
        longest_prompt: usize,
        /// Tokens of an answer at most, where the trace has lengths.
        #[arg(long, default_value_t = 64)]
        longest_answer: usize,
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
    /// The admin port: sampled for the budget, read for metrics. `none` for servers that are not ours.
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
    /// Targets to ask, with commas between them; instead of those that `/v1/models` lists.
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// In the words of which API.
    #[arg(long, value_enum, default_value_t = Face::Sagemaker)]
    face: Face,
    /// Has answers come in pieces, and times the first and those between: events of OpenAI's, frames of
    /// SageMaker's response stream, lines of the others.
    #[arg(long)]
    stream: bool,
    /// The targets are adapters of this one: they are named beside it. OpenAI's API names them as models.
    #[arg(long, value_name = "BASE")]
    adapters_of: Option<String>,
    /// Where they are named, with --adapters-of.
    #[arg(long, value_enum, default_value_t = AdaptersIn::Header)]
    adapters_in: AdaptersIn,
    /// New tokens of generic requests at most.
    #[arg(long, default_value_t = 24)]
    tokens: usize,
    /// No fewer tokens either (`min_new_tokens`, `ignore_eos`).
    #[arg(long)]
    exact: bool,
    /// A file with a tenant's bearer key at the end of each line: who asks is drawn from them, or told
    /// by the trace.
    #[arg(long)]
    keys: Option<PathBuf>,
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
        Scenario::Zipf { common, rate, skew, shape, period, factor } => {
            let (rate, shape, period, factor) = (*rate, *shape, *period, *factor);
            run::open_loop(common, &Arrivals { rate, shape, period, factor }, *skew).await
        }
        Scenario::Replay { common, trace, speed, skew, longest_prompt, longest_answer } => {
            let how = Replay { speed: *speed, longest: (*longest_prompt, *longest_answer) };
            run::replay(common, trace, &how, *skew).await
        }
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
